"""Train several settings with several seeds, and compare them with what decoding alone reaches.

    hf-distinct ablation --jobs 2                                                 # on emoji scenes
    hf-distinct ablation ablation_coco.yaml --output_dir outputs/ablation_coco    # another plan

A plan is a YAML file whose rows are settings of `hf-distinct train`. The recipe trains each row with each seed, from
one common captioner, and compares the rows with that captioner under guidance, beam search and best-of-n sampling. If
the plan has a section `evaluation`, `hf-distinct evaluate` measures every row with those settings.

The recipe prints a table and writes to --output_dir:

    ablation.md, ablation.json        the table
    frontier.png, frontier.svg        the Pareto frontiers
    captions/GALLERY/SYSTEM.json      the captions of each system, as COCO results for `hf-distinct evaluate`

It repeats a finished run only if the settings, files or version behind it have changed. A signal that stops the recipe
also stops its runs; the same command then continues with the runs that are missing.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import psutil

from hf_distinct.data.coco_results import read_coco_results, write_coco_results
from hf_distinct.evaluation.frontier import reach
from hf_distinct.files import run_lock
from hf_distinct.reporting.frontier_plot import Kind, System, write_frontier_plot
from hf_distinct.runs.arguments import clear_errors, parse_settings, too_small
from hf_distinct.runs.dataset_settings import HELP, DatasetSettings
from hf_distinct.runs.logs import show_logs
from hf_distinct.runs.recipes import CONFIGS, settings_file
from hf_distinct.runs.recorded_run import RecordedRun
from hf_distinct.runs.results import or_warn, own_files, write_json, write_text
from hf_distinct.scorer import shipped
from hf_distinct.text.problems import refuse
from hf_distinct.text.yaml_files import parse_yaml

RECIPES = Path(__file__).parent
SECTIONS = {
    "base": str, "settings": dict, "evaluation": dict, "decoding": dict, "dropped_pictures": dict, "others": dict,
    "ours": dict,
}  # fmt: skip
DATA = {each.name for each in fields(DatasetSettings)}
SHARED = {
    "warm_up.py": DATA | {"model_name_or_path"},
    "evaluate_captions.py": DATA | {"scorer", "judge", "test_size", "scenes_seed"},
}
COLUMNS = {
    "judge/t2i_R@1": "judge R@1", "scorer/t2i_R@1": "scorer R@1", "well_formed": "well-formed", "true": "true",
    "details": "details", "CIDEr-D": "CIDEr-D", "unique": "unique", "twins/judge/t2i_R@1": "twins: judge R@1",
    "twins/true": "twins: true",
}  # fmt: skip
EVALUATED = {
    "judge/t2i_R@10": "judge R@10", "judge/neighbours_t2i_R@1": "similar: judge R@1", "BLEU-4": "BLEU-4",
    "grammar": "grammar", "invention": "invention", "bad_endings": "bad endings", "repeats": "repeats",
    "vocabulary": "words",
}  # fmt: skip
"""More columns, if a section `evaluation` measures every row with a judge of grammar."""
WAYS = ("guidance", "beams", "best of")
GALLERIES = {"": "", "twins/": "_twins"}
"""The galleries of emoji scenes: the prefix of the figures, and the end of the split's name."""
DEFAULTS = [CONFIGS / name for name in ("quickstart.yaml", "photographs.yaml")]
"""The settings files of trainings that name none."""
PEOPLE, START = "people", "teacher forcing"
logger = logging.getLogger("ablation")


