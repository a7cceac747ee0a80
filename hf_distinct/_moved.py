"""Modules that have moved are still found under the names that they had, with a warning. To be removed in 0.2."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "hf_distinct.captioning": "hf_distinct.inference.captioning",
    "hf_distinct.checkpoints": "hf_distinct.files.checkpoints",
    "hf_distinct.data.settings": "hf_distinct.runs.dataset_settings",
    "hf_distinct.model_card": "hf_distinct.hub.model_card",
    "hf_distinct.pipelines": "hf_distinct.inference.pipelines",
    "hf_distinct.portable": "hf_distinct.text.portable",
}


class Moved(MetaPathFinder, Loader):
    """Finds a module where it is now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """A spec of the names in `MOVED` alone."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module of today, which keeps its own spec."""
        now = MOVED[spec.name]
        warnings.warn(f"{spec.name} has moved to {now}.", DeprecationWarning, stacklevel=2)
        module = import_module(now)
        self.spec: Any = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing: it has run. The import system gave it the spec of its old name."""
        module.__spec__ = self.spec


sys.meta_path.insert(0, Moved())
