"""METEOR and SPICE of captions, which need Java, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.java_metrics import meteor_scores, spice_scores

_INPUTS = """
Args:
    predictions: list of captions, one per image.
    references: list of lists, the reference captions of each image.
    spice: also compute SPICE, which is slow and downloads its models at first use.

Returns:
    "METEOR", and "SPICE" if requested, from 0 to 1.
"""


class CaptionJava(evaluate.Metric):
    """Metrics that need Java, see `hf_distinct.evaluation.java_metrics`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="METEOR and SPICE of image captions, through pycocoevalcap.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]], spice: bool = False) -> dict[str, float]:
        scores = {"METEOR": meteor_scores(predictions, references)[0]}
        return scores | {"SPICE": spice_scores(predictions, references)[0]} if spice else scores
