"""Teacher forcing from nothing, and on from there with one's own pictures."""

import json
import pickle
import shutil
from pathlib import Path
from types import ModuleType

import forked
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertLMHeadModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from hf_distinct.data import load_captions
from hf_distinct.families import FAMILIES, family_of
from hf_distinct.files import checkpoints
from hf_distinct.inference.captioner_fit import check_fit, decoder_positions
from hf_distinct.inference.dataset_captions import write_captions
from hf_distinct.inference.pipelines import load_image_processor

CAPTIONS = ["a red dog", "a blue cat on a mat"]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    return forked.module("warm_up")


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> Path:
    """A folder with a published encoder, ``vit``, and language models: ``bert``, and ``llama``, which cannot see."""
    folder = tmp_path_factory.mktemp("towers")
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**shape, image_size=32, patch_size=8)).save_pretrained(folder / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "vit")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    bert = BertConfig(**shape, vocab_size=len(words), max_position_embeddings=64)
    llama = LlamaConfig(**shape, vocab_size=len(words))
    for name, model in (("bert", BertLMHeadModel(bert)), ("llama", LlamaForCausalLM(llama))):
        model.save_pretrained(folder / name)
        BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / name)
    return folder


def warm_up(folder: Path, *arguments: object, fails: bool = False):
    small = ["--max_steps", 2, "--per_device_train_batch_size", 8, "--captions_per_image", 2]
    return forked.run("warm_up.py", "--output_dir", folder, *small, *arguments, fails=fails)


@pytest.mark.slow
def test_from_nothing_then_on_ones_own_pictures(tmp_path: Path) -> None:
    done = warm_up(tmp_path / "new", "--train_size", "32")
    metrics = json.loads((tmp_path / "new" / "metrics.json").read_text())
    assert metrics["steps"] == 2
    assert {"CIDEr-D", "well_formed", "true", "details"} <= set(metrics)
    assert metrics["unique"] < 0.1 and "alarm/unique" in done.stdout

    pictures = tmp_path / "pictures"
    forked.run("make_example.py", pictures, 40)
    on = ["--dataset", str(pictures), "--model_name_or_path", str(tmp_path / "new")]
    warm_up(tmp_path / "on", *on, "--drop_images", "0.5")
    model = VisionEncoderDecoderModel.from_pretrained(tmp_path / "on").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "on")
    processor = load_image_processor(tmp_path / "on")
    dataset = load_captions(str(pictures))["train"].select(range(5))
    assert len(write_captions(model, tokenizer, processor, dataset, batch_size=2)) == 5

    good = (tmp_path / "on" / "model.safetensors").read_bytes()
    failed = warm_up(tmp_path / "on", *on, "--learning_rate", 1e30, "--warmup_steps", 0, fails=True)
    assert "The training has diverged and is stopped" in failed.stderr
    assert (tmp_path / "on" / "model.safetensors").read_bytes() == good


@pytest.mark.both_ends
@pytest.mark.parametrize("encoder", [None, "vit"])
@pytest.mark.parametrize("decoder", [None, "bert"])
def test_each_part_is_published_or_new(recipe, towers, tmp_path, encoder, decoder) -> None:
    settings = recipe.Settings(
        encoder=encoder and str(towers / encoder), decoder=decoder and str(towers / decoder), max_caption_length=50
    )
    model, tokenizer, image_processor = recipe.build_captioner(settings, CAPTIONS)
    assert model.config.encoder.model_type == (encoder or "segformer")
    assert model.config.decoder.model_type == (decoder or "gpt2")
    assert image_processor.size["height"] == (32 if encoder else 64)
    own = model.encoder.state_dict()
    if encoder:
        theirs = ViTModel.from_pretrained(towers / "vit").state_dict()
        assert all(torch.equal(own[name], value) for name, value in theirs.items())
    model.save_pretrained(tmp_path)
    model = VisionEncoderDecoderModel.from_pretrained(tmp_path).eval()
    assert model.generation_config.max_length == 51
    with torch.no_grad():
        side = image_processor.size["height"]
        tokens = model.generate(torch.zeros(1, 3, side, side), eos_token_id=None, do_sample=False)
    assert tokens.shape == (1, 51)  # all positions are there
    assert tokenizer.eos_token_id == model.config.eos_token_id


OTHERS = [name for name in FAMILIES if name != "vision-encoder-decoder"]


