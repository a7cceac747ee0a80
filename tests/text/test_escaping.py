"""What strangers wrote, as it is shown on each kind of page."""

from __future__ import annotations

import html
import logging
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_distinct.text.escaping import PlainFormatter, as_code, as_html, as_markdown, plain, plain_lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red\x1b[31m dog\x1b[0m", "a red dog"),
        ("\x1b[2J\x1b[1;1Ha dog", "a dog"),
        ("a \x1b]0;title\x07dog \x1b]8;;http://x\x1b\\here\x1b]8;;\x1b\\", "a dog here"),
        ("a \x9b31mdog\x90device\x9c", "a dog"),
        ("a\x00dog\x08\x7f of\rmine\x85", "a dog of mine"),
        ("ESC alone: \x1b or at the end \x1b", "ESC alone: or at the end"),
        ("invoice\u202egnp.exe \u2066x\u2069", "invoice gnp.exe x"),
        ("half a \ud83d letter", "half a \ufffd letter"),
        ("  two\n\n lines\u2028 of \t text ", "two lines of text"),
        ("می‌خواهم 👩‍🚒 🇫🇷 שלום", "می‌خواهم 👩‍🚒 🇫🇷 שלום"),  # joiners belong to words and emoji
    ],
)
def test_text_on_the_terminal_is_seen_and_does_nothing(text, expected):
    assert plain(text) == expected


def test_lines_stay_where_a_page_has_lines():
    assert plain_lines("a\x1b[K\r\n  b\tc\x00") == "a\n  b\tc "
    assert as_html("1 < 2\n  \x1b[1mb", lines=True) == "1 &lt; 2\n  b"


def test_a_log_line_cannot_command_the_terminal():
    record = logging.makeLogRecord({"msg": "left out: %s", "args": ("a\x1b[2J\u202e.png\nb",)})
    assert PlainFormatter("%(message)s").format(record) == "left out: a .png\nb"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[free](http://x.org)", r"\[free\](http:<!-- -->//x.org)"),
        ("![](http://x.org/seen.png)", r"!\[\](http:<!-- -->//x.org/seen.png)"),
        ("www.x.org and me@x.org", "www<!-- -->.x.org and me@<!-- -->x.org"),
        ("<script>alert(1)</script> & <!-- End -->", "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;!-- End --&gt;"),
        ("a | b `c` *d* _e_ ~~f~~ $g$", r"a \| b \`c\` \*d\* \_e\_ \~\~f\~\~ \$g\$"),
        ("MIT\n\n# Take care\n\n---\nx: y", "MIT # Take care --- x: y"),
        ("# Take care", r"\# Take care"),
        ("- one", r"\- one"),
        ("12. one", r"12\. one"),
        ("---", r"\---"),
        ("===", r"\==="),
        ("> said", "&gt; said"),
        ("a\\", "a\\\\"),
        ("judge/t2i_R@1 of dog_house, 0.5 - 1", "judge/t2i_R@1 of dog_house, 0.5 - 1"),  # as plain as it was
        ("a #", r"a \#"),
    ],
)
def test_text_on_a_card_is_no_markdown(text, expected):
    assert as_markdown(text) == expected


@given(st.text(alphabet="ab1 \\`*_[]()!|~#<>&$-+.:/@w=\n\x1b", max_size=30))
def test_a_card_shows_the_very_text(text):
    shown = as_markdown(text).replace("<!-- -->", "")
    assert html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown)) == plain(text)
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]|~$<>]", shown) and "\n" not in shown


def test_code_stays_within_its_backticks():
    assert as_code("a`b`|c\nd") == "`a'b'\\|c d`"


class Tags(HTMLParser):
    """The tags of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, attrs))

    def handle_data(self, data):
        self.text += data


@given(st.text(alphabet="ab <>&\"'/=!-\x00\x1b[;", max_size=30))
def test_a_page_shows_the_very_text(text):
    found = Tags(f'<p title="{as_html(text)}">{as_html(text)}</p>')
    assert found.tags == [("p", [("title", plain(text))])] and found.text == plain(text)
