"""Perplexity of captions under a causal language model, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.bootstrap import value_of
from hf_distinct.evaluation.fluency import LanguageModel, perplexity

_INPUTS = """
Args:
    predictions: list of captions.
    model: the language model, a Hub id or a folder.

Returns:
    "perplexity", at least 1, over all tokens of all captions.
"""


class CaptionPerplexity(evaluate.Metric):
    """Perplexity of captions under a language model, see `hf_distinct.evaluation.fluency`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Perplexity of captions under a causal language model.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], model: str) -> dict[str, float]:
        found = perplexity(*LanguageModel(model).surprise(predictions))
        return {"perplexity": value_of(found, len(predictions))}
