"""A gallery: images, embedded once by each CLIP model, on which captions are evaluated."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from datasets import Dataset
from torch import Tensor

from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.data.emoji.captions import full_caption
from hf_distinct.data.emoji.judging import scene_metrics
from hf_distinct.data.emoji.scenes import Scene
from hf_distinct.data.mining import MiningSettings, find_neighbours
from hf_distinct.data.prepared import CAPTIONED, as_evaluated, readable
from hf_distinct.evaluation import caption_metrics, caption_statistics
from hf_distinct.evaluation.bootstrap import Statistic, average_of, mean_of, value_of
from hf_distinct.evaluation.clip_score import clip_scores, ref_clip_scores
from hf_distinct.evaluation.retrieval import both_ranks, neighbour_ranks, rank_statistics, retrieval_ranks
from hf_distinct.scorer import ClipScorer


class Gallery:
    """Images with reference captions, prepared for evaluating captions.

    Args:
        dataset: ``image``, ``captions``, ``image_id``, in any form that
            [`hf_distinct.data.prepared.as_captioned`] accepts; emoji scenes also have ``scene``. Unreadable images are
            dropped with a warning; ``self.dataset`` holds the others. Without ``clips``, images are not needed.
        clips: the CLIP models that measure retrieval. Each key becomes the prefix of the metric names.
        num_neighbours: how many similar images to mine per image and CLIP, for retrieval among them; 0 for none.
        clip_prompt: prompt that CLIPScore puts before captions; published results use ``"A photo depicts "``.
        strict: raise an error instead of dropping unreadable images.

    Raises:
        ValueError: if the dataset lacks a column, no image can be read, or (with ``strict``) an image cannot be read.
    """

    def __init__(
        self,
        dataset: Dataset,
        clips: Mapping[str, ClipScorer],
        num_neighbours: int = 5,
        clip_prompt: str = "",
        strict: bool = False,
    ) -> None:
        self.clips = dict(clips)
        self.clip_prompt = clip_prompt
        self.image_embeds: dict[str, Tensor] = {}
        self.neighbours: dict[str, list[list[int]]] = {}
        needs = CAPTIONED if self.clips else ("captions", "image_id")
        self.dataset = as_evaluated(dataset, "the gallery", needs, strict)
        if not self.clips and "image" in self.dataset.column_names:
            self.dataset = readable(self.dataset, "the gallery", strict)
        for name, clip in self.clips.items():
            self.dataset, embeddings = embed_dataset(self.dataset, clip, strict=strict)
            self.image_embeds[name] = embeddings.image_embeds
            if num_neighbours:
                mined = find_neighbours(self.dataset, embeddings.image_embeds, MiningSettings(num_neighbours))
                self.neighbours[name] = mined.add_to(self.dataset)["neighbours"][:]

    def select(self, rows: Sequence[int]) -> Gallery:
        """Return the gallery of the images in these rows; nothing is embedded again."""
        place = {row: number for number, row in enumerate(rows)}
        found = copy.copy(self)
        for name in ("references", "_reference_embeds"):
            found.__dict__.pop(name, None)
        found.dataset = self.dataset.select(rows)
        found.image_embeds = {name: embeds[list(rows)] for name, embeds in self.image_embeds.items()}
        found.neighbours = {
            name: [[place[near] for near in lists[row] if near in place] for row in rows]
            for name, lists in self.neighbours.items()
        }
        return found

    def captioned(self, *systems: Sequence[str | None]) -> tuple[Gallery, list[list[str]]]:
        """Return the gallery of the images that every system captioned, and the captions of each system.

        Args:
            systems: one caption per image, or None where there is none, as `hf_distinct.RLCaptionTrainer.caption`
                returns for images that have become unreadable since the gallery was made.
        """
        rows = [row for row, said in enumerate(zip(*systems, strict=True)) if None not in said]
        kept = [[text for row in rows if (text := said[row]) is not None] for said in systems]
        return (self if len(rows) == len(self.dataset) else self.select(rows)), kept

    @property
    def judges_facts(self) -> bool:
        """Whether the facts of each image are known, so that captions can be checked for truth."""
        return isinstance(self.dataset.features.get("scene"), dict)  # a user's own column "scene" may hold text

    @cached_property
    def references(self) -> list[list[str]]:
        """Return the reference captions of each image."""
        return self.dataset["captions"][:]

    @cached_property
    def _reference_embeds(self) -> dict[str, Tensor]:
        texts = [self.clip_prompt + text for own in self.references for text in own]
        return {name: clip.encode_texts(texts).cpu() for name, clip in self.clips.items()}

    def statistics(self, captions: Sequence[str]) -> dict[str, Statistic]:
        """Return the metrics of `measure` as functions of how often each image is drawn, for the bootstrap."""
        found: dict[str, Statistic] = {}
        for name in self.clips:
            found |= {f"{name}/{key}": each for key, each in self._clip_statistics(captions, name).items()}
        found |= caption_statistics(captions, self.references)
        if self.judges_facts:
            scenes = zip(captions, self.dataset["scene"], strict=True)
            facts = [scene_metrics([caption], [scene]) for caption, scene in scenes]
            found |= {name: mean_of([row[name] for row in facts]) for name in facts[0]}
        return found

    def _clip_statistics(self, captions: Sequence[str], name: str) -> dict[str, Statistic]:
        clip, images = self.clips[name], self.image_embeds[name]
        texts = clip.encode_texts(list(captions)).cpu()
        to_image, to_text = both_ranks(texts, images)
        found = rank_statistics("t2i", to_image) | rank_statistics("i2t", to_text)
        if name in self.neighbours:
            to_image, to_text = neighbour_ranks(texts, images, self.neighbours[name])
            near = rank_statistics("t2i", to_image) | rank_statistics("i2t", to_text)
            found |= {f"neighbours_{key}": near[key] for key in ("t2i_R@1", "t2i_MRR", "i2t_R@1", "i2t_MRR")}
        if self.clip_prompt:
            texts = clip.encode_texts([self.clip_prompt + caption for caption in captions]).cpu()
        rows = torch.tensor([row for row, own in enumerate(self.references) for _ in own])
        found["CLIPScore"] = mean_of(clip_scores(texts, images).numpy())
        found["RefCLIPScore"] = mean_of(ref_clip_scores(texts, images, self._reference_embeds[name], rows).numpy())
        return found

    def measure(self, captions: Sequence[str], dataset: Dataset | None = None) -> dict[str, float]:
        """Return all metrics of one caption per image: ``{"judge/t2i_R@1": ..., "CIDEr-D": ..., "true": ...}``.

        You can pass this method as ``caption_metrics`` to a trainer whose ``eval_dataset`` is ``self.dataset``.

        Retrieval metrics are fractions from 0 to 1, prefixed by the name of the CLIP: among all images, and (named
        ``neighbours_``) among each image's similar ones. CIDEr-D has its own unit (papers print 1.0 as 100), and
        ``details`` counts facts. For the others, see `hf_distinct.evaluation.caption_metrics`.

        Args:
            captions: one per image, in order.
            dataset: the rows of the gallery's dataset that the captions belong to; all rows by default.
        """
        if dataset is not None and len(dataset) < len(self.dataset):
            row_of = {image_id: row for row, image_id in enumerate(self.dataset["image_id"])}
            return self.select([row_of[image_id] for image_id in dataset["image_id"]]).measure(captions)
        metrics = {name: value_of(each, len(captions)) for name, each in self.statistics(captions).items()}
        return metrics | {"vocabulary": int(metrics["vocabulary"])}

    def people_statistics(
        self, further: Callable[[list[str]], dict[str, Statistic]] = lambda captions: {}
    ) -> tuple[dict[str, Statistic], int]:
        """Evaluate people's captions: each reference against the other references of its image, averaged.

        With five references, each is the caption once and a reference four times. Where images have fewer references
        than others, some of theirs are used twice. Images with a single reference are left out; if there are any, CLIP
        metrics are not computed.

        Args:
            further: additional metrics of the captions, as functions of the sample.

        Returns:
            The metrics, and the number of images.
        """
        several = [own for own in self.references if len(own) > 1]
        turns: list[dict[str, Statistic]] = []
        for turn in range(max(map(len, several), default=0)):
            said = [own[turn % len(own)] for own in several]
            others = [[text for place, text in enumerate(own) if place != turn % len(own)] for own in several]
            found = self.statistics(said) if len(several) == len(self.references) else {}
            turns.append(found | caption_statistics(said, others) | further(said))
        # No RefCLIPScore: the references would contain the caption itself.
        names = [name for name in turns[0] if not name.endswith("RefCLIPScore")] if turns else []
        return {name: average_of([turn[name] for turn in turns]) for name in names}, len(several)

    def people(self) -> dict[str, float]:
        """Return the metrics of the first reference of each image, compared with its other references.

        If an image has a single reference, it is compared with itself, so CIDEr-D is not meaningful.
        """
        first = [captions[0] for captions in self.references]
        others = [captions[1:] or captions for captions in self.references]
        return self.measure(first) | caption_metrics(first, others)

    def ceiling(self) -> dict[str, float]:
        """Return the metrics of captions that state every fact; only for emoji scenes, whose facts are known."""
        return self.measure([full_caption(Scene.from_dict(scene)) for scene in self.dataset["scene"]])

    def ranks(self, captions: list[str], clip: str) -> list[int]:
        """Return the rank, from 1, of each image when a CLIP model retrieves it with its caption."""
        embeds = self.clips[clip].encode_texts(captions).cpu()
        return retrieval_ranks(embeds, self.image_embeds[clip], torch.arange(len(captions))).tolist()

    def most_similar(self, row: int, clip: str, count: int = 4) -> list[int]:
        """Return the rows of the images most similar to one image, most similar first."""
        embeds = self.image_embeds[clip]
        similarity = embeds @ embeds[row]
        similarity[row] = -torch.inf
        return similarity.topk(min(count, len(embeds) - 1)).indices.tolist()
