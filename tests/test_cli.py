"""The command line as a user runs it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import resources

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast import __version__
from ostrack_fast.cli import main
from ostrack_fast.config import ModelConfig
from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.tracker import Tracker
from ostrack_fast.video import VideoWriter, open_source

TINY = ModelConfig(
    template_size=64, search_size=128, embed_dim=24, depth=2, num_heads=2, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
BOX = (20.0, 20.0, 24.0, 16.0)


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    save_weights(OSTrack(TINY).state_dict(), TINY, tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


def make_video(path, frames):
    rng = np.random.default_rng(0)
    with VideoWriter(path, 20) as video:
        for _ in range(frames):
            video.write(rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    return path


@pytest.fixture
def video(tmp_path):
    return make_video(tmp_path / "in.mp4", 12)


def arguments(*values):
    return [sys.executable, "-m", "ostrack_fast.cli", *map(str, values)]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process: exit code, stdout, stderr."""

    def run(*values):
        monkeypatch.setattr(sys, "argv", ["ostrack-fast", *map(str, values)])
        monkeypatch.delenv("OSTRACK_FAST_DEBUG", raising=False)
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = leave.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_help_waits_for_no_torch():
    code = "import sys, ostrack_fast.cli; sys.exit(any(m in sys.modules for m in ('torch', 'cv2', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_and_version(run):
    code, out, _ = run("--help")
    assert code == 0 and all(name in out for name in ("demo", "track", "evaluate", "train", "info"))
    assert run("--version")[:2] == (0, __version__ + "\n")


def test_track_writes_everything(video, weights, tmp_path):
    """In a process of its own, as installed."""
    folder = tmp_path / "o"
    out = subprocess.run(
        arguments(
            "track", video, "--box", "20,20,24,16", "--weights", weights, "--device", "cpu",
            "-o", folder / "out.mp4", "--boxes", folder / "out.txt", "--plot", folder / "out.png",
        ),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    assert sorted(os.listdir(folder)) == ["out.mp4", "out.png", "out.txt"]
    tracker = Tracker(weights, "cpu")
    expected, frames = [BOX], iter(open_source(video))
    tracker.initialize(next(frames), BOX)
    expected += [tracker.track(frame).box for frame in frames]
    np.testing.assert_allclose(np.loadtxt(folder / "out.txt", delimiter=","), expected, atol=1e-3)
    written = open_source(folder / "out.mp4")
    assert (written.length, written.size, written.fps) == (12, (128, 96), 20)
    assert cv2.imread(str(folder / "out.png")) is not None
    assert "12 frames" in out.stdout and "frames/s" in out.stdout and "mean score" in out.stdout
    assert str(folder / "out.mp4") in out.stdout


def test_track_without_outputs_says_so(run, video, weights):
    code, out, _ = run("track", video, "--box", "20, 20, 24, 16", "--weights", weights, "--device", "cpu")
    assert code == 0 and "nothing was written" in out


def test_track_a_folder(run, weights, tmp_path):
    (tmp_path / "img").mkdir()
    for index in range(3):
        cv2.imwrite(str(tmp_path / "img" / f"{index}.jpg"), np.full((96, 128, 3), 40 * index, np.uint8))
    boxes = tmp_path / "boxes.txt"
    command = ("track", tmp_path / "img", "--box", "20,20,24,16", "--weights", weights, "--boxes", boxes)
    assert run(*command, "--device", "cpu")[0] == 0
    assert len(boxes.read_text().splitlines()) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_what_it_did(tmp_path, number):
    video = make_video(tmp_path / "in.mp4", 600)
    out = tmp_path / "out"
    process = subprocess.Popen(
        arguments(
            # Weights of some size: the tiny ones would be through before anyone could interrupt them.
            "track", video, "--box", "20,20,24,16", "--weights", "small", "--device", "cpu",
            "-o", out / "out.mp4", "--boxes", out / "out.txt",
        ),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # Tests started in the background pass on that Ctrl-C is to be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    # More than the header of the video: some frames are in.
    while process.poll() is None and not (out.exists() and any(path.stat().st_size > 1000 for path in out.iterdir())):
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate()
    assert process.returncode == 130 and "Traceback" not in stderr
    done = int(re.search(r"interrupted after (\d+) frames", stdout)[1])
    assert 0 < done < 600
    assert sorted(os.listdir(out)) == ["out.mp4", "out.txt"]
    assert len((out / "out.txt").read_text().splitlines()) == done
    # The frame in hand may be in the video and not in the boxes.
    assert len(list(open_source(out / "out.mp4"))) - done in (0, 1)


_INTERRUPTED_AGAIN = """
import os, signal, ostrack_fast.cli as cli

def app():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)  # while the first interrupt is under way
        print("told", flush=True)
        raise

cli.app = app
cli.main()
"""


def test_ctrl_c_again_and_again_leaves_no_traceback():
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED_AGAIN], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "told\n", "")


