"""Escape text that others wrote, for Markdown, HTML, terminals and logs. All escaping happens in this module.

Captions, licences, file names, model names and saved states come from strangers. Cards, sheets, terminals and logs
show them as plain text: never as markup, a link, a heading or a terminal command.
"""

from __future__ import annotations

import html
import logging
import re

# Terminal control sequences: they begin with ESC or its one-character form.
_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)"
)
# Other control characters, and those that reverse the text direction.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile("[\ud800-\udfff]")

_MARKDOWN = re.compile(r"[\\`*\[\]|~$]|(?<= )#+$|(?<![^\W_])_|_(?![^\W_])")  # `_` within a word is no markup
_BLOCK = re.compile(r"^(?:[-+](?= |$)|#(?=#{0,5}(?: |$))|[-=]+$|\d{1,9}(?=[.)](?: |$)))")
# Text that GitHub and the Hub turn into links automatically. An empty comment, which is not displayed, prevents that.
_LINK = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?<=[\w.+-]@)(?=[\w-]+\.)", re.IGNORECASE)


def plain_lines(text: str) -> str:
    """Remove everything but line breaks that a terminal or a log would interpret instead of display."""
    text = _SEQUENCE.sub("", text.replace("\r\n", "\n"))
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", text))


def plain(text: str) -> str:
    r"""Do the same as `plain_lines`, and return one line, with white space collapsed.

    Example:
        >>> plain("a red \x1b[2J dog\n")
        'a red dog'
    """
    return " ".join(plain_lines(text).split())


def as_html(text: str, lines: bool = False) -> str:
    """Escape text for an HTML page, between tags or in a quoted attribute.

    Args:
        text: from any source.
        lines: keep line breaks and white space, as within `<pre>`.
    """
    return html.escape(plain_lines(text) if lines else plain(text))


def as_markdown(text: str) -> str:
    r"""Escape text for a line, a list item, a heading or a table cell of a Markdown page.

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
    """Format text as inline code in a line or a table cell of a Markdown page, backticks included."""
    code = plain(text).replace("`", "'").replace("|", "\\|")
    return f"`{code}`"


class PlainFormatter(logging.Formatter):
    """Formats log records for a terminal and removes control sequences, which strangers' files may contain."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record without control characters."""
        return plain_lines(super().format(record))
