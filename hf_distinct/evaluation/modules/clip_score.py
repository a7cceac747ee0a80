"""CLIPScore and RefCLIPScore of captions, as a metric of `evaluate`."""

import datasets
import evaluate
import torch

from hf_distinct.evaluation.clip_score import clip_scores, ref_clip_scores

_CITATION = """\
@inproceedings{hessel2021clipscore,
  title={{CLIPScore}: A Reference-free Evaluation Metric for Image Captioning},
  author={Hessel, Jack and Holtzman, Ari and Forbes, Maxwell and Bras, Ronan Le and Choi, Yejin},
  booktitle={EMNLP},
  year={2021}
}
"""

_INPUTS = """
Args:
    predictions: list of CLIP embeddings of captions, L2-normalised.
    references: list of CLIP embeddings of images, L2-normalised; predictions[i] describes references[i].
    reference_captions: for each image a list of CLIP embeddings of its reference captions, L2-normalised.

Returns:
    "CLIPScore" from 0 to 2.5, and with reference captions "RefCLIPScore".
"""


class ClipScore(evaluate.Metric):
    """Similarity of captions and images under CLIP, see `hf_distinct.evaluation.clip_score`."""

    def _info(self) -> evaluate.MetricInfo:
        embedding = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description="CLIPScore of captions from L2-normalised CLIP embeddings.",
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": embedding, "references": embedding}),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[list[float]],
        reference_captions: list[list[list[float]]] | None = None,
    ) -> dict[str, float]:
        texts, images = torch.as_tensor(predictions), torch.as_tensor(references)
        scores = {"CLIPScore": clip_scores(texts, images).mean().item()}
        if reference_captions is not None:
            rows = torch.tensor([row for row, own in enumerate(reference_captions) for _ in own])
            embeds = torch.tensor([embedding for own in reference_captions for embedding in own])
            scores["RefCLIPScore"] = ref_clip_scores(texts, images, embeds, rows).mean().item()
        return scores
