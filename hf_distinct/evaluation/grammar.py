"""A grammar judge: a small classifier of captions written by people against corrupted ones.

A CLIP reward ignores grammar, and a language model's perplexity is misleading, because repeated words are easy to
predict. ``hf-distinct train-grammar`` trains this judge to distinguish people's captions from corrupted copies
(`hf_distinct.evaluation.corruptions`). It only reads words, not the image. It is a metric: never use it as a reward.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from transformers.utils import logging

from hf_distinct.evaluation.corruptions import CORRUPTIONS, Words, corrupt
from hf_distinct.evaluation.ptb_tokenizer import tokenize
from hf_distinct.files.parts import written_whole

logger: Any = logging.get_logger(__name__)

PADDING, UNKNOWN = 0, 1
FIRST_WORD = 2
MIN_COUNT = 3
UNKNOWN_SHARE = 0.02
"""Fraction of words that training replaces by the unknown word, so that rare words are no evidence by themselves."""
MAX_WORDS = 64
"""Maximum number of words per caption; later words are ignored."""
LONGEST_AGO = 8
"""Distances of repetitions, in words, are clipped at this value."""
MAX_WIDTH = 1024
CONFIG, WEIGHTS = "config.json", "model.safetensors"
KIND = "caption grammar judge"


class GrammarJudge(nn.Module):
    """A bidirectional GRU over a caption's words, with a linear layer on the maximum and the mean of its states.

    The input also has each word's distance from the previous occurrence of the same word, and of the same pair of
    words, so that the judge detects repetitions of words that were not repeated in training.

    Args:
        vocabulary: the known words; all others share one embedding.
        width: size of the word embedding, and of the GRU in each direction.

    Attributes:
        accuracy: the accuracy on held-out captions by kind: ``people``, and each kind of
            `hf_distinct.evaluation.corruptions.CORRUPTIONS`. Empty if it was not measured.
    """

    def __init__(self, vocabulary: Sequence[str], width: int = 128) -> None:
        super().__init__()
        self.vocabulary = list(vocabulary)
        self.places = {word: place for place, word in enumerate(self.vocabulary, start=FIRST_WORD)}
        self.width = width
        self.accuracy: dict[str, float] = {}
        self.embedding = nn.Embedding(FIRST_WORD + len(self.vocabulary), width, padding_idx=PADDING)
        self.ago = nn.ModuleList(nn.Embedding(LONGEST_AGO + 1, width) for _ in range(2))  # of words, of pairs
        self.gru = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(4 * width, 1)

    def forward(self, ids: Tensor, ago: Tensor, lengths: Tensor) -> Tensor:
        """Return logits ``(N,)`` that people wrote the captions; the arguments come from `batch`."""
        words = self.dropout(self.embedding(ids) + self.ago[0](ago[..., 0]) + self.ago[1](ago[..., 1]))
        packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=ids.shape[1])
        real = (torch.arange(ids.shape[1]) < lengths[:, None]).to(states.device)[..., None]
        largest = states.masked_fill(~real, -torch.inf).amax(dim=1)
        mean = (states * real).sum(dim=1) / real.sum(dim=1)
        return self.head(self.dropout(torch.cat([largest, mean], dim=1)))[:, 0]

    def batch(self, rows: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor, Tensor]:
        """Prepare captions of at least one word, given as words, for the network.

        Returns:
            Word ids ``(N, L)``; distances from the previous occurrence of the word and of its pair ``(N, L, 2)``, 0
            where there is none; and lengths ``(N,)``.
        """
        rows = [words[:MAX_WORDS] for words in rows]
        columns = [
            [torch.tensor([self.places.get(word, UNKNOWN) for word in words]) for words in rows],
            [torch.tensor([_ago(words), _ago([*zip(["", *words], words, strict=False)])]).T for words in rows],
        ]
        ids, ago = (pad_sequence(column, batch_first=True, padding_value=PADDING) for column in columns)
        return ids, ago, torch.tensor([len(words) for words in rows])

    def score(self, captions: Sequence[str], batch_size: int = 256) -> np.ndarray:
        """Return the probability that a person wrote each caption: ``(N,)``; 0 for a caption without words.

        Raises:
            ValueError: `captions` is a string.
        """
        if isinstance(captions, str):
            raise ValueError(f"expected a list of captions, got {captions!r}.")
        return self.score_words(Tokenized(captions), batch_size)

    @torch.no_grad()
    def score_words(self, rows: Sequence[Sequence[str]], batch_size: int = 256) -> np.ndarray:
        """Like `score`, for captions that are already split into words."""
        self.eval()
        found = np.zeros(len(rows))
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        order = lengths.argsort(kind="stable")[np.count_nonzero(lengths == 0) :]
        for places in (order[start : start + batch_size] for start in range(0, len(order), batch_size)):
            found[places] = self(*self.batch([rows[place] for place in places])).sigmoid().double().numpy()
        return found

    def accepts(self, captions: Sequence[str]) -> np.ndarray:
        """Return whether each caption is classified as a person's, ``(N,)`` bool: the metric ``grammar``."""
        return self.score(captions) > 0.5

    # ---------------------------------------------------------------------------------------------------------- files

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder."""
        config = {"kind": KIND, "width": self.width, "accuracy": self.accuracy, "vocabulary": self.vocabulary}
        with written_whole(Path(folder) / WEIGHTS) as temporary:
            save_file(self.state_dict(), temporary)
        with written_whole(Path(folder) / CONFIG) as temporary:
            temporary.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> GrammarJudge:
        """Read a judge written by `save`; no code in the folder is run.

        Raises:
            ValueError: the folder contains no judge, or a file is damaged.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            vocabulary, width = _checked(config)
            weights = load_file(folder / WEIGHTS)
            if weights["embedding.weight"].shape != (FIRST_WORD + len(vocabulary), width):
                raise ValueError(f"{CONFIG} and {WEIGHTS} belong to judges of different sizes")
            judge = cls(vocabulary, width)
            judge.load_state_dict(weights)
            if not all(value.isfinite().all() for value in judge.parameters()):
                raise ValueError(f"{WEIGHTS} contains NaN or infinity")
            judge.accuracy = config["accuracy"]
        except Exception as error:  # errors of JSON, safetensors and torch
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{folder} contains no readable grammar judge ({reason}): create one with "
                "`hf-distinct train-grammar`."
            ) from error
        return judge.eval()


