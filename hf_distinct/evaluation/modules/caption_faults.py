"""Bad endings and repetitions in captions, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.faults import bad_endings, repeats

_INPUTS = """
Args:
    predictions: list of captions.

Returns:
    "bad_endings" (share of captions that end where something must follow) and "repeats" (share that say a word twice
    in a row, or two words in a row twice), from 0 to 1.
"""


class CaptionFaults(evaluate.Metric):
    """Faults of language, see `hf_distinct.evaluation.faults`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Shares of captions that end badly, or repeat themselves.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str]) -> dict[str, float]:
        endings, repeated = bad_endings(predictions), repeats(predictions)
        return {"bad_endings": sum(endings) / len(endings), "repeats": sum(repeated) / len(repeated)}
