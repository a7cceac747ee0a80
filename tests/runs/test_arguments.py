from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hf_distinct.config import RLCaptionConfig
from hf_distinct.runs.arguments import GIVES_WAY, clear_errors, parse_settings, too_small
from hf_distinct.settings import changed_settings


@dataclass
class Data:
    dataset: str = field(default="scenes", metadata={"help": "What to train on."})
    train_size: int = 10
    share: float = 0.5
    strict: bool = False
    shuffle: bool = True
    root: str | None = None


@dataclass
class Training:
    reward: list[str] = field(default_factory=lambda: ["contrastive"])
    weights: list[float] | None = None
    extra: dict | str | None = None

    def __post_init__(self):
        if "bad" in self.reward:
            raise ValueError("reward 'bad' is bad")


@pytest.fixture
def yaml_file(tmp_path):
    def write(text: str | bytes) -> str:
        path = tmp_path / "settings.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


@pytest.fixture
def refusal(capsys):
    """The last line on stderr of settings that are refused."""

    def parse(*argv: str, **options) -> str:
        with pytest.raises(SystemExit) as ended:
            parse_settings(Data, Training, argv=argv, **options)
        assert ended.value.code == 2
        *usage, message = capsys.readouterr().err.splitlines()
        assert len(usage) == 1, "the message would drown in a list of all settings"
        return message.split(": error: ", 1)[1]

    return parse


def test_defaults():
    assert parse_settings(Data, Training, argv=[]) == (Data(), Training())


def test_the_command_line_is_read_by_default(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--train_size", "7"])
    assert parse_settings(Data) == (Data(train_size=7),)


def test_yaml_file(yaml_file):
    path = yaml_file(
        "train_size: 30\nshare: 1e-3\nstrict: true\nshuffle: false\nreward: [cider, similarity]\n"
        "weights: [-1.0, 2]\nroot: null\nextra: {cycles: 2, name: a b}\n"
    )
    data, training = parse_settings(Data, Training, argv=[path])
    assert data == Data(train_size=30, share=0.001, strict=True, shuffle=False)
    assert training.reward == ["cider", "similarity"] and training.weights == [-1.0, 2.0]
    assert training.extra == '{"cycles": 2, "name": "a b"}'  # JSON, as transformers' own dict settings read it


def test_the_command_line_overrides_the_file(yaml_file):
    path = yaml_file("train_size: 30\nreward: [cider, similarity]\nstrict: true\n")
    data, training = parse_settings(
        Data, Training, argv=[path, "--train_size=40", "--reward", "contrastive", "--strict", "False", "--no_shuffle"]
    )
    assert data == Data(train_size=40, shuffle=False) and training.reward == ["contrastive"]


def test_dashes_are_as_good_as_underscores():
    assert parse_settings(Data, argv=["--train-size", "3"]) == (Data(train_size=3),)


def test_the_default_file_is_read_only_where_none_is_named(yaml_file, tmp_path):
    default = tmp_path / "default.yaml"
    default.write_text("train_size: 99\nroot: images\n")
    assert parse_settings(Data, argv=["--root", "own"], default_file=default) == (Data(train_size=99, root="own"),)
    assert parse_settings(Data, argv=[yaml_file("share: 0.1")], default_file=default) == (Data(share=0.1),)


def test_the_default_file_may_depend_on_what_is_told(tmp_path):
    for name in ("scenes", "mine"):
        (tmp_path / f"{name}.yaml").write_text(f"root: {name}\n")

    def choose(told):
        return tmp_path / ("mine.yaml" if told.get("dataset") == ["mine"] else "scenes.yaml")

    assert parse_settings(Data, argv=[], default_file=choose) == (Data(root="scenes"),)
    for argv in (["--dataset", "mine"], ["--dataset=mine"]):
        assert parse_settings(Data, argv=argv, default_file=choose) == (Data(dataset="mine", root="mine"),)


CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"
QUICKSTART, PHOTOGRAPHS = str(CONFIGS / "quickstart.yaml"), str(CONFIGS / "photographs.yaml")


@pytest.mark.parametrize("file", [QUICKSTART, PHOTOGRAPHS])
@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("--reward similarity", {"reward": ["similarity"], "reward_weights": None, "baseline": "leave_one_out"}),
        ("--reward contrastive cider", {"reward": ["contrastive", "cider"], "reward_weights": None}),
        ("--reward_weights 1 0.2", {"reward": ["contrastive", "cider"], "reward_weights": [1.0, 0.2]}),
        ("--rollouts beam", {"rollouts": "beam", "num_rollouts": 1, "baseline": "auto", "temperature": 1.0}),
        ("--rollouts sample", {"num_rollouts": 4, "baseline": "leave_one_out"}),
        ("--num_rollouts 1", {"num_rollouts": 1, "baseline": "auto"}),
        ("--num_rollouts 2", {"num_rollouts": 2, "baseline": "leave_one_out"}),
        ("--num_train_epochs 1", {"max_steps": -1, "num_train_epochs": 1.0}),
        ("--max-steps=7", {"max_steps": 7, "num_train_epochs": 3.0}),
        ("--warmup_ratio 0.1", {"warmup_steps": 0, "warmup_ratio": 0.1}),
        ("--save_steps 50", {"save_strategy": "steps", "save_steps": 50}),
        ("--eval_strategy no", {"eval_strategy": "no", "eval_on_start": False, "eval_steps": None}),
        ("--discriminator_weight 0.0", {"discriminator_weight": 0, "discriminator_pretrain_steps": 0}),
    ],
)
def test_what_a_default_file_chose_gives_way_to_what_a_person_says(file, told, found):
    (config,) = parse_settings(RLCaptionConfig, argv=[*told.split(), "--use_cpu", "true"], default_file=file)
    assert {name: getattr(config, name) for name in found} == found


