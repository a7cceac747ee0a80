"""Write captions for the rows of a dataset, as `pipeline("image-to-text")` would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset, Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from hf_distinct.captioner import token_id
from hf_distinct.data.images import ImageError, decode_pixels
from hf_distinct.data.skips import Skips
from hf_distinct.families import family_of
from hf_distinct.generation.labels import decode
from hf_distinct.generation.rollouts import ONE_CAPTION


def write_captions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    image_processor: BaseImageProcessor,
    dataset: Dataset,
    batch_size: int,
) -> list[str | ImageError]:
    """Caption a dataset as ``pipeline("image-to-text")`` does: from its images, with the model's generation config.

    Args:
        model: the captioner, unwrapped, in eval mode.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        dataset: has a column ``image``.
        batch_size: images per batch.

    Returns:
        One caption per row, in order; the error for an image that cannot be decoded.
    """
    written = write_sequences(model, image_processor, dataset, batch_size)
    return captions_of(written, tokenizer, token_id(model, "pad_token_id"))


def captions_of(
    written: Sequence[Tensor | ImageError], tokenizer: PreTrainedTokenizerBase, pad: int
) -> list[str | ImageError]:
    """Decode the output of [`write_sequences`]; errors are kept."""
    texts = iter(decode(tokenizer, pad_sequences([each for each in written if isinstance(each, Tensor)], pad)))
    return [next(texts) if isinstance(each, Tensor) else each for each in written]


@torch.no_grad()
def write_sequences(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    dataset: Dataset,
    batch_size: int,
    **generation: Any,
) -> list[Tensor | ImageError]:
    """Like [`write_captions`], but return tokens.

    Args:
        model: see [`write_captions`].
        image_processor: see [`write_captions`].
        dataset: see [`write_captions`].
        batch_size: see [`write_captions`].
        generation: arguments of ``generate``, which override the model's generation config; none of `ONE_CAPTION`.

    Returns:
        ``(1 + L,)`` per row, in order, on the CPU, starting with the start token and padded like its batch; the error
        for an image that cannot be decoded.
    """
    written: list[Tensor | ImageError] = []
    family = family_of(model)
    # decode=False: otherwise datasets would fail on the whole batch.
    encoded = dataset.select_columns(["image"]).cast_column("image", Image(decode=False)).with_format(None)
    for start in range(0, len(encoded), batch_size):
        values = encoded[start : start + batch_size]["image"]
        found, sequences = decode_pixels(values, image_processor), iter(())
        if found.images:
            pixels = torch.stack(found.images).to(model.device)
            sequences = iter(family.write(pixels, synced_gpus=False, **generation, **ONE_CAPTION).cpu())
        for place in range(len(values)):
            reason = found.failures.get(place)
            written.append(next(sequences) if reason is None else ImageError(reason))
    return written


def pad_sequences(rows: Sequence[Tensor], pad: int) -> Tensor:
    """Pad rows of tokens to one tensor ``(N, L)``; ``(0, 0)`` without rows."""
    return pad_sequence(list(rows), batch_first=True, padding_value=pad) if rows else torch.empty(0, 0).long()


def without_errors(said: Sequence[str | ImageError], names: Sequence[str]) -> list[str | None]:
    """Replace errors in the output of `write_captions` by None; a warning counts and names them.

    Args:
        said: captions and errors.
        names: names of the rows for the messages.

    Raises:
        ValueError: every row is an error.
    """
    skips = Skips(f"captions of {len(said)} images")
    for name, each in zip(names, said, strict=True):
        if isinstance(each, ImageError):
            skips.add("image that cannot be read", f"{name}: {each}")
    captions = [None if isinstance(each, ImageError) else each for each in said]
    if captions and not any(caption is not None for caption in captions):
        raise ValueError(f"None of {len(said)} images can be read: {skips.summary()}")
    skips.warn()
    return captions
