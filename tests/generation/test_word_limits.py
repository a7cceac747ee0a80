"""What a saved generation config forbids and forces: rollouts obey, and their log-probabilities know it."""

from __future__ import annotations

import logging

import pytest
import tiny
import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from hf_distinct.captioner import token_id
from hf_distinct.generation.greedy import generate_with_greedy
from hf_distinct.generation.rollouts import generate_labels, rollout_config
from hf_distinct.generation.word_limits import forbidden_tokens, left_out
from hf_distinct.losses import policy_logits

pytestmark = pytest.mark.both_ends  # it hangs on how transformers writes
IMAGES, LONGEST = 4, 6
START, WORD, END = 1, 5, 2
LIMITS = {
    "suppress_tokens": [WORD], "begin_suppress_tokens": [7, 8], "bad_words_ids": [[9], [10, 11]],
    "min_length": 4, "min_new_tokens": 5, "forced_bos_token_id": 12, "forced_eos_token_id": END,
}  # fmt: skip


@pytest.fixture
def model(tiny_models):
    return tiny.exact_captioner(tiny_models)


def forbid(model, names, frequent):
    """Set limits. Words that would be there without them are suppressed: a limit that limits nothing does not show."""
    limits = {**LIMITS, "suppress_tokens": frequent, "forced_eos_token_id": token_id(model, "eos_token_id")}
    model.generation_config.update(**{name: limits[name] for name in names})


def first_words(model):
    """Of greedy captions."""
    greedy = generate_labels(model, tiny.encoded(IMAGES), rollout_config(model, max_new_tokens=LONGEST))
    return greedy[:, 0].unique().tolist()


def test_forbidden_tokens_by_hand():
    """The start token is 1, the captions 12 10 2 and 12 2; of 14 tokens."""
    config = GenerationConfig(
        decoder_start_token_id=START, eos_token_id=[END, 3], max_new_tokens=3, min_length=3, suppress_tokens=[WORD],
        bad_words_ids=[[9], [10, 11]], forced_bos_token_id=12, forced_eos_token_id=END,
    )  # fmt: skip
    found = forbidden_tokens(config, torch.tensor([[12, 10, END], [12, END, -100]]), 14)
    allowed = [sorted(set(range(14)) - set(row.nonzero().flatten().tolist())) for row in found]
    anything = [0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 12, 13]
    second = [token for token in anything if token not in (END, 3)]  # start and one token are shorter than three
    assert allowed == [[12], second, [END], [12], second]


def test_where_nothing_is_forbidden_there_is_nothing_to_do():
    config = GenerationConfig(decoder_start_token_id=START, eos_token_id=END, max_new_tokens=3)
    assert forbidden_tokens(config, torch.tensor([[4, END]]), 14) is None


@pytest.mark.parametrize("how", [{"do_sample": True, "num_return_sequences": 3}, {}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("names", [[name] for name in LIMITS] + [list(LIMITS)], ids=lambda names: "-".join(names))
def test_rollouts_hold_to_what_stock_generation_holds_to(model, names, how):
    """And no token of theirs is one that the log-probabilities take for forbidden."""
    frequent = first_words(model)
    forbid(model, names, frequent)
    config = rollout_config(model, max_new_tokens=LONGEST, **how)
    torch.manual_seed(0)
    labels = generate_labels(model, tiny.encoded(IMAGES), config)
    if not how.get("do_sample"):
        stock = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=tiny.encoded(IMAGES)), max_new_tokens=LONGEST, **how
        )[:, 1:]
        assert torch.equal(labels, stock.masked_fill(labels == -100, -100))
    real = labels != -100
    forbidden = forbidden_tokens(config, labels, model.config.decoder.vocab_size)
    assert forbidden.any() and not forbidden.gather(1, labels[real][:, None]).any()
    assert "suppress_tokens" not in names or not torch.isin(labels, torch.tensor(frequent)).any()


