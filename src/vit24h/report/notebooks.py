"""Executes the notebooks of `paper_figures/` on a suite's records: an executed copy and its HTML for each.

Nothing of the user's Jupyter set-up takes part: the kernel is the Python that runs this, and every file that Jupyter
and IPython want to write goes to a temporary folder, so that a read-only home (a container) is no obstacle.
Must not know: what the notebooks show.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbconvert import HTMLExporter
from traitlets.config import Config

from vit24h import paths

TIMEOUT_S = 120  # for one cell; all of them together take seconds


@dataclass(frozen=True)
class Executed:
    """What became of one notebook."""

    name: str
    notebook: Path
    html: Path
    problem: str  # empty: every cell ran


def notebook_sources() -> list[Path]:
    return sorted(paths.notebooks().glob("*.ipynb"))


@contextmanager
def executing(sources: list[Path], suite_folder: Path, destination: Path) -> Iterator[list[Executed]]:
    """Execute notebooks while the body runs; the list is filled when the block is left, in the order of `sources`."""
    done: list[Executed] = []
    with tempfile.TemporaryDirectory(prefix="vit24h-report-") as scratch, ThreadPoolExecutor(_at_once()) as pool:
        environment = _kernel_environment(Path(scratch), suite_folder)
        waiting = [pool.submit(_execute, source, destination, environment, Path(scratch)) for source in sources]
        yield done
        done += [future.result() for future in waiting]


class _ThisPython(AsyncKernelManager):
    """A kernel of the running interpreter, whatever kernels the user has installed under whatever names."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def _execute(source: Path, destination: Path, environment: dict[str, str], scratch: Path) -> Executed:
    notebook = nbformat.read(source, as_version=4)
    connection = {"connection_file": str(scratch / f"{source.stem}.json"), **_transport(scratch / source.stem)}
    client = NotebookClient(
        notebook,
        kernel_manager_class=_ThisPython,
        config=Config({"KernelManager": connection}),
        timeout=TIMEOUT_S,
        startup_timeout=TIMEOUT_S,
        record_timing=False,
        resources={"metadata": {"path": str(source.parent)}},
    )
    # What a kernel itself says, now and then a traceback while it is being ended, is nothing for the user's terminal.
    said_path = scratch / f"{source.stem}.log"
    with said_path.open("wb") as said:
        try:
            client.execute(env=environment, stdout=said, stderr=said)
            problem = ""
        except CellTimeoutError:
            problem = f"a cell took more than {TIMEOUT_S} s"
        except CellExecutionError as error:
            problem = f"{error.ename}: {error.evalue}"
        except RuntimeError as error:  # the kernel did not start, or died
            last_words = said_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            problem = ": ".join([str(error), *last_words])
    executed = Executed(source.stem, destination / source.name, destination / f"{source.stem}.html", problem)
    nbformat.write(notebook, executed.notebook)
    exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")  # readable without a network
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": source.stem}})
    executed.html.write_text(page, encoding="utf-8")
    return executed


def _kernel_environment(scratch: Path, suite_folder: Path) -> dict[str, str]:
    return os.environ | {
        "VIT24H_SUITE": str(suite_folder.resolve()),
        "IPYTHONDIR": str(scratch),
        "JUPYTER_CONFIG_DIR": str(scratch),
        "JUPYTER_DATA_DIR": str(scratch),
        "JUPYTER_RUNTIME_DIR": str(scratch),
        "MPLCONFIGDIR": mpl.get_configdir(),  # with the font cache that this process has made already
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # a debugger's warning about frozen modules, on every start
    }


def _transport(path: Path) -> dict[str, str]:
    """Sockets in the temporary folder, which nobody else on the machine can read; TCP where its name is too long."""
    longest_socket_path = 100  # 107 bytes, less the port's number that is put behind it
    return {"transport": "ipc", "ip": str(path)} if len(str(path)) < longest_socket_path else {}


def _at_once() -> int:
    """A kernel is busy on one core; more at once than cores only delays the first."""
    return max(1, min(5, len(os.sched_getaffinity(0))))
