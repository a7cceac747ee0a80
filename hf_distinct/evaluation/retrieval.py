"""Retrieval of images by captions and of captions by images, under CLIP.

It is the usual metric of distinctiveness: all images of a gallery are ranked by similarity to a caption, and the rank
of the caption's own image counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_distinct.evaluation.bootstrap import Statistic, mean_of, median_of, value_of

RECALL_DEPTHS = (1, 5, 10)
"""The depths k of the recalls R@k."""

TIE_TOLERANCE = 1e-6
"""Cosines closer than this are ties: float32 rounding and batch shape change them by about 1e-7."""


def retrieval_ranks(
    queries: Tensor,
    gallery: Tensor,
    targets: Tensor,
    gallery_ids: Tensor | None = None,
    chunk_size: int = 2048,
) -> Tensor:
    """Return the rank of the correct gallery item for each query, from 1.

    The rank is 1 + the number of incorrect items at least as similar as the correct one. So ties count against the
    model: a captioner that writes the same caption for every image gets the last rank everywhere, not the first. If
    several items are correct (five captions of one image), the most similar of them is ranked against the others.

    Args:
        queries: L2-normalised embeddings, `(N, d)`.
        gallery: L2-normalised embeddings, `(M, d)`.
        targets: `(N,)` int, the id of the correct item (or items) for each query.
        gallery_ids: `(M,)` int, the id of each gallery item; by default its position 0..M-1.
        chunk_size: queries, and gallery items, per chunk. Memory use is about 6 bytes times its square, plus the
            embeddings, whatever N and M.

    Returns:
        `(N,)` int64 ranks from 1 to M.

    Raises:
        ValueError: shapes do not match, an embedding is not finite, or a query has no correct item in the gallery.

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
            f"targets needs one id per query ({len(queries)}), gallery_ids one per gallery item ({len(gallery)}); "
            f"got {tuple(targets.shape)} and {tuple(gallery_ids.shape)}."
        )
    _check_finite(queries, "queries", chunk_size)
    _check_finite(gallery, "gallery", chunk_size)
    ranks: list[Tensor] = []
    for start in range(0, len(queries), chunk_size):
        chunk, wanted = _full_precision(queries[start : start + chunk_size]), targets[start : start + chunk_size]
        best = torch.full((len(chunk), 1), -torch.inf, dtype=chunk.dtype, device=chunk.device)
        for rows in torch.isin(gallery_ids, wanted).nonzero().split(chunk_size):
            if not len(rows):  # split() of an empty tensor returns one empty chunk
                break
            rows = rows[:, 0]
            right = wanted[:, None] == gallery_ids[rows]
            similarities = chunk @ _full_precision(gallery[rows]).T
            best = torch.maximum(best, similarities.masked_fill_(~right, -torch.inf).amax(dim=1, keepdim=True))
        lacking = (best[:, 0] == -torch.inf).nonzero()
        if len(lacking):
            query = start + int(lacking[0])
            raise ValueError(f"query {query}: its target {int(targets[query])} is not in the gallery.")
        above = torch.zeros(len(chunk), dtype=torch.int64, device=chunk.device)
        for items, ids in zip(gallery.split(chunk_size), gallery_ids.split(chunk_size), strict=True):
            as_near = chunk @ _full_precision(items).T >= best - TIE_TOLERANCE
            above += (as_near & (wanted[:, None] != ids)).sum(dim=1)
        ranks.append(1 + above)
    return torch.cat(ranks) if ranks else torch.empty(0, dtype=torch.int64, device=queries.device)


def both_ranks(
    text_embeds: Tensor, image_embeds: Tensor, text_to_image: Tensor | None = None, chunk_size: int = 2048
) -> tuple[Tensor, Tensor]:
    """Return the ranks for `retrieval_metrics`: of each text's image, and of the most similar text of each image.

    Arguments and errors: see `retrieval_metrics`. The second ranks are in the order of `text_to_image.unique()`.
    """
    if len(text_embeds) == 0:
        raise ValueError("there are no texts to retrieve with.")
    if text_to_image is None:
        if len(text_embeds) != len(image_embeds):
            raise ValueError(
                f"{len(text_embeds)} texts for {len(image_embeds)} images: pass text_to_image with the image of each "
                "text."
            )
        text_to_image = torch.arange(len(text_embeds), device=text_embeds.device)
    described = text_to_image.unique()
    return retrieval_ranks(text_embeds, image_embeds, text_to_image, chunk_size=chunk_size), retrieval_ranks(
        image_embeds[described], text_embeds, described, gallery_ids=text_to_image, chunk_size=chunk_size
    )


