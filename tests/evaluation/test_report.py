"""The report: its figures, its intervals, and the page in a real browser."""

import base64
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from ostrack_fast.cli import main
from ostrack_fast.evaluation import score_results
from ostrack_fast.evaluation.benchmark_run import make_tasks, run_tasks, write_run
from ostrack_fast.evaluation.benchmarks import BENCHMARKS, find_benchmark
from ostrack_fast.evaluation.intervals import difference, interval
from ostrack_fast.evaluation.protocols import Curves
from ostrack_fast.evaluation.published import published_rows
from ostrack_fast.evaluation.report import make_report, to_html, to_markdown
from ostrack_fast.evaluation.scoring import TrackerScore
from tests.evaluation import layouts
from tests.evaluation.layouts import BOXES, rows, write


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
