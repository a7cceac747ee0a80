# ruff: noqa: T201
"""Random captions with what pycocoevalcap says of them: made where Java is, for tests that need none.

pip install pycocoevalcap && python tests/evaluation/pycocoevalcap_cases.py --write      # pycocoevalcap_cases.json
python tests/evaluation/pycocoevalcap_cases.py --seed 7                                  # other cases, only compared
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
from pathlib import Path

FILE = Path(__file__).with_name("pycocoevalcap_cases.json")
SETS, IMAGES = 50, 20

WORDS = """
    a an the man woman dogs two people riding on in with sits table small red white street and of is o'clock
"""
SPECIAL = """
    cannot gonna don't can't won't isn’t it's they're we’ve I'm y'all 'til 'em t-shirt black-and-white U.S. St. Louis
    Mr. Smith e.g. etc. vs. Dr. w/ w/o tv/vcr AT&T R&B www.abc.com a@b.com http://x.org/y &amp; &quot; :) :-( <3 #tag
    @user and/or mid-air x-ray l'amour ma'am jack-o'-lantern men's c'mon B. J.R. Jr. no. ave. p.m.
"""
NUMBERS = """
    1 12 1998 3.5 1,000 10:30 1/2 3/4 5th 747 #3 $5 50% 1990s '90s 1980's 3-4 12-year-old 4x4 6'2" 5ft. ½ 2¾ ² ٣ +2
"""
STRANGE = (
    "éèüñçßœÅлжий日本語한국عربيहिन्दीไทย😀❤️☕★→✓©®™°§¶•·†…–€£¥¢²³ªºﬁﬀ½\u200b\u200d\ufeff\u0301\u00a0\u3000İıẞ🐶🇩🇪𝒜"
)
QUOTES = ["'%s'", '"%s"', "“%s”", "‘%s’", "`%s'", "``%s''", "«%s»", "(%s)", "[%s]", "{%s}", "%s's", "%s’s", "%s'"]
JOINTS = ["-", "--", "---", "–", "—", "‐", "/", " - ", " – ", "_", "…", "...", " & ", "+", "=", "~"]
STOPS = [".", ",", "!", "?", ";", ":", "...", "?!", " .", ". . ."]


def draw_word(rng: random.Random) -> str:
    word, kind = rng.choice(WORDS.split()), rng.random()
    if kind < 0.5:
        return word
    if kind < 0.58:
        return rng.choice(NUMBERS.split())
    if kind < 0.66:
        return rng.choice(QUOTES) % rng.choice(
            [word, f"{word} {rng.choice(WORDS.split())}", rng.choice(NUMBERS.split())]
        )
    if kind < 0.74:
        return word + rng.choice(JOINTS) + rng.choice([rng.choice(WORDS.split()), rng.choice(NUMBERS.split())])
    if kind < 0.8:
        return "".join(rng.choice(STRANGE) for _ in range(rng.randint(1, 4)))
    if kind < 0.85:
        return word[:1] + rng.choice(STRANGE) + word[1:]
    if kind < 0.95:
        return rng.choice(SPECIAL.split())
    return rng.choice([word.upper(), word.capitalize()])


def draw_caption(rng: random.Random) -> str:
    if rng.random() < 0.04:
        return rng.choice(["", " ", ".", "!?", "😀", "-"])
    words = [draw_word(rng) + (rng.choice(STOPS) if rng.random() < 0.1 else "") for _ in range(rng.randint(1, 9))]
    return " ".join(words) + rng.choice(["", "", ".", " .", "!"])


def draw_set(rng: random.Random) -> dict[str, list]:
    references = [[draw_caption(rng) for _ in range(rng.randint(1, 3))] for _ in range(IMAGES)]
    captions = [
        rng.choice([draw_caption(rng), rng.choice(own), rng.choice(own) + " " + draw_word(rng)]) for own in references
    ]
    return {"captions": captions, "references": references}


def judge(sets: list[dict[str, list]]) -> None:
    """Add what pycocoevalcap says: the words, and the figures of each set."""
    os.environ["JAVA_TOOL_OPTIONS"] = "-Dfile.encoding=UTF-8"
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [
        text
        for each in sets
        for own in zip(each["captions"], each["references"], strict=True)
        for text in (own[0], *own[1])
    ]
    lines = PTBTokenizer().tokenize({row: [{"caption": text}] for row, text in enumerate(texts)})
    words = iter(lines[row][0] for row in range(len(texts)))
    for each in sets:
        said, told = {}, {}
        for row, own in enumerate(each["references"]):
            said[row] = [next(words)]
            told[row] = [next(words) for _ in own]
        each["words"] = [[*said[row], *told[row]] for row in said]
        with contextlib.redirect_stdout(io.StringIO()):
            each["BLEU"] = [float(score) for score in Bleu(4).compute_score(told, said, verbose=0)[0]]
            each["CIDEr-D"] = [float(score) for score in Cider().compute_score(told, said)[1]]
            each["ROUGE-L"] = [float(score) for score in Rouge().compute_score(told, said)[1]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    sets = [draw_set(rng) for _ in range(SETS)]
    judge(sets)
    from hf_distinct.evaluation.ptb_tokenizer import ptb_line

    texts = wrong = 0
    for each in sets:
        for caption, own, words in zip(each["captions"], each["references"], each["words"], strict=True):
            for text, expected in zip([caption, *own], words, strict=True):
                texts += 1
                if ptb_line(text) != expected:
                    wrong += 1
                    print(f"{text!r}\n    {expected!r}\n    {ptb_line(text)!r}")
    print(f"{wrong} of {texts} captions have other words")
    if options.write:
        FILE.write_text(json.dumps(sets, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
