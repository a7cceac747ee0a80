"""Outputs of a frozen encoder for the images of a dataset: computed once, in half precision, and read from disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from datasets import Dataset, Image
from safetensors import safe_open
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from hf_distinct.data.embedding_cache import image_states
from hf_distinct.data.hashing import stable_hash
from hf_distinct.data.images import ImageError, decode_pixels
from hf_distinct.data.selections import column
from hf_distinct.distributed.nodes import once_per_node, parts_to_compute, wait_for_parts
from hf_distinct.files.disk_space import check_room
from hf_distinct.files.parts import Parts, this_process
from hf_distinct.files.seals import digest_of_tensors

logger = logging.get_logger(__name__)

PART_ROWS = 256


class EncodedImages:
    """The outputs of an encoder for the images of a dataset, by image id; created by `encode_images`.

    Each process opens the files itself, so a collator can pass this object to worker processes.

    Args:
        parts: safetensors files, each with ``states`` `(rows, S, H)` in half precision, and in the metadata the
            reasons of images that could not be decoded, by row.
        image_ids: image ids of the dataset, by row.
    """

    def __init__(self, parts: Parts, image_ids: Iterable[str]) -> None:
        self.parts = parts
        hashes = np.fromiter(map(stable_hash, image_ids), dtype=np.int64)
        self._rows = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._rows]
        self._open: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __call__(self, image_id: str) -> Tensor:
        """Return the encoder's output for an image, `(S, H)`, float32.

        Raises:
            ImageError: the image could not be decoded.
            ValueError: the dataset has no such image.
        """
        place = int(np.searchsorted(self._hashes, hashed := stable_hash(image_id)))
        if place == len(self._hashes) or self._hashes[place] != hashed:
            raise ValueError(f"Image {image_id!r} is not among the encoded images: they belong to another dataset.")
        number, place = divmod(int(self._rows[place]), PART_ROWS)
        if number not in self._open:
            self._open[number] = safe_open(self.parts.path(number), framework="pt")
        reasons = json.loads(self._open[number].metadata()["failures"])
        if str(place) in reasons:
            raise ImageError(reasons[str(place)])
        return self._open[number].get_slice("states")[place].float()


def encode_images(
    dataset: Dataset,
    encoder: PreTrainedModel,
    image_processor: BaseImageProcessor,
    cache_dir: str | os.PathLike[str],
    device: torch.device | str = "cpu",
    batch_size: int = 32,
) -> EncodedImages:
    """Encode every image of a dataset, or find the outputs on disk; their size is logged at the beginning.

    The work is done in parts, each of which is saved, so that a killed run can resume. Processes of torch.distributed
    that call this together share the work. The outputs are identified by the encoder's weights and config, the image
    processor, and size and time of modification of each image file.

    Args:
        dataset: ``image``, ``image_id``.
        encoder: a frozen encoder; it is moved to the device, and left there in eval mode.
        image_processor: the encoder's image processor.
        cache_dir: folder, created if needed. Each node may have one on its own disk.
        device: device of the encoder.
        batch_size: images per batch.

    Raises:
        OSError: the disk has too little space.
    """
    encoder.to(device).eval()  # type: ignore[arg-type]
    key = once_per_node(lambda: _key(dataset, encoder, image_processor))
    folder = Path(cache_dir) / f"encoder-outputs-{key}"
    parts = Parts(folder, -(-len(dataset) // PART_ROWS))
    encoded = dataset.select_columns(["image"]).cast_column("image", Image(decode=False)).with_format(None)
    announced = False
    while parts.missing():
        if not (numbers := parts_to_compute(parts)[:1]):
            wait_for_parts(parts, lambda: not parts.missing())
            continue
        parts.claim(numbers)
        begin = numbers[0] * PART_ROWS
        rows = encoded[begin : begin + PART_ROWS]["image"]
        states, failures = _encode(rows, encoder, image_processor, batch_size)
        if not announced and this_process()[0] == 0:
            size = states[0].numel() * states.element_size() * len(dataset)
            logger.info(f"The encoder's outputs for {len(dataset)} images take {size / 2**20:.0f} MiB in {folder}.")
            check_room(cache_dir, size * len(parts.missing()) // parts.count, "The encoder's outputs")
        announced = True
        parts.write(numbers[0], {"states": states}, {"failures": json.dumps(failures)})
    return EncodedImages(parts, column(dataset, "image_id"))


@torch.no_grad()
def _encode(
    values: list[Any], encoder: Any, image_processor: BaseImageProcessor, batch_size: int
) -> tuple[Tensor, dict[int, str]]:
    """Return outputs `(rows, S, H)` float16, zero for images that cannot be decoded, and the reasons by index."""
    batches: list[Tensor] = []
    failures: dict[int, str] = {}
    for start in range(0, len(values), batch_size):
        found = decode_pixels(values[start : start + batch_size], image_processor)
        failures |= {start + place: reason for place, reason in found.failures.items()}
        if found.images:
            pixels = torch.stack(found.images).to(encoder.device, encoder.dtype)
            batches.append(encoder(pixels).last_hidden_state.half().cpu())
    good = [place for place in range(len(values)) if place not in failures]
    width = batches[0].shape[1:] if batches else (1, 1)
    states = torch.zeros(len(values), *width, dtype=torch.float16)
    if batches:
        states[good] = torch.cat(batches)
    return states, failures


def _key(dataset: Dataset, encoder: PreTrainedModel, image_processor: BaseImageProcessor) -> str:
    state = xxhash.xxh3_128()
    weights = {name: value.detach().cpu() for name, value in encoder.state_dict().items()}
    for part in (digest_of_tensors(weights), encoder.config.to_json_string(), image_processor.to_json_string()):
        state.update(part.encode())
    for found in _states_of(dataset):
        state.update(found)
    return state.hexdigest()


def _states_of(dataset: Dataset) -> Iterator[bytes]:
    for table in dataset.select_columns(["image"]).with_format("arrow").iter(batch_size=256):
        yield from (state for state, _ in image_states(table))
