import io
import warnings
import weakref
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, features
from transformers import ViTImageProcessor, ViTImageProcessorFast

from hf_distinct.data.images import (
    DEEP,
    MANY,
    MAX_ASPECT_RATIO,
    SEE_THROUGH,
    ImageError,
    decode_image,
    decode_images,
    decode_pixels,
    lost_in_rgb,
    picture_files,
    to_pixel_values,
    to_rgb,
    warn_of_losses,
)


def pixel(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def whole(image: Image.Image) -> Image.Image:
    return image


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
        ("RGBA", (255, 0, 0, 128), (255, 0, 0)),  # transparency is dropped, as transformers' load_image does it
        ("RGBA", (0, 0, 0, 0), (0, 0, 0)),
        ("LA", (0, 0), (0, 0, 0)),
        ("LA", (50, 255), (50, 50, 50)),
        ("RGBa", (0, 0, 0, 0), (0, 0, 0)),
        ("PA", (0, 0), (0, 0, 0)),
        ("I;16", 200, (200, 200, 200)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 300, (255, 255, 255)),  # cut off
        ("I;16B", 128 * 257, (255, 255, 255)),
        ("I", 200, (200, 200, 200)),
        ("I", 1_000_000, (255, 255, 255)),
        ("I", -5, (0, 0, 0)),
        ("F", 0.5, (0, 0, 0)),
        ("F", 200.0, (200, 200, 200)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (5, 3)])
def test_every_mode_becomes_rgb(mode, colour, expected, size):
    result = to_rgb(Image.new(mode, size, colour))
    assert result.size == size
    assert pixel(result) == expected


def painted(mode, first, second):
    """Two pixels."""
    image = Image.new(mode, (2, 1), first)
    image.putpixel((1, 0), second)
    return image


@pytest.mark.parametrize(
    ("image", "lost"),
    [
        (painted("RGBA", (255, 0, 0, 255), (255, 0, 0, 254)), SEE_THROUGH),
        (painted("RGBA", (255, 0, 0, 255), (9, 9, 9, 255)), None),  # nothing of it is transparent
        (painted("LA", (50, 255), (50, 0)), SEE_THROUGH),
        (Image.new("La", (2, 1)), SEE_THROUGH),
        (painted("I;16", 0, 256), DEEP),
        (painted("I;16", 0, 255), None),
        (painted("I", -1, 5), DEEP),
        (painted("I", 3, 200), None),
        (painted("F", 0.0, 0.9), DEEP),  # fractions all of them: black
        (painted("F", 0.0, 255.5), DEEP),
        (painted("F", 3.0, float("nan")), None),
        (Image.new("F", (2, 1)), None),
        (Image.new("RGB", (2, 1)), None),
        (Image.new("CMYK", (2, 1)), None),
        (Image.new("1", (2, 1)), None),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_what_rgb_cannot_hold_is_known(image, lost):
    assert lost_in_rgb(image) == lost


def test_a_palette_with_a_transparent_entry_loses_it():
    image = Image.new("P", (2, 8))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    found = decode_images([encoded(image, transparency=1), encoded(image)], whole)
    assert found.losses == {0: SEE_THROUGH}
    assert [found.images[0].getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_seen(kind):
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (0, 255)]
    several = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    found = decode_images([several, encoded(frames[0], kind)], whole)
    assert [image.getpixel((0, 0)) for image in found.images] == [(0, 0, 0)] * 2
    assert found.losses == {0: MANY}


def test_a_whole_first_frame_is_enough():
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (30, 30, 3), dtype=np.uint8)) for i in range(4)]
    content = encoded(noise[0], "GIF", save_all=True, append_images=noise[1:])["bytes"]
    for end in range(len(content) // 4 + 50, len(content) // 2, 7):  # somewhere in the second one
        assert decode_image({"bytes": content[:end], "path": None}).size == (30, 30)


def test_the_second_picture_of_a_phones_jpeg_is_not_missed():
    depth = Image.new("RGB", (8, 8))
    content = encoded(Image.new("RGB", (8, 8)), "MPO", save_all=True, append_images=[depth])
    assert Image.open(io.BytesIO(content["bytes"])).n_frames == 2
    assert not decode_images([content], whole).losses


def test_losses_are_told_in_one_warning(caplog):
    warn_of_losses("photos", [])
    assert not caplog.records
    warn_of_losses("photos", [("a.png", SEE_THROUGH), ("b.tif", DEEP), ("c.png", SEE_THROUGH)])
    (record,) = caplog.records
    for part in ("photos: ", "2 x transparent image", "('a.png', 'c.png')", "1 x grey image of more than 8 bits"):
        assert part in record.getMessage()


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: a reader must give 2 x 4
    content = encoded(image, "JPEG", exif=exif)
    assert decode_image(content).size == (2, 4)
    # A picture that was opened, and not turned, is the same picture.
    assert decode_image(Image.open(io.BytesIO(content["bytes"]))).size == (2, 4)


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
        with pytest.raises(ImageError, match="40 x 40 pixels are more than 1000.*raise PIL.Image.MAX_IMAGE_PIXELS"):
            decode_image(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"1600 pixels.*200 pixels.*raise PIL.Image.MAX_IMAGE_PIXELS"):
        decode_image(bomb)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # no limit
    assert decode_image(bomb).size == (40, 40)


def test_a_picture_that_is_open_but_not_decoded_is_refused_before_it_is(monkeypatch):
    opened = Image.open(io.BytesIO(encoded(Image.new("L", (40, 40)))["bytes"]))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="40 x 40 pixels are more than 1000"):
        decode_image(opened)
    assert opened.tile  # what there is to decode


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_formats_of_photographs_are_read(kind, tmp_path):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this installation of PIL cannot write AVIF")
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    assert decode_image(encoded(image, kind)).size == (16, 16)
    (tmp_path / f"a.{kind.lower()}").write_bytes(encoded(image, kind)["bytes"])
    assert picture_files(tmp_path) and decode_image({"path": str(picture_files(tmp_path)[0]), "bytes": None})


