"""Readers of the benchmarks on miniature copies of their real layouts, whole and with something missing."""

import os
import re
import shutil
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest

from ostrack_fast.evaluation import score_results
from ostrack_fast.evaluation.benchmarks import BENCHMARKS, find_benchmark
from ostrack_fast.evaluation.protocols import PROTOCOLS
from tests.evaluation import layouts
from tests.evaluation.layouts import BOXES, flags, images, rows, write


def test_every_benchmark_has_a_miniature_and_a_protocol():
    assert set(layouts.ALL) == set(BENCHMARKS)
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name and benchmark.protocol in PROTOCOLS


@pytest.mark.parametrize("name", layouts.ALL)
def test_a_whole_copy_is_read(tmp_path, name):
    names = layouts.ALL[name](tmp_path)
    loaded = find_benchmark(name).load(tmp_path)
    assert [sequence.name for sequence in loaded.sequences] == names
    assert loaded.split == BENCHMARKS[name].splits[0]
    for sequence in loaded.sequences:
        there = (sequence.truth.boxes > 0).all(axis=1)
        expected = BOXES + (3 if sequence.name == "Jogging.2" else 0)
        if sequence.name == "bike-packing.2":
            expected = np.add(BOXES, (0, 40, 0, 0))
        np.testing.assert_allclose(sequence.truth.boxes[there], expected[there])
        assert len(sequence.frames()) == 4 and all(path.is_file() for path in sequence.frames())


def test_frames_without_target(tmp_path):
    hidden = [False, False, True, False]
    for name in ("lasot", "lasot_ext", "tnl2k", "vasttrack", "avist"):
        layouts.ALL[name](tmp_path / name)
        for sequence in find_benchmark(name).load(tmp_path / name).sequences:
            assert sequence.truth.absent.tolist() == hidden, name
    layouts.uav123(tmp_path / "uav")
    first = find_benchmark("uav123").load(tmp_path / "uav").sequences[0]
    assert np.isnan(first.truth.boxes[2]).all() and first.truth.absent is None
    assert first.attributes == ("scale variation", "out of view")
    layouts.got10k(tmp_path / "got")
    truth = find_benchmark("got10k").load(tmp_path / "got").sequences[0].truth
    assert truth.cover.tolist() == [8, 8, 0, 5] and truth.size == (128, 96) and truth.group == "dog"


@pytest.mark.parametrize("name", layouts.ALL)
def test_an_empty_folder_and_another_benchmark_are_told_what_is_expected(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        find_benchmark(name).load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected|holds no"):
        find_benchmark(name).load(tmp_path / "empty")
    write(tmp_path / "other" / "photos" / "a.jpg")
    with pytest.raises(FileNotFoundError, match=r"photos|holds no"):
        find_benchmark(name).load(tmp_path / "other")
    with pytest.raises(ValueError, match="has no split 'dusk'"):
        find_benchmark(name).load(tmp_path / "empty", "dusk")


MISSING = {
    "got10k": "val/GOT-10k_Val_000002/cover.label",
    "lasot": "airplane/airplane-9/out_of_view.txt",
    "lasot_ext": "wingsuit/wingsuit-10/groundtruth.txt",
    "trackingnet": "TEST/anno/0a1bcde_1.txt",
    "nfs": "bee/30/bee.txt",
    "tnl2k": "CM_manatee/groundtruth.txt",
    "vasttrack": "Aardwolf/Aardwolf-2/Groundtruth.txt",
    "avist": "full_occlusion/zebra_2_full_occlusion.txt",
    "otb": "Girl/groundtruth_rect.txt",
    "davis": "Annotations/480p/blackswan",
    "vot": "ball/groundtruth.txt",
    "folder": "two/groundtruth_rect.txt",
}


@pytest.mark.parametrize(("name", "lost"), MISSING.items(), ids=MISSING)
def test_what_is_missing_is_named(tmp_path, name, lost):
    layouts.ALL[name](tmp_path)
    path = tmp_path / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(lost)):
        find_benchmark(name).load(tmp_path)


