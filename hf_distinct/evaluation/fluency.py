"""Fluency: how likely a language model finds captions; it sees what CLIP does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_distinct.evaluation.bootstrap import Statistic
from hf_distinct.files.safe_loading import refuse_code


class LanguageModel:
    """A causal language model as a judge of sentences.

    Args:
        name: a Hub id or a folder.
        device: where it runs; none: a GPU if there is one.

    Raises:
        ValueError: it cannot be loaded, or would run code.
    """

    def __init__(self, name: str, device: str | torch.device | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            refuse_code(name)
            self.tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            model: Any = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"language model {name!r} cannot be loaded: {error}") from error
        self.model = model.to(self.device).eval()
        start = self.tokenizer.bos_token_id
        self.start = self.tokenizer.eos_token_id if start is None else start
        if self.start is None:
            raise ValueError(f"language model {name!r} has no token to begin a text with.")

    @torch.no_grad()
    def surprise(self, captions: Sequence[str], batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Return of each caption the sum of ``-log p`` over its tokens, and their number: ``(N,)`` each.

        The first token follows the model's token for a beginning, an end is not asked for.
        """
        limit = getattr(self.model.config, "max_position_embeddings", None) or 1024
        rows = [
            [self.start, *ids[: limit - 1]]
            for ids in (self.tokenizer(caption.strip(), add_special_tokens=False)["input_ids"] for caption in captions)
        ]
        sums, counts = np.zeros(len(rows)), np.array([len(row) - 1 for row in rows], dtype=np.float64)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for places in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
            longest = len(rows[places[-1]])
            if longest < 2:
                continue
            ids = torch.tensor([rows[p] + [self.start] * (longest - len(rows[p])) for p in places], device=self.device)
            mask = torch.tensor([[1] * len(rows[p]) + [0] * (longest - len(rows[p])) for p in places]).to(ids)
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            sums[places] = (losses * mask[:, 1:]).sum(dim=1).double().cpu().numpy()
        return sums, counts


def perplexity(sums: np.ndarray, counts: np.ndarray) -> Statistic:
    """Return the perplexity of a test set, ``exp(sum of -log p / tokens)``, as a function of the images in it."""
    return lambda weights: np.exp(weights @ sums / np.maximum(weights @ counts, 1.0))
