"""RLCaptionTrainer: the Hugging Face Trainer with the loss of distinctive captioning by reinforcement learning."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Sampler
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.utils import logging

from hf_distinct import losses
from hf_distinct.captioner import captioner_in, end_ids, with_adapters
from hf_distinct.config import RLCaptionConfig
from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.data.prepared import as_captioned, as_evaluated_parts
from hf_distinct.data.workers import fit_trainer
from hf_distinct.discriminator import Discriminator, DiscriminatorTrainer
from hf_distinct.distributed.gathering import own_rows, share, unsplit
from hf_distinct.families import without_adapters
from hf_distinct.fast import as_set
from hf_distinct.generation.policy import Policy, Rollouts, prepare_policy, reference_copy
from hf_distinct.generation.rollouts import rollout_config
from hf_distinct.hub.training_card import write_training_card
from hf_distinct.inference.captioner_fit import check_fit, decoder_positions
from hf_distinct.inference.pipelines import as_captioner
from hf_distinct.rewards.appraiser import Appraisal, Appraiser
from hf_distinct.rewards.resolve import Rewards, found_rewards
from hf_distinct.scorer import ClipScorer, as_scorer, scorer_problems
from hf_distinct.text.problems import attempt
from hf_distinct.training.alarms import AlarmCallback
from hf_distinct.training.caption_trainer import CaptionTrainer
from hf_distinct.training.evaluating import CaptionMetrics, with_special_tokens
from hf_distinct.training.fit import training_problems
from hf_distinct.training.origin import origin_of
from hf_distinct.training.rl_state import RLState
from hf_distinct.training.settings import idle_settings
from hf_distinct.training.step_log import StepLog
from hf_distinct.training.training_data import EpochCallback, collator_of, embedded_and_mined, hard_batch_sampler
from hf_distinct.training.void_steps import VoidSteps

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.get_logger(__name__)


class RLCaptionTrainer(CaptionTrainer):
    """Trainer for distinctive image captioning by CLIP-guided reinforcement learning (arXiv 2402.13936).

    A step encodes the images once, lets the captioner write rollouts, rewards each rollout by how well a frozen CLIP
    finds the image with it, and scores rollouts and reference captions in one decoder pass:

        L = - mean(A(c) l(c)) - alpha mean(w(g) l(g)) + beta KL,   R(c) = (1 - lambda) r(c) + lambda D(c)

    For example:

        trainer = RLCaptionTrainer(
            "user/captioner", RLCaptionConfig(output_dir="outputs/mine"), scorer="ViT-B-32:openai",
            train_dataset=load_captions("captions.json", "images")["train"],
        )
        trainer.train()

    Args:
        model: The captioner to train, with or without adapters; or its Hub id or folder, or ``"captioner"``, which
            hf_distinct ships. Code in a repository is never run.
        args: The settings. If None, the defaults.
        scorer: The frozen CLIP that rewards captions: a [`ClipScorer`], or the name that it is made from.
        train_dataset: Dataset with the columns ``image``, ``captions`` and ``image_id``, in any form that
            [`hf_distinct.data.prepared.as_captioned`] takes. Rewards get its other columns. Images that cannot be
            read and empty captions are left out, with a warning that names them.
        processing_class: The captioner's tokenizer. If None, it is loaded from where the model was loaded from.
        image_processor: The captioner's image processor. If None, it is loaded from the same place.
        eval_dataset: Dataset with ``image`` and the columns that ``caption_metrics`` reads; or several of them by
            name, in a dict or a ``DatasetDict``.
        embeddings: What [`embed_dataset`] made of ``train_dataset`` with this scorer. If None, it is computed.
        rewards: One or several, instead of ``args.reward``: names, functions (those written for TRL work too, see
            [`CallableReward`]) or objects of the protocol [`Reward`].
        caption_metrics: Function of captions and their dataset that returns metrics by name, such as
            [`hf_distinct.caption_metrics`]. [`evaluate`] needs it.
        card: Facts for the model card that only you know: arguments of [`write_model_card`] by name.
        callbacks: As in ``Trainer``.
        optimizers: The captioner's optimizer and its scheduler, as in ``Trainer``.
        peft_config: A ``peft.PeftConfig``. The model is wrapped with ``peft.get_peft_model``, so that only adapters
            are trained and saved.

    Attributes:
        appraiser: Makes rewards, advantages and weights; holds discriminator and memory.
        policy: Writes rollouts and scores captions.
        alarms: Watch what is logged.
        step_log: Holds the figures and rollouts that the next log line shows.
        void_steps: Counts the steps that were left out because something in them was not finite.
        reference_model: The captioner that ``kl_weight`` compares with, or None.

    Raises:
        ValueError: Captioner, tokenizer, settings and data do not fit together, or cannot be loaded.
    """

    args: RLCaptionConfig
    processing_class: PreTrainedTokenizerBase
    train_dataset: Dataset
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        args: RLCaptionConfig | None = None,
        *,
        scorer: ClipScorer | str | os.PathLike[str],
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase | None = None,
        image_processor: BaseImageProcessor | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        embeddings: CaptionEmbeddings | None = None,
        rewards: Rewards | None = None,
        caption_metrics: CaptionMetrics | None = None,
        card: Mapping[str, Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: PeftConfig | None = None,
    ):
        args = RLCaptionConfig() if args is None else args
        if not isinstance(args, RLCaptionConfig):
            raise ValueError(f"args should be an RLCaptionConfig, not a {type(args).__name__}.")
        captioner: Any
        captioner, processing_class, image_processor = as_captioner(model, processing_class, image_processor)
        if peft_config is not None:
            captioner = with_adapters(captioner, peft_config, args.seed)
        if args.generation_config is not None:  # before all else that reads it; the parent loads a config as it is
            bare = without_adapters(captioner)
            wanted = self.load_generation_config(args.generation_config)  # type: ignore[arg-type]
            args.generation_config = bare.generation_config = with_special_tokens(wanted, bare)
        problems: list[str] = []
        captioned = attempt(problems, as_captioned, train_dataset, "train_dataset")
        eval_dataset = attempt(problems, as_evaluated_parts, eval_dataset, "eval_dataset") or eval_dataset
        with unsplit(args):
            clip = attempt(problems, as_scorer, scorer)
        found = attempt(problems, found_rewards, args.reward if rewards is None else rewards)
        problems += training_problems(
            args, train_dataset=captioned, eval_dataset=eval_dataset, scorer=clip, rewards=found,
            caption_metrics=caption_metrics, embeddings=embeddings,
        )  # fmt: skip
        check_fit(captioner, processing_class, image_processor, args, problems)
        assert captioned is not None and clip is not None
        assert processing_class is not None and image_processor is not None
        train_dataset, self.scorer = captioned, clip.to(args.device)
        longest = min(args.max_new_tokens or rollout_config(captioner).max_new_tokens, decoder_positions(captioner))
        for each in [*idle_settings(args, captioner.generation_config), *scorer_problems(self.scorer, longest)]:
            logger.warning(each)
        fit_trainer(args, image_processor)
        prepare_policy(captioner, args)
        self.card = dict(card or {})
        self.alarms = AlarmCallback(args.alarms, args.alarm_cider_floor)
        train_dataset, embeddings = embedded_and_mined(train_dataset, embeddings, self.scorer, args)
        self.hard_batches = hard_batch_sampler(train_dataset, args)
        collator = collator_of(train_dataset, embeddings, captioner, processing_class, image_processor, args)
        super().__init__(
            model=captioner, args=args, data_collator=collator, train_dataset=train_dataset, eval_dataset=eval_dataset,
            processing_class=processing_class, image_processor=image_processor, caption_metrics=caption_metrics,
            callbacks=[EpochCallback(collator, self.hard_batches), self.alarms, *(callbacks or [])],
            optimizers=optimizers,
        )  # fmt: skip
        # The loss is a mean over captions; the Trainer must only divide it by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        discriminator = Discriminator(self.scorer.embed_dim).to(args.device)
        self.discriminator = DiscriminatorTrainer(discriminator, lr=args.discriminator_lr)
        self.appraiser = Appraiser(
            args, scorer=self.scorer, discriminator=self.discriminator, accelerator=self.accelerator, rewards=found,
            references_corpus=self.train_dataset["captions"], columns=self.train_dataset.column_names,
            tokenizer=processing_class,
        )  # fmt: skip
        self.policy = Policy(args, self.accelerator, processing_class, self.compute_loss_context_manager)
        self.void_steps = VoidSteps(self.accelerator)
        self.rl_state = RLState(args, self.appraiser, self.alarms, self.void_steps)
        self.reference_model: PreTrainedModel | None = None
        if args.kl_weight:
            self.reference_model = reference_copy(captioner, self.accelerator)
        self.step_log = StepLog(self.accelerator, args.log_completions, args.num_completions_to_print)
        self.meter = self.step_log.meter
        self._begin(None)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """The order of the rows: with `hard_batches`, neighbours beside each other."""
        return self.hard_batches or super()._get_train_sampler(train_dataset)

    def get_batch_samples(self, epoch_iterator: Iterator[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        """The batches of the next step, as the parent's, without the rows that fill up the last batch of an epoch.

        There are none once alarms have stopped the training.
        """
        if self.alarms.stopped:
            return [], None
        batches = map(partial(own_rows, size=self._train_batch_size, accelerator=self.accelerator), epoch_iterator)
        return super().get_batch_samples(batches, *args, **kwargs)

    @as_set
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one batch (see the class); the discriminator takes its own step on the way.

        Args:
            model: the captioner, wrapped by Accelerate or DeepSpeed.
            inputs: what [`CaptionCollator`] makes.
            return_outputs: whether to return the logits of real tokens, too.
            num_items_in_batch: not used: the loss is a mean over captions.
        """
        model.eval()  # no dropout: the policy that is scored must be the one that wrote
        if self.discriminator.steps == 0 and self.args.discriminator_weight:
            self.discriminator.synchronize()
            self._pretrain_discriminator(model)
        with self.meter.phase("encode"):
            hidden = self._encode(model, inputs["pixel_values"])
        with self.meter.phase("generate"):
            rollouts = self._roll_out(model, hidden, len(inputs["captions"]))
        with self.meter.phase("reward"):
            appraisal = self.appraiser.judge(inputs, rollouts.texts, rollouts.greedy, self.state, rollouts.labels)
        with self.meter.phase("score"):
            loss, logits, terms = self._loss(model, hidden, rollouts, inputs, appraisal)
        finite = loss.detach().isfinite() & appraisal.rewards["total"].isfinite().all()
        if self._agree(~finite):  # in any process
            reason = "" if finite else appraisal.trouble() or f"the loss is {loss}"
            self.void_steps.mark(self.state.global_step + 1, inputs["columns"]["image_id"], reason)
            # NaN in every process, and its backward pass has to run: DeepSpeed holds the gradients of the batches
            # before, and lets go of them when it finds one that is not finite.
            loss = loss * float("nan")
        else:
            ends = end_ids(captioner_in(model, self.accelerator))
            self.step_log.note(inputs, rollouts, appraisal, ends, terms)
        return (loss, {"logits": logits}) if return_outputs else loss

    # Override these two to write rollouts in another way.

    def _encode(self, model: Any, pixel_values: Tensor) -> Tensor:
        return self.policy.encode(model, pixel_values)

    def _roll_out(self, model: Any, hidden: Tensor, images: int) -> Rollouts:
        return self.policy.roll_out(model, hidden, images, greedy=self.appraiser.needs_greedy)

    def _loss(
        self, model: Any, hidden: Tensor, rollouts: Rollouts, inputs: dict[str, Any], appraisal: Appraisal
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """This process's part of the loss; the logits of real tokens; the loss's terms by name.

        Wrappers average gradients over processes; with each mean at its share, that is the mean over the global batch.
        """
        a, labels = self.args, rollouts.labels
        references = inputs["labels"].flatten(0, 1) if a.wtf_weight else labels[:0]
        scores = self.policy.score(model, hidden, labels, references)
        part = share(len(inputs["captions"]), self.accelerator)
        advantages = F.pad(appraisal.advantages, (0, len(labels) - len(appraisal.advantages)))  # of a stand-in: 0
        loss = part * losses.policy_gradient_loss(scores.rollouts, advantages)
        terms = {"loss/policy_gradient": loss}
        if a.wtf_weight:
            weights = F.pad(appraisal.reference_weights, (0, len(references) - len(appraisal.reference_weights)))
            term = part * losses.weighted_teacher_forcing_loss(scores.references, weights)
            terms["loss/weighted_teacher_forcing"] = term
            loss = loss + a.wtf_weight * term
        if self.reference_model is not None:
            divergence = self.policy.divergence(scores, self.reference_model, inputs["pixel_values"])
            divergence = share((labels != losses.IGNORED_LABEL).sum(), self.accelerator) * divergence
            terms["kl"] = divergence
            loss = loss + a.kl_weight * divergence
        return loss, scores.logits, terms

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As the parent's; but embeddings, which make the rewards, are not rounded to DeepSpeed's half precision."""
        embeds = {name: value.to(self.args.device) for name, value in inputs.items() if name.endswith("_embeds")}
        return super()._prepare_inputs({k: v for k, v in inputs.items() if k not in embeds}) | embeds

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """As the parent's, timed. Nothing of a void step reaches the optimiser, which then has nothing to do.

        Raises:
            ValueError: too many steps in a row were void; see `hf_distinct.training.void_steps`.
        """
        with self.meter.phase("step"):
            loss = super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients:
            step = self.state.global_step + 1
            if not self.void_steps.pending and (problem := self._gradient_problem(model)):
                self.void_steps.mark(step, inputs["columns"]["image_id"], f"{problem} The loss is finite.")
            # DeepSpeed, and a scaler of fp16, leave a step out by themselves when they see its gradients.
            if self.void_steps.close(step) and not self.is_deepspeed_enabled and self.accelerator.scaler is None:
                model.zero_grad()
        return loss

    def _pretrain_discriminator(self, model: Any) -> None:
        """Let it see the warm-started captioner's rollouts before its score counts."""
        steps = self.args.discriminator_pretrain_steps
        if not steps:
            return
        if self.is_world_process_zero():
            logger.info("Pre-training the discriminator for %d steps (discriminator_pretrain_steps).", steps)
        loader: Any = self.get_train_dataloader()
        for batch in islice(chain.from_iterable(repeat(loader)), steps):
            inputs = self._prepare_inputs(own_rows(batch, self._train_batch_size, self.accelerator))
            with torch.no_grad():
                hidden = self._encode(model, inputs["pixel_values"])
                rollouts = self._roll_out(model, hidden, len(inputs["captions"]))
            found = self.appraiser.teach_discriminator(inputs, rollouts.texts)
        loader.end()  # or Accelerate would ask this loader whether the epoch of the other one is at its end
        accuracy = float(found["discriminator/accuracy"])  # of the last one, before its update
        self.log({"discriminator/pretrain_steps": steps, "discriminator/pretrain_accuracy": accuracy})
        if self.is_world_process_zero():
            logger.info("The discriminator now tells %.0f %% of rollouts from reference captions.", 100 * accuracy)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what was measured since the last log line, averaged over steps and processes; show samples, watch."""
        if "loss" in logs:
            logs.update(self.step_log.flush(self.state))
            if self.void_steps.count:
                logs["skipped_steps"] = self.void_steps.count
        logs.update(self.alarms.watch(logs, self.state.global_step))
        super().log(logs, *args, **kwargs)

    def _begin(self, step: int | None) -> None:
        """Know nothing of earlier runs; ``step`` is that of the checkpoint that is resumed."""
        super()._begin(step)
        self.void_steps.reset()
        self.alarms.reset()
        self._unlogged_loss = torch.tensor(0.0)
        self._carried: dict[str, Any] | None = None

    def _compare(self, checkpoint: Path | None) -> None:
        """As the parent's; also with what a run is made with."""
        origin = origin_of(
            self.args, scorer=self.scorer.fingerprint, dataset=self.train_dataset,
            rewards=[reward.name for reward in self.appraiser.rewards],
            reward_weights=self.appraiser.reward_weights, reference_model=self.reference_model,
        )  # fmt: skip
        super()._compare(checkpoint)
        if checkpoint is not None:
            self.rl_state.compare(checkpoint, origin)
        self.rl_state.origin = origin

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, grad_norm: Any, model: Any, trial: Any, *args: Any, **kwargs: Any
    ) -> None:
        """As the parent's; takes up what had not been logged at the checkpoint."""
        if self._carried is not None:
            carried, self._carried = self._carried, None
            self._total_loss_scalar = carried["total_loss"]
            tr_loss += carried["loss"].to(tr_loss.device)
            self._globalstep_last_logged = carried["logged_step"]
        self._unlogged_loss = tr_loss
        if self.void_steps.in_a_row:
            grad_norm = None
            if self.accelerator.optimizer_step_was_skipped and self._seen_step != self.state.global_step:
                assert self.lr_scheduler is not None
                self.lr_scheduler.step()  # the Trainer left that out with the optimiser's; the schedule goes by steps
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save, beside optimiser and schedule, all else that the next step depends on."""
        super()._save_optimizer_and_scheduler(output_dir)
        unlogged = {
            "loss": self._unlogged_loss.cpu(), "logged_step": self._globalstep_last_logged,
            "total_loss": self._total_loss_scalar, "figures": self.meter.state_dict(),
        }  # fmt: skip
        self.rl_state.save(output_dir, unlogged)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take it all up again."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (unlogged := self.rl_state.load(checkpoint)):
            self._carried = unlogged
            self.meter.load_state_dict(unlogged["figures"])

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """As the parent's; and discriminator and trained scorer."""
        super()._save(output_dir, state_dict)
        self.rl_state.save_models(output_dir or str(self.args.output_dir))

    def _load_best_model(self) -> None:
        """Load the best captioner, and discriminator and trained scorer that are saved beside it."""
        super()._load_best_model()
        self.rl_state.load_models(str(self.state.best_model_checkpoint))

    def write_card(self, folder: str | Path, **facts: Any) -> Path:
        """Write the card of the training as it stands, and return its path.

        Args:
            folder: where to.
            facts: arguments of [`hf_distinct.hub.model_card.write_model_card`], beside those in ``self.card``.
        """
        known: dict[str, Any] = {"log_history": self.state.log_history, "alarms": self.alarms.told}
        told = known | self.card | facts
        return write_training_card(folder, self.args, self.appraiser, self.train_dataset, self.model, **told)
