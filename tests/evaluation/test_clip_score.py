"""CLIPScore and RefCLIPScore by hand."""

from __future__ import annotations

import pytest
import torch

from hf_distinct.evaluation.clip_score import clip_scores, ref_clip_scores

TEXTS = torch.tensor([[1.0, 0.0], [0.6, 0.8], [1.0, 0.0]])
IMAGES = torch.tensor([[0.6, 0.8], [0.6, 0.8], [-1.0, 0.0]])


def test_clip_score_by_hand():
    assert clip_scores(TEXTS, IMAGES).tolist() == pytest.approx([2.5 * 0.6, 2.5, 0.0])  # never below 0


def test_ref_clip_score_by_hand():
    references = torch.tensor([[0.0, 1.0], [0.8, 0.6], [-0.6, -0.8], [1.0, 0.0]])
    found = ref_clip_scores(TEXTS, IMAGES, references, torch.tensor([0, 0, 1, 2]))
    # The better of 0 and 0.8 beside 1.5; a reference opposite to the caption; a caption opposite to its image.
    assert found.tolist() == pytest.approx([2 * 1.5 * 0.8 / (1.5 + 0.8), 0.0, 0.0])


def test_errors():
    with pytest.raises(ValueError, match="embeddings of the same shape"):
        clip_scores(TEXTS, IMAGES[:2])
    with pytest.raises(ValueError, match="image 1 has no reference"):
        ref_clip_scores(TEXTS, IMAGES, TEXTS, torch.tensor([0, 0, 2]))
    with pytest.raises(ValueError, match="3 references need one row number each"):
        ref_clip_scores(TEXTS, IMAGES, TEXTS, torch.tensor([0, 1]))
