"""Train a captioner to say what singles an image out.

    accelerate launch recipes/train.py                                        # the quickstart, on emoji scenes
    accelerate launch recipes/train.py recipes/configs/quickstart.yaml --max_steps 400
    accelerate launch recipes/train.py --dataset captions.json --image_root images \
        --scorer ViT-B-32:openai --model_name_or_path my/captioner           # your own pictures

With `--eval_strategy steps --eval_steps 50` it is measured during the training too, where alarms watch it.
Ends with a table on the screen, the same in OUT/metrics.json, a contrast sheet in OUT/contrast.html and .png, and a
captioner in OUT that `pipeline("image-to-text", model=OUT)` loads.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets import Dataset
from transformers import AutoTokenizer, VisionEncoderDecoderModel, set_seed

from hf_distinct import RLCaptionConfig, RLCaptionTrainer
from hf_distinct.arguments import changed_settings, clear_errors, parse_settings
from hf_distinct.data import embed_dataset
from hf_distinct.data.embedding_cache import cache_names
from hf_distinct.data.embeddings import CaptionEmbeddings
from hf_distinct.data.emoji_scenes import LICENSE as EMOJI_LICENSE
from hf_distinct.data.emoji_scenes import emoji_scenes
from hf_distinct.data.neighbours import FILE, Neighbours
from hf_distinct.data.settings import DatasetSettings
from hf_distinct.fit import check_fit
from hf_distinct.gallery import Gallery
from hf_distinct.gathering import unsplit
from hf_distinct.hub import hub_token, pull, push_folder
from hf_distinct.model_card import Sample
from hf_distinct.pipelines import load_image_processor, save_tokenizer
from hf_distinct.reporting import format_table
from hf_distinct.reporting.contrast_sheet import ContrastRow, write_contrast_sheet
from hf_distinct.scorer import ClipScorer, load_clip, shipped

QUICKSTART = Path(__file__).parent / "configs" / "quickstart.yaml"
SHOWN = (
    "judge/t2i_R@1", "judge/i2t_R@1", "scorer/t2i_R@1", "CIDEr-D", "BLEU-4", "ROUGE-L", "vocabulary", "mean_length",
    "unique", "well_formed", "true", "details", "twins/judge/t2i_R@1", "twins/well_formed", "twins/true",
)  # fmt: skip


@dataclass
class Settings(DatasetSettings):
    """What to train on, and with which models."""

    mined: str | None = field(
        default=None,
        metadata={
            "help": "Where recipes/mine.py left the embeddings and neighbours of this dataset: a folder, or the "
            "user/name that recipes/push.py pushed it to."
        },
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "The captioner; none: the shipped one."})
    scorer: str = field(
        default="scorer",
        metadata={"help": "The CLIP that rewards: an open_clip NAME:TAG, a folder, or a shipped one's name."},
    )
    judge: str | None = field(default="judge", metadata={"help": "A CLIP that training never sees; same forms."})
    train_size: int = field(default=4000, metadata={"help": "Emoji scenes to train on."})
    test_size: int = field(default=1000, metadata={"help": "Pictures to measure on (of each gallery)."})
    eval_size: int = field(
        default=200,
        metadata={"help": "Pictures of the validation split to measure on during the training, with --eval_strategy."},
    )
    split: Literal["test", "validation"] = field(
        default="test", metadata={"help": "What is measured: choose settings on `validation`, report on `test`."}
    )
    scenes_seed: int = field(default=0, metadata={"help": "Which emoji scenes."})
    data_license: str | None = field(
        default=None, metadata={"help": "Licence of the dataset, for the card; that of the emoji scenes is known."}
    )
    emissions: float | None = field(
        default=None,
        metadata={"help": "Grams of CO2 of the training, for the card; none: what CodeCarbon measured, if it ran."},
    )


def load_data(settings: Settings) -> tuple[Dataset, Dataset, dict[str, Dataset]]:
    """What is trained on, what is measured on meanwhile, and the test galleries by the prefix of their figures."""
    if settings.drawn:
        train = emoji_scenes("train", settings.train_size, settings.scenes_seed)
        galleries = {
            "": emoji_scenes(settings.split, settings.test_size, settings.scenes_seed),
            "twins/": emoji_scenes(f"{settings.split}_twins", settings.test_size, settings.scenes_seed),
        }
        return train, emoji_scenes("validation", settings.eval_size, settings.scenes_seed), galleries
    splits = settings.load()
    validation, test = splits["validation"], splits[settings.split]
    validation = validation.select(range(min(settings.eval_size, len(validation))))
    return splits["train"], validation, {"": test.select(range(min(settings.test_size, len(test))))}


def take_mined(
    train: Dataset, scorer: ClipScorer, settings: Settings, config: RLCaptionConfig
) -> tuple[Dataset, CaptionEmbeddings]:
    """Embeddings and neighbours as recipes/mine.py left them; refused if they are of anything else."""
    assert settings.mined is not None
    mined = pull(settings.mined)
    found = Neighbours.load(mined / FILE, *cache_names(train, scorer))
    train, embeddings = embed_dataset(train, scorer, mined, strict=settings.strict)
    if config.pool_neighbours or config.hard_batches:
        train = found.add_to(train, config.pool_neighbours or None)
    return train, embeddings


def measure(captions: dict[str, list[str]], galleries: dict[str, Gallery]) -> dict[str, float]:
    """Metrics of every gallery, under the gallery's prefix."""
    return {prefix + k: v for prefix, texts in captions.items() for k, v in galleries[prefix].measure(texts).items()}


