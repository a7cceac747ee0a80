"""Weights that ZeRO-3 splits among processes, made whole while a captioner writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.accelerator import Accelerator
from transformers import VisionEncoderDecoderModel

from hf_distinct.captioner import captioner_in


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Inside, the weights that ZeRO-3 has split among processes are whole; without it nothing happens."""
    split = [weight for weight in model.parameters() if hasattr(weight, "ds_id")]
    if not split:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(split):
        yield


@contextmanager
def generation_ready(model: Any, accelerator: Accelerator) -> Iterator[VisionEncoderDecoderModel]:
    """The captioner, unwrapped and whole, for as long as it generates.

    Under ZeRO-3 every process holds a slice of each weight, from the moment on at which the captioner is loaded. They
    are gathered once for the whole of the generation, and the engine's hooks, which would gather them again for each
    token, are off meanwhile; before training there is no engine yet. Processes may then write captions of different
    lengths and number: ``generate(synced_gpus=False)``.
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
