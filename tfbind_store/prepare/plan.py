"""What a plan may say, and the stages that follow from it. Reads the plan's file only, none of those that it names.

Keys are the options of the commands that do the same by hand: ``[[peaks]]`` takes what ``tfbind import peaks`` takes.
Files are relative to the plan; ``fetch:NAME`` is the file that ``[fetch.NAME]`` brings.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tfbind_store.config import from_mapping, to_mapping
from tfbind_store.errors import ConfigError
from tfbind_store.loci import Grid
from tfbind_store.names import near_miss, path_safe_name
from tfbind_store.query.selection import SelectionConfig

FETCHED = "fetch:"
_GRID = Grid()


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """A file to download by name, as ``tfbind fetch`` does."""

    source: str
    """Name in the table of sources."""
    set: Mapping[str, Any] = field(default_factory=dict)
    """Fields of its address."""


@dataclass(frozen=True, kw_only=True)
class Init:
    """The store's genome and grid."""

    fasta: Path
    window_bp: int = _GRID.window_bp
    bins: int = _GRID.n_bins
    bin_bp: int = _GRID.bin_bp
    only: tuple[str, ...] = ()
    chrom_sizes: Path | None = None
    aliases: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Proteins:
    """As ``tfbind import factors``."""

    path: Path
    synonyms: tuple[Path, ...] = ()
    species: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """As ``tfbind import peaks``."""

    path: Path
    relaxed: bool = False
    format: str | None = None
    name_from: str | None = None
    experiments: Path | None = None
    column: Mapping[str, Any] = field(default_factory=dict)
    biotype: str | None = None
    labelled_chroms: Literal["all", "union"] | tuple[str, ...] = ()
    aliases: Path | None = None
    drop: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Experiments:
    """As ``tfbind import experiments``."""

    path: Path
    column: Mapping[str, Any] = field(default_factory=dict)
    biotype: str | None = None
    source: str | None = None
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Biotypes:
    """As ``tfbind import biotypes``."""

    path: Path
    template: str | None = None
    key: str | None = None
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Blacklist:
    """As ``tfbind import blacklist``."""

    path: Path
    name: str | None = None
    drop: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Loci:
    """As ``tfbind import loci``; the table's name is the set's."""

    path: Path
    split: str | None = None
    drop: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class BigWigs:
    """As ``tfbind import tracks`` and ``signals``; the table's name is the array's."""

    path: Path
    annotation: Path
    assembly: str | None = None
    biotype: str | None = None
    statistic: Literal["mean", "sum", "max"] | None = None
    gaps: Literal["missing", "zero"] | None = None
    clip: float | None = None
    scale: float | None = None
    log1p: bool = False
    aliases: Path | None = None
    drop: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class PeakTracks:
    """As ``tfbind import peak-tracks``; the table's name is the array's."""

    by: Literal["experiment", "factor_biotype"] | None = None
    number: Literal["bound", "covered", "score"] | None = None
    factor: str | None = None
    biotype: str | None = None


@dataclass(frozen=True)
class Kind:
    """One kind of stage."""

    options: type
    is_named: bool
    """Whether its tables have names, ``[loci.promoters]``; else it is one table or several, ``[[peaks]]``."""
    after: tuple[str, ...]
    """Kinds whose outcome this one reads."""


KINDS: Mapping[str, Kind] = {
    "fetch": Kind(Fetch, True, ()),
    "init": Kind(Init, False, ()),
    "proteins": Kind(Proteins, False, ("init",)),
    # Experiments get their factors anew whenever proteins come: peaks need not be read again for that.
    "peaks": Kind(Peaks, False, ("init",)),
    "experiments": Kind(Experiments, False, ("proteins", "peaks")),
    "biotypes": Kind(Biotypes, False, ("init",)),
    "blacklist": Kind(Blacklist, False, ("init",)),
    "loci": Kind(Loci, True, ("init",)),
    "signals": Kind(BigWigs, True, ("init",)),
    "tracks": Kind(BigWigs, True, ("init",)),
    "peak_tracks": Kind(PeakTracks, True, ("proteins", "peaks", "blacklist")),
    "select": Kind(SelectionConfig, True, ("proteins", "peaks", "experiments", "blacklist", "loci")),
}
"""In the order in which stages are done."""
IN_ORDER = ("proteins", "experiments", "biotypes")
"""Kinds of which a later file corrects an earlier one."""


@dataclass(frozen=True)
class Stage:
    """One thing to do."""

    id: str
    """Kind and name, for people and for the record: ``peaks remap.bed.gz``."""
    kind: str
    name: str
    """Of the table, where it has one."""
    options: Any
    """The kind's dataclass."""
    after: tuple[str, ...]
    """Ids of the stages whose outcome it reads."""

    def files(self) -> dict[str, tuple[Path, ...]]:
        """Return the files that it reads, by option."""
        found: dict[str, tuple[Path, ...]] = {}
        for item in dataclasses.fields(self.options):
            value = getattr(self.options, item.name)
            paths = value if isinstance(value, tuple) else (value,)
            if paths and all(isinstance(path, Path) for path in paths):
                found[item.name] = paths
        return found

    def choices(self) -> dict[str, Any]:
        """Return the options that are no files, as plain values; what was not said is left out."""
        files = self.files()
        values = {key: value for key, value in to_mapping(self.options).items() if key not in files}
        return {key: value for key, value in values.items() if value not in ([], {}, "")}


