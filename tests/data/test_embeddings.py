import logging
import pickle

import pytest
import torch
from datasets import Image
from PIL import Image as PILImage

from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.images import to_rgb


class Counting:
    """Passes everything on to a real scorer and counts what it is asked to embed."""

    def __init__(self, scorer):
        self.scorer, self.num_images, self.texts = scorer, 0, []

    def __getattr__(self, name):
        return getattr(self.scorer, name)

    def encode_images(self, pixel_values):
        self.num_images += len(pixel_values)
        return self.scorer.encode_images(pixel_values)

    def encode_texts(self, texts, batch_size=256):
        self.texts += texts
        return self.scorer.encode_texts(texts, batch_size)


@pytest.fixture
def dataset(picture, rows_to_dataset):
    captions = [["A dog.", "A cat."], ["A cat."], ["A bird.", "Birds fly.", "A dog."]]
    return rows_to_dataset([(picture(f"{i}.png", seed=i), each, f"id{i}") for i, each in enumerate(captions)])


def test_embeddings_are_those_of_the_scorer_row_by_row(dataset, scorer):
    embedded, embeddings = embed_dataset(dataset, scorer, batch_size=2)
    assert embedded["row"][:] == [0, 1, 2]
    assert embedded.column_names == ["image", "captions", "image_id", "row"]
    assert embeddings.caption_offsets.tolist() == [0, 2, 3, 6]
    assert embeddings.image_embeds.shape == (3, 16)
    assert embeddings.image_embeds.dtype == embeddings.caption_embeds.dtype == torch.float32
    for row in embedded:
        pixels = scorer.transform(to_rgb(row["image"]))[None]
        torch.testing.assert_close(embeddings.image_embeds[row["row"]], scorer.encode_images(pixels)[0])
        torch.testing.assert_close(embeddings.captions_of(row["row"]), scorer.encode_texts(row["captions"]))
    torch.testing.assert_close(embeddings.image_embeds.norm(dim=1), torch.ones(3))


def test_each_distinct_text_and_each_image_is_embedded_once(dataset, scorer):
    counting = Counting(scorer)
    embed_dataset(dataset, counting)
    assert counting.num_images == 3
    assert counting.texts == ["A dog.", "A cat.", "A bird.", "Birds fly."]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_numbers_go_on_as_if_nothing_had_been(dataset, scorer, num_workers):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    _, embeddings = embed_dataset(dataset, scorer, batch_size=1, num_workers=num_workers)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(embeddings.image_embeds, embed_dataset(dataset, scorer, batch_size=1)[1].image_embeds)


