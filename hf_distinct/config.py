"""RLCaptionConfig: every setting of the method, grouped, with its meaning and its check."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from transformers.training_args import OptimizerNames

from hf_distinct.distributed.launching import TOKENS, LaunchedArguments
from hf_distinct.losses import Normalization, ReferenceWeighting
from hf_distinct.settings import accelerator_problems, changed_settings, refused_settings
from hf_distinct.text.problems import refuse

Rollouts = Literal["sample", "beam"]
AlarmMode = Literal["off", "warn", "stop"]
BaselineSetting = Literal["auto", "none", "greedy", "leave_one_out"]
# Metrics of which the best is the smallest, by the ends of their names; the parent knows only losses.
LOWER_IS_BETTER = ("loss", "median_rank", "perplexity", "self_bleu", "bad_endings", "repeats", "invention", "distance")


@dataclass(repr=False)
class RLCaptionConfig(LaunchedArguments):
    """Settings of [`RLCaptionTrainer`], on top of those of ``Seq2SeqTrainingArguments``.

    The method is that of arXiv 2402.13936; where our default differs, the help names what its code uses. Defaults
    that differ from the parent's: ``remove_unused_columns=False`` (rewards read every column),
    ``dataloader_drop_last=True`` (a batch of one image has nothing to contrast with), ``learning_rate=1e-5``,
    ``logging_steps=10``, ``report_to=[]``.
    Settings of the parent that would have no effect here are refused: see `hf_distinct.settings.REFUSED`.

    Attributes:
        changed: the settings that differ from their defaults, by name.

    Raises:
        ValueError: if settings contradict each other or are not supported, the message names them; or if the launcher
            was asked for another number of processes than there are.
    """

    # ------------------------------------------------------------------------------------------------ parent's
    output_dir: str | None = field(default="outputs/rl", metadata={"help": "Where checkpoints and the captioner go."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the rewards read columns that the model does not."}
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Leave out the last batch of an epoch if it is smaller."}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of the captioner."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between log lines."})
    report_to: None | str | list[str] = field(
        default_factory=list, metadata={"help": "Experiment trackers, such as wandb or tensorboard."}
    )

    # ------------------------------------------------------------------------------------------------ rollouts
    rollouts: Rollouts = field(
        default="sample",
        metadata={"help": "How rollouts are written: `sample` draws them, `beam` takes the best of a beam search."},
    )
    num_rollouts: int = field(  # a number once the config is made
        default=None,  # type: ignore[assignment]
        metadata={
            "help": "Number of rollouts of each image. Default: 5 with `sample`; 1 with `beam`, which returns "
            "its best ones."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "Sampling temperature (with `--rollouts sample`). All log-probabilities in the loss are those of "
            "logits divided by it."
        },
    )
    num_beams: int = field(default=5, metadata={"help": "Number of beams (with `--rollouts beam`)."})
    no_repeat_ngram_size: int = field(
        default=3, metadata={"help": "Beam search repeats no n-gram of this size. 0: it may repeat any."}
    )
    max_new_tokens: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens in a rollout (the paper: 50). Default: that of the "
            "model's generation config."
        },
    )

    # ------------------------------------------------------------------------------------------------- rewards
    reward: list[str] = field(
        default_factory=lambda: ["contrastive"],
        metadata={
            "help": "The rewards: contrastive, contrastive_i2t, contrastive_t2i, similarity, cider, or your own as a "
            "dotted path or FILE.py:FUNCTION."
        },
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weight of each reward. Default: 1 for each."}
    )
    baseline: BaselineSetting = field(
        default="auto",
        metadata={
            "help": "What is subtracted from the reward: none (the paper), greedy (SCST) or leave_one_out. `auto`: "
            "leave_one_out with several rollouts of an image; with one, none if every reward is already an advantage "
            "(the contrastive ones are), else greedy.",
        },
    )

    # --------------------------------------------------------------------------------- pools of the contrast
    pool_references: bool = field(default=True, metadata={"help": "Use the reference captions as negatives."})
    pool_greedy: bool = field(default=False, metadata={"help": "Use the greedy captions as negatives."})
    pool_own_rollouts: bool = field(
        default=True, metadata={"help": "Use the other rollouts of the same image as negatives."}
    )
    pool_other_captions: bool = field(
        default=True, metadata={"help": "Use the captions of other images as negatives."}
    )
    pool_other_processes: bool = field(
        default=True, metadata={"help": "Use the captions and images of all processes as negatives."}
    )
    pool_neighbours: int = field(
        default=0, metadata={"help": "Number of mined similar images of each image used as negatives (the paper: 2)."}
    )
    neighbour_first_rank: int = field(
        default=1, metadata={"help": "Rank of the first mined similar image that is used (the paper: 4, then 5)."}
    )
    hard_batches: bool = field(
        default=False, metadata={"help": "Build each batch from images that are each other's neighbours."}
    )
    memory_batches: int = field(
        default=0, metadata={"help": "Number of earlier batches whose embeddings are kept as negatives."}
    )
    reward_clamp: float = field(
        default=16.0, metadata={"help": "Upper bound of the log-odds in each direction of the contrastive rewards."}
    )

    # ------------------------------------------------------------------------------------------- discriminator
    discriminator_weight: float = field(
        default=0.06,
        metadata={"help": "Weight λ of the discriminator's score D in R = (1 - λ) r + λ D. 0: no discriminator."},
    )
    discriminator_lr: float = field(default=7e-5, metadata={"help": "Learning rate of the discriminator (Adam)."})
    discriminator_pretrain_steps: int = field(
        default=0, metadata={"help": "Number of discriminator updates before the first training step."}
    )

    # ------------------------------------------------------------------------------- ground truth as trajectories
    references_per_image: int = field(
        default=1, metadata={"help": "Number of reference captions of each image in a step."}
    )
    wtf_weight: float = field(
        default=1.0, metadata={"help": "Weight α of the weighted teacher forcing. 0: no teacher forcing."}
    )
    wtf_policy: ReferenceWeighting = field(
        default="clamp",
        metadata={"help": "How the reward of a reference caption becomes its weight in teacher forcing."},
    )
    max_reference_length: int = field(
        default=50, metadata={"help": "Maximum number of tokens in a reference caption."}
    )

    # -------------------------------------------------------------------------------------------------- alarms
    alarms: AlarmMode = field(
        default="warn",
        metadata={
            "help": "What to do when captions begin to please the scorer instead of people: `warn`, `stop` (and "
            "restore the best checkpoint) or `off`."
        },
    )
    alarm_cider_floor: float = field(
        default=0.75,
        metadata={"help": "Fraction of its first value below which an evaluation's CIDEr-D raises an alarm."},
    )

    # ------------------------------------------------------------------------------------------------ the rest
    kl_weight: float = field(
        default=0.0, metadata={"help": "Weight β of KL(policy || the captioner that training starts from)."}
    )
    length_normalization: Normalization = field(
        default="tokens",
        metadata={
            "help": "How the log-probability of a caption is normalised: the mean over its tokens, or the sum divided "
            "by a constant.",
        },
    )
    freeze_encoder: bool = field(
        default=False, metadata={"help": "Train the decoder only; the encoder keeps its weights."}
    )
    fast_paths: bool = field(
        default=True,
        metadata={
            "help": "Use accelerations that reach into transformers, torch and open_clip (see `hf_distinct.fast`). "
            "Without them the results are the same up to rounding."
        },
    )
    encoder_cache: str | None = field(
        default=None,
        metadata={"help": "Folder for the outputs of a frozen encoder, which are then computed once, in float16."},
    )
    log_samples: int = field(default=3, metadata={"help": "Number of sampled captions shown at each log line."})

    def __post_init__(self) -> None:
        """Check what argparse cannot."""
        # Now, for the parent fills in what depends on the machine; and not later by comparing with a new config, which
        # would take the state of Accelerate away from a trainer that runs.
        self.changed = {name: value for name, value in changed_settings(self).items() if name not in TOKENS}
        refuse(refused_settings(self))
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
                f"rollouts='beam' needs at least as many beams as rollouts, not num_rollouts={self.num_rollouts} and "
                f"num_beams={self.num_beams}: raise num_beams, or lower num_rollouts"
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
