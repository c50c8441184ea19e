"""Commands that work on what finished runs and evaluations left: compare, check, deploy. None needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qrobust.cli.command import GATE, Command, Option
from qrobust.cli.console import echo
from qrobust.cli.options import with_options
from qrobust.cli.types import CLASS_SHARE, FRACTION, NUMBER, FolderType, word

# Option, type, argument, help. Names are those of `qrobust.comparison.bounds`.
LIMITS: tuple[tuple[str, Any, str, str], ...] = (
    ("--max-drop", NUMBER, "POINTS", "Clean accuracy lost from float, or from the graph of --against."),
    ("--max-shift-drop", NUMBER, "POINTS", "The same under shift, mean over all conditions."),
    ("--max-clean-cost", NUMBER, "POINTS", "Clean accuracy that a remedy costs, from int8."),
    ("--min-accuracy", FRACTION, "SHARE", "Clean accuracy, from 0 to 1."),
    ("--min-balanced-accuracy", FRACTION, "SHARE", "Mean of the recalls of all classes on clean images."),
    ("--min-shift-accuracy", FRACTION, "SHARE", "Accuracy under shift, mean over all conditions."),
    ("--min-gain", NUMBER, "POINTS", "Gain of a remedy over int8 under shift."),
    ("--min-unseen-gain", NUMBER, "POINTS", "The same under shifts that it was not trained on."),
    ("--min-agreement", FRACTION, "SHARE", "Clean images predicted as by float, or by the graph of --against."),
    ("--min-integer-share", FRACTION, "SHARE", "Multiply-accumulates on integers."),
    ("--max-latency-ratio", NUMBER, "RATIO", "Time for one image, over that of float, or of the first file."),
    ("--max-size-ratio", NUMBER, "RATIO", "Size of the file, over that of float, or of the first file."),
)


def limit_options(command: Any) -> Any:
    """An option for each bound."""
    command = click.option(
        "--min-recall",
        cls=Option,
        group=GATE,
        type=CLASS_SHARE,
        multiple=True,
        metavar="CLASS=SHARE",
        help="Share of the clean images of a class that are recognized; repeat it for several classes.",
    )(command)
    for flag, kind, metavar, text in reversed(LIMITS):
        command = click.option(flag, cls=Option, group=GATE, type=kind, metavar=metavar, help=text)(command)
    return command


@click.command(cls=Command)
@click.argument("run_folder", metavar="RUN", type=FolderType())
@with_options("out", out={"help": "Folder for the device. It must be new or empty, unless --overwrite is given."})
@click.option(
    "--graph",
    cls=Option,
    metavar="NAME",
    unset="the calibrator's if there is one, else int8",
    help="Graph of RUN that is deployed.",
)
@click.option(
    "--camera",
    cls=Option,
    is_flag=True,
    help="Also write a graph that takes frames as a camera gives them: it resizes, crops and scales itself.",
)
@click.option(
    "--web",
    cls=Option,
    is_flag=True,
    help="Also write a page that shows the graph beside int8 in a browser, offline: picture or camera, fog, noise, "
    "darkness.",
)
@click.option(
    "--ort",
    cls=Option,
    is_flag=True,
    help="Also write the graph in onnxruntime's own format, for small builds of it that read no ONNX.",
)
@with_options("overwrite", overwrite={"help": "Replace what an earlier `deploy` made in --out."})
def deploy(
    run_folder: Path, out: Path, graph: str | None, camera: bool, web: bool, ort: bool, overwrite: bool
) -> None:
    """Write a folder that goes to a device.

    It holds the graph, manifest.json (input, preprocessing, classes, target, versions, hashes), a model card, a
    README with calls from C++ and JavaScript, and infer.py, which classifies image files with numpy, Pillow and
    onnxruntime alone, as the run did.

    \b
    qrobust deploy runs/one --out deployed
    qrobust deploy runs/one --out deployed --camera
    qrobust deploy runs/one --out deployed --web        # README.md says how to open the page
    python deployed/infer.py photo.jpg
    """
    from qrobust.pipeline.deploy import deploy as write
    from qrobust.pipeline.run_folder import RunFolder
    from qrobust.record import read_record
    from qrobust.report.recommendation import refusal
    from qrobust.report.verdict import NAMES

    manifest = write(run_folder, out, graph=graph, camera=camera, web=web, ort=ort, overwrite=overwrite)
    if refused := refusal(read_record(RunFolder(run_folder).record), manifest.name, NAMES):
        echo(f"warning: {refused}", err=True)
    echo(f"{out / manifest.graph}: for {manifest.target}, onnxruntime {manifest.onnxruntime.at_least} or newer")
    if manifest.camera:
        echo(f"{out / manifest.camera}: the same for frames, uint8 RGB (N, H, W, 3) of any size")
    if manifest.ort:
        echo(f"{out / manifest.ort.file}: the same in ORT format, onnxruntime {manifest.ort.written_by} or newer")
    if manifest.web:
        shown = " and ".join(graph.name for graph in manifest.web)
        echo(f"{out / 'web' / 'index.html'}: {shown} in a browser; {out / 'README.md'} says how to open it")
    echo(f"python {out / 'infer.py'} IMAGE...")


CONFIDENCE = click.option(
    "--confidence",
    cls=Option,
    type=FRACTION,
    metavar="SHARE",
    default="0.95",
    show_default=True,
    help="Of all intervals.",
)


@click.command(cls=Command)
@click.argument("run_folders", metavar="RUN RUN...", nargs=-1, required=True, type=FolderType())
@click.option(
    "--graph",
    cls=Option,
    metavar="NAME",
    unset="the calibrator's if there is one, else int8; of an evaluation the last file",
    help="Graph of every RUN that is compared.",
)
@CONFIDENCE
@click.option("--html", "html_file", cls=Option, metavar="FILE", help="Write one self-contained page.")
@click.option("--json", "json_file", cls=Option, metavar="FILE", help="Write the comparison as JSON.")
def compare(
    run_folders: tuple[Path, ...], graph: str | None, confidence: float, html_file: str | None, json_file: str | None
) -> None:
    """Compare finished runs with the first, on the same images.

    Differences are paired over test images, which must be the same in all: each RUN is a folder of `qrobust run` or
    `qrobust evaluate-onnx`. Shows figures, changes with intervals, and what differs in configuration.

    \b
    qrobust compare runs/old runs/new
    qrobust compare runs/old runs/new --html comparison.html
    qrobust compare evaluations/one evaluations/two --graph int8 --json comparison.json
    """
    from qrobust.comparison.compare import compare as compare_all
    from qrobust.pipeline.finished import open_finished
    from qrobust.report.comparison import comparison_html, comparison_lines
    from qrobust.storage import write_json, write_text

    opened = [open_finished(folder, "run folders") for folder in run_folders]
    found = compare_all(opened, graph=graph, confidence=confidence)
    if html_file:
        write_text(Path(html_file), comparison_html(found))
    if json_file:
        write_json(Path(json_file), found.to_json())
    for line in comparison_lines(found):
        echo(line)


@click.command(cls=Command)
@click.argument("run_folder", metavar="RUN", type=FolderType())
@limit_options
@click.option(
    "--against",
    cls=Option,
    type=FolderType(),
    metavar="RUN",
    help="Take drops and agreement from the same graph of another run, on the same test images.",
)
@click.option(
    "--graph",
    cls=Option,
    metavar="NAME",
    unset="the calibrator's if there is one, else int8; of an evaluation the last file",
    help="Graph of RUN that is held to the bounds.",
)
@click.option(
    "--against-graph", cls=Option, advanced=True, metavar="NAME", unset="that of --graph", help="Graph of --against."
)
@CONFIDENCE
@click.option(
    "--undecided",
    cls=Option,
    type=word("fail", "pass"),
    metavar="fail|pass",
    default="fail",
    show_default=True,
    help="What an interval that holds the bound makes of the exit code: 4, or 0.",
)
@click.option("--config", cls=Option, metavar="FILE", help="TOML file with bounds in its table [check].")
@click.option("--junit", cls=Option, metavar="FILE", help="Write JUnit's XML, for a CI system's list of tests.")
@click.option("--markdown", cls=Option, metavar="FILE", help="Write a Markdown table, for a pull request.")
@click.option("--json", "json_file", cls=Option, advanced=True, metavar="FILE", help="Write the result as JSON.")
@click.option("--github", cls=Option, is_flag=True, help="Print GitHub's annotations, too.")
@click.pass_context
def check(ctx: click.Context, run_folder: Path, **options: Any) -> None:
    """Hold a finished run or evaluation to bounds, for CI.

    A bound passes if the whole interval of its figure satisfies it, is breached if none of the interval does, and is
    undecided else; then the line says about how many images would decide. A figure that was not measured is a breach.
    Nothing is measured: RUN is a folder of `qrobust run` or `qrobust evaluate-onnx`.

    Exit codes: 0 pass, 1 breach, 2 input that cannot be used, 3 failed export check, 4 undecided.

    \b
    qrobust check runs/one --max-drop 1 --min-unseen-gain 5
    qrobust check runs/new --against runs/old --max-drop 0.5 --min-recall cat=0.9
    qrobust check evaluations/one --max-drop 1 --junit check.xml --markdown check.md
    """
    from qrobust.comparison.bounds import check as hold
    from qrobust.comparison.bounds import check_limits
    from qrobust.errors import InputError
    from qrobust.pipeline.config_file import read_limits
    from qrobust.pipeline.finished import failed_checks, open_finished
    from qrobust.report.gate import gate_annotations, gate_junit, gate_lines, gate_markdown
    from qrobust.storage import write_json, write_text

    limits = read_limits(options["config"]) if options["config"] else {}
    names = [flag.lstrip("-").replace("-", "_") for flag, *_ in LIMITS]
    limits |= {name: options[name] for name in names if options[name] is not None}
    if options["min_recall"]:
        limits["min_recall"] = dict(options["min_recall"])
    check_limits(limits, options["confidence"])
    if options["against_graph"] and not options["against"]:
        raise InputError("against_graph: expected with --against, got it alone")
    run = open_finished(run_folder, "run folder")
    against = open_finished(options["against"], "against") if options["against"] else None
    result = hold(
        run,
        limits,
        graph=options["graph"],
        against=against,
        against_graph=options["against_graph"],
        confidence=options["confidence"],
        undecided_passes=options["undecided"] == "pass",
        failed_checks=failed_checks(run_folder, run, run.graph(options["graph"])),
    )
    if options["junit"]:
        write_text(Path(options["junit"]), gate_junit(result))
    if options["markdown"]:
        write_text(Path(options["markdown"]), gate_markdown(result))
    if options["json_file"]:
        write_json(Path(options["json_file"]), result.to_json())
    for line in (*gate_lines(result), *(gate_annotations(result) if options["github"] else [])):
        echo(line)
    ctx.exit(result.exit_code)
