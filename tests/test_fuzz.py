"""Nothing executes from data, and nothing in it brings the program down: whatever a configuration, a record or a
checkpoint holds, it is used, or refused in one line.

Hypothesis draws the cases: arbitrary bytes, arbitrary values of the right shape, and real files with something changed.
The same ones are drawn every time; VIT24H_FUZZ=20 draws other ones, twenty times as many.
"""

import copy
import itertools
import json
import math
import os
import shutil
import time
from contextlib import contextmanager

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from benchmark_record import write_benchmark_record
from tiny import tiny_config, write_images
from vit24h import paths
from vit24h.config import Config, config_from_dict, load_config, read_config
from vit24h.engine.checkpoint import _checksum, load_newest_checkpoint, save_checkpoint
from vit24h.engine.evaluate_run import evaluate_run
from vit24h.engine.interruption import Interrupted
from vit24h.engine.train import train
from vit24h.errors import UserError
from vit24h.records import load_run
from vit24h.records.fields import same
from vit24h.records.verify import verify
from vit24h.report.leaderboard import leaderboard

_TIMES = int(os.environ.get("VIT24H_FUZZ", "1"))
HANG_S = 10  # for one case, on a busy machine

pytestmark = pytest.mark.timeout(60 + 300 * (_TIMES > 1) * _TIMES)


def cases(number):
    """So many cases of a test."""
    return settings(
        max_examples=number * _TIMES,
        derandomize=_TIMES == 1,
        database=None,
        deadline=1000 * HANG_S,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@contextmanager
def refused_in_one_line():
    """What is inside works, or raises UserError with a message of one readable line."""
    try:
        yield
    except UserError as error:
        message = str(error)
        assert message
        assert message.isprintable(), repr(message)
        assert len(message) < 2000


# -- what is drawn --------------------------------------------------------------------------------------------------

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 224, 2**31, 2**63, 10**40, -(10**400), 10**400]),
    st.floats(),
    st.sampled_from([0.0, 1e-3, 1e308, -1e308, math.inf, -math.inf, math.nan]),
    st.text(max_size=20),
    st.sampled_from(["", "auto", "mlp", "no", "1e-3", "\x00", "\n", "‮", "../../etc/passwd", "x" * 500]),
)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def leaves(values, prefix=()):
    """Paths to every value in nested mappings, the inner mappings themselves too."""
    for key, value in values.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))


def replaced(values, path, value):
    result = copy.deepcopy(values)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return result


CONFIG = load_config("paper/combined", profile="quick").to_dict()
CONFIG_PATHS = sorted(leaves(CONFIG))
KEYS = st.sampled_from(sorted({key for path in CONFIG_PATHS for key in path})) | st.text(max_size=10)

NASTY_YAML = [
    "!!bool maybe",
    "!!int ''",
    "!!int x",
    "!!float x",
    "!!timestamp x",
    "2001-99-99",
    "!!binary x",
    "!!python/object/apply:os.getcwd []",
    "!!set {a, b}",
    "{? !!set {a} : b}",
    "{? [a] : b}",
    "{<<: 3}",
    "{<<: {a: 1}, a: 2}",
    "&a [*a]",
    "&a {b: *a}",
    "*nowhere",
    "=",
    "0x" + "f" * 5000,
    "1" * 5000,
    "1e999",
    "190:20:30",
    "[" * 3000,
    "{a: " * 3000,
    "- " * 3000,
    "'\\ud800'",
    '"\\ud800"',
    "|\n  text",
    "a: b: c",
    "%YAML 9.9\n---\n1",
    "--- 1\n--- 2",
]
# Ten levels of ten: short to write, and endless to whoever prints it in full.
LAUGHS = "k: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"k{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in itertools.pairwise("abcdefghij")
)


# -- configurations -------------------------------------------------------------------------------------------------


@pytest.fixture
def yaml_file(tmp_path):
    return tmp_path / "mine.yaml"


def check_config(path, **options):
    begin = time.monotonic()
    with refused_in_one_line():
        config = load_config(path, **options)
        assert isinstance(config, Config)
        path.with_name("resolved.yaml").write_text(config.to_yaml())
        assert read_config(path.with_name("resolved.yaml")) == config  # so it is complete and of the right types
    with refused_in_one_line():
        read_config(path)
    assert time.monotonic() - begin < HANG_S


