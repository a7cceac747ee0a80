"""The tokenizer of the COCO caption evaluation, without Java.

Published CIDEr, BLEU and ROUGE-L values of captions count the words of the Penn Treebank tokenizer of Stanford CoreNLP
3.4.1 (package `pycocoevalcap`), without quotation marks and most punctuation. `ptb_line` returns the same words for
captions. It was written from that tokenizer's behaviour, not from its code, and is tested against it on random
captions (tests/evaluation/pycocoevalcap_cases.py in the repository). One thing differs: that tokenizer treats a
Chinese, Japanese or Thai caption as one word, this one treats each character as a word; see
`hf_distinct.evaluation.unspaced`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from transformers.utils import logging

from hf_distinct.evaluation.ptb_characters import DIGITS, LETTERS, MARKS, SIGNS
from hf_distinct.evaluation.unspaced import is_unspaced, split_unspaced
from hf_distinct.text.limits import MAX_CAPTION_CHARACTERS

logger: Any = logging.get_logger(__name__)

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""Tokens that are not words. The original list also has brackets, but in capitals, so `-lrb-` is kept."""

ABBREVIATIONS = (
    "adj|adm|adv|al|ala|alex|apr|ariz|assn|assoc|asst|atty|aug|ave|bhd|bldg|blvd|brig|bros|calif|capt|cf|cie|"
    "cmdr|co|col|colo|conn|corp|cos|cpl|ct|dak|dec|dept|det|dr|drs|elec|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|"
    "gen|gov|govs|hon|inc|ind|insp|intl|invt|jan|jos|jr|jul|jun|kan|kans|ky|lt|ltd|maj|mar|md|mfg|mich|minn|"
    "mlle|mme|mo|mon|mont|mr|mrs|ms|msgr|mt|mtg|natl|neb|nev|nov|oct|okla|penn|pfc|ph|plc|ppte|ppty|pres|prof|"
    "profs|pte|ptes|pty|ptys|pvt|rd|rep|reps|rev|rt|sen|sens|sep|sept|seq|sfc|sgt|spc|sq|sr|st|ste|supt|sys|"
    "tel|tenn|thu|thurs|treas|tue|tues|univ|va|vs|vt|wed|wis|wisc|wm|wyo"
)
"""Words that keep their dot, in any case; single letters do, too."""
NAMES = "ariz|ark|az|del|ill|la|mass|miss|ore|pa|tex|wash"
"""Words that keep their dot if they begin with a capital."""
BEFORE_NUMBERS = "art|ca|fig|figs|no|nos|op|pp|prop"
"""Words that keep their dot before a number."""
SPLIT = frozenset(["cannot", "gonna", "wanna", "gotta", "gimme", "lemme"])
SIGNS_AS = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "\u00a2": "cents", "\u00a3": "#", "\u00a4": "$", "\u0080": "$", "\u20a0": "$", "\u20ac": "$",
    "\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3",
}  # fmt: skip
DASHES = ("\u0096", "\u0097", "\u2013", "\u2014", "\u2015", "--", "---", "----")
CURLY_ENDINGS = {
    apostrophe + ending: "'" + ending
    for apostrophe in ("\u2019", "\u0092", "&apos;")
    for ending in ("", "s", "d", "m", "re", "ve", "ll")
} | {f"n{apostrophe}t": "n't" for apostrophe in ("\u2019", "\u0092", "&apos;")}
QUOTES = {
    "\u0091": "`", "\u2018": "`", "\u201b": "`", "\u2039": "`", "\u203a": "'",
    "\u0093": "``", "\u00ab": "``", "\u201c": "``", "\u0094": "''", "\u00bb": "''", "\u201d": "''", '"': "''",
}  # fmt: skip
JOINERS = "\u2010\u2011\u058a\u066b\u066c"
"""Characters that are nothing on their own."""
ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&mdash;": "--"}


def _ranges(ranges: str) -> str:
    """Convert ranges of code points to the inside of a regular expression's character class."""
    return re.sub(r"([0-9a-f]+)", lambda found: f"\\u{found[0]:0>4}", ranges).replace(" ", "")


_A = "(?:['\u2019\u0092]|&apos;)"  # apostrophe
_L = f"A-Za-z{_ranges(LETTERS)}"
_M = _ranges(MARKS)
_D = f"0-9{_ranges(DIGITS)}"
_H = "[-_\u058a\u2010\u2011]"  # hyphens
_WORD = f"[{_L}{_M}\u00ad][{_L}{_M}{_D}\u00ad]*"
_PART = f"[{_L}{_D}]+"
_SEVERAL = "[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_NAME = "[A-Za-z][-A-Za-z0-9:.]*"
_ENDING = f"{_A}(?:[sSdDmM]|[rRvV][eE]|[lL][lL])"
_URL = r"[^\s\"<>|()]"
_DOMAIN = r"[^\s\"<>|().!?,]+"
_URL_END = r"[^\s\"<>|().!?,-]"