def contrast_rows(
    gallery: Gallery, before: list[str], after: list[str], clip: str, count: int = 8
) -> list[ContrastRow]:
    """Pictures evenly spread over the gallery: nobody picked them."""
    ranks_before, ranks_after = gallery.ranks(before, clip), gallery.ranks(after, clip)
    rows = []
    for row in range(0, len(before), max(len(before) // count, 1)):
        similar = [gallery.dataset[i]["image"] for i in gallery.most_similar(row, clip)]
        example = gallery.dataset[row]
        rows.append(
            ContrastRow(
                image=example["image"],
                similar=similar,
                reference=example["captions"][0],
                before=before[row],
                before_rank=ranks_before[row],
                after=after[row],
                after_rank=ranks_after[row],
                gallery_size=len(before),
            )  # fmt: skip
        )
    return rows[:count]


def main() -> None:
    """Train, measure, save, share."""
    settings, config = parse_settings(Settings, RLCaptionConfig, description=__doc__, default_file=QUICKSTART)
    set_seed(config.seed)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_distinct").setLevel(logging.INFO if config.process_index == 0 else logging.ERROR)
    logging.getLogger("hf_distinct.data.collator").setLevel(logging.WARNING)  # each process has pictures of its own
    output = Path(config.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):  # better now than after the training
            pass
    except OSError as error:
        raise SystemExit(f"output_dir {output} cannot be written: {error}") from error
    if config.push_to_hub:
        hub_token(config.hub_token)  # better now than after the training

    source = settings.model_name_or_path or shipped("captioner")
    captioner = VisionEncoderDecoderModel.from_pretrained(source)
    # Code that a download brings along is not run; left unset, transformers would ask, and wait for an answer.
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    image_processor = load_image_processor(source)
    check_fit(captioner, tokenizer, image_processor, config)  # better now than after the embedding
    names = {"scorer": settings.scorer, "judge": settings.judge}
    with unsplit(config):
        clips = {role: load_clip(name).to(config.device) for role, name in names.items() if name}

    train, validation, tests = load_data(settings)
    if settings.mined is not None:
        train, embeddings = take_mined(train, clips["scorer"], settings, config)
    else:
        with config.main_process_first(desc="embedding the data"):
            train, embeddings = embed_dataset(train, clips["scorer"], strict=settings.strict)
    galleries = {prefix: Gallery(test, clips) for prefix, test in tests.items()}
    watched = None if config.eval_strategy == "no" else Gallery(validation, clips)
    trainer = RLCaptionTrainer(
        captioner,
        config,
        scorer=clips["scorer"],
        train_dataset=train,
        embeddings=embeddings,
        eval_dataset=None if watched is None else watched.dataset,
        processing_class=tokenizer,
        image_processor=image_processor,
        caption_metrics=None if watched is None else lambda captions, _: watched.measure(captions),
    )

    trainer.card = {
        "data": settings.dataset,
        "data_license": settings.data_license or (EMOJI_LICENSE if settings.drawn else train.info.license) or None,
        "base_model": settings.model_name_or_path or "captioner, shipped with hf_distinct",
        "settings": changed_settings(settings) | config.changed,
        "emissions": settings.emissions,
    }
    before = {prefix: trainer.caption(gallery.dataset) for prefix, gallery in galleries.items()}
    trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
    push, config.push_to_hub = config.push_to_hub, False  # from here on once, at the end, with all that was measured
    trainer.save_model(config.output_dir)
    trainer.save_state()
    after = {prefix: trainer.caption(gallery.dataset) for prefix, gallery in galleries.items()}
    if not trainer.is_world_process_zero():
        return

    metrics = {"before": measure(before, galleries), "after": measure(after, galleries)}
    metrics["people"] = {p + k: v for p, gallery in galleries.items() for k, v in gallery.people().items()}
    if galleries[""].judges_facts:
        metrics["ceiling"] = {p + k: v for p, gallery in galleries.items() for k, v in gallery.ceiling().items()}
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    ids = {prefix: gallery.dataset["image_id"][:] for prefix, gallery in galleries.items()}
    captions = {"image_id": ids, "before": before, "after": after}
    (output / "captions.json").write_text(json.dumps(captions, indent=1) + "\n")
    save_tokenizer(tokenizer, output)
    image_processor.save_pretrained(output)
    judge = "judge" if "judge" in clips else "scorer"
    sheet = [
        row for prefix, g in galleries.items() for row in contrast_rows(g, before[prefix], after[prefix], judge, 6)
    ]
    write_contrast_sheet(
        sheet, output / "contrast.html", output / "contrast.png", subtitle=f"ranks under the {judge}, greedy captions"
    )
    shown = [name for name in SHOWN if any(name in values for values in metrics.values())]
    trainer.write_card(
        output,
        metrics={system: {k: values[k] for k in shown if k in values} for system, values in metrics.items()},
        samples=[
            Sample(row.image, {"before": row.before, "after": row.after, "a person": row.reference}) for row in sheet
        ],
    )
    rows = {name: {system: values[name] for system, values in metrics.items() if name in values} for name in shown}
    print(format_table(rows))  # noqa: T201  the one thing this script is run for
    for told in trainer.alarms.told:
        print(told)  # noqa: T201
    print(f"captioner, metrics.json, contrast.html: {os.path.relpath(output)}")  # noqa: T201
    if push:
        address = push_folder(
            output, str(trainer.hub_model_id), private=bool(config.hub_private_repo), revision=config.hub_revision,
            token=config.hub_token, commit_message="End of training",
        )  # fmt: skip
        print(address)  # noqa: T201


if __name__ == "__main__":
    with clear_errors():
        main()
