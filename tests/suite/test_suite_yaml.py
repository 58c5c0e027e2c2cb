"""The strict YAML reader: YAML 1.2 scalars, places, and one error for every broken file."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import UserError
from bench.suite import yaml


def plain(text: str | bytes):
    return yaml.parse(text, "f.yaml").plain()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        (".5", 0.5),
        ("5.", 5.0),
        ("-1.5e+2", -150.0),
        ("12", 12),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0xFF", 255),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        # YAML 1.1 reads these as something else
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("0b11", "0b11"),
        ("<<", "<<"),
        ("=", "="),
        ("e5", "e5"),
        (".", "."),
        ("'12'", "12"),
        ("!!str 12", "12"),
        ("!!float 12", 12.0),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    found = plain(f"key: {text}\n")["key"]
    assert found == value
    assert type(found) is type(value)


def test_every_key_and_value_has_its_place():
    tree = yaml.parse("a: 1\nb:\n  - x\n  -   {c: 2}\n", "f.yaml")
    assert tree.find(("a",)) == (("a",), yaml.Place(1, 1))
    assert tree.content["a"].place == yaml.Place(1, 4)
    assert tree.find(("b", 0))[1] == yaml.Place(3, 5)
    assert tree.find(("b", 1, "c"))[1] == yaml.Place(4, 8)
    assert tree.find(("b", 1, "nothing")) == (("b", 1), yaml.Place(4, 7))
    assert tree.find(("b", "a branch", 1, "c"))[0] == ("b", 1, "c")


def test_merge_keeps_places_and_replaces_lists():
    tree = yaml.parse("a: {x: 1, y: [1, 2]}\nb: 2\nover:\n  a:\n    y: [3]\n    z: 4\n", "f.yaml")
    merged = yaml.merge(tree.without({("over",)}), tree.content["over"])
    assert merged.plain() == {"a": {"x": 1, "y": [3], "z": 4}, "b": 2}
    assert merged.find(("a", "x"))[1].line == 1
    assert merged.find(("a", "y", 0))[1].line == 5
    assert merged.find(("a", "z"))[1].line == 6


def test_without_leaves_out_and_keeps_places():
    tree = yaml.parse("a: [1, 2, {b: 3, c: 4}]\nd: 5\n", "f.yaml")
    rest = tree.without({("a", 0), ("a", 2, "b"), ("d",)})
    assert rest.plain() == {"a": [2, {"c": 4}]}
    assert rest.content["a"].content[0].place == yaml.Place(1, 8)


def test_dotted():
    assert yaml.dotted(("grid", "methods", 2, "params", "x")) == "grid.methods[2].params.x"


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3", "the key 'a' stands twice; first in line 1"),
        ("a: [1, 2\nb: 3\n", "f.yaml:2", "not valid YAML"),
        ("a: b: c\n", "f.yaml:1", "not valid YAML"),
        ("\ta: 1\n", "f.yaml:1", "not valid YAML"),
        ("a: *nothing\n", "f.yaml:1", "undefined alias"),
        ("", "f.yaml:1", "the file is empty"),
        ("# only a comment\n", "f.yaml:1", "the file is empty"),
        ("a: 1\n---\nb: 2\n", "f.yaml:2", "not valid YAML"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]\n", "f.yaml:2", "the tag"),
        ("a: !!set {x, y}\n", "f.yaml:1", "the tag"),
        ("a: !!int x\n", "f.yaml:1", "is not of type int"),
        ("a: !!binary aGk=\n", "f.yaml:1", "the tag"),
        ("1: a\n", "f.yaml:1", "a key must be text"),
        ("? [a, b]\n: c\n", "f.yaml:1", "a key must be text"),
        ("a: .inf\n", "f.yaml:1", "too large, infinite or undefined"),
        ("a: .nan\n", "f.yaml:1", "too large, infinite or undefined"),
        ("a: 1e999\n", "f.yaml:1", "too large, infinite or undefined"),
        ("a: 99999999999999999999\n", "f.yaml:1", "too large, infinite or undefined"),
        ("a: " + "9" * 6000 + "\n", "f.yaml:1", "too large, infinite or undefined"),
        ("a:\n  " + "[" * 100 + "]" * 100, "f.yaml:2", "nested deeper than 20 levels"),
        ("[" * 100_000, "f.yaml:1", "nested deeper than 20 levels"),
        ("a: &a [*a]\n", "f.yaml:1", "an alias contains itself"),
        ("&a {b: *a}\n", "f.yaml:1", "an alias contains itself"),
        (LAUGHS, "f.yaml:", "more than 20000 values"),
        ("a: \x07\n", "f.yaml:1", "not valid YAML"),
        ('a: "\\ud800"\n', "f.yaml:1", "not valid Unicode"),
        (b"a: 1\nb: \xff\xfe\n", "f.yaml:2", "not valid YAML"),
        (b"\xff\xfe\x00", "f.yaml:1", "not valid YAML"),
    ],
)
def test_broken_files_give_one_error_with_a_line(text, where, what):
    with pytest.raises(UserError) as caught:
        plain(text)
    assert caught.value.where.startswith(where)
    assert what in caught.value.what
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read"):
        yaml.read(tmp_path / "nothing.yaml")
    with pytest.raises(UserError, match=r"cannot be read"):
        yaml.read(tmp_path)
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (yaml.MAX_BYTES + 1))
    with pytest.raises(UserError, match=r"at most 262144"):
        yaml.read(big)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(-1e15, 1e15)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_json_is_yaml(value):
    assert plain(json.dumps({"key": value})) == {"key": value}


@given(st.text() | st.text("[]{}&*!|>%@`\"'#,:-? \n\tab1.", max_size=40) | st.binary(max_size=60))
def test_any_text_gives_a_tree_or_one_error(text):
    try:
        tree = yaml.parse(text, "f.yaml")
    except UserError as error:
        found = error.where or ""
    else:
        found = f"f.yaml:{tree.place.line}"
        json.dumps(tree.plain(), allow_nan=False)
    assert found.startswith("f.yaml:")
