"""Measure a step beside a plain one of the published structure, and beside what no step can do without.

    python recipes/benchmark.py                             # the shipped captioner and CLIP on emoji scenes, 32 images
    python recipes/benchmark.py --size base                 # ViT-B/16 + GPT-2 and a ViT-B/32 CLIP, all random weights
    python recipes/benchmark.py --rollouts sample --repetitions 30 --output sample.json

Four ways from the same batch to gradients take turns in one process, on a GPU if there is one:

    reference   images encoded anew for rollouts, greedy captions, ground truth and scoring, and once for each sample;
                separate passes; CLIP's image and text towers in every step, ground truth included, texts padded
    ours        `RLCaptionTrainer.compute_loss` with embeddings from the cache, and backward
    floor       one encoder pass, a bare `generate`, a bare forward and backward over the same tokens, and CLIP's
                text tower over the same strings
    lowered     the floor again, with our `generate_labels`, `token_logits` and `ClipScorer.encode_texts` in it

Ours draws the samples, and the others are made to draw the same, so that reference and ours have the same loss, and
both floors have the same tokens and the same loss, which is checked in every turn. Shows the median of each ratio, its
smallest and its largest value: `..._vs_reference` is how many times as many images a second we do as the reference,
`..._vs_floor` our time over the floor's, `..._floor_lowered` how many times as fast the floor becomes by our parts.
The column `tflop` counts the operations of all matrix products: the ratios as they would be if nothing else took time.
"""

from __future__ import annotations

import copy
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from benchmark_models import base_models, small_models
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode
from transformers import LogitsProcessor, LogitsProcessorList, set_seed
from transformers.modeling_outputs import BaseModelOutput

from hf_distinct import ClipScorer, RLCaptionConfig, RLCaptionTrainer, emoji_scenes, losses
from hf_distinct.captioner import token_logits
from hf_distinct.discriminator import DiscriminatorTrainer
from hf_distinct.generation.labels import decode, join_labels
from hf_distinct.generation.policy import Policy, Rollouts
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.reporting import format_table
from hf_distinct.rewards.appraiser import Appraiser
from hf_distinct.runs.arguments import clear_errors, parse_settings
from hf_distinct.scorer import clean_caption
from hf_distinct.training.metering import Meter, forget_peak, peak_memory

WAYS = ("ours", "reference", "floor", "lowered")
WARM_UP = 1  # turns in which memory is taken and kernels are chosen
TOLERANCE = 1e-4  # of two losses, relative to the mean log-probability of a token, as large as they get


@dataclass
class Settings:
    """What is measured."""

    size: Literal["small", "base"] = field(default="small", metadata={"help": "Size of the captioner and its CLIP."})
    rollouts: Literal["beam", "sample", "both"] = field(
        default="both",
        metadata={"help": "How captions are written: the best of five beams, or five samples, of each image."},
    )
    repetitions: int = field(default=10, metadata={"help": "Number of times that each way is measured."})
    images: int | None = field(
        default=None, metadata={"help": "Number of images in a batch. Default: 32, or 8 with the size base."}
    )
    output: str | None = field(default=None, metadata={"help": "JSON file for all that was measured."})


# ----------------------------------------------------------------------------------------------------- the reference


class PaddedScorer(ClipScorer):
    """A scorer that shares the weights of another, and reads texts as open_clip's own code does."""

    def __init__(self, scorer: ClipScorer) -> None:
        self.__dict__.update(vars(scorer))

    @torch.no_grad()
    def encode_texts(self, texts: Any, batch_size: int = 0) -> Tensor:
        """All at once, each padded to the full context."""
        tokens = self.tokenizer([clean_caption(text) for text in texts])
        return F.normalize(self.model.encode_text(tokens.to(self.device)).float(), dim=-1)


