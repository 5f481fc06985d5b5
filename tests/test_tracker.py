"""The tracker: the published inference to a fiftieth of a pixel, and every mistake told."""

import copy
import math
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast import Tracker, build_ostrack, ops
from ostrack_fast.bench.upstream import crop_to_image
from ostrack_fast.boxes import clip_xywh, image_to_crop
from ostrack_fast.config import ModelConfig
from ostrack_fast.devices import resolve_device, resolve_dtype
from ostrack_fast.locator import hann_window
from ostrack_fast.model import template_mask
from ostrack_fast.tracker import MultiTracker, TrackResult

from .golden import seeded
from .margins import assert_frame_decided

GOLDEN = Path(__file__).parent / "golden"
SEQUENCES = ("DAVIS_libby", "OTB_Crossing", "VOT_bag")
TINY = ModelConfig(
    template_size=64, search_size=128, embed_dim=24, depth=2, num_heads=2, head_channels=16,
    ce_layers=(1,), ce_keep_ratio=(0.7,),
)  # fmt: skip
BOX = (50.0, 30.5, 20.0, 28.0)


def tiny(cfg=TINY):
    torch.manual_seed(0)
    model = build_ostrack(cfg)
    # Position tables start at zero, and weights so small that all candidates would score nearly alike.
    for table in (model.backbone.pos_embed_z, model.backbone.pos_embed_x):
        torch.nn.init.normal_(table)
    for block in model.backbone.blocks:
        torch.nn.init.normal_(block.attn.qkv.weight, std=0.3)
    return model


@pytest.fixture
def model():
    return tiny()


@pytest.fixture
def tracker(model):
    return Tracker(model, "cpu", "float32")


def frame(seed=0, height=96, width=128):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("size, bias", [(256, -1.1), (384, -1.386)])
def test_boxes_of_the_published_tracker(size, bias):
    folder = os.environ.get("OSTRACK_FAST_DATA")
    if folder is None:
        pytest.skip("OSTRACK_FAST_DATA does not name the folder that holds sequences/")
    model = build_ostrack(f"ostrack_{size}_ce")
    weights = seeded.state_dict(model.state_dict(), 1)
    weights["box_head.conv5_size.bias"].fill_(bias)
    model.load_state_dict(weights)
    tracker = Tracker(model, "cpu", "float32")
    with np.load(GOLDEN / "tracker.npz") as golden:
        for name in SEQUENCES:
            expected = golden[f"boxes_{size}_{name}"]
            paths = sorted(Path(folder, "sequences", name, "img").iterdir())[: len(expected)]
            frames = [cv2.imread(str(path))[..., ::-1] for path in paths]
            tracker.initialize(frames[0], {"init_bbox": list(expected[0])})
            boxes = [tracker.track(each)["target_bbox"] for each in frames[1:]]
            np.testing.assert_allclose(boxes, expected[1:], rtol=0, atol=0.02, err_msg=name)


def test_window_of_the_published_tracker():
    with np.load(GOLDEN / "processing.npz") as golden:
        for key in (key for key in golden if "hann" in key.lower()):
            expected = golden[key].squeeze()
            np.testing.assert_allclose(hann_window(expected.shape[-1]), expected, atol=1e-6)
            break
        else:
            pytest.fail("processing.npz holds no Hann window")


@pytest.mark.parametrize("template_range", ["CTR_POINT", "CTR_REC", "ALL", "GT_BOX", None])
def test_a_frame_is_crop_network_window_and_way_back(template_range):
    """The same steps over the network's image-to-box interface."""
    if template_range is None:
        cfg = replace(TINY, ce_layers=(), ce_keep_ratio=())
    else:
        cfg = replace(TINY, ce_template_range=template_range)
    model = tiny(cfg)
    tracker = Tracker(model, "cpu", "float32")
    tracker.initialize(frame(), BOX)
    state = torch.tensor([BOX], dtype=torch.float64)
    template, scale = ops.crop(torch.from_numpy(frame()), state, cfg.template_factor, cfg.template_size)
    mask = template_mask(cfg, image_to_crop(state, state, scale, cfg.template_size).float()) if cfg.ce_layers else None
    for seed in (1, 2, 3):
        assert_frame_decided(model, frame(), BOX, frame(seed), state[0].tolist())
        search, scale = ops.crop(torch.from_numpy(frame(seed)), state, cfg.search_factor, cfg.search_size)
        with torch.no_grad():
            out = model(template, search, mask)
        response = out["score_map"] * hann_window(cfg.search_grid)
        found, score = ops.decode(response, out["size_map"], out["offset_map"])
        place = response.flatten().argmax()
        box = crop_to_image(found[0].tolist(), state[0].tolist(), scale.item(), cfg.search_size)
        box = clip_xywh(box, 96, 128, margin=10)
        result = tracker.track(frame(seed))
        assert result.box == pytest.approx(box, abs=1e-3)
        assert result.score == pytest.approx(out["score_map"].flatten()[place].item(), abs=1e-5)
        assert result.score > score.item()  # the window is not part of it
        state = torch.tensor([result.box], dtype=torch.float64)


