"""Model cards that write themselves, and say nothing of the machine they were written on."""

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
TAGS = {
    "captioner": ["image-captioning", "vision-encoder-decoder"],
    "clip": ["clip"],
}
ABOUT = """An image captioner whose captions are meant to single out their image: to say what sets it apart from \
similar ones.
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
    "The reward is what CLIP sees in a caption. What CLIP cannot tell apart (relations, counts, word order) is where "
    "a captioner trained so may invent; compare the captions with their images before relying on them.",
    "It speaks the language, and sees the kind of pictures, that it was trained on.",
)
SYSTEMS = {
    "before": "the captioner that training started from",
    "after": "this model",
    "people": "captions that people wrote, one of each picture held against the others of it",
    "ceiling": "captions that say everything, truly",
}
METRICS = {
    "t2i_R@1": "how often a caption finds its picture first among all of the gallery",
    "t2i_R@5": "among the first five",
    "i2t_R@1": "how often a picture finds its caption first",
    "CIDEr-D": "CIDEr-D in its own unit: 1.0 is what papers print as 100",
    "vocabulary": "different words",
    "mean_length": "words of a caption",
    "unique": "share of captions that no other picture has",
    "repeats": "share of captions that say a word twice in a row, or two words in a row twice",
    "bad_endings": "share of captions that stop where something must follow",
    "well_formed": "share of captions that the grammar allows",
    "true": "share of captions with every fact true",
    "details": "facts stated, of six",
    "relation": "the relation flipped",
    "size": "one size flipped",
    "swap": "two content words exchanged",
    "shuffle": "its words shuffled",
    "drop": "function words left out",
    "cut": "cut off in mid-phrase",
}
GALLERIES = {
    "scorer": "under the CLIP that gave the reward",
    "judge": "under a CLIP that training never saw",
    "twins": "in a gallery of near twins",
    "prefers_truth": "how often a picture is nearer to its true caption than to a false or broken one, that has",
}

_PRIVATE_SETTING = re.compile(r"(^|_)(token|key|password|secret|dir|run_name)$|^(hub_|push_to_hub)")


@dataclass(frozen=True)
class Sample:
    """A picture of the card, and what was said of it.

    Args:
        image: of any mode and size.
        captions: by who said them, e.g. ``{"before": ..., "after": ..., "a person": ...}``.
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
    """Write the model card of a captioner or of a CLIP, with its pictures beside it, into a folder.

    If there is a card already and somebody edited it, their text before and after ours, and their metadata, stay in
    the new card. If they edited the part that we wrote, or wrote it all, their card stays, and the new one is
    `model_card.md`.

    The card is meant to be published: settings that name folders, tokens or accounts are left out, of every local path
    only the last part is kept, and of an address neither password nor signature. What others wrote (names, licences,
    captions, alarms, settings) is shown as text and is never markup. What is not given is not spoken of.

    Args:
        output_dir: The folder of the model; made if it does not exist.
        model_name: Title of the card.
        data: What it was trained on, in a few words, or the id of a data set; a path is fine.
        kind: What it is; decides library, task and tags.
        about: The first paragraph, as Markdown.
        scorer: Which CLIP gave the reward: its open_clip name or path, and what else is known of it.
        reward: The formula, as Markdown: see `hf_distinct.reporting.reward_formula`.
        base_model: The model that the training started from: a Hub id or a path.
        model_license: Its licence, as the Hub calls it: `apache-2.0`.
        data_license: That of the data, in words.
        settings: What the training was told, by name; see `hf_distinct.settings.changed_settings`.
        metrics: Measured values by system and name, as in `metrics.json`: `{"before": {...}, "after": {...}, ...}`.
            Those of `"after"`, or of the last system, also become the card's `model-index`, which the Hub shows.
        samples: Pictures with captions.
        log_history: What the Trainer logged, as in `trainer_state.json`, for the training curve.
        alarms: What `hf_distinct.training.alarms` told during the training, a sentence each.
        emissions: Grams of CO2 equivalents of the training. None: what CodeCarbon left in `output_dir`, if it did.
        loading: The two lines that load it; none: those for whoever has it from the Hub.
        made_by: The commands that made it.
        limits: What to beware of, each one a sentence or two.
        file_name: That of the card; pictures of a card that is not the `README.md` carry its name.

    Returns:
        The path of the card.

    Raises:
        OSError: The folder cannot be written.
        ValueError: A hundred cards beside it were edited by hand.
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
    emissions, emissions_source = (emissions, "told by who trained it") if emissions is not None else _codecarbon(path)
    carbon = None if emissions is None else {"emissions": emissions, "source": emissions_source}
    reported = metrics.get("after") or (list(metrics.values())[-1] if metrics else {})
    card = ModelCard.from_template(
        ModelCardData(
            model_name=plain(model_name),
            license=model_license and plain(model_license),
            library_name=LIBRARIES[kind],
            pipeline_tag=TASKS[kind],
            tags=[*TAGS[kind], *(["reinforcement-learning"] if reward else []), "hf_distinct"],
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
    """Write a card without losing what somebody wrote into the one that stands in its place."""
    stem, ending = os.path.splitext(BESIDE)
    names = [path.name, BESIDE, *(f"{stem}.{number}{ending}" for number in range(1, 100))]
    for place in map(path.with_name, names):
        old = place.read_text(encoding="utf-8", errors="replace") if place.exists() else None
        merged = card if old is None else merge(card, old)
        if merged is not None:
            break
    else:
        raise ValueError(f"{path.parent} holds {len(names)} cards that were edited by hand: move some of them.")
    if place != path:
        logger.warning(
            "%s was written or edited by hand. It stays as it is, and the new card is %s beside it. To get the new "
            "one, delete the old one and write the card again.", path, place.name
        )  # fmt: skip
    place.write_text(merged, encoding="utf-8")
    return place


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
    """What the columns and the rows of the table mean, as far as their names are known."""
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
    """Grams that CodeCarbon measured, by the last line of its file (in kilograms) beside the card; and the source.

    A file without a figure, of a run that was killed for instance, is told in a warning.
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
        logger.warning("%s has no figure in its last row (%s): the card does not tell emissions", file, error)
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
