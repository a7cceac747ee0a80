"""Captioners of other classes than VisionEncoderDecoderModel: they do what it does, by their own forward pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import plain_captions
import pytest
import tiny
import torch
from peft import LoraConfig
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModel,
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    ViTImageProcessor,
)
from transformers.pipelines import get_supported_tasks

import hf_distinct
from hf_distinct import Captioner
from hf_distinct.captioner import caption_logits, token_logits
from hf_distinct.families import accept_maps, family_of, gives_maps
from hf_distinct.generation.greedy import generate_with_greedy
from hf_distinct.generation.guidance import ImageGuidance
from hf_distinct.generation.labels import to_labels
from hf_distinct.generation.logits_processors import MultinomialSampling
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.inference.captioner_fit import check_fit, decoder_positions
from hf_distinct.inference.pipelines import load_captioner, save_processors
from hf_distinct.losses import IGNORED_LABEL
from hf_distinct.runs.building import build_captioner
from hf_distinct.runs.captioner_settings import CaptionerSettings

pytestmark = pytest.mark.both_ends
HOW = {
    "greedy": {}, "beams": {"num_beams": 3}, "beams, all of them": {"num_beams": 3, "num_return_sequences": 3},
    "samples": {"do_sample": True, "num_return_sequences": 3, "temperature": 1.5},
}  # fmt: skip


@pytest.fixture
def captioner(other_models):
    """In double precision, in which rounding decides nothing, and in eval mode; with pictures and their states."""
    model, tokenizer, image_processor = tiny.load_captioner(other_models)
    model.double().eval()
    pixels = image_processor(list(tiny.scenes(6)["image"]), return_tensors="pt").pixel_values.double()
    with torch.no_grad():
        hidden = family_of(model).encoder(pixels).last_hidden_state
    return SimpleNamespace(
        model=model, tokenizer=tokenizer, image_processor=image_processor, pixels=pixels, hidden=hidden
    )


def stock(c, samples=1, **how):
    """Captions by the model's own ``generate`` from pixels, as labels."""
    config = c.model.generation_config
    tokens = c.model.generate(
        pixel_values=c.pixels.repeat_interleave(samples, dim=0), generation_config=config, max_new_tokens=13, **how
    )  # fmt: skip
    return to_labels(c.model, tokens)


def same(found, expected):
    width = max(found.shape[1], expected.shape[1])
    found, expected = (
        torch.nn.functional.pad(each, (0, width - each.shape[1]), value=IGNORED_LABEL) for each in (found, expected)
    )
    return torch.equal(found, expected)


def settings(c, how):
    return rollout_config(c.model, **HOW[how], max_new_tokens=13)


# --------------------------------------------------------------------------------------------------------- generation


@torch.no_grad()
@pytest.mark.parametrize("how", HOW)
def test_captions_are_those_of_generate_from_pixels(captioner, how):
    torch.manual_seed(0)
    found = generate_labels(captioner.model, captioner.hidden, settings(captioner, how))
    torch.manual_seed(0)
    if how == "samples":
        drawing = [TemperatureLogitsWarper(1.5), MultinomialSampling()]
        expected = stock(captioner, 3, logits_processor=LogitsProcessorList(drawing))
    else:
        expected = stock(captioner, **HOW[how])
    assert same(found, expected)
    assert len(set(map(tuple, found.tolist()))) > 1


@torch.no_grad()
def test_the_encoder_rests_while_captions_are_written_and_scored(captioner):
    calls = []
    for module in family_of(captioner.model).encoder.children():
        module.register_forward_hook(lambda *_: calls.append(1))
    labels = generate_labels(captioner.model, captioner.hidden, settings(captioner, "samples"))
    caption_logits(captioner.model, captioner.hidden, labels)
    assert calls == []
    stock(captioner)
    assert calls


