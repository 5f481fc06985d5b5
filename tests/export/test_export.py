"""An exported file computes what the model computes, in every runtime that claims to read it."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from ostrack_fast import Tracker
from ostrack_fast.cli import main
from ostrack_fast.config import PRESETS
from ostrack_fast.export import Deviation, ExportNetwork, export_model, exporter
from ostrack_fast.export.formats import FORMATS
from ostrack_fast.model.checkpoint import save_weights
from ostrack_fast.tracker import MultiTracker

from .conftest import TINY, decided, run_model, tiny

# A dynamic batch is called with another number of targets than it was exported with.
CASES = [({}, 1), ({"layout": "opencv"}, 1), ({"batch": None}, 3), ({"batch": None, "candidate_elimination": False}, 1)]


def without_elimination(model):
    other = tiny(replace(TINY, ce_layers=(), ce_keep_ratio=()))
    other.load_state_dict(model.state_dict())
    return other


def expected(model, elimination, images):
    model = model if elimination else without_elimination(model)
    return [each.numpy() for each in run_model(model, images)]


def run_in_onnxruntime(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"template": images[0].numpy(), "search": images[1].numpy()})


def run_in_openvino(path, images):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    # Its own choice would be bfloat16 on a CPU that has it.
    compiled = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled({"template": images[0].numpy(), "search": images[1].numpy()})
    return [found[index] for index in range(3)]


@pytest.mark.parametrize("run", [run_in_onnxruntime, run_in_openvino])
@pytest.mark.parametrize("choices, targets", CASES)
def test_an_onnx_file_computes_the_models_maps(exported, model, run, choices, targets):
    images = decided(model, targets)
    maps = expected(model, choices.get("candidate_elimination", True), images)
    for ours, theirs in zip(maps, run(exported(**choices), images), strict=True):
        np.testing.assert_allclose(theirs, ours, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("run", [run_in_onnxruntime, run_in_openvino])
@pytest.mark.parametrize(
    "dtype, stored, tolerance",
    # In int8 the first of the two blocks, and so half of the weights, stays float32.
    [("float16", ["FLOAT16"] * 8, 5e-3), ("int8", ["FLOAT"] * 4 + ["INT8"] * 4, 0.1)],
)
def test_a_smaller_dtype_is_stored_and_near(exported, model, run, dtype, stored, tolerance):
    import onnx

    path = exported(dtype=dtype, candidate_elimination=False)
    # The weights of the linear layers; nothing else has two dimensions and their size.
    wide = TINY.embed_dim**2
    kinds = sorted(
        onnx.TensorProto.DataType.Name(each.data_type)
        for each in onnx.load(path).graph.initializer
        if len(each.dims) == 2 and np.prod(each.dims) >= wide
    )
    assert kinds == stored
    images = decided(model, 1)
    differences = [
        np.abs(theirs - ours).max()
        for ours, theirs in zip(expected(model, False, images), run(path, images), strict=True)
    ]
    assert 0 < max(differences) < tolerance


def test_float16_keeps_the_maps_and_the_residual_stream_in_float32(model):
    network = ExportNetwork(model, torch.float16)
    assert network.backbone.blocks[0].attn.qkv.layer.weight.dtype == torch.float16
    assert network.head.conv5_offset.layer.weight.dtype == torch.float32
    assert network.backbone.norm.weight.dtype == torch.float32
    assert {each.dtype for each in network(*decided(model, 1))} == {torch.float32}


def test_an_onnx_file_has_nothing_that_tensorrt_refuses(exported):
    """No boolean tensors, no gathers by them (NonZero), no control flow, only static shapes, short sorts."""
    import onnx

    path = exported()
    file = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    onnx.checker.check_model(file, full_check=True)
    assert {each.domain for each in file.opset_import} == {""}
    kinds = {node.op_type for node in file.graph.node}
    assert {"TopK", "GatherElements", "ScatterElements"} <= kinds
    assert not kinds & {"NonZero", "Compress", "If", "Loop", "Scan", "Where", "Unique", "SequenceAt"}
    values = [*file.graph.input, *file.graph.output, *file.graph.value_info]
    types = {each.type.tensor_type.elem_type for each in values} | {each.data_type for each in file.graph.initializer}
    assert types == {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert all(dimension.dim_value > 0 for each in values for dimension in each.type.tensor_type.shape.dim)
    # TensorRT's limit of TopK.
    assert max(cfg.search_grid**2 for cfg in PRESETS.values()) <= 3840


def test_a_pt2_file_runs_without_this_package(exported, model, tmp_path):
    path = exported("pt2", batch=None)
    images = decided(model, 2)
    torch.save(images, tmp_path / "images.pt")
    program = (
        "import sys, torch\n"
        f"maps = torch.export.load({str(path)!r}).module()(*torch.load({str(tmp_path / 'images.pt')!r}))\n"
        f"torch.save(maps, {str(tmp_path / 'maps.pt')!r})\n"
        "assert not any(name.startswith('ostrack_fast') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    for ours, theirs in zip(expected(model, True, images), torch.load(tmp_path / "maps.pt"), strict=True):
        np.testing.assert_allclose(theirs.numpy(), ours, atol=1e-5)


def test_a_full_disk_under_a_pt2_file_is_told(model, tmp_path):
    command = (
        "import resource\n"
        "from ostrack_fast.export import export_model\n"
        "from ostrack_fast.model import OSTrack\n"
        f"model = OSTrack.from_pretrained({str(tmp_path / 'w.safetensors')!r})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        f"export_model(model, {str(tmp_path / 'w.pt2')!r}, 'pt2')\n"
    )
    save_weights(model.state_dict(), model.cfg, tmp_path / "w.safetensors")
    # PyTorch's own writer would end the process in C++.
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "w.pt2 cannot be written: File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.slow
def test_an_aoti_file_computes_the_models_maps(exported, model):
    images = decided(model, 3)
    run = torch._inductor.aoti_load_package(str(exported("aoti", batch=None)))
    for ours, theirs in zip(expected(model, True, images), run(*images), strict=True):
        np.testing.assert_allclose(theirs.numpy(), ours, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "choices, words",
    [
        ({"format": "torchscript"}, "unknown format 'torchscript': choose onnx, pt2, aoti"),
        ({"dtype": "bfloat16"}, "unknown dtype 'bfloat16'"),
        ({"layout": "caffe"}, "unknown layout 'caffe'"),
        ({"batch": 0}, "batch=0 must be a whole number from 1"),
        ({"batch": 1.5}, "batch=1.5 must be a whole number from 1"),
        ({"candidate_elimination": "no"}, "candidate_elimination must be True or False, got 'no'"),
        ({"format": "pt2", "dtype": "int8"}, "for ONNX only, not for pt2"),
        ({"format": "aoti", "layout": "opencv"}, "for ONNX only, not for aoti"),
        ({"layout": "opencv", "batch": None}, "OpenCV needs batch=1"),
        ({"layout": "opencv-dnn", "dtype": "int8"}, "OpenCV needs batch=1 and float32 or float16"),
        ({"device": "tpu"}, "device 'tpu' is not supported"),
    ],
)
def test_choices_that_do_not_go_together_are_told(model, tmp_path, choices, words):
    with pytest.raises((TypeError, ValueError), match=words):
        export_model(model, tmp_path / "file", **choices)
    assert not list(tmp_path.iterdir())


def test_models_that_a_file_cannot_hold_are_told(tmp_path):
    with pytest.raises(ValueError, match="GT_BOX depends on the target's box"):
        export_model(tiny(replace(TINY, ce_template_range="GT_BOX")), tmp_path / "file.onnx")
    with pytest.raises(ValueError, match=r"256 pixels at factor 4, this model takes 128 at 2 and 384 at 4"):
        export_model(tiny(replace(TINY, search_size=384)), tmp_path / "file.onnx", layout="opencv")


def test_a_file_that_computes_something_else_is_not_written(model, tmp_path, monkeypatch):
    written = FORMATS["pt2"]

    def load(path):
        run = written.load(path)

        def changed(*images):
            score, size, offset = run(*images)
            return score, size, offset + 0.02

        return changed

    monkeypatch.setitem(exporter.FORMATS, "pt2", written._replace(load=load))
    with pytest.raises(ArithmeticError, match="more than float32 explains"):
        export_model(model, tmp_path / "file.pt2", "pt2")
    assert not list(tmp_path.iterdir())


def test_the_deviation_is_that_of_the_best_cell():
    score = torch.zeros(1, 1, 4, 4)
    score[0, 0, 2, 1] = 0.5
    size, offset = torch.full((1, 2, 4, 4), 0.25), torch.zeros(1, 2, 4, 4)
    moved = offset.clone()
    moved[0, 0, 2, 1] = 0.5  # half a cell of four
    elsewhere = moved.clone()
    elsewhere[0, 0, 0, 0] = 9
    assert exporter._deviation((score + 0.25, size, elsewhere), (score, size, offset), 64) == Deviation(0.25, 8.0)


def frames(count):
    return np.random.default_rng(0).integers(0, 256, (count, 120, 160, 3), dtype=np.uint8)


@pytest.mark.parametrize("smoothing", [False, True])
def test_a_tracker_runs_an_onnx_file(exported, model, smoothing):
    ours = Tracker(model, "cpu", "float32", smoothing=smoothing)
    theirs = Tracker.from_onnx(exported(), lost_below=0.25, smoothing=smoothing)
    assert (theirs.cfg, theirs.dtype, theirs.device.type, theirs.lost_below) == (TINY, torch.float32, "cpu", 0.25)
    first, *others = frames(4)
    for tracker in (ours, theirs):
        tracker.initialize(first, (50, 30, 40, 36))
    for image in others:
        a, b = ours.track(image), theirs.track(image)
        np.testing.assert_allclose(b.box, a.box, atol=1e-2)
        assert b.score == pytest.approx(a.score, abs=1e-4)


@pytest.mark.parametrize("choices", [{}, {"batch": None}])
def test_an_engine_of_an_onnx_file_follows_many_targets(exported, model, choices):
    from ostrack_fast.export.engine import OnnxEngine

    ours, theirs = MultiTracker(model, "cpu", "float32"), OnnxEngine(exported(**choices))
    first, second = frames(2)
    for box in ((50, 30, 40, 36), (20.5, 40, 30, 22), (90, 60, 50, 40)):
        ours.add(first, box)
        theirs.add(first, box)
    found = theirs.step(second)
    for (x, y, w, h, score), result in zip(found, ours.track(second).values(), strict=True):
        np.testing.assert_allclose((x, y, w, h), result.box, atol=1e-2)
        assert score == pytest.approx(result.score, abs=1e-4)


@pytest.mark.parametrize("providers", [["Nope"], ["CPUExecutionProvider", "Nope"], [3]])
def test_providers_that_are_not_there_are_refused(exported, providers):
    with pytest.raises(ValueError, match=r"onnxruntime has .*CPUExecutionProvider"):
        Tracker.from_onnx(exported(), providers=providers)


def test_what_is_no_exported_file_is_told(exported, tmp_path):
    import onnx

    with pytest.raises(FileNotFoundError, match="ostrack-fast export wrote"):
        Tracker.from_onnx(tmp_path / "none.onnx")
    (tmp_path / "other.onnx").write_bytes(b"weights of another kind")
    with pytest.raises(ValueError, match=r"other\.onnx cannot be read as an ONNX file"):
        Tracker.from_onnx(tmp_path / "other.onnx")
    file = onnx.load(exported())
    (noted,) = (each for each in file.metadata_props if each.key == "ostrack_fast")
    noted.value = noted.value.replace('"batch": 1', '"batch": 2')
    onnx.save(file, tmp_path / "two.onnx")
    noted.value = "no JSON"
    onnx.save(file, tmp_path / "notes.onnx")
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match=r"notes\.onnx carries notes that cannot be read"):
        Tracker.from_onnx(tmp_path / "notes.onnx")
    with pytest.raises(ValueError, match="was not written by ostrack-fast export"):
        Tracker.from_onnx(tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="takes 2 targets at once"):
        Tracker.from_onnx(tmp_path / "two.onnx")


def test_the_command_line_exports(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_weights(model.state_dict(), TINY, "tiny.safetensors")
    command = "ostrack-fast export --format pt2 --batch 0 --no-elimination --weights tiny.safetensors"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert re.match(r"tiny\.pt2: \d\.\d MB; run on the shipped video it differs", capsys.readouterr().out)
    images = decided(model, 3)
    for ours, theirs in zip(
        expected(model, False, images), torch.export.load("tiny.pt2").module()(*images), strict=True
    ):
        np.testing.assert_allclose(theirs.detach().numpy(), ours, atol=1e-5)
