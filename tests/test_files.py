"""Files that are written atomically."""

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ostrack_fast.files import AtomicFile, check_folder, check_writable, write_atomically, write_text
from ostrack_fast.interrupts import Interrupts


def names(folder):
    return sorted(os.listdir(folder))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "deep" / "file.bin"
    write_atomically(target, lambda path: Path(path).write_bytes(b"old"))

    def fail(path):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, fail)
    assert target.read_bytes() == b"old"
    assert [path.name for path in target.parent.iterdir()] == ["file.bin"]


def test_the_temporary_file_has_the_suffix_that_writers_look_at(tmp_path):
    seen = []

    def write(path):
        seen.append(Path(path).suffix)
        Path(path).write_bytes(b"x")

    write_atomically(tmp_path / "picture.png", write)
    write_atomically(tmp_path / "picture", write, ".jpg")
    assert seen == [".png", ".jpg"]


@pytest.mark.parametrize("length", [240, 246, 255])
@pytest.mark.parametrize("suffix", [".png", "." + "s" * 200])
def test_names_of_every_length(tmp_path, length, suffix):
    name = "n" * (length - len(suffix)) + suffix
    check_writable(tmp_path / name)
    write_text(tmp_path / name, "whole")
    assert names(tmp_path) == [name] and (tmp_path / name).read_text() == "whole"


def test_a_name_too_long_is_refused_at_once(tmp_path):
    for path in (tmp_path / ("n" * 256), tmp_path / ("n" * 256) / "a.txt"):
        with pytest.raises(OSError, match="cannot be written: File name too long"):
            check_writable(path)
        with pytest.raises(OSError, match="cannot be written: File name too long"):
            write_text(path, "")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", [b"caf\xe9.txt", b"\xff\xfe", "動画.txt".encode(), b"a\nb", b"-o", b"50%d.txt", b"a:b[c]"]
)
def test_names_of_every_kind(tmp_path, name):
    for folder in (tmp_path, tmp_path / os.fsdecode(b"\xe9t\xe9")):
        path = folder / os.fsdecode(name)
        check_writable(path)
        # What OpenCV and PyTorch ask of a name: that it is text.
        write_atomically(path, lambda temporary: Path(temporary.encode("utf-8").decode("utf-8")).write_text("whole"))
        assert path.read_text() == "whole"
    assert os.listdir(bytes(tmp_path / os.fsdecode(b"\xe9t\xe9"))) == [name]


