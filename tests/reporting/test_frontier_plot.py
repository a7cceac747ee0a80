import re

import pytest
from PIL import Image

from hf_distinct.reporting.frontier_plot import System, write_frontier_plot

JUDGE = "judge/t2i_R@1"


def systems(*, twins):
    found = [
        System("people & more", {JUDGE: [0.5], "CIDEr-D": [2.0], "true": [1.0]}, "landmark"),
        System("CLIP", {JUDGE: [0.9, 0.8], "CIDEr-D": [2.0, 2.2], "true": [0.4, 0.5]}),
        System("guidance 2", {JUDGE: [0.7], "CIDEr-D": [3.0]}, "guidance"),
        System("full method", {JUDGE: [0.9], "CIDEr-D": [3.0], "true": [0.99]}, "ours"),
    ]
    if not twins:
        return found
    own = {name: values for name, values in found[3].figures.items()}
    return [*found[:3], System("full method", {**own, f"twins/{JUDGE}": [0.4], "twins/CIDEr-D": [3.0]}, "ours")]


def test_mean_and_spread():
    clip = systems(twins=False)[1]
    assert clip.mean(JUDGE) == pytest.approx(0.85) and clip.spread(JUDGE) == pytest.approx(0.1 / 2**0.5)
    assert systems(twins=False)[0].spread(JUDGE) == 0.0


@pytest.mark.parametrize(("twins", "panels"), [(False, 2), (True, 4)])
def test_every_system_is_numbered_and_named(tmp_path, twins, panels):
    write_frontier_plot(systems(twins=twins), tmp_path / "a" / "plot.svg", title="Where they stand")
    drawn = (tmp_path / "a" / "plot.svg").read_text()
    texts = [text.strip() for text in re.findall(r"<!-- (.*?) -->", drawn)]
    for number, name in enumerate(("people &amp; more", "CLIP", "guidance 2", "full method"), start=1):
        assert f"{number}  {name}" in texts
    assert texts.count("R@1 under the judge  →") == panels // 2
    assert texts.count("gallery of near twins") == (panels // 2 if twins else 0)
    assert texts.count("1") == 2  # in both panels of the random gallery; it has no figures of twins
    assert "2 (0.45)" in texts  # so few are true that it stands at the edge of the axis
    assert texts.count("3") == 1  # it says nothing of truth


def test_png_and_what_cannot_be_shown(tmp_path):
    write_frontier_plot(systems(twins=True), tmp_path / "plot.png")
    assert Image.open(tmp_path / "plot.png").width > 900
    with pytest.raises(ValueError, match="no system has both judge/t2i_R@1"):
        write_frontier_plot([System("a", {"CIDEr-D": [1.0]})], tmp_path / "plot.png")


def test_a_name_is_no_formula(tmp_path):
    write_frontier_plot([System("$5 or $x^", {"judge/t2i_R@1": [0.5], "CIDEr-D": [1.0]})], tmp_path / "plot.svg")
    assert "<!-- 1  \\$5 or \\$x^ -->" in (tmp_path / "plot.svg").read_text().replace("$", "\\$").replace("\\\\", "\\")
