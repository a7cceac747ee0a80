"""What recipes/mine.py leaves behind, in a form that another machine finds again."""

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
"""What `write_portable` writes."""

_CARD = """---
tags:
- hf_distinct
- embeddings
---

# Embeddings and neighbours of captioned pictures

CLIP embeddings (float16) of {images} pictures and {captions} captions, and the pictures most similar to each, as
`hf-distinct mine` left them. Neither pictures nor captions are in here.

| | |
|---|---|
| CLIP | {scorer} (fingerprint {fingerprint}) |
| R@1 of people's captions | {recall:.3f} among {gallery} pictures |
| neighbours | ranks {first} to {last} |

Whoever has the same pictures and captions trains with them at once:

```bash
hf-distinct train --dataset captions.json --image_root images --scorer NAME --mined "..."
```

where `"..."` is the id of this repository.
"""


def write_portable(folder: Path, target: Path) -> None:
    """Write what another machine needs, and nothing of this one.

    There the pictures lie elsewhere and have other times; so the embeddings get the name that only depends on what
    they were made from, and the neighbours follow. The sheet of pictures stays: they are not ours to share.

    Args:
        folder: What `recipes/mine.py` left behind.
        target: An empty folder; large files in it are links to those of `folder`, where the disk knows such.

    Raises:
        ValueError: Something is missing, leads out of the folder, or is pickled.
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
            raise ValueError(f"{MANIFEST} or {STATISTICS} holds half of a character (a lone surrogate)")
    except (OSError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{str(folder)!r} is not a folder that `hf-distinct mine` has completed ({error}): let it run to "
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
    """Refuse a name that is not one of a folder beside it: what a file says may be a stranger's word."""
    if not name or not FOLDER_NAME.fullmatch(name):
        raise ValueError(f"{source} names {name!r}, which is no folder beside it: mine anew with `hf-distinct mine`.")


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, so that it stays when the first goes; a copy where the disk has no such thing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
