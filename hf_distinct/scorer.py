"""ClipScorer: a frozen open_clip model with its own tokenizer and transform, as a judge of images and texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

SHIPPED = Path(__file__).parent / "models"


def clean_caption(caption: str) -> str:
    """A caption as CLIP shall read it: white space stripped, the final full stop removed."""
    caption = caption.strip()
    return caption[:-1].rstrip() if caption.endswith(".") else caption


def shipped(name: str) -> str:
    """Where a model that the package ships lies: ``"captioner"``, ``"scorer"``, ``"truth_scorer"`` or ``"judge"``."""
    folder = SHIPPED / name
    if not folder.is_dir():
        raise ValueError(
            f"hf_distinct ships no model {name!r}; it ships {', '.join(sorted(p.name for p in SHIPPED.glob('*')))}."
        )
    return str(folder)


def shipped_or_named(name: str) -> str:
    """The folder of a shipped model by its short name; any other name, ``./scorer`` included, as it is."""
    return shipped(name) if name and Path(name).name == name and (SHIPPED / name).is_dir() else name


def encode_token_ids(model: Any, token_ids: Tensor, bucket: int = 128) -> Tensor:
    """Text features of a CLIP model, without computing what lies behind each text's end token.

    open_clip pads every text to the full context. With causal attention and pooling at the end token (the native text
    tower) nothing behind that token reaches the features, so texts are sorted by length and each bucket is cut to its
    longest. Towers of other kinds get the padded batch.

    Args:
        model: an open_clip model.
        token_ids: ``(n, context)``.
        bucket: texts computed together.

    Returns:
        Features ``(n, d)``, not normalised.
    """
    if type(model) is not open_clip.CLIP or model.text_pool_type != "argmax" or model.attn_mask is None:
        return model.encode_text(token_ids)
    lengths = token_ids.argmax(dim=-1) + 1
    order = lengths.argsort()
    features = []
    for rows in order.split(bucket):
        length = int(lengths[rows[-1]])
        ids = token_ids[rows, :length]
        hidden = model.token_embedding(ids) + model.positional_embedding[:length]
        hidden = model.transformer(hidden, attn_mask=model.attn_mask[:length, :length])
        hidden = model.ln_final(hidden[torch.arange(len(rows), device=ids.device), lengths[rows] - 1])
        if (projection := model.text_projection) is not None:
            hidden = projection(hidden) if isinstance(projection, nn.Linear) else hidden @ projection
        features.append(hidden)
    return torch.cat(features)[order.argsort()]


def _tokenizer(name: str) -> Any:
    """The tokenizer of a model; without the code that its config may bring along, and may ask to be trusted with."""
    try:
        return open_clip.get_tokenizer(name, trust_remote_code=False)
    except TypeError as error:
        if "trust_remote_code" not in str(error):
            raise
        return open_clip.get_tokenizer(name)  # open_clip's own one, which knows nothing of the kind


class ClipScorer:
    """An open_clip model that embeds images and captions, frozen, in eval mode, without gradient.

    Args:
        name: any open_clip name (``"ViT-B-32"``), ``"local-dir:PATH"``, ``"hf-hub:ID"``, or the path of a folder that
            holds ``open_clip_config.json``.
        pretrained: weights for a plain name: a tag of open_clip (``"openai"``) or a checkpoint file. A plain name may
            also carry it behind a colon: ``"ViT-B-32:openai"``.
        device: where it lives.

    Attributes:
        name: the name it was made from.
        embed_dim: d, the width of the embeddings.
        logit_scale: s, the exponential of the learned log scale (about 100 for the published models).
        transform: turns an RGB ``PIL.Image`` into a tensor ``(3, height, width)``.
        fingerprint: hexadecimal digest of weights, architecture, transform and tokenizer; equal only where embeddings
            are equal.

    Raises:
        ValueError: if no such model can be loaded; the message holds the reason.
    """

    def __init__(self, name: str, pretrained: str | None = None, device: str | torch.device = "cpu"):
        self.name = name
        if ":" in name and not name.startswith(("local-dir:", "hf-hub:")) and not Path(name).exists():
            name, pretrained = name.split(":", 1)
        elif Path(name).is_dir():
            name = f"local-dir:{name}"
        local = name.startswith("local-dir:")
        if not local and not name.startswith("hf-hub:"):
            if "/" in name or name not in open_clip.list_models():
                raise ValueError(
                    f"Scorer {self.name!r} is neither a folder with an open_clip model nor an open_clip model name."
                )
            if pretrained is None:
                raise ValueError(
                    f"Scorer {self.name!r} names an architecture without weights; "
                    f"add a tag or a checkpoint file, as in '{name}:openai'."
                )
        try:
            # Unlike create_model_and_transforms, it never falls back to random weights.
            model, self.transform = open_clip.create_model_from_pretrained(name, pretrained=pretrained)
            self.tokenizer = _tokenizer(name)
        except Exception as error:  # open_clip raises many kinds; each means that there is no scorer
            raise ValueError(f"Scorer {self.name!r} cannot be loaded: {error}") from error
        self.device = torch.device(device)
        self.model: Any = model.eval().requires_grad_(False).to(self.device)
        self.logit_scale = float(self.model.logit_scale.exp())
        with torch.no_grad():
            self.embed_dim = int(self.encode_texts(["a"]).shape[-1])
        self.fingerprint = self._fingerprint()

    def _fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.transform).encode())
        # The same weights mean something else under another activation (ViT-B-32 and ViT-B-32-quickgelu).
        digest.update(repr(self.model).encode())
        digest.update(self.tokenizer(["Two dogs, 3 red kites & a café."]).numpy().tobytes())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def to(self, device: str | torch.device) -> ClipScorer:
        """Move the model; returns itself."""
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
        return F.normalize(self.model.encode_image(pixel_values.to(self.device)).float(), dim=-1)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embed captions, cleaned by :func:`clean_caption`.

        The tokenizer is the model's own: it cuts a long text so that the end token stays.

        Returns:
            Unit vectors ``(n, d)``, float32.
        """
        if len(texts) == 0:
            return torch.empty(0, self.embed_dim, device=self.device)
        cleaned = [clean_caption(text) for text in texts]
        features = [
            encode_token_ids(self.model, self.tokenizer(cleaned[i : i + batch_size]).to(self.device))
            for i in range(0, len(cleaned), batch_size)
        ]
        return F.normalize(torch.cat(features).float(), dim=-1)


def load_clip(name: str) -> ClipScorer:
    """A shipped CLIP by its short name (``"scorer"``, ``"judge"``), or whatever [`ClipScorer`] loads."""
    return ClipScorer(shipped_or_named(name))


def save_open_clip(
    model: nn.Module, folder: str | Path, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any]
) -> None:
    """Write a model as ``local-dir:`` reads it: config and weights (half precision, safetensors).

    Args:
        model: an open_clip model.
        folder: where to; the tokenizer's files belong there too if ``model_cfg`` names one.
        model_cfg: the architecture, as open_clip's JSON configurations have it.
        preprocess_cfg: ``mean``, ``std``, ``size``, ``interpolation``, ``resize_mode``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    weights = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
    save_file(weights, folder / "open_clip_model.safetensors")
