"""The share of captions whose language passes for a person's, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.grammar import GrammarJudge

_INPUTS = """
Args:
    predictions: list of captions.
    judge: folder of a judge of grammar, which recipes/train_grammar.py wrote.

Returns:
    "grammar", the share of captions that the judge takes for people's, from 0 to 1; "accuracy", what share of captions
    it was right about when it was made, by kind.
"""


class CaptionGrammar(evaluate.Metric):
    """What a judge of grammar finds of captions, see `hf_distinct.evaluation.grammar`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of captions that a judge of grammar takes for people's.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    def _compute(self, predictions: list[str], judge: str) -> dict[str, object]:
        found = GrammarJudge.load(judge)
        return {"grammar": float(found.accepts(predictions).mean()), "accuracy": found.accuracy}
