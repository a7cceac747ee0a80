"""Gather weights that ZeRO-3 partitions, while a captioner generates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.accelerator import Accelerator
from transformers import PreTrainedModel

from hf_distinct.captioner import captioner_in


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Gather the weights that ZeRO-3 has partitioned; without ZeRO-3, do nothing."""
    split = [weight for weight in model.parameters() if hasattr(weight, "ds_id")]
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(split):
        yield


@contextmanager
def generation_ready(model: Any, accelerator: Accelerator) -> Iterator[PreTrainedModel]:
    """Yield the captioner, unwrapped and with whole weights, ready to generate.

    Under ZeRO-3 every process holds a partition of each weight, from loading on. Weights are gathered once for the
    whole generation. Meanwhile the engine's hooks, which would gather them again for each token, are removed; before
    training there is no engine yet. Processes may write captions of different lengths and numbers:
    ``generate(synced_gpus=False)``.
    """
    captioner = captioner_in(model, accelerator)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        yield captioner
        return
    with gathered(captioner):
        if not hasattr(model, "module"):
            yield captioner
            return
        offload = model.optimizer.parameter_offload
        for hook in [*offload.forward_hooks, *offload.backward_hooks]:
            hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield captioner
        finally:
            offload._register_deepspeed_module(offload.module)
