"""Load captioners on transformers 4.57 and 5 alike: `pipeline("image-to-text")`, and image processors."""

from __future__ import annotations

import json
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    BaseImageProcessor,
    Pipeline,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderModel,
)
from transformers.image_utils import load_image
from transformers.pipelines import get_supported_tasks
from transformers.utils import find_adapter_config_file

from hf_distinct.families import CAPTIONERS, FAMILIES, NAMES, accept_maps, family_of, without_adapters
from hf_distinct.files.model_names import shipped_or_named
from hf_distinct.files.safe_loading import refuse_code
from hf_distinct.generation.special_tokens import complete_special_tokens
from hf_distinct.text.problems import one_line

TASK = "image-to-text"
EXACT_SEGFORMER = "hf_distinct_segformer"
# Used if neither the call nor the model sets a length, as in transformers 4.57, where a `max_length` of 20 is the
# default and counts as unset.
MAX_NEW_TOKENS, UNSET_LENGTHS, LENGTHS = 256, (None, 20), ("max_length", "max_new_tokens")


def pipeline(task: str, model: str | os.PathLike[str] | PreTrainedModel, **settings: Any) -> Pipeline:
    """Load a captioner as a pipeline, with the same call and the same captions on transformers 4.57 and 5.

    On 4.57 this is `transformers.pipeline`. transformers 5 removed the task `"image-to-text"`; its replacement
    (`"image-text-to-text"`) needs a prompt and cannot run a captioner.

        captioner = hf_distinct.pipeline("image-to-text", model="user/name")
        captioner("picture.png")                         # [{"generated_text": "a red kite over a beach"}]
        captioner(["a.png", "b.png"], batch_size=2)      # a list of such lists

    Args:
        task: `"image-to-text"`.
        model: a Hub id, a folder, `"captioner"` for the shipped model, or a captioner with
            `tokenizer=` and `image_processor=`.
        settings: arguments of `transformers.pipeline`: `device`, `dtype`, `batch_size`, `revision`, `token` ...; and
            arguments of `generate` for all calls: `max_new_tokens`, `num_beams` ...

    Returns:
        A pipeline. It takes a path, a URL or a PIL image and returns `[{"generated_text": ...}]`. For a list of images
        it returns a list of such lists, and for a `torch.utils.data.Dataset` or a generator an iterator over them.
        Each call accepts `max_new_tokens`, `generate_kwargs`, `batch_size`, `num_workers` and `timeout` (seconds, for
        URLs).

    Raises:
        ValueError: another task, or a model with custom code unless `trust_remote_code` is set.
        OSError: the model does not exist.
    """
    if task != TASK:
        raise ValueError(
            f"hf_distinct.pipeline supports only the task {TASK!r}; transformers.pipeline may support {task!r}."
        )
    if isinstance(model, (str, os.PathLike)):
        model = shipped_or_named(model)
        if not settings.setdefault("trust_remote_code", False):
            refuse_code(model)
    make: Any = transformers.pipeline  # its overloads differ between versions
    if TASK in get_supported_tasks():
        found = make(TASK, model=model, **settings)
        accept_maps(found.model)
        return found
    if isinstance(model, str) and "image_processor" not in settings:
        place = {name: settings[name] for name in ("revision", "token", "trust_remote_code") if name in settings}
        settings["image_processor"] = load_image_processor(model, **place)
    # The task name makes transformers look for this kind of model; our class runs it.
    found = make("image-text-to-text", model=model, pipeline_class=ImageToTextPipeline, **settings)
    accept_maps(found.model)
    encoder = getattr(found.model, "encoder", None)
    if encoder is not None and encoder.config.model_type == "segformer":
        transformers.AttentionInterface.register(EXACT_SEGFORMER, _exact_segformer)
        encoder.set_attn_implementation(EXACT_SEGFORMER)
    return found


def load_captioner(
    source: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: BaseImageProcessor | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, BaseImageProcessor]:
    """Load a captioner with its tokenizer and image processor. Custom code is rejected, never run.

    Args:
        source: a Hub id, a folder, or `"captioner"` for the shipped model.
        tokenizer: use this tokenizer instead of loading one.
        image_processor: use this image processor instead of loading one.

    Raises:
        ValueError: the model does not exist, a part is missing or damaged, or it contains custom code. The message
            names it.
    """
    source = shipped_or_named(source)
    try:
        refuse_code(source)
        model = _load_model(source)
        return model, *_processors(source, model, tokenizer, image_processor)
    except Exception as error:  # transformers and safetensors raise many types
        raise ValueError(f"Captioner {source!r} cannot be loaded: {one_line(error)}") from error


def _load_model(source: str) -> PreTrainedModel:
    """Load the model of a captioner, or adapters on top of one, as the class of its family.

    Raises:
        ValueError: no family of captioners has models of this type or architecture.
    """
    adapters, base = find_adapter_config_file(source), source
    if adapters is not None:
        base = json.loads(Path(adapters).read_text(encoding="utf-8"))["base_model_name_or_path"]
    config: Any = AutoConfig.from_pretrained(base, trust_remote_code=False)
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(f"it is a model of the type {config.model_type!r}. A captioner is a {NAMES}.")
    if config.architectures and family.kind.__name__ not in config.architectures:
        raise ValueError(f"it is a {config.architectures[0]}. A captioner is a {NAMES}.")
    model = family.kind.from_pretrained(source, trust_remote_code=False)
    accept_maps(model)
    return model


