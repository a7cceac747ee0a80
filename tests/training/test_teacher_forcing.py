"""Teacher forcing: every setting acts or is refused, what diverges is not saved, what collapses is reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from hf_distinct.data.augmentation import Augmentation
from hf_distinct.files import checkpoints
from hf_distinct.gallery import Gallery
from hf_distinct.training.finite import LEAST_SCALE, scaler_problems
from hf_distinct.training.supervised import early_stopping
from hf_distinct.training.teacher_forcing import UNUSED, TeacherForcing, teacher_forcing_problems


def make(models: Path, output: Path, kind: type = TeacherForcing, adapt: Any = None, **settings: Any) -> Any:
    names = ("dropped_images", "max_length", "encoder_learning_rate", "augmentation", "callbacks")
    own = {name: settings.pop(name) for name in names if name in settings}
    model, tokenizer, image_processor = tiny.load_captioner(models)
    if adapt is not None:
        adapt(model)
    defaults: dict[str, Any] = {
        "output_dir": str(output), "per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2,
        "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "use_cpu": True, "report_to": [], "remove_unused_columns": False, "seed": 3,
    }  # fmt: skip
    return kind(
        model,
        Seq2SeqTrainingArguments(**{**defaults, **settings}),
        train_dataset=tiny.scenes(),
        gallery=Gallery(tiny.scenes(8), {}),
        processing_class=tokenizer,
        image_processor=image_processor,
        captions_per_image=2,
        **{"max_length": tiny.MAX_LENGTH, **own},
    )


def loss_of(trainer: TeacherForcing) -> torch.Tensor:
    trainer.model.eval()
    return trainer.compute_loss(trainer.model, tiny.a_batch(trainer)).detach()


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.both_ends
def test_label_smoothing_spreads_the_target_over_the_vocabulary(tiny_models, tmp_path):
    plain, smooth = (make(tiny_models, tmp_path, label_smoothing_factor=factor) for factor in (0.0, 0.3))
    plain.model.eval()
    batch = tiny.a_batch(plain)
    _, outputs = plain.compute_loss(plain.model, batch, return_outputs=True)
    real = batch["labels"].flatten() != -100
    spread = -outputs["logits"].flatten(0, 1)[real].log_softmax(-1).mean().detach()
    assert loss_of(smooth) == pytest.approx(float(0.7 * loss_of(plain) + 0.3 * spread), rel=1e-5)


@pytest.mark.both_ends
def test_two_accumulated_batches_count_as_much_as_one(tiny_models, tmp_path):
    class Same(TeacherForcing):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            model.eval()
            found = super().training_step(model, tiny.a_batch(self), *args, **kwargs)
            parameters = dict(model.named_parameters())
            self.gradients = {name: each.grad.clone() for name, each in parameters.items() if each.grad is not None}
            return found

    once, twice = (
        make(tiny_models, tmp_path, kind=Same, max_steps=1, gradient_accumulation_steps=steps, optim="sgd")
        for steps in (1, 2)
    )
    for trainer in (once, twice):
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer.train()
    for name, gradient in once.gradients.items():
        torch.testing.assert_close(twice.gradients[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_frozen_encoder_stays_in_eval_mode_and_any_other_does_not(tiny_models, tmp_path):
    for frozen in (True, False):
        trainer = make(tiny_models, tmp_path, adapt=lambda model: model.encoder.requires_grad_(not frozen))  # noqa: B023
        trainer.model.encoder.statistics = torch.nn.BatchNorm1d(1, affine=False)  # as those of convolutional encoders
        modes = []
        trainer.model.encoder.register_forward_hook(
            lambda module, *_, modes=modes: modes.append((module.training, module.statistics.training))
        )
        before = tiny.weights(trainer.model.encoder)
        trainer.train()
        assert set(modes) == {(not frozen, not frozen)}
        assert bool(tiny.moved(before, trainer.model.encoder)) != frozen


def test_the_encoder_has_a_learning_rate_of_its_own(tiny_models, tmp_path):
    settings = {"encoder_learning_rate": 1e-3, "max_steps": 4, "lr_scheduler_type": "linear", "weight_decay": 0.1}
    trainer = make(tiny_models, tmp_path, save_strategy="steps", save_steps=2, **settings)
    trainer.train()
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    rates: dict[tuple[float, float], set[str]] = {}
    for group in trainer.optimizer.param_groups:
        own = {names[id(weight)].partition(".")[0] for weight in group["params"]}
        rates.setdefault((group["initial_lr"], group["weight_decay"]), set()).update(own)
    assert rates.pop((1e-3, 0.1)) == rates.pop((1e-3, 0.0)) == {"encoder"}
    assert set(rates) == {(1e-2, 0.1), (1e-2, 0.0)} and not any("encoder" in each for each in rates.values())
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(names)
    resumed = make(tiny_models, tmp_path, **settings)
    resumed.train(str(tmp_path / "checkpoint-2"))
    assert not tiny.moved(tiny.weights(trainer.model), resumed.model)


def test_views_reach_the_captioner(tiny_models, tmp_path):
    plain, viewed = make(tiny_models, tmp_path), make(tiny_models, tmp_path, augmentation=Augmentation((0.3, 0.5)))
    pixels = [tiny.a_batch(trainer)["pixel_values"] for trainer in (plain, viewed)]
    assert pixels[0].shape == pixels[1].shape and not torch.equal(*pixels)
    viewed.data_collator.epoch = 1
    later = viewed.data_collator([viewed.train_dataset[i] for i in range(4)])["pixel_values"]
    assert not torch.equal(later, pixels[1])
    assert torch.equal(*(tiny.a_batch(trainer)["labels"] for trainer in (plain, viewed)))


@pytest.mark.both_ends
def test_a_training_that_no_longer_gains_stops_early_with_its_best(tiny_models, tmp_path):
    settings = {
        "max_steps": 9, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "CIDEr-D",
    }  # fmt: skip
    scores = [0.1, 0.4, 0.3, 0.2, 0.9]

    class Declining(TeacherForcing):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            metrics = {"eval_CIDEr-D": scores[self.state.global_step - 1]}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

    def trainer(**more: Any) -> Any:
        args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True, load_best_model_at_end=True,
                                        eval_strategy="steps", save_strategy="steps")
        made = make(tiny_models, tmp_path, kind=Declining, callbacks=early_stopping(args, 2), **settings, **more)
        made.args.restore_callback_states_from_checkpoint = args.restore_callback_states_from_checkpoint
        return made

    stopped = trainer()
    stopped.train()
    assert stopped.state.global_step == 4 and stopped.state.best_global_step == 2
    resumed = trainer()
    resumed.train(str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4  # it had counted one already
    assert not tiny.moved(tiny.weights(stopped.model), resumed.model)


def test_early_stopping_needs_a_best_checkpoint(tmp_path):
    args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert early_stopping(args, None) == []
    with pytest.raises(ValueError, match="early_stopping_patience=3 .*--load_best_model_at_end true"):
        early_stopping(args, 3)


def test_arguments_that_cannot_act_are_refused_by_name(tmp_path):
    values = {
        "generation_max_length": 9, "generation_num_beams": 3, "generation_config": "x", "eval_accumulation_steps": 2,
        "include_for_metrics": ["loss"],
    }  # fmt: skip
    for name in UNUSED:
        args = Seq2SeqTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
        assert list(teacher_forcing_problems(args)) == []
        setattr(args, name, values.get(name, True))
        (told,) = teacher_forcing_problems(args)
        assert f"--{name} has no effect" in told
    args.load_best_model_at_end = True
    assert "metric_for_best_model" in list(teacher_forcing_problems(args))[-1]


def test_captions_longer_than_the_decoder_are_refused_with_both_numbers(tiny_models, tmp_path):
    with pytest.raises(ValueError, match="Captions of 40 tokens do not fit the decoder, which has 16 positions"):
        make(tiny_models, tmp_path, max_length=40)


def test_a_captioner_that_cannot_caption_is_found_out_at_the_start(tiny_models, tmp_path):
    def narrow(model: Any) -> None:
        model.decoder.transformer.wte = torch.nn.Embedding(1, 32)

    with pytest.raises(ValueError, match="The tokenizer has 53 tokens .*, but the decoder has embeddings for 1."):
        make(tiny_models, tmp_path, adapt=narrow)


# --------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("where", ["loss", "gradient", "weights"])
def test_what_is_not_finite_ends_the_training_and_is_not_saved(tiny_models, tmp_path, where):
    class Diverging(TeacherForcing):
        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(model, *args, **kwargs)
            if self.state.global_step < 1 or where == "weights":
                return loss
            weight = next(model.parameters())
            return loss * torch.nan if where == "loss" else loss + (weight.flatten()[0] * 0).sqrt()

    trainer = make(tiny_models, tmp_path, kind=Diverging, max_steps=3, save_strategy="steps", save_steps=1)
    before = tiny.weights(trainer.model)
    with pytest.raises(ValueError, match="diverged and is stopped.*not saved"):  # noqa: PT012
        trainer.train()
        next(trainer.model.parameters()).data[0] = torch.nan
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()
    whole = ["checkpoint-1"] if where != "weights" else ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert sorted(path.name for path in tmp_path.iterdir()) == whole
    if where != "weights":
        assert all(value.isfinite().all() for value in trainer.model.state_dict().values())  # the step is not taken
        assert tiny.moved(before, trainer.model)


# ----------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.both_ends
def test_a_resumed_training_is_the_same_training(tiny_models, tmp_path):
    settings: dict[str, Any] = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "dropped_images": 0.5}
    settings["augmentation"] = Augmentation((0.5, 1.0))
    whole = make(tiny_models, tmp_path / "whole", **settings)
    whole.train()
    resumed = make(tiny_models, tmp_path / "whole", **settings)
    resumed.train("true")  # from step 4, of the second epoch
    assert [line["step"] for line in resumed.state.log_history if "loss" in line][-1] == 5
    assert not tiny.moved(tiny.weights(whole.model), resumed.model)
    torn = tmp_path / "whole" / "checkpoint-4" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:100])
    again = make(tiny_models, tmp_path / "whole", **settings)
    again.train("true")  # from step 2
    assert not tiny.moved(tiny.weights(whole.model), again.model)


def test_nothing_is_trained_beyond_the_last_step(tiny_models, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 1}
    done = make(tiny_models, tmp_path, **settings)
    done.train()
    again = make(tiny_models, tmp_path, **settings)
    again.train("true")
    assert again.state.global_step == 2
    assert not tiny.moved(tiny.weights(done.model), again.model)

# ---------------------------------------------------------------------------------------------------------- stopping


class Sender(TrainerCallback):
    """Sends a signal to this process when a step begins."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.both_ends
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_leaves_a_checkpoint_from_which_the_training_goes_on_as_if_nothing_had_been(
    tiny_models, tmp_path, caplog, name
):
    whole = make(tiny_models, tmp_path / "whole", max_steps=4)
    whole.train()
    stopped = make(tiny_models, tmp_path / "stopped", max_steps=4)
    stopped.add_callback(Sender(getattr(signal, name), 2))
    with pytest.raises(SystemExit) as left:
        stopped.train()
    assert left.value.code == 128 + getattr(signal, name)
    assert f"stopped by {name} after step 2" in caplog.text
    assert checkpoints.choose("true", tmp_path / "stopped") == str(tmp_path / "stopped" / "checkpoint-2")
    resumed = make(tiny_models, tmp_path / "stopped", max_steps=4)
    resumed.train("true")
    assert not tiny.moved(tiny.weights(whole.model), resumed.model)


