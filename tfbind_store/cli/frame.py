"""What every command shares: the look of help and errors, exit status, and how results are printed.

A command parses, calls one library function and prints what it returns. Results go to standard output, everything
else (progress, log, errors) to standard error, so that ``--json`` can be piped. Nothing heavy is imported here.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import click

from tfbind_store.errors import Interrupted, TfbindError

LOGGER_NAME = "tfbind_store"
EXIT_USER_MISTAKE = 1
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_VERBOSE = "tfbind_store.verbose"

Kept = Callable[..., Any]
ConfigT = TypeVar("ConfigT")


class Command(click.Command):
    """A command whose help ends with examples that a test runs."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = list(examples)
        self.params.append(
            click.Option(
                ["-v", "--verbose"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_be_verbose,
                help="Log more, and show the traceback of an error.",
            )
        )

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples after the options."""
        if self.examples:
            title = "Example" if len(self.examples) == 1 else "Examples"
            with formatter.section(title):
                formatter.write("".join(f"  {example}\n" for example in self.examples))


class Group(click.Group):
    """Commands in the order of the flow, not of the alphabet."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as they were added."""
        return list(self.commands)


class MainGroup(Group):
    """The ``tfbind`` command itself: turns every error into three lines and an exit status."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run, then leave with 0, 1 (user's mistake), 75 (busy), 130 or 143 (interrupted)."""
        kwargs["standalone_mode"] = False
        _start_logging()
        _leave_on_sigterm()
        given = kwargs.get("args") or (args[0] if args else None) or sys.argv[1:]
        try:
            result = super().main(*args, **kwargs)
            if sys.stdout is not None:  # None where the caller has closed it
                sys.stdout.flush()
        except (Exception, KeyboardInterrupt, _Terminated) as error:
            sys.exit(_report(error, command=self._path(given)))
        sys.exit(result if isinstance(result, int) else 0)

    def _path(self, given: Sequence[str]) -> str:
        """Return the names of the command that `given` means: ``tfbind import peaks``."""
        names, command = ["tfbind"], cast("click.Command", self)
        for name in given:
            if not isinstance(command, click.Group) or name not in command.commands:
                break
            names, command = [*names, name], command.commands[name]
        return " ".join(names)


class _Terminated(BaseException):
    """SIGTERM has come."""


def _report(error: BaseException, *, command: str) -> int:
    """Print `error` as what, where, fix; return the exit status it asks for."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return EXIT_USER_MISTAKE
    if isinstance(error, click.Abort | KeyboardInterrupt | _Terminated):
        click.echo(f"Error: {Interrupted('stopped', where=command)}", err=True)
        return EXIT_TERMINATED if isinstance(error, _Terminated) else EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # The reader of our output (head, less) has seen enough; Python must not complain about it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USER_MISTAKE
    if _is_verbose():
        click.echo("".join(traceback.format_exception(error)).rstrip(), err=True)
    described = _described(error)
    described.where = described.where or command
    click.echo(f"Error: {described}", err=True)
    return described.exit_status


def _described(error: BaseException) -> TfbindError:
    """Return any error as one that says what, where and fix."""
    if isinstance(error, TfbindError):
        return error
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "tfbind"
        return TfbindError(error.format_message(), where=path, fix=f"{path} --help")
    if isinstance(error, click.ClickException):
        return TfbindError(error.format_message())
    if isinstance(error, OSError) and error.errno is not None:
        return _described_os_error(error)
    return TfbindError(
        f"unexpected {type(error).__name__}: {error}",
        where=_last_own_frame(error),
        fix="this is a fault of tfbind_store, not yours: run again with -v and report what it prints",
    )


def _described_os_error(error: OSError) -> TfbindError:
    fixes = {
        errno.ENOSPC: "free space on this disk, then run the same command again",
        errno.EDQUOT: "free space within your quota, then run the same command again",
        errno.EROFS: "this place can only be read: give a path that you may write",
        errno.EACCES: "give yourself the right to use it, or another path",
        errno.EPERM: "give yourself the right to use it, or another path",
        errno.ENOENT: "check the path",
        errno.EMFILE: "raise the number of open files: ulimit -n 4096",
    }
    where = str(error.filename) if error.filename else ""
    return TfbindError(
        error.strerror or str(error), where=where, fix=fixes.get(error.errno or 0, "check the path and the disk")
    )


def _last_own_frame(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "tfbind_store" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _start_logging() -> None:
    """Send the package's warnings to today's standard error, one plain line each; -v sends the rest too."""
    logger = logging.getLogger(LOGGER_NAME)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False


def _is_verbose() -> bool:
    return logging.getLogger(LOGGER_NAME).level <= logging.DEBUG


def _be_verbose(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        logging.getLogger(LOGGER_NAME).setLevel(logging.DEBUG)


def show_log_of(module: str) -> None:
    """Show what `module` logs as it goes, for a command that runs for minutes."""
    logging.getLogger(f"{LOGGER_NAME}.{module}").setLevel(logging.INFO)


def _leave_on_sigterm() -> None:
    """Let SIGTERM unwind the stack, so that temporary files go away."""

    def leave(number: int, frame: object) -> NoReturn:
        raise _Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, leave)


# printing -------------------------------------------------------------------------------------------------------


def json_option(function: Kept) -> Kept:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def emit(value: Any, text: str | Iterable[str], *, as_json: bool) -> None:
    """Print a result: `value` as JSON, or its `text`."""
    if as_json:
        click.echo(json.dumps(plain(value), indent=2, ensure_ascii=False))
    else:
        click.echo(text if isinstance(text, str) else "\n".join(text))


def plain(value: Any) -> Any:
    """Return `value` as JSON values: dataclasses and named tuples as objects, NaN as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and numbers, without importing numpy
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return an aligned text table; numbers to the right."""
    cells = [[_cell(item) for item in row] for row in rows]
    widths = [max([len(name), *(len(row[i]) for row in cells)]) for i, name in enumerate(header)]
    numeric = [bool(cells) and all(_is_number(row[i]) for row in cells) for i in range(len(header))]

    def line(items: Sequence[str]) -> str:
        aligned = (x.rjust(w) if right else x.ljust(w) for x, w, right in zip(items, widths, numeric, strict=True))
        return "  ".join(aligned).rstrip()

    return [line(header), *map(line, cells)]


def _cell(item: Any) -> str:
    if item is None:
        return "-"
    if isinstance(item, float):
        return "-" if math.isnan(item) else f"{item:.4g}"
    return f"{item:,}" if isinstance(item, int) and not isinstance(item, bool) else str(item)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(",", "").replace(".", "").replace("-", "").replace("e", "").isdigit()


def size_text(size_bytes: float) -> str:
    """Return a size that people read.

    Examples
    --------
    >>> size_text(149_000_000_000)
    '138.8 GiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def key_values(settings: Iterable[str], *, option: str) -> dict[str, str]:
    """Read repeated ``key=value`` options.

    Examples
    --------
    >>> key_values(["factor=SOX2"], option="-p")
    {'factor': 'SOX2'}
    """
    pairs: dict[str, str] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{option} {setting}: write {option} NAME=VALUE")
        pairs[key] = value
    return pairs


def toml_value(text: str) -> Any:
    """Read a value as TOML does; what is no TOML is text.

    Examples
    --------
    >>> toml_value("192"), toml_value("true"), toml_value("cpu")
    (192, True, 'cpu')
    """
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def listed(text: str | None) -> list[str]:
    """Read a comma-separated option.

    Examples
    --------
    >>> listed("chrIV, chrXVI")
    ['chrIV', 'chrXVI']
    """
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def configured(cls: type[ConfigT], path: Path | None, given: Mapping[str, Any], settings: Sequence[str]) -> ConfigT:
    """Build a config: the defaults, then the TOML file, then options that were given, then ``--set``.

    Parameters
    ----------
    given
        Values by field name; None and empty ones were not given. Nested mappings are nested configs.
    """
    from tfbind_store.config import from_mapping, load_toml, to_mapping, with_settings

    values = to_mapping(load_toml(cls, path)) if path else {}
    for key, value in given.items():
        if isinstance(value, Mapping):
            values[key] = {**values.get(key, {}), **value}
        elif value is not None and value not in ([], ()):
            values[key] = value
    return with_settings(from_mapping(cls, values, where="options"), settings)
