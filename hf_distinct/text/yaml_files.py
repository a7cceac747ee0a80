"""YAML that others wrote: a few lines cannot become gigabytes, and there is one kind of error."""

from __future__ import annotations

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Knows no aliases: ten lines that name each other ten times become ten billion values when they are written."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"an alias (*{event.anchor}); write the value out", event.start_mark
            )
        return super().compose_node(parent, index)


def parse_yaml(text: str, where: str) -> Any:
    """Decode YAML.

    Args:
        text: One document.
        where: What holds it, as the message begins.

    Raises:
        ValueError: It is not YAML, holds an alias, or a number or a date that there is not.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(f"{where}: this is not YAML that can be read: {error or type(error).__name__}") from error
