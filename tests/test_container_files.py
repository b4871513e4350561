"""The container's files say one thing, and its start scripts give a remedy: what can be known without Docker.

What needs an engine is in test_container.py.
"""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import yaml

from vit24h import doctor, gpu_loss

ROOT = Path(__file__).resolve().parents[1]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES = yaml.safe_load(COMPOSE_TEXT)["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SETTINGS_TEXT = (ROOT / ".env.example").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_every_setting_is_explained_and_every_explained_setting_is_read():
    read = set(re.findall(r"\$\{(\w+)", COMPOSE_TEXT))
    explained = set(re.findall(r"^(\w+)=", SETTINGS_TEXT, re.MULTILINE))
    assert read == explained


def test_an_unset_and_an_empty_setting_are_the_same():
    assert not re.findall(r"\$\{\w+(?!:-)[^\w}].*?}", COMPOSE_TEXT)


def test_the_base_is_one_image_pinned_by_its_digest():
    (in_dockerfile,) = re.findall(r"^ARG BASE_IMAGE=(.+)$", DOCKERFILE, re.MULTILINE)
    (in_compose,) = re.findall(r"\$\{BASE_IMAGE:-(.+)}$", COMPOSE_TEXT, re.MULTILINE)
    assert in_dockerfile == in_compose
    assert re.fullmatch(r"nvidia/cuda:13\.0\.1-base-ubuntu24\.04@sha256:[0-9a-f]{64}", in_compose)


def test_the_image_has_the_version_of_the_package_and_never_latest():
    assert re.findall(r"^ARG VERSION=(.+)$", DOCKERFILE, re.MULTILINE) == [VERSION]
    tags = {service["image"] for service in SERVICES.values()}
    assert tags == {f"vit24h:${{VIT24H_TAG:-{VERSION}}}", f"vit24h-test:${{VIT24H_TAG:-{VERSION}}}"}
    assert "latest" not in COMPOSE_TEXT + DOCKERFILE


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_can_become_root_or_be_reached_from_elsewhere(name):
    service = SERVICES[name]
    assert service["user"].startswith("${VIT24H_UID:-1000}:")
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert not service.keys() & {"cap_add", "privileged", "pid", "ipc", "env_file"}
    if name == "notebooks":
        assert [port.split(":")[0] for port in service["ports"]] == ["127.0.0.1"]
    else:
        assert service["network_mode"] == "none"


def test_what_trains_is_told_to_stop_in_time_and_only_one_service_asks_for_a_gpu():
    for name in ("reproduce", "quick"):
        assert SERVICES[name]["init"] is True
        assert SERVICES[name]["stop_grace_period"] == "3m"
    assert [name for name, service in SERVICES.items() if "deploy" in service] == ["reproduce"]
    data = next(volume for volume in SERVICES["reproduce"]["volumes"] if volume["target"] == "/data/imagenet")
    assert data["read_only"] is True


def test_everything_tracked_is_in_the_image_and_nothing_else():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a checkout: what is tracked is not known here")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    tracked = {line.split("/")[0] for line in listed.splitlines()} - {"runs"}
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert rules[[not rule.startswith("#") for rule in rules].index(True)] == "*", (
        "a list of what is in, not of what is out"
    )
    taken = [rule[1:].rstrip("/") for rule in rules if rule.startswith("!")]
    assert not {name for name in tracked if not any(fnmatch.fnmatch(name, pattern) for pattern in taken)}
    assert not any(fnmatch.fnmatch(name, pattern) for name in (".env", ".git", "runs", ".venv") for pattern in taken)


def test_the_start_script_and_the_program_know_the_same_numbers():
    script = (ROOT / "docker" / "entrypoint.sh").read_text()
    numbers = dict(re.findall(r"^(oldest_driver|gpu_lost)=(\d+)", script, re.MULTILINE))
    assert numbers == {"oldest_driver": str(doctor._DRIVER_OF_CUDA_13), "gpu_lost": str(gpu_loss.EXIT_STATUS)}


@pytest.mark.parametrize(
    ("files", "status"),
    [(["train/n01440764", "val/n01440764"], 0), (["train.data", "train.index", "val.data", "val.index"], 0),
     (["train.data", "train.index"], 2), (["images"], 2)],
    ids=["folders", "packs", "half a pack", "something else"],
)  # fmt: skip
def test_the_start_script_takes_a_folder_of_images_and_one_of_packs(files, status, tmp_path):
    for name in files:
        (tmp_path / "data" / name).mkdir(parents=True)
    script = (ROOT / "docker" / "entrypoint.sh").read_text()
    assert "dataset=/data/imagenet\n" in script
    (tmp_path / "docker").mkdir()
    entrypoint = tmp_path / "docker" / "entrypoint.sh"
    entrypoint.write_text(script.replace("dataset=/data/imagenet\n", f"dataset={tmp_path}/data\n"))
    settings = {**os.environ, "VIT24H_NEEDS": "dataset", "IMAGENET_DIR": "/somewhere"}
    done = subprocess.run(
        ["bash", entrypoint, "echo", "started"], env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert ("started" in done.stdout) == (status == 0)


def test_dockerfile_and_scripts_pass_their_linters():
    scripts = Path(sysconfig.get_path("scripts"))
    for command in ([scripts / "hadolint", "Dockerfile"], [scripts / "shellcheck", *ROOT.glob("docker/*.sh")]):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


# --- ./run_all.sh --docker, with a Docker that answers as the test says ---


class Checkout:
    """The start scripts alone, with a PATH that holds their tools and, where given, a `docker` made of shell lines."""

    def __init__(self, folder: Path, docker: str | None) -> None:
        self.root = folder / "checkout"
        for name in ("run_all.sh", ".env.example", "setup/docker.sh"):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        commands = folder / "bin"
        commands.mkdir()
        for tool in re.findall(r"\w+", "bash chown date dirname env grep head id mkdir readlink sed setsid sleep tail"):
            (commands / tool).symlink_to(shutil.which(tool))
        if docker is not None:
            (commands / "docker").write_text(f'#!/bin/bash\necho "$*" >>{folder}/asked\n{docker}\n')
            (commands / "docker").chmod(0o755)
        self.asked = folder / "asked"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("VIT24H_", "SUDO_"))}
        self.surroundings = kept | {"PATH": str(commands)}

    def run(self, *options: str, **surroundings: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self.root / "run_all.sh", "--docker", *options],
            env=self.surroundings | surroundings,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )


