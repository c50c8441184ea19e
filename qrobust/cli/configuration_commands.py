"""The command that writes a configuration file."""

from __future__ import annotations

from pathlib import Path

import click

from qrobust.cli.command import Command, Option
from qrobust.cli.console import echo
from qrobust.cli.options import with_options


@click.command(cls=Command)
@click.argument("file", default="qrobust.toml", type=click.Path(path_type=Path))
@with_options("model", "data", model={"unset": "resnet20"}, data={"unset": "imagefolder:images"})
@click.option("--overwrite", cls=Option, is_flag=True, help="Replace FILE.")
def init(file: Path, model: str | None, data: str | None, overwrite: bool) -> None:
    """Write a configuration file with every choice, commented.

    FILE is qrobust.toml by default. Each key stands there with what it means and its default.
    `qrobust run` and `qrobust quantize` take it by --config, and single choices by --set; options go before both. A
    run keeps what it was made with as config.toml in its folder. `qrobust check` reads bounds from [check].

    \b
    qrobust init
    qrobust run --config qrobust.toml --out runs/one
    qrobust run --config runs/one/config.toml --set quantization.bits=w4a8 --out runs/two
    """
    from qrobust.errors import InputError
    from qrobust.pipeline.config_file import template
    from qrobust.storage import write_text

    if file.exists() and not (overwrite and file.is_file()):
        raise InputError(f"file: {file} exists; --overwrite replaces it")
    write_text(file, template(model or "resnet20", data or "imagefolder:images"))
    echo(str(file))
