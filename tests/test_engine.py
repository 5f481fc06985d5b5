"""The engine: the model's results with frozen weights, targets that come and go, and every frame the same way."""

from contextlib import nullcontext
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from ostrack_fast import Engine, MultiTracker, Tracker, build_ostrack, ops
from ostrack_fast import engine as engine_module
from ostrack_fast.config import ModelConfig
from ostrack_fast.devices import resolve_dtype
from ostrack_fast.model import template_mask
from ostrack_fast.ops.layers import why_no_int8
from ostrack_fast.ops.recording import Recordings
from ostrack_fast.smoothing import Smoothing

from .ambient import default_dtype
from .golden import seeded
from .margins import assert_frame_decided, decided_images

TINY = ModelConfig(
    template_size=64, search_size=128, embed_dim=48, depth=3, num_heads=2, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
BOXES = [(50.0, 30.5, 20.0, 28.0), (5.0, 8.0, 30.0, 17.0), (80.0, 60.0, 25.0, 25.0), (20.0, 50.0, 11.0, 40.0)]


def tiny(cfg=TINY, seed=0):
    torch.manual_seed(seed)
    model = build_ostrack(cfg)
    state = model.state_dict()
    # Norms that do something: folded wrongly, identity norms would not show it.
    for name, value in state.items():
        if value.is_floating_point() and ("norm" in name or ".1." in name or "pos_embed" in name):
            positive = "var" in name or "weight" in name
            value.copy_(torch.rand(value.shape) + 0.5 if positive else torch.randn(value.shape))
    model.load_state_dict(state)
    return model


def frame(seed=0, height=96, width=128):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def engine():
    return Engine(tiny(), "cpu", "float32")


def images(batch, cfg=TINY):
    torch.manual_seed(1)
    return torch.randn(batch, 3, cfg.template_size, cfg.template_size), torch.randn(
        batch, 3, cfg.search_size, cfg.search_size
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"model": "small"}, r"must be an OSTrack, got 'small': OSTrack\.from_pretrained"),
        ({"candidate_elimination": "no"}, "candidate_elimination must be True or False, got 'no'"),
        ({"consume": 1}, "consume must be True or False, got 1"),
        ({"smoothing": True}, "smoothing must be a Smoothing or None, got True"),
    ],
)
def test_arguments_of_another_type_are_refused_at_once(options, message):
    with pytest.raises(TypeError, match=message):
        Engine(**{"model": tiny(), "device": "cpu", **options})


def test_a_mask_of_another_size_leaves_the_targets_there_were(engine):
    engine.add(frame(), BOXES[0])
    with pytest.raises(ValueError, match=r"mask must be \(16,\) or \(2,16\), is \(2, 15\)"):
        engine.set_template(torch.zeros(2, 3, 64, 64), torch.ones(2, 15, dtype=torch.bool))
    assert engine.boxes == [BOXES[0]]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("elimination", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_as_the_model(batch, elimination, backend):
    model = tiny()
    keep_rate = None if elimination else 1.0
    z, x = decided_images(model, batch, keep_rate=keep_rate)
    with torch.no_grad():
        expected = model(z, x, template_mask(model.cfg), ce_keep_rate=keep_rate)
    with ops.use(backend):
        engine = Engine(model, "cpu", "float32", candidate_elimination=elimination)
        engine.set_template(z)
        got = engine.forward(x)
        again = engine(x)
    assert set(got) == {"pred_boxes", "score_map", "size_map", "offset_map"}
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-5, msg=name)
        assert torch.equal(value, again[name])


