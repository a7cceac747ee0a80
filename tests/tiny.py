"""Real models in miniature, which the tests share: a captioner, a CLIP, a few pictures, and a trainer of them all.

Nothing is a stand-in: a stock ViT and GPT-2 of one layer each, an open_clip model with random weights, emoji scenes.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import forked
import open_clip
import torch
from datasets import Dataset
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessorList,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

import hf_distinct
from hf_distinct import ClipScorer, RLCaptionConfig, RLCaptionTrainer, emoji_scenes
from hf_distinct.data.collator import CaptionCollator
from hf_distinct.data.word_tokenizer import build_word_tokenizer
from hf_distinct.generation.logits_processors import MultinomialSampling
from hf_distinct.inference.pipelines import load_image_processor, save_tokenizer
from hf_distinct.scorer import save_open_clip

MAX_LENGTH = 14
PREPROCESS = {
    "mean": [0.5] * 3, "std": [0.25] * 3, "size": [32, 32], "interpolation": "bicubic", "resize_mode": "shortest"
}  # fmt: skip


def scenes(size: int = 12) -> Dataset:
    """Pictures with five captions each."""
    return emoji_scenes("train", size, seed=0)


def build_models(folder: Path, family: str = "vision-encoder-decoder") -> Path:
    """Write ``captioner`` and ``scorer`` into the folder, the captioner taught for a moment so that captions end."""
    torch.manual_seed(0)
    dataset = scenes()
    captions = [caption for row in dataset["captions"] for caption in row]
    tokenizer = build_word_tokenizer(captions, max_length=MAX_LENGTH)
    image_processor = ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    model = NEW[family](tokenizer)
    _teach(model, CaptionCollator(tokenizer, image_processor, captions_per_image=5, max_length=MAX_LENGTH), dataset)
    model.save_pretrained(folder / "captioner")
    image_processor.save_pretrained(folder / "captioner")
    save_tokenizer(tokenizer, folder / "captioner")

    tokenizer.save_pretrained(folder / "scorer")
    text = {"context_length": MAX_LENGTH, "vocab_size": len(tokenizer), "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {**text, "hf_tokenizer_name": "word-level"}}
    clip = open_clip.CLIP(**config)
    # At its random start every text lies near every other; spread out, rewards differ as they do under a trained CLIP.
    torch.nn.init.normal_(clip.token_embedding.weight, std=1.0)
    save_open_clip(clip, folder / "scorer", config, PREPROCESS)
    return folder


def _new_vision_encoder_decoder(tokenizer: Any) -> VisionEncoderDecoderModel:
    encoder = ViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        hidden_dropout_prob=0.1,
    )  # fmt: skip
    decoder = GPT2Config(
        vocab_size=len(tokenizer), n_positions=16, n_embd=32, n_layer=1, n_head=2, add_cross_attention=True,
        is_decoder=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    # The dropout of both stays on: a step that did not switch it off would show.
    assert decoder.attn_pdrop > 0 and encoder.hidden_dropout_prob > 0
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    for config in (model.config, model.generation_config):
        config.decoder_start_token_id = config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config.max_length = MAX_LENGTH
    return model


def _new_blip(tokenizer: Any) -> BlipForConditionalGeneration:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text = {
        "vocab_size": len(tokenizer), "max_position_embeddings": 16, "hidden_dropout_prob": 0.1,
        "bos_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {"image_size": 32, "patch_size": 8, "attention_dropout": 0.1, "initializer_range": 0.02}
    model = BlipForConditionalGeneration(BlipConfig(text_config=shape | text, vision_config=shape | vision))
    model.generation_config.max_length = MAX_LENGTH
    return model


def _new_git(tokenizer: Any) -> GitForCausalLM:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    text = {
        "vocab_size": len(tokenizer), "max_position_embeddings": 16, "hidden_dropout_prob": 0.1,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {"image_size": 32, "patch_size": 8, "attention_dropout": 0.1}
    model = GitForCausalLM(GitConfig(**shape, **text, vision_config=shape | vision))
    model.generation_config.max_length = MAX_LENGTH
    return model


NEW: dict[str, Callable[[Any], Any]] = {
    "vision-encoder-decoder": _new_vision_encoder_decoder, "blip": _new_blip, "git": _new_git
}  # fmt: skip
"""What makes a captioner of each family, untaught, for a tokenizer."""


def own_logits(model: Any, pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits of captions ``(N, L)`` by the model's own forward pass over pixels, one row each: ``(N, L, V)``."""
    if model.config.model_type == "vision-encoder-decoder":
        return model(pixel_values=pixels, labels=labels).logits
    start = model.config.bos_token_id if model.config.model_type == "git" else model.config.text_config.bos_token_id
    inputs = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1].clamp(min=0)], dim=1)
    return model(pixel_values=pixels, input_ids=inputs).logits[:, -labels.shape[1] :]  # GIT's image comes first


