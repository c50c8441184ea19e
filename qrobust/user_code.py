"""The one place that runs Python files of a user: a network's factory, a shift's function.

A file runs because somebody names it. Where only a run's `config.json` names it, or another process, it has `Terms`,
which are checked on the very bytes that run.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from qrobust.errors import InputError, QRobustError
from qrobust.paths import user_path

SHA256_DIGITS = 64


@dataclass(frozen=True, eq=False)
class UserFile:
    """A file that was run.

    Attributes:
        path: as it was named.
        names: what it defines.
        code: SHA-256 of it and of the files beside it that it imported, by their path from its folder.
    """

    path: Path
    names: Mapping[str, Any]
    code: dict[str, str]

    @property
    def version(self) -> str:
        """Changes with any of these files."""
        return hashlib.sha256(repr(sorted(self.code.items())).encode()).hexdigest()


@dataclass(frozen=True)
class Terms:
    """On which terms a file runs that the configuration of a run names.

    Attributes:
        option: that names such files, in a command.
        spec: `FILE.py:NAME`, as the configuration has it.
        owner: the run's folder, for messages.
        named: whether the caller named it, too.
        anew: whether it was named as another choice, so that nothing made with an older content is kept.
        recorded: `UserFile.code` when it last ran for the run; empty where that is not known.
        allowed: SHA-256 of what may run, whoever names it.
        warn: is told of what has changed and runs nevertheless.
    """

    option: str
    spec: str
    owner: Path
    named: bool = False
    anew: bool = False
    recorded: Mapping[str, str] = field(default_factory=dict)
    allowed: frozenset[str] = frozenset()
    warn: Callable[[str], None] = lambda _: None

    def check(self, path: Path, sha256: str) -> None:
        """Refuse what nobody named, and what has changed.

        Raises:
            InputError: says how to allow it.
        """
        if not self.named and sha256 not in self.allowed:
            raise InputError(
                f"{self.option}: {path} is code that only {self.owner / 'config.json'} names, and runs only if this "
                f"command does: give --{self.option} {self.spec} where it has that option, or --allow-code {sha256}"
            )
        for name, before in self.recorded.items():
            file = path if name == path.name else _key(path).parent / name
            now = sha256 if file == path else sha256_of(file)
            if now == before:
                continue
            told = f"{file} has changed since {self.owner} was made with it (SHA-256 {before}, now {now})"
            if not self.anew and now not in self.allowed:
                raise InputError(f"{self.option}: {told}: begin the run again, or give --allow-code {now}")
            self.warn(f"warning: {told}")


# By resolved path: what must hold before a file runs; what was run last; modules beside it that it imported.
_terms: dict[Path, Callable[[Path, str], None]] = {}
_ran: dict[Path, UserFile] = {}
_beside: dict[Path, dict[str, ModuleType]] = {}


def is_code(spec: str) -> bool:
    """Whether it is `FILE.py:NAME`."""
    return ".py:" in spec


def file_of(spec: str) -> Path:
    """The file of `FILE.py:NAME`."""
    return user_path(spec.rpartition(":")[0])


def same_code(one: str, other: str) -> bool:
    """Whether two specs name the same object, however the file is spelled."""
    if not (is_code(one) and is_code(other)):
        return one == other
    return _key(file_of(one)) == _key(file_of(other)) and one.rpartition(":")[2] == other.rpartition(":")[2]


def govern(
    specs: Mapping[str, str],
    *,
    owner: Path,
    named: Iterable[str],
    anew: Iterable[str],
    recorded: Mapping[str, dict[str, str]],
    allowed: frozenset[str],
    warn: Callable[[str], None],
) -> None:
    """Set the `Terms` on which the files of a run's configuration run from now on.

    Args:
        specs: of the configuration, and the option of each.
        owner: the run's folder.
        named: specs that the caller named.
        anew: those of them that are another choice than before, whatever the configuration had.
        recorded: `code_of` from when the files ran last for the run.
        allowed: SHA-256 of what may run.
        warn: is told of what has changed and runs nevertheless.
    """
    fixed, fresh = (
        {_key(file_of(spec)) for spec in given if is_code(spec)} for given in (set(named) - set(anew), set(anew))
    )
    for spec, option in specs.items():
        if is_code(spec):
            path, key = file_of(spec), _key(file_of(spec))
            terms = Terms(
                option,
                spec,
                owner,
                key in fixed | fresh,
                key in fresh - fixed,
                recorded.get(str(path), {}),
                allowed,
                warn,
            )
            _terms[key] = terms.check
            _ran.pop(key, None)


def trust(specs: Iterable[str]) -> None:
    """Run these on no terms, and as they are now: the caller names them."""
    for spec in filter(is_code, specs):
        _terms.pop(_key(file_of(spec)), None)
        _ran.pop(_key(file_of(spec)), None)


def expect(code: Mapping[Path, str]) -> None:
    """In a worker process: run only what the process that began it ran."""

    def check(path: Path, sha256: str) -> None:
        if code[_key(path)] != sha256:
            raise InputError(f"shift: {path} has changed while it was in use")

    for path in code:
        _terms[path] = check


def ran() -> dict[Path, str]:
    """SHA-256 of every file that was run in this process, for `expect` in another."""
    return {key: found.code[found.path.name] for key, found in _ran.items()}


def code_of(specs: Iterable[str], before: Mapping[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """`UserFile.code` of every file that specs name, by its path as named; of what did not run, as before."""
    code = {}
    for path in dict.fromkeys(file_of(spec) for spec in specs if is_code(spec)):
        last = _ran.get(_key(path))
        code[str(path)] = last.code if last else before.get(str(path), {})
    return {path: found for path, found in code.items() if found}


def loaded(spec: str, about: str) -> UserFile:
    """The file of a spec as it was run last, else `load` it."""
    return _ran.get(_key(file_of(spec))) or load(spec, about)


def load(spec: str, about: str) -> UserFile:
    """Run the file of `FILE.py:NAME`.

    Args:
        spec: names it.
        about: begins error messages.

    Raises:
        InputError: there is no such file, its terms do not hold, or it ends in an error or exits.
    """
    path = file_of(spec)
    if not path.is_file():
        raise InputError(f"{about}: no file {path}, named by {spec!r}")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"{about}: cannot read {path} ({error.strerror})") from error
    sha256 = hashlib.sha256(source).hexdigest()
    key = _key(path)
    if key in _terms:
        _terms[key](path, sha256)
    _beside[key] = {}
    importlib.invalidate_caches()
    # In a package it has the package's name, so that relative imports work.
    _, package = _folders(path)
    name = f"{package}.{path.stem}" if package else f"qrobust_user_{path.stem}_{sha256[:8]}"
    loader = importlib.machinery.SourceFileLoader(name, str(key))
    module_spec = importlib.util.spec_from_file_location(name, key, loader=loader)
    assert module_spec is not None
    module = importlib.util.module_from_spec(module_spec)
    with running(path, f"{about}: {path} cannot be imported"):
        sys.modules[name] = module
        exec(compile(source, str(path), "exec"), module.__dict__)
    if not package:  # else it is among those beside
        sys.modules[name] = module
    _ran[key] = UserFile(path, module.__dict__, {path.name: sha256} | _hashes(key))
    return _ran[key]


@contextmanager
def running(path: Path, told: str) -> Iterator[None]:
    """While a user's code runs: it finds what lies beside its file, and no arguments but the file's name.

    Afterwards `sys.path`, `sys.argv` and `sys.modules` know nothing of it. What it raises, an exit as well, becomes
    one line.

    Args:
        path: the file.
        told: begins the line.

    Raises:
        InputError: with the line.
    """
    key, (folders, _) = _key(path), _folders(path)
    own = _beside.setdefault(key, {})
    argv, search, before = sys.argv, sys.path.copy(), set(sys.modules) - set(own)
    displaced = {name: sys.modules[name] for name in own if name in sys.modules}
    sys.argv, sys.path[:0] = [str(path)], [str(folder) for folder in folders]
    sys.modules.update(own)
    try:
        yield
    except QRobustError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise InputError(f"{told} ({complaint(error, path)})") from error
    finally:
        sys.argv = argv
        sys.path[:] = search
        new = set(sys.modules) - before
        tops = {name for name in new if "." not in name and _lies_in(sys.modules[name], folders)}
        own.update({name: sys.modules.pop(name) for name in new if name.partition(".")[0] in tops})
        sys.modules.update(displaced)


def complaint(error: BaseException, path: Path | None = None) -> str:
    """Where a user's code raised something, and what: `net.py:3: KeyError: 'a'`."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if path is not None:
        folders = [str(folder) + os.sep for folder in _folders(path)[0]]
        frames = [f for f in frames if f[0] == str(path) or any(f[0].startswith(folder) for folder in folders)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    place = f"{Path(frames[-1][0]).name}:{frames[-1][1]}: " if frames else ""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    if isinstance(error, SystemExit):
        return f"{place}it called sys.exit({'' if error.code is None else repr(error.code)})"
    return f"{place}{type(error).__name__}: {said}" if said else f"{place}{type(error).__name__}"


def sha256_of(path: Path) -> str:
    """Of a file's content, or `none` where there is no such file, or what is no plain file."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "none"
    except OSError:
        return "none"


def hashes(given: Iterable[str]) -> frozenset[str]:
    """What `--allow-code` was given.

    Raises:
        InputError: one is no SHA-256.
    """
    found = frozenset(text.strip().lower() for text in given)
    for text in found:
        if len(text) != SHA256_DIGITS or not set(text) <= set("0123456789abcdef"):
            raise InputError(f"allow_code: expected a SHA-256 of {SHA256_DIGITS} hexadecimal digits, got {text!r}")
    return found


def _key(path: Path) -> Path:
    return user_path(path).resolve()


def _folders(path: Path) -> tuple[list[Path], str]:
    """Where a file finds what it imports, and the package that it is part of, if any."""
    folder = top = _key(path).parent
    parts: list[str] = []
    while (top / "__init__.py").is_file():
        parts.insert(0, top.name)
        top = top.parent
    return [folder, top] if parts else [folder], ".".join(parts)


def _lies_in(module: ModuleType, folders: list[Path]) -> bool:
    spec = getattr(module, "__spec__", None)
    if spec is None:
        return False
    places = list(spec.submodule_search_locations or ()) or ([spec.origin] if spec.origin else [])
    return any(Path(place).parent in folders for place in places)


def _hashes(key: Path) -> dict[str, str]:
    files = {Path(file) for module in _beside[key].values() if (file := getattr(module, "__file__", None))} - {key}
    return {os.path.relpath(file, key.parent): sha256_of(file) for file in sorted(files)}
