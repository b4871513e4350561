"""The container for real: built, run, stopped, crashed and resumed with Docker, its results looked at on the host.

Asked for by VIT24H_CONTAINER_TESTS=1, because it builds an image of 6 GB; skipped with the reason where that cannot be.
BASE_IMAGE names the image to build on, where the pinned one cannot be fetched. No GPU is needed: the one service that
reserves one is run with that reservation taken out, except where the test is about it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from vit24h.data import draw_images
from vit24h.records.reader import read_rows

ROOT = Path(__file__).resolve().parents[1]
COMPOSE = ROOT / "docker-compose.yml"
IMAGE, TEST_IMAGE = "vit24h:under-test", "vit24h-test:under-test"
COMMIT = "c0ffee-dirty"
BUILDKIT = {"DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1"}  # the default of newer versions
# A user whom neither this machine nor the image knows; without root's rights, the one who runs the tests.
UID, GID = (12345, 23456) if os.getuid() == 0 else (os.getuid(), os.getgid())


def why_not() -> str:
    if not os.environ.get("VIT24H_CONTAINER_TESTS"):
        return "builds an image of 6 GB: set VIT24H_CONTAINER_TESTS=1"
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return "no Docker engine answers here"
    return ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]


def output(*command: str | Path, status: int | None = 0, **options: Any) -> str:
    """What a command prints on both streams, and a failed test where it ends otherwise than with `status`."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=1800, **options
    )
    assert status is None or done.returncode == status, f"exit status {done.returncode} of {command}:\n{done.stdout}"
    return done.stdout


def wait_for(condition, seconds: float = 120.0):
    """The first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)
    return value


def docker(*words: str, **options: Any) -> str:
    return output("docker", *words, **options).strip()


def state(container: str, field: str) -> str:
    return docker("inspect", "--format", f"{{{{.{field}}}}}", container)


class Project:
    """docker-compose.yml as a user runs it, with results in a folder of its own and none of the user's settings."""

    def __init__(self, folder: Path, image: str, file: Path, settings: dict[str, str]) -> None:
        self.file = file
        self.name = f"vit24h-test-{os.getpid()}"
        self.runs = folder / "runs"
        self.runs.mkdir(exist_ok=True)
        if os.getuid() == 0:
            os.chown(self.runs, UID, GID)
        own = {
            "VIT24H_UID": str(UID),
            "VIT24H_GID": str(GID),
            "VIT24H_RUNS": str(self.runs),
            "VIT24H_TAG": image.split(":")[1],
        }
        none = dict.fromkeys(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE), "")
        none["BASE_IMAGE"] = os.environ.get("BASE_IMAGE", "")
        self.surroundings = os.environ | none | BUILDKIT | own | settings
        version_2 = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        self.command = ["docker", "compose"] if version_2 else ["docker-compose"]

    def __call__(self, *words: str, status: int | None = 0) -> str:
        command = [*self.command, "--file", str(self.file), "--project-directory", str(ROOT)]
        return output(*command, "--project-name", self.name, *words, env=self.surroundings, status=status)

    def container(self, service: str) -> str:
        return self("ps", "--all", "--quiet", service).strip()

    def remove(self) -> None:
        self("down", "--volumes", "--timeout", "1")


def without_gpu(folder: Path, **changes: Any) -> Path:
    """docker-compose.yml with its GPU reservation taken out of `reproduce`, and `changes` to that service.

    Made here, because docker-compose 1.29 cannot take anything out by an override file.
    """
    compose = yaml.safe_load(COMPOSE.read_text())
    service = compose["services"]["reproduce"]
    del service["deploy"]
    service["environment"]["VIT24H_NEEDS"] = service["environment"]["VIT24H_NEEDS"].replace(" gpu", "")
    service.update(changes)
    file = folder / "compose.cpu.yml"
    file.write_text(yaml.safe_dump(compose, sort_keys=False))
    return file


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[str]:
    """The image, built as a user builds it; removed in the end."""
    begin = time.monotonic()
    project = Project(tmp_path_factory.mktemp("build"), IMAGE, COMPOSE, {"VIT24H_COMMIT": COMMIT})
    project("build", "quick")
    size = int(docker("image", "inspect", "--format", "{{.Size}}", IMAGE))
    print(f"\nbuilt in {time.monotonic() - begin:.0f} s, {size / 1e9:.2f} GB")
    yield IMAGE
    for each in (IMAGE, TEST_IMAGE):
        docker("image", "rm", "--force", each, status=None)


@pytest.fixture
def new_project(image, tmp_path) -> Iterator[Callable[..., Project]]:
    """Makes projects; what they started is removed in the end."""
    made = []

    def make(file: Path = COMPOSE, **settings: str) -> Project:
        made.append(Project(tmp_path, image, file, settings))
        return made[-1]

    yield make
    for each in made:
        each.remove()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return draw_images(tmp_path_factory.mktemp("data") / "imagenet")


