"""Damaged and hostile files: each one is read right, or ends in the documented error that names it.

The files are made from good checkpoints by a seeded generator. The first 200 are tried here, 10,000 others in the long
mode of `tests/fuzz`.
"""

import io
import json
import os
import pickle
import random
import resource
import struct
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from ostrack_fast.config import ModelConfig
from ostrack_fast.model import OSTrack, build_ostrack, unpickle
from ostrack_fast.model.checkpoint import CheckpointError

SMALL = ModelConfig(template_size=32, search_size=64, embed_dim=16, depth=1, num_heads=2, head_channels=8)
CHUNK = 50


class Call:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


PAYLOADS = [
    Call(os.system, "touch owned"), Call(exec, "open('owned', 'w')"), Call(eval, "__import__('os')._exit(3)"),
    Call(open, "owned", "w"), Call(bytearray, 1 << 36), Call(getattr, "x", "upper"), Call(sys.setrecursionlimit, 5),
    Call(torch.load, "/dev/zero"), Call(os.kill, os.getpid(), 9), Call(__import__, "antigravity"),
]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Bytes of a good checkpoint in each format."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("good"), build_ostrack(SMALL)
    made = {}
    content = {"epoch": 3, "net": model.state_dict(), "stats": [{"a": (1, 2.5, "x")}]}
    for name, new in (("zip", True), ("legacy", False)):
        torch.save(content, folder / name, _use_new_zipfile_serialization=new)
        made[name] = (folder / name).read_bytes()
    save_file(model.state_dict(), folder / "w.safetensors", {"config": json.dumps(SMALL.to_dict())})
    made["safetensors"] = (folder / "w.safetensors").read_bytes()
    return made, model.state_dict()


def mutated(rng, data):
    """Some bytes changed, removed, doubled or inserted."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(data))
        kind = rng.randrange(5)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at : at + rng.randrange(1, 9)]
        elif kind == 3:
            data[at:at] = data[at : at + rng.randrange(1, 40)]
        else:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        if not data:
            return b"x"
    return bytes(data)


def with_pickle(data, change):
    """A zip checkpoint with another pickle, its checksums right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    return target.getvalue()


def opcodes(rng):
    """A random program of valid opcodes."""
    import pickletools

    parts = [b"\x80\x02"]
    for _ in range(rng.randrange(3, 60)):
        opcode = rng.choice(pickletools.opcodes)
        parts.append(opcode.code.encode("latin-1"))
        if opcode.arg is not None:
            count = opcode.arg.n if opcode.arg.n > 0 else rng.randrange(6)
            parts.append(bytes([count]) + rng.randbytes(count) if opcode.arg.n < 0 else rng.randbytes(count))
            if "nl" in opcode.arg.name:
                parts.append(b"\n" * (1 + ("pair" in opcode.arg.name)))
    return b"".join(parts) + b"."


def with_payload(rng, data):
    """A good pickle with a call in it: as a value, as the whole, or under a key."""
    call = rng.choice(PAYLOADS)
    content = rng.choice([call, [call], {"settings": call}, {"net": call}, {"net": {"a": call}}, (call, call)])
    made = pickle.dumps(content, rng.randrange(6))
    return with_pickle(data, lambda old: made)


def with_header(rng, data):
    """A safetensors file with another header."""
    (length,) = struct.unpack_from("<Q", data)
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.5:
        document = json.loads(header)
        name = rng.choice(list(document))
        value = rng.choice([-1, 1 << 62, [1 << 31, 1 << 31], "F32", None, {}, [0, 4], "F8_E4M3", 1.5, "é" * 50])
        if name == "__metadata__":
            config = SMALL.to_dict()
            config[rng.choice(list(config))] = rng.choice([value, -1, 1 << 40, "x", [10**9], 1e308, True])
            document[name] = {"config": json.dumps(config)}
        else:
            document[name][rng.choice(["dtype", "shape", "data_offsets"])] = value
        header = json.dumps(document).encode()
    else:
        header = mutated(rng, header)
    shown = rng.choice([len(header)] * 5 + [0, 1 << 63, 1 << 27, len(header) + 10**6])
    return struct.pack("<Q", shown) + header + rest


