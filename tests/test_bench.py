"""The benchmarks: every implementation runs and is checked, and a wrong one never gets a time."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ostrack_fast import timing
from ostrack_fast.bench import report, roofline, suite_model
from ostrack_fast.bench.case import Case, Comparison, Implementation, Options, WrongResult
from ostrack_fast.bench.suite_ops import NAMES, cases
from ostrack_fast.cli import main

CPU = torch.device("cpu")


def a_case(runs, expected):
    comparison = Comparison((expected,), {name: Implementation(run, 1e-3) for name, run in runs.items()})
    return Case("sum", "2 numbers", 1, torch.float32, CPU, 0.0, 8.0, lambda: comparison)


def run_one(case, **how):
    return report.run(case, threads=1, seconds=0.01, quick=True, **how)


@pytest.mark.parametrize("op", NAMES)
def test_every_implementation_of_the_smallest_shape_is_right(op):
    with torch.inference_mode():
        for case in cases(Options(CPU, names=[op], quick=True)):
            comparison = case.build()
            assert {"upstream", "torch"} <= set(comparison.implementations)
            assert {"native", "triton"} <= set(comparison.implementations) | set(comparison.skipped)
            for name in comparison.implementations:
                comparison.check(name)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.tensor([1.0, 2.01]),
        torch.tensor([1.0, float("nan")]),
        torch.tensor([[1.0, 2.0]]),
        (torch.tensor([1.0, 2.0]), torch.tensor(0)),
    ],
    ids=["value", "nan", "shape", "one more"],
)
def test_a_wrong_implementation_is_refused_untimed(wrong, monkeypatch):
    monkeypatch.setattr(report, "interleave", lambda *_: pytest.fail("timed a wrong result"))
    right = torch.tensor([1.0, 2.0])
    with pytest.raises(WrongResult, match="native"):
        run_one(a_case({"upstream": lambda: right, "native": lambda: wrong}, right))


def test_indices_must_be_exact():
    comparison = Comparison((torch.tensor([1000]),), {"native": Implementation(lambda: torch.tensor([1001]), 1e-2)})
    with pytest.raises(WrongResult):
        comparison.check("native")


def test_implementations_take_turns():
    order = []
    runs = {name: partial(order.append, name) for name in "abc"}

    class Clock:
        def prepare(self, run):
            return 1, 1.0

        def sample(self, run, amount):
            run()
            return float(len(order))

    times = timing.interleave(runs, Clock(), seconds=0.0)
    assert order[:9] == list("abcbcacab")
    assert times["a"][:3] == [1.0, 6.0, 8.0]


def test_speedup_compares_within_rounds():
    # The machine was ten times as slow in one round: both felt it.
    assert timing.speedup([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2.0


def test_only_what_was_asked_for_is_timed_and_a_check_times_nothing():
    right = torch.tensor([1.0, 2.0])
    case = a_case({"upstream": lambda: right, "native": lambda: right + 5e-4}, right)
    found = run_one(case, only=["native"])["implementations"]
    assert set(found) == {"native"} and found["native"]["seconds"] > 0
    checked = run_one(case, check_only=True)["implementations"]
    assert checked["upstream"] == {"errors": [0.0]} and set(checked["native"]) == {"errors"}
    assert checked["native"]["errors"][0] == pytest.approx(2.5e-4, rel=1e-2)


def test_the_roofline_is_the_slower_of_the_two_bounds():
    limits = roofline.Roofline(CPU, timing.clock(CPU), quick=True)
    limits.flops_per_second[torch.float32] = 1e9
    limits.bytes_per_second[4096] = 1e9
    assert limits.seconds(4e3, 8192.0, torch.float32) == (8192e-9, "memory")
    assert limits.seconds(4e5, 8192.0, torch.float32) == (4e-4, "compute")
    assert limits.seconds(0.0, 8192.0, torch.float32) == (8192e-9, "memory")


def test_the_threads_are_given_back():
    before = torch.get_num_threads()
    seen = []
    case = a_case({"upstream": lambda: seen.append(torch.get_num_threads()) or torch.ones(1)}, torch.ones(1))
    report.run(case, threads=before + 1, seconds=0.01, quick=True)
    assert set(seen) == {before + 1} and torch.get_num_threads() == before


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs `ostrack-fast bench` in this process: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["ostrack-fast", "bench", *map(str, arguments)])
        monkeypatch.delenv("OSTRACK_FAST_DEBUG", raising=False)
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = leave.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_command_prints_a_row_an_implementation_and_keeps_the_numbers(bench, tmp_path):
    path = tmp_path / "new" / "ops.json"
    only = ("--op", "decode", "--dtype", "float32", "--threads", "1", "--device", "cpu")
    code, out, error = bench("--quick", *only, "--json", path)
    assert code == 0, error
    kept = json.loads(path.read_text())
    (result,) = kept["results"]
    assert (result["op"], result["batch"], result["dtype"], result["threads"]) == ("decode", 1, "float32", 1)
    assert set(result["implementations"]) >= {"upstream", "torch"}
    assert kept["machine"]["cpu"] and kept["machine"]["versions"]["torch"] == torch.__version__
    for name, one in result["implementations"].items():
        assert f" {name} " in out
        assert 0 < one["quartiles"][0] <= one["seconds"] <= one["quartiles"][1] and one["rounds"] > 1
        assert set(one["speedup_over"]) == {"upstream", "torch"}
    assert result["implementations"]["torch"]["speedup_over"]["torch"] == 1.0
    for reason in result["skipped"].values():
        assert reason in out


def test_a_case_that_fails_is_told_and_the_others_are_kept(bench, tmp_path, monkeypatch):
    """The file is there before the next case is measured: a run that is cut off has lost nothing."""
    path, seen = tmp_path / "ops.json", []
    measured = report.run

    def broken(case, *arguments, **how):
        seen.append(json.loads(path.read_text())["results"] if path.exists() else [])
        if case.batch == 2:
            raise WrongResult("no such thing\nat all")
        return measured(case, *arguments, **how)

    monkeypatch.setattr(report, "run", broken)
    only = ("--op", "decode", "--dtype", "float32", "--batch", "1,2,3", "--device", "cpu")
    code, out, error = bench("--quick", "--check", *only, "--json", path)
    assert code == 1 and "Traceback" in error
    assert "failed: decode, 12 x 12, batch 2, float32" in out and "WrongResult: no such thing" in out
    assert [len(each) for each in seen] == [0, 1, 1]
    kept = json.loads(path.read_text())
    assert [result["batch"] for result in kept["results"]] == [1, 3]
    assert list(kept["failed"].values()) == ["WrongResult: no such thing"]
    code, _, error = bench("--quick", "--check", *only, "--only", "nobody")
    assert code == 2 and "nothing was measured" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["everything"], "unknown suite 'everything': choose ops"),
        (["--op", "sort"], "--op 'sort' is unknown: choose attention"),
        (["--dtype", "int4"], "--dtype 'int4' is unknown"),
        (["--batch", "0"], "--batch '0' is not a list of numbers from 1 to 4096"),
        (["--threads", "two"], "--threads 'two' is not a list of numbers from 1 to 4096"),
        (["--peers"], "--peers compares whole networks on the CPU"),
    ],
)
def test_mistakes_are_told_in_a_line(bench, arguments, message):
    code, _, error = bench(*arguments)
    assert code == 2 and message in error


PEERS = (
    "torch.compile, frozen", "onnxruntime float32", "onnxruntime int8", "onnxruntime int8, all layers",
    "OpenVINO float32", "OpenVINO bfloat16", "OpenVINO int8",
)  # fmt: skip


@pytest.mark.slow
def test_peers_compute_the_same():
    """onnxruntime and OpenVINO on an export of the model; what is not installed is named."""
    (case,) = suite_model.cases(Options(CPU, ("small",), (1,), quick=True, only=PEERS, peers=True))
    with torch.inference_mode():
        comparison = case.build()
        assert comparison.implementations.keys() | comparison.skipped.keys() == set(PEERS)
        assert "torch.compile, frozen" in comparison.implementations
        for name in comparison.implementations:
            comparison.check(name)
    for name, reason in comparison.skipped.items():
        assert "the extra 'ostrack_fast[peers]'" in reason or name == "onnxruntime int8"


def test_every_op_has_its_file_for_pytest_benchmark():
    folder = Path(__file__).parents[1] / "bench"
    if not folder.exists():
        pytest.skip("there is no bench/ beside these tests")
    assert {path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py")} == set(NAMES)
