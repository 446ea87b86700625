"""The kinds of media: all that tells a picture from a clip outside their own files. Another kind is another row.

A row's files are its reader and what that imports, its options (`prompt/part_options.py`, `prompt/item_options.py`),
and what processors of families make of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trifocal.types import Modality


@dataclass(frozen=True, slots=True)
class ModalityInfo:
    """One kind of media, `name` in vLLM's words (`multi_modal_data`, `--limit-mm-per-prompt`, media_io_kwargs)."""

    name: Modality
    noun: str  # for people
    plural: str
    part_fields: Mapping[str, str]  # types of parts of a message, and where each has its source
    url_field: str  # the one of these fields that takes a URL, or an object with one
    url_forms: str  # what such a field may be
    object_forms: str  # what may be given in Python
    max_bytes: int  # of one file
    fetch_timeout: str  # the field of `FetchConfig`
    decode_timeout: str  # the field of `MediaLimits`, and the flag of its name
    reader: str  # "module:class", an `ItemReader`
    frames: Modality | None = None  # what its frames are, if it is a row of them, of which some are chosen


MODALITIES: Mapping[Modality, ModalityInfo] = {
    "image": ModalityInfo(
        name="image",
        noun="picture",
        plural="pictures",
        part_fields={"image_url": "image_url", "input_image": "image_url", "image": "image", "image_pil": "image_pil"},
        url_field="image_url",
        url_forms="a URL",
        object_forms=(
            "a URL, or in Python a path, a file's bytes, a PIL image, or an array or tensor [height, width, 3] or [3, "
            "height, width]"
        ),
        max_bytes=128 << 20,
        fetch_timeout="image_timeout",
        decode_timeout="image_decode_timeout",
        reader="trifocal.media.image_reader:ImageReader",
    ),
    "video": ModalityInfo(
        name="video",
        noun="clip",
        plural="clips",
        part_fields={"video_url": "video_url", "video": "video"},
        url_field="video_url",
        url_forms="a URL or a list of URLs, one a frame",
        object_forms=(
            "a URL or a list of frames, or in Python a path, a file's bytes, or an array or tensor [frames, height, "
            "width, 3] or [frames, 3, height, width]"
        ),
        max_bytes=512 << 20,
        fetch_timeout="video_timeout",
        decode_timeout="video_decode_timeout",
        reader="trifocal.media.video_reader:VideoReader",
        frames="image",
    ),
}
