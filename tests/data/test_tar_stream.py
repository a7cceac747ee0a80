import gzip
import io
import tarfile
import tracemalloc
from pathlib import Path

import published_forms
import pytest

from hf_distinct.data.skips import Skips
from hf_distinct.data.tar_stream import MAX_MEMBER_BYTES, read_samples

PICTURE = published_forms.jpegs(1)[0]
WANTED = ("jpg", "txt")


def member(name: str, content: bytes = b"", size: int | None = None, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header, which may announce any size, and what follows it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content) if size is None else size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + content + b"\0" * (-len(content) % 512)


def sparse(name: str, size: int) -> bytes:
    """GNU's old form: no data, `size` zeros."""
    block = bytearray(member(name, kind=tarfile.GNUTYPE_SPARSE)[:512])
    block[483:495] = b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


SAMPLE = member("a.jpg", PICTURE) + member("a.txt", b"A dog.")
END = b"\0" * 1024


def read(path: Path, *blocks: bytes, packed: bool = False) -> tuple[list, Skips, int]:
    """The samples of a shard, what was skipped, and the most memory that it took."""
    with gzip.open(path, "wb") if packed else open(path, "wb") as file:
        for block in (*blocks, END):
            file.write(block)
    skips = Skips(str(path))
    tracemalloc.start()
    try:
        samples = list(read_samples(str(path), skips, WANTED))
        return samples, skips, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [1 << 20, 8 << 30])
@pytest.mark.parametrize("name", ["0.jpg", "0.bin"])
def test_sparse_files_are_left_out(tmp_path, size, name):
    samples, skips, memory = read(tmp_path / "a.tar", sparse(name, size), SAMPLE)
    assert samples[-1] == ("a", {"jpg": PICTURE, "txt": b"A dog."}) and memory < 4 << 20
    counted = [f"a.tar/0.jpg ({size} bytes)"] if name == "0.jpg" else []
    assert sum(skips.names.values(), []) == counted


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_over_the_limit_is_named_with_it(tmp_path, packed):
    size = 8_589_934_592
    _, skips, memory = read(tmp_path / "a.tar.gz", SAMPLE, member("b.jpg", size=size), packed=packed)
    assert memory < 4 << 20
    assert f"over the limit of {MAX_MEMBER_BYTES} bytes" in skips.summary()
    assert "b.jpg (8589934592 bytes)" in skips.summary()
    assert "raise hf_distinct.data.tar_stream.MAX_MEMBER_BYTES" in skips.summary()


def test_only_wanted_files_are_read(tmp_path):
    zeros = [member("a.tar", size=64 << 20), *[b"\0" * (1 << 20)] * 64]
    samples, skips, memory = read(tmp_path / "a.tar.gz", *zeros, SAMPLE, packed=True)
    assert samples == [("a", {"tar": b"", "jpg": PICTURE, "txt": b"A dog."})] and not skips.names
    assert memory < 4 << 20


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
@pytest.mark.parametrize("first", [True, False])
def test_endless_names_and_headers_are_refused(tmp_path, kind, first):
    header = [member("x", size=64 << 20, kind=kind), *[b"0" * (1 << 20)] * 64]
    blocks = [*header, SAMPLE] if first else [SAMPLE, *header, SAMPLE]
    _, skips, memory = read(tmp_path / "a.tar.gz", *blocks, packed=True)
    assert "broken shard" in skips.summary() and "header of more than" in skips.summary()
    assert memory < 8 << 20


def test_members_of_no_use_take_no_memory(tmp_path):
    useless = b"".join(member(f"a.{number}") for number in range(4000))
    samples, _, memory = read(tmp_path / "a.tar", useless, SAMPLE)
    assert samples[0][1]["jpg"] == PICTURE and len(samples[0][1]) < 200
    assert memory < 300 << 10


def test_a_shard_is_unpacked_whatever_its_name(tmp_path):
    for name, packed in (("a.tar", True), ("a.tar.gz", False), ("b.tgz", True), ("b.tar", False)):
        samples, skips, _ = read(tmp_path / name, SAMPLE, packed=packed)
        assert samples == [("a", {"jpg": PICTURE, "txt": b"A dog."})] and not skips.names


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"x" * 600, io.BytesIO(SAMPLE).getvalue()[:700]])
def test_what_is_no_shard_is_named(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    skips = Skips("")
    assert not list(read_samples(str(tmp_path / "a.tar"), skips, WANTED))
    assert not content or "broken shard" in skips.summary()
