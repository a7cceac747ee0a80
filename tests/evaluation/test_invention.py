"""Invention, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hf_distinct.evaluation import invention
from hf_distinct.evaluation.invention import content_stems, invented, invention_statistic, stem

FORMS = """
dog dogs, run runs running, ride rides riding, baby babies, box boxes, beach beaches, play plays played, ski skiing,
hop hopped hopping, dance dances dancing, horse horses, dress dresses, watch watches watching, bike bikes biking,
climb climbs climbing climbed, roll rolls rolling
"""
OTHERS = "dog dig red reed bus bush grass glass ring run king tennis bed this sing thing"


@pytest.mark.parametrize("forms", FORMS.split(","))
def test_forms_of_a_word_have_one_stem(forms):
    assert len({stem(word) for word in forms.split()}) == 1


def test_other_words_have_others():
    assert len({stem(word) for word in OTHERS.split()}) == len(OTHERS.split())


def test_by_hand():
    said = "Two dogs are running with the red ball, running!"
    assert content_stems(said) == {"two", "dog", "run", "red", "ball"}
    references = ["A dog runs.", "the dog with a toy"]
    assert invented([said], [references]) == [(3, 5)]  # two, red, ball
    assert invented(["of the"], [references]) == [(0, 0)]
    # Over all content words: 3 of 5, none of 0, and 1 of 1.
    assert invention([said, "of the", "cats"], [references] * 3) == pytest.approx(4 / 6)
    assert invention(["of the"], [references]) == 0
    statistic = invention_statistic(invented([said, "cats"], [references] * 2))
    assert statistic(np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 1.0]])).tolist() == pytest.approx([4 / 6, 3 / 5, 1])


def test_a_word_said_again_and_again_counts_once():
    assert invention(["girl girl girl street"], [["a girl"]]) == 0.5


def test_lists_of_different_lengths():
    with pytest.raises(ValueError, match="got 1 captions and 2 lists"):
        invention(["a dog"], [["a dog"], ["a cat"]])
