import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from hf_distinct.data.hashing import stable_hash
from hf_distinct.data.splits import ensure_splits


def only_train(image_ids: list[str]) -> DatasetDict:
    return DatasetDict({"train": Dataset.from_dict({"image_id": image_ids})})


def test_ten_percent_each_by_rank_of_the_hash():
    ids = [str(number) for number in range(40)]
    splits = ensure_splits(only_train(ids), seed=3)
    ranked = sorted(ids, key=lambda image_id: stable_hash(f"3:{image_id}"))
    assert set(splits["validation"]["image_id"]) == set(ranked[:4])
    assert set(splits["test"]["image_id"]) == set(ranked[4:8])
    assert splits["train"]["image_id"][:] == [image_id for image_id in ids if image_id not in ranked[:8]]


@given(st.lists(st.integers(0, 60).map(str), min_size=1, max_size=60), st.integers(0, 3), st.randoms())
def test_split_is_a_partition_that_ignores_the_order_of_rows(ids, seed, random):
    if len(set(ids)) < 4:
        with pytest.raises(ValueError, match="too few"):
            ensure_splits(only_train(ids), seed=seed)
        return
    splits = ensure_splits(only_train(ids), seed=seed)
    parts = [set(rows["image_id"]) for rows in splits.values()]
    assert all(parts)
    assert sum(len(part) for part in parts) == len(set().union(*parts)) == len(set(ids))
    assert sorted(each for rows in splits.values() for each in rows["image_id"]) == sorted(ids)
    shuffled = random.sample(ids, len(ids))
    again = ensure_splits(only_train(shuffled), seed=seed)
    assert [set(rows["image_id"]) for rows in again.values()] == parts


def test_other_seed_other_splits():
    ids = [str(number) for number in range(100)]
    first, second = (set(ensure_splits(only_train(ids), seed=seed)["test"]["image_id"]) for seed in (0, 1))
    assert first != second


def test_a_source_with_splits_of_its_own_is_left_alone():
    splits = only_train(["1"])
    splits["test"] = splits["validation"] = splits["train"]
    assert ensure_splits(splits) is splits


@pytest.mark.parametrize(("brought", "carved"), [("test", "validation"), ("validation", "test")])
def test_only_the_missing_split_is_carved(brought, carved):
    splits = only_train([str(number) for number in range(20)])
    splits[brought] = Dataset.from_dict({"image_id": ["own"]})
    found = ensure_splits(splits)
    assert list(found) == ["train", "validation", "test"]
    assert found[brought]["image_id"][:] == ["own"]
    assert len(found[carved]) == 2 and len(found["train"]) == 18


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="only the splits test"):
        ensure_splits(DatasetDict(test=Dataset.from_dict({"image_id": ["1"]})))


@pytest.mark.parametrize(("validation", "test"), [(0.0, 0.1), (0.1, -0.1), (0.5, 0.5), (0.49, 0.49)])
def test_shares_that_leave_nothing(validation, test):
    with pytest.raises(ValueError, match="validation="):
        ensure_splits(only_train(["1", "2", "3", "4"]), validation=validation, test=test)
