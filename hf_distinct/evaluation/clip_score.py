"""CLIPScore and RefCLIPScore: similarity of captions and images under CLIP (Hessel et al., arXiv 2104.08718).

A captioner trained with a reward from the same CLIP easily gets high values: compare them with those of a judge that
training did not use. Published values prepend "A photo depicts " to each caption and use CLIP ViT-B/32.
"""

from __future__ import annotations

import torch
from torch import Tensor

WEIGHT = 2.5
"""w in the paper; it scales cosines of about 0.1 to 0.4 to the range 0 to 1."""


def clip_scores(text_embeds: Tensor, image_embeds: Tensor) -> Tensor:
    """Return ``2.5 max(cos(c, v), 0)`` for each caption and its image: ``(N,)``.

    Args:
        text_embeds: L2-normalised, ``(N, d)``.
        image_embeds: L2-normalised, ``(N, d)``; row i is the image of caption i.

    Raises:
        ValueError: the shapes differ.
    """
    if text_embeds.ndim != 2 or text_embeds.shape != image_embeds.shape:
        raise ValueError(
            f"captions and images need embeddings of the same shape; got {tuple(text_embeds.shape)} and "
            f"{tuple(image_embeds.shape)}."
        )
    return WEIGHT * (text_embeds.float() * image_embeds.float()).sum(dim=1).clamp_min(0)


def ref_clip_scores(
    text_embeds: Tensor, image_embeds: Tensor, reference_embeds: Tensor, reference_rows: Tensor
) -> Tensor:
    """Return the harmonic mean of CLIPScore and the best ``max(cos(c, r), 0)`` over the references: ``(N,)``.

    Args:
        text_embeds: L2-normalised, ``(N, d)``.
        image_embeds: L2-normalised, ``(N, d)``.
        reference_embeds: L2-normalised, ``(M, d)``, the references of all images.
        reference_rows: ``(M,)`` int64, the row of each reference's image; each image has at least one.

    Raises:
        ValueError: shapes do not match, or an image has no reference.
    """
    scores = clip_scores(text_embeds, image_embeds)
    if reference_rows.shape != (len(reference_embeds),):
        raise ValueError(
            f"{len(reference_embeds)} references need one row number each; got {tuple(reference_rows.shape)}."
        )
    lacking = torch.bincount(reference_rows, minlength=len(scores)) == 0
    if lacking.any():
        raise ValueError(f"image {int(lacking.nonzero()[0])} has no reference.")
    cosines = (text_embeds.float()[reference_rows] * reference_embeds.float()).sum(dim=1).clamp_min(0)
    best = torch.zeros_like(scores).scatter_reduce(0, reference_rows, cosines, "amax")
    both = scores + best
    return torch.where(both > 0, 2 * scores * best / both.clamp_min(torch.finfo().tiny), 0.0)
