"""Yaml files that hold settings, and all that only look like it."""

import os
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from ostrack_fast.settings import bind, check_ranges, nearest, read_yaml


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    pair: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        check_ranges(self, rate=(0, 1), pair=(0, 2))


@dataclass(frozen=True)
class Outer:
    name: str
    count: int = 1
    flag: bool = False
    maybe: float | None = None
    kind: Literal["a", "b"] = "a"
    many: tuple[int, ...] = ()
    parts: tuple[Inner, ...] = ()
    inner: Inner = field(default_factory=Inner)
    free: dict[str, Any] = field(default_factory=dict)


def load(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path)


def test_a_whole_file(tmp_path):
    document = load(
        tmp_path,
        """
name: x           # a comment
count: 6e4
flag: yes
maybe: 1e-3
many: [1, 2, 3]
parts: [{rate: 1}, {pair: [0.5, 2]}]
inner: {rate: .25}
free: {any: [thing, {at: all}]}
""",
    )
    expected = Outer(
        "x", 60000, True, 0.001, "a", (1, 2, 3), (Inner(1.0), Inner(pair=(0.5, 2.0))), Inner(0.25),
        {"any": ["thing", {"at": "all"}]},
    )  # fmt: skip
    made = bind(Outer, document, "c.yaml")
    assert made == expected
    assert type(made.count) is int and type(made.parts[0].rate) is float
    assert bind(Outer, {"count": 3}, "c.yaml", made).name == "x"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    assert load(tmp_path, "name: é動\n".encode(encoding)) == {"name": "é動"}


BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\n", "line 2: .*correct the yaml"),
        ("\ta: 1\n", "line 1: .*cannot start any token"),
        ("a: 1\nb: 'x\n", "line 3"),
        ("a: \0\n", "cannot be read as yaml: .*not allowed"),
        (b"a: \xe9\n", "cannot be read as yaml"),
        ("a: !!python/object/apply:os.system [touch ran]\n", "line 1: .*python/object"),
        ("a: " + "[" * 20000, "nested more than 50 levels"),
        ("a: " + "{b: " * 60 + "1" + "}" * 60, "nested more than 50 levels"),
        (BOMB, "line 2: the alias \\*a0: write the value out"),
        ("a: &r {b: *r}\n", "line 1: the alias \\*r"),
        ("a: &x 1\nb: *x\n", "line 2: the alias"),
        ("a: 1\nb: 2\na: 3\n", "line 3: 'a' is given twice"),
        ("a: {b: 1, b: 2}\n", "'b' is given twice"),
        ("? [1]\n: 2\n", "unhashable"),
        ("a: " + "9" * 5000, "cannot be read as yaml"),
        ("- 1\n", "is not a mapping of settings.*a list \\[1\\]"),
        ("", "is not a mapping of settings.*nothing"),
        ("hello", "is not a mapping of settings.*the text 'hello'"),
        ("a: 1\n---\nb: 2\n", "another document"),
        ("a: !!timestamp x\n", "line 1: 'x' does not fit the tag timestamp"),
        ("a: 1\nb: !!bool x\n", "line 2: 'x' does not fit the tag bool"),
        ("a: !!int ''\n", "line 1: '' does not fit the tag int"),
        ("!!timestamp x: 1\n", "line 1: 'x' does not fit"),
        ("a: !!map [b]\n", "line 1: expected a mapping, got a sequence"),
        ("a: 0x" + "f" * 5000, "line 1: a number of 20000 bits"),
        ('a: "b\\0c"\n', "line 1: a text with a character that is none"),
        ('a: 1\nb: {"\\ud800": 1}\n', "line 2: a text with a character that is none"),
    ],
)
def test_what_is_no_file_of_settings(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, text)
    assert "c.yaml" in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400
    assert not (tmp_path / "ran").exists()


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="not a regular file"):
        read_yaml(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ValueError, match=r"pipe\.yaml is not a regular file"):
        read_yaml(tmp_path / "pipe.yaml")
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ValueError, match="1,000,001 bytes"):
        read_yaml(tmp_path / "big.yaml")


