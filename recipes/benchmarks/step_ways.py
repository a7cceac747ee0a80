"""The ways from a batch to gradients that step.py measures: the published one, ours, and the bare work."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import BlipForConditionalGeneration, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from hf_distinct import ClipScorer, RLCaptionTrainer, losses
from hf_distinct.captioner import token_id, token_logits
from hf_distinct.discriminator import DiscriminatorTrainer
from hf_distinct.generation.labels import decode, join_labels
from hf_distinct.generation.policy import Policy, Rollouts
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.rewards.appraiser import Appraiser
from hf_distinct.training.metering import Meter

# ----------------------------------------------------------------------------------------------------- the reference


class PaddedScorer(ClipScorer):
    """A scorer that shares the weights of another, and reads texts as open_clip's own code does."""

    def __init__(self, scorer: ClipScorer) -> None:
        self.__dict__.update(vars(scorer))

    @torch.no_grad()
    def encode_tokens(self, token_ids: Tensor, batch_size: int = 0) -> Tensor:
        """All at once, each padded to the full context."""
        return F.normalize(self.model.encode_text(token_ids.to(self.device)).float(), dim=-1)


class Reference:
    """The step that the published scripts have, with the trainer's settings; the arithmetic of rewards is ours."""

    def __init__(self, trainer: RecordingTrainer) -> None:
        self.trainer, self.meter = trainer, Meter(trainer.args.device)
        self.scorer = PaddedScorer(trainer.scorer)
        discriminator = DiscriminatorTrainer(
            copy.deepcopy(trainer.discriminator.discriminator), trainer.args.discriminator_lr
        )
        self.appraiser = Appraiser(
            trainer.args, scorer=self.scorer, discriminator=discriminator, accelerator=trainer.accelerator
        )

    def __call__(self, inputs: dict[str, Any]) -> Tensor:
        """Loss of a batch, with its gradients."""
        a, pixels, tokenizer = self.trainer.args, inputs["pixel_values"], self.trainer.processing_class
        model = self.trainer.stock
        repeated = pixels.repeat_interleave(a.num_rollouts, dim=0)
        with self.meter.phase("step"):
            with self.meter.phase("generate"), torch.no_grad():
                rollouts = labels_of(model.generate(repeated, **how(self.trainer, 1)), tokenizer)
            with self.meter.phase("greedy"), torch.no_grad():
                greedy = labels_of(model.generate(pixels, generation_config=rollout_config(model)), tokenizer)
            with self.meter.phase("reward"):
                references = [text for row in inputs["captions"] for text in row]
                embeds = {
                    "image_embeds": self.scorer.encode_images(inputs["clip_pixels"]),
                    "caption_embeds": self.scorer.encode_texts(references).unflatten(0, (len(pixels), -1)),
                }
                judged = self.appraiser.judge(inputs | embeds, decode(tokenizer, rollouts), decode(tokenizer, greedy))
            with self.meter.phase("references"):
                log_probs = self.log_probs(pixels, inputs["labels"].flatten(0, 1))
                loss = a.wtf_weight * losses.weighted_teacher_forcing_loss(log_probs, judged.reference_weights)
            with self.meter.phase("score"):
                loss = loss + losses.policy_gradient_loss(self.log_probs(repeated, rollouts), judged.advantages)
            loss.backward()
        return loss

    def log_probs(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Mean log-probability of each caption's tokens, from pixels."""
        model = self.trainer.stock
        ids = shifted(model, labels)
        read = {"input_ids": ids} if isinstance(model, BlipForConditionalGeneration) else {"decoder_input_ids": ids}
        logits = model(pixel_values=pixels, **read).logits
        real = labels != losses.IGNORED_LABEL
        chosen = logits.log_softmax(dim=-1).gather(-1, labels.masked_fill(~real, 0)[..., None]).squeeze(-1)
        return (chosen * real).sum(dim=1) / real.sum(dim=1)


class SameSamples(LogitsProcessor):
    """Leaves `generate` no choice but the tokens that were drawn, ``(N, L)``."""

    def __init__(self, labels: Tensor, pad: int) -> None:
        self.tokens = labels.masked_fill(labels == losses.IGNORED_LABEL, pad)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(N, V)``, minus infinity but for the token drawn."""
        token = self.tokens[:, input_ids.shape[1] - 1, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class RecordingPolicy(Policy):
    """Keeps the labels of the rollouts of the last step."""

    labels: Tensor

    def roll_out(self, *args: Any, **kwargs: Any) -> Rollouts:
        """As the parent's."""
        found = super().roll_out(*args, **kwargs)
        self.labels = found.labels
        return found


class RecordingTrainer(RLCaptionTrainer):
    """Keeps what its policy wrote, and beside its captioner one that it did not touch."""

    policy: RecordingPolicy
    stock: Any


def how(trainer: RecordingTrainer, rollouts: int) -> dict[str, Any]:
    """What `generate` is told, for so many rollouts of each of its rows."""
    a, model = trainer.args, trainer.model
    if a.rollouts == "beam":
        config = rollout_config(model, num_beams=a.num_beams, no_repeat_ngram_size=a.no_repeat_ngram_size)
        return {"generation_config": config, "logits_processor": LogitsProcessorList()}
    drawn = SameSamples(trainer.policy.labels, int(trainer.processing_class.pad_token_id))
    config = rollout_config(model, do_sample=True, num_return_sequences=rollouts)
    return {"generation_config": config, "logits_processor": LogitsProcessorList([drawn])}


def labels_of(sequences: Tensor, tokenizer: Any) -> Tensor:
    """What `generate` wrote, without the start token, -100 behind the end token."""
    tokens = sequences[:, 1:]
    ends = (tokens == tokenizer.eos_token_id).cumsum(dim=1)
    return tokens.masked_fill((ends - (tokens == tokenizer.eos_token_id).long()) > 0, losses.IGNORED_LABEL)


def shifted(model: Any, labels: Tensor) -> Tensor:
    """What the decoder reads when it is to say the labels."""
    ids = labels.masked_fill(labels == losses.IGNORED_LABEL, token_id(model, "pad_token_id")).roll(1, dims=1)
    ids[:, 0] = token_id(model, "decoder_start_token_id")
    return ids


# ------------------------------------------------------------------------------------------------ ours and the floors


def ours(trainer: RecordingTrainer, inputs: dict[str, Any]) -> Tensor:
    """Loss of a batch, with its gradients, as training takes it."""
    with trainer.meter.phase("step"):
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
    return loss


@dataclass
class Bare:
    """The work that no step can do without, by stock parts."""

    trainer: RecordingTrainer

    @property
    def model(self) -> Any:
        """The captioner as transformers loads it."""
        return self.trainer.stock

    def write(self, hidden: Tensor) -> Tensor:
        """Rollouts ``(B * K, L)`` from encoded images ``(B, S, H)``."""
        encoded = BaseModelOutput(last_hidden_state=hidden)  # type: ignore[arg-type]
        sequences = self.model.generate(encoder_outputs=encoded, **how(self.trainer, self.trainer.args.num_rollouts))
        return labels_of(sequences, self.trainer.processing_class)

    def read(self, texts: list[str]) -> None:
        """CLIP's text tower."""
        scorer = self.trainer.scorer
        scorer.model.encode_text(scorer.tokenizer(texts).to(scorer.device))

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of labels ``(N, L)``, N a multiple of B."""
        rows = hidden.repeat_interleave(len(labels) // len(hidden), dim=0)
        ids = shifted(self.model, labels)
        logits = self.model(encoder_outputs=(rows,), decoder_input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class Lowered(Bare):
    """The same work by our parts."""

    @property
    def model(self) -> Any:
        """The captioner that is trained."""
        return self.trainer.model

    def write(self, hidden: Tensor) -> Tensor:
        """By `generate_labels`."""
        return generate_labels(self.model, hidden, *how(self.trainer, self.trainer.args.num_rollouts).values())

    def read(self, texts: list[str]) -> None:
        """By the scorer."""
        self.trainer.scorer.encode_texts(texts)

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """By `token_logits`."""
        return F.cross_entropy(token_logits(self.model, hidden, labels), labels[labels != losses.IGNORED_LABEL])


def floor(parts: Bare, meter: Meter, inputs: dict[str, Any]) -> Tensor:
    """Cross-entropy of rollouts and ground truth, with its gradients, after CLIP has read the rollouts."""
    trainer: Any = parts.trainer
    images = len(inputs["pixel_values"])
    with meter.phase("step"):
        with meter.phase("encode"):
            hidden = parts.model.encoder(inputs["pixel_values"]).last_hidden_state
        with meter.phase("generate"), torch.no_grad():
            rollouts = parts.write(hidden.detach())
        with meter.phase("reward"), torch.no_grad():
            parts.read(decode(trainer.processing_class, rollouts))
        with meter.phase("score"):
            both = join_labels(rollouts, inputs["labels"].flatten(0, 1)).tensor_split([len(rollouts)])
            labels = torch.cat([part.unflatten(0, (images, -1)) for part in both], dim=1).flatten(0, 1)
            loss = parts.loss(hidden, labels)
        loss.backward()
    return loss
