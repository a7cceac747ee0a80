import logging
import unittest.mock

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.mining import MiningSettings, _Search, find_neighbours, mine_neighbours

# Unit vectors whose products are exact in floating point, whatever the order of the sums: entries are 0, +-1 or +-1/2.
EXACT = [torch.eye(4)[i] * sign for i in range(4) for sign in (1, -1)] + [
    torch.tensor([a, b, c, d]) / 2 for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)
]


def on_circle(*degrees: float) -> torch.Tensor:
    angles = torch.tensor(degrees).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def with_ids(*image_ids: str) -> Dataset:
    return Dataset.from_dict({"image_id": list(image_ids)})


def slow(ids, embeds, num_neighbours, first_rank, low, high):
    """The definition, one pair at a time."""
    result = []
    for i, own in enumerate(embeds):
        candidates = []
        for j, other in enumerate(embeds):
            similarity = sum(float(a) * float(b) for a, b in zip(own, other, strict=True))
            if ids[i] != ids[j] and low <= similarity <= high:
                candidates.append((-similarity, j))
        result.append([j for _, j in sorted(candidates)][first_rank - 1 : first_rank - 1 + num_neighbours])
    return result


def test_by_hand_on_a_circle():
    # Angles 0, 10, 30, 57, 180: the smaller the difference, the more similar.
    mined = mine_neighbours(with_ids(*"abcde"), on_circle(0, 10, 30, 57, 180), num_neighbours=2)
    # 30 is 20 from 10, 27 from 57 and 30 from 0; 180 is 123 from 57 and 150 from 30.
    assert mined["neighbours"][:] == [[1, 2], [0, 2], [1, 3], [2, 1], [3, 2]]
    skipped = mine_neighbours(with_ids(*"abcde"), on_circle(0, 10, 30, 57, 180), num_neighbours=2, first_rank=2)
    assert skipped["neighbours"][:] == [[2, 3], [2, 3], [3, 0], [1, 0], [2, 1]]


def test_same_image_id_and_near_duplicates_are_no_neighbours():
    # cos 1 degree = 0.99985 is above the default bound of 0.999, cos 5 degrees = 0.99619 below.
    embeds = on_circle(0, 1, 6, 20)
    assert mine_neighbours(with_ids(*"abcd"), embeds, 1)["neighbours"][:] == [[2], [2], [1], [2]]
    assert mine_neighbours(with_ids(*"abcd"), embeds, 1, max_similarity=1.0)["neighbours"][:] == [[1], [0], [1], [2]]
    assert mine_neighbours(with_ids(*"abbd"), embeds, 1)["neighbours"][:] == [[2], [3], [0], [2]]


def test_a_cosine_rounded_above_one_is_within_a_bound_of_one():
    vectors = torch.nn.functional.normalize(torch.randn(200, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    same = next(pair for pair in (vector.expand(2, -1) for vector in vectors) if (pair @ pair.T).min() > 1)
    assert mine_neighbours(with_ids(*"ab"), same, 1, max_similarity=1.0)["neighbours"][:] == [[1], [0]]


def test_few_candidates_give_shorter_lists_and_a_warning(caplog):
    # cos 60 = 0.5, cos 70 = 0.342: row 0 has one candidate above 0.4; row 2, at 180, none.
    mined = mine_neighbours(with_ids(*"abc"), on_circle(0, 60, 180), num_neighbours=5, min_similarity=0.4)
    assert mined["neighbours"][:] == [[1], [0], []]
    assert "3 of 3 images have fewer than 5 neighbours" in caplog.text
    assert mine_neighbours(with_ids("a"), on_circle(0))["neighbours"][:] == [[]]
    assert mine_neighbours(with_ids(*"ab"), on_circle(0, 90), first_rank=4)["neighbours"][:] == [[], []]


def test_summary_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        mine_neighbours(with_ids(*"abcd"), on_circle(0, 1, 90, 150), num_neighbours=1)
    # Rank 1: cos 90 = 0, cos 89 = 0.0175, cos 60 = 0.5, cos 60 = 0.5; mean 0.254. Rows 0 and 1 are near duplicates.
    assert "rank 1: 0.254" in caplog.text
    assert "rejected for 50.0% of the images" in caplog.text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 23), st.integers(0, 8)), min_size=1, max_size=14),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([-1.0, -0.5, 0.0, 0.5]),
    st.sampled_from([0.5, 0.999, 1.0]),
    st.integers(1, 15),
)
def test_against_the_definition_with_many_ties(rows, num_neighbours, first_rank, low, high, part_rows):
    embeds = torch.stack([EXACT[vector] for vector, _ in rows])
    ids = [str(image_id) for _, image_id in rows]
    with unittest.mock.patch("hf_distinct.data.mining.PART_ROWS", part_rows):
        mined = mine_neighbours(with_ids(*ids), embeds, num_neighbours, first_rank, low, high)
    assert mined["neighbours"][:] == slow(ids, embeds, num_neighbours, first_rank, low, high)


