"""Which tile a GEMM runs with: measured where someone measured, else the cheapest by a model of the GPU.

A tile is part of a result's definition: another split adds in another order. So nothing is timed while tracking. What
`set_config` and the file named by OSTRACK_FAST_TUNING say holds, then tiles.json beside this file, and the model
decides the rest, the same every time. tiles.json says of every tile where it comes from: "modelled" is this model's
choice for an H100, kept so that another choice is a decision and not an accident.
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable

import torch
import triton

TUNING_VARIABLE = "OSTRACK_FAST_TUNING"
MODELLED = "modelled"
TABLE = pathlib.Path(__file__).with_name("tiles.json")
MAX_SPLIT = 12


def _pipeline_bytes(capability: int) -> tuple[int, ...]:
    """Shared memory that the stages of one block may fill, in bytes: the GPU's limit less some scratch.

    Compute capability 9.x and 10.x give a block 227 KiB, every other supported GPU at least 99 KiB (CUDA programming
    guide, "Technical Specifications per Compute Capability"). With the smaller amount two blocks share a
    multiprocessor.
    """
    return (96 << 10, 200 << 10) if capability in (9, 10) else (96 << 10,)


@dataclasses.dataclass(frozen=True)
class Problem:
    """`groups` GEMMs side by side, each (m, taps * k) times (taps * k, n).

    half: operands of two bytes, on tensor cores; else float32. norm: the left operand is float32 and gets its
    LayerNorm on the way, which needs whole rows.
    """

    m: int
    n: int
    k: int
    half: bool
    norm: bool = False
    groups: int = 1
    taps: int = 1

    def bucket(self) -> "Problem":
        """The problem that stands for this one in the table: rows rounded up, to 64, or to a power of two from 1024."""
        rows = triton.cdiv(self.m, 64) * 64 if self.m <= 1024 else triton.next_power_of_2(self.m)
        return dataclasses.replace(self, m=rows)


@dataclasses.dataclass(frozen=True)
class Config:
    """A tile, how many programs share its K (split-K), and how the compiler maps it to threads."""

    block_m: int
    block_n: int
    block_k: int
    split: int
    num_warps: int
    num_stages: int

    def tiles(self, problem: Problem) -> int:
        return triton.cdiv(problem.m, self.block_m) * triton.cdiv(problem.n, self.block_n) * problem.groups

    def options(self) -> dict[str, int]:
        return {
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "SPLIT": self.split,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def _steps(problem: Problem, block_k: int) -> int:
    return problem.taps * triton.cdiv(problem.k, block_k)


def _step_bytes(problem: Problem, block_m: int, block_n: int, block_k: int) -> int:
    size = 2 if problem.half else 4
    return block_k * (block_m * (4 if problem.norm else size) + block_n * size)


def _config(problem: Problem, block: tuple[int, int, int], depth: int, split: int, pipeline_bytes: int) -> Config:
    block_m, block_n, warps = block
    if not problem.half:
        return Config(block_m, block_n, depth, split, warps, 3)
    # No more stages than the loop has steps to fill them with.
    most = min(6, max(3, _steps(problem, depth) // split))
    stages = min(most, pipeline_bytes // _step_bytes(problem, block_m, block_n, depth))
    return Config(block_m, block_n, depth, split, warps, stages)


def _blocks(problem: Problem, capability: int) -> list[tuple[int, int, int]]:
    """Rows, columns and warps of the tiles worth timing."""
    if not problem.half:
        # GEMMs in full float32 run without tensor cores: more warps would get too few registers for a tile.
        return [(32, 32, 2), (64, 64, 4)]
    # 64 rows at least, or Hopper's matrix instructions would not fit.
    blocks = [(64, 32, 4), (64, 64, 4), (64, 128, 8), (128, 64, 8), (128, 128, 8)]
    if capability in (9, 10):
        # One warpgroup issues m64n128 instead of two m64n64 with operands of their own; 256 columns read x less often.
        # 128 x 256 is not there: with its epilogue it spills registers, whether 8 warps share it or 16.
        blocks += [(64, 128, 4), (64, 256, 8)]
    return blocks


def candidate_configs(problem: Problem, capability: int) -> list[Config]:
    """Everything worth timing for a problem; each computes it correctly, and in its own fixed order.

    Args:
        capability: major compute capability of the GPU, 0 for Triton's interpreter.
    """
    depths = [64, 128] if problem.half else [32]
    widest = max(16, triton.next_power_of_2(problem.k))
    configs = []
    for block_k in sorted({min(depth, widest) for depth in depths}):
        steps = _steps(problem, block_k)
        # Equal shares, so that the number of steps is known when compiling. Statistics of a row cannot be split.
        splits = [s for s in range(1, 2 if problem.norm else MAX_SPLIT + 1) if steps % s == 0]
        for block in _blocks(problem, capability):
            # Four warps hold a normalized 64 x 128 operand and its sums only by spilling.
            spills = problem.norm and block_k > 64 and block == (64, 128, 4)
            if block[1] <= max(32, triton.next_power_of_2(problem.n)) and not spills:
                for pipeline in _pipeline_bytes(capability):
                    configs += [_config(problem, block, block_k, split, pipeline) for split in splits]
    # With two stages the tensor cores would wait for every load.
    return list(dict.fromkeys(config for config in configs if config.num_stages >= 3))


def _nanoseconds(problem: Problem, config: Config, multiprocessors: int) -> float:
    """A model of the time, good enough to rank tiles: an H100's rates per multiprocessor, rounded.

    Every block reads its operands through the L2 cache, whose rate all share; a split costs a trip to memory and back
    for every part, and whoever comes last reads them all.
    """
    blocks = config.tiles(problem) * config.split
    depth = problem.taps * problem.k / config.split
    size = _step_bytes(problem, config.block_m, config.block_n, config.block_k) / config.block_k * depth
    operations = 2.0 * config.block_m * config.block_n * depth
    waves = triton.cdiv(blocks, multiprocessors)
    # Without tensor cores operands come from registers, and a larger tile uses each more often.
    rate = 4500 if problem.half else 350 * min(1.0, config.block_m * config.block_n / 4096) ** 0.5
    alone = waves * max(size / 80, operations / rate)
    part = 0.0 if config.split == 1 else 4.0 * config.block_m * config.block_n
    shared = blocks * (size + 2 * part) / (45 * multiprocessors)
    combining = 0.0 if config.split == 1 else 800 + part * (1 + config.split) / 80
    # Each step of the loop waits a little for its barrier, more steps a little more. A step with a LayerNorm waits for
    # its rows to be shifted, added and converted: on an H100 128 rows took 2.1 us, 64 rows 0.9 us.
    waiting = (40.0 + (14.0 * config.block_m if problem.norm else 0.0)) * _steps(problem, config.block_k) / config.split
    return max(alone, shared) + combining + waiting


@functools.cache
def _device_facts(device: torch.device) -> tuple[int, int]:
    """Major compute capability and number of multiprocessors; an H100's number where kernels only get interpreted."""
    if device.type != "cuda":
        return 0, 132
    properties = torch.cuda.get_device_properties(device)
    return properties.major, properties.multi_processor_count