def _teach(model: Any, collate: CaptionCollator, dataset: Dataset) -> None:
    batch = collate(list(dataset))
    pixels, labels = batch["pixel_values"].repeat_interleave(5, dim=0), batch["labels"].flatten(0, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(40):
        # The model's own loss would shift the labels twice, see recipes/warm_up.py.
        logits = own_logits(model, pixels, labels)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def language_model(folder: Path) -> Path:
    """Write a small GPT-2 with random weights, of which all words are equally likely but for chance."""
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(["a red dog", "a cat on a mat"], max_length=MAX_LENGTH)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=16, n_embd=32, n_layer=1, n_head=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


def load_captioner(folder: Path) -> tuple[Any, Any, Any]:
    """Captioner, tokenizer, image processor."""
    source = folder / "captioner"
    model = AutoModelForImageTextToText.from_pretrained(source)
    return model, AutoTokenizer.from_pretrained(source), load_image_processor(source)


class RecordingTrainer(RLCaptionTrainer):
    """Keeps the loss of each training step as it was, where the log rounds to four places."""

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.step_losses = [*getattr(self, "step_losses", []), float(loss)]
        return loss


def make_trainer(
    models: Path,
    output: Path,
    *,
    dataset: Dataset | None = None,
    kind: type[RecordingTrainer] = RecordingTrainer,
    adapt: Callable[[Any], Any] = lambda model: model,
    **settings: Any,
) -> RecordingTrainer:
    """A trainer of the tiny models; what is the trainer's own (``rewards`` ...) is told from settings by its name.

    ``adapt`` may wrap the captioner, e.g. by LoRA.
    """
    own = {
        name: settings.pop(name)
        for name in ("rewards", "caption_metrics", "eval_dataset", "embeddings", "peft_config")
        if name in settings
    }
    model, tokenizer, image_processor = load_captioner(models)
    defaults: dict[str, Any] = {
        "output_dir": str(output), "per_device_train_batch_size": 4, "max_steps": 1, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "num_rollouts": 2, "max_reference_length": MAX_LENGTH, "logging_steps": 1,
        "save_strategy": "no", "disable_tqdm": True, "seed": 3, "use_cpu": True,
    }  # fmt: skip
    return kind(
        adapt(model),
        RLCaptionConfig(**{**defaults, **settings}),
        scorer=ClipScorer(str(models / "scorer")),
        train_dataset=scenes() if dataset is None else dataset,
        processing_class=tokenizer,
        image_processor=image_processor,
        **own,
    )


def encoded(images: int, seed: int = 0) -> torch.Tensor:
    """Encoder states of so many images, as the captioner's decoder takes them, in double precision."""
    return torch.randn(images, 17, 32, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_captioner(models: Path) -> Any:
    """The captioner in double precision, in which rounding decides nothing, and in eval mode."""
    return load_captioner(models)[0].double().eval()


def rows_of_passes(model: Any) -> list[int]:
    """How many captions are in each pass of a captioner's decoder, from now on."""
    rows: list[int] = []
    model.decoder.transformer.h[0].mlp.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return rows


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of its weights as they are now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    """The names of the weights that are no longer what they were."""
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}


def a_batch(trainer: RLCaptionTrainer) -> dict[str, Any]:
    """The first batch as the trainer gets it, collated from rows in their order."""
    rows = [trainer.train_dataset[i] for i in range(trainer.args.per_device_train_batch_size)]
    trainer.data_collator.epoch = 0
    return trainer._prepare_inputs(trainer.data_collator(rows))


def plain_captions(
    trainer: RLCaptionTrainer, inputs: dict[str, Any], samples: int = 0, processors: Sequence[Any] = (), **how: Any
) -> tuple[list[list[int]], list[str]]:
    """Captions by a plain call of generate on pixels: token rows without padding, and texts.

    One of each picture, or as many samples, drawn as rollouts are.
    """
    model, tokenizer = trainer.model, trainer.processing_class
    pixels = inputs["pixel_values"].repeat_interleave(samples or 1, dim=0)
    processors = LogitsProcessorList([*processors, MultinomialSampling()] if samples else processors)
    sequences = model.generate(pixels, logits_processor=processors, **how)[:, 1:].tolist()
    end = tokenizer.eos_token_id
    rows = [row[: row.index(end) + 1] if end in row else row for row in sequences]
    return rows, [text.strip() for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def free_port() -> int:
    """A port that nobody listens on, for processes that want to meet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_processes(port: int, script: str, *arguments: Sequence[object]) -> str:
    """Run a script in as many processes as there are lists of arguments; each gets its rank, then its arguments.

    They find each other at the port, through the environment, as torchrun would have it. Returns what they said.
    """
    numbered = [[rank, *own] for rank, own in enumerate(arguments)]
    return forked.run_together(script, numbered, ranks(port, len(arguments)))


def ranks(port: int, number: int) -> list[dict[str, str]]:
    """The environments of so many processes that find each other at a port."""
    root, all_of_them = str(Path(hf_distinct.__file__).parents[1]), str(number)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    shared |= {"WORLD_SIZE": all_of_them, "LOCAL_WORLD_SIZE": all_of_them}
    return [{**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def finish(processes: Sequence[subprocess.Popen], timeout: float = 300) -> None:
    """Wait until processes that need each other have ended well; whatever happens, none is left."""
    try:
        for process in processes:
            _, errors = process.communicate(timeout=timeout)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
