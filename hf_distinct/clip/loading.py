"""Load an open_clip model as it was published: with the activation, tokenizer and transform of its weights."""

from __future__ import annotations

import copy
import json
import logging as standard_logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import nn
from transformers.utils import logging

from hf_distinct.clip.openai import read_openai_weights
from hf_distinct.files.safe_loading import code_problems, refuse_code

logger = logging.get_logger(__name__)

CONFIG, WEIGHTS, TEXT_CONFIG = "open_clip_config.json", "open_clip_model.safetensors", "text_config.json"
SCHEMES = ("local-dir:", "hf-hub:")
QUICK_GELU = "-quickgelu"
PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


@dataclass
class LoadedClip:
    """The result of [`load_open_clip`].

    Attributes:
        model: the open_clip model, in float32 on the CPU.
        transform: turns an RGB ``PIL.Image`` into a tensor ``(3, height, width)``.
        tokenizer: turns n texts into token ids ``(n, context)``.
        model_cfg: the architecture that was built, in the format of open_clip's JSON files.
    """

    model: Any
    transform: Callable[..., Any]
    tokenizer: Any
    model_cfg: dict[str, Any]


def load_open_clip(name: str, pretrained: str | None = None) -> LoadedClip:
    """Load a model with the settings that its weights were published with. See [`hf_distinct.ClipScorer`] for names.

    Raises:
        ValueError: if there is no such model, or a setting names code. open_clip raises errors of many other types.
    """
    if not name.startswith(SCHEMES):
        return _load_named(name, pretrained)
    folder = Path(name.removeprefix("local-dir:")) if name.startswith("local-dir:") else None
    if folder is not None and folder.is_dir():
        refuse_code(folder)
    model_cfg = open_clip.get_model_config(name)
    if not isinstance(model_cfg, dict) or not isinstance(model_cfg.get("text_cfg"), dict):
        raise ValueError(f"{CONFIG} of {name} has no model_cfg with a text_cfg.")
    return _load(name, None, model_cfg, text_cfg=_own_text_tower(model_cfg, folder))


def built_config(architecture: str, tag: str) -> dict[str, Any]:
    """Return the config of an architecture for a tag, with QuickGELU if either of the two requires it.

    open_clip 3 builds what the architecture says and only warns about a mismatch: weights of OpenAI, MetaCLIP and DFN
    get the wrong activation unless you name the architecture's variant (``ViT-B-32-quickgelu``). If the tag does not
    specify it (``roberta-ViT-B-32``), the architecture's config is right.
    """
    model_cfg: Any = open_clip.get_model_config(architecture)
    if get_pretrained_cfg(architecture, tag).get("quick_gelu"):
        model_cfg["quick_gelu"] = True
    return model_cfg


def _load_named(name: str, pretrained: str | None) -> LoadedClip:
    """Load a model by its architecture and a tag or a file."""
    architecture = name.replace("/", "-")  # OpenAI writes ViT-B/32
    if architecture not in open_clip.list_models():
        raise ValueError(f"{name!r} is neither a folder with an open_clip model nor an open_clip model name.")
    if not pretrained:
        raise ValueError(
            f"{name!r} names an architecture without weights; add a tag or a checkpoint file, as in '{name}:openai'."
        )
    if get_pretrained_cfg(architecture, pretrained):
        return _load(architecture, pretrained, built_config(architecture, pretrained))
    file = Path(pretrained).expanduser()
    if not file.is_file():
        tags = ", ".join(list_pretrained_tags_by_model(architecture)) or "none"
        raise ValueError(f"{pretrained!r} is neither a file nor a tag of {architecture}. Its tags: {tags}.")
    return _load_file(architecture, file)


