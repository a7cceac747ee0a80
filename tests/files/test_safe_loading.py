"""What a model's files may not hold, and what their settings may not name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hf_distinct import Captioner, ClipScorer
from hf_distinct.files.safe_loading import CODE_FILE, code_problems, refuse_code

CODE = "from pathlib import Path\nPath({mark!r}).touch()\nfrom transformers import EsmConfig as Own\ngenerate = Own\n"


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "went off"


@pytest.fixture
def folder(request, tiny_models, tmp_path, mark):
    """A copy of one of the tiny models, with a file of code in it."""
    copied = Path(shutil.copytree(tiny_models / request.param, tmp_path / request.param))
    (copied / "own.py").write_text(CODE.format(mark=str(mark)))
    return copied


def change(path, **settings):
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(old | settings))


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"auto_map": {"AutoModel": "own.M"}}, 1),
        ({"decoder": {"auto_map": {"AutoModelForCausalLM": "a/b--own.M"}}}, 1),
        ({"parts": [{"text": {"auto_map": "own.M"}}, {"trust_remote_code": True}]}, 2),
        ({"encoder": {"attn_implementation": "somebody/kernel@main:attention"}}, 1),
        ({"_attn_implementation": {"": "sdpa", "decoder": "somebody/kernel"}}, 1),
        ({"custom_pipelines": {"image-to-text": {"impl": "own.P"}}}, 1),
        ({"auto_map": {}, "trust_remote_code": False, "attn_implementation": "sdpa", "vocab": ["auto_map"]}, 0),
    ],
)
def test_settings_that_name_code_are_found_wherever_they_stand(settings, count):
    found = list(code_problems(settings, "x/config.json"))
    assert len(found) == count
    assert all(problem.startswith("x/config.json requires c") and "never runs" in problem for problem in found)


@pytest.mark.both_ends
@pytest.mark.parametrize("folder", ["captioner"], indirect=True)
def test_a_captioner_whose_decoder_is_code_is_refused_without_a_question(folder, mark):
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": f"{folder}--own.Own"}}
    change(folder / "config.json", decoder=config["decoder"] | own)
    with pytest.raises(ValueError, match=r"config\.json requires custom code .*own\.Own"):
        Captioner(folder)
    assert not mark.exists()


@pytest.mark.both_ends
@pytest.mark.parametrize("folder", ["captioner"], indirect=True)
def test_a_captioner_with_its_own_generate_is_refused(folder, mark):
    """transformers runs this file of a local folder without asking, whatever `trust_remote_code` says."""
    (folder / CODE_FILE).parent.mkdir()
    (folder / "own.py").rename(folder / CODE_FILE)
    with pytest.raises(ValueError, match=r"generate\.py is code"):
        Captioner(folder)
    assert not mark.exists()


@pytest.mark.parametrize("folder", ["scorer"], indirect=True)
def test_a_scorer_whose_config_causes_a_type_error_runs_no_code_either(folder, mark):
    """transformers' own EsmConfig raises a TypeError that names trust_remote_code: no reason to trust."""
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer.pop("tokenizer_class")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    esm = {"model_type": "esm", "vocab_list": ["a"], "is_folding_model": True}
    code = {"esmfold_config": {"trust_remote_code": 1}, "auto_map": {"AutoConfig": "own.Own"}}
    change(folder / "config.json", **esm, **code)
    with pytest.raises(ValueError, match="requires custom code"):
        ClipScorer(str(folder))
    # With an empty value the setting passes for harmless, and the error comes from transformers.
    change(folder / "config.json", esmfold_config={"trust_remote_code": 0}, auto_map={})
    with pytest.raises(ValueError, match="cannot be loaded"):
        ClipScorer(str(folder))
    assert not mark.exists()


@pytest.mark.parametrize("folder", ["scorer"], indirect=True)
def test_a_scorer_whose_text_tower_is_somebodys_code_is_refused(folder, mark, tmp_path):
    tower = tmp_path / "tower"
    tower.mkdir()
    (folder / "own.py").rename(tower / "own.py")
    change(tower / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = str(tower)
    change(folder / "open_clip_config.json", **config)
    with pytest.raises(ValueError, match=r"tower/config\.json requires custom code"):
        ClipScorer(str(folder))
    # The same in a file by itself, and in the folder's own.
    (tower / "config.json").rename(tower / "any.json")
    config["model_cfg"]["text_cfg"]["hf_model_name"] = str(tower / "any.json")
    change(folder / "open_clip_config.json", **config)
    with pytest.raises(ValueError, match=r"tower/any\.json requires custom code"):
        ClipScorer(str(folder))
    (tower / "any.json").rename(folder / "text_config.json")
    with pytest.raises(ValueError, match=r"text_config\.json requires custom code"):
        ClipScorer(str(folder))
    assert not mark.exists()


def test_models_without_code_pass(tiny_models):
    for name in ("captioner", "scorer"):
        refuse_code(tiny_models / name)
