"""Document frequencies that are kept beside a dataset's files."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from datasets import Dataset, disable_caching, enable_caching

from hf_distinct.evaluation import frequency_files
from hf_distinct.evaluation.captions import CiderD
from hf_distinct.evaluation.frequency_files import document_frequencies
from hf_distinct.rewards import CiderReward

CORPUS = [["a red dog", "a dog runs"], ["a red cat"], ["the red dog runs"], ["一只狗"]]


@pytest.fixture
def dataset(tmp_path):
    Dataset.from_dict({"captions": CORPUS, "image_id": list("abcd")}).save_to_disk(str(tmp_path / "data"))
    return Dataset.load_from_disk(str(tmp_path / "data"))


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "data").glob("document-frequencies-*") if path.is_dir())


def same(first, second):
    return all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))


def test_they_are_counted_once_and_mapped(dataset, tmp_path, monkeypatch):
    CiderReward(dataset["captions"])
    counted = document_frequencies(dataset["captions"], ["\n"])
    assert len(kept(tmp_path)) == 1
    monkeypatch.delattr(frequency_files, "count_into")
    again = document_frequencies(dataset.add_column("row", range(4)).with_format(None)["captions"], ["\n"])
    assert isinstance(again.keys, np.memmap) and same(again, counted)
    assert same(again, document_frequencies(CORPUS, ["\n"]))
    assert not [path for path in (tmp_path / "data").iterdir() if path.name.startswith(".")]


def test_other_references_have_other_counts(dataset, tmp_path):
    scored = {}
    for name, part in (("all", dataset), ("two", dataset.select([0, 2])), ("order", dataset.select([2, 0]))):
        column, rows = part["captions"], part["captions"][:]
        scored[name] = CiderD(column).score("a red dog", CORPUS[0])
        assert scored[name] == CiderD(rows).score("a red dog", CORPUS[0])
    assert scored["all"] != scored["two"] == scored["order"]
    document_frequencies(dataset["captions"], ["\n"])
    split = dataset.map(lambda row: {"captions": [*row["captions"], ""]})  # the same letters
    document_frequencies(split["captions"])
    assert len(kept(tmp_path)) == 5


def test_large_strings_are_the_same_references(dataset, tmp_path):
    from datasets import LargeList, Value

    document_frequencies(dataset["captions"])
    large = dataset.cast_column("captions", LargeList(Value("large_string")))
    assert same(document_frequencies(large["captions"]), document_frequencies(CORPUS))
    assert len(kept(tmp_path)) == 1


def test_no_ngram_of_two_images(tmp_path):
    Dataset.from_dict({"captions": [["a"], ["b"]]}).save_to_disk(str(tmp_path / "data"))
    column = Dataset.load_from_disk(str(tmp_path / "data"))["captions"]
    assert len(document_frequencies(column).keys) == 0
    assert CiderD(column).score("a", ["a"]) == CiderD([["a"], ["b"]]).score("a", ["a"]) > 0


@pytest.mark.parametrize("name", ["keys", "manifest.json"])
def test_broken_files_are_counted_again(dataset, tmp_path, name, caplog):
    document_frequencies(dataset["captions"])
    (folder,) = kept(tmp_path)
    path = tmp_path / "data" / folder / name
    content = bytearray(path.read_bytes())
    content[9] ^= 1
    path.write_bytes(content)
    assert same(document_frequencies(dataset["captions"]), document_frequencies(CORPUS))
    assert "unusable" in caplog.text and f"{folder}.broken-" in caplog.text
    assert len(kept(tmp_path)) == 2


def test_a_folder_that_cannot_be_written(dataset, tmp_path, caplog):
    document_frequencies(dataset["captions"])
    (folder,) = kept(tmp_path)
    (tmp_path / "data" / folder / "manifest.json").unlink()  # a folder of this name is in the way
    assert same(document_frequencies(dataset["captions"]), document_frequencies(CORPUS))
    assert "cannot be kept" in caplog.text and str(tmp_path) in caplog.text


def test_of_several_processes_one_counts(dataset, monkeypatch):
    calls, count_into = [], frequency_files.count_into
    found, start = [], threading.Barrier(4)

    def counting(*given, **how):
        calls.append(1)
        return count_into(*given, **how)

    monkeypatch.setattr(frequency_files, "count_into", counting)

    def work():
        start.wait()
        found.append(document_frequencies(dataset["captions"]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(calls) == 1 and len(found) == 4 and all(same(each, found[0]) for each in found)


def test_without_caching_nothing_is_kept(dataset, tmp_path):
    disable_caching()
    try:
        document_frequencies(dataset["captions"])
    finally:
        enable_caching()
    assert not kept(tmp_path)


def test_a_refused_corpus_leaves_nothing(tmp_path):
    Dataset.from_dict({"captions": [["a"], []]}).save_to_disk(str(tmp_path / "data"))
    with pytest.raises(ValueError, match="row 1: no reference"):
        CiderD(Dataset.load_from_disk(str(tmp_path / "data"))["captions"])
    assert not kept(tmp_path) and not list((tmp_path / "data").glob(".*"))
