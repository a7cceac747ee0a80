"""The bidirectional contrastive reward of arXiv 2402.13936."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_distinct.rewards.base import RewardBatch, TextKind

Direction = Literal["both", "i2t", "t2i"]
BLOCK = 1 << 22
"""Number of similarities that are computed at a time (16 MiB in float32): all of those of a small batch.

The pool grows with the batch, the number of processes and the memory. If every caption were compared with all of it at
once, the memory of a step would grow with the square of the batch.
"""


class ContrastiveReward:
    r"""Log-odds of a caption and its image against all alternatives: high if they identify each other.

    With L(t, v) = s <t, v>, s the logit scale of CLIP and tau = 1 / s, for a caption c of image i:

        r_i2t(c) = tau * [L(c, v_i) - logsumexp of L(t, v_i) over the texts t of the pool other than c]
        r_t2i(c) = tau * [L(c, v_i) - logsumexp of L(c, v)  over the images v of the pool other than v_i]
        r_con(c) = (r_i2t(c) + r_t2i(c)) / 2

    The positive is not part of its own log-sum-exp, so the value is an advantage and needs no baseline. References get
    the same reward. Two things are never compared with a caption: a text that is the same string, whatever its image,
    and an image with the same id. A direction with no alternatives is 0.

    The images of the pool (mined ones, other processes' ones, remembered ones) are chosen where the pool is built; the
    arguments below choose among its texts. A remembered text ([`TextKind`] MEMORY) is treated as a rollout:
    ``use_own_rollouts`` applies to those of the same image, ``use_other_captions`` to those of other images.

    Args:
        direction: ``"i2t"`` or ``"t2i"`` for a single direction, ``"both"`` for the mean of the two.
        clamp: upper bound of each direction's log-odds, before tau. Above it, a caption gains nothing more.
        use_references: compare with references (of any image).
        use_greedy: compare with greedy captions (of any image).
        use_own_rollouts: compare with the other rollouts of the same image, including remembered ones.
        use_other_captions: compare with captions of other images, of any kind.

    Raises:
        ValueError: on an unknown direction or a clamp that is not positive.

    Example: s = 5 ln 2, v_1 = (1, 0), c_1 = (1, 0) against the texts (.6, .8), (0, 1), (.8, .6) and the image (0, 1):
    r_i2t = tau ln(32 / (8 + 1 + 16)), r_t2i = tau ln(32 / 1).
    """

    is_advantage = True

    def __init__(
        self,
        direction: Direction = "both",
        clamp: float = 16.0,
        use_references: bool = True,
        use_greedy: bool = True,
        use_own_rollouts: bool = True,
        use_other_captions: bool = True,
    ) -> None:
        if direction not in get_args(Direction):
            raise ValueError(f"direction={direction!r} is unknown; choose one of {', '.join(get_args(Direction))}")
        if not clamp > 0:
            raise ValueError(f"clamp must be positive, got {clamp}; use float('inf') for no clamp")
        self.name = "contrastive" if direction == "both" else f"contrastive_{direction}"
        self.direction = direction
        self.clamp = clamp
        self.use_references = use_references
        self.use_greedy = use_greedy
        self.use_own_rollouts = use_own_rollouts
        self.use_other_captions = use_other_captions

    @torch.no_grad()
    def __call__(self, batch: RewardBatch) -> Tensor:
        """Reward each caption: (N,), in units of cosine similarity, at most ``clamp / logit_scale``."""
        # Autocast would round the products to half precision, which matters at s = 100.
        with torch.autocast(batch.text_embeds.device.type, enabled=False):
            texts, images = _precise(batch.text_embeds), _precise(batch.image_embeds)
            positives = batch.logit_scale * (texts * images).sum(dim=-1)
            directions = []
            if self.direction != "t2i":
                scaled, pool = batch.logit_scale * images, _precise(batch.text_pool.embeds)
                directions.append(_log_odds(positives, scaled, pool, lambda rows: self.text_mask(batch, rows)))
            if self.direction != "i2t":
                scaled, pool = batch.logit_scale * texts, _precise(batch.image_pool.embeds)
                directions.append(_log_odds(positives, scaled, pool, lambda rows: self.image_mask(batch, rows)))
        return torch.stack(directions).clamp(max=self.clamp).mean(dim=0) / batch.logit_scale

    def text_mask(self, batch: RewardBatch, rows: slice = slice(None)) -> Tensor:
        """Return which texts of the pool each caption (of some rows) is compared with: (N, P), True = compared."""
        pool = batch.text_pool
        same_image = batch.image_ids[rows].unsqueeze(1) == pool.image_ids
        mask = batch.text_ids[rows].unsqueeze(1) != pool.text_ids
        if not self.use_references:
            mask &= pool.kinds != TextKind.REFERENCE
        if not self.use_greedy:
            mask &= pool.kinds != TextKind.GREEDY
        if not self.use_own_rollouts:
            # The original kind of a remembered text is unknown; those of the same image are mostly earlier rollouts.
            mask &= ~(same_image & ((pool.kinds == TextKind.ROLLOUT) | (pool.kinds == TextKind.MEMORY)))
        if not self.use_other_captions:
            mask &= same_image
        return mask

    def image_mask(self, batch: RewardBatch, rows: slice = slice(None)) -> Tensor:
        """Return which images of the pool each caption (of some rows) is compared with: (N, Q), True = compared."""
        return batch.image_ids[rows].unsqueeze(1) != batch.image_pool.image_ids


def _log_odds(positives: Tensor, scaled: Tensor, pool: Tensor, mask: Callable[[slice], Tensor]) -> Tensor:
    """`contrastive_log_odds` of similarities ``scaled @ pool.T``, `BLOCK` of them at a time; one row at the least."""
    count = max(1, BLOCK // max(1, len(pool)))
    blocks = [slice(start, start + count) for start in range(0, max(1, len(scaled)), count)]
    return torch.cat([contrastive_log_odds(positives[rows], scaled[rows] @ pool.T, mask(rows)) for rows in blocks])


def contrastive_log_odds(positives: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
    """``positive - logsumexp(logits where mask)``, row by row.

    Ignored entries are masked before the exponential. Subtracting them afterwards, ``log(sum(exp) - exp)``, would
    cancel at s = 100.

    Args:
        positives: (N,) scaled similarity of each caption and its image.
        logits: (N, P) scaled similarities to the pool; P may be 0.
        mask: (N, P) bool, True = included.

    Returns:
        (N,) log-odds, at least float32; 0 for a row with nothing to compare with.
    """
    alternatives = _precise(logits).masked_fill(~mask, float("-inf")).logsumexp(dim=1)
    return torch.where(mask.any(dim=1), _precise(positives) - alternatives, 0.0)


def _precise(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
