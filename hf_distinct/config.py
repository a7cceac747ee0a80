"""RLCaptionConfig: every setting of the method, grouped, with its meaning and its check."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from transformers.training_args import OptimizerNames

from hf_distinct.distributed.launching import TOKENS, LaunchedArguments
from hf_distinct.losses import Normalization, ReferenceWeighting
from hf_distinct.settings import accelerator_problems, changed_settings, help_from_docstring, refused_settings
from hf_distinct.text.problems import refuse

Rollouts = Literal["sample", "beam"]
AlarmMode = Literal["off", "warn", "stop"]
TrainedScorer = Literal["none", "text"]
BaselineSetting = Literal["auto", "none", "greedy", "leave_one_out"]
# Metrics of which the best is the smallest, by the ends of their names; the parent knows only losses.
LOWER_IS_BETTER = ("loss", "median_rank", "perplexity", "self_bleu", "bad_endings", "repeats", "invention", "distance")


@help_from_docstring
@dataclass(repr=False)
class RLCaptionConfig(LaunchedArguments):
    r"""Configuration class for the [`RLCaptionTrainer`].

    This class documents the parameters of the method (arXiv 2402.13936), and those of `Seq2SeqTrainingArguments` whose
    defaults differ here. All others are as in `Seq2SeqTrainingArguments`, except that those which would have no effect
    raise an error (see `hf_distinct.settings.REFUSED`). With rollouts c and reference captions g, the loss is

        L = - mean(A(c) ℓ(c)) - α mean(w(g) ℓ(g)) + β KL,   R(c) = (1 - λ) Σ_k w_k r_k(c) + λ D(c)

    where ℓ is the normalised log-probability of a caption, R its reward, A(c) is R(c) minus a baseline, and the weight
    w(g) is made from R(g).

    Parameters:
        > Parameters whose defaults differ from those of `Seq2SeqTrainingArguments`

        output_dir (`str`, *optional*, defaults to `"outputs/rl"`):
            Folder for the checkpoints and the trained captioner.
        remove_unused_columns (`bool`, *optional*, defaults to `False`):
            Must be `False`, because rewards read columns of the dataset that the model does not.
        dataloader_drop_last (`bool`, *optional*, defaults to `True`):
            Whether to leave out the last batch of an epoch if it is smaller than the others.
        learning_rate (`float`, *optional*, defaults to `1e-5`):
            Peak learning rate of the captioner.
        logging_steps (`float`, *optional*, defaults to `10`):
            Number of steps between two log lines. A number below 1 is a fraction of all steps.
        report_to (`str` or `list[str]`, *optional*, defaults to `[]`):
            Experiment trackers to report to, such as `wandb` or `tensorboard`.

        > Parameters that control the rollouts

        rollouts (`str`, *optional*, defaults to `"sample"`):
            How the captioner writes rollouts: `sample` draws them, `beam` (the paper) takes the best of a beam search.
        num_rollouts (`int`, *optional*):
            Number K of rollouts of each image. If unset, 5 with `rollouts="sample"` and 1 with `rollouts="beam"`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature T (used with `rollouts="sample"`). Every log-probability of the loss is that of
            softmax(logits / T), from which rollouts are drawn.
        num_beams (`int`, *optional*, defaults to `5`):
            Number of beams (used with `rollouts="beam"`), at least `num_rollouts`.
        no_repeat_ngram_size (`int`, *optional*, defaults to `3`):
            Size of the n-grams that a rollout must not repeat (used with `rollouts="beam"`). 0 allows repetition.
        max_new_tokens (`int`, *optional*):
            Maximum number of tokens in a rollout; the paper uses 50. If unset, the model's generation config has it.

        > Parameters that control the rewards

        reward (`list[str]`, *optional*, defaults to `["contrastive"]`):
            Rewards r_k: `contrastive` (the paper), its directions `contrastive_i2t` and `contrastive_t2i`,
            `similarity` (cosine under CLIP), `cider` (CIDEr-D), or your own as a dotted path or `FILE.py:FUNCTION`.
            With s the logit scale of CLIP, τ = 1/s and L(t, v) = s cos(t, v), a caption c of image v has
            r_i2t(c) = τ [L(c, v) - logsumexp_t L(t, v)] over the other texts t of the pool,
            r_t2i(c) = τ [L(c, v) - logsumexp_u L(c, u)] over the other images u of the pool, and
            r_contrastive(c) = ½ (r_i2t(c) + r_t2i(c)).
        reward_weights (`list[float]`, *optional*):
            Weight w_k of each reward in Σ_k w_k r_k(c). If unset, each weight is 1.
        baseline (`str`, *optional*, defaults to `"auto"`):
            What is subtracted from R(c) to get the advantage A(c) of a rollout: `none` (the paper), `greedy` (reward
            of the greedy caption, as in SCST) or `leave_one_out` (mean reward of the image's other rollouts). `auto`
            is `leave_one_out` with several rollouts of an image. With one it is `none` if every reward is an advantage
            already, as the contrastive ones are, and `greedy` otherwise.
        reward_clamp (`float`, *optional*, defaults to `16.0`):
            Upper bound C of the log-odds in each direction of the contrastive rewards, which are then at most τ C.

        > Parameters that control the pools of the contrastive rewards

        pool_references (`bool`, *optional*, defaults to `True`):
            Whether to use reference captions as negatives.
        pool_greedy (`bool`, *optional*, defaults to `False`):
            Whether to use greedy captions as negatives.
        pool_own_rollouts (`bool`, *optional*, defaults to `True`):
            Whether to use the other rollouts of the same image as negatives.
        pool_other_captions (`bool`, *optional*, defaults to `True`):
            Whether to use the captions of other images as negatives.
        pool_other_processes (`bool`, *optional*, defaults to `True`):
            Whether to use the captions and images of all processes as negatives.
        pool_neighbours (`int`, *optional*, defaults to `0`):
            Number of mined similar images of each image to use as negatives; the paper uses 2.
        neighbour_first_rank (`int`, *optional*, defaults to `1`):
            Rank of the first mined similar image to use; the paper's code uses ranks 4 and 5.
        hard_batches (`bool`, *optional*, defaults to `False`):
            Whether to build each batch from images that are each other's mined neighbours.
        memory_batches (`int`, *optional*, defaults to `0`):
            Number of earlier batches whose embeddings are kept as negatives.

        > Parameters that control the discriminator

        discriminator_weight (`float`, *optional*, defaults to `0.06`):
            Weight λ of the discriminator in R(c) = (1 - λ) Σ_k w_k r_k(c) + λ D(c), where D(c) is the probability that
            a person wrote c. 0 turns the discriminator off.
        discriminator_lr (`float`, *optional*, defaults to `7e-5`):
            Learning rate of the discriminator, which has an Adam optimizer of its own.
        discriminator_pretrain_steps (`int`, *optional*, defaults to `0`):
            Number of discriminator updates before the first training step.

        > Parameters that control the training of the scorer

        train_scorer (`str`, *optional*, defaults to `"none"`):
            Which part of the scorer is trained together with the captioner: `none`, or `text`, its text tower and
            logit scale (see [`ScorerTrainer`]). The trained scorer is saved as `scorer/` in `output_dir`.
        scorer_lr (`float`, *optional*, defaults to `1e-5`):
            Learning rate of the scorer, which has an AdamW optimizer of its own.
        scorer_decay (`float`, *optional*, defaults to `0.99`):
            Decay of the moving average of the scorer's weights, which gives the rewards.
        scorer_loss_weights (`list[float]`, *optional*, defaults to `[1, 0, 0, 1]`):
            Weights of the four terms of the scorer's loss: people's captions find their images; people's captions beat
            rollouts; rollouts find their images; distance from the scorer before training.

        > Parameters that control the teacher forcing on reference captions

        references_per_image (`int`, *optional*, defaults to `1`):
            Number of reference captions of each image in a step.
        wtf_weight (`float`, *optional*, defaults to `1.0`):
            Weight α of the weighted teacher forcing loss, - mean(w(g) ℓ(g)). 0 turns it off.
        wtf_policy (`str`, *optional*, defaults to `"clamp"`):
            How the rewards R(g) of the N reference captions of a batch become their weights w(g): `clamp` is
            max(R(g), 0), `softmax` is N softmax(R)(g), `shift` is R(g) - min R, `raw` (the paper) is R(g), and
            `constant` is 1, plain teacher forcing. A negative weight makes a reference caption less likely.
        max_reference_length (`int`, *optional*, defaults to `50`):
            Maximum number of tokens of a reference caption, the end token included. Longer ones are cut.

        > Parameters that control the loss

        kl_weight (`float`, *optional*, defaults to `0.0`):
            Weight β of KL(policy ‖ reference model), per token of the rollouts. The reference model is the captioner
            that training starts from, kept in memory only if β > 0.
        length_normalization (`str`, *optional*, defaults to `"tokens"`):
            What the sum of a caption's token log-probabilities is divided by to get ℓ(c): `tokens` is the number of
            its tokens, `constant` is `max_new_tokens`, or `max_reference_length` if that is unset.
        freeze_encoder (`bool`, *optional*, defaults to `False`):
            Whether to train the decoder only and keep the weights of the image encoder.
        encoder_cache (`str`, *optional*):
            Folder for the outputs of a frozen encoder, which are then computed only once, in float16. Needs
            `freeze_encoder`.
        fast_paths (`bool`, *optional*, defaults to `True`):
            Whether to use accelerations that reach into transformers, torch and open_clip (see `hf_distinct.fast`).
            Without them, results are the same up to rounding.

        > Parameters that control the logging and the alarms

        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to print a table of the last step's rollouts in the main process every `logging_steps` steps: image
            id, reference caption, rollout, each reward r_k, their total R and the advantage A.
        num_completions_to_print (`int`, *optional*):
            Number of rollouts to print (used with `log_completions`). If unset, all of them are printed.
        alarms (`str`, *optional*, defaults to `"warn"`):
            What to do when captions begin to please the scorer instead of people: `warn`, `stop` and restore the best
            checkpoint, or `off`.
        alarm_cider_floor (`float`, *optional*, defaults to `0.75`):
            Fraction of its first value below which the CIDEr-D of an evaluation raises an alarm.

    Attributes:
        changed: The settings that differ from their defaults, by name.

    Raises:
        ValueError: Settings contradict each other or are not supported, the message names them; or the launcher was
            asked for another number of processes than there are.
    """

    # The docstring documents each of these, and is their `--help`.
    output_dir: str | None = "outputs/rl"
    remove_unused_columns: bool = False
    dataloader_drop_last: bool = True
    learning_rate: float = 1e-5
    logging_steps: float = 10
    report_to: None | str | list[str] = field(default_factory=list)

    rollouts: Rollouts = "sample"
    num_rollouts: int = None  # type: ignore[assignment]  # a number once the config is made
    temperature: float = 1.0
    num_beams: int = 5
    no_repeat_ngram_size: int = 3
    max_new_tokens: int | None = None

    reward: list[str] = field(default_factory=lambda: ["contrastive"])
    reward_weights: list[float] | None = None
    baseline: BaselineSetting = "auto"
    reward_clamp: float = 16.0

    pool_references: bool = True
    pool_greedy: bool = False
    pool_own_rollouts: bool = True
    pool_other_captions: bool = True
    pool_other_processes: bool = True
    pool_neighbours: int = 0
    neighbour_first_rank: int = 1
    hard_batches: bool = False
    memory_batches: int = 0

    discriminator_weight: float = 0.06
    discriminator_lr: float = 7e-5
    discriminator_pretrain_steps: int = 0

    train_scorer: TrainedScorer = "none"
    scorer_lr: float = 1e-5
    scorer_decay: float = 0.99
    scorer_loss_weights: list[float] = field(default_factory=lambda: [1.0, 0.0, 0.0, 1.0])

    references_per_image: int = 1
    wtf_weight: float = 1.0
    wtf_policy: ReferenceWeighting = "clamp"
    max_reference_length: int = 50

    kl_weight: float = 0.0
    length_normalization: Normalization = "tokens"
    freeze_encoder: bool = False
    encoder_cache: str | None = None
    fast_paths: bool = True

    log_completions: bool = False
    num_completions_to_print: int | None = None
    alarms: AlarmMode = "warn"
    alarm_cider_floor: float = 0.75

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
            ("train_scorer", TrainedScorer),
        ):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose one of {choices}")
        for name, least in (
            ("num_rollouts", 1), ("num_beams", 1), ("references_per_image", 1), ("pool_neighbours", 0),
            ("neighbour_first_rank", 1), ("memory_batches", 0), ("wtf_weight", 0), ("kl_weight", 0),
            ("discriminator_pretrain_steps", 0), ("no_repeat_ngram_size", 0), ("max_new_tokens", 1),
            ("max_reference_length", 2), ("num_completions_to_print", 1), ("generation_num_beams", 1),
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
        for name in ("temperature", "reward_clamp", "discriminator_lr", "scorer_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if not 0 <= self.scorer_decay < 1:
            raise ValueError(f"scorer_decay={self.scorer_decay} must be at least 0 and less than 1")
        terms = self.scorer_loss_weights
        if len(terms) != 4 or not all(0 <= weight < math.inf for weight in terms):
            raise ValueError(f"scorer_loss_weights={terms} must be four numbers, none negative")
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
        named = self.reward if "reward" in self.changed else None  # the trainer may get other rewards, and then checks
        if self.reward_weights is not None and named and len(self.reward_weights) != len(named):
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
