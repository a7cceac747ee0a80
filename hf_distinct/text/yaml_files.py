"""Parse YAML from untrusted files: no aliases, which can expand a few lines to gigabytes, and a single error type."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Rejects aliases: ten nested ones can expand to ten billion values."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"an alias (*{event.anchor}) is not supported; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML.

    Args:
        text: one document.
        where: its file, as the error message begins.

    Raises:
        ValueError: it is not YAML, contains an alias, or an invalid number or date.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(f"{where}: not valid YAML: {error or type(error).__name__}") from error
