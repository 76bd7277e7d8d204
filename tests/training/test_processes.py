"""The recipe on several processes: the numbers of one, and what happens when one of them fails."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, make_folder
from safetensors.torch import load_file
from support.tiny_runs import run_with_processes, tiny

from idml_zoo.cli.main import main
from idml_zoo.results import read_results

TWO_PROCESSES = """
import json, os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from idml_zoo.distributed import gather
from idml_zoo.models.heads import IDMLHead
from idml_zoo.losses import create_criterion

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
part = slice(rank * 12 // world, (rank + 1) * 12 // world)
found = {}
for name in ("proxy_anchor", "proxy_nca", "contrastive", "triplet", "margin", "fastap", "multi_similarity"):
    torch.manual_seed(0)
    head, loss = IDMLHead(12, 8).double(), create_criterion(name, 5, 8).double()
    features, labels = torch.randn(12, 12, dtype=torch.float64), torch.randint(0, 5, (12,))
    head_ = DDP(head) if world > 1 else head
    loss_ = DDP(loss) if world > 1 and list(loss.parameters()) else loss
    torch.manual_seed(1)  # what margin draws, alike on every rank
    value = loss_(*gather(head_(features[part]), labels[part]))
    value.backward()
    grads = [p.grad.flatten() for m in (head, loss) for p in m.parameters()]
    found[name] = [value.item(), *torch.cat(grads).tolist()]
if rank == 0:
    print(json.dumps(found))
sys.stdout.flush()
dist.barrier()
os._exit(0)  # as recipes/train.py does, and for its reason
"""


FATAL = """
import os, sys
import train
from idml_zoo.training import checkpoints

real, written = checkpoints.write, []


def write(*arguments):
    written.append(real(*arguments))
    if len(written) == 2:
        os._exit(9)


checkpoints.write = write
sys.exit(train.main(sys.argv[1:]))
"""


def test_two_processes_give_the_gradients_of_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    values = []
    for count in (1, 2):
        done = run_with_processes(count, [str(script)], PYTHONPATH=str(ROOT))
        assert done.returncode == 0, done.stderr
        values.append(json.loads(done.stdout.splitlines()[-1]))
    assert len(values[0]) == 7
    for name in values[0]:
        assert values[0][name] == pytest.approx(values[1][name], abs=1e-12), name
        assert max(map(abs, values[0][name])) > 0.01


def test_two_processes_train_and_measure_as_one(tmp_path):
    """The same pictures, losses and weights; and an uneven number of test images, each counted once."""
    photos = make_folder(tmp_path / "odd", classes=6, images=5)
    shutil.rmtree(photos / "class_5")
    shutil.copytree(photos / "class_4", photos / "class_5")
    (photos / "class_5" / "4.png").unlink()  # 14 test images in all
    (photos / "class_5" / "3.png").unlink()  # 13
    fatal = tmp_path / "fatal.py"
    fatal.write_text(FATAL)
    done = {}
    for name, count, sharded in (("one", 1, False), ("two", 2, False), ("sharded", 2, True), ("killed", 2, True)):
        more = [
            "variant=idml_no_mixup",  # mixup finds its partners within a process
            f"source={photos}",
            f"name={name}",
            f"shard={sharded}",
            "freeze_batchnorm=true",
            "warmup_epochs=1",
            "epochs=3",
            "threads=1",
        ]
        folder = tmp_path / "runs" / "mine" / name / "seed0"
        if name == "killed":
            ran = run_with_processes(
                2, [str(fatal), *tiny(tmp_path, *more)], PYTHONPATH=f"{ROOT / 'recipes'}{os.pathsep}{ROOT}"
            )
            assert ran.returncode != 0 and len(list((folder / "checkpoints").iterdir())) == 2, ran.stderr
        ran = run_with_processes(count, ["recipes/train.py", *tiny(tmp_path, *more)])
        assert ran.returncode == 0, ran.stderr
        assert ("going on after step 2" in ran.stderr) == (name == "killed")
        rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
        result = next(r for r in read_results(tmp_path / "board" / "results") if r.row == name)
        done[name] = load_file(folder / "model" / "model.safetensors"), rows, result
    one, log_1, result_1 = done["one"]
    for other, log_2, result_2 in (done["two"], done["sharded"], done["killed"]):
        assert [float(r["loss"]) for r in log_1] == pytest.approx([float(r["loss"]) for r in log_2], rel=1e-5)
        off = torch.cat([(one[k] - other[k]).abs().flatten() for k in one if one[k].is_floating_point()])
        assert off.mean() < 1e-6, "Adam makes whole steps of gradients that are only rounding"
        assert result_1.queries == result_2.queries == 13
        for metric, value in result_1.metrics.items():
            assert value == pytest.approx(result_2.metrics[metric], abs=1e-5), metric


def test_a_process_that_fails_takes_the_others_down(tmp_path):
    arguments = tiny(tmp_path, "cache=false", "variant=pa", "threads=1")
    broken = tmp_path / "photos" / "class_1" / "0.png"  # in one process's part of the first epoch
    broken.write_bytes(broken.read_bytes()[:60])
    start = time.perf_counter()
    done = run_with_processes(2, ["recipes/train.py", *arguments])
    assert done.returncode != 0
    assert "class_1/0.png cannot be read" in done.stderr.replace("\n", "")
    assert time.perf_counter() - start < 60


def test_the_recipe_runs_on_two_processes(tmp_path):
    done = run_with_processes(2, ["recipes/train.py", *tiny(tmp_path)])
    assert done.returncode == 0, done.stderr
    (result,) = read_results(tmp_path / "board" / "results")
    assert result.queries == 12
    log = (tmp_path / "runs" / "mine" / "idml-test_resnet-32px" / "seed0" / "log.csv").read_text().splitlines()
    assert len(log) == 1 + 2, "one step of 8 images in each of 2 epochs, however many processes"
    pairs = tiny(tmp_path, "sampler=pk", "images_per_class=4", "name=pairs")
    done = command("--processes", "2", *pairs)
    assert done.returncode == 0, done.stderr
    assert "idml_zoo.create_model('local-dir:" in done.stdout and "arning" not in done.stderr
    failed = command("--processes", "2", *tiny(tmp_path, "batch_size=7"))
    assert failed.returncode == 1
    lines = failed.stderr.strip().splitlines()
    assert len(lines) == 2, "one for each process"
    assert all("must be a multiple of the 2 processes" in line for line in lines)


def command(*words):
    """Runs `idml-zoo train`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-m", "idml_zoo", "train", *words]
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)


def test_as_many_gpus_as_processes(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert main(["train", "--processes", "2"]) == 1
    assert capsys.readouterr().err == "ValueError: --processes 2 needs as many GPUs, and this machine has 1\n"