@dataclass
class Settings:
    """Which rows to run, and how often."""

    plan: str = field(
        default="ablation",
        metadata={"help": "Plan of the ablation: a YAML file, or the name of one of hf_distinct's."},
    )
    output_dir: str = field(default="outputs/ablation", metadata={"help": "Folder to write runs, table and plots to."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds to run each row with."})
    only: list[str] = field(default_factory=list, metadata={"help": "Names of the rows to run. Default: all."})
    split: Literal["test", "validation"] = field(default="test", metadata={"help": HELP["split"]})
    jobs: int = field(default=1, metadata={"help": "Number of runs at the same time; they share the CPU cores."})
    dataset: str | None = field(default=None, metadata={"help": "Captioned pictures. Default: those of the plan."})
    image_root: str | None = field(
        default=None, metadata={"help": f"{HELP['image_root']} Default: that of the plan."}
    )

    def __post_init__(self) -> None:
        refuse(self.problems())

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible."""
        yield from too_small(self, jobs=1)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            yield f"seeds={self.seeds} must be different numbers, at least one."


class Ablation:
    """The runs of a plan, and their results.

    Args:
        settings: the settings of the command line.

    Raises:
        ValueError: the plan has another form, or has no row of a name in ``only``.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.output = settings, Path(settings.output_dir)
        file = settings_file(settings.plan)
        plan = parse_yaml(file.read_text(encoding="utf-8"), settings.plan) or {}
        if not isinstance(plan, dict):
            raise ValueError(f"{settings.plan} must hold the sections {', '.join(SECTIONS)}.")
        for name, section in plan.items():
            if name not in SECTIONS:
                raise ValueError(f"{settings.plan}: {name!r} is not a section; use {', '.join(SECTIONS)}.")
            if not isinstance(section, SECTIONS[name]):
                raise ValueError(f"{settings.plan}: the section {name!r} must be a {SECTIONS[name].__name__}.")
        said = {name: value for name in ("dataset", "image_root") if (value := getattr(settings, name)) is not None}
        self.common: dict[str, Any] = {**plan.get("settings", {}), **said}
        self.evaluation: dict[str, Any] | None = plan.get("evaluation")
        self.base = str(file.parent / plan["base"]) if "base" in plan else None
        self.decoding: dict[str, list[float]] = plan.get("decoding", {})
        self.dropped: dict[str, Any] | None = plan.get("dropped_pictures")
        others, ours = plan.get("others", {}), plan.get("ours", {})
        self.rows: dict[str, dict[str, Any]] = {**others, **ours}
        self.kinds: dict[str, Kind] = {row: "ours" if row in ours else "trained" for row in self.rows}
        drawn = self.common.get("dataset", "emoji_scenes") == "emoji_scenes"
        self.galleries = GALLERIES if drawn else {"": ""}
        refuse(self._problems({**others}, {**ours}, drawn))
        self.captioner = str(self.common.get("model_name_or_path") or shipped("captioner"))
        seeds = settings.seeds
        self.trainings = {(row, seed): self._training(row, seed) for row in self.rows for seed in seeds}
        self.drops = {seed: self._dropping(seed) for seed in seeds} if self.dropped is not None else {}
        self.decodings = {
            (seed, model, prefix): run
            for seed in seeds
            for model in ("captioner", *(["dropped"] if self.drops else []))
            for prefix in self.galleries
            if (run := self._decoding(seed, model, prefix)) is not None
        }
        self.evaluations = {
            (row, seed, prefix): self._evaluation(row, seed, prefix)
            for row, seed in (self.trainings if self.evaluation is not None else ())
            for prefix in self.galleries
        }

    def _problems(self, others: dict[str, Any], ours: dict[str, Any], drawn: bool) -> Iterator[str]:
        """A sentence for each problem of the plan."""
        plan = self.settings.plan
        for name in self.settings.only:
            if name not in self.rows:
                yield f"{plan} has no row {name!r}; it has {', '.join(self.rows)}."
        for name in others.keys() & ours.keys():
            yield f"{plan}: `others` and `ours` both have a row {name!r}; rename one of them."
        folders: dict[Path, str] = {}
        for name in self.rows:
            if (other := folders.setdefault(self._folder(name), name)) != name:
                yield f"{plan}: the rows {other!r} and {name!r} would share a folder; rename one of them."
        if not drawn and not self.common.get("model_name_or_path"):
            yield (
                f"{plan}: `settings` must have model_name_or_path, the captioner from which all rows start; the "
                "shipped one knows only emoji scenes."
            )

    def _folder(self, row: str) -> Path:
        return self.output / row.replace(" ", "_").replace("/", "-")

    def _run(self, name: str, recipe: str, settings: dict[str, Any], folder: Path) -> RecordedRun:
        training = recipe == "train.py"
        base = self.base if training else None
        return RecordedRun(name, RECIPES / recipe, settings, folder, base, DEFAULTS if training and not base else [])

    def _training(self, row: str, seed: int) -> RecordedRun:
        own = {"seed": seed, "split": self.settings.split}
        given = {**self.common, **own, "disable_tqdm": True, **(self.rows[row] or {})}
        return self._run(f"{row}, seed {seed}", "train.py", given, self._folder(row) / f"seed{seed}")

    def _dropping(self, seed: int) -> RecordedRun:
        start = {"model_name_or_path": self.captioner}
        given = {**start, **self._shared("warm_up.py"), **(self.dropped or {}), "seed": seed}
        folder = self.output / "dropped_pictures" / f"seed{seed}"
        return self._run(f"dropped pictures, seed {seed}", "warm_up.py", given, folder)

    def _decoding(self, seed: int, model: str, prefix: str) -> RecordedRun | None:
        """The run that decodes one gallery in all ways with one captioner; None if it has nothing to do."""
        ways, end = {**(self.evaluation or {}), **self.decoding}, self.galleries[prefix]
        if model == "dropped":
            ways = {name: value for name, value in ways.items() if name not in ("best_of", "temperature")}
        elif seed != self.settings.seeds[0]:  # nothing is drawn in these
            ways = {name: value for name, value in ways.items() if name not in ("guidance", "num_beams")}
            if "best_of" not in ways:
                return None
        if model == "captioner" and not ways:  # its own way is measured by every training
            return None
        folder = self.output / "decoding" / f"seed{seed}" / f"{model}{end}"
        source = self.captioner if model == "captioner" else str(self.drops[seed].folder)
        own = {"model": source, **ways, "split": self.settings.split + end, "resamples": 2}
        if "best_of" in ways:
            own["seed"] = seed
        spare = {"num_neighbours": 0} if self.evaluation is None else {}
        given = {**spare, **self._shared("evaluate_captions.py"), **own}
        return self._run(f"decoding, {model}{end}, seed {seed}", "evaluate_captions.py", given, folder)

    def _evaluation(self, row: str, seed: int, prefix: str) -> RecordedRun:
        """The run that measures a row on one gallery."""
        end, trained = self.galleries[prefix], self.trainings[row, seed].folder
        own = {"model": str(trained), "split": self.settings.split + end, "resamples": 2, **(self.evaluation or {})}
        given = {**self._shared("evaluate_captions.py"), **own}
        folder = trained / f"evaluation{end}"
        return self._run(f"{row}, seed {seed}, evaluation{end}", "evaluate_captions.py", given, folder)

    def _shared(self, recipe: str) -> dict[str, Any]:
        return {name: value for name, value in self.common.items() if name in SHARED[recipe]}

    def runs(self) -> Iterator[list[RecordedRun]]:
        """Yield the runs in parts, each of which needs those before it; the first seed comes first."""
        rows = self.settings.only or list(self.rows)
        if not self.settings.only:
            yield list(self.drops.values())
            yield list(self.decodings.values())
        yield [self.trainings[row, seed] for seed in self.settings.seeds for row in rows]
        yield [run for (row, *_), run in self.evaluations.items() if row in rows]

    # ------------------------------------------------------------------------------------------------------- results

    def systems(self) -> list[System]:
        """Collect the figures that these settings have measured so far, the rows last."""
        found: dict[str, tuple[Kind, dict[str, list[float]]]] = {}

        def add(name: str, kind: Kind, metrics: Mapping[str, float], prefix: str = "") -> None:
            figures = found.setdefault(name, (kind, {}))[1]
            for figure, value in metrics.items():
                if value is None:  # NaN
                    continue
                figures.setdefault(prefix + figure, []).append(value)

        reports = {place: self._read(run) for place, run in self.trainings.items()}
        first: dict[str, Any] = next((report for report in reports.values() if report), {})
        evaluated = self.evaluation is not None  # then train.py's figures, of one way to write, are not needed
        for name, key in ((PEOPLE, "people"), ("everything, truly", "ceiling"), (START, "before")):
            if key in first and (key == "ceiling" or not evaluated):
                add(name, "landmark" if key != "before" else "guidance", first[key])
        for (seed, model, prefix), run in self.decodings.items():
            for name, metrics in (self._read(run) or {}).items():
                way = self._way(model, name)
                if way is None or (way in (PEOPLE, START) and seed != self.settings.seeds[0]):  # the same for all
                    continue
                kind: Kind = "landmark" if way == PEOPLE else "best of n" if "best of" in way else "guidance"
                add(way, kind, metrics, prefix)
        for (row, _), report in reports.items():
            if report and not evaluated:
                add(row, self.kinds[row], report["after"])
        for (row, _, prefix), run in self.evaluations.items():
            for name, metrics in (self._read(run) or {}).items():
                if not name.startswith(PEOPLE):
                    add(", ".join(filter(None, [row, how(name)])), self.kinds[row], metrics, prefix)
        systems = [System(name, figures, kind) for name, (kind, figures) in found.items()]
        return sorted(systems, key=lambda system: system.kind != "landmark")

    def _way(self, model: str, name: str) -> str | None:
        """Name a system of an evaluation; None if the trainings measure it themselves."""
        way = how(name)
        if name.startswith(PEOPLE) or (model == "captioner" and not way):
            here = self.evaluation is not None and model == "captioner"
            return (PEOPLE if name.startswith(PEOPLE) else START) if here else None
        if model == "captioner" and not way.startswith("beams"):
            return way
        return ", ".join(filter(None, ["taught with dropped pictures" if model == "dropped" else START, way]))

    @staticmethod
    def _read(run: RecordedRun) -> dict[str, Any] | None:
        """Read the figures of a run; None if it is not done, or if other settings made it."""
        return json.loads((run.folder / "metrics.json").read_text()) if run.is_done() else None

    def write_captions(self) -> None:
        """Write the captions of each system with the first seed."""
        seed = self.settings.seeds[0]
        for prefix, end in self.galleries.items():
            folder = f"captions/{self.settings.split}{end}"
            for model in ("captioner", "dropped"):
                run = self.decodings.get((seed, model, prefix))
                for file in (run.folder / "captions").glob("*.json") if run and run.is_done() else ():
                    if name := self._way(model, file.stem):
                        said = read_coco_results(file)
                        with own_files(self.output, f"{folder}/{name}.json") as (path,):
                            write_coco_results(path, list(said), list(said.values()))
            for row in self.rows:
                if self.trainings[row, seed].is_done():
                    said = json.loads((self.trainings[row, seed].folder / "captions.json").read_text())
                    for name, when in (("teacher forcing", "before"), (row.replace("/", " "), "after")):
                        with own_files(self.output, f"{folder}/{name}.json") as (path,):
                            write_coco_results(path, said["image_id"][prefix], said[when][prefix])


def how(name: str) -> str:
    """The way of decoding in the name of a system of an evaluation; empty for the captioner's own."""
    return next((name[name.index(f" {way} ") + 1 :] for way in WAYS if f" {way} " in name), "")


def cell(system: System, figure: str) -> str:
    """Mean and, with several seeds, standard deviation."""
    if figure not in system.figures:
        return ""
    spread = f" ± {system.spread(figure):.3f}" if len(system.figures[figure]) > 1 else ""
    return f"{system.mean(figure):.3f}{spread}"


def table(systems: list[System]) -> str:
    """Write all systems as a table in Markdown."""
    more = EVALUATED if any("grammar" in each.figures for each in systems) else {}
    titles = {**COLUMNS, **more}.items()
    columns = {figure: title for figure, title in titles if any(figure in each.figures for each in systems)}
    lines = ["| | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {each.name} | " + " | ".join(cell(each, figure) for figure in columns) + " |" for each in systems]
    return "\n".join(lines) + "\n"


def margins(systems: list[System]) -> str:
    """Write how far our rows lie beyond the convex hull of all others, as a table in Markdown."""
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


def run_all(runs: Sequence[Future[None]]) -> None:
    """Wait for runs. The first error cancels those that have not started; a signal also ends those that run."""
    try:
        for run in as_completed(runs):
            run.result()
    except BaseException as error:
        for run in runs:
            run.cancel()
        told: set[int] = set()
        while not isinstance(error, Exception) and wait(runs, timeout=0.2).not_done:
            for child in psutil.Process().children():
                if child.pid not in told:
                    told.add(child.pid)
                    child.terminate()  # a training leaves a checkpoint
        raise


def main() -> None:
    """Run the rows; write tables, plots and captions."""
    (settings,) = parse_settings(Settings, description=__doc__, first=("plan",))
    show_logs("ablation")
    ablation = Ablation(settings)
    run_lock.claim(ablation.output)
    threads = max((os.cpu_count() or 1) // settings.jobs, 1)
    with ThreadPoolExecutor(settings.jobs) as pool:
        for part in ablation.runs():
            run_all([pool.submit(run, threads) for run in part])
    systems = ablation.systems()
    output = ablation.output
    tables = "\n".join(filter(None, (table(systems), margins(systems))))
    write_text(output / "ablation.md", tables)
    found = {
        each.name: {
            "kind": each.kind,
            "figures": {name: [round(value, 4) for value in values] for name, values in each.figures.items()},
        }
        for each in systems
    }
    write_json(output / "ablation.json", found, indent=1)
    ablation.write_captions()
    for plot in ("frontier.png", "frontier.svg"):
        with or_warn(plot), own_files(output, plot) as (path,):
            write_frontier_plot(systems, path)
    print(tables)


if __name__ == "__main__":
    with clear_errors():
        main()
