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
@click.option("--schema", cls=Option, is_flag=True, help="Write a JSON schema for editors, too, beside FILE.")
@click.option("--overwrite", cls=Option, is_flag=True, help="Replace FILE, and the schema.")
def init(file: Path, model: str | None, data: str | None, schema: bool, overwrite: bool) -> None:
    """Write a configuration file with every choice, commented.

    FILE is qrobust.toml by default. Each key stands there with what it means and its default.
    `qrobust run` and `qrobust quantize` take it by --config, and single choices by --set; options go before both. A
    run keeps what it was made with as config.toml in its folder. `qrobust check` reads bounds from [check].

    \b
    qrobust init
    qrobust init --schema     # editors complete keys and mark mistakes
    qrobust run --config qrobust.toml --out runs/one
    qrobust run --config runs/one/config.toml --set quantization.bits=w4a8 --out runs/two
    """
    from qrobust.errors import InputError
    from qrobust.pipeline.config_file import template
    from qrobust.pipeline.config_schema import json_schema
    from qrobust.storage import write_json, write_text

    beside = file.with_suffix(".schema.json")
    for made in (file, beside) if schema else (file,):
        if made.exists() and not (overwrite and made.is_file()):
            raise InputError(f"file: {made} exists; --overwrite replaces it")
    if schema:
        write_json(beside, json_schema())
    named = f"#:schema ./{beside.name}\n" if schema else ""
    write_text(file, named + template(model or "resnet20", data or "imagefolder:images"))
    for made in (file, beside) if schema else (file,):
        echo(str(made))