class Reference:
    """The step that the published scripts have, with the trainer's settings; the arithmetic of rewards is ours."""

    def __init__(self, trainer: RecordingTrainer) -> None:
        self.trainer, self.meter = trainer, Meter(trainer.args.device)
        self.scorer = PaddedScorer(trainer.scorer)
        discriminator = DiscriminatorTrainer(
            copy.deepcopy(trainer.discriminator.discriminator), trainer.args.discriminator_lr
        )
        self.appraiser = Appraiser(
            trainer.args, scorer=self.scorer, discriminator=discriminator, accelerator=trainer.accelerator
        )

    def __call__(self, inputs: dict[str, Any]) -> Tensor:
        """Loss of a batch, with its gradients."""
        a, pixels, tokenizer = self.trainer.args, inputs["pixel_values"], self.trainer.processing_class
        model = self.trainer.stock
        repeated = pixels.repeat_interleave(a.num_rollouts, dim=0)
        with self.meter.phase("step"):
            with self.meter.phase("generate"), torch.no_grad():
                rollouts = labels_of(model.generate(repeated, **how(self.trainer, 1)), tokenizer)
            with self.meter.phase("greedy"), torch.no_grad():
                greedy = labels_of(model.generate(pixels, generation_config=rollout_config(model)), tokenizer)
            with self.meter.phase("reward"):
                references = [text for row in inputs["captions"] for text in row]
                embeds = {
                    "image_embeds": self.scorer.encode_images(inputs["clip_pixels"]),
                    "caption_embeds": self.scorer.encode_texts(references).unflatten(0, (len(pixels), -1)),
                }
                judged = self.appraiser.judge(inputs | embeds, decode(tokenizer, rollouts), decode(tokenizer, greedy))
            with self.meter.phase("references"):
                log_probs = self.log_probs(pixels, inputs["labels"].flatten(0, 1))
                loss = a.wtf_weight * losses.weighted_teacher_forcing_loss(log_probs, judged.reference_weights)
            with self.meter.phase("score"):
                loss = loss + losses.policy_gradient_loss(self.log_probs(repeated, rollouts), judged.advantages)
            loss.backward()
        return loss

    def log_probs(self, pixels: Tensor, labels: Tensor) -> Tensor:
        """Mean log-probability of each caption's tokens, from pixels."""
        model = self.trainer.stock
        logits = model(pixel_values=pixels, decoder_input_ids=shifted(model, labels)).logits
        real = labels != losses.IGNORED_LABEL
        chosen = logits.log_softmax(dim=-1).gather(-1, labels.masked_fill(~real, 0)[..., None]).squeeze(-1)
        return (chosen * real).sum(dim=1) / real.sum(dim=1)


class SameSamples(LogitsProcessor):
    """Leaves `generate` no choice but the tokens that were drawn, ``(N, L)``."""

    def __init__(self, labels: Tensor, pad: int) -> None:
        self.tokens = labels.masked_fill(labels == losses.IGNORED_LABEL, pad)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``(N, V)``, minus infinity but for the token drawn."""
        token = self.tokens[:, input_ids.shape[1] - 1, None]
        return torch.full_like(scores, -torch.inf).scatter_(1, token, 0.0)


class RecordingPolicy(Policy):
    """Keeps the labels of the rollouts of the last step."""

    labels: Tensor

    def roll_out(self, *args: Any, **kwargs: Any) -> Rollouts:
        """As the parent's."""
        found = super().roll_out(*args, **kwargs)
        self.labels = found.labels
        return found


class RecordingTrainer(RLCaptionTrainer):
    """Keeps what its policy wrote, and beside its captioner one that it did not touch."""

    policy: RecordingPolicy
    stock: Any


def how(trainer: RecordingTrainer, rollouts: int) -> dict[str, Any]:
    """What `generate` is told, for so many rollouts of each of its rows."""
    a, model = trainer.args, trainer.model
    if a.rollouts == "beam":
        config = rollout_config(model, num_beams=a.num_beams, no_repeat_ngram_size=a.no_repeat_ngram_size)
        return {"generation_config": config, "logits_processor": LogitsProcessorList()}
    drawn = SameSamples(trainer.policy.labels, int(trainer.processing_class.pad_token_id))
    config = rollout_config(model, do_sample=True, num_return_sequences=rollouts)
    return {"generation_config": config, "logits_processor": LogitsProcessorList([drawn])}


def labels_of(sequences: Tensor, tokenizer: Any) -> Tensor:
    """What `generate` wrote, without the start token, -100 behind the end token."""
    tokens = sequences[:, 1:]
    ends = (tokens == tokenizer.eos_token_id).cumsum(dim=1)
    return tokens.masked_fill((ends - (tokens == tokenizer.eos_token_id).long()) > 0, losses.IGNORED_LABEL)


def shifted(model: Any, labels: Tensor) -> Tensor:
    """What the decoder reads when it is to say the labels."""
    ids = labels.masked_fill(labels == losses.IGNORED_LABEL, model.config.pad_token_id).roll(1, dims=1)
    ids[:, 0] = model.config.decoder_start_token_id
    return ids


# ------------------------------------------------------------------------------------------------ ours and the floors


def ours(trainer: RecordingTrainer, inputs: dict[str, Any]) -> Tensor:
    """Loss of a batch, with its gradients, as training takes it."""
    with trainer.meter.phase("step"):
        loss = trainer.compute_loss(trainer.model, inputs)
        loss.backward()
    return loss