def test_a_sequence_that_the_list_names_is_missing(tmp_path):
    layouts.got10k(tmp_path)
    shutil.rmtree(tmp_path / "val" / "GOT-10k_Val_000002")
    with pytest.raises(FileNotFoundError, match=r"GOT-10k_Val_000002.groundtruth\.txt is missing"):
        find_benchmark("got10k").load(tmp_path)


def test_a_part_of_the_official_sequences_is_said(tmp_path):
    layouts.lasot(tmp_path)
    (note,) = find_benchmark("lasot").load(tmp_path).notes
    assert "280 sequences, of which 278 are missing here: airplane-13, airplane-15" in note


@pytest.mark.parametrize("name", ["got10k", "trackingnet", "nfs", "tnl2k", "vasttrack", "avist", "otb"])
def test_how_many_sequences_are_missing_is_said_where_no_list_of_names_is(tmp_path, name, monkeypatch):
    layouts.ALL[name](tmp_path)
    benchmark = find_benchmark(name)
    loaded = benchmark.load(tmp_path)
    (note,) = loaded.notes
    held = len(loaded.sequences)
    assert f"split {loaded.split}, has {benchmark.counts[loaded.split]} sequences, and {tmp_path} holds {held}" in note
    monkeypatch.setattr(type(benchmark), "counts", {loaded.split: held})
    assert not benchmark.load(tmp_path).notes


def test_missing_images_are_found_when_they_are_needed(tmp_path):
    layouts.uav123(tmp_path)
    (tmp_path / "data_seq" / "UAV123" / "bike1" / "000004.jpg").unlink()
    shutil.rmtree(tmp_path / "data_seq" / "UAV123" / "truck4")
    bike, truck = find_benchmark("uav123").load(tmp_path).sequences
    with pytest.raises(ValueError, match="bike1: 3 images for 4 boxes"):
        bike.frames()
    with pytest.raises(FileNotFoundError, match="truck4_2: its images are missing"):
        truck.frames()


def test_parts_of_videos(tmp_path):
    layouts.uav123(tmp_path / "uav")
    truck = find_benchmark("uav123").load(tmp_path / "uav").sequences[1]
    assert [path.stem for path in truck.frames()] == ["000577", "001259", "001260", "001261"]
    assert truck.aliases == ("uav_truck4_2",)
    layouts.otb(tmp_path / "otb")
    david = find_benchmark("otb").load(tmp_path / "otb").sequences[0]
    assert [path.stem for path in david.frames()] == ["0006", "0007", "0008", "0009"]


def test_flags_and_boxes_must_fit(tmp_path):
    layouts.lasot(tmp_path)
    write(tmp_path / "airplane" / "airplane-1" / "full_occlusion.txt", flags([0, 0]))
    with pytest.raises(ValueError, match=r"full_occlusion\.txt has 2 flags for 4 frames"):
        find_benchmark("lasot").load(tmp_path)
    # Boxes in the place of flags are as many numbers, none of them 0: the whole video would count as hidden.
    write(tmp_path / "airplane" / "airplane-1" / "full_occlusion.txt", rows(BOXES))
    with pytest.raises(ValueError, match=r"full_occlusion\.txt holds a number that is no flag, 0 or 1"):
        find_benchmark("lasot").load(tmp_path)


@pytest.mark.parametrize("far", ["inf", "1e200"])
def test_a_truth_beyond_all_images_is_refused(tmp_path, far):
    layouts.lasot(tmp_path)
    write(tmp_path / "airplane" / "airplane-1" / "groundtruth.txt", f"{far},1,5,5\n" * 4)
    with pytest.raises(ValueError, match="airplane-1: a box of the truth lies more than 1e\\+09 pixels away"):
        find_benchmark("lasot").load(tmp_path)


