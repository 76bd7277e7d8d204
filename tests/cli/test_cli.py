import json

import pytest
import torch
from conftest import make_folder

import idml_zoo
from idml_zoo.cli.main import main
from idml_zoo.registry import benchmarks
from idml_zoo.reports.bootstrap import load_queries
from idml_zoo.results import read_results


def test_list(capsys):
    assert main(["list", "idml_resnet*_cub"]) == 0
    assert capsys.readouterr().out.split() == ["idml_resnet101_cub", "idml_resnet18_cub", "idml_resnet50_cub"]
    assert main(["list", "--what", "variants"]) == 0
    assert "idml_released" in capsys.readouterr().out
    assert main(["list", "--what", "benchmarks", "cub*"]) == 0
    assert "CUB-200-2011" in capsys.readouterr().out
    assert main(["list", "nothing*"]) == 1
    assert "no model matches 'nothing*'" in capsys.readouterr().err


def test_eval_writes_a_row_for_each_similarity(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(benchmarks._entries, "tiny", idml_zoo.table_benchmark("tiny", make_folder(tmp_path / "photos")))
    where = ["--leaderboard", str(tmp_path / "board"), "--image-size", "32", "--device", "cpu"]
    where += ["--similarity", "cosine", "introspective", "--row", "mine"]
    assert main(["eval", "idml", "tiny", "--backbone", "test_resnet", *where]) == 0
    assert {r.row: r.protocol.similarity for r in read_results(tmp_path / "board" / "results")} == {
        "mine": "cosine",
        "mine-introspective": "introspective",
    }
    assert "R@1" in capsys.readouterr().out
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8)
    folder = model.save_pretrained(tmp_path / "model", variant="idml")
    saved = ["--leaderboard", str(tmp_path / "two"), "--device", "cpu", "--row", "saved"]
    assert main(["eval", f"local-dir:{folder}", "tiny", *saved]) == 0
    (result,) = read_results(tmp_path / "two" / "results")
    assert result.provenance.weights_sha256
    assert result.model.variant == "idml"
    like = ["--like", str(result.path(tmp_path / "two" / "results")), "--leaderboard", str(tmp_path / "three")]
    assert main(["eval", f"local-dir:{folder}", "tiny", *like, "--device", "cpu"]) == 0
    (again,) = read_results(tmp_path / "three" / "results")
    assert (again.row, again.seed, again.metrics, again.model) == ("saved", 0, result.metrics, result.model)
    assert again.provenance.trained["command"] == result.provenance.command
    idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8).save_pretrained(folder)
    assert main(["eval", f"local-dir:{folder}", "tiny", *like, "--device", "cpu"]) == 1
    assert "give the model that it was measured with" in capsys.readouterr().err
    assert main(["eval", "idml", "tiny", "--backbone", "test_resnet", *like]) == 1
    assert "give the model as local-dir:FOLDER" in capsys.readouterr().err


def test_eval_of_ones_own_images_embeds_once_and_measures_corruptions(tmp_path, monkeypatch):
    from idml_zoo.evaluation import embed as module

    embedded, real = [], module.embed
    monkeypatch.setattr(module, "embed", lambda *a, **k: embedded.append(1) or real(*a, **k))
    photos = make_folder(tmp_path / "photos")
    arguments = [
        "--source",
        str(photos),
        "--leaderboard",
        str(tmp_path / "board"),
        "--image-size",
        "32",
        "--device",
        "cpu",
    ]
    arguments += ["--similarity", "cosine", "introspective"]
    assert main(["eval", "idml", "photos", "--backbone", "test_resnet", *arguments]) == 0
    assert len(embedded) == 1
    assert {r.benchmark for r in read_results(tmp_path / "board" / "results")} == {"photos"}
    arguments[-2:] = ["cosine", "--corruptions", "noise", "--row", "worse"]
    assert main(["eval", "idml", "photos", "--backbone", "test_resnet", *arguments]) == 0
    worse = next(r for r in read_results(tmp_path / "board" / "results") if r.row == "worse")
    assert set(worse.corruptions) == {"noise"} and set(worse.corruptions["noise"]) == set("12345")


