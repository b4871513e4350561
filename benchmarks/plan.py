"""Does `vit24h plan` tell the truth? It plans a run, trains it, plans it again, and holds one against the other.

    python benchmarks/plan.py --data TINY_IMAGENET
    python benchmarks/plan.py --profile full --config paper/combined --hours 0.2 --data IMAGENET \
        --set curriculum.epochs_per_stage=null --set curriculum.budget_fraction_per_stage=0.12

Predicted within 10 % of what came is the claim. The second plan shows how much the machine itself changed meanwhile:
where the two plans differ by as much as the prediction is off, it is the machine. Takes the budget and two minutes.

A first plan that reads from a disk what the run then finds in memory predicts too little (`vit24h plan` tells what came
from the disk); with --read-first they find the page cache alike.

On a machine that others use too, where seconds say little, --cpu-time lets every clock of both commands run on the CPU
time that they have used, on a CPU and with the loader in the training process: what others do is then not counted.

Writes plan.json and plan.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from page_cache import read_all
from vit24h.records import Run, load_run
from vit24h.report.timing import time_by_size

_ENVIRONMENT = ("vit24h", "git", "code", "gpu", "cpu", "memory_gib", "python", "packages", "dataset")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--config", default="paper/combined")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--hours", type=float, default=0.05, help="of training (default: 0.05, three minutes)")
    parser.add_argument("--minutes", type=float, default=1.0, help="of measuring, for each of the two plans")
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time, for a machine that others use too")
    parser.add_argument("--read-first", action="store_true", help="read all images before, where they fit into memory")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "records")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        before, run, after = _plan_train_plan(options, Path(folder))
    record = {
        "what": "vit24h plan against a real run of the same configuration, between two plans",
        "images_read_first": options.read_first,
        "clock": "CPU time, loader in the training process" if options.cpu_time else "wall clock",
        "environment": {key: before["environment"][key] for key in _ENVIRONMENT},
        "config": before["arms"][0]["config"],
        "real": _real(run),
        "before": _compared(before, run),
        "after": _compared(after, run),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "plan.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (options.out / "plan.md").write_text(as_markdown(record), encoding="utf-8")
    print(as_markdown(record))


def _plan_train_plan(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], Run, dict[str, Any]]:
    settings = [f"budget.hours={options.hours}", "budget.epochs=null", "budget.steps=null", *options.overrides]
    settings += ["runtime.workers=0", "runtime.device=cpu"] if options.cpu_time else []
    common = ["--profile", options.profile, "--data", str(options.data)]
    common += [word for setting in settings for word in ("--set", setting)]
    plans = []
    for name in ("before", "after"):
        out = folder / f"{name}.json"
        if options.read_first:
            read_all(options.data)
        _vit24h(options, folder, "plan", options.config, *common, "--minutes", str(options.minutes), "--out", str(out))
        plans.append(json.loads(out.read_text(encoding="utf-8")))
        if name == "before":
            _vit24h(options, folder, "train", options.config, *common, "--run-dir", str(folder / "run"))
    return plans[0], load_run(folder / "run"), plans[1]


# Before anything is imported, because a default argument may hold a clock.
_ON_CPU_TIME = "import time; time.monotonic = time.perf_counter = time.process_time; "


def _vit24h(options: argparse.Namespace, runs: Path, *words: str) -> None:
    environment = {**os.environ, "VIT24H_RUNS": str(runs)}
    clock = _ON_CPU_TIME if options.cpu_time else ""
    run = f"{clock}import sys; from vit24h.cli import main; sys.exit(main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", run, *words], env=environment, check=True)


def _real(run: Run) -> dict[str, Any]:
    evaluations = len(run.rows_of("eval"))
    return {
        "epochs": run.result["epochs"],
        "steps": run.result["steps"],
        "clock": run.result["clock"],
        "evaluation_s": run.result["clock"]["eval_s"] / evaluations,
        "checkpoint_s": [row["seconds"] for row in run.rows_of("checkpoint")],
        "stages": [
            {"image_size": row["image_size"], "begin_hours": row["clock"]["train_s"] / 3600, "step": row["step"]}
            for row in run.rows_of("stage")
        ],
        "images_per_s": {str(time.image_size): time.images_per_s for time in time_by_size(run)},
        "data_wait_share": {str(time.image_size): time.waiting_share for time in time_by_size(run)},
    }


def _compared(plan: dict[str, Any], run: Run) -> dict[str, Any]:
    """What was predicted, and predicted ÷ real."""
    arm, real = plan["arms"][0], _real(run)
    prediction, measured = arm["prediction"], arm["measured"]
    speeds = {str(size["image_size"]): size["together"]["images_per_s"] for size in measured["sizes"]}
    begins = {str(stage["image_size"]): stage["begin_hours"] for stage in prediction["stages"]}
    return {
        "epochs": prediction["epochs"],
        "images_per_s": speeds,
        "size_changes_hours": begins,
        "evaluation_s": measured["evaluation_s"],
        "checkpoint_s": measured["checkpoint_s"],
        "measured": measured,
        "ratio": {
            "epochs": prediction["epochs"] / real["epochs"],
            "images_per_s": {size: speeds[size] / speed for size, speed in real["images_per_s"].items()},
            "size_changes": {
                size: begins[size] / stage["begin_hours"]
                for stage in real["stages"][1:]
                if (size := str(stage["image_size"])) in begins
            },
            "sizes_as_predicted": [str(stage["image_size"]) for stage in real["stages"]] == list(begins),
            "evaluation_s": measured["evaluation_s"] / real["evaluation_s"],
        },
    }


def as_markdown(record: dict[str, Any]) -> str:
    """The prediction of each of the two plans beside what came, as a table; in brackets predicted ÷ real."""
    real, plans = record["real"], [record["before"], record["after"]]
    environment, config = record["environment"], record["config"]
    machine = environment["gpu"]["name"] if environment["gpu"] else environment["cpu"]["model"]

    def row(name: str, came: float, predicted: list[float | None], form: str = ",.0f") -> str:
        told = (f"{value:{form}} ({value / came:.2f})" if value is not None else "–" for value in predicted)
        return f"| {name} | {came:{form}} | {' | '.join(told)} |"

    lines = [
        f"{config['name']}, profile {config['profile']}, {60 * config['budget']['hours']:.3g} min of training; "
        f"{machine}, CPU cores: {environment['cpu']['cores']}; {record['clock']}. In brackets: predicted ÷ real.",
        "",
        "| | real | plan before | plan after |",
        "|---|---|---|---|",
        row("epochs", real["epochs"], [plan["epochs"] for plan in plans], ".2f"),
    ]
    for size, speed in real["images_per_s"].items():
        lines.append(row(f"images/s at {size} px", speed, [plan["images_per_s"].get(size) for plan in plans]))
    for stage in real["stages"][1:]:
        size = str(stage["image_size"])
        begins_s = [plan["size_changes_hours"].get(size) for plan in plans]
        begins_s = [None if hours is None else 3600 * hours for hours in begins_s]
        lines.append(row(f"{size} px begins (s)", 3600 * stage["begin_hours"], begins_s))
    lines.append(row("an evaluation (s)", real["evaluation_s"], [plan["evaluation_s"] for plan in plans], ".1f"))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
