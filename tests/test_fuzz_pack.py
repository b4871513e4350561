"""Packs of any bytes: used, or refused in one line; an image is what was packed, or an error, and never another one.

As in `test_fuzz.py`: the same cases every time; VIT24H_FUZZ=20 draws other ones, twenty times as many.
"""

import hashlib
import json
import shutil
import struct
import time
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from test_fuzz import HANG_S, JSON_VALUES, cases, changed, leaves, refused_in_one_line, replaced
from tiny import write_images
from vit24h.data import open_dataset, pack, packing
from vit24h.data.pack import PackParameters
from vit24h.data.packing import Packing, PackingStopped
from vit24h.errors import UserError

CHANGES = st.sampled_from(["flip", "cut", "insert", "anything"])
PARAMETERS = {"jpeg": PackParameters(24, 90), "raw": PackParameters(24, None)}
KINDS = st.sampled_from(sorted(PARAMETERS))

pytestmark = pytest.mark.timeout(600)


class InThisProcess:
    """The writer's pool without processes, which take most of the time of so small a packing."""

    def __init__(self, _workers, images, parameters):
        packing._images, packing._parameters = images, parameters

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def in_order(self, tasks):
        for task in tasks:
            yield packing._prepare(*task)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), classes=2, train=12, val=2)


@pytest.fixture(scope="module", autouse=True)
def _no_processes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_Pool", InThisProcess)
        yield


@pytest.fixture(scope="module")
def packed(images, tmp_path_factory):
    folders = {}
    for kind, parameters in PARAMETERS.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        Packing(images, folders[kind], parameters, 1).run(say=lambda _: None)
    return folders


@pytest.fixture
def copy_of(tmp_path):
    def copied(folder):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return shutil.copytree(folder, tmp_path / "copy")

    return copied


@contextmanager
def refused(match=None):
    """What is inside raises UserError with a message of one readable line."""
    with pytest.raises(UserError, match=match) as error:
        yield
    with refused_in_one_line():
        raise error.value


def read_all(folder):
    """Every image of both splits: its bytes, or None where it cannot be read. Any other error is one of the program."""
    begin, found = time.monotonic(), []
    dataset = open_dataset(folder)
    assert dataset.packing["bytes"] > 0
    for images in (dataset.train, dataset.val):
        assert images.is_there()
        for index in range(len(images)):
            assert 0 <= images.labels[index] < len(images.classes)
            assert ".." not in images.path(index).parts
            try:
                found.append(bytes(images.read(index)))
            except OSError as error:
                assert error.strerror.isprintable()
                found.append(None)
    assert time.monotonic() - begin < HANG_S
    return found


@cases(300)
@given(data=st.data(), kind=KINDS, change=CHANGES)
def test_an_index_of_any_bytes_is_refused(packed, copy_of, data, kind, change):
    folder = copy_of(packed[kind])
    index = folder / data.draw(st.sampled_from(["train.index", "val.index"]))
    index.write_bytes(changed(data, index.read_bytes(), change))
    with refused(match=index.name):
        open_dataset(folder)


@cases(200)
@given(data=st.data(), kind=KINDS, change=CHANGES)
def test_of_a_damaged_data_file_no_image_is_another_one(packed, copy_of, data, kind, change):
    folder = copy_of(packed[kind])
    file = folder / data.draw(st.sampled_from(["train.data", "val.data"]))
    file.write_bytes(changed(data, file.read_bytes(), change))
    with refused_in_one_line():
        found, expected = read_all(folder), read_all(packed[kind])
        assert found != expected
        assert all(one is None or one == other for one, other in zip(found, expected, strict=True))


# -- forged: whoever wrote the file made its checksums fit ----------------------------------------------------------


def parts(index):
    content = index.read_bytes()
    length = struct.unpack_from("<I", content, 12)[0]
    return json.loads(content[48 : 48 + length]), content[48 + length :]


def forge(index, header, tables):
    if isinstance(header, dict) and "tables_sha256" in header:
        header = {**header, "tables_sha256": hashlib.sha256(tables).hexdigest()}
    text = json.dumps(header).encode()
    index.write_bytes(pack._index_head(pack.VERSION, text) + text + tables)


