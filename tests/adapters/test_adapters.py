"""Each adapter gives in its tool what our tracker gives by itself; the tools are the real ones."""

import json
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from ostrack_fast import MultiTracker, Tracker
from ostrack_fast.tracker import TrackResult

from .conftest import BOX, SECOND_BOX


@pytest.fixture
def expected(model, frames):
    """Boxes of the frames after the first."""
    tracker = Tracker(model, "cpu", "float32")
    tracker.initialize(frames[0], BOX)
    return [tracker.track(frame).box for frame in frames[1:]]


@pytest.fixture
def of_two(model, frames):
    """What `MultiTracker.track` returned for the frames after the first, of two targets."""
    tracker = MultiTracker(model, "cpu", "float32")
    for box in (BOX, SECOND_BOX):
        tracker.add(frames[0], box)
    return [tracker.track(frame) for frame in frames[1:]]


def test_got10k_experiments_run_the_tracker(model, files, expected, tmp_path):
    pytest.importorskip("got10k", reason="the GOT-10k toolkit is not installed")
    from got10k.experiments import ExperimentGOT10k

    from ostrack_fast.adapters.got10k import Got10kTracker

    # A GOT-10k data set of one video.
    video = tmp_path / "data" / "val" / "GOT-10k_Val_000001"
    video.mkdir(parents=True)
    (video.parent / "list.txt").write_text("GOT-10k_Val_000001\n")
    for index, file in enumerate(files, 1):
        cv2.imwrite(str(video / f"{index:08d}.jpg"), cv2.imread(file))
    (video / "groundtruth.txt").write_text((",".join(map(str, BOX)) + "\n") * len(files))
    adapter = Got10kTracker(Tracker(model, "cpu", "float32"))
    experiment = ExperimentGOT10k(
        str(tmp_path / "data"), "val", result_dir=str(tmp_path / "results"), report_dir=str(tmp_path / "reports")
    )
    experiment.run(adapter)
    written = np.loadtxt(
        tmp_path / "results" / "GOT-10k" / "OSTrack" / video.name / f"{video.name}_001.txt", delimiter=","
    )
    ours = Tracker(model, "cpu", "float32")
    images = [np.asarray(Image.open(path)) for path in sorted(video.glob("*.jpg"))]
    ours.initialize(images[0], BOX)
    np.testing.assert_allclose(written, [BOX, *(ours.track(image).box for image in images[1:])], atol=2e-3)
    # The toolkit's own loop on files without loss.
    boxes, _ = adapter.track(files, BOX)
    np.testing.assert_allclose(boxes[1:], expected, rtol=1e-6)


def test_the_pytracking_interface(weights, frames, expected):
    """As pytracking's evaluation calls it; no package index has pytracking."""
    from ostrack_fast.adapters.pytracking import PytrackingTracker

    params = SimpleNamespace(debug=0, visualization=False, weights=weights, device="cpu", dtype="float32")
    # With "default" it would hand all targets to one tracker.
    assert PytrackingTracker.multiobj_mode == "parallel"
    tracker = PytrackingTracker(params)
    out = tracker.initialize(frames[0], {"init_bbox": list(BOX), "init_object_ids": None})
    assert out == {"target_bbox": list(BOX)}
    previous = out
    for frame, box in zip(frames[1:], expected, strict=True):
        previous = tracker.track(frame, {"previous_output": previous})
        assert previous["target_bbox"] == pytest.approx(box)
        assert 0 < previous["object_presence_score"] < 1


