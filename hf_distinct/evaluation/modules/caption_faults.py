"""Bad endings and repetitions in captions, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.faults import bad_endings, repeats

_INPUTS = """
Args:
    predictions: list of captions.

Returns:
    "bad_endings" (fraction of captions that stop in mid-phrase) and "repeats" (fraction that repeat a word in a row,
    or contain the same two words in a row twice), from 0 to 1.
"""


class CaptionFaults(evaluate.Metric):
    """Faults of language, see `hf_distinct.evaluation.faults`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Fractions of captions that stop in mid-phrase, or repeat words.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        endings, repeated = bad_endings(predictions), repeats(predictions)
        return {"bad_endings": sum(endings) / len(endings), "repeats": sum(repeated) / len(repeated)}