def test_eval_measures_the_classes_that_were_chosen(tmp_path, capsys):
    photos, board = make_folder(tmp_path / "photos"), tmp_path / "board"
    where = ["--source", str(photos), "--backbone", "test_resnet", "--image-size", "32", "--device", "cpu"]
    where += ["--leaderboard", str(board), "--test-classes", "0-1"]
    assert main(["eval", "idml", "photos", *where]) == 0
    (result,) = read_results(board / "results")
    expected = idml_zoo.table_benchmark("photos", photos, test_classes="0-1").splits().test
    assert result.provenance.data_sha256 == expected.fingerprint() and expected.num_classes == 2
    data = ["--root", str(tmp_path / "data")]
    assert main(["data", "prepare", "photos", "--source", str(photos), "--test-classes", "3-5", *data]) == 0
    assert main(["eval", "idml", "photos", *where, *data]) == 0
    (again,) = read_results(board / "results")
    assert again.provenance.data_sha256 == expected.fingerprint(), "not those of a prepared copy of that name"
    assert main(["eval", "idml", "glyphs", *where]) == 1
    assert "glyphs is a registered benchmark" in capsys.readouterr().err
    assert main(["eval", "idml", "glyphs", "--backbone", "test_resnet", "--test-classes", "0-1"]) == 1
    assert "its classes are fixed" in capsys.readouterr().err


def test_analyse_draws_a_figure(tmp_path, capsys, monkeypatch):
    assert "cub" in benchmarks
    monkeypatch.setitem(benchmarks._entries, "tiny", idml_zoo.table_benchmark("tiny", make_folder(tmp_path / "photos")))
    model = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=8)
    model.transform = model.transform.replace(image_size=32)
    folder = model.save_pretrained(tmp_path / "model")
    for name, more in (("a.png", []), ("b.svg", ["--model", f"local-dir:{folder}", "--benchmark", "tiny"])):
        assert main(["analyse", "gradients", "--out", str(tmp_path / name), "--device", "cpu", *more]) == 0
        assert (tmp_path / name).stat().st_size > 10_000
    assert main(["analyse", "gradients", "--model", f"local-dir:{folder}"]) == 1
    assert "needs both: --model and --benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "idml_resnet5_cub", "cub"], "did you mean 'idml_resnet50_cub'"),
        (["eval", "features", "cub3"], "unknown benchmark 'cub3'; did you mean 'cub'"),
        (["eval", "features", "glyphs", "--backbone", "resnet500"], "did you mean resnet50"),
        (["eval", "local-dir:/nowhere", "glyphs"], "no folder /nowhere"),
        (
            ["eval", "idml", "cub", "--backbone", "test_resnet", "--root", "/nowhere"],
            "extract the official archive there",
        ),
    ],
)
def test_mistakes_are_one_line_on_stderr(capsys, arguments, message):
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len([line for line in err.strip().splitlines() if not line.startswith("note:")]) == 1


def trained(folder, draw=0, level=0.1, **meta):
    """A model's folder, its weights drawn with a seed of their own."""
    torch.manual_seed(draw)
    model = idml_zoo.create_model(
        "idml", backbone="test_resnet", embedding_dim=8, head_options={"initial_level": level}
    )
    model.transform = model.transform.replace(image_size=32)
    return model.save_pretrained(folder, **meta)


def test_eval_replaces_no_result_of_other_weights(tmp_path, capsys):
    photos = make_folder(tmp_path / "photos")
    where = ["mine", "--source", str(photos), "--device", "cpu", "--leaderboard", str(tmp_path / "board")]
    first, second = (trained(tmp_path / f"run{i}", i, seed=7, checkpoint="validation") for i in (1, 2))
    assert main(["eval", f"local-dir:{first}", *where]) == 0
    (known,) = read_results(tmp_path / "board" / "results")
    assert (known.seed, known.protocol.checkpoint) == (7, "validation"), "as the weights' own file says"
    assert main(["eval", f"local-dir:{first}", *where]) == 0, "the same weights again"
    assert main(["eval", f"local-dir:{second}", *where]) == 1
    assert "is of other weights" in capsys.readouterr().err
    (kept,) = read_results(tmp_path / "board" / "results")
    assert kept.provenance.weights_sha256 == known.provenance.weights_sha256
    assert main(["eval", f"local-dir:{first}", *where, "--image-size", "40"]) == 1
    assert "other image size (32, not 40)" in capsys.readouterr().err
    assert main(["eval", f"local-dir:{first}", *where, "--corruptions", "blur"]) == 0
    assert main(["eval", f"local-dir:{first}", *where]) == 1
    assert "has corrupted queries too; add --corruptions blur" in capsys.readouterr().err
    plain = ["eval", "features", *where, "--backbone", "test_resnet", "--image-size", "32"]
    assert main(plain) == 0
    assert main([*plain, "--pooling", "avg"]) == 1
    assert "other pooling (avg+max, not avg)" in capsys.readouterr().err
    assert main(["eval", f"local-dir:{second}", *where, "--seed", "8"]) == 0
    assert main(["eval", f"local-dir:{second}", *where, "--force"]) == 0
    assert {r.seed for r in read_results(tmp_path / "board" / "results") if r.row.startswith("idml")} == {7, 8}