def test_other_columns_stay_and_old_neighbours_go():
    dataset = Dataset.from_dict({"image_id": ["a", "b"], "row": [0, 1], "neighbours": [[7], [8]], "x": ["p", "q"]})
    mined = mine_neighbours(dataset, on_circle(0, 90), 1)
    assert mined[0] == {"image_id": "a", "row": 0, "x": "p", "neighbours": [1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_neighbours": 0}, "num_neighbours=0"),
        ({"first_rank": 0}, "first_rank=0"),
        ({"min_similarity": 0.9, "max_similarity": 0.1}, "min_similarity=0.9"),
        ({"embeddings": on_circle(0)}, r"shape \(1, 2\) do not fit 2 rows"),
        ({"embeddings": on_circle(0, 1) * torch.tensor([[1.0], [2.0]])}, "row 1 has 2.0"),
        ({"embeddings": on_circle(0, float("nan"))}, "row 1 has nan"),
        ({"dataset": Dataset.from_dict({"image_id": ["a", "b"], "row": [1, 0]})}, "'row' is not 0, 1, 2"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"dataset": with_ids(*"ab"), "embeddings": on_circle(0, 1)} | change
    with pytest.raises(ValueError, match=message):
        mine_neighbours(**arguments)


def test_any_setting_that_cannot_be(tmp_path):
    for wrong, message in [
        ({"via": "sounds"}, "via='sounds'"),
        ({"search": "lsh"}, "search='lsh'"),
        ({"min_recall": 0.0}, "min_recall=0.0"),
        ({"via": "captions"}, "needs embeddings of captions"),
    ]:
        with pytest.raises(ValueError, match=message):
            mine_neighbours(with_ids(*"ab"), on_circle(0, 1), **wrong)


def test_by_captions_by_hand():
    # Images at 0, 90, 180. Their captions: image 0 has 10 and 80, image 1 has 100, image 2 has 140 and 85.
    embeddings = CaptionEmbeddings(on_circle(0, 90, 180), on_circle(10, 80, 100, 140, 85), torch.tensor([0, 2, 3, 5]))
    mined = mine_neighbours(with_ids(*"abc"), embeddings, 2, via="captions")
    # Image 0 sees others' captions at 100, 140, 85: image 2 by its 85, then image 1 by its 100.
    # Image 1, at 90, sees 10, 80, 140, 85: image 2 by its 85 (5 away), image 0 by its 80 (10 away).
    # Image 2, at 180, sees 10, 80, 100: image 1 by its 100, image 0 by its 80.
    assert mined["neighbours"][:] == [[2, 1], [2, 0], [1, 0]]
    # Of the same id, 0 and 2 are no neighbours of each other, whatever their captions.
    assert mine_neighbours(with_ids(*"aba"), embeddings, 2, via="captions")["neighbours"][:] == [[1], [2, 0], [1]]


def planted(count: int, dim: int, groups: int, angles: list[float], seed: int = 0):
    """Random unit vectors; in each of some groups the members lie at angles (degrees) from the first of the group.

    Returns the vectors and the groups' rows, which lie all over the data.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)
    rows = torch.randperm(count, generator=generator)[: groups * (len(angles) + 1)].view(groups, -1)
    for members in rows:
        centre = vectors[members[0]]
        for row, angle in zip(members[1:], torch.tensor(angles).deg2rad(), strict=True):
            across = vectors[row] - (vectors[row] @ centre) * centre
            vectors[row] = angle.cos() * centre + angle.sin() * torch.nn.functional.normalize(across, dim=0)
    return vectors, rows


@pytest.mark.parametrize("search", ["exact", pytest.param("ivf", marks=pytest.mark.slow)])
def test_planted_among_more_than_ten_thousand_rows(search, monkeypatch):
    """Found: at 15 and 25 degrees. Excluded: a near duplicate at 1 degree, and a row of the same image id at 5.

    The data is searched 4,096 rows at a time, so that a row's number in its batch is another than in the data.
    """
    monkeypatch.setattr("hf_distinct.data.mining.PART_ROWS", 4096)
    vectors, groups = planted(10_500, 64, 40, [15.0, 25.0, 1.0, 5.0])
    ids = [f"id{row}" for row in range(len(vectors))]
    for group in groups:
        ids[group[4]] = ids[group[0]]
    assert (groups // 4096).unique().tolist() == [0, 1, 2]
    found = find_neighbours(Dataset.from_dict({"image_id": ids}), vectors, MiningSettings(2, search=search))
    centres = groups[:, 0].numpy()
    assert found.rows[centres].tolist() == groups[:, 1:3].tolist()
    expected = torch.tensor([15.0, 25.0]).deg2rad().cos().expand(len(centres), 2).numpy()
    assert found.similarities[centres] == pytest.approx(expected, abs=1e-3)
    assert found.rejected[centres].tolist() == [[True, True, False]] * len(centres)
    if search == "ivf":
        assert found.searched["kind"] == "ivf" and found.searched["recall"] >= 0.95
        assert 0 < found.searched["probes"] < found.searched["cells"] == 205  # 2 sqrt(10,500)
        return
    assert found.searched["kind"] == "exact"
    ranked = (vectors @ vectors.T).fill_diagonal_(-1)
    others = torch.ones(len(vectors), dtype=torch.bool)
    others[groups.flatten()] = False
    assert torch.equal(torch.from_numpy(found.rows[others.numpy(), 0]), ranked.argmax(dim=1)[others])


def test_cells_find_the_same_however_the_images_are_parted(monkeypatch):
    vectors, _ = planted(3000, 32, 40, [15.0, 25.0])
    dataset = Dataset.from_dict({"image_id": [str(row) for row in range(len(vectors))]})
    found = []
    for part_rows in (4096, 1000, 77):
        monkeypatch.setattr("hf_distinct.data.mining.PART_ROWS", part_rows)
        found.append(find_neighbours(dataset, vectors, MiningSettings(3, search="ivf", min_recall=0.8)))
    assert found[0].searched["probes"] < found[0].searched["cells"]
    assert found[0].rows.tolist() == found[1].rows.tolist() == found[2].rows.tolist()


def test_auto_compares_all_until_there_are_too_many(monkeypatch):
    vectors, _ = planted(900, 16, 1, [10.0])
    dataset = Dataset.from_dict({"image_id": [str(row) for row in range(900)]})
    assert find_neighbours(dataset, vectors, MiningSettings()).searched["kind"] == "exact"
    monkeypatch.setattr("hf_distinct.data.mining.EXACT_COMPARISONS", 900 * 900 - 1)
    assert find_neighbours(dataset, vectors, MiningSettings()).searched["kind"] == "ivf"


def test_many_duplicates_do_not_hide_the_neighbours():
    """Far more near duplicates than a first search returns: it goes on, deeper, for those images alone."""
    degrees = [0.0] * 60 + [20.0, 40.0] + [float(each) for each in range(100, 160)]
    dataset = Dataset.from_dict({"image_id": [str(row) for row in range(len(degrees))]})
    mined = mine_neighbours(dataset, on_circle(*degrees), 2)
    assert mined["neighbours"][:60] == [[60, 61]] * 60


@pytest.fixture
def cached(tmp_path):
    """Embeddings mapped from a folder, as a cache holds them."""
    vectors, _ = planted(300, 16, 20, [10.0, 20.0])
    CaptionEmbeddings(vectors, vectors, torch.arange(301)).save(tmp_path / "embeddings-a")
    return CaptionEmbeddings.load(tmp_path / "embeddings-a")


@pytest.fixture
def three_hundred():
    return Dataset.from_dict({"image_id": [str(row) for row in range(300)]})


@pytest.mark.parametrize("search", ["exact", "ivf"])
def test_index_and_neighbours_stay_beside_the_cache(cached, three_hundred, search, monkeypatch):
    monkeypatch.setattr("hf_distinct.data.mining.PART_ROWS", 128)
    first = find_neighbours(three_hundred, cached, MiningSettings(search=search))
    names = {path.name.split("-")[0] for path in cached.folder.iterdir() if not path.name.endswith(".npy")}
    assert names == {"index", "neighbours"}
    (index,) = cached.folder.glob("*.faiss")
    assert index.name == f"index-images-{search}.faiss"

    def no_search(*_):
        raise AssertionError("searched again")

    monkeypatch.setattr("hf_distinct.data.similarity_index.SimilarityIndex.search", no_search)
    again = find_neighbours(three_hundred, cached, MiningSettings(search=search))
    assert again.rows.tolist() == first.rows.tolist() and again.searched == first.searched
    assert again.embeddings == "embeddings-a"
    with pytest.raises(AssertionError, match="searched again"):  # other settings are another search
        find_neighbours(three_hundred, cached, MiningSettings(first_rank=2, search=search))


def test_neighbours_whose_bytes_changed_are_mined_anew(cached, three_hundred, caplog):
    first = find_neighbours(three_hundred, cached, MiningSettings())
    (path,) = cached.folder.glob("neighbours-*")
    content = bytearray(path.read_bytes())
    for place in (20, len(content) - 9):  # of the header, of the numbers
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        again = find_neighbours(three_hundred, cached, MiningSettings())
        assert again.rows.tolist() == first.rows.tolist() and "mined again" in caplog.text
        assert path.read_bytes() == content
        caplog.clear()


def test_a_search_goes_on_where_it_was(cached, three_hundred, monkeypatch):
    monkeypatch.setattr("hf_distinct.data.mining.PART_ROWS", 50)
    whole = find_neighbours(three_hundred, cached, MiningSettings())
    for path in cached.folder.glob("neighbours-*"):
        path.unlink()
    searched, search = [], _Search._search

    def killed_at_the_fourth(self, part):
        if len(searched) == 3:
            raise KeyboardInterrupt
        searched.append(part.start)
        return search(self, part)

    monkeypatch.setattr(_Search, "_search", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        find_neighbours(three_hundred, cached, MiningSettings())
    searched.clear()
    found = find_neighbours(three_hundred, cached, MiningSettings())
    assert searched == [150, 200, 250]
    assert found.rows.tobytes() == whole.rows.tobytes()
    assert found.similarities.tobytes() == whole.similarities.tobytes()
    assert not list(cached.folder.glob("*.parts"))


@pytest.mark.parametrize("search", ["exact", "ivf"])
@pytest.mark.parametrize(("size", "dim"), [(300, 16), (299, 16), (300, 8)])
def test_an_index_of_another_data_set_is_refused(cached, three_hundred, tmp_path, size, dim, search):
    others, _ = planted(size, dim, 1, [10.0], seed=1)
    CaptionEmbeddings(others, others, torch.arange(size + 1)).save(tmp_path / "embeddings-b")
    others = CaptionEmbeddings.load(tmp_path / "embeddings-b")
    find_neighbours(three_hundred.select(range(size)), others, MiningSettings(search=search))
    for name in (f"index-images-{search}.faiss", f"index-images-{search}.json"):
        (others.folder / name).rename(cached.folder / name)
    with pytest.raises(ValueError, match=rf"index-images-{search}\.faiss' is (an index of other|no index of these)"):
        find_neighbours(three_hundred, cached, MiningSettings(search=search))
    (cached.folder / f"index-images-{search}.faiss").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"is no index of these 300 embeddings"):
        find_neighbours(three_hundred, cached, MiningSettings(search=search))
