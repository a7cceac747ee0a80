"""The rewards of this package as reward functions of TRL, whose trainers train any vision-language model."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from hf_distinct.data.hashing import stable_hash
from hf_distinct.data.images import decode_image
from hf_distinct.discriminator import Discriminator, DiscriminatorTrainer
from hf_distinct.distributed.gathering import gather_rows
from hf_distinct.rewards.base import Reward, RewardBatch, TextKind
from hf_distinct.rewards.pools import Pools
from hf_distinct.rewards.resolve import resolve_reward
from hf_distinct.scorer import ClipScorer, as_scorer

logger = logging.get_logger(__name__)

KEPT_IMAGES = 50_000
"""Number of images whose embeddings are kept, those used last: 100 MB with embeddings of 512 numbers."""


class DistinctivenessReward(TrainerCallback):
    """Reward function of TRL: how well a frozen CLIP tells the image of a completion from other images by it.

        R(c) = (1 - lambda) r(c) + lambda D(c)

    By default r is the bidirectional contrastive reward of arXiv 2402.13936, see [`ContrastiveReward`]. Its pools are
    the completions and images of a step and the reference captions of these images, of all processes, and those of the
    last `memory_batches` steps. The rewards of captions are the same as in [`RLCaptionTrainer`].

    The dataset needs a column ``image``, or ``images`` with one image per row. Embeddings of images are kept. For a
    row without an image the reward is None: it does not apply. A completion is a text or a list of messages, see
    [`caption_of`].

    If you use `memory_batches` or `discriminator_weight`, add the object to the trainer's ``callbacks`` too. It then
    learns in training steps only, not in evaluations, and saves its state in each checkpoint.

    Weighted teacher forcing, the other term of the paper's loss, has no place here: a reward function only sees
    completions, and TRL's loss has no term for reference captions. [`RLCaptionTrainer`] has it.

    Args:
        scorer: the frozen CLIP: a [`ClipScorer`], or the name that it is made from.
        references: column with the reference captions of each image, a list of texts or a single text. All of them
            enter the pool. None: no reference captions.
        reward: r: the name of a built-in reward such as ``"contrastive_t2i"``, or an object of the protocol
            [`Reward`], such as ``ContrastiveReward(clamp=2.0)`` or ``CiderReward(dataset["captions"])``.
        memory_batches: number of earlier steps whose texts and images stay in the pools.
        discriminator_weight: lambda, between 0 and 1; 0.06 in the paper's code. D(c) is the probability that a person
            wrote c, by a [`Discriminator`] that trains on the completions and references of each step.
        discriminator_lr: learning rate of the discriminator.

    Raises:
        ValueError: at creation: a setting is not possible, or the scorer or the reward cannot be loaded. When called:
            a column is missing or contains something else, an image cannot be decoded, or the object is not in the
            trainer's ``callbacks`` and has to be.

    Example:
        ```python
        reward = DistinctivenessReward("ViT-B-32:openai", memory_batches=8)
        trainer = GRPOTrainer(model, reward_funcs=reward, callbacks=[reward], train_dataset=dataset)
        ```
    """

    def __init__(
        self,
        scorer: ClipScorer | str,
        references: str | None = "captions",
        *,
        reward: str | Reward = "contrastive",
        memory_batches: int = 0,
        discriminator_weight: float = 0.0,
        discriminator_lr: float = 7e-5,
    ) -> None:
        if memory_batches < 0:
            raise ValueError(f"memory_batches={memory_batches} must be at least 0.")
        if not 0 <= discriminator_weight <= 1:
            raise ValueError(f"discriminator_weight={discriminator_weight} must lie between 0 and 1.")
        if discriminator_weight and references is None:
            raise ValueError("The discriminator learns from reference captions: set references to their column.")
        self.scorer = as_scorer(scorer)
        self.references = references
        self.reward = resolve_reward(reward)
        self.discriminator_weight = discriminator_weight
        self.discriminator = DiscriminatorTrainer(Discriminator(self.scorer.embed_dim), lr=discriminator_lr)
        compared = getattr(self.reward, "use_references", True)
        self.pools = Pools(memory_batches, [kind for kind in TextKind if compared or kind != TextKind.REFERENCE])
        self.__name__ = self.reward.name  # by which TRL logs it
        self._has_state = bool(memory_batches or discriminator_weight)
        self._is_callback, self._learns = False, True
        self._image_embeds: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self,
        completions: Sequence[Any],
        trainer_state: TrainerState | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Reward the N completions of this process. Every process must call it equally often.

        Args:
            completions: N texts or lists of messages.
            trainer_state: the trainer's.
            log_metric: called with ``cut_by_scorer``, the fraction of captions that the scorer truncates, and with
                the ``discriminator/loss`` and ``discriminator/accuracy``.
            columns: columns of the dataset, N values each, and the other arguments that TRL passes.

        Returns:
            N numbers, None where the reward does not apply.
        """
        if self._has_state and trainer_state is not None and not self._is_callback:
            raise ValueError(
                "DistinctivenessReward has a memory or a discriminator, which must be saved in checkpoints: add the "
                "object to the trainer's callbacks too, as in GRPOTrainer(reward_funcs=reward, callbacks=[reward])."
            )
        self._prepare()
        images = _images(columns)
        rows = [row for row, image in enumerate(images) if image is not None]
        captions = [caption_of(completions[row]) for row in rows]
        names = self._embedded([images[row] for row in rows])
        batch, cut = self._batch(captions, names, [self._references(columns, row) for row in rows])
        batch.trainer_state = trainer_state
        values, figures = self.reward(batch), {"cut_by_scorer": cut.float().mean()} if rows else {}
        if weight := self.discriminator_weight:
            scores = self.discriminator.discriminator.score(batch.image_embeds, batch.text_embeds)
            values = weight * scores + (1 - weight) * values
            if self._learns:
                found = self._update_discriminator(batch)
                figures |= {f"discriminator/{name}": value for name, value in found.items()}
        if log_metric is not None:
            for name, figure in figures.items():
                log_metric(name, float(figure))
        known = dict(zip(rows, values.tolist(), strict=True))
        return [known.get(row) for row in range(len(completions))]

    def _prepare(self) -> None:
        """Move the models to this process's device, and begin with the same discriminator in all processes."""
        device = PartialState().device
        self.scorer.to(device)
        self.discriminator.discriminator.to(device)
        if self.discriminator_weight and self.discriminator.steps == 0:
            self.discriminator.synchronize()

    # ------------------------------------------------------------------------------------------- from TRL's arguments

    def _references(self, columns: dict[str, Any], row: int) -> tuple[str, ...]:
        if self.references is None:
            return ()
        if self.references not in columns:
            raise ValueError(
                f"references={self.references!r} is not a column that the reward gets. Set it to the dataset's column "
                "of reference captions, or to None, and leave remove_unused_columns=False."
            )
        value = columns[self.references][row]
        texts = [value] if isinstance(value, str) else value or []
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"Column {self.references!r} should contain a list of reference captions in each row, not {value!r}."
            )
        return tuple(text for text in texts if text.strip())

    def _embedded(self, images: Sequence[Any]) -> list[str]:
        """Name images by their pixels, and embed those that are new."""
        names, pixels = [], {}
        for image in images:
            decoded = decode_image(image)
            content = repr(decoded.size).encode() + decoded.tobytes()
            name = hashlib.blake2b(content, digest_size=16).hexdigest()
            names.append(name)
            if name in self._image_embeds:
                self._image_embeds[name] = self._image_embeds.pop(name)  # moves it to the end
            else:
                pixels[name] = self.scorer.transform(decoded)
        if pixels:
            embeds = self.scorer.encode_images(torch.stack(list(pixels.values()))).cpu()
            self._image_embeds |= dict(zip(pixels, embeds, strict=True))
        while len(self._image_embeds) > max(KEPT_IMAGES, len(set(names))):
            del self._image_embeds[next(iter(self._image_embeds))]
        return names

    # ------------------------------------------------------------------------------------------------ batch and pools

    def _batch(
        self, captions: list[str], names: list[str], references: list[tuple[str, ...]]
    ) -> tuple[RewardBatch, Tensor]:
        """Build the batch of N captions of B images, with the pools; also return which captions are truncated.

        Args:
            captions: N captions.
            names: the name of the image of each.
            references: the reference captions in the row of each.
        """
        state = PartialState()

        def sent(numbers: Sequence[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.int64, device=state.device)

        # Rows of an image have the same references, or different ones in a dataset with a row for each caption.
        lists: dict[str, dict[tuple[str, ...], None]] = {}
        for name, row in zip(names, references, strict=True):
            lists.setdefault(name, {})[row] = None
        of_images = {name: [text for row in rows for text in row] for name, rows in lists.items()}
        owners = [*names, *(name for name, own in of_images.items() for _ in own)]
        texts = [*captions, *(text for own in of_images.values() for text in own)]
        kinds = [TextKind.ROLLOUT] * len(captions) + [TextKind.REFERENCE] * (len(texts) - len(captions))
        place = {name: index for index, name in enumerate(of_images)}
        owner, image_ids = sent([place[name] for name in owners]), sent([stable_hash(name) for name in of_images])
        embeds, cut = self.scorer.encode_captions(texts)
        image_embeds = embeds.new_empty(len(place), self.scorer.embed_dim)
        for name, row_of in place.items():
            image_embeds[row_of] = self._image_embeds[name]
        of_texts = {
            "text_embeds": embeds, "text_ids": sent([stable_hash(text) for text in texts]),
            "text_image_ids": image_ids[owner], "kinds": sent(kinds),
        }  # fmt: skip
        first = _first_to_have(image_ids, state)  # processes share an image if they share its completions
        kept = first[owner] | (of_texts["kinds"] == TextKind.ROLLOUT)
        entries = {name: part[kept] for name, part in of_texts.items()}
        entries |= {"image_embeds": image_embeds[first], "image_ids": image_ids[first]}
        entries = {name: gather_rows(part, state) for name, part in entries.items()}
        text_pool, image_pool = self.pools.extend(entries, remember=self._learns)
        n = len(captions)
        return RewardBatch(
            captions=captions,
            references=[of_images[name] for name in names],
            text_embeds=embeds[:n],
            image_embeds=image_embeds[owner[:n]],
            text_ids=of_texts["text_ids"][:n],
            image_ids=of_texts["text_image_ids"][:n],
            text_pool=text_pool,
            image_pool=image_pool,
            logit_scale=self.scorer.logit_scale,
        ), cut[:n]

    def _update_discriminator(self, batch: RewardBatch) -> dict[str, Tensor]:
        """Update once on equally many captions and references of each image, to balance the classes.

        References take turns if there are more of them; processes that share an image begin with different ones.
        """
        captions, references = defaultdict(list), defaultdict(list)
        for row, image in enumerate(batch.image_ids.tolist()):
            captions[image].append(row)
        pool = batch.text_pool
        for place, (image, kind) in enumerate(zip(pool.image_ids.tolist(), pool.kinds.tolist(), strict=True)):
            if kind == TextKind.REFERENCE:
                references[image].append(place)
        turn = self.discriminator.steps + PartialState().process_index
        pairs = []
        for image, own in captions.items():
            people = references[image]
            pairs += [(row, people[(turn + i) % len(people)]) for i, row in enumerate(own[: len(people)])]
        rows, places = torch.tensor(pairs, dtype=torch.int64, device=batch.text_embeds.device).view(-1, 2).T
        images = batch.image_embeds[rows]
        return self.discriminator.update(images, batch.text_embeds[rows], images, pool.embeds[places])

    # --------------------------------------------------------------------------------------------------- as a callback

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Know that a trainer says when it trains."""
        self._is_callback, self._learns = True, False

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Learn from here on."""
        self._learns = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Learn no more: what follows may be an evaluation."""
        self._learns = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Save the state, which is the same in all processes, into the checkpoint."""
        if self._has_state and state.is_world_process_zero:
            found = {"discriminator": self.discriminator.state_dict(), "memory": self.pools.state_dict()}
            torch.save(found, self._file(args, state))

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Load the state if a checkpoint is resumed."""
        if not self._has_state or not state.global_step:
            return
        file = self._file(args, state)
        if not file.is_file():
            logger.warning("%s is missing: the memory and the discriminator of the reward start from scratch.", file)
            return
        self._prepare()
        found = torch.load(file, map_location="cpu", weights_only=True)
        self.discriminator.load_state_dict(found["discriminator"])
        self.pools.load_state_dict(found["memory"], PartialState().device)

    def _file(self, args: TrainingArguments, state: TrainerState) -> Path:
        return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}" / f"{self.__name__}.pt"


def caption_of(completion: Any) -> str:
    r"""Return the caption in a completion of TRL: the text of its last message on one line, without thoughts.

    Args:
        completion: a text, or a list of messages whose content is a text or a list of parts.

    Returns:
        What follows the last ``</think>``, with single spaces; "" after a ``<think>`` without an end.

    Raises:
        ValueError: it has another form.

    Example:
        >>> caption_of([{"role": "assistant", "content": "<think>A dog?</think>\n\nA red dog."}])
        'A red dog.'
    """
    try:
        content = completion if isinstance(completion, str) else completion[-1]["content"] or ""
        text = content if isinstance(content, str) else " ".join(p["text"] for p in content if p["type"] == "text")
    except (TypeError, LookupError) as error:
        raise ValueError(f"a completion should be a text or a list of messages, not {completion!r}") from error
    return " ".join(text.rpartition("</think>")[2].partition("<think>")[0].split())


def _images(columns: dict[str, Any]) -> list[Any]:
    """Return the image of each row, None where there is none."""
    if "images" in columns:
        several = [images or [] for images in columns["images"]]
        for images in several:
            if len(images) > 1:
                raise ValueError(f"A row has {len(images)} images in column 'images'; a caption is about one.")
        return [images[0] if images else None for images in several]
    if "image" not in columns:
        raise ValueError("The reward needs the dataset's column 'image', or 'images' with one image per row.")
    return list(columns["image"])


def _first_to_have(image_ids: Tensor, state: PartialState) -> Tensor:
    """Return for which of its distinct images (B,) this process is the first one that has it: (B,) bool."""
    own = torch.stack([image_ids, torch.full_like(image_ids, state.process_index)], dim=1)
    everyone, ranks = gather_rows(own, state).unbind(dim=1)
    earlier = (image_ids[:, None] == everyone) & (ranks < state.process_index)
    return ~earlier.any(dim=1)