def test_without_elimination_layers():
    model = tiny(replace(TINY, ce_layers=(), ce_keep_ratio=()))
    z, x = images(2)
    engine = Engine(model, "cpu", "float32")
    engine.set_template(z)
    with torch.no_grad():
        torch.testing.assert_close(engine.forward(x)["score_map"], model(z, x)["score_map"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("blocks", [(0,), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_elimination_in_any_block(blocks, backend):
    """Also in the first, whose template is known, and in the last, where nothing reads the template's tokens."""
    model = tiny(replace(TINY, ce_layers=blocks, ce_keep_ratio=(0.6,) * len(blocks)))
    z, x = decided_images(model, 2)
    with ops.use(backend):
        engine = Engine(model, "cpu", "float32")
        engine.set_template(z)
        got = engine.forward(x)["score_map"]
    with torch.no_grad():
        torch.testing.assert_close(got, model(z, x, template_mask(model.cfg))["score_map"], rtol=1e-4, atol=1e-5)


def test_a_mask_for_every_target():
    model = tiny(replace(TINY, ce_template_range="GT_BOX"))
    mask = template_mask(model.cfg, torch.tensor([[0.3, 0.3, 0.4, 0.4], [0.1, 0.2, 0.2, 0.6]]))
    z, x = decided_images(model, 2, mask=mask)
    engine = Engine(model, "cpu", "float32")
    engine.set_template(z, mask)
    with torch.no_grad():
        expected = model(z, x, mask)
    torch.testing.assert_close(engine.forward(x)["score_map"], expected["score_map"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ostrack_256_ce", "ostrack_384"])
def test_published_network(name):
    """ViT-B with the seeded weights of the golden outputs: the same maps, to float32's rounding."""
    model = build_ostrack(name)
    model.load_state_dict(seeded.state_dict(model.state_dict(), 1))
    z, x = decided_images(model, 1)
    engine = Engine(model, "cpu", "float32")
    engine.set_template(z)
    with torch.no_grad():
        expected = model(z, x, template_mask(model.cfg))
    for key, value in engine.forward(x).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=5e-5, msg=key)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_other_dtypes_come_close(dtype):
    """Not all numbers of a random network survive rounding, but most of a map does."""
    model = tiny()
    z, x = images(2)
    reason = why_no_int8(torch.device("cpu")) if dtype == "int8" else None
    if reason:
        pytest.skip(reason)
    engine = Engine(model, "cpu", dtype)
    assert engine.dtype == getattr(torch, dtype)
    engine.set_template(z)
    with torch.no_grad():
        expected = model(z, x, template_mask(model.cfg))
    got = engine.forward(x)
    for name in ("score_map", "size_map", "offset_map"):
        assert got[name].dtype == torch.float32
        error = (got[name] - expected[name]).abs().median() / expected[name].std()
        assert error < (0.15 if dtype == "int8" else 0.05), name


def test_targets_come_and_go(engine):
    """Each row as if it were alone, whatever happened to the others."""
    model, alone = tiny(), []
    for box in BOXES:
        single, around = Engine(model, "cpu", "float32"), box
        single.add(frame(), box)
        alone.append([])
        for seed in (1, 2, 3):
            assert_frame_decided(model, frame(), box, frame(seed), around)
            alone[-1].append(single.step(frame(seed))[0])
            around = alone[-1][-1][:4]
    assert [engine.add(frame(), box) for box in BOXES[:3]] == [0, 1, 2]
    close = {"rtol": 1e-4, "atol": 1e-3}
    np.testing.assert_allclose(engine.step(frame(1)), [row[0] for row in alone[:3]], **close)
    engine.drop(0)  # the last one takes its place
    np.testing.assert_allclose(engine.step(frame(2)), [alone[2][1], alone[1][1]], **close)
    assert engine.add(frame(), BOXES[0]) == 2
    found = engine.step(frame(3))
    np.testing.assert_allclose(found[:2], [alone[2][2], alone[1][2]], **close)
    engine.clear()
    with pytest.raises(RuntimeError, match="no target"):
        engine.step(frame())
    with pytest.raises(IndexError, match="row 0"):
        engine.drop(0)


def kernels_recorded(engine):
    return [recording is not None for recording, _ in engine._locator._recordings._kept.values()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.skipif(why_no_int8(torch.device("cpu")) is not None, reason="no compiled linear layers here")
def test_kernels_called_again_compute_the_same(dtype, monkeypatch):
    """Frame by frame as an engine that records nothing, over another template, other threads and another search."""
    engine, plain = (Engine(tiny(), "cpu", dtype) for _ in range(2))
    monkeypatch.setattr(plain.network, "recordable", False)
    torch.manual_seed(2)
    threads = torch.get_num_threads()
    try:
        for count, seed in ((threads, 3), (threads, 4), (1, 4)):
            torch.set_num_threads(count)
            template = images(1)[0] * seed
            for each in (engine, plain):
                each.set_template(template)
            for _ in range(3):
                x = torch.randn(1, 3, TINY.search_size, TINY.search_size)
                found, expected = engine(x), plain(x)
                assert all(torch.equal(found[name], expected[name]) for name in expected)
                assert torch.equal(engine.network.candidates, plain.network.candidates)
    finally:
        torch.set_num_threads(threads)
    assert all(kernels_recorded(engine)) and not kernels_recorded(plain)


@pytest.mark.parametrize("smoothing", [None, Smoothing()])
@pytest.mark.skipif(why_no_int8(torch.device("cpu")) is not None, reason="no compiled linear layers here")
def test_whole_frames_called_again_move_the_target_the_same(smoothing, monkeypatch):
    """Frames of two sizes, whose edges cut boxes at other places."""
    engine, plain = (Engine(tiny(), "cpu", "float32", smoothing=smoothing) for _ in range(2))
    monkeypatch.setattr(plain.network, "recordable", False)
    for each in (engine, plain):
        each.add(frame(), BOXES[0])
    for seed in range(1, 7):
        image = frame(seed)[: 30 if seed % 2 else None]
        assert engine.step(image) == plain.step(image)
        assert engine.candidates(0) == plain.candidates(0)
    assert all(kernels_recorded(engine)) and len(kernels_recorded(engine)) == (2 if smoothing is None else 1)
    assert not kernels_recorded(plain)


def test_crops_and_smoothed_frames_take_turns(monkeypatch):
    """What `forward` and `step` record of the same target, which lies in the same place, is not the same."""
    engine, plain = (Engine(tiny(), "cpu", "float32", smoothing=Smoothing()) for _ in range(2))
    monkeypatch.setattr(plain.network, "recordable", False)
    for each in (engine, plain):
        each.add(frame(), BOXES[0])
    for seed in range(1, 4):
        x = images(1)[1] * seed
        found, expected = engine(x), plain(x)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert engine.step(frame(seed)) == plain.step(frame(seed))


def test_kernels_are_recorded_anew_where_inputs_move(monkeypatch):
    """Targets that lie elsewhere, of which a few are kept; and weights that were sent to another process."""
    engine, plain = (Engine(tiny(), "cpu", "float32") for _ in range(2))
    monkeypatch.setattr(plain.network, "recordable", False)

    def seen(by):
        return [by.look(frame(9), row, [BOXES[row]]) for row in range(by.count)]

    for seed, box in enumerate(BOXES):  # a target that is looked for alone lies behind all others
        for each in (engine, plain):
            each.add(frame(seed), box)
        assert seen(engine) == seen(engine) == seen(plain)
    assert 0 < len(kernels_recorded(engine)) <= 2
    ForkingPickler.dumps(engine)
    assert not kernels_recorded(engine)
    assert seen(engine) == seen(plain)


def test_wrong_calls(engine):
    z, x = images(2)
    with pytest.raises(ValueError, match=r"B = 0 templates"):
        engine.forward(x)
    with pytest.raises(ValueError, match=r"template must be \(B,3,64,64\)"):
        engine.set_template(x)
    with pytest.raises(ValueError, match="chooses no row"):
        engine.set_template(z, torch.zeros(2, TINY.template_grid**2, dtype=torch.bool))
    engine.set_template(z)
    with pytest.raises(ValueError, match=r"B = 2 templates"):
        engine.forward(x[:1])
    with pytest.raises(ValueError, match="int9"):
        Engine(tiny(), "cpu", "int9")


def test_what_is_not_finite_moves_nothing(engine):
    engine.add(frame(), BOXES[0])
    before = engine.step(frame(1))
    position = engine._targets.box.clone()
    last = engine.network._last
    engine.network._last = lambda x: last(x) * float("nan")
    engine._locator._recordings = Recordings()
    with pytest.raises(FloatingPointError, match="not finite"):
        engine.step(frame(2))
    assert torch.equal(engine._targets.box, position)
    engine.network._last, engine._locator._recordings = last, Recordings()
    assert engine.step(frame(2)) != before


def test_the_model_is_read_not_changed():
    model = tiny().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for dtype in ("float32", "bfloat16"):
        engine = Engine(model, "cpu", dtype)
        engine.add(frame(), BOXES[0])
        engine.step(frame(1))
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


AMBIENT = {
    "bfloat16 is the default dtype": lambda: default_dtype(torch.bfloat16),
    "float64 is the default dtype": lambda: default_dtype(torch.float64),
    "another default device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("ambient", AMBIENT)
def test_the_callers_settings_change_nothing(ambient, backend):
    """Neither where the engine is built, nor where targets are added and found, nor afterwards."""
    settings, model = AMBIENT[ambient], tiny()
    z, x = images(2)

    def made(around):
        with ops.use(backend), around():
            return Engine(model, "cpu", "float32")

    def results(engine, around):
        found = []
        with ops.use(backend):
            with around():
                for box in BOXES[:3]:
                    engine.add(frame(), box)
                found.append(engine.step(frame(1)))
            # Buffers that grew inside serve outside.
            found.append(engine.step(frame(2)))
            engine.drop(0)
            engine.place([BOXES[1], BOXES[2]])
            with around():
                found.append(engine.step(frame(3)))
            with around():
                engine.set_template(z)
            found.extend(value.tolist() for value in engine.forward(x).values())
            with around():
                found.extend(value.tolist() for value in engine.forward(x).values())
        return found

    expected = results(made(nullcontext), nullcontext)
    assert results(made(settings), nullcontext) == expected
    assert results(made(nullcontext), settings) == expected
    assert results(made(settings), settings) == expected


def test_auto_dtype():
    chosen = resolve_dtype("auto", torch.device("cpu"))
    assert chosen in (torch.float32, torch.bfloat16)
    assert Engine(tiny(), "cpu").dtype == chosen


def test_many_targets_as_single_ones():
    model = tiny()
    many = MultiTracker(model, "cpu", "float32")
    assert many.track(frame()) == {} and many.targets == []
    numbers = [many.add(frame(), box) for box in BOXES]
    assert numbers == [0, 1, 2, 3]
    singles, starts, around = {}, {}, {}

    def start(number, image, box):
        singles[number] = Tracker(model, "cpu", "float32")
        singles[number].initialize(image, box)
        starts[number], around[number] = (image, box), box

    for number, box in zip(numbers, BOXES, strict=True):
        start(number, frame(), box)

    def compare(seed):
        found = many.track(frame(seed))
        assert list(found) == many.targets
        for number, result in found.items():
            assert_frame_decided(model, *starts[number], frame(seed), around[number])
            single = singles[number].track(frame(seed))
            around[number] = single.box
            assert result.box == pytest.approx(single.box, abs=1e-3)
            assert result.score == pytest.approx(single.score, abs=1e-5)
            assert result.lost == single.lost

    compare(1)
    many.drop(1)
    compare(2)
    late = many.add(frame(2), BOXES[1])
    assert late == 4
    start(late, frame(2), BOXES[1])
    compare(3)
    many.drop(4)
    many.drop(0)
    compare(4)
    with pytest.raises(KeyError, match="target 0 is not followed"):
        many.drop(0)
    with pytest.raises(ValueError, match="outside"):
        many.add(frame(), (500, 500, 5, 5))
    assert many.targets == [2, 3]


class FakeGraph:
    """What a CUDA graph promises: one shape, static input and outputs that the next call overwrites.

    Pixels of a frame that a call does not name hold what they held before: at first, noise.
    """

    made = 0

    def __init__(self, function, like, device):
        FakeGraph.made += 1
        self.function = function
        self.input = torch.from_numpy(np.random.default_rng(9).integers(0, 256, like.shape)).to(like.dtype)
        self.output = function(torch.zeros_like(like))

    def __call__(self, value, part=()):
        assert value.shape == self.input.shape
        self.input[part].copy_(value[part])
        outputs = self.output if isinstance(self.output, tuple) else (self.output,)
        new = self.function(self.input)
        for old, fresh in zip(outputs, new if isinstance(new, tuple) else (new,), strict=True):
            old.copy_(fresh)
        return self.output


def test_graphs_serve_every_size_and_number_of_targets(monkeypatch):
    """The bookkeeping around CUDA graphs, with a stand-in for them: results as without, few captures, few kept."""
    monkeypatch.setattr(engine_module, "GraphedFunction", FakeGraph)
    monkeypatch.setattr(FakeGraph, "made", 0)
    model = tiny()
    plain, graphed = (Engine(model, "cpu", "float32") for _ in range(2))
    graphed._uses_graphs = True
    starts = []  # the first box of each row's target

    def compare(seed, *shape):
        for start, around in zip(starts, plain._targets.box.tolist(), strict=False):
            assert_frame_decided(model, frame(), start, frame(seed, *shape), around)
        np.testing.assert_allclose(graphed.step(frame(seed, *shape)), plain.step(frame(seed, *shape)), atol=1e-3)

    for count, box in enumerate(BOXES, 1):
        plain.add(frame(), box), graphed.add(frame(), box), starts.append(box)
        for seed in (1, 2):
            compare(seed)
        assert len(graphed._targets.box) == (1, 2, 4, 4)[count - 1]
    # For 1, 2, 3 and 4 targets; the buffers grew before the second and third, and the fourth found the third's graph.
    assert FakeGraph.made == 3
    plain.drop(1), graphed.drop(1)
    starts[1] = starts.pop()  # the last one takes its row
    compare(3)
    assert FakeGraph.made == 3
    for seed, width in enumerate(range(100, 112)):
        compare(seed, 90, width)
    assert len(graphed.graphs) == engine_module._MAX_GRAPHS
    graphed.set_template(images(5)[0])  # more rows than before
    assert not graphed.graphs, "a graph goes on reading and writing the buffers it was captured with"
    graphed.clear()
    for row in range(plain.count):
        graphed.add(frame(), BOXES[row])
    graphed.place(plain._targets.box[: plain.count].tolist())
    for rows in range(3):
        for ours, theirs in zip(graphed._targets, plain._targets, strict=True):
            ours[rows] = theirs[rows]
    compare(4, 90, 111)
    compare(4, 96, 128)
    made = FakeGraph.made
    compare(5, 90, 111)  # kept
    assert FakeGraph.made == made
    for seed, width in enumerate(range(100, 108)):
        compare(seed, 90, width)
    made = FakeGraph.made
    compare(5, 96, 128)  # gone, and made again
    assert FakeGraph.made == made + 1
    z, x = decided_images(model, 3)
    plain.set_template(z), graphed.set_template(z)
    first = graphed.forward(x)
    kept = {name: value.clone() for name, value in first.items()}
    graphed.forward(x + 1)
    for name, value in plain.forward(x).items():
        torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-5)
        assert torch.equal(first[name], kept[name]), "a later call changed an earlier result"
    # Targets in frames of their own, which are three in a graph for four.
    plain.clear(), graphed.clear()
    views, made = [frame(seed, 90 + seed, 120) for seed in (1, 2, 3)], FakeGraph.made
    for box in BOXES[:3]:
        plain.add(frame(), box), graphed.add(frame(), box)
    for start, view in zip(BOXES, views, strict=False):
        assert_frame_decided(model, frame(), start, view, start)
    np.testing.assert_allclose(graphed.step_each(views), plain.step_each(views), atol=1e-3)
    assert FakeGraph.made == made + 1


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ((50.0, 30.0, 20.0, 20.0), (0, 80), (20, 100)),  # the crop's side is 80, its top 40 - 40, its left 60 - 40
        ((5.0, 150.0, 30.0, 30.0), (105, 200), (0, 80)),  # reaches below the frame, and left of it
        ((5.0, -90.0, 10.0, 10.0), (0, 0), (0, 0)),  # lies above it
        ((5.0, 300.0, 10.0, 10.0), (0, 0), (0, 0)),
        ((300.0, 50.0, 10.0, 10.0), (0, 0), (0, 0)),  # and beside it
    ],
)
def test_only_the_pixels_of_the_crops_are_uploaded(engine, box, rows, columns):
    engine.add(frame(0, 200, 128), BOXES[0])
    engine.place([box])
    assert engine._pixels_read(200, 128) == (slice(*rows), slice(*columns))
    engine.add(frame(0, 200, 128), (60.0, 150.0, 10.0, 10.0))  # reads rows 135 to 175 and columns 45 to 85
    (top, bottom), (left, right) = (rows, columns) if rows[1] else ((135, 175), (45, 85))
    union = slice(min(top, 135), max(bottom, 175)), slice(min(left, 45), max(right, 85))
    assert engine._pixels_read(200, 128) == union


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_graphs_as_eager(dtype, no_tf32):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = tiny()
    host, device = Engine(model, "cpu", "float32"), Engine(model, "cuda", dtype)
    for box in BOXES[:3]:
        host.add(frame(), box), device.add(frame(), box)
    around = BOXES[:3]
    for seed, shape in enumerate([(96, 128), (96, 128), (50, 70), (96, 128)], 1):
        for start, box in zip(BOXES, around, strict=False):
            assert_frame_decided(model, frame(), start, frame(seed, *shape), box)
        expected, found = host.step(frame(seed, *shape)), device.step(frame(seed, *shape))
        around = [row[:4] for row in expected]
        if dtype == "float32":
            np.testing.assert_allclose(found, expected, atol=0.05)
        assert np.isfinite(found).all()
    z, x = images(3)
    device.set_template(z)
    first = device.forward(x)
    for name, value in device.forward(x).items():
        assert torch.equal(value, first[name]), name
