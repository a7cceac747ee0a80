"""Retrieval ranks and metrics against numbers worked out by hand and a slow version."""

from __future__ import annotations

import resource

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_distinct.evaluation.retrieval import neighbour_ranks, retrieval_metrics, retrieval_ranks


def unit(*rows):
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float64), dim=1)


class TestRanks:
    def test_by_hand(self):
        # Cosines with the axes: 0.6, 0.8, 0.0.
        queries = unit([3.0, 4.0, 0.0]).repeat(3, 1)
        assert retrieval_ranks(queries, torch.eye(3).double(), torch.tensor([0, 1, 2])).tolist() == [2, 1, 3]

    def test_ties_count_against_the_model(self):
        # A captioner that says the same of every image: the query is as near to each of the four.
        gallery = unit([1.0, 0.0]).repeat(4, 1)
        assert retrieval_ranks(gallery, gallery, torch.arange(4)).tolist() == [4, 4, 4, 4]
        # Equal up to the rounding of float32, in the model's favour: still a tie. Farther apart: none.
        queries = unit([1.0, 0.0])
        assert retrieval_ranks(queries, torch.tensor([[0.5, 0.0], [0.5 - 1e-7, 0.0]]).double(), torch.tensor([0])) == 2
        assert retrieval_ranks(queries, torch.tensor([[0.5, 0.0], [0.5 - 1e-5, 0.0]]).double(), torch.tensor([0])) == 1

    def test_several_right_items(self):
        # Items 0 and 2 are right. The better of them, 2, has one wrong item above; item 0 is not in its way.
        gallery = torch.tensor([[0.1], [0.9], [0.8], [0.5]])
        ranks = retrieval_ranks(torch.ones(1, 1), gallery, torch.tensor([7]), gallery_ids=torch.tensor([7, 1, 7, 2]))
        assert ranks.tolist() == [2]

    # Whole numbers: similarities are exact, so that ties are frequent and real.
    @given(st.data(), st.integers(1, 7), st.integers(1, 6), st.integers(1, 3), st.integers(1, 4))
    def test_against_the_definition(self, data, queries, gallery, dim, chunk_size):
        numbers = st.integers(-2, 2)
        q = [data.draw(st.lists(numbers, min_size=dim, max_size=dim)) for _ in range(queries)]
        g = [data.draw(st.lists(numbers, min_size=dim, max_size=dim)) for _ in range(gallery)]
        ids = data.draw(st.lists(st.integers(0, 3), min_size=gallery, max_size=gallery))
        targets = data.draw(st.lists(st.sampled_from(ids), min_size=queries, max_size=queries))

        expected = []
        for query, target in zip(q, targets, strict=True):
            scores = [sum(a * b for a, b in zip(query, item, strict=True)) for item in g]
            best = max(score for score, own in zip(scores, ids, strict=True) if own == target)
            expected.append(1 + sum(own != target and score >= best for score, own in zip(scores, ids, strict=True)))
        ranks = retrieval_ranks(
            torch.tensor(q).double(), torch.tensor(g).double(), torch.tensor(targets), torch.tensor(ids), chunk_size
        )
        assert ranks.dtype == torch.int64
        assert ranks.tolist() == expected

    def test_half_precision_is_compared_in_float32(self):
        # The two products round to the same number in bfloat16, which would be a tie.
        gallery = torch.tensor([[0.9883, 0.0], [0.9922, 0.0]], dtype=torch.bfloat16)
        query = torch.tensor([[0.4004, 0.0]], dtype=torch.bfloat16)
        assert (query @ gallery.T).unique().numel() == 1
        assert retrieval_ranks(query, gallery, torch.tensor([1])).tolist() == [1]

    def test_no_queries(self):
        assert retrieval_ranks(torch.empty(0, 3), torch.eye(3), torch.empty(0, dtype=torch.int64)).shape == (0,)

    def test_errors(self):
        eye, one = torch.eye(3), torch.tensor([0])
        with pytest.raises(ValueError, match="share d"):
            retrieval_ranks(torch.ones(1, 2), eye, one)
        with pytest.raises(ValueError, match=r"targets needs one id per query \(3\)"):
            retrieval_ranks(eye, eye, one)
        with pytest.raises(ValueError, match="query 2: its target 5 is not in the gallery"):
            retrieval_ranks(eye, eye, torch.tensor([0, 1, 5]), chunk_size=2)
        broken = eye.clone()
        broken[1, 2] = float("nan")
        with pytest.raises(ValueError, match="gallery: the embedding in row 1"):
            retrieval_ranks(eye, broken, torch.arange(3))
        with pytest.raises(ValueError, match="queries: the embedding in row 1"):
            retrieval_ranks(broken, eye, torch.arange(3))