def test_a_result_is_the_published_dictionary(tracker):
    tracker.initialize(frame(), {"init_bbox": list(BOX)})
    result = tracker.track(frame(1))
    assert isinstance(result, TrackResult)
    assert dict(result) == {"target_bbox": list(result.box), "score": result.score}
    assert "target_bbox" in result and result.get("time") is None
    assert all(type(value) is float for value in (*result.box, result.score))
    with pytest.raises(KeyError):
        result["best"]


def test_lost_is_a_low_score(model):
    for threshold, lost in ((0.0, False), (1.0, True)):
        tracker = Tracker(model, "cpu", lost_below=threshold)
        tracker.initialize(frame(), BOX)
        assert tracker.track(frame(1)).lost is lost


def test_the_template_is_embedded_once(tracker, monkeypatch):
    calls = []
    network = tracker.engine.network
    embed = network.embed_template
    monkeypatch.setattr(network, "embed_template", lambda image, box: calls.append(1) or embed(image, box))
    tracker.initialize(frame(), BOX)
    tracker.track(frame(1))
    tracker.track(frame(2))
    assert len(calls) == 1


def test_initialize_again_starts_afresh(tracker):
    tracker.initialize(frame(), BOX)
    first = [tracker.track(frame(seed)).box for seed in (1, 2)]
    tracker.initialize(frame(5), (3, 3, 40, 9))
    assert tracker.track(frame(1)).box != first[0]
    tracker.initialize(frame(), BOX)
    assert [tracker.track(frame(seed)).box for seed in (1, 2)] == first


def test_views_and_read_only_frames(tracker):
    plain = frame()
    frozen = plain.copy()
    frozen.flags.writeable = False
    big = np.zeros((96, 256, 3), np.uint8)
    big[:, ::2] = plain
    results = []
    for view in (plain, plain[..., ::-1].copy()[..., ::-1], frozen, big[:, ::2]):
        before = view.copy()
        tracker.initialize(view, BOX)
        results.append(tracker.track(view))
        np.testing.assert_array_equal(view, before)
    assert all(result == results[0] for result in results)


def test_frames_may_change_size(tracker):
    tracker.initialize(frame(), BOX)
    tracker.track(frame(1, 200, 300))
    x, y, w, h = tracker.track(frame(2, 40, 30)).box
    assert 0 <= x <= 20 and 0 <= y <= 30 and x + w <= 30.001 and y + h <= 40.001


@pytest.mark.parametrize("box", [(-10, -10, 30, 30), (120, 90, 60, 60), (0, 0, 128, 96), (64, 48, 0.01, 0.01)])
def test_targets_at_the_edge_and_tiny_ones(tracker, box):
    tracker.initialize(frame(), box)
    for seed in range(3):
        x, y, w, h = tracker.track(frame(seed)).box
        assert x <= 118 and y <= 86 and x + w >= 10 and y + h >= 10


@pytest.mark.parametrize(
    "bad, kind, message",
    [
        ("picture.jpg", TypeError, "numpy array"),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), TypeError, "numpy array"),
        (np.zeros((9, 9, 3), np.float32), TypeError, "uint8"),
        (np.zeros((9, 9), np.uint8), ValueError, r"\(h,w,3\)"),
        (np.zeros((9, 9, 4), np.uint8), ValueError, r"\(h,w,3\)"),
        (np.zeros((3, 9, 9), np.uint8), ValueError, r"\(h,w,3\)"),
        (np.zeros((0, 9, 3), np.uint8), ValueError, "empty"),
    ],
)
def test_what_is_no_frame(tracker, bad, kind, message):
    with pytest.raises(kind, match=message):
        tracker.initialize(bad, BOX)
    tracker.initialize(frame(), BOX)
    expected = tracker.track(frame(1))
    tracker.initialize(frame(), BOX)
    with pytest.raises(kind, match=message):
        tracker.track(bad)
    assert tracker.track(frame(1)) == expected  # a refused frame changes nothing


