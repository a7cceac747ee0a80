"""Check that captioner, tokenizer and image processor fit together, and that the captioner can write captions."""

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
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from hf_distinct.captioner import caption_logits, end_ids, token_id
from hf_distinct.data.images import to_pixel_values
from hf_distinct.data.skips import NAMES_SHOWN
from hf_distinct.distributed.zero3 import gathered
from hf_distinct.families import CAPTIONERS, NAMES, family_of, without_adapters
from hf_distinct.fast import fast_paths
from hf_distinct.generation.rollouts import ONE_CAPTION, longest_caption
from hf_distinct.text.problems import refuse

SPECIAL_TOKENS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")
WORD_TOKENS = (
    "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"
)  # fmt: skip
TRIAL_SIZES = (64, 48), (48, 64)  # width and height of the trial images: one landscape, one portrait


def check_fit(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    image_processor: BaseImageProcessor | None,
    args: TrainingArguments | None = None,
    *further: Iterable[str],
) -> None:
    """Check that all parts of a captioner fit together and suit its use.

    This costs one forward pass over two small images, and generating two tokens for them.

    Args:
        model: the captioner, adapters included.
        tokenizer: its tokenizer.
        image_processor: its image processor.
        args: the training arguments, for reinforcement learning or not; None if it only writes captions.
        further: messages about other problems, such as those of `training_problems`.

    Raises:
        ValueError: something does not fit. The message lists all problems.
    """
    if lacks := list(captioner_problems(model, tokenizer)):  # nothing else can be checked without these
        refuse(lacks, *further)
    captioner = without_adapters(model)
    found = [token_problems(captioner, tokenizer), length_problems(captioner, args)]
    if args is not None:
        found += [launch_problems(args), push_problems(model, args), generation_problems(captioner)]
    problems = list(chain(*found, *further))
    # With tokens that the decoder lacks, a forward pass would fail with a less helpful message.
    with fast_paths(getattr(args, "fast_paths", True)):
        refuse(problems, picture_problems(captioner, image_processor) if not problems else ())


def launch_problems(args: TrainingArguments) -> Iterator[str]:
    """Yield an error if one process has several GPUs, for which the Trainer would use nn.DataParallel."""
    if args.n_gpu > 1:
        yield (
            f"This process sees {args.n_gpu} GPUs, so the Trainer would use nn.DataParallel, which hf_distinct does "
            "not support. Start one process per GPU: `accelerate launch --multi_gpu --num_processes "
            f"{args.n_gpu} SCRIPT ...`; or make only one GPU visible: `CUDA_VISIBLE_DEVICES=0`."
        )


def push_problems(model: Any, args: TrainingArguments) -> Iterator[str]:
    """Yield a message if adapters would be pushed: a push contains the files of a whole captioner."""
    if args.push_to_hub and without_adapters(model) is not model:
        yield (
            "push_to_hub pushes whole captioners, but of a model with adapters only the adapters are saved. Leave it "
            "out. After the training, call trainer.model.push_to_hub(name) for the adapters alone, or "
            "trainer.model.merge_and_unload().push_to_hub(name) for a whole captioner."
        )


