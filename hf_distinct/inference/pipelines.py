"""Captioners loaded alike by transformers 4.57 and 5: `pipeline("image-to-text")`, and image processors."""

from __future__ import annotations

import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from PIL import Image
from torch import Tensor
from transformers import (
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

from hf_distinct.captioner import without_adapters
from hf_distinct.files.model_names import shipped_or_named
from hf_distinct.files.safe_loading import refuse_code
from hf_distinct.text.problems import one_line

TASK = "image-to-text"
EXACT_SEGFORMER = "hf_distinct_segformer"
# Where neither the call nor the model says how long a caption may be, as in transformers 4.57. Up to there a
# `max_length` of 20 is what every model has of which nobody said anything.
MAX_NEW_TOKENS, UNSET_LENGTHS, LENGTHS = 256, (None, 20), ("max_length", "max_new_tokens")


def pipeline(task: str, model: str | os.PathLike[str] | PreTrainedModel, **settings: Any) -> Pipeline:
    """Load a captioner for use, by the same call and with the same captions on transformers 4.57 and 5.

    On 4.57 this is `transformers.pipeline`. transformers 5 took the task `"image-to-text"` away; what it puts in its
    place (`"image-text-to-text"`) wants a prompt, and cannot run a `VisionEncoderDecoderModel`.

        captioner = hf_distinct.pipeline("image-to-text", model="user/name")
        captioner("picture.png")                         # [{"generated_text": "a red kite over a beach"}]
        captioner(["a.png", "b.png"], batch_size=2)      # a list of such lists

    Args:
        task: `"image-to-text"`.
        model: Id on the Hub, folder, `"captioner"` (the one that the package ships), or a `VisionEncoderDecoderModel`
            with `tokenizer=` and `image_processor=`.
        settings: Those of `transformers.pipeline`: `device`, `dtype`, `batch_size`, `revision`, `token` ...; and those
            of `generate`, for all calls: `max_new_tokens`, `num_beams` ...

    Returns:
        A pipeline. It takes a path, a URL or a PIL picture, and gives `[{"generated_text": ...}]`; for a list of them
        a list of such lists, for a `torch.utils.data.Dataset` or a generator an iterator over them. A call may say
        `max_new_tokens`, `generate_kwargs`, `batch_size`, `num_workers` and `timeout` (seconds, for URLs).

    Raises:
        ValueError: Another task, or a model that brings code along, unless `trust_remote_code` says so.
        OSError: There is no such model.
    """
    if task != TASK:
        raise ValueError(
            f"hf_distinct.pipeline supports only the task {TASK!r}; transformers.pipeline may support {task!r}."
        )
    if isinstance(model, (str, os.PathLike)):
        model = shipped_or_named(model)
        if not settings.setdefault("trust_remote_code", False):
            refuse_code(model)
    make: Any = transformers.pipeline  # whose overloads are other ones in each version
    if TASK in get_supported_tasks():
        return make(TASK, model=model, **settings)
    if isinstance(model, str) and "image_processor" not in settings:
        place = {name: settings[name] for name in ("revision", "token", "trust_remote_code") if name in settings}
        settings["image_processor"] = load_image_processor(model, **place)
    # The other task's name makes transformers find models of this kind; the class does the work.
    found = make("image-text-to-text", model=model, pipeline_class=ImageToTextPipeline, **settings)
    encoder = getattr(found.model, "encoder", None)
    if encoder is not None and encoder.config.model_type == "segformer":
        transformers.AttentionInterface.register(EXACT_SEGFORMER, _exact_segformer)
        encoder.set_attn_implementation(EXACT_SEGFORMER)
    return found


def load_captioner(
    source: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: BaseImageProcessor | None = None,
) -> tuple[VisionEncoderDecoderModel, PreTrainedTokenizerBase, BaseImageProcessor]:
    """Load a captioner with its tokenizer and its image processor; code that it brings along is refused, never run.

    Args:
        source: Id on the Hub, folder, or `"captioner"` (the one that the package ships).
        tokenizer: Use this tokenizer instead of loading one.
        image_processor: Use this image processor instead of loading one.

    Raises:
        ValueError: There is no such model, a part of it is missing or damaged, or it brings code along. The message
            names it.
    """
    source = shipped_or_named(source)
    try:
        refuse_code(source)
        model: Any = VisionEncoderDecoderModel.from_pretrained(source, trust_remote_code=False)
        return model, *_processors(source, tokenizer, image_processor)
    except Exception as error:  # transformers and safetensors raise many kinds; each means that there is no captioner
        raise ValueError(f"Captioner {source!r} cannot be loaded: {one_line(error)}") from error


def as_captioner(
    given: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: BaseImageProcessor | None = None,
) -> tuple[Any, PreTrainedTokenizerBase | None, BaseImageProcessor | None]:
    """Return a captioner with its processors; what is missing is loaded from where the captioner comes from.

    Args:
        given: The captioner, or what `load_captioner` takes as its name.
        tokenizer: Its tokenizer, if you have it.
        image_processor: Its image processor, if you have it.

    Returns:
        The three of them. A `given` that is no captioner is returned as it is: `check_fit` refuses it.

    Raises:
        ValueError: A part cannot be loaded; the message names it.
    """
    if isinstance(given, (str, os.PathLike)):
        return load_captioner(given, tokenizer, image_processor)
    captioner = without_adapters(given)
    needed = {"processing_class": tokenizer, "image_processor": image_processor}
    missing = " and ".join(name for name, processor in needed.items() if processor is None)
    if not missing or not isinstance(captioner, VisionEncoderDecoderModel):
        return given, tokenizer, image_processor
    source = captioner.config._name_or_path
    if not source:
        raise ValueError(
            f"Pass {missing}: the model does not name a folder or Hub id that it was loaded from "
            "(model.config._name_or_path is empty)."
        )
    try:
        refuse_code(source)
        return given, *_processors(source, tokenizer, image_processor)
    except Exception as error:
        raise ValueError(
            f"Pass {missing}, which {source!r}, where the model was loaded from, does not have: {one_line(error)}"
        ) from error


def _processors(
    source: str, tokenizer: PreTrainedTokenizerBase | None, image_processor: BaseImageProcessor | None
) -> tuple[PreTrainedTokenizerBase, BaseImageProcessor]:
    """Both processors of a captioner; those that are not given are loaded."""
    if tokenizer is None:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    return tokenizer, load_image_processor(source) if image_processor is None else image_processor


def load_image_processor(source: str | os.PathLike[str], **place: Any) -> BaseImageProcessor:
    """Load a captioner's image processor, such that every transformers makes the same pixels of a picture.

    They are those of `pipeline("image-to-text")` of transformers 4.57: scaled by Pillow, or by torchvision where the
    processor was saved as a fast one.

    Args:
        source: Id on the Hub, or folder.
        place: What else `AutoImageProcessor.from_pretrained` takes: `revision`, `token` ... Code that a download
            brings along is not run, unless `trust_remote_code` says so.

    Raises:
        OSError: There is none.
    """
    saved, _ = BaseImageProcessor.get_image_processor_dict(source, **place)
    fast = str(saved.get("image_processor_type")).endswith("Fast")
    # transformers 5 always takes torchvision unless told, whose pixels are not quite Pillow's, and renamed the switch.
    if find_spec("transformers.image_processing_backends"):
        choice: dict[str, Any] = {"backend": "torchvision" if fast else "pil"}
    else:
        choice = {"use_fast": fast}
    return AutoImageProcessor.from_pretrained(source, **{"trust_remote_code": False, **choice, **place})


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: str | os.PathLike[str]) -> None:
    """Save a tokenizer, such that every transformers loads it.

    transformers 5 gave `PreTrainedTokenizerFast` another name, which it writes down, and 4.57 looks for in vain.

    Raises:
        OSError: The folder cannot be written.
    """
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    text = path.read_text(encoding="utf-8").replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"')
    path.write_text(text, encoding="utf-8")


