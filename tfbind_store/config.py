"""Choices of one run: TOML in, frozen dataclasses out, and back again.

Every config is a frozen, keyword-only dataclass with defaults; nested dataclasses become TOML tables. Unknown keys are
refused with the nearest known name; values are checked against the annotated type.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tfbind_store.errors import ConfigError

ConfigT = TypeVar("ConfigT")
MAX_SEED = 2**31 - 1
"""What numpy's and torch's generators all take, steps and processes counted in beside it."""


def from_mapping(cls: type[ConfigT], values: Mapping[str, Any], *, where: str) -> ConfigT:
    """Build config `cls` from plain values, as TOML or JSON gave them.

    Raises
    ------
    ConfigError
        On an unknown key (with the nearest known one), a value of another type, a number that is none, a seed out of
        range, or a value that is missing.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    ready: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            fix = f"did you mean {close[0]}?" if close else f"known keys: {', '.join(sorted(fields))}"
            raise ConfigError(f"unknown key {key!r}", where=where, fix=fix)
        ready[key] = _convert(value, hints[key], where=f"{where}: {key}")
        if key == "seed" and isinstance(ready[key], int) and not 0 <= ready[key] <= MAX_SEED:
            raise ConfigError(f"seed is {value}, must be from 0 to {MAX_SEED:,}", where=where)
    for key, field in fields.items():
        has_default = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if key not in ready and not has_default:
            raise ConfigError(f"{key} is missing", where=where, fix=f"add {key} = …")
    return cls(**ready)


def load_toml(cls: type[ConfigT], path: Path | str) -> ConfigT:
    """Read config `cls` from a TOML file."""
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("no such config file", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path)) from error
    return from_mapping(cls, values, where=str(path))


def with_settings(config: ConfigT, settings: Iterable[str]) -> ConfigT:
    """Return `config` with ``key=value`` or ``table.key=value`` settings applied, values written as TOML.

    Examples
    --------
    >>> @dataclasses.dataclass(frozen=True, kw_only=True)
    ... class Run:
    ...     lr: float = 1.0
    >>> with_settings(Run(), ["lr=1e-4"])
    Run(lr=0.0001)
    """
    values = to_mapping(config)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"setting {setting!r} has no '='", where="--set", fix="write --set key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # bare words are strings: --set schedule=cosine
        *tables, key = name.strip().split(".")
        place = values
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{table!r} is no table", where=f"--set {setting}")
        place[key] = value
    return from_mapping(type(config), values, where="--set")


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a config as plain nested values; None entries are left out, as TOML has no null."""

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(item) for key, item in value.items() if item is not None}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return typing.cast(dict[str, Any], clean(dataclasses.asdict(config)))


def to_toml(config: Any) -> str:
    """Return a config as TOML text, tables after plain keys; reading it back gives an equal config."""
    return "\n".join(_toml_lines(to_mapping(config), ())) + "\n"


def _toml_lines(values: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for key, value in values.items():
        if isinstance(value, dict):
            inner = (*path, key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key))
            lines += ["", f"[{'.'.join(inner)}]", *_toml_lines(value, inner)]
    return lines


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    raise ConfigError(f"cannot be written as TOML: {value!r}", where="config")


def _finite(value: int | float, *, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ConfigError(f"{str(value)[:40]} is no finite number", where=where)
    return number


def _convert(value: Any, hint: Any, *, where: str) -> Any:
    """Return `value` as the annotated type `hint`, or refuse it."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        for option in options:
            if option is type(None):
                continue
            try:
                return _convert(value, option, where=where)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        if value in typing.get_args(hint):
            return value
        known = ", ".join(map(str, typing.get_args(hint)))
        raise ConfigError(f"{value!r} is not one of: {known}", where=where)
    elif origin in (tuple, list):
        if isinstance(value, list | tuple):
            inner = [a for a in typing.get_args(hint) if a is not Ellipsis]
            item_hint = inner[0] if inner else Any
            return origin(_convert(item, item_hint, where=where) for item in value)
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return dict(value)
    elif dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_mapping(typing.cast(type, hint), value, where=where)
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
    elif hint is Any:
        return value
    elif hint is Path and isinstance(value, str | Path):
        return Path(value)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return _finite(value, where=where)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{value!r} is not of type {getattr(hint, '__name__', hint)}", where=where)
