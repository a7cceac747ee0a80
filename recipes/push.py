"""Push what a recipe wrote to the Hub, or to the server that HF_ENDPOINT names.

    python recipes/push.py outputs/quickstart user/name                  # a captioner, with its card and all it needs
    python recipes/push.py outputs/quickstart user/name --private true --revision experiment
    python recipes/push.py outputs/mined user/name --repo_type dataset   # embeddings and neighbours of recipes/mine.py

A push is one commit. If it is interrupted, the repository stays as it was, and the same command continues. A second
push sends only what changed. The token is that of HF_TOKEN, or of `hf auth login`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal

from hf_distinct.hub.transfer import push_folder
from hf_distinct.runs.arguments import clear_errors, parse_settings
from hf_distinct.runs.logs import show_logs
from hf_distinct.scorer import shipped_or_named


@dataclass
class Settings:
    """What goes where."""

    output_dir: str = field(metadata={"help": "Folder that a recipe wrote (or the first argument)."})
    repo_id: str = field(
        metadata={
            "help": "Repository to push to, as user/name; created if it does not exist (or the second argument)."
        }
    )
    repo_type: Literal["model", "dataset"] = field(
        default="model",
        metadata={"help": "What is pushed: `model` for a captioner, `dataset` for what recipes/mine.py wrote."},
    )
    private: bool = field(
        default=False, metadata={"help": "Create a private repository; a public one of this name is refused."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Branch to push to, created if it does not exist. Default: main."}
    )
    include_discriminator: bool = field(
        default=False, metadata={"help": "Push the discriminator too, as discriminator.safetensors."}
    )
    include_scorer: str | None = field(
        default=None,
        metadata={"help": "Scorer to push too, as scorer/: a folder of train_clip.py, or the name of a shipped one."},
    )


def main() -> None:
    """Push."""
    words = sys.argv[1:]
    if len(words) > 1 and not words[0].startswith("-") and not words[1].startswith("-"):
        words[:2] = ["--output_dir", words[0], "--repo_id", words[1]]
    (settings,) = parse_settings(Settings, argv=words, description=__doc__)
    show_logs()
    scorer = settings.include_scorer
    address = push_folder(
        settings.output_dir, settings.repo_id, repo_type=settings.repo_type, private=settings.private,
        revision=settings.revision, include_discriminator=settings.include_discriminator,
        include_scorer=scorer and shipped_or_named(scorer),
    )  # fmt: skip
    print(address)


if __name__ == "__main__":
    with clear_errors():
        main()
