"""Similar images of every image, the hard negatives of the contrastive reward."""

from __future__ import annotations

import torch
from datasets import Dataset, Value
from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)


def mine_neighbours(
    dataset: Dataset,
    image_embeds: Tensor,
    num_neighbours: int = 2,
    first_rank: int = 1,
    min_similarity: float = -1.0,
    max_similarity: float = 0.999,
    chunk_size: int = 1024,
) -> Dataset:
    """Add a column `neighbours`: for each image the rows of the images most similar to it, most similar first.

    The search is exact. Candidates for an image are all images of another image id whose cosine similarity to it lies
    between the two bounds; they are ranked from 1, equal similarities by lower row, and the ranks `first_rank` to
    `first_rank + num_neighbours - 1` are taken. (The paper's code takes ranks 4 and 5: the very nearest images may
    show the same thing, and negatives that are too hard make training collapse.) A summary is logged.

    Args:
        dataset: N rows with a column `image_id`, in the order of `image_embeds`.
        image_embeds: (N, dim), L2-normalised; the search runs on their device.
        num_neighbours: Neighbours per image; on small data sets an image may get fewer.
        first_rank: The most similar rank taken.
        min_similarity: Candidates less similar are left out.
        max_similarity: Candidates more similar are left out as near duplicates.
        chunk_size: Images compared with all others at a time; memory grows as chunk_size x N.

    Returns:
        The data set with the column `neighbours` (lists of int rows); an existing one is replaced.

    Raises:
        ValueError: Arguments out of range, embeddings that are not normalised or do not belong to the data set.
    """
    _check(dataset, image_embeds, num_neighbours, first_rank, min_similarity, max_similarity, chunk_size)
    embeds = image_embeds.float()
    codes: dict[str, int] = {}
    ids = torch.tensor([codes.setdefault(each, len(codes)) for each in dataset["image_id"]], device=embeds.device)
    depth = min(first_rank - 1 + num_neighbours, len(embeds))

    neighbours: list[list[int]] = []
    totals, counts = torch.zeros(depth), torch.zeros(depth)
    num_with_duplicates = 0
    for start in range(0, len(embeds), chunk_size):
        # Rounding can bring a cosine above 1, past a bound of exactly 1.
        similarities = (embeds[start : start + chunk_size] @ embeds.T).clamp(-1.0, 1.0)
        others = ids[start : start + chunk_size, None] != ids[None, :]
        duplicates = (similarities > max_similarity) & others
        num_with_duplicates += int(duplicates.any(dim=1).sum())
        similarities.masked_fill_(~others | duplicates | (similarities < min_similarity), -torch.inf)
        values, rows = _top(similarities, depth)
        values, rows, found = values.cpu(), rows.cpu(), values.isfinite().cpu()
        totals += values.masked_fill(~found, 0.0).sum(dim=0)
        counts += found.sum(dim=0)
        neighbours += [
            row[mask].tolist() for row, mask in zip(rows[:, first_rank - 1 :], found[:, first_rank - 1 :], strict=True)
        ]

    _log_summary(neighbours, totals / counts, num_neighbours, first_rank, num_with_duplicates)
    if "neighbours" in dataset.column_names:
        dataset = dataset.remove_columns("neighbours")
    return dataset.add_column("neighbours", neighbours, feature=[Value("int64")])


def _top(similarities: Tensor, depth: int) -> tuple[Tensor, Tensor]:
    """Return the `depth` largest values of each row and their columns, equal values by lower column."""
    values, columns = similarities.topk(depth, dim=1)
    columns, order = columns.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    # topk takes any of the columns that tie for its last place: rows where some were left out are sorted in full.
    last = values[:, -1:]
    left_out = (similarities == last).sum(dim=1) > (values == last).sum(dim=1)
    for row in (left_out & last[:, 0].isfinite()).nonzero()[:, 0]:
        full_values, full_columns = similarities[row].sort(descending=True, stable=True)
        values[row], columns[row] = full_values[:depth], full_columns[:depth]
    return values, columns


def _check(
    dataset: Dataset,
    image_embeds: Tensor,
    num_neighbours: int,
    first_rank: int,
    min_similarity: float,
    max_similarity: float,
    chunk_size: int,
) -> None:
    if min(num_neighbours, first_rank, chunk_size) < 1 or min_similarity > max_similarity:
        raise ValueError(
            f"num_neighbours={num_neighbours}, first_rank={first_rank} and chunk_size={chunk_size} should be at least "
            f"1, and min_similarity={min_similarity} at most max_similarity={max_similarity}."
        )
    if image_embeds.ndim != 2 or len(image_embeds) != len(dataset) or not len(dataset):
        raise ValueError(f"image_embeds of shape {tuple(image_embeds.shape)} do not fit {len(dataset)} rows.")
    norms = image_embeds.float().norm(dim=1)
    if not torch.allclose(norms, torch.ones_like(norms), atol=1e-3):
        worst = int((norms - 1).abs().nan_to_num(nan=torch.inf).argmax())
        raise ValueError(f"image_embeds should have length 1, row {worst} has {float(norms[worst]):.4f}.")
    if "row" in dataset.column_names and list(dataset["row"]) != list(range(len(dataset))):
        raise ValueError("The column 'row' is not 0, 1, 2, ...: mine on the data set as embed_dataset returns it.")


def _log_summary(
    neighbours: list[list[int]], means: Tensor, num_neighbours: int, first_rank: int, num_with_duplicates: int
) -> None:
    taken = ", ".join(f"rank {rank}: {means[rank - 1]:.3f}" for rank in range(first_rank, len(means) + 1))
    num_short = sum(len(rows) < num_neighbours for rows in neighbours)
    logger.info(
        f"Mined neighbours of {len(neighbours)} images; mean similarity by rank: {taken or 'none'}; near duplicates "
        f"left out for {num_with_duplicates / len(neighbours):.1%} of the images."
    )
    if num_short:
        logger.warning(f"{num_short} of {len(neighbours)} images got fewer than {num_neighbours} neighbours.")
