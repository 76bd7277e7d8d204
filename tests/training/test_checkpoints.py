"""A run that is killed and started again ends as one that was not: bit for bit, on a CPU with one process."""

import csv
import hashlib
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import train
from conftest import ROOT, make_folder
from safetensors.torch import load_file

from idml_zoo.results import read_results
from idml_zoo.training import checkpoints
from idml_zoo.training.config import GROUP_OF, ConfigError, load_config
from idml_zoo.training.errors import STOPPED

KEYS = ["backbone=test_resnet", "backbone_weights=none", "image_size=32", "embedding_dim=16", "batch_size=8", "lr=1e-3"]
KEYS += ["epochs=3", "lr_step=1", "log_every=1", "freeze_batchnorm=false", "workers=0", "benchmark=mine", "name=run"]


def arguments(folder, photos, *more):
    where = [f"source={photos}", f"output={folder / 'runs'}", f"leaderboard={folder / 'board'}"]
    return ["--config", str(ROOT / "recipes" / "cub_resnet50.yaml"), *KEYS, "warmup_epochs=1", *where, *more]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photos") / "photos", classes=8, images=8)


def weights(folder):
    return (folder / "runs" / "mine" / "run" / "seed0" / "model" / "model.safetensors").read_bytes()


def log(folder):
    rows = csv.DictReader((folder / "runs" / "mine" / "run" / "seed0" / "log.csv").read_text().splitlines())
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "waiting", "gib")} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, photos):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert train.main(arguments(folder, photos)) == 0
    return folder


class Killed(BaseException):
    """As if the process ended: nobody handles it."""