def test_a_second_training_in_the_same_folder_is_refused(tiny_models, tmp_path):
    held = "import sys; from hf_distinct.files import run_lock; run_lock.claim(sys.argv[1]); print('held', flush=True)"
    held += "; input()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another run is using this folder"):
            make(tiny_models, tmp_path).train()
        other.communicate("\n")
    make(tiny_models, tmp_path).train()


def test_a_checkpoint_that_brings_code_is_refused(tiny_models, tmp_path):
    make(tiny_models, tmp_path, save_strategy="steps", save_steps=1).train()
    checkpoint = tmp_path / "checkpoint-2"
    config = json.loads((checkpoint / "config.json").read_text())
    config["decoder"]["auto_map"] = {"AutoModelForCausalLM": "own.Own"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    checkpoints.seal(checkpoint, 1)
    with pytest.raises(ValueError, match="checkpoint-2.*requires custom code"):
        make(tiny_models, tmp_path, max_steps=3).train("true")


def test_fp16_on_a_cpu_is_told_to_do_nothing(tiny_models, tmp_path, caplog):
    make(tiny_models, tmp_path, fp16=True)
    assert [each.getMessage() for each in caplog.records if "fp16=True has no effect on a CPU" in each.getMessage()]


def test_fp16_that_finds_no_scale_ends_the_training():
    scaler = torch.amp.GradScaler("cpu", init_scale=LEAST_SCALE)
    assert list(scaler_problems(scaler)) == []
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scaler.scale(weight * torch.nan).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 1.0
    assert list(scaler_problems(scaler)) == ["The gradient is NaN or infinite at every scale of the loss."]


@pytest.mark.parametrize("bad", [1, 2])
def test_divergence_in_any_of_the_accumulated_batches_ends_the_step(tiny_models, tmp_path, bad):
    class Diverging(TeacherForcing):
        calls = 0

        def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            weight = next(model.parameters())
            poison = (weight.flatten()[0] * 0).sqrt() if self.calls == 2 + bad else 0  # a finite loss
            return super().compute_loss(model, *args, **kwargs) + poison

    for precision in ({}, {"bf16": True}):
        settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, **precision}
        trainer = make(tiny_models, tmp_path, kind=Diverging, **settings)
        with pytest.raises(ValueError, match=r"Step 2: The gradient of .* is NaN.*--learning_rate \(now 0.01\)"):
            trainer.train()


# ------------------------------------------------------------------------------------------------------------- alarms


class SaysOneThing(TeacherForcing):
    def caption(self, dataset: Any) -> list[str]:
        return ["a dog on a"] * len(dataset)


def test_one_caption_for_all_pictures_is_reported(tiny_models, tmp_path):
    trainer = make(tiny_models, tmp_path, kind=SaysOneThing, eval_strategy="steps", eval_steps=1)
    trainer.train()
    assert [told.split(":")[0] for told in trainer.alarms.told] == ["step 2, alarm/unique", "step 2, alarm/endings"]
    assert trainer.state.log_history[-2]["alarm/unique"] == 1.0
    unique, endings = trainer.last_alarms(trainer.evaluate())
    assert unique == (
        "alarm/unique: eval_unique is 0.125, below 0.5: one caption for many images; for people's captions it "
        "is 1"
    )
    assert endings.startswith("alarm/endings: eval_bad_endings is 1, above 0.2")


def test_people_raise_no_alarm(tiny_models, tmp_path):
    trainer = make(tiny_models, tmp_path)
    trainer.caption = lambda dataset: [own[0] for own in dataset["captions"]]
    assert trainer.last_alarms(trainer.evaluate()) == []
