import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path

import published_forms
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Value

from hf_distinct.data import picture_index
from hf_distinct.data.images import decode_image, picture_files
from hf_distinct.data.picture_index import PictureIndex, find_picture_files, write_index

PICTURES = published_forms.jpegs(7)


def tar(path: Path, files: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w") as shard:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def content(index: PictureIndex) -> list[tuple[str, bytes]]:
    read = (each.read_bytes() if isinstance(each, Path) else each["bytes"] for each in index)
    return [(index.name(place), each) for place, each in enumerate(read)]


@pytest.fixture
def everything(tmp_path: Path) -> Path:
    """Pictures in every form, and other files."""
    source = tmp_path / "source"
    (source / "b").mkdir(parents=True)
    (source / "a.jpg").write_bytes(PICTURES[0])
    (source / "b" / "z.JPG").write_bytes(PICTURES[1])
    (source / "b" / "notes.txt").write_text("no picture")
    of_a_mac = {"x/._2.jpg": b"of a Mac", "x/2.txt": b"two"}
    tar(source / "b" / "0.tar", {"x/2.jpg": PICTURES[2], **of_a_mac, "3.png": PICTURES[3]})
    whole = tar(tmp_path / "whole.tar", {"4.jpg": PICTURES[4]})
    (source / "c.tar.gz").write_bytes(gzip.compress(whole))
    images = [{"bytes": PICTURES[5], "path": "of/whom.jpg"}, {"bytes": None, "path": "/etc/passwd"}]
    images += [{"bytes": PICTURES[6], "path": None}]
    features = Features({"image": Image(), "n": Value("int64")})
    rows = Dataset.from_dict({"image": images, "n": [0, 1, 2]}, features=features)
    pq.write_table(rows.data.table, source / "d.parquet", row_group_size=2)
    return source


WANTED = [
    ("a.jpg", PICTURES[0]), ("b/0.tar/x/2.jpg", PICTURES[2]), ("b/0.tar/3.png", PICTURES[3]),
    ("b/z.JPG", PICTURES[1]), ("c.tar.gz/4.jpg", PICTURES[4]), ("d.parquet/0", PICTURES[5]), ("d.parquet/1", b""),
    ("d.parquet/2", PICTURES[6]),
]  # fmt: skip


def test_pictures_of_all_forms_in_the_order_of_their_names(everything, tmp_path, caplog):
    with caplog.at_level("INFO"):
        found = write_index(everything, tmp_path / "index", part_rows=3)
    assert "5 of 6 files have an image file extension" in caplog.text
    assert found.count == 5 and found == find_picture_files(everything)
    index = PictureIndex(tmp_path / "index", everything)
    assert index.num_parts == 3 and [index.rows_of_part(number) for number in range(3)] == [3, 3, 2]
    assert content(index) == WANTED
    assert [index[place]["bytes"] for place in (7, 2, 1)] == [PICTURES[6], PICTURES[3], PICTURES[2]]
    some = pickle.loads(pickle.dumps(PictureIndex(tmp_path / "index", everything, [0, 2])))
    assert len(some) == 5 and content(some) == WANTED[:3] + WANTED[6:]
    assert len(PictureIndex(tmp_path / "index", everything, [])) == 0
    with pytest.raises(IndexError):
        some[5]


def test_an_image_that_a_row_only_names_is_not_read(everything, tmp_path):
    write_index(everything, tmp_path / "index", part_rows=3)
    named = PictureIndex(tmp_path / "index", everything)[6]
    with pytest.raises(ValueError, match=r"d\.parquet/1"):
        decode_image(named)


def test_a_forked_process_reads_its_own_place(everything, tmp_path):
    write_index(everything, tmp_path / "index", part_rows=3)
    index = PictureIndex(tmp_path / "index", everything)
    index[1]
    child = os.fork()
    if not child:
        os._exit(0 if index[2]["bytes"] == PICTURES[3] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert index[1]["bytes"] == PICTURES[2]


def test_the_order_of_files_is_that_of_sorted_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_index, "CHUNK", 2)
    names = ["b/a.jpg", "b.jpg", "b-a/x.jpg", "B.png", "a b.jpg", "ä.jpg", "b/a/c.jpg", "a/1.jpg", "a/10.jpg"]
    for name in names:
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_bytes(PICTURES[0])
    write_index(tmp_path / "p", tmp_path / "index", part_rows=4)
    index = PictureIndex(tmp_path / "index", tmp_path / "p")
    assert list(index) == picture_files(tmp_path / "p")


@pytest.mark.parametrize("name", ["{0..1}.tar", "1.tar"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_pattern_or_one_file_or_url(tmp_path, scheme, name):
    for number in range(2):
        tar(tmp_path / f"{number}.tar", {f"{number}.jpg": PICTURES[number]})
    source = f"{scheme}{tmp_path}/{name}"
    write_index(source, tmp_path / "index", part_rows=3)
    wanted = [(f"{number}.tar/{number}.jpg", PICTURES[number]) for number in range(2)]
    assert content(PictureIndex(tmp_path / "index", source)) == (wanted if "{" in name else wanted[1:])


def test_parquet_at_a_url(everything, tmp_path):
    source = f"file://{everything}/d.parquet"
    write_index(source, tmp_path / "index", part_rows=3)
    assert content(PictureIndex(tmp_path / "index", source)) == WANTED[5:]


@pytest.mark.parametrize("change", ["added", "removed", "written", "touched"])
def test_a_change_of_the_files_is_seen(everything, change):
    before, path = find_picture_files(everything), everything / "a.jpg"
    assert find_picture_files(everything) == before
    if change == "added":
        (everything / "new.jpg").write_bytes(PICTURES[0])
    elif change == "removed":
        path.unlink()
    elif change == "written":
        path.write_bytes(PICTURES[1])
    else:
        os.utime(path, (1, 1))
    assert find_picture_files(everything) != before


def test_a_change_of_another_file_does_not_matter(everything):
    before = find_picture_files(everything)
    (everything / "b" / "notes.txt").write_text("another text")
    assert find_picture_files(everything) == before


def test_a_broken_shard_keeps_the_pictures_before_the_damage(tmp_path, caplog):
    whole = tar(tmp_path / "a.tar", {"0.jpg": PICTURES[0], "1.jpg": PICTURES[1], "2.jpg": PICTURES[2]})
    wanted = [("a.tar/0.jpg", PICTURES[0]), ("a.tar/1.jpg", PICTURES[1])]
    begin = whole.index(b"2.jpg\0")
    bomb = tarfile.TarInfo("b.jpg")
    bomb.pax_headers = {"comment": "x" * (2 << 20)}
    for broken in (whole[: begin + 600], whole[:begin], whole[:begin] + bomb.tobuf(tarfile.PAX_FORMAT)):
        (tmp_path / "a.tar").write_bytes(broken)
        caplog.clear()
        write_index(tmp_path / "a.tar", tmp_path / "index", part_rows=3)
        assert content(PictureIndex(tmp_path / "index", tmp_path / "a.tar"))[:2] == wanted
        assert "1 x broken shard" in caplog.text


def test_what_has_no_pictures_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar"):
        write_index(tmp_path / "nowhere.tar", tmp_path / "index", 3)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="contains no images"):
        write_index(tmp_path, tmp_path / "index", 3)
    assert not (tmp_path / "index").exists()
    pq.write_table(pa.table({"img": [b"a"], "photo": [b"b"], "embedding": [b"c"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="any of the columns img, photo\\."):
        write_index(tmp_path, tmp_path / "index", 3)
    (tmp_path / "text.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"text\.parquet: not a readable parquet file"):
        write_index(tmp_path, tmp_path / "index", 3)
