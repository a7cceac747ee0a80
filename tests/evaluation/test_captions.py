"""CIDEr-D, BLEU and ROUGE-L against numbers worked out by hand, golden numbers, and slow versions of the formulas."""

from __future__ import annotations

import json
import math
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distinct.evaluation import blocks, caption_metrics, distinct_n, unique_share, vocabulary
from hf_distinct.evaluation.captions import CiderD, bleu, cider_d, rouge_l, rouge_l_scores
from hf_distinct.evaluation.ngram_counts import NgramCounts

CAPTIONS = [
    "a big dog runs on the grass",
    "two people ride a horse",
    "a red bus",
    "a cat a cat a cat sleeps on the sofa",
    "",
]
REFERENCES = [
    ["a dog runs on the grass", "a big brown dog is running on grass", "the dog plays in the park"],
    ["two people ride a horse on the beach", "a man and a woman are riding a horse"],
    [
        "a red double decker bus drives down the street",
        "the red bus stops in the street",
        "bus",
        "a bus on the street",
    ],
    ["a cat sleeps on the red sofa"],
    ["a plate of food on the table", "the table"],
]

texts = st.lists(st.sampled_from(list("abcde")), max_size=9).map(" ".join)
filled = st.lists(st.sampled_from(list("abcde")), min_size=1, max_size=9).map(" ".join)
test_sets = st.lists(st.tuples(texts, st.lists(filled, min_size=1, max_size=4)), min_size=1, max_size=6)


GOLDEN = json.loads(Path(__file__).with_name("pycocoevalcap_cases.json").read_text(encoding="utf-8"))


def test_a_thousand_random_cases_as_pycocoevalcap_has_them():
    """Strange Unicode, numbers, hyphens, quotes, empty texts; pycocoevalcap_cases.py made them, with Java."""
    assert sum(len(each["captions"]) for each in GOLDEN) == 1000
    for each in GOLDEN:
        captions, references = each["captions"], each["references"]
        assert CiderD(references).scores(captions, references) == pytest.approx(each["CIDEr-D"], abs=1e-9)
        assert NgramCounts(captions, references).cider_d() == pytest.approx(each["CIDEr-D"], abs=1e-9)
        assert rouge_l_scores(captions, references) == pytest.approx(each["ROUGE-L"], abs=1e-9)
        assert bleu(captions, references) == pytest.approx(each["BLEU"], abs=1e-9)


def test_golden_numbers_of_pycocoevalcap():
    """Computed once with pycocoevalcap 1.2 on these captions (which its tokenizer leaves as they are)."""
    cider = [3.1564051125512487, 3.7463075891675937, 1.6109695216526954, 3.4801759073422516, 0.0]
    assert CiderD(REFERENCES).scores(CAPTIONS, REFERENCES) == pytest.approx(cider, abs=1e-12)
    assert cider_d(CAPTIONS, REFERENCES) == pytest.approx(2.398771626142758, abs=1e-12)
    blue = [0.8399999999664, 0.7745966692075487, 0.6823098058244796, 0.6187827298718048]
    assert bleu(CAPTIONS, REFERENCES) == pytest.approx(blue, abs=1e-12)
    assert rouge_l(CAPTIONS, REFERENCES) == pytest.approx(0.6807287671518122, abs=1e-12)


