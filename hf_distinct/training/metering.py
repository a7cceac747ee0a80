"""Meter: average values and phase times of steps without waiting for the device; and measure peak memory."""

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
    """Collects values on the device and reads them when a log line is due.

    Phases are timed by CUDA events on a GPU, and by the clock on a CPU.

    Args:
        device: the device of the steps.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self.device = device
        self._values: dict[str, list[Tensor]] = defaultdict(list)
        self._times: dict[str, list[Any]] = defaultdict(list)

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar tensor; nothing is copied to the host."""
        self._values[name].append(value.detach().float())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the values since the last `flush`, by name. Times are left out, because no run repeats them."""
        return {name: torch.stack(values).cpu() for name, values in self._values.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the values that `state_dict` returned."""
        here = {name: list(values.to(self.device).unbind()) for name, values in state.items()}
        self._values = defaultdict(list, here)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the time spent inside this context, in seconds, as ``time/NAME``."""
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
        """Return means since the last call, over steps and processes; times are summed over the phases of a step."""
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
    """Return the peak memory of any process so far, in GiB; see `peak_of_process`."""
    peak = peak_of_process(accelerator.device)
    return float(accelerator.gather(torch.tensor([peak], device=accelerator.device)).max())


def peak_of_process(device: torch.device) -> float:
    """Return this process's peak memory so far, in GiB: GPU memory, or without a GPU main memory (Linux; else 0)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")  # getrusage would include the launcher's memory before exec
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmHWM")), 0.0)


def forget_peak() -> None:
    """Reset the peak memory to the current use, where this is possible."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif (peak := Path("/proc/self/clear_refs")).exists():
        peak.write_text("5")


def _seconds(span: Any) -> float:
    return span[0].elapsed_time(span[1]) / 1000 if isinstance(span, tuple) else span