@pytest.mark.parametrize(
    "bad, kind, message",
    [
        ((1, 2, 3), TypeError, "four numbers"),
        ("1,2,3,4", TypeError, "four numbers"),
        (None, TypeError, "four numbers"),
        ((1, 2, "x", 4), TypeError, "four numbers"),
        ({"bbox": [1, 2, 3, 4]}, TypeError, "init_bbox"),
        ("1234", TypeError, "four numbers"),
        (b"1234", TypeError, "four numbers"),
        (("1", "2", "3", "4"), TypeError, "four numbers"),
        (np.array(["1", "2", "3", "4"]), TypeError, "four numbers"),
        ({1, 2, 3, 4}, TypeError, "four numbers"),
        ({1: 1, 2: 2, 3: 3, 4: 4}, TypeError, "four numbers"),
        (np.ones((4, 1)), TypeError, "four numbers"),
        (np.ones((1, 4)), TypeError, "four numbers"),
        (np.float32(3), TypeError, "four numbers"),
        ([np.ones(1)] * 4, TypeError, "four numbers"),
        ((1, 2, 3j, 4), TypeError, "four numbers"),
        (range(10**9), TypeError, "four numbers"),
        (3, TypeError, "four numbers"),
        (torch.empty(4, device="meta"), TypeError, "four numbers"),
        ((1, 2, 10**400, 4), ValueError, "finite"),
        ((-(10**400), 2, 3, 4), ValueError, "finite"),
        ((1, 2, 1e308, 1e308), ValueError, "ten times"),
        ((1e308, -1e308, 3, 4), ValueError, "outside"),
        ((1, 2, float("nan"), 4), ValueError, "finite"),
        ((1, float("inf"), 3, 4), ValueError, "finite"),
        ((1, 2, 0, 4), ValueError, "empty"),
        ((1, 2, 3, -4), ValueError, "empty"),
        ((128, 2, 3, 4), ValueError, "outside"),
        ((-9, 2, 9, 4), ValueError, "outside"),
        ((1, 96, 3, 4), ValueError, "outside"),
        ((-5000, 2, 10000, 4), ValueError, "ten times"),
    ],
)
def test_what_is_no_box(tracker, bad, kind, message):
    with pytest.raises(kind, match=message):
        tracker.initialize(frame(), bad)
    with pytest.raises(RuntimeError, match="initialize"):
        tracker.track(frame())


@pytest.mark.parametrize(
    "bad",
    [
        None,
        (1, 2),
        "1234",
        (1, 2, 0, 4),
        (1, 2, float("nan"), 4),
        (1e308, 2, 3, 4),
        (1, 2, 1e7, 4),
        (1, 2, 1e-200, 1e-200),
    ],
)
def test_a_target_is_placed_at_boxes_alone(model, bad):
    many = MultiTracker(model, "cpu")
    target = many.add(frame(), BOX)
    with pytest.raises((TypeError, ValueError), match=r"the box|a box must be four numbers"):
        many.place({target: bad})
    assert many.engine.boxes == [BOX]
    many.place({target: np.array(BOX)})
    assert many.engine.boxes == [BOX]


def test_what_belongs_to_targets_is_given_by_target(model):
    many = MultiTracker(model, "cpu")
    many.add(frame(), BOX)
    with pytest.raises(TypeError, match=r"boxes must be given by target, \{target: box\}, got list"):
        many.place([BOX])
    with pytest.raises(TypeError, match=r"frames must be given by target, \{target: frame\}, got list"):
        many.track_each([frame()])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"redetect": "yes"}, "redetect must be True, False or a Redetection, got 'yes'"),
        ({"box_prior": 1}, "box_prior must be True, False or a BoxPrior"),
        ({"smoothing": {}}, "smoothing must be True, False or a Smoothing"),
        ({"lost_below": None}, "lost_below must be a number"),
        ({"candidate_elimination": "no"}, "candidate_elimination must be True or False, got 'no'"),
        ({"candidate_elimination": None}, "candidate_elimination must be True or False, got None"),
        ({"model_or_name": torch.nn.Linear(2, 2)}, "weights are given by a name or a path, got Linear"),
        ({"model_or_name": 3}, "weights are given by a name or a path, got int"),
    ],
)
def test_options_of_another_type_are_refused_at_once(model, options, message):
    with pytest.raises(TypeError, match=message):
        Tracker(**{"model_or_name": model, "device": "cpu", **options})


def test_no_score_is_below_nan(model):
    with pytest.raises(ValueError, match="lost_below is NaN"):
        Tracker(model, "cpu", lost_below=math.nan)