@pytest.mark.parametrize("file", [QUICKSTART, PHOTOGRAPHS])
def test_a_file_that_a_person_names_does_not_give_way(capsys, file):
    with pytest.raises(SystemExit):
        parse_settings(RLCaptionConfig, argv=[file, "--reward", "similarity"])
    message = capsys.readouterr().err.splitlines()[-1]
    assert "2 reward_weights for 1 rewards" in message and "for reward similarity" in message
    with pytest.raises(SystemExit):
        parse_settings(RLCaptionConfig, argv=[file, "--num_rollouts", "1"])


def test_weights_alone_are_held_against_the_default_rewards(capsys):
    with pytest.raises(SystemExit):
        parse_settings(RLCaptionConfig, argv=["--reward_weights", "0.5"], default_file=PHOTOGRAPHS)
    message = "set as many of both, not reward_weights 0.5 for reward contrastive cider"
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_settings_that_give_way_exist():
    names = set(RLCaptionConfig.__dataclass_fields__) | {"mined"}
    for name, _, partners in GIVES_WAY:
        assert {name, *partners} <= names | {"warmup_ratio"}  # which transformers 5 may have no more


@pytest.mark.parametrize("text", ["", "# only a comment\n"])
def test_an_empty_file_sets_nothing(yaml_file, text):
    assert parse_settings(Data, argv=[yaml_file(text)]) == (Data(),)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--trian_size", "3"], "unknown setting --trian_size; did you mean --train_size?"),
        (["--train-sizes=3"], "unknown setting --train-sizes; did you mean --train_size?"),
        (["--rewards", "cider"], "unknown setting --rewards; did you mean --reward?"),
        (["--train_size", "many"], "argument --train_size/--train-size: invalid int value: 'many'"),
        (["--strict", "perhaps"], "argument --strict: Truthy value expected: got perhaps"),
        (["--train_size"], "argument --train_size/--train-size: expected one argument"),
        (["--reward", "bad"], "reward 'bad' is bad"),  # the settings' own check
        (["--root", "a", "stray"], "Some specified arguments are not used"),
        (["-x"], "Some specified arguments are not used"),
        (["--train"], "unknown setting --train; did you mean --train_size?"),  # no guessing from a beginning
    ],
)
def test_refused_on_the_command_line(refusal, argv, message):
    assert message in refusal(*argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainsize: 3", "settings.yaml: unknown setting trainsize; did you mean --train_size?"),
        ("1: 3", "settings.yaml: unknown setting 1; did you mean"),
        ("train_size: many", "invalid int value: 'many'"),
        ("[1, 2]", "settings.yaml holds a list; it must hold settings, as `name: value`"),
        ("just words", "settings.yaml holds a str"),
        ("reward: []", "argument --reward: expected at least one argument"),
    ],
)
def test_refused_in_the_file(refusal, yaml_file, text, message):
    assert message in refusal(yaml_file(text))


