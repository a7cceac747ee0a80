"""Estimate what reinforcement learning can reach: the best of many samples by reward, before training.

Policy gradients increase the probability of samples with a high reward. So the best of many samples shows how far
training can go, and whether a judge and people's captions confirm what the scorer prefers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.accelerator import Accelerator
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from hf_distinct.captioner import encode
from hf_distinct.config import RLCaptionConfig
from hf_distinct.data.collator import CaptionCollator
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.discriminator import Discriminator, DiscriminatorTrainer
from hf_distinct.families import family_of
from hf_distinct.gallery import Gallery
from hf_distinct.generation.labels import decode
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.rewards import Reward
from hf_distinct.rewards.appraiser import Appraiser
from hf_distinct.scorer import ClipScorer


class Ceiling:
    """Samples captions of a gallery's images, and rewards them as the first training steps would.

    The captions of a batch are rewarded together, with the pools, memory and weights of the settings. Two things are
    left out: the discriminator, which is not trained yet, and mined similar images.

    Args:
        model: the captioner before training.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        args: the settings of the training; samples are drawn at its temperature.
        scorer: the CLIP that gives the reward.
        rewards: the output of `hf_distinct.rewards.resolve.found_rewards`.
        references_corpus: the reference captions of each training image, for CIDEr-D's document frequencies.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        args: RLCaptionConfig,
        *,
        scorer: ClipScorer,
        rewards: Sequence[str | Reward],
        references_corpus: Sequence[list[str]],
    ) -> None:
        self.model: Any = model.to(args.device).eval()  # type: ignore[arg-type]
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.scorer, self.rewards, self.references_corpus = scorer, rewards, references_corpus
        self.args = copy.copy(args)
        self.args.discriminator_weight, self.args.pool_neighbours, self.args.pool_greedy = 0.0, 0, False
        self.args.baseline = "none"
        self.accelerator = Accelerator(cpu=args.use_cpu)

    @torch.no_grad()
    def samples(self, gallery: Gallery, count: int) -> tuple[list[str], list[list[str]], np.ndarray]:
        """Return greedy captions of N images, ``count`` samples of each, and their rewards ``(N, count)``."""
        a = self.args
        a.num_rollouts = count
        rows, embeddings = embed_dataset(gallery.dataset, self.scorer)
        appraiser = Appraiser(
            a, scorer=self.scorer, discriminator=DiscriminatorTrainer(Discriminator(self.scorer.embed_dim)),
            accelerator=self.accelerator, rewards=self.rewards, references_corpus=self.references_corpus,
            columns=rows.column_names, tokenizer=self.tokenizer,
        )  # fmt: skip
        collator = CaptionCollator(
            self.tokenizer, self.image_processor, embeddings, list(rows["image_id"]), a.references_per_image,
            a.max_reference_length, a.seed, epoch=0,
        )  # fmt: skip
        greedy: list[str] = []
        samples: list[list[str]] = []
        found: list[np.ndarray] = []
        how = {"do_sample": True, "temperature": a.temperature, "num_return_sequences": count}
        for start in range(0, len(rows), a.per_device_train_batch_size):
            end = min(start + a.per_device_train_batch_size, len(rows))
            inputs = collator([rows[row] for row in range(start, end)])
            inputs = {k: v.to(a.device) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
            hidden = encode(family_of(self.model).encoder, inputs["pixel_values"], self.accelerator)
            of_greedy, drawn = self._write(hidden), self._write(hidden, **how)
            rewards = appraiser.judge(inputs, drawn, []).rewards["total"][: len(drawn)]
            greedy += of_greedy
            samples += [drawn[place : place + count] for place in range(0, len(drawn), count)]
            found.append(rewards.view(-1, count).cpu().numpy())
        return greedy, samples, np.concatenate(found)

    def _write(self, hidden: torch.Tensor, **how: Any) -> list[str]:
        config = rollout_config(self.model, max_new_tokens=self.args.max_new_tokens, **how)
        return decode(self.tokenizer, generate_labels(self.model, hidden, config))

    def measure(self, gallery: Gallery, count: int) -> dict[str, dict[str, float]]:
        """Return metrics of greedy captions, of samples (mean), and of the best of ``count`` samples by reward."""
        greedy, samples, rewards = self.samples(gallery, count)
        of_samples = [gallery.measure([own[place] for own in samples]) for place in range(count)]
        chosen = [own[place] for own, place in zip(samples, rewards.argmax(axis=1), strict=True)]
        return {
            "greedy": gallery.measure(greedy),
            "a sample": {name: float(np.mean([each[name] for each in of_samples])) for name in of_samples[0]},
            f"best of {count}": gallery.measure(chosen),
        }
