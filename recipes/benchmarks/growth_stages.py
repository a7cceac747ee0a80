"""The stages of growth.py, each of which runs in a process of its own: growth_stages.py STAGE DATA WORK.

They call only public functions, so that they measure other revisions too. Imports, models and what a stage starts
from come before it and do not count.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import logging
import os
import pkgutil
import resource
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import disable_progress_bars
from transformers import TrainerCallback

import hf_distinct.data

EMBEDDINGS, CHECKPOINTS = "embeddings", "run"
BATCH, NEIGHBOURS, ROLLOUTS = 16, 2, 5
RESAMPLES = 100


def memory(*names: str) -> float:
    """Return the sum of some lines of /proc/self/status, in MB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(words[1]) for words in lines if words and words[0].rstrip(":") in names) * 1024 / 1e6


class Meter:
    """Tells the driver when a stage begins and ends, and what it took in between."""

    def start(self) -> None:
        """Begin; what was freed before is given back to the system, so that the stage can't use it unseen."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        self.resident, self.written, self.cpu = memory("VmRSS"), written(), cpu_seconds()
        print("growth: begin", memory("RssAnon", "RssShmem"), flush=True)

    def stop(self, times: int = 1, **further: float) -> None:
        """End; ``times`` is how often the work was done, and ``further`` are figures of the stage's own."""
        found = {
            "cpu": (cpu_seconds() - self.cpu) / times, "written": (written() - self.written) / times,
            "resident": memory("VmHWM") - self.resident, **further,
        }  # fmt: skip
        print("growth: end", json.dumps(found), flush=True)


