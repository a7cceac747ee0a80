from hf_distinct.files.seals import ALGORITHM, altered, changed, describe, sealed


def test_what_changed_is_named(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"abc")
    described = describe(tmp_path, [path])
    assert changed(tmp_path, described) is None
    path.write_bytes(b"abd")
    assert "a.npy has changed since it was written" in (changed(tmp_path, described) or "")
    path.write_bytes(b"ab")
    assert changed(tmp_path, described) == "a.npy has 2 bytes instead of 3"
    path.unlink()
    assert changed(tmp_path, described) == "a.npy is missing"


def test_a_name_that_leads_out_is_not_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "private").write_bytes(b"abc")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "private")
    for name in ("../private", str(tmp_path / "private"), "link"):
        assert changed(tmp_path / "in", {name: 3}) == f"{name} is outside of {tmp_path / 'in'}"


def test_a_list_of_files_that_lost_a_digest_is_not_trusted(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"abc")
    described = describe(tmp_path, [path])
    described["a.npy"]["xxh3_129"] = described["a.npy"].pop(ALGORITHM)
    assert changed(tmp_path, described) == "the digest of a.npy is missing"


def test_an_object_that_changed_is_noticed_and_one_without_a_digest_is_of_the_first_version():
    whole = sealed({"processes": 2, "files": {}})
    assert altered(whole, ("processes", "files")) is None and sealed(whole) == whole
    assert altered({"processes": 2, "files": {}}, ("processes", "files")) is None
    for other in (whole | {"processes": 3}, {**whole, "more": 1}, {"processes": 2, "filet": {}}):
        assert "have changed" in (altered(other, ("processes", "files")) or "")
    torn = {"digesu" if name == "digest" else name: value for name, value in whole.items()}
    assert "have changed" in (altered(torn, ("processes", "files")) or "")
