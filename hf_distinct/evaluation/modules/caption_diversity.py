"""Vocabulary, length and share of different captions, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.diversity import distinct_n, mean_length, unique_share, vocabulary

_INPUTS = """
Args:
    predictions: list of captions.

Returns:
    "vocabulary" (number of different words), "mean_length" (words in a caption), "unique" (share of captions that
    differ), "distinct_1" and "distinct_2" (share of words and word pairs that differ).
"""


class CaptionDiversity(evaluate.Metric):
    """How varied captions are, see `hf_distinct.evaluation.diversity`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How varied a set of image captions is.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        return {
            "vocabulary": vocabulary(predictions),
            "mean_length": mean_length(predictions),
            "unique": unique_share(predictions),
            "distinct_1": distinct_n(predictions, 1),
            "distinct_2": distinct_n(predictions, 2),
        }
