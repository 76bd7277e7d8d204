"""The benchmarks, one record each. To add one: a loader, and a record here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from idml_zoo.data.benchmark import Archive, Benchmark, table_benchmark
from idml_zoo.registry import benchmarks

_CUB_URL = "https://data.caltech.edu/records/65de6-vp158"
_SOP_URL = "https://cvgl.stanford.edu/projects/lifted_struct/"
# the copy that the authors' repository rksltnl/Deep-Metric-Learning-CVPR16 links to; their FTP server is gone
_SOP_FILE = (
    "https://drive.usercontent.google.com/download"
    "?id=1TclrpQOF_ullUP99wk_gjGN8pKvtErG8&export=download&authuser=0&confirm=t"
)
_CUB_OFFICIAL = "CUB's official train_test_split.txt (5,994 / 5,794), which shares classes: another split"
_CUB_2010 = "the 2010 edition (6,033 images); its benchmark here is cub2010"
_CARS_HALVES = "Cars196's own train/test halves (8,144 / 8,041), which share classes: another split"
_CARS_HALF = "the official training half alone (8,144 images); its benchmark here is cars196_half"
_INSHOP_URL = "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html"


def _lazily(module: str, function: str) -> Callable[[Path], Any]:
    """A loader whose module (and numpy with it) is imported when the benchmark is loaded."""
    return lambda root: getattr(importlib.import_module(f"idml_zoo.data.sets.{module}"), function)(root)


def _glyphs(classes: int | None) -> Callable[[Path], Any]:
    return lambda root: importlib.import_module("idml_zoo.data.sets.glyphs").load_glyphs(classes)


_GLYPH_TRANSFORM = {
    "image_size": 64,
    "crop_fraction": 1.0,
    "scale": (0.5, 1.0),
    "flip": False,
    "interpolation": "bilinear",
}
_RESEARCH = "the images are their owners', given out for non-commercial research and education only"
_FONTS = "rendered from the free DejaVu fonts (Bitstream Vera licence)"
_GLYPH_NOTE = "rendered from the DejaVu fonts with degradations of known severity; needs no download"
_NOT_COMPARABLE = "**Not comparable with the paper's tables.** "

for _benchmark in (
    Benchmark(
        "cub",
        "CUB-200-2011",
        _lazily("cub", "load_cub"),
        counts=(100, 5864, 100, 5924),
        remedy=f"Get CUB_200_2011.tgz from {_CUB_URL} and extract it under the data root, "
        "or run `idml-zoo data prepare cub --download`.",
        archives=(
            Archive("CUB_200_2011.tgz", f"{_CUB_URL}/files/CUB_200_2011.tgz", md5="97eceeb196236b17998738112f37df78"),
        ),
        classes=("0-99", "100-199"),
        licence=_RESEARCH,
        lookalikes={
            5994: _CUB_OFFICIAL,
            5794: _CUB_OFFICIAL,
            2990: _CUB_2010,
            3043: _CUB_2010,
        },
    ),
    Benchmark(
        "cars196",
        "Cars196",
        _lazily("cars196", "load_cars196"),
        counts=(98, 8054, 98, 8131),
        remedy="Put cars_annos.mat and the folder car_ims under the data root, or the devkit with cars_train and "
        "cars_test; the official links are dead, so it has to be a copy of yours.",
        archives=(
            Archive("car_ims.tgz", None, md5="d5c8f0aa497503f355e17dc7886c3f14"),
            Archive("cars_annos.mat", None, md5="b407c6086d669747186bd1d764ff9dbc"),
        ),
        classes=("0-97", "98-195"),
        licence=_RESEARCH,
        lookalikes={
            8144: _CARS_HALVES,
            8041: _CARS_HALVES,
            4052: _CARS_HALF,
            4092: _CARS_HALF,
        },
    ),
    Benchmark(
        "sop",
        "Stanford Online Products",
        _lazily("sop", "load_sop"),
        ks=(1, 10, 100, 1000),
        counts=(11318, 59551, 11316, 60502),
        remedy=f"Get Stanford_Online_Products.zip from {_SOP_URL} and extract it under the data root, "
        "or run `idml-zoo data prepare sop --download`.",
        archives=(Archive("Stanford_Online_Products.zip", _SOP_FILE, md5="7f73d41a2f44250d4779881525aea32e"),),
        classes=("0-11317", "11318-22633"),
        licence="photographs of products from eBay, collected for research; no licence is stated",
    ),
    Benchmark(
        "inshop",
        "In-Shop Clothes",
        _lazily("inshop", "load_inshop"),
        ks=(1, 10, 20, 30, 40, 50),
        counts=(3997, 25882, 3985, 26830),
        queries=14218,
        licence="DeepFashion's agreement: non-commercial research only",
        note="14,218 queries are searched in a gallery of 12,612 images; clustering is over both",
        remedy=f"Ask for access at {_INSHOP_URL} and put img/ and list_eval_partition.txt under the data root.",
    ),
    Benchmark(
        "glyphs",
        "Glyphs",
        _glyphs(None),
        counts=(1148, 13776, 1149, 13788),
        transform=_GLYPH_TRANSFORM,
        note=_GLYPH_NOTE,
        embedded=True,
        licence=_FONTS,
        weights_licence="apache-2.0",
        remedy="The fonts are not those of matplotlib 3.10 and 3.11; install one of these.",
    ),
    Benchmark(
        "glyphs_subset",
        "Glyphs, 200 + 200 classes",
        _glyphs(200),
        counts=(200, 2400, 200, 2400),
        transform=_GLYPH_TRANSFORM,
        note="the quickstart's part of glyphs: its first 200 training and first 200 test classes; " + _GLYPH_NOTE,
        embedded=True,
        licence=_FONTS,
        weights_licence="apache-2.0",
    ),
    table_benchmark(
        "cub2010",
        "cub200_2010.parquet",
        "0-99",
        "100-199",
        title="Caltech-UCSD Birds 200 (2010), cropped",
        counts=(100, 2990, 100, 3043),
        remedy="This table is not given out: make cub200_2010.parquet, with columns image and label, from the archive "
        "of Caltech-UCSD Birds 200 (2010), classes in its order, each image cropped to the bird's box, 224 px",
        licence=_RESEARCH,
        note=_NOT_COMPARABLE
        + "The 2010 edition: the species of CUB-200-2011, half its images, 224 px crops around the bird",
    ),
    table_benchmark(
        "cars196_half",
        ("cars196_train_half_classes_000_097.parquet", "cars196_train_half_classes_098_195.parquet"),
        "0-97",
        "98-195",
        title="Cars196, official training half only, cropped",
        counts=(98, 4052, 98, 4092),
        remedy="These tables are not given out: make them, with columns image and label, from the training half of "
        "Stanford Cars, classes in its order, each image cropped to the car's box, shorter side 224 px",
        licence=_RESEARCH,
        note=_NOT_COMPARABLE + "Half the images of Cars196, cropped to the official box",
    ),
    table_benchmark(
        "omniglot",
        "omniglot.parquet",
        "0-963",
        "964-1622",
        title="Omniglot",
        counts=(964, 19280, 659, 13180),
        remedy="Make omniglot.parquet, with columns image and label, from images_background (964 characters) and "
        "images_evaluation (659) of github.com/brendenlake/omniglot, alphabets and characters sorted by name",
        transform={"flip": False, "scale": (0.5, 1.0), "crop_fraction": 1.0},
        licence="MIT",
        weights_licence="mit",
        note="964 background characters train, 659 test; 20 images a class",
    ),
):
    benchmarks.add(_benchmark.name, _benchmark)
