"""Fluency of captions, measured by a language model and a grammar judge, neither of which sees images."""

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
    """A causal language model that measures the perplexity of captions.

    Args:
        name: a Hub id or a folder.
        device: the device to use; by default a GPU if there is one.

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
            raise ValueError(f"language model {name!r} has no start token (bos_token or eos_token).")

    @torch.no_grad()
    def surprise(self, captions: Sequence[str], batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Return for each caption the sum of ``-log p`` over its tokens, and the number of tokens: ``(N,)`` each.

        The first token is conditioned on the model's start token; an end token is not included.
        """
        limit = getattr(self.model.config, "max_position_embeddings", None) or 1024

        def row(place: int) -> list[int]:
            # Read twice rather than kept: all tokens take more memory than the captions.
            ids = self.tokenizer(captions[place].strip(), add_special_tokens=False)["input_ids"]
            return [self.start, *ids[: limit - 1]]

        lengths = np.array([len(row(place)) for place in range(len(captions))])
        sums, order = np.zeros(len(lengths)), lengths.argsort(kind="stable")
        for places in (order[i : i + batch_size] for i in range(0, len(order), batch_size)):
            rows, longest = [row(place) for place in places], lengths[places[-1]]
            if longest < 2:
                continue
            ids = torch.tensor([each + [self.start] * (longest - len(each)) for each in rows], device=self.device)
            mask = torch.tensor([[1] * len(each) + [0] * (longest - len(each)) for each in rows]).to(ids)
            logits = self.model(input_ids=ids, attention_mask=mask).logits[:, :-1].float()
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            sums[places] = (losses * mask[:, 1:]).sum(dim=1).double().cpu().numpy()
        return sums, lengths - 1.0


def perplexity_distance(own: Statistic, people: Statistic) -> Statistic:
    """Return how far a perplexity is from that of people's captions, ``|ln(own / people)|``; 0 if they are equal.

    A low perplexity alone does not show good language, because repeated words are the easiest to predict.
    """
    return lambda weights: np.abs(np.log(own(weights) / people(weights)))


def perplexity(sums: np.ndarray, counts: np.ndarray) -> Statistic:
    """Return the perplexity of a test set, ``exp(sum of -log p / tokens)``, as a function of its images."""
    return lambda weights: np.exp(weights @ sums / np.maximum(weights @ counts, 1.0))


class LanguageJudges:
    """Measures the language of captions without references, by a grammar judge, a language model, both or neither.

    Args:
        grammar: folder of a [`GrammarJudge`]; or None.
        language_model: a Hub id or a folder; or None.
        batch_size: captions per batch of the language model.

    Raises:
        ValueError: one of them cannot be loaded.
    """

    def __init__(self, grammar: str | None = None, language_model: str | None = None, batch_size: int = 32) -> None:
        self.grammar = GrammarJudge.load(grammar) if grammar else None
        self.model = LanguageModel(language_model) if language_model else None
        self.batch_size = batch_size

    def statistics(self, captions: Sequence[str]) -> dict[str, Statistic]:
        """Return ``grammar`` and ``perplexity`` of captions, as far as they can be measured."""
        found: dict[str, Statistic] = {}
        if self.grammar is not None:
            found["grammar"] = mean_of(self.grammar.accepts(captions))
        if self.model is not None:
            found["perplexity"] = perplexity(*self.model.surprise(captions, self.batch_size))
        return found

    def told(self) -> Iterator[str]:
        """Yield a line about the accuracy of the grammar judge."""
        if self.grammar is not None:
            each = ", ".join(f"{kind} {value:.2f}" for kind, value in self.grammar.accuracy.items())
            yield (
                "grammar: fraction of captions that the grammar judge takes for people's. Its accuracy on held-out "
                f"captions: {each or 'not measured'}."
            )
