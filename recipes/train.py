r"""Train a captioner by reinforcement learning, so that its captions tell each image apart from similar ones.

    hf-distinct train                                      # on emoji scenes: a few minutes on two CPU cores
    hf-distinct train quickstart.yaml --max_steps 400      # a settings file, with one setting changed
    hf-distinct train --dataset captions.json --image_root images \
        --model_name_or_path my/captioner --scorer ViT-B-32:openai         # your own pictures
    hf-distinct train --accelerate_config ddp --num_processes 8            # eight GPUs

Without a settings file, the recipe uses quickstart.yaml, and photographs.yaml if you set --dataset. It measures the
captioner before and after the training, prints the figures, and writes to --output_dir:

    the captioner                 load it with pipeline("image-to-text", model=OUTPUT_DIR)
    README.md                     its model card
    metrics.json, captions.json   the figures, and the captions that they measure
    scorer/, scorer.json          with --train_scorer: the trained scorer, and its figures before and after
    contrast.html, contrast.png   pictures beside similar ones, with the captions before and after

Set `--eval_strategy steps --eval_steps 50` to measure the captioner during the training too, where alarms watch it.
Set `--ceiling 16` to train nothing, but to see how far the scorer can lead this captioner: the recipe draws 16
captions of each validation picture and measures those with the highest reward beside greedy captions.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import Dataset
from transformers import set_seed

from hf_distinct import RLCaptionConfig, RLCaptionTrainer
from hf_distinct.data import embed_dataset
from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.embedding_cache import names_in
from hf_distinct.data.emoji.dataset import LICENSE as EMOJI_LICENSE
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.neighbours import FILE, Neighbours
from hf_distinct.data.scorer_check import ScorerCheck
from hf_distinct.distributed.gathering import unsplit
from hf_distinct.distributed.nodes import once_per_node
from hf_distinct.files import run_lock
from hf_distinct.files.model_names import is_shipped
from hf_distinct.gallery import Gallery
from hf_distinct.hub.model_card import Sample
from hf_distinct.hub.transfer import hub_token, pull, push_folder
from hf_distinct.inference.captioner_fit import check_fit
from hf_distinct.inference.pipelines import load_captioner
from hf_distinct.reporting import format_table
from hf_distinct.reporting.contrast_rows import ContrastRow
from hf_distinct.reporting.contrast_sheet import write_contrast_sheet
from hf_distinct.rewards.resolve import found_rewards
from hf_distinct.runs.arguments import Told, clear_errors, parse_settings, too_small
from hf_distinct.runs.contrast import contrast_rows
from hf_distinct.runs.dataset_settings import CAPTIONER_FORMS, CLIP_FORMS, HELP, DatasetSettings
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.recipes import CONFIGS
from hf_distinct.runs.results import or_warn, output_problems, own_files, write_json
from hf_distinct.scorer import ClipScorer
from hf_distinct.settings import changed_settings
from hf_distinct.text.problems import attempt, refuse
from hf_distinct.training.ceiling import Ceiling
from hf_distinct.training.clip_training import EMOJI_RULES, ENGLISH_RULES, Measure
from hf_distinct.training.fit import training_problems
from hf_distinct.training.training_data import embed_once

EMOJI = {"train_size": 4000, "scenes_seed": 0}
EVAL_SIZE = 200
logger = logging.getLogger("hf_distinct.recipes.train")
SHOWN = (
    "judge/t2i_R@1", "judge/i2t_R@1", "scorer/t2i_R@1", "CIDEr-D", "BLEU-4", "ROUGE-L", "vocabulary", "mean_length",
    "unique", "repeats", "bad_endings", "well_formed", "true", "details",
    "twins/judge/t2i_R@1", "twins/well_formed", "twins/true",
)  # fmt: skip


@dataclass
class Settings(DatasetSettings):
    """What to train on, and with which models; the training itself is set in `RLCaptionConfig`."""

    mined: str | None = field(
        default=None,
        metadata={
            "help": "Embeddings and similar images of this dataset: a folder that `hf-distinct mine` wrote, or the "
            "Hub id to which `hf-distinct push` pushed it. Default: the pictures are embedded before the training."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": f"Captioner to train: {CAPTIONER_FORMS}. Default on emoji scenes: the shipped `captioner`."
        },
    )
    scorer: str | None = field(
        default=None,
        metadata={
            "help": f"CLIP that gives the rewards: {CLIP_FORMS}. Default on emoji scenes: the shipped `scorer`."
        },
    )
    judge: str | None = field(default=None, metadata={"help": HELP["judge"]})
    train_size: int | None = field(
        default=None, metadata={"help": f"{HELP['train_size']} Default: {EMOJI['train_size']}."}
    )
    test_size: int = field(default=1000, metadata={"help": HELP["test_size"]})
    eval_size: int | None = field(
        default=None,
        metadata={
            "help": "Number of validation pictures to measure on during the training, at most; needs --eval_strategy. "
            f"Default: {EVAL_SIZE}."
        },
    )
    split: Literal["test", "validation"] = field(default="test", metadata={"help": HELP["split"]})
    scenes_seed: int | None = field(
        default=None, metadata={"help": f"{HELP['scenes_seed']} Default: {EMOJI['scenes_seed']}."}
    )
    ceiling: int | None = field(
        default=None,
        metadata={
            "help": "Train nothing, but draw this many captions of each validation picture and measure those with the "
            "highest reward. Default: the captioner is trained."
        },
    )
    data_license: str | None = field(
        default=None,
        metadata={"help": "Licence of the dataset, for the model card. Default: the one that the dataset names."},
    )
    emissions: float | None = field(
        default=None,
        metadata={
            "help": "Grams of CO2 that the training emitted, for the model card. Default: what CodeCarbon measured, "
            "if it ran."
        },
    )


def default_file(told: Told) -> Path:
    """Choose the settings file of a run that names none."""
    drawn = told.get("dataset", ["emoji_scenes"]) == ["emoji_scenes"]
    return CONFIGS / ("quickstart.yaml" if drawn else "photographs.yaml")


def setting_problems(settings: Settings, config: RLCaptionConfig) -> Iterator[str]:
    """A sentence for each of the recipe's own settings that is not possible, or that has no effect with the others."""
    yield from too_small(settings, train_size=2, test_size=2, eval_size=2, ceiling=2)
    yield from output_problems(str(config.output_dir), {"model_name_or_path": settings.model_name_or_path})
    if settings.ceiling is not None:
        if config.rollouts == "beam":
            yield "--ceiling draws samples and cannot use beam search: leave out --rollouts beam."
        if config.world_size > 1:
            yield f"--ceiling runs in one process, but {config.world_size} were started: set --num_processes 1."
    best = config.metric_for_best_model or ""
    if best.removeprefix("eval_").startswith("judge/") and not settings.drawn and not settings.judge:
        yield f"--metric_for_best_model {best} needs a judge that measures it: set --judge."


