"""What is escaped for which page: the one place that decides how text of others is written.

Captions, licences, file names, names of models and saved states come from strangers. On a card, a sheet, a terminal
or in a log they are shown as text: they are never markup, a link, a heading or a command to the terminal.
"""

from __future__ import annotations

import html
import logging
import re

# What a terminal obeys: sequences that begin with ESC or its one-character form, and end.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
)
# Other control characters, and those that reverse the direction of the text after them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile("[\ud800-\udfff]")

_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<= )#+$|(?<![^\W_])_|_(?![^\W_])")  # `_` within a word means nothing
_BLOCK = re.compile(r"^(?:[-+](?= |$)|#(?=#{0,5}(?: |$))|[-=]+$|\d{1,9}(?=[.)](?: |$)))")
# What GitHub and the Hub turn into a link by itself. An empty comment, which no page shows, keeps them from it.
_LINK = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=[\w.+-]@)(?=[\w-]+\.)", re.IGNORECASE)


def plain_lines(text: str) -> str:
    """Text for a terminal or a log: line breaks stay, all else that would act instead of being seen does not."""
    text = _SEQUENCE.sub("", text.replace("\r\n", "\n"))
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text))


def plain(text: str) -> str:
    r"""The same on one line, without white space at its ends or twice in a row.

    Example:
        >>> plain("a red \x1b[2J dog\n")
        'a red dog'
    """
    return " ".join(plain_lines(text).split())


def as_html(text: str, lines: bool = False) -> str:
    """Text for an HTML page, between tags or in a quoted attribute.

    Args:
        text: of anybody.
        lines: whether line breaks and white space stay, as within `<pre>`.
    """
    return html.escape(plain_lines(text) if lines else plain(text))


def as_markdown(text: str) -> str:
    r"""Text for a line, a list item, a heading or a table's cell of a Markdown page.

    Example:
        >>> print(as_markdown("# [free](http://x.org) | <b>"))
        \# \[free\](http:<!-- -->//x.org) \| &lt;b&gt;
    """
    text = _MARKDOWN.sub(r"\\\g<0>", html.escape(plain(text), quote=False))
    return _BLOCK.sub(_escaped_start, _LINK.sub("<!-- -->", text))


def _escaped_start(found: re.Match[str]) -> str:
    start = found.group()
    return f"{start}\\" if start[0].isdigit() else f"\\{start}"


def as_code(text: str) -> str:
    """Text as code within a line or a table's cell of a Markdown page, with its backticks around it."""
    code = plain(text).replace("`", "'").replace("|", "\\|")
    return f"`{code}`"


class PlainFormatter(logging.Formatter):
    """Formats log records for a terminal: what they say of strangers' files cannot command it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or lines, without control characters."""
        return plain_lines(super().format(record))
