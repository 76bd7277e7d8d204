"""A grid of runs does what is missing, and nothing twice."""

import pytest
from support.tiny_runs import tiny

from idml_zoo.cli.main import main
from idml_zoo.results import read_results
from idml_zoo.studies import sweep
from idml_zoo.training.config import ConfigError, load_config


def test_values_and_grid():
    assert sweep.values("a,b") == ["a", "b"]
    assert sweep.values("[0.1, 1],[0.5, 1]") == ["[0.1, 1]", "[0.5, 1]"]
    assert sweep.values("{a: 1, b: 2}") == ["{a: 1, b: 2}"]
    assert sweep.values("") == [""]
    runs = list(sweep.grid(["variant=pa,idml", "seed=0,1", "lr=1e-3,2e-3", "epochs=3"]))
    assert len(runs) == 8
    assert runs[1] == ["variant=pa", "seed=0", "lr=2e-3", "epochs=3", "name={variant}-{backbone}-{image_size}px-lr2e-3"]
    assert list(sweep.grid(["name=mine", "tau=1,2"]))[1][-1] == "name=mine-tau2"
    with pytest.raises(ConfigError, match="got 'variant'"):
        list(sweep.grid(["variant"]))


def test_a_sweep_runs_what_is_missing_and_can_be_started_again(tmp_path, capsys):
    _, config, *overrides = tiny(tmp_path, "threads=1")
    words = [
        "--config",
        config,
        "--logs",
        str(tmp_path / "logs"),
        *overrides,
        "variant=pa,idml",
        "seed=0,1",
        "epochs=1",
    ]
    words = [w for w in words if w != "epochs=2"]
    assert main(["sweep", *words, "--dry-run"]) == 0
    assert capsys.readouterr().out.count("to do") == 4
    assert not (tmp_path / "board").exists()
    assert main(["sweep", *words[:-3], "variant=pa", "seed=0", "epochs=1"]) == 0
    capsys.readouterr()
    assert main(["sweep", *words, "--jobs", "2"]) == 0
    out = capsys.readouterr().out
    assert out.count("start ") == 3 and out.count("done ") == 1
    assert "pa-test_resnet-32px" in out, "the table so far"
    assert len(read_results(tmp_path / "board" / "results")) == 4
    assert main(["sweep", *words]) == 0
    assert capsys.readouterr().out.count("done ") == 4


def test_a_failed_run_does_not_stop_the_others(tmp_path, capsys):
    _, config, *overrides = tiny(tmp_path, "threads=1")
    words = ["--config", config, "--logs", str(tmp_path / "logs"), *overrides, "batch_size=8,64", "variant=pa"]
    assert main(["sweep", *(w for w in words if w != "batch_size=8")]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out and "1 of 2 runs failed" in captured.err
    assert len(read_results(tmp_path / "board" / "results")) == 1
    assert any("do not fill one batch of 64" in p.read_text() for p in (tmp_path / "logs").iterdir())


def test_bad_words_are_one_clear_error(capsys):
    for jobs in ("0", "-1"):
        with pytest.raises(SystemExit):
            main(["sweep", "--jobs", jobs])
        assert "argument --jobs: " in capsys.readouterr().err
    assert main(["sweep", "lr=1e-3,fast"]) == 1
    assert "lr must be float, got 'fast'" in capsys.readouterr().err


def test_an_old_recipe_without_newer_keys_is_recognised(tmp_path):
    from types import SimpleNamespace

    import yaml

    config = load_config("glyphs_quickstart")
    recipe = {k: v for k, v in config.flat().items() if k not in ("ema_decay", "resume")}
    provenance = SimpleNamespace(recipe=yaml.safe_dump(recipe), weights_sha256="a")
    result, twin = (
        SimpleNamespace(provenance=provenance, corruptions=c, protocol=SimpleNamespace(similarity=s))
        for c, s in (({"blur": {}}, "cosine"), ({}, "introspective"))
    )
    known = sweep.recipes_of([result])

    def found(*overrides):
        return sweep.find_result(load_config("glyphs_quickstart", overrides), known)

    assert found() is result
    assert found("workers=3", "name=other") is result
    assert found("lr=9e-4") is None
    assert found("corruptions=blur") is result
    assert found("corruptions=blur noise") is None, "not all of it"
    both = load_config("glyphs_quickstart", ["similarity=both"])
    assert sweep.find_result(both, known) is None, "killed between the two searches"
    assert sweep.find_result(both, sweep.recipes_of([twin, result])) is result
    assert sweep.find_result(both, sweep.recipes_of([twin])) is None


def test_runs_share_the_cores(tmp_path, monkeypatch):
    """A share of one core is said as threads=1: the recipe takes OMP_NUM_THREADS=1 for accelerate's default."""
    monkeypatch.setattr(sweep, "cores", lambda: 2)
    _, config, *overrides = tiny(tmp_path)
    logs = ["--logs", str(tmp_path / "logs"), "--jobs", "2"]
    assert main(["sweep", "--config", config, *logs, *overrides, "variant=pa", "seed=0,1", "epochs=1"]) == 0
    assert [r.provenance.threads for r in read_results(tmp_path / "board" / "results")] == [1, 1]
