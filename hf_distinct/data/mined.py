"""The output of `hf-distinct mine` in a portable form, which other machines can use."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from hf_distinct.data.caption_embeddings import ARRAYS, CaptionEmbeddings
from hf_distinct.data.embedding_cache import MANIFEST
from hf_distinct.data.neighbours import FILE, FOLDER_NAME, Neighbours
from hf_distinct.data.table import read_object
from hf_distinct.data.texts import is_storable
from hf_distinct.files.seals import sealed
from hf_distinct.text.card_merge import mark
from hf_distinct.text.escaping import as_code, as_markdown
from hf_distinct.text.portable import portable_values

STATISTICS = "statistics.json"
PORTABLE_FILES = ("README.md", FILE, STATISTICS, f"*/{MANIFEST}", *(f"*/{name}.npy" for name in ARRAYS))
"""The files that `write_portable` writes."""

_CARD = """---
tags:
- hf_distinct
- embeddings
---

# Embeddings and neighbours of captioned images

CLIP embeddings (float16) of {images} images and {captions} captions, and the images most similar to each, written by
`hf-distinct mine`. The images and captions themselves are not included.

| | |
|---|---|
| CLIP | {scorer} (fingerprint {fingerprint}) |
| R@1 of people's captions | {recall:.3f} among {gallery} images |
| neighbours | ranks {first} to {last} |

If you have the same images and captions, you can use them for training:

```bash
hf-distinct train --dataset captions.json --image_root images --scorer NAME --mined "..."
```

where `"..."` is the id of this repository.
"""


def write_portable(folder: Path, target: Path) -> None:
    """Write the files that another machine needs, without information about this machine.

    On the other machine, image files have other paths and times. So the embeddings get the name that depends on their
    inputs only, and the neighbours refer to it. The sheet of images is left out, because it shows images of others.

    Args:
        folder: output folder of `hf-distinct mine`.
        target: an empty folder; its large files are hard links to those of `folder`, if the disk supports them.

    Raises:
        ValueError: a file is missing, leads out of the folder, or is pickled.
    """
    try:
        neighbours = Neighbours.load(folder / FILE)
        _refuse_way_out(neighbours.embeddings, folder / FILE)
        made = folder / neighbours.embeddings
        sources = [folder / STATISTICS, made / MANIFEST, *(made / f"{array}.npy" for array in ARRAYS)]
        for source in sources:
            if not source.resolve(strict=True).is_relative_to(folder.resolve()):
                raise ValueError(f"{source} is a link that leads out of the folder, so nothing was pushed: remove it.")
        statistics, manifest = (read_object(source) for source in sources[:2])
        name = manifest["portable_name"]
        _refuse_way_out(name, made / MANIFEST)
        statistics, manifest = portable_values([statistics, manifest])
        card = _CARD.format(
            images=int(statistics["images"]), captions=CaptionEmbeddings.load(made).caption_offsets[-1],
            scorer=as_markdown(manifest["scorer"]), fingerprint=as_code(manifest["fingerprint"]),
            recall=float(statistics["R@1 of people's captions"]), gallery=int(statistics["gallery"]),
            first=int(statistics["ranks taken"][0]), last=int(statistics["ranks taken"][1]),
        )  # fmt: skip
        if not is_storable(card):
            raise ValueError(f"{MANIFEST} or {STATISTICS} contains an invalid character (a lone surrogate)")
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r} is not a completed output folder of `hf-distinct mine` ({error}): let it run to "
            "its end."
        ) from error
    embeddings = target / name
    embeddings.mkdir()
    for source in sources[2:]:
        link_or_copy(source, embeddings / source.name)
    (embeddings / MANIFEST).write_text(json.dumps(sealed(manifest), indent=1))
    neighbours.embeddings = name
    neighbours.save(target / FILE)
    (target / STATISTICS).write_text(json.dumps(statistics, indent=2) + "\n")
    (target / "README.md").write_text(mark(card), encoding="utf-8")


def _refuse_way_out(name: str, source: Path) -> None:
    """Reject a name that is not the name of a folder next to the file, because the file may be untrusted."""
    if not name or not FOLDER_NAME.fullmatch(name):
        raise ValueError(
            f"{source} names {name[:100]!r}, which is not a folder next to it: run `hf-distinct mine` again."
        )


def link_or_copy(source: Path, target: Path) -> None:
    """Create a hard link, or a copy if the disk does not support links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
