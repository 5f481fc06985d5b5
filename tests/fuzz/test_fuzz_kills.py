"""Commands that are killed or interrupted at any moment: files old or whole, nothing left over, the same end result."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.training.checkpoint import CHECKPOINT, PREVIOUS, find_checkpoint, is_whole
from ostrack_fast.training.log import LOG
from ostrack_fast.training.trainer import WEIGHTS
from ostrack_fast.video import VideoWriter, open_source

from .test_fuzz_tracker import TINY

FRAMES = 30
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LITTER = ".ostrack_fast-"

# Imports once what takes seconds, and forks a process that runs one command, for each line it reads.
_COMMANDS = """
import json, os, sys, traceback
import cv2, matplotlib.figure, torch
import ostrack_fast.evaluation.runner, ostrack_fast.tracker, ostrack_fast.training.trainer, ostrack_fast.visualization
from ostrack_fast.cli import main

for line in sys.stdin:
    arguments, log = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(out, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["ostrack-fast", *arguments]
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = leave.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

TRAIN = """
model: {preset: small, template_size: 32, search_size: 64, embed_dim: 32, depth: 2, num_heads: 2, head_channels: 16,
        ce_layers: [], ce_keep_ratio: []}
data: {videos: {path: data}}
pairs_per_epoch: 800
epochs: 1
output: run
workers: 1
batch_size: 4
precision: float32
checkpoint_minutes: 0.0005
"""


class Commands:
    """Runs commands in processes of their own, in a folder."""

    def __init__(self, folder):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.log = folder / "log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMANDS], cwd=folder, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def run(self, arguments, signals=(), after=0.0):
        """The exit code (negative: the signal that ended it) and seconds; `signals` come one soon after the other."""
        self.process.stdin.write(json.dumps([list(map(str, arguments)), str(self.log)]) + "\n")
        pid = int(self.process.stdout.readline())
        begin = time.monotonic()
        for number in signals:
            time.sleep(after)
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                break
            after = 0.01
        code = int(self.process.stdout.readline())
        seconds = time.monotonic() - begin
        told = self.log.read_text(errors="replace")
        assert "Traceback" not in told and "please report" not in told, (arguments, signals, told)
        self.wait_for_workers(pid)
        return code, seconds

    @staticmethod
    def wait_for_workers(group):
        """A trainer's workers notice within seconds that it was killed; for ever would be a hang."""
        for _ in range(600):
            try:
                os.killpg(group, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)
        pytest.fail("a process outlived the command that started it")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A folder with a video, a data set, weights and a training file, and commands that run in it."""
    root = tmp_path_factory.mktemp("kills")
    torch.manual_seed(0)
    save_weights(OSTrack(TINY).state_dict(), TINY, root / "tiny.safetensors")
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, 48, 64, 3), dtype=np.uint8)
    with VideoWriter(root / "in.mp4", 25) as video:
        for frame in noise:
            video.write(frame)
    for name in ("one", "two", "three"):
        (root / "data" / name / "img").mkdir(parents=True)
        for index in range(FRAMES):
            cv2.imwrite(str(root / "data" / name / "img" / f"{index}.png"), noise[index])
        (root / "data" / name / "groundtruth_rect.txt").write_text("20,15,20,16\n" * FRAMES)
    (root / "train.yaml").write_text(TRAIN)
    running = Commands(root)
    yield running, root
    running.close()


class Track:
    """Outputs are those of the whole video, or after an interrupt of its beginning."""

    def arguments(self, out):
        return ["track", "in.mp4", "--box=20,15,20,16", "--weights=tiny.safetensors", "--device=cpu", "--dtype=float32",
                "-o", out / "o.mp4", f"--boxes={out / 'b.txt'}", f"--plot={out / 'p.png'}"]  # fmt: skip

    def whole(self, path, reference):
        if path.suffix == ".png":
            return cv2.imread(str(path)) is not None
        if path.suffix == ".mp4":
            return 1 <= len(list(open_source(path))) <= FRAMES
        lines = path.read_text().splitlines(keepends=True)
        return lines == (reference / "b.txt").read_text().splitlines(keepends=True)[: len(lines)] and bool(lines)

    def consistent(self, out):
        """After an interrupt all outputs are there, and of the same frames."""
        boxes = out / "b.txt"
        return not boxes.exists() or len(list(open_source(out / "o.mp4"))) == len(boxes.read_text().splitlines())

    def same(self, out, reference):
        return (out / "b.txt").read_bytes() == (reference / "b.txt").read_bytes() and len(
            list(open_source(out / "o.mp4"))
        ) == FRAMES


class Evaluate:
    """Every file is of videos that were finished."""

    def arguments(self, out):
        return ["evaluate", "--data=data", "--weights=tiny.safetensors", "--device=cpu", "--dtype=float32",
                f"--json={out / 'r.json'}", f"--results={out / 'boxes'}"]  # fmt: skip

    def numbers(self, path):
        videos = json.loads(path.read_text())["videos"]
        return {video["name"]: {key: video[key] for key in video if key != "fps"} for video in videos}

    def whole(self, path, reference):
        if path.suffix == ".json":
            expected = self.numbers(reference / "r.json")
            return all(expected[name] == found for name, found in self.numbers(path).items())
        return path.read_bytes() == (reference / "boxes" / path.name).read_bytes()

    def consistent(self, out):
        return True

    def same(self, out, reference):
        names = [path.name for path in (reference / "boxes").iterdir()]
        return self.numbers(out / "r.json") == self.numbers(reference / "r.json") and all(
            (out / "boxes" / name).read_bytes() == (reference / "boxes" / name).read_bytes() for name in names
        )


class Train:
    """The run continues from what is there, to the same weights."""

    def arguments(self, out):
        return ["train", "train.yaml", "--device=cpu", f"--output={out}"]

    def whole(self, path, reference):
        if path.name in (CHECKPOINT, PREVIOUS):
            return is_whole(path)
        if path.name == WEIGHTS:
            return bool(OSTrack.from_pretrained(path))
        return path.name in (LOG, "next.pt")  # a line of the log may be half: `trim_log` drops it

    def consistent(self, out):
        return find_checkpoint(out, torch.device("cpu")) is not None or not (out / WEIGHTS).exists()

    def same(self, out, reference):
        pairs = [[json.loads(line)["pairs"] for line in (each / LOG).open()] for each in (out, reference)]
        return (out / WEIGHTS).read_bytes() == (reference / WEIGHTS).read_bytes() and pairs[0] == pairs[1]


KINDS = {"track": Track(), "evaluate": Evaluate(), "train": Train()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def litter(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(LITTER)]


def kill_until_done(commands, kind, random_, reference, seconds, counts):
    """A few runs that are stopped, each checked, and one that is not."""
    running, root = commands
    out = root / "out"
    shutil.rmtree(out, ignore_errors=True)
    if kind != "train" and random_.random() < 0.5:  # results of another run, to be replaced or kept
        out.mkdir()
        for path, data in contents(reference).items():
            (out / path).parent.mkdir(exist_ok=True)
            (out / path).write_bytes(data + b"old")
    checks, command = KINDS[kind], KINDS[kind].arguments(Path("out"))
    for _ in range(random_.randint(1, 4)):
        old = contents(out)
        number = random_.choice(SIGNALS)
        times = 1 if number == signal.SIGKILL else random_.randint(1, 4)
        code, _ = running.run(command, [number] * times, random_.uniform(0, 1.1 * seconds))
        counts["kills"] += 1
        counts[f"{kind} {number.name}, exit code {code}"] += 1
        assert code in (0, 130, -number), (kind, number, code, running.log.read_text())
        for path in out.rglob("*"):
            if path.is_file() and LITTER not in path.name and path.read_bytes() != old.get(path.relative_to(out)):
                assert checks.whole(path, reference), (kind, number, code, path)
        if code in (0, 130):
            assert not litter(out), (kind, number, code)
            if code == 130 and contents(out) != old:
                assert checks.consistent(out), (kind, number)
    code, _ = running.run(command)
    assert code == 0, running.log.read_text()
    assert not litter(root), kind
    assert {path for path in contents(out)} - {Path(PREVIOUS)} == set(contents(reference)) - {Path(PREVIOUS)}
    assert checks.same(out, reference), kind
    counts["runs to the end"] += 1


def test_kills(commands, long, counts):
    running, root = commands
    random_ = random.Random(time.time_ns() if long else 0)
    references: dict[str, tuple[Path, float]] = {}
    turns = itertools.cycle(KINDS)
    while counts["kills"] < (200 if long else 4):
        kind = next(turns)
        if kind not in references:
            reference = root / f"reference_{kind}"
            code, seconds = running.run(KINDS[kind].arguments(Path(reference.name)))
            assert code == 0, running.log.read_text()
            references[kind] = reference, seconds
        kill_until_done(commands, kind, random_, *references[kind], counts)
