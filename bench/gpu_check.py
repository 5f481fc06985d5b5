"""Everything that only a GPU can show, in two calls that each end in time: is it right, how fast, what tuning brings.

    bench/gpu_check.sh                  # the first call, at most 7 minutes: build, errors, speeds, all GPU tests
    bench/gpu_check.sh --call 2         # the second, at most 4: tiles tuned, the same speeds, memcheck, training
    bench/gpu_check.sh --only soak      # steps by name; some, which take longer, run only so
    bench/gpu_check.sh --device cpu     # a rehearsal: the same steps at small sizes, as far as a CPU can run them

A step may run until the limits of the steps before it and its own are over, so that what one saves another may use, and
a call never outlasts their sum. Every step's log and numbers lie in the folder $OUT, without it in build/gpu_check, as
soon as they are there; gpu_check.json holds all of them. The first call leaves the compiled library there as well: put
into ostrack_fast/ again, it saves the second call the build. Needs nothing but the standard library, so that it can say
what else is missing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ostrack_fast"
WORK = ROOT / "build" / "gpu_check"  # what a machine need not hand out: compiled Triton kernels
PYTEST = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--rootdir={ROOT}")
TESTS = str(ROOT / "tests")
LINK = (sys.executable, str(ROOT / "bench" / "gpu_check.py"), "--in-place")
# It takes the whole memory of the GPU, which tests in other processes need.
ALONE = "tests/test_soak.py::test_out_of_memory_leaves_a_usable_process"
NETWORKS = ("ostrack_256_ce", "ostrack_384_ce")


@dataclass(frozen=True)
class Step:
    """One thing to run.

    Args:
        seconds: its limit, see above.
        call: the call it belongs to; 0 where it runs only when asked for by name.
        skip: why it cannot run here.
        tuned: whether it uses the tiles that an earlier step measured, if there are some when it starts.
    """

    name: str
    seconds: int
    command: tuple[str, ...]
    call: int = 0
    skip: str | None = None
    tuned: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def stem(name: str) -> str:
    """Of the files that a step of this name leaves."""
    return "".join(character if character.isalnum() else "_" for character in name)


def steps(device: str, out: Path) -> Iterator[Step]:
    """All steps, in order."""
    yield from _first_call(device, out)
    yield from _second_call(device, out)
    yield from _on_demand(device, out)


def _measure(name: str, section: str, seconds: int, call: int, device: str, out: Path) -> Step:
    command = (sys.executable, "-m", "ostrack_fast.bench.gpu_measure", section, "--device", device)
    return Step(name, seconds, (*command, "--json", str(out / f"{stem(name)}.json")), call, tuned=call == 2)


def _bench(suite: str, names: str, seconds: int, out: Path, *options: str, call: int = 0, name: str = "") -> Step:
    name = name or f"bench {suite} {names}"
    command = (sys.executable, "-m", "ostrack_fast.cli", "bench", suite, "--op", names, *options)
    return Step(name, seconds, (*command, "--json", str(out / f"{stem(name)}.json")), call, tuned=call != 1)


def _first_call(device: str, out: Path) -> Iterator[Step]:
    gpu = device != "cpu"
    # Without a build Triton's kernels still serve every op: the script goes on in place.
    install = f"{shlex.quote(sys.executable)} -m pip install --no-index --no-deps --no-build-isolation -e "
    install += shlex.quote(str(ROOT))
    link = shlex.join(LINK)
    # For the one GPU that is here, a Hopper unless the environment says otherwise: a seventh of the time for all.
    architecture = os.environ.get("OSTRACK_FAST_CUDA_ARCHITECTURES", "90-real")
    environment = {"OSTRACK_FAST_CUDA": "ON", "OSTRACK_FAST_CUDA_ARCHITECTURES": architecture}
    skip = None if gpu else "a rehearsal uses the package as it is installed"
    yield Step("build", 90, ("sh", "-c", f"{install} || {link}"), 1, skip, environment=environment)
    for name, section, seconds in (
        ("error", "error", 35), ("graph time", "graph_time", 25), ("nodes", "nodes", 25), ("upstream", "upstream", 20),
        ("frames", "frames", 25), ("GEMMs", "gemms", 45), ("attention", "attention", 20), ("batches", "batches", 30),
    ):  # fmt: skip
        yield _measure(name, section, seconds, 1, device, out)
    names = ",".join(NETWORKS if gpu else ("small",))
    yield _bench("model", names, 30, out, "--quick", "--batch", "1", "--device", device, call=1, name="waterfall")
    processes = str(max(1, min(12, (os.cpu_count() or 1) - 2)))
    parallel = ("-n", processes) if importlib.util.find_spec("xdist") else ()
    # Without a GPU: a few of the same tests, as far as the CPU can run them.
    chosen = (TESTS, "-m", "gpu", "--deselect", ALONE) if gpu else (f"{TESTS}/ops/test_decode.py", "-m", "not gpu")
    yield Step("tests", 75, (*PYTEST, *chosen, *parallel), 1, environment={"OMP_NUM_THREADS": "1"})


def _second_call(device: str, out: Path) -> Iterator[Step]:
    gpu = device != "cpu"
    no_gpu = None if gpu else "needs a GPU"
    yield Step("library", 5, LINK, 2, no_gpu)
    yield _measure("switches", "switches", 25, 2, device, out)
    for network, seconds in zip(NETWORKS, (55, 35), strict=True):
        options = ("--weights", network, "--batch", "1", "--seconds", "0.5", "--device", device)
        command = (sys.executable, "-m", "ostrack_fast.cli", "tune", str(tiles_file(out)), *options)
        yield Step(f"tune {network}", seconds, command, 2, no_gpu)
    for name, section, seconds in (
        ("graph time, tuned", "graph_time", 15), ("nodes, tuned", "nodes", 15), ("frames, tuned", "frames", 15),
    ):  # fmt: skip
        yield _measure(name, section, seconds, 2, device, out)
    yield from (_sanitizer("memcheck", backend, 25, 2, no_gpu) for backend in ("native", "triton"))
    chosen = ("-m", "gpu") if gpu else ("-m", "not gpu and not slow", "-k", "cpu and step_as")
    yield Step("training", 25, (*PYTEST, f"{TESTS}/training/test_on_device.py", *chosen), 2)


def _sanitizer(tool: str, backend: str, seconds: int, call: int, no_gpu: str | None) -> Step:
    missing = no_gpu or (None if shutil.which("compute-sanitizer") else "compute-sanitizer is not on PATH")
    # PyTorch asks the driver for functions that may not be there: such API errors are no faults of the kernels.
    command: tuple[str, ...] = (
        "compute-sanitizer",
        "--tool",
        tool,
        "--report-api-errors",
        "no",
        "--error-exitcode",
        "1",
    )
    command += (sys.executable, "-m", "ostrack_fast.bench.check_kernels", "--backend", backend)
    command += ("--op", "attention") if call else ()
    # PyTorch's allocator hands out parts of large blocks, whose ends the tools do not see.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    name = f"{tool} {backend}" + (", all ops" if tool == "memcheck" and not call else "")
    return Step(name, seconds, command, call, missing, environment=alone)


def _on_demand(device: str, out: Path) -> Iterator[Step]:
    gpu = device != "cpu"
    no_gpu = None if gpu else "needs a GPU"

    def bench(suite: str, names: str, seconds: int, *options: str) -> Step:
        return _bench(suite, names, seconds, out, "--device", device, *options, *(() if gpu else ("--quick",)))

    where = ("--device", device)
    yield Step("kernels native", 120, (sys.executable, "-m", "ostrack_fast.bench.check_kernels", *where))
    for tool in ("memcheck", "racecheck", "initcheck"):
        yield from (_sanitizer(tool, backend, 600, 0, no_gpu) for backend in ("native", "triton"))
    ops = ("attention", "eliminate", "restore", "decode", "elimination_path", "crop", "linear", "conv3x3")
    yield from (bench("ops", op, 300) for op in (*ops, "restore_conv3x3"))
    # These compile the upstream network with max-autotune as well.
    yield from (bench("model", name, 600, "--batch", "1") for name in (NETWORKS if gpu else ("small",)))
    yield from (bench("track", name, 300) for name in (("small", *NETWORKS) if gpu else ("small",)))
    yield bench("training", NETWORKS[0] if gpu else "small", 450)
    soak = (sys.executable, "-m", "ostrack_fast.bench.soak", *where, "--frames", "100000" if gpu else "1000")
    yield Step("soak", 450, (*soak, "--json", str(out / "soak.json")))
    data = os.environ.get("OSTRACK_FAST_DATA")
    accuracy: tuple[str, ...] = (
        sys.executable,
        "-m",
        "ostrack_fast.bench.accuracy",
        "--data",
        f"{data}/sequences",
        "--starts=2",
    )
    accuracy += ("--dtypes", "float16,bfloat16", "--one-based=OTB_*", "--one-based=VOT_*")
    no_data = None if data else "OSTRACK_FAST_DATA does not name the folder that holds sequences/"
    yield Step("accuracy", 300, (*accuracy, "--json", str(out / "accuracy.json")), skip=no_gpu or no_data)
    yield Step("out of memory", 60, (*PYTEST, str(ROOT / ALONE)), skip=no_gpu)


def tiles_file(out: Path) -> Path:
    return out / "tiles.json"


def link_in_place() -> int:
    """Make the checkout importable as it is, with the compiled library if it lies in ostrack_fast/."""
    for name in ("kernels", "bench"):
        if not (PACKAGE / name).exists():
            (PACKAGE / name).symlink_to(Path("..") / name)
    code = "import ostrack_fast._C as c; print('compiled library:', c.build_info())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout.strip() or f"no compiled library, Triton alone: {(done.stderr.splitlines() or [''])[-1]}")
    return 0


def run(step: Step, log: Path, limit: float, tiles: Path) -> tuple[str, str, float]:
    """Status, what it found, and seconds. A step that reaches its limit is ended with all it started: "cut off"."""
    start = time.monotonic()
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | step.environment
    if (PACKAGE / "bench").exists():  # linked in place
        environment["PYTHONPATH"] = str(ROOT)
    if step.tuned and tiles.exists():
        environment["OSTRACK_FAST_TUNING"] = str(tiles)
    with log.open("w", encoding="utf-8") as output:
        print("$", *step.command, file=output, flush=True)
        child = subprocess.Popen(
            step.command,
            cwd=log.parent,  # in the checkout, Python would import its sources instead of what is installed
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(max(limit, 0.1))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    seconds = time.monotonic() - start
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]]
    return *_verdict(step, code, lines), seconds


def _verdict(step: Step, code: int | None, lines: list[str]) -> tuple[str, str]:
    last = next((line.strip("= │") for line in reversed(lines) if any(map(str.isalnum, line))), "")
    if code is None:
        counts = {word: sum(f" {word}" in line for line in lines) for word in ("PASSED", "FAILED", "ERROR")}
        seen = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        return "cut off", f"not done at its limit; {seen or last}"
    if code:
        return "failed", f"exit code {code}: " + "; ".join(dict.fromkeys((last, *_complaint(lines))))
    if "pytest" in step.command and " passed" not in last:
        return "failed", f"no test ran: {last}"
    if "bench" in step.command:
        return "ok", _times(json.loads(Path(step.command[-1]).read_text(encoding="utf-8"))["results"])
    return "ok", last


def _times(results: list[dict[str, Any]]) -> str:
    """Of a benchmark's results: each implementation's microseconds, shape by shape."""
    lines = []
    for result in results:
        times = (f"{name} {1e6 * one['seconds']:.0f}" for name, one in result["implementations"].items())
        lines.append(f"{result['shape']}, batch {result['batch']}, {result['dtype']}: {', '.join(times)} us")
    return "; ".join(lines)


def _complaint(lines: list[str]) -> list[str]:
    """The line that says most about a failure, if any: the last of pytest's, a sanitizer's or a traceback's."""
    telling = ("FAILED ", "ERROR ", "========= ERROR SUMMARY", "Error")
    wrong = [line.strip("= ") for line in lines if line.startswith(telling) or "Error: " in line]
    return wrong[-1:]


