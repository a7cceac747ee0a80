"""Retrieval between captions and images in both directions, as a metric of `evaluate`."""

import datasets
import evaluate
import torch

from hf_distinct.evaluation.retrieval import neighbour_ranks, rank_summary, retrieval_metrics

_INPUTS = """
Args:
    predictions: list of CLIP embeddings of captions, L2-normalised.
    references: list of CLIP embeddings of images, L2-normalised; predictions[i] describes references[i].
    neighbours: for each image the rows of the images most similar to it, for retrieval among them.

Returns:
    for the prefixes "t2i_" and "i2t_": "R@1", "R@5", "R@10", "MRR" from 0 to 1, and "median_rank" from 1. Ties count
    against the captions. With neighbours also "neighbours_t2i_" and "neighbours_i2t_", for retrieval among them.
"""


class ClipRetrieval(evaluate.Metric):
    """Retrieval between captions and images, see `hf_distinct.evaluation.retrieval`."""

    def _info(self) -> evaluate.MetricInfo:
        embedding = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Text-to-image and image-to-text retrieval among L2-normalised CLIP embeddings.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": embedding, "references": embedding}),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        neighbours: list[list[int]] | None = None,
    ) -> dict[str, float]:
        texts, images = torch.as_tensor(predictions), torch.as_tensor(references)
        scores = retrieval_metrics(texts, images)
        if neighbours is not None:
            to_image, to_text = neighbour_ranks(texts, images, neighbours)
            scores |= rank_summary("neighbours_t2i", to_image) | rank_summary("neighbours_i2t", to_text)
        return scores
