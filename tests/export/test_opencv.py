"""OpenCV reads an exported file, and its TrackerVit tracks with it."""

from math import ceil, floor

import cv2
import numpy as np
import pytest
import torch

from ostrack_fast.export.opencv import trackervit_params
from ostrack_fast.export.opencv_network import OpenCVNetwork
from ostrack_fast.locator import hann_window
from ostrack_fast.ops import reference

from .conftest import boxed, decided, run_model

OUTPUTS = ("output1", "output2", "output3")


@pytest.fixture
def path(exported):
    return str(exported(layout="opencv"))


def test_opencv_computes_the_models_maps(path, model):
    images = decided(model, 1)
    net = cv2.dnn.readNet(path)
    for name, image in zip(("template", "search"), images, strict=True):
        net.setInput(image.numpy(), name)
    for expected, found in zip(run_model(model, images), net.forward(OUTPUTS), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def boxed_path(tmp_path_factory):
    pytest.importorskip("onnxscript", reason="needs the packages of the extra export")
    from ostrack_fast.export import export_model

    path = tmp_path_factory.mktemp("boxed") / "boxed.onnx"
    export_model(boxed(), path, layout="opencv-dnn")
    return str(path)


def test_opencv_is_told_the_targets_box(boxed_path):
    model = boxed()
    images, box = decided(model, 1), torch.tensor([[0.3, 0.1, 0.35, 0.8]])
    net = cv2.dnn.readNet(boxed_path)
    for name, value in zip(("template", "search", "template_box"), (*images, box), strict=True):
        net.setInput(value.numpy(), name)
    found = net.forward(("score_map", "size_map", "offset_map"))
    for expected, other, one in zip(run_model(model, images, box), run_model(model, images), found, strict=True):
        np.testing.assert_allclose(one, expected.numpy(), atol=2e-5, rtol=1e-4)
        assert np.abs(one - other.numpy()).max() > 1e-3, "the box changes nothing"


@pytest.mark.parametrize(
    "box", [(0.3, 0.1, 0.35, 0.8), (-0.2, 0.4, 0.5, 0.9), (0.6, 0.6, 0.01, 0.01), (0.0, 0.0, 1.0, 1.0)]
)
def test_a_box_covers_tokens_as_in_the_model(box):
    model, box = boxed(), torch.tensor([box])
    template, _ = decided(model, 1)
    with torch.no_grad():
        found = OpenCVNetwork(model).embed_template(template, box)
        torch.testing.assert_close(found, model.embed_template(template, box), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("file", ["path", "boxed_path"])
def test_a_file_has_only_operators_that_opencv_4_6_reads(file, request):
    """What its importer was found to lack; `test_cpp_example` runs a file there where that OpenCV is installed."""
    onnx = pytest.importorskip("onnx", reason="needs the packages of the extra export")
    nodes = onnx.load(request.getfixturevalue(file)).graph.node
    known = {
        "Abs", "Add", "Concat", "Conv", "Erf", "Gather", "InstanceNormalization", "MatMul", "Mul", "Relu", "Reshape",
        "Sigmoid", "Slice", "Softmax", "Sub", "Transpose",
    }  # fmt: skip
    assert {node.op_type for node in nodes} <= known


@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_elimination_by_matmuls_keeps_what_the_op_keeps(model, scale):
    """In the same order: equal scores, zeros of both signs and scores that differ in the last bit included."""
    network = OpenCVNetwork(model)
    keep, count = len(network.ranks0), len(network.earlier0)
    score = torch.rand(1, count, generator=torch.Generator().manual_seed(0)).mul(8).round().div(8) * scale
    score[0, ::7] = -0.0
    score[0, 5], score[0, 90] = torch.nextafter(score[0, 4], torch.tensor(1.0)), 0.0
    cells = torch.arange(count)[None]
    expected = reference.eliminate(cells[..., None].float(), score, cells, keep)[1]
    kept = network._keep_best(score[..., None], 0)
    assert kept.unique().tolist() == [0, 1]
    assert torch.equal(kept.argmax(2), expected) and (kept.sum(2) == 1).all()


def crop(frame, box, factor, size):
    """TrackerVit's crop around a box of whole pixels: the normalized patch, its corner and its side."""
    x, y, w, h = box
    side = ceil((w * h) ** 0.5 * factor)
    left, top = x + int((w - side) / 2), y + int((h - side) / 2)  # C++ rounds towards zero
    # It reads the frame's last row and column, which the published crop counts as border.
    wider = np.pad(frame, ((0, 1), (0, 1), (0, 0)))
    pixels = torch.from_numpy(reference.crop_pixels(wider, left, top, side, size)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (reference.IMAGE_MEAN, reference.IMAGE_STD))
    return ((pixels - mean) / std)[None], (left, top), side


def locate(model, template, frame, box):
    """What TrackerVit should find: the box before it is floored, and the window times score."""
    search, corner, side = crop(frame, box, 4, 256)
    maps = run_model(model, (template, search))
    window = hann_window(16)
    found, _ = reference.decode(*maps, window)
    cx, cy, w, h = (side * found[0]).tolist()
    return (cx - w / 2 + corner[0], cy - h / 2 + corner[1], w, h), float((maps[0] * window).max())


def test_trackervit_finds_what_the_model_finds(path, model):
    """Its frames are RGB, its crops those of the published code but for whole pixels and the frame's last row."""
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (7, 30, 40, 3), dtype=np.uint8)
    frames = [cv2.resize(image, (320, 240), interpolation=cv2.INTER_CUBIC) for image in small]
    box = (130, 90, 48, 37)
    params = trackervit_params(path)
    params.tracking_score_threshold = 0.0
    tracker = cv2.TrackerVit_create(params)
    tracker.init(frames[0], box)
    template, *_ = crop(frames[0], box, 2, 128)
    for frame in frames[1:]:
        expected, score = locate(model, template, frame, box)
        found, box = tracker.update(frame)
        assert found
        assert tracker.getTrackingScore() == pytest.approx(score, abs=1e-4)
        assert [abs(a - floor(b)) <= 1 for a, b in zip(box, expected, strict=True)] == [True] * 4