def load_data(settings: Settings) -> tuple[Dataset, Dataset, dict[str, Dataset]]:
    """Load the training split, the validation split, and the test galleries by the prefix of their figures."""
    eval_size = EVAL_SIZE if settings.eval_size is None else settings.eval_size
    if settings.drawn:
        size, seed = (EMOJI[name] if getattr(settings, name) is None else getattr(settings, name) for name in EMOJI)
        galleries = {
            "": emoji_scenes(settings.split, settings.test_size, seed),
            "twins/": emoji_scenes(f"{settings.split}_twins", settings.test_size, seed),
        }
        return emoji_scenes("train", size, seed), emoji_scenes("validation", eval_size, seed), galleries
    splits = settings.load()
    validation, test = splits["validation"], splits[settings.split]
    validation = validation.select(range(min(eval_size, len(validation))))
    return splits["train"], validation, {"": test.select(range(min(settings.test_size, len(test))))}


def take_mined(
    train: Dataset, scorer: ClipScorer, settings: Settings, config: RLCaptionConfig
) -> tuple[Dataset, CaptionEmbeddings]:
    """Load embeddings and neighbours from a mined folder; refuse those of another dataset or scorer."""
    assert settings.mined is not None
    mined = pull(settings.mined)
    found = Neighbours.load(mined / FILE, *once_per_node(lambda: names_in(mined, train, scorer)))
    first, ranks = config.neighbour_first_rank, f"ranks {found.first_rank} to {found.rows.shape[1]}"
    if "neighbour_first_rank" in config.changed and first != found.first_rank:
        raise ValueError(
            f"neighbour_first_rank={first}, but {settings.mined} holds {ranks}. Leave the setting out, or mine again "
            f"with --first_rank {first}."
        )
    train, embeddings = embed_dataset(train, scorer, mined, strict=settings.strict)
    if config.pool_neighbours or config.hard_batches:
        train = found.add_to(train, config.pool_neighbours or None)
    else:
        logger.info(
            f"The training does not use the neighbours in {settings.mined} ({ranks}). To use them, set "
            "--pool_neighbours to their number."
        )
    return train, embeddings


