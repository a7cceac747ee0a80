import json
import multiprocessing
import os
import shutil

import published_forms
import pytest
import torch
from datasets import Dataset, Features, Image, Value, load_from_disk

from hf_distinct.data import embeddings as embeddings_module
from hf_distinct.data.caption_embeddings import EmbeddedRows
from hf_distinct.data.embedding_cache import EmbeddingCache, cache_name, cache_names
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.table import caption_features


class Counting:
    """Passes everything on to a real scorer and counts what it is asked to embed."""

    def __init__(self, scorer):
        self.scorer, self.num_images = scorer, 0

    def __getattr__(self, name):
        return getattr(self.scorer, name)

    def encode_images(self, pixel_values):
        self.num_images += len(pixel_values)
        return self.scorer.encode_images(pixel_values)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setitem(embeddings_module.PART_ROWS, torch.float16, 4)


@pytest.fixture
def dataset(tmp_path):
    """Ten pictures on disk, the sixth of which is broken."""
    rows = {"image": [], "captions": [], "image_id": []}
    for number, picture in enumerate(published_forms.jpegs(10)):
        path = tmp_path / "pictures" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture if number != 5 else picture[:300])
        rows["image"].append(str(path))
        rows["captions"].append([f"Picture {number}."] * (number % 3 + 1))
        rows["image_id"].append(f"id{number}")
    return Dataset.from_dict(rows, features=caption_features())


def test_parts_join_to_what_one_piece_gives(dataset, scorer, tmp_path):
    _, cached = embed_dataset(dataset, scorer, tmp_path / "cache", batch_size=4)
    _, fresh = embed_dataset(dataset, scorer, batch_size=4)
    assert len(cached) == 9
    assert torch.equal(cached.image_embeds, fresh.image_embeds.half())
    assert torch.equal(cached.caption_offsets, fresh.caption_offsets)
    torch.testing.assert_close(cached.caption_embeds.float(), fresh.caption_embeds, atol=5e-4, rtol=0)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [cached.folder.name]


def test_a_run_goes_on_where_it_was(dataset, scorer, tmp_path, monkeypatch):
    _, expected = embed_dataset(dataset, scorer, tmp_path / "undisturbed")
    written, write = [], EmbeddingCache.write_part

    def killed_at_the_second(self, number, rows):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        write(self, number, rows)

    monkeypatch.setattr(EmbeddingCache, "write_part", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        embed_dataset(dataset, scorer, tmp_path / "cache")
    assert written == [0, 1]
    written.clear()
    counting = Counting(scorer)
    _, found = embed_dataset(dataset, counting, tmp_path / "cache")
    assert written == [2] and counting.num_images == 2
    for name in ("image_embeds.npy", "caption_embeds.npy", "caption_offsets.npy", "manifest.json"):
        assert (found.folder / name).read_bytes() == (expected.folder / name).read_bytes()


def test_a_broken_part_is_computed_anew(dataset, scorer, tmp_path, caplog):
    _, expected = embed_dataset(dataset, scorer, tmp_path / "undisturbed")
    cache = EmbeddingCache(tmp_path / "cache", dataset, scorer, 4)
    cache.parts.folder.mkdir(parents=True)
    cache.parts.path(1).write_bytes(b"half of a part")
    _, found = embed_dataset(dataset, scorer, tmp_path / "cache")
    assert torch.equal(found.image_embeds, expected.image_embeds)
    assert "A part of the embeddings is computed again" in caplog.text


@pytest.mark.parametrize("name", ["image_embeds.npy", "caption_embeds.npy", "caption_offsets.npy"])
def test_bytes_that_changed_are_named_and_computed_anew(dataset, scorer, tmp_path, caplog, name):
    _, expected = embed_dataset(dataset, scorer, tmp_path / "undisturbed")
    _, damaged = embed_dataset(dataset, scorer, tmp_path / "cache")
    content = bytearray((damaged.folder / name).read_bytes())
    content[-3] ^= 1
    (damaged.folder / name).write_bytes(content)
    _, found = embed_dataset(dataset, scorer, tmp_path / "cache")
    assert f"{name} has changed since it was written" in caplog.text
    for array in ("image_embeds", "caption_embeds", "caption_offsets"):
        assert torch.equal(getattr(found, array), getattr(expected, array))


def test_a_disk_without_room_is_found_before_the_work(dataset, scorer, tmp_path, monkeypatch):
    counting = Counting(scorer)
    # 10 images and 9 captions of 16 numbers of 2 bytes each, twice: as parts, and joined.
    free = 2 * (10 + sum(map(len, dataset["captions"]))) * scorer.embed_dim * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, free - 1))
    with pytest.raises(OSError, match="No space left: The embeddings will need about"):
        embed_dataset(dataset, counting, tmp_path / "cache")
    assert counting.num_images == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, free))
    embed_dataset(dataset, counting, tmp_path / "cache")


