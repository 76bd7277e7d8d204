"""glyphs: the embedded benchmark, rendered from the DejaVu fonts that matplotlib ships.

One class for each code point of the Unicode categories L, N, S, P that all 12 text faces cover; one image per face,
grey 64×64. Each image is degraded by an amount that is a function of (seed, code point, face) alone, so that some are
truly ambiguous and it is known which. Everything here is a function of the fonts: no file is needed but the cache.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import unicodedata
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

import numpy as np

from idml_zoo.data.errors import DataError
from idml_zoo.data.folders import cache_folder
from idml_zoo.data.split import Split, Splits

SIZE = 64  # pixels
SEED = 0
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
)
_RECIPE = "1"  # raise when rendering or degradation changes: it is part of the cache's key


@lru_cache(maxsize=1)
def font_paths() -> tuple[Path, ...]:
    """The 12 font files; DataError if matplotlib no longer ships one."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    paths = tuple(folder / f"{face}.ttf" for face in FACES)
    missing = [p.name for p in paths if not p.is_file()]
    if missing:
        raise DataError(
            f"matplotlib {matplotlib.__version__} ships no {', '.join(missing)} in {folder}; reinstall matplotlib"
        )
    return paths


@lru_cache(maxsize=1)
def code_points() -> tuple[int, ...]:
    """Code points of categories L, N, S, P in all 12 faces, in a fixed shuffled order.

    The order is by sha256, so that no random number generator's stream has to stay the same for ever.
    """
    from matplotlib.ft2font import FT2Font

    covered = set.intersection(*(set(FT2Font(str(p)).get_charmap()) for p in font_paths()))
    kept = [c for c in covered if unicodedata.category(chr(c))[0] in "LNSP"]
    return tuple(sorted(kept, key=lambda c: hashlib.sha256(f"idml_zoo/glyphs/{c}".encode()).digest()))


@lru_cache(maxsize=1)
def twin_groups() -> dict[int, int]:
    """Code point to group number, for those whose outlines equal another's in all 12 faces.

    B, Greek Beta and Cyrillic Ve are one group. Inside a group the label cannot be known from the image. Numbers
    follow the smallest code point of the group.
    """
    from matplotlib.ft2font import FT2Font, LoadFlags

    outlines: dict[int, list[bytes]] = defaultdict(list)
    for path in font_paths():
        font = FT2Font(str(path))
        for c in code_points():
            font.load_char(c, flags=LoadFlags.NO_SCALE)
            vertices, codes = font.get_path()
            outlines[c].append(hashlib.sha256(vertices.tobytes() + b"|" + codes.tobytes()).digest())
    groups: dict[bytes, list[int]] = defaultdict(list)
    for c in sorted(outlines):
        groups[b"".join(outlines[c])].append(c)
    return {c: g for g, twins in enumerate(t for t in groups.values() if len(t) > 1) for c in twins}


def _severity(code_point: int, face: int, seed: int) -> tuple[float, np.random.Generator]:
    """An image's severity, and the generator that its degradation goes on with."""
    rng = np.random.default_rng([seed, code_point, face])
    return float(rng.random() ** 2), rng


def severity(code_point: int, face: int, seed: int = SEED) -> float:
    """How much an image is degraded, in [0, 1); half the images lie below 0.25."""
    return _severity(code_point, face, seed)[0]


