"""Whether captioner, tokenizer and image processor fit together, and the captioner can caption at all."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    BaseImageProcessor,
    GenerationConfig,
    PreTrainedTokenizerBase,
    TrainingArguments,
    VisionEncoderDecoderModel,
)

from hf_distinct.captioner import caption_logits, end_ids, without_adapters
from hf_distinct.data.images import to_pixel_values
from hf_distinct.data.skips import NAMES_SHOWN
from hf_distinct.distributed.zero3 import gathered
from hf_distinct.fast import fast_paths
from hf_distinct.generation.rollouts import ONE_CAPTION, longest_caption
from hf_distinct.text.problems import refuse

SPECIAL_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
NAMED_TOKENS = (
    *SPECIAL_TOKENS, "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens",
    "bad_words_ids",
)  # fmt: skip
TRIAL_SIZES = (64, 48), (48, 64)  # width and height of the pictures that are tried: photographs lie and stand


def check_fit(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    image_processor: BaseImageProcessor | None,
    args: TrainingArguments | None = None,
    *further: Iterable[str],
) -> None:
    """Check that all parts of a captioner fit together, and what it is used for.

    It costs one pass of the captioner over two small pictures, and the first two words about them.

    Args:
        model: the captioner, adapters included.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        args: how it will be trained, by reinforcement learning or not; None: it will only write captions.
        further: sentences about other things that do not fit, e.g. those of `training_problems`.

    Raises:
        ValueError: something does not fit. The message lists everything that was found.
    """
    lacks = list(captioner_problems(model, tokenizer))
    if not lacks and args is not None:
        lacks = list(frozen_problems(model))
    if lacks:  # without these nothing else of it can be looked at
        refuse(lacks, *further)
    captioner = without_adapters(model)
    found = [token_problems(captioner, tokenizer), length_problems(captioner, args)]
    if args is not None:
        found += [launch_problems(args), push_problems(model, args), generation_problems(captioner)]
    problems = list(chain(*found, *further))
    # A pass with tokens that the decoder has not would fail for that, and say it less well.
    with fast_paths(getattr(args, "fast_paths", True)):
        refuse(problems, picture_problems(captioner, image_processor) if not problems else ())


def launch_problems(args: TrainingArguments) -> Iterator[str]:
    """One process with several GPUs, for which the Trainer would take nn.DataParallel."""
    if args.n_gpu > 1:
        yield (
            f"This process sees {args.n_gpu} GPUs, and the Trainer would split each batch among them by "
            "nn.DataParallel, which hf_distinct does not support. Start one process for each GPU: `accelerate launch "
            f"--multi_gpu --num_processes {args.n_gpu} SCRIPT ...`; or make only one visible: "
            "`CUDA_VISIBLE_DEVICES=0`."
        )


def push_problems(model: Any, args: TrainingArguments) -> Iterator[str]:
    """A push of adapters: a push has the files of a whole captioner."""
    if args.push_to_hub and without_adapters(model) is not model:
        yield (
            "push_to_hub pushes whole captioners, but of a model with adapters only the adapters are saved. Leave it "
            "out. After the training, call trainer.model.push_to_hub(name) for the adapters alone, or "
            "trainer.model.merge_and_unload().push_to_hub(name) for a whole captioner."
        )


def captioner_problems(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    """What keeps a model from being a captioner at all."""
    model = without_adapters(model)
    if not isinstance(model, VisionEncoderDecoderModel):
        yield f"The captioner must be a VisionEncoderDecoderModel, not a {type(model).__name__}."
        return
    if tokenizer is None or tokenizer.eos_token_id is None:
        yield "The captioner needs a tokenizer with an end token: pass it as processing_class."
    elif tokenizer.pad_token_id is None:  # the Trainer would take the captioner's from it, too
        yield "The captioner's tokenizer has no padding token. Set one: tokenizer.pad_token = tokenizer.eos_token."
    for name in SPECIAL_TOKENS:
        if getattr(model.generation_config, name, None) is None and getattr(model.config, name, None) is None:
            yield (
                f"The captioner has no {name}. Set model.config.{name} and model.generation_config.{name}, e.g. to "
                "the tokenizer's; without it no caption begins or ends."
            )


def frozen_problems(model: Any) -> Iterator[str]:
    """A captioner of which nothing would be trained."""
    if not any(weight.requires_grad for weight in model.parameters()):
        yield (
            "No weight of the captioner is trainable. Adapters that are loaded by the name of their folder are "
            "frozen: to train them, pass peft.PeftModel.from_pretrained(captioner, folder, is_trainable=True)."
        )


def token_problems(model: VisionEncoderDecoderModel, tokenizer: Any) -> Iterator[str]:
    """Tokens that one of tokenizer, decoder and generation config knows and another does not."""
    ends = end_ids(model)
    if tokenizer.eos_token_id not in ends:
        yield (
            f"The captioner ends its captions with token {', '.join(map(str, ends))}, but the tokenizer ends "
            f"reference captions with {tokenizer.eos_token_id}. Set eos_token_id in both of the model's configs."
        )
    decoder: Any = model.decoder
    known, rows = max(tokenizer.get_vocab().values()) + 1, _rows(decoder.get_input_embeddings())
    if known > rows:
        yield (
            f"The tokenizer has {len(tokenizer)} tokens (the last is {known - 1}), but the decoder has embeddings of "
            f"{rows}. Call model.decoder.resize_token_embeddings({known}), or load the tokenizer that belongs to the "
            "model."
        )
    head = decoder.get_output_embeddings()
    if head is not None and _rows(head) != rows:
        yield (
            f"The decoder reads {rows} tokens (rows of its embedding) and writes {_rows(head)} (rows of its head). "
            f"Call model.decoder.resize_token_embeddings({max(known, rows)})."
        )
    if decoder.config.vocab_size != rows:
        yield (
            f"model.config.decoder.vocab_size is {decoder.config.vocab_size}, but the decoder has embeddings of "
            f"{rows} tokens: once saved, it could not be loaded. Set vocab_size to the number of embeddings."
        )
    for name in NAMED_TOKENS:
        value = getattr(model.generation_config, name, None)
        value = getattr(model.config, name, None) if value is None and name in SPECIAL_TOKENS else value
        if beyond := sorted({token for token in _flat(value) if not 0 <= token < min(known, rows)}):
            named = ", ".join([*map(str, beyond[:NAMES_SHOWN]), *(["..."] if len(beyond) > NAMES_SHOWN else [])])
            yield (
                f"{name} of the captioner names {named}, but its tokenizer has tokens up to "
                f"{known - 1} and its decoder embeddings up to {rows - 1}. Correct model.generation_config.{name}."
            )
    forbidden = {*_flat(getattr(model.generation_config, "suppress_tokens", None))}
    if forbidden.issuperset(ends):
        yield (
            f"The captioner's generation config suppresses its end token ({', '.join(map(str, ends))}), so that no "
            "caption could end. Take it out of model.generation_config.suppress_tokens."
        )


def _rows(layer: Any) -> int:
    """Rows of a layer's weight, which ZeRO-3 may have split."""
    weight = layer.weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _flat(value: Any) -> Iterator[int]:
    """The numbers in nested lists."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    elif value is not None:
        yield int(value)


def decoder_positions(model: VisionEncoderDecoderModel) -> int:
    """The longest caption, in tokens, that the decoder has positions for.

    The start token is read in the place of the last token, which is only written, so that a caption needs as many
    positions as it has tokens. Not all rows of a table of positions are for use: RoBERTa begins behind the one of its
    padding, BART with the third. Without a table (rotary positions and the like) it is what the config says.
    """
    decoder: Any = model.decoder
    found = [
        table.num_embeddings - getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
        for name, table in decoder.named_modules()
        if isinstance(table, nn.Embedding) and _is_of_positions(name)
    ]
    config = model.config.decoder
    said = [getattr(config, name, None) for name in ("max_position_embeddings", "max_target_positions", "n_positions")]
    return int(min(found or [value for value in said if value], default=sys.maxsize))


def _is_of_positions(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "wpe" or "position" in last


def length_problems(model: VisionEncoderDecoderModel, args: TrainingArguments | None = None) -> Iterator[str]:
    """Captions that are asked for and are longer than the decoder has positions.

    Args:
        model: the captioner.
        args: those of reinforcement learning may have a ``max_new_tokens`` of their own.
    """
    positions, generation = decoder_positions(model), model.generation_config or GenerationConfig()
    has = f"but the decoder has only {positions} positions"
    of_rollouts = getattr(args, "max_new_tokens", None) or 0
    if of_rollouts > positions:
        yield f"max_new_tokens={of_rollouts}, {has}."
    of_evaluations = getattr(args, "generation_max_length", None)
    if of_evaluations is not None and not 2 <= of_evaluations <= positions + 1:
        yield (
            f"generation_max_length={of_evaluations} must lie between 2 and {positions + 1}: the decoder has "
            f"{positions} positions, and the start token counts too."
        )
    longest = longest_caption(generation)
    if longest > positions:
        if generation.max_new_tokens:
            asked, fix = f"max_new_tokens={longest}", f"max_new_tokens = {positions}"
        else:  # the start token counts
            asked, fix = f"max_length={generation.max_length}", f"max_length = {positions + 1}"
        yield (
            f"The captioner's generation config allows captions of {longest} tokens ({asked}), {has}. Set "
            f"model.generation_config.{fix}, or less."
        )
    least = max((generation.min_length or 0) - 1, generation.min_new_tokens or 0)
    allowed = min(longest, of_rollouts or longest)
    if least > allowed:
        yield (
            f"The captioner's generation config asks for captions of at least {least} tokens (min_length, "
            f"min_new_tokens) but allows only {allowed}: no caption could end. Lower the one, or raise max_length."
        )


def generation_problems(model: VisionEncoderDecoderModel) -> Iterator[str]:
    """Why the captioner's generation config could not be saved, which would else be found out after the training."""
    shell = copy.copy(model)  # with the same weights, and configs of its own: saving changes them
    shell.config, shell.generation_config = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    try:
        with tempfile.TemporaryDirectory() as folder:
            shell.save_pretrained(folder, state_dict={})
    except (ValueError, TypeError) as error:
        told = " ".join(str(error).split())
        yield f"The captioner cannot be saved as it is configured: {told} (see model.generation_config.)"


