"""Search in a folder of photographs without labels."""

import json
import os
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import make_folder
from PIL import Image

import idml_zoo
from idml_zoo.cli.main import main
from idml_zoo.data.errors import DataError
from idml_zoo.reliability.logistic import Logistic
from idml_zoo.reliability.reliability import Form, Reliability, default
from idml_zoo.reliability.risk import RiskTable
from idml_zoo.reports import photo_index, photos
from idml_zoo.retrieval.knn import search

MODEL = "idml_test_resnet_glyphs"


@pytest.fixture(scope="module")
def model():
    return idml_zoo.create_model(MODEL, pretrained=True)


@pytest.fixture
def album(tmp_path):
    """12 photographs in folders of their own, one of them twice, one hidden, and a file that is none."""
    place = make_folder(tmp_path / "album", classes=4, images=3)
    (place / "class_0" / ".hidden.png").write_bytes((place / "class_0" / "0.png").read_bytes())
    (place / "notes.txt").write_text("no photograph")
    (place / "copy.png").write_bytes((place / "class_2" / "1.png").read_bytes())
    return place


def test_the_answers_are_those_of_the_search(model, album, tmp_path):
    index, broken = photos.index_photos(model, album, progress=False)
    assert not broken and len(index) == 13 and index.names == tuple(sorted(index.names))
    transform = idml_zoo.create_transforms(model)[1]
    with torch.inference_mode():
        one = model(transform(Image.open(album / "class_2" / "1.png").convert("RGB")).unsqueeze(0))
    torch.testing.assert_close(one.semantic[0], index.embedding.semantic[index.names.index("copy.png")])
    (answer,) = photos.ask(index, ["mine"], one, k=3)
    near = search(one, index.embedding, 3)
    assert [n for n, _, _ in answer.neighbours] == [index.names[j] for j in near.indices[0]]
    assert {n for n, _, _ in answer.neighbours[:2]} == {"copy.png", "class_2/1.png"}
    assert answer.neighbours[0][1] == pytest.approx(1, abs=1e-5) and answer.level == pytest.approx(one.level.item())
    declined = photos.ask(index, ["mine"], one, max_uncertainty=answer.level / 2)[0].declined
    assert declined and not photos.ask(index, ["mine"], one, max_uncertainty=answer.level * 2)[0].declined
    assert len(photos.ask(index, ["mine"], one, k=99)[0].neighbours) == 13
    near = [
        photos.Answer(n, v, n == "a", ((o, 0.9, 1.0),), v / 9, 0.1) for n, v, o in (("a", 5.0, "b"), ("b", 0.1, "a"))
    ]
    assert [a.name for a in photos.sections(near, 9)["Most alike"]] == ["b"], "a declined one hides no pair"
    with pytest.raises(ValueError, match="k = 0"):
        photos.ask(index, ["mine"], one, k=0)


def test_an_index_embeds_only_what_is_new(model, album, tmp_path, monkeypatch):
    file = tmp_path / "album.index"
    photos.index_photos(model, album, progress=False)[0].save(file)
    seen = []
    real = photo_index.decode
    monkeypatch.setattr(photo_index, "decode", lambda stream, name: seen.append(name) or real(stream, name))
    old = photos.PhotoIndex.load(file)
    again, _ = photos.index_photos(model, album, old, progress=False)
    assert not seen and again.names == old.names and torch.equal(again.embedding.semantic, old.embedding.semantic)
    # one changed, one new, one gone
    Image.fromarray(np.full((40, 40, 3), 7, np.uint8)).save(album / "class_1" / "0.png")
    os.utime(album / "class_1" / "0.png", ns=(1, 1))
    (album / "a new one.png").write_bytes((album / "copy.png").read_bytes())
    (album / "class_3" / "2.png").unlink()
    new, _ = photos.index_photos(model, album, old, progress=False)
    assert sorted(seen) == [str(album / "a new one.png"), str(album / "class_1" / "0.png")]
    fresh, _ = photos.index_photos(model, album, progress=False)
    assert new.names == fresh.names and "class_3/2.png" not in new.names
    torch.testing.assert_close(new.embedding.semantic, fresh.embedding.semantic)
    torch.testing.assert_close(new.embedding.uncertainty, fresh.embedding.uncertainty)
    # another model's index is of no use
    seen.clear()
    other = idml_zoo.create_model("idml", backbone="test_resnet", embedding_dim=128)
    photos.index_photos(other, album, old, progress=False)
    assert len(seen) == len(fresh)


