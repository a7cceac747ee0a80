"""The card: the whole of it against one pattern, its figures against the measured ones, and nothing of the machine."""

from __future__ import annotations

import getpass
import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from model_card_pattern import MODEL_CARD_PATTERN
from PIL import Image

from hf_distinct import RLCaptionConfig
from hf_distinct.hub.model_card import Sample, write_model_card
from hf_distinct.reporting.reward_formula import describe_reward

METRICS: dict[str, dict[str, Any]] = {
    "before": {"judge/t2i_R@1": 0.5, "CIDEr-D": 2.0},
    "after": {"judge/t2i_R@1": 0.7512345678, "CIDEr-D": float("nan"), "vocabulary": 120, "true": np.float32(0.5)},
    "people": {"judge/t2i_R@1": 0.25},
}
SCORER = "ViT-B-32:openai (fingerprint 0123456789abcdef)"
LOG = [{"step": step, "loss": 1 / step, "reward/total/rollouts": step / 10} for step in range(1, 6)]


def samples(count: int = 2) -> list[Sample]:
    said = {"before": "a crab", "after": "a big crab | left\nof a train", "a person": "a crab"}
    return [Sample(Image.new("RGB", (40, 30), (50 * number, 0, 0)), said) for number in range(count)]


def reward(**settings: Any) -> str:
    args = RLCaptionConfig(output_dir="out", **settings)
    return describe_reward({"contrastive": 1.0, "cider": 0.01}, "leave_one_out", SCORER, args)


def write(folder: Path, **facts: Any) -> str:
    known = {"model_name": "cap", "data": "emoji scenes", "scorer": SCORER, "metrics": METRICS}
    return write_model_card(folder, **{**known, **facts}).read_text()


def test_the_whole_card_is_of_one_pattern(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "contrast.png")
    said = {"before": "a crab", "after": "a big crab", "a person": "a crab"}
    card = write(
        tmp_path,
        reward=reward(discriminator_weight=0.1),
        base_model="microsoft/git-base",
        data="somebody/pictures",
        data_license="CC-BY 4.0",
        settings={"learning_rate": 2e-4},
        samples=[Sample(Image.new("RGB", (40, 30)), said)],
        log_history=LOG,
        emissions=12.5,
    )
    assert MODEL_CARD_PATTERN.fullmatch(card), card
    for name in ("samples.png", "training_curve.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 200


def test_a_card_tells_what_alarms_were_raised(tmp_path):
    told = ["step 20, alarm/cider: CIDEr-D is 1", "step 20: stopped"]
    assert "## Training\n\nAlarms during the training:\n\n" + "".join(f"- {each}\n" for each in told) in write(
        tmp_path, alarms=told
    )
    assert "larm" not in write(tmp_path)


def test_the_cards_metadata_is_what_the_hub_reads(tmp_path):
    facts = {"model_name": "Crab: a captioner", "base_model": "microsoft/git-base", "reward": reward()}
    write(tmp_path / "new" / "folder", **facts, emissions=12.5, model_license="mit")
    card = ModelCard.load(tmp_path / "new" / "folder" / "README.md")
    assert yaml.safe_load(card.content.split("---")[1]) == card.data.to_dict()
    assert card.data.pipeline_tag == "image-to-text" and card.data.library_name == "transformers"
    assert card.data.base_model == "microsoft/git-base" and card.data.license == "mit"
    assert {"hf_distinct", "reinforcement-learning"} <= set(card.data.tags)
    assert card.data.model_name == "Crab: a captioner"
    assert card.data.co2_eq_emissions == {"emissions": 12.5, "source": "reported by its author"}
    # To the last digit. The NaN is left out: it is not JSON, which the Hub turns the metadata into.
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "judge/t2i_R@1": 0.7512345678,
        "vocabulary": 120,
        "true": 0.5,
    }
    assert {result.dataset_type for result in card.data.eval_results} == {"emoji-scenes"}


