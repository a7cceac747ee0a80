"""Train every row of an ablation with several seeds, and show where each stands.

    python recipes/ablation.py --jobs 2                                           # on emoji scenes
    python recipes/ablation.py recipes/configs/ablation_coco.yaml --output_dir outputs/ablation_coco

The YAML file names the rows: what each changes in the settings of recipes/train.py. Beside them stands what the
captioner that all begin with can do by decoding alone (guidance, the best of n samples). A run whose metrics.json is
there is not run again. Leaves in OUT the table (ablation.md, ablation.json), the frontiers (frontier.png, .svg) and
the captions of each system (captions/GALLERY/SYSTEM.json, COCO results), which recipes/evaluate.py shows side by side.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from hf_distinct.arguments import clear_errors, parse_settings
from hf_distinct.data.coco_results import read_coco_results, write_coco_results
from hf_distinct.data.settings import DatasetSettings
from hf_distinct.evaluation.frontier import reach
from hf_distinct.reporting.frontier_plot import Kind, System, write_frontier_plot

RECIPES = Path(__file__).parent
PLAN = RECIPES / "configs" / "ablation.yaml"
SECTIONS = {"base": str, "settings": dict, "decoding": dict, "dropped_pictures": dict, "others": dict, "ours": dict}
DATA = {each.name for each in fields(DatasetSettings)}
SHARED = {
    "warm_up.py": DATA | {"model_name_or_path"},
    "evaluate.py": DATA | {"scorer", "judge", "test_size", "scenes_seed"},
}
COLUMNS = {
    "judge/t2i_R@1": "judge R@1", "scorer/t2i_R@1": "scorer R@1", "well_formed": "well-formed", "true": "true",
    "details": "details", "CIDEr-D": "CIDEr-D", "unique": "unique", "twins/judge/t2i_R@1": "twins: judge R@1",
    "twins/true": "twins: true",
}  # fmt: skip
GALLERIES = {"": "", "twins/": "_twins"}
"""Of the emoji scenes: the prefix of a gallery's figures, and the end of its split's name."""
logger = logging.getLogger("ablation")


@dataclass
class Settings:
    """Which rows, how often."""

    plan: str = field(default=str(PLAN), metadata={"help": "YAML file; recipes/configs/ablation.yaml shows the form."})
    output_dir: str = field(default="outputs/ablation", metadata={"help": "Where runs, table and plots go."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "A run of each row for each."})
    only: list[str] = field(default_factory=list, metadata={"help": "Names of rows to run; none: all."})
    split: str = field(default="test", metadata={"help": "validation, to choose settings; test, to report."})
    jobs: int = field(default=1, metadata={"help": "Runs at the same time; they share the processor's cores."})


@dataclass
class Run:
    """A recipe with its settings, and the file by which it is known to be done."""

    name: str
    recipe: str
    settings: dict[str, Any]
    done: Path

    def __call__(self, threads: int) -> None:
        """Run it, unless it has been; raises ValueError where it fails, and names its log."""
        if self.done.is_file():
            return
        command = [sys.executable, str(RECIPES / self.recipe)]
        base = self.settings.pop("base", None)
        command += [base] if base else []
        for key, value in self.settings.items():
            command += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
        log = Path(self.settings["output_dir"]) / "log.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        logger.info("%s", self.name)
        environment = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        with open(log, "w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
        if code:
            raise ValueError(f"{self.name}: {self.recipe} ended with status {code}; {log} tells why.")


class Ablation:
    """The runs of a plan, and what they found.

    Args:
        settings: those of the command line.

    Raises:
        ValueError: the plan has another form, or lacks a row that was asked for.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.output = settings, Path(settings.output_dir)
        plan = yaml.safe_load(Path(settings.plan).read_text()) or {}
        for name, section in plan.items():
            if not isinstance(section, SECTIONS.get(name, ())):
                raise ValueError(f"{settings.plan}: {name!r} is none of {', '.join(SECTIONS)}, or of another type.")
        self.common: dict[str, Any] = plan.get("settings", {})
        self.base = str(Path(settings.plan).parent / plan["base"]) if "base" in plan else None
        self.decoding: dict[str, list[float]] = plan.get("decoding", {})
        self.dropped: dict[str, Any] | None = plan.get("dropped_pictures")
        others, ours = plan.get("others", {}), plan.get("ours", {})
        self.rows: dict[str, dict[str, Any]] = {**others, **ours}
        self.kinds: dict[str, Kind] = {row: "ours" if row in ours else "trained" for row in self.rows}
        unknown = [name for name in settings.only if name not in self.rows]
        if unknown:
            raise ValueError(f"{settings.plan} has no row {unknown[0]!r}; it has {', '.join(self.rows)}.")
        drawn = self.common.get("dataset", "emoji_scenes") == "emoji_scenes"
        self.galleries = GALLERIES if drawn else {"": ""}

    def folder(self, row: str, seed: int) -> Path:
        """Where a run of a row leaves what it has."""
        return self.output / row.replace(" ", "_").replace("/", "-") / f"seed{seed}"

    def runs(self) -> Iterator[list[Run]]:
        """The runs, in parts that must wait for each other; of the first seed first."""
        captioners, decodings, trainings = [], [], []
        for seed in self.settings.seeds:
            for row in self.settings.only or self.rows:
                own = {"output_dir": self.folder(row, seed), "seed": seed, "split": self.settings.split}
                given = {"base": self.base, **self.common, **own, "disable_tqdm": True, **(self.rows[row] or {})}
                recipe = Run(f"{row}, seed {seed}", "train.py", given, self.folder(row, seed) / "metrics.json")
                trainings.append(recipe)
            if self.settings.only:
                continue
            models = {"captioner": self.common.get("model_name_or_path", "captioner")}
            if self.dropped is not None:
                target = models["dropped"] = str(self.output / "dropped_pictures" / f"seed{seed}")
                start = {"model_name_or_path": str(RECIPES.parent / "hf_distinct" / "models" / "captioner")}
                given = {**start, **self._shared("warm_up.py"), **self.dropped, "seed": seed, "output_dir": target}
                captioners.append(
                    Run(f"dropped pictures, seed {seed}", "warm_up.py", given, Path(target, "metrics.json"))
                )
            decodings += [self._decoding(seed, model, name) for model, name in models.items()]
        yield captioners
        yield [run for some in decodings for run in some]
        yield trainings

    def _decoding(self, seed: int, model: str, source: str) -> list[Run]:
        """The ways of a captioner to write, one run a gallery."""
        ways = dict(self.decoding)
        if model == "dropped":
            ways.pop("best_of", None)
        elif seed != self.settings.seeds[0]:  # nothing is drawn in it
            ways.pop("guidance", None)
        if model == "captioner" and not ways:  # its own way is measured by every training
            return []
        runs = []
        for end in self.galleries.values():
            folder = self.output / "decoding" / f"seed{seed}" / f"{model}{end}"
            own = {"model": source, **ways, "seed": seed, "split": self.settings.split + end, "resamples": 2}
            given = {"output_dir": folder, "num_neighbours": 0, **self._shared("evaluate.py"), **own}
            runs.append(Run(f"decoding, {model}{end}, seed {seed}", "evaluate.py", given, folder / "metrics.json"))
        return runs

    def _shared(self, recipe: str) -> dict[str, Any]:
        return {name: value for name, value in self.common.items() if name in SHARED[recipe]}

    # ------------------------------------------------------------------------------------------------------- results

    def systems(self) -> list[System]:
        """What has been measured so far, the rows last."""
        found: dict[str, tuple[Kind, dict[str, list[float]]]] = {}

        def add(name: str, kind: Kind, metrics: Mapping[str, float], prefix: str = "") -> None:
            figures = found.setdefault(name, (kind, {}))[1]
            for figure, value in metrics.items():
                figures.setdefault(prefix + figure, []).append(value)

        reports = {(row, seed): self._report(row, seed) for row in self.rows for seed in self.settings.seeds}
        first: dict[str, Any] = next((report for report in reports.values() if report), {})
        for name, key in (("people", "people"), ("everything, truly", "ceiling"), ("teacher forcing", "before")):
            if key in first:
                add(name, "landmark" if key != "before" else "guidance", first[key])
        for seed in self.settings.seeds:
            for model in ("captioner", "dropped"):
                for prefix, end in self.galleries.items():
                    file = self.output / "decoding" / f"seed{seed}" / f"{model}{end}" / "metrics.json"
                    for name, metrics in (json.loads(file.read_text()) if file.is_file() else {}).items():
                        if (way := self._way(model, name)) is not None:
                            add(way, "best of n" if "best of" in way else "guidance", metrics, prefix)
        for (row, _), report in reports.items():
            if report:
                add(row, self.kinds[row], report["after"])
        return [System(name, figures, kind) for name, (kind, figures) in found.items()]

    @staticmethod
    def _way(model: str, name: str) -> str | None:
        """What a system of recipes/evaluate.py is called here; the captioner's own way is there already."""
        way = next((name[name.index(each) :] for each in ("guidance", "best of") if f" {each} " in name), "")
        if model == "dropped":
            return f"taught with dropped pictures{', ' if way else ''}{way}"
        return way or None

    def _report(self, row: str, seed: int) -> dict[str, Any] | None:
        file = self.folder(row, seed) / "metrics.json"
        return json.loads(file.read_text()) if file.is_file() else None

    def write_captions(self) -> None:
        """Write what each system said, of the first seed."""
        seed = self.settings.seeds[0]
        for prefix, end in self.galleries.items():
            folder = self.output / "captions" / f"{self.settings.split}{end}"
            folder.mkdir(parents=True, exist_ok=True)
            for model in ("captioner", "dropped"):
                for file in (self.output / "decoding" / f"seed{seed}" / f"{model}{end}" / "captions").glob("*.json"):
                    said = read_coco_results(file)
                    if name := self._way(model, file.stem):
                        write_coco_results(folder / f"{name}.json", list(said), list(said.values()))
            for row in self.rows:
                if (self.folder(row, seed) / "captions.json").is_file():
                    said = json.loads((self.folder(row, seed) / "captions.json").read_text())
                    for name, when in (("teacher forcing", "before"), (row.replace("/", " "), "after")):
                        write_coco_results(folder / f"{name}.json", said["image_id"][prefix], said[when][prefix])


