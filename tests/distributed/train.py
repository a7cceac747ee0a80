"""What the tests of this folder launch: train on this process's share, and let process 0 write down what came of it.

accelerate launch ... train.py MODELS OUTPUT '{"CASE": {"max_steps": 3, ...}, ...}'

One launch trains case after case. Beside the settings of RLCaptionConfig a case may have ``images``, the size of its
data set, ``resume``, the checkpoint to go on from, ``judged``, what process 0 measures at each evaluation, and
``same_samples``, ``lora`` and ``spoil``, see below. What was judged is saved in the end, as ``CASE/saved``.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import tiny
import torch
from accelerate.utils import gather_object
from peft import LoraConfig, get_peft_model

from hf_distinct.distributed.zero3 import generation_ready
from hf_distinct.generation.labels import join_labels
from hf_distinct.generation.policy import Policy, Rollouts


class NotingPolicy(Policy):
    """Notes the longest caption of each rollout, in tokens."""

    seeds: list[int]

    def roll_out(self, *args: Any, **kwargs: Any) -> Rollouts:
        found = super().roll_out(*args, **kwargs)
        self.lengths = [*getattr(self, "lengths", []), found.labels.shape[1]]
        return found


class SameSamples(NotingPolicy):
    """The samples of an image depend on the image alone, not on who holds it in which company."""

    def roll_out(self, model: Any, hidden: torch.Tensor, images: int, greedy: bool) -> Rollouts:
        labels, captions = [], []
        for row, seed in zip(hidden, self.seeds, strict=True):
            torch.manual_seed(seed)
            of_one = super().roll_out(model, row[None], min(images, 1), greedy=False)
            labels.append(of_one.labels)
            captions += of_one.texts
        return Rollouts(join_labels(*labels), captions, [])


class Trainer(tiny.RecordingTrainer):
    """Tells its policy which images a batch has."""

    policy: NotingPolicy

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.policy.seeds = inputs["image_ids"].abs().tolist() or [0]
        return super().compute_loss(model, inputs, *args, **kwargs)


def adapted(model: Any) -> Any:
    """The captioner with low-rank adapters, the same in every process."""
    torch.manual_seed(1)
    # Of the ViT, of BLIP's and GIT's and of GPT-2: peft takes those that a captioner has.
    layers = ["query", "value", "qkv", "v_proj", "c_attn", "c_proj"]
    return get_peft_model(model, LoraConfig(r=2, lora_dropout=0.1, target_modules=layers))


def spoiled(by: str) -> Any:
    """A reward that is NaN for the captions of one image, and nothing for all others."""

    def spoiling(captions: list[str], image_id: list[str]) -> list[float]:
        return [math.nan if each == by else 0.0 for each in image_id]

    return spoiling


def gathers(trainer: Trainer) -> list[list[int]]:
    """How many exchanges of "give me your part of this" rollouts of 2 and 12 tokens take, and how long they became."""
    policy, model = trainer.policy, trainer.model_wrapped
    hidden = policy.encode(model, tiny.a_batch(trainer)["pixel_values"])
    policy.roll_out(model, hidden, len(hidden), greedy=False)  # lets go of what encoding has gathered
    found = []
    for trainer.args.max_new_tokens in (2, 12):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            labels = policy.roll_out(model, hidden, len(hidden), greedy=False).labels
        events = [e for e in profile.key_averages() if e.key.startswith("c10d::") and "allgather" in e.key]
        found.append([sum(e.count for e in events), labels.shape[1]])
    return found


def train(models: Path, output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    kind = SameSamples if settings.pop("same_samples", False) else NotingPolicy
    dataset = tiny.scenes(settings.pop("images", 12))
    if settings.pop("lora", False):
        settings["adapt"] = adapted
    if spoil := settings.pop("spoil", None):
        settings["rewards"] = ["contrastive", spoiled(spoil)]
    if judged := settings.pop("judged", None):
        measured = iter(judged if os.environ.get("RANK", "0") == "0" else range(6))
        settings |= {"caption_metrics": lambda *_: {"CIDEr-D": next(measured)}, "eval_dataset": tiny.scenes(3)}
    checkpoint = settings.pop("resume", None)
    # The choice of CPU and gloo is left to RLCaptionConfig, as in a launched recipe.
    trainer: Any = tiny.make_trainer(models, output, kind=Trainer, dataset=dataset, use_cpu=False, **settings)
    known = (trainer.args, trainer.accelerator, trainer.processing_class, trainer.compute_loss_context_manager)
    trainer.policy = kind(*known)
    trainer.train(resume_from_checkpoint=checkpoint)
    if judged:
        trainer.save_model(str(output / "saved"))
    accelerator = trainer.accelerator
    with generation_ready(trainer.model_wrapped, accelerator) as whole:
        copy = torch.cat([weight.detach().flatten() for weight in whole.parameters()])
    return {
        "processes": gather_object([os.getpid()]),
        "backend": torch.distributed.get_backend() if torch.distributed.is_initialized() else None,
        "losses": accelerator.gather(torch.tensor([trainer.step_losses])).mean(dim=0),
        "captions": gather_object([trainer.caption(tiny.scenes(5))]),
        "lengths": gather_object([trainer.policy.lengths]),
        "copies": gather_object([hashlib.sha256(copy.numpy().tobytes()).hexdigest()]),
        "weights": accelerator.get_state_dict(trainer.model_wrapped),
        "discriminator": trainer.discriminator.discriminator.state_dict(),
        "memory": list(trainer.appraiser.pools.memory),
        "gathers": gathers(trainer),
        "best": [trainer.state.best_global_step, *trainer.alarms.told[-1:]],
        "log": [line for line in trainer.state.log_history if "loss" in line],
    }


def main() -> None:
    models, output, cases = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    found = {name: train(models, output / name, settings) for name, settings in cases.items()}
    if int(os.environ.get("RANK", 0)) == 0:
        torch.save(found, output / "found.pt")
    if os.environ.get("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none") != "none":
        try:
            tiny.make_trainer(models, output, use_cpu=False, optim="sgd")
        except ValueError as error:
            (output / "refused.txt").write_text(str(error))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
