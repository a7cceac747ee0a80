import pytest
from datasets import Dataset, Features, Image
from hypothesis import given
from hypothesis import strategies as st

from hf_distinct.data.same_picture import TAIL, differing_columns, find_repeats, gather_captions
from hf_distinct.data.skips import Skips


def pictures(*values) -> Dataset:
    """Bytes, a path, or nothing in each row."""
    rows = [each and {"path": each} if not isinstance(each, bytes) else {"bytes": each} for each in values]
    return Dataset.from_dict({"image": rows}, features=Features({"image": Image()}))


def test_bytes_and_paths():
    rows = [b"one", b"two", "one", b"one", None, "one", None, b""]
    assert find_repeats([pictures(*rows[:4]), pictures(*rows[4:])]).tolist() == [0, 1, 2, 0, 4, 2, 6, 7]


def test_the_same_size_and_end_is_not_the_same_picture():
    end = bytes(TAIL)
    assert find_repeats([pictures(b"a" + end, b"b" + end, b"a" + end, b"a" + end + b"0")]).tolist() == [0, 1, 0, 3]


@given(st.lists(st.binary(max_size=2), min_size=1, max_size=20))
def test_the_first_row_of_each_picture(contents):
    assert find_repeats([pictures(*contents)]).tolist() == [contents.index(each) for each in contents]


def test_captions_move_to_the_first_row_in_the_same_split():
    captions = dict(enumerate([[], ["a"], ["b", "a"], ["c"], ["d"]]))
    skips = Skips("source", strict=True)
    splits = ["train", "train", "train", "test", "train"]
    moved = gather_captions(captions, ["i0", "i1", "i2", "i3", "i1"], splits, [0, 0, 0, 0, 4], skips)
    assert list(captions.values()) == [[], ["a", "b"], [], ["c"], ["d"]] and moved == {2: 1}
    assert skips.notes == {
        "repeated caption of image": ["i1"],
        "image of test that is also in train": ["i3"],
        "image id of several images": ["i1"],
    }


@pytest.mark.parametrize(("moved", "found"), [({}, []), ({1: 0}, ["b"])])
def test_columns_of_captions(moved, found):
    rows = Dataset.from_dict({"a": [1, 1], "b": [1, 2]})
    assert differing_columns(rows, ["a", "b"], moved) == found
