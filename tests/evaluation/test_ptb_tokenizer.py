"""Words as Stanford's Penn Treebank tokenizer makes them; what stands here is what it gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distinct.data.texts import MAX_CAPTION_CHARACTERS
from hf_distinct.evaluation.ptb_tokenizer import ptb_line, tokenize

PLAIN = ["a", "dog", "cannot", "st.", "Mass.", "x.", "etc.", "runs,", "on.", "No", "gonna"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's T-shirt, don't look!", "a man 's t-shirt do n't look"),
        ("it is 3.5 miles; 1,000 people at 10:30", "it is 3.5 miles 1,000 people at 10:30"),
        ("They’re “big” — a girl's dogs' toys...", "they 're big a girl 's dogs toys"),
        ("a cat/dog , and 'no parking' w/o w/", "a cat/dog and no parking w/o w /"),
        ("Mr. Smith of the U.S. at 7 p.m. on Main st.", "mr. smith of the u.s. at 7 p.m. on main st."),
        ("no. 5 or no.", "no. 5 or no"),
        ("a bus (red) [two] {3}", "a bus -lrb- red -rrb- -lsb- two -rsb- -lcb- 3 -rcb-"),
        ("cannot gonna rock 'n' roll o'clock y'all", "can not gon na rock 'n' roll o'clock y' all"),
        ("5% of $5, €3 and 10¢ #1", "5 % of $ 5 $ 3 and 10 cents # 1"),
        ("a ❤ and 😀 café", "a ❤ and café"),
        ("what?! no!! yes?", "what ?! no !! yes"),
        ("AT&T R&B b&w &amp; x", "at&t r&b b & w & x"),
        ("the road.the end", "the road.the end"),
        ("a--b a - b 3--4", "a b a b 3 4"),
    ],
)
def test_by_example(text, words):
    assert ptb_line(text) == words
    assert tokenize(text) == words.split()


@pytest.mark.parametrize("text", ["", "  ", ".", "'", "---", "😀", "\n", "“”", ", ; :"])
def test_no_words(text):
    assert ptb_line(text) == ""


def test_a_fraction_is_one_word_with_a_space_that_does_not_break():
    assert ptb_line("1 1/2 cups") == "1\u00a01/2 cups"
    assert tokenize("1 1/2 cups") == ["1", "1/2", "cups"]


def test_the_random_cases():
    golden = json.loads(Path(__file__).with_name("pycocoevalcap_cases.json").read_text(encoding="utf-8"))
    for each in golden:
        for caption, references, words in zip(each["captions"], each["references"], each["words"], strict=True):
            assert [ptb_line(text) for text in (caption, *references)] == words


# The short way for plain captions must come to what the rules come to: a sign that joins nothing sends them there.
@pytest.mark.parametrize("sign", ["é1", "1", "*", "a.", "@a"])
def test_no_rule_looks_farther_than_the_longest_caption(sign):
    """Rules that read on to the end, from each place of it, took half a minute for 40 kB."""
    words = tokenize("a dog " + sign * 2500 + " at home")
    assert words[:2] == ["a", "dog"] and words[-2:] == ["at", "home"]
    assert max(map(len, words)) <= MAX_CAPTION_CHARACTERS


@settings(deadline=None)
@given(st.lists(st.sampled_from(PLAIN), max_size=6))
def test_plain_captions_go_by_the_same_rules(words):
    text = " ".join(words)
    assert ptb_line(text).split() == ptb_line("* " + text).split()[1:]