@pytest.mark.parametrize("wrong", [None, 3, ["small"]])
def test_a_configuration_is_one_or_a_name(wrong):
    with pytest.raises(TypeError, match="must be a ModelConfig or the name of a preset"):
        build_ostrack(wrong)
    assert build_ostrack(TINY).cfg == TINY


@pytest.mark.parametrize("bad", [(1, 2, 3), "1234", (500, 500, 9, 9), (1, 2, 0, 4), (1, 2, 10**400, 4)])
def test_a_refused_box_leaves_the_target_there_was(tracker, model, bad):
    tracker.initialize(frame(), BOX)
    expected = [tracker.track(frame(seed)) for seed in (1, 2)]
    tracker.initialize(frame(), BOX)
    assert tracker.track(frame(1)) == expected[0]
    for values in ((frame(), bad), (frame()[..., 0], BOX)):
        with pytest.raises((TypeError, ValueError)):
            tracker.initialize(*values)
    assert tracker.track(frame(2)) == expected[1]
    many = MultiTracker(model, "cpu")
    first = many.add(frame(), BOX)
    with pytest.raises((TypeError, ValueError)):
        many.add(frame(), bad)
    assert many.targets == [first] and many.engine.count == 1


def test_a_failure_of_the_network_leaves_the_target_there_was(tracker, monkeypatch):
    tracker.initialize(frame(), BOX)
    expected = tracker.track(frame(1))
    tracker.initialize(frame(), BOX)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(tracker.engine.network, "embed_template", lambda *_: (_ for _ in ()).throw(MemoryError))
        tracker.initialize(frame(5), (3, 3, 40, 9))
    assert tracker.track(frame(1)) == expected


def test_boxes_of_any_kind(tracker, model):
    tracker.initialize(frame(), BOX)
    expected = tracker.track(frame(1))
    many = MultiTracker(model, "cpu", "float32")
    kinds = (list(BOX), np.array(BOX), torch.tensor(BOX, requires_grad=True), np.array(BOX, np.float32), iter(BOX),
             np.array(BOX, object), np.array(BOX, np.float16), list(map(Fraction, BOX)), list(map(Decimal, BOX)),
             [np.float32(value) for value in BOX], list(torch.tensor(BOX)), {"init_bbox": list(BOX)},
             {"init_bbox": np.array(BOX), "more": "passed over"})  # fmt: skip
    for box in kinds:
        again = copy.copy(box) if isinstance(box, type(iter(()))) else box
        tracker.initialize(frame(), box)
        assert tracker.track(frame(1)) == expected
        many.add(frame(), again)
    for result in many.track(frame(1)).values():
        assert result.box == pytest.approx(expected.box, abs=1e-4)


@pytest.mark.parametrize("size", [1e-12, 1e-150, 1e-200, 5e-324])
def test_targets_of_no_size(tracker, size):
    """Smaller than numbers can tell: tracked as the smallest there is, or refused with a reason."""
    tracker.initialize(frame(), BOX)
    try:
        tracker.initialize(frame(), (20, 20, size, size))
    except ValueError as error:
        assert "box" in str(error)
    assert all(map(math.isfinite, tracker.track(frame(1)).box))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", [Tracker, MultiTracker])
def test_a_tracker_sent_to_another_process_shares_nothing_that_changes(kind, dtype):
    """PyTorch moves the tensors of what `multiprocessing` sends into memory that both processes use."""

    def results(tracker):
        return [[each.box for each in tracker._results(frame)] for frame in frames]

    frames = [np.random.default_rng(number).integers(0, 256, (90, 120, 3), dtype=np.uint8) for number in range(3)]
    tracker = kind(tiny(), "cpu", dtype)
    begin = tracker.initialize if kind is Tracker else tracker.add
    begin(frames[0], (20, 20, 30, 30))
    same, expected = copy.deepcopy(tracker), results(copy.deepcopy(tracker))
    sent = pickle.loads(ForkingPickler.dumps(tracker))
    assert results(sent) == expected
    assert results(tracker) == expected and results(same) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", [Tracker, MultiTracker])
def test_trackers_can_be_sent_to_other_processes(model, kind, dtype):
    """Pickled in the middle of a video, as multiprocessing does, and going on as if nothing had happened."""
    tracker = kind(model, "cpu", dtype)
    (tracker.initialize if kind is Tracker else tracker.add)(frame(), BOX)
    tracker.track(frame(1))
    twins = [pickle.loads(pickle.dumps(tracker)), copy.deepcopy(tracker)]
    expected = [tracker.track(frame(seed)) for seed in (2, 3)]
    for twin in twins:
        assert [twin.track(frame(seed)) for seed in (2, 3)] == expected