@torch.no_grad()
def picture_problems(
    model: VisionEncoderDecoderModel, image_processor: BaseImageProcessor | None
) -> Iterator[str]:
    """What keeps pictures from passing from the image processor to the first words.

    Tried on two small pictures: errors of image processors and models are many, and theirs to word.
    """
    if image_processor is None:
        yield "The captioner needs an image processor: pass it as image_processor."
        return
    grey = [Image.new("RGB", size, (128, 128, 128)) for size in TRIAL_SIZES]
    try:
        pixels = to_pixel_values(grey, image_processor)
    except Exception as error:
        yield (
            "The image processor cannot make one batch of a wide and a tall picture (it may lack a size of both "
            f"height and width, or do_center_crop): {error}"
        )
        return
    training, encoder, weight = model.training, model.encoder, next(model.parameters())
    model.eval()
    try:
        with gathered(model):
            pixels = pixels.to(weight.device, weight.dtype)
            problems = list(_encoder_problems(model, encoder, pixels))
            yield from problems or _writing_problems(model, pixels)
    finally:
        model.train(training)


def _encoder_problems(model: VisionEncoderDecoderModel, encoder: Any, pixels: Tensor) -> Iterator[str]:
    shape = " x ".join(map(str, pixels.shape[1:]))
    try:
        hidden = encoder(pixels).last_hidden_state
    except Exception as error:
        yield (
            f"The encoder cannot read what the image processor makes of a picture ({shape}): {error} Set the image "
            "processor's size (and crop_size) to the encoder's image_size, or load the one that belongs to it."
        )
        return
    if hidden.dim() != 3:
        yield (
            f"The encoder turns a picture into {tuple(hidden.shape[1:])}, but the decoder reads a sequence of vectors "
            "(positions, width). Flatten the encoder's feature map."
        )
        return
    width = model.config.encoder.hidden_size
    if hidden.shape[2] != width:
        yield (
            f"The encoder gives vectors of {hidden.shape[2]} numbers, but the decoder is built for "
            f"model.config.encoder.hidden_size={width}."
        )
        return
    yield from _decoder_problems(model, hidden[:1])


