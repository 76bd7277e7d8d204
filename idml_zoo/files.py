"""Files that are there whole or not at all, and what identifies one. Standard library only."""

from __future__ import annotations

import hashlib
import os
import tempfile
from datetime import datetime, timezone
from pathlib import Path


class FileError(OSError):
    """A file that cannot be written; the message names it and the fix."""


def check_writable(path: Path) -> None:
    """Makes the folder of a file, and raises where the file could not be written: before hours of computing.

    Raises:
        FileError: the folder cannot be made or written to, or ``path`` is a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(21, "is a folder")
    except OSError as error:
        raise FileError(f"cannot write {path} ({error.strerror}); choose another place") from error


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all, UTF-8 where ``content`` is text; makes its folder.

    Raises:
        FileError: the place cannot be written to; what was there before is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as part:
            temporary = part.name
            part.write(data)
            part.flush()
            os.fsync(part.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise FileError(f"cannot write {path} ({error.strerror}); free space or choose another folder") from error


def sha256_of(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file, read a mebibyte at a time."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def utc_now() -> str:
    """Returns the time as every file of the project writes it: ``2026-01-31T12:00:00Z``."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
