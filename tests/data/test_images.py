import io
import warnings

import numpy as np
import pytest
from PIL import Image

from hf_distinct.data.images import MAX_ASPECT_RATIO, ImageError, decode_image, picture_files, to_rgb


def pixel(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),  # no cyan, all magenta and yellow: red
        # Half transparent red on white: 255 stays, 0 becomes 255 * (1 - 128/255) = 127.
        ("RGBA", (255, 0, 0, 128), (255, 127, 127)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (50, 255), (50, 50, 50)),
        ("La", (0, 0), (255, 255, 255)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 128 * 257, (128, 128, 128)),  # 16 bits hold 257 times the value of 8 bits
        ("I;16B", 128 * 257, (128, 128, 128)),
        ("I", 200, (200, 200, 200)),
        ("I", 128 * 257, (128, 128, 128)),
        ("I", 1_000_000, (255, 255, 255)),
        ("I", -5, (0, 0, 0)),
        ("F", 0.5, (128, 128, 128)),  # 127.5, rounded to even
        ("F", 200.0, (200, 200, 200)),
        ("F", float("nan"), (0, 0, 0)),
        ("F", float("inf"), (255, 255, 255)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_every_mode_becomes_rgb(mode, colour, expected, size):
    result = to_rgb(Image.new(mode, size, colour))
    assert result.size == size
    assert pixel(result) == expected


def test_palette_with_a_transparent_entry_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    result = to_rgb(decode_transparent(image, transparency=1))
    assert [result.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


def decode_transparent(image: Image.Image, transparency: int) -> Image.Image:
    reopened = Image.open(io.BytesIO(encoded(image, transparency=transparency)["bytes"]))
    assert reopened.mode == "P"
    return reopened


def test_rgb_is_returned_as_it_is():
    image = Image.new("RGB", (3, 3))
    assert to_rgb(image) is image


def test_sixteen_bit_file_is_scaled_not_clipped():
    ramp = Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16))
    assert np.asarray(decode_image(encoded(ramp)))[0, :, 0].tolist() == [0, 1, 255]


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: a reader must give 2 x 4
    assert decode_image(encoded(image, "JPEG", exif=exif)).size == (2, 4)


def test_file_is_named_and_bytes_win_over_path(tmp_path):
    with pytest.raises(ImageError, match=r"nothing\.png.*FileNotFoundError"):
        decode_image({"path": str(tmp_path / "nothing.png"), "bytes": None})
    good = encoded(Image.new("RGB", (2, 2), (1, 2, 3)))
    assert pixel(decode_image({**good, "path": "nothing.png"})) == (1, 2, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_truncated_files_are_one_kind_of_error(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(pixels), kind)["bytes"]
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image({"bytes": content[: len(content) // 2], "path": None})


@pytest.mark.parametrize(
    "value", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}, {"bytes": b"GIF"}]
)
def test_nothing_to_decode(value):
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode_image(value)


def test_decompression_bomb_is_refused_not_warned_about(monkeypatch):
    bomb = encoded(Image.new("L", (40, 40)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # PIL warns above it, and raises above twice of it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="DecompressionBombWarning"):
            decode_image(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="DecompressionBombError"):
        decode_image(bomb)


def test_extreme_shapes_are_refused():
    assert decode_image(Image.new("RGB", (MAX_ASPECT_RATIO, 1))).size == (MAX_ASPECT_RATIO, 1)
    for size in [(MAX_ASPECT_RATIO + 1, 1), (1, 2 * MAX_ASPECT_RATIO)]:
        with pytest.raises(ImageError, match="one side is more than"):
            decode_image(encoded(Image.new("RGB", size)))


def test_pictures_are_found_at_any_depth_by_the_ends_of_their_names(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "folder.png").mkdir()
    for name in ("z.png", "b/a.JPG", "b/c/a.tiff", "b/a.txt", "b/a.pdf", "png"):  # PIL writes PDF, but reads none
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in picture_files(tmp_path)] == [
        "b/a.JPG", "b/c/a.tiff", "z.png"
    ]  # fmt: skip


def test_a_folder_without_pictures_is_an_error_that_names_it(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=f"{tmp_path} holds no pictures: of 1 files, none"):
        picture_files(tmp_path)
    for nothing in (tmp_path / "a.txt", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"{nothing} is no folder"):
            picture_files(nothing)
