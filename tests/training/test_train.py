"""The recipe, end to end on tiny data: every variant, determinism, and what goes wrong."""

import csv
import json
import os

import pytest
import torch
import train
from conftest import ROOT, make_folder
from safetensors.torch import load_file
from support.tiny_runs import TINY, tiny

import idml_zoo
from idml_zoo.files import sha256_of
from idml_zoo.losses import ProxyLoss
from idml_zoo.results import read_results
from idml_zoo.training import cpu, epoch_end
from idml_zoo.training.batches import load_benchmark
from idml_zoo.training.config import Config, load_config
from idml_zoo.training.network import build_model, parameter_groups, set_training_mode
from idml_zoo.variants import variants


def test_the_loop_is_read_at_one_sitting():
    lines = (ROOT / "recipes" / "train.py").read_text().splitlines()
    assert len(lines) < 200


def test_a_run_may_end_after_some_steps(tmp_path):
    more = ["variant=pa", "batch_size=4", "epochs=3", "max_steps=4", "validate_every=1", "log_every=3"]
    assert train.main(tiny(tmp_path, *more, "train_classes=0-3", "test_classes=4-5", "val_classes=0.5")) == 0
    (result,) = read_results(tmp_path / "board" / "results")
    assert result.training.startswith("4 steps at 32 px")
    log = tmp_path / "runs" / "mine" / "pa-test_resnet-32px" / "seed0" / "log.csv"
    assert [int(r["step"]) for r in csv.DictReader(log.read_text().splitlines())] == [1, 3, 4], "two steps an epoch"


def splits_of(config: Config):
    """The benchmark's record, and the splits to train on, to measure and to validate on."""
    return load_benchmark(config.benchmark, config.data, config.evaluation)


OTHERS = ["vmf", "loss_prediction", "proxy_nca", "idml_contrastive", "triplet_mixup", "idml_margin"]
OTHERS += ["fastap", "idml_fastap_no_mixup", "idml_multi_similarity"]


@pytest.mark.parametrize("variant", ["pa", "pa_mixup", "idml_released", "idml", "idml_no_mixup", *OTHERS])
def test_every_variant_trains_measures_and_writes_its_row(tmp_path, variant):
    assert train.main(tiny(tmp_path, f"variant={variant}", "evaluate_untrained=true")) == 0
    folder = tmp_path / "runs" / "mine" / f"{variant}-test_resnet-32px" / "seed0"
    results = {r.row: r for r in read_results(tmp_path / "board" / "results")}
    row = results[f"{variant}-test_resnet-32px"]
    assert len(results) == 2 and row.protocol.checkpoint == "last" and row.training.startswith("2 epochs at 32 px")
    assert row.provenance.recipe == (folder / "config.yaml").read_text()
    log = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert [int(r["epoch"]) for r in log] == [1, 2]
    assert {"loss", "lr", "images_per_second", "level"} <= set(log[0])
    if variant not in ("vmf", "loss_prediction"):  # they weigh nothing
        assert {"factor_positive", "factor_negative"} <= set(log[0])
        assert (float(log[0]["factor_positive"]) < 1) == variant.startswith("idml")
    assert ("proxy_norm" in log[0]) == (variants[variant].loss in ("proxy_anchor", "proxy_nca", "loss_prediction"))
    # the stored weights give the stored numbers
    model = idml_zoo.create_model(f"local-dir:{folder / 'model'}", pretrained=True)
    benchmark = idml_zoo.table_benchmark("mine", tmp_path / "photos")
    again = idml_zoo.evaluate(model, benchmark, device="cpu", progress=False)
    assert again.metrics == row.metrics
    page = (tmp_path / "board" / "README.md").read_text()
    assert f"**{variant}-test_resnet-32px**" in page and "untrained" in page


def test_a_run_repeats_bit_for_bit_and_the_seed_matters(tmp_path):
    weights = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert train.main(tiny(tmp_path, f"name={name}", f"seed={seed}")) == 0
        weights.append(load_file(tmp_path / "runs" / "mine" / name / f"seed{seed}" / "model" / "model.safetensors"))
    one, two, three = weights
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not torch.equal(one["head.semantic.weight"], three["head.semantic.weight"])


def test_warm_up_trains_the_heads_only(tmp_path):
    config = load_config(ROOT / "recipes" / "cub_resnet50.yaml", tiny(tmp_path, "epochs=1")[2:])
    assert train.main(tiny(tmp_path, "epochs=1", "freeze_batchnorm=true", "weight_decay=0")) == 0
    after = load_file(tmp_path / "runs" / "mine" / "idml-test_resnet-32px" / "seed0" / "model" / "model.safetensors")
    from accelerate.utils import set_seed

    set_seed(0)
    before = build_model(config.network, variants["idml"]).state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"head.semantic.weight", "head.semantic.bias", "head.uncertainty.weight", "head.uncertainty.bias"}


