"""Measure what mining costs on this machine, beside the bare work that it cannot do without.

    python recipes/benchmarks/mining.py exact       # 118,287 x 512 (COCO), every pair, beside a bare faiss search
    python recipes/benchmarks/mining.py ivf         # 1,000,000 x 512, in trained cells, beside every pair on a sample
    python recipes/benchmarks/mining.py ivf_even    # 100,000 x 512 without clusters, the worst case for cells
    python recipes/benchmarks/mining.py embedding   # JPEG files to embeddings, beside a bare loop over decoded pixels

`--rows N` makes it smaller. Seconds are those of the clock and, behind them, of the processor, which other jobs on the
machine change less.
"""

from __future__ import annotations

import argparse
import io
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import open_clip
import torch
from datasets import Dataset, disable_progress_bars
from PIL import Image

from hf_distinct.data import embed_dataset
from hf_distinct.data.images import decode_image
from hf_distinct.data.mining import MiningSettings, find_neighbours
from hf_distinct.data.neighbours import Neighbours
from hf_distinct.data.similarity_index import UnitRows
from hf_distinct.data.table import caption_features
from hf_distinct.runs.logs import show_logs
from hf_distinct.scorer import ClipScorer, save_open_clip

DIM, K, GROUP = 512, 5, 6
SPREAD = 0.6  # of a group around its centre: the cosine of two members is about 1 / (1 + SPREAD^2) = 0.74
THEMES = 100
SHARES = {"all": 0.5, "theme": 0.12, "subject": 0.12, "group": 0.11, "own": 0.15}
"""Of what a clustered vector consists, by squared length: a cosine is about the sum of what two vectors share."""
SAMPLE = 2000  # queries that are compared with everything, to tell recall and what comparing all would take


