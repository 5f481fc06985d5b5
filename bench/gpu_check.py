"""Everything that only a GPU can show: parity, sanitizers, graphs, training, benchmarks. Resumable in slices.

    bench/gpu_check.sh                 # again, until it says that all is done
    bench/gpu_check.sh --device cpu    # what can be exercised without a GPU, at small sizes

A step that ended is not run again until a file of the package, its tests or benchmarks changes. Everything lies in
build/gpu_check: state.json, a log a step, the benchmarks' JSON. Where $OUT names a folder, gpu_check.json (all of it
in one document) and gpu_check.tar.gz (that folder, to be unpacked over build/ on another machine) are put there.
Needs nothing but the standard library, so that it can say what else is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("ostrack_fast", "kernels", "csrc", "cmake", "tests", "bench", "setup.py", "CMakeLists.txt", "pyproject.toml")
NO_SOURCES = ("__pycache__", "results", ".pytest_cache")
DONE = ("ok", "failed", "skipped")
TRIES = 2  # runs of a step that were cut off at the end of a slice, before it counts as failed

PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
NEEDED = (
    "torch triton timm numpy cv2 safetensors typer rich yaml matplotlib "  # by the package
    "setuptools pybind11 pytest hypothesis pytest_benchmark"  # by its build and tests
)


@dataclass(frozen=True)
class Step:
    """One thing to run.

    Args:
        seconds: it is not started with less than this left of the slice.
        skip: why it cannot run here.
        each_time: whether to run it in every slice: its result does not outlive the machine.
        result: the JSON file that the command writes.
    """

    name: str
    command: tuple[str, ...]
    seconds: int
    skip: str | None = None
    each_time: bool = False
    result: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)


def steps(device: str, folder: Path, installed: bool) -> Iterator[Step]:
    """All steps, in order."""
    gpu = device != "cpu"
    no_gpu = None if gpu else "needs a GPU"
    code = f"import importlib.util as u; m = [n for n in '{NEEDED}'.split() if u.find_spec(n) is None]; "
    code += "assert not m, f'not installed: {m}'; from importlib.metadata import version; print(version('torch')); "
    if gpu:
        code += "import torch; assert torch.cuda.is_available(), 'PyTorch finds no GPU'; "
        code += "print(torch.__version__, 'on', torch.cuda.get_device_name())"
    yield Step("packages", (sys.executable, "-c", code), 60, each_time=True)
    install = (sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "-e", ".")
    built_for = {"OSTRACK_FAST_CUDA": "ON" if gpu else "OFF"}
    # A build for the one GPU that is here takes a seventh of the time.
    if gpu and (capability := _capability()) is not None:
        built_for["OSTRACK_FAST_CUDA_ARCHITECTURES"] = capability
    yield Step("build", install, 300, "--installed" if installed else None, each_time=True, environment=built_for)
    yield Step("info", (sys.executable, "-m", "ostrack_fast.cli", "info"), 60)
    yield from _tests(gpu, no_gpu)
    yield from _sanitizers(no_gpu)
    yield from _benchmarks(gpu, device, folder)


def _tests(gpu: bool, no_gpu: str | None) -> Iterator[Step]:
    # On a GPU the tests that need one; elsewhere the same tests as far as the CPU can run them, but not the slow ones.
    chosen = ("-m", "gpu") if gpu else ("-m", "not gpu and not slow", "-k", "cpu")
    own = ("attention", "eliminate", "restore", "crop", "decode", "advance", "layers")
    for op in own:
        yield Step(f"parity: {op}", (*PYTEST, f"tests/ops/test_{op}.py", *chosen), 240 if op == "attention" else 90)
    files = {
        "golden: float32": "tests/model/test_golden_model.py",
        "golden: engine, half precision": "tests/model/test_on_device.py",
        "graph replay": "tests/test_graph.py",
        "training": "tests/training/test_on_device.py",
    }
    for name, path in files.items():
        parts = {"training": {"parity": "not steps", "200 steps": "steps"}}.get(name, {"": ""})
        for part, words in parts.items():
            command = (*PYTEST, path, *chosen[:2], *(("-k", words) if words else ()))
            yield Step(f"{name}: {part}" if part else name, command, 240)
    # Nothing marked `gpu` is left out, whichever file it is in.
    listed = [f"--ignore={path}" for path in (*files.values(), *(f"tests/ops/test_{op}.py" for op in own))]
    yield Step("tests: the others", (*PYTEST, "tests", "-m", "gpu", *listed), 300, skip=no_gpu)


def _sanitizers(no_gpu: str | None) -> Iterator[Step]:
    driver = (sys.executable, "bench/checks/kernels.py")
    where = "cuda" if no_gpu is None else "cpu"
    yield Step("kernels: native", (*driver, "--device", where), 120)
    yield Step("kernels: triton", (*driver, "--backend", "triton"), 200, no_gpu)
    missing = no_gpu or (None if which("compute-sanitizer") else "compute-sanitizer is not on PATH")
    # PyTorch's allocator hands out parts of large blocks, whose ends the tools do not see.
    alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for backend, tools in (("native", ("memcheck", "racecheck", "initcheck")), ("triton", ("memcheck",))):
        for tool in tools:
            command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *driver)
            yield Step(f"{tool}: {backend}", (*command, "--backend", backend), 400, missing, environment=alone)


def _benchmarks(gpu: bool, device: str, folder: Path) -> Iterator[Step]:
    tiles = folder / "results" / "tiles.json"
    tuned = {"OSTRACK_FAST_TUNING": str(tiles)} if gpu else {}

    def bench(suite: str, name: str, batch: int | None, seconds: int) -> Step:
        title = f"{suite}: {name}" + (f", batch {batch}" if batch else "")
        path = folder / "results" / f"{suite}_{name}{f'_{batch}' if batch else ''}.json"
        command = [sys.executable, "-m", "ostrack_fast.cli", "bench", suite, "--op", name, "--device", device]
        command += ["--json", str(path), *(["--batch", str(batch)] if batch else []), *([] if gpu else ["--quick"])]
        return Step(f"bench {title}", tuple(command), seconds, result=path, environment=tuned)

    if gpu:
        for name, batches in (("ostrack_256_ce", "1,8,64"), ("ostrack_384_ce", "1,8")):
            command = (sys.executable, "-m", "ostrack_fast.cli", "tune", str(tiles), "--weights", name)
            yield Step(f"tune: {name}", (*command, "--batch", batches, "--device", device), 400)
    ops = (
        "attention",
        "eliminate",
        "restore",
        "decode",
        "elimination_path",
        "crop",
        "linear",
        "conv3x3",
        "restore_conv3x3",
    )
    yield from (bench("ops", op, None, 300) for op in ops)
    models = ("ostrack_256_ce", "ostrack_384_ce") if gpu else ("small",)
    # Compiling is what takes long.
    yield from (bench("model", name, batch, 450) for name in models for batch in ((1, 8, 64) if gpu else (1,)))
    yield from (bench("track", name, None, 300) for name in (("small", *models) if gpu else models))
    yield bench("training", "ostrack_256_ce" if gpu else "small", None, 450)
    frames = "100000" if gpu else "1000"
    soak = (sys.executable, "bench/soak.py", "--device", device, "--frames", frames)
    yield Step("soak", (*soak, "--json", str(folder / "results" / "soak.json")), 450)
    data = os.environ.get("OSTRACK_FAST_DATA")
    accuracy = (sys.executable, "bench/accuracy.py", "--data", f"{data}/sequences", "--dtypes", "float16,bfloat16")
    accuracy += ("--starts=2", "--one-based=OTB_*", "--one-based=VOT_*")
    accuracy += ("--json", str(folder / "results" / "accuracy.json"))
    no_data = None if data else "OSTRACK_FAST_DATA does not name the folder that holds sequences/"
    yield Step("accuracy", accuracy, 300, no_data if gpu else "needs a GPU")


def _capability() -> str | None:
    """The GPU's architecture in CMake's notation, or None where PyTorch cannot tell."""
    code = "import torch; print('{}{}-real'.format(*torch.cuda.get_device_capability()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def tree_hash() -> str:
    """Of the content of every source file: whatever the machine, the same tree has the same one."""
    whole = hashlib.sha256()
    for source in SOURCES:
        path = ROOT / source
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and file.suffix not in (".so", ".pyc") and not set(file.parts) & set(NO_SOURCES):
                whole.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return whole.hexdigest()[:16]


def run(step: Step, log: Path, limit: float | None) -> tuple[str, float, str]:
    """Status, seconds, and what it found. A step that outlasts the limit is ended with all it started: "cut off"."""
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        print("$", *step.command, file=output, flush=True)
        child = subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"} | step.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    seconds = time.monotonic() - start
    if code is None:
        return "cut off", seconds, f"not done after {seconds:.0f} s"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]]
    last = next((line.strip("= │") for line in reversed(lines) if any(map(str.isalnum, line))), "")
    if code:
        return "failed", seconds, f"exit code {code}: " + "; ".join(dict.fromkeys((last, *_complaint(lines))))
    if "pytest" in step.command and " passed" not in last:
        return "failed", seconds, f"no test ran: {last}"
    if step.result is not None:
        results = json.loads(step.result.read_text(encoding="utf-8"))["results"]
        if not results:
            return "failed", seconds, "no case ran"
        last = summary(results)
    return "ok", seconds, last


def _complaint(lines: list[str]) -> list[str]:
    """The line that says most about a failure, if any: the last of pytest's, a sanitizer's or a traceback's."""
    telling = ("FAILED ", "ERROR ", "========= ERROR SUMMARY", "Error")
    wrong = [line.strip("= ") for line in lines if line.startswith(telling) or "Error: " in line]
    return wrong[-1:]