def neighbour_ranks(
    text_embeds: Tensor, image_embeds: Tensor, neighbours: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Return ranks in small galleries: each image together with the images most similar to it.

    Ties count against the model, as in `retrieval_ranks`.

    Args:
        text_embeds: L2-normalised embeddings, `(N, d)`.
        image_embeds: L2-normalised embeddings, `(N, d)`; text i describes image i.
        neighbours: for each image the rows of its similar images, as from `hf_distinct.data.mine_neighbours`.

    Returns:
        `(N,)` int64 each, from 1 to 1 + the number of neighbours: the rank of the image for each text, and the rank of
        the text for each image, among those of the neighbours.

    Raises:
        ValueError: the numbers of rows differ, an embedding is not finite, or an image is among its own neighbours.
    """
    if not len(text_embeds) == len(image_embeds) == len(neighbours):
        raise ValueError(
            f"{len(text_embeds)} texts, {len(image_embeds)} images and {len(neighbours)} lists of neighbours: each "
            "image needs one of each."
        )
    _check_finite(text_embeds, "text_embeds", 2048)
    _check_finite(image_embeds, "image_embeds", 2048)
    to_image: list[int] = []
    to_text: list[int] = []
    for row, own in enumerate(neighbours):
        if row in own:
            raise ValueError(f"row {row}: the image is among its own neighbours.")
        rows = torch.tensor([row, *own], device=text_embeds.device)
        for ranks, query, gallery in ((to_image, text_embeds, image_embeds), (to_text, image_embeds, text_embeds)):
            near = _full_precision(gallery[rows]) @ _full_precision(query[row])
            ranks.append(1 + int((near[1:] >= near[0] - TIE_TOLERANCE).sum()))
    return torch.tensor(to_image), torch.tensor(to_text)


def retrieval_metrics(
    text_embeds: Tensor, image_embeds: Tensor, text_to_image: Tensor | None = None, chunk_size: int = 2048
) -> dict[str, float]:
    """Return recall, mean reciprocal rank and median rank in both directions.

    Text to image (`t2i_`): each text retrieves its image among all images. Image to text (`i2t_`): each image with a
    text retrieves one of its texts among all texts; images without a text only serve as distractors. Ties count
    against the model, see `retrieval_ranks`.

    Args:
        text_embeds: L2-normalised embeddings, `(N, d)`.
        image_embeds: L2-normalised embeddings, `(M, d)`.
        text_to_image: `(N,)` int, the row of each text's image in `image_embeds`; by default text i has image i.
        chunk_size: see `retrieval_ranks`.

    Returns:
        For both prefixes `R@1`, `R@5`, `R@10` and `MRR` as fractions from 0 to 1, and `median_rank` from 1.

    Raises:
        ValueError: there are no texts, shapes do not match, or an embedding is not finite.
    """
    to_image, to_text = both_ranks(text_embeds, image_embeds, text_to_image, chunk_size)
    return rank_summary("t2i", to_image) | rank_summary("i2t", to_text)


def rank_summary(direction: str, ranks: Tensor) -> dict[str, float]:
    """Return recalls, mean reciprocal rank and median rank, `{"t2i_R@1": ...}` for the direction "t2i"."""
    return {name: value_of(each, len(ranks)) for name, each in rank_statistics(direction, ranks).items()}


def rank_statistics(direction: str, ranks: Tensor) -> dict[str, Statistic]:
    """Return the metrics of `rank_summary` as functions of the images in the test set; one rank per image."""
    values = ranks.cpu().double().numpy()
    statistics = {f"{direction}_R@{depth}": mean_of(values <= depth) for depth in RECALL_DEPTHS}
    return statistics | {f"{direction}_MRR": mean_of(1 / values), f"{direction}_median_rank": median_of(values)}


def _full_precision(embeds: Tensor) -> Tensor:
    """Return the embeddings in at least float32."""
    return embeds.to(torch.promote_types(embeds.dtype, torch.float32))


def _check_finite(embeds: Tensor, name: str, chunk_size: int) -> None:
    """Reject NaN, which would compare as "not similar" and improve the ranks."""
    for number, rows in enumerate(embeds.split(chunk_size)):
        broken = (~rows.isfinite()).any(dim=1).nonzero()
        if len(broken):
            row = number * chunk_size + int(broken[0])
            raise ValueError(f"{name}: the embedding in row {row} contains NaN or infinity.")
