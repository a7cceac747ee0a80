"""ClipTrainer: trains a CLIP in one process or several; it can be interrupted and resumed."""

from __future__ import annotations

import itertools
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from open_clip_train.distributed import init_distributed_device_so
from open_clip_train.precision import get_autocast
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from tqdm.auto import tqdm

from hf_distinct.data.workers import fitting_workers
from hf_distinct.distributed.launching import check_number_of_processes
from hf_distinct.files import checkpoints
from hf_distinct.files.disk_space import check_room
from hf_distinct.files.parts import this_process
from hf_distinct.training.clip_building import TrainedClip, image_tower_of, text_tower_of
from hf_distinct.training.clip_training import CaptionedImages, ClipBatch, Embedder, loss_of
from hf_distinct.training.finite import step_problems, weight_problems
from hf_distinct.training.interruption import Interruption
from hf_distinct.training.random_states import random_states, set_random_states

logger = logging.getLogger("train_clip")

STATE = "clip_state.pt"
ALWAYS = -1
"""Value of the number of frozen steps for a tower that is never trained."""


def join_processes(batch_size: int) -> torch.device:
    """Join the other processes of a launch, if there are any, and return this process's device.

    Raises:
        ValueError: there are fewer processes than were requested, or they cannot divide a batch evenly.
    """
    found = init_distributed_device_so("cuda" if torch.cuda.is_available() else "cpu")
    _, processes = this_process()
    check_number_of_processes(processes)
    if batch_size % processes:
        raise ValueError(f"batch_size={batch_size} cannot be divided among {processes} processes.")
    return torch.device(found["device"])


@dataclass
class Schedule:
    """How a CLIP is trained; see ``hf-distinct train-clip --help``.

    ``pretrained`` names the pretrained towers of a new CLIP ("image", "text"), which are trained at ``tower_lr``.
    """

    max_steps: int
    batch_size: int
    lr: float
    tower_lr: float
    weight_decay: float
    eval_steps: int
    negative_weight: float
    image_frozen_steps: int = 0
    image_thawed_stages: int = 0
    text_frozen_steps: int = 0
    pretrained: Sequence[str] = ()
    patience: int = 0
    num_workers: int = 0
    bf16: bool = False
    seed: int = 0


@dataclass
class Place:
    """The position of a training in its data, and its best result.

    Attributes:
        step: steps taken.
        stage: index of the current data stage.
        epoch: number of epochs begun, over all stages.
        taken: batches taken from the current epoch.
        random_states: random states at the beginning of the current epoch.
        best: the best metric; None before the first evaluation.
        best_step: its step.
        stale: evaluations since the best one.
    """

    step: int = 0
    stage: int = 0
    epoch: int = 0
    taken: int = 0
    random_states: dict[str, Any] = field(default_factory=dict)
    best: float | None = None
    best_step: int = 0
    stale: int = 0


