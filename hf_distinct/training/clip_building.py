"""Build a CLIP model to train (small, from pretrained towers, or published), and save it."""

from __future__ import annotations

import copy
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import open_clip
from open_clip.hf_configs import arch_dict
from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import AugmentationCfg, PreprocessCfg, image_transform_v2
from torch import Tensor, nn
from transformers import AutoConfig

from hf_distinct.clip.image_towers import load_image_tower
from hf_distinct.data.tower_features import Views
from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.files.disk_space import named_errors
from hf_distinct.files.model_names import packaged
from hf_distinct.files.parts import written_together
from hf_distinct.files.safe_loading import refuse_code
from hf_distinct.scorer import ClipScorer, encode_token_ids, one_line, save_open_clip

PREPROCESS = ("size", "mean", "std", "interpolation", "resize_mode")
WORDS_READ = 24
"""Context of a word-level text tower, special tokens included."""
TOKENS_READ = 64
"""Context of a Hugging Face text tower: all of Flickr8k's 40,000 captions have fewer BERT tokens."""


@dataclass
class TrainedClip:
    """An open_clip model with its configuration and tokenizer.

    Attributes:
        model: the model, trainable.
        model_cfg: its architecture, in the format of open_clip's JSON files.
        preprocess_cfg: the image preprocessing.
        tokenize: turns n texts into token ids ``(n, context)``.
    """

    model: Any
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenize: Any

    def transform(self, augmentation: dict[str, Any] | None = None) -> Callable:
        """Return the transform of an RGB image to pixels; with ``augmentation``, open_clip's ``aug_cfg``, random."""
        random = augmentation is not None
        return image_transform_v2(PreprocessCfg(**self.preprocess_cfg), is_train=random, aug_cfg=augmentation)

    def views(
        self, augmentation: dict[str, Any] | None = None, mirror: bool = False, count: int | None = None
    ) -> Views:
        """Return the views of an image in training; see [`hf_distinct.data.tower_features.Views`]."""
        augmented = None if augmentation is None else self.transform(augmentation)
        described = json.dumps([self.preprocess_cfg, augmentation])
        return Views(self.transform(), augmented, mirror, count, described)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write all files that open_clip loads by ``local-dir:FOLDER``, without a network.

        An earlier model in the folder is kept until the new one is complete.

        Raises:
            OSError: the folder could not be written.
        """
        with named_errors(folder), written_together(Path(folder)) as unfinished:
            if hasattr(self.tokenize, "save_pretrained"):  # save_open_clip needs these files
                self.tokenize.save_pretrained(unfinished)
            save_open_clip(self.model, unfinished, self.model_cfg, self.preprocess_cfg)


def read_augmentation(given: str | None) -> dict[str, Any] | None:
    """Read the JSON of open_clip's ``aug_cfg``; None stays None.

    Raises:
        ValueError: if it is not JSON.
        TypeError: if it is not an object, or has settings that open_clip does not know; the message names them.
    """
    if given is None:
        return None
    settings = json.loads(given)
    AugmentationCfg(**settings)
    return settings


def small_clip(vision_cfg: dict[str, Any], embed_dim: int, captions: list[str]) -> TrainedClip:
    """Create a new CLIP: any image tower of open_clip, and a small text tower with the words of ``captions``.

    Args:
        vision_cfg: the image tower, in the format of open_clip's JSON files.
        embed_dim: width of the embeddings.
        captions: texts whose words form the vocabulary.
    """
    text_cfg, tokenize = _word_level(captions)
    model_cfg = {"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    preprocess = PreprocessCfg(size=vision_cfg["image_size"], mean=(0.5,) * 3, std=(0.25,) * 3)
    return TrainedClip(
        open_clip.CLIP(**model_cfg), model_cfg, {k: getattr(preprocess, k) for k in PREPROCESS}, tokenize
    )


def clip_of_towers(
    image_tower: str,
    image_weights: str | None,
    text_tower: str | None,
    embed_dim: int,
    projection: str,
    dropout: float,
    captions: list[str],
) -> TrainedClip:
    """Create a CLIP from a pretrained image tower and a pretrained or new text tower.

    Images are resized to a square without cropping, so that the model sees the whole image.

    Args:
        image_tower: name of a timm model.
        image_weights: see [`hf_distinct.clip.image_towers.load_image_tower`].
        text_tower: folder, Hub id or ``package:NAME/FOLDER`` of a transformers encoder, whose token embeddings are
            averaged. None: a small word-level tower with the words of ``captions``.
        embed_dim: width of the embeddings.
        projection: head of each pretrained tower, ``"linear"`` or ``"mlp"``.
        dropout: dropout of the image tower's features in training.
        captions: texts whose words form the vocabulary, if there is no ``text_tower``.

    Raises:
        ValueError: if a tower cannot be loaded, or open_clip does not support its type.
    """
    tower: Any = load_image_tower(image_tower, image_weights)
    size = tower.pretrained_cfg["input_size"][-1]
    vision_cfg = {
        "timm_model_name": image_tower, "timm_pool": "", "timm_proj": projection, "timm_drop": dropout,
        "image_size": size,
    }  # fmt: skip
    text_cfg, tokenize = _word_level(captions) if text_tower is None else _hugging_face(text_tower, projection)
    model_cfg = {"embed_dim": embed_dim, "vision_cfg": vision_cfg, "text_cfg": text_cfg}
    kind = open_clip.CLIP if text_tower is None else open_clip.CustomTextCLIP
    model: Any = kind(**model_cfg)
    if text_tower is not None:
        text_cfg["hf_tokenizer_name"] = Path(text_cfg["hf_tokenizer_name"]).name  # read from the model's own folder
    if projection == "mlp" and dropout:  # open_clip has dropout inside an MLP, but none on the features that it reads
        layers: dict[str, nn.Module] = {"drop": nn.Dropout(dropout), **dict(model.visual.head.named_children())}
        model.visual.head = nn.Sequential(OrderedDict(layers))
    trunk = model.visual.trunk
    trunk.load_state_dict({name: value for name, value in tower.state_dict().items() if name in trunk.state_dict()})
    how = tower.pretrained_cfg
    interpolation = (
        how["interpolation"] if how["interpolation"] == "bilinear" else "bicubic"
    )  # the interpolations that open_clip has
    preprocess_cfg = dict(zip(PREPROCESS, (size, how["mean"], how["std"], interpolation, "squash"), strict=True))
    return TrainedClip(model, model_cfg, preprocess_cfg, tokenize)


def tell_places_apart(model: Any, scale: float = 10.0) -> None:
    """Scale up the initial positions of an attention pool, so that its heads attend to different places.

    At the usual scale every head begins by averaging over the image, and left and right are learned only after a long
    plateau, if at all.

    Raises:
        ValueError: the image tower has no attention pool.
    """
    ends = ("attnpool.positional_embedding", "pool.pos_embed")
    found = [parameter for name, parameter in model.visual.named_parameters() if name.endswith(ends)]
    if not found:
        raise ValueError("--spread_positions has no effect on an image tower without an attention pool: leave it out.")
    for parameter in found:
        parameter.data.mul_(scale)


def published_clip(name: str) -> TrainedClip:
    """Return a trained CLIP to continue from, by any name that [`hf_distinct.ClipScorer`] accepts."""
    clip = clip_of(ClipScorer(name))
    clip.model.requires_grad_(True)
    return clip


def clip_of(scorer: ClipScorer) -> TrainedClip:
    """Return the model of a scorer with all that is saved with it."""
    model = scorer.model
    preprocess_cfg = {key: value for key, value in model.visual.preprocess_cfg.items() if key in PREPROCESS}
    return TrainedClip(model, scorer.model_cfg, preprocess_cfg, scorer.tokenizer)


def _word_level(captions: list[str]) -> tuple[dict[str, Any], Any]:
    """Return config and tokenizer of a small text tower."""
    tokenizer = build_word_tokenizer(captions, max_length=WORDS_READ)
    text: dict[str, Any] = {
        "context_length": WORDS_READ, "vocab_size": len(tokenizer), "width": 128, "heads": 4, "layers": 2,
    }  # fmt: skip
    text["hf_tokenizer_name"] = "word-level"  # read from the model's own folder
    with TemporaryDirectory() as folder:  # output_dir may contain a good model until this one is saved
        tokenizer.save_pretrained(folder)
        return text, HFTokenizer(folder, context_length=WORDS_READ)


def _hugging_face(name: str, projection: str) -> tuple[dict[str, Any], Any]:
    """Return config and tokenizer of a transformers text tower."""
    source = packaged(name)
    refuse_code(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenize = HFTokenizer(source, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise ValueError(f"--text_tower {name} cannot be loaded: {one_line(error)}") from error
    if config.model_type not in arch_dict:
        known = ", ".join(sorted(arch_dict))
        raise ValueError(
            f"--text_tower {name} is a {config.model_type}, but open_clip supports only these text towers: {known}."
        )
    tokenize.context_length = min(TOKENS_READ, getattr(config, "max_position_embeddings", TOKENS_READ))
    text = {
        "hf_model_name": source, "hf_tokenizer_name": source, "hf_pooler_type": "mean_pooler",
        "hf_proj_type": projection, "context_length": tokenize.context_length,
    }  # fmt: skip
    return text, tokenize


@dataclass
class Tower:
    """The pretrained part of one side of a CLIP, which can be frozen; a separate projection remains trainable.

    Attributes:
        modules: its modules.
        parameters: all of its weights.
    """

    modules: list[nn.Module]
    parameters: list[nn.Parameter]

    def freeze(self, frozen: bool) -> None:
        """Freeze weights and BatchNorm statistics and turn off dropout; or make the weights trainable again."""
        for parameter in self.parameters:
            parameter.requires_grad_(not frozen)
        if frozen:
            for module in self.modules:
                module.eval()

    def keep_statistics(self) -> None:
        """Keep BatchNorm statistics, which come from far more images than a batch has."""
        for module in self.modules:
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()


def image_tower_of(model: Any, thawed: int = 0) -> Tower:
    """Return the trunk of a timm tower, without its last ``thawed`` stages, or all of another image tower."""
    part, _ = split_image_tower(model, thawed)
    return Tower([part], list(part.parameters()))


def split_image_tower(model: Any, thawed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Split the image tower into two consecutive modules.

    Args:
        model: an open_clip model.
        thawed: number of the last stages of a timm tower that belong to the second module, which ends with the
            projection.

    Returns:
        The module that can be frozen, and the module that is always trained.

    Raises:
        ValueError: the tower has no stages, or too few.
    """
    if not isinstance(model.visual, TimmModel):
        if thawed:
            raise ValueError(
                "--image_thawed_stages needs a timm image tower: leave it out to train all of the tower."
            )
        return model.visual, nn.Identity()
    trunk, head = model.visual.trunk, model.visual.head
    if not thawed:
        return trunk, head
    if not hasattr(trunk, "as_sequential"):
        raise ValueError(f"--image_thawed_stages cannot divide a {type(trunk).__name__}: thaw all of it, or nothing.")
    layers = list(trunk.as_sequential())
    stages = [place for place, layer in enumerate(layers) if _is_stage(layer)]
    if thawed >= len(stages):
        raise ValueError(
            f"image_thawed_stages={thawed} should be less than the {len(stages)} stages of the image tower."
        )
    return nn.Sequential(*layers[: stages[-thawed]]), nn.Sequential(*layers[stages[-thawed] :], head)