def measure(captions: dict[str, list[str]], galleries: dict[str, Gallery]) -> dict[str, float]:
    """Measure the captions of every gallery; each figure gets the gallery's prefix."""
    return {prefix + k: v for prefix, texts in captions.items() for k, v in galleries[prefix].measure(texts).items()}


def check_output(config: RLCaptionConfig) -> None:
    """Check before the training that its result can be written and pushed, and claim the folder for this run."""
    output = Path(str(config.output_dir))
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ValueError(f"--output_dir {output} cannot be written: {error}") from error
    if config.process_index == 0:
        run_lock.claim(output)  # now, and not when the training begins after an hour of embedding
    if config.push_to_hub:
        hub_token(config.hub_token)


def show_ceiling(ceiling: Ceiling, gallery: Gallery, count: int) -> None:
    """Print the figures of the samples with the highest reward, beside greedy captions and people's."""
    metrics = {"people": gallery.people(), **ceiling.measure(gallery, count)}
    rows = {name: {system: of[name] for system, of in metrics.items() if name in of} for name in SHOWN}
    print(format_table({name: row for name, row in rows.items() if row}, list(metrics)))
    drawn = f"{len(gallery.references)} validation pictures, samples at temperature {ceiling.args.temperature:g}"
    print(f"{drawn}. Training moves greedy captions towards the best of {count}.")


def main() -> None:
    """Train, measure, save, share."""
    settings, config = parse_settings(Settings, RLCaptionConfig, description=__doc__, default_file=default_file)
    set_seed(config.seed)
    show_logs(main_process=config.process_index == 0)
    models = {"model_name_or_path": "captioner", "scorer": "scorer"}, {"judge": "judge"}
    refuse(setting_problems(settings, config), settings.model_problems(*models))
    names = settings.models(*models)
    if settings.eval_size is not None and config.eval_strategy == "no" and settings.ceiling is None:
        logger.warning("--eval_size %d has no effect without --eval_strategy steps or epoch.", settings.eval_size)
    check_output(config)

    source = names.pop("model_name_or_path")
    captioner, tokenizer, image_processor = load_captioner(source)
    with unsplit(config):
        clips = {role: ClipScorer(name).to(config.device) for role, name in names.items()}

    train, validation, tests = load_data(settings)
    problems: list[str] = []
    evaluates, rewards = config.eval_strategy != "no", attempt(problems, found_rewards, config.reward)
    problems += training_problems(
        config, train_dataset=train, eval_dataset=validation if evaluates else None, scorer=clips["scorer"],
        rewards=rewards, caption_metrics=Gallery.measure if evaluates else None,
    )  # fmt: skip
    check_fit(captioner, tokenizer, image_processor, config, problems)  # better now than after the embedding
    if settings.ceiling is not None:
        ceiling = Ceiling(
            captioner, tokenizer, image_processor, config, scorer=clips["scorer"], rewards=rewards or [],
            references_corpus=train["captions"],
        )  # fmt: skip
        show_ceiling(ceiling, Gallery(validation, clips, strict=settings.strict), settings.ceiling)
        return
    if settings.mined is not None:
        train, embeddings = take_mined(train, clips["scorer"], settings, config)
    else:
        train, embeddings = embed_once(train, clips["scorer"], settings.strict, config.dataloader_num_workers)
    galleries = {prefix: Gallery(test, clips, strict=settings.strict) for prefix, test in tests.items()}
    people: dict[str, float] = {}
    if config.process_index == 0:
        people = {prefix + k: v for prefix, gallery in galleries.items() for k, v in gallery.people().items()}
        pictures = len(galleries[""].dataset)
        ScorerCheck(people["scorer/t2i_R@1"], pictures, pictures).warn(settings.scorer or "the shipped scorer")
    watched = Gallery(validation, clips, strict=settings.strict) if evaluates else None
    trainer = RLCaptionTrainer(
        captioner,
        config,
        scorer=clips["scorer"],
        train_dataset=train,
        embeddings=embeddings,
        rewards=rewards,
        eval_dataset=None if watched is None else watched.dataset,
        processing_class=tokenizer,
        image_processor=image_processor,
        caption_metrics=None if watched is None else watched.measure,
        card={
            "data": settings.dataset,
            "data_license": settings.data_license or (EMOJI_LICENSE if settings.drawn else train.info.license) or None,
            "base_model": "captioner, shipped with hf_distinct" if is_shipped(source) else source,
            "settings": changed_settings(settings) | config.changed,
            "emissions": settings.emissions,
        },
    )
    said_before = {prefix: trainer.caption(gallery.dataset) for prefix, gallery in galleries.items()}
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    push, config.push_to_hub = config.push_to_hub, False  # from here on once, at the end, with all that was measured
    output = Path(str(config.output_dir))
    trainer.save_model(config.output_dir)
    trainer.save_state()
    said_after = {prefix: trainer.caption(gallery.dataset) for prefix, gallery in galleries.items()}
    if not trainer.is_world_process_zero():
        return
    before: dict[str, list[str]] = {}
    after: dict[str, list[str]] = {}
    for prefix, gallery in galleries.items():  # a picture may have gone bad during the training
        found, (before[prefix], after[prefix]) = gallery.captioned(said_before[prefix], said_after[prefix])
        if found is not gallery:
            galleries[prefix] = found
            people |= {prefix + k: v for k, v in found.people().items()}
    metrics = report(trainer, galleries, {"before": before, "after": after}, people, output)
    if trainer.appraiser.scorer_trainer is not None:
        write_json(output / "scorer.json", measure_scorers(trainer, galleries[""]))
    address = None
    if push:
        address = push_folder(
            output, str(trainer.hub_model_id), private=bool(config.hub_private_repo), revision=config.hub_revision,
            token=config.hub_token, commit_message="End of training",
        )  # fmt: skip
    show(trainer, metrics, output)
    if address:
        print(address)  # noqa: T201


