"""Set-up: the locks say one thing everywhere, and one start of a script makes an environment that the next one reuses.

The scripts are tried on a miniature of this project, whose locks hold small wheels made here: no network.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path
from types import ModuleType

import packaging
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
BASE_LOCK = ROOT / "requirements.lock"
TEST_LOCK = ROOT / "tests" / "requirements.lock"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PYTHONS = ("3.11", "3.12")


# --- the locks ---


def entries(lock: Path) -> list[str]:
    """The requirements of a lock, each on one line with its hashes, without comments."""
    lines = [line for line in lock.read_text().splitlines() if not line.lstrip().startswith("#")]
    return [re.sub(r"\s+", " ", entry) for entry in "\n".join(lines).replace("\\\n", "").splitlines() if entry.strip()]


def locked_versions(lock: Path, python: str) -> dict[str, str]:
    """Name and version of every package that `lock` installs on x86-64 Linux with `python`, such as 3.11 or 3.11.7."""
    major, minor, patch = f"{python}.0".split(".")[:3]
    system = {
        "python_version": f"{major}.{minor}",
        "python_full_version": f"{major}.{minor}.{patch}",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }
    environment = default_environment() | system
    requirements = [Requirement(entry.split(" --hash")[0]) for entry in entries(lock)]
    wanted = [each for each in requirements if each.marker is None or each.marker.evaluate(environment)]
    versions = {canonicalize_name(each.name): next(iter(each.specifier)).version for each in wanted}
    assert len(versions) == len(wanted), "a package stands twice in the lock"
    return versions


@pytest.mark.parametrize("lock", [BASE_LOCK, TEST_LOCK], ids=["requirements.lock", "tests/requirements.lock"])
def test_every_locked_package_has_one_exact_version_and_its_hashes_and_no_host(lock):
    for entry in entries(lock):
        assert re.fullmatch(r"[\w.-]+==[\w.!+-]+( ; [^#]+?)?( --hash=sha256:[0-9a-f]{64})+", entry), entry
    assert "://" not in lock.read_text()


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_satisfies_what_pyproject_asks_for(python):
    versions = locked_versions(BASE_LOCK, python)
    asked = [Requirement(text) for text in PYPROJECT["project"]["dependencies"] + PYPROJECT["build-system"]["requires"]]
    for requirement in asked:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_the_tests_run_on_the_locked_packages_and_a_few_more(python):
    base, test = locked_versions(BASE_LOCK, python), locked_versions(TEST_LOCK, python)
    assert {name: test[name] for name in base.keys() & test.keys()} == {
        name: base[name] for name in base.keys() & test.keys()
    }
    asked = {canonicalize_name(Requirement(text).name) for text in PYPROJECT["dependency-groups"]["test"]}
    assert asked <= test.keys() - base.keys()


# --- what has to agree ---


def conda_environment() -> tuple[SpecifierSet, list[str]]:
    """Of environment.yml: the Pythons that its `python=` takes, and the arguments that conda hands to pip."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_conda = {each.split("=")[0]: each.partition("=")[2] for each in dependencies if isinstance(each, str)}
    assert from_conda.keys() == {"python", "pip"}, "a package from conda-forge would come in a version of its own"
    (for_pip,) = [each["pip"] for each in dependencies if isinstance(each, dict)]
    return SpecifierSet(f"=={from_conda['python']}.*"), [word for line in for_pip for word in line.split()]


def test_conda_takes_a_supported_python():
    conda, _ = conda_environment()
    asked = SpecifierSet(PYPROJECT["project"]["requires-python"])
    taken = [python for python in PYTHONS if conda.contains(f"{python}.0")]
    assert taken
    assert all(asked.contains(f"{python}.0") for python in taken)


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="the packages of this Python are not all the lock's")
def test_what_conda_hands_to_pip_is_what_the_lock_installed_here():
    """pip resolves environment.yml with its hashes, no index at hand: all it may find is what is here already."""
    _, arguments = conda_environment()
    resolve = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", *arguments]
    done = subprocess.run(resolve, cwd=ROOT, capture_output=True, text=True, check=False, env=clean_surroundings())
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout
    pattern = r"^Requirement already satisfied: ([\w.-]+)==(\S+) in"
    resolved = {canonicalize_name(name): version for name, version in re.findall(pattern, done.stdout, re.MULTILINE)}
    assert resolved == locked_versions(BASE_LOCK, "{}.{}.{}".format(*sys.version_info))
    for name, version in resolved.items():
        assert importlib.metadata.version(name) == version


