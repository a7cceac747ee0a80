"""Can CLIP find the image from its caption, and the caption from its image?

The usual measure of how distinctive captions are: rank all images of a gallery by their similarity to a caption and
look where the caption's own image comes.
"""

from __future__ import annotations

import torch
from torch import Tensor

RECALL_DEPTHS = (1, 5, 10)
"""The depths k of the recalls R@k."""

TIE_TOLERANCE = 1e-6
"""Two cosines closer than this are a tie: float32 rounding and batch shape move them by about 1e-7."""


def retrieval_ranks(
    queries: Tensor,
    gallery: Tensor,
    targets: Tensor,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 1024,
) -> Tensor:
    """Return the rank of the right gallery item for each query, counted from 1.

    The rank is 1 + the number of wrong items at least as similar as the right one: a tie counts against the model, so
    a captioner that says the same of every image comes last everywhere instead of first. Where several items are
    right for a query (five captions of one image), the most similar of them is ranked against the wrong ones.

    Args:
        queries: L2-normalised embeddings, `(N, d)`.
        gallery: L2-normalised embeddings, `(M, d)`.
        targets: `(N,)` int, the id of the right item (or items) for each query.
        gallery_ids: `(M,)` int, the id of each gallery item; by default its position 0..M-1.
        chunk_size: queries compared at a time; a chunk takes `chunk_size * M` floats.

    Returns:
        `(N,)` int64 ranks from 1 to M.

    Raises:
        ValueError: shapes do not fit, an embedding is not finite, or a query has no right item in the gallery.

    Example:
        >>> gallery = torch.eye(3)
        >>> retrieval_ranks(torch.tensor([[0.8, 0.6, 0.0]]), gallery, torch.tensor([1]))
        tensor([2])
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries (N, d) and gallery (M, d) must share d; got {tuple(queries.shape)} and {tuple(gallery.shape)}."
        )
    if gallery_ids is None:
        gallery_ids = torch.arange(len(gallery), device=gallery.device)
    if targets.shape != (len(queries),) or gallery_ids.shape != (len(gallery),):
        raise ValueError(
            f"one target for each of {len(queries)} queries and one id for each of {len(gallery)} gallery items are "
            f"needed; got {tuple(targets.shape)} and {tuple(gallery_ids.shape)}."
        )
    queries, gallery = _full_precision(queries, "queries"), _full_precision(gallery, "gallery")
    ranks: list[Tensor] = []
    for query_chunk, target_chunk in zip(queries.split(chunk_size), targets.split(chunk_size), strict=True):
        similarities = query_chunk @ gallery.T
        right = target_chunk[:, None] == gallery_ids[None, :]
        lacking = (~right.any(dim=1)).nonzero()
        if len(lacking):
            query = int(lacking[0]) + chunk_size * len(ranks)
            raise ValueError(f"query {query}: its target {int(targets[query])} is not in the gallery.")
        best = similarities.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append(1 + ((similarities >= best - TIE_TOLERANCE) & ~right).sum(dim=1))
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64, device=queries.device)


def retrieval_metrics(
    text_embeds: Tensor, image_embeds: Tensor, text_to_image: Tensor | None = None, chunk_size: int = 1024
) -> dict[str, float]:
    """Return recall, mean reciprocal rank and median rank in both directions.

    Text to image (`t2i_`): each text looks for its image among all images. Image to text (`i2t_`): each image that has
    a text looks for one among all texts; images without a text are only there to be confused with. Ties count against
    the model, see `retrieval_ranks`.

    Args:
        text_embeds: L2-normalised embeddings, `(N, d)`.
        image_embeds: L2-normalised embeddings, `(M, d)`.
        text_to_image: `(N,)` int, the row of each text's image in `image_embeds`; by default text i has image i.
        chunk_size: see `retrieval_ranks`.

    Returns:
        For both prefixes `R@1`, `R@5`, `R@10` and `MRR` as shares from 0 to 1, and `median_rank` from 1.

    Raises:
        ValueError: there are no texts, shapes do not fit, or an embedding is not finite.
    """
    if len(text_embeds) == 0:
        raise ValueError("there are no texts to retrieve with.")
    if text_to_image is None:
        if len(text_embeds) != len(image_embeds):
            raise ValueError(
                f"{len(text_embeds)} texts for {len(image_embeds)} images: say by text_to_image which image each "
                "text belongs to."
            )
        text_to_image = torch.arange(len(text_embeds), device=text_embeds.device)
    text_ranks = retrieval_ranks(text_embeds, image_embeds, text_to_image, chunk_size=chunk_size)
    described = text_to_image.unique()
    image_ranks = retrieval_ranks(
        image_embeds[described], text_embeds, described, gallery_ids=text_to_image, chunk_size=chunk_size
    )
    return _summary("t2i", text_ranks) | _summary("i2t", image_ranks)


def _full_precision(embeds: Tensor, name: str) -> Tensor:
    """Return the embeddings in at least float32; a NaN would compare as "not similar" and flatter the ranks."""
    if not embeds.isfinite().all():
        row = int((~embeds.isfinite()).any(dim=1).nonzero()[0])
        raise ValueError(f"{name}: the embedding in row {row} holds NaN or infinity.")
    return embeds.to(torch.promote_types(embeds.dtype, torch.float32))


def _summary(direction: str, ranks: Tensor) -> dict[str, float]:
    ordered = ranks.double().sort().values
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]  # one rank, or two for an even number
    summary = {f"{direction}_R@{depth}": (ordered <= depth).double().mean().item() for depth in RECALL_DEPTHS}
    summary[f"{direction}_MRR"] = (1 / ordered).mean().item()
    summary[f"{direction}_median_rank"] = middle.mean().item()
    return summary
