"""The report: its figures, its intervals, and the page in a real browser."""

import base64
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast.cli import main
from ostrack_fast.cli._benchmark import MakeTracker, evaluate_benchmark
from ostrack_fast.config import ModelConfig
from ostrack_fast.data.images import read_image
from ostrack_fast.data.truth import read_raw_boxes
from ostrack_fast.evaluation import score_results
from ostrack_fast.evaluation.benchmark_run import make_tasks, run_tasks, write_run
from ostrack_fast.evaluation.benchmarks import BENCHMARKS, find_benchmark
from ostrack_fast.evaluation.intervals import difference, interval
from ostrack_fast.evaluation.protocols import Curves
from ostrack_fast.evaluation.published import published_rows
from ostrack_fast.evaluation.report import make_report, to_html, to_markdown
from ostrack_fast.evaluation.report_elimination import target_cells
from ostrack_fast.evaluation.report_figures import jpeg
from ostrack_fast.evaluation.scoring import TrackerScore
from ostrack_fast.model import OSTrack
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.visualization.inside import SIDE, Inside, dimmed
from tests.evaluation import layouts
from tests.evaluation.layouts import BOXES, rows, write

TINY = ModelConfig(
    template_size=64, search_size=128, embed_dim=24, depth=2, num_heads=2, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip


class Still:
    def initialize(self, frame, box):
        self.box = box

    def track(self, frame):
        return self.box


@pytest.fixture
def results(tmp_path):
    """Two trackers on a miniature LaSOT with attributes: one run here, one from elsewhere with an odd name."""
    names = layouts.lasot(tmp_path / "data", [f"airplane-{number}" for number in (1, 9, 13)])
    for name in names:
        write(tmp_path / "data" / "airplane" / name / "attributes.txt", layouts.flags([1] + [0] * 13))
        write(tmp_path / "<b>&'odd" / f"{name}.txt", rows(np.add(BOXES, (0, 0, 9, 0))))
    benchmark = find_benchmark("lasot")
    loaded = benchmark.load(tmp_path / "data")
    tasks, _ = make_tasks(benchmark, loaded, tmp_path / "still")
    about = {"benchmark": "lasot", "data": str(tmp_path / "data"), "split": "test"}
    write_run(tmp_path / "still", about, run_tasks(tasks, Still()))
    return [tmp_path / "still", tmp_path / "<b>&'odd"]


def numbers(name, values):
    curves = {str(i): Curves(np.full(21, v), np.full(51, v), np.full(51, v)) for i, v in enumerate(values)}
    sequences = {key: {"AUC": 100 * one.success.mean()} for key, one in curves.items()}
    return TrackerScore(name, {"AUC": 100 * float(np.mean(values))}, sequences, curves)


def test_intervals_cover_what_they_should():
    """Of many samples of 40 from a distribution with a known mean, about 95 % of the intervals hold it."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = interval(numbers("a", rng.beta(2, 2, 40)), "AUC")
        assert found.low < found.value < found.high
        hits += found.low <= 50 <= found.high
    assert 178 <= hits <= 199


def test_a_difference_is_taken_on_the_same_sequences():
    """Two trackers of very uneven sequences, one always better by half a percent: that is no chance."""
    values = np.random.default_rng(0).uniform(0, 0.9, 30)
    one, other = numbers("a", values + 0.005), numbers("b", values)
    found = difference(one, other, "AUC")
    assert found.value == pytest.approx(0.5) and 0.4 < found.low <= found.high < 0.6
    assert interval(one, "AUC").low < other.summary["AUC"]


def test_the_page_and_the_table_show_what_the_score_says(results):
    report = make_report(results)
    scores = score_results("lasot", results[0].parent / "data", results).to_dict()
    page = to_html(report)
    assert json.loads(re.search(r'id="scores">(.*?)</script>', page, re.DOTALL)[1]) == scores
    table = page[page.index('<table id="trackers">') : page.index("</table>")]
    values = re.findall(r'class="value">([\d.]+)<', table)
    ranked = sorted(scores["trackers"], key=lambda each: -each["summary"]["AUC"])
    assert values == [f"{each['summary'][key]:.2f}" for each in ranked for key in ("AUC", "P", "P_norm")]
    assert "&lt;b&gt;&amp;&#39;odd" in page and "<b>" not in page
    assert "OSTrack-384 (published)" in page and "71.10" in page
    assert "illumination variation (3)" in page and page.count("data:image/jpeg") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    for each in ranked:
        assert f"{each['summary']['AUC']:.2f} [" in to_markdown(report)
    for picture in (*report.curves, report.speed):
        drawing = base64.b64decode(picture.source.partition(",")[2]).decode()
        assert "mathdefault" not in drawing and "<svg" in drawing


@pytest.mark.parametrize("name", ["got10k", "trackingnet", "folder"])
def test_reports_of_other_protocols(tmp_path, name):
    for each in layouts.ALL[name](tmp_path / "data"):
        write(tmp_path / "mine" / f"{each}.txt", rows(BOXES))
    report = make_report([tmp_path / "mine"], name, tmp_path / "data")
    assert len(report.curves) == (1 if name == "got10k" else 3) and report.speed is None
    assert "mine" in to_html(report)
    with pytest.raises(ValueError, match="give --benchmark and --data"):
        make_report([tmp_path / "mine"])


def test_published_figures_are_of_known_benchmarks_and_their_test_sets():
    for name, benchmark in BENCHMARKS.items():
        for split in benchmark.splits:
            for _, figures in published_rows(name, split):
                assert set(figures) <= {"AO", "SR_0.50", "SR_0.75", "AUC", "P", "P_norm"}
    assert not published_rows("got10k", "val") and published_rows("got10k", "test")


def test_an_order_that_may_be_chance_is_called_so(tmp_path):
    """A difference of 0.2 AUC between sequences that differ by tens is no progress; one on every sequence is."""
    names = layouts.lasot(tmp_path / "data", [f"airplane-{number}" for number in (1, 9, 13, 15)])
    for index, name in enumerate(names):
        for tracker, shift in (("a", 9 * (index % 2)), ("b", 9 * ((index + 1) % 2)), ("c", 14)):
            write(tmp_path / tracker / f"{name}.txt", rows(np.add(BOXES, (shift, 0, 0, 0))))
    report = make_report([tmp_path / name for name in "abc"], "lasot", tmp_path / "data")
    verdicts = {row.name: row.verdict for row in report.rows}
    assert sorted(verdicts.values()) == ["", "may be chance", "no chance"] and verdicts["c"] == "no chance"
    assert ", may be chance |" in to_markdown(report) and "<br>may be chance</small>" in to_html(report)


def test_eliminated_candidates_over_time(tmp_path):
    torch.manual_seed(0)
    save_weights(OSTrack(TINY).state_dict(), TINY, tmp_path / "tiny.safetensors")
    layouts.lasot(tmp_path / "data")
    make = MakeTracker(str(tmp_path / "tiny.safetensors"), None, "cpu", "float32", 1)
    evaluate_benchmark(
        "lasot", tmp_path / "data", make, split=None, protocol=None, results=tmp_path / "r", resume=False, json=None
    )
    report = make_report([tmp_path / "r"])
    assert [picture.text.split(":")[0] for picture in report.elimination] == [
        "Candidates left on airplane-1", "Candidates left on airplane-9",
        "Share of the target's cells that are eliminated, over time",
    ]  # fmt: skip
    assert "Eliminated candidates over time" in to_html(report) and not report.notes
    # Frames 1 and 3 of four, around the boxes that were answered before them; LaSOT counts from 1.
    sequence = find_benchmark("lasot").load(tmp_path / "data").sequences[0]
    images = [read_image(path) for path in sequence.frames()]
    boxes = read_raw_boxes(tmp_path / "r" / "airplane-1.txt") - (1, 1, 0, 0)
    inside = Inside(
        OSTrack.from_pretrained(tmp_path / "tiny.safetensors"), images[0], (BOXES[0] - (1, 1, 0, 0)).tolist()
    )
    views = [inside.look(images[index], boxes[index - 1].tolist()) for index in (1, 3)]
    regions = [dimmed(cv2.resize(view.region, (SIDE, SIDE)), view.alive[-1]) for view in views]
    assert report.elimination[0].source == jpeg(np.concatenate(regions, axis=1))
    assert report.elimination[0].text.endswith("frames 1, 3") and views[0].alive[-1].sum() == 45
    (tmp_path / "tiny.safetensors").unlink()
    report = make_report([tmp_path / "r"])
    assert not report.elimination and "The eliminated candidates are not shown" in to_html(report)


def test_the_targets_cells():
    # A search region of 64 pixels around (50, 50), in 8 x 8 cells: from 18 to 82.
    cells = target_cells(np.array([34.0, 42, 16, 24]), np.array([42.0, 42, 16, 16]), 4.0, 8)
    assert np.argwhere(cells).min(0).tolist() == [3, 2] and np.argwhere(cells).max(0).tolist() == [5, 3]
    assert cells.sum() == 6


@pytest.mark.skipif(not shutil.which("chromium"), reason="chromium is not installed")
def test_the_page_in_a_browser(results, tmp_path):
    """No error on the console, which a blocked request would be too; every picture has a size."""
    page = to_html(make_report(results))
    probe = (
        "<script>window.onload=()=>{document.title=[...document.images].map(i=>i.naturalWidth*i.clientWidth).join()}"
    )
    page = page.replace("img-src data:;", "img-src data:; script-src 'unsafe-inline';").replace(
        "</body>", f"{probe}</script></body>"
    )
    (tmp_path / "page.html").write_text(page)
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "page.html").as_uri(),
    ]  # fmt: skip
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert "CONSOLE" not in out.stderr, out.stderr
    sizes = re.search(r"<title>([\d,]+)</title>", out.stdout)[1].split(",")
    assert len(sizes) == 7 and all(int(size) > 0 for size in sizes)


def test_the_command(results, tmp_path, monkeypatch, capsys):
    arguments = ["report", *results, "-o", tmp_path / "r.html", "--markdown", tmp_path / "r.md"]
    monkeypatch.setattr("sys.argv", ["ostrack-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "r.md").read_text() in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["ostrack-fast", "report", str(results[0]), "-o", "r.pdf"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "must end in .html" in capsys.readouterr().err


@pytest.mark.parametrize(
    "said", [{"benchmark": 5}, {"starts": [1]}, {"sequences": [1]}, {"sequences": {"s": 5}}, {"tracker": "x"}]
)
def test_a_run_file_of_something_else_is_refused(results, said):
    about = {"benchmark": "lasot", "data": str(results[0].parent / "data"), "split": "test"}
    (results[0] / "run.json").write_text(json.dumps({**about, **said}))
    with pytest.raises(ValueError, match=r"run\.json"):
        make_report(results[:1])


def test_a_tracker_whose_name_looks_like_a_formula(results):
    named = results[0].rename(results[0].parent / r"$\frac$")
    assert make_report([named]).curves


def test_a_tracker_whose_name_begins_with_an_underscore_is_in_the_legends(results):
    named = results[0].rename(results[0].parent / "_mine")
    curves = [each.source for each in make_report([named, results[1]]).curves]
    # The letters are outlines; a comment before them says what they spell.
    charts = [base64.b64decode(source.partition(",")[2]).decode() for source in curves]
    assert len(charts) == 3 and all("<!-- _mine [" in chart for chart in charts)


def test_a_split_that_is_not_there_is_refused(results):
    with pytest.raises(ValueError, match="has no split 'nope'"):
        make_report(results[:1], split="nope")


def test_a_folder_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="absent is not a folder of results"):
        make_report(["absent"])