def test_lasot_without_folders_of_classes_and_its_toolkits_annotations(tmp_path):
    layouts.lasot(tmp_path / "a")
    shutil.move(tmp_path / "a" / "airplane", tmp_path / "b")
    names = ["airplane-1", "airplane-9"]
    assert [each.name for each in find_benchmark("lasot").load(tmp_path / "b").sequences] == names
    annos = tmp_path / "toolkit" / "annos"
    for name in ("airplane-1", "airplane-9", "airplane-2"):
        write(annos / f"{name}.txt", rows(BOXES))
        write(annos / "absent" / f"{name}.txt", flags([0, 1, 0, 0], "\n"))
        write(annos / "att" / f"{name}.txt", flags([0, 1] + [0] * 12))
    for folder in (annos, annos.parent):
        loaded = find_benchmark("lasot").load(folder)
        assert [each.name for each in loaded.sequences] == names
        assert loaded.sequences[0].truth.absent.tolist() == [False, True, False, False]
        assert loaded.sequences[0].attributes == ("partial occlusion",)
    assert [each.name for each in find_benchmark("lasot").load(annos, "train").sequences] == ["airplane-2"]
    assert len(find_benchmark("lasot").load(annos, "all").sequences) == 3


def test_splits_that_a_folder_holds(tmp_path):
    layouts.got10k(tmp_path / "both", "test")
    assert find_benchmark("got10k").load(tmp_path / "both").split == "test"
    layouts.got10k(tmp_path / "both")
    assert find_benchmark("got10k").load(tmp_path / "both").split == "val"
    assert find_benchmark("got10k").load(tmp_path / "both" / "val").split == "val"
    assert find_benchmark("got10k").load(tmp_path / "both" / "test").split == "test"
    with pytest.raises(FileNotFoundError, match="expected test/list"):
        find_benchmark("got10k").load(tmp_path / "both" / "val", "test")
    layouts.nfs(tmp_path / "nfs")
    assert len(find_benchmark("nfs").load(tmp_path / "nfs", "240").sequences[0].truth.boxes) == 25
    layouts.nfs_of_pytracking(tmp_path / "pt")
    loaded = find_benchmark("nfs").load(tmp_path / "pt")
    assert loaded.split == "30" and loaded.sequences[0].aliases == ("nfs_Gymnastics",)
    assert len(loaded.sequences[0].frames()) == 4


def test_the_hidden_truth_of_a_test_set_is_explained(tmp_path):
    names = layouts.got10k(tmp_path / "data", "test")
    for name in names:
        write(tmp_path / "mine" / name / f"{name}_001.txt", rows(BOXES))
    with pytest.raises(ValueError, match=r"first box of each sequence alone.*server"):
        score_results("got10k", tmp_path / "data", [tmp_path / "mine"])


def test_got10k_takes_the_frames_size_from_the_first_image_where_nothing_says_it(tmp_path):
    (name, *_) = layouts.got10k(tmp_path)
    (tmp_path / "val" / name / "meta_info.ini").unlink()
    assert find_benchmark("got10k").load(tmp_path).sequences[0].truth.size == (128, 96)
    shutil.rmtree(tmp_path / "val" / name)
    images(tmp_path / "val" / name, [])
    write(tmp_path / "val" / name / "groundtruth.txt", rows(BOXES))
    write(tmp_path / "val" / name / "cover.label", flags([8] * 4, "\n"))
    with pytest.raises(FileNotFoundError, match=r"meta_info\.ini"):
        find_benchmark("got10k").load(tmp_path)


LASOT = os.environ.get("OSTRACK_FAST_LASOT")


@pytest.mark.skipif(not LASOT, reason="OSTRACK_FAST_LASOT does not name the annotations of LaSOT")
@pytest.mark.parametrize(
    ("still", "expected"), [(False, (92.741, 97.379, 97.379)), (True, (14.534, 6.037, 9.294))], ids=["truth", "static"]
)
def test_the_known_figures_of_lasot(tmp_path, still, expected):
    """The truth itself, and its first box for ever, as answers: what the toolkit gives for them is known."""
    loaded = find_benchmark("lasot").load(Path(LASOT), "test")
    assert len(loaded.sequences) == 280
    for sequence in loaded.sequences:
        boxes = sequence.truth.boxes
        write(tmp_path / "x" / f"{sequence.name}.txt", rows(np.repeat(boxes[:1], len(boxes), 0) if still else boxes))
    summary = score_results("lasot", LASOT, [tmp_path / "x"]).trackers[0].summary
    assert tuple(round(summary[name], 3) for name in ("AUC", "P", "P_norm")) == expected