_INTERRUPTED_WHILE_IMPORTING = """
import sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
from ostrack_fast.__main__ import main
main()
"""


def test_ctrl_c_before_the_command_line_is_imported_is_quiet():
    command = [sys.executable, "-c", _INTERRUPTED_WHILE_IMPORTING]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


_INTERRUPTED_BEFORE_A_WITH = """
import sys, ostrack_fast.cli as cli
from ostrack_fast.files import AtomicFile

def app():
    left = AtomicFile(sys.argv[1])  # Ctrl-C comes before its `with` begins
    raise KeyboardInterrupt

cli.app = app
cli.main()
"""


_STOPPED_WHILE_WRITING = """
import os, signal, sys, ostrack_fast.cli as cli
from ostrack_fast.files import write_atomically

def stop(temporary):
    for _ in range(3):
        os.kill(os.getpid(), int(sys.argv[2]))

cli.app = lambda: write_atomically(sys.argv[1], stop)
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_stops_any_command_leaves_no_temporary_file(tmp_path, number):
    command = [sys.executable, "-c", _STOPPED_WHILE_WRITING, str(tmp_path / "weights.pth"), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "") and not os.listdir(tmp_path)


def test_an_interrupt_before_a_file_is_written_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", _INTERRUPTED_BEFORE_A_WITH, str(tmp_path / "plot.png")]
    assert subprocess.run(command, check=False).returncode == 130 and not os.listdir(tmp_path)


def test_mistakes_are_told_in_a_line(run, video, weights, tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    good = ("--box", "20,20,24,16", "--weights", weights, "--device", "cpu")
    cases = [
        (("track", tmp_path / "absent.mp4", *good), "absent.mp4 does not exist"),
        (("track", tmp_path / "loop.mp4", *good), "Too many levels of symbolic links"),
        (("evaluate", "--data", tmp_path / "loop.mp4"), "Too many levels of symbolic links"),
        (("track", weights, *good), "cannot be read as a video"),
        (("track", video, "--box", "1,2,3", "--weights", weights), "four numbers x,y,w,h"),
        (("track", video, "--box", "1_0,20,24,16", "--weights", weights), "four numbers x,y,w,h"),
        (("track", video, "--box", "١٠,20,24,16", "--weights", weights), "four numbers x,y,w,h"),
        (("track", video, "--box", "300,20,24,16", "--weights", weights, "--device", "cpu"), "outside the frame"),
        (("track", video, "--box", "20,20,0,16", "--weights", weights, "--device", "cpu"), "empty"),
        (("track", video, "--box", "1,2,3,4", "--weights", "no-such"), "no weights 'no-such'"),
        (("track", video, "--box", "1,2,3,4", "--weights", tmp_path / "damaged.safetensors"), "damaged.safetensors"),
        (("track", video, *good, "--device", "tpu"), "device 'tpu'"),
        (("track", video, *good, "--dtype", "int4"), "dtype 'int4'"),
        (("track", video, *good, "-o", tmp_path / "out.gif"), ".mp4"),
        (("track", video, *good, "-o", video), "is the source itself"),
        (("track", video, *good, "--plot", tmp_path / "out.docx"), "must end in one of"),
        (("track", video, *good, "--boxes", tmp_path), "is a folder"),
        (("train", tmp_path / "absent.yaml"), "absent.yaml"),
        (("train", "tiny", "--output", ""), "an argument is empty: the one behind --output"),
        (("convert", weights, tmp_path / "w.pth", "--recipe="), "an argument is empty: --recipe="),
        (("bench", "ops", "--threads", "9" * 30), "not a list of numbers from 1 to 4096"),
        (("bench", "ops", "--threads", "1_0"), "not a list of numbers from 1 to 4096"),
        (("profile", "--frames", "9" * 30), "--frames must be less than 2^63"),
        (("bench", "ops", "--seconds", "inf"), "--seconds must be a finite number, got inf"),
        (("report", tmp_path / "absent"), "absent is not a folder of results"),
        (("accelerate", "--check", f"{tmp_path / 'mine.py'}:build"), "fails in its own code"),
        (("accelerate", "--check", f"{tmp_path / 'none.py'}:build"), "SyntaxError"),
    ]
    (tmp_path / "mine.py").write_text("def build():\n    return {}['x']\n")
    (tmp_path / "none.py").write_text("def (")
    if sys.platform.startswith("linux"):
        cases.append((("track", video, "--weights", weights, "--device", "cpu"), "no display"))
    before = sorted(os.listdir(tmp_path))
    for values, message in cases:
        code, out, err = run(*values)
        assert code == 2, (values, out, err)
        assert message in err and "Traceback" not in err, err
        assert err.strip().splitlines()[-1].startswith("error: "), err
    assert sorted(os.listdir(tmp_path)) == before


def test_a_message_has_an_end(run, video):
    code, _, err = run("track", video, "--box", "1" * 99_999)
    assert code == 2 and err.startswith("error: --box '111") and err.endswith("1...\n") and len(err) < 2100


def test_what_fails_while_objects_are_cleared_away_is_not_shown(run, monkeypatch, tmp_path):
    class Failing:
        def __del__(self):
            raise RuntimeError

    def convert(*_):
        Failing()
        raise ValueError("what is wrong")

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # not pytest's
    monkeypatch.setattr("ostrack_fast.model.checkpoint.find_weights", convert)
    code, _, err = run("convert", "a", tmp_path / "b.pth")
    assert code == 2 and err == "error: what is wrong\n" and sys.unraisablehook is sys.__unraisablehook__


def test_debug_shows_the_traceback(tmp_path):
    out = subprocess.run(
        arguments("--debug", "track", tmp_path / "absent.mp4", "--box", "1,2,3,4"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 1 and "Traceback" in out.stderr and "absent.mp4 does not exist" in out.stderr


def test_info(run):
    code, out, _ = run("info")
    assert code == 0
    for word in (
        "torch",
        "dtype auto",
        __version__,
        "crop",
        "attention",
        "eliminate",
        "restore",
        "decode",
        "native",
        "reference",
    ):
        assert word in out


def test_demo_with_any_weights(run, weights, tmp_path):
    code, out, err = run("demo", "-o", tmp_path / "o", "--weights", weights, "--device", "cpu")
    assert code == 0, err
    assert sorted(os.listdir(tmp_path / "o")) == ["boxes.txt", "demo.mp4", "demo.png"]
    assert "128 frames" in out and "Blender Foundation" in out and str(tmp_path / "o" / "demo.mp4") in out
    assert open_source(tmp_path / "o" / "demo.mp4").length == 128


def test_the_demo_video_is_small_and_credited():
    assets = resources.files("ostrack_fast") / "assets"
    assert len((assets / "demo.mp4").read_bytes()) < 500_000
    assert "Creative Commons Attribution 3.0" in (assets / "CREDITS.md").read_text(encoding="utf-8")
    x, y, w, h = json.loads((assets / "demo.json").read_text(encoding="utf-8"))["box"]
    assert 0 <= x < x + w <= 640 and 0 <= y < y + h <= 360


@pytest.mark.slow
def test_demo_needs_no_arguments(tmp_path):
    out = subprocess.run(arguments("demo"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert sorted(os.listdir(tmp_path / "ostrack_fast_demo")) == ["boxes.txt", "demo.mp4", "demo.png"]


def test_a_full_or_lost_gpu_is_told(monkeypatch, capsys):
    """Errors that no test machine can be asked for: raised by hand where the command would meet them."""
    from ostrack_fast import cli

    for error, words in (
        (torch.OutOfMemoryError("CUDA out of memory."), "memory is full"),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), "GPU failed"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory"), "not enough memory"),
    ):

        def fail(error=error):
            raise error

        monkeypatch.setattr(cli, "app", fail)
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 2
        assert words in capsys.readouterr().err
    # A fault of our own, or of a file that nobody thought of: told in a line too, and shown when asked for.
    monkeypatch.setattr(cli, "app", lambda: (_ for _ in ()).throw(RuntimeError("a fault of our own")))
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    told = capsys.readouterr().err
    assert exit_.value.code == 2 and "RuntimeError: a fault of our own" in told and "--debug" in told
    monkeypatch.setenv("OSTRACK_FAST_DEBUG", "1")
    with pytest.raises(RuntimeError, match="our own"):
        cli.main()