def save_processors(
    tokenizer: PreTrainedTokenizerBase, image_processor: BaseImageProcessor, folder: str | os.PathLike[str]
) -> None:
    """Save both processors of a captioner beside it, so that ``pipeline("image-to-text")`` loads it.

    Raises:
        OSError: The folder cannot be written.
    """
    save_tokenizer(tokenizer, folder)
    image_processor.save_pretrained(folder)


def _exact_segformer(module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Any:
    """A SegFormer's attention as it is rounded in transformers 4.57; for use, not for training: without dropout.

    5 multiplies by a reciprocal, or leaves it to torch, where 4.57 divided: another last bit, which may decide between
    two words. Query, key and value are `(batch, heads, positions, width)`.
    """
    weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class ImageToTextPipeline(Pipeline):
    """Captions of pictures, where transformers has no such class (any more). Made by `pipeline`."""

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
        """What a step is told: loading, generating, decoding."""
        twice = generation.keys() & (generate_kwargs or {}).keys()
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: given both as an argument and inside generate_kwargs.")
        return {} if timeout is None else {"timeout": timeout}, {**generation, **(generate_kwargs or {})}, {}

    def preprocess(self, image: str | Image.Image, timeout: float | None = None) -> Any:  # type: ignore[override]
        """Pixels of one picture, `pixel_values` `(1, 3, height, width)`."""
        pixels = self.image_processor(images=load_image(image, timeout=timeout), return_tensors="pt")
        return pixels.to(self.model.dtype)

    def _forward(self, model_inputs: Any, **generation: Any) -> Tensor:  # type: ignore[override]
        """Token ids `(captions, length)`, the start token first."""
        saved, told = self.model.generation_config, generation.keys() & {*LENGTHS, "generation_config"}
        if not told and all(getattr(saved, name) in UNSET_LENGTHS for name in LENGTHS):
            generation["max_new_tokens"] = MAX_NEW_TOKENS
        return self.model.generate(**model_inputs, **generation)

    def postprocess(self, model_outputs: Tensor) -> list[dict[str, str]]:  # type: ignore[override]
        """The texts, without special tokens."""
        texts = (self.tokenizer.decode(token_ids, skip_special_tokens=True) for token_ids in model_outputs)
        return [{"generated_text": text} for text in texts]