@pytest.mark.both_ends
@pytest.mark.parametrize("model_type", OTHERS)
def test_a_captioner_of_another_kind_is_new_as_a_whole(recipe, tmp_path, model_type) -> None:
    vision = {"image_size": 32, "patch_size": 16, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    settings = recipe.Settings(
        model_type=model_type, encoder_config=json.dumps(vision), decoder_width=64, decoder_layers=1,
        decoder_dropout=0.2, max_caption_length=40, freeze_encoder=True,
    )  # fmt: skip
    model, tokenizer, image_processor = recipe.build_captioner(settings, CAPTIONS)
    check_fit(model, tokenizer, image_processor)
    family = family_of(model)
    assert model.config.model_type == model_type and decoder_positions(model) == 40
    _, text = family.text_config
    assert (text.hidden_size, text.num_hidden_layers, text.hidden_dropout_prob) == (64, 1, 0.2)
    assert family.encoder(torch.zeros(1, 3, 32, 32)).last_hidden_state.shape == (1, 5, 32)
    assert not any(weight.requires_grad for weight in family.encoder.parameters())
    assert model.generation_config.max_length == 41
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        tokens = family_of(type(model).from_pretrained(tmp_path).eval()).write(torch.zeros(1, 3, 32, 32))
    assert tokens[0, 0] == tokenizer.bos_token_id


@pytest.mark.slow
@pytest.mark.parametrize("model_type", OTHERS)
def test_a_captioner_of_another_kind_is_trained_by_both_recipes(tmp_path: Path, model_type: str) -> None:
    new, pictures = ["--model_type", model_type, "--decoder_layers", 1], ["--train_size", 48]
    warm_up(tmp_path / "warm", *new, *pictures, "--validation_size", 8, "--drop_images", 0.5)
    small = ["--max_steps", 2, "--per_device_train_batch_size", 4, "--test_size", 12, *pictures]
    forked.run("train.py", "--model_name_or_path", tmp_path / "warm", "--output_dir", tmp_path / "rl", *small)
    metrics = json.loads((tmp_path / "rl" / "metrics.json").read_text())
    assert {"before", "after"} <= set(metrics)
    assert f"- {model_type}\n" in (tmp_path / "rl" / "README.md").read_text()


@pytest.mark.parametrize(("asked", "length"), [(None, 25), (12, 13), (19, 21)])  # 20 is unset, to transformers
def test_the_length_of_captions(recipe, asked, length) -> None:
    model, _, _ = recipe.build_captioner(recipe.Settings(max_caption_length=asked), CAPTIONS)
    assert model.generation_config.max_length == length


def test_the_length_of_a_captioner_that_goes_on_is_its_own_unless_given(recipe, tiny_models) -> None:
    source = str(tiny_models / "captioner")
    for asked, length in ((None, 14), (9, 10)):
        settings = recipe.Settings(model_name_or_path=source, max_caption_length=asked)
        assert recipe.build_captioner(settings, [])[0].generation_config.max_length == length


def test_a_new_encoder_may_be_of_another_size(recipe) -> None:
    vit = {"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 48}
    model, _, image_processor = recipe.build_captioner(recipe.Settings(encoder_config=json.dumps(vit)), CAPTIONS)
    assert image_processor.size == {"height": 48, "width": 48}
    assert model.encoder(torch.zeros(1, 3, 48, 48)).last_hidden_state.shape == (1, 10, 32)


def test_the_default_length_of_captions_fits_a_decoder_of_few_positions(recipe, tiny_models, tmp_path) -> None:
    decoder = VisionEncoderDecoderModel.from_pretrained(tiny_models / "captioner").decoder  # of 16 positions
    folder = tmp_path / "decoder"
    decoder.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_models / "captioner").save_pretrained(folder)
    model, _, _ = recipe.build_captioner(recipe.Settings(decoder=str(folder)), CAPTIONS)
    assert model.generation_config.max_length == 16 + 1  # the start token counts
    model, _, _ = recipe.build_captioner(recipe.Settings(), CAPTIONS)
    assert model.generation_config.max_length == 24 + 1


def test_a_new_decoder_has_the_size_and_the_words_that_are_asked_for(recipe) -> None:
    settings = recipe.Settings(decoder_layers=3, decoder_width=64, decoder_dropout=0.2, min_word_count=2)
    model, tokenizer, _ = recipe.build_captioner(settings, ["a red dog", "a red cat", "one dog"])
    config = model.config.decoder
    assert (config.n_layer, config.n_embd, config.n_head) == (3, 64, 2)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.2, 0.2, 0.2)
    assert {"a", "red", "dog"} < set(tokenizer.get_vocab()) and "cat" not in tokenizer.get_vocab()
    assert model.generation_config.suppress_tokens == [tokenizer.unk_token_id]
    assert recipe.build_captioner(recipe.Settings(), CAPTIONS)[0].generation_config.suppress_tokens is None