def cpu_seconds() -> float:
    """Return the seconds of the processor, over all threads and children."""
    used = [resource.getrusage(kind) for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def written() -> float:
    """Return what this process has written to files and pipes, in MB."""
    lines = (line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return next(int(value) for name, value in lines if name == "wchar") / 1e6


def free_clip() -> Any:
    """Return the shipped scorer with embeddings that cost nothing: in clusters, as embeddings of pictures are."""
    from hf_distinct import ClipScorer

    scorer: Any = ClipScorer("scorer")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(1000, scorer.embed_dim, generator=generator)

    def draw(items: Any, batch_size: int = 0) -> torch.Tensor:
        around = centres[torch.randint(len(centres), (len(items),), generator=generator)]
        own = torch.randn(len(items), scorer.embed_dim, generator=generator)
        return torch.nn.functional.normalize(around + 0.6 * own, dim=-1)

    scorer.encode_images = scorer.encode_texts = draw
    scorer.transform = lambda image: torch.zeros(3, 1, 1)
    return scorer


# ------------------------------------------------------------------------------------------------------------ reading

def read(form: str) -> Callable[[Path, Path, Meter], None]:
    """Return the stage that reads a form of the data."""

    def stage(data: Path, work: Path, meter: Meter) -> None:
        from hf_distinct import load_captions

        meter.start()
        splits = load_captions(data / form, data / "images" if form.endswith(".json") else None)
        meter.stop()
        check(len(splits["train"]), data)

    return stage


def check(found: int, data: Path) -> None:
    """Refuse a stage that has not worked on all images."""
    if found != int(data.name):
        raise ValueError(f"{found} of {data.name} images were found in {data}.")


def check_files(data: Path, work: Path, meter: Meter) -> None:
    """Do what nobody can read files without: whether each picture is there, and where its links lead."""
    with open(data / "images" / "metadata.jsonl") as file:
        names = [str(data / "images" / json.loads(line)["file_name"]) for line in file]
    meter.start()
    found = sum(os.path.isfile(name) and bool(os.path.realpath(name)) for name in names)
    meter.stop()
    check(found, data)


# ------------------------------------------------------------------------------------------------- embedding, mining

def karpathy(data: Path) -> Any:
    """Read the images that the later stages work on."""
    from hf_distinct import load_captions

    return load_captions(data / "karpathy.json", data / "images")["train"]


def embed(data: Path, work: Path, meter: Meter) -> None:
    """Embed, or read the embeddings."""
    from hf_distinct import embed_dataset

    join_processes()
    dataset, scorer = karpathy(data), free_clip()
    meter.start()
    embed_dataset(dataset, scorer, work / EMBEDDINGS)
    meter.stop()


def mine(data: Path, work: Path, meter: Meter) -> None:
    """Mine, or read what was mined."""
    from hf_distinct import embed_dataset, mine_neighbours

    dataset, embeddings = embed_dataset(karpathy(data), free_clip(), work / EMBEDDINGS)
    meter.start()
    mine_neighbours(dataset, embeddings, NEIGHBOURS)
    meter.stop()


def embed_carved(data: Path, work: Path, meter: Meter) -> None:
    """Embed the training split that is carved out of parquet files, or read its embeddings."""
    from hf_distinct import embed_dataset, ensure_splits, load_captions

    scorer, splits = free_clip(), load_captions(data / "parquet")
    meter.start()
    embed_dataset(ensure_splits(splits)["train"], scorer, work / EMBEDDINGS)
    meter.stop()


def start(data: Path, work: Path, meter: Meter) -> None:
    """Read captions, embeddings and neighbours, as a training does before it can begin."""
    from hf_distinct import embed_dataset, mine_neighbours

    join_processes()
    scorer = free_clip()
    meter.start()
    dataset = read_by_one(lambda: karpathy(data))
    mine_neighbours(*embed_dataset(dataset, scorer, work / EMBEDDINGS), NEIGHBOURS)
    meter.stop()


def read_by_one(read: Callable[[], Any]) -> Any:
    """Read in the first process for all, as the recipes do; earlier revisions read in each."""
    try:
        from hf_distinct.distributed.nodes import once_per_node
    except ImportError:
        return read()
    return once_per_node(read)


def join_processes() -> None:
    """Meet the other processes of this run, if there are any."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        torch.distributed.init_process_group("gloo")


# ----------------------------------------------------------------------------------------------------------- training

class Watch(TrainerCallback):
    """Measures a part of a training, and stops after it.

    Args:
        meter: measures.
        part: "first step" and "resumed" up to the end of a step, "later step" or "checkpoint".
        images: number of training images.
    """

    def __init__(self, meter: Meter, part: str, images: int) -> None:
        self.meter, self.part, self.images = meter, part, images

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin with the third step."""
        if self.part == "later step" and state.global_step == 2:
            self.meter.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End with the first step here, or with the sixth; or pretend to be at 90 % of the epoch, and save."""
        if self.part in ("first step", "resumed"):
            self.meter.stop()
            control.should_training_stop = True
        elif self.part == "later step" and state.global_step == 6:
            self.meter.stop(times=4)
            control.should_training_stop = True
        elif self.part == "checkpoint" and state.global_step == 2:
            state.global_step = int(0.9 * self.images / BATCH)
            control.should_save = control.should_training_stop = True
            self.meter.start()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End with the checkpoint."""
        self.meter.stop()


def train(part: str, **settings: Any) -> Callable[[Path, Path, Meter], None]:
    """Return the stage that measures a part of a training with cached embeddings."""

    def stage(data: Path, work: Path, meter: Meter) -> None:
        from hf_distinct import ClipScorer, RLCaptionConfig, RLCaptionTrainer, embed_dataset, mine_neighbours
        from hf_distinct.inference.pipelines import load_captioner

        captioner, tokenizer, processor = load_captioner("captioner")
        scorer = ClipScorer("scorer")
        config = RLCaptionConfig(
            output_dir=str(work / CHECKPOINTS), per_device_train_batch_size=BATCH, num_rollouts=ROLLOUTS,
            pool_neighbours=NEIGHBOURS, memory_batches=1, num_train_epochs=1, save_strategy="no", disable_tqdm=True,
            report_to="none", **settings,
        )  # fmt: skip
        if part == "first step":
            meter.start()
        dataset = mine_neighbours(*(found := embed_dataset(karpathy(data), scorer, work / EMBEDDINGS)), NEIGHBOURS)
        trainer = RLCaptionTrainer(
            captioner, config, scorer=scorer, train_dataset=dataset, embeddings=found[1], processing_class=tokenizer,
            image_processor=processor, callbacks=[Watch(meter, part, int(data.name))],
        )  # fmt: skip
        if part != "resumed":
            trainer.train()
            return
        meter.start()
        trainer.train(resume_from_checkpoint=str(next((work / CHECKPOINTS).glob("checkpoint-*"))))

    return stage


def count_documents(data: Path, work: Path, meter: Meter) -> None:
    """Count the document frequencies of the reward `cider`."""
    from hf_distinct import CiderReward

    dataset = karpathy(data)
    meter.start()
    CiderReward(dataset["captions"])
    meter.stop()


# --------------------------------------------------------------------------------------------------------- evaluation

def said(data: Path) -> list[str]:
    """Return a caption of each image."""
    return [each["caption"] for each in json.loads((data / "said.json").read_text())]


def measure_captions(data: Path, work: Path, meter: Meter) -> None:
    """Compute all figures of captions that need no CLIP."""
    from hf_distinct import caption_metrics

    dataset, captions = karpathy(data), said(data)
    meter.start()
    caption_metrics(captions, dataset)
    meter.stop()


def bootstrap(data: Path, work: Path, meter: Meter) -> None:
    """Draw the intervals of these figures."""
    from hf_distinct.evaluation import caption_statistics
    from hf_distinct.evaluation.bootstrap import resample

    dataset, captions = karpathy(data), said(data)
    statistics = caption_statistics(captions, dataset)
    meter.start()
    resample(statistics, len(captions), RESAMPLES)
    meter.stop()


def measure_novelty(data: Path, work: Path, meter: Meter) -> None:
    """Look for captions among those of the training."""
    from hf_distinct.evaluation import novelty

    captions = said(data)
    training = [text for own in karpathy(data)["captions"] for text in own]
    meter.start()
    novelty(captions, training)
    meter.stop()


def retrieve(data: Path, work: Path, meter: Meter) -> None:
    """Rank all images for each caption, and all captions for each image."""
    from hf_distinct import retrieval_metrics

    clip, images = free_clip(), int(data.name)
    seen, told = clip.encode_images(torch.empty(images, 1)), clip.encode_texts(range(images))
    meter.start()
    retrieval_metrics(told, seen)
    meter.stop()


def write_page(data: Path, work: Path, meter: Meter) -> None:
    """Write a page of all images with their captions."""
    from hf_distinct.data.images import picture_files
    from hf_distinct.reporting.caption_sheet import write_caption_sheet

    rows = list(zip(picture_files(data / "images"), said(data), strict=True))
    page = work / "captions.html"
    meter.start()
    write_caption_sheet(rows, page, root=data / "images")
    meter.stop(page=page.stat().st_size / 1e6)


def begin_captioning(data: Path, work: Path, meter: Meter) -> None:
    """Caption a folder by the recipe, until the first captions are written."""
    from transformers import GenerationMixin

    from hf_distinct import Captioner, ClipScorer
    from hf_distinct.reporting import caption_sheet

    del Captioner, ClipScorer, caption_sheet  # imported here, not in the stage
    generate = GenerationMixin.generate

    def first(*args: Any, **kwargs: Any) -> None:
        generate(*args, **kwargs)
        meter.stop()
        os._exit(0)

    setattr(GenerationMixin, "generate", first)  # noqa: B010
    script = Path(hf_distinct.__file__).parents[1] / "recipes" / "caption.py"
    sys.argv = [str(script), str(data / "images"), "--output_dir", str(work / "captions"), "--num_workers", "0"]
    meter.start()
    runpy.run_path(str(script), run_name="__main__")


STAGES: dict[str, Callable[[Path, Path, Meter], None]] = {
    "checks of files": check_files,
    **{
        f"{name}{again}": read(form)
        for name, form in (
            ("Karpathy JSON", "karpathy.json"), ("folder", "images"), ("tars", "shards"), ("parquet", "parquet")
        )
        for again in ("", ", again")
    },
    "embedding": embed,
    "embedded": embed,
    "embedded, second process": embed,
    "mining": mine,
    "mined": mine,
    "carved splits, embedding": embed_carved,
    "carved splits": embed_carved,
    "start": start,
    "start, two processes": start,
    "first step": train("first step"),
    "later step": train("later step"),
    "checkpoint": train("checkpoint"),
    "resumed at 90 %": train("resumed"),
    "CIDEr-D reward": count_documents,
    "CIDEr-D reward, again": count_documents,
    "caption figures": measure_captions,
    "bootstrap": bootstrap,
    "novelty": measure_novelty,
    "retrieval": retrieve,
    "captions.html": write_page,
    "captioning's start": begin_captioning,
}  # fmt: skip
"""In the order in which they run, since some read what others have written."""


if __name__ == "__main__":
    disable_progress_bars()
    logging.disable(logging.INFO)
    for module in pkgutil.iter_modules(hf_distinct.data.__path__):  # otherwise the first stage that needs it would
        importlib.import_module(f"hf_distinct.data.{module.name}")
    STAGES[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]), Meter())