@pytest.mark.parametrize("kind", ["path", "memory", "buffer"])
def test_a_trax_client_gets_the_boxes(weights, frames, files, of_two, kind):
    trax = pytest.importorskip("trax", reason="vot-trax is not installed")
    from trax.client import Client

    def image(index):
        if kind == "path":
            made = trax.FileImage.create(files[index])
        elif kind == "memory":
            made = trax.MemoryImage.create(frames[index])
        else:
            with open(files[index], "rb") as file:
                made = trax.BufferImage.create(file.read())
        return {trax.ImageChannel.COLOR: made}

    command = [sys.executable, "-m", "ostrack_fast.adapters.vot", "--weights", str(weights), "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--dtype", "float32"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    try:
        client = Client((process.stdin.fileno(), process.stdout.fileno()), timeout=300, log=lambda text: None)
        assert (client.tracker_name, client.region_formats, client.get("multiobject")) == (
            "OSTrack", [trax.Region.RECTANGLE], True,
        )  # fmt: skip
        first, second = (trax.Rectangle.create(*box) for box in (BOX, SECOND_BOX))
        for _ in range(2):  # a client may start again
            found, _ = client.initialize(image(0), [(first, {}), (second, {})], {})
            np.testing.assert_allclose([region.bounds() for region, _ in found], [BOX, SECOND_BOX])
            for index, results in enumerate(of_two, 1):
                found, _ = client.frame(image(index), {}, [])
                boxes = [region.bounds() for region, _ in found]
                np.testing.assert_allclose(boxes, [each.box for each in results.values()], atol=1e-3)
                scores = [float(properties["confidence"]) for _, properties in found]
                np.testing.assert_allclose(scores, [each.score for each in results.values()], atol=1e-4)
        client.quit()
        assert process.wait(600) == 0
    finally:
        process.kill()
        process.wait()


def test_half_an_image_of_a_trax_client_is_refused(files, tmp_path):
    trax = pytest.importorskip("trax", reason="vot-trax is not installed")
    from ostrack_fast.adapters.vot import _pixels

    assert cv2.imwrite(str(tmp_path / "half.jpg"), cv2.imread(str(files[0])))
    data = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2])
    for image in (trax.FileImage.create(str(tmp_path / "half.jpg")), trax.BufferImage.create(data[: len(data) // 2])):
        with pytest.raises(ValueError, match="cannot be read as an image"):
            _pixels(image)


def test_supervision_draws_the_detections(of_two, frames):
    supervision = pytest.importorskip("supervision", reason="supervision is not installed")
    from ostrack_fast.adapters.supervision import to_detections

    detections = to_detections({7: of_two[0][0], 9: of_two[0][1]})
    for row, result in zip(detections.xyxy, of_two[0].values(), strict=True):
        x, y, w, h = result.box
        assert row.tolist() == pytest.approx([x, y, x + w, y + h])
    assert detections.tracker_id.tolist() == [7, 9]
    assert detections.confidence.tolist() == [each.score for each in of_two[0].values()]
    assert detections["lost"].tolist() == [each.lost for each in of_two[0].values()]
    assert len(detections[detections.tracker_id == 9]) == 1
    drawn = supervision.BoxAnnotator(thickness=1).annotate(frames[1].copy(), detections)
    changed = np.argwhere((drawn != frames[1]).any(2))
    low, high = detections.xyxy[:, :2].min(0), detections.xyxy[:, 2:].max(0)
    limits = np.array(frames[1].shape[1::-1]) - 1
    np.testing.assert_allclose(changed.min(0)[::-1], low.clip(0, limits), atol=2)
    np.testing.assert_allclose(changed.max(0)[::-1], high.clip(0, limits), atol=2)
    assert to_detections(TrackResult(BOX, 0.5, False)).xyxy.tolist() == [[50, 30.5, 70, 58.5]]
    assert to_detections({}).is_empty()


def test_a_cvat_function_follows_several_shapes(weights, frames, of_two):
    pytest.importorskip("cvat_sdk", reason="cvat-sdk is not installed")
    from cvat_sdk.auto_annotation import TrackableShape, TrackingFunctionShapeContext

    from ostrack_fast.adapters.cvat import create

    class Context(TrackingFunctionShapeContext):
        original_shape_type = "rectangle"

    function = create(str(weights), "cpu", "float32", lost_below=0.0)
    assert function.spec.supported_shape_types == {"rectangle"}
    images = [function.preprocess_image(Context(), Image.fromarray(frame)) for frame in frames]
    states = [
        function.init_tracking_state(
            Context(), images[0], TrackableShape(type="rectangle", points=[x, y, x + w, y + h])
        )
        for x, y, w, h in (BOX, SECOND_BOX)
    ]
    for image, results in zip(images[1:], of_two, strict=True):
        for state, result in zip(states, results.values(), strict=True):
            x, y, w, h = result.box
            shape = function.track(Context(), image, state)
            assert shape.type == "rectangle"
            np.testing.assert_allclose(shape.points, [x, y, x + w, y + h], atol=1e-3)
    hopeless = create(str(weights), "cpu", "float32", lost_below=1.0)
    before = states[0].box
    assert hopeless.track(Context(), images[1], states[0]) is None
    assert states[0].box == before


def test_pandas_gets_a_row_for_every_target_and_frame(of_two):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    from ostrack_fast.adapters.tables import to_dataframe

    table = to_dataframe(of_two)
    assert table.index.names == ["frame", "target"]
    assert table.index.tolist() == [(frame, target) for frame in range(3) for target in range(2)]
    row = table.loc[(2, 1)]
    assert tuple(row[["x", "y", "width", "height"]]) == of_two[2][1].box
    assert (row["score"], row["lost"]) == (of_two[2][1].score, of_two[2][1].lost)
    assert [str(kind) for kind in table.dtypes] == ["float64"] * 5 + ["bool"]
    assert isinstance(to_dataframe([]), pandas.DataFrame) and to_dataframe([]).empty


def test_motmetrics_reads_the_mot_file(of_two, tmp_path):
    motmetrics = pytest.importorskip("motmetrics", reason="motmetrics is not installed")
    from ostrack_fast.adapters.tables import write_mot

    write_mot(tmp_path / "out.txt", of_two)
    table = motmetrics.io.loadtxt(tmp_path / "out.txt", fmt="mot15-2D")
    assert table.index.tolist() == [(frame, target) for frame in (1, 2, 3) for target in (1, 2)]
    for (frame, target), row in table.iterrows():
        result = of_two[frame - 1][target - 1]
        # motmetrics counts pixels from 0, as we do, and takes the file's to count from 1.
        np.testing.assert_allclose(row[["X", "Y", "Width", "Height"]].astype(float), result.box, atol=1e-3)
        assert row["Confidence"] == pytest.approx(result.score, abs=1e-6)


def test_pycocotools_reads_the_coco_vid_file(of_two, tmp_path):
    coco_tools = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from ostrack_fast.adapters.tables import write_coco_vid

    path = tmp_path / "out.json"
    write_coco_vid(path, of_two, (128, 96), "clip", category="car")
    coco = coco_tools.COCO(str(path))
    assert [image["frame_id"] for image in coco.loadImgs(coco.getImgIds())] == [0, 1, 2]
    assert coco.loadImgs(2)[0]["file_name"] == "clip/000001.jpg"
    assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "car"}]
    found = coco.loadAnns(coco.getAnnIds(imgIds=[2]))
    assert [each["instance_id"] for each in found] == [1, 2]
    assert [tuple(each["bbox"]) for each in found] == [each.box for each in of_two[1].values()]
    assert json.loads(path.read_text())["videos"] == [
        {"id": 1, "name": "clip", "width": 128, "height": 96, "length": 3}
    ]
    names = [f"{index}.png" for index in range(3)]
    write_coco_vid(path, of_two, (128, 96), file_names=names)
    assert [each["file_name"] for each in json.loads(path.read_text())["images"]] == names


def test_tables_take_the_results_of_a_tracker_of_one_target(of_two, tmp_path):
    from ostrack_fast.adapters.tables import write_coco_vid, write_mot

    of_one = [results[0] for results in of_two]
    written = []
    for number, frames in enumerate((of_one, [{0: result} for result in of_one])):
        write_mot(tmp_path / f"{number}.txt", frames)
        write_coco_vid(tmp_path / f"{number}.json", frames, (128, 96))
        written.append([(tmp_path / f"{number}.{suffix}").read_bytes() for suffix in ("txt", "json")])
    assert written[0] == written[1] and written[0][0].count(b"\n") == len(of_one)