@dataclass(frozen=True)
class Plan:
    """A plan that was read."""

    path: Path
    store: Path
    stages: tuple[Stage, ...]
    sources: Path | None
    """A table of sources in place of the package's."""
    cache: Path | None
    """Where downloads lie, in place of the usual folder."""

    def place(self, path: Path) -> Path:
        """Return where a file named in the plan lies."""
        return self.path.parent / path.expanduser()


def read_plan(path: Path | str) -> Plan:
    """Read a plan.

    Raises
    ------
    ConfigError
        If it is no TOML, says something unknown (with the nearest known word), or names a file or stage twice.
    """
    path = Path(path).absolute()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("no such plan", where=str(path), fix="tfbind prepare PLAN.toml") from error
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path)) from error
    places = {key: values.pop(key, None) for key in ("store", "sources", "cache")}
    for key, value in places.items():
        if value is not None and (not isinstance(value, str) or not value):
            raise ConfigError(f"{key} is no path: {value!r}", where=str(path))
    if places["store"] is None:
        raise ConfigError("the plan names no store", where=str(path), fix='begin it with store = "NAME.store"')
    stages = list(_stages(values, path))
    if "init" not in {stage.kind for stage in stages}:
        raise ConfigError("the plan names no genome", where=str(path), fix='add [init] with fasta = "GENOME.fa.gz"')
    store, sources, cache = (path.parent / Path(place).expanduser() if place else None for place in places.values())
    assert store is not None
    return Plan(path, store, _linked(stages, path), sources, cache)


def _stages(values: Mapping[str, Any], path: Path) -> Iterator[Stage]:
    """Yield the stages of a plan, by kind and then as written, not yet linked."""
    for key in values:
        if key not in KINDS:
            close = near_miss(key, [*KINDS, "store", "sources", "cache"])
            fix = f"did you mean {close}?" if close else f"known: store, sources, cache, {', '.join(KINDS)}"
            raise ConfigError(f"unknown key {key!r}", where=str(path), fix=fix)
    seen: set[str] = set()
    for kind, what in KINDS.items():
        for name, table, where in _tables(kind, values.get(kind), path):
            options: Any = from_mapping(what.options, table, where=where)
            stage = Stage(_identity(kind, name, options), kind, name, options, ())
            if stage.id in seen:
                fix = "write it once" if kind == "init" else "give the files different names"
                raise ConfigError(f"two stages are called {stage.id!r}", where=str(path), fix=fix)
            seen.add(stage.id)
            yield stage


def _tables(kind: str, value: Any, path: Path) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Yield name, table and place of each stage of one kind."""
    if value is None:
        return
    if KINDS[kind].is_named:
        if not isinstance(value, Mapping) or not all(isinstance(table, Mapping) for table in value.values()):
            fix = f"write [{kind}.NAME], one for each"
            raise ConfigError(f"{kind} is no table of named tables", where=str(path), fix=fix)
        for name, table in value.items():
            yield path_safe_name(name, what=f"name of {kind}"), table, f"{path}: {kind}.{name}"
        return
    tables = value if isinstance(value, list) else [value]
    if not all(isinstance(table, Mapping) for table in tables) or (kind == "init" and len(tables) != 1):
        fix = "write [init] once" if kind == "init" else f"write [{kind}], or [[{kind}]] for each file"
        raise ConfigError(f"{kind} is no table", where=str(path), fix=fix)
    for number, table in enumerate(tables, 1):
        where = f"{path}: {kind}" + (f" {number}" if len(tables) > 1 else "")
        yield "", table, where


def _identity(kind: str, name: str, options: Any) -> str:
    if kind == "init":
        return kind
    return f"{kind} {name or options.path.name.removeprefix(FETCHED)}"


def _linked(stages: list[Stage], path: Path) -> tuple[Stage, ...]:
    """Give each stage the ids of those that it stands on."""
    linked: list[Stage] = []
    fetches = {stage.name for stage in stages if stage.kind == "fetch"}
    for stage in stages:
        kinds = {*KINDS[stage.kind].after, *((stage.kind,) if stage.kind in IN_ORDER else ())}
        after = [earlier.id for earlier in linked if earlier.kind in kinds]
        for files in stage.files().values():
            for name in filter(None, map(fetched_name, files)):
                if name not in fetches:
                    close = near_miss(name, sorted(fetches))
                    fix = f"did you mean {FETCHED}{close}?" if close else f"add [fetch.{name}]"
                    raise ConfigError(f"nothing fetches {name!r}", where=f"{path}: {stage.id}", fix=fix)
                after.append(f"fetch {name}")
        linked.append(dataclasses.replace(stage, after=tuple(after)))
    return tuple(linked)


def fetched_name(path: Path) -> str | None:
    """Return which download a path of a plan means, None if it is a file.

    Examples
    --------
    >>> fetched_name(Path("fetch:hg38")), fetched_name(Path("peaks.bed"))
    ('hg38', None)
    """
    text = str(path)
    return text[len(FETCHED) :] if text.startswith(FETCHED) else None
