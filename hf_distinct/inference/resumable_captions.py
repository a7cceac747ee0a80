"""Caption any number of pictures in parts: a killed run continues, and several processes share the work."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers.utils import logging

from hf_distinct.data.images import ImageError
from hf_distinct.data.picture_index import PictureIndex, find_picture_files, write_index
from hf_distinct.data.table import read_object
from hf_distinct.distributed.gathering import wait_for_first_process
from hf_distinct.files.parts import Parts, this_process, written_whole
from hf_distinct.files.seals import altered, digest, sealed
from hf_distinct.inference.captioning import Captioner

logger = logging.get_logger(__name__)

BATCHES = 4  # batches per part; a killed process loses at most one part
GROUP = 1000  # parts between two looks at which are missing
PICTURES = "the pictures"

Said = str | list[str] | ImageError
"""The caption of a picture or its samples; an error for a picture that cannot be decoded."""


class ResumableCaptions:
    """The captions of all pictures of a source, written in parts beside the output file.

    ``OUTPUT.parts/`` has the index of the pictures and the parts, ``OUTPUT.run.json`` the settings. Each of several
    processes captions an equal share of the parts, and then whatever is still missing, so that the work is done even
    if one of them dies. All processes call `begin` and `write_parts`. Then the first one writes `rows` to a file,
    calls `join`, moves the file into place, and calls `finish`.

    Args:
        captioner: writes the captions.
        output: the file that the captions are meant for.
        source: the pictures, see [`hf_distinct.data.picture_index.write_index`].
        made_by: names and values of all that decides the captions besides the pictures, for messages too.
        batch_size: pictures per batch.
        how: further settings of [`Captioner.stream`].
    """

    def __init__(
        self, captioner: Captioner, output: Path, source: str, made_by: Mapping[str, Any], batch_size: int, **how: Any
    ) -> None:
        self.captioner, self.output, self.source, self.batch_size = captioner, output, source, batch_size
        self.made_by, self.how = {name: str(value) for name, value in made_by.items()}, how
        self.record_file = output.with_name(f"{output.name}.run.json")
        self.parts = Parts(output.with_name(f"{output.name}.parts"), 0)
        self._index_file = self.parts.folder / "pictures.arrow"

    def begin(self) -> Path | None:
        """Find the pictures and the parts of an earlier run.

        Returns:
            The finished file if nothing is left to do, otherwise None.

        Raises:
            FileNotFoundError, ValueError: see [`hf_distinct.data.picture_index.write_index`].
            ValueError: the captions were begun, or finished, with other settings or for other pictures.
            torch.distributed.DistError: the first process has ended.
        """
        token = [uuid.uuid4().hex]
        broadcast_object_list(token)  # otherwise the record of a killed run would look like that of this one
        if this_process()[0] == 0:
            self._begin_as_first(token[0])
        else:
            wait_for_first_process(lambda: self._record().get("launch") == token[0])
        if finished := self._finished(self._record()):
            return finished
        self.index = PictureIndex(self._index_file, self.source)
        self.parts.count = self.index.num_parts
        return None

    def _begin_as_first(self, launch: str) -> None:
        record = self._record()
        finished = self._finished(record)
        begun = bool(finished or (record and not record["finished"] and self._index_file.is_file()))
        if begun:
            now = self.made_by | {PICTURES: str(find_picture_files(self.source))}
            self._check_same(record["made_by"], now)
            if not finished and (joined := self._joined(record)):  # killed at once after it was moved into place
                joined.unlink()
        else:
            self.record_file.unlink(missing_ok=True)  # it does not describe the new index
            self.parts.remove()
            pictures = write_index(self.source, self._index_file, BATCHES * self.batch_size)
            record = {"made_by": self.made_by | {PICTURES: str(pictures)}, "joined": None, "finished": False}
        self._write_record(record | {"launch": launch})
        if finished:
            self.parts.remove()  # of a run that was killed at its very end

    def _check_same(self, then: Mapping[str, str], now: Mapping[str, str]) -> None:
        differing = [
            f"{name} ({then.get(name, 'nothing')} then, {now.get(name, 'nothing')} now)"
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        ]
        if differing:
            raise ValueError(
                f"{self.output} was begun with other settings: {', '.join(differing)}. To continue, use the earlier "
                f"ones; to begin anew, delete {self.record_file}; to keep both, set another --output_file."
            )

    def _record(self) -> dict[str, Any]:
        """Return what is known of this output; nothing if it was never begun."""
        if not self.record_file.is_file():
            return {}
        record = read_object(self.record_file)
        if reason := altered(record, ()):
            raise ValueError(f"{self.record_file}: {reason}. To begin anew, delete it.")
        return record

    def _write_record(self, record: dict[str, Any]) -> None:
        with written_whole(self.record_file) as temporary:
            temporary.write_text(json.dumps(sealed(record), indent=1) + "\n", encoding="utf-8")

    def _joined(self, record: dict[str, Any]) -> Path | None:
        """Return the file with all captions, if it is in place and as it was written."""
        if not (about := record.get("joined")):
            return None
        path = self.output.with_name(about["file"])
        return path if path.is_file() and digest(path) == about["digest"] else None

    def _finished(self, record: dict[str, Any]) -> Path | None:
        return self._joined(record) if record.get("finished") else None

    def write_parts(self) -> None:
        """Write this process's missing parts, then those of other processes, until none is missing."""
        process, processes = this_process()
        count = self.parts.count
        # Neighbouring parts, because they are in the same shards.
        own = range(count * process // processes, count * (process + 1) // processes)
        pictures, todo = (self._num_pictures(numbers) for numbers in (own, self.parts.missing(own)))
        if todo < pictures:
            logger.info(f"{self.output}: continues after {pictures - todo} of {pictures} pictures.")
        bar = tqdm(total=pictures, initial=pictures - todo, desc="Captioning", unit=" images", disable=process != 0)
        with logging_redirect_tqdm(), bar:
            while missing := self.parts.missing(own) or self.parts.missing():
                # Those of others from different places, so that not all do the same ones.
                numbers = missing[:GROUP] if missing[0] in own else [missing[len(missing) * process // processes]]
                self._write(numbers, bar if numbers[0] in own else None)
                if self._is_over():
                    return

    def _num_pictures(self, numbers: Sequence[int]) -> int:
        return len(PictureIndex(self._index_file, self.source, numbers))

    def _write(self, numbers: Sequence[int], bar: tqdm | None = None) -> None:
        images = PictureIndex(self._index_file, self.source, numbers)
        said = self.captioner.stream(images, batch_size=self.batch_size, **self.how)
        for number in numbers:
            part: list[Any] = []
            for each in islice(said, self.index.rows_of_part(number)):
                part.append({"error": str(each)} if isinstance(each, ImageError) else each)
                if bar is not None:
                    bar.update()
            if self._is_over():
                return
            content = torch.frombuffer(bytearray(json.dumps(part).encode()), dtype=torch.uint8)
            self.parts.write(number, {"captions": content})
        if self._is_over():  # it was finished while the last part was written
            self.parts.remove()
        next(said, None)  # it ends with a warning about what pictures lost

    def _is_over(self) -> bool:
        """Whether the first process has joined all parts, because another one did what this one was slow to do."""
        return this_process()[0] != 0 and bool(self._record().get("finished"))

    def rows(self) -> Iterator[tuple[int, str, Said]]:
        """Yield number, name and captions of each picture, in order; a broken part is captioned again."""
        for number in range(self.parts.count):
            try:
                tensors, _ = self.parts.read(number)
            except (FileNotFoundError, ValueError) as error:
                logger.warning(f"A part of the captions is written again: {error}")
                self._write([number])
                tensors, _ = self.parts.read(number)
            for row, said in enumerate(json.loads(tensors["captions"].numpy().tobytes())):
                place = number * self.index.part_rows + row
                yield place, self.index.name(place), ImageError(said["error"]) if isinstance(said, dict) else said

    def join(self, temporary: Path, path: Path) -> None:
        """Record that a file with all rows will be moved into place.

        Without this, a run that is killed before it can call `finish` could not tell the file from one of the user.

        Args:
            temporary: the complete file.
            path: its place, in the folder of ``output``.
        """
        self._write_record(self._record() | {"joined": {"file": path.name, "digest": digest(temporary)}})

    def finish(self) -> None:
        """Record that the file is in place, and remove the parts."""
        self._write_record(self._record() | {"finished": True})
        self.parts.remove()
