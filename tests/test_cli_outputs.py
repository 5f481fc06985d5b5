"""What the command line writes, and that nothing of it is lost."""

import json
import os
import resource
import signal
import stat
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ostrack_fast.cli import evaluate as evaluate_command
from ostrack_fast.interrupts import Interrupts
from ostrack_fast.video import open_source

from .evaluation.conftest import videos
from .test_cli import make_video, run, video, weights
from .test_video import avi, file_size_limit, names

__all__ = ["run", "video", "videos", "weights"]


@pytest.fixture
def track(run, weights):
    """Runs `track` on a source: exit code, stdout, stderr."""

    def track(source, *values, box="20,20,24,16"):
        return run("track", source, "--box", box, "--weights", weights, "--device", "cpu", *values)

    return track


def lines(path):
    return path.read_text().splitlines()


def test_a_frame_that_cannot_be_decoded_keeps_its_line(track, tmp_path):
    frames = avi(tmp_path / "a.avi", "MJPG")
    data = bytearray((tmp_path / "a.avi").read_bytes())
    for index in (0, 6, 11):
        data[frames[index]] = bytes(frames[index].stop - frames[index].start)
    (tmp_path / "a.avi").write_bytes(data)
    code, out, _ = track(tmp_path / "a.avi", "--boxes", tmp_path / "b.txt", "--plot", tmp_path / "p.png")
    assert code == 0 and "3 frames could not be decoded" in out and "0, 6, 11" in out
    boxes = lines(tmp_path / "b.txt")
    assert len(boxes) == 12
    assert boxes[0] == boxes[1] == "20.000,20.000,24.000,16.000" and boxes[6] == boxes[5] and boxes[11] == boxes[10]
    assert "tracked 12 frames" in out and "nan" not in out


def test_frames_that_change_size(track, tmp_path):
    (tmp_path / "img").mkdir()
    for index, size in enumerate([(96, 128), (96, 128), (60, 200), (200, 60), (96, 128)]):
        cv2.imwrite(str(tmp_path / "img" / f"{index}.jpg"), np.full((*size, 3), 50 * index, np.uint8))
    code, out, _ = track(tmp_path / "img", "--boxes", tmp_path / "b.txt", "-o", tmp_path / "o.mp4")
    assert code == 0 and "2 frames of another size" in out
    assert len(lines(tmp_path / "b.txt")) == 5
    written = open_source(tmp_path / "o.mp4")
    assert written.size == (128, 96) and len(list(written)) == 5


def test_one_output_that_cannot_be_written_costs_no_other(track, video, tmp_path):
    make_video(tmp_path / "o.mp4", 3)
    before = (tmp_path / "o.mp4").read_bytes()
    outputs = ("-o", tmp_path / "o.mp4", "--plot", tmp_path / "p.png", "--boxes", tmp_path / "b.txt")
    with file_size_limit(2000):
        code, _, err = track(video, *outputs)
    assert code == 2 and "o.mp4 cannot be written" in err and "p.png cannot be written: File too large" in err
    assert "Errno" not in err
    assert len(lines(tmp_path / "b.txt")) == 12 and (tmp_path / "o.mp4").read_bytes() == before
    assert names(tmp_path) == ["b.txt", "in.mp4", "o.mp4", "tiny.safetensors"]


