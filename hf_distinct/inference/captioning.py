"""Captions for pictures: what a trained captioner is for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
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
from hf_distinct.files.model_names import shipped_or_named
from hf_distinct.generation.guidance import ImageGuidance
from hf_distinct.generation.labels import decode
from hf_distinct.generation.rollouts import ONE_CAPTION, generate_labels, rollout_config
from hf_distinct.inference.captioner_fit import check_fit
from hf_distinct.inference.pipelines import load_captioner
from hf_distinct.scorer import ClipScorer, scorer_problems

logger = logging.get_logger(__name__)

Picture = Image.Image | str | os.PathLike[str]


class Captioner:
    """A trained captioner with its tokenizer and image processor, ready to write.

    Args:
        model: a Hub id, the folder that a training wrote, or ``"captioner"``, the shipped one.
        rerank_with: the CLIP that chooses among samples: a [`ClipScorer`], or what it takes as its name.
        device: where it runs; none: a GPU if there is one.

    Raises:
        ValueError: if either cannot be loaded, or would run code, or the model is no captioner.
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

    def __call__(
        self, images: Sequence[Picture], num_samples: int = 0, **settings: Any
    ) -> list[str] | list[list[str]]:
        """Caption images, as :meth:`stream` does, which tells the ``settings``.

        Returns:
            One caption an image if there are no samples, or if CLIP chooses the sample nearest to its image; else the
            samples of each image, duplicates included.

        Raises:
            ValueError: an image cannot be decoded (it is named), or CLIP has nothing to choose from.
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
        """Caption images one after the other; one that cannot be decoded gives its error in its place.

        What is said of an image depends on that image alone, not on the order, the company or the size of the batch it
        comes in; but where two words are equally likely to within the rounding of float32, a batch of another shape
        may round to the other one.

        Args:
            images: PIL pictures or paths of files, of any size and mode.
            num_samples: 0: one caption an image, greedy or by beam search as the model's generation config says. K: as
                many samples of each, from the whole of the model's distribution at ``temperature``.
            batch_size: images at a time.
            guidance: gamma of [`hf_distinct.generation.guidance.ImageGuidance`]: above 1, captions say more of their
                picture. For captioners that were taught by ``recipes/warm_up.py --drop_images 0.5``; 1: none.
            num_beams: of the one caption, in place of what the generation config says; 1: greedy.
            temperature: of the samples: logits are divided by it.
            seed: decides the samples, together with the image and with nothing else.
            num_workers: processes that read images while others are captioned; 0: it waits for them.
            progress: show a bar.

        Raises:
            ValueError: CLIP has nothing to choose from, or a number is out of its range.
        """
        if num_samples < 0 or batch_size < 1:
            raise ValueError(f"num_samples={num_samples} must not be negative, batch_size={batch_size} be at least 1")
        if num_beams is not None and (num_beams < 1 or num_samples):
            raise ValueError(f"num_beams={num_beams} must be at least 1, and is for captions that are not sampled.")
        if not temperature > 0 or (temperature != 1 and not num_samples):
            raise ValueError(f"temperature={temperature} must be positive, and is for samples: give num_samples.")
        if self.scorer is not None and not num_samples:
            raise ValueError("rerank_with chooses among samples: give num_samples, 10 for instance.")
        batches = [range(start, min(start + batch_size, len(images))) for start in range(0, len(images), batch_size)]
        prepared = _PreparedBatches(images, self.image_processor, self.scorer and self.scorer.transform)
        if workers := min(num_workers, len(batches)):
            workers = fitting_workers(workers, batch_size * prepared.bytes_of_one())
        loader: DataLoader[Any] = DataLoader(
            prepared,
            sampler=batches,
            batch_size=None,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one
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
        """What is said of the images of a batch that could be decoded."""
        if batch.pixel_values is None:
            return []
        if not num_samples:
            how: dict[str, Any] = {"do_sample": False, **ONE_CAPTION}
            if num_beams is not None:
                how["num_beams"] = num_beams
            tokens = self.model.generate(
                batch.pixel_values.to(self.device, non_blocking=True),
                **how,
                logits_processor=LogitsProcessorList(processors),
            )
            return decode(self.tokenizer, tokens)
        samples = self._sample(batch.pixel_values, num_samples, seed, processors)
        return samples if batch.clip_pixels is None else self._choose(batch.clip_pixels, samples)

    def _sample(self, pixels: Tensor, count: int, seed: int, processors: list[LogitsProcessor]) -> list[list[str]]:
        """Samples of each image, ``count`` of them."""
        digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in pixels]
        seeds = [stable_hash(f"{seed} {digest} {number}") for digest in digests for number in range(count)]
        hidden = self.model.encoder(pixels.to(self.device, non_blocking=True)).last_hidden_state
        hidden = hidden.repeat_interleave(count, dim=0)
        config = rollout_config(self.model, do_sample=False)
        labels = generate_labels(self.model, hidden, config, LogitsProcessorList([*processors, GumbelNoise(seeds)]))
        texts = decode(self.tokenizer, labels)
        return [texts[i : i + count] for i in range(0, len(texts), count)]

    def _choose(self, clip_pixels: Tensor, samples: list[list[str]]) -> list[str]:
        """The sample of each image that CLIP finds nearest to it."""
        assert self.scorer is not None
        seen = self.scorer.encode_images(clip_pixels)
        said = self.scorer.encode_texts([text for texts in samples for text in texts]).unflatten(0, (len(seen), -1))
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
    rerank_with: str | os.PathLike[str] | ClipScorer | None = None,
    **settings: Any,
) -> Any:
    """Caption pictures; [`Captioner`], which does it, loads its models once for many calls.

    Args:
        images: one picture or several, as PIL pictures or paths.
        model: a Hub id, the folder that a training wrote, or ``"captioner"``, the shipped one.
        num_samples: 0: one caption of each; K: as many samples of each.
        rerank_with: the CLIP that chooses among the samples: a [`ClipScorer`], or what it takes as its name.
        settings: ``batch_size``, ``guidance``, ``num_beams``, ``temperature``, ``seed``, ``num_workers``,
            ``progress``.

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


