"""`vit24h pack`: the same bytes every time, whatever stops it. Reading packs: the same training, and damage named."""

import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from safetensors.torch import load_file

from benchmark_record import edit_json
from tiny import CURRICULUM, tiny_config, tiny_settings, write_images
from vit24h import doctor
from vit24h.cli import main
from vit24h.data import DamagedEntryError, FolderIndex, PackIndex, open_dataset, pack
from vit24h.data.augment import EvalTransform
from vit24h.data.decode import decode, load_image
from vit24h.data.pack import PackParameters
from vit24h.data.packing import Packing, PackingStopped, stored_picture
from vit24h.engine.train import train
from vit24h.errors import UserError
from vit24h.progress import CountDisplay
from vit24h.records.reader import read_json, read_rows

Q90 = PackParameters(24, 90)
RAW = PackParameters(24, None)
FILES = ["train.data", "train.index", "val.data", "val.index"]

torch.set_num_threads(1)


def pack_folder(source, destination, parameters=Q90, workers=1, **options):
    said = []
    Packing(source, destination, parameters, workers).run(say=said.append, **options)
    return said


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def packed(images, tmp_path_factory):
    """(JPEG, raw) packs of `images`."""
    folders = tmp_path_factory.mktemp("jpeg"), tmp_path_factory.mktemp("raw")
    for folder, parameters in zip(folders, (Q90, RAW), strict=True):
        pack_folder(images, folder, parameters)
    return folders


@pytest.fixture(params=[0, 1], ids=["jpeg", "raw"])
def own_pack(packed, request, tmp_path):
    return Path(shutil.copytree(packed[request.param], tmp_path / "pack"))


# -- what is stored ---------------------------------------------------------------------------------------------------


