"""Check with a grammar whether a caption of an emoji scene is true."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hf_distinct.data.emoji.captions import OPENINGS, with_article
from hf_distinct.data.emoji.scenes import BACKGROUNDS, CATEGORIES, RELATIONS, Scene, nouns


@lru_cache(maxsize=1)
def _grammar() -> re.Pattern[str]:
    things = sorted([*nouns(), *CATEGORIES], key=len, reverse=True)
    thing = r"(?P<article{0}>an?) (?:(?P<size{0}>small|big) )?(?P<thing{0}>" + "|".join(map(re.escape, things)) + ")"
    joint = "(?P<joint>with|and|" + "|".join(RELATIONS) + ")"
    background = r"(?: on (?P<article3>an?) (?P<background>" + "|".join(BACKGROUNDS) + ") background)?"
    opening = "(?:(?:" + "|".join(OPENINGS) + ") )?"
    return re.compile(f"{opening}{thing.format(1)}(?: {joint} {thing.format(2)})?{background}")


@dataclass(frozen=True)
class Judgement:
    """The result of checking a caption.

    Attributes:
        well_formed: the grammar accepts the whole caption.
        true: it is well formed, and everything it says is true of the scene.
        details: how many of the six facts it states, true or not; 0 if not well formed. A category is not a fact.
    """

    well_formed: bool
    true: bool
    details: int


def judge_caption(caption: str, scene: Scene) -> Judgement:
    """Check a caption against the facts of a scene."""
    match = _grammar().fullmatch(" ".join(caption.lower().strip().rstrip(".").split()))
    if match is None:
        return Judgement(False, False, 0)
    found = match.groupdict()
    mentions = [(found[f"thing{i}"], found[f"size{i}"]) for i in (1, 2) if found[f"thing{i}"]]
    spoken = [(found[f"article{i}"], found[f"size{i}"] or found[f"thing{i}"]) for i in (1, 2) if found[f"thing{i}"]]
    if found["background"]:
        spoken.append((found["article3"], found["background"]))
    if any(with_article(word) != f"{article} {word}" for article, word in spoken):
        return Judgement(False, False, 0)
    relation = found["joint"] if found["joint"] in RELATIONS else None
    details = sum((thing in nouns()) + (size is not None) for thing, size in mentions)
    details += (relation is not None) + (found["background"] is not None)
    true = any(_holds(mentions, relation, telling) for telling in (scene, scene.swapped()))
    true = true and found["background"] in (None, scene.background)
    return Judgement(True, true, details)


def _holds(mentions: list[tuple[str, str | None]], relation: str | None, scene: Scene) -> bool:
    """Whether the mentions match the scene's things, in the same order."""
    for (thing, size), noun, actual in zip(mentions, scene.nouns, scene.sizes, strict=False):
        if thing not in (noun, nouns()[noun][0]) or size not in (None, actual):
            return False
    return relation in (None, scene.relation)


def scene_metrics(captions: Sequence[str], scenes: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the fractions of captions that are well formed and true, and the mean number of facts they state.

    Args:
        captions: one caption per scene.
        scenes: the dataset's ``scene`` column.

    Returns:
        ``{"well_formed": 0 to 1, "true": 0 to 1, "details": 0 to 6}``.
    """
    judged = [judge_caption(c, Scene.from_dict(s)) for c, s in zip(captions, scenes, strict=True)]
    count = max(len(judged), 1)
    return {
        "well_formed": sum(j.well_formed for j in judged) / count,
        "true": sum(j.true for j in judged) / count,
        "details": sum(j.details for j in judged) / count,
    }