def test_a_full_device(track, video, tmp_path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    code, _, err = track(video, "--boxes", "/dev/full", "--plot", tmp_path / "p.png")
    assert code == 2 and "/dev/full cannot be written: No space left" in err and (tmp_path / "p.png").exists()


def test_devices_and_links_are_not_replaced(track, video, tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "real.txt").chmod(0o600)
    (tmp_path / "link.txt").symlink_to("real.txt")
    assert track(video, "--boxes", tmp_path / "link.txt", "-o", "/dev/null", "--plot", "/dev/null")[0] == 0
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode) and (tmp_path / "link.txt").is_symlink()
    assert len(lines(tmp_path / "real.txt")) == 12 and (tmp_path / "real.txt").stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_written_is_told_before_the_work(track, run, video, videos, weights, tmp_path, monkeypatch):
    monkeypatch.setattr("ostrack_fast.tracker.Tracker.__init__", lambda *_: pytest.fail("the work began"))
    (tmp_path / "file").write_text("")
    (tmp_path / "img").mkdir()
    cv2.imwrite(str(tmp_path / "img" / "1.png"), np.zeros((96, 128, 3), np.uint8))
    (tmp_path / "same.txt").symlink_to("b.txt")
    data = ("evaluate", "--data", videos, "--weights", weights)
    visualize = ("visualize", "attention", "--box", "20,20,24,16", "--weights", weights)
    (video_folder, *_) = sorted(path for path in videos.iterdir() if path.is_dir())
    truth = next(video_folder.glob("*.txt"))
    benchmark = ("evaluate", "--benchmark", "folder", *data[1:], "--results", tmp_path / "results")
    figures = ("paper", "figures", "--weights", weights, "--box", "20,20,24,16", "--source")
    cases = [
        (track, (video, "--boxes", tmp_path / "file" / "b.txt"), "b.txt cannot be written: Not a directory"),
        (track, (video, "--boxes", tmp_path / ("n" * 256)), "File name too long"),
        (track, (video, "--boxes", "/proc/b.txt"), "b.txt cannot be written"),
        (track, (video, "--plot", tmp_path / "b.txt"), "must end in one of"),
        (track, (video, "--boxes", weights), "is the source itself"),
        (track, (video, "--boxes", tmp_path / "b.txt", "--plot", tmp_path / "same.txt"), "must end in one of"),
        (track, (video, "--boxes", tmp_path / "b.png", "--plot", tmp_path / "img" / ".." / "b.png"), "the same name"),
        (track, (tmp_path / "img", "--plot", tmp_path / "img" / "p.png"), "would become a frame"),
        (track, (tmp_path / "img", "--plot", tmp_path / "img" / "1.png"), "would become a frame"),
        (run, (*data, "--json", tmp_path / "file" / "r.json"), "r.json cannot be written: Not a directory"),
        (run, (*data, "--results", tmp_path / "file"), "file cannot be written: Not a directory"),
        (run, (*data, "--json", tmp_path / "a.png", "--plot", tmp_path / "a.png"), "the same name"),
        (run, (*data, "--json", truth), "whose boxes and frames are read"),
        (run, (*data, "--plot", video_folder / "img" / "curve.png"), "whose boxes and frames are read"),
        (run, (*data, "--json", weights), "is the source itself"),
        (run, (*data, "--results", video_folder), "holds boxes already"),
        (run, ("score", "folder", videos, tmp_path / "img", "--json", truth), "whose boxes and frames are read"),
        (run, (*visualize, video, "-o", video), "is the source itself"),
        (run, (*visualize, tmp_path / "img", "-o", tmp_path / "img" / "p.png"), "would become a frame"),
        (run, ("export", "--weights", weights, "-o", weights), "is the source itself"),
        (run, ("bench", "ops", "--json", tmp_path / "file" / "b.json"), "b.json cannot be written: Not a directory"),
        (run, ("profile", "--json", tmp_path / "file" / "b.json"), "b.json cannot be written: Not a directory"),
        (run, ("report", "absent", "-o", tmp_path / "file" / "r.html"), "r.html cannot be written: Not a directory"),
        (run, ("demo", "-o", tmp_path / "file"), "cannot be written: Not a directory"),
        (run, (*benchmark, "--json", truth), "whose boxes and frames are read"),
        (run, (*benchmark, "--json", weights), "is the source itself"),
        (run, ("submit", "got10k", videos, tmp_path / "img", "-o", truth), "must end in .zip"),
        (run, ("paper", "table3", "--scores", weights, "--json", weights), "is the source itself"),
        (run, ("paper", "table4", "--videos", videos, "--json", truth), "whose boxes and frames are read"),
        (
            run,
            ("paper", "ablations", "--videos", videos, "--weights", weights, "--json", weights),
            "is the source itself",
        ),
        (run, (*figures, tmp_path / "img", tmp_path / "img"), "would become a frame"),
        (run, (*figures, video, tmp_path / "figures", "--json", weights), "is the source itself"),
    ]
    before = sorted(map(str, tmp_path.rglob("*")))
    for command, arguments, message in cases:
        code, out, err = command(*arguments)
        assert code == 2 and message in err, (arguments, out, err)
    assert sorted(map(str, tmp_path.rglob("*"))) == before


