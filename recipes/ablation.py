"""Train every row of an ablation with several seeds, and put them side by side.

    python recipes/ablation.py recipes/configs/ablation.yaml --output_dir outputs/ablation --seeds 0 1 2

Each row is a run of recipes/train.py with settings of its own; a run whose metrics.json is there is not run again.
Writes OUT/ablation.md and OUT/ablation.json: mean and standard deviation over the seeds.
"""

from __future__ import annotations

import json
import logging
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from hf_distinct.arguments import parse_settings

TRAIN = Path(__file__).parent / "train.py"
COLUMNS = {
    "judge/t2i_R@1": "judge R@1", "scorer/t2i_R@1": "scorer R@1", "well_formed": "well-formed", "true": "true",
    "details": "details", "CIDEr-D": "CIDEr-D", "twins/judge/t2i_R@1": "twins: judge R@1", "twins/true": "twins: true",
}  # fmt: skip

logger = logging.getLogger("ablation")


@dataclass
class Settings:
    """Which rows, how often."""

    rows: str = field(metadata={"help": "YAML file: name of a row -> settings of recipes/train.py."})
    output_dir: str = field(default="outputs/ablation", metadata={"help": "Where runs and tables go."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "A run of each row for each."})
    only: list[str] = field(default_factory=list, metadata={"help": "Names of rows; none: all."})
    split: str = field(default="test", metadata={"help": "validation, to choose settings; test, to report."})


def run(name: str, overrides: dict, seed: int, settings: Settings) -> dict[str, dict[str, float]]:
    """One training, unless it has been done; returns its metrics.json."""
    folder = Path(settings.output_dir) / name.replace(" ", "_").replace("/", "_") / f"seed{seed}"
    report = folder / "metrics.json"
    if not report.is_file():
        flags = {"output_dir": folder, "seed": seed, "split": settings.split, "disable_tqdm": True, **overrides}
        command = [sys.executable, str(TRAIN)]
        for key, value in flags.items():
            command += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        logger.info("%s, seed %d", name, seed)
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "log.txt", "w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return json.loads(report.read_text())


def cell(values: list[float]) -> str:
    """Mean and, with several seeds, standard deviation."""
    mean = statistics.mean(values)
    return f"{mean:.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main() -> None:
    """Run the rows and write the tables."""
    argv = sys.argv[1:]
    if argv and not argv[0].startswith("-"):
        argv = ["--rows", *argv]
    (settings,) = parse_settings(Settings, argv=argv, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = yaml.safe_load(Path(settings.rows).read_text())
    unknown = [name for name in settings.only if name not in rows]
    if unknown:
        raise SystemExit(f"{settings.rows} has no row {', '.join(unknown)}; it has {', '.join(rows)}")
    found: dict[str, dict[str, list[float]]] = {}
    for name, overrides in rows.items():
        if settings.only and name not in settings.only:
            continue
        for seed in settings.seeds:
            metrics = run(name, overrides or {}, seed, settings)
            for system, key in (("people", "people"), ("everything, truly", "ceiling"), ("teacher forcing", "before")):
                if system not in found and key in metrics:
                    found[system] = {column: [metrics[key][column]] for column in COLUMNS if column in metrics[key]}
            for column in COLUMNS:
                if column in metrics["after"]:
                    found.setdefault(name, {}).setdefault(column, []).append(metrics["after"][column])
        lines = ["| row | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
        for row, values in found.items():
            cells = [cell(values[column]) if column in values else "" for column in COLUMNS]
            lines.append(f"| {row} | " + " | ".join(cells) + " |")
        table = "\n".join(lines) + "\n"
        (Path(settings.output_dir) / "ablation.md").write_text(table)
        (Path(settings.output_dir) / "ablation.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table)


if __name__ == "__main__":
    main()
