"""What goes wrong in a run ends in one clear line, and nothing computed is lost."""

import pytest
import torch
import train
from support.tiny_runs import tiny

from idml_zoo.losses import ProxyLoss
from idml_zoo.results import read_results
from idml_zoo.training import console, log


def test_a_table_that_cannot_be_made_is_no_failure_of_the_run(tmp_path, capsys):
    assert train.main(tiny(tmp_path, "variant=pa", "epochs=1", "seed=1")) == 0
    (queries,) = (tmp_path / "board" / "results").rglob("*.npz")
    queries.unlink()
    assert train.main(tiny(tmp_path, "variant=pa", "epochs=1")) == 0
    assert "the result is saved, but no table can be made" in capsys.readouterr().err
    assert len(read_results(tmp_path / "board" / "results")) == 2


def test_the_package_of_another_clone_is_named(tmp_path, monkeypatch, capsys):
    console.warn_of_other_package()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("idml_zoo.__file__", "/other/idml_zoo/__init__.py")
    console.warn_of_other_package()
    assert "idml_zoo is imported from /other, not from" in capsys.readouterr().err


def test_too_little_memory_is_one_clear_line(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore of it")

    monkeypatch.setattr(train, "step", full)
    assert train.main(tiny(tmp_path, "variant=pa")) == 1
    assert "2.00 GiB. Lower batch_size, or try accumulate=4" in capsys.readouterr().err.replace("\n", " ")


def test_a_full_disk_costs_a_line_of_the_log_and_an_empty_log_is_begun_anew(tmp_path, monkeypatch, capsys):
    (tmp_path / "log.csv").write_text("")
    log.keep_rows(tmp_path / "log.csv", 3)
    assert not (tmp_path / "log.csv").exists()
    log.append_row(tmp_path / "log.csv", {"step": 1, "loss": 0.5})
    log.append_row(tmp_path / "log.csv", {"step": 5, "loss": 0.5})
    log.keep_rows(tmp_path / "log.csv", 3)
    assert (tmp_path / "log.csv").read_text() == "step,loss\n1,0.5\n"
    log.append_row(tmp_path / "nowhere" / "log.csv", {"step": 1})
    assert "is not written (No such file or directory); training goes on" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "give it to the recipe: mixed_precision=bf16"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "give it to the recipe: compile=inductor"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "give it to the recipe: accumulate=4"),
        ("WORLD_SIZE", "2", "2 processes were started for GPUs, and this machine has"),
    ],
)
def test_what_the_launcher_was_given_is_not_taken_silently(tmp_path, monkeypatch, capsys, name, value, message):
    monkeypatch.setenv(name, value)
    assert train.main(tiny(tmp_path, "variant=pa")) == 1
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_a_loss_that_is_not_finite_stops_with_the_reason_and_keeps_the_last_model(tmp_path, monkeypatch, capsys):
    calls = []
    real = ProxyLoss.forward

    def poisoned(self, embedding, labels, *mixed):
        calls.append(1)
        return real(self, embedding, labels, *mixed) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(ProxyLoss, "forward", poisoned)
    assert train.main(tiny(tmp_path, "variant=pa")) == 1
    err = capsys.readouterr().err
    assert "TrainingError: the loss was not finite in 1 of the steps up to 2; lower lr (now 0.001)" in err
    assert "Kept: the last checkpoint in" in err and "the model of the last whole epoch in" in err.replace("\n", " ")
    assert (tmp_path / "runs" / "mine" / "pa-test_resnet-32px" / "seed0" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "board").exists(), "no result of a run that failed"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["variant=idlm"], "unknown variant 'idlm'; did you mean 'idml'"),
        (["backbone=resnet5O"], "unknown backbone 'resnet5O'"),
        (["batch_size=64"], "12 images do not fill one batch of 64; lower batch_size"),
        (["source=/nowhere/at/all"], "no folder or Parquet file"),
        (["freeze_backbone=true", "cache_features=true"], "choose a variant without mixup, not idml"),
        (["backbone_trains=blocks"], "backbone_trains='blocks' fits no parameter, such as"),
        (["source="], "unknown benchmark 'mine'"),
        (["train_classes=0-2", "test_classes=2-5"], "must be class-disjoint"),
        (["test_classes=all"], "mine: test_classes=all leaves no class to train on"),
        (["proxy_uncertainty=lernd"], "proxy_uncertainty must be one of"),
        (["sampler=pk", "images_per_class=3"], "batch_size 8 must be a multiple of images_per_class 3"),
        (["sampler=pk", "images_per_class=1"], "takes 8 classes × 1 images, and there are 3 training classes"),
        (["sampler=pk", "images_per_class=2", "accumulate=2"], "needs images_per_class=4, or a multiple of 2 above"),
        (["stream=x", "steps_per_epoch=2", "sampler=pk"], "sampler=pk cannot choose from it"),
        (["name=my row"], "name must be letters, digits"),
        (["benchmark=my birds"], "benchmark must be letters, digits"),
        (["loss_options={tau: 3}"], "tau is a key of its own"),
        (["loss_options={margn: 3}"], "did you mean 'margin'"),
        (["backbone_trains=blocks("], "backbone_trains must be a regular expression"),
        (["proxy_lr_multiplier=-1"], "proxy_lr_multiplier must be 0 or more"),
        (["compile=inductr"], "compile must be one of no, eager"),
        (["tracker=wandb"], "tracker=wandb needs its package"),
        (["backbone=test_vit", "backbone_options={qk_norm: true}"], "could be saved but not loaded"),
        (["stream=/nowhere/*.parquet", "steps_per_epoch=2"], "no shards /nowhere"),
        (["stream=x", "steps_per_epoch=2", "evaluate_on=validation", "train_classes=0-3"], "not of a stream"),
        (["backbone_weights=package"], "no packaged weights for backbone 'test_resnet'"),
    ],
)
def test_bad_runs_end_in_one_clear_line(tmp_path, capsys, more, message):
    assert train.main(tiny(tmp_path, *more)) == 1
    err = capsys.readouterr().err
    assert message in err.replace("\n", " ") and "Traceback" not in err


def test_a_broken_image_and_an_unwritable_place_are_named(tmp_path, capsys):
    arguments = tiny(tmp_path)
    (tmp_path / "photos" / "class_0" / "0.png").write_bytes(b"<html>")
    whole = (tmp_path / "photos" / "class_0" / "1.png").read_bytes()
    for more in ("cache=true", "cache=false", "workers=2"):
        assert train.main([*arguments, "batch_size=12", "cache=false", more]) == 1
        err = capsys.readouterr().err.replace("\n", " ")
        assert "class_0/0.png cannot be read (not an image)" in err and "Traceback" not in err
    (tmp_path / "photos" / "class_0" / "0.png").write_bytes(whole)
    (tmp_path / "file").touch()
    assert train.main([*arguments, f"output={tmp_path / 'file'}"]) == 1
    assert "cannot write" in capsys.readouterr().err