class FrozenText(nn.Module):
    """A Hugging Face text tower without its projection: token ids ``(n, context)`` to features ``(n, width)``.

    Args:
        model: an open_clip model with such a tower.

    Raises:
        ValueError: its text tower is of another kind.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        if not isinstance(getattr(model, "text", None), HFTextEncoder):
            raise ValueError("--cached_captions needs a Hugging Face text tower: set --text_tower, or leave it out.")
        self.transformer = model.text.transformer
        text = copy.copy(model.text)
        text._modules = {**text._modules, "proj": nn.Identity()}
        unprojected = copy.copy(model)
        unprojected._modules = {**unprojected._modules, "text": text}
        self._unprojected = [unprojected]  # in a list, so that its weights are not taken for this module's

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the features of texts before the projection."""
        return encode_token_ids(self._unprojected[0], token_ids)


def _is_stage(layer: nn.Module) -> bool:
    """Whether a layer has weights and is not a BatchNorm, which belongs to the layer before it."""
    return any(True for _ in layer.parameters()) and not isinstance(layer, nn.modules.batchnorm._BatchNorm)


def text_tower_of(model: Any) -> Tower:
    """Return the transformer of a Hugging Face tower, or all of another text tower."""
    if isinstance(model, open_clip.CLIP):
        modules = [model.token_embedding, model.transformer, model.ln_final]
        inner = [parameter for module in modules for parameter in module.parameters()]
        own = [model.positional_embedding, model.text_projection]
        own = [each for part in own for each in ([part] if isinstance(part, nn.Parameter) else part.parameters())]
        return Tower(modules, inner + own)
    part = model.text.transformer if isinstance(model.text, HFTextEncoder) else model.text
    return Tower([part], list(part.parameters()))