@dataclass
class Bare:
    """The work that no step can do without, by stock parts."""

    trainer: RecordingTrainer

    @property
    def model(self) -> Any:
        """The captioner as transformers loads it."""
        return self.trainer.stock

    def write(self, hidden: Tensor) -> Tensor:
        """Rollouts ``(B * K, L)`` from encoded images ``(B, S, H)``."""
        encoded = BaseModelOutput(last_hidden_state=hidden)  # type: ignore[arg-type]
        sequences = self.model.generate(encoder_outputs=encoded, **how(self.trainer, self.trainer.args.num_rollouts))
        return labels_of(sequences, self.trainer.processing_class)

    def read(self, texts: list[str]) -> None:
        """CLIP's text tower."""
        scorer = self.trainer.scorer
        scorer.model.encode_text(scorer.tokenizer(texts).to(scorer.device))

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of labels ``(N, L)``, N a multiple of B."""
        rows = hidden.repeat_interleave(len(labels) // len(hidden), dim=0)
        ids = shifted(self.model, labels)
        logits = self.model(encoder_outputs=(rows,), decoder_input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


class Lowered(Bare):
    """The same work by our parts."""

    @property
    def model(self) -> Any:
        """The captioner that is trained."""
        return self.trainer.model

    def write(self, hidden: Tensor) -> Tensor:
        """By `generate_labels`."""
        return generate_labels(self.model, hidden, *how(self.trainer, self.trainer.args.num_rollouts).values())

    def read(self, texts: list[str]) -> None:
        """By the scorer."""
        self.trainer.scorer.encode_texts(texts)

    def loss(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """By `token_logits`."""
        return F.cross_entropy(token_logits(self.model, hidden, labels), labels[labels != losses.IGNORED_LABEL])


def floor(parts: Bare, meter: Meter, inputs: dict[str, Any]) -> Tensor:
    """Cross-entropy of rollouts and ground truth, with its gradients, after CLIP has read the rollouts."""
    trainer: Any = parts.trainer
    images = len(inputs["pixel_values"])
    with meter.phase("step"):
        with meter.phase("encode"):
            hidden = parts.model.encoder(inputs["pixel_values"]).last_hidden_state
        with meter.phase("generate"), torch.no_grad():
            rollouts = parts.write(hidden.detach())
        with meter.phase("reward"), torch.no_grad():
            parts.read(decode(trainer.processing_class, rollouts))
        with meter.phase("score"):
            both = join_labels(rollouts, inputs["labels"].flatten(0, 1)).tensor_split([len(rollouts)])
            labels = torch.cat([part.unflatten(0, (images, -1)) for part in both], dim=1).flatten(0, 1)
            loss = parts.loss(hidden, labels)
        loss.backward()
    return loss


# ------------------------------------------------------------------------------------------------------- taking turns


def make_trainer(
    models: tuple[Any, ...], rollouts: str, images: int, folder: Path, batches: int = 3, bf16: bool = False
) -> RecordingTrainer:
    """With the paper's settings but for the mined neighbours, which both would take from the cache."""
    captioner, tokenizer, image_processor, scorer = models
    args = RLCaptionConfig(
        output_dir=str(folder),
        bf16=bf16,
        per_device_train_batch_size=images,
        rollouts=rollouts,  # type: ignore[arg-type]
        num_rollouts=1 if rollouts == "beam" else 5,
        pool_greedy=True,
        wtf_policy="raw",
        max_reference_length=24,
    )
    trainer = RecordingTrainer(
        copy.deepcopy(captioner), args, scorer=scorer, train_dataset=emoji_scenes("train", batches * images),
        processing_class=tokenizer, image_processor=image_processor,
    )  # fmt: skip
    known = (args, trainer.accelerator, tokenizer, trainer.compute_loss_context_manager)
    trainer.policy = RecordingPolicy(*known)
    trainer.stock = captioner.to(trainer.args.device).eval()
    if bf16:  # as in a training: the model's own forward turns to half precision
        trainer.model = trainer.accelerator.prepare_model(trainer.model)
    return trainer


def batches(trainer: RecordingTrainer) -> list[dict[str, Any]]:
    """The batches of an epoch, on the device, with the pixels that CLIP would see."""
    transform = trainer.scorer.transform
    pictures = {row["image_id"]: transform(row["image"]) for row in emoji_scenes("train", len(trainer.train_dataset))}
    found = []
    for batch in trainer.get_train_dataloader():
        batch["clip_pixels"] = torch.stack([pictures[image_id] for image_id in batch["columns"]["image_id"]])
        found.append(trainer._prepare_inputs(batch))
    return found


