"""Write captions for images with a trained captioner."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper
from transformers.utils import logging

from hf_distinct.data.hashing import stable_hash
from hf_distinct.data.images import ImageError, decode_images, to_pixel_values, warn_of_losses
from hf_distinct.data.workers import TRIAL, fitting_workers, share
from hf_distinct.families import family_of
from hf_distinct.files.model_names import shipped_or_named
from hf_distinct.files.seals import digest_of_tensors
from hf_distinct.generation.guidance import ImageGuidance
from hf_distinct.generation.labels import decode
from hf_distinct.generation.rollouts import ONE_CAPTION, generate_labels, rollout_config
from hf_distinct.inference.captioner_fit import check_fit
from hf_distinct.inference.pipelines import load_captioner
from hf_distinct.scorer import ClipScorer, scorer_problems

logger = logging.get_logger(__name__)

Picture = Image.Image | str | os.PathLike[str] | Mapping[str, Any]
UNRELATED = ("_name_or_path", "transformers_version")
"""Entries of configs that have no effect on captions."""


class Captioner:
    """A trained captioner with its tokenizer and image processor, ready to use.

    Args:
        model: a Hub id, the output folder of a training, or ``"captioner"`` for the shipped model.
        rerank_with: CLIP model that selects among samples: a [`ClipScorer`] or the name of one.
        device: the device to use; by default a GPU if there is one.

    Raises:
        ValueError: if a model cannot be loaded, would run code, or is not a captioner.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        rerank_with: str | os.PathLike[str] | ClipScorer | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        source = shipped_or_named(model)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        captioner: Any
        captioner, self.tokenizer, self.image_processor = load_captioner(source)
        self.model: Any = captioner.to(self.device).eval()
        check_fit(self.model, self.tokenizer, self.image_processor)
        self.scorer = ClipScorer(rerank_with) if isinstance(rerank_with, (str, os.PathLike)) else rerank_with
        if self.scorer is not None:
            self.scorer.to(self.device)
            for problem in scorer_problems(self.scorer, rollout_config(self.model).max_new_tokens):
                logger.warning(problem)

    def fingerprint(self) -> str:
        """Return a digest of all that decides the captions: weights, configs, tokenizer and image processor."""
        state = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        configs = (self.model.config, self.model.generation_config, self.image_processor)
        told: list[Any] = [json.loads(each.to_json_string(), object_hook=_related) for each in configs]
        told += [sorted(self.tokenizer.get_vocab().items()), self.tokenizer.special_tokens_map]
        return digest_of_tensors(state, {"about": json.dumps(told, sort_keys=True, default=str)})[:16]

    def __call__(
        self, images: Sequence[Picture], num_samples: int = 0, **settings: Any
    ) -> list[str] | list[list[str]]:
        """Caption images; ``settings`` are those of :meth:`stream`.

        Returns:
            One caption per image without samples, or if a CLIP model selects the best sample; otherwise the list of
            samples of each image, duplicates included.

        Raises:
            ValueError: an image cannot be decoded (the message names it), or ``rerank_with`` has no samples.
        """
        captions: list[Any] = []
        for said in self.stream(images, num_samples, **settings):
            if isinstance(said, ImageError):
                raise said
            captions.append(said)
        return captions

    def stream(
        self,
        images: Sequence[Picture],
        num_samples: int = 0,
        *,
        batch_size: int = 32,
        guidance: float = 1.0,
        num_beams: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        num_workers: int = 0,
        progress: bool = False,
    ) -> Iterator[str | list[str] | ImageError]:
        """Yield captions one image at a time; an image that cannot be decoded yields its error instead.

        The caption of an image does not depend on the other images, their order or the batch size. One exception: if
        two tokens are equally likely up to float32 rounding, another batch shape may choose the other one.

        Args:
            images: PIL images, file paths, or encoded images with a name (``{"bytes": ..., "path": name}``), of any
                size and mode. They are read one by one, when their batch is due.
            num_samples: 0 for one caption per image, by greedy or beam search as the model's generation config says.
                K for K samples per image from the model's whole distribution, at ``temperature``.
            batch_size: images per batch.
            guidance: gamma of [`hf_distinct.generation.guidance.ImageGuidance`]. Above 1, captions are more specific
                to their image; 1 turns it off. For captioners trained with ``hf-distinct warm-up --drop_images 0.5``.
            num_beams: number of beams without samples, instead of the generation config's; 1 for greedy search.
            temperature: temperature of the samples.
            seed: seed of the samples; they depend on the seed and the image only.
            num_workers: processes that load images in the background; 0 loads them in this process.
            progress: show a progress bar.

        Raises:
            ValueError: ``rerank_with`` has no samples to choose from, or a number is out of range.
        """
        if num_samples < 0 or batch_size < 1:
            raise ValueError(f"num_samples={num_samples} must not be negative, batch_size={batch_size} be at least 1")
        if num_beams is not None and (num_beams < 1 or num_samples):
            raise ValueError(f"num_beams={num_beams} must be at least 1, and cannot be used with num_samples.")
        if not temperature > 0 or (temperature != 1 and not num_samples):
            raise ValueError(f"temperature={temperature} must be positive, and needs num_samples.")
        if self.scorer is not None and not num_samples:
            raise ValueError("rerank_with chooses among samples: set num_samples, e.g. to 10.")
        batches = range(0, len(images), batch_size)
        prepared = _PreparedBatches(images, batch_size, self.image_processor, self.scorer and self.scorer.transform)
        if workers := min(num_workers, len(batches)):
            workers = fitting_workers(workers, batch_size * prepared.bytes_of_one())
        loader: DataLoader[Any] = DataLoader(
            prepared,
            sampler=batches,
            batch_size=None,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # otherwise it would draw from the global one
        )
        processors: list[LogitsProcessor] = [] if guidance == 1 else [ImageGuidance(self.model, guidance)]
        if temperature != 1:
            processors.append(TemperatureLogitsWarper(float(temperature)))
        write = partial(self._write, num_samples=num_samples, num_beams=num_beams, seed=seed, processors=processors)
        return self._stream(
            loader, write, tqdm(total=len(images), desc="Captioning", unit=" images", disable=not progress)
        )

    def _stream(self, loader: DataLoader[Any], write: Callable[[_Batch], Any], bar: Any) -> Iterator[Any]:
        losses: list[tuple[str, str]] = []
        with bar:
            for batch in loader:
                losses += batch.losses
                said = iter(write(batch))
                for error in batch.errors:
                    yield error or next(said)
                bar.update(len(batch.errors))
        warn_of_losses("caption", losses)

    @torch.no_grad()
    def _write(
        self, batch: _Batch, num_samples: int, num_beams: int | None, seed: int, processors: list[LogitsProcessor]
    ) -> list[str] | list[list[str]]:
        """Return the captions of the images in a batch that could be decoded."""
        if batch.pixel_values is None:
            return []
        if not num_samples:
            how: dict[str, Any] = {"do_sample": False, **ONE_CAPTION}
            if num_beams is not None:
                how["num_beams"] = num_beams
            tokens = family_of(self.model).write(
                batch.pixel_values.to(self.device, non_blocking=True),
                **how,
                logits_processor=LogitsProcessorList(processors),
            )
            return decode(self.tokenizer, tokens)
        samples = self._sample(batch.pixel_values, num_samples, seed, processors)
        return samples if batch.clip_pixels is None else self._choose(batch.clip_pixels, samples)

    def _sample(self, pixels: Tensor, count: int, seed: int, processors: list[LogitsProcessor]) -> list[list[str]]:
        """Draw ``count`` samples of each image."""
        digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in pixels]
        seeds = [stable_hash(f"{seed} {digest} {number}") for digest in digests for number in range(count)]
        hidden = family_of(self.model).encoder(pixels.to(self.device, non_blocking=True)).last_hidden_state
        hidden = hidden.repeat_interleave(count, dim=0)
        config = rollout_config(self.model, do_sample=False)
        labels = generate_labels(self.model, hidden, config, LogitsProcessorList([*processors, GumbelNoise(seeds)]))
        texts = decode(self.tokenizer, labels)
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def _choose(self, clip_pixels: Tensor, samples: list[list[str]]) -> list[str]:
        """Return the sample of each image that CLIP finds most similar to it."""
        assert self.scorer is not None
        seen = self.scorer.encode_images(clip_pixels)
        said = self.scorer.encode_texts([text for texts in samples for text in texts]).unflatten(0, (len(seen), -1))
        best = torch.einsum("nd,nkd->nk", seen, said).argmax(dim=1).tolist()
        return [texts[place] for texts, place in zip(samples, best, strict=True)]


