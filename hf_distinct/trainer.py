"""RLCaptionTrainer: the Hugging Face Trainer with the loss of distinctive captioning by reinforcement learning."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice, repeat
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import Sampler
from transformers import (
    BaseImageProcessor,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TrainerCallback,
    VisionEncoderDecoderModel,
)
from transformers.utils import logging

from hf_distinct import losses
from hf_distinct.captioner import captioner_in, encode, end_ids, token_logits, without_adapters
from hf_distinct.checks.fit import check_fit, decoder_positions, training_problems
from hf_distinct.checks.problems import attempt
from hf_distinct.checks.settings import idle_settings
from hf_distinct.config import RLCaptionConfig
from hf_distinct.data.collator import CaptionCollator
from hf_distinct.data.embeddings import CaptionEmbeddings
from hf_distinct.data.encoded_images import encode_images
from hf_distinct.data.prepared import as_captioned, as_evaluated_parts
from hf_distinct.data.workers import fit_trainer
from hf_distinct.discriminator import Discriminator, DiscriminatorTrainer
from hf_distinct.distributed.gathering import own_rows, share, unsplit
from hf_distinct.distributed.zero3 import gathered, generation_ready
from hf_distinct.fast.gelu import fuse_gelu
from hf_distinct.generation.greedy import generate_with_greedy
from hf_distinct.generation.labels import decode, join_labels, rollout_figures
from hf_distinct.generation.logits_processors import NoRepeatNGrams
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.generation.word_limits import forbidden_tokens, left_out
from hf_distinct.losses import policy_logits
from hf_distinct.rewards.appraiser import Appraisal, Appraiser, Rewards, found_rewards
from hf_distinct.scorer import ClipScorer, scorer_problems
from hf_distinct.text.escaping import plain
from hf_distinct.training.alarms import AlarmCallback
from hf_distinct.training.evaluating import CaptionMetrics, EvaluatingTrainer, with_special_tokens
from hf_distinct.training.gradient_checkpointing import checkpointing
from hf_distinct.training.metering import Meter, peak_memory
from hf_distinct.training.training_data import EpochCallback, embedded_and_mined, hard_batch_sampler, seed_of_data

logger = logging.get_logger(__name__)


def _scorer(given: Any) -> ClipScorer:
    if not isinstance(given, (ClipScorer, str, os.PathLike)):
        raise ValueError(f"scorer should be a ClipScorer or the name of one, not a {type(given).__name__}.")
    return given if isinstance(given, ClipScorer) else ClipScorer(given)


class RLCaptionTrainer(EvaluatingTrainer):
    """Trains a captioner to say what singles an image out (arXiv 2402.13936).

    A step encodes the images once, lets the captioner write, rewards what it wrote by how well a frozen CLIP finds
    the image with it, and scores rollouts and ground-truth captions in one decoder pass:

        L = - mean(A(c) l(c)) - alpha mean(w(g) l(g)) + beta KL,   R(c) = (1 - lambda) r(c) + lambda D(c)

    Args:
        model: any ``VisionEncoderDecoderModel``, or one that ``peft.get_peft_model`` gave adapters.
        args: the settings.
        scorer: the CLIP that rewards: a [`ClipScorer`], or what it takes as its name.
        train_dataset: ``image``, ``captions``, ``image_id``, in any form that
            [`hf_distinct.data.prepared.as_captioned`] takes; further columns reach the rewards. Images that cannot be
            read and captions that are empty are left out, with a warning that names them.
        eval_dataset: ``image``, and what ``caption_metrics`` reads; in the same forms. Or several by name, in a dict
            or a ``DatasetDict``.
        processing_class: the captioner's tokenizer.
        image_processor: the captioner's image processor; saved beside it.
        embeddings: those of ``train_dataset`` under ``scorer``, if you have them (see ``embed_dataset``); computed
            otherwise.
        rewards: instead of ``args.reward``, one or several: names, functions (those written for TRL too, see
            [`hf_distinct.rewards.CallableReward`]) or objects of the protocol [`hf_distinct.rewards.Reward`].
        caption_metrics: what [`evaluate`] and [`predict`] compute from captions and their dataset, e.g.
            [`hf_distinct.caption_metrics`]; figures by name.
        callbacks: as in ``Trainer``.
        optimizers: as in ``Trainer``.

    Raises:
        ValueError: if captioner, tokenizer, settings and data do not fit together; the message says where.
    """

    args: RLCaptionConfig
    processing_class: PreTrainedTokenizerBase
    train_dataset: Dataset
    model: VisionEncoderDecoderModel

    def __init__(
        self,
        model: VisionEncoderDecoderModel,
        args: RLCaptionConfig,
        *,
        scorer: ClipScorer | str | os.PathLike[str],
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        embeddings: CaptionEmbeddings | None = None,
        rewards: Rewards | None = None,
        caption_metrics: CaptionMetrics | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ):
        if not isinstance(args, RLCaptionConfig):
            raise ValueError(f"args should be an RLCaptionConfig, not a {type(args).__name__}.")
        if args.generation_config is not None:  # before all else that reads it; the parent loads a config as it is
            bare = getattr(model, "get_base_model", lambda: model)()  # which adapters wrap
            wanted = self.load_generation_config(args.generation_config)  # type: ignore[arg-type]
            args.generation_config = bare.generation_config = with_special_tokens(wanted, bare)
        problems: list[str] = []
        captioned = attempt(problems, as_captioned, train_dataset, "train_dataset")
        eval_dataset = attempt(problems, as_evaluated_parts, eval_dataset, "eval_dataset") or eval_dataset
        with unsplit(args):
            clip = attempt(problems, _scorer, scorer)
        found = attempt(problems, found_rewards, args.reward if rewards is None else rewards)
        problems += training_problems(
            args, train_dataset=captioned, eval_dataset=eval_dataset, scorer=clip, rewards=found,
            caption_metrics=caption_metrics, embeddings=embeddings,
        )  # fmt: skip
        check_fit(model, processing_class, image_processor, args, problems)
        assert captioned is not None and clip is not None
        train_dataset, self.scorer = captioned, clip.to(args.device)
        for idle in idle_settings(args):
            logger.warning(idle)
        if unkept := left_out(model.generation_config, args.rollouts):
            logger.warning(
                "The captioner's generation config asks for %s. Evaluations and the saved captioner follow it; "
                "rollouts do not.", ", ".join(f"{name}={value}" for name, value in unkept.items()),
            )  # fmt: skip
        fit_trainer(args, image_processor)
        if args.freeze_encoder:
            model.encoder.requires_grad_(False)
        fuse_gelu(model)
        longest = args.max_new_tokens or rollout_config(model).max_new_tokens
        for problem in scorer_problems(self.scorer, min(longest, decoder_positions(model))):
            logger.warning(problem)
        self.image_processor = image_processor
        self.caption_metrics = caption_metrics
        self.alarms = AlarmCallback(args.alarms, args.alarm_cider_floor)
        train_dataset, embeddings = embedded_and_mined(train_dataset, embeddings, self.scorer, args)
        self.hard_batches = hard_batch_sampler(train_dataset, args)
        collator = CaptionCollator(
            tokenizer=processing_class,
            image_processor=image_processor,
            embeddings=embeddings,
            image_ids=list(train_dataset["image_id"]),
            captions_per_image=args.references_per_image,
            max_length=min(args.max_reference_length, decoder_positions(model)),
            seed=seed_of_data(args),
            epoch=0,
        )
        if args.encoder_cache:
            with gathered(model):
                collator.encoded = encode_images(
                    train_dataset, without_adapters(model).encoder, image_processor, args.encoder_cache, args.device
                )
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[EpochCallback(collator, self.hard_batches), self.alarms, *(callbacks or [])],
            optimizers=optimizers,
        )
        # The loss is a mean over captions; the Trainer must only divide it by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.discriminator = DiscriminatorTrainer(
            Discriminator(self.scorer.embed_dim).to(args.device), lr=args.discriminator_lr
        )
        self.appraiser = Appraiser(
            args,
            scorer=self.scorer,
            discriminator=self.discriminator,
            accelerator=self.accelerator,
            rewards=found,
            references_corpus=self.train_dataset["captions"],
            columns=self.train_dataset.column_names,
            tokenizer=processing_class,
        )
        self.reference_model: VisionEncoderDecoderModel | None = None
        if args.kl_weight:
            with generation_ready(model, self.accelerator) as whole:
                self.reference_model = copy.deepcopy(whole).eval().requires_grad_(False)
        self.meter = Meter(args.device)
        self._samples: list[tuple[str, str]] = []

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """The order of the rows: with `hard_batches`, neighbours beside each other."""
        return self.hard_batches or super()._get_train_sampler(train_dataset)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """The parent's, without groups of no parameter.

        Low-rank adapters have no bias: the group without weight decay is empty, and DeepSpeed would take it away from
        the optimiser after the scheduler has counted it.
        """
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    # ------------------------------------------------------------------------------------------------------- step

    def get_batch_samples(self, epoch_iterator: Iterator[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        """The batches of the next step, as the parent's, without the rows that fill up the last batch of an epoch."""
        batches = map(partial(own_rows, size=self._train_batch_size, accelerator=self.accelerator), epoch_iterator)
        return super().get_batch_samples(batches, *args, **kwargs)

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
        labels, captions, greedy = self._roll_out(model, hidden, len(inputs["captions"]))
        with self.meter.phase("reward"):
            appraisal = self.appraiser.judge(inputs, captions, greedy, self.state)
        with self.meter.phase("score"):
            loss, logits, terms = self._score(model, hidden, labels, inputs, appraisal)
        if self.all_finite(loss, appraisal, inputs):
            ends = end_ids(captioner_in(model, self.accelerator))
            figures = rollout_figures(labels, captions, ends, self.accelerator)
            for name, value in (appraisal.figures | terms | figures).items():
                self.meter.add(name, value)
            first = captions[:: self.args.num_rollouts]
            self._samples = [(rollout, texts[0]) for rollout, texts in zip(first, inputs["captions"], strict=True)]
        else:
            loss = loss * float("nan")
        return (loss, {"logits": logits}) if return_outputs else loss

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """As the parent's; but embeddings, which make the rewards, are not rounded to DeepSpeed's half precision."""
        embeds = {name: value.to(self.args.device) for name, value in inputs.items() if name.endswith("_embeds")}
        return super()._prepare_inputs({k: v for k, v in inputs.items() if k not in embeds}) | embeds

    def _encode(self, model: Any, pixel_values: Tensor) -> Tensor:
        """Encoder output ``(B, S, H)``, with gradient unless the encoder is frozen."""
        encoder = captioner_in(model, self.accelerator).encoder
        learns = torch.is_grad_enabled() and not self.args.freeze_encoder
        with torch.set_grad_enabled(learns), checkpointing(encoder), self.compute_loss_context_manager():
            return encode(encoder, pixel_values, self.accelerator)

    def _how_to_write(self, captioner: VisionEncoderDecoderModel) -> GenerationConfig:
        a = self.args
        how: dict[str, Any] = {"num_return_sequences": a.num_rollouts, "max_new_tokens": a.max_new_tokens}
        if a.rollouts == "beam":
            return rollout_config(captioner, num_beams=a.num_beams, **how)
        return rollout_config(captioner, do_sample=True, temperature=a.temperature, **how)

    def _roll_out(self, model: Any, hidden: Tensor, images: int) -> tuple[Tensor, list[str], list[str]]:
        """K captions an image: labels ``(B * K, L)``, their texts, and the greedy texts where they are needed.

        ``images`` is B, or 0 where B = 1 is a stand-in (see `own_rows`): its caption has no token and no text.
        """
        a = self.args
        with (
            self.meter.phase("generate"),
            generation_ready(model, self.accelerator) as captioner,
            self.compute_loss_context_manager(),
            self.accelerator.autocast(),
        ):
            processors, config = LogitsProcessorList(), self._how_to_write(captioner)
            if a.rollouts == "beam" and a.no_repeat_ngram_size:
                processors.append(NoRepeatNGrams(a.no_repeat_ngram_size))
            if self.appraiser.needs_greedy:
                labels, greedy = generate_with_greedy(captioner, hidden, config, processors)
            else:
                labels = generate_labels(captioner, hidden, config, processors)
                greedy = labels[:0]
        labels[images * a.num_rollouts :] = losses.IGNORED_LABEL
        texts, greedy_texts = (decode(self.processing_class, part) for part in (labels, greedy))
        return labels, texts[: images * a.num_rollouts], greedy_texts[:images]

    def _score(
        self, model: Any, hidden: Tensor, labels: Tensor, inputs: dict[str, Any], appraisal: Appraisal
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Log-probabilities of all captions in one decoder pass; this process's part of the loss; its terms by name.

        The policy is what rollouts are drawn from: at the temperature of samples, for rollouts, references and KL
        alike; and without what was forbidden where a rollout's token was drawn. A person may have said just that, so
        references are scored among all tokens. Logits are those of the policy.

        Wrappers average gradients over processes; with each mean at its share, that is the mean over the global batch.
        """
        a = self.args
        references = inputs["labels"].flatten(0, 1) if a.wtf_weight else labels[:0]
        # Captions of an image in a row, as `caption_logits` wants them: its rollouts, then its references.
        parts = join_labels(labels, references).tensor_split([len(labels)])
        joined = torch.cat([part.unflatten(0, (len(hidden), -1)) for part in parts], dim=1)  # (B, K + G, L)
        flat, rollouts = joined.flatten(0, 1), joined[:, : a.num_rollouts].flatten(0, 1)
        real = flat != losses.IGNORED_LABEL
        # What the host must know of the device comes first: the decoder's pass, the loss and its gradient do not wait.
        tokens = flat[real]  # (T,)
        rolled_out = torch.arange(joined.shape[1], device=flat.device) < a.num_rollouts
        of_policy = rolled_out.repeat(len(hidden))[:, None].expand_as(real)[real]  # (T,)
        captioner = captioner_in(model, self.accelerator)
        forbidden = forbidden_tokens(self._how_to_write(captioner), rollouts, captioner.config.decoder.vocab_size)
        with checkpointing(model), self.compute_loss_context_manager():
            logits = token_logits(model, hidden, flat)
        logits = policy_logits(logits, self._temperature, forbidden, of_policy)
        of_tokens = losses.token_log_probs(logits, tokens)
        log_probs = losses.sequence_log_probs(
            of_tokens.new_zeros(flat.shape).masked_scatter(real, of_tokens),
            flat,
            normalize=a.length_normalization,
            constant=a.max_new_tokens or a.max_reference_length,
        ).view(joined.shape[:2])
        of_rollouts, of_references = (part.flatten() for part in log_probs.tensor_split([a.num_rollouts], dim=1))
        part = share(len(inputs["captions"]), self.accelerator)
        advantages = F.pad(appraisal.advantages, (0, len(of_rollouts) - len(appraisal.advantages)))  # of a stand-in: 0
        loss = part * losses.policy_gradient_loss(of_rollouts, advantages)
        terms = {"loss/policy_gradient": loss}
        if a.wtf_weight:
            weights = F.pad(appraisal.reference_weights, (0, len(of_references) - len(appraisal.reference_weights)))
            term = part * losses.weighted_teacher_forcing_loss(of_references, weights)
            terms["loss/weighted_teacher_forcing"] = term
            loss = loss + a.wtf_weight * term
        if self.reference_model is not None:
            divergence = self._divergence(logits[of_policy], inputs["pixel_values"], rollouts, forbidden)
            divergence = share((labels != losses.IGNORED_LABEL).sum(), self.accelerator) * divergence
            terms["kl"] = divergence
            loss = loss + a.kl_weight * divergence
        return loss, logits, terms

    @property
    def _temperature(self) -> float:
        return self.args.temperature if self.args.rollouts == "sample" else 1.0

    def _divergence(self, logits: Tensor, pixel_values: Tensor, labels: Tensor, forbidden: Tensor | None) -> Tensor:
        """KL of the policy from the captioner that training began with, its encoder included, on the rollouts.

        Logits ``(T, V)`` of the policy are those of the real tokens of labels ``(B * K, L)``.
        """
        assert self.reference_model is not None
        self.reference_model.to(pixel_values.device)  # type: ignore[arg-type]
        with torch.no_grad(), self.compute_loss_context_manager():
            hidden = encode(self.reference_model.encoder, pixel_values, self.accelerator)
            with self.accelerator.autocast():
                reference_logits = token_logits(self.reference_model, hidden, labels)
        reference_logits = policy_logits(reference_logits, self._temperature, forbidden)
        return losses.kl_divergence(logits, reference_logits, labels[labels != losses.IGNORED_LABEL])

    # ----------------------------------------------------------------------------------------------- discriminator

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
                _, captions, _ = self._roll_out(model, hidden, len(inputs["captions"]))
            found = self.appraiser.teach_discriminator(inputs, captions)
        loader.end()  # or Accelerate would ask this loader whether the epoch of the other one is at its end
        accuracy = float(found["discriminator/accuracy"])  # of the last one, before its update
        self.log({"discriminator/pretrain_steps": steps, "discriminator/pretrain_accuracy": accuracy})
        if self.is_world_process_zero():
            logger.info("The discriminator now tells %.0f %% of rollouts from reference captions.", 100 * accuracy)

    # ----------------------------------------------------------------------------------------------------- metrics

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what was measured since the last log line, averaged over steps and processes; show samples, watch."""
        if "loss" in logs:
            logs.update(self.meter.flush(self.accelerator))
            logs["memory/peak_gib"] = peak_memory(self.accelerator)
            if self.skipped_steps:
                logs["skipped_steps"] = self.skipped_steps
            if self.is_world_process_zero():
                for rollout, reference in self._samples[: self.args.log_samples]:
                    said = plain(rollout), plain(reference)
                    logger.info("step %d | rollout: %s | reference: %s", self.state.global_step, *said)
        logs.update(self.alarms.watch(logs, self.state.global_step))
        super().log(logs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the parent's, timed."""
        with self.meter.phase("step"):
            return super().training_step(*args, **kwargs)
