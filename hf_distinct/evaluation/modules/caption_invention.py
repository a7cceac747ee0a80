"""The share of content words that no reference has, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.invention import invention

_INPUTS = """
Args:
    predictions: list of captions, one for each image.
    references: list of lists, the reference captions of each image.

Returns:
    "invention", the share of the captions' content words that none of the references of their image has, from 0 to 1.
"""


class CaptionInvention(evaluate.Metric):
    """How much of captions nobody else saw, see `hf_distinct.evaluation.invention`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of content words of image captions that no reference caption has.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        return {"invention": invention(predictions, references)}
