"""Accelerations. Each may be deleted, and everything still works; one switch turns all of them off.

They reach into other libraries, so each is tried before its first use in a process, on a model of a few numbers, and
compared with the plain way. One that fails is reported in a warning and stays off: it costs speed, not the run.

| name | what it does | reaches into |
| --- | --- | --- |
| `shared_cross_attention` | captions of an image share its keys and values | `GPT2Attention`, caches |
| `finished_rows` | captions that have ended leave the decoder's passes | caches |
| `beam_rows` | beams that cannot win leave them, greedy captions join | caches, `_check_early_stop_heuristic` |
| `packing` | padding is not scored | `GPT2Attention.c_attn`, `.c_proj` |
| `narrow_products` | products of few rows by oneDNN | `torch.ops.mkldnn._linear_pointwise` |
| `gelu` | one operation instead of seven | `NewGELUActivation` |
| `text_tower` | CLIP reads texts to their end and not to the full context | open_clip's text towers |

Seen to hold with transformers 4.57 and 5.24, torch 2.6 to 2.14, open_clip 3.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from importlib.metadata import version
from typing import Any

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

SWITCH = "HF_DISTINCT_FAST_PATHS"
"""The environment variable that turns all of them off, in whatever a process does: 0 or false."""

_on = os.environ.get(SWITCH, "1").lower() not in ("0", "false")
_works: dict[str, bool] = {}  # by name, of those that were tried


@contextmanager
def fast_paths(on: bool) -> Iterator[None]:
    """Inside, all accelerations are off, or as they were with ``on``."""
    global _on
    before, _on = _on, _on and on
    try:
        yield
    finally:
        _on = before


def as_set(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a trainer's method: inside, accelerations are as its ``args.fast_paths`` says, or on without it."""

    @wraps(method)
    def switched(self: Any, *args: Any, **kwargs: Any) -> Any:
        with fast_paths(getattr(self.args, "fast_paths", True)):
            return method(self, *args, **kwargs)

    return switched


def usable(name: str, trial: Callable[[], bool]) -> bool:
    """Whether an acceleration may be used: it is on, and does what it should.

    Args:
        name: its name in the table above.
        trial: does it, and tells whether the results are those of the plain way; called once in a process, or not at
            all. What it draws changes no random number of anybody else.
    """
    if not _on:
        return False
    if name not in _works:
        _works[name] = True  # for the trial itself
        _works[name] = _try(name, trial)
    return _works[name]


def _try(name: str, trial: Callable[[], bool]) -> bool:
    problem = "its results are others"
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            if trial():
                return True
    except Exception as error:  # whatever it is, the plain way works
        problem = f"{type(error).__name__}: {error}"
    libraries = ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers", "open_clip_torch"))
    logger.warning(
        "The acceleration %r does not work with %s (%s). It is off: everything is computed the plain way, which is "
        "slower.", name, libraries, problem,
    )  # fmt: skip
    return False