@pytest.mark.parametrize("cached", [False, True])
def test_pictures_of_every_mode_are_embedded_and_losses_are_told(tmp_path, scorer, rows_to_dataset, caplog, cached):
    for mode, kind in [("L", "png"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png"), ("I;16", "png"), ("1", "png")]:
        PILImage.new(mode, (2, 2), 999 if mode == "I;16" else 0).save(tmp_path / f"{mode}.{kind}")
    rows = [(path, ["A dot."], path.stem) for path in sorted(tmp_path.glob("*.*"))]
    assert len(rows) == 6
    for _ in range(2):
        caplog.clear()
        cache = tmp_path / "cache" if cached else None
        embedded, embeddings = embed_dataset(rows_to_dataset(rows), scorer, cache)
        assert len(embedded) == len(embeddings) == 6
        # A cached result says it again.
        (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
        for part in ("1 x transparent image", "('RGBA')", "1 x grey image of more than 8 bits", "('I;16')"):
            assert part in record.getMessage()


@pytest.fixture
def broken_dataset(picture, rows_to_dataset, tmp_path):
    """Five rows: the first is truncated, the third is gone, the fourth is no picture."""
    paths = [picture(f"{i}.png", seed=i, size=(64, 64)) for i in range(5)]
    rows = rows_to_dataset([(path, [f"Caption {i}."] * (i + 1), f"id{i}") for i, path in enumerate(paths)])
    paths[0].write_bytes(paths[0].read_bytes()[:5000])
    paths[2].unlink()
    paths[3].write_text("no picture")
    return rows


@pytest.mark.parametrize("cached", [False, True])
def test_undecodable_images_are_dropped_and_named(broken_dataset, scorer, tmp_path, caplog, cached):
    for _ in range(2):
        caplog.clear()
        embedded, embeddings = embed_dataset(broken_dataset, scorer, tmp_path / "c" if cached else None, batch_size=2)
        assert embedded["image_id"][:] == ["id1", "id4"]
        assert embedded["row"][:] == [0, 1]
        assert embeddings.caption_offsets.tolist() == [0, 2, 7]
        near = {"atol": 5e-4, "rtol": 0} if cached else {}  # the cache is of half precision
        torch.testing.assert_close(embeddings.captions_of(1)[0], scorer.encode_texts(["Caption 4."])[0], **near)
        pixels = scorer.transform(to_rgb(embedded[1]["image"]))
        torch.testing.assert_close(embeddings.images(torch.tensor([1])), scorer.encode_images(pixels[None]), **near)
        # A cached result says it again.
        (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert "3 x undecodable image" in record.getMessage()
        assert all(name in record.getMessage() for name in ("id0", "id2", "id3", "0.png", "2.png", "3.png"))
    with pytest.raises(ValueError, match="undecodable image.*id0"):
        embed_dataset(broken_dataset, scorer, cache_dir=tmp_path / "c" if cached else None, strict=True)


def test_no_decodable_image_at_all(broken_dataset, scorer):
    with pytest.raises(ValueError, match="None of the 2 images can be decoded: 2 x undecodable image"):
        embed_dataset(broken_dataset.select([0, 2]), scorer)


def test_decompression_bomb_is_a_named_skip(dataset, scorer, tmp_path, picture, rows_to_dataset, caplog, monkeypatch):
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 3000)
    rows = [(picture("small.png"), ["a"], "small"), (picture("bomb.png", size=(70, 70)), ["b"], "bomb")]
    embedded, _ = embed_dataset(rows_to_dataset(rows), scorer)
    assert embedded["image_id"][:] == ["small"]
    assert "bomb" in caplog.text
    assert "decompression bomb" in caplog.text


def test_cache_is_one_folder_and_is_found_again(dataset, scorer, tmp_path):
    cache = tmp_path / "deep" / "cache"
    first, expected = embed_dataset(dataset, scorer, cache)
    (folder,) = cache.iterdir()
    assert expected.folder == folder
    counting = Counting(scorer)
    again, found = embed_dataset(dataset, counting, cache)
    assert counting.num_images == 0
    assert not counting.texts
    assert again["row"][:] == first["row"][:]
    for name in ("image_embeds", "caption_embeds", "caption_offsets"):
        assert torch.equal(getattr(found, name), getattr(expected, name))


def test_cache_holds_what_is_computed_without_one(dataset, scorer, tmp_path):
    _, cached = embed_dataset(dataset, scorer, tmp_path)
    _, fresh = embed_dataset(dataset, scorer)
    assert cached.image_embeds.dtype == torch.float16 and fresh.image_embeds.dtype == torch.float32
    assert torch.equal(cached.image_embeds, fresh.image_embeds.half())
    assert torch.equal(cached.caption_embeds, fresh.caption_embeds.half())
    assert torch.equal(cached.caption_offsets, fresh.caption_offsets)


def test_cache_is_keyed_by_data_scorer_and_files(dataset, scorer, tmp_path, picture):
    def num_embedded(dataset, **other):
        counting = Counting(scorer)
        vars(counting).update(other)
        embed_dataset(dataset, counting, tmp_path / "cache")
        return counting.num_images

    assert num_embedded(dataset) == 3
    assert num_embedded(dataset) == 0
    assert num_embedded(dataset, fingerprint="another") == 3
    assert num_embedded(dataset.select([2, 0])) == 2
    captions = [["Another caption."], ["A cat."], ["A bird."]]
    assert num_embedded(dataset.remove_columns("captions").add_column("captions", captions)) == 3
    picture("1.png", seed=99)  # the same path, another picture
    assert num_embedded(dataset) == 3


@pytest.mark.parametrize("name", ["image_embeds.npy", "caption_offsets.npy", "manifest.json"])
def test_a_broken_cache_is_put_aside_and_computed_anew(dataset, scorer, tmp_path, caplog, name):
    _, expected = embed_dataset(dataset, scorer, tmp_path / "cache")
    file = expected.folder / name
    file.write_bytes(file.read_bytes()[:-10])
    _, found = embed_dataset(dataset, scorer, tmp_path / "cache")
    _, again = embed_dataset(dataset, scorer)
    assert torch.equal(found.image_embeds, again.image_embeds.half())
    assert "computed again" in caplog.text
    assert sorted(path.name.split(".")[1:] for path in (tmp_path / "cache").iterdir())[0] == []
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_failed_write_leaves_no_half_part(dataset, scorer, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        embed_dataset(dataset, scorer, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_images_stored_as_bytes(scorer, tmp_path, dataset):
    stored = dataset.map(lambda row: row, features=dataset.features)
    embedded_bytes = stored.cast_column("image", Image(decode=False)).map(
        lambda row: {"image": {"bytes": open(row["image"]["path"], "rb").read(), "path": None}}  # noqa: SIM115
    )
    from_bytes = embedded_bytes.cast_column("image", Image())
    _, expected = embed_dataset(dataset, scorer)
    _, found = embed_dataset(from_bytes, scorer, tmp_path / "cache")
    assert torch.equal(found.image_embeds, expected.image_embeds.half())


def test_embedding_again_renumbers_the_rows(dataset, scorer):
    embedded, _ = embed_dataset(dataset, scorer)
    again, embeddings = embed_dataset(embedded.select([2, 0]), scorer)
    assert again["row"][:] == [0, 1]
    assert embeddings.caption_offsets.tolist() == [0, 3, 5]


def test_wrong_columns_and_no_rows(dataset, scorer):
    for wrong, message in [
        (dataset.remove_columns("captions"), "dataset has no column 'captions'"),
        (dataset.select([]), "dataset has no rows"),
        (dataset.remove_columns("image").add_column("image", [1.5] * 3), "column 'image' should contain images"),
    ]:
        with pytest.raises(ValueError, match=message):
            embed_dataset(wrong, scorer)


def test_neighbours_of_other_rows_are_refused_before_they_are_counted_anew(dataset, scorer):
    mined = embed_dataset(dataset, scorer)[0].add_column("neighbours", [[1], [2], [0]])
    assert embed_dataset(mined, scorer)[0]["neighbours"][:] == [[1], [2], [0]]
    with pytest.raises(ValueError, match="selected or reordered since the column 'neighbours' was mined"):
        embed_dataset(mined.select([2, 1, 0]), scorer)


def test_neighbours_do_not_outlive_the_rows_that_they_count(broken_dataset, scorer):
    with pytest.raises(ValueError, match="3 of 5 rows are dropped, but the column 'neighbours' refers to all of them"):
        embed_dataset(broken_dataset.add_column("neighbours", [[1], [0], [1], [1], [1]]), scorer)


def test_scorer_that_gives_nan(dataset, scorer):
    counting = Counting(scorer)
    counting.encode_images = lambda pixel_values: torch.full((len(pixel_values), 16), torch.nan)
    with pytest.raises(ValueError, match="NaN or infinity"):
        embed_dataset(dataset, counting)


def test_save_and_load(tmp_path):
    embeddings = CaptionEmbeddings(torch.eye(4)[:2], torch.eye(4)[1:], torch.tensor([0, 1, 3]))
    embeddings.save(tmp_path / "e")
    loaded = CaptionEmbeddings.load(tmp_path / "e")
    assert loaded.image_embeds.dtype == torch.float16 and len(loaded) == 2
    assert torch.equal(loaded.captions_of(1), torch.eye(4)[2:])
    assert loaded.captions_of(1).dtype == torch.float32
    sent = pickle.loads(pickle.dumps(loaded))
    assert sent.folder == tmp_path / "e" and torch.equal(sent.caption_embeds, loaded.caption_embeds)
    assert len(pickle.dumps(loaded)) < 500  # as its folder, not as its content
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "image_embeds.npy").write_bytes(b"\x93NUMPY nothing")
    with pytest.raises(ValueError, match="no' contains no caption embeddings"):
        CaptionEmbeddings.load(tmp_path / "no")


def test_rounding_to_half_precision_leaves_the_length_at_one(tmp_path):
    fresh = torch.nn.functional.normalize(torch.randn(50, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    CaptionEmbeddings(fresh, fresh[:0], torch.zeros(51, dtype=torch.int64)).save(tmp_path)
    loaded = CaptionEmbeddings.load(tmp_path)
    rows = torch.tensor([[3, 4], [49, 3]])
    torch.testing.assert_close(loaded.images(rows), fresh[rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(loaded.images(rows).norm(dim=-1), torch.ones(2, 2), atol=1e-6, rtol=0)
    assert loaded.captions(torch.empty(0, dtype=torch.int64)).shape == (0, 512)


@pytest.mark.parametrize("offsets", [[0, 1], [0, 1, 2], [1, 2, 3], [0, 1, 2, 3]])
def test_offsets_that_do_not_fit(offsets):
    with pytest.raises(ValueError, match="do not fit 2 images and 3 captions"):
        CaptionEmbeddings(torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor(offsets))


def _header(description: str) -> bytes:
    text = description.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _npy(shape: str, kind: str = "<f4") -> bytes:
    return _header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}") + b"\0" * 64


@pytest.mark.parametrize(
    "content",
    [
        _npy("(4, 1000000000000)"),
        _npy("(99999999999999999999999, 4)"),
        _npy("(-4, 4)"),
        _npy("(4,)"),
        _npy("(4, 4)", "|O"),
        _npy("(4, 4)", "<U1"),
        _npy("(4, 4)", ">f4"),
        _header("(" * 100),
        _header("{'descr': " + "9" * 90 + "}"),
        pickle.dumps(list("abc")),
        b"PK\x03\x04" + b"\0" * 100,
        b"",
    ],
)
def test_an_array_that_strangers_wrote_is_refused_by_name(tmp_path, content):
    CaptionEmbeddings(torch.eye(4), torch.eye(4), torch.arange(5)).save(tmp_path)
    (tmp_path / "image_embeds.npy").write_bytes(content)
    with pytest.raises(ValueError, match="contains no caption embeddings: "):
        CaptionEmbeddings.load(tmp_path)
