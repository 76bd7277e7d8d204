"""What counts as an image, by its bytes."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from idml_zoo.data.errors import DataError


def test_what_counts_as_an_image(tmp_path):
    """Each kind of file a collection may hold: what decodes, what is named as broken."""
    from idml_zoo.data.images import FileImages

    def save(name, image, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    photo = Image.effect_mandelbrot((64, 48), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(48, 0)
    palette = photo.convert("P")
    turned = photo.getexif()
    turned[0x0112] = 6
    good = {
        "cmyk.jpg": save("cmyk.jpg", photo.convert("CMYK")),
        "palette.png": save("palette.png", palette),
        "transparent.png": save("transparent.png", palette, transparency=b"\x00" * 128),
        "grey16.png": save("grey16.png", Image.fromarray(ramp)),
        "grey16.tif": save("grey16.tif", Image.fromarray(ramp)),
        "rotated.jpg": save("rotated.jpg", photo, exif=turned),
        "bilevel.png": save("bilevel.png", photo.convert("1")),
        "alpha.png": save("alpha.png", photo.convert("RGBA")),
        "animated.gif": save("animated.gif", photo, save_all=True, append_images=[photo.rotate(90)]),
        "photo.webp": save("photo.webp", photo),
        "tall.png": save("tall.png", Image.new("RGB", (2, 200))),
    }
    images = FileImages(list(good.values()))
    decoded = {k: images[i] for i, k in enumerate(good)}
    assert all(i.mode == "RGB" for i in decoded.values())
    assert decoded["rotated.jpg"].size == (48, 64) and decoded["cmyk.jpg"].size == (64, 48)
    for name in ("grey16.png", "grey16.tif"):
        assert np.abs(np.asarray(decoded[name])[0, :, 0] - ramp[0] / 257).max() <= 1, "scaled, not clipped to white"
    drift = np.abs(np.asarray(decoded["cmyk.jpg"], int) - np.asarray(photo, int)).mean()
    assert drift < 12, "CMYK is not inverted"

    jpeg = io.BytesIO()
    photo.save(jpeg, "JPEG")
    whole = jpeg.getvalue()
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    bad = {
        "truncated.jpg": whole[: len(whole) // 2],
        "cut in the header.jpg": whole[:30],
        "empty.jpg": b"",
        "page.jpg": b"<!doctype html><title>404</title>",
        "text.png": b"not an image",
        "huge.png": bomb.getvalue(),
        "one pixel.gif": b"GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,"
        b"\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;",
        "zeros.jpg": bytes(5000),
        "bad crc.png": _flip(encode(photo, "PNG"), 60),
        "no pixels.png": encode(photo, "PNG")[:60],
        "broken tiff.tif": encode(photo, "TIFF")[:200],
        "broken webp.webp": encode(photo, "WEBP")[:80],
        "broken gif.gif": encode(palette, "GIF")[:40],
        "float.tif": encode(Image.new("F", (9, 9)), "TIFF"),
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name} cannot be read \(.+\); repair it, or remove it and its label"):
            FileImages([tmp_path / name])[0]
    (tmp_path / "folder.jpg").mkdir()
    for name in ("folder.jpg", "gone.jpg"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            FileImages([tmp_path / name])[0]


def encode(image, kind):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def test_a_file_that_may_not_be_read(tmp_path):
    from idml_zoo.data.images import FileImages

    path = tmp_path / "secret.png"
    Image.new("RGB", (9, 9)).save(path)
    path.chmod(0)
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    with pytest.raises(DataError, match=r"secret.png cannot be read"):
        FileImages([path])[0]