@pytest.mark.parametrize("text", ["a: [1", "a: b: c", b"\xff\xfe\x00 binary", b"\x00"])
def test_a_file_that_is_no_yaml(capsys, yaml_file, text):
    with pytest.raises(SystemExit):
        parse_settings(Data, argv=[yaml_file(text)])
    assert "error: cannot read the settings file" in capsys.readouterr().err


def test_a_file_that_is_not_there(refusal, tmp_path):
    assert "cannot read the settings file nowhere.yaml" in refusal("nowhere.yaml")
    assert "cannot read the settings file" in refusal(str(tmp_path))
    assert "cannot read the settings file" in refusal(default_file=tmp_path / "none.yaml")


def test_help_shows_every_setting(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_settings(Data, Training, argv=["--help"], description="What it does.")
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "[settings.yaml] [--name value ...]" in shown and "What it does." in shown and "What to train on." in shown


def test_help_keeps_examples_as_they_are_and_says_each_default_once(capsys):
    @dataclass
    class Some:
        size: int = field(default=3, metadata={"help": "Size of it."})
        name: str | None = field(default=None, metadata={"help": "Name of it, 5 % at most."})
        other: int = field(default=4, metadata={"help": "Another one. Default: 4."})

    about = "Do it.\n\n    recipe --size 3\n    recipe --size 4\n\nA paragraph\nof two lines."
    with pytest.raises(SystemExit):
        parse_settings(Some, argv=["--help"], description=about)
    shown = capsys.readouterr().out
    assert "\n    recipe --size 3\n    recipe --size 4\n\nA paragraph of two lines.\n" in shown
    assert shown.count("(default: ") == 1 and "Size of it. (default: 3)" in shown and "5 % at most." in shown


@dataclass
class Copy:
    source: str
    target: str = "out"
    size: int = 1


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("a", Copy("a")),
        ("a b", Copy("a", "b")),
        ("a --size 2", Copy("a", size=2)),
        ("settings.yaml a", Copy("a", size=9)),
        ("settings.yaml a b --size 2", Copy("a", "b", 2)),
        ("settings.yaml --source a", Copy("a", size=9)),
        ("--source a --target b", Copy("a", "b")),
    ],
)
def test_values_that_come_first_without_a_name(yaml_file, monkeypatch, tmp_path, argv, expected):
    yaml_file("size: 9")
    monkeypatch.chdir(tmp_path)
    assert parse_settings(Copy, argv=argv.split(), first=("source", "target")) == (expected,)


def test_values_that_are_one_too_many(capsys):
    with pytest.raises(SystemExit):
        parse_settings(Copy, argv=["a.yaml", "a", "b", "c"], first=("source", "target"))
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.endswith("[settings.yaml] SOURCE [TARGET] [--name value ...]")
    assert "'c' does not fit the usage above" in error


