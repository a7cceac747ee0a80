"""Train a small judge of grammar, which measures the language of captions.

    hf-distinct train-grammar --dataset dataset_flickr8k.json --image_root Flicker8k_Dataset
    hf-distinct evaluate --grammar outputs/grammar --model outputs/my_captioner --dataset dataset_flickr8k.json

The judge learns to tell captions that people wrote from corrupted copies of them: words swapped, shuffled, repeated or
dropped, phrases repeated, ends cut off, articles doubled or dropped, fillers added. The recipe reads the captions of
the split `train`, but no pictures, and takes a few minutes on one CPU core. It prints for each kind of corruption the
fraction of captions of the split `test` that the judge tells apart, and writes config.json and model.safetensors to
--output_dir.

Never reward a captioner with this judge: once a captioner has learnt to please a judge, that judge measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.evaluation.grammar import accuracy_by_kind, train_grammar_judge
from hf_distinct.files import run_lock
from hf_distinct.reporting import format_table
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small
from hf_distinct.runs.dataset_settings import HELP, DatasetSettings
from hf_distinct.runs.logs import show_logs
from hf_distinct.text.problems import refuse

SCENES = {"train": 4000, "test": 1000}


@dataclass
class Settings(DatasetSettings):
    """Which captions to train on, and for how long."""

    output_dir: str = field(default="outputs/grammar", metadata={"help": "Folder to write the judge to."})
    epochs: int = field(default=6, metadata={"help": "Number of epochs."})
    batch_size: int = field(
        default=128, metadata={"help": "Number of captions per step, each with one corrupted copy."}
    )
    learning_rate: float = field(default=2e-3, metadata={"help": HELP["learning_rate"]})
    seed: int = field(default=0, metadata={"help": "Seed of the weights and of the corruptions."})

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible."""
        yield from too_small(self, epochs=1, batch_size=1)
        if not self.learning_rate > 0:
            yield f"learning_rate={self.learning_rate} must be positive."


def captions_of(settings: Settings) -> dict[str, list[str]]:
    """Load the captions of the splits `train` and `test`."""
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