def summary(results: list[dict[str, Any]]) -> str:
    """Of a benchmark: each contender's median speed over the cases, against the first: the published formulation."""
    ratios: dict[str, list[float]] = {}
    shares: dict[str, list[float]] = {}
    for result in results:
        published = next(iter(result["contenders"].values()))
        for name, one in result["contenders"].items():
            ratios.setdefault(name, []).append(published["seconds"] / one["seconds"])
            if one["peak_bytes"] and published["peak_bytes"]:
                shares.setdefault(name, []).append(one["peak_bytes"] / published["peak_bytes"])
    found = [f"{name} x{_middle(values):.2f}" for name, values in ratios.items() if name != "published"]
    found += [f"memory of {name} {_middle(values):.0%}" for name, values in shares.items() if name != "published"]
    return f"{len(results)} cases; " + ", ".join(found)


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def load_state(path: Path, tree: str, device: str) -> dict[str, Any]:
    """What earlier slices found, if it was of this tree and device."""
    if path.exists():
        state = json.loads(path.read_text(encoding="utf-8"))
        if (state["tree"], state["device"]) == (tree, device):
            return state
        print("the files or the device changed since the last slice: starting over")
    return {"tree": tree, "device": device, "steps": {}}


def save(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def table(plan: list[Step], found: dict[str, dict[str, Any]]) -> str:
    """A line for every step."""
    width = max(len(step.name) for step in plan)
    lines = [f"{'step':{width}}  {'status':8} seconds  found"]
    for step in plan:
        one = found.get(step.name, {"status": "to do", "seconds": 0.0, "found": ""})
        text = one["found"] if len(one["found"]) <= 150 else one["found"][:147] + "..."
        lines.append(f"{step.name:{width}}  {one['status']:8} {one['seconds']:7.1f}  {text}")
    return "\n".join(lines)


def hand_out(folder: Path, state: dict[str, Any], plan: list[Step], out: Path) -> None:
    """Copy results and logs to a folder, as few files: everything in one document, and the state to go on with."""
    results = {
        step.name: json.loads(step.result.read_text(encoding="utf-8"))
        for step in plan
        if step.result is not None and step.result.exists()
    }
    save(out / "gpu_check.json", state | {"results": results})
    with tarfile.open(out / "gpu_check.tar.gz", "w:gz") as archive:
        for name in ("state.json", "logs", "results"):
            archive.add(folder / name, f"gpu_check/{name}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--slice", type=float, default=540, help="seconds; 0 runs one step, however long it takes")
    parser.add_argument("--only", default="", help="steps whose name contains this, after packages and build")
    parser.add_argument("--installed", action="store_true", help="check the package as it is installed, build nothing")
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument("--list", action="store_true", help="print the steps and run none")
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "gpu_check", help="the folder of it all")
    options = parser.parse_args()

    # Where CUDA's tools are if they are not on PATH.
    os.environ["PATH"] = os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/cuda/bin"))
    folder = options.state.resolve()
    plan = [
        step
        for step in steps(options.device, folder, options.installed)
        if options.only in step.name or (step.each_time and not options.list)
    ]
    if options.list:
        for step in plan:
            print(f"{step.name:32} {step.seconds:4} s  {step.skip or shlex.join(step.command)}")
        return 0
    for name in ("logs", "results"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # What is compiled in a slice that was cut off is there in the next one.
    for name, variable in (("triton", "TRITON_CACHE_DIR"), ("inductor", "TORCHINDUCTOR_CACHE_DIR")):
        os.environ.setdefault(variable, str(folder / name))
    state = load_state(folder / "state.json", tree_hash(), options.device)
    if options.retry:
        state["steps"] = {name: one for name, one in state["steps"].items() if one["status"] != "failed"}
    try:
        run_slice(plan, state, folder, options.slice)
    finally:
        save(folder / "state.json", state)
        if os.environ.get("OUT"):
            hand_out(folder, state, plan, Path(os.environ["OUT"]))
        print(table(plan, state["steps"]))
    status = [state["steps"].get(step.name, {}).get("status") for step in plan]
    failed, left = status.count("failed"), sum(one not in DONE for one in status)
    print(f"{failed} failed, {left} to do" + (": run again to continue" if left else ""))
    return 1 if failed else 0


def run_slice(plan: list[Step], state: dict[str, Any], folder: Path, seconds: float) -> None:
    """Run what is to do, at least one step, and no further one that would end after so many seconds; 0 for just one."""
    begin, found, ran = time.monotonic(), state["steps"], 0
    for step in plan:
        if step.skip is not None:
            found[step.name] = {"status": "skipped", "seconds": 0.0, "found": step.skip}
    open_steps = [step for step in plan if found.get(step.name, {}).get("status") not in DONE]
    for number, step in enumerate(plan):
        if step.skip is not None or not (step in open_steps or (step.each_time and open_steps)):
            continue
        left = seconds - (time.monotonic() - begin)
        if ran and left < step.seconds:
            return
        print(f"{step.name} ...", flush=True)
        log = folder / "logs" / f"{number:02}_{''.join(c if c.isalnum() else '_' for c in step.name)}.txt"
        # Where the build took long the first step has less time than it should; cut off, it is tried in the next slice.
        limit = left if left > step.seconds / 2 else float(step.seconds)
        status, took, text = run(step, log, limit if seconds else None)
        tries = found.get(step.name, {}).get("tries", 0) + 1 if status == "cut off" else 0
        if tries == TRIES:
            status, text = "failed", f"{text}, {tries} times"
        found[step.name] = {"status": status, "seconds": took, "found": text, "tries": tries, "log": log.name}
        save(folder / "state.json", state)
        if status != "ok" and step.each_time:
            return  # nothing can run without it
        ran += not step.each_time


if __name__ == "__main__":
    sys.exit(main())
