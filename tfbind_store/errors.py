"""Every exception of the package: what went wrong, where, and what to do about it.

TfbindError                     exit status 1
├── ConfigError                 (ValueError) a run's choices: unknown key, bad value
├── SpecError                   (ValueError) a store's identity: fingerprint or field differs
├── LocusError                  (ValueError) coordinates that do not fit their grid or chromosome
├── NameParseError              (ValueError) a factor, biotype or chromosome name nobody knows
├── InputFileError              (ValueError) an outside file that cannot be used as it is
│   ├── GenomeError             FASTA: truncated, stale index, other assembly
│   ├── PeakFileError           BED and its relatives
│   ├── VariantFileError        VCF
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
├── FetchError                  (OSError) a file that could not be downloaded, or is another one
├── EmbeddingError              (RuntimeError) windows that could not be embedded
├── TrainingError               (ArithmeticError) a loss that is not finite, a run that cannot go on
├── CheckpointError             (ValueError) a head that does not fit this store
├── RequestRefused              (PermissionError) a request that another site may have sent
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
        A command to run, or a sentence that says what to change; the kind's `usual_fix` if not given.
    """

    exit_status = 1
    usual_fix = "the command's --help says what it takes"

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what = _one_line(what)
        super().__init__(self.what)
        self.where = _one_line(where)
        self.fix = _one_line(fix or self.usual_fix)

    def __str__(self) -> str:
        """Return the three lines that the command line prints."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        return "\n".join([*lines, f"  fix:   {self.fix}"])

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip back from a worker process."""
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _one_line(text: str) -> str:
    """Return a text on one line: what libraries say, and names of files, may have several."""
    return " ".join(line.strip() for line in text.splitlines())


def _rebuild(cls: type[TfbindError], what: str, where: str, fix: str) -> TfbindError:
    return cls(what, where=where, fix=fix)


class ConfigError(TfbindError, ValueError):
    """A run's choices hold an unknown key or a value out of range."""

    usual_fix = "give a value that it takes: the command's --help says which"


class SpecError(TfbindError, ValueError):
    """What is in the store was made with something else than what is asked for."""

    usual_fix = "tfbind info STORE --json shows what everything in the store was made with"


class LocusError(TfbindError, ValueError):
    """Coordinates do not fit their grid or chromosome."""

    usual_fix = "stay inside the chromosome; coordinates are in bp, 0-based, half-open"


class NameParseError(TfbindError, ValueError):
    """A name that no rule and no alias explains."""

    usual_fix = "check how the name is spelt"


class InputFileError(TfbindError, ValueError):
    """A file from outside cannot be used as it is."""

    usual_fix = "check the path and what the file holds"


class GenomeError(InputFileError):
    """A FASTA is truncated, has a stale index, or is of another assembly."""

    usual_fix = "give the genome's FASTA, plain, gzip or bgzip: a line with > and a name, then A, C, G, T, N"


class PeakFileError(InputFileError):
    """A BED-like file holds something that is no peak."""

    usual_fix = "give a BED, narrowPeak or ReMap file, plain or .gz, with tabs between its columns"


class VariantFileError(InputFileError):
    """A VCF holds something that is no variant."""

    usual_fix = "give a VCF, plain or .gz, with tabs between its columns"


class ProteinError(InputFileError):
    """A protein FASTA or sequence holds something that is no protein."""

    usual_fix = "give the proteins' FASTA"


class StrictError(TfbindError, ValueError):
    """Under ``--strict``, a row would have been dropped."""

    usual_fix = "correct the file, or import it without --strict"


class StoreError(TfbindError, RuntimeError):
    """The store cannot be used as asked."""

    usual_fix = "tfbind info STORE shows what the store holds"


class StoreMissing(StoreError, FileNotFoundError):
    """There is no store at this path."""

    usual_fix = "check the path; tfbind init makes a store"


class StoreExists(StoreError, FileExistsError):
    """There is a store, or something else, at this path already."""

    usual_fix = "choose another path"


class FormatVersionError(StoreError):
    """The store was written by another version of the format."""

    usual_fix = "use the tfbind_store that wrote it, or make the store anew with tfbind init"


class StoreReadOnly(StoreError, PermissionError):
    """The store, or part of it, cannot be written."""

    usual_fix = "make the store writable for you, or copy it to a place that is"


class NoSpace(StoreError, OSError):
    """The disk cannot hold what is to be written."""

    usual_fix = "free some space, then run the same command again"


class StoreBusy(StoreError):
    """Another process holds the write lock."""

    exit_status = 75
    usual_fix = "wait for it to end and run the command again; reading goes on meanwhile"


class DamagedShard(StoreError):
    """A shard's bytes are not those that its receipt promises."""

    usual_fix = "run tfbind verify, then tfbind repair, then embed again; other shards are kept"


class MissingWindow(StoreError, LookupError):
    """A window without a valid receipt was asked for."""

    usual_fix = "embed it: tfbind embed STORE windows"


class CatalogError(TfbindError, RuntimeError):
    """The DuckDB catalog is absent, damaged or of another schema."""

    usual_fix = "run tfbind rebuild-catalog STORE"


class SqlError(TfbindError, ValueError):
    """SQL from outside that is not exactly one harmless SELECT."""

    usual_fix = "ask exactly one SELECT; tfbind sql STORE --schema lists the views and columns"


class SqlTimeout(SqlError, TimeoutError):
    """SQL from outside ran past its time."""

    usual_fix = "ask for less, or give it more time with --seconds"


class SelectionError(TfbindError, ValueError):
    """A selection that would be empty or cannot be made as asked."""

    usual_fix = "tfbind select STORE NAME --show says what a selection holds; --overwrite makes it anew"


class LeakError(SelectionError):
    """The same thing stands on both sides of a split."""

    usual_fix = "hold it out too, or allow it by name: --allow-leak"


class WeightsError(TfbindError, FileNotFoundError):
    """A model's weights are not on this machine."""

    usual_fix = "name a folder or a file with whole weights: --checkpoint PLACE"


class UnsafeFile(WeightsError):
    """A file that would run code when opened."""

    usual_fix = "convert it to safetensors where you trust it"


class FetchError(TfbindError, OSError):
    """A file could not be downloaded, or is not the one expected."""

    usual_fix = "try again later, or download the file by hand and put it into the cache: tfbind cache shows where"


class EmbeddingError(TfbindError, RuntimeError):
    """Some windows, proteins or contexts could not be embedded."""

    usual_fix = "run the same command again: what was computed is kept"


class TrainingError(TfbindError, ArithmeticError):
    """Training cannot go on."""

    usual_fix = "train with a lower lr, as another run (--run NAME) or anew (--overwrite)"


class CheckpointError(TfbindError, ValueError):
    """A checkpoint does not fit this store or this code."""

    usual_fix = "train it anew: tfbind train STORE SELECTION --run NAME"


class RequestRefused(TfbindError, PermissionError):
    """A request to `tfbind browse` that another site may have sent."""

    usual_fix = "open the address that tfbind browse printed"


class DependencyError(TfbindError, ImportError):
    """An optional package or an outside program is absent."""

    usual_fix = "install it; tfbind doctor shows what is here"


class Interrupted(TfbindError):
    """The run was asked to stop."""

    exit_status = 130
    usual_fix = "run the same command again: it goes on where it can"
