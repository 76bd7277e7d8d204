import numpy as np
import pytest
from PIL import ImageFont

from idml_zoo.data.errors import DataError
from idml_zoo.data.sets import glyphs


def test_classes_are_what_the_fonts_cover():
    points = glyphs.code_points()
    assert len(points) == 2297, "with the DejaVu fonts of matplotlib 3.9 to 3.11"
    assert len(set(points)) == len(points) and {ord("A"), ord("я"), ord("7"), ord("+")} <= set(points)


def test_identical_outlines_are_known():
    groups = glyphs.twin_groups()
    latin, greek, cyrillic = ord("B"), 0x392, 0x412
    assert groups[latin] == groups[greek] == groups[cyrillic]
    assert groups[ord("Q")] != groups[latin] and ord("R") not in groups
    assert len(groups) == 183 and len(set(groups.values())) == 82
    font = ImageFont.truetype(str(glyphs.font_paths()[0]), 38)
    assert np.array_equal(glyphs.render_clean(latin, font), glyphs.render_clean(greek, font))
    assert not np.array_equal(glyphs.render_clean(latin, font), glyphs.render_clean(ord("R"), font))


def test_a_subset_is_the_same_images_each_time_and_part_of_a_larger_one(tmp_path, monkeypatch):
    monkeypatch.setenv("IDML_ZOO_CACHE", str(tmp_path / "one"))
    small = glyphs.load_glyphs(3)
    monkeypatch.setenv("IDML_ZOO_CACHE", str(tmp_path / "two"))
    large = glyphs.load_glyphs(5)
    assert small.train.num_classes == small.test.num_classes == 3 and len(small.test) == 36
    assert not set(small.train.class_names) & set(small.test.class_names)
    for i in range(36):
        assert small.test.images[i].tobytes() == large.test.images[i].tobytes()
    assert small.test.images[0].size == (64, 64) and small.test.images[0].mode == "RGB"
    files = list((tmp_path / "one").iterdir())
    assert len(files) == 2 and all(f.suffix == ".npy" for f in files)
    files[0].write_bytes(files[0].read_bytes()[:500])  # a cache cut short is rendered again
    monkeypatch.setenv("IDML_ZOO_CACHE", str(tmp_path / "one"))
    assert glyphs.load_glyphs(3).test.fingerprint() == small.test.fingerprint()


def test_severity_is_kept_and_is_what_degrades():
    split = glyphs.load_glyphs(20).test
    severity = split.extras["severity"]
    assert severity.min() >= 0 and severity.max() < 1 and 0.15 < np.median(severity) < 0.35
    font = ImageFont.truetype(str(glyphs.font_paths()[0]), 38)
    clean = glyphs.render_clean(ord("R"), font)
    change = [
        np.mean(
            [np.abs(glyphs.degrade(clean, s, np.random.default_rng(i)).astype(float) - clean).mean() for i in range(20)]
        )
        for s in (0.0, 0.3, 0.9)
    ]
    assert change[0] == 0 and change[0] < change[1] < change[2]
    rng = np.random.default_rng([0, 65, 2])
    assert glyphs.severity(65, 2) == rng.random() ** 2
    point, face = glyphs.code_points()[1148], 5
    font = ImageFont.truetype(str(glyphs.font_paths()[face]), 38, layout_engine=ImageFont.Layout.BASIC)
    rng = np.random.default_rng([0, point, face])
    again = glyphs.degrade(glyphs.render_clean(point, font), rng.random() ** 2, rng)
    assert np.array_equal(np.asarray(split.images[face].convert("L")), again), "the image is degraded by what is kept"


def test_an_unwritable_cache_does_not_stop_anyone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("IDML_ZOO_CACHE", str(tmp_path / "file" / "cache"))
    assert len(glyphs.load_glyphs(2).train) == 24


def test_impossible_subsets_and_missing_fonts_are_refused(monkeypatch):
    for count in (1, 1149):
        with pytest.raises(DataError, match="a subset takes 2 to 1148"):
            glyphs.load_glyphs(count)
    glyphs.font_paths.cache_clear()
    monkeypatch.setattr(glyphs, "FACES", ("DejaVuNothing",))
    with pytest.raises(DataError, match=r"ships no DejaVuNothing.ttf"):
        glyphs.font_paths()
    glyphs.font_paths.cache_clear()