def measured(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What the work returns, the seconds of the clock, and those of the processor, over all threads and children."""
    wall, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = work()
    seconds = time.perf_counter() - wall
    cpu = 0.0
    for kind, earlier in ((resource.RUSAGE_SELF, before), (resource.RUSAGE_CHILDREN, children)):
        now = resource.getrusage(kind)
        cpu += now.ru_utime + now.ru_stime - earlier.ru_utime - earlier.ru_stime
    return result, seconds, cpu


def gigabytes() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def in_groups(
    rows: int, centres: Callable[[int, int], torch.Tensor], member: Callable[[int], torch.Tensor]
) -> torch.Tensor:
    """Unit vectors (rows, 512), float16 as a cache holds them; the rows i, i + rows / 6, ... are a group.

    Each row has five true neighbours, far from it in the order.

    Args:
        rows: How many.
        centres: Gives the centres (stop - start, 512) of the groups from start to stop.
        member: Gives what so many members add to their centre.
    """
    vectors = torch.empty(rows, DIM, dtype=torch.float16)
    groups, block = -(-rows // GROUP), 16384
    for start in range(0, groups, block):
        centre = centres(start, min(start + block, groups))
        for number in range(GROUP):
            first = number * groups + start
            wanted = max(0, min(len(centre), rows - first))
            vectors[first : first + wanted] = torch.nn.functional.normalize(centre[:wanted] + member(wanted), dim=1)
    return vectors


def even(rows: int) -> torch.Tensor:
    """Groups (rows, 512) that lie evenly on the sphere: no structure that cells could follow, unlike any pictures."""
    generator = torch.Generator().manual_seed(0)
    return in_groups(
        rows,
        centres=lambda start, stop: torch.randn(stop - start, DIM, generator=generator),
        member=lambda count: SPREAD * torch.randn(count, DIM, generator=generator),
    )


def clustered(rows: int) -> torch.Tensor:
    """Groups (rows, 512) that lie as embeddings of pictures do: in a narrow cone, in clusters of clusters.

    A vector is the sum of what it shares with all, with its theme (of 100), with its subject (of sqrt(rows) in all,
    the n-th of which has a share of the pictures that falls with sqrt(n)), with its group of six, and its own; see
    `SHARES`. Two of a group have a cosine of about 0.85, of a subject 0.74, of a theme 0.62, and any two 0.5: chosen
    to look like CLIP's, not measured on any. Each part is normal with a variance of 1 / i along the i-th of 512 axes,
    which are turned at random.
    """
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.nn.functional.normalize(torch.arange(1, DIM + 1) ** -0.5, dim=0)
    axes = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator))[0]

    def part(name: str, count: int) -> torch.Tensor:
        return SHARES[name] ** 0.5 * (torch.randn(count, DIM, generator=generator) * spectrum) @ axes

    subjects = max(THEMES, round(rows**0.5))
    about = part("subject", subjects) + part("theme", THEMES)[torch.arange(subjects) % THEMES]
    about += SHARES["all"] ** 0.5 * torch.nn.functional.normalize(part("all", 1), dim=1)
    sizes = torch.arange(1, subjects + 1) ** -0.5
    subject = torch.multinomial(sizes, -(-rows // GROUP), replacement=True, generator=generator)
    return in_groups(
        rows,
        centres=lambda start, stop: about[subject[start:stop]] + part("group", stop - start),
        member=lambda count: part("own", count),
    )


def share_of_planted_found(found: Neighbours) -> float:
    """Share of each row's group among its neighbours."""
    count = len(found.rows)
    groups = -(-count // GROUP)
    own = np.arange(count)[:, None] % groups
    sizes = np.bincount(np.arange(count) % groups, minlength=groups)[own[:, 0]] - 1
    return float(((found.rows >= 0) & (found.rows % groups == own)).sum() / sizes.sum())


def mine(vectors: torch.Tensor, search: str) -> Neighbours:
    """Mining as recipes/mine.py does it, in memory."""
    dataset = Dataset.from_dict({"image_id": np.arange(len(vectors)).astype(str)})
    return find_neighbours(dataset, vectors, MiningSettings(K, search=search))  # type: ignore[arg-type]


def exact(rows: int) -> None:
    """Every pair, beside faiss alone."""
    vectors = even(rows)
    base = gigabytes()
    found, seconds, cpu = measured(lambda: mine(vectors, "exact"))
    peak = gigabytes()

    def bare() -> np.ndarray:
        plain = UnitRows(vectors)[0:rows]
        index = faiss.IndexFlatIP(DIM)
        index.add(plain)
        return index.search(plain, K + 1)[1]

    entries, bare_seconds, bare_cpu = measured(bare)
    own = np.arange(rows)[:, None]
    others = np.array([row[row != number][:K] for number, row in zip(own[:, 0], entries, strict=True)])
    print(f"{rows} x {DIM}, k = {K}, {faiss.omp_get_max_threads()} threads, exact")
    print(
        f"  mined:      {seconds:7.1f} s ({cpu:.1f} s of processor), peak memory {peak:.2f} GB, {base:.2f} GB before"
    )
    print(f"  bare faiss: {bare_seconds:7.1f} s ({bare_cpu:.1f} s of processor), peak memory {gigabytes():.2f} GB")
    print(f"  ratio {seconds / bare_seconds:.3f} by the clock, {cpu / bare_cpu:.3f} by the processor")
    print(
        f"  planted neighbours found {share_of_planted_found(found):.4f}; as faiss {(others == found.rows).mean():.4f}"
    )


def ivf(rows: int, data: Callable[[int], torch.Tensor] = clustered) -> None:
    """In trained cells, beside every pair on a sample."""
    vectors = data(rows)
    base = gigabytes()
    found, seconds, cpu = measured(lambda: mine(vectors, "ivf"))
    peak, how = gigabytes(), found.searched
    sample = np.sort(np.random.default_rng(7).permutation(rows)[:SAMPLE])
    unit = UnitRows(vectors)[0:rows]
    (scores, entries), *bare = measured(lambda: faiss.knn(unit[sample], unit, K + 1, faiss.METRIC_INNER_PRODUCT))
    all_seconds, all_cpu = (each * rows / len(sample) for each in bare)
    scores[entries == sample[:, None]] = -np.inf
    true = np.sort(scores, axis=1)[:, -K:]
    recall = float((found.similarities[sample] >= true[:, :1] - 1e-6).mean())
    by_rank = ", ".join(f"{each:.3f}" for each in np.nanmean(found.similarities[sample], axis=0))
    print(f"{rows} x {DIM}, {data.__name__}, k = {K}, {faiss.omp_get_max_threads()} threads")
    print(f"  {how['probes']} of {how['cells']} cells, {how['refined']} times as many compared in full")
    print(f"  mined: {seconds:.1f} s ({cpu:.1f} s of processor), peak memory {peak:.2f} GB, {base:.2f} GB before")
    print(
        f"  all pairs by bare faiss, from {len(sample)} rows in this run: {all_seconds:.0f} s ({all_cpu:.0f} s of "
        f"processor): {all_seconds / seconds:.1f} times as long by the clock, {all_cpu / cpu:.1f} by the processor"
    )
    print(f"  recall@{K} {recall:.4f} on {len(sample)} rows (its own measure, on others: {how['recall']:.4f})")
    print(f"  similarity by rank {by_rank}")
    if data is even:  # in clusters others of the same subject may be nearer than the group
        print(f"  planted neighbours found {share_of_planted_found(found):.4f}")


def photograph(generator: np.random.Generator) -> bytes:
    """A JPEG of 640 x 480 with large shapes and fine grain, about as large as one of COCO."""
    coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
    grain = generator.normal(0, 8, (480, 640, 1))
    pixels = (np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()


def embedding(rows: int) -> None:
    """JPEG files to embeddings with a ViT-B/32 (weights do not matter here), beside CLIP on ready pixels."""
    with tempfile.TemporaryDirectory() as place:
        config = open_clip.get_model_config("ViT-B-32")
        preprocess = {
            "mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
            "size": [224, 224], "interpolation": "bicubic", "resize_mode": "shortest",
        }  # fmt: skip
        save_open_clip(open_clip.create_model("ViT-B-32"), Path(place) / "clip", config, preprocess)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        scorer = ClipScorer(str(Path(place) / "clip"), device=device)
        generator = np.random.default_rng(0)
        paths = [Path(place) / f"{row}.jpg" for row in range(rows)]
        for path in paths:
            path.write_bytes(photograph(generator))
        texts = [f"a photograph of a thing that has the number {row}" for row in range(rows)]
        columns = {"image": [str(path) for path in paths], "captions": [[text] for text in texts], "image_id": texts}
        dataset = Dataset.from_dict(columns, features=caption_features())
        images = [decode_image({"path": str(path), "bytes": None}) for path in paths]
        pixels = [scorer.transform(image) for image in images]

        def bare(ready: bool) -> None:
            for start in range(0, rows, 64):
                batch = pixels[start : start + 64] if ready else map(scorer.transform, images[start : start + 64])
                scorer.encode_images(torch.stack(list(batch))).cpu()
            scorer.encode_texts(texts)

        bare(ready=True)  # the first call is slower
        workers = torch.get_num_threads()
        ways = ("CLIP alone, on ready pixels", "bare loop over decoded images", "files to cached embeddings")
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for turn in range(2):  # in turns, so that what else runs on the machine meets all
            embed = partial(embed_dataset, dataset, scorer, Path(place) / f"cache{turn}", num_workers=workers)
            for way, work in zip(ways, (partial(bare, ready=True), partial(bare, ready=False), embed), strict=True):
                times[way].append(measured(work)[1:])
        size = sum(path.stat().st_size for path in paths) / rows / 1000
        how = f"ViT-B/32 on {device}, {workers} threads and workers"
        print(f"{rows} JPEGs of 640 x 480 ({size:.0f} kB), a caption each, {how}")
        best = {way: [min(each) for each in zip(*seconds, strict=True)] for way, seconds in times.items()}
        for way, (seconds, cpu) in best.items():
            print(f"  {way}: {rows / seconds:.1f} images a second, {1000 * cpu / rows:.1f} ms of processor an image")
        for way in ways[:2]:
            wall, processor = (a / b for a, b in zip(best[way], best[ways[2]], strict=True))
            print(f"  of the speed of: {way}: {wall:.3f} by the clock, {processor:.3f} by the processor")


def main() -> None:
    """Run one of them."""
    sizes = {"exact": 118_287, "ivf": 1_000_000, "ivf_even": 100_000, "embedding": 512}
    works: dict[str, Callable[[int], None]] = {
        "exact": exact, "ivf": ivf, "ivf_even": partial(ivf, data=even), "embedding": embedding,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sizes)
    parser.add_argument("--rows", type=int)
    arguments = parser.parse_args()
    disable_progress_bars()
    show_logs()
    works[arguments.what](arguments.rows or sizes[arguments.what])


if __name__ == "__main__":
    main()
