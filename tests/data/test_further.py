import pytest
from datasets import ClassLabel, List, Value

from hf_distinct.data.further import add_kinds, fitting, further_features, is_further, parse_numbers


def test_kinds(caplog):
    rows = [
        {"text": "a", "whole": 1, "real": 1, "yes": True, "mixed": 1, "none": None, "boxes": [1], "big": 2**70},
        {"whole": None, "real": 0.5, "mixed": "b", "row": 3, "prompts": "p", "broken": "\ud83d"},
    ]
    kinds = {name: feature.dtype for name, feature in further_features(add_kinds({}, rows), "source").items()}
    assert kinds == {"text": "string", "whole": "int64", "real": "float64", "yes": "bool"}
    assert "source: ignored 'big', 'boxes', 'broken', 'mixed', 'prompts', 'row': a further column" in caplog.text


@pytest.mark.parametrize("name", ["\ud83d", "\0", ""])
def test_a_name_that_arrow_cannot_store_is_ignored(name, caplog):
    assert list(further_features(add_kinds({}, [{name: "a", "b": "c"}]), "source")) == ["b"]
    assert f"source: ignored {name!r}: a further column" in caplog.text


def test_nothing_further_nothing_said(caplog):
    caplog.set_level("INFO")
    assert not further_features(add_kinds({}, [{}, {"a": None}]), "source") and not caplog.records


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (["1", "-20", ""], [1, -20, None]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["007", "8"], ["007", "8"]),
        (["1", "b"], ["1", "b"]),
        (["", None], [None, None]),
    ],
)
def test_numbers_in_tables(texts, numbers):
    records = [{"n": text, "kept": "1"} for text in texts]
    parse_numbers(records, keep={"kept"})
    assert [record["n"] for record in records] == numbers and records[0]["kept"] == "1"


def test_columns_of_datasets():
    assert all(is_further("a", each) for each in (Value("string"), ClassLabel(names=["x"]), Value("bool")))
    for name, feature in [("row", Value("int64")), ("a", List(Value("string"))), ("a", Value("binary")), ("a", {})]:
        assert not is_further(name, feature)


def test_values_that_fit_a_column():
    assert (fitting(1, "float64"), fitting("a", "string")) == (1.0, "a")
    assert fitting("a", "int64") is fitting(None, "bool") is None
