"""Faults by kind: each disturbs a job, repeats or resumes it, and compares with a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import forked
from faults.jobs import PRELOAD, TRACEBACK, Ended, Job, Run, inputs, jobs, torn
from loopback_hub import USER, LoopbackHub, cut, deaf, refuse

from hf_distinct.files import checkpoints

TESTS = Path(__file__).parents[1]
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]
PAGE = 4096
ROOM = 2**28


@dataclass(frozen=True)
class Fault:
    """What was done to a run, and what came of it.

    Attributes:
        what: was done.
        lost: what is gone, or why the run cannot go on; empty if all is well.
        wrong: what is silently another than in the undisturbed run.
        bare: the traceback that a person would see.
    """

    what: str
    lost: str = ""
    wrong: str = ""
    bare: str = ""

    @property
    def bad(self) -> bool:
        """Whether something is to be mended."""
        return bool(self.lost or self.wrong or self.bare)


@dataclass(frozen=True)
class Undisturbed:
    """A finished run of a job."""

    output: Path
    content: dict[str, str]
    seconds: float


class Campaign:
    """The jobs, and what each leaves if nobody disturbs it.

    Args:
        folder: where all of it is written.
        hub: where pushes go; its address has to be in the environment before the first process starts.
        seed: of what is drawn.
    """

    def __init__(self, folder: Path, hub: LoopbackHub, seed: int) -> None:
        forked.SERVER.set_forkserver_preload(PRELOAD)
        self.folder, self.hub, self.seed = folder, hub, seed
        self.pictures, self.models = inputs(folder)
        self.jobs = jobs(self.pictures, self.models)
        Run(_push(folder, "", ""), folder).end()  # makes the imports of all others
        self._undisturbed: dict[str, Undisturbed] = {}

    def chance(self, kind: str) -> random.Random:
        """The random numbers of a kind."""
        return random.Random(f"{self.seed} {kind}")

    def undisturbed(self, name: str) -> Undisturbed:
        """What a job leaves."""
        if name not in self._undisturbed:
            output = self.folder / "undisturbed" / name
            ended = Run(self.jobs[name], output).end()
            assert ended.well, ended.said
            content = self.jobs[name].content(output)
            assert content, f"{name} left nothing to compare"
            self._undisturbed[name] = Undisturbed(output, content, ended.seconds)
        return self._undisturbed[name]

    def output(self) -> Path:
        """An empty folder."""
        output = self.folder / "disturbed"
        shutil.rmtree(output, ignore_errors=True)
        return output

    def repeated(self, what: str, name: str, output: Path, disturbed: Ended) -> Fault:
        """Repeat a job after a fault, and judge.

        Args:
            what: was done.
            name: of the job.
            output: the folder it writes to.
            disturbed: how the run ended that the fault met.
        """
        lost = "it waits for ever" if disturbed.hung else self._lost(output)
        return self.judged(what, name, output, disturbed, Run(self.jobs[name], output).end(), lost=lost)

    def judged(self, what: str, name: str, output: Path, *runs: Ended, lost: str = "") -> Fault:
        """Hold the last run, which nothing keeps from its end, against the undisturbed one."""
        last, wrong = runs[-1], []
        if last.well:
            wanted, found = self.undisturbed(name).content, self.jobs[name].content(output)
            wrong = [each for each in {**wanted, **found} if wanted.get(each) != found.get(each)]
        else:
            lost = lost or f"it does not go on: {last.codes} {'it waits for ever' if last.hung else last.said[-1000:]}"
        return Fault(f"{name}: {what}", lost, ", ".join(wrong), bare(*runs))

    @staticmethod
    def _lost(output: Path) -> str:
        """What was whole and is no more: a file, or a checkpoint that has its seal."""
        sealed = [seal.parent for seal in output.glob(f"checkpoint-*/{checkpoints.SEAL}")]
        damaged = (f"{each}: {reason}" for each in sealed if (reason := checkpoints.damage(each)))
        return torn(output) or next(damaged, "")


def bare(*runs: Ended) -> str:
    """The first traceback that a person would see."""
    return next((each.said[each.said.index(TRACEBACK) :][-3000:] for each in runs if TRACEBACK in each.said), "")


# ------------------------------------------------------------------------------------------------- kills and signals


def killed(campaign: Campaign, count: int) -> Iterator[Fault]:
    """SIGKILL of a recipe at a random moment; every other one in a folder that an earlier run has finished."""
    names = [name for name, job in campaign.jobs.items() if job.processes == 1]
    yield from _at_random_moments(campaign, count, "killed", names, [signal.SIGKILL])


def signalled(campaign: Campaign, count: int) -> Iterator[Fault]:
    """The signals that ask a recipe to stop."""
    names = [name for name, job in campaign.jobs.items() if job.processes == 1]
    asking = [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT]
    yield from _at_random_moments(campaign, count, "signalled", names, asking)


def one_rank_killed(campaign: Campaign, count: int) -> Iterator[Fault]:
    """SIGKILL of one of two processes; the other one has to end by itself."""
    names = [name for name, job in campaign.jobs.items() if job.processes > 1]
    yield from _at_random_moments(campaign, count, "one rank killed", names, [signal.SIGKILL])


def _at_random_moments(
    campaign: Campaign, count: int, kind: str, names: list[str], signals: list[signal.Signals]
) -> Iterator[Fault]:
    chance, number = campaign.chance(kind), 0
    while number < count:
        name = names[number % len(names)]
        undisturbed, output, which = campaign.undisturbed(name), campaign.output(), chance.choice(signals)
        begun = bool(number // len(names) % 2)
        if begun:
            shutil.copytree(undisturbed.output, output)
        run, moment = Run(campaign.jobs[name], output), chance.uniform(0, undisturbed.seconds)
        run.over(moment)
        met, ended = run.send(which, rank := chance.randrange(campaign.jobs[name].processes)), run.end()
        if not met:  # it was faster than the undisturbed run
            continue
        number += 1
        what = f"{which.name} to rank {rank} after {moment:.3f} s{' of a repetition' if begun else ''}"
        yield campaign.repeated(what, name, output, ended)


def killed_while_saving(campaign: Campaign, count: int) -> Iterator[Fault]:
    """SIGKILL at a random moment after a checkpoint, or a model, has begun to appear."""
    moments = {
        "train": [f"checkpoint-{step}" for step in (2, 4, 6)] + ["*.safetensors"],
        "warm_up": [f"checkpoint-{step}" for step in (2, 4, 6)] + ["*.safetensors"],
        "train_clip": ["tokenizer_config.json"],
    }
    yield from _after_it_appears(campaign, count, "saving", moments)


def killed_while_embedding(campaign: Campaign, count: int) -> Iterator[Fault]:
    """SIGKILL at a random moment after embeddings, or what is mined from them, have begun to appear."""
    moments = {"mine": ["embeddings-*", "embeddings-*/*.npy", "*"], "mine, two processes": ["embeddings-*"]}
    yield from _after_it_appears(campaign, count, "embedding", moments)


def _after_it_appears(campaign: Campaign, count: int, kind: str, moments: dict[str, list[str]]) -> Iterator[Fault]:
    chance, number, names = campaign.chance(kind), 0, list(moments)
    while number < count:
        name = names[number % len(names)]
        pattern, later = chance.choice(moments[name]), 10 ** chance.uniform(-4, -0.5)
        run = Run(campaign.jobs[name], output := campaign.output())
        if run.wait_for(pattern):
            run.over(later)
        met, ended = run.send(signal.SIGKILL, chance.randrange(len(run.processes))), run.end()
        if met:  # it may have ended before
            number += 1
            yield campaign.repeated(f"SIGKILL {later:.4f} s after {pattern}", name, output, ended)


def killed_steps(campaign: Campaign, count: int) -> Iterator[Fault]:
    """kill_and_resume.py: SIGKILL between any two events of a training with everything switched on."""
    yield from _kill_and_resume(campaign, count, 1)


def one_rank_killed_steps(campaign: Campaign, count: int) -> Iterator[Fault]:
    """kill_and_resume.py with two processes, one of which is killed."""
    yield from _kill_and_resume(campaign, count, 2)


def _kill_and_resume(campaign: Campaign, count: int, processes: int) -> Iterator[Fault]:
    flags = {"kills": count, "processes": processes, "seed": campaign.seed}
    command = [sys.executable, str(Path(__file__).parent / "kill_and_resume.py")]
    done = subprocess.run(
        [*command, *(word for name, value in flags.items() for word in (f"--{name}", str(value)))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        capture_output=True, text=True,
    )  # fmt: skip
    what = f"{count} kills of a training of {processes} processes"
    if "{" not in done.stdout:
        yield Fault(what, lost=f"it does not go on: {done.stderr[-1000:]}")
        return
    found = json.loads(done.stdout[done.stdout.index("{") :])
    yield from [Fault("SIGKILL")] * (found["kills"] - 1)
    yield Fault(what, wrong=", ".join(found.get("differs", [])))


# ---------------------------------------------------------------------------------------------------------- the Hub


def killed_while_pushing(campaign: Campaign, count: int) -> Iterator[Fault]:
    """At each request of a push: the pusher is killed, or the Hub breaks off, does not answer, or fails."""
    chance = campaign.chance("pushing")
    pushed = {"model": campaign.undisturbed("train").output, "dataset": campaign.undisturbed("mine").output}
    wanted, requests = {}, {}
    for kind, folder in pushed.items():
        before = len(campaign.hub.requests)
        ended = Run(_push(folder, f"{USER}/whole-{kind}", kind), folder).end()
        assert ended.well, ended.said
        requests[kind] = len(campaign.hub.requests) - before
        wanted[kind] = _pushed(campaign.hub, f"whole-{kind}", kind)
    for number in range(count):
        kind = ("model", "dataset")[number % 2]
        name, at = f"{kind}-{number}", chance.randrange(requests[kind])
        how = ("kill", "cut", "deaf", "error")[number // 2 % 4] if chance.random() < 0.6 else "kill"
        job = _push(pushed[kind], f"{USER}/{name}", kind)
        campaign.hub.meddlers = []
        campaign.hub.meddle("", lambda handler: None, at)
        run: list[Run] = []

        def kill(handler: Any, run: list[Run] = run) -> None:
            run[0].send(signal.SIGKILL)
            cut(handler)

        action = {"kill": kill, "cut": cut, "deaf": deaf, "error": refuse(503)}[how]
        campaign.hub.meddle("", action)
        run.append(Run(job, pushed[kind]))
        disturbed = run[0].end()
        campaign.hub.meddlers = []
        between = _pushed(campaign.hub, name, kind)
        lost = "" if between in ({}, wanted[kind]) else "the repository holds a part of a push"
        again = Run(job, pushed[kind]).end()
        if not again.well:
            lost = lost or f"it does not go on: {again.said[-1000:]}"
        found = _pushed(campaign.hub, name, kind)
        wrong = [each for each in {**wanted[kind], **found} if wanted[kind].get(each) != found.get(each)]
        what = f"push of a {kind}: {how} at request {at + 1}"
        yield Fault(what, lost, "" if lost else ", ".join(wrong), bare(disturbed, again))


def _push(folder: Path, name: str, kind: str) -> Job:
    return Job("push.py", ("--repo_id", name, "--repo_type", kind), ())


def _pushed(hub: LoopbackHub, name: str, kind: str) -> dict[str, bytes]:
    """What a repository holds; its own name on the card aside."""
    repo = hub.repos.get(f"datasets/{USER}/{name}" if kind == "dataset" else f"{USER}/{name}")
    files = {} if repo is None else repo.files
    return {path: content.replace(name.encode(), b"NAME") for path, content in files.items()}


# -------------------------------------------------------------------------------------------------------- full disks


def may_mount(folder: Path) -> bool:
    """Whether a small disk can be had, in a mount namespace of our own."""
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def full_disk(campaign: Campaign, count: int) -> Iterator[Fault]:
    """A disk that runs full in the middle of a file: of each file that a recipe writes, of some if ``count`` is less.

    The process must be in the `NAMESPACE`. A run that finds room all the same is no fault.
    """
    disk = campaign.folder / "disk"
    disk.mkdir(exist_ok=True)
    cases = [
        (name, file, pages)
        for name, job in campaign.jobs.items()
        if job.processes == 1
        for file, pages in _fillings(campaign.undisturbed(name).output)
    ]
    for name, file, pages in cases if count >= len(cases) else campaign.chance("full disk").sample(cases, count):
        _mount(disk, "", pages * PAGE)
        try:
            disturbed = Run(campaign.jobs[name], disk / "output").end()
            full = not disturbed.well or "No space left" in disturbed.said
            _mount(disk, "remount,", ROOM)
            if full:
                yield campaign.repeated(f"no room for {file}", name, disk / "output", disturbed)
        finally:
            subprocess.run(["umount", "-l", disk], check=True)


def _mount(disk: Path, how: str, size: int) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{how}size={size}", "tmpfs", disk], check=True)


def _fillings(output: Path) -> Iterator[tuple[str, int]]:
    """Each file by its name, and the pages with which a disk runs full in its middle."""
    files = sorted((path for path in output.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    before, last = 0, {}
    for path in files:
        pages = -(-path.stat().st_size // PAGE)
        # Of the files of that name in several checkpoints, the last: the one before it must stay.
        last[path.name] = (str(path.relative_to(output)), before + max(pages // 2, 1) - (pages == 1))
        before += pages
    yield from ((name, pages) for name, pages in last.values() if pages)


# ------------------------------------------------------------------------------------------------------ flipped bytes


def flipped_bytes(campaign: Campaign, count: int) -> Iterator[Fault]:
    """A few bits of a file that a run reads again: of each such file, of some of them if ``count`` is less."""
    cases = [
        (name, path)
        for name, patterns in (
            ("train", ["checkpoint-4/*"]),
            ("warm_up", ["checkpoint-4/*"]),
            ("mine", ["embeddings-*/*", "*.safetensors"]),
        )
        for path in _read_again(campaign.undisturbed(name).output, patterns)
    ]
    chance = campaign.chance("flipped bytes")
    chosen = list(islice(cycle(cases), count)) if count >= len(cases) else chance.sample(cases, count)
    for name, path in chosen:
        output = campaign.output()
        shutil.copytree(campaign.undisturbed(name).output, output)
        if path.startswith("checkpoint-4"):  # as a run that was killed after it
            shutil.rmtree(output / "checkpoint-6")
            for file in output.glob("*.*"):
                if file.is_file():
                    file.unlink()
        places = _flip(output / path, chance)
        yield campaign.judged(f"{path}, bits {places}", name, output, Run(campaign.jobs[name], output).end())


def _read_again(output: Path, patterns: list[str]) -> list[str]:
    found = [path for pattern in patterns for path in sorted(output.glob(pattern))]
    return [str(path.relative_to(output)) for path in found if path.is_file() and path.stat().st_size]


def _flip(path: Path, chance: random.Random) -> list[int]:
    """Flip one to three bits of a file, which keeps its times; returns their places."""
    content, state = bytearray(path.read_bytes()), path.stat()
    places = [chance.randrange(8 * len(content)) for _ in range(chance.randint(1, 3))]
    for place in places:
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    return places


KINDS: dict[str, tuple[str, Callable[[Campaign, int], Iterator[Fault]], float]] = {
    "kill": ("a recipe killed at a random moment", killed, 0.1),
    "steps": ("a training killed between any two of its events", killed_steps, 0.25),
    "rank": ("one of two processes killed", one_rank_killed, 0.04),
    "rank_steps": ("one of two processes killed between any two events", one_rank_killed_steps, 0.17),
    "save": ("killed during a save", killed_while_saving, 0.07),
    "embedding": ("killed while embedding and mining", killed_while_embedding, 0.05),
    "push": ("killed, or cut off, during a push", killed_while_pushing, 0.08),
    "signal": ("SIGTERM, SIGUSR1, SIGHUP or SIGINT at a random moment", signalled, 0.07),
    "disk": ("a full disk, at each file that is written", full_disk, 0.1),
    "bytes": ("flipped bits, in each file that is read again", flipped_bytes, 0.1),
}
"""By name: what is done, what does it, and its share of the faults."""
