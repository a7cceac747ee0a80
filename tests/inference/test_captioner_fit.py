"""What does not fit together is found before the training, all of it at once, with both numbers."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import tiny
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainingArguments,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_distinct import Captioner, ClipScorer, RLCaptionConfig, RLCaptionTrainer
from hf_distinct.data.caption_embeddings import CaptionEmbeddings
from hf_distinct.families import NAMES
from hf_distinct.inference.captioner_fit import check_fit, decoder_positions, launch_problems

pytestmark = pytest.mark.both_ends  # models and generation configs are what transformers makes of them


@pytest.fixture
def captioner(tiny_models):
    model, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    return SimpleNamespace(model=model, tokenizer=tokenizer, image_processor=image_processor)


def check(c, **settings):
    args = RLCaptionConfig(per_device_train_batch_size=4, max_reference_length=14, use_cpu=True, **settings)
    check_fit(c.model, c.tokenizer, c.image_processor, args)


def complaint(c, **settings):
    with pytest.raises(ValueError) as caught:
        check(c, **settings)
    return str(caught.value)


def with_decoder(c, config):
    """The same captioner with another decoder, untaught."""
    # Not `from_encoder_decoder_configs`, which puts right what a person's own config may lack.
    parts = {"encoder": c.model.config.encoder.to_dict(), "decoder": config.to_dict()}
    other = VisionEncoderDecoderModel(VisionEncoderDecoderConfig(**parts))
    for part in (other.config, other.generation_config):
        part.decoder_start_token_id, part.pad_token_id = c.tokenizer.bos_token_id, c.tokenizer.pad_token_id
        part.eos_token_id = c.tokenizer.eos_token_id
    other.generation_config.max_length = 14
    return SimpleNamespace(model=other, tokenizer=c.tokenizer, image_processor=c.image_processor)


def test_what_fits_passes_and_stays_as_it_is(captioner):
    captioner.model.train()
    before = tiny.weights(captioner.model)
    check(captioner)
    assert all(module.training for module in captioner.model.modules())
    assert tiny.moved(before, captioner.model) == set()
    assert decoder_positions(captioner.model) == 16


def test_everything_that_does_not_fit_is_said_at_once(captioner):
    captioner.tokenizer.add_tokens(["zebra"])
    captioner.model.generation_config.max_length = 64
    found = complaint(captioner, max_new_tokens=17)
    assert found.startswith("3 problems:\n- The tokenizer has")
    assert "\n- max_new_tokens=17, but the decoder has only 16 positions." in found
    assert "\n- The captioner's generation config allows captions of 63 tokens (max_length=64)" in found


# ------------------------------------------------------------------------------------------------- what a captioner is


def test_only_an_encoder_decoder_of_images_is_a_captioner(captioner):
    captioner.model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9))
    assert complaint(captioner) == f"The captioner must be a {NAMES}, not a GPT2LMHeadModel."


@pytest.mark.parametrize("name", ["decoder_start_token_id", "eos_token_id", "pad_token_id"])
def test_a_captioner_without_a_special_token_is_an_error(captioner, name):
    for config in (captioner.model.config, captioner.model.generation_config):
        setattr(config, name, None)
    assert complaint(captioner).startswith(f"The captioner has no {name}. Set model.config.{name}")


def test_a_tokenizer_without_an_end_token_is_an_error(captioner):
    captioner.tokenizer.eos_token = None
    assert complaint(captioner).startswith("The captioner needs a tokenizer with an end token")
    captioner.tokenizer.eos_token, captioner.tokenizer.pad_token = "<end>", None
    assert "has no padding token. Set one: tokenizer.pad_token = tokenizer.eos_token." in complaint(captioner)
    captioner.tokenizer = None
    assert "pass it as processing_class" in complaint(captioner)


# -------------------------------------------------------------------------------------------------------------- tokens


def test_model_and_tokenizer_that_end_differently_are_an_error(captioner):
    captioner.model.generation_config.eos_token_id = [5, 6]
    assert "ends its captions with token 5, 6, but the tokenizer" in complaint(captioner)
    captioner.model.generation_config.eos_token_id = [5, captioner.tokenizer.eos_token_id]
    check(captioner)


def test_a_tokenizer_larger_than_the_embeddings_is_an_error_with_both_numbers(captioner):
    rows = captioner.model.config.decoder.vocab_size
    captioner.tokenizer.add_tokens(["zebra", "okapi"])
    found = complaint(captioner)
    tokens = f"The tokenizer has {rows + 2} tokens (the last id is {rows + 1})"
    assert f"{tokens}, but the decoder has embeddings for {rows}." in found
    captioner.model.decoder.resize_token_embeddings(rows + 2)  # as the message says
    check(captioner)


def test_more_embeddings_than_tokens_are_usual(captioner):
    captioner.model.decoder.resize_token_embeddings(64)
    check(captioner)


def test_a_head_and_a_config_of_another_size_are_errors(captioner):
    captioner.model.decoder.lm_head = torch.nn.Linear(32, 40, bias=False)
    assert "embedding has 53 tokens, but its output head 40" in complaint(captioner)
    captioner.model.decoder.lm_head = torch.nn.Linear(32, 53, bias=False)
    captioner.model.config.decoder.vocab_size = 60
    assert "vocab_size is 60, but the decoder has embeddings for 53 tokens" in complaint(captioner)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pad_token_id", 53), ("decoder_start_token_id", 99), ("suppress_tokens", [3, 99]), ("forced_bos_token_id", 99),
     ("bad_words_ids", [[4], [5, 99]]), ("begin_suppress_tokens", [-1])],
)  # fmt: skip
def test_tokens_that_nobody_has_are_an_error(captioner, name, value):
    setattr(captioner.model.generation_config, name, value)
    assert f"{name} contains" in complaint(captioner)


# ------------------------------------------------------------------------------------------------------------- lengths

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BART = {
    "d_model": 32, "decoder_layers": 1, "encoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32,
    "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
}  # fmt: skip
FAMILIES = {
    "bert": (SMALL, 16), "bert-generation": (SMALL, 16), "electra": ({**SMALL, "embedding_size": 32}, 16),
    "ernie": (SMALL, 16), "rembert": (SMALL, 16), "roformer": (SMALL, 16),
    # These begin after the position of their padding, which here is token 1.
    "roberta": (SMALL, 14), "roberta-prelayernorm": (SMALL, 14), "xlm-roberta": (SMALL, 14),
    "camembert": (SMALL, 14), "data2vec-text": (SMALL, 14), "xlm-roberta-xl": (SMALL, 14),
    # These have two rows more than their config says, and begin with the third.
    "bart": (BART, 16), "mbart": (BART, 16), "plbart": (BART, 16), "mvp": (BART, 16),
    "trocr": ({**BART, "cross_attention_hidden_size": 32}, 16),
    "pegasus": (BART, 16), "marian": ({**BART, "decoder_vocab_size": 53}, 16), "blenderbot": (BART, 16),
    "blenderbot-small": (BART, 16), "bigbird_pegasus": ({**BART, "attention_type": "original_full"}, 16),
    "gpt2": ({"n_embd": 32, "n_layer": 1, "n_head": 2}, 16),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_positions_are_as_many_tokens_as_the_decoder_can_read(family):
    """One more is an error of torch, which is what must not be met in a training."""
    settings, positions = FAMILIES[family]
    config = AutoConfig.for_model(
        family, vocab_size=53, max_position_embeddings=16, is_decoder=True, add_cross_attention=True, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, **settings,
    )  # fmt: skip
    decoder = AutoModelForCausalLM.from_config(config).eval()
    vit = ViTConfig(**SMALL, image_size=32, patch_size=16)
    assert decoder_positions(VisionEncoderDecoderModel(encoder=ViTModel(vit), decoder=decoder)) == positions
    states = torch.zeros(1, 1, 32)
    decoder(torch.full((1, positions), 5), encoder_hidden_states=states)
    with pytest.raises((IndexError, RuntimeError)):
        decoder(torch.full((1, positions + 1), 5), encoder_hidden_states=states)


def test_lengths_of_the_generation_config_are_held_against_the_positions(captioner):
    generation = captioner.model.generation_config
    generation.max_length = 17  # the start token counts
    check(captioner, max_new_tokens=16)
    generation.max_length = 18
    assert complaint(captioner) == (
        "The captioner's generation config allows captions of 17 tokens (max_length=18), but the decoder has only 16 "
        "positions. Set model.generation_config.max_length = 17, or less."
    )
    generation.max_new_tokens = 20
    assert "captions of 20 tokens (max_new_tokens=20)" in complaint(captioner)
    generation.max_new_tokens, generation.max_length = None, 14
    generation.min_length = 15
    assert "at least 14 tokens per caption (min_length, min_new_tokens) but allows only 13" in complaint(captioner)


def test_a_caption_of_all_positions_can_be_written_and_scored(captioner, make_trainer):
    def endless(model):
        model.generation_config.update(max_length=17, min_new_tokens=16)
        return model

    trainer = make_trainer(adapt=endless)
    trainer.train()
    assert trainer.state.log_history[0]["length"] == 16


# ------------------------------------------------------------------------------------------------------ saving, launch


@pytest.mark.parametrize("settings", [{"max_new_tokens": -1}, {"num_beams": 1, "num_return_sequences": 4}], ids=str)
def test_a_generation_config_that_cannot_be_saved_is_an_error_that_names_the_field(captioner, settings):
    for name, value in settings.items():
        setattr(captioner.model.generation_config, name, value)
    found = complaint(captioner)
    assert "The captioner cannot be saved with its generation config" in found and list(settings)[-1] in found


def test_finding_that_out_changes_neither_model_nor_configs(captioner):
    captioner.model.config.decoder.num_beams = 3
    before = copy.deepcopy((captioner.model.config.to_dict(), captioner.model.generation_config.to_dict()))
    check(captioner)
    assert (captioner.model.config.to_dict(), captioner.model.generation_config.to_dict()) == before


def test_several_gpus_in_one_process_are_an_error_with_the_command_that_works():
    assert list(launch_problems(SimpleNamespace(n_gpu=1))) == list(launch_problems(SimpleNamespace(n_gpu=0))) == []
    (found,) = launch_problems(SimpleNamespace(n_gpu=2))
    assert "`accelerate launch --multi_gpu --num_processes 2 SCRIPT" in found and "CUDA_VISIBLE_DEVICES=0" in found


# ------------------------------------------------------------------------------------------------------------ pictures


def test_an_image_processor_of_another_resolution_is_an_error_with_both(captioner, tiny_models):
    captioner.image_processor.size = {"height": 48, "width": 48}
    found = complaint(captioner)
    assert "cannot process the output of the image processor (3 x 48 x 48)" in found and "32*32" in found
    captioner.image_processor.size = {"height": 32, "width": 32}
    check(captioner)


def test_an_image_processor_of_another_number_of_channels_is_an_error(captioner):
    class Grey(ViTImageProcessor):
        def __call__(self, images, **kwargs):
            return {"pixel_values": super().__call__(images, **kwargs)["pixel_values"][:, :1]}

    captioner.image_processor = Grey(size={"height": 32, "width": 32})
    assert "(1 x 32 x 32)" in complaint(captioner)


def test_an_image_processor_that_keeps_the_shape_of_pictures_is_an_error(captioner):
    class Shapely(ViTImageProcessor):
        def resize(self, image, size, *args, **kwargs):
            height, width = image.shape[:2]
            size = {"height": 32, "width": 32 * width // height}
            return super().resize(image, size, *args, **kwargs)

    captioner.image_processor = Shapely()
    assert "cannot make one batch of a wide and a tall image" in complaint(captioner)


def test_an_encoder_of_another_width_than_it_says_is_an_error(captioner):
    captioner.model.config.encoder.hidden_size = 24
    message = "vectors have 32 numbers, but the decoder is built for model.config.encoder.hidden_size=24"
    assert message in complaint(captioner)


def test_an_encoder_that_gives_a_map_is_an_error(captioner):
    captioner.model.encoder.register_forward_hook(
        lambda model, args, outputs: SimpleNamespace(last_hidden_state=outputs[0][:, 1:].reshape(-1, 4, 4, 32))
    )
    assert "for an image has the shape (4, 4, 32)" in complaint(captioner)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BertConfig(vocab_size=53, **SMALL), "ignores images: its logits are the same with and without"),
        (BertConfig(vocab_size=53, **SMALL), "The decoder is not causal: its logits for the first token"),
        (BertConfig(vocab_size=53, is_decoder=True, **SMALL), "It needs cross-attention (add_cross_attention=True"),
        (GPT2Config(vocab_size=53, n_embd=32, n_layer=1, n_head=2), "It needs cross-attention"),
        (BertConfig(vocab_size=53, is_decoder=True, add_cross_attention=True, **SMALL), ""),
        (GPT2Config(vocab_size=53, n_embd=32, n_layer=1, n_head=2, add_cross_attention=True), ""),
    ],
    ids=["blind bert", "bert of both directions", "bert alone", "gpt2 alone", "good bert", "good gpt2"],
)
def test_a_decoder_must_look_at_pictures_and_not_ahead(captioner, config, message):
    captioner = with_decoder(captioner, config)
    if not message:
        return check(captioner)
    assert message in complaint(captioner)


# ----------------------------------------------------------------------------------------------------- who looks at it


def test_a_trainer_looks_before_it_embeds_anything(make_trainer, monkeypatch):
    calls = []

    def too_long(model):
        model.generation_config.max_length = 64
        return model

    with monkeypatch.context() as patch:
        patch.setattr(ClipScorer, "encode_images", lambda *_: calls.append(1))
        with pytest.raises(ValueError, match="(?s)2 problems.*captions of 63 tokens.*12 training images"):
            make_trainer(adapt=too_long, per_device_train_batch_size=13)
    assert calls == []


def test_a_trainer_says_at_once_what_of_all_its_parts_does_not_fit(make_trainer):
    """Captioner, scorer, data, rewards, embeddings and settings, with no picture embedded yet."""

    def too_long(model):
        model.generation_config.max_length = 64
        return model

    def needs_style(captions, style):
        return [1.0] * len(captions)

    embeddings = CaptionEmbeddings(torch.eye(12), torch.eye(60)[:, :12], torch.arange(0, 61, 5))
    with pytest.raises(ValueError) as caught:
        make_trainer(
            adapt=too_long, per_device_train_batch_size=13, eval_strategy="epoch", caption_metrics=len,
            rewards=[needs_style, "cider"], reward_weights=[1.0], embeddings=embeddings,
            dataset=tiny.scenes().add_column("row", range(12)),
        )  # fmt: skip
    count, *said = str(caught.value).split("\n- ")
    assert count == "6 problems:"
    for part, words in zip(said, (
        "captions of 63 tokens", "12 training images do not fill one batch of 13", "eval_strategy=epoch needs",
        "have 12 numbers each, those of the scorer", "1 reward_weights for 2 rewards", "'needs_style' needs 'style'",
    ), strict=True):  # fmt: skip
        assert words in part


def test_parts_that_cannot_be_had_are_said_beside_the_others(tiny_models, tmp_path):
    model, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    model.generation_config.max_length = 64
    with pytest.raises(ValueError) as caught:
        RLCaptionTrainer(
            model,
            RLCaptionConfig(output_dir=str(tmp_path), reward=["cidr"], use_cpu=True),
            scorer=str(tmp_path),
            train_dataset=tiny.scenes().remove_columns("captions"),
            processing_class=tokenizer,
            image_processor=image_processor,
        )
    said = str(caught.value)
    for words in (
        "4 problems", "captions of 63 tokens", "no column 'captions'", f"Scorer '{tmp_path}' cannot be loaded",
        "reward 'cidr' is unknown",
    ):  # fmt: skip
        assert words in said


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scorer": None}, "scorer should be a ClipScorer or the name of one, not a NoneType."),
        ({"args": Seq2SeqTrainingArguments(use_cpu=True)}, "args should be an RLCaptionConfig, not a Seq2Seq"),
    ],
)
def test_a_part_of_another_kind_is_named(tiny_models, tmp_path, wrong, message):
    model, tokenizer, image_processor = tiny.load_captioner(tiny_models)
    args = RLCaptionConfig(output_dir=str(tmp_path), per_device_train_batch_size=4, use_cpu=True)
    given = {"args": args, "scorer": tiny_models / "scorer", "image_processor": image_processor, **wrong}
    with pytest.raises(ValueError) as caught:
        RLCaptionTrainer(model, train_dataset=tiny.scenes(), processing_class=tokenizer, **given)
    assert message in str(caught.value)


def test_a_captioner_needs_an_image_processor(captioner):
    captioner.image_processor = None
    assert complaint(captioner) == "The captioner needs an image processor: pass it as image_processor."


# ----------------------------------------------------------------------------------------------------- how it writes


@pytest.mark.parametrize(
    "asked",
    [
        {"stop_strings": ["and"]},  # generate would want the tokenizer
        {"prompt_lookup_num_tokens": 3},  # for one picture at a time
        {"guidance_scale": 1.5},
        {"decoder_start_token_id": [1]},
    ],
)
def test_a_generation_config_that_cannot_be_followed_is_found_out(captioner, asked):
    captioner.model.generation_config.update(**asked)
    said = complaint(captioner)
    assert said.startswith("The captioner cannot generate with its generation config: ")
    assert "decoder_start_token_id" in said or f"{next(iter(asked))}=" in said


def test_a_trial_draws_nothing_from_the_random_numbers_of_a_run(captioner):
    captioner.model.generation_config.update(do_sample=True, top_k=5)
    before = torch.get_rng_state()
    check(captioner)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_captioner_that_may_not_end_is_an_error(captioner):
    end = captioner.tokenizer.eos_token_id
    captioner.model.generation_config.suppress_tokens = [5, end]
    assert f"suppresses its end token ({end}), so no caption could end" in complaint(captioner)
    captioner.model.generation_config.eos_token_id = [end, 6]  # the other one may
    check(captioner)


def test_a_long_list_of_tokens_is_cut_short(captioner):
    captioner.model.generation_config.suppress_tokens = list(range(53, 500))
    assert "suppress_tokens contains 53, 54, 55, 56, 57, ..., but" in complaint(captioner)


def test_a_captioner_that_is_to_write_is_looked_at_too(captioner, tmp_path):
    captioner.tokenizer.add_tokens(["zebra"])
    captioner.model.generation_config.do_sample = False
    for part in (captioner.model, captioner.tokenizer, captioner.image_processor):
        part.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="The tokenizer has 54 tokens"):
        Captioner(tmp_path)
