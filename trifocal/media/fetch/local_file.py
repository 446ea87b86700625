"""file: URLs under one allowed folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # or opening a pipe would wait for its writer


class FileRefusedError(Exception):
    """A file: URL that cannot be read or must not be."""


class FileTooLargeError(Exception):
    """A file of more bytes than allowed."""


def read_file(url: str, root: Path, max_bytes: int) -> bytes:
    """The content of the file that `url` names. Raises `FileRefusedError`, `FileTooLargeError`.

    Symbolic links and `..` are followed, and where they lead must be under `root`.
    """
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise FileRefusedError(f"a file: URL must name a path, not a host ({parts.netloc[:80]})")
    try:
        path = Path(unquote(parts.path)).resolve()
        if not path.is_relative_to(root):
            raise FileRefusedError("the file is not under --allowed-local-media-path")
        with _opened(root, path) as descriptor:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FileRefusedError("this is not a regular file")
            if status.st_size > max_bytes:
                raise FileTooLargeError
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(max_bytes)
    except FileNotFoundError:
        raise FileRefusedError("there is no such file") from None
    except OSError as error:  # its own text would tell where links lead
        raise FileRefusedError(f"the file cannot be read: {error.strerror or 'error'}") from None
    except (ValueError, RuntimeError):  # a NUL in it; links in a circle
        raise FileRefusedError("this is not the path of a file") from None


@contextmanager
def _opened(root: Path, path: Path) -> Iterator[int]:
    """Open `path`, which has no links left, step by step from `root`: a link put there since then is not followed."""
    with ExitStack() as scope:

        def step(name: str | Path, flags: int, folder: int | None = None) -> int:
            descriptor = os.open(name, flags, dir_fd=folder)
            scope.callback(os.close, descriptor)
            return descriptor

        folder = step(root, _FOLDER)
        *folders, name = path.relative_to(root).parts or (".",)
        for part in folders:
            folder = step(part, _FOLDER, folder)
        yield step(name, _FILE, folder)