def test_a_new_decoder_may_have_a_published_tokenizer(recipe, towers) -> None:
    model, tokenizer, _ = recipe.build_captioner(recipe.Settings(tokenizer=str(towers / "bert")), CAPTIONS)
    assert tokenizer.tokenize("red dog") == ["r", "##e", "##d", "d", "##o", "##g"]
    assert model.config.decoder.vocab_size == len(tokenizer)
    assert model.config.decoder.model_type == "gpt2"
    assert model.generation_config.eos_token_id == tokenizer.sep_token_id


@pytest.mark.both_ends
def test_the_width_of_an_encoder_whose_config_does_not_say_it_is_found(recipe, tmp_path) -> None:
    AutoModel.from_config(AutoConfig.for_model("timm_wrapper", architecture="test_vit")).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 160, "width": 160}).save_pretrained(tmp_path)
    model, tokenizer, processor = recipe.build_captioner(recipe.Settings(encoder=str(tmp_path)), CAPTIONS)
    check_fit(model, tokenizer, processor)
    model.save_pretrained(tmp_path / "captioner")
    assert VisionEncoderDecoderModel.from_pretrained(tmp_path / "captioner").config.encoder.hidden_size == 64


def test_epochs_say_how_long_unless_steps_do(recipe, tmp_path) -> None:
    def steps(**settings: float) -> int:
        return recipe.Training(output_dir=str(tmp_path), use_cpu=True, **settings).max_steps

    assert (steps(), steps(max_steps=7), steps(num_train_epochs=2)) == (2500, 7, -1)
    with pytest.raises(ValueError, match="max_steps=7 and num_train_epochs=2 both say how long"):
        steps(max_steps=7, num_train_epochs=2)


def test_a_frozen_encoder(recipe) -> None:
    model, _, _ = recipe.build_captioner(recipe.Settings(freeze_encoder=True), CAPTIONS)
    assert not any(each.requires_grad for each in model.encoder.parameters())
    assert all(each.requires_grad for each in model.decoder.parameters())


def test_language_models_that_cannot_look_at_pictures_are_refused(recipe, towers, tmp_path) -> None:
    towers_of = ["--encoder", towers / "vit", "--decoder", towers / "llama"]
    done = warm_up(tmp_path / "blind", *towers_of, "--train_size", 8, "--use_cpu", "true", fails=True)
    assert "It needs cross-attention" in done.stderr
    shutil.copytree(towers / "bert", tmp_path / "t5")
    (tmp_path / "t5" / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ValueError, match=r"--decoder .*t5 cannot be loaded as a causal language model"):
        recipe.build_captioner(recipe.Settings(decoder=str(tmp_path / "t5")), CAPTIONS)


def test_pretrained_parts_are_trained_at_a_lower_rate(recipe) -> None:
    assert not recipe.Settings().pretrained
    for part in ("encoder", "decoder", "model_name_or_path"):
        assert recipe.Settings(**{part: "x"}).pretrained


def test_two_processes_without_a_gpu_train_one_captioner(run_processes, tmp_path) -> None:
    flags = ["--train_size", 32, "--per_device_train_batch_size", 4, "--max_steps", 1, "--save_steps", 1]
    flags += ["--validation_size", 40]
    two = forked.RECIPES.parent / "tests" / "distributed" / "recipe_in_two.py"
    run_processes(str(two), *[["warm_up.py", *flags, "--save_strategy", "steps", "--output_dir", tmp_path]] * 2)
    assert checkpoints.processes_of(tmp_path / "checkpoint-1") == 2
    assert json.loads((tmp_path / "metrics.json").read_text())["steps"] == 1


def test_a_launcher_that_starts_fewer_processes_than_asked_is_found_out(recipe, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(ValueError, match="asked for several processes but started one"):
        recipe.Training(output_dir=str(tmp_path), use_cpu=True)


def test_a_token_is_neither_shown_nor_saved(recipe, tmp_path) -> None:
    training = recipe.Training(output_dir=str(tmp_path), use_cpu=True, hub_token="hf_secret")
    assert "hf_secret" not in repr(training) and b"hf_secret" not in pickle.dumps(training)
