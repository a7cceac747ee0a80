"""The fraction of content words that no reference contains, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.invention import invention

_INPUTS = """
Args:
    predictions: list of captions, one per image.
    references: list of lists, the reference captions of each image.

Returns:
    "invention", the fraction of the captions' content words that no reference of their image contains, from 0 to 1.
"""


class CaptionInvention(evaluate.Metric):
    """Content words of captions that no reference contains, see `hf_distinct.evaluation.invention`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Fraction of content words of image captions that no reference caption contains.",
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
