"""What leaves the machine: a model card, and a folder that `pipeline("image-to-text")` loads from the Hub."""

from __future__ import annotations

import math
import ntpath
import os
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, constants, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging

from .reporting.table import markdown_table

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("model_card_template.md")

# What a captioner needs to be loaded. `generation_config.json` is among it: without one, the pipeline's own
# `max_new_tokens=256` runs past the positions of a short decoder.
REQUIRED_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
)

# A list of what may be uploaded, not of what may not: a training leaves optimisers, pickled arguments and logs behind,
# and those hold paths and names of the machine.
UPLOADED_FILES = (
    *REQUIRED_FILES,
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "metrics.json",
    "contrast.html",
    "contrast.png",
)

_PRIVATE_SETTING = re.compile(r"(^|_)(token|key|password|secret|dir|run_name)$|^(hub_|push_to_hub)")
_TOKEN = re.compile(r"\bhf_\w{8,}")
# An absolute path, `~/path` or `../path` inside a text; not the slashes of `https://host/page`, `org/name`, `and/or`.
# Folders may hold spaces, and are told from prose by the slash behind them.
_PATH = re.compile(r"(?<![\w./\\])(?:[A-Za-z]:|~\w*|\.\.)?(?:[\\/][^\\/:'\",;\n]+(?=[\\/]))*[\\/][^\s\\/'\",;]+[\\/]?")


def write_model_card(
    output_dir: str | os.PathLike[str],
    *,
    model_name: str,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, float]] | None,
    data: str,
    scorer: str,
    samples: Sequence[Mapping[str, str]] | None = None,
    base_model: str | None = None,
) -> Path:
    """Write `README.md`, the model card of a captioner, into its folder.

    The card is meant to be published: settings that name folders, tokens or accounts are left out, and of every local
    path only the last part is kept.

    Args:
        output_dir: The folder of the captioner; made if it does not exist.
        model_name: Title of the card.
        settings: What the training was told, by name; those that differ from the defaults are enough.
        metrics: Measured values by system and name, as in `metrics.json`: `{"before": {...}, "after": {...}, ...}`.
            Those of `"after"` also become the card's `model-index`, which the Hub shows. None leaves the section out.
        data: What it was trained on, in a few words; a path is fine.
        scorer: Which CLIP gave the reward: its open_clip name or path.
        samples: Captions of test images side by side; each row maps a heading (`"before"`, `"after"`, ...) to a
            caption. None leaves the section out.
        base_model: The captioner that the training started from: a Hub id or a path.

    Returns:
        The path of the card.

    Raises:
        OSError: The folder cannot be written.
    """
    metrics = {system: _finite(values) for system, values in (metrics or {}).items()}
    data, scorer = _portable(data), _portable(scorer)
    card = ModelCard.from_template(
        ModelCardData(
            model_name=model_name,
            library_name="transformers",
            pipeline_tag="image-to-text",
            tags=["image-captioning", "vision-encoder-decoder", "reinforcement-learning", "clip", "hf_distinct"],
            base_model=base_model if _is_hub_id(base_model) else None,
            eval_results=_eval_results(metrics.get("after", {}), data) or None,
        ),
        template_path=str(TEMPLATE),
        model_name=model_name,
        data=data,
        scorer=scorer,
        base_model=_portable(base_model) if base_model else None,
        metrics_table=markdown_table(_transposed(metrics)) if any(metrics.values()) else None,
        systems=list(metrics),
        samples_table=_samples_table(samples) if samples else None,
        settings={name: _cell(_portable(str(value))) for name, value in _public(settings).items()},
        versions={name: version(name) for name in ("transformers", "torch", "open_clip_torch")},
    )
    path = Path(output_dir) / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    card.save(path)
    return path


