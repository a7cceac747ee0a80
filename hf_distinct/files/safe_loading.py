"""Reject models whose files or settings would run code when they are loaded.

transformers asks "Do you wish to run the custom code?" where ``trust_remote_code`` cannot be passed on (the parts of
an encoder-decoder, the text tower of a CLIP), and runs ``custom_generate/generate.py`` of a local folder without
asking. So models are checked before they are loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

CODE_FILE = "custom_generate/generate.py"
CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate")
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation")


def code_problems(settings: Any, source: str) -> Iterator[str]:
    """Yield each setting, at any depth, that makes a library download or run code.

    Args:
        settings: the content of a JSON file.
        source: the file, for the message.
    """
    if isinstance(settings, list):
        for value in settings:
            yield from code_problems(value, source)
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        named = json.dumps({key: value}, default=str)[1:-1][:200]
        if (key in CODE_KEYS and value) or (key == "trust_remote_code" and value):
            yield (
                f"{source} requires custom code ({named}), which hf_distinct never runs "
                "(trust_remote_code=False). Remove this setting if transformers supports the model without it."
            )
        elif key in ATTENTION_KEYS and "/" in json.dumps(value, default=str):
            yield f"{source} requires code from the Hub ({named}), which hf_distinct never runs. Remove this setting."
        else:
            yield from code_problems(value, source)


def refuse_code(source: str | os.PathLike[str]) -> None:
    """Reject a model that contains code. Call this before loading the model, its tokenizer or its processor.

    Args:
        source: a folder, a JSON file, or the Hub id of a transformers model. In a folder, every ``*config.json`` at
            the top level is read; for a Hub id, ``config.json``, so pass ``trust_remote_code=False`` as well.

    Raises:
        ValueError: if a file is code that would run, or a setting names code. The message names file and setting.
        OSError: if the model does not exist.
    """
    folder = Path(source)
    if folder.is_file():
        problems = list(_problems_of_file(folder))
    elif not folder.is_dir():
        settings, _ = PretrainedConfig.get_config_dict(os.fspath(source))
        problems = list(code_problems(settings, f"config.json of {os.fspath(source)}"))
    else:
        problems = [problem for path in sorted(folder.glob("*config.json")) for problem in _problems_of_file(path)]
        if (folder / CODE_FILE).exists():
            problems.append(f"{folder / CODE_FILE} is code, which hf_distinct never runs. Remove this file.")
    if problems:
        raise ValueError(problems[0])


def _problems_of_file(path: Path) -> Iterator[str]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # loading it later reports the error
    yield from code_problems(settings, str(path))
