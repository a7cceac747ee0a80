"""The pools of the contrastive reward: what a step's captions are compared with, and the memory of earlier steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import torch
from torch import Tensor

from hf_distinct.rewards.base import ImagePool, TextKind, TextPool

OF_TEXTS = ("text_embeds", "text_ids", "text_image_ids", "kinds")


class Pools:
    """Makes the pools T of texts and V of images of a step: its own entries, and those of the last batches.

    Args:
        memory_batches: number of batches to remember.
        remembered: kinds of texts to remember. They all become MEMORY, so a reward cannot choose among them later.

    Attributes:
        memory: the remembered entries, the oldest batch first.
    """

    def __init__(self, memory_batches: int = 0, remembered: Collection[TextKind] = tuple(TextKind)) -> None:
        self.memory: deque[dict[str, Tensor]] = deque(maxlen=memory_batches)
        self.remembered = frozenset(remembered)

    def extend(self, entries: dict[str, Tensor], remember: bool = True) -> tuple[TextPool, ImagePool]:
        """Return the pools of a batch with the memory, and then add the batch to the memory.

        Args:
            entries: the entries of the batch: ``text_embeds`` (P, dim), ``text_ids``, ``text_image_ids`` and ``kinds``
                (P,) as in [`TextPool`], ``image_embeds`` (Q, dim) and ``image_ids`` (Q,) as in [`ImagePool`].
            remember: whether to add the batch to the memory.
        """
        found = {name: torch.cat([part, *(old[name] for old in self.memory)]) for name, part in entries.items()}
        if remember and self.memory.maxlen:
            self.memory.append(self._to_remember(entries))
        texts = TextPool(found["text_embeds"], found["text_ids"], found["text_image_ids"], found["kinds"])
        return texts, ImagePool(found["image_embeds"], found["image_ids"])

    def _to_remember(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        kinds, kept = entries["kinds"], torch.ones_like(entries["kinds"], dtype=torch.bool)
        for kind in {*TextKind} - self.remembered:
            kept &= kinds != kind
        texts = {name: entries[name][kept] for name in OF_TEXTS}
        return {**entries, **texts, "kinds": torch.full_like(texts["kinds"], int(TextKind.MEMORY))}

    def state_dict(self) -> list[dict[str, Tensor]]:
        """Return the memory, loadable with ``weights_only=True``."""
        return list(self.memory)

    def load_state_dict(self, state: list[dict[str, Tensor]], device: torch.device) -> None:
        """Load what `state_dict` returned."""
        self.memory.clear()
        self.memory.extend({name: part.to(device) for name, part in batch.items()} for batch in state)