class ClipTrainer:
    """Trains a CLIP.

    Args:
        clip: the model, on its device.
        schedule: the training settings.
        stages: the datasets, each with the step at which it ends.
        output_dir: folder of the checkpoints.
        measure: called with the step at each evaluation, in process 0; returns the metric to maximise.
        save: writes the model, in process 0.
        keep_best: call ``save`` only when the metric is the best so far.
    """

    def __init__(
        self,
        clip: TrainedClip,
        schedule: Schedule,
        stages: list[tuple[CaptionedImages, int]],
        output_dir: str,
        measure: Callable[[int], float],
        save: Callable[[], None],
        keep_best: bool = False,
    ):
        self.model, self.model_cfg, self.tokenize = clip.model, clip.model_cfg, clip.tokenize
        self.schedule, self.stages, self.output_dir = schedule, stages, Path(output_dir)
        self.measure, self.save, self.keep_best = measure, save, keep_best
        self.rank, self.processes = this_process()
        self.device = self.model.logit_scale.device
        self.towers = {"image": image_tower_of(self.model), "text": text_tower_of(self.model)}
        self.frozen = [
            (image_tower_of(self.model, schedule.image_thawed_stages), schedule.image_frozen_steps),
            (self.towers["text"], schedule.text_frozen_steps),
        ]
        self.place = Place()
        self.optimizer = self._optimizer()
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.autocast: Callable[[], AbstractContextManager] = get_autocast(
            "amp_bf16" if schedule.bf16 else "fp32", self.device.type
        )
        self._resumed: dict[str, Any] | None = None

    def _optimizer(self) -> torch.optim.Optimizer:
        """Create AdamW; pretrained towers have their own learning rate, vectors and embeddings no weight decay."""
        schedule = self.schedule
        of_towers = {id(each) for name in schedule.pretrained for each in self.towers[name].parameters}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for decayed, tower in itertools.product((True, False), (False, True)):
            rate, decay = (schedule.tower_lr if tower else schedule.lr), (schedule.weight_decay if decayed else 0.0)
            chosen = [
                parameter
                for name, parameter in self.model.named_parameters()
                if (parameter.ndim >= 2 and "embedding" not in name) == decayed
                and (id(parameter) in of_towers) == tower
            ]
            if chosen:
                groups.setdefault((rate, decay), []).extend(chosen)
        as_dicts = [{"params": found, "lr": rate, "weight_decay": decay} for (rate, decay), found in groups.items()]
        return torch.optim.AdamW(as_dicts, lr=schedule.lr, betas=(0.9, 0.98))

    def _rate(self, step: int) -> float:
        """Return the factor of linear warm-up and cosine decay. open_clip's ``cosine_lr`` supports one rate only."""
        last, warm_up = self.schedule.max_steps, min(100, self.schedule.max_steps // 10)
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(last - warm_up, 1)))

    def _set_modes(self) -> None:
        """Freeze the towers that are frozen at this step. A pretrained tower keeps its BatchNorm statistics."""
        self.model.train()
        for tower, steps in self.frozen:
            tower.freeze(self._is_frozen(steps))
        for name in self.schedule.pretrained:
            self.towers[name].keep_statistics()

    def _is_frozen(self, steps: int) -> bool:
        return steps == ALWAYS or self.place.step < steps

    def batches(self) -> Iterator[ClipBatch]:
        """Yield batches of all stages and epochs, from the current position on."""
        for stage, (rows, until) in enumerate(self.stages):
            loader = None
            while self.place.step < until:
                loader = loader or self._loader(rows)
                for batch in itertools.islice(self._epoch(stage, loader), until - self.place.step):
                    self.place.taken += 1
                    yield batch

    def _epoch(self, stage: int, loader: DataLoader) -> Iterator[Any]:
        """Yield one epoch of batches, or the rest of an epoch that is resumed."""
        place, resumed = self.place, self._resumed
        self._resumed = None
        within = resumed is not None and place.stage == stage
        if within:
            set_random_states(place.random_states)
        else:
            set_random_states(resumed or random_states())
            place.stage, place.epoch, place.taken, place.random_states = stage, place.epoch + 1, 0, random_states()
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(place.epoch)
        left = iter(loader)
        if within and resumed is not None:
            for _ in tqdm(range(place.taken), desc="skipping", disable=self.rank != 0):
                next(left)
            set_random_states(resumed)
        return left

    def _loader(self, rows: CaptionedImages) -> DataLoader:
        whole, size = self.schedule.batch_size, self.schedule.batch_size // self.processes
        if len(rows) < whole:
            raise ValueError(f"{len(rows)} images do not fill a batch of {whole}: lower --batch_size.")
        workers = 0 if rows.features is not None else self.schedule.num_workers
        if workers:
            workers = fitting_workers(workers, size * rows[0][0].nbytes)
        sampler: DistributedSampler | None = None
        if self.processes > 1:
            sampler = DistributedSampler(rows, seed=self.schedule.seed, drop_last=True)
        return DataLoader(
            rows, batch_size=size, shuffle=sampler is None, sampler=sampler, drop_last=True, num_workers=workers,
            collate_fn=rows.collate,
        )  # fmt: skip

    def train(self) -> int:
        """Take all remaining steps; returns the signal that interrupted the training, or 0.

        Raises:
            ValueError: the training has diverged.
            OSError: the disk has too little space for the model and its checkpoints.
        """
        schedule, place = self.schedule, self.place
        self._check_room()
        bar = tqdm(total=schedule.max_steps, initial=place.step, desc="training CLIP", disable=self.rank != 0)
        interruption = Interruption()
        embedder = self._embedder()
        with interruption.watched():
            for batch in self.batches():
                if any(place.step == steps > 0 for _, steps in self.frozen):
                    embedder = self._embedder()  # another tower is trained now
                loss = self._step(embedder, batch)
                place.step += 1
                bar.update()
                if place.step % 50 == 0:
                    scale = self.model.logit_scale.exp().item()
                    bar.set_postfix(loss=f"{loss.item():.3f}", scale=f"{scale:.1f}")
                asked = self._agreed(interruption.asked)
                if asked:
                    self.checkpoint()
                    return asked
                if place.step % schedule.eval_steps == 0 or place.step == schedule.max_steps:
                    self._evaluate()
                    if schedule.patience and place.stale >= schedule.patience:
                        logger.info("stopped at step %d: no improvement since step %d", place.step, place.best_step)
                        return 0
        return 0

    def _check_room(self) -> None:
        """Check for space for the model in half precision and two checkpoints with AdamW's two averages."""
        fixed = sum(p.numel() for tower, steps in self.frozen if steps == ALWAYS for p in tower.parameters)
        count = sum(parameter.numel() for parameter in self.model.parameters())
        check_room(self.output_dir, 2 * count + 2 * 3 * 4 * (count - fixed), "The model and two checkpoints")

    def _embedder(self) -> nn.Module:
        """Return the model, wrapped for several processes; called again when other weights become trainable."""
        self._set_modes()
        embedder = Embedder(self.model, self.schedule.image_thawed_stages)
        if self.processes == 1:
            return embedder
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(embedder, device_ids=devices)

    def _step(self, embedder: nn.Module, batch: ClipBatch) -> Tensor:
        has_negative = torch.tensor([bool(text) for text in batch.negatives], device=self.device)
        features = batch.captions.to(self.device) if isinstance(batch.captions, Tensor) else None
        texts_read = batch.texts()
        token_ids = self.tokenize(texts_read).to(self.device) if texts_read else torch.empty(0, 1, dtype=torch.int64)
        pictures = batch.pictures.to(self.device)
        if pictures.ndim == 4:
            pictures = pictures.contiguous(memory_format=torch.channels_last)
        with self.autocast():
            images, texts, scale = embedder(pictures, token_ids, batch.has_features, features)
        k = len(batch.captions) // len(pictures)
        loss = loss_of(images, texts, scale, has_negative, self.schedule.negative_weight, k)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._end_diverged(step_problems(loss, self.model), self.place.step + 1)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.scheduler.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, math.log(100))
        return loss

    def _end_diverged(self, problems: Iterable[str], step: int) -> None:
        """Raise a ValueError for the first problem that would spoil the model."""
        for problem in problems:
            raise ValueError(
                f"Step {step}: {problem} The training has diverged and is stopped; this model is not saved. "
                f"Lower --lr (now {self.schedule.lr:g}). {self.output_dir} has the models saved before, if there "
                "are any."
            )

    def _agreed(self, value: float) -> Any:
        """Return the largest value over all processes."""
        if self.processes == 1:
            return value
        shared = torch.tensor(float(value), device=self.device)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        return type(value)(shared.item())

    def _evaluate(self) -> None:
        """Measure, save the model if needed, and write a checkpoint."""
        place = self.place
        figure = self.measure(place.step) if self.rank == 0 else -math.inf
        self._set_modes()
        figure = self._agreed(float(figure))
        place.stale += 1
        if place.best is None or figure > place.best:
            place.best, place.best_step, place.stale = figure, place.step, 0
        if self.rank == 0 and (not self.keep_best or place.stale == 0):
            self.keep()
        self.checkpoint()

    def keep(self) -> None:
        """Write the model."""
        self._end_diverged(weight_problems(self.model, torch.float16), self.place.step)  # the dtype of saved weights
        self.save()

    def checkpoint(self) -> None:
        """Write everything that the next step depends on, and delete earlier checkpoints."""
        folder = self.output_dir / f"checkpoint-{self.place.step}"
        folder.mkdir(parents=True, exist_ok=True)
        if self.processes > 1:
            torch.distributed.barrier()
        own = {"place": asdict(self.place), "random_states": random_states()}
        with checkpoints.written_to(folder, self.output_dir):
            torch.save(own, folder / f"place_{self.rank}.pt")
            if self.rank == 0:
                trained = {name for name, each in self.model.named_parameters() if each.requires_grad}
                fixed = {name for name, _ in self.model.named_parameters()} - trained
                state = {
                    "model": {name: value for name, value in self.model.state_dict().items() if name not in fixed},
                    "optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict(),
                    "origin": self._origin(),
                }  # fmt: skip
                torch.save(state, folder / STATE)
            if self.processes > 1:
                torch.distributed.barrier()
            if self.rank == 0:
                checkpoints.seal(folder, self.processes)
                checkpoints.remove_oldest(folder, 1, None)

    def _origin(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the run that wrote the checkpoint."""
        rows = [stage for stage, _ in self.stages]
        weights = [list(each.kind_weights) if each.rules else [] for each in rows]
        data = {
            "images": [len(each) for each in rows],
            "drill": [each.drill for each in rows],
            "kind_weights": weights,
            "captions_per_image": [each.captions_per_image for each in rows],
        }
        return asdict(self.schedule) | data | {"model": json.dumps(self.model_cfg)}

    def resume(self, checkpoint: str) -> None:
        """Resume from a checkpoint.

        Raises:
            ValueError: it was written with other settings, or by another number of processes.
        """
        folder = Path(checkpoint)
        state = torch.load(folder / STATE, map_location=self.device, weights_only=True)
        now, then = self._origin(), state["origin"]
        other = [
            f"{name}={then[name]} (now {now[name]})" for name in now if name != "patience" and now[name] != then[name]
        ]
        if (processes := checkpoints.processes_of(folder)) != self.processes:
            other.append(f"{processes} processes (now {self.processes})")
        if other:
            raise ValueError(
                f"{folder} cannot be resumed: it was written with {', '.join(other)}. Use the same values again, or "
                "train on from the weights with --model and another --output_dir."
            )
        own = torch.load(folder / f"place_{self.rank}.pt", weights_only=True)
        self.place = Place(**own["place"])
        self._resumed = own["random_states"]
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def remove_checkpoints(self) -> None:
        """Delete the checkpoints when the training is complete."""
        if self.rank == 0:
            for folder in self.output_dir.glob("checkpoint-*"):
                if checkpoints.step_of(folder) is not None:
                    shutil.rmtree(folder, ignore_errors=True)