def degrade(clean: np.ndarray, amount: float, rng: np.random.Generator) -> np.ndarray:
    """``(64, 64)`` uint8 with an affine map, blur, occlusion and noise, all growing with ``amount`` in [0, 1]."""
    from PIL import Image, ImageFilter

    angle, shear, scale, dx, dy = rng.uniform(-1, 1, 5) * amount * [0.6, 0.35, 0.25, 8, 8]
    cos, sin, zoom, middle = np.cos(angle), np.sin(angle), 1 + scale, SIZE / 2
    a, b, d, e = cos * zoom, (shear * cos - sin) * zoom, sin * zoom, (shear * sin + cos) * zoom
    matrix = (a, b, middle - a * middle - b * middle + dx, d, e, middle - d * middle - e * middle + dy)
    image = Image.fromarray(clean).transform((SIZE, SIZE), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    image = image.filter(ImageFilter.GaussianBlur(3.0 * amount * rng.random()))
    out: np.ndarray = np.asarray(image, dtype=np.float32)
    side = int(SIZE * 0.55 * amount * rng.random() ** 0.5)
    if side:
        top, left = rng.integers(0, SIZE - side, 2)
        out = out.copy()
        out[top : top + side, left : left + side] = 255 * rng.random()
    out = out + rng.normal(0, 90 * amount * rng.random(), out.shape)
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def render_clean(code_point: int, font: object) -> np.ndarray:
    """White on black, ``(64, 64)`` uint8, on the font's base line and centred across."""
    from PIL import Image, ImageDraw

    image = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(image).text((SIZE // 2, 45), chr(code_point), fill=255, font=font, anchor="ms")  # type: ignore[arg-type]
    return np.asarray(image)


def _render(points: tuple[int, ...], seed: int) -> np.ndarray:
    from PIL import ImageFont
    from rich.progress import track

    fonts = [ImageFont.truetype(str(p), 38, layout_engine=ImageFont.Layout.BASIC) for p in font_paths()]
    images = np.empty((len(points), len(fonts), SIZE, SIZE), dtype=np.uint8)
    for i, c in enumerate(track(points, description="rendering glyphs", transient=True)):
        for face, font in enumerate(fonts):
            images[i, face] = degrade(render_clean(c, font), *_severity(c, face, seed))
    return images.reshape(-1, SIZE, SIZE)


def _cached(points: tuple[int, ...], seed: int) -> np.ndarray:
    """Rendered once for a key of fonts, code points, seed and recipe. Written whole or not at all."""
    key = hashlib.sha256(f"{_RECIPE}/{seed}/{SIZE}/{points}".encode())
    for path in font_paths():
        key.update(path.read_bytes())
    file = cache_folder() / f"glyphs-{key.hexdigest()[:16]}.npy"
    shape = (len(points) * len(FACES), SIZE, SIZE)
    if file.exists():
        try:
            images = np.load(file, mmap_mode="r")
            if images.shape == shape:
                return images
        except (ValueError, EOFError, OSError):
            pass  # a damaged cache is rendered again
    images = _render(points, seed)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
            np.save(part, images)
        os.chmod(part.name, 0o644)  # a cache may serve several users
        os.replace(part.name, file)
    except OSError:
        return images  # no cache folder to write to: the images are there all the same
    return np.load(file, mmap_mode="r")


def _split(points: tuple[int, ...], seed: int) -> Split:
    from idml_zoo.data.images import ArrayImages

    twins = twin_groups()
    pairs = [(c, face) for c in points for face in range(len(FACES))]
    names = [f"U+{c:04X} in {FACES[f]}" for c, f in pairs]
    return Split(
        ArrayImages(_cached(points, seed), names),
        np.repeat(np.arange(len(points)), len(FACES)),
        tuple(f"U+{c:04X} {unicodedata.name(chr(c), '')}".strip() for c in points),
        {
            "severity": np.array([severity(c, f, seed) for c, f in pairs]),
            "twin_group": np.array([twins.get(c, -1) for c, _ in pairs]),
            "face": np.array([f for _, f in pairs]),
        },
    )


def load_glyphs(classes: int | None = None, seed: int = SEED) -> Splits:
    """The first half of the shuffled code points trains, the rest tests.

    Args:
        classes: use only the first ``classes`` of each half; None for all.
        seed: of the degradations.

    The extras of each split: ``severity`` in [0, 1), ``twin_group`` (−1 for a unique outline), ``face`` (0–11).
    """
    points = code_points()
    half = len(points) // 2
    if classes is not None and not 2 <= classes <= half:
        raise DataError(
            f"glyphs has {half} classes in its smaller half; a subset takes 2 to {half} of each, got {classes}"
        )
    train, test = points[:half][:classes], points[half:][:classes]
    return Splits(_split(train, seed), _split(test, seed))
