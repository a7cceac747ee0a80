import logging

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distinct.data.neighbours import Neighbours
from hf_distinct.files.parts import write_tensors

NAN = float("nan")


@pytest.fixture
def found():
    """Four images, ranks 1 to 3 of which 2 and 3 are taken; image 2 has only one candidate, image 3 none."""
    return Neighbours(
        rows=np.array([[1, 2, 3], [0, 3, 2], [0, -1, -1], [-1, -1, -1]]),
        similarities=np.array([[0.9, 0.5, 0.1], [0.8, 0.3, 0.2], [0.1, NAN, NAN], [NAN] * 3], dtype=np.float32),
        rejected=np.array([[True, False, False], [True, True, False], [False] * 3, [False, False, True]]),
        first_rank=2,
        searched={"kind": "exact"},
        embeddings="embeddings-a",
    )


def test_the_column_holds_the_ranks_taken(found):
    dataset = Dataset.from_dict({"x": list("abcd"), "neighbours": [[9]] * 4})
    assert found.add_to(dataset)["neighbours"][:] == [[2, 3], [3, 2], [], []]
    assert found.add_to(dataset, count=1)["neighbours"][:] == [[2], [3], [], []]
    assert found.add_to(dataset)["x"][:] == list("abcd")
    with pytest.raises(ValueError, match="3 neighbours are needed, 2 were mined"):
        found.add_to(dataset, count=3)
    with pytest.raises(ValueError, match="4 images do not fit a dataset of 3 rows"):
        found.add_to(dataset.select(range(3)))


def test_statistics_by_hand(found):
    statistics = found.statistics()
    assert statistics["images"] == 4 and statistics["ranks taken"] == [2, 3]
    assert statistics["images with fewer neighbours"] == 2
    # Rank 1: 0.9, 0.8, 0.1; rank 2: 0.5, 0.3; rank 3: 0.1, 0.2.
    first = {"mean": 0.6, "5 %": 0.17, "median": 0.8, "95 %": 0.89}
    assert statistics["similarity"]["rank 1"] == pytest.approx(first, abs=1e-6)
    assert statistics["similarity"]["rank 2"]["mean"] == pytest.approx(0.4)
    assert statistics["similarity"]["rank 3"]["median"] == pytest.approx(0.15)
    assert statistics["share of images with rejected candidates"] == {
        "same image id": 0.5, "too similar": 0.25, "too dissimilar": 0.25,
    }  # fmt: skip


def test_the_summary_is_about_the_ranks_taken(found, caplog):
    with caplog.at_level(logging.INFO):
        found.log_summary()
    assert "rank 2: 0.400, rank 3: 0.150; near duplicates rejected for 25.0% of the images" in caplog.text
    assert "rank 1" not in caplog.text
    assert "2 of 4 images have fewer than 2 neighbours" in caplog.text


def test_parts_below_each_other(found):
    joined = Neighbours.join([found, found])
    assert joined.rows.tolist() == found.rows.tolist() * 2
    assert joined.first_rank == 2 and joined.embeddings == "embeddings-a"


def test_saved_and_refused_elsewhere(found, tmp_path):
    found.save(tmp_path / "n.safetensors")
    loaded = Neighbours.load(tmp_path / "n.safetensors", "embeddings-a")
    assert loaded.rows.tolist() == found.rows.tolist()
    assert loaded.similarities.tobytes() == found.similarities.tobytes()
    assert loaded.rejected.tolist() == found.rejected.tolist()
    assert (loaded.first_rank, loaded.searched, loaded.embeddings) == (2, {"kind": "exact"}, "embeddings-a")
    with pytest.raises(ValueError, match=r"n\.safetensors' contains neighbours of another dataset.*'embeddings-b'"):
        Neighbours.load(tmp_path / "n.safetensors", "embeddings-b")
    write_tensors(tmp_path / "other.safetensors", {"rows": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"other\.safetensors' contains no mined neighbours"):
        Neighbours.load(tmp_path / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors"):
        Neighbours.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ('{"embeddings": "../../home"}', "embeddings is '../../home', but should be the name of a folder next to it"),
        ('{"embeddings": 3}', "embeddings is 3"),
        ('{"first_rank": 9}', "first_rank is 9, but 3 ranks were mined"),
        ('{"first_rank": true}', "first_rank is True"),
        ("[" * 100_000, "nested too deeply"),
        ('{"first_rank": ' + "1" * 5000 + "}", "about: this is not JSON"),
        ('{"other": 1}', "unexpected keyword argument 'other'"),
        ("[]", "must be a mapping"),
        ("", "about: this is not JSON"),
    ],
)
def test_what_strangers_wrote_into_it_is_refused_by_name(found, tmp_path, about, message):
    write_tensors(tmp_path / "n.safetensors", found.to_tensors()[0], {"about": about})
    with pytest.raises(ValueError, match=rf"(?s)n\.safetensors' contains no mined neighbours: .*{message}"):
        Neighbours.load(tmp_path / "n.safetensors")


@pytest.mark.parametrize("name", ["rows", "similarities", "rejected"])
@pytest.mark.parametrize("value", [torch.zeros(4), torch.zeros(3, 3), torch.zeros(4, 3, dtype=torch.bfloat16)])
def test_arrays_of_other_shapes_are_refused_by_name(found, tmp_path, name, value):
    tensors, about = found.to_tensors()
    write_tensors(tmp_path / "n.safetensors", tensors | {name: value}, about)
    with pytest.raises(ValueError, match=r"n\.safetensors' contains no mined neighbours"):
        Neighbours.load(tmp_path / "n.safetensors")
