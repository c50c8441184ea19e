"""Commands with help in groups and `--help-all`, and with one line about an option that has another name now."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING
from fractions import Fraction
from typing import Any

import click

from qrobust.cli.interrupts import Interruptible
from qrobust.cli.parsing import FIELDS, field_of
from qrobust.errors import InputError

MODEL, QUANTIZATION, QAT, SHIFTS, CALIBRATOR, ATTACKS, GATE, RUN = GROUPS = (
    "Model and data",
    "Quantization",
    "Quantization-aware training",
    "Shifts",
    "Calibrator",
    "Attacks",
    "Bounds",
    "Run",
)
# What messages call an option's argument, where that is not the option's name.
ARGUMENTS = {
    "shift": "shifts",
    "severity": "severities",
    **{field: option for option, field in FIELDS.items()},
}


class Option(click.Option):
    """An option that stands in a group of the help, and shows the default of the field that it sets.

    Args:
        group: of the help.
        advanced: shown by `--help-all` only.
        unset: what is done where it is not given, if its field's default does not say that.
        extra: as for `click.Option`.
    """

    def __init__(
        self, *declarations: Any, group: str = RUN, advanced: bool = False, unset: str = "", **extra: Any
    ) -> None:
        super().__init__(*declarations, **extra)
        self.group, self.advanced, self.unset = group, advanced, unset

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        shown = self.unset or self._field_default()
        if shown:
            extra.setdefault("default", shown)
        return extra

    def _field_default(self) -> str:
        field = field_of(str(self.name))
        if (
            field is None
            or field.default is MISSING
            or field.default is None
            or (self.is_flag and not self.secondary_opts)
        ):
            return ""
        if self.is_flag:
            return (self.opts if field.default else self.secondary_opts)[0].lstrip("-")
        values = field.default if isinstance(field.default, tuple) else (field.default,)
        return ",".join(_number(v) if isinstance(v, float) else str(v) for v in values)


def _number(value: float) -> str:
    """As it would be typed: 4/255 rather than 0.0156863."""
    text = f"{value:g}"
    return text if float(text) == value else str(Fraction(value).limit_denominator(255))


class Command(Interruptible):
    """A command that groups its options, has `--help-all`, and knows what options it once had are called now.

    Values are never empty: an empty one is a variable of the shell that is not set.

    Args:
        former: options of earlier versions to what is said to who gives one.
        arguments: as for `click.Command`.
    """

    def __init__(self, *arguments: Any, former: Mapping[str, str] | None = None, **extra: Any) -> None:
        super().__init__(*arguments, **extra)
        self.former = former or {}
        self.params.append(
            Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_all,
                help="Show all options and exit.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for word in args:
            said = self.former.get(word.partition("=")[0])
            if said:
                raise InputError(f"{word.partition('=')[0]} {said}")
        given, *_ = self.make_parser(ctx).parse_args(args=list(args))
        for param in self.params:
            values = given.get(param.name or "")
            for value in values if isinstance(values, list | tuple) else (values,):
                if isinstance(value, str) and not value.strip():
                    name = param.opts[0] if isinstance(param, click.Option) else param.make_metavar(ctx)
                    raise InputError(
                        f"{name}: expected a value, got an empty string; is a variable of the shell unset?"
                    )
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        everything, left_out = ctx.meta.get("help_all", False), 0
        every = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        for group in GROUPS:
            options = [p for p in every if getattr(p, "group", RUN) == group]
            shown = [p for p in options if everything or not getattr(p, "advanced", False)]
            left_out += len(options) - len(shown)
            records = [record for p in shown if (record := p.get_help_record(ctx))]
            if records:
                with formatter.section(group):
                    formatter.write_dl(records)
        if left_out:
            formatter.write_paragraph()
            formatter.write_text(f"{left_out} more option{'s' * (left_out > 1)}: {ctx.command_path} --help-all")

    def as_typed(self, message: str) -> str:
        """A message about an argument, as Python knows it, with the options that are typed for it and for others."""
        options = {str(p.name): max(p.opts, key=len) for p in self.params if isinstance(p, click.Option)}
        options |= {name: options[option] for name, option in ARGUMENTS.items() if option in options}
        if message.partition(":")[0] not in options:
            return message
        message = re.sub(r"(^|; )(\w+): ", lambda m: f"{m[1]}{options.get(m[2], m[2])}: ", message)
        # Within a sentence, only what cannot be a word of it, nor a part of a path or of what the user wrote.
        return re.sub(r"(?<![\w./'\"-])\w+_\w+(?![\w./'\"-])", lambda m: options.get(m[0], m[0]), message)


def _show_all(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta["help_all"] = True
        click.echo(ctx.get_help())
        ctx.exit()