def test_a_mask_of_any_size_takes_no_memory(tmp_path):
    """The box of a mask, whose line may claim a frame of 10^16 pixels."""
    lines = {
        "m3,4,100000000,100000000,0,4": [3, 4, 4, 1],
        "m3,4,100000000,100000000,99999998,4": [3, 4, 100000000, 2],
        "m3,4,5,4,7,2,3,2": [5, 5, 2, 2],
        "m3,4,5,4,18,20": [6, 7, 2, 1],
        "m3,4,5,4,7,0": [np.nan] * 4,
        "m0,0,0,0,7": [np.nan] * 4,
    }
    write(tmp_path / "ants" / "groundtruth.txt", "\n".join(lines) + "\n")
    (sequence,) = find_benchmark("vot").load(tmp_path).sequences
    np.testing.assert_array_equal(sequence.truth.boxes, list(lines.values()))
    write(tmp_path / "ants" / "groundtruth.txt", "m3,4,5,4,-7,2\n")
    with pytest.raises((ValueError, FileNotFoundError), match=r"line 1: .*is no rectangle, polygon or mask"):
        find_benchmark("vot").load(tmp_path)


def png_header(width, height):
    """The beginning of a picture that claims this size."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">II", zlib.crc32(head), 1) + b"IDAT"


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("davis", "Annotations/480p/blackswan/00001.png", png_header(100_000, 100_000), "exceeds limit"),
        ("davis", "Annotations/480p/blackswan/00001.png", png_header(8, 8), "cannot be read as a mask"),
        ("vot", "ball/groundtruth.txt", b"m" + b"9" * 400 + b",1,3,3,1,2\n", "line 1"),
        ("vot", "ball/groundtruth.txt", b"1_0,1,3,3\n", "line 1"),
        ("nfs", "bee/30/bee.txt", "0 \u0663 1 3 3 0 0 0 0 bee\n".encode(), "line 1"),
        ("got10k", "val/GOT-10k_Val_000001/cover.label", b"8\nnan\n8\n8\n", "not one of 0 to 8"),
        ("got10k", "val/GOT-10k_Val_000001/cover.label", b"8\n9\n8\n8\n", "not one of 0 to 8"),
    ],
)
def test_what_a_file_of_truth_cannot_hold(tmp_path, name, file, content, message):
    layouts.ALL[name](tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{re.escape(Path(file).name)}.*{message}"):
        find_benchmark(name).load(tmp_path)


@pytest.mark.parametrize("size", ["(0, 96)", f"({'9' * 400}, 96)"])
def test_got10k_takes_no_impossible_size_of_frames(tmp_path, size):
    layouts.got10k(tmp_path)
    (tmp_path / "val/GOT-10k_Val_000001/meta_info.ini").write_text(f"resolution: {size}\n")
    assert find_benchmark("got10k").load(tmp_path).sequences[0].truth.size == (128, 96)


@pytest.mark.parametrize(
    ("name", "file"), [("lasot", "airplane/airplane-1/out_of_view.txt"), ("otb", "Jogging/groundtruth_rect.1.txt")]
)
def test_pipes_are_not_waited_for(tmp_path, name, file):
    layouts.ALL[name](tmp_path)
    (tmp_path / file).unlink()
    os.mkfifo(tmp_path / file)
    # Whoever waits for a pipe goes on once it has been opened for writing.
    opened = threading.Timer(5, lambda: os.close(os.open(tmp_path / file, os.O_RDWR)))
    opened.start()
    with pytest.raises((OSError, ValueError), match="not a regular file"):
        find_benchmark(name).load(tmp_path)
    opened.cancel()