def keep(out: Path, found: dict[str, Any]) -> None:
    """Everything so far in one document, written atomically."""
    results = {}
    for path in sorted(out.glob("*.json")):
        if path.name != "gpu_check.json":
            results[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    partial = out / "gpu_check.partial"
    partial.write_text(json.dumps({"steps": found, "results": results}, indent=1) + "\n", encoding="utf-8")
    partial.replace(out / "gpu_check.json")
    for library in PACKAGE.glob("_C*.so"):
        shutil.copy(library, out / library.name)


def table(plan: list[Step], found: dict[str, dict[str, Any]]) -> str:
    """A line for every step."""
    width = max(len(step.name) for step in plan)
    lines = [f"{'step':{width}}  {'status':8} seconds  found"]
    for step in plan:
        one = found.get(step.name, {"status": "to do", "seconds": 0.0, "found": ""})
        text = one["found"] if len(one["found"]) <= 400 else one["found"][:397] + "..."
        lines.append(f"{step.name:{width}}  {one['status']:8} {one['seconds']:7.1f}  {text}")
    return "\n".join(lines)


def run_plan(plan: list[Step], out: Path, found: dict[str, dict[str, Any]], slack: float = 1.0) -> None:
    """Run every step until the limits of all steps up to it are over, each `slack` times as long as it says."""
    begin, deadline = time.monotonic(), 0.0
    for number, step in enumerate(plan):
        if step.skip is not None:
            found[step.name] = {"status": "skipped", "seconds": 0.0, "found": step.skip}
            continue
        deadline += slack * step.seconds
        print(f"[{time.monotonic() - begin:5.0f} s] {step.name} ...", flush=True)
        log = out / f"{number:02}_{stem(step.name)}.txt"
        status, text, seconds = run(step, log, deadline - (time.monotonic() - begin), tiles_file(out))
        print(f"        {status}: {text[:200]}", flush=True)
        found[step.name] = {"status": status, "seconds": seconds, "found": text, "log": log.name}
        keep(out, found)


def chosen_steps(options: argparse.Namespace, out: Path) -> list[Step]:
    """The steps of a call, or those named.

    Raises:
        SystemExit: a name is none of them.
    """
    every = list(steps(options.device, out))
    if not options.only:
        calls = (1, 2) if options.list and not options.call else (options.call or 1,)
        return [step for step in every if step.call in calls]
    names = [name.strip() for name in options.only.split(";")]
    unknown = set(names) - {step.name for step in every}
    if unknown:
        raise SystemExit(f"no step {', '.join(sorted(unknown))}: choose from {', '.join(step.name for step in every)}")
    return [step for step in every if step.name in names]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--call", type=int, choices=(1, 2), help="the first or the second, 1 by default")
    parser.add_argument("--only", help="steps by name, with semicolons between them, whichever call they belong to")
    parser.add_argument("--list", action="store_true", help="print the steps of both calls and run none")
    parser.add_argument("--in-place", action="store_true", help="make this checkout importable as it is, and no more")
    options = parser.parse_args()
    if options.in_place:
        return link_in_place()

    # Where CUDA's tools are if they are not on PATH.
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/cuda/bin"))
    out = Path(os.environ.get("OUT") or WORK).resolve()
    plan = chosen_steps(options, out)
    if options.list:
        for step in plan:
            print(f"{step.name:24} {step.seconds:4} s  {shlex.join(step.command)}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    # What a step compiled is there for the next one.
    for name, variable in (("triton", "TRITON_CACHE_DIR"), ("inductor", "TORCHINDUCTOR_CACHE_DIR")):
        os.environ.setdefault(variable, str(WORK / name))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the table is printed all the same
    found: dict[str, dict[str, Any]] = {}
    try:
        # A rehearsal says nothing of speed, and a busy CPU may take any time.
        run_plan(plan, out, found, 1.0 if options.device == "cuda" else 60.0)
    finally:
        print(table(plan, found))
    failed = sum(one["status"] in ("failed", "cut off") for one in found.values())
    print(f"{failed} failed or cut off; everything is in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
