"""Captions in scripts without spaces between words: each character is a word, and nothing else changes."""

from __future__ import annotations

import math

import pytest
from transformers.utils import logging

from hf_distinct.evaluation import caption_metrics, repeats, tokenize
from hf_distinct.evaluation.ptb_tokenizer import ptb_line
from hf_distinct.evaluation.unspaced import split_unspaced


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("一只狗在草地上奔跑。", "一 只 狗 在 草 地 上 奔 跑"),
        ("两只狗，一只猫！「好」", "两 只 狗 一 只 猫 好"),
        ("穿着Ｎｉｋｅ鞋的３个人", "穿 着 nike 鞋 的 3 个 人"),
        ("一个男人's dog在家，don't", "一 个 男 人 's dog 在 家 do n't"),
        ("𠀀𠀁在家", "𠀀 𠀁 在 家"),  # beyond the plane that the tokenizer of COCO knows
        ("犬がｶﾞﾗｽの上", "犬 が ガ ラ ス の 上"),
        ("หมาวิ่งบนหญ้า", "ห ม า วิ่ ง บ น ห ญ้ า"),
        ("ໝາແລ່ນ", "ຫ ມ າ ແ ລ່ ນ"),
        ("ខ្មែរត់។", "ខ្ មែ រ ត់"),
        ("ခွေးပြေး", "ခွေး ပြေး"),
        ("一只\u200b狗\n跑", "一 只 狗 跑"),
    ],
)
def test_each_character_is_a_word(text, words):
    assert ptb_line(text) == words and tokenize(text) == words.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a man in 北京.", "a man in 北京"),
        ("w語ith. TWO .", "w語ith two"),
        ("собака бежит", "собака бежит"),
        ("개가 잔디 위를 달린다", "개가 잔디 위를 달린다"),
        ("कुत्ता दौड़ता है", "कुत्ता दौड़ता है"),
        ("a ❤ café", "a ❤ café"),
        ("", ""),
    ],
)
def test_other_texts_keep_the_words_between_their_spaces(text, words):
    assert split_unspaced(text) is None and ptb_line(text) == words


def test_metrics_of_chinese_captions():
    """Near matches score between nothing and all; one word a caption would give 0."""
    references = [["一只狗在草地上奔跑"], ["一只猫在床上睡觉"]]
    metrics = caption_metrics(["一只狗在草地上跑", "一只猫在床上睡"], references)
    assert metrics["mean_length"] == 7.5 and metrics["vocabulary"] == 11
    assert metrics["BLEU-1"] == pytest.approx(math.exp(1 - 17 / 15))  # all 15 characters are in the references' 17
    assert 1 < metrics["CIDEr-D"] < caption_metrics([own[0] for own in references], references)["CIDEr-D"]
    assert 0.9 < metrics["ROUGE-L"] < 1
    assert repeats(["狗狗跑", "一只狗和一只猫", "一只狗"]) == [True, True, False]


def test_what_is_done_is_said_once(caplog):
    logging.warning_once.cache_clear()
    ptb_line.cache_clear()
    tokenize("一只狗"), tokenize("一只猫"), tokenize("a dog")
    assert caplog.text.count("each character as a word") == 1


def test_bad_endings_say_that_they_are_english(caplog):
    logging.warning_once.cache_clear()
    german = ["ein Mann sitzt an einem Tisch in der Küche und liest eine Zeitung"] * 20
    caption_metrics(german, [[text] for text in german])
    assert "do not seem to be English" in caplog.text
    caplog.clear()
    english = ["a man sits at the table and reads"] * 40
    caption_metrics(english, [[text] for text in english])
    assert not caplog.text
