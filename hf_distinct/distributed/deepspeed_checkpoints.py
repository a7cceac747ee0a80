"""DeepSpeed's checkpoints: convert them to another number of processes, and repair what its loading breaks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def is_of_deepspeed(checkpoint: Path) -> bool:
    """Whether DeepSpeed wrote part of a checkpoint."""
    return any(checkpoint.glob("global_step*"))


def divide_anew(checkpoint: Path) -> None:
    """Convert a checkpoint, in which each process has written its part, for any number of processes.

    DeepSpeed's own converter adds a "universal checkpoint" to the folder. Call this in one process.

    Raises:
        ValueError: if DeepSpeed cannot convert it (it can with Adam as the optimiser).
    """
    parts = checkpoint / (checkpoint / "latest").read_text().strip()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(parts), "--output_folder", f"{parts}_universal"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"DeepSpeed cannot convert {parts} to another number of processes: {done.stderr[-2000:]}\n"
            "Start as many processes as wrote it, or start a new training from its weights with "
            f"--model_name_or_path {checkpoint}."
        )


def mend_loaded(engine: Any, lr_scheduler: Any) -> None:
    """Restore the links between optimiser and schedule that DeepSpeed's loading breaks, and separate shared counters.

    Args:
        engine: a DeepSpeedEngine that has loaded a checkpoint.
        lr_scheduler: the Trainer's learning rate schedule.
    """
    optimizer = engine.optimizer.optimizer
    # Loading replaces the parameter groups of an offloaded optimiser, which the schedule holds references to: without
    # this, the learning rate would never change again (deepspeedai/DeepSpeed#4344).
    schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
    if hasattr(schedule, "optimizer"):
        schedule.optimizer.param_groups = optimizer.param_groups
    # A universal checkpoint gives all partitions of ZeRO-3 the same step counter, which each of them would increment
    # (DeepSpeed 0.19, `load_hp_checkpoint_state_from_checkpoint_dir_stage3`).
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    if hasattr(optimizer, "ds_opt_adam"):
        # DeepSpeedCPUAdam multiplies its bias correction step by step, but computes it as a power after loading, which
        # differs in the last bit. So the steps are repeated here with a dummy parameter.
        group, nobodys = optimizer.param_groups[0], [torch.zeros(1) for _ in range(4)]
        for step in range(1, max((int(state["step"]) for state in optimizer.state.values()), default=0) + 1):
            optimizer.ds_opt_adam.adam_update(
                optimizer.opt_id, step, 0.0, *group["betas"], group["eps"], 0.0, group["bias_correction"], *nobodys
            )