class TestMetrics:
    def test_by_hand(self):
        # Row i of the similarities, text i against the images: ranks 1, 3, 2 (the diagonal is right).
        #   text 0: 0.9 0.1 0.2      text 1: 0.8 0.3 0.5      text 2: 0.1 0.7 0.6
        # Columns, image j against the texts: 0.9 0.8 0.1 -> 1;  0.1 0.3 0.7 -> 2;  0.2 0.5 0.6 -> 1.
        texts = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.3, 0.5], [0.1, 0.7, 0.6]], dtype=torch.float64)
        metrics = retrieval_metrics(texts, torch.eye(3).double())
        assert metrics == pytest.approx(
            {
                "t2i_R@1": 1 / 3,
                "t2i_R@5": 1.0,
                "t2i_R@10": 1.0,
                "t2i_MRR": (1 + 1 / 3 + 1 / 2) / 3,
                "t2i_median_rank": 2.0,
                "i2t_R@1": 2 / 3,
                "i2t_R@5": 1.0,
                "i2t_R@10": 1.0,
                "i2t_MRR": (1 + 1 / 2 + 1) / 3,
                "i2t_median_rank": 1.0,
            }
        )

    def test_recall_depths_and_even_median(self):
        # The same caption for 12 images: everything ties, so each rank is 12, and no recall is earned.
        same = unit([1.0, 1.0]).repeat(12, 1)
        metrics = retrieval_metrics(same, same)
        assert metrics["t2i_R@10"] == metrics["i2t_R@10"] == 0.0
        assert metrics["t2i_median_rank"] == 12.0
        # Text i lies at angle 0, image j at j * 5 degrees: the rank of image j is j + 1, for j = 0..11.
        angles = torch.arange(12).double() * torch.pi / 36
        images = torch.stack([angles.cos(), angles.sin()], dim=1)
        metrics = retrieval_metrics(unit([1.0, 0.0]).repeat(12, 1), images)
        assert (metrics["t2i_R@1"], metrics["t2i_R@5"], metrics["t2i_R@10"]) == pytest.approx(
            (1 / 12, 5 / 12, 10 / 12)
        )
        assert metrics["t2i_median_rank"] == 6.5
        assert metrics["t2i_MRR"] == pytest.approx(sum(1 / rank for rank in range(1, 13)) / 12)

    def test_several_texts_and_images_without_text(self):
        # Two texts of image 2, one of image 0; image 1 has none and is only there to be confused with.
        images = torch.eye(3).double()
        texts = unit([0.0, 1.0, 2.0], [0.0, 2.0, 1.0], [1.0, 0.0, 0.0])
        metrics = retrieval_metrics(texts, images, torch.tensor([2, 2, 0]))
        assert metrics["t2i_R@1"] == pytest.approx(2 / 3)  # the second text is nearer to image 1
        assert metrics["i2t_R@1"] == 1.0  # image 2 finds its first text, image 0 its only one; image 1 does not ask

    def test_errors(self):
        with pytest.raises(ValueError, match="no texts"):
            retrieval_metrics(torch.empty(0, 3), torch.eye(3))
        with pytest.raises(ValueError, match="2 texts for 3 images: pass text_to_image"):
            retrieval_metrics(torch.ones(2, 3), torch.eye(3))


class TestNeighbours:
    def test_by_hand(self):
        # Cosines of text i and image j; text 0 and 1 are right of all, text 2 is nearest to image 1.
        images = torch.eye(3).double()
        texts = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.8, 0.5], [0.1, 0.7, 0.6]], dtype=torch.float64)
        to_image, to_text = neighbour_ranks(texts, images, [[1, 2], [0], [1]])
        assert to_image.tolist() == [1, 1, 2]  # image 1 (0.7) is nearer to text 2 than its own (0.6)
        assert to_text.tolist() == [1, 1, 1]  # among texts 0.9 0.3 0.1; 0.8 0.1; 0.6 0.5
        assert [each.tolist() for each in neighbour_ranks(texts, images, [[], [], []])] == [[1, 1, 1]] * 2

    def test_ties_count_against_the_model(self):
        same = unit([1.0, 0.0]).repeat(3, 1)
        assert neighbour_ranks(same, same, [[1, 2], [0], [0, 1]])[0].tolist() == [3, 2, 3]

    def test_all_as_neighbours_is_the_whole_gallery(self):
        generator = torch.Generator().manual_seed(0)
        texts, images = (torch.nn.functional.normalize(torch.randn(9, 3, generator=generator), dim=1) for _ in "ab")
        others = [[j for j in range(9) if j != i] for i in range(9)]
        to_image, to_text = neighbour_ranks(texts, images, others)
        assert to_image.tolist() == retrieval_ranks(texts, images, torch.arange(9)).tolist()
        assert to_text.tolist() == retrieval_ranks(images, texts, torch.arange(9)).tolist()

    def test_errors(self):
        eye = torch.eye(3)
        with pytest.raises(ValueError, match="3 texts, 3 images and 1 lists"):
            neighbour_ranks(eye, eye, [[0]])
        with pytest.raises(ValueError, match="row 1: the image is among its own"):
            neighbour_ranks(eye, eye, [[1], [1], [0]])


def test_memory_does_not_grow_with_the_gallery():
    # 400 queries among 200,000 items at once would be 320 MB of similarities.
    generator = torch.Generator().manual_seed(0)
    gallery = torch.nn.functional.normalize(torch.randn(200_000, 4, generator=generator), dim=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ranks = retrieval_ranks(gallery[:400], gallery, torch.arange(400), chunk_size=400)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 64
    assert (ranks[:5] == 1 + ((gallery[:5] @ gallery.T) >= 1 - 1e-6).sum(dim=1) - 1).all()
