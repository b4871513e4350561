"""A dataset folder: what is found in it, in which order, and what is said when it is not as it should be."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit24h.data import FolderIndex, open_dataset
from vit24h.errors import UserError


def write_dataset(folder: Path, layout: dict[str, list[str]], splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        for class_name, files in layout.items():
            for file in files:
                path = folder / split / class_name / file
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (4, 4), (len(file), 0, 0)).save(path, format="PNG")
    return folder


LAYOUT = {"n02": ["b.JPEG", "a.jpg"], "n01": ["x.png"], "n10": ["deep/er/z.webp", "a.PNG"]}


def test_images_are_listed_in_the_order_of_classes_then_names(tmp_path):
    train = open_dataset(write_dataset(tmp_path, LAYOUT)).train
    assert train.classes == ("n01", "n02", "n10")
    assert [str(train.path(i).relative_to(tmp_path / "train")) for i in range(len(train))] == [
        "n01/x.png",
        "n02/a.jpg",
        "n02/b.JPEG",
        "n10/a.PNG",
        "n10/deep/er/z.webp",
    ]
    assert train.labels.tolist() == [0, 1, 1, 2, 2]
    assert train.labels.dtype == np.int32
    assert train.read(1) == (tmp_path / "train/n02/a.jpg").read_bytes()


def test_names_of_any_bytes_are_found_again(tmp_path):
    write_dataset(tmp_path, {"ö": ["Katze ü.jpg", "猫.jpg"]})
    undecodable = os.fsencode(tmp_path / "train/ö") + b"/\xff\xfe.jpg"
    Path(os.fsdecode(undecodable)).write_bytes(b"bytes")
    train = FolderIndex.scan(tmp_path / "train")
    assert len(train) == 3
    assert all(train.path(i).is_file() for i in range(3))
    assert train.read(2) == b"bytes"


def test_what_is_no_image_is_left_out(tmp_path):
    write_dataset(tmp_path, {"cat": ["a.jpg"]})
    for junk in ("cat/notes.txt", "cat/._a.jpg", "cat/.DS_Store", ".git/x.jpg", "labels.csv", "stray.jpg"):
        (tmp_path / "train" / junk).parent.mkdir(exist_ok=True)
        (tmp_path / "train" / junk).write_text("junk")
    train = FolderIndex.scan(tmp_path / "train")
    assert train.classes == ("cat",)
    assert len(train) == 1


def test_the_fingerprint_tells_datasets_apart(tmp_path):
    original = open_dataset(write_dataset(tmp_path / "a", LAYOUT))
    assert len(original.fingerprint) == 64
    copy = Path(shutil.copytree(tmp_path / "a", tmp_path / "somewhere else"))
    assert open_dataset(copy).fingerprint == original.fingerprint

    with (copy / "train/n01/x.png").open("ab") as file:
        file.write(b"!")
    assert open_dataset(copy).fingerprint != original.fingerprint
    renamed = Path(shutil.copytree(tmp_path / "a", tmp_path / "renamed"))
    (renamed / "val/n01/x.png").rename(renamed / "val/n01/y.png")
    assert open_dataset(renamed).fingerprint != original.fingerprint


def test_the_index_of_many_images_is_small(tmp_path):
    folder = tmp_path / "n01440764"
    folder.mkdir()
    for number in range(2000):
        (folder / f"n01440764_{number}.JPEG").touch()
    index = FolderIndex.scan(tmp_path)
    assert len(pickle.dumps(index)) / len(index) < 36  # bytes an image: 46 MB for ImageNet


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("")), "is a file"),
        (lambda folder: shutil.rmtree(folder / "val"), "no folder val/.*found train"),
        (lambda folder: (folder / "train").rename(folder / "training"), "no folder train/.*found training, val"),
        (lambda folder: (folder / "train/empty").mkdir(), "train/empty: no image files"),
        (lambda folder: (shutil.rmtree(folder / "val"), (folder / "val").mkdir()), "val: no class folders"),
        (
            lambda folder: (folder / "val/n01").rename(folder / "val/n99"),
            "the same class folders in both; only in train/: n01; only in val/: n99",
        ),
        (lambda folder: (folder / "train/n01/gone.jpg").symlink_to(folder / "nowhere"), "gone.jpg: cannot be read"),
    ],
)
def test_a_folder_that_is_not_as_it_should_be_is_named(tmp_path, prepare, message):
    folder = write_dataset(tmp_path / "dataset", LAYOUT)
    prepare(folder)
    with pytest.raises(UserError, match=message) as error:
        open_dataset(folder)
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
