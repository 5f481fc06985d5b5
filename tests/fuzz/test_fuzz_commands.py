"""Command lines with anything in them: exit code 0 with whole files, or 2 with a line that says why; no traceback."""

import os
import stat
import sys
import zlib
from struct import pack

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast.cli import main
from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.video import VideoWriter, open_source

from .conftest import scenarios
from .test_fuzz_tracker import TINY


def png(width, height):
    """A picture that claims this size and holds nothing."""

    def chunk(kind, data):
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of good and bad files to name in commands."""
    root = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    save_weights(OSTrack(TINY).state_dict(), TINY, root / "tiny.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (4, 48, 64, 3), dtype=np.uint8)
    for name in ("in.mp4", "a:b[c]%d.mp4", "-dash.mp4", os.fsdecode(b"caf\xe9.mp4")):
        with VideoWriter(root / name, 25) as video:
            for frame in noise:
                video.write(frame)
    whole = (root / "in.mp4").read_bytes()
    (root / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "noise.mp4").write_bytes(np.random.default_rng(1).bytes(5000))
    (root / "empty.mp4").write_bytes(b"")
    for folder, count in (("frames", 3), ("data/one/img", 3), ("data/two/img", 3), ("broken", 3), ("bombs", 1)):
        (root / folder).mkdir(parents=True)
        for index in range(count):
            cv2.imwrite(str(root / folder / f"{index}.png"), noise[index])
    (root / "broken" / "1.png").write_bytes(b"no image")
    (root / "broken" / "2.png").write_bytes(png(64, 48))
    (root / "bombs" / "0.png").write_bytes(png(100_000, 100_000))
    (root / "data/one/groundtruth_rect.txt").write_text("10,10,20,20\n" * 3)
    (root / "data/two/groundtruth_rect.txt").write_text("10 10 20 20\n\n1,2,x,4\n")
    (root / "none").mkdir()
    (root / "settings.yaml").write_text("a: [1\n")
    (root / "more.yaml").write_text("epochs: abc\n")
    (root / "circle").symlink_to("circle")
    return root


SOURCES = ["in.mp4", "a:b[c]%d.mp4", "./-dash.mp4", os.fsdecode(b"caf\xe9.mp4"), "half.mp4", "noise.mp4", "empty.mp4",
           "frames", "broken", "bombs", "none", "absent", "", ".", "tiny.safetensors", "circle", "in.mp4/x", "n" * 300,
           "/dev/null", "99", "9" * 30, "-1", "http://127.0.0.1:9/x", "rtsp://127.0.0.1:9/x"]  # fmt: skip
BOXES = ["10,10,20,20", "10, 10, 20, 20", "0,0,64,48", "1,2,3", "a,b,c,d", "", "1e400,1,2,3", "nan,1,2,3", "1,1,-5,5",
         "500,500,5,5", "1,1,1e9,1e9", "10;10;20;20", "٣,٣,9,9", "1_0,1,9,9"]  # fmt: skip
WEIGHTS = ["tiny.safetensors"] * 6 + ["absent", "in.mp4", "frames", "", "circle", "/dev/null", "../", "empty.mp4"]
OUTPUTS = ["out/o{}", "o{}", "out/" + "n" * 200 + "{}", "n" * 250 + "{}", "none", "in.mp4", "in.mp4/o{}", "/proc/o{}",
           "/dev/null", "/dev/full", "circle", "", "frames/o{}", "tiny.safetensors", "ö動{}", "a\nb{}", "o", "[x]{}",
           os.fsdecode(b"\xff{}")]  # fmt: skip


def random_command(random_):
    def maybe(chance, *values):
        return list(values) if random_.random() < chance else []

    def output(suffix):
        return random_.choice(OUTPUTS).replace("{}", suffix)

    name = random_.choice(["track"] * 6 + ["evaluate"] * 3 + ["train", "info", "demo", "bench", "nonsense"])
    weights = [f"--weights={random_.choice(WEIGHTS)}"]
    device = maybe(0.1, f"--device={random_.choice(['cpu', 'cuda:99', 'tpu', ''])}")
    dtype = maybe(0.2, f"--dtype={random_.choice(['float32', 'bfloat16', 'int8', 'int4', ''])}")
    if name == "track":
        return [
            name, random_.choice(SOURCES), f"--box={random_.choice(BOXES[:3] * 4 + BOXES)}", *weights, *device, *dtype,
            *maybe(0.5, "-o", output(".mp4")), *maybe(0.6, f"--boxes={output('.txt')}"),
            *maybe(0.2, f"--plot={output('.png')}"), *maybe(0.03, "--what"),
        ]  # fmt: skip
    if name == "evaluate":
        data = random_.choice(["data"] * 5 + ["none", "absent", "frames", "in.mp4", "", "broken"])
        return [
            name, f"--data={data}", *weights, *device, *dtype, *maybe(0.5, f"--json={output('.json')}"),
            *maybe(0.4, f"--results={output('')}"), *maybe(0.2, f"--plot={output('.png')}"),
            *maybe(0.1, f"--one-based={random_.choice(['one', '*', '[', ''])}"),
        ]  # fmt: skip
    if name == "train":
        return [
            name,
            random_.choice(["settings.yaml", "more.yaml", "absent", "in.mp4", "none", "tiny.safetensors", ""]),
        ]
    if name == "demo":
        return [name, f"--output={random_.choice(['in.mp4', '/proc', 'circle'])}"]
    if name == "bench":
        return [name, random_.choice(["nonsense", ""])]
    return [name, *maybe(0.1, "--what")]


def test_commands(world, long, counts, monkeypatch, capsys):
    monkeypatch.chdir(world)
    monkeypatch.delenv("OSTRACK_FAST_DEBUG", raising=False)
    kept = {path: path.read_bytes() for path in world.rglob("*") if path.is_file()}

    def run(random_):
        command = random_command(random_)
        monkeypatch.setattr(sys, "argv", ["ostrack-fast", *command])
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = leave.code or 0
        out, err = capsys.readouterr()
        counts[f"exit code {code}"] += 1
        assert code in (0, 2, 3), (command, err)
        assert "Traceback" not in out + err and "please report" not in err, (command, err)
        # Of two videos that `evaluate` can be given, one is bad.
        assert (code == 3) == ("videos were skipped" in err), (command, out, err)
        assert code != 2 or "rror" in err, (command, out, err)
        assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
        for path in list(world.rglob("*")):
            assert not path.name.startswith(".ostrack_fast-"), (command, path)
            if path in kept:
                assert path.read_bytes() == kept[path], (command, path)
            elif path.suffix == ".mp4" and path.is_file():
                assert len(list(open_source(path))) >= 3, (command, path)

    scenarios(300 if long else 12, long, run, reduce=False)
