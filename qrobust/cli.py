"""The command line. Heavy imports happen inside commands, so that `--help` stays instant."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from qrobust import __version__
from qrobust.errors import QRobustError

if TYPE_CHECKING:
    from qrobust.workbench import Reporter, Workbench

Command = Callable[..., Any]
LOG_SECONDS = 30


class _Group(click.Group):
    """Turns every qrobust error into one line and its exit code, in this one place."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except QRobustError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, "quantize-and-compensate" if cmd_name == "run" else cmd_name)


class FractionType(click.ParamType):
    """A number, or a fraction such as 8/255."""

    name = "fraction"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        try:
            top, _, bottom = str(value).partition("/")
            return float(top) / float(bottom or 1)
        except (ValueError, ZeroDivisionError):
            self.fail(f"expected a number or a fraction such as 8/255, got {value!r}", param, ctx)


class DurationType(click.ParamType):
    """Seconds, or a number with s, m or h."""

    name = "duration"
    units = MappingProxyType({"s": 1, "m": 60, "h": 3600})

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            seconds = float(text[:-1]) * self.units[text[-1]] if text[-1:] in self.units else float(text)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            self.fail(f"expected a time such as 90s, 10m or 1h, got {value!r}", param, ctx)
        return seconds


def _options(*decorators: Command) -> Callable[[Command], Command]:
    def apply(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


common = _options(
    click.option(
        "--threads",
        type=int,
        default=None,
        help="Threads for torch and onnxruntime.  [default: all cores, or the run's]",
    ),
    click.option("-v", "--verbose", is_flag=True, help="Say more."),
    click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors; no progress bars."),
)
seed = click.option(
    "--seed", type=int, default=0, show_default=True, help="Decides splits, pixels, training and attacks."
)
skip_bad_images = click.option(
    "--skip-bad-images", is_flag=True, help="Leave out files of an imagefolder that cannot be decoded; list them."
)
inputs = _options(
    click.option(
        "--model",
        required=True,
        help="torchvision:NAME, path/to/file.py:FACTORY, or built in: resnet8, resnet20, resnet32, cifar_resnet18, "
        "cifar_mobilenet_v2, cifar_vgg16_bn.",
    ),
    click.option("--weights", help="State dict (.pt, .pth) or .safetensors; nothing in the file is executed."),
    click.option("--pretrained", is_flag=True, help="Let torchvision fetch its own weights."),
    click.option("--normalization", help="imagenet, cifar10, none or m,m,m/s,s,s.  [default: the model's preset]"),
    click.option("--data", required=True, help="imagefolder:DIR, npz:FILE, torchvision:NAME or digits."),
    click.option("--data-root", help="Where torchvision data sets lie.  [default: ~/.cache/torchvision]"),
    click.option("--class-names", help="File with one class name per line, for a folder of some of the classes."),
    skip_bad_images,
    click.option(
        "--image-size",
        type=int,
        help="Side in pixels.  [default: the images' own if small and alike, else the model's]",
    ),
    click.option(
        "--calibration-images",
        type=int,
        default=512,
        show_default=True,
        help="Images that quantization ranges are observed on.",
    ),
    click.option("--train-images", type=int, help="Keep only so many training images.  [default: all]"),
    click.option("--test-images", type=int, help="Keep only so many test images.  [default: all]"),
    click.option(
        "--target",
        default="x86-vnni",
        show_default=True,
        help="CPU family whose integer kernels the graph is made for: x86-vnni, x86-avx2 or arm64.",
    ),
    click.option(
        "--bits",
        type=click.Choice(["w8a8", "w6a8", "w4a8", "w4a4"]),
        default="w8a8",
        show_default=True,
        help="Bits of weights and activations; narrow ones stay in 8-bit containers and run as fast.",
    ),
    click.option(
        "--edges",
        type=click.Choice(["8bit", "same", "float"]),
        default="8bit",
        show_default=True,
        help="The first and the last layer: 8 bits, the same bits as the rest, or float.",
    ),
    click.option("--layer-bits", help="Comma-separated LAYER=BITS; LAYER may be a pattern, BITS may be float."),
    click.option(
        "--keep-float", help="Comma-separated layers to leave in float, or auto:N for the N most sensitive."
    ),
    click.option(
        "--ptq",
        type=click.Choice(["default", "auto"]),
        default="default",
        show_default=True,
        help="auto tries ranges, equalization, rounding and bias correction on validation images, keeps the best.",
    ),
    click.option(
        "--observer",
        type=click.Choice(["min-max", "moving-average", "percentile", "histogram", "mse"]),
        default="mse",
        show_default=True,
        help="How activation ranges are chosen; histogram is by least KL divergence.",
    ),
    click.option("--equalize", is_flag=True, help="Cross-layer equalization."),
    click.option("--bias-correction", is_flag=True, help="Take back the shift that quantization gives each channel."),
    click.option(
        "--rounding",
        type=click.Choice(["nearest", "adaround"]),
        default="nearest",
        show_default=True,
        help="Of weights below 8 bits: to the nearest, or learned.",
    ),
    click.option(
        "--storage",
        type=click.Choice(["int8", "int4"]),
        default="int8",
        show_default=True,
        help="How 4-bit weights lie in the file: int4 halves it, and runs as fast once loaded.",
    ),
    click.option(
        "--qat-epochs", type=float, default=0, show_default=True, help="Quantization-aware training; 0: none."
    ),
    click.option("--qat-learning-rate", type=float, default=1e-4, show_default=True, help="Peak rate of Adam."),
    click.option(
        "--qat-ranges",
        type=click.Choice(["learned", "frozen"]),
        default="learned",
        show_default=True,
        help="Whether step sizes learn, too.",
    ),
    click.option(
        "--qat-distillation",
        type=float,
        default=0.9,
        show_default=True,
        help="Weight of the float model's view, the labels have the rest.",
    ),
    click.option("--qat-shifts", is_flag=True, help="Train on shifted images, too."),
)
measuring = _options(
    click.option("--shifts", help="Comma-separated names, suites or FILE.py:FUNCTION.  [default: suite 'default']"),
    click.option("--severities", help="Comma-separated, 1 to 5.  [default: 3,5]"),
    click.option(
        "--severity-table",
        type=click.Choice(["auto", "cifar-c", "imagenet-c"]),
        help="What severities mean.  [default: auto, by image size]",
    ),
    click.option(
        "--epsilons", help="Comma-separated L-infinity budgets of the attack.  [default: 1/255,2/255,4/255,8/255]"
    ),
    click.option("--attack-images", type=int, help="Test images to attack; 0 for none.  [default: 200]"),
)
training = _options(
    click.option("--hold-out", help="Comma-separated shifts that are measured but never trained on."),
    click.option(
        "--mac-budget",
        type=FractionType(),
        help="The calibrator's multiply-accumulates, as a fraction of the classifier's.  [default: 0.10]",
    ),
    click.option("--steps", type=int, help="Training steps.  [default: 4000]"),
    click.option("--batch-size", type=int, help="Images per training step.  [default: 128]"),
    click.option("--learning-rate", type=float, help="Peak rate of Adam.  [default: 0.002]"),
    click.option(
        "--reverse-weight",
        type=float,
        help="Weight of the pull towards reverse adversarial examples of the clean images.  [default: 0]",
    ),
    click.option(
        "--labels/--no-labels",
        "use_labels",
        default=None,
        help="Train with labels, or with the float model's view alone.  [default: labels]",
    ),
)
run_dir = _options(
    click.argument("run_folder", metavar="DIR", type=click.Path(path_type=Path)),
    click.option("--seed", type=int, help="Must be the run's own, which drew its splits.  [default: the run's]"),
)
resume = click.option("--resume", is_flag=True, help="Go on with the run in --out where it stopped.")
out_options = _options(
    click.option(
        "--out", required=True, type=click.Path(path_type=Path), help="Folder of the run; must be new or empty."
    ),
    click.option("--overwrite", is_flag=True, help="Replace the run that the folder holds."),
)


def _split(text: str | None, kind: Callable[[str], Any]) -> tuple | None:
    """A comma-separated option as a tuple."""
    from qrobust.errors import InputError

    if text is None:
        return None
    try:
        return tuple(kind(part.strip()) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"expected comma-separated values, got {text!r} ({error})") from error


def _choices(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they stand in a RunConfig; those not given are left out."""
    fraction = FractionType()
    kinds: dict[str, Callable[[str], Any]] = {
        "shifts": str, "hold_out": str, "layer_bits": str, "keep_float": str, "severities": int,
        "epsilons": lambda t: fraction.convert(t, None, None),
    }  # fmt: skip
    parsed = {k: _split(v, kinds[k]) if k in kinds else v for k, v in options.items()}
    return {k: v for k, v in parsed.items() if v is not None}


class _LogBar:
    """Progress for a log file: a line every half minute instead of a bar that redraws."""

    def __init__(self, label: str, length: int) -> None:
        self.label, self.length, self.done = label, length, 0
        self.started = self.told = time.monotonic()

    def __enter__(self) -> _LogBar:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def update(self, n_steps: int, current_item: str | None = None) -> None:
        self.done += n_steps
        now = time.monotonic()
        if now - self.told >= LOG_SECONDS:
            self.told = now
            left = (now - self.started) * (self.length - self.done) / max(1, self.done)
            click.echo(
                f"  {self.label}: {self.done}/{self.length}, {left:.0f} s left  {current_item or ''}".rstrip(),
                err=True,
            )


class _Console:
    """Prints and draws for a run; `-q` silences all but warnings."""

    def __init__(self, verbose: bool, quiet: bool) -> None:
        self.verbose, self.quiet = verbose, quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            click.echo(text, err=True)

    def detail(self, text: str) -> None:
        if self.verbose and not self.quiet:
            click.echo(f"  {text}", err=True)

    def warn(self, text: str) -> None:
        click.secho(text, fg="yellow", err=True)

    def bar(self, label: str, length: int) -> AbstractContextManager[Any]:
        if not sys.stderr.isatty() and not self.quiet:
            return _LogBar(label, length)
        return click.progressbar(
            length=length,
            label=f"  {label}",
            file=sys.stderr,
            show_eta=True,
            hidden=self.quiet,
            item_show_func=lambda item: item or "",
            update_min_steps=max(1, length // 200),
        )


def _reporter(verbose: bool, quiet: bool) -> Reporter:
    return _Console(verbose, quiet)  # type: ignore[return-value]  # same methods, without importing torch


def _begin(
    out: Path,
    overwrite: bool,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    *,
    compensating: bool = True,
    **options: Any,
) -> Workbench:
    """A workbench for a new run; everything is read and checked before the folder is touched."""
    from qrobust.config import RunConfig
    from qrobust.pipeline import prepare_inputs
    from qrobust.workbench import Workbench, check_folder, create_folder

    check_folder(out, overwrite=overwrite)
    config = RunConfig(threads=_cores() if threads is None else threads, **_choices(options))
    bench = Workbench(config, None, _reporter(verbose, quiet))
    prepare_inputs(bench, compensating=compensating)
    bench.folder = create_folder(out, config, overwrite=overwrite)
    return bench


def _begin_or_resume(
    out: Path, overwrite: bool, resume: bool, *, compensating: bool = True, **options: Any
) -> Workbench:
    """A workbench for a new run, or for one that was interrupted, which must have been begun alike."""
    from qrobust import pipeline

    if not (resume and (out / "config.json").is_file()):
        return _begin(out, overwrite, compensating=compensating, **options)
    bench = _reopen(out, options["verbose"], options["quiet"], options["threads"])
    given = {k: v for k, v in options.items() if k not in ("verbose", "quiet", "threads")}
    pipeline.check_same_config(bench, _choices(given))
    return bench


def _reopen(folder: Path, verbose: bool, quiet: bool, threads: int | None, **options: Any) -> Workbench:
    from qrobust.workbench import Workbench

    return Workbench.open(folder, _reporter(verbose, quiet), threads=threads, **_choices(options))


def _finish(bench: Workbench, record: dict[str, Any]) -> None:
    """Print the table and where the report lies."""
    from qrobust.report.markdown import table
    from qrobust.report.verdict import headline, verdict

    click.echo("\n".join([*table(headline(record)), "", *verdict(record), ""]))
    click.echo(f"Report: {bench.place().html}\nRecord: {bench.place().record}")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """INT8 image classifiers whose robustness is measured, and repaired.

    \b
    qrobust demo                      the whole job on built-in data, a few minutes
    qrobust run --model M --data D --out DIR
                                      quantize, compensate, export, measure, report
    qrobust audit FILE.onnx           what onnxruntime really runs on integers

    `run` is short for `quantize-and-compensate`. The stages can be run one by one on the same folder:
    quantize, evaluate, compensate, export, evaluate, report.
    """


@main.command("quantize-and-compensate")
@inputs
@measuring
@training
@out_options
@resume
@seed
@common
def run_command(out: Path, overwrite: bool, resume: bool, **options: Any) -> None:
    """All stages: quantize, compensate, export, measure on onnxruntime, report. Short: `qrobust run`.

    \b
    qrobust run --model resnet20 --weights weights.pt --data imagefolder:~/data/cifar10 --out runs/one
    qrobust run --model torchvision:mobilenet_v2 --weights my.pt --data imagefolder:DIR --out runs/two
    """
    from qrobust import pipeline

    bench = _begin_or_resume(out, overwrite, resume, **options)
    _finish(bench, pipeline.run(bench, resume=resume))


@main.command()
@inputs
@out_options
@resume
@seed
@common
def quantize(out: Path, overwrite: bool, resume: bool, **options: Any) -> None:
    """Quantize a trained classifier: float.onnx and int8.onnx in a new run folder, audited.

    \b
    qrobust quantize --model resnet20 --weights weights.pt --data imagefolder:DIR --out runs/one
    qrobust quantize ... --ptq auto                      search on validation images, keep the best
    qrobust quantize ... --bits w4a8 --rounding adaround 4-bit weights, learned rounding
    qrobust quantize ... --bits w4a4 --qat-epochs 2      train the twin; --resume goes on after a kill
    """
    from qrobust import pipeline

    bench = _begin_or_resume(out, overwrite, resume, compensating=False, **options)
    if not (resume and bench.place().stage("quantize")):
        pipeline.quantize(bench)
    stage = bench.place().need_stage("quantize", "quantize")
    for name, audited in stage["audit"].items():
        agreement = stage["parity"][name]["agreement"]
        click.echo(
            f"{bench.place().graph(name)}: {audited['integer_ops']} of {audited['quantizable_ops']} convolutions and "
            f"matrix products integer, agreement with torch {100 * agreement:.2f} %"
        )


@main.command()
@run_dir
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@common
def sensitivity(run_folder: Path, as_json: bool, **options: Any) -> None:
    """Which layers of a run's classifier quantization costs most, one by one.

    Signal-to-noise ratios in decibels of each layer's weights, of its input's rounding alone, and of its
    output with everything before it quantized; and what quantizing that layer alone does on validation
    images. `qrobust quantize --keep-float auto:N` leaves the N worst in float.
    """
    import json

    from qrobust import pipeline

    bench = _reopen(run_folder, **options)
    layers = pipeline.sensitivity(bench)
    if as_json:
        click.echo(json.dumps(layers, indent=2))
        return
    click.echo(
        f"{'layer':34s} {'bits':>4s} {'weight dB':>9s} {'input dB':>9s} {'output dB':>9s} {'KL alone':>9s} drop"
    )
    for layer in sorted(layers, key=lambda found: -found["divergence"]):
        click.echo(
            f"{layer['name']:34s} {layer['weight_bits']:4d} {layer['weight_sqnr_db']:9.1f} "
            f"{layer['input_sqnr_db']:9.1f} {layer['output_sqnr_db']:9.1f} {layer['divergence']:9.5f} "
            f"{100 * layer['accuracy_drop']:+.2f}"
        )
    click.echo(f"KL divergence in nats and drop in points on {layers[0]['n']} validation images.")


@main.command()
@click.argument("run_folder", metavar="[DIR]", type=click.Path(path_type=Path), required=False)
@click.option("--model", "models", multiple=True, help="An .onnx classifier; repeat it, the first is the reference.")
@click.option("--data", help="With --model: imagefolder:DIR, npz:FILE, torchvision:NAME or digits.")
@click.option("--out", type=click.Path(path_type=Path), help="With --model: folder of the evaluation.")
@click.option("--overwrite", is_flag=True, help="Replace the evaluation that --out holds.")
@click.option("--resume", is_flag=True, help="Go on with the evaluation that --out holds where it stopped.")
@click.option(
    "--input-range",
    help="With --model, what the graphs want: unit ([0, 1]), byte ([0, 255]), imagenet or m,m,m/s,s,s.  "
    "[default: byte for uint8 inputs, else unit]",
)
@click.option("--data-root", help="With --model: where torchvision data sets lie.")
@click.option("--class-names", help="With --model: file with one class name per line, in index order.")
@skip_bad_images
@click.option("--image-size", type=int, help="With --model: side in pixels, where no graph fixes it.")
@click.option("--test-images", type=int, help="With --model: keep only so many test images.  [default: all]")
@click.option(
    "--budget",
    type=DurationType(),
    help="Such as 90s, 10m or 1h: measure as many test images as fit, each class with its share.  [default: all]",
)
@click.option(
    "--workers", type=int, default=1, show_default=True, help="Processes that render; the pixels are the same."
)
@click.option("--seed", type=int, help="Decides order and pixels.  [default: 0, or the run's, which it must be]")
@measuring
@common
def evaluate(run_folder: Path | None, models: tuple[str, ...], **options: Any) -> None:
    """Measure every graph in a run folder, or any .onnx classifiers, on onnxruntime, on the same pixels.

    \b
    qrobust evaluate runs/one
    qrobust evaluate --model float.onnx --model int8.onnx --data imagefolder:DIR --out evaluations/one

    Predictions are kept: an evaluation that was killed goes on where it stopped (with --model: --resume).
    Without a run, test images are the data's `test` part, else `val`, else all of it.
    """
    names = ("data", "out", "input_range", "data_root", "class_names", "skip_bad_images", "image_size", "test_images",
             "overwrite", "resume")  # fmt: skip
    own = {name: options.pop(name) for name in names}
    budget, workers = options.pop("budget"), options.pop("workers")
    if models:
        _evaluate_files(run_folder, models, budget=budget, workers=workers, **own, **options)
        return
    from qrobust import pipeline
    from qrobust.errors import InputError

    given = [f"--{k.replace('_', '-')}" for k, v in own.items() if v]
    if run_folder is None or given:
        raise InputError(f"evaluate: expected a run's DIR or --model FILE.onnx, got {', '.join(given) or 'neither'}")
    bench = _reopen(run_folder, **options)
    pipeline.evaluate(bench, budget=budget, workers=workers)
    summary = bench.place().need_stage("evaluate", "evaluate")["summary"]
    for name, clean in summary["clean_accuracy"].items():
        click.echo(
            f"{name}: clean {100 * clean:.2f} %, under shift {100 * summary['shift_accuracy'][name]:.2f} % "
            f"(n = {summary['n_test']} of {summary['of']}, {summary['n_cells']} cells)"
        )


def _evaluate_files(
    run_folder: Path | None,
    models: tuple[str, ...],
    *,
    data: str | None,
    out: Path | None,
    verbose: bool,
    quiet: bool,
    threads: int | None,
    workers: int,
    overwrite: bool,
    resume: bool,
    **options: Any,
) -> None:
    """`evaluate --model`: no run, only files."""
    from qrobust.errors import InputError
    from qrobust.report.markdown import evaluation_table, sample, table
    from qrobust.standalone import Choices, evaluate_files

    if run_folder is not None or data is None or out is None:
        raise InputError("evaluate: --model needs --data and --out, and no run's DIR")
    attacks = [name for name in ("epsilons", "attack_images") if options.pop(name) is not None]
    if attacks:
        raise InputError(f"evaluate: --model measures no attacks (a session has no gradient), got {attacks[0]}")
    record = evaluate_files(
        Choices(models, data, **_choices(options)), out, _reporter(verbose, quiet),
        threads=_cores() if threads is None else threads, workers=workers, overwrite=overwrite, resume=resume,
    )  # fmt: skip
    click.echo("\n".join([*table(evaluation_table(record)), "", sample(record["summary"])]))
    click.echo(f"Record: {out / 'record.json'}")


@main.command()
@run_dir
@measuring
@training
@common
def compensate(run_folder: Path, **options: Any) -> None:
    """Train a calibrator in front of the frozen INT8 classifier of a run folder.

    The classifier does not change: its hash before and after is in the record. Training resumes after
    an interruption if the options are the same.
    """
    from qrobust import pipeline

    bench = _reopen(run_folder, **options)
    pipeline.compensate(bench)
    fit = bench.place().need_stage("compensate", "compensate")["training"]
    click.echo(
        f"validation accuracy under shift {100 * fit['float']['start_shift_accuracy']:.1f} -> "
        f"{100 * fit['int8']['shift_accuracy']:.1f} %, clean {100 * fit['float']['start_clean_accuracy']:.1f} -> "
        f"{100 * fit['int8']['clean_accuracy']:.1f} %"
    )


@main.command()
@run_dir
@common
def export(run_folder: Path, **options: Any) -> None:
    """Write compensated.onnx: calibrator and classifier as one INT8 graph, through the gates."""
    from qrobust import pipeline

    bench = _reopen(run_folder, **options)
    pipeline.export(bench)
    click.echo(str(bench.place().graph("compensated")))


@main.command()
@run_dir
@common
def report(run_folder: Path, **options: Any) -> None:
    """Write record.json, report.html and report.md from what the stages left."""
    from qrobust import pipeline

    bench = _reopen(run_folder, **options)
    _finish(bench, pipeline.write_report(bench))


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--image-size", type=int, help="Side in pixels, where the file leaves it open.")
@click.option(
    "--target",
    type=click.Choice(["x86-vnni", "x86-avx2", "arm64"]),
    help="Fuse as onnxruntime does on that CPU family: they differ in int8 activations.  [default: this CPU]",
)
@click.option(
    "--min-integer",
    type=FractionType(),
    help="Exit with code 3 below this share (0 to 1) of integer multiply-accumulates.",
)
@click.option(
    "--min-integer-nodes",
    type=FractionType(),
    help="Exit with code 3 below this share of integer convolutions and matrix products, each counting one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with every node and reason.")
def audit(
    file: Path,
    image_size: int | None,
    target: str | None,
    min_integer: float | None,
    min_integer_nodes: float | None,
    as_json: bool,
) -> None:
    """Tell what onnxruntime runs on integers in FILE.onnx, and what keeps the rest in float.

    Counted in multiply-accumulates and in operators, from the kernels that ran on one random image.
    """
    import json

    from qrobust.deployment.audit import audit as audit_file
    from qrobust.deployment.audit import check_share
    from qrobust.report.audit import audit_lines

    for name, share in (("--min-integer", min_integer), ("--min-integer-nodes", min_integer_nodes)):
        if share is not None and not 0 <= share <= 1:
            raise click.BadParameter(f"expected a share from 0 to 1, got {share:g}", param_hint=name)
    signed = None if target is None else target == "arm64"
    result = audit_file(file, image_size, signed_activations=signed, explain=True)
    if as_json:
        click.echo(json.dumps(result, indent=1))
    else:
        click.echo(f"{file}{f' as on {target}' if target else ''}\n" + "\n".join(audit_lines(result)))
    check_share(result, min_integer, min_integer_nodes)


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("qrobust-demo"),
    show_default=True,
    help="Folder of the run.",
)
@click.option("--overwrite", is_flag=True, help="Replace the run that the folder holds.")
@seed
@common
def demo(out: Path, overwrite: bool, **options: Any) -> None:
    """The whole job on scikit-learn's handwritten digits: no network and no files needed.

    Trains a small residual network on the spot, quantizes it, compensates it, and leaves a report. Takes
    less than four minutes on two cores.
    """
    from qrobust import demo as example
    from qrobust import pipeline
    from qrobust.workbench import check_folder

    check_folder(out, overwrite=overwrite)
    with example.weights_file(
        options["seed"], _reporter(options["verbose"], options["quiet"]), options["threads"] or _cores()
    ) as weights:
        bench = _begin(out, overwrite, **example.OPTIONS, weights=str(weights), **options)
        _finish(bench, pipeline.run(bench, resume=False))
