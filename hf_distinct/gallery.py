"""A gallery: pictures that captions are measured on, embedded once under each CLIP."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from datasets import Dataset
from torch import Tensor

from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.emoji_scenes import Scene, full_caption, scene_metrics
from hf_distinct.evaluation import caption_metrics
from hf_distinct.evaluation.retrieval import retrieval_metrics, retrieval_ranks
from hf_distinct.scorer import ClipScorer


class Gallery:
    """Pictures with references, ready to measure captions of them.

    Args:
        dataset: ``image``, ``captions``, ``image_id``; emoji scenes also have ``scene``. Pictures that cannot be read
            are left out, with a warning; ``self.dataset`` holds the others.
        clips: the CLIP models under which retrieval is measured, by the name that their figures get.
    """

    def __init__(self, dataset: Dataset, clips: Mapping[str, ClipScorer]):
        self.clips = dict(clips)
        self.image_embeds: dict[str, Tensor] = {}
        self.dataset = dataset
        for name, clip in self.clips.items():
            self.dataset, embeddings = embed_dataset(self.dataset, clip)
            self.image_embeds[name] = embeddings.image_embeds

    @property
    def judges_facts(self) -> bool:
        """Whether the facts of each picture are known."""
        return "scene" in self.dataset.column_names

    def measure(self, captions: list[str]) -> dict[str, float]:
        """All metrics of one caption an image, in order: ``{"judge/t2i_R@1": ..., "CIDEr-D": ..., "true": ...}``.

        Retrieval is shares from 0 to 1 under each CLIP (prefix), CIDEr-D is in its own unit (1.0 is what papers print
        as 100), ``details`` counts facts.
        """
        metrics: dict[str, float] = {}
        for name, clip in self.clips.items():
            found = retrieval_metrics(clip.encode_texts(captions).cpu(), self.image_embeds[name])
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
        metrics |= caption_metrics(captions, self.dataset["captions"])
        if self.judges_facts:
            metrics |= scene_metrics(captions, self.dataset["scene"])
        return metrics

    def people(self) -> dict[str, float]:
        """The same metrics for one caption a person wrote of each image, held against the person's other captions.

        An image with a single caption is compared with that very caption, which says nothing about its CIDEr-D.
        """
        references = self.dataset["captions"]
        metrics = self.measure([captions[0] for captions in references])
        others = [captions[1:] or captions for captions in references]
        return metrics | caption_metrics([captions[0] for captions in references], others)

    def ceiling(self) -> dict[str, float]:
        """The same metrics for captions that say everything, truly; only where the facts are known."""
        return self.measure([full_caption(Scene.from_dict(scene)) for scene in self.dataset["scene"]])

    def ranks(self, captions: list[str], clip: str) -> list[int]:
        """The place, from 1, that each image takes when a CLIP looks for it with its caption."""
        embeds = self.clips[clip].encode_texts(captions).cpu()
        return retrieval_ranks(embeds, self.image_embeds[clip], torch.arange(len(captions))).tolist()

    def most_similar(self, row: int, clip: str, count: int = 4) -> list[int]:
        """The rows of the images most similar to one, most similar first."""
        embeds = self.image_embeds[clip]
        similarity = embeds @ embeds[row]
        similarity[row] = -torch.inf
        return similarity.topk(min(count, len(embeds) - 1)).indices.tolist()
