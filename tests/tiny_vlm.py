"""A vision-language model in miniature, as TRL trains them: Idefics3, the class of SmolVLM, with its processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny
import torch
from datasets import Dataset
from tokenizers import processors
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)

from hf_distinct.data.word_tokenizer import build_word_tokenizer

PROMPT = [{"role": "user", "content": "describe"}]
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %} : {% endif %}"
)


def rows(size: int = 16) -> Dataset:
    """Emoji scenes as a dataset of TRL."""
    scenes = tiny.scenes(size)
    return scenes.add_column("prompt", [PROMPT] * len(scenes))


def build(folder: Path) -> Path:
    """Write a model and its processor into the folder, the model taught for a moment so that captions end."""
    torch.manual_seed(0)
    processor = _processor()
    model = _new_model(processor.tokenizer)
    _teach(model, processor, tiny.scenes(16))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _processor() -> Any:
    words = build_word_tokenizer(["describe", *(text for row in tiny.scenes(16)["captions"] for text in row)])
    backend = words.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", words.bos_token_id)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side="left", model_input_names=["input_ids", "attention_mask"],
        pad_token="<pad>", bos_token="<bos>", unk_token="<unk>", eos_token="<eos>", model_max_length=64,
    )  # fmt: skip
    side = {"longest_edge": 32}
    images = Idefics3ImageProcessor(size=side, max_image_size=side, do_image_splitting=False)
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE)


def _new_model(tokenizer: Any) -> Idefics3ForConditionalGeneration:
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {"model_type": "llama", **shape, "vocab_size": len(tokenizer), "max_position_embeddings": 64, **special}
    config = Idefics3Config(
        vision_config={**shape, "image_size": 32, "patch_size": 8}, text_config=text, scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"), **special,
    )  # fmt: skip
    return Idefics3ForConditionalGeneration(config)


def _teach(model: Any, processor: Any, dataset: Dataset) -> None:
    before = processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])
    pairs = [(row["image"], caption) for row in dataset for caption in row["captions"]]
    texts = [f"{before} describe : {caption} <eos>" for _, caption in pairs]
    batch = processor(text=texts, images=[[image] for image, _ in pairs], padding=True, return_tensors="pt")
    ids = batch["input_ids"]
    captions = (ids == processor.tokenizer.convert_tokens_to_ids("describe")).cumsum(dim=1) > 0
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(50):
        model(**batch, labels=ids.masked_fill(~captions, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
