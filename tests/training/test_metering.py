"""Means of what a step measures, and the time of its phases."""

from __future__ import annotations

import psutil
import pytest
import torch
from accelerate import Accelerator

from hf_distinct.training.metering import Meter, forget_peak, peak_memory


@pytest.fixture
def accelerator():
    return Accelerator(cpu=True)


def test_means_since_the_last_line(accelerator):
    meter = Meter()
    for value in (1.0, 2.0, 6.0):
        meter.add("reward", torch.tensor(value))
    meter.add("length", torch.tensor(4))  # of another type, and measured once
    assert meter.flush(accelerator) == {"reward": 3.0, "length": 4.0}  # (1 + 2 + 6) / 3
    meter.add("reward", torch.tensor(5.0))
    assert meter.flush(accelerator) == {"reward": 5.0}
    assert meter.flush(accelerator) == {}


def test_a_value_does_not_keep_its_graph(accelerator):
    meter = Meter()
    weight = torch.ones((), requires_grad=True)
    meter.add("loss", weight * 2)
    assert not meter.state_dict()["loss"].requires_grad
    assert meter.flush(accelerator) == {"loss": 2.0}


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, which passes where a test says so alone."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    return clock


def test_times_are_per_step_and_what_no_phase_claims_is_the_backward_pass(accelerator, clock):
    meter = Meter()
    for _ in range(2):
        with meter.phase("step"):
            for _ in range(2):
                with meter.phase("generate"):
                    clock[0] += 2
            with meter.phase("score"):
                clock[0] += 1
            clock[0] += 5
    assert meter.flush(accelerator) == {"time/step": 10, "time/generate": 4, "time/score": 1, "time/backward": 5}
    assert meter.flush(accelerator) == {}


def test_a_phase_outside_any_step_is_timed_too(accelerator, clock):
    meter = Meter()
    with meter.phase("generate"):
        clock[0] += 3
    assert meter.flush(accelerator) == {"time/generate": 3}


def test_peak_memory_keeps_what_has_been_given_back(accelerator):
    before = peak_memory(accelerator)
    room = before - psutil.Process().memory_info().rss / 2**30  # other tests may have had more
    held = torch.ones(int((room + 0.25) * 2**28))  # of four bytes each
    during = peak_memory(accelerator)
    del held
    after = peak_memory(accelerator)
    assert before > 0.01 and before + 0.2 < during < after + 0.01  # the kernel counts in coarse steps


def test_a_peak_that_is_forgotten_begins_anew(accelerator):
    held = torch.ones(2**27)  # half a GiB
    peak = peak_memory(accelerator)
    del held
    assert peak_memory(accelerator) == pytest.approx(peak, abs=0.1)
    forget_peak()
    assert peak_memory(accelerator) < peak - 0.4