@dataclass
class _Batch:
    """Images that are ready for the captioner.

    Attributes:
        errors: for each image why it could not be decoded, or None.
        losses: name of each image that loses something in RGB, and what.
        pixel_values: the others as the captioner wants them, ``(N, 3, H, W)``; None where there are none.
        clip_pixels: and as CLIP does; None where it has nothing to choose.
    """

    errors: list[ImageError | None]
    losses: list[tuple[str, str]]
    pixel_values: Tensor | None = None
    clip_pixels: Tensor | None = None

    def pin_memory(self) -> _Batch:
        """Pin the pixels, as a DataLoader asks a batch to: their copy to a GPU then takes no time of the host."""
        self.pixel_values, self.clip_pixels = (
            each if each is None else each.pin_memory() for each in (self.pixel_values, self.clip_pixels)
        )
        return self


class _PreparedBatches(torch.utils.data.Dataset):
    """Ranges of images, decoded and scaled; in another process, if there is one."""

    def __init__(self, images: Sequence[Picture], image_processor: Any, transform: Any) -> None:
        self.images, self.image_processor, self.transform = images, image_processor, transform

    def __getitem__(self, rows: range) -> _Batch:
        names: list[str] = []
        found = decode_images(self._encoded(rows, names), self._prepared)
        errors = [ImageError(found.failures[place]) if place in found.failures else None for place in range(len(rows))]
        for place, error in enumerate(errors):
            if error is not None and names[place] not in str(error):  # which names files itself
                errors[place] = ImageError(f"{names[place]}: {error}")
        batch = _Batch(errors, [(names[place], lost) for place, lost in found.losses.items()])
        if found.images:
            captioners, clips = zip(*found.images, strict=True)
            batch.pixel_values = torch.stack(captioners)
            batch.clip_pixels = None if self.transform is None else torch.stack(clips)
        share([batch.pixel_values, batch.clip_pixels])
        return batch

    def bytes_of_one(self) -> int:
        """The size of a picture when it is prepared."""
        return sum(each.nbytes for each in self._prepared(TRIAL) if each is not None)

    def _prepared(self, image: Image.Image) -> tuple[Tensor, Tensor | None]:
        """What captioner and CLIP see of a picture."""
        seen = to_pixel_values([image], self.image_processor)[0]
        return seen, None if self.transform is None else self.transform(image)

    def _encoded(self, rows: range, names: list[str]) -> Iterator[Any]:
        """What `decode_images` takes, one at a time: a list may read its pictures when it is asked for them."""
        for row in rows:
            image = self.images[row]
            if isinstance(image, (str, os.PathLike)):
                names.append(os.fspath(image))
                yield {"path": os.fspath(image), "bytes": None}
            else:
                names.append(f"image {row} of the list")
                yield image