class TestCiderD:
    corpus = [["red dog"], ["blue cat"]]

    def test_by_hand(self):
        scorer = CiderD(self.corpus)
        # Every n-gram weighs log 2, which cancels. Equal captions: cosine 1 for n = 1 and 2, none for 3 and 4.
        assert scorer.score("red dog", ["red dog"]) == pytest.approx(10 / 4 * 2)
        # One word of two is shared: cosine 1 / (sqrt 2 * sqrt 2) for n = 1, nothing for n = 2.
        assert scorer.score("red cat", ["red dog"]) == pytest.approx(10 / 4 * 0.5)

    def test_clipping_and_length_penalty_by_hand(self):
        # n = 1: (2, 2) clipped to (1, 1) against (1, 1): 2 / (sqrt 8 * sqrt 2) = 1/2.
        # n = 2: "red dog" twice, "dog red" once, clipped: 1 / (sqrt 5 * 1). Two words longer: exp(-2^2 / 72).
        expected = 10 / 4 * (0.5 + 1 / math.sqrt(5)) * math.exp(-4 / 72)
        assert CiderD(self.corpus).score("red dog red dog", ["red dog"]) == pytest.approx(expected)

    def test_mean_over_references(self):
        assert CiderD(self.corpus).score("red dog", ["red dog", "green bird"]) == pytest.approx(10 / 4 * 2 / 2)

    def test_a_word_of_every_image_weighs_nothing(self):
        scorer = CiderD([["a dog"], ["a cat"]])
        assert scorer.score("a", ["a dog"]) == 0.0
        assert scorer.score("dog", ["dog"]) == pytest.approx(10 / 4)

    def test_weights_come_from_the_corpus_not_from_the_references(self):
        corpus = [["a dog"], ["a dog"], ["a cat"], ["an owl"]]
        # Idf of "a" = log(4/3), of "cat" = log 4, of "a cat" = log 4: only "a" is shared by "a cat" and "a owl".
        a, rare = math.log(4 / 3), math.log(4)
        expected = 10 / 4 * a * a / (a * a + rare * rare)
        assert CiderD(corpus).score("a cat", ["a owl"]) == pytest.approx(expected)

    @settings(deadline=None)
    @given(test_sets)
    def test_against_the_formula(self, rows):
        captions, references = [row[0] for row in rows], [row[1] for row in rows]
        expected = [slow_cider_d(caption, own, references) for caption, own in rows]
        assert CiderD(references).scores(captions, references) == pytest.approx(expected, abs=1e-12)
        assert NgramCounts(captions, references).cider_d() == pytest.approx(expected, abs=1e-12)

    @settings(deadline=None)
    @given(test_sets)
    def test_order_of_scoring_and_a_full_cache_change_nothing(self, rows):
        captions, references = [row[0] for row in rows], [row[1] for row in rows]
        small = CiderD(references, cache_size=1)
        twice = small.scores(captions, references) + small.scores(captions, references)
        assert twice == CiderD(references).scores(captions * 2, references * 2)
        assert len(small._cache) == 1

    def test_can_be_sent_to_another_process(self):
        copy = pickle.loads(pickle.dumps(CiderD(REFERENCES)))
        assert copy.scores(CAPTIONS, REFERENCES) == CiderD(REFERENCES).scores(CAPTIONS, REFERENCES)

    def test_errors(self):
        with pytest.raises(ValueError, match="corpus is empty"):
            CiderD([])
        with pytest.raises(ValueError, match="row 1: no reference"):
            CiderD([["a"], []])
        with pytest.raises(ValueError, match="row 0: .*single string 'a dog'"):
            CiderD(["a dog"])
        with pytest.raises(ValueError, match="no reference"):
            CiderD(self.corpus).score("a dog", [])


class TestBleu:
    def test_clipped_matches_by_hand(self):
        # "the" counts at most twice, as in the second reference: 2 of 3 words, and 1 of 2 pairs.
        scores = bleu(["the the the"], [["the cat", "the the dog"]])[:2]
        assert scores == pytest.approx([2 / 3, math.sqrt(2 / 3 * 1 / 2)], abs=1e-8)

    def test_brevity_penalty_by_hand(self):
        # Two words against four: exp(1 - 4 / 2).
        assert bleu(["a cat"], [["a cat sits down"]])[0] == pytest.approx(math.exp(-1), abs=1e-8)
        # Two and four are equally close to three: the shorter counts, and there is no penalty.
        assert bleu(["a cat sits"], [["a cat sits down", "a cat"]])[0] == pytest.approx(1.0, abs=1e-8)

    def test_corpus_level_by_hand(self):
        # Matches 1 + 1 of 1 + 3 words: not the mean of 1 and 1/3. Lengths 1 + 3 against 1 + 3.
        assert bleu(["a", "b c d"], [["a"], ["b e f"]])[0] == pytest.approx(2 / 4, abs=1e-8)

    @settings(deadline=None)
    @given(test_sets)
    def test_against_the_formula(self, rows):
        captions, references = [row[0] for row in rows], [row[1] for row in rows]
        for n, score in enumerate(bleu(captions, references), start=1):
            assert score == pytest.approx(slow_bleu(captions, references, n), abs=1e-8)


class TestRougeL:
    def test_by_hand(self):
        # Longest common subsequence "a c": P = 2/4, R = 2/3.
        expected = (1 + 1.44) * (1 / 2) * (2 / 3) / (2 / 3 + 1.44 * (1 / 2))
        assert rouge_l(["a b c d"], [["a c e"]]) == pytest.approx(expected)

    def test_best_precision_and_recall_may_come_from_two_references(self):
        # "a" gives P = 1/2, R = 1; "a b c d" gives P = 1, R = 1/2: together 1.
        assert rouge_l(["a b"], [["a", "a b c d"]]) == pytest.approx(1.0)

    @settings(deadline=None)
    @given(test_sets)
    def test_against_the_formula(self, rows):
        captions, references = [row[0] for row in rows], [row[1] for row in rows]
        expected = sum(slow_rouge_l(caption, own) for caption, own in rows) / len(rows)
        assert rouge_l(captions, references) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", [cider_d, bleu, rouge_l, caption_metrics])
class TestWrongInput:
    def test_lengths_differ(self, metric):
        with pytest.raises(ValueError, match="2 captions and 1 lists"):
            metric(["a", "b"], [["a"]])

    def test_empty(self, metric):
        with pytest.raises(ValueError, match="no captions"):
            metric([], [])

    def test_row_without_reference(self, metric):
        with pytest.raises(ValueError, match="row 1: no reference"):
            metric(["a", "b"], [["a"], []])

    def test_string_for_a_list(self, metric):
        with pytest.raises(ValueError, match="equal length"):
            metric("a", [["a"]])
        with pytest.raises(ValueError, match="row 0: .*single string"):
            metric(["a"], ["a"])


