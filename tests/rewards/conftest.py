"""A small world whose rewards can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from hf_distinct.rewards import ImagePool, RewardBatch, TextKind, TextPool

V1, V2 = (1.0, 0.0), (0.0, 1.0)
C1, G1, C2, G2 = (1.0, 0.0), (0.6, 0.8), (0.0, 1.0), (0.8, 0.6)
SCALE = 5 * math.log(2)
"""Makes exp(SCALE * x) = 32 ** x: 32, 16, 8, 1 for the cosines 1, 0.8, 0.6, 0."""


def _float64(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 2)


@pytest.fixture(scope="session")
def make_batch():
    """A function that builds a batch; by default c_1, c_2 among T = {c_1, g_1, c_2, g_2}, V = {v_1, v_2}."""

    def build(
        texts=((C1, 11, 1), (C2, 21, 2)),  # (embedding, text id, image id) of each caption
        images=(V1, V2),
        text_pool=(
            (C1, 11, 1, TextKind.ROLLOUT),
            (G1, 12, 1, TextKind.REFERENCE),
            (C2, 21, 2, TextKind.ROLLOUT),
            (G2, 22, 2, TextKind.REFERENCE),
        ),
        image_pool=((V1, 1), (V2, 2)),
        logit_scale=SCALE,
        captions=None,
        references=None,
        columns=None,
    ) -> RewardBatch:
        return RewardBatch(
            captions=captions or [f"caption {text_id}" for _, text_id, _ in texts],
            references=references or [[f"reference of {image_id}"] for *_, image_id in texts],
            text_embeds=_float64([embed for embed, *_ in texts]),
            image_embeds=_float64(images),
            text_ids=torch.tensor([text_id for _, text_id, _ in texts]),
            image_ids=torch.tensor([image_id for *_, image_id in texts]),
            text_pool=TextPool(
                embeds=_float64([entry[0] for entry in text_pool]),
                text_ids=torch.tensor([entry[1] for entry in text_pool], dtype=torch.int64),
                image_ids=torch.tensor([entry[2] for entry in text_pool], dtype=torch.int64),
                kinds=torch.tensor([int(entry[3]) for entry in text_pool], dtype=torch.int64),
            ),
            image_pool=ImagePool(
                embeds=_float64([entry[0] for entry in image_pool]),
                image_ids=torch.tensor([entry[1] for entry in image_pool], dtype=torch.int64),
            ),
            logit_scale=logit_scale,
            columns=columns or {},
        )

    return build
