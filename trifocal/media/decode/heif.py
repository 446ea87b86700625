"""HEIC pictures, where the extra `heif` is installed. Registered with PIL in decoder processes only, by `image.py`."""

from __future__ import annotations

from functools import cache

OLDEST_LIBHEIF = (1, 23, 6)  # older ones have known holes: docs/security.md
_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2"}
_AV1_BRANDS = {b"avif", b"avis"}
_MAX_HEAD = 256
_THREADS = 4  # as for clips


def is_heif(data: bytes) -> bool:
    """Whether the bytes begin like a HEIC picture (an AVIF is none)."""
    if data[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(data[:4], "big"), _MAX_HEAD)
    brands = {data[8:12], *(data[start : start + 4] for start in range(16, end, 4))}
    return not brands.isdisjoint(_BRANDS) and brands.isdisjoint(_AV1_BRANDS)


@cache
def why_not() -> str | None:
    """Make PIL read HEIC from now on; what is missing if that cannot be."""
    try:
        import pillow_heif

        version = pillow_heif.libheif_version()
    except ModuleNotFoundError:
        return "HEIC pictures need an extra package where the server runs: pip install 'trifocal[heif]'"
    except ImportError as error:  # it is there, but its library does not load
        return f"HEIC pictures cannot be read where the server runs: pillow-heif does not load ({error})"
    if _numbers(version) < OLDEST_LIBHEIF:
        oldest = ".".join(map(str, OLDEST_LIBHEIF))
        return (
            f"HEIC pictures need libheif {oldest} or newer, but {version} is installed: "
            "pip install --upgrade 'trifocal[heif]' where the server runs"
        )
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=_THREADS)
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdecimal())
