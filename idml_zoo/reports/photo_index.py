"""The index of a folder of photographs: what a model says of each.

Kept in a file, it is used again: only photographs that are new or changed are embedded the next time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idml_zoo.data.errors import BrokenImageError, DataError
from idml_zoo.data.images import decode
from idml_zoo.data.table import IMAGE_SUFFIXES, find_images
from idml_zoo.data.transforms import build_transforms
from idml_zoo.evaluation.embed import as_device, evaluating
from idml_zoo.files import write_file
from idml_zoo.types import Embedding

if TYPE_CHECKING:
    from idml_zoo.models.model import IDMLModel

_FORMAT = "idml_zoo photographs 1"


@dataclass(frozen=True)
class PhotoIndex:
    """What a model says of photographs.

    Attributes:
        names: N paths, relative to the folder where they are under it.
        stamps: of each, its size in bytes and time of change, by which a changed file is known.
        embedding: of the N photographs, float32 on the CPU.
        model: :func:`identity` of the model.
    """

    names: tuple[str, ...]
    stamps: tuple[str, ...]
    embedding: Embedding
    model: str

    def __len__(self) -> int:
        return len(self.names)

    def save(self, path: Path) -> None:
        """Writes it whole or not at all; FileError where the place cannot be written to."""
        from safetensors.torch import save

        tensors = {"semantic": self.embedding.semantic, "uncertainty": self.embedding.uncertainty}
        about = {
            "format": _FORMAT,
            "model": self.model,
            "names": json.dumps(self.names),
            "stamps": json.dumps(self.stamps),
        }
        write_file(path, save({k: v.contiguous() for k, v in tensors.items()}, about))

    @staticmethod
    def load(path: Path) -> PhotoIndex:
        """Reads what :meth:`save` wrote.

        Raises:
            DataError: missing, not an index, or cut off.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != _FORMAT:
                    raise DataError(f"{path} is not an index of photographs; delete it, or choose another --index")
                embedding = Embedding(file.get_tensor("semantic"), file.get_tensor("uncertainty")).check_values()
                names, stamps = (tuple(map(str, json.loads(about[key]))) for key in ("names", "stamps"))
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path} cannot be read ({error}); delete it, and it is made anew") from error
        if not len(names) == len(stamps) == len(embedding):
            raise DataError(f"{path} holds {len(embedding)} embeddings of {len(names)} photographs; delete it")
        return PhotoIndex(names, stamps, embedding, about.get("model", ""))


def identity(model: IDMLModel) -> str:
    """sha256 over weights and preprocessing: models with the same identity make the same embeddings."""
    digest = hashlib.sha256(repr((model.config, model.transform)).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def find_photos(path: Path) -> list[Path]:
    """Returns the image files under a folder, sorted, without hidden ones; of a file, the file itself.

    Raises:
        DataError: no such folder or file, or no image in it.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"no folder or file {path}")
    files = find_images(path)
    if not files:
        raise DataError(f"{path} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return files


def embed_photos(
    model: IDMLModel,
    files: Sequence[Path],
    batch_size: int = 64,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> tuple[list[int], Embedding | None, list[str]]:
    """Embeds image files, and skips those that cannot be read.

    Args:
        model: its own preprocessing is used.
        files: in any format that Pillow reads.
        batch_size, device, progress: how to compute.

    Returns:
        Positions in ``files`` of those that could be read, their embedding in that order (None if there are none),
        and a line for each that could not.

    Raises:
        ValueError: an embedding has NaN, inf or no unit norm.
    """
    from rich.progress import track

    device = as_device(device)
    transform = build_transforms(model.transform)[1]
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept: list[int] = []
    waiting: list[Tensor] = []
    parts: list[Embedding] = []
    broken: list[str] = []

    def flush() -> None:
        images = torch.stack(waiting).to(device, memory_format=torch.channels_last)
        parts.append(model(images).to("cpu", torch.float32))
        waiting.clear()

    with evaluating(model), torch.inference_mode():
        for i, file in enumerate(track(files, description="embedding", transient=True, disable=not progress)):
            try:
                waiting.append(transform(decode(file, str(file))))
                kept.append(i)
            except BrokenImageError as error:
                broken.append(str(error))
            if len(waiting) == batch_size:
                flush()
        if waiting:
            flush()
    return kept, Embedding.cat(parts).check_values() if parts else None, broken


def index_photos(
    model: IDMLModel,
    folder: Path,
    old: PhotoIndex | None = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> tuple[PhotoIndex, list[str]]:
    """Returns the index of every photograph under a folder, and a line for each file that could not be read.

    Args:
        model, batch_size, device, progress: see :func:`embed_photos`.
        folder: searched in all its depth.
        old: an index of this folder; what it has of this model, unchanged since, is not computed again.

    Raises:
        DataError: no images there, or none that can be read.
        ValueError: see :func:`embed_photos`.
    """
    files = find_photos(folder)
    root = folder if folder.is_dir() else folder.parent
    names = [p.relative_to(root).as_posix() for p in files]
    stamps = [f"{s.st_size} {s.st_mtime_ns}" for s in (p.stat() for p in files)]
    model_id = identity(model)
    indexed = {}  # row in the old index of each photograph that has not changed since
    if old is not None and old.model == model_id:
        indexed = {pair: i for i, pair in enumerate(zip(old.names, old.stamps, strict=True))}
    fresh = [i for i, pair in enumerate(zip(names, stamps, strict=True)) if pair not in indexed]
    kept, embedding, broken = embed_photos(model, [files[i] for i in fresh], batch_size, device, progress)
    parts = [old.embedding] if old is not None and indexed else []
    first = sum(map(len, parts))
    row_of = {fresh[j]: first + row for row, j in enumerate(kept)}
    row_of |= {i: indexed[pair] for i, pair in enumerate(zip(names, stamps, strict=True)) if pair in indexed}
    if not row_of:
        raise DataError(f"none of the {len(files)} images of {folder} can be read; the first: {broken[0]}")
    order = sorted(row_of)
    whole = Embedding.cat([*parts, *([embedding] if embedding else [])])[torch.tensor([row_of[i] for i in order])]
    return PhotoIndex(tuple(names[i] for i in order), tuple(stamps[i] for i in order), whole, model_id), broken
