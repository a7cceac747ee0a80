"""ClipScorer: a frozen open_clip model with its own tokenizer and transform, which scores images and texts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from torch import Tensor, nn

from hf_distinct.clip.loading import CONFIG, SCHEMES, WEIGHTS, load_open_clip, save_text_tower
from hf_distinct.fast.text_tower import encode_token_ids
from hf_distinct.files.model_names import shipped, shipped_or_named
from hf_distinct.text.problems import one_line

__all__ = [
    "ClipScorer", "clean_caption", "encode_token_ids", "save_open_clip", "scorer_problems", "shipped",
    "shipped_or_named",
]  # fmt: skip

TRIAL = "Two dogs, 3 red kites & a café."
"""A text with words, digits and signs that few tokenizers treat alike."""


def clean_caption(caption: str) -> str:
    """Prepare a caption for CLIP: strip white space and remove the final full stop."""
    caption = caption.strip()
    return caption[:-1].rstrip() if caption.endswith(".") else caption


class ClipScorer:
    """An open_clip model that embeds images and captions: frozen, in eval mode, without gradient.

    Embeddings are those of the published model: a pretrained tag determines activation and transform, and a folder's
    config determines its own. Code that comes with a model is never run.

    Args:
        name: an architecture of open_clip with a tag or a checkpoint file (``"ViT-B-32:openai"``,
            ``"ViT-B-32-quickgelu:FILE"``), a folder with ``open_clip_config.json``, ``"local-dir:FOLDER"``,
            ``"hf-hub:ID"``, or the short name of a shipped model (``"scorer"``, ``"truth_scorer"``, ``"judge"``).
        pretrained: the tag or file, if ``name`` is an architecture alone.
        device: the device that the model is moved to.

    Attributes:
        name: the name that it was created with.
        embed_dim: d, the width of the embeddings.
        context_length: maximum number of tokens per caption, special tokens included; longer captions are truncated.
        logit_scale: s, the exponential of the learned log scale (about 100 for published models). SigLIP's
            ``logit_bias`` cancels in every reward and is not used.
        model_cfg: the architecture as it was built, for [`save_open_clip`].
        transform: turns an RGB ``PIL.Image`` into a tensor ``(3, height, width)``.
        fingerprint: hexadecimal digest of weights, architecture, transform and tokenizer; equal only where embeddings
            are equal.

    Raises:
        ValueError: if there is no such model, it needs custom code, or its tokenizer and text tower do not match; the
            message gives the reason.
    """

    def __init__(
        self,
        name: str | os.PathLike[str],
        pretrained: str | os.PathLike[str] | None = None,
        device: str | torch.device = "cpu",
    ):
        self.name = shipped_or_named(name)
        source, weights = self.name, None if pretrained is None else os.fspath(pretrained)
        if Path(source).is_dir():
            source = f"local-dir:{source}"
        elif ":" in source and not source.startswith(SCHEMES):
            source, weights = source.split(":", 1)
        try:
            loaded = load_open_clip(source, weights)
        except Exception as error:  # open_clip raises many types
            raise ValueError(f"Scorer {self.name!r} cannot be loaded: {one_line(error)}") from error
        self.transform, self.tokenizer, self.model_cfg = loaded.transform, loaded.tokenizer, loaded.model_cfg
        self.device = torch.device(device)
        self.model: Any = loaded.model.eval().requires_grad_(False)
        # channels_last makes EfficientNets 1.4 times as fast. OpenAI's towers stay as they are, to the bit.
        convolutions = sum(isinstance(module, nn.Conv2d) for module in self.model.visual.modules())
        of_timm = isinstance(self.model.visual, TimmModel) and convolutions > 1
        self.memory_format = torch.channels_last if of_timm else torch.contiguous_format
        self.model.visual.to(memory_format=self.memory_format)
        self.model.to(self.device)
        self.context_length = int(self.tokenizer.context_length)
        self.logit_scale = float(self.model.logit_scale.exp())
        self._check_tokenizer()
        self.embed_dim = int(self.encode_texts(["a"]).shape[-1])
        self.fingerprint = self._fingerprint()

    def _check_tokenizer(self) -> None:
        """Check that the tokenizer works, and that the text tower can read all that it returns."""
        rows = int(self.model.vocab_size if hasattr(self.model, "vocab_size") else self.model.text.vocab_size)
        own = getattr(self.tokenizer, "tokenizer", None)
        tokens = self.tokenizer.vocab_size if own is None else len(own)
        if tokens > rows:
            raise ValueError(f"Scorer {self.name!r}: its tokenizer has {tokens} tokens, its text tower {rows} rows.")
        try:
            token_ids = self.tokenize(["a " * self.context_length, TRIAL])
        except BaseException as error:  # a panic of the Rust tokenizers is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise ValueError(f"Scorer {self.name!r}: its tokenizer cannot read a text: {one_line(error)}") from error
        try:
            self.encode_tokens(token_ids)
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"Scorer {self.name!r} cannot read a text of {self.context_length} tokens, the context_length of its "
                f"config: {one_line(error)}"
            ) from error

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.transform).encode())
        # The activation matters too: ViT-B-32 and ViT-B-32-quickgelu may have the same weights.
        digest.update(repr(self.model).encode())
        digest.update(self.tokenizer([TRIAL]).numpy().tobytes())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: str | torch.device) -> ClipScorer:
        """Move the model to a device; returns the scorer itself."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    @torch.no_grad()
    def encode_images(self, pixel_values: Tensor) -> Tensor:
        """Embed images.

        Args:
            pixel_values: ``(n, 3, height, width)``, from :attr:`transform`.

        Returns:
            Unit vectors ``(n, d)``, float32.
        """
        pixels = pixel_values.to(self.device, non_blocking=True, memory_format=self.memory_format)
        return F.normalize(self.model.encode_image(pixels).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embed captions, cleaned by :func:`clean_caption`.

        Long captions are truncated by the model's own tokenizer, which keeps the end token.

        Returns:
            Unit vectors ``(n, d)``, float32.
        """
        return self.encode_tokens(self.tokenize(texts), batch_size)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the token ids ``(n, context_length)`` of captions, cleaned by :func:`clean_caption`, on the CPU."""
        if len(texts) == 0:
            return torch.empty(0, self.context_length, dtype=torch.int64)
        return self.tokenizer([clean_caption(text) for text in texts])

    @torch.no_grad()
    def encode_tokens(self, token_ids: Tensor, batch_size: int = 256) -> Tensor:
        """Embed the output of [`tokenize`]; see [`encode_texts`]."""
        if len(token_ids) == 0:
            return torch.empty(0, self.embed_dim, device=self.device)
        features = [encode_token_ids(self.model, ids) for ids in token_ids.split(batch_size)]
        return F.normalize(torch.cat(features).float(), dim=-1)

    def encode_captions(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embed captions as [`encode_texts`] does, each distinct one once, and tell which of them are truncated.

        Returns:
            Unit vectors ``(n, d)``, float32, and ``(n,)`` bool, on the CPU; see [`is_cut`].
        """
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        places = torch.tensor([distinct[text] for text in texts], dtype=torch.int64)
        token_ids = self.tokenize(list(distinct))
        embeds, cut = self.encode_tokens(token_ids), self.is_cut(list(distinct), token_ids)
        return embeds[places.to(embeds.device, non_blocking=True)], cut[places]

    def is_cut(self, texts: Sequence[str], token_ids: Tensor) -> Tensor:
        """Return which captions are truncated. Captions that differ only after the limit get the same embedding.

        Args:
            texts: n captions.
            token_ids: the output of [`tokenize`] for them.

        Returns:
            ``(n,)`` bool, on the CPU.
        """
        cut = self._count(token_ids) >= self.context_length - 1  # full, if padding is not also the end token
        if full := cut.nonzero().flatten().tolist():
            longer = self.tokenizer([clean_caption(texts[row]) for row in full], self.context_length + 1)
            cut[full] = self._count(longer) > self._count(token_ids[full])
        return cut

    def _count(self, token_ids: Tensor) -> Tensor:
        """Count the tokens of each row that are not padding: ``(n,)``."""
        own = getattr(self.tokenizer, "tokenizer", None)
        return (token_ids != (0 if own is None else own.pad_token_id)).sum(dim=1)


def as_scorer(given: Any) -> ClipScorer:
    """Return a scorer unchanged, or load the scorer that a name stands for.

    Raises:
        ValueError: it is neither a scorer nor a name; or see [`ClipScorer`].
    """
    if not isinstance(given, (ClipScorer, str, os.PathLike)):
        raise ValueError(f"scorer should be a ClipScorer or the name of one, not a {type(given).__name__}.")
    return given if isinstance(given, ClipScorer) else ClipScorer(given)


def scorer_problems(scorer: ClipScorer, max_new_tokens: int) -> Iterator[str]:
    """Yield a warning if captions may be longer than the scorer reads. Most captions are shorter, so it is no error.

    Args:
        scorer: the CLIP model.
        max_new_tokens: the maximum caption length in the captioner's tokens, which may differ from the scorer's.
    """
    if max_new_tokens > scorer.context_length:
        yield (
            f"Captions may have max_new_tokens={max_new_tokens} tokens, but the scorer {scorer.name!r} reads only "
            f"{scorer.context_length}, so captions that differ later get the same reward. Lower max_new_tokens, or "
            "use a scorer with a longer context_length."
        )


def save_open_clip(
    model: nn.Module, folder: str | Path, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]
) -> None:
    """Write a model in the format that ``local-dir:`` loads: config and weights (half precision, safetensors).

    Loading the folder needs no network and no code: the config of a Hugging Face text tower is saved, too.

    Args:
        model: an open_clip model.
        folder: where to write. If ``model_cfg`` names a tokenizer, save its files there first.
        model_cfg: the architecture in the format of open_clip's JSON configs, such as `ClipScorer.model_cfg`.
        preprocess_cfg: ``mean``, ``std``, ``size``, ``interpolation``, ``resize_mode``.

    Raises:
        ValueError: if ``model_cfg`` names a tokenizer and its files are not in the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = model_cfg["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and not (folder / "tokenizer_config.json").is_file():
        raise ValueError(
            f"{folder} lacks the files of the tokenizer {tokenizer!r} that the model's text_cfg names. "
            "Save it there first: tokenizer.save_pretrained(folder)."
        )
    config = {"model_cfg": save_text_tower(model, model_cfg, folder), "preprocess_cfg": preprocess_cfg}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: _halved(value) for name, value in model.state_dict().items()}, folder / WEIGHTS)


def _halved(value: Tensor) -> Tensor:
    """Convert a weight to half precision, unless its values overflow (variances of a batch norm may)."""
    value = value.detach().cpu().contiguous()
    half = value.half() if value.is_floating_point() else value
    return half if half.isfinite().all() or not value.isfinite().all() else value