@pytest.mark.parametrize("how", [{"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3}], ids=str)
def test_greedy_captions_beside_them_hold_to_it_too(model, how):
    frequent = first_words(model)
    forbid(model, ["suppress_tokens", "bad_words_ids", "min_new_tokens"], frequent)
    config = rollout_config(model, max_new_tokens=LONGEST, **how)
    _, beside = generate_with_greedy(model, tiny.encoded(IMAGES), config, LogitsProcessorList())
    greedy = generate_labels(model, tiny.encoded(IMAGES), rollout_config(model, max_new_tokens=LONGEST))
    assert torch.equal(beside[:, : greedy.shape[1]], greedy) and (beside[:, greedy.shape[1] :] == -100).all()
    assert not torch.isin(beside, torch.tensor(frequent)).any()


@pytest.mark.parametrize("how", [{"do_sample": True, "num_return_sequences": 3}, {}, {"num_beams": 3}], ids=str)
def test_captions_end_at_the_first_of_several_end_tokens(model, how):
    plain = generate_labels(model, tiny.encoded(IMAGES), rollout_config(model, max_new_tokens=LONGEST))
    ends = [token_id(model, "eos_token_id"), plain[:, 1].mode().values.item()]
    model.generation_config.eos_token_id = ends
    config = rollout_config(model, max_new_tokens=LONGEST, **how)
    for labels in generate_with_greedy(model, tiny.encoded(IMAGES), config, LogitsProcessorList()):
        for row in labels.tolist():
            caption = [token for token in row if token != -100]
            assert not set(caption[:-1]) & set(ends)
            assert caption[-1] in ends or len(caption) == len(row)
        assert (labels == ends[1]).any()


def test_the_policy_is_tempered_and_limited_by_hand():
    """Logits 0, ln 9, ln 81 at temperature 2 are in the ratio of 1, 3, 9; the third forbidden, of 1 and 3."""
    logits = torch.tensor([[1.0, 9.0, 81.0], [1.0, 9.0, 81.0]]).log()
    forbidden, where = torch.tensor([[False, False, True]]), torch.tensor([True, False])
    found = policy_logits(logits, 2.0, forbidden, where).softmax(-1)
    torch.testing.assert_close(found, torch.tensor([[1 / 4, 3 / 4, 0.0], [1 / 13, 3 / 13, 9 / 13]]))
    assert policy_logits(logits, 1.0) is logits


def test_the_loss_takes_the_log_probabilities_of_what_was_drawn(make_trainer, tiny_models):
    """A limit that leaves one token to choose at each place: nothing is learnt from what was no choice."""
    _, tokenizer, _ = tiny.load_captioner(tiny_models)
    end = tokenizer.eos_token_id
    only = tokenizer.convert_tokens_to_ids("a")
    others = [token for token in range(len(tokenizer)) if token not in (only, end)]

    def limited(model):
        model.generation_config.update(suppress_tokens=others, min_new_tokens=3, forced_eos_token_id=end)
        return model

    trainer = make_trainer(
        adapt=limited, max_new_tokens=4, wtf_weight=0.0, kl_weight=0.5, reward=["similarity"], baseline="none"
    )
    loss = trainer.compute_loss(trainer.model, tiny.a_batch(trainer))
    loss.backward()
    assert float(loss) == 0.0
    assert all(p.grad is None or not p.grad.abs().max() for p in trainer.model.parameters())
    assert trainer.meter.flush(trainer.accelerator)["length"] == 4


def test_what_rollouts_leave_out_is_named():
    config = GenerationConfig(num_beams=4, length_penalty=2.0, no_repeat_ngram_size=3, repetition_penalty=1.2, top_k=3)
    assert left_out(config, "sample") == {"no_repeat_ngram_size": 3, "repetition_penalty": 1.2, "top_k": 3}
    assert left_out(config, "beam") == {"length_penalty": 2.0, "repetition_penalty": 1.2}
    assert left_out(GenerationConfig(eos_token_id=[2, 3], max_length=9, **{"suppress_tokens": [4]}), "sample") == {}


def test_every_way_to_cut_the_distribution_is_named():
    """Samples come from the whole of it, and are scored so; what would cut it is left out, and said."""
    cuts = {"top_k": 5, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.5, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3}
    assert left_out(GenerationConfig(do_sample=True, **cuts), "sample") == cuts
    assert left_out(GenerationConfig(do_sample=True), "sample") == {"top_k": 50}  # generate's own, if nobody says
    assert left_out(GenerationConfig(do_sample=True, top_k=0), "sample") == {"top_k": 0}
    assert left_out(GenerationConfig(do_sample=True), "beam") == {}


def test_it_is_named_in_one_warning_of_the_trainer(make_trainer, caplog):
    def with_penalty(model):
        model.generation_config.update(repetition_penalty=1.2, no_repeat_ngram_size=2)
        return model

    logger = logging.getLogger("hf_distinct")
    logger.addHandler(caplog.handler)
    try:
        make_trainer(adapt=with_penalty)
    finally:
        logger.removeHandler(caplog.handler)
    (line,) = {record.getMessage() for record in caplog.records if "rollouts" in record.getMessage()}
    assert "repetition_penalty=1.2" in line and "no_repeat_ngram_size=2" in line
