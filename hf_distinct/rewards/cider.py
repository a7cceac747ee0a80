"""CIDEr-D as a reward: self-critical sequence training (arXiv 1612.00563)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hf_distinct.evaluation.captions import CiderD
from hf_distinct.rewards.base import RewardBatch


class CiderReward:
    """CIDEr-D (arXiv 1411.5726) of each caption against the references of its image.

    It is no advantage: use it with the greedy baseline for self-critical sequence training. Embeddings play no part.
    A ground-truth caption is scored against all references of its image, itself among them.

    Unlike the metric that evaluations report, the reward counts the end of a caption as a word, in captions,
    references and document frequencies alike. Without it a captioner learns to stop at "with a", which CIDEr-D does
    not punish (self-critical sequence training, appendix E). So the value differs a little from the metric. Every
    caption is taken to end, also one that was cut at ``max_new_tokens``. In Chinese, Japanese and other scripts
    without spaces each character is a word.

    Args:
        references_corpus: for each training image all its references. How rare an n-gram is, is counted here, once:
            counted in each batch anew, one caption would get another reward in another batch.
    """

    name = "cider"
    is_advantage = False

    def __init__(self, references_corpus: Sequence[list[str]]) -> None:
        self._cider = CiderD(list(references_corpus), end_token=True)

    def __call__(self, batch: RewardBatch) -> Tensor:
        """Reward each caption: (N,) float32, 1.0 for what is reported as "CIDEr 100"."""
        scores = [
            self._cider.score(caption, references)
            for caption, references in zip(batch.captions, batch.references, strict=True)
        ]
        return torch.tensor(scores, dtype=torch.float32, device=batch.text_embeds.device)
