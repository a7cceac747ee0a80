"""Generate model cards, without private information about the machine they were written on."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id
from PIL import Image
from transformers.utils import logging

from hf_distinct import __version__
from hf_distinct.reporting.picture_strip import write_picture_strip
from hf_distinct.reporting.table import markdown_table
from hf_distinct.reporting.training_curve import write_training_curve
from hf_distinct.text.card_merge import BESIDE, mark, merge
from hf_distinct.text.escaping import as_code, as_markdown, plain
from hf_distinct.text.portable import portable, portable_values

logger = logging.get_logger(__name__)

TEMPLATE = Path(__file__).with_name("model_card_template.md")
Kind = Literal["captioner", "clip"]

LIBRARIES = {"captioner": "transformers", "clip": "open_clip"}
TASKS = {"captioner": "image-to-text", "clip": "zero-shot-image-classification"}
ABOUT = """An image captioner trained to write distinctive captions, which tell their image apart from similar ones.
It was trained by CLIP-guided reinforcement learning with `hf_distinct`, after
[Distinctive Image Captioning: Leveraging Ground Truth Captions in CLIP Guided Reinforcement
Learning](https://arxiv.org/abs/2402.13936) (Chaffin, Kijak and Claveau, 2024)."""
LOADING = {
    "captioner": """from transformers import pipeline  # on transformers 5: from hf_distinct import pipeline

captioner = pipeline("image-to-text", model="...")  # the id of this repository, or a local folder
""",
    "clip": """from hf_distinct import ClipScorer

clip = ClipScorer("hf-hub:...")  # the id of this repository; or a local folder
""",
}  # fmt: skip
LIMITS = (
    "The reward comes from CLIP. The captioner may invent what CLIP cannot distinguish (relations, counts, word "
    "order): compare captions with their images before you rely on them.",
    "It writes in the language of its training captions, and suits images like its training images.",
)
SYSTEMS = {
    "before": "the captioner before training",
    "after": "this model",
    "people": "captions that people wrote, each compared with the other captions of its image",
    "ceiling": "captions that state every fact correctly",
}
METRICS = {
    "t2i_R@1": "text-to-image retrieval: how often a caption ranks its image first in the gallery",
    "t2i_R@5": "how often a caption ranks its image among the first five",
    "i2t_R@1": "image-to-text retrieval: how often an image ranks its caption first",
    "CIDEr-D": "CIDEr-D in its own unit: papers print 1.0 as 100",
    "vocabulary": "number of different words",
    "mean_length": "words per caption",
    "unique": "fraction of captions that are written for one image only",
    "repeats": "fraction of captions that repeat a word, or two words, in a row",
    "bad_endings": "fraction of captions that stop in mid-phrase",
    "well_formed": "fraction of captions that the grammar accepts",
    "true": "fraction of captions whose every fact is true",
    "details": "facts stated, of six",
    "relation": "a reversed relation",
    "size": "a reversed size",
    "swap": "two content words exchanged",
    "shuffle": "shuffled words",
    "drop": "missing function words",
    "cut": "a missing end",
}
GALLERIES = {
    "scorer": "measured with the CLIP that gave the reward",
    "judge": "measured with a CLIP that was not used in training",
    "twins": "measured in a gallery of very similar images",
    "prefers_truth": "how often an image is more similar to its true caption than to a corrupted one, by kind",
}

_PRIVATE_SETTING = re.compile(r"(^|_)(token|key|password|secret|dir|run_name)$|^(hub_|push_to_hub)")


@dataclass(frozen=True)
class Sample:
    """An image of the card and its captions.

    Args:
        image: of any mode and size.
        captions: by author, e.g. ``{"before": ..., "after": ..., "a person": ...}``.
    """

    image: Image.Image
    captions: Mapping[str, str]


def write_model_card(
    output_dir: str | os.PathLike[str],
    *,
    model_name: str,
    data: str,
    kind: Kind = "captioner",
    about: str = ABOUT,
    scorer: str | None = None,
    reward: str | None = None,
    base_model: str | None = None,
    model_type: str = "vision-encoder-decoder",
    model_license: str | None = None,
    data_license: str | None = None,
    settings: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    samples: Sequence[Sample] = (),
    log_history: Sequence[Mapping[str, Any]] = (),
    alarms: Sequence[str] = (),
    emissions: float | None = None,
    loading: str | None = None,
    made_by: Sequence[str] = (),
    limits: Sequence[str] = LIMITS,
    file_name: str = "README.md",
) -> Path:
    """Write the model card of a captioner or of a CLIP model into a folder, with its images.

    If the folder has a card that somebody edited, their text before and after the generated part, and their metadata,
    are kept. If they edited the generated part, or wrote the whole card, their card is kept and the new one is named
    `model_card.md`.

    The card is meant to be published: settings that name folders, tokens or accounts are left out, local paths are
    reduced to their last part, and URLs lose passwords and signatures. Text from others (names, licences, captions,
    alarms, settings) is escaped. Parts without information are left out.

    Args:
        output_dir: the folder of the model; created if it does not exist.
        model_name: title of the card.
        data: short description or id of the training dataset; a path is fine.
        kind: captioner or CLIP model; determines library, task and tags.
        about: the first paragraph, as Markdown.
        scorer: name or path of the CLIP that gave the reward, and further information about it.
        reward: the formula, as Markdown; see `hf_distinct.reporting.reward_formula`.
        base_model: the model that training started from: a Hub id or a path.
        model_type: `model_type` of a captioner's config, which becomes a tag.
        model_license: its licence, as the Hub calls it: `apache-2.0`.
        data_license: licence of the data, in words.
        settings: training settings by name; see `hf_distinct.settings.changed_settings`.
        metrics: measured values by system and name, as in `metrics.json`: `{"before": {...}, "after": {...}, ...}`.
            Those of `"after"`, or of the last system, also become the card's `model-index`, which the Hub displays.
        samples: images with captions.
        log_history: the Trainer's log, as in `trainer_state.json`, for the training curve.
        alarms: messages of `hf_distinct.training.alarms` during training, one sentence each.
        emissions: CO2 equivalents of the training in grams. By default read from CodeCarbon's file in `output_dir`, if
            there is one.
        loading: code that loads the model; by default for loading it from the Hub.
        made_by: the commands that produced the model.
        limits: limitations, one or two sentences each.
        file_name: name of the card; if it is not `README.md`, the names of its images contain it.

    Returns:
        The path of the card.

    Raises:
        OSError: the folder cannot be written.
        ValueError: the folder already has a hundred cards that were edited by hand.
    """
    path = Path(output_dir) / file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = "" if file_name == "README.md" else f"{path.stem}_"
    curve, strip = f"{prefix}training_curve.png", f"{prefix}samples.png"
    has_curve = write_training_curve(log_history, path.with_name(curve))
    if samples:
        write_picture_strip([sample.image for sample in samples], path.with_name(strip))
    metrics = {system: _finite(values) for system, values in (metrics or {}).items()}
    names = list(dict.fromkeys(name for values in metrics.values() for name in values))
    data_id = data if "/" in data and _is_hub_id(data) else None
    data = plain(portable(data))
    emissions, emissions_source = (emissions, "reported by its author") if emissions is not None else _codecarbon(path)
    carbon = None if emissions is None else {"emissions": emissions, "source": emissions_source}
    tags = ["image-captioning", model_type] if kind == "captioner" else ["clip"]
    reported = metrics.get("after") or (list(metrics.values())[-1] if metrics else {})
    card = ModelCard.from_template(
        ModelCardData(
            model_name=plain(model_name),
            license=model_license and plain(model_license),
            library_name=LIBRARIES[kind],
            pipeline_tag=TASKS[kind],
            tags=[*tags, *(["reinforcement-learning"] if reward else []), "hf_distinct"],
            base_model=base_model if _is_hub_id(base_model) else None,
            datasets=[data_id] if data_id else None,
            co2_eq_emissions=carbon,
            eval_results=_eval_results(reported, data, TASKS[kind]) or None,
        ),
        template_path=str(TEMPLATE),
        model_name=as_markdown(model_name),
        about=about,
        loading=(loading or LOADING[kind]).strip(),
        call='captioner("picture.png")' if kind == "captioner" else None,
        data=as_markdown(data),
        data_license=as_markdown(data_license or "not stated"),
        scorer=as_markdown(portable(scorer)) if scorer else None,
        reward=reward,
        base_model=as_markdown(portable(base_model)) if base_model else None,
        metrics_table=markdown_table(_transposed(metrics)) if names else None,
        glossary=_glossary(list(metrics), names),
        curve=curve if has_curve else None,
        strip=strip if samples else None,
        samples_table=_samples_table(samples) if samples else None,
        sheet="contrast.png" if path.with_name("contrast.png").is_file() and not prefix else None,
        settings={as_code(name): as_markdown(str(value)) for name, value in _public(settings or {}).items()},
        alarms=list(map(as_markdown, alarms)),
        made_by=made_by,
        limits=limits,
        emissions=emissions,
        emissions_source=emissions_source,
        versions={"hf_distinct": __version__}
        | {name: version(name) for name in ("transformers", "torch", "open_clip_torch", "datasets")},
    )
    return _save(mark(str(card)), path)


def _save(card: str, path: Path) -> Path:
    """Write a card, but keep what somebody has written into an existing one."""
    stem, ending = os.path.splitext(BESIDE)
    names = [path.name, BESIDE, *(f"{stem}.{number}{ending}" for number in range(1, 100))]
    for place in map(path.with_name, names):
        old = place.read_text(encoding="utf-8", errors="replace") if place.exists() else None
        merged = card if old is None else merge(card, old)
        if merged is not None:
            break
    else:
        raise ValueError(f"{path.parent} has {len(names)} cards that were edited by hand: move some of them.")
    if place != path:
        logger.warning(
            "%s was written or edited by hand, so it is kept, and the new card is saved as %s in the same folder. To "
            "replace the old card, delete it and write the card again.", path, place.name
        )  # fmt: skip
    place.write_text(merged, encoding="utf-8")
    return place


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Keep finite numbers only: NaN and infinity are not allowed in the card's metadata."""
    return {
        name: value if isinstance(value, int) else float(value)
        for name, value in values.items()
        if isinstance(value, Real) and math.isfinite(value)
    }


def _transposed(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Turn metrics into rows, because there are many metrics and few systems."""
    names = dict.fromkeys(name for values in metrics.values() for name in values)
    return {name: {system: values[name] for system, values in metrics.items() if name in values} for name in names}


def _eval_results(values: Mapping[str, float], data: str, task: str) -> list[EvalResult]:
    slug = re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "captions"
    return [
        EvalResult(
            task_type=task,
            dataset_type=slug,
            dataset_name=data,
            metric_type=name,
            metric_name=name,
            metric_value=value,
        )
        for name, value in zip(map(plain, values), values.values(), strict=True)
    ]


def _glossary(systems: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the meanings of the table's known columns and rows."""
    parts = [part for name in names for part in name.split("/")]
    meanings = {
        **{system: SYSTEMS[system] for system in systems if system in SYSTEMS},
        **{f"{prefix}/": text for prefix, text in GALLERIES.items() if prefix in parts},
        **{name: text for name, text in METRICS.items() if name in parts},
    }
    return {as_code(name): text for name, text in meanings.items()}


def _samples_table(samples: Sequence[Sample]) -> str:
    speakers = list(dict.fromkeys(speaker for sample in samples for speaker in sample.captions))
    rows = [["", *map(as_markdown, speakers)], ["---"] * (len(speakers) + 1)]
    for number, sample in enumerate(samples, start=1):
        rows.append([str(number), *(as_markdown(sample.captions.get(speaker, "")) for speaker in speakers)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _public(settings: Mapping[str, Any]) -> dict[str, Any]:
    return portable_values({name: value for name, value in settings.items() if not _PRIVATE_SETTING.search(name)})


def _codecarbon(card: Path) -> tuple[float | None, str | None]:
    """Return grams of CO2 from the last row of CodeCarbon's file (in kilograms) in the card's folder, and the source.

    If the file has no value, for example after a killed run, a warning is logged.
    """
    file = card.with_name("emissions.csv")
    if not file.is_file():
        return None, None
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            *_, last = csv.DictReader(lines)
        emissions = 1000 * float(last["emissions"])
        if not math.isfinite(emissions):
            raise ValueError(last["emissions"])
    except (ValueError, KeyError, TypeError, csv.Error, OSError) as error:
        logger.warning("%s has no value in its last row (%s): emissions are left out of the card", file, error)
        return None, None
    return emissions, "measured by CodeCarbon"


def _is_hub_id(name: str | None) -> bool:
    if not name or os.path.exists(name) or name.count("/") > 1 or name.startswith((".", "~")):
        return False
    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return True
