"""Extracts archives from the internet: whole or not at all, and nothing but files and folders below the target."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from idml_zoo.data.errors import DataError

MAX_BYTES = 40_000_000_000
MAX_FILES = 500_000
_RATIO = 200  # photographs do not shrink; zeros do, to a thousandth
_FLOOR = 1_000_000  # bytes; smaller archives may hold _RATIO times this
_HEADER = 1 << 20  # bytes of a tar header extension, which tarfile reads into memory
_CHUNK = 1 << 20
_PADDING = 64  # chunks after the end of a tar; usually 10 kB
_TOO_BIG = "makes the content larger than the limit, as in a decompression bomb"
_DAMAGE: tuple[type[Exception], ...] = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError)
_DAMAGE += (OSError, struct.error, ValueError, RuntimeError, OverflowError, IndexError)  # the last ones: forged fields


@dataclass(frozen=True)
class _Member:
    """An entry: ``kind`` is "file", "folder", or what else it is; ``size`` is the declared one, bytes."""

    name: str
    kind: str
    size: int
    open: Callable[[], Any]


class _Header(tarfile.TarInfo):
    """A tar header. A damaged one is an error here, while tarfile takes it for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # zeros are the regular end
            raise tarfile.ReadError(f"{error}, or cut short") from error
        if header.size < 0 or (header.size > _HEADER and not (header.isreg() or header.isdir())):
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


def _tar_members(raw: IO[bytes]) -> Generator[_Member, None, None]:
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    # gzip's own reader, for tarfile's does not check the end and the CRC of a stream
    stream: Any = gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw)
    with stream as plain:
        with tarfile.open(fileobj=plain, mode="r|", tarinfo=_Header, bufsize=_CHUNK) as archive:
            for info in archive:
                kind = "file" if info.isreg() else "folder" if info.isdir() else "device or pipe"
                kind = "link" if info.issym() or info.islnk() else kind
                yield _Member(info.name, kind, info.size, partial(archive.extractfile, info))
        for _ in range(_PADDING):  # to the end, where the CRC is
            if not plain.read(_CHUNK):
                return
        raise tarfile.ReadError("more follows its end")


