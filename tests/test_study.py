"""A study tunes every variant alike on held-out classes, then opens the test classes once."""

import numpy as np
import pytest
import study
import train
import yaml
from PIL import Image
from test_train import ROOT, TINY

from idml_zoo.results import read_results


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A study of two variants and a scout, and its arguments; runs are done in this process."""
    for c in range(6):  # noise, so that trials differ in what they reach
        (tmp_path / "photos" / f"class_{c}").mkdir(parents=True)
        for i in range(6):
            pixels = np.random.default_rng([c, i]).integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / f"class_{c}" / f"{i}.png")
    settings = dict(w.split("=", 1) for w in TINY) | {"source": str(tmp_path / "photos"), "epochs": "1"}
    content = {
        "recipe": str(ROOT / "recipes" / "cub_resnet50.yaml"),
        "set": {k: yaml.safe_load(v) for k, v in settings.items()}
        | {
            "output": str(tmp_path / "runs"),
            "warmup_epochs": 0,
            "val_classes": 0.5,
            "train_classes": "0-3",
            "test_classes": "4-5",
        },
        "variants": ["pa", "idml"],
        "trials": {"cosine": [{"lr": 1e-3}, {"lr": 2e-3}], "introspective": [{"tau": 5.0}, {"tau": 1.0}]},
        "scout": {"variants": ["proxy_nca"], "trials": [{"lr": 1e-3}]},
        "seeds": [0, 1],
        "measure": {"similarity": "both"},
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    done = []

    def in_process(ready, jobs, logs, out):
        while run := ready():
            done.append(run.config)
            assert train.main(["--config", run.file, *run.words]) == 0
        return 0

    monkeypatch.setattr(study, "work", in_process)
    return file, content, ["--leaderboard", str(tmp_path / "board")], done


def test_a_study_tunes_then_measures_and_starts_again_where_it_was(tmp_path, small, capsys):
    file, _, arguments, done = small
    assert study.main([str(file), "--dry-run", *arguments]) == 0
    assert capsys.readouterr().out.count("to do  variant") == 1 + 2 + 2, "trials; nothing to measure yet"
    assert study.main([str(file), *arguments]) == 0
    trials = [c for c in done if c.evaluate_on == "validation"]
    finals = [c for c in done if c.evaluate_on == "test"]
    # proxy_nca's scout is one of its two trials; the scout joins plain and introspective
    assert [c.variant for c in trials] == [
        "proxy_nca",
        "pa",
        "pa",
        "idml",
        "idml",
        "proxy_nca",
        *["idml_proxy_nca_no_mixup"] * 2,
    ]
    assert [c.variant for c in finals] == [
        "pa",
        "pa",
        "idml",
        "idml",
        "proxy_nca",
        "proxy_nca",
        *["idml_proxy_nca_no_mixup"] * 2,
    ]
    assert [c.seed for c in finals] == [0, 1] * 4
    known = read_results(tmp_path / "board" / "validation" / "results")
    assert {r.protocol.split for r in known} == {"validation"} and len(known) == 8
    for variant, key in (("pa", "lr"), ("idml", "tau")):  # the best by MAP@R is what was measured
        scores = {
            yaml.safe_load(r.provenance.recipe)[key]: r.metrics["map@r"] for r in known if r.model.variant == variant
        }
        assert {getattr(c, key) for c in finals if c.variant == variant} == {max(scores, key=scores.get)}
    measured = read_results(tmp_path / "board" / "results")
    assert {r.row for r in measured if r.model.variant == "idml"} == {
        "idml-test_resnet-32px-tuned",
        "idml-test_resnet-32px-tuned-introspective",
    }
    assert not [r for r in measured if r.row.startswith("pa-") and r.protocol.similarity == "introspective"]
    done.clear()
    assert study.main([str(file), *arguments]) == 0
    assert not done, "nothing is run twice"
    assert "2 of 2 seeds measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": {"cosine": [{"lr": 1e-3}], "introspective": [{"lr": 1e-3}, {"lr": 2e-3}]}}, "equally many trials"),
        ({"variant": ["pa"]}, "unknown key 'variant'; did you mean 'variants'?"),
        ({"variants": ["idlm"]}, "idlm"),
        ({"set": {"epohcs": 3}}, "unknown key 'epohcs'; did you mean 'epochs'?"),
        ({"recipe": "none.yaml"}, "cannot read configuration"),
        ({"scout": {"variants": ["triplet"]}}, "scout holds variants and trials"),
        ({"seeds": []}, "name variants and seeds"),
    ],
)
def test_a_wrong_study_is_one_clear_error(small, capsys, change, message):
    file, content, arguments, done = small
    file.write_text(yaml.safe_dump(content | change))
    assert study.main([str(file), *arguments]) == 1
    assert message in capsys.readouterr().err and not done
    assert study.main([str(file.with_name("other.yaml")), *arguments]) == 1
    assert "cannot read study" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "studies").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_studies_at_hand_can_be_read(path, tmp_path):
    progress = study.Progress(study.read_study(path), str(tmp_path))
    assert len(list(progress.missing())) >= 4 * len(progress.study.variants)
    assert len(progress.study.seeds) >= 3
