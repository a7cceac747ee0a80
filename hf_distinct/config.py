"""RLCaptionConfig: every setting of the method, grouped, with its meaning and its check."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
from accelerate import PartialState
from transformers import Seq2SeqTrainingArguments
from transformers.training_args import OptimizerNames

from hf_distinct.arguments import changed_settings
from hf_distinct.gathering import check_number_of_processes
from hf_distinct.losses import Normalization, ReferenceWeighting
from hf_distinct.problems import refuse
from hf_distinct.settings_check import accelerator_problems, refused_settings

Rollouts = Literal["sample", "beam"]
AlarmMode = Literal["off", "warn", "stop"]
TOKENS = ("hub_token", "push_to_hub_token")
BaselineSetting = Literal["auto", "none", "greedy", "leave_one_out"]
# Metrics of which the best is the smallest, by the ends of their names; the parent knows only losses.
LOWER_IS_BETTER = ("loss", "median_rank", "perplexity", "self_bleu", "bad_endings", "repeats")


@dataclass
class RLCaptionConfig(Seq2SeqTrainingArguments):
    """Settings of [`RLCaptionTrainer`], on top of those of ``Seq2SeqTrainingArguments``.

    The method is that of arXiv 2402.13936; what its code uses is said where our default differs. Defaults that differ
    from the parent's: ``remove_unused_columns=False`` (rewards read every column), ``dataloader_drop_last=True`` (a
    batch of one image has nothing to contrast with), ``learning_rate=1e-5``, ``logging_steps=10``, ``report_to=[]``.
    Settings of the parent that would have no effect here are refused: see `hf_distinct.settings_check.REFUSED`.

    Attributes:
        changed: the settings that were told, by name: those that differ from their defaults.

    Raises:
        ValueError: if settings contradict each other or are not supported, the message names them; or if the launcher
            was asked for another number of processes than there are.
    """

    # ------------------------------------------------------------------------------------------------ parent's
    output_dir: str | None = field(default="outputs/rl", metadata={"help": "Where checkpoints and the captioner go."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Leave out a last, smaller batch."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of the captioner."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    report_to: None | str | list[str] = field(default_factory=list, metadata={"help": "Experiment trackers."})

    # ------------------------------------------------------------------------------------------------ rollouts
    rollouts: Rollouts = field(
        default="sample", metadata={"help": "`sample`: multinomial samples; `beam`: the best of a beam search."}
    )
    num_rollouts: int = field(  # a number once the config is made
        default=None,  # type: ignore[assignment]
        metadata={"help": "K, captions of each image; none: 5 for `sample`, 1 for `beam`, which gives its best K."},
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "Sampling temperature of `sample`. What is sampled from is what is trained: all log-probabilities "
            "in the loss are those of logits divided by it."
        },
    )
    num_beams: int = field(default=5, metadata={"help": "Beams of `beam`."})
    no_repeat_ngram_size: int = field(default=3, metadata={"help": "`beam` repeats no n-gram of this size; 0: may."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest rollout (the paper: 50); none: the model's generation config."}
    )

    # ------------------------------------------------------------------------------------------------- rewards
    reward: list[str] = field(
        default_factory=lambda: ["contrastive"],
        metadata={
            "help": "Rewards: contrastive, contrastive_i2t, contrastive_t2i, similarity, cider, a dotted path or "
            "FILE.py:FUNCTION of your own."
        },
    )
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Weight of each reward; none: all 1."})
    baseline: BaselineSetting = field(
        default="auto",
        metadata={
            "help": "Subtracted from the reward: none, greedy (SCST), leave_one_out; `auto`: none if every reward is "
            "an advantage already (the contrastive ones), else leave_one_out, or greedy with one rollout.",
        },
    )

    # --------------------------------------------------------------------------------- pools of the contrast
    pool_references: bool = field(default=True, metadata={"help": "Ground-truth captions are among the texts."})
    pool_greedy: bool = field(default=False, metadata={"help": "Greedy captions are among the texts."})
    pool_own_rollouts: bool = field(default=True, metadata={"help": "Other rollouts of the same image are, too."})
    pool_other_captions: bool = field(default=True, metadata={"help": "Captions of other images are, too."})
    pool_other_processes: bool = field(default=True, metadata={"help": "The pools span all processes."})
    pool_neighbours: int = field(default=0, metadata={"help": "Mined similar images of each image; the paper: 2."})
    neighbour_first_rank: int = field(
        default=1, metadata={"help": "The rank that the first of them has; the paper: 4 (and 5)."}
    )
    hard_batches: bool = field(
        default=False, metadata={"help": "Build each batch from images that are each other's neighbours."}
    )
    memory_batches: int = field(default=0, metadata={"help": "Earlier batches whose embeddings stay in the pools."})
    reward_clamp: float = field(default=16.0, metadata={"help": "Upper bound of the log-odds of each direction."})

    # ------------------------------------------------------------------------------------------- discriminator
    discriminator_weight: float = field(default=0.06, metadata={"help": "λ in R = (1 - λ) r + λ D; 0: none."})
    discriminator_lr: float = field(default=7e-5, metadata={"help": "Learning rate of its Adam."})
    discriminator_pretrain_steps: int = field(default=0, metadata={"help": "Its updates before the first step."})

    # ------------------------------------------------------------------------------- ground truth as trajectories
    references_per_image: int = field(default=1, metadata={"help": "Ground-truth captions of each image in a step."})
    wtf_weight: float = field(default=1.0, metadata={"help": "α, weight of the weighted teacher forcing; 0: none."})
    wtf_policy: ReferenceWeighting = field(default="clamp", metadata={"help": "How a reward becomes a weight."})
    max_reference_length: int = field(default=50, metadata={"help": "Longest ground-truth caption, in tokens."})

    # -------------------------------------------------------------------------------------------------- alarms
    alarms: AlarmMode = field(
        default="warn",
        metadata={
            "help": "When captions begin to please the scorer instead of people: `warn`, `stop` (and restore the best "
            "checkpoint) or `off`."
        },
    )
    alarm_cider_floor: float = field(
        default=0.75, metadata={"help": "The share of its first value that an evaluation's CIDEr-D may fall to."}
    )

    # ------------------------------------------------------------------------------------------------ the rest
    kl_weight: float = field(default=0.0, metadata={"help": "β, weight of KL(policy || warm-started captioner)."})
    length_normalization: Normalization = field(
        default="tokens",
        metadata={
            "help": "Log-probability of a caption: mean over its tokens, or sum over a constant length.",
        },
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Train the decoder alone."})
    log_samples: int = field(default=3, metadata={"help": "Sampled captions shown at each log line."})

    def __post_init__(self) -> None:
        """Check what argparse cannot."""
        # Now, for the parent fills in what depends on the machine; and not later by comparing with a new config, which
        # would take the state of Accelerate away from a trainer that runs.
        self.changed = {name: value for name, value in changed_settings(self).items() if name not in TOKENS}
        refuse(refused_settings(self))
        self._run_on_what_there_is()
        if self.gradient_checkpointing or getattr(self, "activation_checkpointing", False):  # 5's name for it
            # A stock ViT has a pooler that no captioner uses; for DDP to find that out, checkpoints must not hide what
            # is used, as the reentrant ones of the parent's default do.
            self.gradient_checkpointing_kwargs = self.gradient_checkpointing_kwargs or {"use_reentrant": False}
            self.ddp_find_unused_parameters = self.ddp_find_unused_parameters is not False
        if self.metric_for_best_model is None:  # the parent would take the loss, which no evaluation computes
            needs_one = {
                "load_best_model_at_end": self.load_best_model_at_end,
                "save_strategy=best": self.save_strategy == "best",
                "lr_scheduler_type=reduce_lr_on_plateau": self.lr_scheduler_type == "reduce_lr_on_plateau",
            }
            names = (name for name, on in needs_one.items() if on)
            refuse(f"{name} needs metric_for_best_model, e.g. judge/t2i_R@1 or CIDEr-D" for name in names)
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.lower().endswith(LOWER_IS_BETTER)
        super().__post_init__()
        refuse(accelerator_problems(self.accelerator_config))
        check_number_of_processes(self.world_size)
        self._check_offload()
        if self.num_rollouts is None:
            self.num_rollouts = 1 if self.rollouts == "beam" else 5
        for name, kind in (
            ("rollouts", Rollouts),
            ("baseline", BaselineSetting),
            ("wtf_policy", ReferenceWeighting),
            ("length_normalization", Normalization),
            ("alarms", AlarmMode),
        ):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {choices}")
        for name, least in (
            ("num_rollouts", 1), ("num_beams", 1), ("references_per_image", 1), ("pool_neighbours", 0),
            ("neighbour_first_rank", 1), ("memory_batches", 0), ("wtf_weight", 0), ("kl_weight", 0),
            ("discriminator_pretrain_steps", 0), ("no_repeat_ngram_size", 0), ("max_new_tokens", 1),
            ("max_reference_length", 2), ("log_samples", 0), ("generation_num_beams", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"{name}={value} must be at least {least}, and finite")
            if isinstance(value, float) and name not in ("wtf_weight", "kl_weight"):
                raise ValueError(f"{name}={value} must be an integer")
        if self.rollouts == "beam" and self.num_rollouts > self.num_beams:
            raise ValueError(
                f"rollouts='beam' with num_rollouts={self.num_rollouts} wants that many of num_beams={self.num_beams} "
                "beams: raise num_beams, or lower num_rollouts"
            )
        if not 0 <= self.discriminator_weight <= 1:
            raise ValueError(f"discriminator_weight={self.discriminator_weight} must lie between 0 and 1")
        for name in ("temperature", "reward_clamp", "discriminator_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.alarm_cider_floor <= 1:
            raise ValueError(f"alarm_cider_floor={self.alarm_cider_floor} must lie between 0 and 1")
        if self.alarms == "stop" and not self.load_best_model_at_end:
            raise ValueError(
                "alarms='stop' ends a training at its best checkpoint: set load_best_model_at_end, "
                "metric_for_best_model (e.g. judge/t2i_R@1), eval_strategy, eval_steps and save_strategy='best'"
            )
        if self.baseline == "leave_one_out" and self.num_rollouts < 2:
            raise ValueError("baseline='leave_one_out' needs num_rollouts of at least 2")
        if isinstance(self.reward, str):
            self.reward = [self.reward]
        if not self.reward:
            raise ValueError("reward is empty; name at least one, e.g. contrastive")
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward):
            weights, rewards = (" ".join(map(str, each)) for each in (self.reward_weights, self.reward))
            raise ValueError(
                f"{len(self.reward_weights)} reward_weights for {len(self.reward)} rewards: set as many of both, not "
                f"reward_weights {weights} for reward {rewards}"
            )
        for weight in self.reward_weights or ():
            if not math.isfinite(weight):
                raise ValueError(f"reward_weights: {weight} is no finite number")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must be off: the rewards read columns that the model does not")

    def _check_offload(self) -> None:
        """Accelerate replaces an optimiser that is offloaded by one of DeepSpeed's own, in silence: by Adam mostly."""
        config = self.deepspeed_plugin.deepspeed_config if self.deepspeed_plugin else {}
        device = config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none")
        replaced = device != "none" and config.get("zero_force_ds_cpu_optimizer", True) and "optimizer" not in config
        if replaced and self.optim not in ("adamw_torch", "adamw_torch_fused", "adagrad"):
            raise ValueError(
                f"optim={OptimizerNames(self.optim).value} cannot be offloaded: DeepSpeed would train with its Adam "
                "instead. Choose adamw_torch or adagrad, or a launch configuration without offload_optimizer_device."
            )

    @property
    def device(self) -> torch.device:
        """The device of this process; a CPU without a number.

        Accelerate numbers the CPU of several processes ("cpu:1"), and `torch.load` knows no such place.
        """
        device = super().device
        return torch.device("cpu") if device.type == "cpu" else device

    # A dataclass writes one that shows the token.
    __repr__ = Seq2SeqTrainingArguments.__str__

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled, e.g. into the ``training_args.bin`` of every checkpoint: all but the token."""
        return {**self.__dict__, **dict.fromkeys(TOKENS)}

    def _run_on_what_there_is(self) -> None:
        """Without an accelerator, several processes meet over gloo; the launcher has no setting for it."""
        if torch.accelerator.is_available():
            return
        if self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
            self.ddp_backend = self.ddp_backend or "gloo"  # use_cpu would take DeepSpeed for plain processes
        else:
            self.use_cpu = True
            # The parent gives `ddp_timeout` to accelerators only; gloo would wait for half an hour.
            PartialState(cpu=True, backend=self.ddp_backend, timeout=timedelta(seconds=self.ddp_timeout))