def test_what_a_slower_run_writes_afterwards_does_no_harm(dataset, scorer, tmp_path):
    _, first = embed_dataset(dataset, scorer, tmp_path)
    late = EmbeddingCache(tmp_path, dataset, scorer, 4)
    for number in range(late.parts.count):
        rows = len(late.rows_of(number))
        zeros = torch.zeros(rows, 16)
        late.write_part(number, EmbeddedRows(zeros, zeros, torch.ones(rows, dtype=torch.int64), {}))
    before = (first.folder / "image_embeds.npy").read_bytes()
    late.merge()
    _, found = embed_dataset(dataset, scorer, tmp_path)
    assert (found.folder / "image_embeds.npy").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("embeddings")] == [first.folder.name]


def test_a_part_whose_folder_a_faster_run_takes_away_is_not_missed(dataset, scorer, tmp_path, monkeypatch):
    embed_dataset(dataset, scorer, tmp_path)
    late = EmbeddingCache(tmp_path, dataset, scorer, 4)
    zeros = torch.zeros(4, 16)
    rows = EmbeddedRows(zeros, zeros, torch.ones(4, dtype=torch.int64), {})
    monkeypatch.setattr(os, "fsync", lambda _: late.parts.remove())
    late.write_part(0, rows)
    (late.folder / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError):
        late.write_part(0, rows)


