import dataclasses
import logging
import re

import numpy as np
import pytest
import torch

from hf_distinct.data.similarity_index import SimilarityIndex, UnitRows, nearest


def random_units(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def build(vectors: torch.Tensor, kind: str, **settings: float) -> SimilarityIndex:
    chosen = {"depth": 5, "min_recall": 0.95, "own": np.arange(len(vectors))} | settings
    return SimilarityIndex(vectors, kind, queries=UnitRows(vectors), **chosen)


def test_rows_are_brought_to_length_one():
    rows = UnitRows(torch.tensor([[3.0, 4.0], [0.0, 2.0]]).half())
    assert rows[np.array([1, 0])].tolist() == [[0.0, 1.0], pytest.approx([0.6, 0.8])]
    assert rows[0:1].dtype == np.float32 and len(rows) == 2 and rows.dim == 2


def test_nearest_looks_at_every_entry(monkeypatch):
    monkeypatch.setattr("hf_distinct.data.similarity_index.BLOCK", 7)
    vectors = random_units(50, 8)
    scores, entries = nearest(vectors[:6].numpy(), UnitRows(vectors), 4)
    expected = (vectors[:6] @ vectors.T).topk(4)
    assert entries.tolist() == expected.indices.tolist()
    np.testing.assert_allclose(scores, expected.values, atol=1e-6)


def test_exact_search():
    index = build(random_units(200, 16), "exact")
    index.build()
    scores, entries = index.search(index.entries[np.array([7, 150])], 3)
    assert entries[:, 0].tolist() == [7, 150]
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-5)


def test_recall_is_measured_without_the_query_itself():
    """Random vectors have no cells to speak of: few cells find few neighbours, all of them find all."""
    index = build(random_units(4000, 32), "ivf", min_recall=0.3)
    index.build()
    few = index.search_kind
    assert few.cells == 102  # 4,000 // 39 entries a cell
    # Finding nothing but the query itself would be a recall of 0. By brute force on other queries:
    queries = index.entries[np.arange(1000, 1300)]
    true = nearest(queries, index.entries, 6)[1][:, 1:]
    found = index.search(queries, 6)[1]
    recall = np.mean([np.isin(row, others).mean() for row, others in zip(true, found, strict=True)])
    assert few.recall == pytest.approx(recall, abs=0.06)
    assert 0.3 < few.recall < 0.5

    everything = build(random_units(4000, 32), "ivf", min_recall=1.0)
    everything.build()
    assert everything.search_kind.recall == 1.0


def test_the_fewest_cells_that_find_enough():
    """Every number of cells is tried by hand: the one chosen is the first whose recall is surely enough."""
    vectors = random_units(2000, 24)
    index = build(vectors, "ivf", min_recall=0.9)
    index.build()
    chosen = index.search_kind
    true = (vectors @ vectors.T).fill_diagonal_(-1).topk(5).indices.numpy()
    rows = np.sort(np.random.default_rng(1).permutation(2000)[:1000])
    enough = []
    for probes in range(1, chosen.cells + 1):
        index._use(dataclasses.replace(chosen, probes=probes))
        found = index.search(index.entries[rows], 6)[1]
        shares = np.array([np.isin(true[row], others).mean() for row, others in zip(rows, found, strict=True)])
        enough.append(shares.mean() - 2 * shares.std() / 1000**0.5 >= 0.9)
    assert chosen.cells == 51 and 1 < chosen.probes < 51
    assert enough.index(True) + 1 == chosen.probes


def test_cells_find_the_same_however_the_queries_are_parted():
    index = build(random_units(3000, 32), "ivf", min_recall=0.8)
    index.build()
    queries = index.entries[0:3000]
    scores, entries = index.search(queries, 6)
    for size in (1, 7, 1024):
        parts = [index.search(queries[start : start + size], 6) for start in range(0, 3000, size)]
        assert np.concatenate([part[1] for part in parts]).tolist() == entries.tolist()
        np.testing.assert_allclose(np.concatenate([part[0] for part in parts]), scores, atol=1e-6)


def test_the_search_is_told_before_it_begins(caplog):
    with caplog.at_level(logging.INFO):
        build(random_units(2000, 16), "ivf").build()
    (line,) = [record.getMessage() for record in caplog.records if "cells" in record.getMessage()]
    assert re.search(r"Searching \d+ of 51 cells; \d+ times .* recall@5 [01]\.\d+, about \d+\.\d minutes", line)


def test_fewer_entries_than_wanted():
    for kind in ("exact", "ivf"):
        index = build(random_units(3, 4), kind)
        index.build()
        assert index.search_kind.recall == 1.0
        assert sorted(index.search(index.entries[np.array([0])], 3)[1][0].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_written_once_and_read_again(kind, tmp_path):
    vectors = random_units(2000, 16)
    path = tmp_path / "deep" / "index.faiss"
    first = build(vectors, kind)
    first.open(path)
    written = path.stat().st_mtime_ns
    again = build(vectors, kind)
    again.open(path)
    assert path.stat().st_mtime_ns == written
    assert again.search_kind == first.search_kind
    for own, other in zip(first.search(vectors.numpy(), 3), again.search(vectors.numpy(), 3), strict=True):
        assert own.tobytes() == other.tobytes()
    assert sorted(file.name for file in path.parent.iterdir()) == ["index.faiss", "index.json"]


def test_an_index_whose_bytes_changed_is_refused(tmp_path):
    vectors, path = random_units(2000, 16), tmp_path / "index.faiss"
    build(vectors, "exact").open(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"index\.faiss' is no index of these .* it has changed"):
        build(vectors, "exact").open(path)


def test_an_index_in_cells_that_finds_too_little_searches_more(tmp_path):
    vectors = random_units(4000, 32)
    few = build(vectors, "ivf", min_recall=0.3)
    few.open(tmp_path / "index.faiss")
    index = build(vectors, "ivf", min_recall=0.9)
    index.open(tmp_path / "index.faiss")
    assert index.search_kind.recall >= 0.9 and index.search_kind.probes > few.search_kind.probes
