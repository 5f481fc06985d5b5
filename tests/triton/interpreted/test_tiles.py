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
    configs = tiles.candidate_configs(problem)
    assert len(set(configs)) == len(configs) > 0
    assert tiles.config_for(problem, CPU) in configs
    for config in configs:
        assert problem.taps * -(-problem.k // config.block_k) % config.split == 0
        assert not (problem.norm and config.split > 1)


def test_a_long_sum_over_few_rows_is_split_and_one_that_fills_the_gpu_is_not():
    assert tiles.config_for(PROBLEM, CPU).split > 1
    assert tiles.config_for(Problem(20480, 768, 3072, half=True), CPU).split == 1


def test_a_measured_tile_serves_its_bucket_and_capability():
    config = tiles.candidate_configs(PROBLEM)[0]
    assert config != tiles.config_for(PROBLEM, CPU)
    tiles.set_config(PROBLEM, config, capability=9)
    assert tiles.config_for(PROBLEM, CPU) != config
    tiles.set_config(PROBLEM, config, capability=0)
    assert tiles.config_for(Problem(300, 768, 3072, half=True), CPU) == config
    assert tiles.config_for(Problem(256, 768, 3072, half=True), CPU) != config


def test_the_file_of_measurements(tmp_path, monkeypatch):
    config = tiles.candidate_configs(PROBLEM)[0]
    tiles.set_config(PROBLEM, config, capability=0)
    tiles.save_configs(tmp_path / "tiles.json")
    monkeypatch.setattr(tiles, "_measured", {})
    monkeypatch.setenv(tiles.TUNING_VARIABLE, str(tmp_path / "tiles.json"))
    assert tiles.config_for(PROBLEM, CPU) == config


def test_the_table_that_ships(monkeypatch):
    """Each tile is a candidate, and where nobody measured it is still the model's choice."""
    table = tiles.read_table(tiles.TABLE)
    assert {capability for capability, _ in table} == {9}
    for (_, problem), entry in table.items():
        assert problem == problem.bucket()
        assert entry.config in tiles.candidate_configs(problem)
        assert entry.source.startswith("measured on") or entry.config == tiles._modelled(problem, 132), problem
    assert (9, PROBLEM) in table
    other = next(each for each in tiles.candidate_configs(PROBLEM) if each != table[9, PROBLEM].config)
    monkeypatch.setattr(tiles, "_device_facts", lambda device: (9, 132))
    monkeypatch.setattr(tiles, "_shipped", lambda: {(9, PROBLEM): tiles.Entry(other, "measured on a test")})
    assert tiles.config_for(PROBLEM, CPU) == other
    mine = next(each for each in tiles.candidate_configs(PROBLEM) if each != other)
    tiles.set_config(PROBLEM, mine, 9)
    assert tiles.config_for(PROBLEM, CPU) == mine, "the user's comes first"


@pytest.mark.parametrize("content", ["", "{", "[{}]", '{"a": 1}', "[1]"])
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
