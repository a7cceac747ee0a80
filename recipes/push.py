"""Push a trained captioner or a mined folder to the Hub, or to the server that HF_ENDPOINT names.

    hf-distinct push outputs/quickstart user/name                                           # a captioner
    hf-distinct push outputs/quickstart user/name --private true --revision experiment      # to a branch
    hf-distinct push outputs/mined user/name --repo_type dataset                            # a mined folder

The recipe pushes in one commit: of a captioner the model, tokenizer, image processor, card and figures, of a mined
folder the embeddings and neighbours. If the push is interrupted, the repository stays as it was, and the same command
continues. A second push sends only what changed. The token is HF_TOKEN, or that of `hf auth login`. The recipe prints
the address of the commit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hf_distinct.hub.transfer import push_folder
from hf_distinct.runs.arguments import clear_errors, parse_settings
from hf_distinct.runs.logs import show_logs
from hf_distinct.scorer import shipped_or_named


@dataclass
class Settings:
    """What to push, and where to."""

    output_dir: str = field(metadata={"help": "Folder to push, which `hf-distinct train`, `warm-up` or `mine` wrote."})
    repo_id: str = field(
        metadata={"help": "Repository to push to, as user/name; it is created if it does not exist."}
    )
    repo_type: Literal["model", "dataset"] = field(
        default="model", metadata={"help": "Repository type: `model` for a captioner, `dataset` for a mined folder."}
    )
    private: bool = field(
        default=False, metadata={"help": "Create a private repository; an existing public one is refused."}
    )
    revision: str | None = field(
        default=None,
        metadata={"help": "Branch to push to; it is created if it does not exist. Default: main."},
    )
    include_discriminator: bool = field(
        default=False, metadata={"help": "Push the discriminator too, as discriminator.safetensors."}
    )
    include_scorer: str | None = field(
        default=None,
        metadata={
            "help": "Scorer to push too, as scorer/: a folder that `hf-distinct train-clip` wrote, or the name of a "
            "shipped model. Default: none."
        },
    )


def main() -> None:
    """Push."""
    (settings,) = parse_settings(Settings, description=__doc__, first=("output_dir", "repo_id"))
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
