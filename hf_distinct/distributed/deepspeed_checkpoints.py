"""DeepSpeed's part of a checkpoint: for another number of processes, and with what its loading leaves out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def is_of_deepspeed(checkpoint: Path) -> bool:
    """Whether DeepSpeed wrote a part of a checkpoint."""
    return any(checkpoint.glob("global_step*"))


def divide_anew(checkpoint: Path) -> None:
    """Make of a checkpoint, of which each process has written its part, one for any number of processes.

    DeepSpeed's own converter writes it beside the parts, as a "universal checkpoint". Call it in one process.

    Raises:
        ValueError: if DeepSpeed cannot convert it (it can where the optimiser is Adam).
    """
    parts = checkpoint / (checkpoint / "latest").read_text().strip()
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(parts), "--output_folder", f"{parts}_universal"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(
            f"DeepSpeed cannot divide {parts} among another number of processes: {done.stderr[-2000:]}\n"
            "Start as many processes as wrote it, or begin a new training from its weights with "
            f"--model_name_or_path {checkpoint}."
        )


def mend_loaded(engine: Any, lr_scheduler: Any) -> None:
    """Tie together again what the loading of a checkpoint has parted, and part what it has tied.

    Args:
        engine: a DeepSpeedEngine that has loaded a checkpoint.
        lr_scheduler: the schedule of the Trainer.
    """
    optimizer = engine.optimizer.optimizer
    # Loading replaces the groups that an offloaded optimiser shared with the one that the schedule was made for: its
    # learning rate would never change again (deepspeedai/DeepSpeed#4344).
    schedule = getattr(lr_scheduler, "scheduler", lr_scheduler)
    if hasattr(schedule, "optimizer"):
        schedule.optimizer.param_groups = optimizer.param_groups
    # A universal checkpoint gives the parts of ZeRO-3 one counter of steps, which each of them would count up
    # (DeepSpeed 0.19, `load_hp_checkpoint_state_from_checkpoint_dir_stage3`).
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()
    if hasattr(optimizer, "ds_opt_adam"):
        # DeepSpeedCPUAdam multiplies up its bias correction step by step, but makes that of a loaded state by a power,
        # which differs in the last bit. So it takes the steps again, with a parameter of nobody's.
        group, nobodys = optimizer.param_groups[0], [torch.zeros(1) for _ in range(4)]
        for step in range(1, max((int(state["step"]) for state in optimizer.state.values()), default=0) + 1):
            optimizer.ds_opt_adam.adam_update(
                optimizer.opt_id, step, 0.0, *group["betas"], group["eps"], 0.0, group["bias_correction"], *nobodys
            )
