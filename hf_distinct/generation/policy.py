"""The policy: the distribution that rollouts are sampled from, and log-probabilities of captions under it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from hf_distinct import losses
from hf_distinct.captioner import captioner_in, checkpointing, encode, token_logits
from hf_distinct.config import RLCaptionConfig
from hf_distinct.distributed.zero3 import generation_ready
from hf_distinct.families import family_of
from hf_distinct.fast import fast_paths
from hf_distinct.fast.gelu import fuse_gelu
from hf_distinct.generation.greedy import generate_with_greedy
from hf_distinct.generation.labels import decode, join_labels
from hf_distinct.generation.logits_processors import NoRepeatNGrams
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.generation.word_limits import forbidden_tokens


def prepare_policy(model: Any, args: RLCaptionConfig) -> None:
    """Prepare a captioner as the settings say: freeze the encoder, fuse GELU."""
    if args.freeze_encoder:
        family_of(model).encoder.requires_grad_(False)
    with fast_paths(args.fast_paths):
        fuse_gelu(model)


def reference_copy(model: Any, accelerator: Accelerator) -> PreTrainedModel:
    """Return a frozen copy of the captioner as it is now, from which ``kl_weight`` measures the divergence.

    Adapters are merged into the copy. A resumed run, which begins with other random adapters that add nothing yet,
    therefore has the same copy.

    Args:
        model: The captioner, with or without adapters.
        accelerator: Knows the wrappers of the model.
    """
    with generation_ready(model, accelerator) as captioner:
        adapted = captioner is not model and hasattr(model, "merge_and_unload")
        copied = copy.deepcopy(model).merge_and_unload() if adapted else copy.deepcopy(captioner)
    return copied.eval().requires_grad_(False)


class Rollouts(NamedTuple):
    """Captions written for B images.

    Attributes:
        labels: ``(B * K, L)``, -100 after the end token; captions of an image are adjacent.
        texts: the B * K captions.
        greedy: the B greedy captions; empty if they were not requested.
    """

    labels: Tensor
    texts: list[str]
    greedy: list[str]


@dataclass
class Scores:
    """Log-probabilities of K rollouts and G references per image, and what the KL divergence needs.

    Attributes:
        rollouts: ``(B * K,)``, of whole captions.
        references: ``(B * G,)``.
        logits: ``(T, V)`` of the policy, one row per real token.
        of_rollouts: ``(T,)`` bool, which rows belong to rollouts.
        rollout_labels: ``(B * K, L)``.
        forbidden: tokens that were forbidden when the rollouts were sampled; see `forbidden_tokens`.
    """

    rollouts: Tensor
    references: Tensor
    logits: Tensor
    of_rollouts: Tensor
    rollout_labels: Tensor
    forbidden: Tensor | None


class Policy:
    """Writes rollouts and scores them with the same temperature and the same forbidden tokens.

    References are scored with no token forbidden, since people may use forbidden tokens.

    Args:
        args: the settings.
        accelerator: unwraps models, and sets the precision.
        tokenizer: the captioner's.
        autocast: creates the context in which the model is called (the Trainer's own).
    """

    def __init__(
        self,
        args: RLCaptionConfig,
        accelerator: Accelerator,
        tokenizer: PreTrainedTokenizerBase,
        autocast: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.args = args
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        self.autocast = autocast

    @property
    def temperature(self) -> float:
        """Temperature that logits are divided by: that of the samples, or 1 for beams."""
        return self.args.temperature if self.args.rollouts == "sample" else 1.0

    def encode(self, model: Any, pixel_values: Tensor) -> Tensor:
        """Encode images to ``(B, S, H)``, with gradient unless the encoder is frozen."""
        encoder = family_of(captioner_in(model, self.accelerator)).encoder
        learns = torch.is_grad_enabled() and not self.args.freeze_encoder
        with torch.set_grad_enabled(learns), checkpointing(encoder), self.autocast():
            return encode(encoder, pixel_values, self.accelerator)

    def roll_out(self, model: Any, hidden: Tensor, images: int, greedy: bool) -> Rollouts:
        """Write K captions per image.

        Args:
            model: the captioner, wrapped or not.
            hidden: ``(B, S, H)``, the output of `encode`.
            images: B, or 0 if the batch is one placeholder image (see
                `hf_distinct.distributed.gathering.own_rows`), whose caption has no token and no text.
            greedy: also write the greedy captions.
        """
        a = self.args
        with generation_ready(model, self.accelerator) as captioner, self.autocast(), self.accelerator.autocast():
            processors, config = LogitsProcessorList(), self.generation_config(captioner)
            if a.rollouts == "beam" and a.no_repeat_ngram_size:
                processors.append(NoRepeatNGrams(a.no_repeat_ngram_size))
            if greedy:
                labels, of_greedy = generate_with_greedy(captioner, hidden, config, processors)
            else:
                labels = generate_labels(captioner, hidden, config, processors)
                of_greedy = labels[:0]
        labels[images * a.num_rollouts :] = losses.IGNORED_LABEL
        texts, greedy_texts = (decode(self.tokenizer, part) for part in (labels, of_greedy))
        return Rollouts(labels, texts[: images * a.num_rollouts], greedy_texts[:images])

    def generation_config(self, captioner: PreTrainedModel) -> GenerationConfig:
        """Return the generation config for the rollouts of a captioner."""
        a = self.args
        how: dict[str, Any] = {"num_return_sequences": a.num_rollouts, "max_new_tokens": a.max_new_tokens}
        if a.rollouts == "beam":
            return rollout_config(captioner, num_beams=a.num_beams, **how)
        return rollout_config(captioner, do_sample=True, temperature=a.temperature, **how)

    def score(self, model: Any, hidden: Tensor, rollouts: Tensor, references: Tensor) -> Scores:
        """Compute log-probabilities of all captions in one decoder pass.

        Args:
            model: the captioner; pass the wrapped model if you need gradients.
            hidden: ``(B, S, H)``.
            rollouts: labels ``(B * K, L)``.
            references: labels ``(B * G, M)``; G may be 0.
        """
        a = self.args
        # The decoder pass needs the captions of an image in adjacent rows: its rollouts, then its references.
        parts = join_labels(rollouts, references).tensor_split([len(rollouts)])
        joined = torch.cat([part.unflatten(0, (len(hidden), -1)) for part in parts], dim=1)  # (B, K + G, L)
        flat, own = joined.flatten(0, 1), joined[:, : a.num_rollouts].flatten(0, 1)
        real = flat != losses.IGNORED_LABEL
        # Copy what the host needs first, so that the decoder pass, the loss and its gradient need not wait.
        tokens = flat[real]  # (T,)
        rolled_out = torch.arange(joined.shape[1], device=flat.device) < a.num_rollouts
        of_rollouts = rolled_out.repeat(len(hidden))[:, None].expand_as(real)[real]  # (T,)
        captioner = captioner_in(model, self.accelerator)
        _, text_config = family_of(captioner).text_config
        forbidden = forbidden_tokens(self.generation_config(captioner), own, text_config.vocab_size)
        with checkpointing(model), self.autocast():
            logits = token_logits(model, hidden, flat)
        logits = losses.policy_logits(logits, self.temperature, forbidden, of_rollouts)
        of_tokens = losses.token_log_probs(logits, tokens)
        log_probs = losses.sequence_log_probs(
            of_tokens.new_zeros(flat.shape).masked_scatter(real, of_tokens),
            flat,
            normalize=a.length_normalization,
            constant=a.max_new_tokens or a.max_reference_length,
        ).view(joined.shape[:2])
        first, others = (part.flatten() for part in log_probs.tensor_split([a.num_rollouts], dim=1))
        return Scores(first, others, logits, of_rollouts, own, forbidden)

    def divergence(self, scores: Scores, reference_model: Any, pixel_values: Tensor) -> Tensor:
        """Compute the KL divergence of the policy from another captioner (its encoder included): a scalar.

        Args:
            scores: the log-probabilities of the rollouts.
            reference_model: the captioner before training.
            pixel_values: ``(B, 3, H, W)``.
        """
        reference_model.to(pixel_values.device)
        labels = scores.rollout_labels
        with torch.no_grad(), self.autocast():
            hidden = encode(family_of(reference_model).encoder, pixel_values, self.accelerator)
            with self.accelerator.autocast():
                logits = token_logits(reference_model, hidden, labels)
        logits = losses.policy_logits(logits, self.temperature, scores.forbidden)
        return losses.kl_divergence(scores.logits[scores.of_rollouts], logits, labels[labels != losses.IGNORED_LABEL])