@torch.no_grad()
@pytest.mark.parametrize("how", ["samples", "beams"])
def test_greedy_captions_beside_rollouts_are_those_of_generate(captioner, how):
    write = (captioner.model, captioner.hidden, settings(captioner, how), LogitsProcessorList())
    torch.manual_seed(0)
    labels, greedy = generate_with_greedy(*write)
    assert same(greedy, stock(captioner))
    assert len(labels) == 6 * (3 if how == "samples" else 1)
    if how == "beams":
        assert same(labels, stock(captioner, num_beams=3))


@torch.no_grad()
def test_rollouts_take_no_preference_of_the_checkpoint(captioner):
    expected = generate_labels(captioner.model, captioner.hidden, settings(captioner, "greedy"))
    for config in (captioner.model.generation_config, family_of(captioner.model).writer.generation_config):
        config.update(num_beams=4, repetition_penalty=3.0)
    assert same(generate_labels(captioner.model, captioner.hidden, settings(captioner, "greedy")), expected)
    assert family_of(captioner.model).writer.generation_config.num_beams == 4  # as before


# ------------------------------------------------------------------------------------------------- log-probabilities


def drawn(c):
    torch.manual_seed(0)
    labels = generate_labels(c.model, c.hidden, settings(c, "samples"))
    lengths = (labels != IGNORED_LABEL).sum(dim=1)
    assert lengths.min() < lengths.max()
    return labels, lengths.tolist()


