"""LaSOT, GOT-10k and TrackingNet on miniatures of their real layouts, as folders, zip files and LMDB databases."""

import multiprocessing
import os
import zipfile

import cv2
import numpy as np
import pytest

from ostrack_fast.data.collections import Selection, read_collection
from ostrack_fast.data.images import BadImage, image_from
from ostrack_fast.data.storage import open_storage


def boxes(count):
    """One is absent, one degenerate, one sticks out of the image."""
    rows = [f"{10 + i},{5 + i},20,10" for i in range(count)]
    rows[1], rows[2], rows[3] = "0,0,0,0", "nan,nan,nan,nan", "-5.5,-2,20.25,10"
    return "\n".join(rows) + "\n"


def image(number):
    done, data = cv2.imencode(".jpg", np.full((48, 64, 3), number, np.uint8))
    assert done
    return data.tobytes()


def lasot(frames=6):
    files = {}
    for name, occluded, outside in (("cat-1", "0,0,0,0,1,0", "0,0,0,0,0,0"), ("cat-20", "0,0,0,0,0,0", "0,0,0,0,0,1")):
        base = f"cat/{name}"
        files |= {f"{base}/img/{i + 1:08d}.jpg": image(i) for i in range(frames)}
        files |= {
            f"{base}/groundtruth.txt": boxes(frames).encode(), f"{base}/full_occlusion.txt": occluded.encode(),
            f"{base}/out_of_view.txt": outside.encode(), f"{base}/nlp.txt": b"a cat",
        }  # fmt: skip
    return files


def got10k(frames=6):
    files = {"train/list.txt": b"GOT-10k_Train_000001\nGOT-10k_Train_000002\nGOT-10k_Train_000003\n"}
    for split, count in (("Train", 3), ("Val", 1)):
        for number in range(1, count + 1):
            base = f"{split.lower()}/GOT-10k_{split}_{number:06d}"
            files |= {f"{base}/{i + 1:08d}.jpg": image(i) for i in range(frames)}
            files |= {
                f"{base}/groundtruth.txt": boxes(frames).encode(), f"{base}/absence.label": b"0\n0\n0\n0\n1\n0\n",
                f"{base}/cover.label": b"8\n8\n8\n8\n8\n0\n", f"{base}/meta_info.ini": b"[METAINFO]\n",
            }  # fmt: skip
    return files


def trackingnet(frames=6, chunks=range(12)):
    files = {}
    for chunk in chunks:
        files |= {f"TRAIN_{chunk}/frames/v{chunk}_0/{i}.jpg": image(i) for i in range(frames)}
        files[f"TRAIN_{chunk}/anno/v{chunk}_0.txt"] = boxes(frames).encode()
    return files


def write_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_zip(path, files):
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path.with_suffix(".zip")


def write_zips(path, files):
    path.mkdir()
    for number in range(2):
        write_zip(path / f"part{number}", dict([*files.items()][number::2]))
    (path / "list.txt").write_text("beside the archives")
    return path


