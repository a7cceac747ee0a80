"""Captions of emoji scenes: true, as specific as those of people, and false where a fact is flipped."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distinct.data.emoji.captions import DETAILED_SHARES, FULL_SHARES, OPENINGS, STYLES, full_caption, write_caption
from hf_distinct.data.emoji.dataset import emoji_scenes
from hf_distinct.data.emoji.judging import Judgement, judge_caption
from hf_distinct.data.emoji.scenes import BACKGROUNDS, RELATIONS, SIZES, Scene, nouns

scene_strategy = st.builds(
    Scene,
    st.lists(st.sampled_from(list(nouns())), min_size=2, max_size=2, unique=True).map(tuple),
    st.tuples(st.sampled_from(SIZES), st.sampled_from(SIZES)),
    st.sampled_from(RELATIONS),
    st.sampled_from(list(BACKGROUNDS)),
)


@given(scene_strategy, st.sampled_from(STYLES), st.integers(0, 2**32))
def test_every_written_caption_is_true_and_every_flipped_fact_makes_it_false(scene, style, seed):
    caption = write_caption(scene, style, random.Random(seed))
    judgement = judge_caption(caption, scene)
    assert judgement.well_formed and judgement.true
    assert judge_caption(caption, scene.swapped()) == judgement
    # one: noun and size, or a category; vague: the second thing is only a category; relation: or the background
    least, most = {"one": (0, 2), "vague": (1, 2), "two": (2, 4), "relation": (3, 5), "everything": (6, 6)}[style]
    assert least <= judgement.details <= most
    assert judge_caption(f"{caption.capitalize()}.", scene) == judgement
    for lie in lies(caption):
        told = judge_caption(lie, scene)
        assert told.well_formed and not told.true, lie
    wrong_article = re.sub(r"\b(a|an)\b", lambda found: "an" if found.group() == "a" else "a", caption)
    assert not judge_caption(wrong_article, scene).well_formed
    assert not judge_caption(caption.rsplit(" ", 1)[0], scene).well_formed


def lies(caption: str) -> list[str]:
    """The caption with one fact flipped, every way."""
    found = []
    for relation in RELATIONS:
        if f" {relation} " in caption:
            found += [caption.replace(f" {relation} ", f" {other} ") for other in RELATIONS if other != relation]
    for match in re.finditer("big|small", caption):
        other = "small" if match.group() == "big" else "big"
        found.append(caption[: match.start()] + other + caption[match.end() :])
    said = re.search(r"on an? (\w+) background", caption)
    if said:
        for colour in set(BACKGROUNDS) - {said.group(1)}:
            article = "an" if colour == "orange" else "a"
            found.append(caption.replace(said.group(), f"on {article} {colour} background"))
    return found


@given(scene_strategy)
def test_full_caption_says_all_six_facts_in_the_scenes_own_order(scene):
    caption = full_caption(scene)
    assert judge_caption(caption, scene) == Judgement(True, True, 6)
    (first, second), (size, other) = scene.nouns, scene.sizes
    assert re.fullmatch(
        rf"an? {size} {first} {scene.relation} an? {other} {second} on an? {scene.background} background", caption
    )


def test_captions_are_as_specific_as_peoples():
    rows = emoji_scenes("train", 1600, seed=11)
    drawn = {True: Counter(), False: Counter()}
    details = {True: 0, False: 0}
    for captions, facts in zip(rows["captions"], rows["scene"], strict=True):
        scene = Scene.from_dict(facts)
        alike = scene.sizes[0] == scene.sizes[1]
        for caption in captions:
            judged = judge_caption(caption, scene)
            assert judged.true
            drawn[alike][kind_of(caption)] += 1
            details[alike] += judged.details
    # One: 0.85 x (1 + 0.1 size) = 0.935; vague 1.1; two 2.2; relation (or background) 3.2; everything 6. By the shares
    # 0.187 + 0.11 + 0.66 + 0.96 + 0.6 = 2.517 and 0.374 + 0.11 + 0.33 + 0.8 + 0.6 = 2.214.
    for alike, shares, mean in ((True, (0.2, 0.1, 0.3, 0.3, 0.1), 2.517), (False, (0.4, 0.1, 0.15, 0.25, 0.1), 2.214)):
        total = sum(drawn[alike].values())
        # About 4,000 captions each: three standard deviations of a share of 0.4 are 0.023.
        found = {kind: count / total for kind, count in drawn[alike].items()}
        assert found == pytest.approx(dict(zip(STYLES, shares, strict=True)), abs=0.025)
        assert details[alike] / total == pytest.approx(mean, abs=0.08)
    captions = [caption for row in rows["captions"] for caption in row]
    assert sum(caption.startswith(OPENINGS) for caption in captions) / len(captions) == pytest.approx(0.25, abs=0.025)


def test_shares_decide_how_specific_captions_are():
    detailed = emoji_scenes("train", 300, seed=11, captions_per_image=2, shares=DETAILED_SHARES)
    assert all(len(row) == 2 for row in detailed["captions"])
    assert Counter(kind_of(c) for row in detailed["captions"] for c in row)["everything"] / 600 > 0.3
    full = emoji_scenes("train", 20, seed=11, shares=FULL_SHARES)
    assert {kind_of(caption) for row in full["captions"] for caption in row} == {"everything"}


def kind_of(caption: str) -> str:
    has_relation = any(f" {relation} " in caption for relation in RELATIONS)
    if has_relation or "background" in caption:
        return "everything" if has_relation and "background" in caption else "relation"
    return "vague" if " with " in caption else "two" if " and " in caption else "one"


def test_the_bigger_thing_is_usually_named_first():
    rng = random.Random(0)
    scene = Scene(("pizza", "dog"), ("small", "big"), "left of", "red")
    captions = [write_caption(scene, "two", rng) for _ in range(2000)]
    # 0.85 the bigger one, else half and half: 0.925
    assert sum(c.index("dog") < c.index("pizza") for c in captions) / 2000 == pytest.approx(0.925, abs=0.02)