def test_log_probabilities_are_those_of_the_models_own_forward_pass(captioner):
    """Token by token, with the gradient of each weight, the encoder's too; and padding changes neither."""
    labels, lengths = drawn(captioner)
    model, rows = captioner.model, range(len(labels))

    def gradients(total):
        model.zero_grad()
        total.backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    hidden = family_of(model).encoder(captioner.pixels).last_hidden_state
    padded = torch.nn.functional.pad(labels, (0, 2), value=IGNORED_LABEL)
    found = token_logits(model, hidden, padded).log_softmax(-1)
    assert len(found) == sum(lengths)
    one_by_one = [
        tiny.own_logits(model, captioner.pixels[row // 3][None], labels[row : row + 1, : lengths[row]])[0]
        for row in rows
    ]
    expected = torch.cat(one_by_one).log_softmax(-1)
    assert_close(found, expected, atol=1e-10, rtol=0)
    tokens = labels[labels != IGNORED_LABEL]
    ours, own = (gradients(each[range(len(tokens)), tokens].sum()) for each in (found, expected))
    assert ours.keys() == own.keys()
    assert_close(ours, own, atol=1e-6, rtol=1e-6)  # the softmax of some encoders' attention is in single precision
    parts = (family_of(model).encoder, family_of(model).decoder)
    assert all(any(value.grad is not None for value in part.parameters()) for part in parts)


@torch.no_grad()
def test_captions_of_an_image_lie_beside_each_other(captioner):
    labels, _ = drawn(captioner)
    together = caption_logits(captioner.model, captioner.hidden, labels)
    one_by_one = caption_logits(captioner.model, captioner.hidden.repeat_interleave(3, dim=0), labels)
    assert_close(together, one_by_one, atol=1e-12, rtol=0)


@torch.no_grad()
def test_guidance_is_the_formula_on_two_passes_of_the_decoder(captioner):
    labels, _ = drawn(captioner)
    labels = labels[::3, :2].clamp(min=0)
    start = family_of(captioner.model).token_ids("decoder_start_token_id")[0]
    prefix = torch.cat([torch.full((6, 1), start), labels], dim=1)
    padded = torch.cat([labels, labels[:, :1]], dim=1)  # the last position's logits do not depend on its own label
    seen, blind = (
        caption_logits(captioner.model, states, padded)[:, -1]
        for states in (captioner.hidden, torch.zeros_like(captioner.hidden))
    )
    assert (seen - blind).abs().max() > 0.01
    expected = (blind + 1.7 * (seen - blind)).log_softmax(dim=-1)
    assert_close(ImageGuidance(captioner.model, 1.7)(prefix, seen), expected)


# ---------------------------------------------------------------------------------------------------------- training


def test_a_dozen_steps_raise_the_reward(other_models, tmp_path):
    trainer = tiny.make_trainer(
        other_models, tmp_path, max_steps=12, num_rollouts=4, reward="similarity", learning_rate=3e-3, wtf_weight=0.0,
        discriminator_weight=0.0,
    )  # fmt: skip
    trainer.train()
    rewards = [row["reward/total/rollouts"] for row in trainer.state.log_history if "loss" in row]
    assert len(rewards) == 12
    assert sum(rewards[-4:]) > sum(rewards[:4]) + 0.2


def names_of(part, model):
    """The names of the weights of a part that learn."""
    own = {id(each) for each in part.parameters() if each.requires_grad}
    return {name for name, value in model.named_parameters() if id(value) in own}


FULL = {"num_rollouts": 2, "memory_batches": 2, "kl_weight": 0.1, "pool_neighbours": 2, "max_new_tokens": 12}


def test_the_full_method_resumes_where_it_stopped(other_models, tmp_path):
    how = {**FULL, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}
    whole = tiny.make_trainer(other_models, tmp_path / "whole", max_steps=4, **how)
    before = tiny.weights(whole.model)
    whole.train()
    moved = tiny.moved(before, whole.model)
    assert names_of(family_of(whole.model).encoder, whole.model) & moved
    assert names_of(family_of(whole.model).decoder, whole.model) & moved
    resumed = tiny.make_trainer(other_models, tmp_path / "whole", max_steps=4, **how)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.step_losses == whole.step_losses[2:]
    assert tiny.moved(tiny.weights(whole.model), resumed.model) == set()


@pytest.mark.parametrize(
    "how",
    [
        {"rollouts": "beam", "num_rollouts": 1, "num_beams": 3}, {"freeze_encoder": True},
        {"gradient_checkpointing": True}, {"bf16": True}, {"fast_paths": False},
        {"peft_config": LoraConfig(target_modules=["query", "value", "qkv", "v_proj"], r=2)},
    ],
    ids=["beams", "frozen", "checkpointed", "bf16", "slow", "adapters"],
)  # fmt: skip
def test_ways_to_train(other_models, tmp_path, how):
    trainer = tiny.make_trainer(other_models, tmp_path, max_steps=2, **how)
    before = tiny.weights(trainer.model)
    trainer.train()
    moved, family = tiny.moved(before, trainer.model), family_of(trainer.model)
    assert torch.tensor(trainer.step_losses).isfinite().all()
    assert names_of(family.decoder, trainer.model) & moved
    assert bool(names_of(family.encoder, trainer.model) & moved) == ("freeze_encoder" not in how)
    if "peft_config" in how:
        assert all("lora_" in name for name in moved)


def test_checkpointing_changes_no_gradient(other_models, tmp_path):
    """Layers are recomputed in eval mode, in which transformers would quietly keep their activations."""
    losses = []
    for on in (False, True):
        trainer = tiny.make_trainer(other_models, tmp_path, max_steps=2, gradient_checkpointing=on)
        trainer.train()
        losses.append(trainer.step_losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


# --------------------------------------------------------------------------------------------------------- inference


def test_all_ways_to_caption_agree_with_evaluation(other_models, tmp_path):
    trainer = tiny.make_trainer(other_models, tmp_path / "run", max_steps=3)
    trainer.train()
    trainer.model.generation_config.num_beams = 2  # as a checkpoint may prefer
    trainer.save_model(str(tmp_path / "model"))
    card = trainer.write_card(tmp_path / "model").read_text(encoding="utf-8")
    assert f"\n- {trainer.model.config.model_type}\n" in card
    dataset = tiny.scenes(8)
    captions = trainer.caption(dataset)
    assert len(set(captions)) > 1 and all(captions)
    for number, picture in enumerate(dataset["image"]):
        picture.save(tmp_path / f"{number:02}.png")
    paths = sorted(map(str, tmp_path.glob("*.png")))
    ours = hf_distinct.pipeline("image-to-text", model=str(tmp_path / "model"), device="cpu")
    assert [ours(path)[0]["generated_text"].strip() for path in paths] == captions
    assert Captioner(str(tmp_path / "model"), device="cpu")(paths, batch_size=1) == captions
    assert len(Captioner(str(tmp_path / "model"), device="cpu")(paths[:2], 3, guidance=1.5)[1]) == 3
    assert trainer.evaluation_loop(SimpleNamespace(dataset=dataset), "Prediction").predictions.shape[0] == 8
    if "image-to-text" in get_supported_tasks():  # with nothing of ours imported
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, plain_captions.__file__, str(tmp_path / "model"), *paths], capture_output=True, text=True,
            timeout=300, cwd=tmp_path, env=environment | {"CUDA_VISIBLE_DEVICES": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == captions


# ------------------------------------------------------------------------------------------- encoders that give maps

MAPS = {
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 40], "depths": [1, 1, 1, 1]},
    "timm_wrapper": {"architecture": "test_resnet"},
}


@pytest.fixture(params=MAPS)
def with_maps(request, tiny_models, tmp_path):
    """As ``tiny_models``, with a convolutional encoder, built by the recipe's own function."""
    shutil.copytree(tiny_models / "scorer", tmp_path / "scorer")
    config = json.dumps({"model_type": request.param, **MAPS[request.param]})
    if request.param == "timm_wrapper":
        AutoModel.from_config(AutoConfig.for_model(**json.loads(config))).save_pretrained(tmp_path / "timm")
        ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(tmp_path / "timm")
        parts = {"encoder": str(tmp_path / "timm")}
    else:
        parts = {"encoder_config": config}
    torch.manual_seed(0)
    captions = [caption for row in tiny.scenes()["captions"] for caption in row]
    model, tokenizer, image_processor = build_captioner(CaptionerSettings(**parts, decoder_layers=1), captions)
    model.generation_config.max_length = 9
    for weight in model.decoder.parameters():
        weight.data.mul_(4)  # so that captions differ
    for weight in model.encoder.parameters():
        if weight.dim() == 4:  # what transformers 5 draws for timm's models is too small to pass twenty layers
            torch.nn.init.kaiming_normal_(weight)
    model.save_pretrained(tmp_path / "captioner")
    save_processors(tokenizer, image_processor, tmp_path / "captioner")
    return tmp_path


def test_an_encoder_may_give_a_map(with_maps):
    trainer = tiny.make_trainer(with_maps, with_maps / "run", max_steps=2, kl_weight=0.1, pool_greedy=True)
    before = tiny.weights(trainer.model)
    trainer.train()
    assert any(name.startswith("encoder.") for name in tiny.moved(before, trainer.model))
    trainer.save_model(str(with_maps / "model"))
    card = trainer.write_card(with_maps / "model").read_text(encoding="utf-8")
    assert "from hf_distinct import pipeline  # transformers' own cannot read the encoder's feature maps" in card
    dataset = tiny.scenes(4)
    captions = trainer.caption(dataset)
    ours = hf_distinct.pipeline("image-to-text", model=str(with_maps / "model"), device="cpu")
    assert [ours(picture)[0]["generated_text"].strip() for picture in dataset["image"]] == captions
    assert Captioner(with_maps / "model", device="cpu")(list(dataset["image"]), batch_size=1) == captions


@torch.no_grad()
def test_a_map_is_read_position_by_position(with_maps):
    model, _, image_processor = tiny.load_captioner(with_maps)
    pixels = image_processor(list(tiny.scenes(2)["image"]), return_tensors="pt").pixel_values
    model.eval()
    given = model.encoder(pixels).last_hidden_state
    assert given.dim() == 4 and not gives_maps(model)
    for _ in range(2):  # the second time changes nothing
        accept_maps(model)
    states = model.encoder(pixels).last_hidden_state
    assert gives_maps(model) and len(model.encoder._forward_hooks) == 1
    height, width = given.shape[2:]
    for place in range(height * width):
        assert torch.equal(states[:, place], given[:, :, place // width, place % width])


def test_a_card_of_other_encoders_tells_to_use_the_pipeline_of_transformers(make_trainer, tmp_path):
    trainer = make_trainer()
    assert not gives_maps(trainer.model)
    assert "from transformers import pipeline  # on" in trainer.write_card(tmp_path).read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------- what fits


def test_what_fits_passes(captioner):
    check_fit(captioner.model.float(), captioner.tokenizer, captioner.image_processor)
    assert decoder_positions(captioner.model) == 16


def test_a_picture_of_another_size_is_an_error(captioner):
    captioner.image_processor.size = {"height": 48, "width": 48}
    with pytest.raises(ValueError, match="The encoder cannot process the output of the image processor .3 x 48 x 48"):
        check_fit(captioner.model.float(), captioner.tokenizer, captioner.image_processor)


def test_a_tokenizer_larger_than_the_embeddings_is_an_error_that_says_what_to_do(captioner):
    rows, name = len(captioner.tokenizer), family_of(captioner.model).decoder_name
    captioner.tokenizer.add_tokens(["zebra"])
    captioner.model.float()
    with pytest.raises(ValueError, match=rf"Call {name}.resize_token_embeddings\({rows + 1}\)"):
        check_fit(captioner.model, captioner.tokenizer, captioner.image_processor)
    family_of(captioner.model).decoder.resize_token_embeddings(rows + 1)
    check_fit(captioner.model, captioner.tokenizer, captioner.image_processor)


def test_tokens_that_could_not_start_a_caption_are_errors(captioner):
    family = family_of(captioner.model.float())
    for config in family.token_configs.values():
        config.bos_token_id = config.pad_token_id
    with pytest.raises(ValueError, match="bos_token_id is its padding token 0, which `generate` would hide"):
        check_fit(captioner.model, captioner.tokenizer, captioner.image_processor)


def test_a_tokenizer_that_would_take_the_start_token_away_is_an_error(captioner):
    """GIT's is the one that the Trainer writes over; BLIP's is in a config that it leaves alone."""
    captioner.tokenizer.bos_token = None
    parts = captioner.model.float(), captioner.tokenizer, captioner.image_processor
    if captioner.model.config.model_type == "blip":
        check_fit(*parts)
        return
    with pytest.raises(ValueError, match="with token 1, but the tokenizer's bos_token_id.*is None"):
        check_fit(*parts)


def test_another_head_of_the_same_type_is_refused_with_the_names_of_what_fits(tmp_path):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    config = AutoConfig.for_model("blip", text_config=shape, vision_config={**shape, "image_size": 16})
    BlipForQuestionAnswering(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a BlipForQuestionAnswering. A captioner is a VisionEncoderDecoderModel or"):
        load_captioner(str(tmp_path))


def test_the_published_form_of_blip_is_a_captioner(tmp_path):
    """Its tokenizer is BERT's, without an end token; and its start token, which is only embedded, has no text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    assert tokenizer.eos_token is None
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    image = {"image_size": 16, "patch_size": 8, "initializer_range": 0.02}
    text = {**shape, "vocab_size": len(words) + 2, "bos_token_id": len(words), "sep_token_id": 3, "eos_token_id": 2}
    config = BlipConfig(text_config=text, vision_config={**shape, **image})
    torch.manual_seed(0)
    model = BlipForConditionalGeneration(config)
    model.generation_config.max_length = 9
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    BlipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    captioner = Captioner(tmp_path, device="cpu")
    assert (captioner.tokenizer.bos_token, captioner.tokenizer.eos_token) == ("[CLS]", "[SEP]")
    picture = tiny.scenes(1)["image"][0]
    ours = hf_distinct.pipeline("image-to-text", model=str(tmp_path), device="cpu")
    assert captioner([picture]) == [ours(picture)[0]["generated_text"].strip()]