def interrupted(folder, photos, monkeypatch, step, *more, how=Killed):
    """Runs until a number of steps of this half are done."""
    real, done = torch.optim.AdamW.step, []

    def counted(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        done.append(1)
        if len(done) == step:
            if how is Killed:
                raise Killed
            os.kill(os.getpid(), how)
        return out

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", counted)
        if how is Killed:
            with pytest.raises(Killed):
                train.main(arguments(folder, photos, *more))
            return None
        return train.main(arguments(folder, photos, *more))


def same_as(whole, folder):
    assert weights(folder) == weights(whole)
    assert log(folder) == log(whole)
    (a,), (b,) = read_results(folder / "board" / "results"), read_results(whole / "board" / "results")
    assert a.metrics == b.metrics
    place = folder / "runs" / "mine" / "run" / "seed0"
    assert not (place / "checkpoints").exists(), "a finished run needs none"


@pytest.mark.parametrize("step", [1, 5, 8])  # four to an epoch
def test_a_killed_run_ends_as_one_that_was_not(tmp_path, photos, whole, monkeypatch, step):
    interrupted(tmp_path, photos, monkeypatch, step)
    assert train.main(arguments(tmp_path, photos)) == 0
    same_as(whole, tmp_path)


def test_within_an_epoch_and_twice(tmp_path, photos, whole, monkeypatch, capsys):
    interrupted(tmp_path, photos, monkeypatch, 3, "checkpoint_every=1")
    interrupted(tmp_path, photos, monkeypatch, 4, "checkpoint_every=1")
    assert train.main(arguments(tmp_path, photos, "workers=1")) == 0
    err = capsys.readouterr().err
    assert "going on after step 2" in err
    assert "going on after step 5" in err
    assert "workers: 0 → 1" in err, "a harmless change is shown"
    same_as(whole, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_goes(tmp_path, photos, whole, monkeypatch, capsys, number):
    before = signal.getsignal(number)
    assert interrupted(tmp_path, photos, monkeypatch, 6, how=number) == STOPPED
    assert signal.getsignal(number) is before
    assert "stopped after step 6; the same command goes on from there" in capsys.readouterr().err
    assert read_results(tmp_path / "board" / "results") == []
    assert train.main(arguments(tmp_path, photos)) == 0
    assert "going on after step 6" in capsys.readouterr().err
    same_as(whole, tmp_path)


def test_a_damaged_checkpoint_is_left_for_the_one_before(tmp_path, photos, whole, monkeypatch, capsys):
    interrupted(tmp_path, photos, monkeypatch, 7, "checkpoint_every=1")
    place = tmp_path / "runs" / "mine" / "run" / "seed0" / "checkpoints"
    names = sorted(p.name for p in place.iterdir())
    assert [n.split("-")[0] for n in names] == ["step00000005", "step00000006"], "the newest two"
    newest = place / names[1]
    newest.write_bytes(newest.read_bytes()[:-100])
    (place / "part-1").write_bytes(b"half")
    assert train.main(arguments(tmp_path, photos)) == 0
    err = capsys.readouterr().err
    assert "is damaged" in err
    assert "going on after step 5" in err
    same_as(whole, tmp_path)


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(tmp_path, photos, whole, monkeypatch, capsys):
    real = torch.save

    def full(state, path, *args, **kwargs):
        if isinstance(state, dict) and state.get("step") == 4:
            path.write_bytes(b"what fitted")
            raise OSError(28, "No space left on device")
        return real(state, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    interrupted(tmp_path, photos, monkeypatch, 6, "checkpoint_every=3")
    assert "no checkpoint after step 4 ([Errno 28] No space left" in capsys.readouterr().err
    place = tmp_path / "runs" / "mine" / "run" / "seed0" / "checkpoints"
    assert [p.name.split("-")[0] for p in place.iterdir()] == ["step00000003"], "nothing half is left"
    monkeypatch.undo()
    assert train.main(arguments(tmp_path, photos)) == 0
    same_as(whole, tmp_path)


def test_other_settings_are_refused_with_the_difference(tmp_path, photos, monkeypatch, capsys):
    interrupted(tmp_path, photos, monkeypatch, 5)
    assert train.main(arguments(tmp_path, photos, "lr=2e-3", "epochs=9")) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "other settings (epochs: 3 → 9; lr: 0.001 → 0.002): resume=no begins anew" in err
    assert train.main(arguments(tmp_path, photos, "lr=2e-3", "resume=no")) == 0


def test_a_finished_run_begins_anew(tmp_path, photos, whole):
    for _ in range(2):
        assert train.main(arguments(tmp_path, photos)) == 0
    same_as(whole, tmp_path)


def test_a_killed_loader_process_is_told_and_the_run_goes_on(tmp_path, photos, whole, monkeypatch, capsys):
    from idml_zoo.data.images import DrawnImages

    real, parent = DrawnImages.__getitem__, os.getpid()

    def deadly(self, index):
        if index[1] >= 40 and os.getpid() != parent:  # in the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, index)

    with monkeypatch.context() as patched:
        patched.setattr(DrawnImages, "__getitem__", deadly)
        assert train.main(arguments(tmp_path, photos, "workers=1")) == 1
    err = capsys.readouterr().err
    assert "a loader process was lost" in err
    assert "workers=0" in err
    assert train.main(arguments(tmp_path, photos)) == 0
    same_as(whole, tmp_path)


def test_two_runs_do_not_share_a_folder(tmp_path, photos, capsys):
    from filelock import FileLock

    folder = tmp_path / "runs" / "mine" / "run" / "seed0"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert train.main(arguments(tmp_path, photos)) == 1
    assert "another process trains in" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path, photos, capsys):
    (tmp_path / "runs").mkdir(mode=0o500)
    assert train.main(arguments(tmp_path, photos)) == 1
    assert "choose another output=" in capsys.readouterr().err


def test_a_checkpoint_of_another_format_is_left_aside(tmp_path):
    path = checkpoints.write(tmp_path, {"step": 3, "tensor": torch.ones(2)})
    told = []
    assert checkpoints.read(tmp_path, told.append)["step"] == 3
    torch.save({"format": 9, "step": 4}, tmp_path / "x")
    (tmp_path / "x").rename(
        tmp_path / f"step00000004-{hashlib.sha256((tmp_path / 'x').read_bytes()).hexdigest()[:16]}.pt"
    )
    assert checkpoints.read(tmp_path, told.append)["step"] == 3
    assert "format 9" in told[0]
    os.utime(path, (0, 0))
    assert checkpoints.read(tmp_path, told.append)["step"] == 3, "the step counts, not the clock"


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"format": 1, "step": 1, "evil": Evil()}, tmp_path / "x")
    (tmp_path / "x").rename(
        tmp_path / f"step00000001-{hashlib.sha256((tmp_path / 'x').read_bytes()).hexdigest()[:16]}.pt"
    )
    with pytest.raises(Exception, match="[Ww]eights"):
        checkpoints.read(tmp_path, print)
    assert not (tmp_path / "ran").exists()