def test_mode_and_owner_of_a_replaced_file_stay(tmp_path):
    path = tmp_path / "secret.txt"
    path.write_text("old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 4321, 1234)
    before = path.stat()
    seen = []
    write_atomically(path, lambda temporary: seen.append(stat.S_IMODE(os.stat(temporary).st_mode)))
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino and seen == [0o600]


def test_a_new_file_has_the_mode_of_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "new.txt", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new.txt").stat().st_mode) == 0o640


def test_links_stay_links(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("there/real.txt")
    (tmp_path / "second.txt").symlink_to(tmp_path / "link.txt")
    (tmp_path / "dangling.txt").symlink_to("there/absent.txt")
    for link in ("link.txt", "second.txt", "dangling.txt"):
        check_writable(tmp_path / link)
        write_text(tmp_path / link, link)
        assert (tmp_path / link).is_symlink() and (tmp_path / link).read_text() == link
    assert names(tmp_path / "there") == ["absent.txt", "real.txt"]
    (tmp_path / "circle").symlink_to("circle")
    for call in (check_writable, lambda path: write_text(path, "")):
        with pytest.raises(OSError, match="cannot be written: Too many levels"):
            call(tmp_path / "circle")
    assert (tmp_path / "circle").is_symlink()


def test_devices_are_written_to(tmp_path):
    for device in (Path("/dev/null"), tmp_path / "link"):
        if device.parent == tmp_path:
            device.symlink_to("/dev/null")
        check_writable(device)
        write_text(device, "gone")
        assert stat.S_ISCHR(device.stat().st_mode)
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError, match="/dev/full cannot be written: No space left on device"):
        write_text("/dev/full", "too much")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_a_wish_to_stop_ends_the_wait_for_a_pipes_reader(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    def stop():
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        with open(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), "rb"):  # ends a wait that goes on
            time.sleep(0.5)

    thread = threading.Thread(target=stop)
    thread.start()
    with Interrupts(), pytest.raises(OSError, match="fifo is a pipe that nobody reads: nothing was written to it"):
        write_text(fifo, "for nobody")
    thread.join()
    assert names(tmp_path) == ["fifo"]


def test_pipes_are_written_to(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    read = []
    reader = threading.Thread(target=lambda: read.append(fifo.read_bytes()))
    reader.start()
    check_writable(fifo)
    write_text(fifo, "through the pipe" * 10000)
    reader.join()
    assert read == [b"through the pipe" * 10000] and fifo.is_fifo() and names(tmp_path) == ["fifo"]


def script(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **kwargs)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_standard_output_is_written_to(tmp_path, name):
    code = f"""
from ostrack_fast.files import check_writable, write_text
print("before")
check_writable({name!r})
write_text({name!r}, "the file\\n")
print("after")
"""
    assert script(code).stdout == "before\nthe file\nafter\n"
    out = tmp_path / "out.txt"
    out.write_text("kept\n")
    with open(out, "a") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True)
    assert out.read_text() == "kept\nbefore\nthe file\nafter\n"
    assert names(tmp_path) == ["out.txt"]


def slow_writer(path, begun):
    def write(temporary):
        with open(temporary, "wb") as file:
            file.write(bytes(1000))
            file.flush()
            os.write(begun, b"1")
            time.sleep(600)

    write_atomically(path, write)


def write_in_child(path):
    """A process in the middle of writing `path`; returns its number."""
    begun, begin = os.pipe()
    child = os.fork()
    if child == 0:
        slow_writer(path, begin)
        os._exit(0)
    os.read(begun, 1)
    return child


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    for child in [write_in_child(tmp_path / name) for name in ("last.pt", "other.pt")]:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(names(tmp_path)) == 2
    (tmp_path / ".ostrack_fast-notes").mkdir()  # nothing of ours
    write_text(tmp_path / "last.pt", "whole")
    assert names(tmp_path) == [".ostrack_fast-notes", "last.pt"]


def test_a_run_at_work_keeps_its_file(tmp_path):
    child = write_in_child(tmp_path / "a.txt")
    try:
        working = names(tmp_path)
        write_text(tmp_path / "b.txt", "whole")
        assert names(tmp_path) == sorted([*working, "b.txt"]) and len(working) == 1
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with AtomicFile(tmp_path / "c.txt") as first, AtomicFile(tmp_path / "c.txt") as second:
        Path(first.name).write_text("first")
        Path(second.name).write_text("second")
        second.publish()
        first.publish()
    assert names(tmp_path) == ["b.txt", "c.txt"] and (tmp_path / "c.txt").read_text() == "first"


def test_many_writers_of_one_folder(tmp_path):
    code = f"""
from ostrack_fast.files import write_text
for number in range(200):
    write_text({str(tmp_path)!r} + "/" + str(number % 5), "x" * 1000)
"""
    writers = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(4)]
    errors = [writer.communicate()[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0] * 4, errors
    assert names(tmp_path) == list("01234") and all((tmp_path / name).read_text() == "x" * 1000 for name in "01234")


def test_a_limit_on_the_size_of_files(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    done = script(
        f"from ostrack_fast.files import write_text; write_text({str(path)!r}, 'x' * 9000)",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    )
    assert done.returncode == 1 and f"{path} cannot be written: File too large" in done.stderr
    assert names(tmp_path) == ["a.txt"] and path.read_text() == "old"


def test_what_cannot_be_written_is_found_before_the_work(tmp_path):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        check_writable(tmp_path / "folder")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "deep" / "a.txt"):
        with pytest.raises(OSError, match=r"a\.txt cannot be written: Not a directory"):
            check_writable(path)
        with pytest.raises(OSError, match=r"a\.txt cannot be written: (Not a directory|File exists)"):
            write_text(path, "")
    with pytest.raises(OSError, match="file cannot be written: Not a directory"):
        check_folder(tmp_path / "file")
    check_writable(tmp_path / "new" / "deep" / "a.txt")
    check_folder(tmp_path / "new")
    check_writable(tmp_path / "file")
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "a file"


def test_a_place_where_nothing_can_be_made(tmp_path):
    place = Path("/proc")  # even for root
    if not place.is_dir():
        tmp_path.chmod(0o500)
        place = tmp_path
    for call in (check_writable, lambda path: write_text(path, "")):
        with pytest.raises(OSError, match=r"a\.txt cannot be written: "):
            call(place / "a.txt")
