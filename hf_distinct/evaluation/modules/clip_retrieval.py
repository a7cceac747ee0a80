"""Retrieval between captions and images in both directions, as a metric of `evaluate`."""

import datasets
import evaluate
import torch

from hf_distinct.evaluation.retrieval import retrieval_metrics

_INPUTS = """
Args:
    predictions: list of CLIP embeddings of captions, L2-normalised.
    references: list of CLIP embeddings of images, L2-normalised; predictions[i] describes references[i].

Returns:
    for the prefixes "t2i_" and "i2t_": "R@1", "R@5", "R@10", "MRR" from 0 to 1, and "median_rank" from 1. Ties count
    against the captions.
"""


class ClipRetrieval(evaluate.Metric):
    """Where captions and images find each other, see `hf_distinct.evaluation.retrieval`."""

    def _info(self) -> evaluate.MetricInfo:
        embedding = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="Text-to-image and image-to-text retrieval among L2-normalised CLIP embeddings.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": embedding, "references": embedding}),
        )

    def _compute(self, predictions: list[list[float]], references: list[list[float]]) -> dict[str, float]:
        return retrieval_metrics(torch.as_tensor(predictions), torch.as_tensor(references))
