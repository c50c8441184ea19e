"""A runner by name."""

from __future__ import annotations

from pathlib import Path

from qrobust.errors import unknown
from qrobust.fleet.unit import KINDS, Expected, Runner

LOCAL, RAY, SLURM = NAMES = ("local", "ray", "slurm")
FORMS = "ray://HOST:PORT"


def split(name: str) -> tuple[str, str | None]:
    """Kind and address of a runner: `local`, `ray`, `ray://HOST:PORT`, `ray://auto` or `slurm`.

    Raises:
        InputError: there is no such runner.
    """
    kind, separator, address = name.partition("://")
    if kind not in NAMES or (separator and (kind != RAY or not address)):
        raise unknown("runner", name, NAMES, FORMS)
    return kind, address if separator else None


def runner(name: str, out: Path, *, at_once: int, threads: int, cpus: int, mixed_hosts: bool = False) -> Runner:
    """The runner of that name.

    Args:
        name: see `split`.
        out: folder of the fleet, which all hosts see.
        at_once: units at the same time on this machine; elsewhere the cluster says.
        threads: CPUs that the largest unit takes.
        cpus: of this machine.
        mixed_hosts: whether CPUs may differ between hosts, and so may figures.

    Raises:
        InputError: there is no such runner, or it cannot be used.
    """
    kind, address = split(name)
    expected = Expected(kinds=None if mixed_hosts else out.absolute() / KINDS)
    if kind == RAY:
        from qrobust.fleet.ray_cluster import RayRunner

        return RayRunner(address, threads, expected, cpus)
    if kind == SLURM:
        from qrobust.fleet.slurm import SlurmRunner

        return SlurmRunner(out.absolute() / "slurm", expected)
    from qrobust.fleet.local import LocalRunner

    return LocalRunner(at_once, expected)
