"""Accelerations. Each one is optional, and one switch turns all of them off.

They use internals of other libraries. So each is tried before its first use in a process, on a tiny model, and
compared with the standard computation. If it fails, a warning names it and it stays off: the run is slower, but works.

| name | what it does | internals used |
| --- | --- | --- |
| `shared_cross_attention` | captions of an image share its keys and values | `GPT2Attention`, caches |
| `finished_rows` | finished captions leave the decoder's batch | caches |
| `beam_rows` | beams that cannot win leave it, greedy captions join it | caches, `_check_early_stop_heuristic` |
| `packing` | padding is not computed when captions are scored | `GPT2Attention.c_attn`, `.c_proj` |
| `narrow_products` | oneDNN multiplies matrices with few rows | `torch.ops.mkldnn._linear_pointwise` |
| `gelu` | one operation instead of seven | `NewGELUActivation` |
| `text_tower` | CLIP reads texts up to the end token, not the full context | open_clip's text towers |

Tested with transformers 4.57 and 5.24, torch 2.6 to 2.14, open_clip 3.
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
"""Environment variable that turns all accelerations off in the whole process, if set to 0 or false."""

_on = os.environ.get(SWITCH, "1").lower() not in ("0", "false")
_works: dict[str, bool] = {}  # results of the trials so far, by name


@contextmanager
def fast_paths(on: bool) -> Iterator[None]:
    """Turn all accelerations off inside this context, or with ``on`` leave them as they are."""
    global _on
    before, _on = _on, _on and on
    try:
        yield
    finally:
        _on = before


def as_set(method: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a trainer method to run with ``args.fast_paths``; without this setting, accelerations are on."""

    @wraps(method)
    def switched(self: Any, *args: Any, **kwargs: Any) -> Any:
        with fast_paths(getattr(self.args, "fast_paths", True)):
            return method(self, *args, **kwargs)

    return switched


def usable(name: str, trial: Callable[[], bool]) -> bool:
    """Whether an acceleration may be used: it is on and gives correct results.

    Args:
        name: its name in the table above.
        trial: uses the acceleration and returns whether the result equals the standard one. It is called at most once
            per process, and does not change the random state.
    """
    if not _on:
        return False
    if name not in _works:
        _works[name] = True  # so that the trial itself can use it
        _works[name] = _try(name, trial)
    return _works[name]


def _try(name: str, trial: Callable[[], bool]) -> bool:
    problem = "its results differ"
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            if trial():
                return True
    except Exception as error:  # the standard computation works in any case
        problem = f"{type(error).__name__}: {error}"
    libraries = ", ".join(f"{library} {version(library)}" for library in ("torch", "transformers", "open_clip_torch"))
    logger.warning(
        "The acceleration %r does not work with %s (%s). It is turned off, which makes the run slower but does not "
        "change its results.", name, libraries, problem,
    )  # fmt: skip
    return False