class Tokenized(Sequence[list[str]]):
    """The words of captions, split each time they are read, since all words take more memory than the captions."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.captions = captions

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, place: Any) -> Any:
        return tokenize(self.captions[place])


def _ago(items: Sequence[Any]) -> list[int]:
    """Return the distance of each item from the previous equal one, at most `LONGEST_AGO`; 0 if there is none."""
    last: dict[Any, int] = {}
    found = []
    for place, item in enumerate(items):
        found.append(min(place - last.get(item, place), LONGEST_AGO))
        last[item] = place
    return found


def _checked(config: Any) -> tuple[list[str], int]:
    """Return vocabulary and width from a judge's config; raises ValueError."""
    if not isinstance(config, dict) or config.get("kind") != KIND:
        raise ValueError(f"{CONFIG} is not that of a {KIND}")
    vocabulary, width = config.get("vocabulary"), config.get("width")
    if not isinstance(vocabulary, list) or not all(isinstance(word, str) for word in vocabulary):
        raise ValueError(f"{CONFIG}: vocabulary is not a list of words")
    accuracy = config.get("accuracy")
    if not isinstance(accuracy, dict) or not all(isinstance(value, float) for value in accuracy.values()):
        raise ValueError(f"{CONFIG}: accuracy does not map names to numbers")
    if not isinstance(width, int) or not 0 < width <= MAX_WIDTH:
        raise ValueError(f"{CONFIG}: width={width!r} is not a number from 1 to {MAX_WIDTH}")
    return vocabulary, width


def train_grammar_judge(
    captions: Iterable[str],
    *,
    epochs: int = 6,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    width: int = 128,
    seed: int = 0,
) -> GrammarJudge:
    """Train a judge on people's captions against corrupted copies, which differ in every epoch.

    The same captions and settings give the same judge, on the same machine with the same number of threads.

    Args:
        captions: people's captions.
        epochs: passes over the captions.
        batch_size: people's captions per batch, with as many corrupted ones.
        learning_rate: the maximum learning rate of AdamW, with a one-cycle schedule.
        width: see [`GrammarJudge`].
        seed: seed of the weights and of the corruptions.

    Raises:
        ValueError: no caption has two words or more.
    """
    rows = [words for words in map(tokenize, captions) if len(words) > 1]
    if not rows:
        raise ValueError("training a grammar judge needs captions of at least two words: there are none.")
    counts = Counter(word for words in rows for word in words)
    vocabulary = sorted(word for word, count in counts.items() if count >= MIN_COUNT)
    random = Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge = GrammarJudge(vocabulary, width).train()
        optimizer = torch.optim.AdamW(judge.parameters(), lr=learning_rate)
        steps = -(-len(rows) // batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
        for epoch in range(epochs):
            random.shuffle(rows)
            total = 0.0
            for start in range(0, len(rows), batch_size):
                loss = _loss(judge, rows[start : start + batch_size], random)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                total += loss.item()
            logger.info("epoch %d of %d: loss %.4f", epoch + 1, epochs, total / steps)
    return judge.eval()


def _loss(judge: GrammarJudge, people: list[Words], random: Random) -> Tensor:
    """Return the cross-entropy of captions and their corrupted copies, with some words masked."""
    corrupted = [words for words in (corrupt(words, random) for words in people) if words is not None]
    ids, ago, lengths = judge.batch([*people, *corrupted])
    hidden = (torch.rand(ids.shape) < UNKNOWN_SHARE) & (ids != PADDING)
    wrote = torch.tensor([1.0] * len(people) + [0.0] * len(corrupted))
    logits = judge(ids.masked_fill(hidden, UNKNOWN), ago, lengths)
    return nn.functional.binary_cross_entropy_with_logits(logits, wrote)


def accuracy_by_kind(judge: GrammarJudge, captions: Sequence[str], seed: int = 0) -> dict[str, float]:
    """Return a judge's accuracy on people's captions and on each kind of corrupted ones.

    Args:
        judge: the judge.
        captions: people's captions that the judge was not trained on.
        seed: seed of the corruptions.

    Returns:
        ``people``, and each kind that applies to any of the captions; from 0 to 1.

    Raises:
        ValueError: there are no captions.
    """
    rows = [tokenize(caption) for caption in captions]
    if not rows:
        raise ValueError("there are no captions to measure a grammar judge on.")
    random, found = Random(seed), {"people": float((judge.score_words(rows) > 0.5).mean())}
    for kind, make in CORRUPTIONS.items():
        corrupted = [words for words in (make(row, random) for row in rows) if words is not None]
        if corrupted:
            found[kind] = float((judge.score_words(corrupted) <= 0.5).mean())
    return found
