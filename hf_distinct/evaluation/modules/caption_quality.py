"""CIDEr-D, BLEU-1..4 and ROUGE-L of captions, as a metric of `evaluate`."""

import datasets
import evaluate

from hf_distinct.evaluation.captions import bleu, cider_d, rouge_l

_CITATION = """\
@inproceedings{vedantam2015cider,
  title={{CIDEr}: Consensus-based Image Description Evaluation},
  author={Vedantam, Ramakrishna and Zitnick, C. Lawrence and Parikh, Devi},
  booktitle={CVPR},
  year={2015}
}
"""

_INPUTS = """
Args:
    predictions: list of captions, one per image.
    references: list of lists, the reference captions of each image.

Returns:
    "CIDEr-D" in its own unit (papers print 1.0 as 100), "BLEU-1" to "BLEU-4" and "ROUGE-L" from 0 to 1.
"""


class CaptionQuality(evaluate.Metric):
    """Agreement of captions with references, see `hf_distinct.evaluation.captions`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Agreement of image captions with reference captions: CIDEr-D, BLEU and ROUGE-L.",
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        scores = {"CIDEr-D": cider_d(predictions, references)}
        scores.update({f"BLEU-{n}": score for n, score in enumerate(bleu(predictions, references), start=1)})
        scores["ROUGE-L"] = rouge_l(predictions, references)
        return scores
