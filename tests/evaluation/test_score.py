"""`ostrack-fast score`: result files in every toolkit's layout, and the JSON that other programs read."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ostrack_fast.cli import main
from ostrack_fast.data.truth import read_raw_boxes
from ostrack_fast.evaluation import score_results
from ostrack_fast.evaluation.protocols import PROTOCOLS, Truth
from tests.evaluation import layouts
from tests.evaluation.layouts import BOXES, rows, write

SHIFTED = np.add(BOXES, (0, 0, 20, 0))
"""Twice as wide as the truth, more or less."""


def answer(folder, names, boxes=BOXES, separator=","):
    for name in names:
        write(folder / f"{name}.txt", rows(boxes, separator))
    return folder


@pytest.mark.parametrize("name", layouts.ALL)
def test_the_truth_as_answer_is_perfect_on_every_benchmark(tmp_path, name):
    names = layouts.ALL[name](tmp_path / "data")
    if name in ("otb", "davis"):
        boxes = {"Jogging.2": BOXES + 3, "bike-packing.2": np.add(BOXES, (0, 40, 0, 0))}
        for each in names:
            answer(tmp_path / "truth", [each], boxes.get(each, BOXES))
    else:
        answer(tmp_path / "truth", names)
    scored = score_results(name, tmp_path / "data", [tmp_path / "truth"]).to_dict()
    assert set(scored) == {"benchmark", "protocol", "trackers"} and scored["benchmark"] == name
    (tracker,) = scored["trackers"]
    assert set(tracker) == {"name", "summary", "sequences"} and tracker["name"] == "truth"
    assert list(tracker["sequences"]) == names
    summary = tracker["summary"]
    if name == "got10k":
        assert summary == {"AO": pytest.approx(1), "SR_0.50": 1, "SR_0.75": 1}
        return
    shown = 0.75 if name in ("lasot", "lasot_ext", "tnl2k", "vasttrack", "avist", "uav123") else 1
    hits = {"uav123": 1}.get(name, shown)
    best = 1 if name == "trackingnet" else 20 / 21
    assert summary["AUC"] == pytest.approx(100 * best * shown)
    assert summary["P"] == pytest.approx(100 * hits)
    # PyTracking counts what is hidden in LaSOT_ext and AVisT as hits of the normalized precision.
    assert summary["P_norm"] == pytest.approx(100 * (1 if name == "avist" else hits))


def test_pytracking_on_lasot_and_on_its_extension(tmp_path):
    for name, normalized in (("lasot", 75), ("lasot_ext", 100)):
        names = layouts.ALL[name](tmp_path / name)
        answer(tmp_path / "r" / name, names)
        for protocol in ("pytracking", "stark"):
            summary = (
                score_results(name, tmp_path / name, [tmp_path / "r" / name], protocol=protocol).trackers[0].summary
            )
            assert summary == {"AUC": pytest.approx(1500 / 21), "P": 75, "P_norm": normalized}


def test_a_truth_that_ends_before_its_images_is_told(tmp_path, monkeypatch, capsys):
    data, names = tmp_path / "data", layouts.tnl2k(tmp_path / "data")
    answer(tmp_path / "r", names)
    write(data / names[0] / "groundtruth.txt", rows(BOXES[:3]))
    for command in ("score", "report"):
        options = ["tnl2k", str(data), str(tmp_path / "r")] if command == "score" else [
            str(tmp_path / "r"), "--benchmark", "tnl2k", "--data", str(data), "-o", str(tmp_path / "r.html"),
        ]  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["ostrack-fast", command, *options])
        with pytest.raises(SystemExit) as stop:
            main()
        told = capsys.readouterr().err
        assert not stop.value.code
        assert f"{names[0]}: 4 images for 3 boxes: is a part of the truth missing?" in told and names[1] not in told
    # Without the images nobody can know.
    for path in (data / names[0] / "imgs").iterdir():
        path.unlink()
    notes = score_results("tnl2k", data, [tmp_path / "r"]).loaded.notes
    assert len(notes) == 1 and "has 700 sequences" in notes[0]


def test_layouts_of_results(tmp_path):
    names = layouts.got10k(tmp_path / "data")
    # own and PySOT, with commas; PyTracking, with tabs, times beside; GOT-10k, a folder a sequence.
    answer(tmp_path / "own", names)
    for name in names:
        write(tmp_path / "pytracking" / "atom" / "default" / f"{name}.txt", rows(BOXES, "\t"))
        write(tmp_path / "pytracking" / "atom" / "default" / f"{name}_time.txt", "0.1\n" * 4)
        write(tmp_path / "GOT-10k" / "mine" / name / f"{name}_001.txt", rows(BOXES))
        write(tmp_path / "GOT-10k" / "mine" / name / f"{name}_time.txt", "0.1\n" * 4)
        write(tmp_path / "GOT-10k" / "wide" / name / f"{name}_001.txt", rows(SHIFTED))
    paths = [tmp_path / "own", tmp_path / "pytracking", tmp_path / "GOT-10k"]
    scored = score_results("got10k", tmp_path / "data", paths)
    assert {each.name: round(each.summary["AO"], 2) for each in scored.trackers} == {
        "own": 1.0, "atom/default": 1.0, "mine": 1.0, "wide": 0.51,
    }  # fmt: skip


def test_names_that_toolkits_give_to_the_same_sequence(tmp_path):
    layouts.otb(tmp_path / "otb")
    pysot = ["david", "girl", "human4_2", "jogging_1", "jogging_2"]
    pytracking = ["David", "Girl", "Human4_2", "Jogging_1", "Jogging_2"]
    got10k = ["David", "Girl", "Human4", "Jogging.1", "Jogging.2"]
    for spelling in (pysot, pytracking, got10k):
        answer(tmp_path / spelling[2], spelling)
        assert score_results("otb", tmp_path / "otb", [tmp_path / spelling[2]]).trackers[0].summary["P"] == 100
    layouts.uav123(tmp_path / "uav")
    answer(tmp_path / "u", ["uav_bike1", "uav_truck4_2"])
    assert score_results("uav123", tmp_path / "uav", [tmp_path / "u"]).trackers[0].summary["P"] == 100


def test_repetitions_of_a_sequence(tmp_path):
    """GOT-10k pools the frames of all runs; curves are averaged."""
    names = layouts.got10k(tmp_path / "data")
    for name in names:
        write(tmp_path / "r" / name / f"{name}_001.txt", rows(BOXES))
        write(tmp_path / "r" / name / f"{name}_002.txt", rows(BOXES + 100))
        write(tmp_path / "r" / name / f"{name}_time.txt", "0.1,0.1\n" * 4)
    for protocol, key, expected in (("got10k", "AO", 0.5), ("folder", "P", 50)):
        summary = score_results("got10k", tmp_path / "data", [tmp_path / "r"], protocol=protocol).trackers[0].summary
        assert summary[key] == pytest.approx(expected)


def test_class_balanced_means(tmp_path):
    names = [*layouts.got10k(tmp_path / "data"), "GOT-10k_Val_000003"]
    folder = tmp_path / "data" / "val"
    (folder / names[2]).mkdir()
    for path in (folder / names[0]).iterdir():
        (folder / names[2] / path.name).write_bytes(path.read_bytes().replace(b"dog", b"cat"))
    write(folder / "list.txt", "\n".join(names))
    answer(tmp_path / "r", names[:2])
    answer(tmp_path / "r", names[2:], BOXES + 100)
    plain = score_results("got10k", tmp_path / "data", [tmp_path / "r"]).trackers[0].summary
    balanced = score_results("got10k", tmp_path / "data", [tmp_path / "r"], protocol="got10k_balanced")
    assert plain["AO"] == pytest.approx(2 / 3)
    assert balanced.trackers[0].summary["AO"] == pytest.approx(1 / 2)


def test_a_sequence_whose_frames_all_do_not_count_has_no_figures(tmp_path):
    names = layouts.got10k(tmp_path / "data")
    write(tmp_path / "data" / "val" / names[0] / "cover.label", "0\n" * 4)
    answer(tmp_path / "r", names)
    (tracker,) = score_results("got10k", tmp_path / "data", [tmp_path / "r"]).to_dict()["trackers"]
    assert tracker["summary"]["AO"] == pytest.approx(1)
    assert tracker["sequences"][names[0]] == {"AO": None, "SR_0.50": None, "SR_0.75": None}


def test_answers_that_are_no_box_reach_the_protocol(tmp_path):
    """`read_boxes` would make NaN of an empty box, and PyTracking refuses NaN."""
    names = layouts.lasot(tmp_path / "data")
    lost = BOXES.copy()
    lost[1] = 0
    answer(tmp_path / "r", names, lost)
    expected = PROTOCOLS["stark"].score(lost, Truth("s", BOXES, np.array([False, False, True, False]), dataset="lasot"))
    summary = score_results("lasot", tmp_path / "data", [tmp_path / "r"], protocol="stark").trackers[0].summary
    assert summary == pytest.approx(PROTOCOLS["stark"].summarize([expected]))
    lost[1] = np.nan
    answer(tmp_path / "r", names, lost)
    with pytest.raises(ValueError, match=r"r.airplane-1\.txt: airplane-1: pytracking refuses results with NaN"):
        score_results("lasot", tmp_path / "data", [tmp_path / "r"], protocol="stark")


def test_many_boxes_are_scored_by_several_processes_alike(tmp_path, monkeypatch):
    names = layouts.lasot(tmp_path / "data")
    paths = [answer(tmp_path / "a", names), answer(tmp_path / "b", names, SHIFTED)]
    one = score_results("lasot", tmp_path / "data", paths).to_dict()
    monkeypatch.setattr("ostrack_fast.evaluation.scoring._WORTH_PROCESSES", 1)
    assert score_results("lasot", tmp_path / "data", paths).to_dict() == one


def test_the_command(tmp_path):
    names = layouts.got10k(tmp_path / "data")
    answer(tmp_path / "mine", names)
    answer(tmp_path / "wide", names, SHIFTED)
    arguments = ["got10k", tmp_path / "data", tmp_path / "mine", tmp_path / "wide", "--json", tmp_path / "out.json"]
    command = [sys.executable, "-m", "ostrack_fast.cli", "score", *map(str, arguments), "--split", "val"]
    out = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert out.returncode == 0, out.stderr
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["benchmark"] == read["protocol"] == "got10k"
    mine, wide = read["trackers"]
    assert mine["name"] == "mine" and mine["summary"]["AO"] == pytest.approx(1)
    assert set(wide["sequences"][names[0]]) == {"AO", "SR_0.50", "SR_0.75"}
    assert "mine" in out.stdout and f"{wide['summary']['AO']:.3f}" in out.stdout and "split val" in out.stdout


MISTAKES = {
    "score got20k data mine": "no benchmark 'got20k': choose one of got10k, lasot",
    "score got10k data mine --protocol x": "no protocol 'x': choose one of got10k",
    "score got10k nowhere mine": "nowhere is not a folder",
    "score got10k data nothing": "nothing is not a folder of results",
    "score got10k data data": "holds no results of these sequences",
    "score got10k data part": "lacks the results of 1 of 2 sequences: GOT-10k_Val_000002",
    "score got10k data short": "3 boxes for 4 frames",
    "score got10k data words": "line 2: 'a,b,c,d' is not four numbers",
    "score got10k data mine mine": "mine is given twice",
    "score got10k data mine --json data": "data is a folder",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes_are_told_in_a_sentence(tmp_path, monkeypatch, capsys, command):
    names = layouts.got10k(tmp_path / "data")
    answer(tmp_path / "mine", names)
    answer(tmp_path / "part", names[:1])
    answer(tmp_path / "short", names, BOXES[:3])
    answer(tmp_path / "words", names)
    write(tmp_path / "words" / f"{names[1]}.txt", "1,2,3,4\na,b,c,d\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ostrack-fast", *command.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert MISTAKES[command] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2,3,4\n5,6,0,-8\n", [[1, 2, 3, 4], [5, 6, 0, -8]]),
        ("1\t2\t3\t4", [[1, 2, 3, 4]]),
        ("1 2  3 4\r\n5,6;7\t8\r\n\r\n", [[1, 2, 3, 4], [5, 6, 7, 8]]),
        ("NaN,NaN,NaN,NaN\n\n1e2,.5,3,inf\n", [[np.nan] * 4, [np.nan] * 4, [100, 0.5, 3, np.inf]]),
        ("\n1,2,3,4\n", [[np.nan] * 4, [1, 2, 3, 4]]),
        ("\ufeff1,2,3,4\n", [[1, 2, 3, 4]]),
    ],
)
def test_raw_boxes_are_what_the_file_says(tmp_path, text, expected):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    np.testing.assert_array_equal(read_raw_boxes(tmp_path / "a.txt"), expected)


@pytest.mark.parametrize(
    "form", ["{:.0f}", "{:.3f}", "{:8.3f}", "{:015.6f}", "{:.15f}", "{:g}", "{:.9f}", "{!r}", "{:.12e}", "{:+.2f}"]
)
@pytest.mark.parametrize("separator", [",", "\t", " ", ", "])
def test_numbers_are_read_as_exactly_as_python_reads_them(tmp_path, form, separator):
    rng = np.random.default_rng(0)
    boxes = rng.uniform(-1000, 1000, (200, 4)) * 10.0 ** rng.integers(-6, 3, (200, 4))
    words = [[form.format(float(value)) for value in row] for row in boxes]
    (tmp_path / "a.txt").write_text("\n".join(map(separator.join, words)))
    read = read_raw_boxes(tmp_path / "a.txt")
    assert read.tolist() == [[float(word) for word in row] for row in words]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "1,2,3\n4,5,6\n7,8,9\n1,2,3\n",
        "1,2,3,4,5,6,7,8\n",
        "1_0,2,3,4\n",
        "1..2,2,3,4",
        "1,-,3,4",
        "1-2,2,3,4",
        "1.5,-.,3.5,4.5",
        "1.5,--2.5,3.5,4.5",
        "1.5,,3.5,4.5",
        "1.5,2.-5,3.5,4.5",
    ],
)
def test_raw_boxes_that_are_none(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=r"a\.txt.*(is empty|is not four numbers)"):
        read_raw_boxes(tmp_path / "a.txt")
