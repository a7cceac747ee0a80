"""What a recipe shows on the screen: its own words, without the chatter of the libraries below it."""

from __future__ import annotations

import logging
import warnings


def show_logs(*names: str, main_process: bool = True) -> None:
    """Show what hf_distinct reports from ``INFO`` on, and of all other libraries only their warnings.

    Call it once, at the entry of a recipe.

    Args:
        names: further loggers to show from ``INFO`` on, such as the recipe's own.
        main_process: whether this is the main process; the others show only errors, and pictures that go bad.
    """
    logging.basicConfig(format="%(message)s")
    for name in ("hf_distinct", *names):
        logging.getLogger(name).setLevel(logging.INFO if main_process else logging.ERROR)
    logging.getLogger("hf_distinct.data.collator").setLevel(logging.WARNING)  # each process has pictures of its own
    # DeepSpeed sets the level of its logger when it is imported, and then warns that a machine without GPU has none.
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    warnings.filterwarnings("ignore", "Reshape_last_stage is set to False", FutureWarning)  # the shipped captioner's


def _is_news(record: logging.LogRecord) -> bool:
    return record.module != "real_accelerator"
