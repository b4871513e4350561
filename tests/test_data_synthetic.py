"""The drawn images: the same every time, whole or not at all, and worth learning."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vit24h.data import draw_images, open_dataset
from vit24h.data.decode import load_image
from vit24h.data.index import FolderIndex
from vit24h.data.synthetic import MARKER, class_name
from vit24h.errors import UserError

SMALL = {"classes": 3, "train_per_class": 4, "val_per_class": 2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    """40 training and 20 validation pictures of each of the 10 classes."""
    return draw_images(tmp_path_factory.mktemp("images") / "drawn", train_per_class=40, val_per_class=20)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_set_is_an_image_folder(drawn):
    dataset = open_dataset(drawn)
    assert len(dataset.classes) == 10
    assert len(dataset.train) == 400
    assert len(dataset.val) == 200
    assert np.bincount(dataset.train.labels).tolist() == [40] * 10


def test_sizes_shapes_and_colour_spaces_vary_as_in_a_folder_of_photographs(drawn):
    images = [Image.open(path) for path in drawn.rglob("*.jpg")]
    assert {image.format for image in images} == {"JPEG"}
    sides = np.array([image.size for image in images])
    assert sides.min() >= 80
    assert sides.max() <= 200
    assert len({image.size for image in images}) > 200
    ratios = sides[:, 0] / sides[:, 1]
    assert ratios.min() < 0.75 and ratios.max() > 4 / 3
    grey = sum(image.mode == "L" for image in images) / len(images)
    assert 0.03 < grey < 0.15
    assert {image.mode for image in images} == {"RGB", "L"}


def test_every_pair_of_classes_shares_at_most_one_of_colour_texture_and_shape():
    names = [class_name(label).split("_") for label in range(25)]
    assert len({tuple(name) for name in names}) == 25
    for label, name in enumerate(names):
        for other in names[:label]:
            assert sum(one == two for one, two in zip(name, other, strict=True)) <= 1
    for attribute in range(3):
        values = [name[attribute] for name in names[:10]]
        assert sorted(values.count(value) for value in set(values)) == [2] * 5, "no attribute alone tells the class"


def test_the_same_pictures_are_drawn_every_time(tmp_path):
    one = contents(draw_images(tmp_path / "one", **SMALL))
    assert contents(draw_images(tmp_path / "two", **SMALL)) == one
    other = contents(draw_images(tmp_path / "other", seed=1, **SMALL))
    assert all(other[name] != one[name] for name in one)
    pictures = [content for name, content in one.items() if name != MARKER]
    assert len(set(pictures)) == len(pictures) == 18


def test_fewer_pictures_are_the_first_of_more(tmp_path):
    few = contents(draw_images(tmp_path / "few", classes=2, train_per_class=2, val_per_class=1))
    many = contents(draw_images(tmp_path / "many", **SMALL))
    assert all(many[name] == content for name, content in few.items() if name != MARKER)


def test_a_finished_set_is_left_alone(tmp_path):
    folder = draw_images(tmp_path / "set", **SMALL)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert draw_images(folder, **SMALL) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_set_of_other_parameters_or_an_older_version_is_replaced(tmp_path):
    folder = draw_images(tmp_path / "set", **SMALL)
    expected = contents(folder)
    draw_images(folder, **{**SMALL, "classes": 2})
    assert len(open_dataset(folder).classes) == 2
    (folder / MARKER).write_text(json.dumps({"version": 0}))
    (folder / "train" / "leftover").mkdir()
    assert contents(draw_images(folder, **SMALL)) == expected


def test_a_drawing_that_was_broken_off_is_never_used(tmp_path):
    class Killed(BaseException):
        pass

    def kill(_drawn: int, _total: int) -> None:
        raise Killed

    with pytest.raises(Killed):
        draw_images(tmp_path / "set", **SMALL, progress=kill)
    assert not (tmp_path / "set").exists()
    assert len(open_dataset(draw_images(tmp_path / "set", **SMALL)).train) == 12
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["set"]


def test_progress_is_told_to_the_end(tmp_path):
    told = []
    draw_images(tmp_path / "set", classes=2, train_per_class=60, val_per_class=6, progress=lambda *n: told.append(n))
    assert told == [(100, 132), (132, 132)]


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds no drawn images"):
        draw_images(tmp_path / "set", **SMALL)
    assert (tmp_path / "set" / "thesis.tex").read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.*cannot be written"):
        draw_images(tmp_path / "file" / "set", **SMALL)


def linear_accuracy(train: FolderIndex, val: FolderIndex, features) -> float:
    """Of a linear classifier on `features` of a picture, on the validation images."""

    def table(images: FolderIndex) -> torch.Tensor:
        return torch.tensor(
            np.array([features(Image.fromarray(load_image(images, i).pixels())) for i in range(len(images))]),
            dtype=torch.float32,
        )

    inputs, held_out = table(train), table(val)
    mean, std = inputs.mean(0), inputs.std(0) + 1e-6
    layer = torch.nn.Linear(inputs.shape[1], len(train.classes))
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100)
    labels = torch.from_numpy(train.labels).long()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer((inputs - mean) / std), labels) + 1e-3 * layer.weight.square().sum()
        loss.backward()
        return loss

    torch.manual_seed(0)
    optimizer.step(closure)
    predicted = layer((held_out - mean) / std).argmax(1)
    return (predicted == torch.from_numpy(val.labels)).float().mean().item()


def test_the_mean_colour_does_not_tell_the_class_but_there_is_something_to_learn(drawn):
    dataset = open_dataset(drawn)
    by_mean_colour = linear_accuracy(dataset.train, dataset.val, lambda image: np.asarray(image, float).mean((0, 1)))
    assert by_mean_colour < 0.3  # chance is 0.1

    def colours_present(image: Image.Image) -> np.ndarray:
        hue, saturation, _ = np.moveaxis(np.asarray(image.convert("HSV"), float), -1, 0)
        return np.histogram(hue, bins=24, range=(0, 256), weights=saturation)[0]

    assert linear_accuracy(dataset.train, dataset.val, colours_present) > by_mean_colour + 0.1


def test_drawing_of_the_smoke_runs_set_takes_seconds(tmp_path):
    start = time.process_time()
    draw_images(tmp_path / "set", train_per_class=8, val_per_class=2)
    assert time.process_time() - start < 3  # 100 of its 2,400 pictures
