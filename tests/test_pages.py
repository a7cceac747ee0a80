"""What the pages name is there: files, headings, scripts and the options of scripts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import forked
import pytest
from accelerate.commands.launch import launch_command_parser

from hf_distinct import cli

ROOT = forked.RECIPES.parent
FOLDERS = (".", "recipes", "recipes/space", "model_cards")
PAGES = sorted(page.relative_to(ROOT) for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w./-])(?:recipes|hf_distinct|tests|model_cards)/[\w./*-]*\w")
OPTION = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
OPTION_OF_HELP = re.compile(r"^  (?:-\w, )?(--\w+)", re.MULTILINE)
OF_LAUNCHER = {name for action in launch_command_parser()._actions for name in action.option_strings}
OF_COMMAND = {"--accelerate_config", "--num_processes"}
OF_OTHERS = {
    "--help", "--name", "--include", "--local-dir", "--shm-size", "--gpus", "--requeue", "--signal", "--now",
}  # fmt: skip
"""Of Docker, `hf`, SLURM and systemd, and what stands for all options."""


def read(page: Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", read(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command that a page shows, also in a loop or in a script."""
    for language, block in BLOCK.findall(read(page)):
        if language in ("bash", "ini"):
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.split(r"&&|[;&|](?=\s|$)", line.removeprefix("ExecStart=")):
                    yield shlex.split(command.replace("'", ""), comments=True)


@cache
def options(script: str) -> set[str]:
    """The options of a script: those of its ``--help``, or those in the source of one of the tests."""
    if script.startswith("tests/"):
        return set(OPTION.findall((ROOT / script).read_text(encoding="utf-8")))
    return set(OPTION_OF_HELP.findall(forked.run(script.removeprefix("recipes/"), "--help").stdout))


def recipe_of(command: str) -> str:
    """The script that `hf-distinct` runs for a command."""
    return str(Path(cli.command_line(command, [])[-1]).relative_to(ROOT))


def script_of(words: list[str]) -> tuple[str, list[str], list[str]] | None:
    """The script that a command runs, the options of its launcher, and those of the script."""
    if words[:1] == ["hf-distinct"] and words[1] in cli.COMMANDS:
        words = [recipe_of(words[1]), *(word for word in words[2:] if word not in OF_COMMAND)]
    for place, word in enumerate(words):
        if re.fullmatch(r"(recipes|tests)/\S*\.py", word):
            before, after = words[:place], words[place:]
            return word, [each for each in before if each[:2] == "--"], [each for each in after if each[:2] == "--"]
    return None


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_link_leads_to_a_file_and_a_heading(page):
    wrong = []
    for link in LINK.findall(BLOCK.sub("", read(page))):
        target, _, heading = link.partition("#")
        if re.match(r"\w+:", target):
            continue
        place = (page.parent / target) if target else page
        if not (ROOT / place).exists() or (heading and heading not in anchors(place)):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_each_path_of_the_checkout_is_there(page):
    text = "\n".join(re.sub(r"\w+://\S+", "", line) for line in read(page).splitlines())
    assert [path for path in PATH.findall(text) if not list(ROOT.glob(path))] == []


def test_each_option_is_known():  # in one test, since `--help` of all recipes takes a while
    shown = [(page, *found) for page in PAGES for found in map(script_of, commands(page)) if found]
    wrong = [(page, script, each) for page, script, _, after in shown for each in after if each not in options(script)]
    wrong += [
        (page, "the launcher", each) for page, _, before, _ in shown for each in before if each not in OF_LAUNCHER
    ]
    scripts = {script for _, script, _, after in shown if after} | set(map(recipe_of, cli.COMMANDS))
    known = OF_LAUNCHER.union(OF_COMMAND, OF_OTHERS, *map(options, scripts))
    for page in PAGES:
        wrong += [
            (page, "a sentence", each) for each in OPTION.findall(BLOCK.sub("", read(page))) if each not in known
        ]
    assert wrong == []
