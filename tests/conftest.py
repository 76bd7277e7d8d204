"""Shared by all tests: no network, a cache of our own, small images made here."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # busy waiting of one worker's threads would take the other's core
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="idml-zoo-hf-")  # empty: what a machine has cached decides no test

import numpy as np
import pytest
import torch
from PIL import Image

from idml_zoo.types import Embedding

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"

needs_shared = pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the real data sets of ../shared are not here")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    os.environ["IDML_ZOO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["IDML_ZOO_CACHE"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Gives each process a share of its own, so that fixtures are made once; at the end it takes from the others."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def make_embedding(
    count: int, dim: int = 8, level: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Embedding:
    generator = torch.Generator().manual_seed(seed)
    semantic = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64))
    uncertainty = level * torch.randn(count, dim, generator=generator, dtype=torch.float64) / dim**0.5
    return Embedding(semantic.to(dtype), uncertainty.to(dtype), torch.ones(count, dtype=dtype))


def make_folder(root: Path, classes: int = 6, images: int = 4, size: int = 40) -> Path:
    """A folder per class; each class has a colour of its own."""
    rng = np.random.default_rng(0)
    for c in range(classes):
        colour = rng.integers(0, 255, 3)
        (root / f"class_{c}").mkdir(parents=True)
        for i in range(images):
            pixels = np.clip(colour + rng.normal(0, 15, (size, size, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / f"class_{c}" / f"{i}.png")
    return root


def visible(folder: Path) -> list[str]:
    """The names in a folder, hidden ones left out."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def wait_for(condition: Callable[[], object]) -> None:
    """Returns when ``condition()`` holds; fails after 20 s."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "nothing happened in 20 s"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """A small model and the folder that it was saved in; both are to stay as they are."""
    from support.saved_models import small

    model = small()
    return model, model.save_pretrained(tmp_path_factory.mktemp("saved") / "model", benchmark="glyphs", seed=3)


@pytest.fixture
def model(original):
    """A small model, to be left as it is."""
    return original[0]


@pytest.fixture
def saved(original, tmp_path):
    """A copy of the saved folder, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in original[1].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def site(monkeypatch):
    """A server whose every answer a test plans; see download_site.py."""
    from support.download_site import serving

    with serving(monkeypatch) as served:
        yield served


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub, and a client that believes in it: online, with an empty cache, without waiting between its retries."""
    import huggingface_hub.utils._http as client
    from huggingface_hub import constants
    from support.model_hub import ModelHub

    with ModelHub() as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "DOWNLOAD_CHUNK_SIZE": 20_000,  # a cut download goes on at a chunk
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", "")
        client.close_session()
        yield server
        client.close_session()
