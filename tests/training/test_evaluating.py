"""Evaluation and prediction as a Seq2SeqTrainer offers them: names, arguments of generate, token ids, metrics."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
from datasets import DatasetDict
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

import hf_distinct

pytestmark = pytest.mark.both_ends


def count(captions, dataset):
    return {"n": len(captions), "longest": max(len(caption.split()) for caption in captions)}


@pytest.mark.parametrize("size", [2, 8])
def test_predict_captions_every_row_once_and_teaches_nothing(make_trainer, size):
    """Of the training dataset too, whose batches are what the discriminator learns from."""
    trainer = make_trainer(per_device_eval_batch_size=size, caption_metrics=count, discriminator_pretrain_steps=1)
    learner = trainer.discriminator
    before = tiny.weights(learner.discriminator)
    found = trainer.predict(trainer.train_dataset)
    assert learner.steps == 0 and tiny.moved(before, learner.discriminator) == set()
    assert isinstance(found.predictions, np.ndarray) and found.label_ids is None
    texts = trainer.processing_class.batch_decode(found.predictions, skip_special_tokens=True)
    assert [text.strip() for text in texts] == trainer.caption(tiny.scenes()) and len(texts) == 12
    assert (found.predictions[:, 0] == trainer.model.config.decoder_start_token_id).all()
    assert found.metrics["test_n"] == 12 and found.metrics["test_samples_per_second"] > 0


def test_predict_needs_neither_captions_nor_metrics(make_trainer):
    pictures = tiny.scenes(3).select_columns(["image"])
    for metrics in (None, hf_distinct.caption_metrics):
        found = make_trainer(caption_metrics=metrics).predict(pictures, metric_key_prefix="own")
        assert len(found.predictions) == 3 and not [name for name in found.metrics if "CIDEr" in name]


def test_our_metrics_compare_captions_with_those_of_the_dataset(make_trainer):
    dataset = tiny.scenes(4)
    trainer = make_trainer(caption_metrics=hf_distinct.caption_metrics, eval_dataset=dataset)
    found = trainer.evaluate()
    expected = hf_distinct.caption_metrics(trainer.caption(dataset), dataset["captions"][:])
    assert {name: found[f"eval_{name}"] for name in expected} == expected and expected["CIDEr-D"] > 0


def test_metrics_that_are_none_are_a_clear_error(make_trainer):
    trainer = make_trainer(caption_metrics=lambda captions, _: 0.5, eval_dataset=tiny.scenes(2))
    with pytest.raises(ValueError, match="caption_metrics returned a float; it must return a dict of numbers"):
        trainer.evaluate()


def test_one_of_several_datasets_is_evaluated_by_its_name(make_trainer):
    datasets = DatasetDict({"val": tiny.scenes(3), "other": tiny.scenes(2)})
    trainer = make_trainer(caption_metrics=count, eval_dataset=datasets)
    assert trainer.evaluate("val")["eval_n"] == 3
    assert [trainer.evaluate()[f"eval_{name}_n"] for name in datasets] == [3, 2]
    with pytest.raises(ValueError, match="has no dataset named 'vla': it has val, other"):
        trainer.evaluate("vla")
    with pytest.raises(ValueError, match="has no dataset named 'val': it is not a dict of datasets"):
        make_trainer(caption_metrics=count, eval_dataset=tiny.scenes(2)).evaluate("val")


@pytest.mark.parametrize("saved", [{}, {"max_new_tokens": 9}])
def test_settings_of_generation_rule_captions(make_trainer, saved):
    """The start token counts, and the saved config's other way to say a length does not win."""
    trainer = make_trainer(generation_max_length=3, generation_num_beams=2, caption_metrics=count)
    trainer.model.generation_config.update(**saved)
    generate, asked = trainer.model.generate, []
    trainer.model.generate = lambda *args, **how: asked.append(how) or generate(*args, **how)
    dataset = tiny.scenes(3)
    assert max(len(caption.split()) for caption in trainer.caption(dataset)) == 2
    assert trainer.evaluate(dataset)["eval_longest"] == 2
    assert trainer.predict(dataset).predictions.shape == (3, 3)
    assert {how["num_beams"] for how in asked} == {2}


def test_arguments_of_generate_reach_every_dataset(make_trainer):
    trainer = make_trainer(caption_metrics=count, eval_dataset={"a": tiny.scenes(3), "b": tiny.scenes(2)})
    found = trainer.evaluate(max_length=3)
    assert (found["eval_a_longest"], found["eval_b_longest"]) == (2, 2)
    assert trainer.evaluate("a", max_new_tokens=1)["eval_longest"] == 1
    assert trainer.predict(tiny.scenes(3), max_length=4).predictions.shape == (3, 4)
    assert trainer.evaluate("a")["eval_longest"] > 2
    with pytest.raises(ValueError, match="num_beems"):
        trainer.evaluate(num_beems=2)


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "adapters"])
def test_a_generation_config_of_the_settings_is_the_captioners(make_trainer, tmp_path, adapted):
    GenerationConfig(max_length=5, pad_token_id=0).save_pretrained(tmp_path / "generation")

    def adapt(model):
        return get_peft_model(model, LoraConfig(r=2, target_modules=["c_attn"])) if adapted else model

    trainer = make_trainer(generation_config=str(tmp_path / "generation"), adapt=adapt)
    assert max(len(caption.split()) for caption in trainer.caption(tiny.scenes(3))) <= 4
    hidden = trainer.policy.encode(trainer.model, tiny.a_batch(trainer)["pixel_values"])
    assert trainer.policy.roll_out(trainer.model, hidden, len(hidden), greedy=False).labels.shape[1] <= 4
    trainer.save_model(str(tmp_path / "saved"))
    assert adapted or GenerationConfig.from_pretrained(tmp_path / "saved").max_length == 5


def test_an_evaluation_measures_time_and_memory(make_trainer):
    trainer = make_trainer(caption_metrics=count, eval_dataset=tiny.scenes(2), skip_memory_metrics=False)
    found = trainer.evaluate()
    assert found["eval_runtime"] > 0 and "eval_mem_cpu_alloc_delta" in found


def test_an_evaluation_at_the_start_stays_asked_for_after_an_error(make_trainer):
    """A run that is taken up makes none; if it fails, the next one, from the start, makes its own."""
    settings = {"eval_dataset": tiny.scenes(2), "caption_metrics": count, "eval_on_start": True}
    make_trainer(**settings, save_strategy="steps", save_steps=1).train()

    def fail(captions, references):
        raise RuntimeError("no")

    trainer = make_trainer(**settings, max_steps=2, rewards=[fail])
    with pytest.raises(RuntimeError, match="no"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.args.eval_on_start and not any("eval_n" in line for line in trainer.state.log_history[1:])


@pytest.mark.parametrize(
    "asked",
    [{"num_beams": 2, "num_return_sequences": 2}, {"return_dict_in_generate": True, "output_scores": True}],
    ids=["several captions", "scores"],
)
def test_a_picture_gets_one_caption_whatever_the_saved_config_asks_for(make_trainer, asked):
    trainer, dataset = make_trainer(), tiny.scenes(4)
    trainer.model.generation_config.num_beams = asked.get("num_beams", 1)
    one = trainer.caption(dataset)
    trainer.model.generation_config.update(**asked)
    assert trainer.caption(dataset) == one and len(set(one)) > 1
    with pytest.raises(ValueError, match="num_return_sequences: evaluation writes one caption per image"):
        trainer.predict(dataset, num_beams=2, num_return_sequences=2)