@cases(500)
@given(data=st.data(), kind=KINDS, value=JSON_VALUES)
def test_a_forged_header_is_used_or_refused(packed, copy_of, data, kind, value):
    folder = copy_of(packed[kind])
    header, tables = parts(folder / "train.index")
    path = data.draw(st.sampled_from(sorted(leaves(header))))
    with refused_in_one_line():
        forge(folder / "train.index", replaced(header, path, value), tables)
        read_all(folder)


@cases(100)
@given(kind=KINDS, header=JSON_VALUES)
@example(kind="raw", header=[])
def test_any_header_is_refused(packed, copy_of, kind, header):
    folder = copy_of(packed[kind])
    forge(folder / "train.index", header, b"")
    with refused():
        open_dataset(folder)


@cases(500)
@given(data=st.data(), kind=KINDS)
def test_forged_tables_are_used_or_refused(packed, copy_of, data, kind):
    folder = copy_of(packed[kind])
    header, tables = parts(folder / "train.index")
    layout = pack._layout(header)
    name, dtype, count = data.draw(st.sampled_from([entry for entry in layout if entry[2]]))
    begin = sum(dtype.itemsize * count for _, dtype, count in layout[: [e[0] for e in layout].index(name)])
    limits = np.iinfo(dtype)
    values = st.integers(int(limits.min), int(limits.max)) | st.sampled_from([0, 1, int(limits.max), int(limits.min)])
    forged = np.frombuffer(tables, dtype, count, begin).copy()
    for place in data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3)):
        forged[place] = data.draw(values)
    content = forged.tobytes()
    with refused_in_one_line():
        forge(folder / "train.index", header, tables[:begin] + content + tables[begin + len(content) :])
        read_all(folder)


@pytest.mark.parametrize("name", [b"../../up.JPEG", b"/rooted.JPEG", b"down/../../up", b"..", b"\0"])
def test_no_name_leads_out_of_its_folder(packed, copy_of, name):
    folder = copy_of(packed["jpeg"])
    header, tables, _ = pack.read_index(folder / "train.index")
    ends = tables.name_ends.copy()
    ends[-1] = ends[-2] + len(name)
    names = np.frombuffer(tables.names.tobytes()[: ends[-2]] + name, np.uint8)
    forged = pack.Tables(**{**vars(tables), "name_ends": ends, "names": names})
    (folder / "train.index").write_bytes(pack.index_to_bytes(header, forged))
    with refused(match="has a name that leads out of its folder"):
        open_dataset(folder)


@pytest.mark.parametrize("name", ["..", "a/b", "/etc", "", "a\0b"])
def test_no_class_leads_out_of_its_folder(packed, copy_of, name):
    folder = copy_of(packed["jpeg"])
    header, tables = parts(folder / "train.index")
    forge(folder / "train.index", {**header, "classes": [name, "other"]}, tables)
    with refused(match="a header that cannot be"):
        open_dataset(folder)


def test_a_huge_claim_takes_no_memory(packed, copy_of):
    folder = copy_of(packed["jpeg"])
    header, tables = parts(folder / "train.index")
    for key, value in (("images", 2**31 - 1), ("names_bytes", 2**62)):
        forge(folder / "train.index", {**header, key: value}, tables)
        with refused(match=r"bytes where its header says|cannot be"):
            open_dataset(folder)


# -- a packing that goes on -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    folders = {}
    for kind, parameters in PARAMETERS.items():
        folders[kind] = folder = tmp_path_factory.mktemp("stopped")

        def begun(folder=folder):
            journal = folder / "train.journal"
            return journal.exists() and len(journal.read_bytes().partition(b"\n")[2]) >= 16 * 20

        with pytest.raises(PackingStopped):
            Packing(images, folder, parameters, 1).run(stop=begun, say=lambda _: None)
    return folders


@cases(100)
@given(data=st.data(), kind=KINDS, change=CHANGES, file=st.sampled_from(["train.journal", "train.data.partial"]))
def test_from_a_damaged_state_packing_goes_on_to_the_same_bytes_or_refuses(
    images, packed, stopped, copy_of, data, kind, change, file
):
    folder = copy_of(stopped[kind])
    (folder / file).write_bytes(changed(data, (folder / file).read_bytes(), change))
    begin = time.monotonic()
    with refused_in_one_line():
        Packing(images, folder, PARAMETERS[kind], 1).run(say=lambda _: None)
        for path in packed[kind].iterdir():
            assert (folder / path.name).read_bytes() == path.read_bytes()
        assert len(list(folder.iterdir())) == 4
    assert time.monotonic() - begin < HANG_S
