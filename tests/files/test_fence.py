import os

import pytest

from hf_distinct.files.fence import Fence, is_address, local_file


@pytest.fixture
def places(tmp_path):
    for name in ("data/a.png", "data/deep/b.png", "home/private.png", "database/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "data" / "out.png").symlink_to(tmp_path / "home" / "private.png")
    (tmp_path / "data" / "folder").symlink_to(tmp_path / "home")
    (tmp_path / "data" / "in.png").symlink_to(tmp_path / "data" / "deep" / "b.png")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("name", ["a.png", "deep/b.png", "deep/../a.png", "in.png", "none.png", ".", "../link/a.png"])
@pytest.mark.parametrize("folder", ["data", "link"])
def test_inside(places, name, folder):
    assert places / folder / name in Fence([places / folder])


@pytest.mark.parametrize(
    "name", ["../home/private.png", "out.png", "folder/private.png", "/etc/hostname", "..", "../database/c.png"]
)
@pytest.mark.parametrize("folder", ["data", "link"])
def test_outside(places, name, folder):
    assert places / folder / name not in Fence([places / folder])


def test_a_name_that_no_file_can_have_is_outside(places):
    with pytest.raises(ValueError, match="Only files in"):
        Fence([places / "data"]).check(places / "data" / ".." / "a\0b", "list.json[3]")


def test_everything_is_below_the_root(places):
    assert places / "home" / "private.png" in Fence(["/"])


def test_several_folders(places):
    fence = Fence([places / "data", places / "home"])
    assert places / "data" / "out.png" in fence and places / "database" / "c.png" not in fence


def test_a_snapshot_of_the_hub_leads_to_its_blobs(tmp_path):
    repository = tmp_path / "datasets--a--b"
    for folder in ("blobs", "snapshots/123"):
        (repository / folder).mkdir(parents=True)
    (repository / "blobs" / "x").write_bytes(b"")
    (tmp_path / "private").write_bytes(b"")
    picture, private = repository / "snapshots" / "123" / "1.png", repository / "snapshots" / "123" / "2.png"
    picture.symlink_to("../../blobs/x")
    private.symlink_to("../../../private")
    fence = Fence([picture.parent])
    assert picture in fence and private not in fence


def test_the_message_names_file_row_place_and_what_to_do(places):
    path = places / "data" / "out.png"
    with pytest.raises(ValueError) as caught:
        Fence([places / "data"]).check(path, "list.json[3]")
    named = (repr(str(path)), "home/private.png'", repr(str(places / "data")))
    for part in ("list.json[3] names", *named, "--image_root /"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("a/b.png", "a/b.png"),
        ("/a/b:c.png", "/a/b:c.png"),
        ("C:\\a.png", "C:\\a.png"),
        ("file:///a/b.png", "/a/b.png"),
        ("zip://in/a.png::/b/c.zip", "/b/c.zip"),
        ("zip://a.png::zip://b.zip::c.zip", "c.zip"),
        ("https://example.org/a.png", None),
        ("s3://bucket/a.png", None),
        ("hf://datasets/a/b/c.png", None),
        ("zip://a.png::https://example.org/c.zip", None),
        ("zip://a.png", None),
        ("simplecache::/etc/hostname", None),
        ("simplecache::https://example.org/a.png", None),
        ("reference://::a.json", None),
        ("http:a.png", None),
    ],
)
def test_what_asks_somebody_else(path, local):
    assert local_file(path) == local
    assert is_address(path) == (local != path)


def test_relative_paths_are_those_of_the_working_directory(places, monkeypatch):
    monkeypatch.chdir(places / "data")
    assert "a.png" in Fence(["."]) and os.path.join("..", "home", "private.png") not in Fence(["."])
