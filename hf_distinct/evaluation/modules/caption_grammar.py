"""The fraction of captions that a grammar judge accepts, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.grammar import GrammarJudge

_INPUTS = """
Args:
    predictions: list of captions.
    judge: folder of a grammar judge, written by `hf-distinct train-grammar`.

Returns:
    "grammar", the fraction of captions that the judge classifies as people's, from 0 to 1; "accuracy", the judge's
    accuracy on held-out captions, by kind.
"""


class CaptionGrammar(evaluate.Metric):
    """The verdict of a grammar judge on captions, see `hf_distinct.evaluation.grammar`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Fraction of captions that a grammar judge classifies as people's.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], judge: str) -> dict[str, object]:
        found = GrammarJudge.load(judge)
        return {"grammar": float(found.accepts(predictions).mean()), "accuracy": found.accuracy}
