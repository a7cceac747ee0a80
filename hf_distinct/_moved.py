"""Import modules that have moved under their old names, with a DeprecationWarning. To be removed in 0.2."""

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
    """Imports a moved module from its new location."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for the old names in `MOVED`, and None for every other name."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import the module from its new location. It keeps its own spec."""
        now = MOVED[spec.name]
        warnings.warn(f"{spec.name} has moved to {now}.", DeprecationWarning, stacklevel=2)
        module = import_module(now)
        self.spec: Any = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own spec, which the import system replaced. The module has already been executed."""
        module.__spec__ = self.spec


sys.meta_path.insert(0, Moved())
