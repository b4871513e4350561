"""The `vit24h` command: reads the command line, calls the room that does the work, turns errors into one line.

Exit status: 0 success, 1 something failed, 2 something the user can mend, 75 the GPU is lost and a new
start of the container may bring it back, 130 Ctrl-C, 143 SIGTERM.
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from vit24h import __version__, paths
from vit24h.config import load_config
from vit24h.errors import UserError
from vit24h.gpu_loss import EXIT_STATUS as GPU_LOST
from vit24h.gpu_loss import GpuLost
from vit24h.processes import leave, signal_when_parent_dies, start_all_launched
from vit24h.suite import DEFAULT_ARMS, SUITE_PROCESS, Suite, config_of, data_overrides

# An arm whose suite was killed saves itself, for which it has 30 s, and leaves: its successor waits for that.
_LEAVING_S = 60.0


def main(arguments: Sequence[str] | None = None) -> int:
    status = _run(arguments)
    leave(status)
    return status


def _run(arguments: Sequence[str] | None) -> int:
    # Not the system's default, which leaves no chance to tidy up and does not stop a container's first process at all.
    signal.signal(signal.SIGTERM, _leave)
    options = _parser().parse_args(arguments)
    if _in_a_suite():
        signal_when_parent_dies(int(os.environ[SUITE_PROCESS]), signal.SIGTERM)
    try:
        return options.run(options)
    except UserError as error:
        print(f"vit24h: {error}", file=sys.stderr)
        return 2
    except GpuLost as error:
        print(f"vit24h: the GPU is lost ({error}): restart the container, or the machine, and go on", file=sys.stderr)
        return GPU_LOST
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has left: `vit24h ... | head`
        sys.stderr.close()
        return 1


def _in_a_suite() -> bool:
    return SUITE_PROCESS in os.environ


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


# -- commands; torch is imported only where it is needed, so that help and errors come at once -----------------------


def _train(options: argparse.Namespace) -> int:
    config = load_config(options.config, profile=options.profile, overrides=_overrides(options))
    run_dir = options.run_dir or paths.runs() / config.profile / config.name / f"seed{config.seed}"
    start_all_launched()

    from vit24h.engine.interruption import Interrupted
    from vit24h.engine.train import TrainingFailed, train

    try:
        result = train(config, run_dir, wait_s=_LEAVING_S if _in_a_suite() else 0.5)
    except Interrupted as stopped:
        how = "stopped and saved" if stopped.saved else "stopped; this last moment could not be saved"
        print(f"{how} in {run_dir}; the same command goes on from here", flush=True)
        return stopped.exit_status
    except TrainingFailed as error:
        print(f"vit24h: {config.name} seed {config.seed} failed: {error}", file=sys.stderr)
        return 1
    if not _in_a_suite() and os.environ.get("RANK", "0") == "0":  # a suite says so itself; of several, one does
        print(f"{config.name} seed {config.seed}: top-1 {result['top1']:.2f} %, record in {run_dir}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    profile = options.profile or "full"
    names = options.configs or DEFAULT_ARMS
    configs = [load_config(config_of(name), profile=profile, overrides=_overrides(options)) for name in names]

    from vit24h import planning
    from vit24h.progress import PlanDisplay
    from vit24h.report import plan as report

    out = options.out or planning.default_path(configs)
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder: give the file that is to be written, such as {out / 'plan.json'}")
    question = planning.Question(options.gpu_hours, options.target_epochs)
    with PlanDisplay() as display:
        found = planning.plan(configs, question, minutes=options.minutes, progress=display.update)
    planning.write_plan(out, found)
    figures = report.save_figure(found, out)
    print(f"{report.to_text(found)}\n\nplan: {out}, {', '.join(path.name for path in figures)}")
    return 0


def _suite(options: argparse.Namespace) -> int:
    if options.quick and options.profile not in (None, "quick"):
        raise UserError(f"--quick is --profile quick: it does not go with --profile {options.profile}")
    profile = "quick" if options.quick else options.profile or "full"
    suite = Suite.plan(
        profile=profile,
        arms=options.arms,
        seeds=options.seeds,
        data=options.data,
        overrides=options.overrides,
        name=options.name,
    )
    return suite.run()


def _doctor(options: argparse.Namespace) -> int:
    profile = options.profile or "full"
    arms = options.configs or DEFAULT_ARMS
    configs = [load_config(config_of(arm), profile=profile, overrides=_overrides(options)) for arm in arms]
    folder = options.folder or paths.runs()

    from vit24h import doctor

    checks = []
    for check in doctor.examine(configs, folder, full=options.full):
        checks.append(check)
        if not options.brief:
            print(doctor.as_line(check, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ), flush=True)
        elif check.state == "fail":
            print(f"vit24h: {check.name}: {check.found}: {check.remedy}", file=sys.stderr)
        elif check.state == "warn":
            print(f"warning: {check.name}: {check.found}: {check.remedy}", flush=True)
        elif check.name == "dataset":
            print(check.found, flush=True)
    if not options.brief:
        print(doctor.summary(checks))
    return 2 if any(check.state == "fail" for check in checks) else 0


def _pack(options: argparse.Namespace) -> int:
    if options.raw and options.quality is not None:
        raise UserError("--quality is of JPEG files: it does not go with --raw")

    from vit24h.data.pack import PackParameters
    from vit24h.data.packing import Packing, PackingStopped
    from vit24h.engine.interruption import StopSignals

    quality = None if options.raw else 90 if options.quality is None else options.quality
    workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
    packing = Packing(options.source, options.destination, PackParameters(options.short_side, quality), workers)
    with StopSignals(goes_on_from="where this one was") as signals:
        try:
            packing.run(signals.requested, say=functools.partial(print, flush=True))
        except PackingStopped as stopped:
            print(f"{stopped}; the same command goes on from here", flush=True)
            return 128 + signals.received
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from vit24h.engine.evaluate_run import evaluate_run

    result = evaluate_run(options.run_dir, data=options.data)
    print(
        f"top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} %, loss {result['val_loss']:.4f} "
        f"on {result['images']:,} images"
    )
    return 0


def _report(options: argparse.Namespace) -> int:
    from vit24h.report import write_report

    if not options.folder.is_dir():
        raise UserError(f"{options.folder}: no such folder; expected a suite's, such as {paths.runs()}/quick")
    if options.embed is not None:
        return _embed(options)
    files = write_report(options.folder, notebooks=options.notebooks, folder=options.to)
    print(f"open {files.index.resolve().as_uri()}" if options.open else f"report in {files.folder}")
    return 0


def _embed(options: argparse.Namespace) -> int:
    from vit24h.report import read_suite
    from vit24h.report.embed import embedded

    try:
        before = options.embed.read_text(encoding="utf-8")
        options.embed.write_text(embedded(before, read_suite(options.folder)), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--embed {options.embed}: cannot be read and written: {error.strerror}") from error
    print(f"tables of {options.folder} in {options.embed}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from vit24h.status import suite_status

    print(suite_status(options.folder))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from vit24h.records.verify import find_records, verify

    records = [record for folder in options.records for record in find_records(folder) or [folder]]
    if options.published and len(records) > 1:
        raise UserError(f"--published is of one record, and here are {len(records)}: give the one that it is of")
    holding = 0
    for path in records:
        found = verify(path, published=options.published)
        if options.data is not None:
            from vit24h.engine.reevaluate import reevaluate

            found = found.extended(reevaluate(path, options.data))
        holding += found.holds
        print(found.to_text(), flush=True)
    if len(records) > 1:
        print(f"{holding} of {len(records)} records keep every rule")
    return 0 if holding == len(records) else 1


def _export(options: argparse.Namespace) -> int:
    from vit24h.records.export import RECORD_FILES, export_records

    done = export_records(
        options.source, options.destination, unfinished=options.unfinished, keep_paths=options.keep_paths
    )
    records = f"{len(done.runs)} record{'s' if len(done.runs) != 1 else ''}"
    print(f"{records} ({', '.join(RECORD_FILES)}), {done.size / 1000:,.0f} kB in {options.destination}")
    return 0


def _leaderboard(options: argparse.Namespace) -> int:
    from vit24h.report.leaderboard import leaderboard

    board = leaderboard(options.folder)
    print(board.to_text())
    if options.markdown is not None:
        try:
            options.markdown.write_text(board.to_markdown(), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--markdown {options.markdown}: cannot be written: {error.strerror}") from error
    return 0


# -- the command line -----------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vit24h", description="Train a Vision Transformer from scratch within 24 hours on one GPU."
    )
    parser.add_argument("--version", action="version", version=f"vit24h {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = _command(
        commands,
        "train",
        _train,
        "train one arm; on the same folder again, it goes on",
        "vit24h train paper/combined --profile quick",
    )
    train.add_argument("config", help="a YAML file, or the name of one in configs/, such as paper/combined")
    train.add_argument("--profile", help="a YAML file, or one of configs/profiles: full, paper-epochs, mini, quick")
    train.add_argument("--run-dir", type=Path, help="the run's folder (default: runs/PROFILE/ARM/seedK)")
    train.add_argument("--seed", type=int, help="the same as --set seed=K")
    _add_data_and_overrides(train)

    plan = _command(
        commands,
        "plan",
        _plan,
        "measure for a minute what training takes here, and predict what a budget buys",
        "vit24h plan paper/combined --data /data/imagenet --gpu-hours 24",
    )
    plan.add_argument(
        "configs", nargs="*", metavar="CONFIG", help=f"what is to be trained (default: {' '.join(DEFAULT_ARMS)})"
    )
    plan.add_argument("--profile", help="a YAML file, or one of configs/profiles (default: full)")
    asked = plan.add_mutually_exclusive_group()
    asked.add_argument("--gpu-hours", type=_positive, metavar="H", help="what do H hours buy (default: the profile's)")
    asked.add_argument("--target-epochs", type=_positive, metavar="N", help="how many hours do N epochs take")
    plan.add_argument("--minutes", type=_positive, metavar="M", help="of measuring in all (default: one a CONFIG)")
    plan.add_argument("--out", type=Path, metavar="FILE.json", help="default: runs/plan-NAME.json; figures beside it")
    _add_data_and_overrides(plan)

    suite = _command(
        commands,
        "suite",
        _suite,
        "train several arms one after another, then report; again, it goes on",
        "vit24h suite --profile full --data /data/imagenet --seeds 0,1",
    )
    suite.add_argument("--quick", action="store_true", help="the smoke mode: --profile quick, on drawn images")
    suite.add_argument("--profile", help="a YAML file, or one of configs/profiles (default: full)")
    suite.add_argument("--arms", type=_names, default=DEFAULT_ARMS, help=f"default: {','.join(DEFAULT_ARMS)}")
    suite.add_argument("--seeds", type=_seeds, default=[0], help="such as 0,1,2 (default: 0)")
    suite.add_argument("--name", help="the suite's folder below runs/ (default: the profile's name)")
    _add_data_and_overrides(suite)

    doctor = _command(
        commands,
        "doctor",
        _doctor,
        "is this machine ready for it: GPU, driver, memory, disks, dataset, speed of loading",
        "vit24h doctor --data /data/imagenet",
    )
    doctor.add_argument(
        "configs", nargs="*", metavar="CONFIG", help=f"what is to be trained (default: {' '.join(DEFAULT_ARMS)})"
    )
    doctor.add_argument("--profile", help="a YAML file, or one of configs/profiles (default: full)")
    doctor.add_argument("--full", action="store_true", help="decode every image of the dataset")
    doctor.add_argument("--folder", type=Path, help="where it is to be written (default: runs/)")
    doctor.add_argument("--brief", action="store_true", help="say only what is not as it should be")
    _add_data_and_overrides(doctor)

    pack = _command(
        commands,
        "pack",
        _pack,
        "store the images of a folder small and in one file a split, which loads faster; again, it goes on",
        "vit24h pack /data/imagenet /data/imagenet-256",
    )
    pack.add_argument("source", type=Path, metavar="SRC", help="folder with train/CLASS/IMAGE and val/CLASS/IMAGE")
    pack.add_argument("destination", type=Path, metavar="DST", help="folder for the packs, to give as --data then")
    pack.add_argument(
        "--short-side", type=int, default=256, metavar="PX", help="make larger images so small (default: 256)"
    )
    pack.add_argument("--quality", type=int, metavar="Q", help="of the JPEG files (default: 90)")
    pack.add_argument("--raw", action="store_true", help="store pixels, not JPEG files: larger, and fastest to load")
    pack.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")

    evaluate = _command(
        commands,
        "evaluate",
        _evaluate,
        "accuracy of a finished run's weights",
        "vit24h evaluate runs/quick/combined/seed0",
    )
    evaluate.add_argument("run_dir", type=Path, metavar="RUN")
    evaluate.add_argument("--data", type=Path, help="the dataset's folder, where it is not the run's own")

    report = _command(
        commands, "report", _report, "tables, figures and executed notebooks of a suite", "vit24h report runs/quick"
    )
    report.add_argument("folder", type=Path, metavar="SUITE", help="a folder with run folders below it")
    report.add_argument("--open", action="store_true", help="print the address of the page to look at in a browser")
    report.add_argument("--no-notebooks", dest="notebooks", action="store_false", help="tables and figures only")
    report.add_argument("--to", type=Path, metavar="DIR", help="where to write it (default: SUITE/report)")
    report.add_argument(
        "--embed",
        type=Path,
        metavar="FILE",
        help="write no report, but tables into their marked places in FILE",
    )

    status = _command(
        commands, "status", _status, "where a suite stands: every run, and the time left", "vit24h status runs/full"
    )
    status.add_argument("folder", type=Path, metavar="SUITE", help="a suite's folder")

    verify = _command(
        commands,
        "verify",
        _verify,
        "hold records against the rules of the benchmark (BENCHMARK.md); exit status 0 if they keep every one",
        "vit24h verify results/full/combined/seed0",
    )
    verify.add_argument(
        "records", type=Path, nargs="+", metavar="RUN", help="a run's folder, or one with some below it"
    )
    verify.add_argument("--data", type=Path, help="the dataset's folder: evaluate the weights again, and compare")
    verify.add_argument(
        "--published",
        action="append",
        default=[],
        metavar="HEX",
        help="a digest or link of the record that was made public earlier, 16 digits or more: is this that record?",
    )

    export = _command(
        commands,
        "export",
        _export,
        "copy records as they are published: text only, without this machine's paths",
        "vit24h export runs/full results/full",
    )
    export.add_argument("source", type=Path, metavar="SUITE", help="a suite's folder, or a run's")
    export.add_argument("destination", type=Path, metavar="DESTINATION", help="where they go; nothing is written over")
    export.add_argument("--unfinished", action="store_true", help="take unfinished and failed runs along")
    export.add_argument(
        "--keep-paths", action="store_true", help="take logs along that hold paths or the name of this machine"
    )

    leaderboard = _command(
        commands,
        "leaderboard",
        _leaderboard,
        "rank the verified records below a folder; show the others with the rules they break",
        "vit24h leaderboard results --markdown LEADERBOARD.md",
    )
    leaderboard.add_argument("folder", type=Path, metavar="DIR", help="a folder with run folders below it")
    leaderboard.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    return parser


def _command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    example: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    parser.set_defaults(run=run)
    return parser


def _add_data_and_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder with train/CLASS/IMAGE and val/CLASS/IMAGE, or packs")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="such as budget.hours=12"
    )


def _overrides(options: argparse.Namespace) -> list[str]:
    seed = [] if getattr(options, "seed", None) is None else [f"seed={options.seed}"]
    return [*data_overrides(options.data), *seed, *options.overrides]


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return number


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _seeds(text: str) -> list[int]:
    return [int(seed) for seed in _names(text)]