def test_the_introspective_search_has_the_temperature_of_the_training(tmp_path):
    photos = make_folder(tmp_path / "photos", classes=8, images=6)
    folder = trained(tmp_path / "model", tau=0.05, level=1.0)
    where = ["mine", "--source", str(photos), "--device", "cpu", "--similarity", "introspective"]
    for name, more in (("own", []), ("five", ["--tau", "5"])):
        board = tmp_path / name
        assert main(["eval", f"local-dir:{folder}", *where, "--leaderboard", str(board), *more]) == 0
    (own,), (five,) = (read_results(tmp_path / n / "results") for n in ("own", "five"))
    assert own.protocol.tau == 0.05 and five.protocol.tau is None
    assert '"tau"' not in five.to_json(), "as files from before it was recorded"
    near = [load_queries(tmp_path / n / "results", r)["top1_similarity"] for n, r in (("own", own), ("five", five))]
    assert (near[0] < near[1]).all(), "distances are weighed by exp(−β/(τα))"


def test_search_and_gallery_too_take_the_temperature_of_the_training(tmp_path, capsys):
    photos = make_folder(tmp_path / "photos", classes=4, images=3)
    folder = trained(tmp_path / "model", tau=0.05, level=1.0)
    assert idml_zoo.create_model(f"local-dir:{folder}", pretrained=True).tau == 0.05
    how = ["--similarity", "introspective", "--device", "cpu"]

    def scores(*more):
        assert main(["search", f"local-dir:{folder}", str(photos), "--json", *how, *more]) == 0
        return [f["score"] for row in json.loads(capsys.readouterr().out)["Most alike"] for f in row["neighbours"]]

    assert scores() == scores("--tau", "0.05") != scores("--tau", "5")
    gallery = ["gallery", f"local-dir:{folder}", "mine", "--source", str(photos), "--count", "2", *how]
    pages = [tmp_path / name / "index.html" for name in ("own", "same", "five")]
    for page, more in zip(pages, ([], ["--tau", "0.05"], ["--tau", "5"]), strict=True):
        assert main([*gallery, "--out", str(page.parent), *more]) == 0
    own, same, five = (page.read_text() for page in pages)
    assert own == same != five


def test_what_cannot_be_is_said_before_anything_is_computed(tmp_path, capsys, monkeypatch):
    import idml_zoo.evaluation.embed

    monkeypatch.setattr(idml_zoo.evaluation.embed, "embed", None)
    photos = make_folder(tmp_path / "photos")
    (tmp_path / "file").write_text("")
    own = ["mine", "--source", str(photos), "--backbone", "test_resnet", "--image-size", "32"]
    for arguments, message in (
        (["eval", "idml", *own, "--row", "my row"], "--row must be letters"),
        (["eval", "idml", *own, "--leaderboard", str(tmp_path / "file")], "cannot write"),
        (["gallery", "idml", *own[:-2], "--out", str(tmp_path / "file")], "cannot write"),
        (["search", "idml", str(photos), "--backbone", "test_resnet", "--html", str(tmp_path)], "cannot write"),
        (["search", "idml", str(photos), "--backbone", "test_resnet", "--device", "foo"], "no device 'foo' here"),
    ):
        assert main(arguments) == 1, arguments
        assert message in capsys.readouterr().err
    for arguments, message in (
        (["gallery", "idml", *own[:-2], "--k", "0"], "must be 1 or more"),
        (["search", "idml", str(photos), "--count", "-1"], "must be 1 or more"),
        (["eval", "idml", *own, "--tau", "0"], "--tau: tau must be positive and finite, got 0.0"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown corruption 'blurr'; did you mean 'blur'"):
        idml_zoo.evaluate(None, "glyphs_subset", corruptions=["blurr"])
    with pytest.raises(ValueError, match="row must be letters"):
        idml_zoo.evaluate(None, "glyphs_subset", row="my row")


def test_an_untrained_model_is_called_so(tmp_path, capsys):
    photos = make_folder(tmp_path / "photos")
    assert main(["search", "idml", str(photos), "--backbone", "test_resnet", "--device", "cpu"]) == 0
    assert "note: this model is untrained: its weights are random" in capsys.readouterr().err
    assert main(["search", f"local-dir:{trained(tmp_path / 'model')}", str(photos), "--device", "cpu"]) == 0
    assert "untrained" not in capsys.readouterr().err


def test_usage():
    for arguments in ([], ["lst"], ["leaderboard", "bild"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