def _zip_members(raw: IO[bytes]) -> Generator[_Member, None, None]:
    kinds = {0: "file", stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    with zipfile.ZipFile(raw) as archive:
        for info in archive.infolist():
            kind = kinds.get(stat.S_IFMT(info.external_attr >> 16), "device or pipe")
            kind = "folder" if info.is_dir() and kind == "file" else kind
            kind = "encrypted file" if info.flag_bits & 1 else kind
            yield _Member(info.filename, kind, info.file_size, partial(archive.open, info))


def extract(
    path: str | Path,
    target: str | Path,
    *,
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
    progress: bool = True,
) -> Path:
    """Extracts a .tgz, .tar.gz, .tar or .zip archive into ``target``, whole or not at all.

    The content is written to a hidden folder in ``target`` (which is thus on the same disk) and moved when it is
    complete; what a killed run left there is removed by the next. Files get mode 0644, folders 0755; macOS's ``._*``,
    ``.DS_Store`` and ``__MACOSX`` are left out.

    Args:
        path: the archive; its content decides what it is, not its name.
        target: folder, made if missing.
        max_bytes: of all files together; never more than 200 times the archive's size (of 1 MB if it is smaller).
        max_files: entries of the archive.
        progress: show a bar.

    Returns:
        ``target``.

    Raises:
        DataError: the archive is damaged, encrypted or too big when extracted; a member is a link or a device, or would
            lie outside; something of that name is there already; no space, no permission. Names archive and member.
    """
    from filelock import FileLock

    path, target = Path(path), Path(target)
    hidden = target / ".extracting"
    part = hidden / "not" / "whole"  # so deep that no search for a benchmark finds half of one
    try:
        with path.open("rb") as raw:
            target.mkdir(parents=True, exist_ok=True)
            with FileLock(target / ".extracting.lock"):
                shutil.rmtree(hidden, ignore_errors=True)  # of a run that was killed
                try:
                    part.mkdir(parents=True)
                    _unpack(path, raw, part, target, max_bytes, max_files, progress)
                    _publish(part, target)
                finally:
                    shutil.rmtree(hidden, ignore_errors=True)
    except DataError:
        raise
    except _DAMAGE as error:
        # decompressors' have no number, and EINVAL is a forged offset
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            what = f"cannot extract {path} into {target} ({error.strerror}); free space or choose another --root"
            raise DataError(what) from error
        what = f"{path} is not a whole .tgz, .tar.gz, .tar or .zip archive ({error or type(error).__name__})"
        raise DataError(f"{what}; delete it and get it again") from error
    return target


def _unpack(
    path: Path, raw: IO[bytes], part: Path, target: Path, max_bytes: int, max_files: int, progress: bool
) -> None:
    """Writes all members below ``part``."""
    from rich.console import Console
    from rich.progress import Progress

    size = path.stat().st_size
    limit = min(max_bytes, _RATIO * max(size, _FLOOR))
    is_zip = raw.read(2) == b"PK"
    raw.seek(0)
    declared = written = 0
    with (
        closing(_zip_members(raw) if is_zip else _tar_members(raw)) as members,
        Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar,
    ):
        task = bar.add_task(f"extracting {path.name}", total=size)
        for count, member in enumerate(members, 1):
            declared += max(member.size, 0)
            if count > max_files:
                raise _refusal(path, member, f"is one more than {max_files:,} files")
            if declared > limit:
                raise _refusal(path, member, _TOO_BIG)
            if relative := _relative_path(path, member, target):
                written += _write(path, member, part / relative, limit - written)
            bar.update(task, completed=raw.tell())
    if not any(part.iterdir()):
        raise EOFError("it holds no files")


def _refusal(path: Path, member: _Member, what: str, remedy: str = "get the official archive") -> DataError:
    return DataError(f"{path}: member {member.name!r} {what}; {remedy}")


def _relative_path(path: Path, member: _Member, target: Path) -> str:
    """Returns a member's path below the target, "" for one to skip; raises DataError for one that is not allowed."""
    parts = [p for p in member.name.split("/") if p not in ("", ".")]
    if member.name.startswith("/") or ".." in parts or re.search(r"\\|\0|(^|/)[A-Za-z]:", member.name):
        raise _refusal(path, member, "would lie outside the folder")
    if member.kind not in ("file", "folder"):
        raise _refusal(path, member, f"is a {member.kind}".replace("a e", "an e"))
    if not parts or "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store":
        return ""
    if os.path.lexists(target / parts[0]):
        raise _refusal(path, member, f"would change {target / parts[0]}", "remove that, or choose another --root")
    return "/".join(parts)


def _write(path: Path, member: _Member, destination: Path, left: int) -> int:
    """Writes a member, at most ``left`` bytes whatever it declares; returns how many."""
    written = 0
    try:
        (destination if member.kind == "folder" else destination.parent).mkdir(parents=True, exist_ok=True)
        if member.kind == "file":
            with member.open() as source, destination.open("xb") as file:
                while chunk := source.read(_CHUNK):
                    written += len(chunk)
                    if written > left:
                        raise _refusal(path, member, _TOO_BIG)
                    file.write(chunk)
    except (FileExistsError, NotADirectoryError) as error:
        raise _refusal(path, member, "has the name of another member") from error
    return written


def _publish(part: Path, target: Path) -> None:
    """Sets all modes, then moves each top-level entry, folders last."""
    for base, folders, files in os.walk(part):
        for name, mode in (*((f, 0o755) for f in folders), *((f, 0o644) for f in files)):
            os.chmod(os.path.join(base, name), mode)
    for entry in sorted(part.iterdir(), key=Path.is_dir):
        os.rename(entry, target / entry.name)
