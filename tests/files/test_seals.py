from hf_distinct.files.seals import changed, describe


def test_what_changed_is_named(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"abc")
    described = describe(tmp_path, [path])
    assert changed(tmp_path, described) is None
    path.write_bytes(b"abd")
    assert "a.npy is not as it was written" in (changed(tmp_path, described) or "")
    path.write_bytes(b"ab")
    assert changed(tmp_path, described) == "a.npy has 2 bytes instead of 3"
    path.unlink()
    assert changed(tmp_path, described) == "a.npy is missing"


def test_a_name_that_leads_out_is_not_read(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "private").write_bytes(b"abc")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "private")
    for name in ("../private", str(tmp_path / "private"), "link"):
        assert changed(tmp_path / "in", {name: 3}) == f"{name} lies outside of {tmp_path / 'in'}"
