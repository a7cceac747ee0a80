"""What the trainer makes of its arguments: models by name, processors left out, adapters by their config."""

from __future__ import annotations

import inspect
import sys

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import VisionEncoderDecoderModel

from hf_distinct import Captioner, RLCaptionConfig, RLCaptionTrainer
from hf_distinct.families import NAMES

pytestmark = pytest.mark.both_ends
LORA = LoraConfig(r=2, lora_dropout=0.1, target_modules=["c_attn", "query", "q_proj"])
SAVING = {"kl_weight": 0.1, "learning_rate": 0.1, "save_strategy": "steps", "save_steps": 2}


def test_every_argument_is_documented():
    told = inspect.getdoc(RLCaptionTrainer)
    arguments = list(inspect.signature(RLCaptionTrainer).parameters)
    places = [told.find(f"\n    {name}: ") for name in arguments]
    assert len(arguments) > 12 and -1 not in places


def test_a_captioner_and_a_scorer_by_name_make_the_same_training(make_trainer, tiny_models, tmp_path):
    settings = {"max_steps": 2, "per_device_train_batch_size": 4, "num_rollouts": 2, "logging_steps": 1, "seed": 3}
    by_name = tiny.RecordingTrainer(
        str(tiny_models / "captioner"),
        RLCaptionConfig(str(tmp_path / "name"), save_strategy="no", disable_tqdm=True, use_cpu=True, **settings),
        scorer=tiny_models / "scorer",
        train_dataset=tiny.scenes(),
    )
    by_name.train()
    usual = make_trainer(learning_rate=1e-5, lr_scheduler_type="linear", max_reference_length=50, **settings)
    usual.train()
    assert by_name.step_losses == usual.step_losses and len(usual.step_losses) == 2
    by_name.save_model()
    captions = tiny.RecordingTrainer(
        tmp_path / "name", usual.args, scorer=by_name.scorer, train_dataset=tiny.scenes()
    ).caption(tiny.scenes())
    assert captions == by_name.caption(tiny.scenes())


def test_settings_may_be_left_out(tiny_models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = {"scorer": tiny_models / "scorer", "train_dataset": tiny.scenes()}
    trainer = RLCaptionTrainer(tiny_models / "captioner", **models)
    assert trainer.args.output_dir == "outputs/rl" and trainer.args.changed == {}


def test_a_peft_config_trains_and_saves_adapters_alone(make_trainer, tiny_models, tmp_path):
    def adapt(model):
        torch.manual_seed(3)
        return get_peft_model(model, LORA)

    ours = make_trainer(tmp_path / "ours", peft_config=LORA, max_steps=2)
    before = tiny.weights(ours.model)
    ours.train()
    wrapped = make_trainer(tmp_path / "wrapped", adapt=adapt, max_steps=2)
    wrapped.train()
    assert ours.step_losses == wrapped.step_losses and len(set(ours.step_losses)) == 2
    changed = tiny.moved(before, ours.model)
    assert changed and all("lora" in name for name in changed)
    ours.save_model(str(tmp_path / "saved"))
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert "adapter_model.safetensors" in names and "model.safetensors" not in names
    pictures = tiny.scenes()["image"][:]
    assert Captioner(tmp_path / "saved")(pictures) == ours.caption(tiny.scenes())
    model = PeftModel.from_pretrained(tiny.load_captioner(tiny_models)[0], tmp_path / "saved")
    frozen = RLCaptionTrainer(model, ours.args, scorer=ours.scorer, train_dataset=tiny.scenes())
    assert frozen.caption(tiny.scenes()) == ours.caption(tiny.scenes())
    with pytest.raises(ValueError, match="^No weight of the captioner is trainable. Adapters that are loaded without"):
        frozen.train()
    model = PeftModel.from_pretrained(tiny.load_captioner(tiny_models)[0], tmp_path / "saved", is_trainable=True)
    again = RLCaptionTrainer(model, ours.args, scorer=ours.scorer, train_dataset=tiny.scenes())
    assert again.caption(tiny.scenes()) == ours.caption(tiny.scenes())


def test_the_reference_model_is_the_captioner_without_adapters(make_trainer, tiny_models):
    trainer = make_trainer(peft_config=LORA, **SAVING, max_steps=2)
    start = tiny.load_captioner(tiny_models)[0]
    assert isinstance(trainer.reference_model, VisionEncoderDecoderModel)
    trainer.train()
    assert tiny.moved(tiny.weights(start), trainer.reference_model) == set()
    kl = [line["kl"] for line in trainer.state.log_history if "kl" in line]
    assert kl[0] == pytest.approx(0, abs=1e-6) and kl[1] > 1e-4


@pytest.mark.parametrize("own", [False, True], ids=["by config", "wrapped, of another seed"])
def test_a_run_with_adapters_is_resumed_to_the_bit(make_trainer, tmp_path, own):
    def adapters(seed):
        def adapt(model):
            torch.manual_seed(seed)
            return get_peft_model(model, LORA)

        return {"adapt": adapt} if own else {"peft_config": LORA}

    whole = make_trainer(tmp_path / "whole", max_steps=4, **SAVING, **adapters(1))
    whole.train()
    make_trainer(tmp_path / "parts", max_steps=2, **SAVING, **adapters(1)).train()
    resumed = make_trainer(tmp_path / "parts", max_steps=4, **SAVING, **adapters(2))
    resumed.train(resume_from_checkpoint=True)
    assert resumed.step_losses == whole.step_losses[2:] and len(resumed.step_losses) == 2


def test_the_card_beside_adapters_is_ours(make_trainer, tmp_path):
    trainer = make_trainer(peft_config=LORA)
    folder = tmp_path / "saved"
    for _ in range(2):
        trainer.save_model(str(folder))
        trainer.write_card(folder)
    assert "More Information Needed" not in (folder / "README.md").read_text()
    assert "hf_distinct" in (folder / "README.md").read_text() and not (folder / "model_card.md").exists()


@pytest.mark.parametrize(
    ("peft_config", "message"),
    [
        (None, f"The captioner must be a {NAMES}, not a NoneType."),
        (LORA, "peft_config does not fit the captioner: "),
    ],
)
def test_no_model_is_a_clear_error(make_trainer, peft_config, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(adapt=lambda model: None, peft_config=peft_config)


@pytest.mark.parametrize(
    ("peft_config", "message"),
    [
        ({"r": 2}, "peft_config should be a peft.PeftConfig, such as a LoraConfig, not a dict."),
        (LoraConfig(), "peft_config does not fit the captioner: Please specify `target_modules`"),
        (LoraConfig(target_modules=["c_atn"]), r"does not fit the captioner: Target modules {'c_atn'} not found"),
    ],
)
def test_a_peft_config_that_does_not_fit_is_a_clear_error(make_trainer, peft_config, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(peft_config=peft_config)


def test_adapters_are_given_once(make_trainer):
    with pytest.raises(ValueError, match="The model has adapters already: leave out peft_config to train them"):
        make_trainer(adapt=lambda model: get_peft_model(model, LORA), peft_config=LORA)


def test_a_push_of_adapters_is_refused_before_the_training(make_trainer):
    with pytest.raises(ValueError, match="push_to_hub pushes whole captioners, but .* only the adapters are saved"):
        make_trainer(peft_config=LORA, push_to_hub=True)


def test_without_peft_a_peft_config_is_a_clear_error(make_trainer, monkeypatch):
    monkeypatch.setattr("hf_distinct.captioner.is_peft_available", lambda: False)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match="peft_config needs the package peft: pip install peft"):
        make_trainer(peft_config=LORA)