# The longest match wins, including the context after its group; of equal matches, the first.
_RULES = [
    re.compile(rule, flags | re.ASCII)
    for rule, flags in [
        (rf"([{_L}]+)n(?:{_A}|`)t", re.I),  # do n't
        (rf"({_WORD}(?:[.!?]{_WORD})*|{_PART}(?:{_H}{_PART})*){_ENDING}(?:[^A-Za-z]|$)", re.I),  # dog 's
        (rf"({_ENDING})(?:[^A-Za-z]|$)|(n(?:{_A}|`)t)", re.I),
        (r"(can)not(?![A-Za-z])|(gon|wan)na(?![A-Za-z])|(got)ta(?![A-Za-z])|(gim|lem)me(?![A-Za-z])", re.I),
        (rf"({_A}t)(?:is|was)", re.I),
        (rf"({_A}(?:em|till?|cause|n{_A}?|[2-9]0s|\d\d(?=$|[ .;!?)]|[,:](?![0-9]))))", re.I),
        (rf"({_A})[A-Za-z][^ ]", 0),
        (rf"(y{_A})[{_L}]|([ldj]{_A}|ol{_A}|somethin{_A}|dunkin{_A})", re.I),
        (rf"(o{_A}clock|c{_A}mon|cap{_A}n|e{_A}er|c{_A}est)", re.I),
        (rf"((?:[dlno]{_A}[{_L}][{_L}]|[a-z][aeiouy]{_A}(?:[aeiou]|[{_L}][{_L}]))[{_L}]*)", re.I),  # l'amour
        (rf"({_WORD}(?:[.!?]{_WORD})*)", 0),
        (rf"({_WORD}(?:[.!?]{_WORD})*\.|{_PART}(?:{_H}{_PART})*\.)[,;:\u3001]", 0),
        (rf"((?:[dol]{_A}[{_L}])?{_PART}(?:{_H}(?:[dol]{_A}[{_L}])?{_PART})*)", re.I),
        (rf"((?:(?:{_PART}-)*(?:[A-Za-z]\.){{2,}}|[A-Za-z]\.|ph\.d\.|(?:{ABBREVIATIONS})\.)(?:{_H}{_PART})*)", re.I),
        (rf"((?-i:(?=[A-Z]))(?:{NAMES})\.)", re.I),
        (rf"((?:{BEFORE_NUMBERS})\.) ?[{_D}]", re.I),
        (rf"([{_L}]+\.\.\.[{_D}]*(?:-{_PART})+)", 0),
        (rf"([-+]?[{_D}]*(?:[.,:\u00ad\u066b\u066c][{_D}]+)+|[-+]?[{_D}]+)", 0),
        (rf"({_SEVERAL}(?:\\?/{_SEVERAL}){{1,2}})", 0),
        (r"((?:\d{1,4}[- ])?\d{1,4}\\?[/\u2044]\d{1,4})", 0),
        (r"((?:\(\d{2,3}\) ?|\+{0,2}(?:\d{2,4}[- ])?\d{2,4}[- ])\d{3,4}[- ]?\d{3,5})", 0),
        (r"(\+{0,2}(?:\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5})", 0),
        (r"([A-Z]{1,2}\$)", 0),
        (r"([A-Z]+(?:[+&][A-Z]+)+|[Cc]\+\+|[CcFf]#)", 0),
        (r"(#[A-Za-z]+|@[A-Za-z_][A-Za-z_0-9]*)", 0),
        (rf"([A-Za-z0-9]{_URL}*@{_URL}*[^\s\"<>|().])", 0),
        (rf"(https?://{_URL}*{_URL_END})", re.I),
        (
            rf"((?:www\.(?:{_DOMAIN}\.)+[a-z]{{2,4}}|(?:{_DOMAIN}\.)+(?:com|net|org|edu))(?:/{_URL}+{_URL_END})?)",
            re.I,
        ),
        (r"([<>]?[:;=][-'o*^]?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])|([-^x=~<>']_[-^x=~<>'])", 0),
        (rf"(</?{_NAME}(?: +{_NAME}(?:=(?:'[^']*'|\"[^\"]*\"|[A-Za-z0-9]+))?)* */?>|<!--[^>]*-->)", 0),
        (rf"({'|'.join(ENTITIES)}|&#\d+;|-[lr][rcs]b-)", re.I),
        (r"(\.(?: ?\.){2,4}|\.{3,5})", 0),
        (r"([?!]+|\*+|#+|@+|_+|<<|>>|-{2,}|''|``|[\u00b2\u00b3\u00b9\u2070\u2074-\u2089]+)", 0),
        (r"([\u201c\u00ab\u0093]+|[\u201d\u00bb\u0094]+)", 0),
        (r"([^\s])", 0),
    ]
]  # fmt: skip
_UNKNOWN = re.compile(f"[^\\x21-\\x7e{_L}{_M}{_D}{_ranges(SIGNS)}\u00ad]|&nbsp;")
_FULL_STOP = re.compile(rf"(?<![A-Za-z])(?!(?:[A-Za-z]|{ABBREVIATIONS}|{NAMES})\.$)([A-Za-z]+)\.$", re.I)
# Fractions, telephone numbers, "no. 5", ". . ." and tags may contain spaces.
_CHUNK = re.compile(rf"[^ <.{_D}]+(?= |$)|[^ <{_D}]+(?=$| (?![ .{_D}]))")
_PLAIN = re.compile(r"[A-Za-z]+(?:,? [A-Za-z]+)*")
# Maximum range of a rule: some rules read to the end of the text from every position.
_FARTHEST = MAX_CAPTION_CHARACTERS


