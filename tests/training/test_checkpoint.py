"""The checkpoint file: its checksum, its predecessor, and what is there after every kind of failure."""

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import zipfile

import pytest
import torch

from ostrack_fast.training.checkpoint import CHECKPOINT, DAMAGED, PREVIOUS, find_checkpoint, is_whole, write_checkpoint

CPU = torch.device("cpu")


def state(number):
    return {"seen": number, "model": {"w": torch.full((1000,), float(number))}}


def found(folder):
    path, read = find_checkpoint(folder, CPU)
    assert torch.equal(read["model"]["w"], torch.full((1000,), float(read["seen"])))
    return path.name, read["seen"]


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x40
    path.write_bytes(data)


def test_the_last_is_read_and_the_one_before_it_kept(tmp_path):
    assert find_checkpoint(tmp_path, CPU) is None
    write_checkpoint(tmp_path, state(1))
    assert found(tmp_path) == (CHECKPOINT, 1) and sorted(os.listdir(tmp_path)) == [CHECKPOINT]
    write_checkpoint(tmp_path, state(2))
    write_checkpoint(tmp_path, state(3))
    assert found(tmp_path) == (CHECKPOINT, 3)
    assert torch.load(tmp_path / PREVIOUS, weights_only=True)["seen"] == 2
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT, PREVIOUS]


def test_it_stays_a_file_that_pytorch_and_zip_read(tmp_path):
    write_checkpoint(tmp_path, state(5))
    assert torch.load(tmp_path / CHECKPOINT, weights_only=True)["seen"] == 5
    with zipfile.ZipFile(tmp_path / CHECKPOINT) as archive:
        assert archive.testzip() is None
        assert archive.comment == hashlib.sha256((tmp_path / CHECKPOINT).read_bytes()[:-32]).digest()


def test_every_flipped_bit_is_noticed(tmp_path):
    write_checkpoint(tmp_path, state(1))
    path = tmp_path / CHECKPOINT
    good, rng = path.read_bytes(), random.Random(0)
    positions = {*rng.sample(range(len(good)), 200), 0, len(good) - 1, len(good) - 33, len(good) - 34}
    for position in positions:
        path.write_bytes(good)
        assert is_whole(path)
        flip(path, position)
        assert not is_whole(path), position


@pytest.mark.parametrize("damage", ["flipped", "cut off", "empty", "text", "longer"])
def test_the_one_before_a_damaged_one_is_used_and_said(tmp_path, capsys, damage):
    write_checkpoint(tmp_path, state(1))
    write_checkpoint(tmp_path, state(2))
    path = tmp_path / CHECKPOINT
    good = path.read_bytes()
    if damage == "flipped":
        flip(path, len(good) // 2)
    else:
        spoiled = {"cut off": good[: len(good) // 2], "empty": b"", "text": b"hello", "longer": good + b"x"}
        path.write_bytes(spoiled[damage])
    bad = path.read_bytes()
    assert found(tmp_path) == (PREVIOUS, 1)
    assert f"last.pt is damaged, now {DAMAGED}" in capsys.readouterr().err
    assert (tmp_path / DAMAGED).read_bytes() == bad
    # The next checkpoint does not push the good one out by the bad one.
    write_checkpoint(tmp_path, state(3))
    assert found(tmp_path) == (CHECKPOINT, 3)
    flip(path, 200)
    assert found(tmp_path) == (PREVIOUS, 1)


def test_damage_without_a_predecessor_is_an_error(tmp_path):
    write_checkpoint(tmp_path, state(1))
    flip(tmp_path / CHECKPOINT, 300)
    with pytest.raises(ValueError, match=r"last\.pt is damaged .*previous\.pt is missing: delete"):
        find_checkpoint(tmp_path, CPU)
    (tmp_path / PREVIOUS).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"last\.pt is damaged .*previous\.pt is also damaged"):
        find_checkpoint(tmp_path, CPU)
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(ValueError, match=r"previous\.pt is damaged .*last\.pt is missing"):
        find_checkpoint(tmp_path, CPU)


def test_killed_between_two_renames(tmp_path, capsys):
    write_checkpoint(tmp_path, state(1))
    (tmp_path / CHECKPOINT).rename(tmp_path / PREVIOUS)
    assert found(tmp_path) == (PREVIOUS, 1)
    assert "last.pt is missing" in capsys.readouterr().err


def test_a_checkpoint_without_a_seal_is_read_if_its_zip_file_is_whole(tmp_path):
    torch.save(state(4), tmp_path / CHECKPOINT)
    assert found(tmp_path) == (CHECKPOINT, 4)
    data = (tmp_path / CHECKPOINT).read_bytes()
    flip(tmp_path / CHECKPOINT, data.index(torch.full((4,), 4.0).numpy().tobytes()) + 100)
    assert not is_whole(tmp_path / CHECKPOINT)


def test_what_pytorch_refuses_to_load_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / CHECKPOINT, "w") as archive:
        archive.writestr("hello", "world")
    with pytest.raises(ValueError, match=r"last\.pt is no checkpoint of a training run"):
        find_checkpoint(tmp_path, CPU)
    (tmp_path / CHECKPOINT).unlink()
    (tmp_path / CHECKPOINT).mkdir()
    with pytest.raises(ValueError, match="not a regular file"):
        find_checkpoint(tmp_path, CPU)


def test_a_full_disk_is_an_os_error_and_leaves_the_checkpoints(tmp_path):
    """A limit of the size of files fails writes as a full disk does."""
    write_checkpoint(tmp_path, state(1))
    write_checkpoint(tmp_path, state(2))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(OSError) as error:
            write_checkpoint(tmp_path, {"seen": 3, "model": {"w": torch.zeros(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert error.value.errno is not None
    assert found(tmp_path) == (CHECKPOINT, 2)
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT, PREVIOUS]


def test_killed_at_any_moment_a_whole_checkpoint_is_left(tmp_path):
    """A process that writes one checkpoint after the other is killed; each time a newer one is found."""
    script = (
        "import sys, pathlib, torch\n"
        "from ostrack_fast.training.checkpoint import write_checkpoint\n"
        "first = int(sys.argv[2])\n"
        "for number in range(first, first + 10**6):\n"
        "    state = {'seen': number, 'model': {'w': torch.full((1000,), float(number))}}\n"
        "    write_checkpoint(pathlib.Path(sys.argv[1]), state)\n"
        "    print(number, flush=True)\n"
    )
    seen, rng = 0, random.Random(0)
    for _ in range(3):
        command = [sys.executable, "-c", script, str(tmp_path), str(seen + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            reported = seen
            for _ in range(rng.randrange(2, 12)):
                reported = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            rest = process.stdout.read().split()
            reported = int(rest[-1]) if rest else reported
        _, now = found(tmp_path)
        # Between the two renames the newest is the one before it.
        assert now >= reported - 1 and now > seen
        seen = now
