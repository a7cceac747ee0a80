"""RLCaptionTrainer: the Hugging Face Trainer with the loss of distinctive captioning by reinforcement learning."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    TrainerCallback,
    VisionEncoderDecoderModel,
)
from transformers.utils import logging

from hf_distinct import losses
from hf_distinct.config import RLCaptionConfig
from hf_distinct.data.collator import CaptionCollator
from hf_distinct.data.embeddings import CaptionEmbeddings, embed_dataset
from hf_distinct.data.hashing import stable_hash
from hf_distinct.data.images import decode_image, to_pixel_values
from hf_distinct.data.mining import mine_neighbours
from hf_distinct.discriminator import Discriminator, DiscriminatorTrainer
from hf_distinct.gathering import gather_rows, own_part
from hf_distinct.metering import Meter
from hf_distinct.rewards import ContrastiveReward, ImagePool, Reward, RewardBatch, TextKind, TextPool, resolve_reward
from hf_distinct.rollout import (
    caption_logits,
    check_captioner,
    decode,
    decoder_positions,
    generate_labels,
    generation_ready,
    join_labels,
    rollout_config,
)
from hf_distinct.scorer import ClipScorer

logger = logging.get_logger(__name__)


class _EpochOfCollator(TrainerCallback):
    """Tells the collator which epoch it is, so that the captions it draws depend on nothing else."""

    def __init__(self, collator: CaptionCollator):
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.collator.epoch = int(state.epoch or 0)


STATE_FILE = "rl_state.pt"
CaptionMetrics = Callable[[list[str], Dataset], dict[str, float]]


class RLCaptionTrainer(Seq2SeqTrainer):
    """Trains a captioner to say what singles an image out (arXiv 2402.13936).

    A step encodes the images once, lets the captioner write, rewards what it wrote by how well a frozen CLIP finds
    the image with it, and scores rollouts and ground-truth captions in one decoder pass:

        L = - mean(A(c) l(c)) - alpha mean(w(g) l(g)) + beta KL,   R(c) = (1 - lambda) r(c) + lambda D(c)

    Args:
        model: any ``VisionEncoderDecoderModel``.
        args: the settings.
        scorer: the CLIP that rewards: a [`ClipScorer`] or its name.
        train_dataset: ``image``, ``captions``, ``image_id``; further columns reach the rewards. Images that cannot be
            read are left out, with a warning that names them.
        eval_dataset: the same columns.
        processing_class: the captioner's tokenizer.
        image_processor: the captioner's image processor; saved beside it.
        embeddings: of ``train_dataset`` under ``scorer``, if at hand (see ``embed_dataset``); computed otherwise.
        rewards: instead of ``args.reward``: names, callables ``reward(captions, references, **columns)`` or objects
            of the protocol [`hf_distinct.rewards.Reward`].
        caption_metrics: what [`evaluate`] computes from captions and their dataset.
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
        scorer: ClipScorer | str,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        embeddings: CaptionEmbeddings | None = None,
        rewards: Sequence[str | Callable[..., Any] | Reward] | None = None,
        caption_metrics: CaptionMetrics | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ):
        check_captioner(model, processing_class)
        batch = args.train_batch_size * args.world_size
        if args.dataloader_drop_last and len(train_dataset) < batch:  # the Trainer would end at step 0, in silence
            raise ValueError(
                f"{len(train_dataset)} training images do not fill one batch of {batch}: lower "
                "per_device_train_batch_size."
            )
        positions = decoder_positions(model)
        if args.max_new_tokens is not None and args.max_new_tokens > positions:
            raise ValueError(f"max_new_tokens={args.max_new_tokens}, but the decoder has only {positions} positions.")
        if args.freeze_encoder:
            model.encoder.requires_grad_(False)
        self.scorer = (scorer if isinstance(scorer, ClipScorer) else ClipScorer(scorer)).to(args.device)
        self.image_processor = image_processor
        self.caption_metrics = caption_metrics
        if embeddings is None:
            train_dataset, embeddings = embed_dataset(train_dataset, self.scorer)
        if args.pool_neighbours and "neighbours" not in train_dataset.column_names:
            train_dataset = mine_neighbours(
                train_dataset, embeddings.image_embeds, args.pool_neighbours, first_rank=args.neighbour_first_rank
            )
        collator = CaptionCollator(
            tokenizer=processing_class,
            image_processor=image_processor,
            embeddings=embeddings,
            image_ids=list(train_dataset["image_id"]),
            captions_per_image=args.references_per_image,
            max_length=min(args.max_reference_length, positions),
            seed=args.seed,
            epoch=0,
        )
        super().__init__(
            model=model,
            args=args,
            data_collator=collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[_EpochOfCollator(collator), *(callbacks or [])],
            optimizers=optimizers,
        )
        # The loss is a mean over captions; the Trainer must only divide it by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self.rewards = [self._build_reward(spec) for spec in (args.reward if rewards is None else rewards)]
        self.reward_weights = args.reward_weights or [1.0] * len(self.rewards)
        if len(self.reward_weights) != len(self.rewards):
            raise ValueError(f"{len(self.reward_weights)} reward_weights for {len(self.rewards)} rewards")
        self.baseline = self._choose_baseline()
        if any(isinstance(r, ContrastiveReward) for r in self.rewards):
            images = args.per_device_train_batch_size * (args.world_size if args.pool_other_processes else 1)
            if images < 2 and not args.pool_neighbours and not args.memory_batches:
                raise ValueError(
                    "A contrastive reward needs something to contrast with, and the batch has one image: raise "
                    "per_device_train_batch_size, or set pool_neighbours or memory_batches."
                )
        self.discriminator = DiscriminatorTrainer(
            Discriminator(self.scorer.embed_dim).to(args.device), lr=args.discriminator_lr
        )
        self.reference_model = copy.deepcopy(model).eval().requires_grad_(False) if args.kl_weight else None
        self.memory: deque[dict[str, Tensor]] = deque(maxlen=args.memory_batches)
        self.meter = Meter()
        self._samples: list[tuple[str, str]] = []

    # ----------------------------------------------------------------------------------------------------- rewards

    def _build_reward(self, spec: str | Callable[..., Any] | Reward) -> Reward:
        a = self.args
        pools = {
            "clamp": a.reward_clamp,
            "use_references": a.pool_references,
            "use_greedy": a.pool_greedy,
            "use_own_rollouts": a.pool_own_rollouts,
            "use_other_captions": a.pool_other_captions,
        }
        return resolve_reward(spec, contrastive_settings=pools, references_corpus=self.train_dataset["captions"])

    def _choose_baseline(self) -> losses.Baseline:
        if self.args.baseline != "auto":
            return self.args.baseline
        if all(reward.is_advantage for reward in self.rewards):
            return "none"
        return "leave_one_out" if self.args.num_rollouts > 1 else "greedy"

    def _reward(self, batch: RewardBatch, scores: Tensor) -> Tensor:
        """``R = (1 - lambda) sum_k w_k r_k + lambda D`` for every caption of the batch, ``(N,)``."""
        weight = self.args.discriminator_weight
        total = weight * scores
        for reward, share in zip(self.rewards, self.reward_weights, strict=True):
            values = _checked(reward(batch), reward.name, batch).to(scores)
            self._parts[reward.name] = values
            total = total + (1 - weight) * share * values
        return total

    # ------------------------------------------------------------------------------------------------------- step

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The loss of one batch (see the class); the discriminator takes its own step on the way.

        Args:
            model: the captioner, wrapped by Accelerate or DeepSpeed.
            inputs: what [`CaptionCollator`] makes.
            return_outputs: whether to return the logits too.
            num_items_in_batch: not used: the loss is a mean over captions.
        """
        model.eval()  # no dropout: the policy that is scored must be the one that wrote
        if self.discriminator.steps == 0 and self.args.discriminator_weight:
            self.discriminator.synchronize()
            self._pretrain_discriminator(model)
        with self.meter.phase("encode"):
            hidden = self._encode(model, inputs["pixel_values"])
        labels, captions, greedy = self._roll_out(model, hidden)
        with self.meter.phase("reward"):
            rollout_advantages, reference_weights = self._judge(inputs, captions, greedy)
        with self.meter.phase("score"):
            loss, logits = self._score(model, hidden, labels, inputs, rollout_advantages, reference_weights)
        self._measure_captions(labels, captions, inputs)
        return (loss, {"logits": logits}) if return_outputs else loss

    def _encode(self, model: Any, pixel_values: Tensor) -> Tensor:
        """Encoder output ``(B, S, H)``, with gradient unless the encoder is frozen."""
        encoder = self.accelerator.unwrap_model(model).encoder
        with torch.set_grad_enabled(not self.args.freeze_encoder), self.compute_loss_context_manager():
            return encoder(pixel_values).last_hidden_state

    def _roll_out(self, model: Any, hidden: Tensor) -> tuple[Tensor, list[str], list[str]]:
        """K captions an image: labels ``(B * K, L)``, their texts, and the greedy texts where they are needed."""
        a = self.args
        with (
            self.meter.phase("generate"),
            generation_ready(model, self.accelerator) as captioner,
            self.compute_loss_context_manager(),
        ):
            if a.rollouts == "beam":
                how: dict[str, Any] = {"num_beams": a.num_beams, "no_repeat_ngram_size": a.no_repeat_ngram_size}
            else:
                how = {"do_sample": True, "num_return_sequences": a.num_rollouts, "temperature": a.temperature}
            config = rollout_config(captioner, max_new_tokens=a.max_new_tokens, **how)
            labels = generate_labels(captioner, hidden, config)
            greedy: list[str] = []
            if self.baseline == "greedy" or (a.pool_greedy and self._contrasts):
                config = rollout_config(captioner, max_new_tokens=a.max_new_tokens)
                greedy = decode(self.processing_class, generate_labels(captioner, hidden, config))
        return labels, decode(self.processing_class, labels), greedy

    @property
    def _contrasts(self) -> bool:
        return any(isinstance(reward, ContrastiveReward) for reward in self.rewards)

    @torch.no_grad()
    def _judge(self, inputs: dict[str, Any], rollouts: list[str], greedy: list[str]) -> tuple[Tensor, Tensor]:
        """Advantages of the rollouts ``(B * K,)`` and weights of the references ``(B * G,)``."""
        a, device = self.args, inputs["image_embeds"].device
        images, references = inputs["image_embeds"], inputs["caption_embeds"]
        B, K, G = len(images), a.num_rollouts, references.shape[1]  # noqa: N806

        # One CLIP call for the distinct new strings; those of the references come from the cache.
        distinct = {text: place for place, text in enumerate(dict.fromkeys([*rollouts, *greedy]))}
        embeds = self.scorer.encode_texts(list(distinct)).to(images)
        texts = [*rollouts, *(text for row in inputs["captions"] for text in row), *greedy]
        written = torch.tensor([distinct[text] for text in [*rollouts, *greedy]], device=device)
        counts = {TextKind.ROLLOUT: B * K, TextKind.REFERENCE: B * G, TextKind.GREEDY: len(greedy)}
        text_embeds = torch.cat([embeds[written[: B * K]], references.flatten(0, 1), embeds[written[B * K :]]])
        places = torch.arange(B, device=device)
        owner = torch.cat([places.repeat_interleave(K), places.repeat_interleave(G), places[: len(greedy)]])
        batch = RewardBatch(
            captions=texts,
            references=[inputs["references"][i] for i in owner.tolist()],
            text_embeds=text_embeds,
            image_embeds=images[owner],
            text_ids=torch.tensor([stable_hash(text) for text in texts], device=device),
            image_ids=inputs["image_ids"][owner],
            logit_scale=self.scorer.logit_scale,
            columns={name: [values[i] for i in owner.tolist()] for name, values in inputs["columns"].items()},
            **self._pools(inputs, text_embeds, texts, owner, counts),
        )
        self._parts: dict[str, Tensor] = {}
        scores = self.discriminator.discriminator.score(batch.image_embeds, batch.text_embeds)
        rewards = self._reward(batch, scores)
        rollout_rewards, reference_rewards, greedy_rewards = rewards.split(list(counts.values()))
        advantages = losses.advantages(
            rollout_rewards.view(B, K), self.baseline, greedy_rewards if self.baseline == "greedy" else None
        )
        # Softmax and shift compare references with each other: over the whole batch, not over this process's share.
        everyone = gather_rows(reference_rewards, self.accelerator)
        weights = own_part(losses.reference_weights(everyone, a.wtf_policy), B * G, self.accelerator)
        self._measure_rewards(counts, rewards, scores, weights)
        if a.discriminator_weight:
            self._update_discriminator(images, text_embeds[: B * K].view(B, K, -1), references)
        self._samples = [(r, g[0]) for r, g in zip(rollouts[::K], inputs["captions"], strict=True)]
        return advantages.flatten(), weights

    def _pools(
        self, inputs: dict[str, Any], text_embeds: Tensor, texts: list[str], owner: Tensor, counts: dict[TextKind, int]
    ) -> dict[str, Any]:
        """The texts and images of the global batch, with those that memory holds."""
        device = text_embeds.device
        kinds = torch.cat([torch.full((count,), int(kind), device=device) for kind, count in counts.items()])
        text_ids = torch.tensor([stable_hash(text) for text in texts], device=device)
        parts = {
            "text_embeds": text_embeds,
            "text_ids": text_ids,
            "text_image_ids": inputs["image_ids"][owner],
            "kinds": kinds,
            "image_embeds": inputs["image_embeds"],
            "image_ids": inputs["image_ids"],
        }
        if self.args.pool_neighbours:
            mask = inputs["neighbour_mask"]
            parts["image_embeds"] = torch.cat([parts["image_embeds"], inputs["neighbour_embeds"][mask]])
            parts["image_ids"] = torch.cat([parts["image_ids"], inputs["neighbour_ids"][mask]])
        if self.args.pool_other_processes:
            parts = {name: gather_rows(part, self.accelerator) for name, part in parts.items()}
        pooled = parts
        if self.memory:
            pooled = {name: torch.cat([parts[name], *(old[name] for old in self.memory)]) for name in parts}
        if self.args.memory_batches:
            self.memory.append(self._to_remember(parts))
        return {
            "text_pool": TextPool(
                pooled["text_embeds"], pooled["text_ids"], pooled["text_image_ids"], pooled["kinds"]
            ),
            "image_pool": ImagePool(pooled["image_embeds"], pooled["image_ids"]),
        }

    def _to_remember(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """What a later batch is compared with. There every text is of kind MEMORY: those switched off stay out now."""
        kinds, kept = parts["kinds"], torch.ones_like(parts["kinds"], dtype=torch.bool)
        if not self.args.pool_references:
            kept &= kinds != TextKind.REFERENCE
        if not self.args.pool_greedy:
            kept &= kinds != TextKind.GREEDY
        texts = {name: parts[name][kept] for name in ("text_embeds", "text_ids", "text_image_ids", "kinds")}
        return {**parts, **texts, "kinds": torch.full_like(texts["kinds"], int(TextKind.MEMORY))}

    def _score(
        self, model: Any, hidden: Tensor, labels: Tensor, inputs: dict[str, Any], advantages: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of rollouts and references in one decoder pass, and the loss they make."""
        a = self.args
        references = inputs["labels"]
        rollouts, per_image = len(labels), references.shape[1]
        joined = join_labels(labels, references.flatten(0, 1)) if a.wtf_weight else labels
        rows = [hidden.repeat_interleave(a.num_rollouts, dim=0)]
        if a.wtf_weight:
            rows.append(hidden.repeat_interleave(per_image, dim=0))
        with self.compute_loss_context_manager():
            logits = caption_logits(model, torch.cat(rows), joined)
        log_probs = losses.sequence_log_probs(
            losses.token_log_probs(logits, joined),
            joined,
            normalize=a.length_normalization,
            constant=a.max_new_tokens or a.max_reference_length,
        )
        loss = losses.policy_gradient_loss(log_probs[:rollouts], advantages)
        self.meter.add("loss/policy_gradient", loss)
        if a.wtf_weight:
            term = losses.weighted_teacher_forcing_loss(log_probs[rollouts:], weights)
            self.meter.add("loss/weighted_teacher_forcing", term)
            loss = loss + a.wtf_weight * term
        if self.reference_model is not None:
            divergence = self._divergence(logits[:rollouts], inputs["pixel_values"], joined[:rollouts])
            self.meter.add("kl", divergence)
            loss = loss + a.kl_weight * divergence
        return loss, logits

    def _divergence(self, logits: Tensor, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """KL of the policy from the captioner that training began with, its encoder included, on the rollouts."""
        assert self.reference_model is not None
        self.reference_model.to(pixel_values.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            hidden = self.reference_model.encoder(pixel_values).last_hidden_state
            rows = hidden.repeat_interleave(self.args.num_rollouts, dim=0)
            reference_logits = caption_logits(self.reference_model, rows, labels)
        return losses.kl_divergence(logits, reference_logits, labels)

    # ----------------------------------------------------------------------------------------------- discriminator

    def _update_discriminator(self, images: Tensor, rollouts: Tensor, references: Tensor) -> None:
        """One update on as many rollouts ``(B, K, d)`` as references ``(B, G, d)``, so that neither class prevails."""
        each = min(rollouts.shape[1], references.shape[1])
        rows = images.repeat_interleave(each, dim=0)
        found = self.discriminator.update(
            rows, rollouts[:, :each].flatten(0, 1), rows, references[:, :each].flatten(0, 1)
        )
        self.meter.add("discriminator/loss", found["loss"])
        self.meter.add("discriminator/accuracy", found["accuracy"])

    def _pretrain_discriminator(self, model: Any) -> None:
        """Let it see the warm-started captioner's rollouts before its score counts."""
        batches = iter(self.get_train_dataloader())
        for _ in range(self.args.discriminator_pretrain_steps):
            try:
                inputs = self._prepare_inputs(next(batches))
            except StopIteration:
                batches = iter(self.get_train_dataloader())
                inputs = self._prepare_inputs(next(batches))
            with torch.no_grad():
                _, captions, _ = self._roll_out(model, self._encode(model, inputs["pixel_values"]))
            embeds = self.scorer.encode_texts(captions).to(inputs["image_embeds"])
            rollouts = embeds.view(len(inputs["image_embeds"]), self.args.num_rollouts, -1)
            self._update_discriminator(inputs["image_embeds"], rollouts, inputs["caption_embeds"])

    # ----------------------------------------------------------------------------------------------------- metrics

    def _measure_rewards(self, counts: dict, rewards: Tensor, scores: Tensor, weights: Tensor) -> None:
        parts = {**self._parts, "total": rewards}
        if self.args.discriminator_weight:
            parts["discriminator"] = scores
        for name, values in parts.items():
            rollouts, references, _ = values.split(list(counts.values()))
            self.meter.add(f"reward/{name}/rollouts", rollouts.mean())
            self.meter.add(f"reward/{name}/rollouts_std", rollouts.std(correction=0))
            self.meter.add(f"reward/{name}/references", references.mean())
            self.meter.add(f"reward/{name}/references_std", references.std(correction=0))
        self.meter.add("reference_weight", weights.mean())

    def _measure_captions(self, labels: Tensor, captions: list[str], inputs: dict[str, Any]) -> None:
        lengths = (labels != losses.IGNORED_LABEL).sum(dim=1)
        end = self.processing_class.eos_token_id
        self.meter.add("length", lengths.float().mean())
        self.meter.add("ended", (labels == end).any(dim=1).float().mean())
        self.meter.add("unique", torch.tensor(len(set(captions)) / len(captions), device=labels.device))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add what was measured since the last log line, averaged over steps and processes, and show samples."""
        if "loss" in logs:
            logs.update(self.meter.flush(self.accelerator))
            if self.is_world_process_zero():
                for rollout, reference in self._samples[: self.args.log_samples]:
                    logger.info("step %d | rollout: %s | reference: %s", self.state.global_step, rollout, reference)
        super().log(logs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the parent's, timed."""
        with self.meter.phase("step"):
            return super().training_step(*args, **kwargs)

    # -------------------------------------------------------------------------------------------------- evaluation

    @torch.no_grad()
    def caption(self, dataset: Dataset) -> list[str]:
        """Caption a dataset as the saved model will: with its own generation config.

        Args:
            dataset: has ``image``.

        Returns:
            One caption a row, in order, on every process.
        """
        model = self.model_wrapped if self.is_in_train else self.model
        model.eval()
        size = self.args.per_device_eval_batch_size
        own = range(self.args.process_index, len(dataset), self.args.world_size)
        captions: dict[int, str] = {}
        with generation_ready(model, self.accelerator) as captioner:
            captioner.to(self.args.device)  # type: ignore[arg-type]
            for start in range(0, len(own), size):
                rows = own[start : start + size]
                images = [decode_image(dataset[i]["image"]) for i in rows]
                pixels = to_pixel_values(images, self.image_processor).to(self.args.device)
                with self.compute_loss_context_manager():
                    sequences = captioner.generate(pixels)
                texts = self.processing_class.batch_decode(sequences, skip_special_tokens=True)
                captions.update(zip(rows, (text.strip() for text in texts), strict=True))
        if self.args.world_size > 1:
            from accelerate.utils import gather_object

            captions = dict(gather_object(list(captions.items())))
        return [captions[i] for i in range(len(dataset))]

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **generation: Any,
    ) -> dict[str, float]:
        """Caption the data and compute ``caption_metrics`` of the captions.

        Raises:
            ValueError: if there is nothing to evaluate on or with.
        """
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        if dataset is None or self.caption_metrics is None:
            raise ValueError("Evaluation needs an eval_dataset and caption_metrics.")
        if isinstance(dataset, dict):
            found: dict[str, float] = {}
            for name, part in dataset.items():
                found |= self.evaluate(part, metric_key_prefix=f"{metric_key_prefix}_{name}")
            return found
        captions = self.caption(dataset)
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in self.caption_metrics(captions, dataset).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ------------------------------------------------------------------------------------------------------- state

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save the captioner with both of its processors, so that ``pipeline`` loads the folder."""
        super()._save(output_dir, state_dict)
        self.image_processor.save_pretrained(str(output_dir or self.args.output_dir))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Save, beside optimiser and schedule, the discriminator and the memory."""
        super()._save_optimizer_and_scheduler(output_dir)
        path = self._state_file(output_dir)
        if self.args.should_save or path.name != STATE_FILE:
            path.parent.mkdir(parents=True, exist_ok=True)  # process 0 may not have come to it
            torch.save({"discriminator": self.discriminator.state_dict(), "memory": list(self.memory)}, path)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Take discriminator and memory up again."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = self._state_file(checkpoint)
        if not path.is_file():
            logger.warning("%s is missing: discriminator and memory start anew", path)
            return
        state = torch.load(path, map_location=self.args.device, weights_only=True)
        self.discriminator.load_state_dict(state["discriminator"])
        self.memory.clear()
        self.memory.extend(state["memory"])

    def _state_file(self, folder: str) -> Path:
        """One file for all processes, whose state is the same, unless each remembers what it alone has seen."""
        a = self.args
        alone = a.memory_batches and not a.pool_other_processes and a.process_index
        return Path(folder) / (f"rl_state_{a.process_index}.pt" if alone else STATE_FILE)


def _checked(values: Tensor, name: str, batch: RewardBatch) -> Tensor:
    """The values of a reward, which may be anybody's class; a NaN would reach the weights, and no log would tell."""
    if not isinstance(values, Tensor) or values.shape != (len(batch),):
        found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"reward {name!r} gave {found} instead of a tensor of {len(batch)} numbers, one a caption")
    finite = values.isfinite()
    if not finite.all():
        row = int(finite.logical_not().nonzero()[0])
        raise ValueError(f"reward {name!r} gave {values[row].item()} for row {row}, caption {batch.captions[row]!r}")
    return values
