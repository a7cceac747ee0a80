import os

import pytest
import torch

from hf_distinct.files import parts as parts_module
from hf_distinct.files.parts import Parts, read_tensors, this_process, write_tensors, written_together


def test_what_is_missing_is_what_was_not_written(tmp_path):
    parts = Parts(tmp_path / "deep" / "parts", 4)
    assert parts.missing() == [0, 1, 2, 3]
    parts.write(2, {"a": torch.arange(3)}, {"note": "x"})
    parts.write(0, {"a": torch.zeros(0, 5)})
    assert parts.missing() == [1, 3]
    assert parts.missing(range(0, 4, 2)) == []
    tensors, metadata = parts.read(2)
    assert tensors["a"].tolist() == [0, 1, 2] and metadata == {"note": "x"}
    assert parts.read(0)[0]["a"].shape == (0, 5)
    parts.remove()
    assert parts.missing() == [0, 1, 2, 3]
    parts.remove()  # nothing there is no error


def test_what_a_killed_writer_left_is_no_part(tmp_path):
    parts = Parts(tmp_path, 1)
    (tmp_path / ".000000.safetensors.0123").write_bytes(b"half of")
    assert parts.missing() == [0]
    with pytest.raises(FileNotFoundError, match=r"000000\.safetensors"):
        parts.read(0)


def test_a_broken_part_is_removed_and_missing_again(tmp_path):
    parts = Parts(tmp_path, 1)
    parts.write(0, {"a": torch.arange(30)})
    path = parts.path(0)
    path.write_bytes(path.read_bytes()[:-1])
    assert parts.missing() == []
    with pytest.raises(ValueError, match=r"000000\.safetensors' is broken"):
        parts.read(0)
    assert parts.missing() == [0]


def test_a_part_whose_bytes_changed_is_missing_again(tmp_path):
    parts = Parts(tmp_path, 1)
    parts.write(0, {"a": torch.arange(30), "b": torch.tensor([True])}, {"of": "them"})
    tensors, metadata = parts.read(0)
    assert tensors["a"].tolist() == list(range(30)) and metadata == {"of": "them"}
    content = bytearray(parts.path(0).read_bytes())
    content[-9] ^= 1
    parts.path(0).write_bytes(content)
    with pytest.raises(ValueError, match=r"000000\.safetensors' is broken: its bytes have changed"):
        parts.read(0)
    assert parts.missing() == [0]


def test_what_is_said_beside_the_tensors_counts_too(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {"failures": '{"7": "torn"}'})
    path.write_bytes(path.read_bytes().replace(b"7", b"5", 1))
    with pytest.raises(ValueError, match="its bytes have changed"):
        read_tensors(path)


def test_files_take_their_places_together_or_not_at_all(tmp_path):
    for name in ("config.json", "model", "notes.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "model").write_text("of a writer that was killed")
    with pytest.raises(OSError, match="full"), written_together(tmp_path) as unfinished:
        (unfinished / "config.json").write_text("new")
        raise OSError("full")
    assert {path.read_text() for path in tmp_path.iterdir()} == {"old"}
    with written_together(tmp_path) as unfinished:
        (unfinished / "deep").mkdir()
        for name in ("config.json", "model", "deep/er"):
            (unfinished / name).write_text("new")
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"config.json": "new", "model": "new", "deep/er": "new", "notes.txt": "old"}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)})
    before = (tmp_path / "a.safetensors").read_bytes()

    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(1)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_alone_a_process_is_the_first_of_one():
    assert this_process() == (0, 1)


def test_claims_tell_others_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "this_process", lambda: (1, 3))
    parts = Parts(tmp_path / "parts", 4)
    parts.claim([0, 2])
    assert parts.claimed_by_others() == set()
    monkeypatch.setattr(parts_module, "this_process", lambda: (0, 3))
    assert parts.claimed_by_others() == {0, 2} and parts.missing() == [0, 1, 2, 3]
    parts.claim([3])
    parts.write(3, {"a": torch.zeros(1)})
    os.utime(next(tmp_path.rglob("000000.claim-1")), (0, 0))
    assert parts.claimed_by_others() == {2}
    left = ["000000.claim-1", "000002.claim-1", "000003.safetensors"]
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == left
    monkeypatch.setattr(parts_module, "this_process", lambda: (0, 1))
    parts.claim([1])  # there are no others
    assert not list(tmp_path.rglob("000001*"))
