"""Measure everything on a GPU by one command of ten minutes, on a machine without a network.

    python recipes/benchmarks/gpu.py --wheels wheels                        # a folder of what the machine lacks
    python recipes/benchmarks/gpu.py --wheels wheels --photographs packed   # and a training on photographs
    python recipes/benchmarks/gpu.py --rehearse                             # the same code on a CPU, on tiny models

Each part is a process with a time limit of its own. After each one the reports OUTPUT/report.json and OUTPUT/report.md
are written, so that a run that is cut off has reported what it has measured. recipes/README.md says how to make the
folders.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECIPES, ROOT = HERE.parent, HERE.parents[1]
LEAST_SECONDS = 10  # less is not worth a start
REHEARSAL = 6  # times as long may a part take on a CPU
TAIL = 30  # lines of what a part said


@dataclass
class Part:
    """One measurement.

    Attributes:
        name: of the part, its log and its figures.
        command: what Python runs.
        seconds: its time limit.
        why_not: why it is left out, if it is.
        environment: variables of its own.
    """

    name: str
    command: list[str]
    seconds: int
    why_not: str = ""
    environment: dict[str, str] = field(default_factory=dict)


def parts(output: Path, rehearse: bool, photographs: Path | None) -> list[Part]:
    """All measurements, in the order of what they are worth."""

    def own(name: str, seconds: int) -> Part:
        small = ["--small"] if rehearse else []
        command = [str(HERE / "gpu_parts.py"), name, "--output", str(output / f"{name}.json"), *small]
        return Part(name, command, seconds)

    def launched(name: str, seconds: int, settings: str, launch: Sequence[str], *more: str, why_not: str = "") -> Part:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(RECIPES / "accelerate" / settings)]
        folder = ["--output_dir", str(output / name)]
        return Part(name, [*launcher, *launch, str(RECIPES / "train.py"), *more, *folder], seconds, why_not)

    steps = ["--max_steps", "2" if rehearse else "30", "--save_strategy", "no", "--logging_steps", "2"]
    steps += ["--discriminator_pretrain_steps", "1"]
    scenes = ["--train_size", "40" if rehearse else "2000", "--test_size", "4" if rehearse else "100"]
    scenes += [*steps, "--per_device_train_batch_size", "4" if rehearse else "32"]
    half = ["--bf16", "true"]
    no_deepspeed = "" if util.find_spec("deepspeed") else "DeepSpeed is not installed"
    test_file = str(ROOT / "tests" / "end_to_end" / "test_gpu.py")
    tests = ["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-m", "gpu", test_file]
    rows = {"captioning": "8" if rehearse else "512", "embedding": "8" if rehearse else "512"}
    photographed = ["--dataset", str(photographs), "--test_size", "500", "--eval_strategy", "no"]
    for name in ("model_name_or_path", "scorer"):
        photographed += [f"--{name}", f"{photographs}/{name.removesuffix('_name_or_path')}"]
    return [
        Part("tests", tests, 90, environment={"GPU_REHEARSAL": "1"} if rehearse else {}),
        own("step", 190),
        own("profile", 50),
        Part("captioning", [str(HERE / "captioning.py"), "--rows", rows["captioning"]], 35),
        Part("embedding", [str(HERE / "mining.py"), "embedding", "--rows", rows["embedding"]], 45),
        launched("one process", 50, "one_process.yaml", [], *scenes, *half),
        # DeepSpeed has no half precision on a CPU.
        launched("ZeRO-2", 60, "zero2.yaml", ["--num_processes", "1"], *scenes, *([] if rehearse else half),
                 why_not=no_deepspeed),
        launched("photographs", 120, "one_process.yaml", [], *photographed, *steps, *half,
                 why_not="" if photographs else "no folder of photographs was given"),
        own("decoding", 80),
    ]  # fmt: skip


def install(wheels: Path | None) -> str:
    """Install those wheels of a folder whose package is not here yet; without a network, and nothing else.

    Raises:
        SystemExit: pip cannot.
    """
    if wheels is None:
        return "nothing: no folder of wheels was given"
    files = sorted(wheels.glob("*.whl"))
    if not files:
        raise SystemExit(f"gpu.py: error: {wheels} holds no wheels; recipes/README.md says how to fill it")
    lacking = [file for file in files if not is_installed(file.name.split("-")[0])]
    if lacking:
        offline = ["--no-index", "--no-deps", "--find-links", str(wheels)]
        done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", *offline, *map(str, lacking)])
        if done.returncode:
            raise SystemExit(f"gpu.py: error: pip could not install {', '.join(file.name for file in lacking)}")
    return ", ".join(file.name.split("-py")[0] for file in lacking) or "nothing: all of it was there"


def is_installed(package: str) -> bool:
    """Whether some version of a package is here."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def run(part: Part, output: Path, seconds: float) -> dict[str, Any]:
    """Run a part to its end or to its limit; what came of it."""
    if part.why_not:
        return {"state": f"left out: {part.why_not}"}
    if seconds < LEAST_SECONDS:
        return {"state": "left out: no time was left"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), **part.environment,
    }  # fmt: skip
    log, began = output / f"{part.name}.log", time.monotonic()
    with open(log, "w") as said:
        process = subprocess.Popen(
            [sys.executable, *part.command], cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(seconds)
            state = "done" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            state = f"cut off after {seconds:.0f} s"
        finally:
            end(process)
    found: dict[str, Any] = {"state": state, "seconds": time.monotonic() - began}
    figures = output / f"{part.name}.json"
    if figures.is_file():
        found["figures"] = json.loads(figures.read_text())
    if not figures.is_file() or state != "done":
        found["said"] = log.read_text(errors="replace").splitlines()[-TAIL:]
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it has started."""
    with suppress(ProcessLookupError):  # they have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def machine() -> dict[str, str]:
    """What is measured on."""
    packages = ("torch", "transformers", "accelerate", "datasets", "open_clip_torch", "deepspeed")
    facts = {name: metadata.version(name) if is_installed(name) else "none" for name in packages}
    show = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU')"
    device = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True).stdout.strip()
    return {"device": device, "Python": sys.version.split()[0], "cores": str(os.cpu_count()), **facts}


def write(report: dict[str, Any], output: Path) -> None:
    """The report for programs and the one for people."""
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    lines = [f"# On {report['machine']['device']}", "", *shown(report["machine"])]
    for name, found in report["parts"].items():
        lines += ["", f"## {name}: {found['state']}, {found.get('seconds', 0):.0f} s", ""]
        lines += shown(found.get("figures", {}))
        if "said" in found:
            lines += ["```", *found["said"], "```"]
    (output / "report.md").write_text("\n".join(lines) + "\n")


def shown(figures: dict[str, Any], depth: int = 0) -> list[str]:
    """Figures as a list; those that lie deepest on one line."""
    lines = []
    for name, value in figures.items():
        if isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
            lines += [f"{'  ' * depth}- {name}", *shown(value, depth + 1)]
        else:
            values = value.items() if isinstance(value, dict) else [("", value)]
            said = ", ".join(f"{key} {number(each)}".strip() for key, each in values)
            lines.append(f"{'  ' * depth}- {name}: {said}")
    return lines


def number(value: Any) -> str:
    """To four digits."""
    if isinstance(value, list):
        return " / ".join(map(number, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Install, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, help="folder of wheels; of those, what is not installed is installed")
    parser.add_argument("--photographs", type=Path, help="folder by pack_photographs.py, with captioner/ and scorer/")
    parser.add_argument("--output", type=Path, default=Path("outputs/gpu"), help="where the report goes")
    parser.add_argument("--seconds", type=int, default=570, help="time for all parts together")
    parser.add_argument("--only", nargs="+", metavar="PART", help="these parts alone")
    parser.add_argument("--rehearse", action="store_true", help="run all parts on a CPU, on tiny models")
    arguments = parser.parse_args()
    began = time.monotonic()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if arguments.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    installed = install(arguments.wheels)
    planned = parts(output, arguments.rehearse, arguments.photographs and arguments.photographs.resolve())
    if unknown := {*(arguments.only or ())} - {part.name for part in planned}:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(part.name for part in planned)}")
    report: dict[str, Any] = {"machine": machine() | {"installed": installed}, "parts": {}}
    write(report, output)
    longer = REHEARSAL if arguments.rehearse else 1
    for part in planned:
        if arguments.only and part.name not in arguments.only:
            continue
        (output / f"{part.name}.json").unlink(missing_ok=True)  # of an earlier run
        left = longer * arguments.seconds - (time.monotonic() - began)
        report["parts"][part.name] = found = run(part, output, min(longer * part.seconds, left))
        print(f"{part.name}: {found['state']}, {found.get('seconds', 0):.0f} s", flush=True)
        write(report, output)
    if any(found["state"] != "done" and "left out" not in found["state"] for found in report["parts"].values()):
        raise SystemExit(f"gpu.py: not every part was done; see {output / 'report.md'}")


if __name__ == "__main__":
    main()