@pytest.mark.parametrize("kind", ["EPS", "SGI", "ICO", "JPEG2000"])
def test_decoders_that_nobody_needs_are_not_started(kind, tmp_path):
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this installation of PIL cannot write JPEG 2000")
    content = encoded(Image.new("RGB", (16, 16)), kind)
    with pytest.raises(ImageError, match=f"format {kind} is not supported. Convert the image to PNG or JPEG"):
        decode_image(content)
    (tmp_path / "a.png").write_bytes(content["bytes"])  # whatever its name says
    with pytest.raises(ImageError, match=rf"a\.png.*format {kind} is not supported"):
        decode_image({"path": str(tmp_path / "a.png"), "bytes": None})
    with pytest.raises(ImageError, match=f"format {kind} is not supported"):
        decode_image(Image.open(io.BytesIO(content["bytes"])))
    (tmp_path / f"a.{kind.lower()}").write_bytes(content["bytes"])
    assert [path.name for path in picture_files(tmp_path)] == ["a.png"]


def test_a_file_is_not_read_beyond_the_largest_picture(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_distinct.data.images.MAX_FETCHED_BYTES", 1000)
    (tmp_path / "endless").write_bytes(bytes(1001))
    with pytest.raises(ImageError, match="more than 1000 bytes, the maximum size of an image file"):
        decode_image({"path": f"file://{tmp_path / 'endless'}", "bytes": None})


def test_of_a_batch_one_picture_at_a_time_is_whole():
    alive: list[weakref.ref] = []

    def small(image: Image.Image) -> int:
        alive.append(weakref.ref(image))
        return sum(each() is not None for each in alive)

    # The one before is let go when the next one is bound in its place.
    assert max(decode_images([encoded(Image.new("RGB", (8, 8)))] * 6, small).images) <= 2


@pytest.mark.parametrize("fast", [False, True])
def test_alone_a_picture_has_the_pixels_that_it_has_in_a_batch(fast):
    generator = np.random.default_rng(0)
    images = [
        Image.fromarray(generator.integers(0, 255, (height, width, 3), dtype=np.uint8))
        for height, width in [(40, 60), (40, 60), (300, 200), (17, 224)]
    ]
    kind = ViTImageProcessorFast if fast else ViTImageProcessor
    processor = kind(size={"height": 32, "width": 32})
    alone = decode_pixels(images, processor).images
    assert torch.equal(torch.stack(alone), to_pixel_values(images, processor))


def test_extreme_shapes_are_refused():
    assert decode_image(Image.new("RGB", (2, 2 * MAX_ASPECT_RATIO))).size == (2, 2 * MAX_ASPECT_RATIO)
    for size in [(2 * MAX_ASPECT_RATIO + 1, 2), (1, 2 * MAX_ASPECT_RATIO)]:
        with pytest.raises(ImageError, match="one side is more than"):
            decode_image(encoded(Image.new("RGB", size)))


@pytest.mark.parametrize("size", [(1, 1), (9, 1), (3, 3), (9, 3)])
def test_a_height_that_image_processors_take_for_colours_is_refused(size):
    with pytest.raises(ImageError, match=f"{size[0]} x {size[1]} pixels: .* mistake a height of {size[1]} for colour"):
        decode_image(Image.new("RGB", size))


def test_several_pictures_tell_which_of_them_failed(tmp_path):
    good = Image.new("RGB", (4, 4))
    missing = {"path": str(tmp_path / "no.png"), "bytes": None}
    found = decode_images([good, None, missing, np.zeros((4, 4, 3)), good], whole)
    assert len(found.images) == 2 and list(found.failures) == [1, 2, 3]
    assert "no.png" in found.failures[2]
    assert "a ndarray is not an image: pass a path, or PIL.Image.fromarray(array)" in found.failures[3]


def test_paths_may_lead_into_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("in/a.png", encoded(Image.new("RGB", (4, 4), (1, 2, 3)))["bytes"])
    assert pixel(decode_image({"path": f"zip://in/a.png::{tmp_path}/photos.zip", "bytes": None})) == (1, 2, 3)
    with pytest.raises(ImageError, match="zip://in/b.png.* cannot be decoded"):
        decode_image({"path": f"zip://in/b.png::{tmp_path}/photos.zip", "bytes": None})


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
    with pytest.raises(ValueError, match=f"{tmp_path} contains no images: none of its 1 files"):
        picture_files(tmp_path)
    for nothing in (tmp_path / "a.txt", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=f"{nothing} is not a folder"):
            picture_files(nothing)
