"""Search in a folder of photographs without labels."""

import json
import os

import numpy as np
import pytest
import torch
from conftest import make_folder
from PIL import Image

import idml_zoo
from idml_zoo.cli.main import main
from idml_zoo.data.errors import DataError
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
    assert "<h2>Most uncertain</h2>" in page.read_text()


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
