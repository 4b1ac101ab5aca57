"""Every exception of the package: what went wrong, where, and what to do about it.

TfbindError                     exit status 1
├── ConfigError                 (ValueError) a run's choices: unknown key, bad value
├── SpecError                   (ValueError) a store's identity: fingerprint or field differs
├── LocusError                  (ValueError) coordinates that do not fit their grid or chromosome
├── NameParseError              (ValueError) a factor, biotype or chromosome name nobody knows
├── InputFileError              (ValueError) an outside file that cannot be used as it is
│   ├── GenomeError             FASTA: truncated, stale index, other assembly
│   ├── PeakFileError           BED and its relatives
│   └── ProteinError            protein FASTA, alphabets
├── StrictError                 (ValueError) something would have been dropped under --strict
├── StoreError                  (RuntimeError) the folder that holds it all
│   ├── StoreMissing            (FileNotFoundError)
│   ├── StoreExists             (FileExistsError)
│   ├── FormatVersionError      written by another format version
│   ├── StoreReadOnly           (PermissionError)
│   ├── NoSpace                 (OSError) need X, have Y
│   ├── StoreBusy               exit status 75: another process holds the write lock
│   ├── DamagedShard            bytes differ from their receipt
│   └── MissingWindow           (LookupError) asked for a window that nobody embedded
├── CatalogError                (RuntimeError) the DuckDB catalog
├── SqlError                    (ValueError) SQL from outside that may not run
│   └── SqlTimeout              (TimeoutError)
├── SelectionError              (ValueError) a selection that cannot be made
│   └── LeakError               the same thing on both sides of a split
├── WeightsError                (FileNotFoundError) a model's weights are not here
│   └── UnsafeFile              a file that would run code when opened
├── EmbeddingError              (RuntimeError) windows that could not be embedded
├── TrainingError               (ArithmeticError) a loss that is not finite, a run that cannot go on
├── CheckpointError             (ValueError) a head that does not fit this store
├── DependencyError             (ImportError) an optional package or program is absent
└── Interrupted                 exit status 130 (Ctrl-C) or 143 (SIGTERM)

Raise them with keywords: ``raise PeakFileError("end 1043 <= start 1043", where="peaks.bed:8841", fix="…")``.
"""

from __future__ import annotations


class TfbindError(Exception):
    """A mistake or a damage that the user can act on.

    Parameters
    ----------
    what
        One sentence with the value found and the value expected.
    where
        File and line, locus, table, key or shard.
    fix
        A command to run, or a sentence that says what to change.
    """

    exit_status = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        """Return the three lines that the command line prints."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip back from a worker process."""
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(cls: type[TfbindError], what: str, where: str, fix: str) -> TfbindError:
    return cls(what, where=where, fix=fix)


class ConfigError(TfbindError, ValueError):
    """A run's choices hold an unknown key or a value out of range."""


class SpecError(TfbindError, ValueError):
    """What is in the store was made with something else than what is asked for."""


class LocusError(TfbindError, ValueError):
    """Coordinates do not fit their grid or chromosome."""


class NameParseError(TfbindError, ValueError):
    """A name that no rule and no alias explains."""


class InputFileError(TfbindError, ValueError):
    """A file from outside cannot be used as it is."""


class GenomeError(InputFileError):
    """A FASTA is truncated, has a stale index, or is of another assembly."""


class PeakFileError(InputFileError):
    """A BED-like file holds something that is no peak."""


class ProteinError(InputFileError):
    """A protein FASTA or sequence holds something that is no protein."""


class StrictError(TfbindError, ValueError):
    """Under ``--strict``, a row would have been dropped."""


class StoreError(TfbindError, RuntimeError):
    """The store cannot be used as asked."""


class StoreMissing(StoreError, FileNotFoundError):
    """There is no store at this path."""


class StoreExists(StoreError, FileExistsError):
    """There is a store, or something else, at this path already."""


class FormatVersionError(StoreError):
    """The store was written by another version of the format."""


class StoreReadOnly(StoreError, PermissionError):
    """The store, or part of it, cannot be written."""


class NoSpace(StoreError, OSError):
    """The disk cannot hold what is to be written."""


class StoreBusy(StoreError):
    """Another process holds the write lock."""

    exit_status = 75


class DamagedShard(StoreError):
    """A shard's bytes are not those that its receipt promises."""


class MissingWindow(StoreError, LookupError):
    """A window without a valid receipt was asked for."""


class CatalogError(TfbindError, RuntimeError):
    """The DuckDB catalog is absent, damaged or of another schema."""


class SqlError(TfbindError, ValueError):
    """SQL from outside that is not exactly one harmless SELECT."""


class SqlTimeout(SqlError, TimeoutError):
    """SQL from outside ran past its time."""


class SelectionError(TfbindError, ValueError):
    """A selection that would be empty or cannot be made as asked."""


class LeakError(SelectionError):
    """The same thing stands on both sides of a split."""


class WeightsError(TfbindError, FileNotFoundError):
    """A model's weights are not on this machine."""


class UnsafeFile(WeightsError):
    """A file that would run code when opened."""


class EmbeddingError(TfbindError, RuntimeError):
    """Some windows, proteins or contexts could not be embedded."""


class TrainingError(TfbindError, ArithmeticError):
    """Training cannot go on."""


class CheckpointError(TfbindError, ValueError):
    """A checkpoint does not fit this store or this code."""


class DependencyError(TfbindError, ImportError):
    """An optional package or an outside program is absent."""


class Interrupted(TfbindError):
    """The run was asked to stop."""

    exit_status = 130