def test_validation_leaves_the_test_classes_closed(tmp_path):
    config = load_config(
        ROOT / "recipes" / "cub_resnet50.yaml",
        tiny(tmp_path, "evaluate_on=validation", "train_classes=0-3", "val_classes=0.5")[2:],
    )
    benchmark, training, measured, _ = splits_of(config)
    everything = benchmark.splits()
    assert not set(training.class_names) & set(measured.class_names)
    assert set(training.class_names) | set(measured.class_names) == set(everything.train.class_names)
    assert train.main(tiny(tmp_path, "evaluate_on=validation", "train_classes=0-3", "val_classes=0.5")) == 0
    (result,) = read_results(tmp_path / "board" / "results")
    assert result.row.endswith("-validation") and result.protocol.split == "validation"
    assert "development" in (tmp_path / "board" / "README.md").read_text()


def test_list_prints_every_recipe_with_every_variant(capsys):
    with pytest.raises(SystemExit) as left:
        train.main(["--list"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    recipes = len(list((ROOT / "recipes").glob("*.yaml")))
    assert len(lines) == len(set(lines)) == recipes * len(variants)
    assert len(variants) == 7 * 4 + 3
    assert "accelerate launch recipes/train.py --config recipes/sop_resnet50.yaml variant=idml_triplet" in lines


def trained(tmp_path, name, *more):
    assert train.main(tiny(tmp_path, f"name={name}", *more)) == 0
    return load_file(tmp_path / "runs" / "mine" / name / "seed0" / "model" / "model.safetensors")


def test_the_cache_changes_no_bit_of_small_images(tmp_path):
    one, two = trained(tmp_path, "cached"), trained(tmp_path, "decoded", "cache=false")
    assert all(torch.equal(one[k], two[k]) for k in one)
    three = trained(tmp_path, "reduced", "cache_side=20")
    assert not torch.equal(one["head.semantic.weight"], three["head.semantic.weight"])


def test_folds_hold_out_every_class_once(tmp_path):
    more = ["evaluate_on=validation", "train_classes=0-3", "val_folds=2"]
    held_out = []
    for fold in range(2):
        arguments = tiny(tmp_path, *more, f"val_fold={fold}")[2:]
        config = load_config(ROOT / "recipes" / "cub_resnet50.yaml", arguments)
        _, training, measured, _ = splits_of(config)
        assert not set(training.class_names) & set(measured.class_names)
        held_out += measured.class_names
    assert sorted(held_out) == ["class_0", "class_1", "class_2", "class_3"]


@pytest.mark.parametrize("more", [["sampler=pk", "images_per_class=4"], ["augment_on_device=true"]])
def test_other_ways_of_loading_train_too(tmp_path, more):
    assert not torch.equal(
        trained(tmp_path, "one", *more)["head.semantic.weight"], trained(tmp_path, "plain")["head.semantic.weight"]
    )
    assert len(read_results(tmp_path / "board" / "results")) == 2


def test_the_number_of_workers_makes_no_difference(tmp_path):
    two, none = trained(tmp_path, "two", "workers=2"), trained(tmp_path, "none", "workers=0")
    assert all(torch.equal(two[k], none[k]) for k in none)


def test_gradient_checkpointing_compiling_and_fusing_change_nothing_but_rounding(tmp_path):
    fixed = ["variant=pa", "freeze_batchnorm=true"]  # else checkpointing updates the running statistics twice
    plain = trained(tmp_path, "plain", *fixed)
    ways = {"less": "gradient_checkpointing=true", "compiled": "compile=aot_eager", "fused": "fused=true"}
    for name, more in ways.items():
        other = trained(tmp_path, name, *fixed, more)
        off = torch.cat([(plain[k] - other[k]).abs().flatten() for k in plain if plain[k].is_floating_point()])
        assert off.mean() < 1e-5, name


def test_a_batch_in_pieces(tmp_path):
    """Proxy NCA is a mean over images, so that the pieces' mean is the batch's loss."""
    more = ["variant=proxy_nca", "freeze_batchnorm=true"]
    whole, pieces = trained(tmp_path, "whole", *more), trained(tmp_path, "pieces", *more, "accumulate=4")
    off = torch.cat([(whole[k] - pieces[k]).abs().flatten() for k in whole if whole[k].is_floating_point()])
    assert off.mean() < 1e-5


def test_the_moving_average_is_saved_and_measured_and_survives_a_stop(tmp_path):
    plain, still, fast = (trained(tmp_path, f"d{d}", f"ema_decay={d}") for d in (0, 0.999999, 1e-9))
    start = trained(tmp_path, "start", "lr=1e-12", "proxy_lr_multiplier=1")
    key = "head.semantic.weight"
    assert torch.allclose(still[key], start[key], atol=1e-5), "hardly moved"
    assert torch.allclose(fast[key], plain[key], atol=1e-6), "follows at once"
    assert len(read_results(tmp_path / "board" / "results")) == 4


def test_the_profiler_writes_its_tables(tmp_path):
    trained(tmp_path, "profiled", "profile_steps=1", "epochs=3")
    folder = tmp_path / "runs" / "mine" / "profiled" / "seed0"
    assert "aten::" in (folder / "profile.txt").read_text()
    assert json.loads((folder / "trace.json").read_text())["traceEvents"]
    rows = list(csv.DictReader((folder / "log.csv").read_text().splitlines()))
    assert all(0 <= float(r["waiting"]) <= 1 and float(r["gib"]) > 0.05 for r in rows)


def test_validation_while_training_chooses_and_stops_honestly(tmp_path, monkeypatch):
    scores = iter([0.5, 0.7, 0.6, 0.6, 0.9])
    real = epoch_end.validate

    def scored(*args):
        return real(*args) | {"recall@1": next(scores)}

    monkeypatch.setattr(epoch_end, "validate", scored)
    more = ["validate_every=1", "epochs=9", "train_classes=0-3", "test_classes=4-5", "val_classes=0.5"]
    last = trained(tmp_path, "chosen", *more, "patience=2", "select=best")
    folder = tmp_path / "runs" / "mine" / "chosen" / "seed0"
    rows = list(csv.DictReader((folder / "validation.csv").read_text().splitlines()))
    assert [(int(r["epoch"]), float(r["recall@1"])) for r in rows] == [(1, 0.5), (2, 0.7), (3, 0.6), (4, 0.6)]
    best = load_file(folder / "best" / "model.safetensors")
    assert not torch.equal(best["head.semantic.weight"], last["head.semantic.weight"])
    (result,) = read_results(tmp_path / "board" / "results")
    assert result.protocol.checkpoint == "validation"
    assert result.training.startswith("up to 9 epochs"), "alike for every seed of the row"
    assert result.statistics["epochs"] == 2
    assert result.provenance.weights_sha256 == sha256_of(folder / "best" / "model.safetensors")
    assert result.queries == 8, "the test classes, of which nothing was seen"


def test_validation_classes_are_not_trained_on(tmp_path):
    arguments = tiny(tmp_path, "validate_every=1", "train_classes=0-3", "test_classes=4-5", "val_classes=0.5")[2:]
    config = load_config(ROOT / "recipes" / "cub_resnet50.yaml", arguments)
    _, training, measured, held_out = splits_of(config)
    names = [set(s.class_names) for s in (training, measured, held_out)]
    assert [len(n) for n in names] == [2, 2, 2] and len(set.union(*names)) == 6


def test_a_frozen_backbone_stays_and_its_features_can_be_cached(tmp_path):
    start = trained(tmp_path, "start", "lr=1e-12", "proxy_lr_multiplier=1", "freeze_batchnorm=true")
    body = [k for k in start if k.startswith("backbone.") and "num_batches" not in k]
    for more in (["cache_features=true", "variant=idml_no_mixup"], ["variant=pa_mixup"]):
        done = trained(tmp_path, more[0].replace("=", "-"), "freeze_backbone=true", *more)
        assert all(torch.allclose(done[k], start[k], atol=1e-6) for k in body)
        assert not torch.allclose(done["head.semantic.weight"], start["head.semantic.weight"], atol=1e-5)
    assert len(read_results(tmp_path / "board" / "results")) == 3


def test_a_run_that_ends_before_its_first_validation_is_validated_then(tmp_path):
    more = ["variant=pa", "train_classes=0-3", "test_classes=4-5", "val_classes=0.5", "batch_size=4", "epochs=4"]
    assert train.main(tiny(tmp_path, *more, "validate_every=4", "select=best", "max_steps=2")) == 0
    (result,) = read_results(tmp_path / "board" / "results")
    assert result.protocol.checkpoint == "validation"
    best = tmp_path / "runs" / "mine" / "pa-test_resnet-32px" / "seed0" / "best"
    assert result.provenance.weights_sha256 == sha256_of(best / "model.safetensors")
    meta = json.loads((best / "config.json").read_text())["meta"]
    assert meta["checkpoint"] == "validation" and "tau" not in meta, "pa has none"


def test_batches_without_a_pair_do_not_spoil_the_result(tmp_path):
    assert train.main(tiny(tmp_path, "variant=triplet", "sampler=shuffle", "batch_size=2", "epochs=1")) == 0
    assert len(read_results(tmp_path / "board" / "results")) == 1


def test_the_untrained_row_of_validation_classes_has_a_name_of_its_own(tmp_path):
    classes = ["variant=pa", "train_classes=0-3", "test_classes=4-5", "evaluate_untrained=true", "batch_size=4"]
    assert train.main(tiny(tmp_path, *classes)) == 0
    assert train.main(tiny(tmp_path, *classes, "evaluate_on=validation", "val_classes=0.5")) == 0
    splits = {r.row: r.protocol.split for r in read_results(tmp_path / "board" / "results")}
    assert splits["untrained-semantic-test_resnet-32px"] == "test"
    assert splits["untrained-semantic-test_resnet-32px-validation"] == "validation"


def test_tau_of_the_training_is_that_of_the_search_and_is_kept(tmp_path):
    assert train.main(tiny(tmp_path, "variant=idml_no_mixup", "tau=1", "similarity=both")) == 0
    found = {r.protocol.similarity: r for r in read_results(tmp_path / "board" / "results")}
    assert found["introspective"].protocol.tau == 1.0 and found["cosine"].protocol.tau is None
    folder = tmp_path / "runs" / "mine" / "idml_no_mixup-test_resnet-32px" / "seed0" / "model"
    assert json.loads((folder / "config.json").read_text())["meta"]["tau"] == 1.0


def test_a_part_of_the_backbone_trains(tmp_path):
    start = trained(tmp_path, "start", "lr=1e-12", "proxy_lr_multiplier=1", "freeze_batchnorm=true")
    more = [r"backbone_trains=^layer4\.|bn1$", "freeze_batchnorm=true", "warmup_epochs=0"]
    done = trained(tmp_path, "part", *more)
    moved = {k for k in start if k.startswith("backbone.") and not torch.allclose(done[k], start[k], atol=1e-6)}
    assert moved and all(k.startswith("backbone.layer4.") for k in moved)


def test_a_tracker_is_told(tmp_path):
    pytest.importorskip("tensorboard", reason="needs pip install 'idml-zoo[track]'")
    trained(tmp_path, "watched", "tracker=tensorboard")
    assert list((tmp_path / "runs").rglob("events.out.tfevents*"))


def test_training_from_a_stream_of_shards(tmp_path):
    from idml_zoo.data.preparation.prepare import prepare

    record = idml_zoo.table_benchmark("mine", make_folder(tmp_path / "photos"))
    folder, _ = prepare(record, record.splits(), tmp_path, progress=False)
    trained(tmp_path, "streamed", f"stream={folder}", "steps_per_epoch=4", "workers=1")
    log = (tmp_path / "runs" / "mine" / "streamed" / "seed0" / "log.csv").read_text().splitlines()
    assert len(log) == 1 + 2 * 4, "two epochs of as many steps as asked, though one pass has 12 images"
    (result,) = read_results(tmp_path / "board" / "results")
    assert result.queries == 12


def test_cores_are_shared_out_unless_told_otherwise(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
        for omp, world, threads, expected in [
            ("1", "1", None, 6),
            ("1", "3", None, 2),
            ("1", "9", None, 1),
            ("1", "1", 2, 2),
        ]:
            monkeypatch.setenv("OMP_NUM_THREADS", omp)
            monkeypatch.setenv("LOCAL_WORLD_SIZE", world)
            cpu.share_cores(threads)
            assert torch.get_num_threads() == expected
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        torch.set_num_threads(3)
        cpu.share_cores(None)
        assert torch.get_num_threads() == 3, "a choice above 1 is somebody's"
    finally:
        torch.set_num_threads(before)


def test_parameter_groups_follow_the_recipe():
    config = load_config(
        ROOT / "recipes" / "cub_resnet50.yaml", [*TINY, "warmup_epochs=0", "uncertainty_lr_multiplier=3"]
    )
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=16)
    criterion = ProxyLoss(4, 16, proxy_uncertainty="learned")
    rates = {id(p): g["lr"] for g in parameter_groups(config.optimizer, model, criterion) for p in g["params"]}
    assert len(rates) == len(list(model.parameters())) + 2
    assert rates[id(criterion.proxies)] == pytest.approx(0.1)
    assert rates[id(criterion.uncertainty)] == rates[id(model.head.uncertainty.weight)] == pytest.approx(3e-3)
    assert rates[id(model.head.semantic.weight)] == rates[id(model.backbone.conv1[0].weight)] == pytest.approx(1e-3)


def test_frozen_batchnorm_keeps_its_statistics_and_trains_its_affine_parameters():
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=16)
    set_training_mode(model, freeze_batchnorm=True)
    mean = model.backbone.bn1.running_mean.clone()
    model(torch.randn(2, 3, 32, 32)).semantic[:, 0].sum().backward()
    assert model.training and torch.equal(model.backbone.bn1.running_mean, mean)
    assert model.backbone.bn1.weight.grad is not None