def hub_token(token: str | None = None) -> str:
    """Return the token to write to the Hub with.

    Worth calling before a long training, so that a missing token is known at its start.

    Args:
        token: The token itself; by default that of `HF_TOKEN` or of an earlier `hf auth login`.

    Raises:
        ValueError: There is none.
    """
    token = token or get_token()
    if not token:
        raise ValueError(
            "To push to the Hub a token with write access is needed, and there is none: run `hf auth login`, or set "
            "the environment variable HF_TOKEN (make one under Settings > Access Tokens on the Hub)."
        )
    return token


def push_folder(
    output_dir: str | os.PathLike[str],
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Upload captioner",
) -> str:
    """Push a trained captioner to the Hub, at whatever endpoint `HF_ENDPOINT` names.

    Model, tokenizer, image processor, generation config, card, `metrics.json` and contrast sheet go up, in one commit;
    checkpoints, optimisers, pickled arguments and logs stay.

    Args:
        output_dir: The folder that a training left behind.
        repo_id: `name` or `account/name`; made if it does not exist.
        private: Whether a repository that is made now is private.
        token: See `hub_token`.
        commit_message: Message of the commit.

    Returns:
        The address of the repository.

    Raises:
        ValueError: A file is missing, there is no token, the card's metadata is invalid, or the Hub does not let the
            token write there.
    """
    folder = Path(output_dir)
    missing = [name for name in REQUIRED_FILES if not (folder / name).is_file()]
    if not any(folder.glob("model*.safetensors")):
        missing.append("model.safetensors")
    if missing:
        raise ValueError(
            f"{str(folder)!r} cannot be pushed, for it lacks {', '.join(missing)}: save model, tokenizer, image "
            "processor and generation config into it, and write the card with `write_model_card`."
        )
    api = HfApi(token=hub_token(token))
    try:
        repo = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            commit_message=commit_message,
            allow_patterns=list(UPLOADED_FILES),
            ignore_patterns="*/*",  # a folder's content is none of it: `*` would match slashes too
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status not in (401, 403):
            raise
        raise ValueError(
            f"{constants.ENDPOINT} does not let this token write to {repo_id!r} (HTTP {status}): check the name, and "
            "take a token with write access by `hf auth login` or HF_TOKEN."
        ) from error
    logger.info(f"pushed {folder} to {repo}")
    return str(repo)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Plain numbers only: NaN and infinity have no place in the card's metadata."""
    return {
        name: value if isinstance(value, int) else float(value)
        for name, value in values.items()
        if isinstance(value, Real) and math.isfinite(value)
    }


def _transposed(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """A row for each metric: there are many of them, and few systems."""
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    return {name: {system: values[name] for system, values in metrics.items() if name in values} for name in names}


def _eval_results(values: Mapping[str, float], data: str) -> list[EvalResult]:
    slug = re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "captions"
    return [
        EvalResult(
            task_type="image-to-text",
            dataset_type=slug,
            dataset_name=data,
            metric_type=name,
            metric_name=name,
            metric_value=round(value, 6),
        )
        for name, value in values.items()
    ]


def _samples_table(samples: Sequence[Mapping[str, str]]) -> str:
    headings = list(dict.fromkeys(heading for row in samples for heading in row))
    rows = [headings, ["---"] * len(headings), *([row.get(heading, "") for heading in headings] for row in samples)]
    return "\n".join("| " + " | ".join(map(_cell, row)) + " |" for row in rows)


def _cell(text: str) -> str:
    """Text that stays within one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not _PRIVATE_SETTING.search(name)}


def _portable(text: str) -> str:
    """The text without what is only true, or only known, on this machine: local paths but their last part; tokens."""
    text = text.removeprefix("file://")
    if os.path.isabs(text):  # as a whole, whatever its folders are called
        return _last_part(text)
    return _TOKEN.sub("[token]", _PATH.sub(lambda found: _last_part(found.group()), text))


def _last_part(path: str) -> str:
    return ntpath.basename(path.rstrip("\\/")) or "/"  # ntpath knows both kinds of slash


def _is_hub_id(name: str | None) -> bool:
    if not name or os.path.exists(name) or name.count("/") > 1 or name.startswith((".", "~")):
        return False
    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return True
