"""Zip files for the servers: what is in them, and what the check refuses."""

import os
import zipfile

import numpy as np
import pytest

from ostrack_fast.cli import main
from ostrack_fast.evaluation.submission import check_submission, expected_sequences, make_submission
from tests.evaluation import layouts
from tests.evaluation.layouts import BOXES, rows, write


def got10k(root, runs=1):
    names = layouts.got10k(root / "data", "test")
    for name in names:
        for run in range(1, runs + 1):
            write(root / "mine" / name / f"{name}_{run:03}.txt", rows(BOXES, form="{:.3f}"))
        write(root / "mine" / name / f"{name}_time.txt", (",".join(["0.01"] * runs) + "\n") * 4)
    return names


def trackingnet(root):
    names = layouts.trackingnet(root / "data")
    for name in names:
        write(root / "mine" / f"{name}.txt", rows(BOXES))
        write(root / "mine" / f"{name}_time.txt", "0.01\n" * 4)
    return names


@pytest.mark.parametrize("runs", [1, 3])
def test_got10k_holds_what_its_toolkit_packs(tmp_path, monkeypatch, runs):
    """The zip file of the real package beside ours: the same members, the same numbers."""
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in (("float", float), ("int", int), ("bool", bool)):
            if name not in vars(np):
                patch.setattr(np, name, kind, raising=False)
        experiments = pytest.importorskip("got10k.experiments", reason="the package got10k is not installed")
    got10k(tmp_path, runs)
    (tmp_path / "GOT-10k").mkdir()
    (tmp_path / "mine").rename(tmp_path / "GOT-10k" / "mine")
    experiment = experiments.ExperimentGOT10k(str(tmp_path / "data"), "test", str(tmp_path), str(tmp_path / "reports"))
    monkeypatch.chdir(tmp_path)
    experiment.report(["mine"])
    notes = make_submission("got10k", tmp_path / "data", tmp_path / "GOT-10k" / "mine", tmp_path / "ours.zip")
    assert notes == [f"the test set has 180 sequences, and {tmp_path / 'data'} holds 2"]
    with zipfile.ZipFile(tmp_path / "GOT-10k" / "mine.zip") as theirs, zipfile.ZipFile("ours.zip") as ours:
        files = {os.path.normpath(name): name for name in theirs.namelist() if not name.endswith("/")}
        assert set(files) == set(ours.namelist())
        for name, original in files.items():
            a, b = (
                np.loadtxt(archive.open(each), delimiter=",") for archive, each in ((theirs, original), (ours, name))
            )
            np.testing.assert_array_equal(a, b)
    expected, _ = expected_sequences("got10k", tmp_path / "data")
    assert not check_submission("got10k", expected, tmp_path / "GOT-10k" / "mine.zip")


def test_trackingnet_is_flat_and_reproducible(tmp_path):
    names = trackingnet(tmp_path)
    for target in ("a.zip", "b.zip"):
        make_submission("trackingnet", tmp_path / "data", tmp_path / "mine", tmp_path / target)
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert sorted(archive.namelist()) == sorted(f"{name}.txt" for name in names)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


BAD = {
    "short": (rows(BOXES[:3]), "3 boxes for 4 frames"),
    "no target": (rows(np.vstack((BOXES[:3], [[np.nan] * 4]))), "frame 4 is no finite box"),
    "other start": (rows(BOXES + 5), "the first box .* is not the one that is given"),
}


@pytest.mark.parametrize("make", [got10k, trackingnet])
@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_the_server_would_refuse_is_not_written(tmp_path, make, text, message):
    name = make(tmp_path)[1]
    file = tmp_path / "mine" / (f"{name}/{name}_001.txt" if make is got10k else f"{name}.txt")
    file.write_text(text)
    with pytest.raises(ValueError, match=f"the server would refuse this:\n  {name}.*{message}"):
        make_submission(make.__name__, tmp_path / "data", tmp_path / "mine", tmp_path / "out.zip")
    assert not (tmp_path / "out.zip").exists()