class GumbelNoise(LogitsProcessor):
    """Turn greedy decoding into sampling: the argmax of logits plus Gumbel noise is a draw from their softmax.

    `generate` draws its samples from one random stream, so an image's captions would depend on the other images of the
    batch. Here each row has its own random generator.

    Args:
        seeds: one per row, any 64-bit integers.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Add noise to logits ``(N, V)``."""
        uniform = torch.stack([torch.rand(scores.shape[1], generator=each) for each in self.generators])
        noise = -(-uniform.clamp_min(torch.finfo().tiny).log()).log()
        return scores + noise.to(scores)


def _related(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in UNRELATED}


def caption(
    images: Picture | Sequence[Picture],
    model: str | os.PathLike[str],
    num_samples: int = 0,
    rerank_with: str | os.PathLike[str] | ClipScorer | None = None,
    **settings: Any,
) -> Any:
    """Caption images. For repeated calls use [`Captioner`], which loads its models once.

    Args:
        images: one image or several, as PIL images or paths.
        model: a Hub id, the output folder of a training, or ``"captioner"`` for the shipped model.
        num_samples: 0 for one caption per image, K for K samples per image.
        rerank_with: CLIP model that selects among samples: a [`ClipScorer`] or the name of one.
        settings: ``batch_size``, ``guidance``, ``num_beams``, ``temperature``, ``seed``, ``num_workers``,
            ``progress``; see [`Captioner.stream`].

    Returns:
        The caption (or the samples) of a single image; a list of these for several images.

    Raises:
        ValueError: see [`Captioner`].

    Example:
        >>> hf_distinct.caption("surfer.jpg", model="outputs/quickstart")  # doctest: +SKIP
        'a surfer in a red suit under a wave as high as a house'
    """
    captioner = Captioner(model, rerank_with)
    if isinstance(images, (Image.Image, str, os.PathLike, Mapping)):
        return captioner([images], num_samples, **settings)[0]
    return captioner(images, num_samples, **settings)