def test_a_broken_photograph_costs_itself_only(model, album):
    (album / "class_0" / "0.png").write_bytes((album / "class_0" / "0.png").read_bytes()[:100])
    (album / "empty.jpg").touch()
    index, broken = photos.index_photos(model, album, progress=False)
    assert len(index) == 12 and len(broken) == 2
    assert all(any(name in line for line in broken) for name in ("class_0/0.png", "empty.jpg"))
    only = album / "only"
    only.mkdir()
    (only / "x.png").write_text("no image")
    with pytest.raises(DataError, match="none of the 1 images"):
        photos.index_photos(model, only, progress=False)
    (album / "class_0" / "nothing").mkdir()
    with pytest.raises(DataError, match="has no images"):
        photos.find_photos(album / "class_0" / "nothing")
    with pytest.raises(DataError, match="no folder or file"):
        photos.find_photos(album / "nothing")


@pytest.mark.parametrize("damage", ["cut", "other", "text", "counts"])
def test_a_damaged_index_is_one_clear_error(model, album, tmp_path, damage):
    from safetensors.torch import save_file

    file = tmp_path / "album.index"
    index, _ = photos.index_photos(model, album, progress=False)
    if damage == "counts":
        photos.PhotoIndex(index.names[1:], index.stamps[1:], index.embedding, index.model).save(file)
    else:
        index.save(file)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-50])
    if damage == "text":
        file.write_text("hello")
    if damage == "other":
        save_file({"semantic": torch.ones(2, 2)}, file)
    with pytest.raises(DataError, match=r"album.index .*delete it"):
        photos.PhotoIndex.load(file)


