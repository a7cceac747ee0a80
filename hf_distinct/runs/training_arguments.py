"""SupervisedArguments: what the recipes that train by a supervised loss set in the same way."""

from __future__ import annotations

from dataclasses import dataclass, field

from hf_distinct.distributed.launching import LaunchedArguments


@dataclass(repr=False)
class SupervisedArguments(LaunchedArguments):
    """Training arguments with the defaults that teacher forcing and distillation share."""

    per_device_eval_batch_size: int = field(
        default=50, metadata={"help": "Number of images per process that are measured at a time."}
    )
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "Learning rate schedule after the warm-up, such as cosine or linear."}
    )
    logging_steps: int = field(default=50, metadata={"help": "Number of steps between two log lines."})
    save_strategy: str = field(
        default="no", metadata={"help": "When to save checkpoints: `no`, `steps`, `epoch` or `best`."}
    )
    report_to: list[str] = field(
        default_factory=list, metadata={"help": "Experiment trackers, such as wandb or tensorboard. Default: none."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false, because the collator reads every column."}
    )