@cases(300)
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(content=LAUGHS.encode())
def test_a_configuration_of_any_bytes_is_refused_in_one_line(yaml_file, content):
    yaml_file.write_bytes(content)
    check_config(yaml_file)


@cases(1000)
@given(path=st.sampled_from(CONFIG_PATHS), value=JSON_VALUES)
def test_any_value_in_any_field_is_used_or_refused(path, value):
    with refused_in_one_line():
        config = config_from_dict(replaced(CONFIG, path, value), "a test")
        assert config_from_dict(config.to_dict(), "a test") == config  # so it is complete and of the right types


@cases(50)
@given(layer=st.dictionaries(KEYS, JSON_VALUES | st.dictionaries(KEYS, JSON_VALUES, max_size=3), max_size=3))
def test_any_keys_are_used_or_refused(yaml_file, layer):
    text = yaml.dump({"extends": "base.yaml", **layer})
    shutil.copyfile(paths.configs() / "base.yaml", yaml_file.with_name("base.yaml"))
    yaml_file.write_text(text, errors="surrogatepass")
    check_config(yaml_file)
    profile = yaml_file.with_name("profile.yaml")
    profile.write_text(yaml.dump(layer | {"by_arm": layer}), errors="surrogatepass")
    with refused_in_one_line():
        load_config("paper/combined", profile=profile)


@pytest.mark.parametrize("text", [*NASTY_YAML, LAUGHS], ids=lambda text: text[:20])
def test_what_pyyaml_stumbles_over_is_refused(yaml_file, text):
    for content in (text, f"seed: {text}", f"model: {text}", f"{text}: 1", f"extends: {text}", f"by_arm: {text}"):
        yaml_file.write_text(content)
        check_config(yaml_file)
        with refused_in_one_line():
            load_config("paper/combined", profile=yaml_file)
    for key in ("seed", "model", "name", "data.path", "x", "a.b.c"):
        with refused_in_one_line():
            load_config("paper/combined", overrides=[f"{key}={text}"])


@cases(100)
@given(
    override=st.text(max_size=40)
    | st.builds(lambda path, text: f"{'.'.join(path)}={text}", st.sampled_from(CONFIG_PATHS), st.text(max_size=20))
)
def test_any_override_is_used_or_refused(override):
    with refused_in_one_line():
        load_config("paper/combined", profile="quick", overrides=[override])


# -- records --------------------------------------------------------------------------------------------------------

FILES = ["config.yaml", "environment.json", "log.jsonl", "result.json"]


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untouched")
    write_benchmark_record(folder, stops={1: "kill"}, settings=("budget.hours=4",))
    (folder / "model.safetensors").unlink()
    (folder / ".lock").unlink()
    (folder / "checkpoints").rmdir()
    assert verify(folder).holds
    return folder


@pytest.fixture
def record(untouched, tmp_path):
    folder = tmp_path / "seed0"
    shutil.copytree(untouched, folder)
    return folder


def check_record(folder):
    """Everything that reads a record, on this one. Whether it keeps every rule."""
    begin = time.monotonic()
    with refused_in_one_line():
        run = load_run(folder)
        assert run.state in {"finished", "unfinished", "failed"}
        assert isinstance(run.arm, str)
        assert isinstance(run.seed, int)
        run.curve()
    with refused_in_one_line():
        verification = verify(folder)
        assert verification.to_text()
        text = leaderboard(folder.parent).to_markdown()
        assert ("1 of 1 records" in text) == verification.holds
        assert time.monotonic() - begin < HANG_S
        return verification.holds
    return False


@cases(100)
@given(name=st.sampled_from(FILES), content=st.binary(max_size=100) | JSON_VALUES.map(lambda v: json.dumps(v).encode()))
def test_a_file_of_anything_makes_no_record(record, untouched, name, content):
    (record / name).write_bytes(content)
    assert not check_record(record)
    shutil.copyfile(untouched / name, record / name)