def test_what_is_missing_in_the_results(tmp_path):
    name = got10k(tmp_path)[0]
    times = tmp_path / "mine" / name / f"{name}_time.txt"
    times.write_text("0.1\n" * 3)
    with pytest.raises(ValueError, match="does not hold a number for each of the 4 frames"):
        make_submission("got10k", tmp_path / "data", tmp_path / "mine", tmp_path / "out.zip")
    times.unlink()
    with pytest.raises(FileNotFoundError, match=r"_time\.txt is missing"):
        make_submission("got10k", tmp_path / "data", tmp_path / "mine", tmp_path / "out.zip")
    with pytest.raises(ValueError, match="lasot takes no zip file"):
        make_submission("lasot", tmp_path / "data", tmp_path / "mine", tmp_path / "out.zip")


def test_zip_files_of_others_are_checked(tmp_path):
    names = trackingnet(tmp_path)
    expected, _ = expected_sequences("trackingnet", tmp_path / "data")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(f"results/{names[0]}.txt", rows(BOXES))
        archive.writestr("__MACOSX/._x.txt", "")
        archive.writestr("readme.txt", "")
    assert check_submission("trackingnet", expected, tmp_path / "x.zip") == [
        f"{names[1]}.txt is missing", "readme.txt belongs to no sequence of the test set",
    ]  # fmt: skip
    (tmp_path / "y.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="is no zip file"):
        check_submission("trackingnet", expected, tmp_path / "y.zip")
    name = got10k(tmp_path / "got")[0]
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr(f"{name}/{name}_001.txt", rows(BOXES, " "))
    problems = check_submission(
        "got10k", expected_sequences("got10k", tmp_path / "got" / "data")[0], tmp_path / "z.zip"
    )
    assert len(problems) == 4 and f"{name}/{name}_time.txt is missing" in problems


@pytest.mark.parametrize(("place", "value"), [(6, 99), (8, 1), (10, 99)], ids=["version", "encrypted", "compression"])
def test_zip_files_that_cannot_be_read_are_refused_by_name(tmp_path, place, value):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "1,2,3,4")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    # A file's facts stand before it, and two bytes later in the directory.
    data[place - 2] = data[data.rfind(b"PK\x01\x02") + place] = value
    (tmp_path / "x.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.zip is no zip file that can be read"):
        check_submission("trackingnet", [], tmp_path / "x.zip")


def test_a_file_that_swells_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: pytest.fail("it was read"))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", bytes(20 << 20))
    with pytest.raises(ValueError, match="holds a file of more than"):
        check_submission("trackingnet", [], tmp_path / "x.zip")


@pytest.mark.parametrize("word", ["nan", "inf", "-1", "abc"])
def test_times_are_seconds(tmp_path, word):
    name = got10k(tmp_path)[0]
    expected = expected_sequences("got10k", tmp_path / "data")[0][:1]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(f"{name}/{name}_001.txt", rows(BOXES))
        archive.writestr(f"{name}/{name}_time.txt", f"{word}\n" * 4)
    assert check_submission("got10k", expected, tmp_path / "x.zip") == [
        f"{name}/{name}_time.txt holds something else than seconds"
    ]


def test_the_command(tmp_path, monkeypatch, capsys):
    trackingnet(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words, said in (
        ("submit trackingnet data mine", "trackingnet-mine.zip is written and checked"),
        ("submit trackingnet data trackingnet-mine.zip", "2 sequences, nothing to complain of"),
    ):
        monkeypatch.setattr("sys.argv", ["ostrack-fast", *words.split()])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        assert not stop.value.code and said in out.out and "511 sequences" in out.err


def test_a_name_that_is_no_zip_files_is_refused(tmp_path, monkeypatch, capsys):
    trackingnet(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ostrack-fast", "submit", "trackingnet", "data", "mine", "-o", "notes.txt"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "notes.txt must end in .zip" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"
