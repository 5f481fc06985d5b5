"""The reader of pickles: what it understands, and that nothing in a pickle is imported, called, or without bound."""

import collections
import io
import os
import pickle
import struct
import sys

import pytest

from ostrack_fast.model import unpickle
from ostrack_fast.model.unpickle import CheckpointError, Foreign, Global, Storage, StoredTensor, read_pickle


def read(data):
    return read_pickle(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(6))
def test_containers_numbers_and_strings(protocol):
    shared = [1, 2]
    value = {
        "numbers": [0, -1, 255, 65536, 2**31, 2**70, -(2**70), 1.5, True, False, None],
        "text": ("", "aé😀", "x" * 300),
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "ordered": collections.OrderedDict(b=1, a=2),
        1: {"nested": {"deep": [{}]}},
        "shared": [shared, shared],
    }
    found = read(pickle.dumps(value, protocol))
    assert found == value and list(found["ordered"]) == ["b", "a"]
    assert found["shared"][0] is found["shared"][1]


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes(protocol):
    assert read(pickle.dumps([b"a", b"b" * 300, bytearray(b"c")], protocol))[:2] == [b"a", b"b" * 300]


class Settings:
    def __init__(self):
        self.config_name = "x"
        self.inner = {"a": 1}


class Slots:
    __slots__ = ("a", "b")

    def __init__(self):
        self.a, self.b = 1, 2


class Mapping(dict):
    pass


@pytest.mark.parametrize("protocol", range(2, 6))
def test_objects_become_data(protocol):
    mapping = Mapping(a=1)
    mapping.note = "n"
    objects, slots, made, function, values = read(
        pickle.dumps([Settings(), Slots(), mapping, os.system, {1, 2}], protocol)
    )
    assert isinstance(objects, Foreign) and objects.name.endswith("Settings")
    assert objects.attributes == {"config_name": "x", "inner": {"a": 1}}
    assert slots.attributes == {"a": 1, "b": 2}
    assert made.items == {"a": 1} and made.attributes == {"note": "n"}
    assert function == Global("posix.system") and values.name.endswith("set")


def test_tensors_are_described_and_not_read():
    storages = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", collections.OrderedDict, "7", "cpu", 4) if value == "STORAGE" else None

    file = io.BytesIO()
    Pickler(file, 2).dump(["STORAGE"])
    file.seek(0)
    assert read_pickle(file, storages) == [Storage("collections.OrderedDict", "7")]
    assert storages == {"7": "collections.OrderedDict"}
    call = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x01K\x02\x85K\x01\x85\x89NtR."
    assert read(call) == StoredTensor(None, 1, (2,), (1,))


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_nothing_is_called_imported_or_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read(pickle.dumps("text", 0))  # so that the codec of such strings is there
    modules = set(sys.modules)
    for protocol in range(6):
        for function, *arguments in (
            (os.system, "touch owned"), (eval, "open('owned','w')"), (open, "owned", "w"), (exec, "raise SystemExit"),
            (bytearray, 1 << 40), (getattr, "x", "upper"), (sys.exit, 1),
        ):  # fmt: skip
            assert isinstance(read(pickle.dumps({"a": Call(function, *arguments)}, protocol))["a"], Foreign)
    read(b"cos\nsystem\n(S'touch owned'\ntR.")
    read(b"(S'touch owned'\nios\nsystem\n.")
    read(b"\x80\x04\x8c\x0cno_such_mod_\x8c\x01f\x93.")
    read(b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x08\x00\x00\x00pollutedK\x01sb.")
    assert not list(tmp_path.iterdir()) and set(sys.modules) == modules
    assert not hasattr(unpickle, "polluted")
    assert all(not hasattr(maker, "polluted") for maker, _ in unpickle.ALLOWED.values())


HUGE = 1 << 40
HOSTILE = {
    "empty": b"",
    "no stop": b"\x80\x02N",
    "only stop": b".",
    "stack below a mark": b"\x80\x02(l0.",
    "marks": b"(" * 50 + b".",
    "memo that is not there": b"\x80\x02h\x05.",
    "unknown opcode": b"\x80\x02\xff.",
    "frame and bytes of a terabyte": b"\x80\x04\x8e" + struct.pack("<Q", HUGE) + b"x.",
    "bytearray of a terabyte": b"\x80\x05\x96" + struct.pack("<Q", HUGE) + b"x.",
    "string of a terabyte": b"\x80\x04\x8d" + struct.pack("<Q", HUGE) + b"x.",
    "digits": b"I" + b"9" * 6000 + b"\n.",
    "long digits": b"L" + b"9" * 6000 + b"L\n.",
    "long number": b"\x80\x02\x8b" + struct.pack("<I", 100_000) + b"\x7f" * 100_000 + b".",
    "not UTF-8": b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "name that is a number": b"\x80\x04K\x01K\x02\x93.",
    "long name": b"\x80\x04X\x10\x27\x00\x00" + b"a" * 10_000 + b"\x8c\x01f\x93.",
    "odd items": b"\x80\x02}(K\x01u.",
    "operations": b"\x80\x02" + b"N0" * (unpickle.MAX_OPCODES // 2 + 10) + b"N.",
    "half a float": b"G\x00\x00",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_damage_ends_in_the_documented_error(name):
    with pytest.raises(CheckpointError, match="its pickle"):
        read(HOSTILE[name])


def test_a_memo_index_costs_nothing():
    assert read(b"\x80\x02}r\xff\xff\xff\x7f.") == {}


def test_nesting_needs_no_stack():
    """As a value and as a key; the hash of a tuple Python would compute by recursion, and end the process."""
    lists = b"]" * 100_000 + b"a" * 99_999
    assert len(read(b"\x80\x02" + lists + b".")) == 1
    assert read(b"\x80\x02}(" + lists + b"K\x01u.") == {}
    for nest in (b"\x85", b"N\x86", b"NN\x87"):
        assert read(b"\x80\x02)" + nest * 90 + b".")
        with pytest.raises(CheckpointError, match="nests tuples more than 100 deep"):
            read(b"\x80\x02}()" + nest * 200_000 + b"K\x01u.")
    with pytest.raises(CheckpointError, match="nests tuples"):
        read(b"\x80\x02" + b"(" * 200 + b"t" * 200 + b".")


def test_what_is_shared_is_not_multiplied():
    """Opcodes that cost one byte must not do work, or take memory, for all that an object of the memo holds."""
    first, second = read(b"\x80\x02}X\x01\x00\x00\x00aNsq\x000cx\nY\n)\x81h\x00bcx\nY\n)\x81h\x00b\x86.")
    assert first.attributes == {"a": None} and first.attributes is second.attributes
    pairs = b"(" + b"(NNt" * 1000 + b"lq\x00"
    calls = b"0ccollections\nOrderedDict\nh\x00\x85R" * 2000
    with pytest.raises(CheckpointError, match="larger than"):
        read(b"\x80\x02" + pairs + calls + b".")
    # Tuples of tuples: 2**60 elements, if one looked at them all.
    doubled = b")q\x00" + b"h\x00h\x00\x86q\x00" * 60
    assert read(b"\x80\x02}(" + doubled + b"0h\x00K\x01u.") == {}
