"""What the gallery chooses, frames and draws."""

import re
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from conftest import make_embedding, make_folder
from PIL import Image

import idml_zoo
from idml_zoo.cli.main import main
from idml_zoo.registry import UnknownNameError
from idml_zoo.reliability.errors import ReliabilityError
from idml_zoo.reliability.reliability import Reliability, default
from idml_zoo.reliability.risk import RiskTable
from idml_zoo.reports.gallery import _GREEN, _RED, _SIDE, build_gallery, choose, project, sheet
from idml_zoo.retrieval.knn import search
from idml_zoo.types import Embedding


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("gallery") / "images", classes=12, images=5)
    return idml_zoo.table_benchmark("mine", str(folder)).splits().test


@pytest.fixture
def embedding(split):
    return make_embedding(len(split), dtype=torch.float32)


def test_sections_hold_what_their_names_say(split, embedding):
    found = choose(embedding, split, k=3, count=5)
    level, labels = embedding.level.numpy(), split.labels
    scores = (embedding.semantic @ embedding.semantic.T).fill_diagonal_(-2)
    top = scores.argmax(1).numpy()
    wrong = labels[top] != labels
    assert np.array_equal(found.wrong, wrong) and found.rows.tolist() == list(range(len(split)))
    mistakes = found.sections["Most confident mistakes"]
    near = search(embedding, embedding, 3, exclude_self=True, gallery_labels=torch.as_tensor(labels))
    confidence = near.confidence.numpy()
    expected = [i for i in np.argsort(-confidence, kind="stable") if wrong[i]][:5]
    assert [r.query for r in mistakes] == expected and not any(r.hit[0] for r in mistakes)
    assert expected != [i for i in np.argsort(level) if wrong[i]][:5], "the level would choose others"
    assert [r.query for r in found.sections["Most uncertain images"]] == np.argsort(-level)[:5].tolist()
    for r in chain(*found.sections.values()):
        assert r.neighbours == tuple(scores[r.query].topk(3).indices.tolist()) and r.query not in r.neighbours
        assert r.hit == tuple((labels[list(r.neighbours)] == labels[r.query]).tolist())
        assert r.scores == pytest.approx(scores[r.query].topk(3).values.tolist(), abs=1e-6)
        assert r.confidence == confidence[r.query] and not r.declined
        assert r.level == pytest.approx(level[r.query]) and r.levels == pytest.approx(level[list(r.neighbours)])
    again = choose(embedding, split, k=3, count=5)
    assert again.sections == found.sections and len(found.sections["A random sample"]) == 5


def test_without_uncertainty_there_is_confidence_still(split, embedding):
    plain = Embedding(embedding.semantic, torch.zeros_like(embedding.uncertainty))
    found = choose(plain, split, k=2, count=4)
    assert "Most uncertain images" not in found.sections
    best = [r.confidence for r in found.sections["Most confident mistakes"]]
    assert best == sorted(best, reverse=True) and len(set(best)) > 1


def calibrated(threshold):
    """A reliability whose limit for 10 % is this: all above it were right, all below wrong."""
    score = np.repeat([threshold, 0.0], 1000)
    risk = RiskTable.of(score, score == 0, np.arange(2000), "queries")
    forms = (replace(f, risk=risk) for f in (default().labelled, default().label_free))
    return Reliability(*forms)


def test_declined_are_those_below_the_limit_and_marked(split, embedding, tmp_path):
    labels = torch.as_tensor(split.labels)
    near = search(embedding, embedding, 1, exclude_self=True, gallery_labels=labels)
    half = near.confidence.median().item()
    unsure = (near.confidence < half).numpy()
    how = {"k": 2, "count": 50, "reliability": calibrated(half), "max_risk": 0.1}
    shown = choose(embedding, split, **how)
    assert np.array_equal(shown.declined, unsure) and 0 < unsure.sum() < len(unsure)
    assert all(r.declined == unsure[r.query] for r in chain(*shown.sections.values()))
    page = build_gallery(embedding, split, tmp_path / "out", **how)[0].read_text()
    declined = sum(r.declined for r in chain(*shown.sections.values()))
    assert page.count('class="query declined"') == page.count("<figcaption>not sure (") == declined > 0
    assert page.count(shown.limit.assumption) == 1
    assert f"Declined as not sure: {unsure.sum()} of {len(split)}. At most 10 %" in page
    wrong = (labels[near.indices[:, 0]] != labels).numpy()[~unsure]
    assert f"Here {100 * wrong.mean():.0f} % of the {len(wrong)} answers are wrong." in page
    assert page.count("<figcaption>✓") + page.count("<figcaption>✗") == 2 * sum(map(len, shown.sections.values()))
    plain = build_gallery(embedding, split, tmp_path / "plain", k=2, count=50)[0].read_text()
    assert "Declined" not in plain and "declined" not in plain.partition("</style>")[2]
    with pytest.raises(ReliabilityError, match="no limit without a calibration"):
        choose(embedding, split, max_risk=0.1)
    first = np.arange(len(split)) >= 5  # the gallery is then the first class
    with pytest.raises(ValueError, match="all of the gallery is of one class"):
        choose(embedding, replace(split, queries=first))


