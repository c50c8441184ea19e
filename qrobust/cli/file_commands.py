"""Commands that work on ONNX files: evaluate-onnx, predict, audit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from qrobust.cli.command import MODEL, RUN, Command, Option
from qrobust.cli.console import console, echo
from qrobust.cli.options import ATTACK_OPTIONS, FITTING_OPTIONS, FORMER, RENDERED_OPTIONS, with_options
from qrobust.cli.parsing import choices, cores
from qrobust.cli.run_commands import say_corruption_sets
from qrobust.cli.run_folders import check_runner, evaluating_by
from qrobust.cli.types import FRACTION, INTEGER
from qrobust.text import printable

if TYPE_CHECKING:
    from qrobust.record import EvaluationRecord

FEED = click.option(
    "--feed",
    cls=Option,
    group=MODEL,
    advanced=True,
    multiple=True,
    metavar="NAME=VALUE",
    unset="false for booleans",
    help="The number that an input beside the image gets, such as keep_prob=1; repeat it for several.",
)


@click.command(
    "evaluate-onnx",
    cls=Command,
    former=FORMER
    | {
        "--model": "is gone: give the files as arguments, the reference first",
        "--target-images": "is for runs; give the images as --data imagefolder:DIR",
    },
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@with_options("data", data={"required": True})
@click.option(
    "--input-range",
    cls=Option,
    group=MODEL,
    metavar="NAME|M,M,M/S,S,S",
    unset="byte for uint8 inputs, else unit",
    help="What the files take: unit ([0, 1]), byte ([0, 255]), imagenet, or means and standard deviations (M/S for "
    "one channel).",
)
@click.option(
    "--output",
    cls=Option,
    group=MODEL,
    advanced=True,
    metavar="NAME",
    unset="the only one",
    help="Which output holds the logits, of files that have several.",
)
@click.option(
    "--layout",
    cls=Option,
    group=MODEL,
    advanced=True,
    metavar="nchw|nhwc",
    unset="as the input's shape tells",
    help="How images lie in the input, where its shape does not tell.",
)
@FEED
@with_options(
    "data_root",
    "class_names",
    "skip_bad_images",
    *FITTING_OPTIONS,
    "channel_order",
    "test_images",
    *RENDERED_OPTIONS,
    *ATTACK_OPTIONS,
    "primary",
    "out",
    "resume",
    "overwrite",
    "budget",
    "workers",
    "runner_name",
    "mixed_hosts",
    "seed",
    "threads",
    "verbose",
    "quiet",
    image_size={"unset": "what the files fix", "help": "Side of the images, where no file fixes it."},
    resize={"unset": "what a run's graphs say, else crop; none where the images have the size"},
    crop_ratio={"unset": "what a run's graphs say, else 224/256"},
    interpolation={"unset": "what a run's graphs say, else bilinear"},
    channel_order={"help": "bgr for graphs that take channels as OpenCV reads them."},
    attacks={
        "unset": "none",
        "help": "Files have no gradient. quick: Square and random noise. full: also HopSkipJump and poses.",
    },
    resume={"help": "Continue an interrupted evaluation in --out, begun with the same options."},
    threads={"unset": "all cores"},
    primary={
        "help": "The measure that the report leads with. auto: balanced accuracy where the largest class has more "
        "than twice the images of the smallest, else accuracy."
    },
)
def evaluate_onnx(
    files: tuple[str, ...],
    data: str,
    out: Path,
    *,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    workers: int,
    runner_name: str,
    mixed_hosts: bool,
    overwrite: bool,
    resume: bool,
    **options: Any,
) -> None:
    """Measure any ONNX classifiers clean and under shift.

    All see the same pixels; the first is the reference that the others are compared with. Test images are the data's
    `test` part, else `val`, else all of it.

    \b
    qrobust evaluate-onnx float.onnx int8.onnx --data imagefolder:DIR --out evaluations/one
    """
    from qrobust.pipeline.evaluate_onnx import Choices, evaluate_files

    chosen = choices(options)
    for name in ("scenarios", "target_images"):  # of runs only; shifts are what they come to
        chosen.pop(name, None)
    check_runner(runner_name, workers, try_out=True)
    predictions = out / "predictions"
    with evaluating_by(runner_name, lambda: predictions, workers=workers, mixed_hosts=mixed_hosts) as by:
        record = evaluate_files(
            Choices(files, data, **chosen),
            out,
            console(verbose, quiet),
            threads=cores() if threads is None else threads,
            workers=by,
            overwrite=overwrite,
            resume=resume,
        )
    say_evaluation(record)
    echo(f"Record: {out / 'record.json'}")


def say_evaluation(record: EvaluationRecord) -> None:
    """The table of an evaluation, and what classes say."""
    from qrobust.report.classes import balanced_sentence, evenness, primary_sentence
    from qrobust.report.markdown import evaluation_table, sample, table

    for line in (*table(evaluation_table(record)), "", sample(record.summary)):
        echo(line)
    if record.classes:
        names = {name: name for name in record.models}
        echo(primary_sentence(record, names) or balanced_sentence(record.classes, names))
        echo(evenness(record.classes, record.class_names))
    say_corruption_sets(record.corruption_sets)


@click.command(cls=Command)
@click.argument("graph", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@with_options("threads", threads={"unset": "1", "help": "Threads of onnxruntime."})
def predict(graph: Path, images: tuple[Path, ...], threads: int | None) -> None:
    """Classify image files with a graph of a run.

    Prints path, class and confidence. GRAPH was exported by qrobust: its metadata says how an image becomes its
    input. The file that `qrobust deploy` puts beside a graph does the same without qrobust.

    \b
    qrobust predict runs/one/compensated.onnx photo.jpg
    qrobust predict deployed/int8.onnx images/*.png
    """
    from qrobust.deployment.predict import predict as classify
    from qrobust.errors import InputError

    if threads is not None and threads < 1:
        raise InputError(f"threads: expected at least 1, got {threads}")
    found = classify(graph, images, threads=threads or 1)
    for image, (name, confidence) in zip(images, found, strict=True):
        click.echo("\t".join((printable(str(image)), printable(name), f"{confidence:.4f}")))


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--image-size",
    cls=Option,
    group=MODEL,
    type=INTEGER,
    metavar="PIXELS",
    help="Side of the images, where the file leaves it open.",
)
@FEED
@with_options(
    "target", target={"group": MODEL, "unset": "this CPU", "help": "Fuse as onnxruntime does on that CPU family."}
)
@click.option(
    "--min-integer",
    cls=Option,
    group=RUN,
    type=FRACTION,
    metavar="FRACTION",
    help="Exit with code 3 if fewer multiply-accumulates are on integers.",
)
@click.option(
    "--min-integer-nodes",
    cls=Option,
    group=RUN,
    type=FRACTION,
    metavar="FRACTION",
    help="Exit with code 3 if fewer convolutions and matrix products are on integers.",
)
@click.option("--json", "as_json", cls=Option, is_flag=True, help="Print JSON, with every node and reason.")
def audit(
    file: Path,
    image_size: int | None,
    feed: tuple[str, ...],
    target: str | None,
    min_integer: float | None,
    min_integer_nodes: float | None,
    as_json: bool,
) -> None:
    """Show what onnxruntime runs on integers, and what in float.

    Tells what keeps the rest of FILE in float. Counts multiply-accumulates and operators, by the kernels that ran on
    one random image.

    \b
    qrobust audit int8.onnx
    qrobust audit int8.onnx --min-integer 0.95     # for CI
    """
    import json

    from qrobust.deployment.audit import check_share, explained_audit
    from qrobust.deployment.plain_graph import Interface, plain_graph
    from qrobust.errors import InputError
    from qrobust.record import to_json
    from qrobust.report.audit import audit_lines
    from qrobust.storage import scratch

    for name, share in (("min_integer", min_integer), ("min_integer_nodes", min_integer_nodes)):
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{name}: expected a share from 0 to 1, got {share:g}")
    signed = None if target is None else target == "arm64"
    with scratch() as folder:
        plain, said = plain_graph(file, folder, Interface(feed=feed), one_output=False)
        result = explained_audit(plain, image_size, signed_activations=signed)
    for sentence in said:
        echo(sentence, err=True)
    if as_json:
        click.echo(json.dumps(to_json(result), indent=1))
    else:
        for line in (f"{file}{f' as on {target}' if target else ''}", *audit_lines(result)):
            echo(line)
    check_share(result, min_integer, min_integer_nodes)