def test_the_card_shows_metrics_settings_and_captions(tmp_path):
    settings = {"learning_rate": 2e-4, "rewards": ["contrastive", "cider"], "note": "a | b"}
    card = write(tmp_path, settings=settings, samples=samples())
    assert "# cap\n" in card
    assert "| judge/t2i_R@1 | 0.500 | 0.751 | 0.250 |" in card
    assert "| vocabulary | - | 120 | - |" in card
    assert "| 2 | a crab | a big crab \\| left of a train | a crab |" in card
    assert "| `learning_rate` | 0.0002 |" in card
    assert "| `rewards` | \\['contrastive', 'cider'\\] |" in card
    assert "| `note` | a \\| b |" in card
    assert f"| Scorer (gives the reward) | {SCORER} |" in card
    assert "- `people`: captions that people wrote" in card and "`ceiling`" not in card
    assert "2402.13936" in card
    assert "{{" not in card and "{%" not in card


def test_what_is_not_known_is_not_spoken_of(tmp_path):
    card = write(tmp_path, metrics=None, scorer=None)
    for word in ("model-index", "base_model", "co2", "## Results", "## Samples", "## Reward", "## Training", "Carbon"):
        assert word not in card, word
    assert "| Licence of the data | not stated |" in card
    assert "\n\n\n" not in card and sorted(tmp_path.iterdir()) == [tmp_path / "README.md"]


def test_a_card_of_another_name_has_pictures_of_its_own(tmp_path):
    card = write(tmp_path, kind="clip", file_name="judge.md", samples=samples(1), log_history=LOG)
    assert "![Numbered pictures](judge_samples.png)" in card and "(judge_training_curve.png)" in card
    assert {path.name for path in tmp_path.iterdir()} == {"judge.md", "judge_samples.png", "judge_training_curve.png"}
    assert "library_name: open_clip" in card and "image-to-text" not in card and "ClipScorer" in card


def test_the_reward_is_told_with_its_numbers():
    said = reward(discriminator_weight=0.1, wtf_weight=0.2, reward_clamp=8.0)
    assert "R(c) = (1 - 0.1) [1 contrastive(c) + 0.01 cider(c)] + 0.1 D(c)\n" in said
    assert "L    = - mean(A(c) l(c)) - 0.2 mean(w(g) l(g))\n" in said
    assert f"Under the CLIP {SCORER}:" in said
    assert said.count("for its image, 8) / s") == 1 and "w(g) = max(R(g), 0)" in said
    assert "mean of R over the image's other sampled captions" in said
    plain = reward(discriminator_weight=0.0, wtf_weight=0.0, kl_weight=0.05)
    assert "R(c) = 1 contrastive(c) + 0.01 cider(c)\nL    = - mean(A(c) l(c)) + 0.05 KL\n" in plain
    assert "- D:" not in plain and "- g:" not in plain and "- KL:" in plain


def test_a_custom_reward_is_told_by_its_name_and_its_docstring():
    rewards = {"~alice/own.py:brevity": 2.0, "plain": 1.0}
    told = {"~alice/own.py:brevity": "\n  One over the number of words.\n\n  Short captions win.", "plain": None}
    own = describe_reward(rewards, "none", SCORER, RLCaptionConfig(output_dir="out"), told)
    assert "2 own.py:brevity(c) + 1 plain(c)" in own
    assert "- `own.py:brevity`: a custom reward: One over the number of words.\n- `plain`: a custom reward.\n" in own


def test_codecarbons_measurement_is_taken_over(tmp_path):
    (tmp_path / "emissions.csv").write_text("project_name,emissions\nme,0.1\nme,0.25\n")  # in kilograms, run by run
    assert "250 g of CO2 equivalents, measured by CodeCarbon." in write(tmp_path)
    assert "3 g of CO2 equivalents, reported by its author." in write(tmp_path, emissions=3.0)