def test_the_command(album, tmp_path, capsys):
    query, page = str(album / "class_2" / "1.png"), tmp_path / "found.html"
    arguments = ["search", MODEL, str(album), query, "--k", "2", "--index", str(tmp_path / "i"), "--html", str(page)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "Nearest, of 13 photographs" in out and " 1.000  copy.png  level" in out and str(page) in out
    assert "With 13 photographs, fewer than 50, the confidence means less" in out
    text = page.read_text()
    assert text.count("<figure") == 3 and text.count("data:image/jpeg") == 3
    assert "http" not in text.replace("http-equiv", "")
    assert (tmp_path / "i").stat().st_size > 13 * 2 * 128 * 4
    # without a query: the copy is found, and each pair told once
    assert main(["search", MODEL, str(album), "--json", "--count", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {found["Most alike"][0]["name"], found["Most alike"][0]["neighbours"][0]["name"]} == {
        "copy.png",
        "class_2/1.png",
    }
    assert len(found["Most alike"]) == 3 == len(found["Most uncertain"])
    levels = [a["level"] for a in found["Most uncertain"]]
    assert levels == sorted(levels, reverse=True)
    assert main(["search", MODEL, str(album), query, "--max-uncertainty", "0", "--similarity", "introspective"]) == 0
    assert "declined: too uncertain" in capsys.readouterr().out
    assert "<br>class_2/1.png</figcaption>" in page.read_text(), "a file's name alone does not say which one"
    assert main(["search", MODEL, str(album), "--html", str(page)]) == 0
    headings = re.findall("<h2>(.*?)</h2>", page.read_text())
    assert headings == ["Most alike", "Least sure", "Most uncertain"]


def test_a_name_that_is_no_utf8_is_found_and_shown(album, tmp_path, capsys):
    odd = album / os.fsdecode(b"caf\xe9.png")
    try:
        odd.write_bytes((album / "copy.png").read_bytes())
    except OSError:
        pytest.skip("this file system wants UTF-8")
    where = ["--backbone", "test_resnet", "--device", "cpu", "--html", str(tmp_path / "page.html")]
    assert main(["search", "idml", str(odd.parent), str(odd), "--index", str(tmp_path / "index"), *where]) == 0
    assert "caf" in capsys.readouterr().out
    assert "caf\\udce9.png" in (tmp_path / "page.html").read_text()


def test_bad_places_are_one_clear_error(album, tmp_path, capsys):
    assert main(["search", MODEL, str(tmp_path / "none")]) == 1
    assert "no folder or file" in capsys.readouterr().err
    assert main(["search", MODEL, str(album), str(album / "typo.png")]) == 1
    assert "typo.png" in capsys.readouterr().err
    (album / "bad.png").touch()
    assert main(["search", MODEL, str(album), str(album / "bad.png")]) == 1
    assert "none of the queries can be read" in capsys.readouterr().err


def calibrated(threshold: float, reliability: Reliability | None = None) -> Reliability:
    """A reliability whose limit for 10 % is this: all above it were right, all below wrong."""
    score = np.repeat([threshold, 0.0], 1000)
    risk = RiskTable.of(score, score == 0, np.arange(2000), "queries")
    reliability = reliability or default()
    forms = (replace(f, risk=risk) for f in (reliability.labelled, reliability.label_free))
    return Reliability(*forms, fitted_on="a test", calibrated_on="a test")


def constant(confidence: float, unknown: float) -> Reliability:
    """A reliability that says the same of every answer."""
    form = Form(*(Logistic(("distance",), (0,), (1,), (0,), np.log(p / (1 - p))) for p in (confidence, unknown)))
    return Reliability(form, form)


@pytest.mark.parametrize("labelled", [True, False])
def test_the_confidence_is_that_of_the_search(model, album, labelled):
    index, _ = photos.index_photos(model, album, progress=False)
    labels = photos.folder_labels([album / n for n in index.names]) if labelled else None
    near = search(index.embedding, index.embedding, 2, exclude_self=True, confidence=True, gallery_labels=labels)
    answers = photos.ask(index, index.names, None, k=2, labels=labels)
    assert [a.confidence for a in answers] == near.confidence.tolist()
    assert [a.unknown for a in answers] == near.unknown.tolist()
    assert len({a.confidence for a in answers}) > 3 and not any(a.declined or a.reason for a in answers)
    least = photos.sections(answers, 4)["Least sure"]
    assert [a.confidence for a in least] == sorted(near.confidence.tolist())[:4]
    # declined: exactly those below the limit's threshold
    half = near.confidence.median().item()
    declining = photos.ask(index, index.names, None, 2, labels=labels, reliability=calibrated(half), max_risk=0.1)
    assert [a.declined for a in declining] == (near.confidence < half).tolist()
    assert {a.reason for a in declining} == {"", "not sure"}
    both = photos.ask(index, index.names, None, 2, "cosine", 0.0, labels, calibrated(half), 0.1)
    expected = ["not sure" if c < half else "too uncertain" for c in near.confidence]
    assert [a.reason for a in both] == expected and all(a.declined for a in both)


def test_classes_are_the_folders_that_photographs_lie_in(tmp_path, monkeypatch):
    places = ["b/x.png", "a/y.png", "deep/b/z.png", "w.png"]
    labels = photos.folder_labels([tmp_path / "root" / p for p in places])
    assert labels.tolist() == [1, 0, 1, 2] and labels.dtype == torch.int64, "a, b and root, by name"
    with pytest.raises(DataError, match=r"all 2 photographs lie in a folder named 'b'.*leave out the labels"):
        photos.folder_labels([tmp_path / "a" / "b" / "1.png", tmp_path / "b" / "2.png"])


def test_what_is_perhaps_not_there_is_said(model, album):
    index, _ = photos.index_photos(model, album, progress=False)
    query = index.embedding[:1]

    def hint(confidence, unknown, among_its_own=False):
        asked = (index.names, None) if among_its_own else (["mine"], query)
        return photos.ask(index, *asked, reliability=constant(confidence, unknown))[0].hint

    assert photos.PERHAPS_UNKNOWN == 0.5
    assert hint(0.9, 0.51) == hint(0.1, 0.99) == "perhaps not in this folder"
    assert hint(0.1, 0.49) == hint(0.9, 0.01) == ""
    assert hint(0.1, 0.51, True) == "perhaps the only one of its kind"
    assert hint(0.9, 0.51, True) == hint(0.1, 0.49, True) == "", "most photographs have company among their own"


@pytest.mark.parametrize(
    ("confidence", "reason", "words"),
    [
        (0.924, "", "92 % sure"),
        (0.9951, "", ">99 % sure"),
        (0.994, "", "99 % sure"),
        (0.004, "", "<1 % sure"),
        (0.31, "not sure", "not sure (31 %)"),
        (0.999, "not sure", "not sure (>99 %)"),
        (0.92, "too uncertain", "92 % sure"),
    ],
)
def test_how_sure_an_answer_is_in_words(confidence, reason, words):
    answer = photos.Answer("a", 1.0, bool(reason), (), confidence, 0.1, reason)
    assert photos.in_words(answer) == [words, "level 1"]


def test_few_photographs_are_answered(model, tmp_path, capsys):
    place = make_folder(tmp_path / "two", classes=2, images=1)
    assert main(["search", MODEL, str(place), "--json"]) == 0
    (alike,) = json.loads(capsys.readouterr().out)["Most alike"]
    assert 0 <= alike["confidence"] <= 1 and 0 <= alike["unknown"] <= 1 and len(alike["neighbours"]) == 1
    assert main(["search", MODEL, str(place), "--labels", "folders"]) == 0
    assert "With 2 photographs" in capsys.readouterr().out
    photo = str(place / "class_0" / "0.png")
    assert main(["search", MODEL, photo, photo]) == 0, "one alone, for a query"
    assert "% sure" in capsys.readouterr().out


@pytest.fixture
def declining(model, album, tmp_path):
    """A file of a reliability that declines about half of the album, and the answers with it."""
    index, _ = photos.index_photos(model, album, progress=False)
    near = search(index.embedding, index.embedding, 5, exclude_self=True, confidence=True)
    half = near.confidence.median().item()
    calibrated(half).save(tmp_path / "reliability.json")
    unsure = {n for n, c in zip(index.names, near.confidence, strict=True) if c < half}
    assert 0 < len(unsure) < len(index)
    return tmp_path / "reliability.json", unsure, half


def test_the_command_declines_at_a_risk(album, tmp_path, capsys, declining):
    file, unsure, half = declining
    page, assumption = tmp_path / "page.html", "if later queries are drawn as the 2,000 queries of the calibration were"
    arguments = ["search", MODEL, str(album), "--reliability", str(file), "--max-risk", "0.1", "--html", str(page)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(assumption in line for line in lines) == 1
    assert any(line.startswith(f"Declined as not sure: {len(unsure)} of 13.") for line in lines)
    marked = {line.split("  ")[0] for line in lines if line.endswith("declined: not sure")}
    assert marked == unsure
    for line, after in pairwise(lines):
        if line.endswith("declined: not sure"):
            assert "not sure (" in line and not after.startswith(" "), "no neighbours are shown"
    text = page.read_text()
    assert text.count(assumption) == 1 and text.count('class="query declined"') == text.count("Not answered: not sure.")
    rows = re.findall(r'<div class="row".*?</div>', text, re.DOTALL)
    assert sum("declined" in row for row in rows) >= len(unsure)
    assert all(("not sure (" in row) == ('class="near"' not in row) == ("query declined" in row) for row in rows)
    assert main([*arguments, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    limit = plain.pop("limit")
    assert assumption in limit["assumption"] and limit["threshold"] == half and limit["max_risk"] == 0.1
    for answers in plain.values():
        assert all(a["declined"] == (a["name"] in unsure) == (a["confidence"] < half) for a in answers)
    assert main([*arguments[:3], "--json"]) == 0
    assert "limit" not in json.loads(capsys.readouterr().out)


def test_labels_of_folders_change_the_confidence(album, capsys):
    where = ["search", MODEL, str(album), str(album / "class_1" / "0.png"), "--json"]

    def confidence(*more):
        assert main([*where, *more]) == 0
        return json.loads(capsys.readouterr().out)["Nearest"][0]["confidence"]

    model = idml_zoo.create_model(MODEL, pretrained=True)
    index, _ = photos.index_photos(model, album, progress=False)
    one = photos.embed_photos(model, [album / "class_1" / "0.png"], progress=False)[1]
    labels = torch.tensor([int(n[6]) if "/" in n else 9 for n in index.names])
    for more, gallery_labels in (((), None), (("--labels", "folders"), labels)):
        expected = idml_zoo.search(one, index.embedding, 5, confidence=True, gallery_labels=gallery_labels).confidence
        assert confidence(*more) == pytest.approx(expected.item(), abs=1e-5)
    assert confidence() != confidence("--labels", "folders")


def test_a_reliability_that_cannot_be_used_is_one_clear_error(album, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(photos, "ask", None)  # all is said before
    monkeypatch.setattr(photos, "index_photos", None)
    broken, foreign, plain, hard = (tmp_path / f"{n}.json" for n in ("broken", "foreign", "plain", "hard"))
    broken.write_text("{")
    foreign.write_text(json.dumps({**default().to_dict(), "version": 99}))
    default().save(plain)
    score = np.linspace(0, 1, 1000)
    risk = RiskTable.of(score, np.arange(1000) % 4 == 0, np.arange(1000), "queries")
    forms = (replace(f, risk=risk) for f in (default().labelled, default().label_free))
    Reliability(*forms).save(hard)
    flat = album / "class_0"
    for arguments, message in (
        ([album, "--reliability", broken], "broken.json: "),
        ([album, "--reliability", tmp_path / "none.json"], "none.json: "),
        ([album, "--reliability", foreign], "foreign.json: the reliability is of version 99"),
        ([album, "--reliability", plain, "--max-risk", "0.1"], "no limit without a calibration"),
        ([album, "--max-risk", "0.1"], "a risk of 10 % is not reachable"),  # by what came with the weights
        ([album, "--reliability", hard, "--max-risk", "0.1"], "a risk of 10 % is not reachable with 90 % confidence"),
        ([flat, "--labels", "folders"], "all 3 photographs lie in a folder named 'class_0'"),
    ):
        assert main(["search", MODEL, *map(str, arguments)]) == 1, arguments
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1, err
    assert main(["search", MODEL, str(album), "--reliability", str(hard), "--max-risk", "0.1"]) == 1
    assert re.search(r"the next that is: (2[5-9]|3\d) %, answering \d+ % of the queries", capsys.readouterr().err)
    for wrong in ("0", "1", "10", "nan"):
        with pytest.raises(SystemExit):
            main(["search", MODEL, str(album), "--max-risk", wrong])
        assert "must lie between 0 and 1" in capsys.readouterr().err
