"""What holds on a GPU. GPU_REHEARSAL=1 runs it all on the CPU, so that nothing but the GPU is new on a GPU."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from contextlib import contextmanager

import pytest
import tiny
import torch
from transformers import LogitsProcessorList, TrainerCallback
from transformers.modeling_outputs import BaseModelOutput

from hf_distinct import Captioner, ClipScorer
from hf_distinct.data.embeddings import embed_dataset
from hf_distinct.generation.greedy import generate_with_greedy
from hf_distinct.generation.labels import join_labels
from hf_distinct.generation.logits_processors import MultinomialSampling
from hf_distinct.generation.rollouts import generate_labels, rollout_config

pytestmark = pytest.mark.gpu
CUDA = torch.cuda.is_available()
REHEARSED = os.environ.get("GPU_REHEARSAL") == "1"
IMAGES, LONGEST = 4, 13
# How often a phase of a step may wait for the GPU; captions wait for each token, and their texts for all of them.
WAITS = {"encode": 0, "reward": 0, "score": 8, "backward": 0}


@pytest.fixture
def device(monkeypatch):
    """The GPU, which computes in full precision and always in the same order; or the CPU in a rehearsal."""
    if not REHEARSED and not CUDA:
        pytest.skip("no GPU")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield torch.device("cpu" if REHEARSED else "cuda")
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def trainer_on(make_trainer):
    """Makes a trainer on a device."""

    def make(device, output, **settings):
        trainer = make_trainer(output, use_cpu=device.type == "cpu", **settings)
        trainer.model.to(device)
        return trainer

    return make


def test_a_step_is_that_of_the_cpu(device, trainer_on, tmp_path):
    settings = {"rollouts": "beam", "num_rollouts": 2, "num_beams": 3, "kl_weight": 0.1, "memory_batches": 2}
    losses, gradients = [], []
    for name, place in (("device", device), ("cpu", torch.device("cpu"))):
        trainer = trainer_on(place, tmp_path / name, **settings)
        loss = trainer.compute_loss(trainer.model, tiny.a_batch(trainer))
        loss.backward()
        losses.append(loss.item())
        grads = ((name, weight.grad) for name, weight in trainer.model.named_parameters())
        gradients.append({name: grad.cpu() for name, grad in grads if grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and abs(losses[1]) > 1e-4
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def end_early(model):
    """Ends the captions of each image after another number of tokens."""
    end = model.generation_config.eos_token_id

    def processor(input_ids, scores):
        image = torch.arange(len(scores), device=scores.device) * IMAGES // len(scores)
        likely = scores.max(dim=1).values + 9
        scores[:, end] = torch.where(2 + 3 * image < input_ids.shape[1], likely, scores[:, end])
        return scores

    return processor


@pytest.mark.parametrize("how", ["sample", "greedy", "beam"])
def test_fast_ways_write_what_plain_ones_do(device, tiny_models, how):
    model = tiny.exact_captioner(tiny_models).to(device)
    states, ends = tiny.encoded(IMAGES).to(device), end_early(model)
    settings = {
        "sample": {"do_sample": True, "num_return_sequences": 5},
        "greedy": {},
        "beam": {"num_beams": 3, "num_return_sequences": 2},
    }[how]
    config = rollout_config(model, max_new_tokens=LONGEST, **settings)
    torch.manual_seed(0)
    labels = generate_labels(model, states, config, LogitsProcessorList([ends]))
    stock, processors = tiny.exact_captioner(tiny_models).to(device), LogitsProcessorList([ends])
    if how == "sample":
        states, settings = states.repeat_interleave(5, dim=0), {}
        processors.append(MultinomialSampling())
    config = rollout_config(stock, max_new_tokens=LONGEST, **settings)
    torch.manual_seed(0)
    expected = stock.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=states), generation_config=config,
        logits_processor=processors,
    )[:, 1:]  # fmt: skip
    assert torch.equal(labels, expected.masked_fill(labels == -100, -100)) and bool((labels == -100).any())


@pytest.mark.parametrize("settings", [{"do_sample": True, "num_return_sequences": 3}, {"num_beams": 3}])
def test_greedy_captions_beside_others_are_greedy_captions(device, tiny_models, settings):
    model, states = tiny.exact_captioner(tiny_models).to(device), tiny.encoded(IMAGES).to(device)
    config = rollout_config(model, max_new_tokens=LONGEST, **settings)
    _, greedy = generate_with_greedy(model, states, config, LogitsProcessorList())
    alone = generate_labels(model, states, rollout_config(model, max_new_tokens=LONGEST))
    one, other = join_labels(greedy, alone).chunk(2)
    assert torch.equal(one, other)


@contextmanager
def counted_waits(waits, phase):
    """Count how often the host waits for the GPU; on a CPU, there is nothing to wait for."""
    if not CUDA:
        yield
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits[phase] += sum("synchronizing CUDA operation" in str(each.message) for each in said)


def test_a_step_waits_for_the_gpu_where_it_has_to_and_nowhere_else(device, trainer_on, tmp_path):
    trainer = trainer_on(device, tmp_path)
    inputs, phase, waits = tiny.a_batch(trainer), trainer.meter.phase, Counter()
    trainer.compute_loss(trainer.model, inputs).backward()  # the first one takes memory and chooses kernels

    @contextmanager
    def watched(name):
        with phase(name), counted_waits(waits, name):
            yield

    trainer.meter.phase = watched
    loss = trainer.compute_loss(trainer.model, inputs)
    with counted_waits(waits, "backward"):
        loss.backward()
    assert {name: waits[name] for name in WAITS if waits[name] > WAITS[name]} == {}
    assert waits["generate"] > 0 or not CUDA  # which shows that waits are counted


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(device, trainer_on, tmp_path, precision):
    if REHEARSED and precision == "fp16":
        precision = "bf16"  # torch scales no gradients on a CPU
    trainer = trainer_on(device, tmp_path, max_steps=3, kl_weight=0.1, **{precision: True})
    before = tiny.weights(trainer.model)
    trainer.train()
    assert trainer.void_steps.count == 0
    assert len(trainer.step_losses) == 3 and all(abs(loss) < 10 for loss in trainer.step_losses)
    assert len(tiny.moved({name: value.to(device) for name, value in before.items()}, trainer.model)) > 20
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}


def test_a_training_is_resumed_exactly(device, trainer_on, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "memory_batches": 2, "logging_steps": 3}
    whole = trainer_on(device, tmp_path / "whole", max_steps=4, **settings)
    whole.train()
    trainer_on(device, tmp_path / "parts", max_steps=2, **settings).train()
    resumed = trainer_on(device, tmp_path / "parts", max_steps=4, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.step_losses == whole.step_losses[2:]
    torch.testing.assert_close(tiny.weights(resumed.model), tiny.weights(whole.model), rtol=0, atol=0)


class Memory(TrainerCallback):
    """Bytes that tensors hold on the GPU after each step; none on a CPU."""

    def __init__(self):
        self.held = []

    def on_step_end(self, args, state, control, **kwargs):
        self.held.append(torch.cuda.memory_allocated() if CUDA else 0)


def test_memory_does_not_grow(device, trainer_on, tmp_path):
    steps, memory = (10 if REHEARSED else 200), Memory()
    trainer = trainer_on(device, tmp_path, max_steps=steps, memory_batches=2, logging_steps=5)
    trainer.add_callback(memory)
    trainer.train()
    half = steps // 2
    assert len(memory.held) == steps
    assert max(memory.held[half:]) <= max(memory.held[5:half], default=0) + 2**20


def test_workers_give_batches_as_the_collator_makes_them(device, trainer_on, tmp_path):
    trainer = trainer_on(device, tmp_path, dataloader_num_workers=1, max_steps=1)
    assert trainer.accelerator.dataloader_config.non_blocking == (device.type == "cuda")
    batch = next(iter(trainer.get_train_dataloader()))
    rows = {row["image_id"]: row for row in trainer.train_dataset}
    expected = trainer.data_collator([rows[image_id] for image_id in batch["columns"]["image_id"]])
    assert set(batch) == set(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert batch[name].device.type == device.type
            torch.testing.assert_close(batch[name].cpu(), value, rtol=0, atol=0)
        else:
            assert batch[name] == value


def test_captions_and_embeddings_are_those_of_the_cpu(device, tiny_models):
    scenes = tiny.scenes(6)
    pictures, said, embedded = scenes["image"][:], {}, {}
    for place in ("cpu", device):
        captioner = Captioner(tiny_models / "captioner", str(tiny_models / "scorer"), device=place)
        said[place] = [captioner(pictures, num_samples=4, batch_size=4, num_workers=1)]
        captioner.scorer = None
        said[place].append(captioner(pictures, batch_size=4, num_workers=1))
        scorer = ClipScorer(str(tiny_models / "scorer"), device=place)
        _, embedded[place] = embed_dataset(scenes, scorer, num_workers=1)
    assert said[device] == said["cpu"] and len(set(said["cpu"][1])) > 1
    for name in ("image_embeds", "caption_embeds"):
        torch.testing.assert_close(getattr(embedded[device], name), getattr(embedded["cpu"], name), rtol=0, atol=1e-5)
