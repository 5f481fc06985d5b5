"""The choice of tiles: every candidate is possible, a measured one is used, the tables are read back."""

import json

import pytest
import torch

from ostrack_fast.kernels import tiles
from ostrack_fast.kernels.tiles import Problem

PROBLEM = Problem(320, 768, 3072, half=True)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(tiles, "_measured", {})
    monkeypatch.delenv(tiles.TUNING_VARIABLE, raising=False)
    tiles._read_user_file.cache_clear()
    yield
    tiles._read_user_file.cache_clear()


@pytest.mark.parametrize("problem", [PROBLEM, Problem(153, 2304, 768, half=True, norm=True),
                                     Problem(256, 32, 64, half=True, groups=3, taps=9),
                                     Problem(1, 1, 1, half=False)])  # fmt: skip
def test_candidates(problem):
    for capability in (0, 8, 9, 10, 12):
        configs = tiles.candidate_configs(problem, capability)
        assert len(set(configs)) == len(configs) > 0
        for config in configs:
            assert problem.taps * -(-problem.k // config.block_k) % config.split == 0
            assert not (problem.norm and config.split > 1)
    assert tiles.config_for(problem, CPU) in tiles.candidate_configs(problem, 0)


def test_a_hopper_gets_tiles_that_no_smaller_gpu_can_hold():
    """More columns, deeper pipelines, and for norm GEMMs 128 rows: within 227 KiB instead of 99."""
    for problem in (PROBLEM, Problem(320, 2304, 768, half=True, norm=True)):
        wide, narrow = (tiles.candidate_configs(problem, capability) for capability in (9, 8))
        assert set(narrow) < set(wide)
        assert {(128, 128), (64, 256)} <= {(each.block_m, each.block_n) for each in wide}
        assert {4, 8} == {each.num_warps for each in wide if (each.block_m, each.block_n) == (64, 128)}
        for configs, limit in ((wide, 200), (narrow, 96)):
            sizes = [
                each.num_stages * each.block_k * (each.block_m * (4 if problem.norm else 2) + each.block_n * 2) / 1024
                for each in configs
            ]
            assert limit / 2 < max(sizes) <= limit


def test_a_long_sum_over_few_rows_is_split_and_one_that_fills_the_gpu_is_not():
    assert tiles.config_for(PROBLEM, CPU).split > 1
    assert tiles.config_for(Problem(20480, 768, 3072, half=True), CPU).split == 1


def test_a_measured_tile_serves_its_bucket_and_capability():
    config = tiles.candidate_configs(PROBLEM, 0)[0]
    assert config != tiles.config_for(PROBLEM, CPU)
    tiles.set_config(PROBLEM, config, capability=9)
    assert tiles.config_for(PROBLEM, CPU) != config
    tiles.set_config(PROBLEM, config, capability=0)
    assert tiles.config_for(Problem(300, 768, 3072, half=True), CPU) == config
    assert tiles.config_for(Problem(256, 768, 3072, half=True), CPU) != config


def test_the_file_of_measurements(tmp_path, monkeypatch):
    config = tiles.candidate_configs(PROBLEM, 0)[0]
    tiles.set_config(PROBLEM, config, capability=0)
    tiles.save_configs(tmp_path / "tiles.json")
    monkeypatch.setattr(tiles, "_measured", {})
    monkeypatch.setenv(tiles.TUNING_VARIABLE, str(tmp_path / "tiles.json"))
    assert tiles.config_for(PROBLEM, CPU) == config


def test_a_file_that_is_not_there_is_told_in_words(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no file of tile configurations at .*none\.json"):
        tiles.load_configs(tmp_path / "none.json")
    monkeypatch.setenv(tiles.TUNING_VARIABLE, str(tmp_path / "none.json"))
    with pytest.raises(FileNotFoundError, match=r"OSTRACK_FAST_TUNING names .*, which is not there: unset it"):
        tiles.config_for(PROBLEM, CPU)


def test_the_table_that_ships(monkeypatch):
    """Each tile is a candidate, and where nobody measured it is still the model's choice."""
    table = tiles.read_table(tiles.TABLE)
    assert {capability for capability, _ in table} == {9}
    for (_, problem), entry in table.items():
        assert problem == problem.bucket()
        assert entry.config in tiles.candidate_configs(problem, 9)
        assert entry.source.startswith("measured on") or entry.config == tiles._modelled(problem, 9, 132), problem
    assert (9, PROBLEM) in table
    other = next(each for each in tiles.candidate_configs(PROBLEM, 9) if each != table[9, PROBLEM].config)
    monkeypatch.setattr(tiles, "_device_facts", lambda device: (9, 132))
    monkeypatch.setattr(tiles, "_shipped", lambda: {(9, PROBLEM): tiles.Entry(other, "measured on a test")})
    assert tiles.config_for(PROBLEM, CPU) == other
    mine = next(each for each in tiles.candidate_configs(PROBLEM, 9) if each != other)
    tiles.set_config(PROBLEM, mine, 9)
    assert tiles.config_for(PROBLEM, CPU) == mine, "the user's comes first"


@pytest.mark.parametrize("content", ["", "{", "[{}]", '{"a": 1}', "[1]", "[" * 100_000])
def test_a_file_that_is_something_else(content, tmp_path):
    (tmp_path / "tiles.json").write_text(content)
    with pytest.raises(ValueError, match=r"tiles\.json holds no tile configurations"):
        tiles.load_configs(tmp_path / "tiles.json")


def test_a_split_that_does_not_divide(tmp_path):
    config = tiles.dataclasses.replace(tiles.config_for(PROBLEM, CPU), split=5)
    with pytest.raises(ValueError, match="do not split 5 ways"):
        tiles.set_config(PROBLEM, config, 9)
    entry = {"capability": 9, "problem": tiles.dataclasses.asdict(PROBLEM), "config": tiles.dataclasses.asdict(config),
             "source": "measured on a test"}  # fmt: skip
    (tmp_path / "tiles.json").write_text(json.dumps([entry]))
    with pytest.raises(ValueError, match="do not split 5 ways"):
        tiles.load_configs(tmp_path / "tiles.json")
