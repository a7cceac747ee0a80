"""Compute rewards of captions, and from them advantages and reference weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.accelerator import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerState
from transformers.utils import logging

from hf_distinct import losses
from hf_distinct.config import RLCaptionConfig
from hf_distinct.data.hashing import stable_hash
from hf_distinct.discriminator import DiscriminatorTrainer
from hf_distinct.distributed.gathering import gather_rows, own_part
from hf_distinct.rewards import ContrastiveReward, Reward, RewardBatch, TextKind, resolve_reward
from hf_distinct.rewards.callable import OWN_ARGUMENTS, CallableReward, evaluate_rewards
from hf_distinct.rewards.pools import Pools
from hf_distinct.rewards.scorer_trainer import ScorerTrainer
from hf_distinct.scorer import ClipScorer

logger = logging.get_logger(__name__)

REWARDED = ("rollouts", "references")


@dataclass
class Appraisal:
    """What the loss of one batch needs to know about its captions.

    Attributes:
        advantages: ``(B * K,)``, A(c) of each rollout.
        reference_weights: ``(B * G,)``, w(g) of each reference caption.
        figures: scalar tensors to log, by name, computed over all processes.
        rewards: every reward and their ``total``, R(c), for rollouts, references and greedy captions: ``(N,)`` each; 0
            where a reward does not apply.
        applies: where each of them applies: ``(N,)`` bool, on the CPU.
        captions: the N captions.
        image_ids: the image id of each caption.
        extras: what rewards gave to ``log_extra``: lists of N values, by column.
    """

    advantages: Tensor
    reference_weights: Tensor
    figures: dict[str, Tensor]
    rewards: dict[str, Tensor]
    applies: dict[str, Tensor]
    captions: list[str]
    image_ids: list[str]
    extras: dict[str, list[Any]]

    def trouble(self) -> str | None:
        """Return a message about the first reward that is NaN or infinite, and its caption; None if there is none."""
        for name, values in self.rewards.items():
            for row in values.isfinite().logical_not().nonzero().flatten().tolist():
                where = f"image {self.image_ids[row]!r}, caption {self.captions[row]!r}"
                return f"reward {name!r} is {values[row].item()} for {where}"
        return None


class Appraiser:
    """Computes ``R(c) = (1 - lambda) sum_k w_k r_k(c) + lambda D(c)`` for a batch, and keeps the memory of pools.

    Args:
        args: the settings.
        scorer: embeds generated captions; if it is trained, a copy does.
        discriminator: computes D and is updated once per batch.
        accelerator: gives access to the other processes.
        rewards: anything that `hf_distinct.rewards.resolve_reward` accepts and `reward_problems` does not reject; by
            default ``args.reward``.
        references_corpus: the reference captions of each training image, for CIDEr-D's document frequencies.
        columns: the dataset's column names, to warn about columns that rewards cannot see.
        tokenizer: the captioner's, for rewards that use ``completion_ids``.

    Attributes:
        rewards: the rewards r_k.
        reward_weights: their weights w_k.
        baseline: the baseline subtracted from R; "auto" is resolved.
        scorer: the CLIP that rewards captions.
        scorer_trainer: trains it, updated once per batch; None if it is frozen.
        pools: make the pools, and remember those of the last ``args.memory_batches`` batches.
    """

    def __init__(
        self,
        args: RLCaptionConfig,
        *,
        scorer: ClipScorer,
        discriminator: DiscriminatorTrainer,
        accelerator: Accelerator,
        rewards: Sequence[str | Callable[..., Any] | Reward] | None = None,
        references_corpus: Sequence[list[str]] | None = None,
        columns: Sequence[str] = (),
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self.args = args
        self.scorer_trainer = None
        self.scorer = scorer
        if args.train_scorer != "none":
            how = (args.scorer_lr, args.scorer_decay, args.scorer_loss_weights)
            self.scorer_trainer = ScorerTrainer(scorer, accelerator, args.num_rollouts, *how)
            self.scorer = self.scorer_trainer.scorer
        self.discriminator = discriminator
        self.accelerator = accelerator
        self.tokenizer = tokenizer
        switches = {
            "clamp": args.reward_clamp,
            "use_references": args.pool_references,
            "use_greedy": args.pool_greedy,
            "use_own_rollouts": args.pool_own_rollouts,
            "use_other_captions": args.pool_other_captions,
        }
        self.rewards = [
            resolve_reward(spec, contrastive_settings=switches, references_corpus=references_corpus)
            for spec in (args.reward if rewards is None else rewards)
        ]
        self.reward_weights = args.reward_weights or [1.0] * len(self.rewards)
        for name in {*columns} & {*OWN_ARGUMENTS} - {"captions"}:
            if any(isinstance(reward, CallableReward) and reward.takes(name) for reward in self.rewards):
                logger.warning(
                    "rewards cannot see the dataset's column %r, because an argument has this name: "
                    "rename the column",
                    name,
                )
        self._wants_ids = tokenizer is not None and any(
            isinstance(reward, CallableReward) and reward.takes("completion_ids") for reward in self.rewards
        )
        self.baseline = self._choose_baseline()
        # What a switch takes out of the pools is not remembered either, since all that is remembered becomes MEMORY.
        off = {TextKind.REFERENCE: not args.pool_references, TextKind.GREEDY: not args.pool_greedy}
        self.pools = Pools(args.memory_batches, [kind for kind in TextKind if not off.get(kind)])

    @property
    def needs_greedy(self) -> bool:
        """Whether `judge` needs greedy captions: as the baseline, or for the pool of a contrastive reward."""
        return self.baseline == "greedy" or (self.args.pool_greedy and self._contrasts)

    @property
    def _contrasts(self) -> bool:
        return any(isinstance(reward, ContrastiveReward) for reward in self.rewards)

    def _choose_baseline(self) -> losses.Baseline:
        """Resolve "auto": with several rollouts, use leave-one-out for every reward.

        Let the rewards of an image have mean m and standard deviation s. Leave-one-out advantages then have the mean
        square s^2 K / (K - 1), advantages without a baseline s^2 + m^2. So an unnecessary baseline adds at most a
        (K - 1)th of the variance, and a missing one adds any amount. Contrastive rewards are around 0 only if the
        captioner competes well in the pools. With a weak scorer nearly all are negative, and without a baseline the
        probability of every sample would decrease.
        """
        if self.args.baseline != "auto":
            return self.args.baseline
        if self.args.num_rollouts > 1:
            return "leave_one_out"
        return "none" if all(reward.is_advantage for reward in self.rewards) else "greedy"

    # ------------------------------------------------------------------------------------------------------- rewards

    @torch.no_grad()
    def judge(
        self,
        inputs: dict[str, Any],
        rollouts: list[str],
        greedy: list[str],
        trainer_state: TrainerState | None = None,
        labels: Tensor | None = None,
    ) -> Appraisal:
        """Compute rewards, and update the memory, the discriminator and the scorer if it is trained, in this order.

        Args:
            inputs: the output of `hf_distinct.data.CaptionCollator` for B images with G references each; B may be 0 if
                other processes have images.
            rollouts: B * K captions; those of an image are adjacent.
            greedy: B captions; empty unless `needs_greedy`.
            trainer_state: for rewards that use it.
            labels: the tokens of the rollouts as they were generated, ``(B * K, L)``, -100 after the end token; by
                default, rewards get tokens of the text.
        """
        cached = inputs
        if self.scorer_trainer is not None:
            inputs = self.scorer_trainer.refreshed(inputs)
        a, images, references = self.args, inputs["image_embeds"], inputs["caption_embeds"]
        batch, cut = self._batch(inputs, rollouts, greedy)
        batch.trainer_state = trainer_state
        if self._wants_ids:
            batch.completion_ids = self._token_ids(batch.captions, None if labels is None else labels[: len(rollouts)])
        parts, where = self._rewards(batch)
        sizes = [len(rollouts), len(batch) - len(rollouts) - len(greedy), len(greedy)]
        of_rollouts, of_references, of_greedy = parts["total"].split(sizes)
        applies = {name: _on_device_of(parts["total"], each) for name, each in where.items()}
        scored, _, greedy_scored = applies["total"].split(sizes)
        advantages = _advantages(
            of_rollouts.view(len(images), a.num_rollouts),
            scored.view(len(images), a.num_rollouts),
            self.baseline,
            (of_greedy, greedy_scored) if self.baseline == "greedy" else None,
        )
        # Softmax and shift compare references with each other, so they need the whole batch, not this process's part.
        everyone = losses.reference_weights(gather_rows(of_references, self.accelerator), a.wtf_policy)
        weights = own_part(everyone, len(of_references), self.accelerator)
        cut = gather_rows(cut.to(of_rollouts, non_blocking=True), self.accelerator)
        figures = {"reference_weight": everyone.mean(), "cut_by_scorer": cut.mean()}
        table = torch.stack([torch.stack(list(each.values()), dim=1) for each in (parts, applies)], dim=-1)
        known = self._known({name: each.split(sizes) for name, each in where.items()})
        for whose, rows in zip(REWARDED, table.split(sizes), strict=False):
            values, counted = gather_rows(rows, self.accelerator).unbind(dim=-1)
            means = (values * counted).sum(dim=0) / counted.sum(dim=0)
            stds = ((values - means).square() * counted).sum(dim=0).div(counted.sum(dim=0)).sqrt()
            for name, mean, std in zip(parts, means, stds, strict=True):
                if f"{name}/{whose}" in known:
                    figures |= {f"reward/{name}/{whose}": mean, f"reward/{name}/{whose}_std": std}
        figures |= self._own_metrics(batch)
        if a.discriminator_weight:
            written = batch.text_embeds[: len(rollouts)].unflatten(0, (len(images), a.num_rollouts))
            figures |= self._update_discriminator(images, written, references)
        if self.scorer_trainer is not None:
            learned = self.scorer_trainer.update(cached, rollouts)
            figures |= {f"scorer/{name}": value for name, value in learned.items()}
        ids = [str(image_id) for image_id in batch.columns["image_id"]]
        advantages = advantages.flatten()
        return Appraisal(advantages, weights, figures, parts, where, batch.captions, ids, batch.extras)

    def teach_discriminator(self, inputs: dict[str, Any], rollouts: list[str]) -> dict[str, Tensor]:
        """Update the discriminator once on rollouts without computing rewards, and return figures to log."""
        if self.scorer_trainer is not None:
            inputs = self.scorer_trainer.refreshed(inputs)
        images = inputs["image_embeds"]
        written = self.scorer.encode_texts(rollouts).to(images).unflatten(0, (len(images), self.args.num_rollouts))
        return self._update_discriminator(images, written, inputs["caption_embeds"])

    def _update_discriminator(self, images: Tensor, rollouts: Tensor, references: Tensor) -> dict[str, Tensor]:
        """Update once on equally many rollouts ``(B, K, d)`` and references ``(B, G, d)``, to balance the classes."""
        each = min(rollouts.shape[1], references.shape[1])
        rows = images.repeat_interleave(each, dim=0)
        found = self.discriminator.update(
            rows, rollouts[:, :each].flatten(0, 1), rows, references[:, :each].flatten(0, 1)
        )
        return {f"discriminator/{name}": value for name, value in found.items()}

    def _rewards(self, batch: RewardBatch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute all rewards, the discriminator's score if used, and ``total``; and where each applies: ``(N,)``.

        The total applies where at least one reward applies, not counting the discriminator. Masks are on the CPU.
        """
        weight = self.args.discriminator_weight
        scores = self.discriminator.discriminator.score(batch.image_embeds, batch.text_embeds)
        parts = {"discriminator": scores} if weight else {}
        applies = {"discriminator": torch.ones(len(batch), dtype=torch.bool)} if weight else {}
        total, scored = weight * scores, torch.zeros(len(batch), dtype=torch.bool)
        # a user's reward may fail on an empty batch
        found = evaluate_rewards(self.rewards, batch) if len(batch) else [(scores, scored)] * len(self.rewards)
        for reward, share, (values, where) in zip(self.rewards, self.reward_weights, found, strict=True):
            parts[reward.name], applies[reward.name] = values.to(scores), where
            total = total + (1 - weight) * share * parts[reward.name]
            scored = scored | applies[reward.name]
        return parts | {"total": total}, applies | {"total": scored}

    def _known(self, where: dict[str, tuple[Tensor, ...]]) -> set[str]:
        """Return the names of figures that have a value, as ``NAME/rollouts``: a reward may apply to no caption.

        Everything here is on the CPU, so that no step waits for a GPU.
        """
        known = {
            f"{name}/{whose}": bool(part.any())
            for name, parts in where.items()
            for whose, part in zip(REWARDED, parts, strict=False)
        }
        if not any(isinstance(reward, CallableReward) for reward in self.rewards):  # built-in ones apply everywhere
            return set(known)
        return {name for theirs in gather_object([known]) for name, anywhere in theirs.items() if anywhere}

    def _own_metrics(self, batch: RewardBatch) -> dict[str, Tensor]:
        """Average what rewards logged over processes, which may have logged different names."""
        if not any(isinstance(reward, CallableReward) and reward.takes("log_metric") for reward in self.rewards):
            return {}
        everyone = gather_object([batch.metrics])
        names = {name for metrics in everyone for name in metrics}
        values = {name: [value for metrics in everyone for value in metrics.get(name, [])] for name in sorted(names)}
        device = batch.text_embeds.device
        return {f"reward/{name}": torch.tensor(found, device=device).mean() for name, found in values.items()}

    # --------------------------------------------------------------------------------------------- batch and pools

    def _batch(
        self, inputs: dict[str, Any], rollouts: list[str], greedy: list[str]
    ) -> tuple[RewardBatch, Tensor]:
        """Build a batch of rollouts, references and greedy captions, in this order, with the pools.

        Also return which rollouts are longer than the scorer reads, on the CPU.
        """
        images, references = inputs["image_embeds"], inputs["caption_embeds"]
        written, cut = self.scorer.encode_captions([*rollouts, *greedy])  # those of references come from the cache
        written, cut = written.to(images), cut[: len(rollouts)]

        def sent(numbers: Any) -> Tensor:
            return torch.as_tensor(numbers, dtype=torch.int64).to(images.device, non_blocking=True)

        per_image = {
            TextKind.ROLLOUT: self.args.num_rollouts,
            TextKind.REFERENCE: references.shape[1],
            TextKind.GREEDY: 1 if greedy else 0,
        }
        places = torch.arange(len(images))
        owner = torch.cat([places.repeat_interleave(count) for count in per_image.values()])  # on the CPU, for lists
        owner_sent = sent(owner)
        texts = [*rollouts, *(text for row in inputs["captions"] for text in row), *greedy]
        own = {
            "text_embeds": torch.cat([written[: len(rollouts)], references.flatten(0, 1), written[len(rollouts) :]]),
            "text_ids": sent([stable_hash(text) for text in texts]),
            "text_image_ids": inputs["image_ids"][owner_sent],
            "kinds": sent([int(kind) for kind, count in per_image.items() for _ in range(count * len(images))]),
        }
        text_pool, image_pool = self.pools.extend(self._entries(own, inputs))
        batch = RewardBatch(
            captions=texts,
            references=[inputs["references"][i] for i in owner.tolist()],
            text_embeds=own["text_embeds"],
            image_embeds=images[owner_sent],
            text_ids=own["text_ids"],
            image_ids=own["text_image_ids"],
            text_pool=text_pool,
            image_pool=image_pool,
            logit_scale=self.scorer.logit_scale,
            columns={name: [values[i] for i in owner.tolist()] for name, values in inputs["columns"].items()},
        )
        return batch, cut

    def _token_ids(self, texts: list[str], labels: Tensor | None) -> list[list[int]]:
        """Return the tokens of each text: of the first ones as generated, of the others with an end token."""
        tokenizer: Any = self.tokenizer
        generated = [] if labels is None else labels.tolist()
        written = [[token for token in row if token != losses.IGNORED_LABEL] for row in generated]
        texts = texts[len(written) :]
        if not texts:
            return written
        # verbose=False: references may be longer than the captioner's maximum, and the tokenizer would warn about them
        found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [*written, *([*ids, tokenizer.eos_token_id] for ids in found)]

    def _entries(self, texts: dict[str, Tensor], inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Return what the batch adds to the pools, see [`Pools`]: texts, images and neighbours of all processes."""
        parts = {**texts, "image_embeds": inputs["image_embeds"], "image_ids": inputs["image_ids"]}
        if self.args.pool_neighbours:
            mask = inputs["neighbour_mask"]
            parts["image_embeds"] = torch.cat([parts["image_embeds"], inputs["neighbour_embeds"][mask]])
            parts["image_ids"] = torch.cat([parts["image_ids"], inputs["neighbour_ids"][mask]])
        if self.args.pool_other_processes:
            parts = {name: gather_rows(part, self.accelerator) for name, part in parts.items()}
        return parts

    # -------------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return discriminator, memory and trained scorer, loadable with ``weights_only=True``."""
        state = {"discriminator": self.discriminator.state_dict(), "memory": self.pools.state_dict()}
        return state if self.scorer_trainer is None else state | {"scorer": self.scorer_trainer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state that `state_dict` returned."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.pools.load_state_dict(state["memory"], self.args.device)
        if self.scorer_trainer is not None and "scorer" in state:
            self.scorer_trainer.load_state_dict(state["scorer"])


def _on_device_of(values: Tensor, where: Tensor) -> Tensor:
    """Move a bool tensor from the CPU to the device of ``values``; nothing is copied if it is all True."""
    return torch.ones_like(values, dtype=torch.bool) if where.all() else where.to(values.device)


def _advantages(
    rewards: Tensor, scored: Tensor, baseline: losses.Baseline, greedy: tuple[Tensor, Tensor] | None
) -> Tensor:
    """Return the advantages of rollouts, (B, K); 0 where no reward applies to a rollout or to its greedy caption.

    In the baseline of others, such a rollout counts as the mean of the scored rollouts of its image.
    """
    means = (rewards * scored).sum(dim=1, keepdim=True) / scored.sum(dim=1, keepdim=True).clamp(min=1)
    of_greedy = None
    if greedy is not None:
        of_greedy, greedy_scored = greedy
        scored = scored & greedy_scored[:, None]
    return losses.advantages(torch.where(scored, rewards, means), baseline, of_greedy) * scored