def captioner_problems(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    """Yield reasons why a model cannot be used as a captioner at all."""
    model = without_adapters(model)
    if not isinstance(model, CAPTIONERS):
        yield f"The captioner must be a {NAMES}, not a {type(model).__name__}."
        return
    family = family_of(model)
    if tokenizer is None or tokenizer.eos_token_id is None:
        yield (
            "The captioner needs a tokenizer with an end token: pass it as processing_class. A BERT tokenizer gets "
            "one by tokenizer.eos_token = tokenizer.sep_token."
        )
    elif tokenizer.pad_token_id is None:  # the Trainer would also copy it to the captioner
        yield "The captioner's tokenizer has no padding token. Set one: tokenizer.pad_token = tokenizer.eos_token."
    for name, own in family.token_names.items():
        if not family.token_ids(name):
            yield (
                f"The captioner has no {own}. Set {family.token_places(name)}, e.g. to the tokenizer's; captions "
                "cannot begin or end without it."
            )


def frozen_problems(model: Any) -> Iterator[str]:
    """Yield a message if no weight of the captioner is trainable."""
    if not any(weight.requires_grad for weight in model.parameters()):
        yield (
            "No weight of the captioner is trainable. Adapters that are loaded without is_trainable are "
            "frozen: to train them, pass peft.PeftModel.from_pretrained(captioner, folder, is_trainable=True)."
        )


def token_problems(model: PreTrainedModel, tokenizer: Any) -> Iterator[str]:
    """Yield mismatches between the tokens of tokenizer, decoder and generation config."""
    family, ends = family_of(model), end_ids(model)
    if tokenizer.eos_token_id not in ends:
        yield (
            f"The captioner ends its captions with token {', '.join(map(str, ends))}, but the tokenizer ends "
            f"reference captions with {tokenizer.eos_token_id}. Set {family.token_places('eos_token_id')}."
        )
    decoder, (config_name, config) = family.decoder, family.text_config
    resize = f"{family.decoder_name}.resize_token_embeddings"
    known, rows = max(tokenizer.get_vocab().values()) + 1, _rows(decoder.get_input_embeddings())
    if known > rows:
        yield (
            f"The tokenizer has {len(tokenizer)} tokens (the last id is {known - 1}), but the decoder has embeddings "
            f"for {rows}. Call {resize}({known}), or load the model's own tokenizer."
        )
    head = decoder.get_output_embeddings()
    if head is not None and _rows(head) != rows:
        yield (
            f"The decoder's embedding has {rows} tokens, but its output head {_rows(head)}. "
            f"Call {resize}({max(known, rows)})."
        )
    if config.vocab_size != rows:
        yield (
            f"{config_name}.vocab_size is {config.vocab_size}, but the decoder has embeddings for "
            f"{rows} tokens, so a saved model could not be loaded. Set vocab_size to the number of embeddings."
        )
    named_tokens = {own: family.token_ids(name) for name, own in family.token_names.items()}
    places = {own: family.token_places(name) for name, own in family.token_names.items()}
    start = family.token_names["decoder_start_token_id"]
    named_tokens |= {name: [*_flat(getattr(model.generation_config, name, None))] for name in WORD_TOKENS}
    for name, tokens in named_tokens.items():
        limit = rows if name == start else min(known, rows)  # the start token needs no text: that of BLIP has none
        if beyond := sorted({token for token in tokens if not 0 <= token < limit}):
            named = ", ".join([*map(str, beyond[:NAMES_SHOWN]), *(["..."] if len(beyond) > NAMES_SHOWN else [])])
            place = places.get(name, f"model.generation_config.{name}")
            yield (
                f"The captioner's {name} contains {named}, but its tokenizer has ids up to {known - 1} "
                f"and its decoder embeddings up to {rows - 1}. Correct {place}."
            )
    begin, pad = (token_id(model, name) for name in ("decoder_start_token_id", "pad_token_id"))
    if start == "bos_token_id":
        if begin == pad and pad not in ends:
            yield f"The captioner's {start} is its padding token {pad}, which `generate` would hide. Set another one."
        if "model.generation_config" in family.token_configs and tokenizer.bos_token_id != begin:
            yield (
                f"The captioner starts its captions with token {begin}, but the tokenizer's bos_token_id, which the "
                f"Trainer would write into the captioner, is {tokenizer.bos_token_id}. Set tokenizer.bos_token."
            )
    forbidden = {*_flat(getattr(model.generation_config, "suppress_tokens", None))}
    if forbidden.issuperset(ends):
        yield (
            f"The captioner's generation config suppresses its end token ({', '.join(map(str, ends))}), so no caption "
            "could end. Remove it from model.generation_config.suppress_tokens."
        )


def _rows(layer: Any) -> int:
    """Return the number of rows of a layer's weight, even if ZeRO-3 has partitioned it."""
    weight = layer.weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _flat(value: Any) -> Iterator[int]:
    """Yield the numbers in nested lists."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _flat(each)
    elif value is not None:
        yield int(value)


def decoder_positions(model: PreTrainedModel) -> int:
    """Return the maximum caption length, in tokens, for which the decoder has positions.

    The start token takes a position, but the last token is never an input, so a caption needs as many positions as it
    has tokens. Some position tables reserve rows: RoBERTa starts after its padding row, BART at the third row. Without
    a table (rotary positions and the like), the config gives the length.
    """
    family = family_of(model)
    of_images = set(family.encoder.modules())
    found = [
        table.num_embeddings - getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
        for name, table in family.decoder.named_modules()
        if isinstance(table, nn.Embedding) and _is_of_positions(name) and table not in of_images
    ]
    _, config = family.text_config
    said = [getattr(config, name, None) for name in ("max_position_embeddings", "max_target_positions", "n_positions")]
    return int(min(found or [value for value in said if value], default=sys.maxsize))


def _is_of_positions(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "wpe" or "position" in last


def length_problems(model: PreTrainedModel, args: TrainingArguments | None = None) -> Iterator[str]:
    """Yield length settings that exceed the decoder's positions.

    Args:
        model: the captioner.
        args: the training arguments; those for reinforcement learning have their own ``max_new_tokens``.
    """
    positions, generation = decoder_positions(model), model.generation_config or GenerationConfig()
    has = f"but the decoder has only {positions} positions"
    of_rollouts = getattr(args, "max_new_tokens", None) or 0
    if of_rollouts > positions:
        yield f"max_new_tokens={of_rollouts}, {has}."
    of_evaluations = getattr(args, "generation_max_length", None)
    if of_evaluations is not None and not 2 <= of_evaluations <= positions + 1:
        yield (
            f"generation_max_length={of_evaluations} must be between 2 and {positions + 1}: the decoder has "
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
            f"The captioner's generation config requires at least {least} tokens per caption (min_length, "
            f"min_new_tokens) but allows only {allowed}, so no caption could end. Lower the minimum or raise "
            "max_length."
        )


def generation_problems(model: PreTrainedModel) -> Iterator[str]:
    """Yield the reason if the generation config cannot be saved, which would otherwise only fail after training."""
    shell = copy.copy(model)  # shares the weights; the configs are copied, because saving changes them
    shell.config, shell.generation_config = copy.deepcopy(model.config), copy.deepcopy(model.generation_config)
    try:
        with tempfile.TemporaryDirectory() as folder:
            shell.save_pretrained(folder, state_dict={})
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        yield f"The captioner cannot be saved with its generation config: {reason} (see model.generation_config.)"


@torch.no_grad()
def picture_problems(
    model: PreTrainedModel, image_processor: BaseImageProcessor | None
) -> Iterator[str]:
    """Yield problems between the image processor, the encoder and the decoder.

    They are found by trying two small images, since errors of image processors and models are too many to predict.
    """
    if image_processor is None:
        yield "The captioner needs an image processor: pass it as image_processor."
        return
    # Not one colour: an untrained convolutional encoder gives zeros for it, as if there were no image.
    shaded = [Image.linear_gradient("L").resize(size).convert("RGB") for size in TRIAL_SIZES]
    try:
        pixels = to_pixel_values(shaded, image_processor)
    except Exception as error:
        yield (
            "The image processor cannot make one batch of a wide and a tall image (it may need a size with both "
            f"height and width, or do_center_crop): {error}"
        )
        return
    training, weight = model.training, next(model.parameters())
    model.eval()
    try:
        with gathered(model):
            pixels = pixels.to(weight.device, weight.dtype)
            problems = list(_encoder_problems(model, pixels))
            yield from problems or _writing_problems(model, pixels)
    finally:
        model.train(training)


def _encoder_problems(model: PreTrainedModel, pixels: Tensor) -> Iterator[str]:
    family = family_of(model)
    shape = " x ".join(map(str, pixels.shape[1:]))
    try:
        hidden = family.encoder(pixels).last_hidden_state
    except Exception as error:
        yield (
            f"The encoder cannot process the output of the image processor ({shape}): {error} Set the image "
            "processor's size (and crop_size) to the encoder's image_size, or load the encoder's own processor."
        )
        return
    if hidden.dim() != 3:
        yield (
            f"The encoder's output for an image has the shape {tuple(hidden.shape[1:])}, but the decoder needs a "
            "sequence of vectors (positions, width), or a feature map (width, height, width)."
        )
        return
    name, config = family.image_config
    if hidden.shape[2] != config.hidden_size:
        yield (
            f"The encoder's vectors have {hidden.shape[2]} numbers, but the decoder is built for "
            f"{name}.hidden_size={config.hidden_size}."
        )
        return
    yield from _decoder_problems(model, hidden[:1])


def _decoder_problems(model: PreTrainedModel, hidden: Tensor) -> Iterator[str]:
    """Try one image and an empty one, with two captions each that differ in their first token."""
    pad = token_id(model, "pad_token_id")
    one, other = [token for token in range(3) if token != pad][:2]
    labels = torch.tensor([[one, one], [other, one]] * 2, device=hidden.device)
    try:
        logits = caption_logits(model, torch.cat([hidden, torch.zeros_like(hidden)]), labels).float()
    except Exception as error:
        yield (
            f"The decoder cannot process the encoder's output of shape {tuple(hidden.shape[1:])}: {error} It needs "
            "cross-attention (add_cross_attention=True in its config) of a matching width. GPT-2, BERT, RoBERTa and "
            "BART have it, for example."
        )
        return
    unlike = 1e-6 * logits.abs().max()
    if (logits[0] - logits[2]).abs().max() <= unlike:
        yield (
            "The decoder ignores images: its logits are the same with and without one. Set is_decoder and "
            "add_cross_attention to True in its config before you build it."
        )
    if (logits[0, 0] - logits[1, 0]).abs().max() > 1e3 * unlike:
        yield (
            "The decoder is not causal: its logits for the first token depend on the second. Set is_decoder=True in "
            "its config."
        )


def _writing_problems(model: PreTrainedModel, pixels: Tensor) -> Iterator[str]:
    """Yield what `generate` cannot do with this generation config, by generating two tokens for several images."""
    family, config = family_of(model), model.generation_config or GenerationConfig()
    try:
        with torch.random.fork_rng(enabled=bool(config.do_sample)):
            family.write(pixels, **ONE_CAPTION, max_new_tokens=2, min_length=0, min_new_tokens=None)
    except Exception as error:
        yield (
            f"The captioner cannot generate with its generation config: {' '.join(str(error).split())} (see "
            f"model.generation_config, which sets {_asked(config)}.)"
        )


def _asked(config: GenerationConfig) -> str:
    """Return the settings of a generation config without the special tokens, as text."""
    said, left_out = config.to_diff_dict(), ("transformers_version", "_from_model_config", *SPECIAL_TOKENS)
    return ", ".join(f"{name}={value}" for name, value in said.items() if name not in left_out)