def capability_of(device: torch.device) -> int:
    """Major compute capability; 0 for Triton's interpreter."""
    return _device_facts(device)[0]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A tile, how it was found, and whether the library's GEMM was faster (see `library_gemm`)."""

    config: Config
    source: str
    library: bool = False


Table = dict[tuple[int, Problem], Entry]
_measured: Table = {}


@functools.cache
def _modelled(problem: Problem, capability: int, multiprocessors: int) -> Config:
    # 64 deep: a step of 128 bytes, one row of a shared memory tile. Deeper ones are for whoever measures.
    configs = [config for config in candidate_configs(problem, capability) if config.block_k <= 64]
    return min(configs, key=lambda config: _nanoseconds(problem, config, multiprocessors))


def _known(problem: Problem, device: torch.device) -> Entry | None:
    _read_user_file()
    key = capability_of(device), problem.bucket()
    return _measured.get(key) or _shipped().get(key)


def config_for(problem: Problem, device: torch.device) -> Config:
    """The tile that a GEMM of these sizes runs with on this device."""
    entry = _known(problem, device)
    return entry.config if entry else _modelled(problem.bucket(), *_device_facts(device))


def library_is_faster(problem: Problem, device: torch.device) -> bool:
    """Whether somebody measured that the library's GEMM beats every tile for these sizes on this device."""
    entry = _known(problem, device)
    return entry is not None and entry.library


def set_config(problem: Problem, config: Config, capability: int, source: str = "set", library: bool = False) -> None:
    """Use this tile from now on for problems of that bucket, on GPUs of that major compute capability.

    Args:
        source: how the tile was found, for the file that `save_configs` writes.
        library: the library's GEMM is faster still, and used for what it can compute.

    Raises:
        ValueError: the split does not divide the steps of the sum, or cuts rows that need their LayerNorm.
    """
    _measured[capability, problem.bucket()] = _checked(problem, config, source, library)


def _checked(problem: Problem, config: Config, source: str, library: bool) -> Entry:
    steps = _steps(problem, config.block_k)
    if steps % config.split or (problem.norm and config.split > 1):
        raise ValueError(f"{config} cannot compute {problem}: its {steps} steps do not split {config.split} ways")
    return Entry(config, source, library)


def modelled_table(problems: Iterable[Problem], capability: int, multiprocessors: int) -> Table:
    """The model's choices as a table, for `save_configs`."""
    return {
        (capability, problem.bucket()): Entry(_modelled(problem.bucket(), capability, multiprocessors), MODELLED)
        for problem in problems
    }


def save_configs(path: str | os.PathLike, table: Table | None = None) -> None:
    """Write a table, by default of what `set_config` set, as a file that OSTRACK_FAST_TUNING may name."""
    entries = [
        {
            "capability": capability,
            "problem": dataclasses.asdict(problem),
            "config": dataclasses.asdict(entry.config),
            "source": entry.source,
            **({"library": True} if entry.library else {}),
        }
        for (capability, problem), entry in (_measured if table is None else table).items()
    ]
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    pathlib.Path(path).write_text(f"[\n{lines}\n]\n")


def load_configs(path: str | os.PathLike) -> None:
    """Set what a file of `save_configs` holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not one of those.
    """
    _measured.update(read_table(path))


def read_table(path: str | os.PathLike) -> Table:
    """What a file of `save_configs` holds; raises as `load_configs`."""
    table = {}
    try:
        data = pathlib.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file of tile configurations at {path}") from error
    try:
        for entry in json.loads(data):
            problem, source = Problem(**entry["problem"]), str(entry["source"])
            found = _checked(problem, Config(**entry["config"]), source, entry.get("library", False) is True)
            table[int(entry["capability"]), problem.bucket()] = found
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} holds no tile configurations ({error}): measure again, or remove it") from error
    return table


@functools.cache
def _shipped() -> Table:
    return read_table(TABLE)


@functools.cache
def _read_user_file() -> None:
    if path := os.environ.get(TUNING_VARIABLE):
        try:
            load_configs(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{TUNING_VARIABLE} names {path}, which is not there: unset it, then run `ostrack-fast tune {path}`"
            ) from error
