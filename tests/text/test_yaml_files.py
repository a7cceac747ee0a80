import pytest

from hf_distinct.text.yaml_files import parse_yaml


def test_settings():
    assert parse_yaml("a: 1\nb: [x, 1.0e-5]\n", "a.yaml") == {"a": 1, "b": ["x", 1e-5]}
    assert parse_yaml("", "a.yaml") is None


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, r"an alias \(\*a0\)"),
        ("a: &a\n  b: *a\n", "an alias"),
        ("[" * 10_000, "RecursionError|recursion"),
        ("a: " + "1" * 5000, "4300|digits"),
        ("a: 2024-99-99", "month"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: [", "expected"),
        ("? [a]\n: b", "unhashable"),
        ("a: \x00", "special characters"),
    ],
)
def test_what_cannot_be_read_is_one_error_that_names_the_file(text, message):
    with pytest.raises(ValueError, match=rf"(?s)^a\.yaml: .*({message})"):
        parse_yaml(text, "a.yaml")