def _decoder_problems(model: VisionEncoderDecoderModel, hidden: Tensor) -> Iterator[str]:
    """One picture and an empty one, with two captions each that differ in their first word."""
    pad = model.config.pad_token_id
    one, other = [token for token in range(3) if token != pad][:2]
    labels = torch.tensor([[one, one], [other, one]] * 2, device=hidden.device)
    try:
        logits = caption_logits(model, torch.cat([hidden, torch.zeros_like(hidden)]), labels).float()
    except Exception as error:
        yield (
            f"The decoder cannot read what the encoder makes of a picture {tuple(hidden.shape[1:])}: {error} It needs "
            "cross-attention (add_cross_attention=True in its config) of a width that fits."
        )
        return
    unlike = 1e-6 * logits.abs().max()
    if (logits[0] - logits[2]).abs().max() <= unlike:
        yield (
            "The decoder does not look at pictures: its logits are the same with and without one. Set is_decoder and "
            "add_cross_attention to True in its config before you build it."
        )
    if (logits[0, 0] - logits[1, 0]).abs().max() > 1e3 * unlike:
        yield (
            "The decoder looks ahead: its logits for the first token depend on the second. Set is_decoder=True in its "
            "config."
        )


def _writing_problems(model: VisionEncoderDecoderModel, pixels: Tensor) -> Iterator[str]:
    """What of the generation config `generate` cannot do with several pictures: found out by two words about each."""
    writer: Any = model
    try:
        with torch.random.fork_rng(enabled=bool(getattr(model.generation_config, "do_sample", False))):
            writer.generate(pixels, **ONE_CAPTION, max_new_tokens=2, min_length=0, min_new_tokens=None)
    except Exception as error:
        yield (
            f"The captioner cannot write by its generation config: {' '.join(str(error).split())} (see "
            f"model.generation_config, which asks for {_asked(writer.generation_config)}.)"
        )


def _asked(config: GenerationConfig) -> str:
    """What a generation config says beside the special tokens."""
    said, left_out = config.to_diff_dict(), ("transformers_version", "_from_model_config", *SPECIAL_TOKENS)
    return ", ".join(f"{name}={value}" for name, value in said.items() if name not in left_out)