NAMES = [b"caf\xe9", "動画".encode(), b"a[b]c", b"10%d", b"cam1:x", b"a$b$\\frac", b"n" * 251, b"-x", b"a\x1b[2J\nb"]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_every_kind(track, video, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    base = os.fsdecode(name)
    os.rename(video, base + ".mp4")
    # As an option's value a leading dash needs the equals sign.
    outputs = ("-o", f"./{base[:-1]}o.mp4", f"--boxes={base}.txt", f"--plot={base}.png")
    code, out, err = track(f"./{base}.mp4", *outputs)
    assert code == 0, (out, err)
    assert len(lines(tmp_path / f"{base}.txt")) == 12 and len(list(open_source(f"./{base[:-1]}o.mp4"))) == 12
    assert cv2.imdecode(np.fromfile(base + ".png", np.uint8), cv2.IMREAD_COLOR) is not None
    code, _, err = track(f"./{base}.abc")
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, err


def test_results_are_there_before_anything_is_printed(run, videos, weights, tmp_path, monkeypatch):
    written = []

    def look(result):
        written.append((json.loads((tmp_path / "r.json").read_text())["mean"], (tmp_path / "c.png").exists()))
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(evaluate_command, "_table", look)
    data = ("evaluate", "--data", videos, "--weights", weights, "--device", "cpu")
    assert run(*data, "--json", tmp_path / "r.json", "--plot", tmp_path / "c.png")[0] == 2
    assert written and written[0][1]


def python(code, **kwargs):
    return subprocess.Popen([sys.executable, "-c", code], **kwargs)


_PATIENT = "import sys; from ostrack_fast.cli._streams import make_patient; make_patient();"


def test_a_reader_that_has_gone_is_no_error():
    code = _PATIENT + "[print('x' * 1000, file=f) for f in (sys.stdout, sys.stderr) for _ in range(1000)]; sys.exit(7)"
    process = python(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stderr.close()
    assert process.wait() == 7


def test_what_an_encoding_lacks_is_escaped():
    code = _PATIENT + r"print('\u52d5 \udce9'); print('\u52d5', file=sys.stderr)"
    process = python(
        code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "cp1252"}
    )
    out, err = process.communicate()
    assert out == b"\\u52d5 \\udce9\n" and err == b"\\u52d5\n" and process.returncode == 0


def test_a_full_disk_behind_standard_output_is_an_error():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with open("/dev/full", "wb") as full:
        for option in ("--version", "--help"):  # a few bytes, and more than a buffer holds
            code = f"from ostrack_fast.cli import main; import sys; sys.argv = ['ostrack-fast', '{option}']; main()"
            process = python(code, stdout=full, stderr=subprocess.PIPE)
            assert process.communicate()[1] == b"error: standard output: No space left on device\n"
            assert process.returncode == 2


def test_a_current_folder_that_is_gone_is_told(tmp_path):
    (tmp_path / "gone").mkdir()
    code = f"""
import os, sys
from ostrack_fast.cli import main
os.chdir({str(tmp_path / "gone")!r})
os.rmdir({str(tmp_path / "gone")!r})
sys.argv = ["ostrack-fast", "info"]
main()
"""
    process = python(code, stderr=subprocess.PIPE)
    assert b"error: the current folder does not exist any more" in process.communicate()[1]
    assert process.returncode == 2


def test_closed_standard_streams(tmp_path):
    """The next file opened would get their numbers, and what libraries print."""
    code = _PATIENT + f"f = open({str(tmp_path / 'f')!r}, 'w'); print('lost'); sys.exit(f.fileno())"
    process = python(code, preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
    assert process.wait() > 2 and (tmp_path / "f").read_bytes() == b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupts_are_requests(number):
    def handler(*_):
        raise AssertionError("the signal came through")

    before = signal.signal(number, handler)
    try:
        with Interrupts() as stop:
            assert not stop.requested
            for _ in range(3):
                os.kill(os.getpid(), number)
            assert stop.requested
        assert signal.getsignal(number) is handler
        signal.signal(number, signal.SIG_IGN)
        with Interrupts() as stop:
            os.kill(os.getpid(), number)
            assert not stop.requested
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_loses_nothing(track, tmp_path, monkeypatch, number):
    """One amid the tracking, and more while each file is written."""
    from ostrack_fast import files
    from ostrack_fast.tracker import MultiTracker

    video = make_video(tmp_path / "in.mp4", 30)
    interrupted = []

    def interrupting(function):
        def wrapped(*args):
            interrupted.append(function.__name__)
            os.kill(os.getpid(), number)
            return function(*args)

        return wrapped

    monkeypatch.setattr(files.AtomicFile, "publish", interrupting(files.AtomicFile.publish))
    monkeypatch.setattr(MultiTracker, "track", interrupting(MultiTracker.track))
    outputs = ("-o", tmp_path / "o.mp4", "--boxes", tmp_path / "b.txt", "--plot", tmp_path / "p.png")
    code, out, err = track(video, *outputs)
    assert code == 130 and "interrupted after 2 frames" in out, err
    assert interrupted == ["track", "publish", "publish", "publish"]
    assert len(lines(tmp_path / "b.txt")) == 2 and len(list(open_source(tmp_path / "o.mp4"))) == 2
    assert cv2.imread(str(tmp_path / "p.png")) is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("finished", [0, 1])
def test_an_interrupted_evaluation_reports_the_videos_that_are_finished(
    run, weights, videos, tmp_path, monkeypatch, number, finished
):
    """One interrupt amid the tracking of the first or the second video, and more while each file is written."""
    from ostrack_fast import files
    from ostrack_fast.tracker import Tracker

    started = []

    def start(*args, original=Tracker.initialize):
        started.append(args)
        return original(*args)

    def track(*args, original=Tracker.track):
        if len(started) > finished:
            os.kill(os.getpid(), number)
        return original(*args)

    def publish(*args, original=files.AtomicFile.publish):
        if len(started) > finished:  # not in the first video's own boxes
            os.kill(os.getpid(), number)
        return original(*args)

    monkeypatch.setattr(Tracker, "initialize", start)
    monkeypatch.setattr(Tracker, "track", track)
    monkeypatch.setattr(files.AtomicFile, "publish", publish)
    data = ("evaluate", "--data", videos, "--weights", weights, "--device", "cpu")
    outputs = ("--json", tmp_path / "r.json", "--plot", tmp_path / "c.png", "--results", tmp_path / "boxes")
    code, out, err = run(*data, *outputs)
    assert code == 130 and f"interrupted after {finished} videos" in err, err
    assert ("zero_B" in err) and ("one_A" in err) == (not finished)
    assert (tmp_path / "r.json").exists() == (tmp_path / "c.png").exists() == bool(finished)
    if finished:
        report = json.loads((tmp_path / "r.json").read_text())
        assert [video["name"] for video in report["videos"]] == ["one_A"] and report["unfinished"] == ["zero_B"]
        assert "one_A" in out and len(lines(tmp_path / "boxes" / "one_A.txt")) == 6


def test_tracking_imports_no_plotting(video, weights, tmp_path):
    command = ["track", str(video), "--box", "20,20,24,16", "--weights", str(weights), "-o", str(tmp_path / "o.mp4")]
    code = f"""
import sys
from ostrack_fast.cli import main
sys.argv = ["ostrack-fast", *{command!r}]
main()
sys.exit(any(name.split(".")[0] in ("matplotlib", "torchvision", "PIL") for name in sys.modules))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_run_without_room_leaves_no_folder_behind(track, video, tmp_path):
    """The limit of a file's size in a process of its own, as `ulimit -f` sets it."""
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert soft[0] != 0
    code, _, err = track(video, "--boxes", tmp_path / "a" / "b.txt", box="500,500,9,9")
    assert code == 2 and "outside the frame" in err and not (tmp_path / "a").exists()