def test_values_below_the_least_possible_one():
    settings = Copy("a", size=0)
    assert list(too_small(settings, size=1)) == ["size=0 must be at least 1."]
    assert not list(too_small(settings, size=0))
    settings.size = float("nan")
    assert list(too_small(settings, size=0)) == ["size=nan must be at least 0."]
    settings.size = None
    assert not list(too_small(settings, size=1))


def test_help_of_the_trainers_settings(capsys):
    with pytest.raises(SystemExit) as ended:  # a lone percent sign in any of the texts would break it
        parse_settings(RLCaptionConfig, argv=["--help"])
    assert ended.value.code == 0 and "--discriminator_weight" in capsys.readouterr().out


def test_the_configuration_of_the_trainer(yaml_file, tmp_path):
    path = yaml_file(
        f"output_dir: {tmp_path}\nlearning_rate: 2.0e-4\nreward: [cider, similarity]\nreward_weights: [1, 0.5]\n"
        "rollouts: beam\nsave_strategy: 'no'\nlr_scheduler_kwargs: {num_cycles: 2}\nlr_scheduler_type: cosine\n"
        "use_cpu: true\n"
    )
    (config,) = parse_settings(RLCaptionConfig, argv=[path, "--max_steps", "5"])
    assert (config.learning_rate, config.max_steps, config.rollouts) == (2e-4, 5, "beam")
    assert (config.reward, config.reward_weights) == (["cider", "similarity"], [1.0, 0.5])
    assert config.lr_scheduler_kwargs == {"num_cycles": 2}


def test_a_contradiction_between_settings(capsys):
    with pytest.raises(SystemExit):
        parse_settings(RLCaptionConfig, argv=["--baseline", "leave_one_out", "--num_rollouts", "1"])
    assert "needs num_rollouts of at least 2" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def run_recipe(tmp_path, monkeypatch):
    """Runs a recipe of one line, within `clear_errors`; a reward of one's own lies elsewhere."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "own_reward.py").write_text("def reward(captions):\n    raise ValueError('mine')\n")
    monkeypatch.syspath_prepend(tmp_path / "beside")
    path = tmp_path / "recipes" / "train.py"

    def run(line):
        imports = "from hf_distinct.runs.arguments import clear_errors\nfrom pathlib import Path\n"
        path.write_text(f"{imports}with clear_errors():\n    {line}\n")
        monkeypatch.setattr(sys, "argv", ["train.py"])
        runpy.run_path(str(path))

    return run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("raise ValueError('first line\\n   second line')", "first line second line"),
        ("from hf_distinct.losses import _check_choice as check; check('baseline', 'x', 'ab')", "baseline"),
        ("open('/nowhere/at/all')", "No such file"),
        ("from transformers import AutoTokenizer as A; A.from_pretrained('/nowhere/at/all')", "/nowhere/at/all"),
        ("Path('/nowhere/at/all').read_text()", "No such file"),  # in a file of another library
    ],
)
def test_bad_input_becomes_one_line(run_recipe, line, message):
    with pytest.raises(SystemExit) as ended:
        run_recipe(line)
    assert str(ended.value.code).startswith("train.py: error: ") and message in ended.value.code
    assert "\n" not in ended.value.code


@pytest.mark.parametrize("line", ["import own_reward; own_reward.reward(['a dog'])", "import json; json.loads('{')"])
def test_a_value_error_of_others_keeps_its_traceback(run_recipe, line):
    with pytest.raises(ValueError) as raised:
        run_recipe(line)
    assert Path(str(raised.traceback[-1].path)).name in ("own_reward.py", "decoder.py")


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), clear_errors():
        _ = 1 / 0
    with clear_errors():
        pass


def test_what_was_set_to_something_else_than_its_default():
    @dataclass
    class Some:
        told: int
        kept: int = 2
        other: int = 3
        nothing: str | None = ""
        several: list[int] = field(default_factory=lambda: [1, 2])

    assert changed_settings(Some(1, other=4, nothing=None, several=[1, 2])) == {"told": 1, "other": 4}
