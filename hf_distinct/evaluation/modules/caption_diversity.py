"""Vocabulary, length, repetition and novelty of captions, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.diversity import distinct_n, mean_length, novelty, self_bleu, unique_share, vocabulary

_INPUTS = """
Args:
    predictions: list of captions, at least two.
    training_captions: the captioner's training captions, for "novelty".

Returns:
    "vocabulary" (number of different words), "mean_length" (words per caption), "unique" (fraction of different
    captions), "distinct_1" and "distinct_2" (fraction of different words and word pairs), "self_BLEU" (each caption
    against all others, 0 to 1), and with training captions "novelty" (fraction of captions that are not among them).
"""


class CaptionDiversity(evaluate.Metric):
    """Diversity of captions, see `hf_distinct.evaluation.diversity`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Diversity of a set of image captions.",
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
