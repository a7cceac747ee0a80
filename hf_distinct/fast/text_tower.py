"""CLIP reads texts up to their end token instead of the full context, if this gives the same features."""

from __future__ import annotations

from functools import partial
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from hf_distinct.fast import usable
from hf_distinct.fast.trial_model import same


def encode_token_ids(model: Any, token_ids: Tensor, bucket: int = 128) -> Tensor:
    """Compute text features of a CLIP model, without computing what follows each text's end token.

    open_clip pads every text to the full context. With causal attention and pooling at the end token (OpenAI's text
    tower), tokens after it do not affect the features; a Hugging Face tower masks padding. For these, texts are sorted
    by length, and each bucket is cut to its longest text. Other towers get the padded batch.

    Args:
        model: an open_clip model.
        token_ids: ``(n, context)``, on any device. On the CPU their lengths are known without waiting for the model's
            device, which is faster.
        bucket: number of texts per forward pass.

    Returns:
        Features ``(n, d)``, not normalised, on the model's device.
    """
    device = model.logit_scale.device
    if not usable("text_tower", _trial):
        return model.encode_text(token_ids.to(device))
    tower = model if type(model) is open_clip.CLIP else getattr(model, "text", None)
    if isinstance(tower, HFTextEncoder):
        real = token_ids != tower.config.pad_token_id
        places = torch.arange(1, token_ids.shape[1] + 1, device=token_ids.device)
        lengths, encode = (real * places).amax(dim=1).clamp_min(1), model.encode_text
    elif _reads_only_to_the_end(tower):
        lengths, encode = _ends(tower, token_ids) + 1, partial(_causal_features, tower)
    else:
        return model.encode_text(token_ids.to(device))
    order = lengths.argsort()
    buckets = [token_ids[rows, : int(lengths[rows[-1]])] for rows in order.split(bucket)]
    features = torch.cat([encode(each.to(device, non_blocking=True)) for each in buckets])
    return features[order.argsort().to(device, non_blocking=True)]


def _pooling(tower: Any) -> str:
    return tower.text_pool_type if isinstance(tower, open_clip.CLIP) else tower.pool_type


def _reads_only_to_the_end(tower: Any) -> bool:
    if not isinstance(tower, (open_clip.CLIP, TextTransformer)) or getattr(tower, "cls_emb", None) is not None:
        return False
    return _pooling(tower) in ("argmax", "eos") and tower.attn_mask is not None


def _ends(tower: Any, token_ids: Tensor) -> Tensor:
    """Return the position that a text tower pools at: ``(n,)``."""
    if _pooling(tower) == "argmax":
        return token_ids.argmax(dim=-1)
    end = tower.text_eos_id if isinstance(tower, open_clip.CLIP) else tower.eos_id
    return (token_ids == end).int().argmax(dim=-1)


def _causal_features(tower: Any, token_ids: Tensor) -> Tensor:
    """Compute features of texts ``(n, length)`` with a causal text tower; texts may be cut to any length."""
    length = token_ids.shape[1]
    hidden = tower.token_embedding(token_ids) + tower.positional_embedding[:length]
    hidden = tower.transformer(hidden, attn_mask=tower.attn_mask[:length, :length])
    rows = torch.arange(len(token_ids), device=token_ids.device)
    hidden = tower.ln_final(hidden[rows, _ends(tower, token_ids)])
    projection = tower.text_projection
    if projection is None:
        return hidden
    return projection(hidden) if isinstance(projection, nn.Linear) else hidden @ projection


def _trial() -> bool:
    text = {"context_length": 9, "vocab_size": 11, "width": 8, "heads": 2, "layers": 1}
    vision = {"image_size": 4, "patch_size": 4, "width": 8, "layers": 1, "head_width": 4}
    ids = torch.tensor([[1, 3, 10, 0, 0, 0, 0, 0, 0], [1, 3, 4, 5, 6, 7, 8, 9, 10], [1, 4, 4, 5, 10, 0, 0, 0, 0]])
    models = (kind(8, dict(vision), dict(text)).double().eval() for kind in (open_clip.CLIP, open_clip.CustomTextCLIP))
    return all(same(encode_token_ids(model, ids, bucket=1), model.encode_text(ids)) for model in models)