def test_every_picture_broken(scorer, tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    rows = {"image": [str(tmp_path / "a.jpg")] * 5, "captions": [["x"]] * 5, "image_id": list("abcde")}
    dataset = Dataset.from_dict(rows, features=caption_features())
    for _ in range(2):
        with pytest.raises(ValueError, match="None of the 5 images can be decoded"):
            embed_dataset(dataset, scorer, tmp_path / "cache")


def _embed(dataset, scorer, folder, rank, world, port, results):
    """One process of several: of one run if they have a port, of runs that know nothing of each other otherwise."""
    embeddings_module.PART_ROWS[torch.float16] = 4
    torch.set_num_threads(1)  # a fork has none of the threads that its parent had
    if port is not None:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    counting = Counting(scorer)
    _, found = embed_dataset(dataset, counting, folder)
    results.put((counting.num_images, found.image_embeds.tolist(), found.caption_embeds.tolist()))


@pytest.mark.parametrize("together", [True, False])
def test_two_processes_at_once(dataset, scorer, tmp_path, together, free_port):
    dataset = dataset.select([row for row in range(10) if row != 5] * 12)  # 108 rows, 27 parts
    ids = [f"{row} {image_id}" for row, image_id in enumerate(dataset["image_id"])]
    dataset = dataset.remove_columns("image_id").add_column("image_id", ids)
    _, expected = embed_dataset(dataset, scorer, tmp_path / "alone")
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    port = free_port if together else None
    processes = [
        context.Process(target=_embed, args=(dataset, scorer, tmp_path / "cache", rank, 2, port, results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=300) for _ in processes]
    for process in processes:
        process.join()
    counts = [count for count, _, _ in found]
    for _, images, captions in found:
        assert images == expected.image_embeds.tolist() and captions == expected.caption_embeds.tolist()
    assert len(list((tmp_path / "cache").iterdir())) == 1
    if together:  # shared; the last parts may be done by both, rather than one waiting for the other
        assert 108 <= sum(counts) < 2 * 108 and min(counts) > 0


def name(dataset, scorer, **other):
    counting = Counting(scorer)
    vars(counting).update(other)
    return cache_name(dataset, counting)


def test_the_name_tells_apart_all_that_embeddings_depend_on(dataset, scorer, tmp_path):
    names = [name(dataset, scorer), name(dataset, scorer, fingerprint="another")]
    names.append(name(dataset.select([1, 0, *range(2, 10)]), scorer))
    for column in ("captions", "image_id"):
        values = list(dataset[column])
        values[3] = ["Another."] if column == "captions" else "another"
        changed = dataset.remove_columns(column).add_column(column, values, feature=dataset.features[column])
        names.append(name(changed, scorer))
    path = tmp_path / "pictures" / "3.jpg"
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    names.append(name(dataset, scorer))
    path.unlink()
    names.append(name(dataset, scorer))
    assert len(set(names)) == len(names)


def test_the_name_ignores_other_columns_and_how_the_data_was_made(dataset, scorer):
    again = Dataset.from_dict({key: dataset.with_format(None)[key][:] for key in ("captions", "image_id")})
    encoded = dataset.cast_column("image", Image(decode=False))["image"][:]
    again = again.add_column("row", list(range(10))).add_column("image", encoded, feature=Image())
    again = again.cast(Features({name: caption_features().get(name, Value("int64")) for name in again.column_names}))
    assert name(again.select([9, *range(9)]).select([*range(1, 10), 0]), scorer) == name(dataset, scorer)


def test_pictures_held_by_the_data_set_count_by_content(dataset, scorer):
    held = [{"bytes": picture, "path": "1.jpg"} for picture in published_forms.jpegs(10)]
    images = dataset.remove_columns("image").add_column("image", held, feature=Image())
    changed = [*held[:9], {"bytes": held[9]["bytes"][:-3] + b"abc", "path": "1.jpg"}]
    other = dataset.remove_columns("image").add_column("image", changed, feature=Image())
    assert name(images, scorer) != name(other, scorer)


def test_pictures_held_in_files_count_by_the_state_of_the_files(dataset, scorer, tmp_path):
    held = [{"bytes": picture, "path": "1.jpg"} for picture in published_forms.jpegs(10)]
    images = dataset.remove_columns("image").add_column("image", held, feature=Image())
    images.save_to_disk(tmp_path / "saved")
    saved = load_from_disk(tmp_path / "saved")
    first = name(saved, scorer)
    assert name(load_from_disk(tmp_path / "saved"), scorer) == first
    assert name(saved.select([1, 0, *range(2, 10)]), scorer) != first
    assert cache_names(saved, scorer)[1] == cache_names(images, scorer)[1]
    os.utime(tmp_path / "saved" / "data-00000-of-00001.arrow", (0, 0))
    assert name(load_from_disk(tmp_path / "saved"), scorer) != first


def test_a_broken_cache_keeps_its_portable_name(dataset, scorer, tmp_path):
    _, found = embed_dataset(dataset, scorer, tmp_path)
    portable = json.loads((found.folder / "manifest.json").read_text())["portable_name"]
    (found.folder / "image_embeds.npy").write_bytes(b"")
    _, again = embed_dataset(dataset, scorer, tmp_path)
    assert json.loads((again.folder / "manifest.json").read_text())["portable_name"] == portable
    assert portable == cache_names(dataset, scorer)[1]


def test_the_manifest_tells_what_the_folder_is_of(dataset, scorer, tmp_path):
    _, found = embed_dataset(dataset, scorer, tmp_path)
    manifest = json.loads((found.folder / "manifest.json").read_text())
    assert manifest["scorer"] == scorer.name and manifest["fingerprint"] == scorer.fingerprint
    assert list(manifest["failures"]) == ["5"]


def test_a_manifest_that_changed_is_noticed(dataset, scorer, tmp_path, caplog):
    """It says which rows have no embeddings: all others would move."""
    _, found = embed_dataset(dataset, scorer, tmp_path)
    manifest = found.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"5"', '"4"', 1))
    kept, again = embed_dataset(dataset, scorer, tmp_path)
    assert "manifest.json: its bytes have changed" in caplog.text
    assert torch.equal(again.image_embeds, found.image_embeds) and "computed again" in caplog.text