def as_captioner(
    given: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: BaseImageProcessor | None = None,
) -> tuple[Any, PreTrainedTokenizerBase | None, BaseImageProcessor | None]:
    """Return a captioner with its processors. Missing ones are loaded from where the captioner was loaded from.

    Args:
        given: the captioner, or its name for `load_captioner`.
        tokenizer: its tokenizer, or None.
        image_processor: its image processor, or None.

    Returns:
        All three. A `given` that is not a captioner is returned unchanged, for `check_fit` to refuse.

    Raises:
        ValueError: a part cannot be loaded; the message names it.
    """
    if isinstance(given, (str, os.PathLike)):
        return load_captioner(given, tokenizer, image_processor)
    captioner = without_adapters(given)
    if isinstance(captioner, CAPTIONERS):
        accept_maps(captioner)
    needed = {"processing_class": tokenizer, "image_processor": image_processor}
    missing = " and ".join(name for name, processor in needed.items() if processor is None)
    if not missing or not isinstance(captioner, CAPTIONERS):
        return given, tokenizer, image_processor
    source = captioner.config._name_or_path
    if not source:
        raise ValueError(
            f"Pass {missing}: the model does not name a folder or Hub id that it was loaded from "
            "(model.config._name_or_path is empty)."
        )
    try:
        refuse_code(source)
        return given, *_processors(source, captioner, tokenizer, image_processor)
    except Exception as error:
        raise ValueError(
            f"Pass {missing}, which {source!r}, where the model was loaded from, does not have: {one_line(error)}"
        ) from error


def _processors(
    source: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    image_processor: BaseImageProcessor | None,
) -> tuple[PreTrainedTokenizerBase, BaseImageProcessor]:
    """Return both processors of a captioner; load those that are None.

    The published tokenizers of BLIP and GIT are BERT's, which name neither start nor end token: they are completed.
    """
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if not isinstance(model, VisionEncoderDecoderModel):
            complete_special_tokens(tokenizer)
    return tokenizer, load_image_processor(source) if image_processor is None else image_processor


def load_image_processor(source: str | os.PathLike[str], **place: Any) -> BaseImageProcessor:
    """Load a captioner's image processor so that all versions of transformers compute the same pixels.

    They equal those of `pipeline("image-to-text")` in transformers 4.57: resized by Pillow, or by torchvision if the
    processor was saved as a fast one.

    Args:
        source: a Hub id or a folder.
        place: further arguments of `AutoImageProcessor.from_pretrained`: `revision`, `token` ... Custom code is not
            run unless `trust_remote_code` is set.

    Raises:
        OSError: there is no image processor.
    """
    saved, _ = BaseImageProcessor.get_image_processor_dict(source, **place)
    fast = str(saved.get("image_processor_type")).endswith("Fast")
    # transformers 5 uses torchvision by default, whose pixels differ slightly from Pillow's, and renamed the argument.
    if find_spec("transformers.image_processing_backends"):
        choice: dict[str, Any] = {"backend": "torchvision" if fast else "pil"}
    else:
        choice = {"use_fast": fast}
    return AutoImageProcessor.from_pretrained(source, **{"trust_remote_code": False, **choice, **place})


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> None:
    """Save a tokenizer so that all versions of transformers can load it.

    transformers 5 renamed `PreTrainedTokenizerFast` and writes the new name, which 4.57 does not know.

    Raises:
        OSError: the folder cannot be written.
    """
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    text = path.read_text(encoding="utf-8").replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"')
    path.write_text(text, encoding="utf-8")


def save_processors(
    tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor, folder: str | os.PathLike[str]
) -> None:
    """Save both processors into a captioner's folder, so that ``pipeline("image-to-text")`` can load it.

    Raises:
        OSError: the folder cannot be written.
    """
    save_tokenizer(tokenizer, folder)
    image_processor.save_pretrained(folder)


def _exact_segformer(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    """Compute SegFormer attention with the rounding of transformers 4.57; for inference only, without dropout.

    transformers 5 multiplies by a reciprocal, or uses torch's attention, where 4.57 divided. The last bit differs, and
    may decide between two words. Query, key and value are `(batch, heads, positions, width)`.
    """
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class ImageToTextPipeline(Pipeline):
    """Captions images, for versions of transformers without this pipeline. Created by `pipeline`."""

    model: Any
    tokenizer: Any
    image_processor: Any

    _load_processor: Any = False
    _load_image_processor: Any = True
    _load_feature_extractor: Any = False
    _load_tokenizer: Any = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "task": TASK})

    def _sanitize_parameters(
        self,
        timeout: float | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **generation: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Split keyword arguments by step: loading, generating, decoding."""
        twice = generation.keys() & (generate_kwargs or {}).keys()
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: given both as an argument and inside generate_kwargs.")
        return {} if timeout is None else {"timeout": timeout}, {**generation, **(generate_kwargs or {})}, {}

    def preprocess(self, image: str | Image.Image, timeout: float | None = None) -> Any:  # type: ignore[override]
        """Load one image as `pixel_values` `(1, 3, height, width)`."""
        pixels = self.image_processor(images=load_image(image, timeout=timeout), return_tensors="pt")
        return pixels.to(self.model.dtype)

    def _forward(self, model_inputs: Any, **generation: Any) -> Tensor:  # type: ignore[override]
        """Generate token ids `(captions, length)`, starting with the start token."""
        saved, given = self.model.generation_config, generation.keys() & {*LENGTHS, "generation_config"}
        if not given and all(getattr(saved, name) in UNSET_LENGTHS for name in LENGTHS):
            generation["max_new_tokens"] = MAX_NEW_TOKENS
        return family_of(self.model).write(**model_inputs, **generation)

    def postprocess(self, model_outputs: Tensor) -> list[dict[str, str]]:  # type: ignore[override]
        """Decode the captions, without special tokens."""
        texts = (self.tokenizer.decode(token_ids, skip_special_tokens=True) for token_ids in model_outputs)
        return [{"generated_text": text} for text in texts]