def report(
    trainer: RLCaptionTrainer,
    galleries: dict[str, Gallery],
    captions: dict[str, dict[str, list[str]]],
    people: dict[str, float],
    output: Path,
) -> dict[str, dict[str, float]]:
    """Measure captions by system and gallery; write captions and figures, then contrast sheet and card."""
    ids = {prefix: gallery.dataset["image_id"][:] for prefix, gallery in galleries.items()}
    write_json(output / "captions.json", {"image_id": ids, **captions}, indent=1)
    metrics = {system: measure(of_system, galleries) for system, of_system in captions.items()} | {"people": people}
    if galleries[""].judges_facts:
        metrics["ceiling"] = {p + k: v for p, gallery in galleries.items() for k, v in gallery.ceiling().items()}
    write_json(output / "metrics.json", metrics)
    sheet: list[ContrastRow] = []
    with or_warn("contrast.html"), own_files(output, "contrast.html", "contrast.png") as paths:
        sheet = make_sheet(galleries, captions, *paths)
    with or_warn("The card README.md"):
        trainer.write_card(
            output,
            metrics={system: {k: values[k] for k in SHOWN if k in values} for system, values in metrics.items()},
            samples=[
                Sample(row.image, {"before": row.before, "after": row.after, "a person": row.reference})
                for row in sheet
            ],
        )
    return metrics


def measure_scorers(trainer: RLCaptionTrainer, gallery: Gallery) -> dict[str, dict[str, float]]:
    """Measure the scorer before and after its training: people's captions, and true ones beside false ones."""
    scorers = {"before": trainer.scorer, "after": trainer.appraiser.scorer}
    rules = EMOJI_RULES if gallery.judges_facts else ENGLISH_RULES
    measured = Measure(gallery.dataset, trainer.scorer.transform, trainer.scorer.tokenizer, rules)
    found = {when: measured(scorer.model) for when, scorer in scorers.items()}
    rows = {name: {when: figures[name] for when, figures in found.items()} for name in found["before"]}
    print(format_table(rows, list(found)))  # noqa: T201
    return found


def make_sheet(
    galleries: dict[str, Gallery], captions: dict[str, dict[str, list[str]]], html: Path, png: Path
) -> list[ContrastRow]:
    """Write the contrast sheet as a page and as a picture; return its rows."""
    ranked_by = "judge" if "judge" in galleries[""].clips else "scorer"
    sheet = [
        row
        for prefix, gallery in galleries.items()
        for row in contrast_rows(gallery, captions["before"][prefix], captions["after"][prefix], ranked_by, 6)
    ]
    subtitle = f"ranks under the {ranked_by}, greedy captions"
    write_contrast_sheet(sheet, html, png, subtitle=subtitle)
    return sheet


def show(trainer: RLCaptionTrainer, metrics: dict[str, dict[str, float]], output: Path) -> None:
    """Print the table of figures, and the alarms that went off."""
    shown = [name for name in SHOWN if any(name in values for values in metrics.values())]
    columns = {"people": metrics["people"], **metrics}
    rows = {name: {system: values[name] for system, values in columns.items() if name in values} for name in shown}
    print(format_table(rows, list(columns)))  # noqa: T201  the one thing this script is run for
    for told in trainer.alarms.told:
        print(told)  # noqa: T201
    print(f"captioner, metrics.json, contrast.html: {os.path.relpath(output)}")  # noqa: T201


if __name__ == "__main__":
    with clear_errors():
        main()