def write_lmdb(path, files):
    lmdb = pytest.importorskip("lmdb", reason="the extra lmdb is not installed")
    with lmdb.open(str(path), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for name, data in files.items():
            transaction.put(name.encode(), data)
    return path


STORAGES = {"folder": write_folder, "zip": write_zip, "zips": write_zips, "lmdb": write_lmdb}


@pytest.fixture(params=STORAGES)
def stored(request, tmp_path):
    return lambda files: STORAGES[request.param](tmp_path / "set", files)


def check(found, kind_visible, origin=0):
    for clip, visible in zip(found.clips, kind_visible, strict=True):
        assert len(clip) == 6 and np.flatnonzero(clip.visible).tolist() == visible, clip.name
        assert np.isnan(clip.boxes[[1, 2]]).all() and clip.boxes[3].tolist() == [-5.5 - origin, -2 - origin, 20.25, 10]
        for i in (0, 5):
            read = image_from(found.storage.read(clip.frame(i)), clip.frame(i))
            assert read.shape == (48, 64, 3) and abs(int(read[0, 0, 0]) - i) <= 1


def test_lasot(stored):
    found = read_collection("lasot", stored(lasot()), Selection("all"))
    assert [clip.name for clip in found.clips] == ["cat-1", "cat-20"]
    check(found, [[0, 3, 5], [0, 3, 4]], origin=1)


def test_got10k(stored):
    path = stored(got10k())
    found = read_collection("got10k", path, Selection("train"))
    assert [clip.name for clip in found.clips] == [f"GOT-10k_Train_00000{i}" for i in (1, 2, 3)]
    check(found, [[0, 3]] * 3)
    assert [clip.name for clip in read_collection("got10k", path, Selection("val")).clips] == ["GOT-10k_Val_000001"]


def test_trackingnet(stored):
    path = stored(trackingnet())
    check(read_collection("trackingnet", path, Selection("all")), [[0, 3, 4, 5]] * 12)
    assert [clip.name for clip in read_collection("trackingnet", path, Selection("TRAIN_11")).clips] == ["v11_0"]


def test_lists_choose_sequences(tmp_path):
    path = write_folder(tmp_path / "got", got10k())

    def names(only=None, without=None, **more):
        for name, lines in (("only", only), ("without", without)):
            if lines is not None:
                (tmp_path / name).write_text("\n".join(lines) + "\n")
        selection = Selection(
            "train", only and tmp_path / "only", without and tmp_path / "without", **more
        )  # fmt: skip
        return [clip.name[-1] for clip in read_collection("got10k", path, selection).clips]

    assert names(only=["0", "2"]) == ["1", "3"]
    assert names(only=["GOT-10k_Train_000002"]) == ["2"]
    assert names(without=["GOT-10k_Train_000002"]) == ["1", "3"]
    with pytest.raises(FileNotFoundError, match=r"1 of 2 sequences.*\n  GOT-10k_Train_000010: missing.*train/GOT-10k"):
        names(only=["0", "9"])
    assert names(only=["0", "9"], partial=True) == ["1"]
    with pytest.raises(FileNotFoundError, match="nolist is missing: a list of sequences"):
        read_collection("got10k", path, Selection("train", tmp_path / "nolist"))


def test_what_is_missing_is_said_and_where_it_should_be(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing is missing: a folder, a zip file or an LMDB"):
        read_collection("lasot", tmp_path / "nothing", Selection("all"))
    path = write_folder(tmp_path / "net", trackingnet(chunks=[*range(5), 6, 7, 8, 9, 11]))
    with pytest.raises(FileNotFoundError, match=r"the chunks TRAIN_5, TRAIN_10 are missing; expected TRAIN_0/frames"):
        read_collection("trackingnet", path, Selection("all"))
    with pytest.raises(FileNotFoundError, match=r"no sequence was found; expected CLASS/CLASS-N/img/00000001\.jpg"):
        read_collection("lasot", path, Selection("all"))
    with pytest.raises(ValueError, match="split='test' must be one of train, val"):
        read_collection("got10k", path, Selection("test"))
    files = lasot()
    del files["cat/cat-1/img/00000004.jpg"], files["cat/cat-20/out_of_view.txt"]
    path = write_folder(tmp_path / "lasot", files)
    with pytest.raises(FileNotFoundError, match="2 of 2 sequences cannot be used") as error:
        read_collection("lasot", path, Selection("all"))
    assert "has 6 lines for the 5 images" in str(error.value) and "out_of_view.txt" in str(error.value)


def test_the_index_is_read_instead_of_the_files(tmp_path):
    path = write_folder(tmp_path / "got", got10k())
    before = read_collection("got10k", path, Selection("train"), tmp_path / "index")
    (cache,) = (tmp_path / "index").iterdir()
    for label in path.rglob("*.label"):
        label.unlink()
    after = read_collection("got10k", path, Selection("train"), tmp_path / "index")
    for a, b in zip(before.clips, after.clips, strict=True):
        assert (a.name, a.frame(3)) == (b.name, b.frame(3)) and np.array_equal(a.visible, b.visible)
        np.testing.assert_array_equal(a.boxes, b.boxes)
    # A damaged one is written again: without its labels no sequence can be used.
    cache.write_bytes(cache.read_bytes()[:100])
    with pytest.raises(FileNotFoundError, match=r"absence\.label"):
        read_collection("got10k", path, Selection("train"), tmp_path / "index")


def read_in_child(storage, name, results):
    results.put(storage.read(name))


@pytest.mark.parametrize("kind", ["zip", "lmdb"])
def test_forked_processes_read_too(kind, tmp_path):
    files = got10k()
    storage = open_storage(STORAGES[kind](tmp_path / "set", files))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    name = "val/GOT-10k_Val_000001/00000002.jpg"
    child = context.Process(target=read_in_child, args=(storage, name, results))
    child.start()
    assert results.get(timeout=300) == storage.read(name) == files[name]
    child.join()


def test_damage_of_a_storage_is_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"a\.zip is no whole zip file"):
        open_storage(tmp_path / "a.zip")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"neither a folder, nor a \.zip file"):
        open_storage(tmp_path / "a.txt")
    storage = open_storage(write_zip(tmp_path / "b", {"x/y.jpg": image(3)}))
    with pytest.raises(FileNotFoundError, match=r"b\.zip has no file z"):
        storage.read("z")
    data = bytearray(storage.path.read_bytes())
    data[60] ^= 0xFF
    storage.path.write_bytes(data)
    with pytest.raises(OSError, match=r"x/y\.jpg in .*b\.zip cannot be read"):
        open_storage(storage.path).read("x/y.jpg")
    with pytest.raises(BadImage, match="called cannot be read as an image"):
        image_from(b"x", "called")


def test_damage_within_a_compressed_file_is_named(tmp_path):
    """Deflated data break in the decompressor, before the checksum is compared."""
    for compression in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        path = tmp_path / f"c{compression}.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("x", bytes(range(256)) * 40)
        data = bytearray(path.read_bytes())
        data[45:60] = b"\xff" * 15
        path.write_bytes(data)
        with pytest.raises(OSError, match=r"^x in .*zip cannot be read"):
            open_storage(path).read("x")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_database_that_is_cut_off_is_refused(tmp_path, share):
    write_lmdb(tmp_path / "db", {f"{number}.jpg": bytes(5000) for number in range(40)})
    file = tmp_path / "db" / "data.mdb"
    whole = len(file.read_bytes().rstrip(b"\0"))
    os.truncate(file, int(share * whole))
    with pytest.raises(ValueError, match="db is cut off"):
        open_storage(tmp_path / "db")


def test_zip_files_of_other_kinds_are_refused_by_name(tmp_path):
    write_zip(tmp_path / "v.zip", {"a.jpg": b"x"})
    data = bytearray((tmp_path / "v.zip").read_bytes())
    data[data.rfind(b"PK\x01\x02") + 6] = 99  # the version needed to extract it
    (tmp_path / "v.zip").write_bytes(data)
    with pytest.raises(ValueError, match=r"v\.zip is no whole zip file"):
        open_storage(tmp_path / "v.zip")