def noise(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(picture, kind="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def resized(picture, short_side):
    """As the evaluation does it first (torchvision)."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    return F.resize(picture, [short_side], interpolation=InterpolationMode.BICUBIC)


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (24, 24), (25, 240), (1000, 24), (9, 13)])
def test_raw_pixels_are_the_resized_pictures(size):
    source = encoded(Image.fromarray(noise(*size)))
    stored, height, width = stored_picture(source, RAW)
    expected = decode(source) if min(size) <= 24 else resized(decode(source), 24)
    assert (width, height) == expected.size
    assert np.array_equal(np.frombuffer(stored, np.uint8).reshape(height, width, 3), np.asarray(expected))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_small_jpeg_files_stay_as_they_are(mode):
    source = encoded(Image.fromarray(noise(30, 24)).convert(mode), comment=b"kept too")
    assert stored_picture(source, Q90)[0] == source


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_larger_jpeg_files_keep_their_chroma_subsampling(subsampling):
    source = encoded(Image.fromarray(noise(50, 60)), subsampling=subsampling, quality=95, comment=b"junk")
    stored, height, width = stored_picture(source, Q90)
    with Image.open(io.BytesIO(stored)) as found:
        assert found.size == (width, height) == (28, 24)
        assert JpegImagePlugin.get_sampling(found) == subsampling
        assert "comment" not in found.info
        again = io.BytesIO()
        resized(decode(source), 24).save(again, "JPEG", quality=90, subsampling=subsampling)
        assert np.array_equal(np.asarray(found), np.asarray(Image.open(again)))


SOURCES = {
    "grey JPEG": lambda: encoded(Image.fromarray(noise(50, 60, 1))),
    "CMYK JPEG": lambda: encoded(Image.fromarray(noise(50, 60, 4), "CMYK")),
    "small CMYK JPEG": lambda: encoded(Image.fromarray(noise(20, 20, 4), "CMYK")),
    "PNG": lambda: encoded(Image.fromarray(noise(50, 60)), "PNG"),
    "small PNG": lambda: encoded(Image.fromarray(noise(20, 20)), "PNG"),
    "PNG with transparency": lambda: encoded(Image.fromarray(noise(50, 60, 4), "RGBA"), "PNG"),
    "PNG with a palette": lambda: encoded(Image.fromarray(noise(50, 60)).quantize(16), "PNG"),
    "progressive JPEG": lambda: encoded(Image.fromarray(noise(50, 60)), progressive=True, subsampling=0),
    "junk for EXIF": lambda: encoded(Image.fromarray(noise(50, 60)), exif=b"Exif\0\0MM\0*junk", subsampling=0),
    "noise, larger than Pillow's buffer": lambda: encoded(Image.fromarray(noise(400, 400)), subsampling=0),
}


@pytest.mark.parametrize("name", SOURCES)
def test_any_kind_of_image_is_stored_as_what_decoding_it_gives(name):
    source, parameters = SOURCES[name](), PackParameters(300, 100) if "larger" in name else PackParameters(24, 100)
    expected = decode(source)
    if min(expected.size) > parameters.short_side:
        expected = resized(expected, parameters.short_side)
    raw, height, width = stored_picture(source, PackParameters(parameters.short_side, None))
    assert np.array_equal(np.frombuffer(raw, np.uint8).reshape(height, width, 3), np.asarray(expected))
    jpeg, *_ = stored_picture(source, parameters)
    with Image.open(io.BytesIO(jpeg)) as found:
        assert found.format == "JPEG"
        assert found.mode == ("L" if "grey" in name else "RGB")
        if "small" not in name:
            assert not found.info.get("progressive")
    difference = np.abs(np.asarray(decode(jpeg), np.int16) - np.asarray(expected))
    assert difference.mean() < 2 and difference.max() < 20, "quality 100 without subsampling is nearly lossless"


def test_a_raw_pack_of_the_evaluations_size_gives_the_evaluations_own_pixels(images, tmp_path):
    transform = EvalTransform(20, 1.2)  # short side 24
    pack_folder(images, tmp_path / "packs", RAW)
    folder, packs = open_dataset(images).val, open_dataset(tmp_path / "packs").val
    for i in range(len(folder)):
        assert np.array_equal(transform(load_image(packs, i)), transform(load_image(folder, i)))


# -- packs as datasets ------------------------------------------------------------------------------------------------


def test_a_pack_says_what_its_folder_says_and_how_it_was_made(images, packed):
    folder = open_dataset(images)
    for path, parameters in zip(packed, (Q90, RAW), strict=True):
        dataset = open_dataset(path)
        for one, other in ((dataset.train, folder.train), (dataset.val, folder.val)):
            assert one.classes == other.classes
            assert one.labels.dtype == np.int32
            assert one.labels.tolist() == other.labels.tolist()
            names = [str(one.path(i)).partition(".data:")[2] for i in range(len(one))]
            assert names == [str(other.path(i).relative_to(other.root)) for i in range(len(other))]
        assert dataset.packing == {
            **parameters.to_dict(),
            "source_fingerprint": folder.fingerprint,
            "bytes": sum(len(content) for content in contents(path).values()),
        }
    assert folder.packing is None
    fingerprints = {d.fingerprint for d in (folder, *map(open_dataset, packed))}
    assert len(fingerprints) == 3, "other pixels, another fingerprint"


def test_the_fingerprint_is_of_content_and_parameters_not_of_names_of_folders(images, packed, tmp_path):
    elsewhere = Path(shutil.copytree(images, tmp_path / "under another name"))
    pack_folder(elsewhere, tmp_path / "packs")
    assert open_dataset(tmp_path / "packs").fingerprint == open_dataset(packed[0]).fingerprint
    pack_folder(images, tmp_path / "other", PackParameters(24, 91))
    assert open_dataset(tmp_path / "other").fingerprint != open_dataset(packed[0]).fingerprint
    image = elsewhere / "train/class0/0.JPEG"
    picture = np.asarray(Image.open(image)).copy()
    picture[:9] = 255
    Image.fromarray(picture).save(image)
    pack_folder(elsewhere, tmp_path / "changed")
    assert open_dataset(tmp_path / "changed").fingerprint != open_dataset(packed[0]).fingerprint


def test_raw_pixels_are_a_read_only_view_without_a_copy(packed):
    train = open_dataset(packed[1]).train
    pixels = train.read(3)
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3 and not pixels.flags.writeable
    assert np.shares_memory(pixels, train.read(3))
    assert not np.shares_memory(pixels, train.read(4))


def test_names_of_any_bytes_are_kept(tmp_path):
    folder = write_images(tmp_path / "images", classes=1, train=1, val=1)
    for split in ("train", "val"):
        other = folder / split / "ö\nx"
        (other / "deep").mkdir(parents=True)
        undecodable = os.fsencode(other) + b"/deep/x..\xff\xfe.jpg"
        shutil.copyfile(folder / split / "class0" / "0.JPEG", undecodable)
    pack_folder(folder, tmp_path / "packs")
    train = open_dataset(tmp_path / "packs").train
    assert train.classes == ("class0", "ö\nx")
    assert os.fsencode(train.path(1)).endswith("train.data:ö\nx/deep/".encode() + b"x..\xff\xfe.jpg")


def test_only_the_last_part_of_the_sources_path_is_in_the_files(images, packed):
    for name, content in contents(packed[0]).items():
        assert str(images.parent).encode() not in content, name
    assert open_dataset(packed[0]).train.source["name"] == images.name


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parameters", [Q90, RAW], ids=["jpeg", "raw"])
def test_the_files_are_the_same_whatever_the_number_of_workers(parameters, images, packed, tmp_path):
    for workers in (2, 3):
        pack_folder(images, tmp_path / str(workers), parameters, workers)
        assert contents(tmp_path / str(workers)) == contents(packed[parameters.raw])


def test_packing_again_finds_nothing_to_do(images, own_pack):
    before = {path.name: path.stat().st_mtime_ns for path in own_pack.iterdir()}
    parameters = open_dataset(own_pack).train.packed_as
    assert "nothing to do" in pack_folder(images, own_pack, parameters)[-1]
    assert {path.name: path.stat().st_mtime_ns for path in own_pack.iterdir()} == before


def test_the_size_is_estimated_first(tmp_path):
    folder = write_images(tmp_path / "images", train=250, val=50)  # 900 images, of which 200 are looked at
    said = pack_folder(folder, tmp_path / "packs")
    size = sum(path.stat().st_size for path in (tmp_path / "packs").iterdir()) / 1e6
    estimate = next(line for line in said if line.startswith("about "))
    assert "from a sample of 200" in estimate
    assert float(estimate.split()[1]) == pytest.approx(size, rel=0.2)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_packed(small_disk):
    pixels = PackParameters(4096, None)
    folder = write_images(small_disk.parent / "images", train=120)
    with pytest.raises(UserError, match=r"MB free, about .* MB wanted: make room"):
        pack_folder(folder, small_disk / "packs", pixels)
    assert list((small_disk / "packs").iterdir()) == []


def open_files() -> list[Path]:
    return [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.exists()]


def test_a_disk_that_fills_up_loses_nothing(small_disk, tmp_path, monkeypatch):
    folder = write_images(tmp_path / "images", train=100)
    pack_folder(folder, tmp_path / "expected", RAW)
    with (small_disk / "filler").open("wb") as filler:
        filler.write(bytes(800_000))
    with monkeypatch.context() as patch:
        patch.setattr(Packing, "_check_room", lambda *_: None)
        with pytest.raises(UserError, match=r"No space left on device: what is packed stays; make room") as error:
            pack_folder(folder, small_disk / "packs", RAW)
    assert "\n" not in str(error.value)
    assert not [path for path in open_files() if path.is_relative_to(small_disk / "packs")]
    assert (small_disk / "packs" / "train.data.partial").stat().st_size > 100_000
    (small_disk / "filler").unlink()
    said = pack_folder(folder, small_disk / "packs", RAW)
    assert "packed before" in said[1]
    assert contents(small_disk / "packs") == contents(tmp_path / "expected")


def test_corrupt_images_are_all_named_and_none_is_left_out_in_silence(tmp_path):
    folder = write_images(tmp_path / "images", train=30)
    bad = [folder / "train/class1" / f"{i}.JPEG" for i in (3, 4, 29)]
    intact = [path.read_bytes() for path in bad]
    bad[0].write_bytes(b"")
    bad[1].write_text("no image")
    bad[2].write_bytes(intact[2][:300] + bytes(len(intact[2]) - 300)[:-3])
    with pytest.raises(UserError, match=r"3 images of train cannot be packed.*put intact copies there") as error:
        pack_folder(folder, tmp_path / "packs", workers=2)
    assert all(str(path) in str(error.value) for path in bad)
    with pytest.raises(UserError, match="not packed to its end"):
        open_dataset(tmp_path / "packs")
    for path, content in zip(bad, intact, strict=True):
        path.write_bytes(content)
    pack_folder(folder, tmp_path / "expected")
    with pytest.raises(UserError, match="begun otherwise: source fingerprint"):
        pack_folder(folder, tmp_path / "packs")
    (tmp_path / "packs" / "train.journal").unlink()
    pack_folder(folder, tmp_path / "packs")
    assert contents(tmp_path / "packs") == contents(tmp_path / "expected")


def test_an_image_that_cannot_be_read_stops_the_packing_which_then_goes_on(images, packed, tmp_path):
    own = Path(shutil.copytree(images, tmp_path / images.name))
    packing = Packing(own, tmp_path / "packs", Q90, 1)
    away = own / "val/class1/2.JPEG"
    away.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"val/class1/2.JPEG: cannot be read: No such file.*goes on"):
        packing.run(say=lambda _: None)
    (tmp_path / "away").rename(away)
    pack_folder(own, tmp_path / "packs")
    assert contents(tmp_path / "packs") == contents(packed[0])


def test_a_packing_process_that_is_killed_is_said(images, packed, tmp_path, monkeypatch):
    from vit24h.data import packing as module

    monkeypatch.setattr(module, "_prepare", kill_self)
    with pytest.raises(UserError, match="a packing process was killed, most often because memory ran out"):
        pack_folder(images, tmp_path / "packs")
    monkeypatch.undo()
    pack_folder(images, tmp_path / "packs")
    assert contents(tmp_path / "packs") == contents(packed[0])


def kill_self(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": PackParameters(24, 80)}, "parameters quality is 90, and here 80"),
        ({"parameters": PackParameters(20, 90)}, "parameters short_side is 24, and here 20"),
        ({"parameters": RAW}, "parameters quality is 90, and here null"),
        ({"source": "other"}, "images is 24, and here 27"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_was_packed_or_begun_otherwise_is_refused_by_name(finished, change, message, images, packed, tmp_path):
    packs = tmp_path / "packs"
    if finished:
        shutil.copytree(packed[0], packs)
    else:
        begin_and_stop(images, packs)
    other = write_images(tmp_path / "other" / images.name, train=9)
    source = other if "source" in change else images
    before = contents(packs)
    with pytest.raises(UserError, match=message):
        pack_folder(source, packs, change.get("parameters", Q90))
    assert contents(packs) == before


def begin_and_stop(images, folder, images_packed=16):
    """Leave a packing that was stopped."""
    with pytest.raises(PackingStopped) as stopped:
        pack_folder(images, folder, stop=lambda: records_in(folder / "train.journal") >= images_packed)
    return str(stopped.value)


def records_in(journal):
    return len(journal.read_bytes().partition(b"\n")[2]) // 20 if journal.exists() else 0


def size_of(path):
    return path.stat().st_size if path.exists() else 0


def test_places_that_do_not_go_together_are_refused(images, packed, tmp_path):
    for destination in (images, images / "train", images / "new" / "packs"):
        with pytest.raises(UserError, match="lies in the folder that is to be packed"):
            Packing(images, destination, Q90, 1)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file: expected a folder"):
        Packing(images, tmp_path / "file", Q90, 1)
    (tmp_path / "has" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a folder train/"):
        Packing(images, tmp_path / "has", Q90, 1)
    with pytest.raises(UserError, match="is packed already"):
        Packing(packed[0], tmp_path / "new", Q90, 1)
    with pytest.raises(UserError, match="does not exist"):
        Packing(tmp_path / "nowhere", tmp_path / "new", Q90, 1)
    for parameters, workers in ((PackParameters(0, 90), 1), (PackParameters(24, 101), 1), (Q90, 0)):
        with pytest.raises(UserError, match="expected 1 to"):
            Packing(images, tmp_path / "new", parameters, workers)
    assert not (tmp_path / "new").exists()


def test_progress_is_a_plain_line_now_and_then_in_a_log(monkeypatch):
    now, log = [0.0], io.StringIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with CountDisplay("pack", 10_000, "images", log) as display:
        display.start_at(4_000)
        for done in range(4_000, 10_001, 50):  # 100 images a second
            now[0] = (done - 4_000) / 100
            display.update(done)
    lines = log.getvalue().splitlines()
    assert lines[0] == "pack   50%  5,000 of 10,000 images · 100 images/s · 0:50 left"
    assert len(lines) == 6


# -- being stopped ----------------------------------------------------------------------------------------------------


def test_what_was_stopped_goes_on(images, packed, tmp_path):
    said = begin_and_stop(images, tmp_path / "packs")
    assert said == "stopped with 16 of 36 images packed"
    with pytest.raises(UserError, match=r"not packed to its end \(train.data.partial and|\(train.*start `vit24h pack`"):
        open_dataset(tmp_path / "packs")
    pack_folder(images, tmp_path / "packs")
    assert contents(tmp_path / "packs") == contents(packed[0])


@pytest.mark.parametrize(
    "damage",
    {
        "data cut off": lambda files: os.truncate(files.data, size_of(files.data) - 700),
        "data that never came to the disk": lambda files: zero(files.data, 3000),
        "part of a record": lambda files: os.truncate(files.journal, size_of(files.journal) - 7),
        "records that never came to the disk": lambda files: zero(files.journal, size_of(files.journal) - 40),
        "records beyond the data": lambda files: append(files.journal, b"\xff" * 47),
        "no data": lambda files: files.data.unlink(),
        "another's data": lambda files: files.data.write_bytes(bytes(5000)),
        "no journal": lambda files: files.journal.unlink(),
        "data that was not told of": lambda files: append(files.data, bytes(200_000)),
        "data in place": lambda files: files.data.rename(files.data.with_suffix("")),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("parameters", [Q90, RAW], ids=["jpeg", "raw"])
def test_whatever_state_it_was_left_in_it_goes_on_to_the_same_bytes(parameters, damage, images, packed, tmp_path):
    packs = tmp_path / "packs"
    with pytest.raises(PackingStopped):
        pack_folder(images, packs, parameters, stop=lambda: records_in(packs / "train.journal") >= 16)
    damage[1](SimpleNamespace(data=packs / "train.data.partial", journal=packs / "train.journal"))
    pack_folder(images, packs, parameters)
    assert contents(packs) == contents(packed[parameters.raw])


def append(path, content):
    path.write_bytes(path.read_bytes() + content)


def zero(path, begin):
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(bytes(min(100, size_of(path) - begin)))


def command(*words):
    return [sys.executable, "-m", "vit24h", "pack", *map(str, words)]


def children(process):
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def is_running(process):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# Packing itself, without the two seconds in which torch is imported: a process forked of this one, killed for good.
def packing_process(source, destination, workers):
    process = os.fork()
    if process == 0:
        try:
            os.setpgid(0, 0)
            Packing(source, destination, Q90, workers).run(say=lambda _: None)
        finally:
            os._exit(0)
    return process


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes_and_leaves_nothing_behind(tmp_path):
    folder = write_images(tmp_path / "images", train=150, val=50)
    begin = time.monotonic()
    pack_folder(folder, tmp_path / "expected", workers=2)
    took = time.monotonic() - begin
    rng = random.Random(1)
    kills, moments = 0, set()
    for attempt in range(200):
        destination = tmp_path / "packs"
        process = packing_process(folder, destination, 1 + attempt % 2)
        time.sleep(rng.uniform(0.02, 0.6) * took)
        workers = children(process)
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            kills += 1
            moments.add(",".join(sorted(path.name for path in destination.glob("*"))))
        end = time.monotonic() + 60
        while any(is_running(worker) for worker in workers):
            assert time.monotonic() < end, "processes outlive the killed one"
            time.sleep(0.01)
        if not os.WIFSIGNALED(status) and contents(destination).keys() == set(FILES):
            assert contents(destination) == contents(tmp_path / "expected")
            if kills >= 15:
                break
            shutil.rmtree(destination)
    assert kills >= 15
    assert len(moments) >= 2, f"always killed in the same state: {moments}"


@pytest.mark.parametrize("between", ["sync_folder", "replace", "unlink"])
def test_stopped_between_the_last_renames_it_does_the_rest(between, images, packed, tmp_path, monkeypatch):
    """A stop right after the n-th rename or removal, for each of them."""
    from vit24h.data import packing as module

    class Killed(BaseException):
        pass

    for number in range(1, 5):
        packs = tmp_path / f"{between}{number}"
        count = 0

        def counted(original, number=number):
            def call(*words, **options):
                nonlocal count
                result = original(*words, **options)
                count += 1
                if count == number:
                    raise Killed
                return result

            return call

        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            owner = module if between == "sync_folder" else Path
            patch.setattr(owner, between, counted(getattr(owner, between)))
            pack_folder(images, packs)
        pack_folder(images, packs)
        assert contents(packs) == contents(packed[0])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_stop_it_in_one_line_and_it_goes_on(number, status, tmp_path):
    folder = write_images(tmp_path / "images", train=700, val=10)
    words = command(folder, tmp_path / "packs", "--short-side", "24", "--workers", "2")
    with (tmp_path / "said").open("w+") as said:
        process = subprocess.Popen(words, stdout=said, stderr=said, process_group=0)
        end = time.monotonic() + 240
        while records_in(tmp_path / "packs" / "train.journal") < 60:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        os.killpg(process.pid, number)  # as a terminal, or a scheduler, does
        assert process.wait(timeout=120) == status
        said.seek(0)
        lines = said.read().splitlines()
    assert "images packed; the same command goes on from here" in lines[-1]
    assert len(lines) == 3
    assert not (tmp_path / "packs" / "packing.lock").exists()
    if number == signal.SIGTERM:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "packed before" in done.stdout
        pack_folder(folder, tmp_path / "expected")
        assert contents(tmp_path / "packs") == contents(tmp_path / "expected")


def test_a_second_packing_in_the_same_folder_is_refused(images, tmp_path):
    from vit24h.data import packing as module

    (tmp_path / "packs").mkdir()
    with module._held(tmp_path / "packs"), pytest.raises(UserError, match=f"process {os.getpid()} is packing there"):
        pack_folder(images, tmp_path / "packs")
    pack_folder(images, tmp_path / "packs")


# -- damage -----------------------------------------------------------------------------------------------------------


def changed_at(path, place, by=b"\xff"):
    content = bytearray(path.read_bytes())
    old = bytes(content[place : place + len(by)])
    content[place : place + len(by)] = bytes(a ^ b for a, b in zip(old, by, strict=True))
    path.write_bytes(content)


REGIONS = {
    "no index": ("train.index", lambda p: p.unlink(), "train.index: is missing"),
    "an empty index": ("train.index", lambda p: p.write_bytes(b""), "train.index: is empty"),
    "the magic": ("train.index", lambda p: changed_at(p, 3), "train.index: is not the index of a pack"),
    "a newer version": ("train.index", lambda p: changed_at(p, 8, b"\x02"), r"is of format 3.*reads up to 1: update"),
    "an older version": ("train.index", lambda p: changed_at(p, 8, b"\x01"), "is damaged in its first"),
    "the header's length": ("train.index", lambda p: changed_at(p, 15), "is damaged: a header of"),
    "the header's length, a little": ("train.index", lambda p: changed_at(p, 12, b"\x01"), "is damaged in its first"),
    "the header's checksum": ("train.index", lambda p: changed_at(p, 20), "is damaged in its first"),
    "the header": ("train.index", lambda p: changed_at(p, 60), "is damaged in its first"),
    "the tables": ("train.index", lambda p: changed_at(p, p.stat().st_size - 300), "is damaged from byte"),
    "the last byte": ("train.index", lambda p: changed_at(p, p.stat().st_size - 1), "is damaged from byte"),
    "an index cut off": ("train.index", lambda p: os.truncate(p, p.stat().st_size - 1), "bytes where its header says"),
    "an index too long": ("train.index", lambda p: p.write_bytes(p.read_bytes() + b"x"), "bytes where its header says"),
    "val for train": ("val.index", lambda p: shutil.copyfile(p, p.with_name("train.index")), "index of the split val"),
    "no data": ("train.data", lambda p: p.unlink(), "train.data: cannot be read: No such file"),
    "data cut off": ("train.data", lambda p: os.truncate(p, 999), "train.data: has 999 bytes where its index says"),
    "data too long": (
        "train.data",
        lambda p: p.write_bytes(p.read_bytes() + b"x"),
        "train.data: has .* where its index",
    ),
    "the data's magic": ("train.data", lambda p: changed_at(p, 0), "train.data: does not begin as a pack does"),
    "another's data": ("train.data", lambda p: changed_at(p, 20), "train.data: belongs to another index"),
    "a folder for data": (
        "train.data",
        lambda p: (p.unlink(), p.mkdir()),
        "train.data: (is not a file|cannot be read)",
    ),
    "a folder for the index": ("train.index", lambda p: (p.unlink(), p.mkdir()), "train.index: is not a file"),
    "a pipe for the index": ("train.index", lambda p: (p.unlink(), os.mkfifo(p)), "train.index: is not a file"),
    "a pipe for data": ("train.data", lambda p: (p.unlink(), os.mkfifo(p)), "train.data: is not a file"),
    "images beside": ("train.data", lambda p: p.with_name("train").mkdir(), "has both images .train/. and packs"),
    "packing goes on": ("train.data", lambda p: p.with_name("train.journal").touch(), "not packed to its end"),
}


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.timeout(20)
def test_damage_is_refused_with_what_is_wrong_and_where(name, own_pack):
    file, damage, message = REGIONS[name]
    damage(own_pack / file)
    with pytest.raises(UserError, match=message) as error:
        open_dataset(own_pack)
    assert str(error.value).isprintable()
    assert str(own_pack) in str(error.value)


def test_packs_of_different_packings_are_refused(packed, tmp_path):
    shutil.copytree(packed[0], tmp_path / "mixed")
    for name in ("val.data", "val.index"):
        shutil.copyfile(packed[1] / name, tmp_path / "mixed" / name)
    with pytest.raises(UserError, match="are not of the same packing"):
        open_dataset(tmp_path / "mixed")


def test_a_damaged_image_is_one_corrupt_image_not_another_picture(own_pack):
    intact = open_dataset(own_pack).train
    begin = int(intact._tables.offsets[5])
    changed_at(own_pack / "train.data", begin + 400, b"\x01")
    train = open_dataset(own_pack).train
    with pytest.raises(DamagedEntryError) as error:
        train.read(5)
    assert f"damaged in train.data, bytes {begin} to" in error.value.strerror
    assert bytes(train.read(4)) == bytes(intact.read(4))
    found = {c.name: c for c in doctor.examine([tiny_config(own_pack)], own_pack.parent / "runs", full=True)}["images"]
    assert found.state == "warn"
    assert f"{train.path(5)} (cannot be read: damaged in train.data" in found.found


def test_a_file_that_is_cut_off_under_its_reader_is_an_error_and_no_bus_error(own_pack):
    train = open_dataset(own_pack).train
    os.truncate(own_pack / "train.data", 5000)
    with pytest.raises(DamagedEntryError):
        train.read(len(train) - 1)
    assert not train.is_there()


def test_a_pack_that_goes_is_still_read_and_one_that_comes_back_too(own_pack):
    train = open_dataset(own_pack).train
    expected = bytes(train.read(7))
    away = own_pack.with_name("away")
    own_pack.rename(away)
    assert not train.is_there()
    assert bytes(train.read(7)) == expected, "an open file stays"
    os.dup2(os.open(os.devnull, os.O_RDONLY), train._data._descriptor)  # it gives nothing any more
    with pytest.raises(FileNotFoundError):
        train.read(7)
    own_pack.mkdir()
    (own_pack / "train.data").write_bytes(b"another file")
    assert not train.is_there()
    with pytest.raises(DamagedEntryError, match="has 12 bytes where its index says"):
        train.read(7)
    shutil.copyfile(away / "train.data", own_pack / "train.data")
    assert train.is_there()
    assert bytes(train.read(7)) == expected


# -- training from packs ----------------------------------------------------------------------------------------------


def result_of(run_dir):
    weights = load_file(run_dir / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in weights.items()}


def test_training_from_a_pack_is_the_same_whatever_the_number_of_workers(own_pack, images, tmp_path):
    for workers in (0, 1, 2):
        train(tiny_config(own_pack, f"runtime.workers={workers}"), tmp_path / str(workers))
    assert result_of(tmp_path / "0") == result_of(tmp_path / "1") == result_of(tmp_path / "2")
    facts = read_json(tmp_path / "0" / "environment.json")["dataset"]
    assert facts["packing"] == open_dataset(own_pack).packing
    assert facts["packing"]["source_fingerprint"] == open_dataset(images).fingerprint != facts["fingerprint"]


def test_a_pack_of_whole_files_trains_as_the_folder_does(images, tmp_path):
    pack_folder(images, tmp_path / "packs", PackParameters(256, 90))  # all images are smaller
    train(tiny_config(tmp_path / "packs"), tmp_path / "of packs")
    train(tiny_config(images), tmp_path / "of the folder")
    assert result_of(tmp_path / "of packs") == result_of(tmp_path / "of the folder")
    assert read_json(tmp_path / "of the folder" / "environment.json")["dataset"]["packing"] is None


def test_the_command_line_packs_trains_goes_on_evaluates_and_verifies(images, tmp_path, capsys):
    def vit24h(*words, status=0):
        assert main([str(word) for word in words]) == status
        return "".join(capsys.readouterr())

    packs, run_dir = tmp_path / "packs", tmp_path / "run"
    assert "packed: 36 images" in vit24h("pack", images, packs, "--short-side", 24)
    assert "nothing to do" in vit24h("pack", images, packs, "--short-side", 24)
    assert "--quality is of JPEG files" in vit24h("pack", images, packs, "--raw", "--quality", 90, status=2)

    settings = [*tiny_settings(packs), *CURRICULUM, "budget.steps=12", "runtime.workers=2"]
    words = ["train", "paper/combined", "--profile", "quick", "--run-dir", str(run_dir)]
    words += [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen([sys.executable, "-m", "vit24h", *words], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not any(row["step"] >= 3 for row in rows_of(run_dir)):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.005)
    process.terminate()
    assert process.wait(timeout=120) == 143
    vit24h(*words)
    assert "resume" in [row["event"] for row in rows_of(run_dir)]
    train(tiny_config(packs), tmp_path / "undisturbed")
    assert result_of(run_dir) == result_of(tmp_path / "undisturbed")

    told = vit24h("verify", run_dir, "--data", packs, status=1)  # a smoke run keeps not every rule
    assert "ok      dataset here" in told and "ok      re-evaluation" in told
    told = vit24h("verify", run_dir, "--data", images, status=1)
    assert "the folder that the run's images were packed from" in told
    assert "of the packed ones" in told
    assert "on 12 images" in vit24h("evaluate", run_dir, "--data", images)
    edit_json(run_dir / "result.json", lambda result: result.update(top1=100.0))
    assert "points too much" in vit24h("verify", run_dir, "--data", images, status=1)


def test_a_pack_that_goes_for_good_and_comes_back_is_waited_for(own_pack, tmp_path, monkeypatch):
    """As on a disk that is unmounted: what is open is dead, and the files are not there."""
    from vit24h.engine.step import TrainStep

    train(tiny_config(own_pack, "runtime.workers=2", steps=24), tmp_path / "undisturbed")
    away, original, steps = own_pack.with_name("away"), TrainStep.__call__, []
    pread, fstat = os.pread, os.fstat

    def call(self, batch, learning_rate):
        steps.append(batch)
        if len(steps) == 4:
            own_pack.rename(away)
            dead = (away / "train.data").stat().st_ino

            def gone(descriptor, *words):
                if fstat(descriptor).st_ino == dead and away.exists():
                    raise OSError(116, "Stale file handle")
                return words

            monkeypatch.setattr(os, "pread", lambda d, *w: gone(d) or pread(d, *w))
            monkeypatch.setattr(os, "fstat", lambda d: gone(d) or fstat(d))
        return original(self, batch, learning_rate)

    import threading

    monkeypatch.setattr(TrainStep, "__call__", call)

    def come_back():
        end = time.monotonic() + 240
        while not any(row.get("kind") == "dataset_gone" for row in rows_of(tmp_path / "run")):
            assert time.monotonic() < end
            time.sleep(0.05)
        away.rename(own_pack)

    thread = threading.Thread(target=come_back)
    thread.start()
    train(tiny_config(own_pack, "runtime.workers=0", steps=24), tmp_path / "run")
    thread.join()
    kinds = [row["kind"] for row in rows_of(tmp_path / "run") if row["event"] == "incident"]
    assert kinds[:2] == ["dataset_gone", "dataset_back"]
    assert set(kinds) == {"dataset_gone", "dataset_back"}
    assert result_of(tmp_path / "run") == result_of(tmp_path / "undisturbed")


def rows_of(run_dir):
    return read_rows(run_dir / "log.jsonl") if (run_dir / "log.jsonl").exists() else []


# -- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_flat_in_the_number_of_images(tmp_path):
    """What an image more takes of memory: of a reader, and of the process that writes."""
    small = encoded(Image.fromarray(noise(8, 8)))
    peaks = {}
    for number in (1_000, 5_000):
        for split, count in (("train", number), ("val", 1)):
            folder = tmp_path / str(number) / split / "n01440764"
            folder.mkdir(parents=True)
            (folder / "n01440764_0.JPEG").write_bytes(small)
            for i in range(1, count):
                os.link(folder / "n01440764_0.JPEG", folder / f"n01440764_{i}.JPEG")
        packs = tmp_path / f"packs{number}"
        written = traced(lambda number=number, packs=packs: pack_folder(tmp_path / str(number), packs))
        peaks[number] = written, traced(lambda packs=packs: keep(open_dataset(packs)))
    for who, most in ((0, 250), (1, 120)):  # bytes an image, for moments; 1.3 million images: 0.3 and 0.15 GB
        assert (peaks[5_000][who] - peaks[1_000][who]) / 4_000 < most, ("writer", "reader")[who]
    assert sum(table.nbytes for table in vars(open_dataset(packs).train._tables).values()) / 5_000 < 50


def traced(work):
    """Bytes that Python and numpy held at most while `work` was done."""
    import tracemalloc

    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def keep(dataset):
    for index in range(0, len(dataset.train), 100):
        dataset.train.read(index)


def test_a_thing_that_is_no_pack_is_a_folder_to_open_dataset(images):
    assert isinstance(open_dataset(images).train, FolderIndex)


def test_what_pack_reads_it_can_write_again(packed):
    header, tables, size = pack.read_index(packed[1] / "train.index")
    assert pack.index_to_bytes(header, tables) == (packed[1] / "train.index").read_bytes()
    assert size == (packed[1] / "train.index").stat().st_size
    assert isinstance(PackIndex.open(packed[1], "train"), PackIndex)