def test_a_sheet_says_how_sure_each_answer_is(split, embedding):
    shown = choose(embedding, split, k=2, count=2).sections["A random sample"]
    sure, unsure = (sheet(split, [replace(r, declined=d) for r in shown]) for d in (False, True))
    below = (0, 6 + _SIDE, 6 + _SIDE, 6 + _SIDE + 14)  # the first line under the first query
    assert sure.crop(below).tobytes() != unsure.crop(below).tobytes() and sure.size == unsure.size
    rest = (6 + _SIDE + 12, 0, *sure.size)
    assert sure.crop(rest).tobytes() == unsure.crop(rest).tobytes(), "neighbours are shown as they are"


def test_queries_are_shown_with_the_gallery_alone(split, embedding):
    from dataclasses import replace

    queries = np.arange(len(split)) % 5 == 0
    shown = choose(embedding, replace(split, queries=queries), k=4, count=50)
    for r in chain(*shown.sections.values()):
        assert queries[r.query] and not queries[list(r.neighbours)].any()


def test_frames_tell_right_from_wrong(split, embedding):
    (retrievals,) = ([r] for r in choose(embedding, split, k=6, count=1).sections["A random sample"])
    picture = sheet(split, retrievals)
    y = 6 + _SIDE // 2
    for j, right in enumerate(retrievals[0].hit):
        x = 6 + (j + 1) * (_SIDE + 6) + 6 + 1
        assert "#" + bytes(picture.getpixel((x, y))).hex() == (_GREEN if right else _RED)


def test_the_map_is_that_of_principal_components(embedding):
    from sklearn.decomposition import PCA

    ours, theirs = project(embedding), PCA(2).fit_transform(embedding.semantic.double().numpy())
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-6)
    assert np.array_equal(ours, project(embedding))
    with pytest.raises(UnknownNameError, match="did you mean 'pca'"):
        project(embedding, "pcaa")


def test_files_and_a_page_that_stands_alone(split, embedding, tmp_path):
    files = build_gallery(embedding, split, tmp_path / "out", title="<b>T</b>", k=3, count=4)
    names = ["index.html", "most_confident_mistakes.png", "most_uncertain_images.png", "a_random_sample.png", "map.png"]
    assert [f.name for f in files] == names
    for file in files[1:]:
        with Image.open(file) as image:
            assert min(image.size) > 100
    page = files[0].read_text()
    assert "<b>T</b>" not in page and "Most confident mistakes" in page
    assert all(s.startswith("data:image/") for s in re.findall(r'src="([^"]*)"', page))
    assert page.count('class="query"') == 12 and page.count("<figcaption>✓") + page.count("<figcaption>✗") == 36


def test_more_neighbours_than_images_are_all_of_them(split, embedding):
    assert len(choose(embedding, split, k=10_000, count=1).sections["A random sample"][0].neighbours) == len(split) - 1
    for wrong in ({"k": 0}, {"count": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            choose(embedding, split, **wrong)
    with pytest.raises(ValueError, match="29 embeddings but 30 images"):
        choose(embedding[:29], split)


def test_images_that_are_alone_in_their_class_are_no_mistakes(split, embedding):
    labels = split.labels.copy()
    labels[0] = labels.max() + 1
    alone = replace(split, labels=labels, class_names=(*split.class_names, "alone"))
    found = choose(embedding, alone, k=1, count=1)
    assert 0 not in found.rows and len(found.rows) == len(found.wrong) == len(split) - 1


def test_the_command(tmp_path, capsys):
    photos = make_folder(tmp_path / "photos")
    where = ["--source", str(photos), "--out", str(tmp_path / "out"), "--k", "2", "--count", "2", "--device", "cpu"]
    assert main(["gallery", "idml", "photos", "--backbone", "test_resnet", *where]) == 0
    assert (tmp_path / "out" / "index.html").is_file() and "map.png" in capsys.readouterr().out
    calibrated(1e-9).save(tmp_path / "reliability.json")
    arguments = ["gallery", "idml", "photos", "--backbone", "test_resnet", *where, "--max-risk", "0.1"]
    assert main([*arguments, "--reliability", str(tmp_path / "reliability.json")]) == 0
    assert "At most 10 % of the answers are wrong" in (tmp_path / "out" / "index.html").read_text()
    capsys.readouterr()
    assert main(arguments) == 1
    assert "no limit without a calibration" in capsys.readouterr().err
    assert main([*arguments, "--reliability", str(tmp_path / "none.json")]) == 1
    assert "none.json: " in capsys.readouterr().err
