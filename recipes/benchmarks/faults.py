"""Disturb runs of every recipe, and break files for every reader: nothing may be lost, wrong or said by a traceback.

    python recipes/benchmarks/faults.py                                  # about an hour on one core
    python recipes/benchmarks/faults.py --faults 40 --inputs 0 --kinds kill disk

Needs a checkout: the small models and the faults themselves are in tests/. After each fault the run is repeated or
resumed, and compared with one that nobody disturbed. Prints a table of how many were tried, and what is wrong in full:

    lost                 something that was whole is not any more, or the run cannot go on
    silently wrong       the run ends with exit code 0, and other weights or figures than the undisturbed one
    bare tracebacks      instead of one line that says what is the matter

Exits 1 if anything is. The same seed draws the same faults, at moments that differ by what else the machine does.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

RECIPES = Path(__file__).parents[1]
TESTS = RECIPES.parent / "tests"
# Not this folder, in which `faults` would be this file.
sys.path[:] = [str(TESTS), str(RECIPES.parent), *(each for each in sys.path if each != str(Path(__file__).parent))]

import forked  # noqa: E402
from faults.campaign import KINDS, NAMESPACE, Campaign, Fault, may_mount  # noqa: E402
from faults.fuzz_readers import fuzz  # noqa: E402
from loopback_hub import LoopbackHub  # noqa: E402

from hf_distinct.reporting.table import markdown_table  # noqa: E402
from hf_distinct.runs.arguments import clear_errors  # noqa: E402

FUZZ = "fuzz"
INSIDE = "HF_DISTINCT_MAY_MOUNT"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=250, help="Number of faults, over all kinds.")
    parser.add_argument("--inputs", type=int, default=100_000, help="Number of broken files, over all readers.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of what is drawn.")
    parser.add_argument(
        "--kinds", nargs="+", choices=[*KINDS, FUZZ], default=[*KINDS, FUZZ], help="Kinds of faults. Default: all."
    )
    parser.add_argument("--output", type=Path, help="File to write the table to, as Markdown.")
    return parser.parse_args()


def row(faults: list[Fault], minutes: float) -> dict[str, float]:
    """One row of the table."""
    return {
        "tried": len(faults),
        "lost": sum(bool(each.lost) for each in faults),
        "silently wrong": sum(bool(each.wrong) for each in faults),
        "bare tracebacks": sum(bool(each.bare) for each in faults),
        "minutes": round(minutes, 1),
    }


def show(table: dict[str, dict[str, float]], output: Path | None) -> None:
    """Print what there is so far, and write it."""
    text = markdown_table(table, digits=0)
    print(text, flush=True)
    if output is not None:
        output.write_text(text + "\n")


def disturb(given: argparse.Namespace, table: dict[str, dict[str, float]]) -> None:
    """All faults of the kinds that are asked for."""
    chosen = {name: KINDS[name] for name in given.kinds if name in KINDS}
    shares = sum(share for *_, share in chosen.values())
    with tempfile.TemporaryDirectory() as folder, LoopbackHub() as hub:
        environment = {**forked.ENVIRONMENT, **hub.environment(Path(folder) / "home"), "OMP_WAIT_POLICY": "PASSIVE"}
        with patch.dict(os.environ, environment):
            campaign = Campaign(Path(folder), hub, given.seed)
            for name, (what, do, share) in chosen.items():
                if name == "disk" and not may_mount(Path(folder)):
                    print("disk: not tried, since this machine lets nobody mount a small disk")
                    continue
                begin, faults = time.monotonic(), []
                for each in do(campaign, max(round(given.faults * share / shares), 1)):
                    faults.append(each)
                    print(f"{name}: {each.what}", file=sys.stderr)
                    for wrong in filter(None, (each.lost, each.wrong, each.bare)):
                        print(f"\n{name}: {each.what}: {wrong}\n", flush=True)
                table[what] = row(faults, (time.monotonic() - begin) / 60)
                show(table, given.output)


def main() -> None:
    """Do all of it, and show the table."""
    given = arguments()
    if "disk" in given.kinds and INSIDE not in os.environ and may_mount(Path(tempfile.gettempdir())):
        os.environ[INSIDE] = "1"
        os.execvp(NAMESPACE[0], [*NAMESPACE, sys.executable, *sys.argv])
    table: dict[str, dict[str, float]] = {}
    if set(given.kinds) - {FUZZ}:
        disturb(given, table)
    if FUZZ in given.kinds and given.inputs:
        logging.disable(logging.CRITICAL)
        begin = time.monotonic()
        readers, tracebacks = fuzz(given.inputs, given.seed)
        for each in tracebacks[:20]:
            print(each[-3000:])
        tried = sum(reader.outcomes.total() for reader in readers.values())
        found = {"lost": 0, "silently wrong": 0, "bare tracebacks": len(tracebacks)}
        minutes = round((time.monotonic() - begin) / 60, 1)
        table[f"broken files, given to {len(readers)} readers"] = {"tried": tried, **found, "minutes": minutes}
    total = {name: sum(each[name] for each in table.values()) for name in next(iter(table.values()))}
    show({**table, "all": total}, given.output)
    sys.exit(any(total[name] for name in ("lost", "silently wrong", "bare tracebacks")))


if __name__ == "__main__":
    with clear_errors():
        main()