@cases(150)
@given(data=st.data(), change=st.sampled_from(["flip", "cut", "insert", "drop line", "double line", "swap lines"]))
def test_any_change_to_the_log_is_found(record, untouched, data, change):
    original = (untouched / "log.jsonl").read_bytes()
    content, lines = bytearray(original), original.splitlines(keepends=True)
    place = data.draw(st.integers(0, len(content) - 1))
    line, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in "ab")
    if change == "flip":
        content[place] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del content[place:]
    elif change == "insert":
        content[place:place] = data.draw(st.binary(min_size=1, max_size=5))
    elif change == "drop line":
        del lines[line]
    elif change == "double line":
        lines.insert(other, lines[line])
    else:
        lines[line], lines[other] = lines[other], lines[line]
    tampered = bytes(content) if change in {"flip", "cut", "insert"} else b"".join(lines)
    (record / "log.jsonl").write_bytes(tampered)
    assert check_record(record) == (tampered == original)


@cases(150)
@given(data=st.data(), name=st.sampled_from(["environment.json", "result.json"]), value=JSON_VALUES)
def test_any_other_value_in_a_json_file_is_found(record, untouched, data, name, value):
    original = json.loads((untouched / name).read_text())
    tampered = replaced(original, data.draw(st.sampled_from(sorted(leaves(original)))), value)
    (record / name).write_text(json.dumps(tampered))
    assert check_record(record) == same(tampered, original) or (name == "result.json" and tampered == original)
    shutil.copyfile(untouched / name, record / name)


@cases(100)
@given(path=st.sampled_from(CONFIG_PATHS), value=JSON_VALUES)
def test_any_other_value_in_the_configuration_is_found(record, untouched, path, value):
    original = yaml.safe_load((untouched / "config.yaml").read_text())
    tampered = replaced(original, path, value)
    (record / "config.yaml").write_text(yaml.dump(tampered), errors="surrogatepass")
    kept = check_record(record)
    for content in (original, tampered):  # what changes no result
        content.pop("runtime", None)
        if isinstance(content.get("data"), dict):
            content["data"].pop("path", None)
    assert not kept or same(tampered, original)


