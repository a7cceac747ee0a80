"""Families of captioners: for each class of transformers, where its parts are, and how it writes and scores captions.

To support another class, write a subclass of `Family` and add it to `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    BlipForConditionalGeneration,
    GitForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    VisionEncoderDecoderModel,
)
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling


class Family:
    """A captioner, seen as its parts.

    Images are encoded to hidden states ``(B, S, H)``. Captions are tokens that follow a start token.

    Args:
        model: the captioner, without wrappers; adapters may be in its layers.

    Attributes:
        kind: class of the model.
        decoder_name: where `decoder` is, in Python.
        token_names: for each special token, its name in the configs that decide it (`token_configs`).
    """

    kind: ClassVar[type[PreTrainedModel]]
    decoder_name: ClassVar[str]
    token_names: ClassVar[dict[str, str]]

    def __init__(self, model: Any) -> None:
        self.model = model

    @property
    def encoder(self) -> Any:
        """Module that encodes images."""
        raise NotImplementedError

    @property
    def decoder(self) -> Any:
        """Module that has the embeddings of tokens and the output head; it can resize them."""
        raise NotImplementedError

    @property
    def writer(self) -> Any:
        """Module whose ``generate`` writes, and whose generation config fills in what its arguments leave open."""
        return self.model

    @property
    def text_config(self) -> tuple[str, PretrainedConfig]:
        """Config that has ``vocab_size``, and where to find it, such as ``model.config.decoder``."""
        raise NotImplementedError

    @property
    def image_config(self) -> tuple[str, PretrainedConfig]:
        """Config whose ``hidden_size`` is the H that the decoder is built for, and where to find it."""
        raise NotImplementedError

    @property
    def token_configs(self) -> dict[str, Any]:
        """Configs that decide the special tokens, by their name in Python; the first that sets a token counts."""
        return {"model.generation_config": self.model.generation_config, "model.config": self.model.config}

    def token_ids(self, name: str) -> list[int]:
        """Return the ids of a special token; none if the configs do not set it.

        Args:
            name: ``decoder_start_token_id``, ``eos_token_id`` or ``pad_token_id``.
        """
        values = [getattr(config, self.token_names[name], None) for config in self.token_configs.values()]
        value: Any = next((value for value in values if value is not None), [])
        return [int(token) for token in (value if isinstance(value, (list, tuple)) else [value])]

    def token_places(self, name: str) -> str:
        """Return where a special token is set, in Python and in words; `name` as for `token_ids`."""
        return " and ".join(f"{config}.{self.token_names[name]}" for config in reversed(self.token_configs))

    def write(self, pixel_values: Tensor, **how: Any) -> Tensor:
        """Write captions as ``pipeline("image-to-text")`` does.

        Args:
            pixel_values: ``(B, 3, H, W)``.
            how: arguments of ``generate``; they override the model's generation config.

        Returns:
            Tokens ``(N, 1 + L)``, starting with the start token.
        """
        return self.model.generate(pixel_values=pixel_values, **how)

    def generate(self, hidden: Tensor, **how: Any) -> Tensor:
        """Write captions of encoded images ``(B, S, H)``, without calling the encoder; otherwise like `write`."""
        raise NotImplementedError

    def logits(self, wrapped: Any, hidden: Tensor, inputs: Tensor, **settings: Any) -> Tensor:
        """Compute the logits of the token that follows each input token, in one pass of the decoder.

        Args:
            wrapped: the captioner, in the wrappers through which gradients are computed.
            hidden: encoded images ``(N, S, H)``, one row per caption.
            inputs: tokens ``(N, L)``, starting with the start token.
            settings: further arguments of the model.

        Returns:
            ``(N, L, V)``.
        """
        raise NotImplementedError

    def no_image(self, rows: int) -> Tensor:
        """Return what stands for a missing image: zeros ``(rows, 1, H)``.

        One zero vector has the effect of S of them: weights of cross-attention sum to one, so the number of equal
        vectors does not matter.
        """
        _, config = self.image_config
        return torch.zeros(rows, 1, config.hidden_size, dtype=self.model.dtype, device=self.model.device)


class VisionEncoderDecoderFamily(Family):
    """``VisionEncoderDecoderModel``: an image encoder and a language model with cross-attention, such as ViT-GPT2."""

    kind = VisionEncoderDecoderModel
    decoder_name = "model.decoder"
    token_names = {name: name for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}

    @property
    def encoder(self) -> Any:
        """See the parent."""
        return self.model.encoder

    @property
    def decoder(self) -> Any:
        """See the parent."""
        return self.model.decoder

    @property
    def text_config(self) -> tuple[str, PretrainedConfig]:
        """See the parent."""
        return "model.config.decoder", self.model.config.decoder

    @property
    def image_config(self) -> tuple[str, PretrainedConfig]:
        """See the parent."""
        return "model.config.encoder", self.model.config.encoder

    def generate(self, hidden: Tensor, **how: Any) -> Tensor:
        """See the parent."""
        return self.model.generate(encoder_outputs=encoder_outputs(hidden), **how)

    def logits(self, wrapped: Any, hidden: Tensor, inputs: Tensor, **settings: Any) -> Tensor:
        """See the parent."""
        return wrapped(
            encoder_outputs=encoder_outputs(hidden),
            decoder_input_ids=inputs,
            decoder_attention_mask=torch.ones_like(inputs),  # otherwise it would build a mask for packed sequences
            use_cache=False,
            **settings,
        ).logits


class PixelFamily(Family):
    """Families that accept pixels and nothing else; their encoder is bypassed for images that are encoded already."""

    def generate(self, hidden: Tensor, **how: Any) -> Tensor:
        """See the parent."""
        with _encoded_already(self.encoder):
            return self.write(hidden.unsqueeze(1), **how)

    def logits(self, wrapped: Any, hidden: Tensor, inputs: Tensor, **settings: Any) -> Tensor:
        """See the parent."""
        with _encoded_already(self.encoder):
            return wrapped(
                pixel_values=hidden.unsqueeze(1), input_ids=inputs, attention_mask=torch.ones_like(inputs),
                use_cache=False, **settings,
            ).logits  # fmt: skip


class BlipFamily(PixelFamily):
    """``BlipForConditionalGeneration``: a vision transformer and a BERT with cross-attention.

    Its ``generate`` takes the special tokens from the config of the text decoder, whatever the generation config says.
    It takes all else from the text decoder's generation config, which is not saved, unless it is given one.
    """

    kind = BlipForConditionalGeneration
    decoder_name = "model.text_decoder"
    token_names = {
        "decoder_start_token_id": "bos_token_id", "eos_token_id": "sep_token_id", "pad_token_id": "pad_token_id"
    }  # fmt: skip

    @property
    def encoder(self) -> Any:
        """See the parent."""
        return self.model.vision_model

    @property
    def decoder(self) -> Any:
        """See the parent."""
        return self.model.text_decoder

    @property
    def writer(self) -> Any:
        """See the parent."""
        return self.model.text_decoder

    @property
    def text_config(self) -> tuple[str, PretrainedConfig]:
        """See the parent."""
        return "model.config.text_config", self.model.config.text_config

    @property
    def image_config(self) -> tuple[str, PretrainedConfig]:
        """See the parent."""
        return "model.config.vision_config", self.model.config.vision_config

    @property
    def token_configs(self) -> dict[str, Any]:
        """See the parent."""
        return dict([self.text_config])

    def write(self, pixel_values: Tensor, **how: Any) -> Tensor:
        """See the parent."""
        return super().write(pixel_values, **{"generation_config": self.model.generation_config, **how})


class GitFamily(PixelFamily):
    """``GitForCausalLM``: a vision transformer whose output is a prefix that all tokens of a caption attend to."""

    kind = GitForCausalLM
    decoder_name = "model"
    token_names = {
        "decoder_start_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "pad_token_id"
    }  # fmt: skip

    @property
    def encoder(self) -> Any:
        """See the parent."""
        return self.model.git.image_encoder

    @property
    def decoder(self) -> Any:
        """See the parent."""
        return self.model

    @property
    def text_config(self) -> tuple[str, PretrainedConfig]:
        """See the parent."""
        return "model.config", self.model.config

    @property
    def image_config(self) -> tuple[str, PretrainedConfig]:
        """See the parent."""
        return "model.config.vision_config", self.model.config.vision_config

    def logits(self, wrapped: Any, hidden: Tensor, inputs: Tensor, **settings: Any) -> Tensor:
        """See the parent. The model's own logits begin with those of the image's positions."""
        return super().logits(wrapped, hidden, inputs, **settings)[:, hidden.shape[1] :]

    def no_image(self, rows: int) -> Tensor:
        """Return zeros ``(rows, S, H)``: tokens share their attention between image and text, so S matters."""
        _, config = self.image_config
        positions = (config.image_size // config.patch_size) ** 2 + 1
        return super().no_image(rows).expand(-1, positions, -1)


FAMILIES: dict[str, type[Family]] = {
    "vision-encoder-decoder": VisionEncoderDecoderFamily,
    "blip": BlipFamily,
    "git": GitFamily,
}
"""Families by the ``model_type`` of their configs."""
CAPTIONERS = tuple(family.kind for family in FAMILIES.values())
NAMES = " or ".join(kind.__name__ for kind in CAPTIONERS)


def without_adapters(model: Any) -> Any:
    """Return the base model of a peft model, and any other model unchanged."""
    # Like isinstance(model, peft.PeftModel), without importing peft.
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def family_of(model: Any) -> Family:
    """Return a captioner, one of `CAPTIONERS` with or without adapters, as its `Family`."""
    bare = without_adapters(model)
    return next(family(bare) for family in FAMILIES.values() if isinstance(bare, family.kind))


class FlattenMaps:
    """Forward hook of an encoder: turns feature maps ``(B, H, h, w)``, as ConvNeXt gives them, into ``(B, h * w, H)``.

    A ``VisionEncoderDecoderModel`` by itself takes sequences of vectors only.

    Attributes:
        used: whether the encoder has given a map.
    """

    used = False

    def __call__(self, encoder: nn.Module, inputs: Any, outputs: Any) -> Any:
        """Flatten the output of a forward pass."""
        if outputs.last_hidden_state.dim() == 4:
            self.used = True
            return encoder_outputs(outputs.last_hidden_state.flatten(2).transpose(1, 2))
        return outputs


def accept_maps(model: Any) -> None:
    """Let the encoder of a ``VisionEncoderDecoderModel`` give feature maps; other models are left as they are."""
    bare = without_adapters(model)
    if isinstance(bare, VisionEncoderDecoderModel) and _flattening(bare) is None:
        bare.encoder.register_forward_hook(FlattenMaps())
        bare.encoder.register_forward_pre_hook(_without_attentions, with_kwargs=True)


def _without_attentions(encoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Drop ``output_attentions``, which `generate` passes to all encoders, if the encoder has no attention."""
    taken = signature(encoder.forward).parameters
    if "output_attentions" not in taken and "kwargs" not in taken:
        kwargs = {name: value for name, value in kwargs.items() if name != "output_attentions"}
    return args, kwargs


def gives_maps(model: Any) -> bool:
    """Whether the encoder of a captioner has given a feature map since [`accept_maps`] was called."""
    hook = _flattening(without_adapters(model))
    return hook is not None and hook.used


def _flattening(model: Any) -> FlattenMaps | None:
    hooks = family_of(model).encoder._forward_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, FlattenMaps)), None)


def encoder_outputs(hidden_states: Any) -> BaseModelOutput:
    """Wrap encoded images in the form that a ``VisionEncoderDecoderModel`` accepts instead of pixels."""
    return BaseModelOutput(last_hidden_state=hidden_states)


@contextmanager
def _encoded_already(encoder: nn.Module) -> Iterator[None]:
    """Let an encoder return what it gets, ``(N, 1, S, H)`` as ``(N, S, H)``.

    So a model that accepts nothing but pixels runs its decoder alone, with all wrappers of the model around it.
    """
    made: Any = encoder
    usual = vars(made).get("forward")

    def forward(pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(last_hidden_state=pixel_values.squeeze(1))  # type: ignore[arg-type]

    made.forward = forward
    try:
        yield
    finally:
        if usual is None:
            del made.forward
        else:
            made.forward = usual
