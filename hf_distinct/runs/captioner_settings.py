"""CaptionerSettings: which captioner a recipe trains by teacher forcing, loaded or built anew."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from hf_distinct.families import FAMILIES
from hf_distinct.runs.arguments import too_small, unused_settings
from hf_distinct.runs.dataset_settings import CAPTIONER_FORMS, DatasetSettings

HEAD_WIDTH = 32  # of a new decoder's attention
DEFAULT_LENGTH = 24
OF_PARTS = "vision-encoder-decoder"  # the type of captioners whose encoder and decoder may be any model
OF_NEW_DECODER = ("decoder_layers", "decoder_width", "decoder_dropout", "tokenizer", "min_word_count")
LEAST = {"decoder_layers": 1, "decoder_width": 1, "min_word_count": 1, "max_caption_length": 2}


@dataclass
class CaptionerSettings(DatasetSettings):
    """Which captioner to train; the settings of a recipe inherit from it."""

    model_type: str = field(
        default=OF_PARTS,
        metadata={
            "help": "Kind of captioner to build: vision-encoder-decoder takes any encoder and decoder; blip and git "
            "are built anew as a whole.",
            "choices": list(FAMILIES),
        },
    )
    encoder: str | None = field(
        default=None, metadata={"help": "Pretrained image encoder: a folder or a Hub id. Default: a small new one."}
    )
    decoder: str | None = field(
        default=None, metadata={"help": "Pretrained language model: a folder or a Hub id. Default: a small new GPT-2."}
    )
    encoder_config: str | None = field(
        default=None,
        metadata={
            "help": "Configuration of a new encoder: transformers' as JSON. Default: that of a small SegFormer, or of "
            "a small vision transformer for other kinds of captioners."
        },
    )
    decoder_layers: int = field(default=2, metadata={"help": "Number of layers of a new decoder."})
    decoder_width: int = field(
        default=128, metadata={"help": f"Hidden size of a new decoder, a multiple of {HEAD_WIDTH}."}
    )
    decoder_dropout: float = field(default=0.0, metadata={"help": "Dropout of a new decoder."})
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained tokenizer of a new decoder: a folder or a Hub id. Default: a new one that has the "
            "words of the training captions."
        },
    )
    min_word_count: int = field(
        default=1, metadata={"help": "Number of times that a word must occur to be in a new decoder's vocabulary."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": f"Captioner to train further: {CAPTIONER_FORMS}. Default: one of --encoder and --decoder."},
    )
    freeze_encoder: bool = field(
        default=False, metadata={"help": "Train only the decoder; the encoder keeps its weights and uses no dropout."}
    )
    max_caption_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of tokens of a caption, with the end token. Default: that of "
            f"--model_name_or_path, or {DEFAULT_LENGTH} if the decoder has as many positions."
        },
    )

    def problems(self) -> Iterator[str]:
        """A sentence for each setting that is not possible, or that has no effect with the others."""
        if self.model_name_or_path is not None:
            parts = ("model_type", "encoder", "decoder", "encoder_config", *OF_NEW_DECODER)
            yield from unused_settings(self, parts, "with --model_name_or_path, which has an encoder and a decoder")
        elif self.model_type != OF_PARTS:
            why = f"with --model_type {self.model_type}, which is built anew as a whole"
            yield from unused_settings(self, ("encoder", "decoder"), why)
        else:
            if self.encoder is not None:
                yield from unused_settings(self, ("encoder_config",), "with --encoder: it is for a new encoder")
            if self.decoder is not None:
                yield from unused_settings(self, OF_NEW_DECODER, "with --decoder: it is for a new decoder")
        if self.tokenizer is not None:
            yield from unused_settings(self, ("min_word_count",), "with --tokenizer, which brings its vocabulary")
        if not 0 <= self.decoder_dropout < 1:
            yield f"decoder_dropout={self.decoder_dropout} must be a fraction from 0 to less than 1."
        yield from too_small(self, **LEAST)
        if self.decoder_width % HEAD_WIDTH:
            yield f"decoder_width={self.decoder_width} must be a multiple of {HEAD_WIDTH}."

    @property
    def pretrained(self) -> bool:
        """Whether any part of the captioner has been trained before."""
        return not self.encoder is self.decoder is self.model_name_or_path is None
