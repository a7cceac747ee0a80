"""Meter: means of what a step measures, and the time of its phases, without waiting for the device; peak memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor

CPU = torch.device("cpu")


class Meter:
    """Collects values on the device and reads them at the log line.

    On a GPU a phase is measured by events in its stream; on a CPU by the clock.

    Args:
        device: where the steps run.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._times: dict[str, list[Any]] = defaultdict(list)

    def add(self, name: str, value: Tensor) -> None:
        """Note a scalar tensor; nothing is copied to the host."""
        self._values[name].append(value.detach().float())

    def state_dict(self) -> dict[str, Tensor]:
        """The values noted since the last `flush`, by name; times are not among them, for no run repeats them."""
        return {name: torch.stack(values).cpu() for name, values in self._values.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up the values that `state_dict` gave."""
        here = {name: list(values.to(self.device).unbind()) for name, values in state.items()}
        self._values = defaultdict(list, here)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside, in seconds, as ``time/NAME``."""
        if self.device.type == "cuda":
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._times[name].append((begin, end))
        else:
            started = time.perf_counter()
            yield
            self._times[name].append(time.perf_counter() - started)

    def flush(self, accelerator: Accelerator) -> dict[str, float]:
        """Means since the last call, over steps and processes; times are sums over a step's phases, per step."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        steps = max(len(self._times["step"]), 1)
        times = {name: sum(map(_seconds, spans)) / steps for name, spans in self._times.items() if spans}
        if "step" in times:
            inside = sum(seconds for name, seconds in times.items() if name != "step")
            times["backward"] = times["step"] - inside
        names = list(self._values)
        figures: dict[str, float] = {}
        if names:
            means = torch.stack([torch.stack(self._values[name]).mean() for name in names])
            means = accelerator.reduce(means, reduction="mean")
            figures = dict(zip(names, means.tolist(), strict=True))
        self._values.clear()
        self._times.clear()
        return figures | {f"time/{name}": seconds for name, seconds in times.items()}


def peak_memory(accelerator: Accelerator) -> float:
    """The most GiB that one process has held so far, see `peak_of_process`."""
    peak = peak_of_process(accelerator.device)
    return float(accelerator.gather(torch.tensor([peak], device=accelerator.device)).max())


def peak_of_process(device: torch.device) -> float:
    """The most GiB that this process has held so far: of its GPU, or without one of main memory (Linux; else 0)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")  # not getrusage, which counts what the launcher held before it became this
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), 0.0)


def forget_peak() -> None:
    """Let `peak_memory` begin anew with what is held now, where that is possible."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (peak := Path("/proc/self/clear_refs")).exists():
        peak.write_text("5")


def _seconds(span: Any) -> float:
    return span[0].elapsed_time(span[1]) / 1000 if isinstance(span, tuple) else span
