"""Split scripts without spaces between words: Chinese, Japanese, Thai, Lao, Burmese, Khmer and Tibetan.

The COCO evaluation's tokenizer splits at spaces, so a Chinese caption would be one word, and two captions would agree
completely or not at all. In a text mainly in such a script each character counts as a word, as is usual in evaluations
of Chinese captions and translations. Marks stay with their character.
"""

from __future__ import annotations

import re
import unicodedata

_SCRIPTS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai and Lao, Tibetan, Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U0003ffff\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"  # and kana
)
_CHARACTER = re.compile(f"[{_SCRIPTS}]")
_MARKS = "".join(map(chr, filter(lambda code: unicodedata.category(chr(code))[0] == "M", range(0x300, 0x3100))))
_ONE_WORD = re.compile(f"(?![{_MARKS}])[{_SCRIPTS}][{_MARKS}]*")
_OTHER_WORD = re.compile(rf"[^\W\d_{_SCRIPTS}]+")


def split_unspaced(text: str) -> list[str] | None:
    """Split a text at spaces and around each character of a script without spaces, if it is mainly in such a script.

    That is the case if it has more such characters than words in other scripts: a Chinese sign in an English caption
    has no effect. Full-width letters, digits and punctuation become ASCII.

    Returns:
        The pieces; None for all other texts.

    Example:
        >>> split_unspaced("一只狗，Nike鞋")
        ['一', '只', '狗', ',Nike', '鞋']
    """
    if text.isascii() or not _CHARACTER.search(text):
        return None
    text = unicodedata.normalize("NFKC", text)
    if len(_CHARACTER.findall(text)) <= len(_OTHER_WORD.findall(text)):
        return None
    return _ONE_WORD.sub(r" \g<0> ", "".join(map(_plain, text))).split()


def is_unspaced(piece: str) -> bool:
    """Whether a piece is a character of a script without spaces."""
    return _CHARACTER.match(piece) is not None


def _plain(character: str) -> str:
    """Return the character, a space for punctuation beyond ASCII, or nothing for joiners and similar characters."""
    kind = unicodedata.category(character)
    if kind == "Cf":
        return ""
    return character if character.isascii() or kind[0] in "LMN" else " "