@pytest.mark.parametrize(
    "content",
    ["", "project_name,emissions\n", "project_name\nme\n", "emissions\n\n", "emissions\nnan\n", "emissions\nmuch\n",
     "project_name,emissions\nme\n", "\0", "\xff\xfe"],
)  # fmt: skip
def test_a_measurement_without_a_figure_is_left_out(tmp_path, caplog, content):
    (tmp_path / "emissions.csv").write_bytes(content.encode("latin-1"))
    assert "CO2" not in write(tmp_path) and "has no value in its last row" in caplog.text


def test_captions_stand_on_the_card_as_they_are(tmp_path):
    said = ["a sign that says /home/x and 24/7", "a *red* dog_house [2] <b>", "hf_abcdefghijklmnopq", "1 \\ 2 & ~3"]
    card = write(tmp_path, samples=[Sample(Image.new("RGB", (4, 4)), {"after": text}) for text in said])
    rows = re.findall(r"^\| \d \| (.*) \|$", card, re.MULTILINE)
    assert rows[0] == said[0] and "<b>" not in card
    assert [html.unescape(re.sub(r"\\([^a-z0-9\s])", r"\1", row)) for row in rows] == said


def test_a_card_that_somebody_edited_is_not_lost(tmp_path, caplog):
    card = tmp_path / "README.md"
    write(tmp_path)
    card.write_text(card.read_text().replace("license", "licence") + "\n## Notes by hand\n")
    write(tmp_path, data="more scenes")
    assert "more scenes" in card.read_text() and card.read_text().endswith("\n## Notes by hand\n")
    assert not caplog.text
    card.write_text(card.read_text().replace("| Trained on | more scenes |", "| Trained on | scenes of mine |"))
    by_hand = card.read_text()
    path = write_model_card(tmp_path, model_name="cap", data="other scenes")
    assert card.read_text() == by_hand and path.name == "model_card.md" and "other scenes" in path.read_text()
    assert "edited by hand" in caplog.text and "the new card is saved as model_card.md" in caplog.text


def test_a_card_tells_nothing_of_the_machine_or_its_user(tmp_path):
    home = tmp_path / "alice liddell"  # a space in a path must not cut it
    (home / "captioner").mkdir(parents=True)
    card = write(
        home,
        settings={
            "output_dir": "secret_folder",
            "run_name": "secret_run",
            "hub_token": "hf_abcdefghijklmnop",
            "hub_model_id": "alice/cap",
            "push_to_hub": True,
            "note": "hf_abcdefghijklmnop",
            "resume_from_checkpoint": "/home/alice's, runs/checkpoint-10",
            "rewards": [f"{home}/rewards.py:short", "~alice/rewards.py:long", "../alice/r.py:odd", "contrastive"],
            "address": f"file://{home}/captions.json",
            "windows": r"C:\Users\alice liddell\pictures",
            "max_steps": 150,
            "max_new_tokens": 20,
            "url": "https://example.org/page",
        },
        data=f"{home}/my pictures",
        scorer=f"local-dir:{home}/models/clip",
        base_model=f"{home}/captioner",
        samples=[Sample(Image.new("RGB", (4, 4)), {"after": "a sign"})],
        log_history=LOG,
    )
    pictures = b"".join(path.read_bytes() for path in home.glob("*.png"))
    for word in (str(home), "alice", "secret", "hf_abcdefgh", "C:\\", getpass.getuser() + "/"):
        assert word not in card and word.encode() not in pictures, word
    # What can be told is.
    for word in ("my pictures", "local-dir:clip", "| Started from | captioner |", "rewards.py:short", "contrastive"):
        assert word in card, word
    assert "| `max_steps` | 150 |" in card and "| `max_new_tokens` | 20 |" in card
    assert "https:<!-- -->//example.org/page" in card and "checkpoint-10" in card
    assert ModelCard(card).data.base_model is None


