"""Captioning that is killed (SIGKILL), alone or in two processes, ends as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
import tarfile
from contextlib import suppress
from pathlib import Path

import published_forms
import pytest
from datasets import Dataset, Features, Image
from faults.jobs import Ended, Job, Run

pytestmark = pytest.mark.slow
COUNT = 90
PARTS = 12  # of eight pictures
UNREADABLE = 33


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A third as files, a third in a tar, a third in parquet, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    content = published_forms.jpegs(COUNT)
    content[UNREADABLE] = content[UNREADABLE][:200]
    for number in range(0, COUNT, 3):
        (folder / f"{number:02}.jpg").write_bytes(content[number])
    with tarfile.open(folder / "1.tar", "w") as shard:
        for number in range(1, COUNT, 3):
            (folder / "1.tar.member").write_bytes(content[number])
            shard.add(folder / "1.tar.member", f"{number:02}.jpg")
    rows = [{"bytes": each, "path": None} for each in content[2::3]]
    Dataset.from_dict({"image": rows}, features=Features({"image": Image()})).to_parquet(folder / "2.parquet")
    return folder


@pytest.fixture(scope="module", params=["captions.jsonl", "captions.parquet"])
def job(request, pictures, tiny_models) -> Job:
    settings = ("--model", tiny_models / "captioner", "--batch_size", 2, "--num_workers", 0, "--ddp_timeout", 60)
    return Job("caption.py", (pictures, *settings, "--output_file", request.param), ("captions*", "captions.html"))


@pytest.fixture(scope="module")
def undisturbed(job, tmp_path_factory) -> tuple[Ended, dict[str, str]]:
    ended = Run(job, output := tmp_path_factory.mktemp("undisturbed")).end()
    assert ended.well and f"{UNREADABLE:02}.jpg" in ended.said, ended.said
    if (lines := output / "captions.jsonl").is_file():
        names = [json.loads(line)["file_name"] for line in lines.read_text().splitlines()]
        assert len(names) == len(set(names)) == COUNT - 1
        assert names == sorted(names, key=lambda name: name.split("/")[0])
    return ended, results(job, output)


def results(job: Job, output: Path) -> dict[str, str]:
    """What must not depend on what happened: everything but the number of the run."""
    found = job.content(output)
    assert len(found) == 3 and not list(output.glob("*.parts"))
    return {name: content for name, content in found.items() if not name.endswith(".run.json")}


def parts(output: Path) -> dict[str, tuple[int, int]]:
    """The parts that are there, and which file each is."""
    found = {}
    for path in output.glob("*.parts/0*.safetensors"):
        with suppress(FileNotFoundError):  # a run that ends removes them
            state = path.stat()
            found[path.name] = state.st_ino, state.st_mtime_ns
    return found


def test_killed_again_and_again_and_the_same_to_the_byte(job, undisturbed, tmp_path):
    chance, kills, kept = random.Random(0), 0, {}
    while True:
        run = Run(job, tmp_path)
        while len(parts(tmp_path)) <= len(kept) and not run.over(0.001):
            pass
        run.over(chance.uniform(0, 0.03))
        run.send(signal.SIGKILL)
        ended = run.end()
        if ended.well:
            break
        assert ended.codes == [-signal.SIGKILL], ended.said
        kills, found = kills + 1, parts(tmp_path)
        if not is_finished(tmp_path):
            assert kept.items() <= found.items()  # nothing is written twice
        kept = found
    assert kills >= 3 and results(job, tmp_path) == undisturbed[1]


def is_finished(output: Path) -> bool:
    """Whether only the parts are left to remove."""
    return any(json.loads(path.read_text())["finished"] for path in output.glob("*.run.json"))


def in_two(job: Job) -> Job:
    return Job(job.recipe, job.settings, job.compared, 2)


def test_two_processes_share_the_work(job, undisturbed, tmp_path):
    ended = Run(in_two(job), tmp_path).end()
    assert ended.well, ended.said
    assert results(job, tmp_path) == undisturbed[1]
    half = 8 * PARTS // 2
    assert f"{half}/{half}" in ended.said and f"/{COUNT}" not in ended.said
    again = Run(in_two(job), tmp_path).end()
    assert again.well and "has all captions already" in again.said and "Captioning" not in again.said


@pytest.mark.parametrize("rank", [0, 1])
def test_the_death_of_one_of_two_loses_nothing(job, undisturbed, tmp_path, rank):
    run = Run(in_two(job), tmp_path)
    while len(parts(tmp_path)) < 3 and not run.over(0.001):
        pass
    assert run.send(signal.SIGKILL, rank)
    ended = run.end()
    assert not ended.hung and ended.codes[1 - rank] == 0, ended.said
    if rank:  # the first process has done the work of both
        assert results(job, tmp_path) == undisturbed[1]
    else:  # the second one has, but does not join the parts
        assert len(kept := parts(tmp_path)) == PARTS
        again = Run(job, tmp_path)
        while not list(tmp_path.glob("captions.[jp]*")) and not again.over(0.001):
            assert not parts(tmp_path) or parts(tmp_path) == kept
        assert again.end().well and results(job, tmp_path) == undisturbed[1]
