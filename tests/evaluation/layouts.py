"""Miniature copies of the benchmarks as they are downloaded: real names and file formats, few and short sequences."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

NAN = np.nan
BOXES = np.array([[11, 21, 20, 10], [12, 21, 20, 10], [13, 22, 21, 10], [14, 23, 22, 11]], dtype=float)


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def rows(boxes, separator=",", form="{:g}"):
    return "\n".join(separator.join("NaN" if np.isnan(v) else form.format(v) for v in row) for row in boxes) + "\n"


def images(folder: Path, names):
    folder.mkdir(parents=True, exist_ok=True)
    picture = cv2.imencode(".jpg", np.full((96, 128, 3), 90, np.uint8))[1].tobytes()
    for name in names:
        (folder / name).write_bytes(picture)


def flags(values, separator=","):
    return separator.join(map(str, values)) + "\n"


def got10k(root, split="val"):
    names = [f"GOT-10k_{split.capitalize()}_{number:06}" for number in (1, 2)]
    write(root / split / "list.txt", "\n".join(names) + "\n")
    for name in names:
        folder = root / split / name
        boxes = BOXES if split == "val" else BOXES[:1]
        write(folder / "groundtruth.txt", rows(boxes, form="{:.4f}"))
        images(folder, [f"{i + 1:08}.jpg" for i in range(4)])
        if split == "val":
            write(folder / "cover.label", flags([8, 8, 0, 5], "\n"))
            write(folder / "absence.label", flags([0, 0, 1, 0], "\n"))
            write(folder / "cut_by_image.label", flags([0] * 4, "\n"))
            meta = "[METAINFO]\nurl: https://youtu.be/x\nobject_class: dog\nresolution: (128, 96)\n"
            write(folder / "meta_info.ini", meta)
    return names


def lasot(root, kinds=("airplane-1", "airplane-9")):
    for name in kinds:
        folder = root / name.rsplit("-", 1)[0] / name
        write(folder / "groundtruth.txt", rows(BOXES))
        write(folder / "full_occlusion.txt", flags([0, 0, 1, 0]))
        write(folder / "out_of_view.txt", flags([0, 0, 0, 0]))
        write(folder / "nlp.txt", "a white airplane landing on ground\n")
        images(folder / "img", [f"{i + 1:08}.jpg" for i in range(4)])
    return list(kinds)


def lasot_ext(root):
    return lasot(root, ("atv-1", "wingsuit-10"))


def trackingnet(root):
    names = ["0-6LB4FqxoE_0", "0a1bcde_1"]
    for name in names:
        write(root / "TEST" / "anno" / f"{name}.txt", rows(BOXES))
        images(root / "TEST" / "frames" / name, [f"{i}.jpg" for i in range(4)])
    return names


def nfs(root):
    for name in ("Gymnastics", "bee"):
        for rate, frames in (("30", 4), ("240", 25)):
            boxes = np.repeat(BOXES, 8, axis=0)[:25]
            lines = (f'0 {x:g} {y:g} {x + w:g} {y + h:g} {i} 0 0 0 "{name}"\n' for i, (x, y, w, h) in enumerate(boxes))
            write(root / name / rate / f"{name}.txt", "".join(lines))
            images(root / name / rate / name, [f"{i + 1:05}.jpg" for i in range(frames)])
    return ["Gymnastics", "bee"]


def nfs_of_pytracking(root):
    for name in ("Gymnastics", "bee"):
        write(root / "anno" / f"nfs_{name}.txt", rows(BOXES, "\t"))
        images(root / "sequences" / name, [f"{i + 1:05}.jpg" for i in range(4)])
    return ["Gymnastics", "bee"]


def uav123(root):
    boxes = BOXES.copy()
    boxes[2] = NAN
    for name in ("bike1", "truck4_2"):
        write(root / "anno" / "UAV123" / f"{name}.txt", rows(boxes))
    write(root / "anno" / "UAV123" / "att" / "bike1.txt", flags([1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]))
    images(root / "data_seq" / "UAV123" / "bike1", [f"{i + 1:06}.jpg" for i in range(4)])
    images(root / "data_seq" / "UAV123" / "truck4", [f"{i:06}.jpg" for i in (1, 2, 576, 577, 1259, 1260, 1261, 1262)])
    return ["bike1", "truck4_2"]


def tnl2k(root):
    boxes = BOXES.copy()
    boxes[2] = 0
    for name in ("Assian_video_Z03_done", "CM_manatee"):
        write(root / name / "groundtruth.txt", rows(boxes))
        write(root / name / "language.txt", "the man\n")
        images(root / name / "imgs", [f"{i + 1:05}.png" for i in range(4)])
    return ["Assian_video_Z03_done", "CM_manatee"]


def vasttrack(root):
    boxes = BOXES.copy()
    boxes[2] = 0
    for name in ("Aardwolf-2", "Sea-Dog-14"):
        folder = root / name.rsplit("-", 1)[0] / name
        write(folder / "Groundtruth.txt", rows(boxes))
        images(folder / "imgs", [f"{i + 1:05}.jpg" for i in range(4)])
    return ["Aardwolf-2", "Sea-Dog-14"]


def avist(root):
    for name in ("airplane_in_rain", "zebra_2"):
        write(root / "anno" / f"{name}.txt", rows(BOXES, " "))
        write(root / "full_occlusion" / f"{name}_full_occlusion.txt", flags([0, 0, 1, 0]))
        write(root / "out_of_view" / f"{name}_out_of_view.txt", flags([0, 0, 0, 0]))
        images(root / "sequences" / name, [f"img_{i + 1:05}.jpg" for i in range(4)])
    return ["airplane_in_rain", "zebra_2"]


def otb(root):
    write(root / "Girl" / "groundtruth_rect.txt", rows(BOXES, "\t"))
    write(root / "Jogging" / "groundtruth_rect.1.txt", rows(BOXES))
    write(root / "Jogging" / "groundtruth_rect.2.txt", rows(BOXES + 3, " "))
    write(root / "Human4" / "groundtruth_rect.1.txt", "")
    write(root / "Human4" / "groundtruth_rect.2.txt", rows(BOXES))
    write(root / "David" / "groundtruth_rect.txt", rows(BOXES))
    for name, count in (("Girl", 4), ("Jogging", 4), ("Human4", 4), ("David", 9)):
        images(root / name / "img", [f"{i + 1:04}.jpg" for i in range(count)])
    return ["David", "Girl", "Human4.2", "Jogging.1", "Jogging.2"]


def davis(root):
    write(root / "ImageSets" / "2017" / "val.txt", "bike-packing\nblackswan\n")
    write(root / "ImageSets" / "2017" / "train.txt", "bear\n")
    palette = [0, 0, 0, 128, 0, 0, 0, 128, 0] + [0] * 759
    for name, objects in (("bike-packing", 2), ("blackswan", 1)):
        for i, (x, y, w, h) in enumerate(BOXES.astype(int)):
            mask = np.zeros((96, 128), np.uint8)
            for number in range(objects):
                mask[y + 40 * number : y + h + 40 * number, x : x + w] = number + 1
            image = Image.fromarray(mask, mode="P")
            image.putpalette(palette)
            (root / "Annotations" / "480p" / name).mkdir(parents=True, exist_ok=True)
            image.save(root / "Annotations" / "480p" / name / f"{i:05}.png")
        images(root / "JPEGImages" / "480p" / name, [f"{i:05}.jpg" for i in range(4)])
    return ["bike-packing.1", "bike-packing.2", "blackswan"]


def vot(root):
    write(root / "list.txt", "ants1\nbag\nball\n")
    write(root / "ball" / "groundtruth.txt", rows(BOXES))
    corners = ([x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in BOXES)
    write(root / "bag" / "groundtruth.txt", rows(np.array(list(corners))))
    masks = (f"m{x - 1:.0f},{y:.0f},{w + 2:.0f},{h:.0f}," for x, y, w, h in BOXES)
    # One pixel of 0 before and after each row of the mask, joined where rows follow each other.
    runs = (",".join(["1", *[f"{w:.0f},2"] * (int(h) - 1), f"{w:.0f},1"]) for _, _, w, h in BOXES)
    write(root / "ants1" / "groundtruth.txt", "\n".join(map("".join, zip(masks, runs, strict=True))) + "\n")
    for name in ("ants1", "bag", "ball"):
        images(root / name / "color", [f"{i + 1:08}.jpg" for i in range(4)])
    return ["ants1", "bag", "ball"]


def folder(root):
    for name in ("one", "two"):
        write(root / name / "groundtruth_rect.txt", rows(BOXES))
        images(root / name / "img", [f"{i + 1:04}.jpg" for i in range(4)])
    return ["one", "two"]


ALL = {
    "got10k": got10k, "lasot": lasot, "lasot_ext": lasot_ext, "trackingnet": trackingnet, "nfs": nfs, "uav123": uav123,
    "tnl2k": tnl2k, "vasttrack": vasttrack, "avist": avist, "otb": otb, "davis": davis, "vot": vot, "folder": folder,
}  # fmt: skip