@lru_cache(maxsize=65536)
def ptb_line(caption: str) -> str:
    """Return a caption's words in lower case, separated by spaces.

    A fraction or a telephone number is one word with a no-break space, as in CoreNLP: ROUGE-L counts it as one word,
    BLEU and CIDEr-D as two. Line breaks count as spaces. A word of more than `MAX_CAPTION_CHARACTERS` is split.
    and CIDEr-D for two. Line breaks count as spaces. A word of more than `MAX_CAPTION_CHARACTERS` is split.

    Example:
        >>> ptb_line("A man's T-shirt (red), don't look!")
        "a man 's t-shirt -lrb- red -rrb- do n't look"
    """
    pieces = split_unspaced(caption)
    if pieces is None:
        return _coco_line(caption)
    logger.warning_once(
        "There are captions in a script without spaces between words, such as Chinese: CIDEr-D, BLEU, ROUGE-L, "
        "lengths and vocabulary count each character as a word. Compare them only with values counted by character."
    )
    words = (piece if is_unspaced(piece) else _coco_line(piece) for piece in pieces)
    return " ".join(filter(None, words))


def _coco_line(caption: str) -> str:
    """Return the words as in the COCO evaluation."""
    known = caption.isascii() and caption.isprintable() and "&nbsp;" not in caption  # the regular expression is slow
    text = caption if known else _UNKNOWN.sub(" ", caption)
    plain = _without_full_stop(text.strip())
    if _PLAIN.fullmatch(plain):
        words = plain.lower().replace(",", "")
        if SPLIT.isdisjoint(words.split()):
            return words
    return " ".join(token for token in _tokens(text) if token not in PUNCTUATION)


def _without_full_stop(text: str) -> str:
    if not text.endswith("."):
        return text
    head, space, last = text.rpartition(" ")
    return head if last == "." else head + space + _last_word(last)


@lru_cache(maxsize=65536)
def _last_word(word: str) -> str:
    """Return the last word of a text without its full stop, unless it is an abbreviation."""
    return _FULL_STOP.sub(r"\1", word)


def tokenize(caption: str) -> list[str]:
    """Return the words of a caption as BLEU and CIDEr-D count them, see `ptb_line`.

    Example:
        >>> tokenize("A man's T-shirt, don't look!")
        ['a', 'man', "'s", 't-shirt', 'do', "n't", 'look']
    """
    return ptb_line(caption).split()


def _tokens(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        if text[place] == " ":
            place += 1
        elif chunk := _CHUNK.match(text, place, place + _FARTHEST):
            yield from _chunk_tokens(chunk[0])
            place = chunk.end()
        else:
            token = _longest(text, place)
            place += len(token)
            if token not in JOINERS:
                yield _written(token.lower())


@lru_cache(maxsize=65536)
def _chunk_tokens(chunk: str) -> tuple[str, ...]:
    """Return the tokens of text without spaces, in which no rule looks further."""
    tokens, place = [], 0
    while place < len(chunk):
        token = _longest(chunk, place)
        place += len(token)
        if token not in JOINERS:
            tokens.append(_written(token.lower()))
    return tuple(tokens)


def _longest(text: str, place: int) -> str:
    longest, token = -1, ""
    for rule in _RULES:
        match = rule.match(text, place, place + _FARTHEST)
        if match and match.end() > longest:
            longest, token = match.end(), match[match.lastindex or 0]
    return token


def _written(token: str) -> str:
    """Normalise a token as CoreNLP does."""
    if token in ENTITIES:
        return ENTITIES[token]
    if token[0] in QUOTES:
        return "".join(QUOTES[sign] for sign in token)
    if token in DASHES:
        return "--"
    if len(token) > 2 and not token.strip(". ") or token == "\u2026":
        return "..."
    token = token.replace("\u00ad", "") or "-"
    if token in CURLY_ENDINGS:
        return CURLY_ENDINGS[token]
    if token in SIGNS_AS:
        return SIGNS_AS[token]
    return token.replace(" ", "\u00a0").replace("(", "-lrb-").replace(")", "-rrb-")
