"""What the metrics cost beside pycocoevalcap, and whether they agree with it (needs `pip install pycocoevalcap`).

    python recipes/benchmarks/metrics.py                                 # 5,000 captions with five references each
    python recipes/benchmarks/metrics.py --csv example_1.csv example_2.csv   # caption_predicted, caption_1, ...

Seconds are of the processor, children (Java) included. Without Java pycocoevalcap gets its words from our tokenizer.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.evaluation import caption_metrics
from hf_distinct.evaluation.ptb_tokenizer import ptb_line
from hf_distinct.runs.arguments import clear_errors, parse_settings

Lines = dict[int, list[str]]
FILLERS = "standing near some people, in front of a building; with a man's hat on the left side of the street"


@dataclass
class Settings:
    """What to measure on."""

    csv: list[str] = field(default_factory=list, metadata={"help": "Files of captions with references; none: drawn."})
    size: int = field(default=5000, metadata={"help": "Captions that are drawn."})


def draw(size: int) -> tuple[list[str], list[list[str]]]:
    """Captions of the length of COCO's: emoji scenes with a few words more."""
    rng = random.Random(0)

    def longer(caption: str) -> str:
        words = FILLERS.split()
        start = rng.randrange(len(words) - 4)
        return f"{caption} {' '.join(words[start : start + rng.randint(1, 5)])}."

    references = [[longer(text) for text in own] for own in emoji_scenes("train", size, 0)["captions"][:]]
    return [longer(own[0]) for own in references], references


def read(path: str) -> tuple[list[str], list[list[str]]]:
    """Captions and references of a CSV file."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or "caption_predicted" not in rows[0]:
        raise ValueError(f"{path}: row 1 should name the columns caption_predicted, caption_1, ...")
    return [row["caption_predicted"] for row in rows], [[row[f"caption_{i}"] for i in range(1, 6)] for row in rows]


def by_pycocoevalcap(captions: list[str], references: list[list[str]]) -> dict[str, float]:
    """CIDEr-D, BLEU and ROUGE-L as the COCO evaluation counts them."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said, told = words({i: [text] for i, text in enumerate(captions)}), words(dict(enumerate(references)))
    with contextlib.redirect_stdout(io.StringIO()):
        blue = Bleu(4).compute_score(told, said, verbose=0)[0]
        found = {"CIDEr-D": Cider().compute_score(told, said)[0]}
        found |= {f"BLEU-{n}": score for n, score in enumerate(blue, start=1)}
        return {**found, "ROUGE-L": Rouge().compute_score(told, said)[0]}


def words(texts: Lines) -> Lines:
    """The words of texts by the Java tokenizer, where there is one."""
    if shutil.which("java") is None:
        return {row: [ptb_line(text) for text in own] for row, own in texts.items()}
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    return PTBTokenizer().tokenize({row: [{"caption": text} for text in own] for row, own in texts.items()})


def timed(work: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    """What the work returns, and its seconds of the processor."""
    before = os.times()
    found = work(*given)
    return found, sum(os.times()[:4]) - sum(before[:4])


def main() -> None:
    """Measure both on the same captions, and compare."""
    (settings,) = parse_settings(Settings, description=__doc__)
    os.environ.setdefault("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    for source in settings.csv or [None]:
        captions, references = read(source) if source else draw(settings.size)
        ours, our_seconds = timed(caption_metrics, captions, references)
        ptb_line.cache_clear()
        theirs, their_seconds = timed(by_pycocoevalcap, captions, references)
        print(f"{source or 'drawn'}: {len(captions)} captions")
        for name, value in theirs.items():
            print(f"  {name:<8} {ours[name]:.6f}  pycocoevalcap {value:.6f}  difference {ours[name] - value:+.1e}")
        print(f"  {our_seconds:.2f} s for all {len(ours)} figures, pycocoevalcap {their_seconds:.2f} s", end="")
        print(f" for these {len(theirs)}: {our_seconds / their_seconds:.3f} of its time")


if __name__ == "__main__":
    with clear_errors():
        main()