def test_the_bootstrap_looks_for_the_pythons_that_pyproject_allows():
    script = (ROOT / "setup" / "bootstrap.sh").read_text()
    looked_for = re.search(r'^supported="(.*?)"', script, re.MULTILINE)[1].split()
    allowed = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert sorted(looked_for) == [f"3.{minor}" for minor in range(30) if allowed.contains(f"3.{minor}")]
    assert sorted(looked_for) == sorted(PYTHONS)


def test_the_version_is_the_same_wherever_it_stands():
    import vit24h

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == vit24h.__version__ == PYPROJECT["project"]["version"]
    assert citation["license"] == PYPROJECT["project"]["license"]


def test_shell_scripts_pass_shellcheck():
    scripts = [*ROOT.glob("*.sh"), *ROOT.glob("setup/*.sh"), *ROOT.glob("tests/*.sh"), ROOT / ".ci" / "run"]
    shellcheck = Path(sysconfig.get_path("scripts"), "shellcheck")
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_environment_that_runs_these_tests_is_taken_as_it_is():
    import vit24h

    if ROOT not in Path(vit24h.__file__).resolve().parents:
        pytest.skip("this environment belongs to another checkout, which the bootstrap would unlink")
    surroundings = clean_surroundings() | {"VIT24H_VENV": sys.prefix, "PIP_NO_INDEX": "1"}
    command = [ROOT / "setup" / "bootstrap.sh", "--test", "python", "-c", "import sys; print(sys.prefix)"]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == sys.prefix
    assert done.stderr.splitlines() == [f"Environment: {Path(sys.prefix).resolve()}"]


# --- the scripts, on a miniature of this project ---

# A build backend in thirty lines: with it the miniature is installed without setuptools, and its wheels are made.
BACKEND = """
import base64, hashlib, zipfile
from pathlib import Path

def write_wheel(folder, name, version, files, command=None):
    info = f"{name}-{version}.dist-info"
    files = dict(files)
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    if command:
        files[f"{info}/entry_points.txt"] = f"[console_scripts]\\n{command}\\n"
    def hash_of(text):
        return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
    record = [f"{path},sha256={hash_of(text)},{len(text.encode())}" for path, text in files.items()]
    files[f"{info}/RECORD"] = "\\n".join([*record, f"{info}/RECORD,,", ""])
    wheel = Path(folder, f"{name}-{version}-py3-none-any.whl")
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path), text)  # ZipInfo: no time of day in it, so the hash stays the same
    return wheel

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    link = {"vit24h-src.pth": str(Path("src").resolve()) + "\\n"}
    return write_wheel(wheel_directory, "vit24h", "0", link, "vit24h = vit24h:main").name
"""

MINIATURE = {
    "backend.py": BACKEND,
    "pyproject.toml": """
        [build-system]
        requires = []
        build-backend = "backend"
        backend-path = ["."]
        [project]
        name = "vit24h"
        version = "0"
        """.replace(" " * 8, ""),
    # Its only command tells how it was started.
    "src/vit24h/__init__.py": """
import json, os, sys
def main():
    print(json.dumps({"pid": os.getpid(), "arguments": sys.argv[1:], "folder": os.getcwd(), "prefix": sys.prefix}))
""",
}


