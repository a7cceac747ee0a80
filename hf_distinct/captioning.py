"""Captions for pictures: what a trained captioner is for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    VisionEncoderDecoderModel,
)

from hf_distinct.data.hashing import stable_hash
from hf_distinct.data.images import ImageError, decode_image, to_pixel_values
from hf_distinct.rollout import check_captioner, decode, generate_labels, rollout_config
from hf_distinct.scorer import ClipScorer

Picture = Image.Image | str | os.PathLike[str]


class Captioner:
    """A trained captioner with its tokenizer and image processor, ready to write.

    Args:
        model: a Hub id, or the folder that a training left behind.
        rerank_with: the CLIP that chooses among samples: a [`ClipScorer`], or what it takes as its name.
        device: where it runs; none: a GPU if there is one.

    Raises:
        ValueError: if either cannot be loaded, or the model is no captioner.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        rerank_with: str | ClipScorer | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        source = os.fspath(model)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            self.model: Any = VisionEncoderDecoderModel.from_pretrained(source).to(self.device).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            self.image_processor = AutoImageProcessor.from_pretrained(source, use_fast=False, trust_remote_code=False)
        except OSError as error:
            raise ValueError(f"Captioner {source!r} cannot be loaded: {error}") from error
        check_captioner(self.model, self.tokenizer)
        self.scorer = ClipScorer(rerank_with) if isinstance(rerank_with, str) else rerank_with
        if self.scorer is not None:
            self.scorer.to(self.device)

    @torch.no_grad()
    def __call__(
        self,
        images: Sequence[Picture],
        num_samples: int = 0,
        *,
        batch_size: int = 32,
        seed: int = 0,
        progress: bool = False,
    ) -> list[str] | list[list[str]]:
        """Write captions; neither order nor company of the images changes them.

        Args:
            images: PIL pictures or paths of files, of any size and mode.
            num_samples: 0: one caption an image, by the model's own generation config, as ``pipeline`` writes it.
                K: as many samples of each.
            batch_size: images at a time.
            seed: decides the samples, together with the picture and with nothing else.
            progress: show a bar.

        Returns:
            One caption an image if there are no samples, or if CLIP chooses the sample nearest to its image; else the
            samples of each image, duplicates included.

        Raises:
            ValueError: if a picture cannot be decoded (it is named), or CLIP has nothing to choose from.
        """
        if num_samples < 0 or batch_size < 1:
            raise ValueError(f"num_samples={num_samples} must not be negative, batch_size={batch_size} be at least 1")
        if self.scorer is not None and not num_samples:
            raise ValueError("rerank_with chooses among samples: give num_samples, 10 for instance.")
        captions: list[Any] = []
        bar = tqdm(total=len(images), desc="captioning", unit="image", disable=not progress)
        for start in range(0, len(images), batch_size):
            batch = [open_picture(image, start + i) for i, image in enumerate(images[start : start + batch_size])]
            pixels = to_pixel_values(batch, self.image_processor).to(self.device)
            if num_samples:
                samples = self._sample(pixels, num_samples, seed)
                captions += samples if self.scorer is None else self._choose(batch, samples)
            else:
                captions += decode(self.tokenizer, self.model.generate(pixels))
            bar.update(len(batch))
        bar.close()
        return captions

    def _sample(self, pixels: Tensor, count: int, seed: int) -> list[list[str]]:
        """Count samples of each image."""
        digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in pixels.cpu()]
        seeds = [stable_hash(f"{seed} {digest} {number}") for digest in digests for number in range(count)]
        hidden = self.model.encoder(pixels).last_hidden_state.repeat_interleave(count, dim=0)
        config = rollout_config(self.model, do_sample=False)
        labels = generate_labels(self.model, hidden, config, LogitsProcessorList([GumbelNoise(seeds)]))
        texts = decode(self.tokenizer, labels)
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def _choose(self, images: list[Image.Image], samples: list[list[str]]) -> list[str]:
        """The sample of each image that CLIP finds nearest to it."""
        assert self.scorer is not None
        seen = self.scorer.encode_images(torch.stack([self.scorer.transform(image) for image in images]))
        said = self.scorer.encode_texts([text for texts in samples for text in texts]).unflatten(0, (len(images), -1))
        best = torch.einsum("nd,nkd->nk", seen, said).argmax(dim=1).tolist()
        return [texts[place] for texts, place in zip(samples, best, strict=True)]


class GumbelNoise(LogitsProcessor):
    """Makes of greedy decoding a sample: the largest of logits plus Gumbel noise is a draw from their softmax.

    `generate`'s own samples come from one stream of random numbers, so that a picture's captions would depend on the
    pictures beside it. Here each row has its own.

    Args:
        seeds: one a row, any 64-bit integers.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add noise to logits ``(N, V)``."""
        uniform = torch.stack([torch.rand(scores.shape[1], generator=each) for each in self.generators])
        noise = -(-uniform.clamp_min(torch.finfo().tiny).log()).log()
        return scores + noise.to(scores)


def caption(
    images: Picture | Sequence[Picture],
    model: str | os.PathLike[str],
    num_samples: int = 0,
    rerank_with: str | ClipScorer | None = None,
    **settings: Any,
) -> Any:
    """Caption pictures; [`Captioner`], which does it, loads its models once for many calls.

    Args:
        images: one picture or several, as PIL pictures or paths.
        model: a Hub id, or the folder that a training left behind.
        num_samples: 0: the caption that ``pipeline`` writes; K: as many samples of each picture.
        rerank_with: the CLIP that chooses among the samples.
        settings: ``batch_size``, ``seed``, ``progress``.

    Returns:
        For one picture its caption (or its samples), for several a list of those.

    Raises:
        ValueError: see [`Captioner`].

    Example:
        >>> hf_distinct.caption("surfer.jpg", model="outputs/quickstart")  # doctest: +SKIP
        'a surfer in a red suit under a wave as high as a house'
    """
    captioner = Captioner(model, rerank_with)
    if isinstance(images, (Image.Image, str, os.PathLike)):
        return captioner([images], num_samples, **settings)[0]
    return captioner(images, num_samples, **settings)


def open_picture(image: Picture, place: int) -> Image.Image:
    """One picture as RGB; ``place`` names it where it has no path.

    Raises:
        ImageError: it cannot be decoded.
    """
    if isinstance(image, Image.Image):
        try:
            return decode_image(image)
        except ImageError as error:
            raise ImageError(f"image {place} of the list: {error}") from error
    return decode_image({"path": os.fspath(image), "bytes": None})