def test_all_generators_come_back():
    import numpy as np

    state = checkpoints.rng_state()
    first = [torch.rand(3).tolist(), np.random.rand(), random.random()]  # noqa: NPY002
    checkpoints.set_rng_state(state)
    assert [torch.rand(3).tolist(), np.random.rand(), random.random()] == first  # noqa: NPY002


def test_harmless_keys_exist():
    config = load_config("glyphs_quickstart")
    assert GROUP_OF.keys() >= checkpoints.HARMLESS
    with pytest.raises(ConfigError, match="seed: 1 → 0"):
        checkpoints.check_config(config, {**config.flat(), "seed": 1}, ROOT)


def test_a_checkpoint_from_before_a_key_was_there_goes_on():
    config = load_config(ROOT / "recipes" / "cub_resnet50.yaml", ["max_steps=0", "lr=0.5"])
    saved = {k: v for k, v in config.flat().items() if k not in ("max_steps", "lora_rank")}
    assert checkpoints.check_config(config, saved, ROOT) == []
    other = load_config(ROOT / "recipes" / "cub_resnet50.yaml", ["max_steps=3", "lr=0.5"])
    with pytest.raises(ConfigError, match="other settings .max_steps: 0 → 3."):
        checkpoints.check_config(other, saved, ROOT)


def test_collapse_is_told(tmp_path, photos, monkeypatch, capsys):
    from idml_zoo.models.heads import IDMLHead

    real = IDMLHead.forward

    def constant(self, features):
        return real(self, 0 * features + 1)

    monkeypatch.setattr(IDMLHead, "forward", constant)
    assert train.main(arguments(tmp_path, photos)) == 1
    err = capsys.readouterr().err.replace("\n", " ")
    assert "all embeddings are alike (mean cosine 1.0" in err and "There is no checkpoint yet" in err


KILLS = int(os.environ.get("IDML_ZOO_KILLS", "3"))


def test_kills_at_random_moments(tmp_path, photos):
    """The real thing: processes that get SIGKILL whenever it pleases us; IDML_ZOO_KILLS=20 for more."""
    rng = random.Random(0)
    more = ["checkpoint_every=1", "epochs=12", "threads=1"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}

    def start(folder):
        command = [sys.executable, str(ROOT / "recipes" / "train.py"), *arguments(folder, photos, *more)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    plain, killed = tmp_path / "plain", tmp_path / "killed"
    began = time.perf_counter()
    run = start(plain)
    assert run.communicate()[1] is not None and run.returncode == 0
    length = time.perf_counter() - began
    kills = 0
    while kills < KILLS:
        run = start(killed)
        place = killed / "runs" / "mine" / "run" / "seed0" / "checkpoints"
        known = set(place.glob("*")) if place.is_dir() else set()
        while run.poll() is None and not (set(place.glob("*")) - known if place.is_dir() else set()):
            time.sleep(0.001)  # it has begun to write
        time.sleep(rng.random() * 0.05 * length / 12)
        if run.poll() is not None:
            break  # it was faster than we
        run.kill()
        run.communicate()
        kills += 1
    run = start(killed)
    err = run.communicate()[1].decode()
    assert run.returncode == 0, err
    assert weights(killed) == weights(plain)
    assert log(killed) == log(plain)
    (a,), (b,) = read_results(killed / "board" / "results"), read_results(plain / "board" / "results")
    assert a.metrics == b.metrics
    assert kills >= 1
    assert load_file(killed / "runs" / "mine" / "run" / "seed0" / "model" / "model.safetensors")