@dataclass
class _Batch:
    """Images prepared for the captioner.

    Attributes:
        errors: for each image the reason why it could not be decoded, or None.
        losses: name of each image that loses information when converted to RGB, and what it loses.
        pixel_values: the other images for the captioner, ``(N, 3, H, W)``; None if there are none.
        clip_pixels: the same images for CLIP; None if there is no reranking.
    """

    errors: list[ImageError | None]
    losses: list[tuple[str, str]]
    pixel_values: Tensor | None = None
    clip_pixels: Tensor | None = None

    def pin_memory(self) -> _Batch:
        """Pin the pixels in memory (called by the DataLoader), so that they are copied to a GPU asynchronously."""
        self.pixel_values, self.clip_pixels = (
            each if each is None else each.pin_memory() for each in (self.pixel_values, self.clip_pixels)
        )
        return self


class _PreparedBatches(torch.utils.data.Dataset):
    """Decoded and preprocessed images, by the first row of their batch; worker processes may load them."""

    def __init__(self, images: Sequence[Picture], batch_size: int, image_processor: Any, transform: Any) -> None:
        self.images, self.batch_size = images, batch_size
        self.image_processor, self.transform = image_processor, transform

    def __getitem__(self, start: int) -> _Batch:
        rows = range(start, min(start + self.batch_size, len(self.images)))
        names: list[str] = []
        found = decode_images(self._encoded(rows, names), self._prepared)
        errors = [ImageError(found.failures[place]) if place in found.failures else None for place in range(len(rows))]
        for place, error in enumerate(errors):
            if error is not None and names[place] not in str(error):  # errors about files already contain the name
                errors[place] = ImageError(f"{names[place]}: {error}")
        batch = _Batch(errors, [(names[place], lost) for place, lost in found.losses.items()])
        if found.images:
            captioners, clips = zip(*found.images, strict=True)
            batch.pixel_values = torch.stack(captioners)
            batch.clip_pixels = None if self.transform is None else torch.stack(clips)
        share([batch.pixel_values, batch.clip_pixels])
        return batch

    def bytes_of_one(self) -> int:
        """Return the size of a preprocessed image in bytes."""
        return sum(each.nbytes for each in self._prepared(TRIAL) if each is not None)

    def _prepared(self, image: Image.Image) -> tuple[Tensor, Tensor | None]:
        """Preprocess an image for the captioner and for CLIP."""
        seen = to_pixel_values([image], self.image_processor)[0]
        return seen, None if self.transform is None else self.transform(image)

    def _encoded(self, rows: range, names: list[str]) -> Iterator[Any]:
        """Yield the input of `decode_images` one by one, because a list may load its images when indexed."""
        for row in rows:
            image = self.images[row]
            if isinstance(image, (str, os.PathLike)):
                names.append(os.fspath(image))
                yield {"path": os.fspath(image), "bytes": None}
            else:
                path = image.get("path") if isinstance(image, Mapping) else None
                names.append(path or f"image {row} of the list")
                yield image
