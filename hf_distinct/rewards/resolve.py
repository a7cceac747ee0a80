"""Find the reward that a setting names."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from hf_distinct.rewards.base import Reward
from hf_distinct.rewards.callable import CallableReward
from hf_distinct.rewards.cider import CiderReward
from hf_distinct.rewards.contrastive import ContrastiveReward
from hf_distinct.rewards.similarity import SimilarityReward

BUILT_IN_REWARDS = ("contrastive", "contrastive_i2t", "contrastive_t2i", "similarity", "cider")
"""Names of the built-in rewards, which [`resolve_reward`] accepts."""


def resolve_reward(
    spec: str | Callable[..., Any] | Reward,
    *,
    contrastive_settings: Mapping[str, Any] | None = None,
    references_corpus: Sequence[list[str]] | None = None,
) -> Reward:
    """Return the reward that a setting names.

    Args:
        spec: a name in `BUILT_IN_REWARDS`; the dotted path of an importable function, class or object
            (``"my_package.rewards.brevity"``); one in a file (``"path/to/rewards.py:brevity"``); or the object itself.
            A class is instantiated without arguments, a plain function is wrapped in [`CallableReward`].
            A path runs the code found there: name only code that you trust.
        contrastive_settings: further arguments of [`ContrastiveReward`]; ignored by the other rewards.
        references_corpus: the references of each training image; required by ``"cider"`` only.

    Returns:
        The reward.

    Raises:
        ValueError: if the name is unknown, the path leads to nothing, the object is a model or a class that needs
            arguments, or ``"cider"`` has no corpus.
    """
    if isinstance(spec, str):
        if spec in BUILT_IN_REWARDS:
            return _built_in(spec, contrastive_settings or {}, references_corpus)
        return _as_reward(_load(spec), spec)
    return _as_reward(spec, repr(spec))


def _built_in(
    name: str, contrastive_settings: Mapping[str, Any], references_corpus: Sequence[list[str]] | None
) -> Reward:
    if name == "similarity":
        return SimilarityReward()
    if name == "cider":
        if references_corpus is None:
            raise ValueError("reward 'cider' needs references_corpus, the references of each training image")
        return CiderReward(references_corpus)
    direction = name.removeprefix("contrastive").lstrip("_") or "both"
    return ContrastiveReward(direction, **contrastive_settings)  # type: ignore[arg-type]


def _as_reward(found: Any, where: str) -> Reward:
    if isinstance(found, type):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise ValueError(f"reward {where}: the class is instantiated without arguments, but {error}") from error
        found = found()
    if isinstance(found, Reward):
        return found
    if isinstance(found, nn.Module):
        raise ValueError(f"reward {where}: {type(found).__name__} is a model. {_NO_MODELS}")
    if callable(found):
        return CallableReward(found)
    raise ValueError(f"reward {where}: found {type(found).__name__}, expected a function or a class")


def _load(spec: str) -> Any:
    path, colon, name = spec.rpartition(":")
    if colon:
        module = _import_file(Path(path), spec)
    else:
        path, _, name = spec.rpartition(".")
        if "/" in spec:  # like a Hub id or a folder, from which TRL loads reward models
            raise ValueError(f"reward {spec!r} is not a file with a name in it. {_NO_MODELS} {_FORMS}")
        if not path:
            raise ValueError(f"reward {spec!r} is unknown{_suggestion(spec, BUILT_IN_REWARDS)}. {_FORMS}")
        module = _import_module(path, spec)
    try:
        return getattr(module, name)
    except AttributeError:
        raise ValueError(f"reward {spec!r}: no {name!r} in {path}{_suggestion(name, vars(module))}") from None


def _import_module(path: str, spec: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        # A module that exists but lacks a dependency raises its own error.
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        hint = _suggestion(spec, BUILT_IN_REWARDS)
        raise ValueError(f"reward {spec!r}: there is no module {error.name!r}{hint}. {_FORMS}") from error


def _import_file(path: Path, spec: str) -> Any:
    if not path.is_file():
        raise ValueError(f"reward {spec!r}: there is no file {path}. {_FORMS}")
    # A unique module name: dataclasses and pickle look modules up by name, and no other module must be shadowed.
    name = f"_reward_{path.stem}_{hashlib.blake2b(str(path.resolve()).encode(), digest_size=4).hexdigest()}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"reward {spec!r}: {path} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    module_spec.loader.exec_module(module)
    return module


_FORMS = (
    f"Use one of {', '.join(BUILT_IN_REWARDS)}, a dotted path such as my_package.rewards.brevity, "
    "or a file and a name in it such as rewards.py:brevity"
)

_NO_MODELS = (
    "Reward models (a sequence classifier, as in TRL) are not supported: write a function that calls the model "
    "and returns one number per caption."
)


def _suggestion(name: str, known: Any) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


Rewards = str | Callable[..., Any] | Reward | Sequence[str | Callable[..., Any] | Reward]


def found_rewards(rewards: Rewards) -> list[str | Reward]:
    """Resolve one or several rewards. Names of built-in rewards stay names, since the captions are not known yet.

    Raises:
        ValueError: if there is none; or see `hf_distinct.rewards.resolve_reward`.
    """
    several: Any = rewards if isinstance(rewards, (list, tuple)) else [rewards]
    if not several:
        raise ValueError("rewards is empty; give at least one, such as 'contrastive'.")
    return [each if each in BUILT_IN_REWARDS else resolve_reward(each) for each in several]
