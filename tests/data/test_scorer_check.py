import logging

import pytest
import torch

from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.scorer_check import ScorerCheck, check_scorer


def test_recall_by_hand():
    # Pictures along the axes; the captions of picture 0: right, wrong (nearer to 1); of 1: right; of 2: a tie with 0.
    images = torch.eye(3)
    captions = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 1.0, 0], [0.5**0.5, 0, 0.5**0.5]])
    embeddings = CaptionEmbeddings(images, captions, torch.tensor([0, 2, 3, 4]))
    check = check_scorer(embeddings, ["a", "b", "c"])
    assert check == ScorerCheck(recall_at_1=0.5, gallery=3, captions=4)
    # Of rows of one id the first is taken: without picture 2 and its caption, two of three are right.
    assert check_scorer(embeddings, ["a", "b", "a"]) == ScorerCheck(2 / 3, 2, 3)
    with pytest.raises(ValueError, match="1 image is not enough"):
        check_scorer(embeddings, ["a", "a", "a"])


def test_a_large_data_set_is_sampled_alike_whatever_its_order():
    count = 60
    vectors = torch.nn.functional.normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    noise = torch.nn.functional.normalize(
        vectors + 0.5 * torch.randn(count, 4, generator=torch.Generator().manual_seed(1)), dim=1
    )
    ids = [str(row) for row in range(count)]
    one = check_scorer(CaptionEmbeddings(vectors, noise, torch.arange(count + 1)), ids, gallery=20)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(2))
    shuffled = CaptionEmbeddings(vectors[order], noise[order], torch.arange(count + 1))
    assert check_scorer(shuffled, [ids[row] for row in order.tolist()], gallery=20) == one
    assert one.gallery == one.captions == 20 and 0 < one.recall_at_1 < 1


@pytest.mark.parametrize(
    ("recall", "gallery", "blind"),
    [(0.09, 1000, True), (0.11, 1000, False), (0.15, 50, True), (0.25, 50, False), (0.45, 10, True), (0.6, 10, False)],
)
def test_blind_below_a_tenth_or_ten_times_chance(recall, gallery, blind, caplog):
    check = ScorerCheck(recall, gallery, gallery)
    assert check.is_blind is blind
    with caplog.at_level(logging.INFO):
        check.warn("ViT-B-32:openai")
    (record,) = caplog.records
    assert f"{recall:.3f} (chance {1 / gallery:.3f})" in record.getMessage()
    assert ("hf-distinct train-clip" in record.getMessage()) is blind
    assert (record.levelno == logging.WARNING) is blind