def clean_surroundings() -> dict[str, str]:
    """This process's environment variables without those that decide where packages come from and go to."""
    decisive = ("VIT24H_", "PIP_", "VIRTUAL_ENV", "CONDA_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(decisive)}


class Miniature:
    """A checkout of the scripts with a tiny package, tiny locks, and wheels that no one else has."""

    def __init__(self, folder: Path, *, disk_gb: float = 0.05) -> None:
        self.root = folder / "a check out"  # the space is on purpose
        self.wheels = folder / "wheels"
        self.wheels.mkdir(parents=True)
        (self.root / "tests").mkdir(parents=True)
        for name, text in MINIATURE.items():
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            (self.root / name).write_text(text)
        for script in ("run_all.sh", "tests/run.sh"):
            shutil.copy(ROOT / script, self.root / script)
        shutil.copytree(ROOT / "setup", self.root / "setup")
        bootstrap = self.root / "setup" / "bootstrap.py"
        text, replaced = re.subn(r"^DISK_GB = \d+", f"DISK_GB = {disk_gb}", bootstrap.read_text(), flags=re.MULTILINE)
        assert replaced == 1
        bootstrap.write_text(text)

        (python_folder := folder / "python").mkdir()
        (python_folder / "python3").symlink_to(Path(sys.base_prefix, "bin", "python{}.{}".format(*sys.version_info)))
        self.surroundings = clean_surroundings() | {
            "PATH": f"{python_folder}:/usr/bin:/bin",
            "HOME": "/dev/null",  # nothing can be written there
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": self.wheels.as_uri(),
        }
        self.lock(small="1.0")
        self.lock_tests(pytest="1.0")

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    @property
    def backend(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("backend", self.root / "backend.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def entry(self, name: str, version: str) -> str:
        source = f"version = {version!r}\n" + MINIATURE["src/vit24h/__init__.py"]
        command = f"{name} = {name}:main"
        wheel = self.backend.write_wheel(self.wheels, name, version, {f"{name}.py": source}, command)
        return f"{name}=={version} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"

    def lock(self, **versions: str) -> None:
        self.base_lock = "".join(self.entry(name, version) for name, version in versions.items())
        self.base_lock += f"elsewhere==1.0 ; sys_platform == 'win32' \\\n    --hash=sha256:{'0' * 64}\n"
        (self.root / "requirements.lock").write_text(self.base_lock)

    def lock_tests(self, **versions: str) -> None:
        own = "".join(self.entry(name, version) for name, version in versions.items())
        (self.root / "tests" / "requirements.lock").write_text(self.base_lock + own)

    def start(self, script: str | Path, *arguments: str, **surroundings: str) -> subprocess.Popen:
        return subprocess.Popen(
            [self.root / script, *arguments],
            env=self.surroundings | surroundings,
            cwd=self.root.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str | Path, *arguments: str, **surroundings: str) -> Finished:
        return Finished(self.start(script, *arguments, **surroundings))


class Finished:
    """What a script did."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.pid = process.pid
        self.output, errors = process.communicate(timeout=300)
        self.status = process.returncode
        self.lines = errors.splitlines()

    @property
    def command(self) -> dict:
        """What the command that was started tells of itself."""
        assert self.status == 0, self.lines
        return json.loads(self.output)

    @property
    def installed(self) -> bool:
        return any(line.startswith("Installed in") for line in self.lines)

    @property
    def refusal(self) -> str:
        """The one line that ends a start which cannot go on."""
        assert self.status == 2, (self.status, self.lines)
        assert self.lines[-1].startswith("error: ")
        assert not any("Traceback" in line for line in self.lines)
        return self.lines[-1]


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Miniature:
    """Shared, as an installation takes seconds. Whoever changes its locks leaves it for the next start to repair."""
    return Miniature(tmp_path_factory.mktemp("project"))


def test_two_first_starts_at_once_make_one_environment_and_the_next_start_reuses_it(project):
    both = [Finished(process) for process in [project.start("run_all.sh"), project.start("run_all.sh")]]
    assert sorted(each.installed for each in both) == [False, True]
    assert all(each.command["prefix"] == str(project.venv) for each in both)

    started = time.monotonic()
    again = project.run("run_all.sh")
    assert again.command
    assert again.lines == [f"Environment: {project.venv}"]
    assert time.monotonic() - started < 5  # a fraction of a second, on a machine that is not busy


def test_the_command_takes_the_place_of_the_script_so_that_signals_reach_it(project):
    done = project.run("run_all.sh")
    assert done.command["pid"] == done.pid


def test_scripts_work_through_a_link_from_another_folder(project, tmp_path):
    (tmp_path / "link.sh").symlink_to(project.root / "run_all.sh")
    done = project.run(tmp_path / "link.sh", "--data", "my images", "--quick")
    assert done.command["arguments"] == ["suite", "--data", "my images", "--quick"]
    assert done.command["folder"] == str(project.root.parent), "paths that the user gives count from where they stand"


def test_what_only_the_tests_need_is_added_once_and_leaves_the_rest_alone(project):
    project.run("run_all.sh")
    project.lock_tests(pytest="1.1")
    (small,) = project.venv.glob("lib/*/site-packages/small.py")
    before = small.stat()

    first = project.run("tests/run.sh", "-k", "curriculum")
    assert first.installed
    assert first.command["arguments"] == ["-k", "curriculum"]
    assert (small.stat().st_ino, small.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert project.run("tests/run.sh").lines == [f"Environment: {project.venv}"]
    assert project.run("run_all.sh").lines == [f"Environment: {project.venv}"]


def test_a_changed_lock_installs_anew(project):
    project.run("run_all.sh")
    project.lock(small="2.0", further="1.0")
    assert project.run("run_all.sh").installed
    assert not project.run("run_all.sh").installed
    versions = project.run("setup/bootstrap.sh", "python", "-c", "import further, small; print(small.version)")
    assert versions.output == "2.0\n"


def test_an_installation_that_was_killed_is_done_again(project):
    project.lock(small="3.0")
    killed = project.start("run_all.sh")
    while not (line := killed.stderr.readline()).startswith("Installing"):
        assert line, "ended without installing"
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()

    again = project.run("run_all.sh")
    assert again.installed
    assert again.command


def test_failing_to_get_the_tests_packages_says_why_and_spares_the_environment(project):
    project.run("run_all.sh")
    lock = project.root / "tests" / "requirements.lock"
    project.lock_tests(pytest="1.2")
    lock.write_text(re.sub(r"(pytest==.*?sha256:).{64}", rf"\g<1>{'0' * 64}", lock.read_text(), flags=re.DOTALL))
    assert "hash" in project.run("tests/run.sh").refusal

    nowhere = {"PIP_NO_INDEX": "0", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "1"}
    assert "network" in project.run("tests/run.sh", **nowhere).refusal
    assert project.run("run_all.sh").lines == [f"Environment: {project.venv}"]


@pytest.mark.slow
def test_an_activated_environment_with_the_locked_packages_is_used_and_another_is_not(tmp_path):
    project = Miniature(tmp_path)
    activated = tmp_path / "activated"
    subprocess.run([sys.executable, "-m", "venv", activated], check=True)
    # Markers are read with `packaging`, which the real lock brings.
    (libraries,) = activated.glob("lib/*/site-packages")
    shutil.copytree(Path(packaging.__file__).parent, libraries / "packaging")
    install = [activated / "bin" / "python", "-m", "pip", "install", "--require-hashes", "-r"]
    subprocess.run([*install, project.root / "requirements.lock"], env=project.surroundings, check=True)

    assert project.run("run_all.sh", CONDA_PREFIX=str(activated)).command["prefix"] == str(activated)
    assert not project.venv.exists()

    project.lock(small="2.0")
    done = project.run("run_all.sh", CONDA_PREFIX=str(activated))
    assert f"Not using the activated environment {activated}: it has small 1.0, and the lock 2.0." in done.lines
    assert done.command["prefix"] == str(project.venv)


def path_with(folder: Path, **commands: str) -> str:
    """A PATH that has what the scripts call, and the shell scripts given here."""
    folder.mkdir()
    for name in ("bash", "env", "dirname", "readlink"):
        (folder / name).symlink_to(shutil.which(name))
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_without_a_python_that_will_do_it_says_what_to_install(tmp_path):
    project = Miniature(tmp_path)
    not_switched_on = {"python3.12": "echo 'python3.12: command not found' >&2; exit 127"}
    refusal = project.run("run_all.sh", PATH=path_with(tmp_path / "bin", **not_switched_on)).refusal
    assert "Python 3.11 or 3.12" in refusal
    assert "apt-get install python3.12 python3.12-venv" in refusal

    assert "VIT24H_PYTHON=no-such-python" in project.run("run_all.sh", VIT24H_PYTHON="no-such-python").refusal


def test_without_the_venv_package_it_says_what_to_install(tmp_path):
    project = Miniature(tmp_path)
    as_debian_ships_it = {"python3": f'case "$*" in *ensurepip*) exit 1 ;; esac; exec {sys.executable} "$@"'}
    refusal = project.run("run_all.sh", PATH=path_with(tmp_path / "bin", **as_debian_ships_it)).refusal
    assert "sudo apt-get install python{}.{}-venv".format(*sys.version_info) in refusal


def test_too_little_disk_space_is_said_before_anything_is_fetched(tmp_path):
    project = Miniature(tmp_path, disk_gb=1e9)
    done = project.run("run_all.sh")
    assert "GB free" in done.refusal
    assert not any("Installing" in line for line in done.lines)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    project = Miniature(tmp_path)
    (mine := tmp_path / "mine").mkdir()
    (mine / "thesis.tex").write_text("chapter 1")
    assert "left alone" in project.run("run_all.sh", VIT24H_VENV=str(mine)).refusal
    assert (mine / "thesis.tex").read_text() == "chapter 1"
