"""What stays of a card that a person edited."""

from __future__ import annotations

import pytest
import yaml

from hf_distinct.text.card_merge import edited, mark, merge

OLD = mark("---\nlicense: mit\ntags:\n- clip\nmodel-index: 1\n---\n\n# cap\n\nold\n")
NEW = mark("---\nlicense: mit\ntags:\n- clip\nmodel-index: 2\n---\n\n# cap\n\nnew\n")


def test_an_unedited_card_gives_way():
    assert merge(NEW, OLD) == NEW and merge(NEW, NEW) == NEW
    assert not edited(NEW) and edited(NEW.replace("# cap", "# hat")) and edited("# cap")
    assert merge(NEW, OLD.replace("\n", "\r\n")) == NEW


def test_text_around_ours_stays_through_several_cards():
    by_hand = OLD.replace("---\n\n<!--", "---\n\n> Beta!\n\n<!--") + "\n## Notes by hand\n\ntext\n"
    first = merge(NEW, by_hand)
    assert first is not None and "> Beta!\n\n<!--" in first and first.endswith("\n## Notes by hand\n\ntext\n")
    assert "new" in first and "old" not in first and not edited(first)
    assert merge(OLD, first) == by_hand
    assert merge(first, by_hand) == first  # what stands in both stands there once
    more = merge(first, OLD + "\nof the Hub\n")
    assert more is not None and "of the Hub" in more and more.count("Notes by hand") == 1


def test_edited_metadata_win_but_for_what_is_measured():
    by_hand = OLD.replace("license: mit", "license: apache-2.0\nlanguage: de").replace("- clip", "- clip\n- mine")
    merged = merge(NEW, by_hand)
    assert merged is not None and "new" in merged
    assert yaml.safe_load(merged.split("---")[1]) == {
        "license": "apache-2.0", "tags": ["clip", "mine"], "model-index": 2, "language": "de"
    }  # fmt: skip
    again = merge(OLD, merged)
    assert again is not None and yaml.safe_load(again.split("---")[1])["license"] == "apache-2.0"


def test_metadata_alone_as_the_hub_makes_them():
    merged = merge(NEW, "---\nlicense: cc-by-4.0\n---\n")
    assert merged is not None and "license: cc-by-4.0" in merged and "new" in merged
    assert merge(NEW, "") == NEW or "license: mit" in str(merge(NEW, ""))


@pytest.mark.parametrize(
    "by_hand",
    [
        OLD.replace("old", "better"),
        "# A card of mine\n",
        OLD.replace("<!-- End of", "<!-- end of"),
        OLD.replace("license: mit", "license: [mit"),
        OLD.replace("license: mit", "a: &a [lol, lol]\nlicense: [*a, *a]"),  # a few lines of such become gigabytes
        OLD.replace("license: mit\ntags:\n- clip\nmodel-index: 1", "a list"),
    ],
)
def test_what_cannot_be_merged(by_hand):
    assert merge(NEW, by_hand) is None


def test_dashes_at_the_end_of_a_value_do_not_end_the_metadata():
    card = mark("---\nname: x ---\nlicense: mit\n---\n\n# cap\n")
    assert card.startswith("---\nname: x ---\nlicense: mit\n---\n\n<!-- Written")
    assert merge(card, card.replace("license: mit", "license: cc0")).count("license: cc0") == 1
