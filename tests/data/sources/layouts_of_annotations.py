"""Masks and boxes next to images: how each is made, what is asked of it, and what it gives."""

from .layout_makers import LABEL, MASK, OBJECTS, ONLY, also, coco, expect, files, masks, put, voc


ANNOTATIONS = {
    # Masks.
    "images and masks": (
        also(files("images/1.png", "images/2.png"), masks("masks/1.png", "masks/2.png")),
        "",
        expect(2, None, MASK),
    ),
    "images/train and masks/train": (
        also(files("images/train/1.png", "images/val/2.png"), masks("masks/train/1.png", "masks/val/2.png")),
        "@val",
        expect(1, None, MASK),
    ),
    "train/images and train/masks": (
        also(files("train/images/1.jpg", "test/images/2.jpg"), masks("train/masks/1.png", "test/masks/2.png")),
        "@test",
        expect(1, None, MASK),
    ),
    "ADE20k": (
        also(
            files("images/training/1.jpg", "images/validation/2.jpg"),
            masks("annotations/training/1.png", "annotations/validation/2.png"),
        ),
        "@train",
        expect(1, None, MASK),
    ),
    "Cityscapes": (
        also(
            files("leftImg8bit/train/aachen/a_0_leftImg8bit.png", "leftImg8bit/val/ulm/u_0_leftImg8bit.png"),
            masks(*[f"gtFine/train/aachen/a_0_gtFine_{k}.png" for k in ("labelIds", "instanceIds", "color")]),
            masks("gtFine/val/ulm/u_0_gtFine_labelIds.png"),
        ),
        "@train",
        expect(1, None, MASK, mask="labelIds"),
    ),
    "Pascal VOC masks": (
        also(
            files("JPEGImages/1.jpg", "JPEGImages/2.jpg", "JPEGImages/3.jpg"),
            masks("SegmentationClass/1.png", "SegmentationClass/2.png", "SegmentationObject/1.png"),
            lambda root: put(
                root, {"ImageSets/Segmentation/train.txt": "1\n", "ImageSets/Segmentation/val.txt": "2\n"}
            ),
        ),
        "@val",
        expect(1, None, MASK),
    ),
    "train next to train_labels": (
        also(
            files("train/1.png", "test/2.png"),
            masks("train_labels/1_L.png", "train_labels/1.png", "test_labels/2.png"),
        ),
        "@train",
        expect(1, None, MASK),
    ),
    "x.jpg and x_mask.png": (
        also(files("1.jpg", "2.jpg"), masks("1_mask.png", "2_mask.png")),
        "",
        expect(2, None, MASK),
    ),
    "an image without its mask": (
        also(files("images/1.png", "images/2.png", "images/3.png"), masks("masks/1.png", "masks/2.png")),
        "",
        expect(2, None, MASK),
    ),
    "masks of other names": (
        also(files("images/a.png", "images/b.png"), masks("masks/x.png", "masks/y.png")),
        "",
        "0 have the same names, accepted: images:",
    ),
    "masks, image alone": (also(files("images/1.png"), masks("masks/1.png")), "images:", expect(1, None, ONLY)),
    "masks one folder deeper": (
        also(files("set/images/1.png"), masks("set/masks/1.png")),
        "",
        r"accepted: \S+/set, classes:",
    ),
    "images next to depth": (
        also(files("images/1.png"), masks("depth/1.png")),
        "",
        "next to depth, of which no column is made",
    ),
    "class folders called like masks": (files("mask/1.png", "no_mask/2.png"), "", expect(2, ["mask", "no_mask"])),
    "two images for a mask": (
        also(files("images/1.jpg", "images/1.png"), masks("masks/1.png")),
        "",
        expect(1, None, MASK, path="1.jpg"),
    ),
    "masks one folder deeper than images": (
        also(files("images/a.jpg"), masks("annotations/trimaps/a.png")),
        "",
        expect(1, None, MASK),
    ),
    "masks too deep": (
        also(files("Train/Rural/images_png/1.png"), masks("Train/Rural/masks_png/1.png")),
        "",
        "images and masks deeper than masks are looked for",
    ),
    "VOCdevkit": (
        also(files("VOC2012/JPEGImages/1.jpg"), masks("VOC2012/SegmentationClass/1.png")),
        "",
        r"accepted: \S+/VOC2012, classes:",
    ),
    "MVTec": (
        also(files("train/good/1.png", "test/broken/2.png"), masks("ground_truth/broken/2_mask.png")),
        "splits:@test",
        expect(1, ["broken"], LABEL),
    ),
    # Boxes.
    "COCO": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg"]),
                "annotations/instances_train2017.json": coco(["1.jpg", "2.jpg"]),
                "annotations/instances_val2017.json": coco(["3.jpg"]),
                "annotations/captions_val2017.json": coco(["3.jpg"]),
            },
        ),
        "",
        expect(2, ["cat", "dog"], OBJECTS, objects={"bbox": [[1, 2, 3, 4]], "category": [1]}),
    ),
    "COCO, images of the same names": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["images/train/1.jpg", "images/val/1.jpg"]),
                "annotations/instances_train.json": coco(["1.jpg"]),
                "annotations/instances_val.json": coco(["1.jpg"]),
            },
        ),
        "@val",
        expect(1, ["cat", "dog"], OBJECTS, path="val/1.jpg"),
    ),
    "COCO next to its images": (
        lambda root: put(
            root,
            {f"{s}/{n}.jpg": None for s, n in (("train", 1), ("valid", 2))}
            | {f"{s}/_annotations.coco.json": coco([f"{n}.jpg"]) for s, n in (("train", 1), ("valid", 2))},
        ),
        "@validation",
        expect(1, ["cat", "dog"], OBJECTS),
    ),
    "COCO of other images": (
        lambda root: put(root, {"1.jpg": None, "instances_train.json": coco(["9.jpg"])}),
        "",
        "none of the 1 images that instances_train.json names",
    ),
    "YOLO": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["images/train/1.jpg", "images/val/2.jpg"]),
                "labels/train/1.txt": "1 0.5 0.5 0.25 0.5\n",
                "data.yaml": "names: [cat, dog]\n",
            },
        ),
        "",
        expect(1, ["cat", "dog"], OBJECTS, objects={"bbox": [[3, 2, 2, 4]], "category": [1]}),
    ),
    "YOLO, splits above": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["train/images/1.jpg", "valid/images/2.jpg"]),
                "train/labels/1.txt": "0 0.5 0.5 1 1\n",
                "valid/labels/2.txt": "0 0.25 0.25 0.75 0.25 0.75 0.5\n",
                "data.yaml": "names: {0: cat}\n",
            },
        ),
        "@val",
        expect(1, ["cat"], OBJECTS, objects={"bbox": [[2, 2, 4, 2]], "category": [0]}),
    ),
    "YOLO, a broken line": (
        lambda root: put(root, {"images/1.jpg": None, "labels/1.txt": "cat 1 2\n"}),
        "",
        "line 1 of .* is 'cat 1 2', accepted: class x y width height",
    ),
    "YOLO, too few names": (
        lambda root: put(root, {"images/1.jpg": None, "labels/1.txt": "3 .5 .5 1 1\n", "data.yaml": "names: [cat]\n"}),
        "",
        "have class 3, accepted: 0 to 0",
    ),
    "Pascal VOC boxes": (
        lambda root: put(
            root,
            {
                **dict.fromkeys(["JPEGImages/1.jpg", "JPEGImages/2.jpg"]),
                "Annotations/1.xml": voc(),
                "Annotations/2.xml": voc(name="ape"),
                "ImageSets/Main/train.txt": "1\n",
                "ImageSets/Main/val.txt": "2\n",
            },
        ),
        "",
        expect(1, ["ape", "cat"], OBJECTS, objects={"bbox": [[1, 2, 4, 6]], "category": [1]}),
    ),
    "VOC files that count from 0": (
        lambda root: put(root, {"images/1.jpg": None, "annotations/1.xml": voc(0, 3, 5, 8)}),
        "",
        expect(1, ["cat"], OBJECTS, objects={"bbox": [[0, 3, 5, 5]], "category": [0]}),
    ),
    "VOC files next to their images": (
        lambda root: put(root, {"train/1.jpg": None, "train/1.xml": voc(), "test/2.jpg": None, "test/2.xml": voc()}),
        "@test",
        expect(1, ["cat"], OBJECTS),
    ),
    "masks and boxes": (
        also(
            files("JPEGImages/1.jpg"),
            masks("SegmentationClass/1.png"),
            lambda root: put(root, {"Annotations/1.xml": voc()}),
        ),
        "",
        "holds masks and boxes, accepted: masks:.*, boxes:.*, images:",
    ),
    "boxes: by request": (
        also(
            files("JPEGImages/1.jpg"),
            masks("SegmentationClass/1.png"),
            lambda root: put(root, {"Annotations/1.xml": voc()}),
        ),
        "boxes:",
        expect(1, ["cat"], OBJECTS),
    ),
}