def test_caption_metrics():
    captions, references = ["a red dog", "a red dog."], [["a red dog"], ["the blue cat sits"]]
    metrics = caption_metrics(captions, references)
    # No n-gram is shared by both images: cosine 1 for n = 1, 2, 3 in the first row, 0 in the second.
    assert metrics["CIDEr-D"] == pytest.approx((10 / 4 * 3 + 0) / 2)
    assert metrics["ROUGE-L"] == pytest.approx(0.5)
    assert [metrics[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == bleu(captions, references)
    assert (metrics["vocabulary"], metrics["mean_length"], metrics["unique"]) == (3, 3.0, 0.5)
    assert (metrics["distinct_1"], metrics["distinct_2"]) == pytest.approx((0.5, 0.5))
    # Each says what the other says; but no caption has four words in a row: (0 / 1e-9) to the quarter.
    assert metrics["self_BLEU"] == pytest.approx((1e-15 / 1e-9) ** 0.25)
    assert (metrics["bad_endings"], metrics["repeats"]) == (0.0, 0.0)
    assert "self_BLEU" not in caption_metrics(captions[:1], references[:1])


@settings(deadline=None)
@given(test_sets)
def test_statistics_are_the_functions(rows):
    captions, references = [row[0] for row in rows], [row[1] for row in rows]
    metrics = caption_metrics(captions, references)
    assert metrics["CIDEr-D"] == pytest.approx(cider_d(captions, references))
    assert metrics["ROUGE-L"] == pytest.approx(rouge_l(captions, references))
    assert [metrics[f"BLEU-{n}"] for n in (1, 2, 3, 4)] == pytest.approx(bleu(captions, references))
    assert metrics["vocabulary"] == vocabulary(captions)
    assert metrics["unique"] == pytest.approx(unique_share(captions))
    assert metrics["distinct_2"] == pytest.approx(distinct_n(captions, 2))


def test_blocks_of_any_size_give_the_same_to_the_last_digit(monkeypatch):
    rng = np.random.default_rng(0)
    letters = list("abcdefgh")
    captions, *others = ([" ".join(rng.choice(letters, size=rng.integers(9))) for _ in range(60)] for _ in range(3))
    references = [list(own) for own in zip(*others, strict=True)]
    whole = caption_metrics(captions, references)
    assert 0 < whole["self_BLEU"] < 1 and 0 < whole["unique"] < 1 and whole["repeats"] > 0
    monkeypatch.setattr(blocks, "BLOCK", 7)
    assert caption_metrics(captions, references) == whole
    column = Dataset.from_dict({"captions": references})
    assert caption_metrics(captions, column) == whole


def slow_ngrams(text, n):
    words = text.split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def slow_cider_d(caption, references, corpus):
    def vector(text, n):
        idf = {}
        for ngram in slow_ngrams(text, n):
            images = sum(any(ngram in slow_ngrams(reference, n) for reference in image) for image in corpus)
            idf[ngram] = math.log(len(corpus)) - math.log(max(1, images))
        return {ngram: count * idf[ngram] for ngram, count in Counter(slow_ngrams(text, n)).items()}

    total = 0.0
    for reference in references:
        difference = len(caption.split()) - len(reference.split())
        for n in (1, 2, 3, 4):
            ours, theirs = vector(caption, n), vector(reference, n)
            dot = sum(min(weight, theirs[ngram]) * theirs[ngram] for ngram, weight in ours.items() if ngram in theirs)
            norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
            total += dot / norms * math.exp(-(difference**2) / 72) if norms else 0.0
    return 10 * total / 4 / len(references)


def slow_bleu(captions, references, max_n):
    lengths, closest = 0, 0
    for caption, own in zip(captions, references, strict=True):
        length = len(caption.split())
        lengths += length
        closest += sorted((len(reference.split()) for reference in own), key=lambda r: (abs(r - length), r))[0]
    product = 1.0
    for n in range(1, max_n + 1):
        right = attempts = 0
        for caption, own in zip(captions, references, strict=True):
            ngrams = slow_ngrams(caption, n)
            attempts += len(ngrams)
            right += sum(
                min(ngrams.count(ngram), max(slow_ngrams(reference, n).count(ngram) for reference in own))
                for ngram in set(ngrams)
            )
        product *= (right + 1e-15) / (attempts + 1e-9)  # the constants of pycocoevalcap
    if not lengths:
        return 0.0
    return product ** (1 / max_n) * min(1.0, math.exp(1 - closest / lengths))


def slow_rouge_l(caption, references):
    def common(first, second):
        if not first or not second:
            return 0
        if first[0] == second[0]:
            return 1 + common(first[1:], second[1:])
        return max(common(first[1:], second), common(first, second[1:]))

    words = caption.split()
    if not words:
        return 0.0
    precision = max(common(words, reference.split()) / len(words) for reference in references)
    recall = max(common(words, reference.split()) / len(reference.split()) for reference in references)
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0
