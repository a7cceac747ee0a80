"""The discriminator, which separates rollouts from captions that people wrote, and its training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

ROLLOUT_CLASS = 0
PERSON_CLASS = 1
FILE = "discriminator.safetensors"
"""File name of the weights in a captioner's folder."""


class Discriminator(nn.Module):
    """MLP on the embeddings of an image and a text: 2 dim -> 512 -> ReLU -> 256 -> ReLU -> 2 logits.

    Class 0 is a rollout, class 1 a caption written by a person. Its score enters the reward as
    ``R(c) = (1 - lambda) * r_con(c) + lambda * D(c)``, the regularisation of arXiv 2402.13936.

    Args:
        embed_dim: dim, the size of one embedding.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * embed_dim, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 2)
        )

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Return logits (N, 2) for pairs of image_embeds (N, dim) and text_embeds (N, dim), in the weights' dtype."""
        # No autocast: this small network has no gradient scaler, and half precision would save nothing.
        with torch.autocast(image_embeds.device.type, enabled=False):
            pairs = torch.cat([image_embeds, text_embeds], dim=-1)
            return self.layers(pairs.to(next(self.parameters()).dtype))

    @torch.no_grad()
    def score(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Return the probability D that each text (N, dim) about an image (N, dim) was written by a person: (N,)."""
        return self(image_embeds, text_embeds).softmax(dim=-1)[:, PERSON_CLASS]

    def save(self, folder: str | os.PathLike[str], scorer: str) -> None:
        """Write the weights into a folder, and the name of the scorer whose embeddings they were trained on."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, Path(folder) / FILE, {"scorer": scorer})

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Load the weights that `save` wrote into a folder; keep the current ones if the folder has no such file."""
        if (path := Path(folder) / FILE).is_file():
            self.load_state_dict(load_file(path))


class DiscriminatorTrainer:
    """Trains a [`Discriminator`] alongside the captioner: one Adam step per generator step.

    The module is not wrapped by Accelerate or DistributedDataParallel. Gradients are summed over all processes here,
    so several processes, each with a part of the batch, take the same step as one process with the whole batch; the
    parts may differ in size. Every process must call `update` equally often. Move the discriminator to its device
    first.

    Args:
        discriminator: the network; it is updated in place.
        lr: learning rate of Adam; 7e-5 in the paper.

    Attributes:
        steps: number of updates so far.
    """

    def __init__(self, discriminator: Discriminator, lr: float = 7e-5) -> None:
        self.discriminator = discriminator
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=lr)
        self.steps = 0

    def synchronize(self) -> None:
        """Broadcast the weights of process 0. Call this once, before the first update."""
        if _several_processes():
            for parameter in self.discriminator.parameters():
                dist.broadcast(parameter.data, src=0)

    @torch.enable_grad()
    def update(
        self, rollout_images: Tensor, rollout_texts: Tensor, reference_images: Tensor, reference_texts: Tensor
    ) -> dict[str, Tensor]:
        """Take one step on the cross-entropy, averaged over all pairs of all processes.

        The reward uses the score from before the step, so call `Discriminator.score` first.

        Args:
            rollout_images: (N, dim) image embeddings of the rollouts.
            rollout_texts: (N, dim) text embeddings of the rollouts.
            reference_images: (R, dim) image embeddings of the references.
            reference_texts: (R, dim) text embeddings of the references.

        Returns:
            ``loss`` and ``accuracy`` (fraction of pairs classified correctly) before the step, over all processes:
            detached scalars on the device.
        """
        images = torch.cat([rollout_images, reference_images]).detach()
        texts = torch.cat([rollout_texts, reference_texts]).detach()
        classes = torch.full((len(images),), ROLLOUT_CLASS, device=images.device)
        classes[len(rollout_images) :] = PERSON_CLASS

        self.optimizer.zero_grad()
        logits = self.discriminator(images, texts)
        loss = F.cross_entropy(logits, classes, reduction="sum")
        loss.backward()
        correct = (logits.argmax(dim=-1) == classes).sum()
        return self._step(loss.detach(), correct, len(classes))

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser and step count: tensors and plain numbers, loadable with ``weights_only=True``."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": torch.tensor(self.steps),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that `state_dict` returned, so that training continues exactly where it was."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])

    def _step(self, loss: Tensor, correct: Tensor, count: int) -> dict[str, Tensor]:
        """Turn this process's sums into means over all processes, and step."""
        gradients = [p.grad for p in self.discriminator.parameters() if p.grad is not None]
        figures = torch.stack([loss, correct.to(loss), torch.full_like(loss, count)])
        # One vector, so that a single all_reduce is enough.
        sums = torch.cat([figures, *(gradient.flatten() for gradient in gradients)])
        if _several_processes():
            dist.all_reduce(sums)
        means = sums / sums[2].clamp(min=1)
        offset = len(figures)
        for gradient in gradients:
            gradient.copy_(means[offset : offset + gradient.numel()].view_as(gradient))
            offset += gradient.numel()
        self.optimizer.step()
        self.steps += 1
        return {"loss": means[0].clone(), "accuracy": means[1].clone()}


def _several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
