"""The training curve: what is drawn of a log, and when there is nothing to draw."""

from PIL import Image

from hf_distinct.reporting.training_curve import write_training_curve

LOG = [{"step": step, "loss": 1 / step, "reward/total/rollouts": step / 10, "epoch": 0.1} for step in range(1, 6)]


def width(path) -> int:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.width


def test_a_panel_for_reward_and_one_for_loss(tmp_path):
    assert write_training_curve(LOG, tmp_path / "new" / "both.png")
    only_loss = [{"step": line["step"], "loss": line["loss"]} for line in LOG]
    assert write_training_curve(only_loss, tmp_path / "loss.png")
    assert width(tmp_path / "new" / "both.png") == 2 * width(tmp_path / "loss.png")


def test_a_panel_for_what_evaluations_found(tmp_path):
    evaluated = [{"step": step, "eval_judge/t2i_R@1": 0.9 - step / 10, "eval_scorer/t2i_R@1": 0.9} for step in (1, 2)]
    assert write_training_curve([*LOG, *evaluated], tmp_path / "three.png")
    assert write_training_curve(evaluated, tmp_path / "one.png")
    assert width(tmp_path / "three.png") == 3 * width(tmp_path / "one.png")


def test_other_figures_give_another_picture(tmp_path):
    write_training_curve(LOG, tmp_path / "one.png")
    write_training_curve(LOG, tmp_path / "same.png")
    write_training_curve([*LOG[:-1], {**LOG[-1], "loss": 9.0}], tmp_path / "other.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "same.png").read_bytes()
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_a_single_point_is_no_curve(tmp_path):
    assert not write_training_curve([*LOG[:1], {"step": 2, "train_runtime": 3.0}], tmp_path / "none.png")
    assert not list(tmp_path.iterdir())


def test_a_saved_log_of_anything_is_no_curve(tmp_path):
    odd = [{"step": "1", "loss": 1.0}, {"step": 2, "loss": "<b>"}, {"step": 3, "loss": float("nan")}, {"loss": 1.0}]
    assert not write_training_curve(odd, tmp_path / "curve.png")
    assert write_training_curve([*odd, {"step": 4, "loss": 1.0}, {"step": 5, "loss": 2}], tmp_path / "curve.png")
