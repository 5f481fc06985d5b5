"""A whole frame in Triton's kernels, interpreted: network, tracker and the tuning of its tiles."""

import json

import numpy as np
import pytest
import torch
from race_guard import guard

from ostrack_fast import Engine, build_ostrack, ops, tuning
from ostrack_fast.config import ModelConfig
from ostrack_fast.kernels import candidates as candidates_of
from ostrack_fast.kernels import tiles
from ostrack_fast.model import template_mask

TINY = ModelConfig(
    template_size=32, search_size=64, embed_dim=32, depth=2, num_heads=1, head_channels=8,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = build_ostrack(TINY).requires_grad_(False)
    for name in ("pos_embed_z", "pos_embed_x"):
        table = torch.randn(getattr(made.backbone, name).transpose(1, 2).shape)
        # Transposed, as in a network of the published code, whose tensors `accelerate` takes over as they lie.
        setattr(made.backbone, name, torch.nn.Parameter(table.transpose(1, 2), requires_grad=False))
    return made


@pytest.fixture
def clean_table(monkeypatch):
    monkeypatch.setattr(tiles, "_measured", {})


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float16, 0.03)])
@pytest.mark.parametrize("batch", [1, 2])
def test_network(model, dtype, bound, batch):
    z, x = torch.randn(batch, 3, 32, 32), torch.randn(batch, 3, 64, 64)
    expected = model(z, x, template_mask(model.cfg))
    with ops.use("triton"), guard(0):
        engine = Engine(model, "cpu", dtype)
        engine.set_template(z)
        found = engine.forward(x)
    assert type(engine.network._blocks[0].qkv).__module__ == "ostrack_fast.kernels.linear"
    for name in ("score_map", "size_map", "offset_map"):
        error = (found[name] - expected[name]).abs().median() / expected[name].std()
        assert error < bound, name


def test_frames(model):
    """Crop, network, decode and box update: the boxes of the compiled CPU kernels."""
    frames = [np.random.default_rng(seed).integers(0, 256, (60, 80, 3), dtype=np.uint8) for seed in range(3)]
    rows = []
    for backend in ("reference", "triton"):
        with ops.use(backend):
            engine = Engine(model, "cpu", "float32")
            engine.add(frames[0], (20.0, 15.0, 22.0, 17.0))
            engine.add(frames[0], (40.0, 25.0, 12.0, 27.0))
            rows.append([engine.step(frame) for frame in frames[1:]])
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-3)


@pytest.mark.usefixtures("clean_table")
def test_tuning(model, tmp_path, monkeypatch):
    """Every GEMM is measured once, what was chosen is written, read again and used."""
    # All tiles would take minutes in the interpreter.
    candidates = tiles.candidate_configs
    monkeypatch.setattr(tiles, "candidate_configs", lambda *asked: candidates(*asked)[:2])
    seen = []
    with ops.use("triton"):
        engine = Engine(model, "cpu", torch.float16)
        tuned = tuning.tune(engine, [1], 0.0, seen.append)
    assert tuned == seen
    problems = [one.problem for one in tuned]
    assert len(set(problems)) == len(problems) >= 6
    first = next(one.problem for one in tuned if one.name == "conv1")
    assert (first.taps, first.k, first.groups) == (9, TINY.embed_dim, 1), "the head's first convolution is the largest"
    for one in tuned:
        assert tiles.config_for(one.problem, torch.device("cpu")) == one.config
        assert one.seconds > 0 and one.before > 0
    path = tmp_path / "tiles.json"
    tiles.save_configs(path)
    assert len(json.loads(path.read_text())) == len(tuned)
    tiles._measured.clear()
    tiles.load_configs(path)
    cpu = torch.device("cpu")
    assert all(tiles.config_for(one.problem, cpu) == one.config for one in tuned)
    assert all(tiles.library_is_faster(one.problem, cpu) == one.library for one in tuned)


@pytest.mark.usefixtures("clean_table")
def test_processes_share_the_compiling(model, monkeypatch):
    """Every tile is compiled in exactly one share, each layer with inputs of its own width."""
    monkeypatch.setattr(tuning, "make_model", lambda *_, **how: model)
    candidates, tried = tiles.candidate_configs, []
    monkeypatch.setattr(tiles, "candidate_configs", lambda *asked: candidates(*asked)[:3])
    monkeypatch.setattr(candidates_of, "attempt", lambda layer, arguments, *tile: tried.append(tile))
    with ops.use("triton"):
        engine = Engine(model, "cpu", torch.float16)
        counts = [tuning.compile_share("", "cpu", "float16", [1, 2], share, 4) for share in range(4)]
        expected = set()
        for name, layer, rows, problem in tuning.gemms(engine, [1, 2]):
            assert tuning.inputs(engine, name, layer, rows)[0].shape[-1] == layer.inputs
            assert problem == layer.problem(rows).bucket()
            expected |= {(problem, config) for config in tiles.candidate_configs(problem, 0)}
    assert sum(counts) == len(tried) == len(set(tried)) and set(tried) == expected
    assert max(counts) - min(counts) <= 1


@pytest.mark.usefixtures("clean_table")
def test_a_tile_that_the_gpu_cannot_hold_is_left_out(model, monkeypatch):
    """The others are measured, and the GEMM gets one of them."""
    from triton.runtime.errors import OutOfResources

    candidates = tiles.candidate_configs
    monkeypatch.setattr(tiles, "candidate_configs", lambda *asked: candidates(*asked)[:2])
    with ops.use("triton"):
        engine = Engine(model, "cpu", torch.float16)
        name, layer, rows, problem = next(tuning.gemms(engine, [1]))
        used = tiles.config_for(layer.problem(rows), torch.device("cpu"))
        right = type(layer).__call__

        def refuse_others(self, *arguments):
            if tiles.config_for(self.problem(arguments[0].shape[-2]), torch.device("cpu")) != used:
                raise OutOfResources(300000, 232448, "shared memory")
            return right(self, *arguments)

        monkeypatch.setattr(type(layer), "__call__", refuse_others)
        monkeypatch.setattr(tuning, "gemms", lambda *_: [(name, layer, rows, problem)])
        (tuned,) = tuning.tune(engine, [1], 0.0, lambda _: None)
    assert tuned.config == used


@pytest.mark.usefixtures("clean_table")
def test_a_wrong_candidate_is_refused(model, monkeypatch):
    with ops.use("triton"):
        engine = Engine(model, "cpu", torch.float16)
        layer = engine.network._blocks[0].qkv
        right = type(layer).__call__
        calls = []

        def wrong_later(self, *arguments, **options):
            calls.append(1)
            return right(self, *arguments, **options) * (1 if len(calls) == 1 else 2)

        monkeypatch.setattr(type(layer), "__call__", wrong_later)
        with pytest.raises(candidates_of.WrongTile, match="patch embedding"):
            tuning.tune(engine, [1], 0.0, print)


def test_only_triton_is_tuned(model):
    with ops.use("reference"):
        engine = Engine(model, "cpu", torch.float32)
        with pytest.raises(ValueError, match="only Triton's GEMMs"):
            tuning.tune(engine, [1], 0.0, print)