def take_turns(
    trainer: RecordingTrainer, repetitions: int, names: Sequence[str] = WAYS, tolerance: float = TOLERANCE
) -> dict[str, list[dict[str, float]]]:
    """Seconds of each way's phases and its peak memory, turn by turn.

    Args:
        trainer: made by `make_trainer`.
        repetitions: turns that are measured.
        names: the ways; ours must come first, for the others write its samples.
        tolerance: how much losses that must be equal may differ.

    Raises:
        ValueError: two losses that must be equal differ.
    """
    device = trainer.args.device
    reference, bare, lowered = Reference(trainer), Meter(device), Meter(device)
    ways: dict[str, tuple[Meter, Callable[..., Tensor]]] = {
        "ours": (trainer.meter, partial(ours, trainer)),
        "reference": (reference.meter, reference),
        "floor": (bare, partial(floor, Bare(trainer), bare)),
        "lowered": (lowered, partial(floor, Lowered(trainer), lowered)),
    }
    ways = {name: ways[name] for name in names}
    trainer.model.eval()
    data = batches(trainer)
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    tflop: dict[str, float] = {}
    for turn in range(-WARM_UP, repetitions):
        found: dict[str, float] = {}
        for way, (meter, step) in ways.items():
            trainer.model.zero_grad()
            trainer.stock.zero_grad()
            forget_peak()
            set_seed(turn + WARM_UP)
            counter, half = operations_counter(), trainer.accelerator.autocast()  # ours asks for it by itself
            with counter if turn < 0 else nullcontext(), nullcontext() if way == "ours" else half:
                found[way] = float(step(data[turn % len(data)]).detach())
            measured = meter.flush(trainer.accelerator)
            if turn < 0:
                tflop[way] = counter.get_total_flops() / 1e12
                continue
            times = {name[5:]: value for name, value in measured.items() if name.startswith("time/")}
            peak = peak_memory(trainer.accelerator)
            turns[way].append({**times, "tflop": tflop[way], "peak_gib": peak, "loss": found[way]})
        for one, other in (("reference", "ours"), ("floor", "lowered")):
            # A NaN is not within the tolerance, either.
            if {one, other} <= {*ways} and not abs(found[one] - found[other]) <= tolerance:
                raise ValueError(f"turn {turn}: the loss of {one} is {found[one]}, of {other} {found[other]}")
    return turns


def operations_counter() -> FlopCounterMode:
    """Counts the products of oneDNN, too, which torch's counter does not know."""

    def product(hidden: Any, weight: Any, *others: Any, out_shape: Any, **settings: Any) -> int:
        return 2 * math.prod(out_shape) * int(weight[1])  # of a weight (out, in)

    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return FlopCounterMode(display=False, custom_mapping={onednn: product} if onednn else None)


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure over the turns."""
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def ratios(turns: dict[str, list[dict[str, float]]], name: str) -> dict[str, list[float]]:
    """Ratio by ratio, one of each turn."""
    seconds = {way: [turn["step"] for turn in rows] for way, rows in turns.items()}

    def of(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]

    pairs = {"vs_reference": ("reference", "ours"), "vs_floor": ("ours", "floor")}
    pairs["floor_lowered"] = ("floor", "lowered")
    return {f"{name}_{ratio}": of(*pair) for ratio, pair in pairs.items() if {*pair} <= {*turns}}


def main() -> None:
    """Measure, show, write."""
    (settings,) = parse_settings(Settings, description=__doc__)
    images = settings.images or {"small": 32, "base": 8}[settings.size]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {
        "ratios": {},
        "spread": {},
        "seconds": {},
        "settings": {"size": settings.size, "repetitions": settings.repetitions, "images": images},
    }
    report |= {"device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        models = {"small": small_models, "base": base_models}[settings.size](Path(folder))
        for rollouts in ("beam", "sample") if settings.rollouts == "both" else (settings.rollouts,):
            trainer = make_trainer(models, rollouts, images, Path(folder))
            turns = take_turns(trainer, settings.repetitions)
            table = {way: medians(rows) for way, rows in turns.items()}
            for row in table.values():
                row["images a second"] = images / row["step"]
            name = "beam" if rollouts == "beam" else f"sample{trainer.args.num_rollouts}"
            report["seconds"][name] = table
            report["parameters"] = sum(weight.numel() for weight in trainer.model.parameters())
            print(f"\n{name}, {images} images, medians of {settings.repetitions} turns\n{format_table(table)}")
            for ratio, values in ratios(turns, name).items():
                report["ratios"][ratio] = statistics.median(values)
                report["spread"][ratio] = [min(values), max(values)]
                print(f"{ratio}: {report['ratios'][ratio]:.2f} ({min(values):.2f} to {max(values):.2f})")
    if settings.output:
        Path(settings.output).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    with clear_errors():
        main()