def copy_of_the_checkout(folder: Path) -> Path:
    """What is in the image, and so all of the checkout that Docker is given."""
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    for name in [rule[1:].rstrip("/") for rule in rules if rule.startswith("!")]:
        for path in ROOT.glob(name):
            folder.mkdir(exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
            else:
                shutil.copy(path, folder)
    return folder


# --- the image ---


def test_the_image_says_what_it_is_and_runs_as_nobody_in_particular(image):
    (facts,) = json.loads(docker("image", "inspect", image))
    labels = facts["Config"]["Labels"]
    assert labels["org.opencontainers.image.revision"] == COMMIT
    assert labels["org.opencontainers.image.version"]
    assert labels["org.opencontainers.image.base.name"]
    assert facts["Config"]["User"] == "1000:1000"
    assert "build-sha256:" in docker("run", "--rm", image, "sh", "-c", "id -u | grep -x 1000 && echo $VIT24H_IMAGE")


def test_a_change_in_the_code_rebuilds_in_seconds_and_keeps_the_packages(image, tmp_path):
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    with (checkout / "src" / "vit24h" / "cli.py").open("a") as code:
        code.write("\n# changed\n")
    base = [f"--build-arg=BASE_IMAGE={os.environ['BASE_IMAGE']}"] if os.environ.get("BASE_IMAGE") else []
    changed = f"{image}-changed"
    begin = time.monotonic()
    docker("build", "--quiet", *base, f"--tag={changed}", str(checkout), env=os.environ | BUILDKIT)
    seconds = time.monotonic() - begin
    before, after = (
        json.loads(docker("image", "inspect", "--format={{json .RootFS.Layers}}", x)) for x in (image, changed)
    )
    docker("image", "rm", changed)
    print(f"rebuilt in {seconds:.1f} s")
    assert before != after
    assert before[:-2] == after[:-2], "a layer with packages was built anew"
    assert seconds < 60


COMPILE = """
import torch
double = torch.compile(lambda images: torch.nn.functional.gelu(images * 2))
images = torch.randn(4, 3)
torch.testing.assert_close(double(images), torch.nn.functional.gelu(images * 2))
print("compiled")
"""


def test_it_compiles_kernels_without_root_network_or_a_known_user(image):
    alone = ["--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=4321:4321"]
    assert "compiled" in docker("run", "--rm", *alone, image, "python", "-c", COMPILE)


# --- what is missing is one line with its remedy ---


def refusal(image: str, needs: str, *options: str, status: int = 2) -> str:
    begin = ["run", "--rm", "--network=none", f"--env=VIT24H_NEEDS={needs}"]
    (line,) = docker(*begin, *options, image, "echo", "started", status=status).splitlines()
    assert line.startswith("vit24h: ")
    return line


def accepts(image: str, needs: str, *options: str) -> bool:
    return docker("run", "--rm", f"--env=VIT24H_NEEDS={needs}", *options, image, "echo", "started") == "started"


def test_a_dataset_that_is_not_there(image, tmp_path, dataset):
    def mounted(folder: Path) -> list[str]:
        return [f"--env=IMAGENET_DIR={folder}", f"--volume={folder}:/data/imagenet:ro", f"--user={UID}:{GID}"]

    tmp_path.chmod(0o755)
    for folder in ("empty", "wrong/ILSVRC", "half/train/class"):
        (tmp_path / folder).mkdir(parents=True)
    assert "no dataset: set IMAGENET_DIR in .env" in refusal(image, "dataset")
    assert f"IMAGENET_DIR={tmp_path}/empty is empty" in refusal(image, "dataset", *mounted(tmp_path / "empty"))
    assert "has no train/ (it has: ILSVRC)" in refusal(image, "dataset", *mounted(tmp_path / "wrong"))
    assert "has no val/ (it has: train)" in refusal(image, "dataset", *mounted(tmp_path / "half"))
    (private := tmp_path / "private").mkdir(mode=0o000)
    assert f"user {UID}:{GID} may not read it" in refusal(image, "dataset", *mounted(private))
    assert accepts(image, "dataset", *mounted(dataset))


def test_a_folder_of_results_that_belongs_to_someone_else(image, tmp_path):
    (theirs := tmp_path / "runs").mkdir(mode=0o755)
    someone = os.getuid() + 1
    line = refusal(image, "results", f"--volume={theirs}:/opt/vit24h/runs", f"--user={someone}:4321")
    assert f"user {someone}:4321 may not write" in line
    assert "VIT24H_UID" in line


def test_no_gpu_an_old_driver_and_one_that_does_not_answer(image, tmp_path):
    """A device file of the right name stands for the GPU, and a script for nvidia-smi."""
    tmp_path.chmod(0o755)

    def gpu(nvidia_smi: str) -> list[str]:
        (script := tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{nvidia_smi}\n")
        script.chmod(0o755)
        return ["--device=/dev/zero:/dev/nvidia0", f"--volume={script}:/usr/local/bin/nvidia-smi:ro"]

    assert "install the NVIDIA Container Toolkit" in refusal(image, "gpu")
    assert "driver is 550.54.14, and CUDA 13.0 needs 580" in refusal(image, "gpu", *gpu("echo 550.54.14"))
    mute = gpu("echo 'Failed to initialize NVML: Unknown Error'; exit 255")
    assert "nvidia-smi: Failed to initialize NVML: Unknown Error" in refusal(image, "gpu", *mute, status=75)
    assert accepts(image, "gpu", *gpu("echo 580.95.05"))


def test_reproduce_reserves_one_gpu(new_project):
    project = new_project(VIT24H_GPU="3")
    project("up", "--no-start", "reproduce")
    container = project.container("reproduce")
    (request,) = json.loads(docker("inspect", "--format={{json .HostConfig.DeviceRequests}}", container))
    assert (request["DeviceIDs"], request["Capabilities"]) == (["3"], [["gpu"]])


def test_the_script_says_what_docker_needs_to_give_a_container_the_gpu(new_project, tmp_path, dataset):
    if shutil.which("nvidia-container-cli"):
        pytest.skip("this machine's Docker can give a container its GPU")
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    surroundings = new_project(VIT24H_COMMIT=COMMIT).surroundings | {"COMPOSE_PROJECT_NAME": "vit24h-test-script"}
    script = checkout / "run_all.sh"
    said = output(script, "--docker", "--data", dataset, env=surroundings, status=2)
    output("docker", "network", "prune", "--force", "--filter=label=com.docker.compose.project=vit24h-test-script")
    assert said.splitlines()[-1].startswith(
        "error: Docker cannot give a container the GPU: install the NVIDIA Container"
    )


def test_what_cannot_work_is_said_once_though_docker_tries_again(new_project, tmp_path):
    project = new_project(without_gpu(tmp_path))
    project("up", "--detach", "reproduce")
    container = project.container("reproduce")
    wait_for(lambda: state(container, "State.Status") == "exited", seconds=60)
    assert (state(container, "State.ExitCode"), state(container, "RestartCount")) == ("2", "3")
    assert docker("logs", container).count("no dataset: set IMAGENET_DIR") == 1


# --- the services, from beginning to end ---


def test_quick_goes_from_pixels_to_figures_and_all_of_it_belongs_to_the_user(new_project):
    project = new_project()
    begin = time.monotonic()
    assert "not the paper's result" in project("up", "--exit-code-from", "quick", "quick")
    print(f"up quick: {time.monotonic() - begin:.0f} s")

    suite = project.runs / "quick"
    report = suite / "report"
    print(output("ls", "-l", report))
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in [suite, *suite.rglob("*")]} == {(UID, GID)}
    table = (report / "table.csv").read_text().lower()
    for arm in ("baseline", "locality", "curriculum", "combined"):
        assert json.loads((suite / arm / "seed0" / "result.json").read_text())["completed"]
        assert arm in table
    for kind in ("png", "pdf"):
        assert (report / f"accuracy_over_time.{kind}").stat().st_size > 5000
    for source in (ROOT / "paper_figures").glob("*.ipynb"):
        cells = json.loads((report / source.name).read_text())["cells"]
        outputs = [each for cell in cells for each in cell.get("outputs", [])]
        assert any("image/png" in each.get("data", {}) or "text/html" in each.get("data", {}) for each in outputs)
        assert not any(each["output_type"] == "error" for each in outputs)

    environment = json.loads((suite / "combined" / "seed0" / "environment.json").read_text())
    assert environment["image"] == docker("run", "--rm", IMAGE, "cat", "build-id")
    assert environment["git"] == {"commit": "c0ffee", "dirty": True}


SHORT = "--profile quick --set runtime.device=cpu --set runtime.checkpoint_minutes=0.05 --set budget.hours=0.004"


def events(log: Path, event: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(log) if row["event"] == event] if log.is_file() else []


def kill_the_suite(container: str) -> None:
    """As the system does when memory runs out: from outside, without a word."""
    processes = docker("top", container, "-eo", "pid,args")
    pid = re.search(r"^\s*(\d+)\s+\S*python\S* \S+/vit24h suite", processes, re.MULTILINE)[1]
    os.kill(int(pid), signal.SIGKILL)


@pytest.mark.skipif(os.getuid() != 0, reason="killing a process of the container from outside needs root")
def test_reproduce_is_stopped_crashes_and_goes_on_each_time(new_project, tmp_path, dataset):
    options = f"{SHORT} --arms baseline,combined --name stopped"
    project = new_project(without_gpu(tmp_path), IMAGENET_DIR=str(dataset), VIT24H_OPTIONS=options)
    suite = project.runs / "stopped"
    log = suite / "baseline" / "seed0" / "log.jsonl"
    project("up", "--detach", "reproduce")
    container = project.container("reproduce")
    wait_for(lambda: events(log, "checkpoint"))
    begin = time.monotonic()
    docker("stop", container)
    print(f"docker stop: {time.monotonic() - begin:.1f} s")
    assert state(container, "State.ExitCode") == "143"
    last = read_rows(log)[-1]
    assert (last["event"], last["reason"], last["saved"]) == ("end", "interrupted", True)

    project("up", "--detach", "reproduce")
    (resumed,) = wait_for(lambda: events(log, "resume"))
    assert resumed["step"] == last["step"]
    assert resumed["clock"]["lost_s"] == 0

    kill_the_suite(container)
    wait_for(lambda: state(container, "RestartCount") == "1")
    wait_for(lambda: state(container, "State.Status") == "exited", seconds=300)
    assert state(container, "State.ExitCode") == "0"
    assert len(events(log, "resume")) == 2
    for arm in ("baseline", "combined"):
        assert json.loads((suite / arm / "seed0" / "result.json").read_text())["completed"]
    assert (suite / "report" / "table.md").is_file()
    assert {path.lstat().st_uid for path in suite.rglob("*")} == {UID}


def take_away(device: str, container: str) -> None:
    """Forget that `container` may use a device, as systemd does with the NVIDIA runtime's rules when it reloads."""
    pid = state(container, "State.Pid")
    groups = dict(line.split(":")[1:] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    Path(f"/sys/fs/cgroup/devices{groups['devices']}/devices.deny").write_text(f"{device} rwm")


@pytest.mark.skipif(
    not Path("/sys/fs/cgroup/devices").is_dir() or os.getuid() != 0,
    reason="takes a device from a running container, which needs root and cgroup version 1",
)
def test_a_container_that_loses_its_gpu_saves_exits_with_75_and_docker_starts_it_again(new_project, tmp_path, dataset):
    """With /dev/zero in the place of the driver's device file, and a CPU in that of the GPU (cpu_as_gpu.py)."""
    train = f"python tests/cpu_as_gpu.py train paper/baseline --data /data/imagenet --run-dir runs/lost {SHORT}"
    lossy = without_gpu(tmp_path, devices=["/dev/zero:/dev/nvidiactl"], command=train)
    project = new_project(lossy, IMAGENET_DIR=str(dataset))
    log = project.runs / "lost" / "log.jsonl"
    project("up", "--detach", "reproduce")
    container = project.container("reproduce")
    wait_for(lambda: events(log, "stage"))
    first_end = subprocess.Popen(["docker", "wait", container], stdout=subprocess.PIPE, text=True)
    take_away("c 1:5", container)
    assert first_end.communicate(timeout=60)[0].strip() == "75"

    (resumed,) = wait_for(lambda: events(log, "resume"))
    (incident,) = events(log, "incident")
    assert incident["kind"] == "gpu_lost"
    assert resumed["clock"]["lost_s"] == 0
    wait_for(lambda: state(container, "State.Status") == "exited")
    assert (state(container, "State.ExitCode"), state(container, "RestartCount")) == ("0", "1")
    assert "the GPU is lost (/dev/nvidiactl: operation not permitted)" in docker("logs", container)
    assert json.loads((log.parent / "result.json").read_text())["completed"]


def test_notebooks_are_served_to_those_with_the_token_on_this_machine_only(new_project):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"

    def fetch(path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(address + path, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""

    project = new_project(VIT24H_PORT=str(port))
    project("up", "--detach", "notebooks")
    container = project.container("notebooks")
    url = rf"{address}/lab/tree/paper_figures\?token=([0-9a-f]{{40,}})"
    token = wait_for(lambda: re.search(url, docker("logs", container)))[1]
    assert docker("port", container) == f"8888/tcp -> 127.0.0.1:{port}"
    assert fetch("/api/contents/paper_figures")[0] == 403
    assert fetch("/api/contents/paper_figures?token=wrong")[0] == 403
    assert fetch(f"/lab?token={token}")[0] == 200
    listing = json.loads(fetch(f"/api/contents/paper_figures?token={token}")[1])["content"]
    assert {path.name for path in (ROOT / "paper_figures").glob("*.ipynb")} <= {entry["name"] for entry in listing}


def test_the_tests_run_in_the_container(new_project):
    project = new_project()
    project("build", "test")
    files = ["test_setup.py", "test_container_files.py", "test_schedules.py", "test_models.py"]
    said = project("run", "--rm", "test", "tests/run.sh", "-q", *(f"tests/{file}" for file in files))
    print(said.splitlines()[-1])
    assert re.search(r"\d+ passed", said)
