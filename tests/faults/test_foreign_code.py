"""No recipe runs code that a model brings along, or asks whether it may."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path

import forked
import pytest
import tiny

CODE = """
from pathlib import Path
Path({mark!r}).mkdir()
from transformers import ViTModel as Own, ViTConfig as Config
"""
DRAWN = ["--train_size", "8", "--max_steps", "1", "--use_cpu", "true"]
CASES = {
    "train.py --model_name_or_path": ("captioner", [*DRAWN, "--test_size", "4"]),
    "train.py --scorer": ("scorer", [*DRAWN, "--test_size", "4"]),
    "train.py --judge": ("scorer", [*DRAWN, "--test_size", "4"]),
    "warm_up.py --model_name_or_path": ("captioner", DRAWN),
    "warm_up.py --encoder": ("captioner", DRAWN),
    "warm_up.py --decoder": ("captioner", DRAWN),
    "warm_up.py --tokenizer": ("captioner", DRAWN),
    "train_clip.py --model": ("scorer", ["--train_size", "8", "--max_steps", "1"]),
    "mine.py --scorer": ("scorer", ["--train_size", "8"]),
    "evaluate_captions.py --model": ("captioner", ["--test_size", "4", "--num_neighbours", "0"]),
    "evaluate_captions.py --judge": ("scorer", ["--test_size", "4", "--model", "captioner"]),
    "evaluate_captions.py --language_model": ("captioner", ["--test_size", "4", "--model", "captioner"]),
    "caption.py --model": ("captioner", ["--pictures", "pictures"]),
    "caption.py --rerank_with": ("scorer", ["--pictures", "pictures", "--num_samples", "2"]),
    "space/app.py --before": ("captioner", ["--size", "4"]),
    "space/app.py --scorer": ("scorer", ["--size", "4"]),
}


def asks_to_run(folder: Path) -> None:
    """Name the code where transformers looks for it, in the config of a part as well."""
    for path in folder.glob("*config.json"):
        config = json.loads(path.read_text())
        names = {"AutoConfig": "own.Config", "AutoModel": "own.Own", "AutoModelForCausalLM": "own.Own"}
        for part in (config, config.get("decoder"), config.get("model_cfg", {}).get("text_cfg")):
            if part is not None:
                part["auto_map"] = names
        path.write_text(json.dumps(config))


def runs_unasked(folder: Path) -> None:
    """Put the code where `generate` of a local folder runs it without asking."""
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "own.py", folder / "custom_generate" / "generate.py")


@pytest.mark.parametrize("bring", [asks_to_run, runs_unasked])
@pytest.mark.parametrize("case", CASES)
def test_code_of_a_model_is_refused(tiny_models, tmp_path, monkeypatch, case, bring):
    recipe, flag = case.split()
    source, others = CASES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    tiny.scenes(1)["image"][0].save(tmp_path / "pictures" / "0.png")
    mark, folder = tmp_path / "it ran", Path(shutil.copytree(tiny_models / source, tmp_path / "strange"))
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    bring(folder)
    output = [] if recipe == "space/app.py" else ["--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [recipe, *output, flag, str(folder), *others])
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail(f"asked: {question}"))
    with pytest.raises(SystemExit, match=r"strange.*never runs"):
        runpy.run_path(str(forked.RECIPES / recipe), run_name="__main__")
    assert not mark.exists()