_IN_A_CHILD = """
import multiprocessing, sys
import numpy as np
import torch
from ostrack_fast import Tracker, build_ostrack
from ostrack_fast.config import ModelConfig

def frames():
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (96, 128, 3), dtype=np.uint8) for _ in range(3)]

def follow(tracker, results):
    first, *others = frames()
    tracker.initialize(first, (50, 30, 20, 28))
    results.put([tracker.track(frame).box for frame in others])

if __name__ == "__main__":
    torch.set_num_threads(2)
    context = multiprocessing.get_context(sys.argv[1])
    cfg = ModelConfig(template_size=64, search_size=128, embed_dim=64, depth=2, num_heads=2, head_channels=16)
    tracker, results = Tracker(build_ostrack(cfg), "cpu", "float32"), context.SimpleQueue()
    child = context.Process(target=follow, args=(tracker, results), daemon=True)
    for _ in range(3):
        follow(tracker, results)  # here first: threads that this leaves behind do not survive a fork
    expected = [results.get() for _ in range(3)][-1]
    child.start()
    child.join(240)
    assert child.exitcode == 0, f"the child ended with {child.exitcode}; None: it hangs"
    assert np.allclose(results.get(), expected, atol=1e-3)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_trackers_in_other_processes(tmp_path, method):
    (tmp_path / "script.py").write_text(_IN_A_CHILD)
    done = subprocess.run([sys.executable, tmp_path / "script.py", method], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_half_precision_places_boxes_between_cells(model, dtype):
    tracker = Tracker(model, "cpu", dtype)
    tracker.initialize(frame(), BOX)
    exact = Tracker(model, "cpu", "float32")
    exact.initialize(frame(), BOX)
    assert tracker.track(frame(1)).box == pytest.approx(exact.track(frame(1)).box, abs=1.5)


def test_an_output_that_is_not_finite_is_no_box():
    model = tiny(replace(TINY, ce_layers=(), ce_keep_ratio=()))
    with torch.no_grad():
        model.backbone.norm.weight.fill_(float("nan"))
    tracker = Tracker(model, "cpu")
    tracker.initialize(frame(), BOX)
    with pytest.raises(FloatingPointError, match="float32"):
        tracker.track(frame(1))


def test_threads_take_turns(model, monkeypatch):
    tracker = MultiTracker(model, "cpu", "float32")
    frame = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    first, second = tracker.add(frame, BOX), tracker.add(frame, BOX)
    step, waited = tracker.engine.step, []
    other = threading.Thread(target=tracker.drop, args=(first,))

    def step_while_another_thread_drops(frame):
        other.start()
        other.join(0.5)
        waited.append(other.is_alive())
        return step(frame)

    monkeypatch.setattr(tracker.engine, "step", step_while_another_thread_drops)
    assert list(tracker.track(frame)) == [first, second] and waited == [True]
    other.join()
    assert tracker.targets == [second]


def test_devices_and_dtypes():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "meta", ""):
        with pytest.raises(ValueError, match="auto, cpu, cuda"):
            resolve_device(name)
    with pytest.raises(ValueError, match="not here"):
        resolve_device("cuda:99")
    assert resolve_dtype("auto", torch.device("cuda")) == torch.float16
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    for dtype in ("half", "float64", torch.int16):
        with pytest.raises(ValueError, match="float16, bfloat16"):
            resolve_dtype(dtype, torch.device("cpu"))


def test_weights_by_name_or_path(tmp_path, model):
    from ostrack_fast.model.checkpoint import save_weights

    save_weights(model.state_dict(), TINY, tmp_path / "tiny.safetensors")
    tracker = Tracker(tmp_path / "tiny.safetensors", "cpu")
    assert tracker.cfg == TINY
    with pytest.raises(FileNotFoundError, match="no weights 'no-such-name'"):
        Tracker("no-such-name")


@pytest.mark.gpu
def test_on_a_gpu_as_on_the_cpu(model, no_tf32):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    results = []
    for device in ("cpu", "cuda"):
        tracker = Tracker(model, device, "float32")
        tracker.initialize(frame(), BOX)
        results.append([tracker.track(frame(seed)) for seed in (1, 2)])
    for seed, around in ((1, BOX), (2, results[0][0].box)):
        assert_frame_decided(model, frame(), BOX, frame(seed), around)
    for a, b in zip(*results, strict=True):
        assert a.box == pytest.approx(b.box, abs=0.05) and a.score == pytest.approx(b.score, abs=1e-3)