def cell(system: System, figure: str) -> str:
    """Mean and, with several seeds, standard deviation."""
    if figure not in system.figures:
        return ""
    spread = f" ± {system.spread(figure):.3f}" if len(system.figures[figure]) > 1 else ""
    return f"{system.mean(figure):.3f}{spread}"


def table(systems: list[System]) -> str:
    """All systems in Markdown."""
    columns = {figure: title for figure, title in COLUMNS.items() if any(figure in each.figures for each in systems)}
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {each.name} | " + " | ".join(cell(each, figure) for figure in columns) + " |" for each in systems]
    return "\n".join(lines) + "\n"


def margins(systems: list[System]) -> str:
    """How far ours stand outside of what all others reach with their mixes, in Markdown."""
    lines = []
    for prefix, gallery in (("", "random"), ("twins/", "near twins")):
        x, y = f"{prefix}CIDEr-D", f"{prefix}judge/t2i_R@1"
        known = [each for each in systems if {x, y} <= set(each.figures) and each.kind != "landmark"]
        others = [(each.mean(x), each.mean(y)) for each in known if each.kind != "ours"]
        for each in known if others else []:
            if each.kind == "ours":
                at_x = reach(others, each.mean(x))
                at_y = reach([(high, right) for right, high in others], each.mean(y))
                figures = (f"{value:.3f}" for value in (each.mean(y), at_x, each.mean(x), at_y))
                lines.append(f"| {each.name} | {gallery} | " + " | ".join(figures) + " |")
    if not lines:
        return ""
    head = "| ours | gallery | judge R@1 | others at its CIDEr-D | CIDEr-D | others at its R@1 |"
    return "\n".join([head, "|---|---|---|---|---|---|", *lines]) + "\n"


def main() -> None:
    """Run the rows; write tables, plots and captions."""
    argv = sys.argv[1:]
    if argv and not argv[0].startswith("-"):
        argv = ["--plan", *argv]
    (settings,) = parse_settings(Settings, argv=argv, description=__doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    ablation = Ablation(settings)
    threads = max((os.cpu_count() or 1) // settings.jobs, 1)
    with ThreadPoolExecutor(settings.jobs) as pool:
        for part in ablation.runs():
            for _ in pool.map(lambda run: run(threads), part):
                pass
    systems = ablation.systems()
    output = ablation.output
    (output / "ablation.md").write_text("\n".join(filter(None, (table(systems), margins(systems)))))
    found = {
        each.name: {
            "kind": each.kind,
            "figures": {name: [round(value, 4) for value in values] for name, values in each.figures.items()},
        }
        for each in systems
    }
    (output / "ablation.json").write_text(json.dumps(found, indent=1) + "\n")
    for ending in ("png", "svg"):
        write_frontier_plot(systems, output / f"frontier.{ending}")
    ablation.write_captions()
    print((output / "ablation.md").read_text())


if __name__ == "__main__":
    with clear_errors():
        main()