@cases(150)
@given(data=st.data(), value=JSON_VALUES)
def test_any_value_in_a_row_is_read_or_refused_even_when_its_links_are_made_new(record, untouched, data, value):
    from benchmark_record import cover_tracks

    rows = [json.loads(line) for line in (untouched / "log.jsonl").read_text().splitlines()]
    number = data.draw(st.integers(0, len(rows) - 1))
    rows[number] = replaced(rows[number], data.draw(st.sampled_from(sorted(leaves(rows[number])))), value)
    (record / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cover_tracks(record)
    check_record(record)
    shutil.copyfile(untouched / "result.json", record / "result.json")


# -- checkpoints ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_checkpoints(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (1, 2):
        save_checkpoint(folder, step, {"step": step, "weights": torch.full((50,), float(step)), "clock": {"a": 1.0}})
    return folder


def load(folder):
    damaged = []
    state = load_newest_checkpoint(folder, torch.device("cpu"), damaged=lambda *found: damaged.append(found))
    assert all(len(reason.splitlines()) == 1 for _, reason in damaged)
    return state, damaged


@cases(300)
@given(data=st.data(), change=st.sampled_from(["flip", "cut", "insert", "anything"]))
def test_a_damaged_checkpoint_is_never_loaded(whole_checkpoints, tmp_path, data, change):
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    folder = shutil.copytree(whole_checkpoints, tmp_path / "c")
    newest = max(folder.iterdir())
    newest.write_bytes(changed(data, newest.read_bytes(), change))
    state, damaged = load(folder)
    assert state["step"] == 1
    assert torch.equal(state["weights"], torch.full((50,), 1.0))
    assert [path for path, _ in damaged] == [newest]


@cases(300)
@given(data=st.data(), change=st.sampled_from(["flip", "cut", "insert", "anything"]))
def test_a_forged_checkpoint_with_a_fitting_checksum_brings_nothing_down(whole_checkpoints, tmp_path, data, change):
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    folder = shutil.copytree(whole_checkpoints, tmp_path / "c")
    newest = max(folder.iterdir())
    newest.write_bytes(changed(data, newest.read_bytes(), change))
    newest.rename(folder / f"step-000000002-{_checksum(newest)}.pt")
    state, _ = load(folder)
    assert isinstance(state, dict)


def changed(data, content, change):
    """Never the content itself."""
    if change == "anything":
        return data.draw(st.binary(max_size=300).filter(lambda drawn: drawn != content))
    place = data.draw(st.integers(0, len(content) - 1))
    if change == "flip":
        return content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
    if change == "cut":
        return content[:place]
    return content[:place] + data.draw(st.binary(min_size=1, max_size=10)) + content[place:]


@cases(100)
@given(
    names=st.lists(st.text("step-0123456789abcdef.ptwriting", max_size=40), max_size=4), content=st.binary(max_size=20)
)
@example(names=["step-000000009-0123456789abcdef.pt"], content=b"")
@example(names=["000000009.writing"], content=b"half")
def test_files_of_other_names_are_left_alone_or_passed_over(whole_checkpoints, tmp_path, names, content):
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    folder = shutil.copytree(whole_checkpoints, tmp_path / "c")
    for number, name in enumerate(names):
        path = folder / (name if name not in {"", ".", ".."} else "x")
        if path.exists():
            continue
        if number % 2:
            path.mkdir()
        else:
            path.write_bytes(content)
    assert load(folder)[0]["step"] == 2


def test_a_folder_in_a_checkpoints_place_is_passed_over(whole_checkpoints, tmp_path):
    folder = shutil.copytree(whole_checkpoints, tmp_path / "c")
    (folder / "step-000000009-0123456789abcdef.pt").mkdir()
    (folder / "000000009.writing").mkdir()
    assert load(folder)[0]["step"] == 2


# -- weights, and a run folder that a run goes on in -------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"), classes=2, train=24, val=2)


@pytest.fixture(scope="module")
def stopped(data_folder, tmp_path_factory):
    """A run that was stopped after two steps, and one that is finished."""
    import signal

    from vit24h.engine.step import TrainStep

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    original = TrainStep.__call__

    def call(self, batch, learning_rate):
        loss = original(self, batch, learning_rate)
        if batch.position == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", call)
        with pytest.raises(Interrupted):
            train(tiny_config(data_folder, arm="baseline", steps=4), folder / "stopped")
    train(tiny_config(data_folder, arm="baseline", steps=1), folder / "finished")
    return folder


@cases(30)
@given(data=st.data(), change=st.sampled_from(["flip", "cut", "insert", "anything"]))
def test_weights_of_any_bytes_are_evaluated_or_refused(stopped, data_folder, tmp_path, data, change):
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    run = shutil.copytree(stopped / "finished", tmp_path / "run")
    weights = run / "model.safetensors"
    weights.write_bytes(changed(data, weights.read_bytes(), change))
    with refused_in_one_line():
        assert evaluate_run(run, data=data_folder)["images"] == 4


DAMAGE = {
    "no environment": ("environment.json", None),
    "half an environment": ("environment.json", '{"dataset": '),
    "an environment without a dataset": ("environment.json", "{}"),
    "a dataset of text": ("environment.json", '{"dataset": "images"}'),
    "a damaged row": ("log.jsonl", "nonsense\n"),
    "a row without a clock": ("log.jsonl", '{"event": "start"}\n'),
    "a clock of text": ("log.jsonl", '{"event": "end", "saved": true, "clock": "late"}\n'),
    "half a result": ("result.json", '{"top1": '),
    "a result that is a list": ("result.json", "[]"),
    "a heartbeat that is a list": ("heartbeat.json", "[]"),
    "a heartbeat of text": ("heartbeat.json", '{"clock": {"wall_s": "late"}}'),
    "a configuration of another kind": ("config.yaml", "[]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_run_goes_on_in_a_damaged_folder_or_says_what_is_damaged(name, stopped, data_folder, tmp_path):
    run = shutil.copytree(stopped / "stopped", tmp_path / "run")
    file, content = DAMAGE[name]
    if content is None:
        (run / file).unlink()
    else:
        (run / file).write_text(content)
    with refused_in_one_line():
        train(tiny_config(data_folder, arm="baseline", steps=4), run)