MAKERS = [
    lambda rng, good: with_pickle(good["zip"], lambda data: mutated(rng, data)),
    lambda rng, good: with_pickle(good["zip"], lambda data: opcodes(rng)),
    lambda rng, good: with_payload(rng, good["zip"]),
    lambda rng, good: mutated(rng, good["zip"]),
    lambda rng, good: good["zip"][: rng.randrange(len(good["zip"]))],
    lambda rng, good: good["zip"][: -rng.randrange(1, 3000)],
    lambda rng, good: mutated(rng, good["zip"][-20000:]).join([good["zip"][:-20000], b""]),
    lambda rng, good: mutated(rng, good["legacy"]),
    lambda rng, good: mutated(rng, good["legacy"][:9000]) + good["legacy"][9000:],
    lambda rng, good: good["legacy"][: rng.randrange(len(good["legacy"]))],
    lambda rng, good: with_header(rng, good["safetensors"]),
    lambda rng, good: good["safetensors"][: rng.randrange(len(good["safetensors"]))],
    lambda rng, good: rng.randbytes(rng.randrange(300)),
]


def try_files(good, path, numbers, counts=None):
    """Write the files of these numbers, one after the other, and read each; `counts` counts what came of them."""
    files, state = good
    path.write_bytes(files["zip"])
    OSTrack.from_pretrained(path, SMALL)  # so that what reading imports is there
    modules, limit = set(sys.modules), sys.getrecursionlimit()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        rng = random.Random(number)
        path.write_bytes(MAKERS[number % len(MAKERS)](rng, files))
        try:
            loaded = OSTrack.from_pretrained(path, SMALL).state_dict()
        except CheckpointError as error:
            assert str(path) in str(error), (number, str(error))
            assert len(str(error)) < 2000, number
            what = "refused"
        else:
            assert loaded.keys() == state.keys(), number
            assert all(value.isfinite().all() for value in loaded.values()), number
            what = "read"
        if counts is not None:
            counts[f"checkpoints {what}"] += 1
        assert os.listdir(path.parent) == [path.name], number
    assert "antigravity" not in sys.modules and sys.getrecursionlimit() == limit
    assert not {module for module in set(sys.modules) - modules if not module.startswith(("encodings", "torch"))}
    assert all(not hasattr(maker, "__dict__") or not vars(maker) for maker, _ in unpickle.ALLOWED.values())
    # Kilobytes; no file makes the process much larger than reading a good one does.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000


@pytest.mark.parametrize("chunk", range(4))
def test_every_file_is_read_right_or_refused_by_name(good, tmp_path, monkeypatch, chunk):
    monkeypatch.chdir(tmp_path)
    try_files(good, tmp_path / "file.pth", range(chunk * CHUNK, (chunk + 1) * CHUNK))


def test_the_good_files_are_good(good, tmp_path):
    files, state = good
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        loaded = OSTrack.from_pretrained(tmp_path / name, SMALL).state_dict()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_a_directory_of_a_zip_that_asks_for_gigabytes(good, tmp_path):
    """The end record of a zip file says how long its directory is, and zipfile reads as much at once."""
    data = bytearray(good[0]["zip"])
    at = data.rindex(b"PK\x05\x06")
    data[at + 12 : at + 20] = struct.pack("<II", 0xF0000000, 0)
    at = data.rindex(b"PK\x06\x06")
    data[at + 40 : at + 56] = struct.pack("<QQ", 0xF0000000, 0)
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"x\.pth"):
        OSTrack.from_pretrained(tmp_path / "x.pth", SMALL)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", "/dev/zero", "/dev/null"):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            OSTrack.from_pretrained(path)


def test_the_whole_file_is_checked(good, tmp_path):
    """Two records of one name, of which different readers would take different ones."""
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for _ in range(2):
            archive.writestr("archive/data.pkl", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match="same name"):
        OSTrack.from_pretrained(tmp_path / "x.pth", SMALL)


def test_a_header_of_very_many_tensors_is_refused_unread(tmp_path):
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"t{number}": empty for number in range(80_000)}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: its header is larger than 4 MiB"):
        OSTrack.from_pretrained(tmp_path / "w.safetensors")


@pytest.mark.parametrize("new", [True, False])
def test_signs_that_are_kept_beside_the_numbers_are_not_lost(tmp_path, good, new):
    state = dict(good[1])
    name = next(iter(state))
    state[name] = torch._neg_view(state[name])
    torch.save({"net": state}, tmp_path / "w.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=r"save it after \.resolve_neg\(\)"):
        OSTrack.from_pretrained(tmp_path / "w.pth", SMALL)
