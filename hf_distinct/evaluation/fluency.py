"""Fluency: what a language model and a judge of grammar find of captions; they see what CLIP does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_distinct.evaluation.bootstrap import Statistic, mean_of
from hf_distinct.evaluation.grammar import GrammarJudge
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


def perplexity_distance(own: Statistic, people: Statistic) -> Statistic:
    """Return how far a perplexity is from that of people's captions, ``|ln(own / people)|``: 0 where they are equal.

    A low perplexity is no sign of good language: words said again and again are the easiest to predict.
    """
    return lambda weights: np.abs(np.log(own(weights) / people(weights)))


def perplexity(sums: np.ndarray, counts: np.ndarray) -> Statistic:
    """Return the perplexity of a test set, ``exp(sum of -log p / tokens)``, as a function of the images in it."""
    return lambda weights: np.exp(weights @ sums / np.maximum(weights @ counts, 1.0))


class LanguageJudges:
    """What measures the language of captions without references: a judge of grammar, a language model, or neither.

    Args:
        grammar: folder of a [`GrammarJudge`]; or None.
        language_model: a Hub id or a folder; or None.
        batch_size: captions that the language model reads at a time.

    Raises:
        ValueError: one of them cannot be loaded.
    """

    def __init__(self, grammar: str | None = None, language_model: str | None = None, batch_size: int = 32) -> None:
        self.grammar = GrammarJudge.load(grammar) if grammar else None
        self.model = LanguageModel(language_model) if language_model else None
        self.batch_size = batch_size

    def statistics(self, captions: Sequence[str]) -> dict[str, Statistic]:
        """``grammar`` and ``perplexity`` of captions, where there is what measures it."""
        found: dict[str, Statistic] = {}
        if self.grammar is not None:
            found["grammar"] = mean_of(self.grammar.accepts(captions))
        if self.model is not None:
            found["perplexity"] = perplexity(*self.model.surprise(captions, self.batch_size))
        return found

    def told(self) -> Iterator[str]:
        """A line that says how good the judge of grammar is."""
        if self.grammar is not None:
            each = ", ".join(f"{kind} {value:.2f}" for kind, value in self.grammar.accuracy.items())
            yield (
                "grammar: share of captions that the judge takes for people's. Its accuracy on captions it did not "
                f"learn from: {each or 'not measured'}."
            )