def _load_file(architecture: str, file: Path) -> LoadedClip:
    """Load a model from a checkpoint file, which contains tensors but no settings."""
    model_cfg = built_config(architecture, "")
    how: dict[str, Any] = {"force_preprocess_cfg": published_preprocess(architecture)}
    if how["force_preprocess_cfg"]:
        logger.warning(
            "%s does not specify the image preprocessing, so that of all published weights of %s is used: %s. If this "
            "is wrong, put the file into a folder with an %s whose preprocess_cfg is right.",
            file, architecture, how["force_preprocess_cfg"], CONFIG,
        )  # fmt: skip
    openai_weights = read_openai_weights(file)
    if openai_weights is not None:
        model_cfg["quick_gelu"] = True
        loaded = _load(architecture, None, model_cfg, **how)
        loaded.model.load_state_dict(openai_weights)
        return loaded
    if not model_cfg.get("quick_gelu") and architecture + QUICK_GELU in open_clip.list_models():
        logger.warning(
            "%s does not specify the activation of its weights, so %r is built with GELU. If they come from OpenAI, "
            "MetaCLIP or DFN, which use QuickGELU, name the scorer '%s:%s'.",
            file, architecture, architecture + QUICK_GELU, file,
        )  # fmt: skip
    return _load(architecture, str(file), model_cfg, **how)


def published_preprocess(architecture: str) -> dict[str, Any]:
    """Return the image preprocessing of an architecture's published weights.

    Returns:
        ``mean``, ``std``, ``interpolation`` and ``resize_mode``; empty if the tags disagree, or all use open_clip's
        default.
    """
    tags = list_pretrained_tags_by_model(architecture)
    found = [{key: get_pretrained_cfg(architecture, tag)[key] for key in PREPROCESS} for tag in tags]
    default = {key: getattr(PreprocessCfg(), key) for key in PREPROCESS}
    return found[0] if found and found[0] != default and all(each == found[0] for each in found) else {}


def _load(name: str, pretrained: str | None, model_cfg: dict[str, Any], **how: Any) -> LoadedClip:
    """Build and load a model. A name without ``pretrained`` gets random weights, which the caller replaces."""
    for problem in code_problems(model_cfg, f"{CONFIG} of {name}"):
        raise ValueError(problem)
    if tower := how.get("text_cfg", model_cfg["text_cfg"]).get("hf_model_name"):
        refuse_code(tower)
    # open_clip's own tokenizer runs no custom code and does not accept the argument.
    trust = {"trust_remote_code": False} if model_cfg["text_cfg"].get("hf_tokenizer_name") else {}
    weights = bool(pretrained) or name.startswith(SCHEMES)
    with _quiet_open_clip():
        model = open_clip.create_model(
            name,
            pretrained=pretrained,
            load_weights=weights,
            require_pretrained=weights,  # otherwise it would fall back to random weights
            pretrained_text=False,
            force_quick_gelu=bool(model_cfg.get("quick_gelu")),
            **how,
        )
        tokenizer = open_clip.get_tokenizer(name, **trust)
    transform: Any = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    return LoadedClip(model, transform, tokenizer, model_cfg)


def _own_text_tower(model_cfg: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return the text config, set to build a Hugging Face tower from the folder's own files if it has them."""
    text_cfg = model_cfg["text_cfg"] | {"hf_model_pretrained": False}
    if text_cfg.get("hf_model_name") and folder is not None and (folder / TEXT_CONFIG).is_file():
        text_cfg["hf_model_name"] = os.fspath(folder / TEXT_CONFIG)
    return text_cfg


@contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """Suppress open_clip's many log lines, and the warning about the activation, which is already handled."""

    def not_open_clips(record: standard_logging.LogRecord) -> bool:
        return os.sep + "open_clip" + os.sep not in record.pathname

    root = standard_logging.getLogger()
    root.addFilter(not_open_clips)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "QuickGELU mismatch")
            yield
    finally:
        root.removeFilter(not_open_clips)


def save_text_tower(model: nn.Module, model_cfg: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the config of a Hugging Face text tower into the model's folder, so that loading needs no download.

    Returns:
        ``model_cfg`` without local paths.
    """
    config = getattr(getattr(model, "text", None), "config", None)
    if config is None:
        return model_cfg
    settings = _without_paths(json.loads(config.to_json_string(use_diff=False)))
    (folder / TEXT_CONFIG).write_text(json.dumps(settings, indent=2) + "\n")
    model_cfg = copy.deepcopy(model_cfg)
    text_cfg = model_cfg["text_cfg"]
    if Path(text_cfg["hf_model_name"]).exists():
        text_cfg["hf_model_name"] = Path(text_cfg["hf_model_name"]).name
    return model_cfg


def _without_paths(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {key: _without_paths(value) for key, value in settings.items() if key != "_name_or_path"}
    return [_without_paths(value) for value in settings] if isinstance(settings, list) else settings
