"""ScorerTrainer: trains the CLIP that rewards captions together with the captioner."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hf_distinct.data.hashing import stable_hash
from hf_distinct.distributed.gathering import gather_rows, own_part
from hf_distinct.fast.text_tower import encode_token_ids
from hf_distinct.losses import matching_loss
from hf_distinct.scorer import ClipScorer

TERMS = ("people", "lies", "coop", "anchor")
"""Names of the terms of the loss."""


@dataclass
class GlobalBatch:
    """N images of all processes, with G reference captions and K rollouts each.

    Attributes:
        images: (N, d) unit vectors.
        image_ids: (N,) int64.
        negatives: (M, d) unit vectors of mined similar images.
        negative_ids: (M,) int64.
        references: (N, G, d) unit vectors of the reference captions under the scorer that is trained.
        rollouts: (N, K, d) those of the rollouts.
        same: (N, K, G) bool, whether a rollout and a reference are the same text.
        anchors: (N, G, d) unit vectors of the reference captions under the scorer before training.
    """

    images: Tensor
    image_ids: Tensor
    negatives: Tensor
    negative_ids: Tensor
    references: Tensor
    rollouts: Tensor
    same: Tensor
    anchors: Tensor


def scorer_losses(batch: GlobalBatch, scale: Tensor) -> dict[str, Tensor]:
    """Return the four terms of the scorer's loss.

    With L(t, v) = s cos(t, v), references g and rollouts c of image v:

        people   symmetric InfoNCE of references and images: what people wrote keeps its meaning
        lies     mean of log(1 + exp(L(c, v) - L(g, v))): a reference beats each rollout (adversarial)
        coop     symmetric InfoNCE of rollouts and images: the scorer adapts to the captioner (cooperative)
        anchor   mean of 1 - cos(g, g before training): the scorer stays near the one it was

    Captions of the same image do not compete with each other; mined similar images are negatives of all captions. A
    rollout that equals a reference is no lie about it.

    Args:
        batch: the embeddings of all processes.
        scale: s, a scalar.

    Returns:
        The terms by name, scalars.
    """
    columns = torch.cat([batch.images, batch.negatives])
    column_ids = torch.cat([batch.image_ids, batch.negative_ids])
    truths = scale * (batch.references * batch.images[:, None]).sum(-1)
    lies = scale * (batch.rollouts * batch.images[:, None]).sum(-1)
    odds = F.softplus(lies[:, :, None] - truths[:, None, :])
    differ = ~batch.same
    return {
        "people": _found(batch.references, batch.image_ids, columns, column_ids, scale),
        "lies": (odds * differ).sum() / differ.sum().clamp(min=1),
        "coop": _found(batch.rollouts, batch.image_ids, columns, column_ids, scale),
        "anchor": 1 - (batch.references * batch.anchors).sum(-1).mean(),
    }


def _found(captions: Tensor, image_ids: Tensor, columns: Tensor, column_ids: Tensor, scale: Tensor) -> Tensor:
    """Return the InfoNCE loss of captions ``(N, k, d)`` of N images, the first N of the columns."""
    image_of = torch.arange(len(captions), device=captions.device).repeat_interleave(captions.shape[1])
    copies = image_ids[image_of][:, None] == column_ids  # an image may also be the neighbour of another one
    copies.scatter_(1, image_of[:, None], False)
    return matching_loss(scale * captions.flatten(0, 1) @ columns.T, image_of, copies)


class ScorerTrainer:
    """Trains the text tower and the logit scale of the scorer alongside the captioner: one AdamW step per batch.

    This is the outlook of arXiv 2402.13936: a CLIP that learns from people's captions and from rollouts may close the
    blind spots that the captioner finds. Rewards come from an exponential moving average of the trained weights, so
    that no step is judged by what it has just changed. The image tower stays frozen, so cached image embeddings remain
    correct.

    Each process computes the loss over the batch of all processes, and then the gradient of its own captions.
    Gradients are summed, so several processes take the same step as one process with the whole batch.

    Args:
        scorer: the scorer before training; it is copied, not changed.
        accelerator: gives access to the other processes.
        num_rollouts: rollouts of each image, K.
        lr: learning rate of AdamW.
        decay: decay of the moving average; 0 takes the trained weights.
        weights: weights of the `TERMS` of the loss.

    Attributes:
        scorer: the moving average, which rewards captions.
        student: the model that is trained.
        steps: number of updates so far.
    """

    def __init__(
        self,
        scorer: ClipScorer,
        accelerator: Accelerator,
        num_rollouts: int,
        lr: float = 1e-5,
        decay: float = 0.99,
        weights: Sequence[float] = (1.0, 0.0, 0.0, 1.0),
    ) -> None:
        self.scorer, self.accelerator = copy.deepcopy(scorer), accelerator
        self.num_rollouts, self.decay = num_rollouts, decay
        self.student: Any = copy.deepcopy(scorer.model)
        self.weights = dict(zip(TERMS, weights, strict=True))
        self.trained = {
            name: parameter for name, parameter in self.student.named_parameters() if not name.startswith("visual.")
        }
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.trained.values(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
        self.steps = 0

    def refreshed(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return a batch whose reference captions are embedded by the scorer as it is now, not by the cached one."""
        captions, cached = inputs["captions"], inputs["caption_embeds"]
        embeds, _ = self.scorer.encode_captions([caption for row in captions for caption in row])
        return inputs | {"caption_embeds": embeds.to(cached).view(cached.shape)}

    @torch.enable_grad()
    def update(self, inputs: dict[str, Any], rollouts: list[str]) -> dict[str, Tensor]:
        """Take one step. Every process must call this equally often.

        Args:
            inputs: the output of `hf_distinct.data.CaptionCollator` for B images with G references each, with the
                cached embeddings; B may be 0.
            rollouts: B * K captions; those of an image are adjacent.

        Returns:
            The terms of the loss and the logit scale before the step, scalars, over all processes.
        """
        references = [caption for row in inputs["captions"] for caption in row]
        with torch.autocast(self.scorer.device.type, enabled=False):
            own = self._encode([*references, *rollouts]).to(inputs["image_embeds"])
            batch = self._gather(inputs, references, rollouts, own.detach())
            batch.references.requires_grad_()
            batch.rollouts.requires_grad_()
            terms = scorer_losses(batch, self.student.logit_scale.exp())
            loss = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
            leaves = [batch.references, batch.rollouts, self.student.logit_scale]
            *of_embeds, of_scale = torch.autograd.grad(loss, leaves)
            self.optimizer.zero_grad()
            parts = [own_part(each, len(inputs["image_embeds"]), self.accelerator) for each in of_embeds]
            own.backward(torch.cat([each.flatten(0, 1) for each in parts]))
            self.student.logit_scale.grad = of_scale / self.accelerator.num_processes  # each process has all of it
        if loss.isfinite():
            self._step()
        figures = {name: term.detach() for name, term in terms.items()}
        return figures | {"logit_scale": self.student.logit_scale.detach().exp()}

    def _encode(self, texts: list[str]) -> Tensor:
        """Embed texts with gradient, each distinct one once: ``(n, d)``."""
        if not texts:
            return torch.empty(0, self.scorer.embed_dim, device=self.scorer.device, requires_grad=True)
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        features = encode_token_ids(self.student, self.scorer.tokenize(list(distinct)))
        return F.normalize(features.float(), dim=-1)[[distinct[text] for text in texts]]

    def _gather(
        self, inputs: dict[str, Any], references: list[str], rollouts: list[str], own: Tensor
    ) -> GlobalBatch:
        images, mask = inputs["image_embeds"], inputs["neighbour_mask"]
        count, per_image = len(images), inputs["caption_embeds"].shape[1]
        people, written = (torch.tensor([stable_hash(text) for text in texts]) for texts in (references, rollouts))
        same = written.view(count, self.num_rollouts)[:, :, None] == people.view(count, per_image)[:, None, :]
        parts = {
            "images": images,
            "image_ids": inputs["image_ids"],
            "negatives": inputs["neighbour_embeds"][mask],
            "negative_ids": inputs["neighbour_ids"][mask],
            "references": own[: count * per_image].unflatten(0, (count, per_image)),
            "rollouts": own[count * per_image :].unflatten(0, (count, self.num_rollouts)),
            "same": same.to(images.device),
            "anchors": inputs["caption_embeds"],
        }
        return GlobalBatch(**{name: gather_rows(part, self.accelerator).clone() for name, part in parts.items()})

    def _step(self) -> None:
        """Sum gradients over processes, step, and update the moving average."""
        weights = list(self.trained.values())
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in weights]
        # One vector, so that a single exchange is enough.
        together = self.accelerator.reduce(torch.cat([each.flatten() for each in gradients]), reduction="sum")
        for weight, gradient in zip(weights, together.split([each.numel() for each in weights]), strict=True):
            weight.grad = gradient.view_as(weight)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        self.optimizer.step()
        self.steps += 1
        with torch.no_grad():
            self.student.logit_scale.clamp_(0, math.log(100))
            averages = dict(self.scorer.model.named_parameters())
            for name, weight in self.trained.items():
                averages[name].lerp_(weight, 1 - self.decay)
        self.scorer.logit_scale = float(self.scorer.model.logit_scale.exp())

    def state_dict(self) -> dict[str, Any]:
        """Return weights, moving average, optimiser and step count, loadable with ``weights_only=True``."""
        averages = dict(self.scorer.model.named_parameters())
        return {
            "student": {name: weight.detach() for name, weight in self.trained.items()},
            "average": {name: averages[name].detach() for name in self.trained},
            "optimizer": self.optimizer.state_dict(),
            "steps": torch.tensor(self.steps),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        averages = dict(self.scorer.model.named_parameters())
        for name, weight in self.trained.items():
            weight.copy_(state["student"][name])
            averages[name].copy_(state["average"][name])
        self.scorer.logit_scale = float(self.scorer.model.logit_scale.exp())
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])
