"""The discriminator that tells rollouts from captions that people wrote, its update and its state."""

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
"""What the weights are called beside a captioner."""


class Discriminator(nn.Module):
    """MLP on the embeddings of an image and of a text: 2 dim -> 512 -> ReLU -> 256 -> ReLU -> 2 logits.

    Class 0 is a rollout, class 1 is written by a person. Its score enters the reward as
    ``R(c) = (1 - lambda) * r_con(c) + lambda * D(c)``, the regularisation of arXiv 2402.13936.

    Args:
        embed_dim: dim, of one embedding.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * embed_dim, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 2)
        )

    def forward(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Logits (N, 2) of the pairs of image_embeds (N, dim) and text_embeds (N, dim), in the weights' precision."""
        # No autocast: there is no gradient scaler for this small network, and nothing to be saved by rounding it.
        with torch.autocast(image_embeds.device.type, enabled=False):
            pairs = torch.cat([image_embeds, text_embeds], dim=-1)
            return self.layers(pairs.to(next(self.parameters()).dtype))

    @torch.no_grad()
    def score(self, image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
        """Probability D that each text (N, dim) was written by a person who saw the image (N, dim): (N,)."""
        return self(image_embeds, text_embeds).softmax(dim=-1)[:, PERSON_CLASS]

    def save(self, folder: str | os.PathLike[str], scorer: str) -> None:
        """Write the weights into a folder, with the name of the scorer whose embeddings they are for."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, Path(folder) / FILE, {"scorer": scorer})

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Take up the weights that `save` wrote into a folder; without such a file they stay as they are."""
        if (path := Path(folder) / FILE).is_file():
            self.load_state_dict(load_file(path))


class DiscriminatorTrainer:
    """Trains a [`Discriminator`] beside the captioner: one Adam step for each step of the generator.

    The module stays plain (no wrapper of Accelerate or DistributedDataParallel): the sums of all processes are added
    up here, so that processes with parts of a batch, equal or not, take the very step of one process with the whole.
    Every process must call `update` equally often. Move the discriminator to its device before.

    Args:
        discriminator: the network, changed in place.
        lr: learning rate of Adam; 7e-5 in the paper.

    Attributes:
        steps: number of updates so far.
    """

    def __init__(self, discriminator: Discriminator, lr: float = 7e-5) -> None:
        self.discriminator = discriminator
        self.optimizer = torch.optim.Adam(discriminator.parameters(), lr=lr)
        self.steps = 0

    def synchronize(self) -> None:
        """Give every process the weights of process 0. Call it once, before the first update."""
        if _several_processes():
            for parameter in self.discriminator.parameters():
                dist.broadcast(parameter.data, src=0)

    @torch.enable_grad()
    def update(
        self, rollout_images: Tensor, rollout_texts: Tensor, reference_images: Tensor, reference_texts: Tensor
    ) -> dict[str, Tensor]:
        """One step on the cross-entropy, the mean over all pairs of all processes.

        The reward of a step takes the score from before it, so call `Discriminator.score` first.

        Args:
            rollout_images: (N, dim) image embeddings of the rollouts.
            rollout_texts: (N, dim) text embeddings of the rollouts.
            reference_images: (R, dim) image embeddings of the references.
            reference_texts: (R, dim) text embeddings of the references.

        Returns:
            ``loss`` and ``accuracy`` (share of pairs put into their class) before the step, over all processes:
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
        """Take up the state that `state_dict` gave: the next update is the one that would have followed."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])

    def _step(self, loss: Tensor, correct: Tensor, count: int) -> dict[str, Tensor]:
        """Turn the sums of this process into means over all processes, and step."""
        gradients = [p.grad for p in self.discriminator.parameters() if p.grad is not None]
        figures = torch.stack([loss, correct.to(loss), torch.full_like(loss, count)])
        # One vector, so that there is one exchange between processes.
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
