"""Train a small judge of grammar, with which recipes/evaluate_captions.py measures the language of captions.

    python recipes/train_grammar.py --dataset dataset_flickr8k.json --image_root Flicker8k_Dataset
    python recipes/evaluate_captions.py --grammar outputs/grammar --model outputs/my_captioner ...

It learns to tell captions that people wrote from the same captions corrupted: words swapped, shuffled, repeated or
dropped, phrases repeated, ends cut off, articles doubled or dropped, fillers added. It reads the captions of the split
`train` and no pictures, which takes a few minutes on one CPU core. The recipe prints what share of the captions of the
split `test` the judge is right about, by kind, and writes OUT/config.json and OUT/model.safetensors.

Never train a captioner with this judge: what a captioner has learnt to please measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.evaluation.grammar import accuracy_by_kind, train_grammar_judge
from hf_distinct.files import run_lock
from hf_distinct.reporting import format_table
from hf_distinct.runs.arguments import clear_errors, parse_settings
from hf_distinct.runs.dataset_settings import DatasetSettings
from hf_distinct.runs.logs import show_logs
from hf_distinct.text.problems import refuse

SCENES = {"train": 4000, "test": 1000}


@dataclass
class Settings(DatasetSettings):
    """Which captions, and how long."""

    output_dir: str = field(default="outputs/grammar", metadata={"help": "Folder for the judge."})
    epochs: int = field(default=6, metadata={"help": "Number of times that it reads each caption."})
    batch_size: int = field(
        default=128, metadata={"help": "Number of people's captions in a step, beside as many corrupted ones."}
    )
    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
    seed: int = field(default=0, metadata={"help": "Seed of its weights and of what is corrupted."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each value that is not possible."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                yield f"{name}={getattr(self, name)} should be at least 1."
        if not self.learning_rate > 0:
            yield f"learning_rate={self.learning_rate} should be positive."


def captions_of(settings: Settings) -> dict[str, list[str]]:
    """The captions of the splits `train` and `test`."""
    splits = {name: emoji_scenes(name, size) for name, size in SCENES.items()} if settings.drawn else settings.load()
    return {name: [caption for own in splits[name]["captions"] for caption in own] for name in SCENES}


def main() -> None:
    """Train, measure, save."""
    (settings,) = parse_settings(Settings, description=__doc__)
    show_logs("train_grammar")
    output = Path(settings.output_dir)
    run_lock.claim(output)
    captions = captions_of(settings)
    judge = train_grammar_judge(
        captions["train"],
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=settings.seed,
    )
    judge.accuracy = accuracy_by_kind(judge, captions["test"], settings.seed)
    judge.save(output)
    print(format_table({kind: {"judged rightly": value} for kind, value in judge.accuracy.items()}))
    print(f"judge of grammar: {output}")


if __name__ == "__main__":
    with clear_errors():
        main()