def test_numbers_are_what_they_look_like(tmp_path):
    text = "[0, -12, 1_000, 0xff, 1.5, .5, -2., 1e3, 1.5E-2, .inf, .nan, 010, 08, 1:30, 190:20:30.15, 1e, ., +]"
    read = load(tmp_path, f"a: {text}")["a"]
    assert repr(read[:11]) == "[0, -12, 1000, 255, 1.5, 0.5, -2.0, 1000.0, 0.015, inf, nan]"
    assert read[11:] == ["010", "08", "1:30", "190:20:30.15", "1e", ".", "+"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "c: the setting 'name' is missing"),
        ([1], "c: expected settings, .*a list"),
        (None, "c: expected settings, .*nothing"),
        ({"nam": "x"}, "c: unknown settings \\['nam'\\]; did you mean 'name'\\? Known: name, count"),
        ({"name": "x", 5: 1}, "c: unknown settings \\[5\\]"),
        ({"name": "x", "inner": {"rat": 1}}, "c: inner: unknown settings \\['rat'\\]; did you mean 'rate'"),
        ({"name": "x", "parts": [{"rate": 1}, {"rate": "x"}]}, "c: parts, entry 2: rate: expected a number"),
        ({"name": 5}, "c: name: expected a text \\(put it in quotes\\), got 5"),
        ({"name": "x", "count": "3"}, "c: count: expected a whole number, got the text '3'"),
        ({"name": "x", "count": 3.5}, "count: expected a whole number, got 3.5"),
        ({"name": "x", "count": True}, "count: expected a whole number, got True"),
        ({"name": "x", "count": None}, "count: expected a whole number, got nothing \\(leave the key out"),
        ({"name": "x", "flag": 1}, "flag: expected true or false, got 1"),
        ({"name": "x", "maybe": "abc"}, "maybe: expected a number, got the text 'abc'"),
        ({"name": "x", "maybe": True}, "maybe: expected a number"),
        ({"name": "x", "maybe": float("inf")}, "maybe: expected a finite number"),
        ({"name": "x", "maybe": float("nan")}, "maybe: expected a finite number"),
        ({"name": "x", "maybe": 10**400}, "maybe: expected a number"),
        ({"name": "x", "maybe": [1]}, "maybe: expected a number, got a list"),
        ({"name": "x", "kind": "c"}, "c: kind='c' must be one of a, b"),
        ({"name": "x", "many": 3}, "many: expected a list"),
        ({"name": "x", "many": [1, "x"]}, "many, entry 2: expected a whole number"),
        ({"name": "x", "inner": {"pair": [1]}}, "inner: pair: expected a list of 2 values"),
        ({"name": "x", "inner": {"pair": [1, 3]}}, "inner: pair=\\(1.0, 3.0\\) must lie in \\[0, 2\\]"),
        ({"name": "x", "inner": {"rate": 2}}, "c: inner: rate=2.0 must lie in \\[0, 1\\]"),
        ({"name": "x", "inner": 3}, "c: inner: expected settings"),
        ({"name": "x", "free": [1]}, "free: expected settings"),
        ({"name": "x", "free": {1: 2}}, "free: expected settings"),
        ({"name": "x", "count": "x" * 10000}, "count: expected a whole number"),
    ],
)
def test_a_value_that_cannot_be_is_named(values, message):
    with pytest.raises(ValueError, match=f"^{message}" if message.startswith("c:") else message) as error:
        bind(Outer, values, "c")
    assert len(str(error.value)) < 300


def test_nearest():
    assert nearest("Batchsize", ["seed", "batch_size", "epochs"]) == "batch_size"
    assert nearest(3, ["a", "3x"]) == "3x"
