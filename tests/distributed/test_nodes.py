"""Two processes on one node, or on two nodes that have a disk each: who reads, embeds and mines."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
import tiny
import torch
from PIL import Image

from hf_distinct.distributed import nodes
from hf_distinct.files import parts as parts_module
from hf_distinct.files.parts import Parts

SCRIPT = str(Path(__file__).parent / "nodes_in_two.py")
IMAGES = 1100  # three parts of the embeddings, and more than the rows that are read in memory


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "pictures").mkdir()
    lines = []
    for number in range(9000):
        lines.append(json.dumps({"file_name": f"{number % 20}.png", "captions": f"a dog {number}"}))
    for number in range(20):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "pictures" / f"{number}.png")
    (folder / "pictures" / "metadata.jsonl").write_text("\n".join(lines))
    tiny.scenes(IMAGES).save_to_disk(folder / "scenes")
    return folder


def run(place, tiny_models, tmp_path, nodes):
    (tmp_path / "told").mkdir()
    caches = [tmp_path / f"node{rank if nodes == 2 else 0}" / "cache" for rank in (0, 1)]
    common = [place / "pictures", place / "scenes", tiny_models / "scorer"]
    environments = tiny.ranks(tiny.free_port(), 2)
    if nodes == 2:
        own = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        environments = [each | own | {"GROUP_RANK": each["RANK"]} for each in environments]
    arguments = [[rank, *common, caches[rank], tmp_path / "told"] for rank in (0, 1)]
    forked.run_together(SCRIPT, arguments, environments)
    return [json.loads((tmp_path / "told" / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_on_one_node_everything_is_done_once(place, tiny_models, tmp_path):
    found = run(place, tiny_models, tmp_path, 1)
    assert [each["reads"] for each in found] == [1, 0]
    assert sum(each["embeds"] for each in found) == IMAGES and min(each["embeds"] for each in found) > 0
    assert "nowhere.json" in found[0]["error"]
    assert all(each["mapped"] for each in found)
    for name in ("error", "ids", "neighbours", "sum"):
        assert found[0][name] == found[1][name]


def test_with_a_disk_each_every_node_has_all_of_it(place, tiny_models, tmp_path):
    found = run(place, tiny_models, tmp_path, 2)
    assert [each["reads"] for each in found] == [1, 1]
    assert [each["embeds"] for each in found] == [IMAGES] * 2
    for name in ("error", "ids", "neighbours", "sum"):
        assert found[0][name] == found[1][name]


def test_the_own_share_first_then_what_nobody_has_begun(tmp_path, monkeypatch):
    parts = Parts(tmp_path / "parts", 6)
    for module in (nodes, parts_module):
        monkeypatch.setattr(module, "this_process", lambda: (1, 2))
    assert nodes.parts_to_compute(parts) == [1, 3, 5]
    for number in (1, 3, 5):
        parts.write(number, {"a": torch.zeros(1)})
    assert nodes.parts_to_compute(parts) == [4]
    (tmp_path / "parts" / "000004.claim-0").touch()
    assert nodes.parts_to_compute(parts) == [2]
    for number in (0, 2):
        (tmp_path / "parts" / f"{number:06d}.claim-0").touch()
    assert nodes.parts_to_compute(parts) == []


def test_without_other_processes_nothing_is_sent():
    assert nodes.once_per_node(lambda: 5) == 5 and nodes.writes_for_others(Path("nowhere"))