@pytest.mark.parametrize("name", ["captioner", "scorer", "truth_scorer", "judge"])
def test_the_cards_of_the_shipped_models_are_of_this_form(name):
    path = Path(__file__).parents[2] / "model_cards" / f"{name}.md"
    card = ModelCard.load(path)
    assert card.data.eval_results and card.data.license == "apache-2.0"
    assert re.findall(r"^## (.+)", card.text, re.MULTILINE) == [
        "Use",
        "Results",
        *(["Samples"] if name == "captioner" else []),
        "Training",
        "Limits",
        "Versions",
        "Citation",
    ]
    for result in card.data.eval_results:  # the table says what the metadata says
        value = result.metric_value
        shown = value if isinstance(value, int) else f"{value:.3f}"
        assert f"| {result.metric_type} | {shown} |" in card.text
    for picture in re.findall(r"!\[.+\]\((.+)\)", card.text):
        assert (path.parent / picture).is_file()


EVIL = "a <img src=x onerror=al(1)> ![](http://x.org/seen.png) [free](http://x.org)\n\n# Take care | `x`\x1b[2J\u202e"
SHOWN = (
    "a &lt;img src=x onerror=al(1)&gt; !\\[\\](http:<!-- -->//x.org/seen.png) \\[free\\](http:<!-- -->//x.org) "
    "# Take care \\| \\`x\\`"
)


def test_what_strangers_wrote_is_text_on_the_card(tmp_path):
    card = write(
        tmp_path,
        model_name=EVIL,
        data=EVIL,
        data_license=EVIL,
        model_license="mit\n---\n# Take care",
        scorer=EVIL,
        base_model=EVIL,
        settings={"note": EVIL, EVIL: 1},
        alarms=[EVIL, "- one", "<!-- End of what hf_distinct wrote. -->"],
        metrics={EVIL: {EVIL: 1.0}},
        samples=[Sample(Image.new("RGB", (4, 4)), {EVIL: EVIL})],
        reward=describe_reward({EVIL: 1.0}, "none", EVIL, RLCaptionConfig(output_dir="out"), {EVIL: EVIL}),
    )
    # The last line of the licence is one of the metadata's, and of the whole there is one front matter.
    metadata, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(metadata)["license"] == "mit --- # Take care" and ModelCard(card).data.model_name
    assert card.count(SHOWN) >= 12 and "\n- \\- one\n" in card
    outside = re.sub(r"(?s)```.*?```|`[^`\n]*`|<!--.*?-->", "", body)  # code and comments are no markup
    assert not re.search(r"<(?!/?(?:a|b)>)\w|(?<!\\)\]\(http(?!s://arxiv)", outside), outside
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", card)
    assert re.findall(r"^# (.*)", body, re.MULTILINE) == [SHOWN]
    assert body.count("End of what hf_distinct wrote. -->") == 1
    assert {line.count("|") - line.count("\\|") for line in body.splitlines() if line.startswith("|")} <= {3, 4}


@pytest.mark.parametrize("address", ["https://me:s3cret@h.org/{000..009}.tar", "https://h.org/a?X-Amz-Signature=s3cret"])
def test_passwords_and_signatures_of_addresses_are_not_on_the_card(tmp_path, address):
    card = write(tmp_path, data=address, scorer=address, settings={"dataset": address, "files": [address, address]})
    assert "s3cret" not in card and card.count("h.org") >= 5


def test_a_readme_of_the_user_stays_and_so_does_a_card_of_theirs_beside_it(tmp_path, caplog):
    for name in ("README.md", "model_card.md"):
        (tmp_path / name).write_text("# My notes\n")
    for data in ("emoji scenes", "other scenes"):  # the second card takes the place of the first
        path = write_model_card(tmp_path, model_name="cap", data=data)
        assert path.name == "model_card.1.md" and data in path.read_text()
    assert {(tmp_path / name).read_text() for name in ("README.md", "model_card.md")} == {"# My notes\n"}
    assert "README.md was written or edited by hand, so it is kept, and the new card is saved as model_" in caplog.text
