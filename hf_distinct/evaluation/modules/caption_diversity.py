"""Vocabulary, length, repetition and novelty of captions, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.diversity import distinct_n, mean_length, novelty, self_bleu, unique_share, vocabulary

_INPUTS = """
Args:
    predictions: list of captions, two at least.
    training_captions: those that the captioner has seen, for "novelty".

Returns:
    "vocabulary" (number of different words), "mean_length" (words in a caption), "unique" (share of captions that
    differ), "distinct_1" and "distinct_2" (share of words and word pairs that differ), "self_BLEU" (each against all
    others, 0 to 1), and with training captions "novelty" (share of captions that are none of them).
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

    def _compute(self, predictions: list[str], training_captions: list[str] | None = None) -> dict[str, float]:
        scores = {
            "vocabulary": vocabulary(predictions),
            "mean_length": mean_length(predictions),
            "unique": unique_share(predictions),
            "distinct_1": distinct_n(predictions, 1),
            "distinct_2": distinct_n(predictions, 2),
            "self_BLEU": self_bleu(predictions),
        }
        if training_captions is not None:
            scores["novelty"] = novelty(predictions, training_captions)
        return scores
