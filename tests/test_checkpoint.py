"""Checkpoints: whole or not there, the last two kept, damage found and passed over, a full disk survived."""

import subprocess
import sys

import pytest
import torch

from vit24h.engine.checkpoint import load_newest_checkpoint, save_checkpoint


def load(folder):
    damaged = []
    state = load_newest_checkpoint(folder, torch.device("cpu"), damaged=lambda *found: damaged.append(found))
    return state, damaged


def test_the_newest_of_the_last_two_is_read_back(tmp_path):
    for step in (5, 50, 1000):
        save_checkpoint(tmp_path, step, {"step": step, "weights": torch.full((3,), float(step)), "none": None})
    assert len(list(tmp_path.iterdir())) == 2
    state, damaged = load(tmp_path)
    assert state["step"] == 1000
    assert torch.equal(state["weights"], torch.full((3,), 1000.0))
    assert not damaged


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert load(tmp_path) == (None, [])


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_a_damaged_newest_one_falls_back_to_the_one_before(tmp_path, damage):
    save_checkpoint(tmp_path, 1, {"step": 1, "weights": torch.arange(1000)})
    newest = save_checkpoint(tmp_path, 2, {"step": 2, "weights": torch.arange(1000)})
    content = bytearray(newest.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"flip": content, "truncate": content[:-1], "empty": b""}[damage])
    state, damaged = load(tmp_path)
    assert state["step"] == 1
    assert [path for path, _ in damaged] == [newest]
    assert "checksum" in damaged[0][1]


def test_a_kill_while_saving_leaves_the_old_ones_and_nothing_half_written(tmp_path):
    """kill -9 at many moments of saving in a loop: whatever is there afterwards is whole."""
    code = (
        "import sys, torch; from pathlib import Path; from vit24h.engine.checkpoint import save_checkpoint\n"
        "folder = Path(sys.argv[1])\n"
        "for step in range(1, 10**6):\n"
        "    save_checkpoint(folder, step, {'step': step, 'weights': torch.full((200_000,), float(step))})\n"
        "    print(step, flush=True)\n"
    )
    for kill_after_saves in (1, 2, 5):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(kill_after_saves):
            saved = int(process.stdout.readline())
        process.kill()
        process.communicate()
        state, damaged = load(tmp_path)
        assert state["step"] >= saved
        assert torch.equal(state["weights"], torch.full((200_000,), float(state["step"])))
        assert not damaged
        assert not list(tmp_path.glob("*.writing"))
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_checkpoint_that_would_execute_code_is_not_loaded(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    save_checkpoint(tmp_path, 1, {"weights": torch.ones(1)})
    save_checkpoint(tmp_path, 2, {"weights": Evil()})
    state, damaged = load(tmp_path)
    assert torch.equal(state["weights"], torch.ones(1))
    assert "UnpicklingError" in damaged[0][1]
    assert "executed" not in capsys.readouterr().out