# What is asked of Docker, in the order of the questions, where all is well.
ANSWERS = 'case "$*" in info*Security*) echo "[name=seccomp]" ;; info | "compose version" | "compose build"*) ;;'


@pytest.mark.parametrize(
    ("docker", "remedy"),
    [
        (None, "install Docker Engine, or use ./run_all.sh without --docker"),
        ("echo 'permission denied while trying to connect' >&2; exit 1", "sudo usermod -aG docker"),
        ("echo 'Cannot connect to the Docker daemon' >&2; exit 1", "sudo systemctl start docker"),
        ('[[ $1 == info ]] || { echo "docker: no such command" >&2; exit 1; }', "install docker-compose-plugin"),
        (
            ANSWERS
            + ' *run*) echo "could not select device driver \\"nvidia\\" with capabilities: [[gpu]]"; exit 1 ;; esac',
            "install the NVIDIA Container Toolkit",
        ),
        (
            ANSWERS + ' *run*) echo "requirement error: unsatisfied condition: cuda>=13.0"; exit 1 ;; esac',
            "driver is too old for CUDA 13.0: update it to 580 or newer",
        ),
        (ANSWERS + ' *run*) echo "vit24h: IMAGENET_DIR=/x is empty"; exit 1 ;; esac', "IMAGENET_DIR=/x is empty"),
    ],
)
def test_what_docker_lacks_is_one_line_with_its_remedy(docker, remedy, tmp_path):
    done = Checkout(tmp_path, docker).run("--data", str(tmp_path))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert remedy in line


def test_the_first_start_writes_the_settings_and_the_second_leaves_them(tmp_path):
    checkout = Checkout(tmp_path, ANSWERS + " esac")
    assert checkout.run("--prepare", SUDO_UID="4321", SUDO_GID="8765").returncode == 0
    settings = (checkout.root / ".env").read_text()
    assert "\nVIT24H_UID=4321\nVIT24H_GID=8765\n" in settings
    assert re.findall(r"^\w+=", settings, re.MULTILINE) == re.findall(r"^\w+=", SETTINGS_TEXT, re.MULTILINE)
    assert (checkout.root / "runs").is_dir()

    (checkout.root / ".env").write_text("VIT24H_UID=1\n")
    assert checkout.run("--prepare").returncode == 0
    assert (checkout.root / ".env").read_text() == "VIT24H_UID=1\n"


def test_a_wrong_option_is_refused_before_docker_is_asked(tmp_path):
    checkout = Checkout(tmp_path, "exit 1")
    assert "no such folder" in checkout.run("--data", "/no such").stderr
    assert "takes no further options" in checkout.run("--quick", "--arms", "baseline").stderr
    assert "--docker --prepare" in checkout.run("--help").stdout
    assert not checkout.asked.exists()
