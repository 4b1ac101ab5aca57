"""Which experiment a peak file is of: by a template, by a table with a row per file, or by its own name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tfbind_store.errors import InputFileError, NameParseError, PeakFileError
from tfbind_store.ingest.sources import some
from tfbind_store.names import near_miss, parse_experiment_name
from tfbind_store.textfiles import TextTable, find_column, read_table

SUFFIXES = (".bed", ".narrowpeak", ".broadpeak", ".regionpeak", ".txt", ".tsv")
COLUMN_WORDS: Mapping[str, tuple[str, ...]] = {
    "file": ("filename", "file_name", "path", "bed", "peaks", "peak_file"),
    "experiment": ("experiment_name", "dataset", "dataset_name"),
    "accession": ("experiment_accession", "geo", "gse", "experiment", "sample", "sample_id", "id"),
    "factor": ("tf", "target", "target_std", "target_name", "factor_name", "symbol", "gene", "antibody"),
    "biotype": ("cell", "cell_type", "celltype", "cell_line", "biosample", "tissue", "strain"),
    "treatment": ("condition",),
    "peaks_nr": ("n_peaks", "n_peaks_genome", "peaks_genome"),
}
_FIELD = re.compile(r"\{([^{}]*)\}")


def peak_files(path: Path) -> list[Path]:
    """Return the peak files that `path` means: itself, or those of the folder, sorted."""
    if not path.is_dir():
        if not path.is_file():
            raise PeakFileError("no such file", where=str(path))
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and plain_name(file.name) != file.name)
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        raise PeakFileError("no peak files in this folder", where=str(path), fix=f"names end in {', '.join(SUFFIXES)}")
    return files


def plain_name(name: str) -> str:
    """Return a peak file's name without its suffixes.

    Examples
    --------
    >>> plain_name("GSE1.SOX2.U2.OS.bed.gz")
    'GSE1.SOX2.U2.OS'
    """
    stem = name[:-3] if name.lower().endswith(".gz") else name
    for suffix in SUFFIXES:
        if stem.lower().endswith(suffix):
            return stem[: -len(suffix)]
    return name


def column_of(table: TextTable, wanted: str, columns: Mapping[str, str]) -> str | None:
    """Return the table's column for `wanted`; ``columns`` may name it, or say with ``""`` that there is none."""
    if columns.get(wanted) == "":
        return None
    return find_column(table, wanted, columns, *COLUMN_WORDS[wanted])


def experiment_name(cells: Mapping[str, str], places: Mapping[str, str | None], biotype: str | None) -> str | None:
    """Return the experiment that a table's row names in one column or in three, None if it names none."""

    def cell(wanted: str) -> str | None:
        place = places.get(wanted)
        return cells.get(place) if place else None

    whole = cell("experiment")
    if whole is not None and whole.count(".") >= 2:
        return whole
    parts = [cell("accession") or whole, cell("factor"), cell("biotype") or biotype]
    treatment = cell("treatment")
    if treatment and parts[2]:
        parts[2] = f"{parts[2]}_{treatment}"
    return ".".join(part for part in parts if part) if all(parts) else None


class FileNames:
    """The experiment of each file of an import.

    A table's row belongs to a file if its ``file`` cell is the file's name, with or without folder and suffixes, or
    what stands before the name's first underscore or dot; without such a column the accession is held against it.
    Files without a row fall back on the template, then on their own name.

    Raises
    ------
    PeakFileError
        If a file of a folder has no experiment: all such files are named.
    """

    def __init__(
        self,
        path: Path,
        files: Sequence[Path],
        template: str | None,
        table: Path | str | None,
        columns: Mapping[str, str],
        biotype: str | None,
    ) -> None:
        self.is_folder = path.is_dir()
        self.template = template
        fields = set(_FIELD.findall(template or ""))
        self._by_row = "name" in fields or (not self.is_folder and template is None and table is None)
        if self._by_row and fields - {"name"}:
            raise PeakFileError(f"{{name}} and {sorted(fields - {'name'})} cannot stand together", where=str(template))
        self._metadata: dict[Path, dict[str, str]] = {}
        self._names: dict[Path, str] = {}
        if not self._by_row:
            if table is not None:
                self._read(read_table(table), files, columns, biotype)
            self._fill(files, path, None if table is None else Path(table))

    def _read(self, table: TextTable, files: Sequence[Path], columns: Mapping[str, str], biotype: str | None) -> None:
        places = {wanted: column_of(table, wanted, columns) for wanted in COLUMN_WORDS}
        key = places["file"] or places["accession"] or places["experiment"]
        if key is None:
            raise InputFileError("no column names the files", where=str(table.path), fix="add a column 'file'")
        by_key: dict[str, Path] = {}
        for file in files:
            stem = plain_name(file.name)
            for name in (re.split(r"[_.]", stem)[0], stem, file.name):
                by_key[name] = file
        for line, cells in table.rows:
            named = cells.get(key, "").rpartition("/")[2]
            found = by_key.get(named) or by_key.get(plain_name(named))
            name = experiment_name(cells, places, biotype)
            if found is None or name is None:
                continue
            if self._names.setdefault(found, name) != name:
                raise InputFileError(f"file {found.name} has two experiments", where=f"{table.path}:{line}")
            used = {places[w] for w in ("file", "experiment", "accession", "factor", "biotype", "treatment")}
            self._metadata[found] = {column: cell for column, cell in cells.items() if column not in used}

    def _fill(self, files: Sequence[Path], path: Path, table: Path | None) -> None:
        nameless, from_table = [], "" if table is None else f"{len(self._names)} of them have a row in {table.name}; "
        for file in files:
            if file not in self._names:
                self._names[file] = self._from_file(file)
            try:
                parse_experiment_name(self._names[file])
            except NameParseError:
                nameless.append(file.name)
        if nameless:
            raise PeakFileError(
                f"{len(nameless)} of {len(files)} files do not say which experiment they are: {some(nameless)}",
                where=str(path),
                fix=f"{from_table}name them ACCESSION.FACTOR.BIOTYPE.bed, or give --experiments TABLE with a row for "
                "each (and --column, --biotype), or --name-from '{1}.{2}.BIOTYPE' ({1}: up to the first underscore)",
            )

    def _from_file(self, file: Path) -> str:
        stem = plain_name(file.name)
        if self.template is None:
            return stem
        parts = stem.split("_")
        cells = {"stem": stem, "accession": parts[0], "factor": parts[1] if len(parts) > 1 else ""}
        cells |= {str(place): part for place, part in enumerate(parts, 1)}
        for field in _FIELD.findall(self.template):
            if field not in cells:
                close = near_miss(field, ["name", *cells])
                fix = f"did you mean {{{close}}}?" if close else f"fields: {', '.join(['name', *cells])}"
                raise PeakFileError(f"{file.name} has no field {{{field}}}", where=self.template, fix=fix)
        return _FIELD.sub(lambda match: cells[match[1]], self.template)

    def experiment(self, file: Path) -> str | None:
        """Return the experiment of a whole file, None where column 4 names it row by row."""
        return None if self._by_row else self._names[file]

    def identity(self, file: Path) -> str | None:
        """Return what decides the experiments' names in a file."""
        return self.template if self._by_row else self._names[file]

    def from_column(self, name: str) -> str:
        """Return the experiment that a name in column 4 means."""
        return self.template.replace("{name}", name) if self.template else name

    def metadata(self, file: Path) -> dict[str, str]:
        """Return the further cells of a file's row."""
        return self._metadata.get(file, {})
