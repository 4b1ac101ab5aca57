"""What the folders of evaluated runs hold, as a report reads it; no score is computed here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tfbind_store.catalog.database import Catalog
from tfbind_store.drawing.loci import Gene
from tfbind_store.errors import InputFileError, StoreMissing
from tfbind_store.metrics.summary import Case, Row, cases
from tfbind_store.textfiles import read_lines

_LEAST_BED_COLUMNS = 3


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one run's folder holds."""

    name: str
    path: Path
    header: Mapping[str, Any]
    """The checkpoint's header: head, config, selection, fingerprints, what it was trained on."""
    scores: list[Row]
    curves: list[Row]
    log: list[Row]
    reliability: list[Row] = field(default_factory=list)
    loci: list[Row] = field(default_factory=list)
    evaluation: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def cases(self) -> list[Case]:
        """The scored factors."""
        return cases(self.name, self.scores)


def read_run(path: Path) -> Run:
    """Read what a run's folder holds.

    Raises
    ------
    StoreMissing
        If the folder is no run, or was not evaluated.
    """
    scores = path / "scores.parquet"
    if not path.is_dir():
        raise StoreMissing("no such run", where=str(path), fix="tfbind info STORE lists the runs of a store")
    if not scores.is_file():
        raise StoreMissing("this run has no scores yet", where=str(scores), fix=f"tfbind evaluate {path}")
    return Run(
        name=path.resolve().name,
        path=path,
        header=_read_header(path / "head.safetensors"),
        scores=_read_rows(scores),
        curves=_read_rows(path / "curves.parquet"),
        log=_read_log(path / "log.jsonl"),
        reliability=_read_rows(path / "reliability.parquet"),
        loci=_read_rows(path / "loci.parquet"),
        evaluation=_read_evaluation(path / "evaluation.json"),
    )


def _read_rows(path: Path) -> list[Row]:
    """Return the rows of a Parquet file; none where there is no file."""
    if not path.is_file():
        return []
    columns = Catalog.read_parquet(path)
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*(columns[n].tolist() for n in names), strict=True)]


def _read_header(path: Path) -> Mapping[str, Any]:
    from tfbind_store.heads.checkpoint import read_header

    return dataclasses.asdict(read_header(path)) if path.is_file() else {}


def _read_log(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _read_evaluation(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_genes(path: Path, aliases: Mapping[str, str]) -> dict[str, list[Gene]]:
    """Return the genes of a BED file by chromosome: names in column 4, strands in column 6, where they are given.

    Parameters
    ----------
    aliases
        Other name of a chromosome to the store's own.

    Raises
    ------
    InputFileError
        If a row is no BED, with its line.
    """
    genes: dict[str, list[Gene]] = {}
    for number, line in read_lines(path):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        columns = line.split("\t")
        gene = _gene(columns)
        if gene is None:
            fix = "give a BED file: chromosome, start, end, and if known name, score, strand, between tabs"
            raise InputFileError("no row of a BED file", where=f"{path}:{number}", fix=fix)
        genes.setdefault(aliases.get(columns[0], columns[0]), []).append(gene)
    return genes


def _gene(columns: Sequence[str]) -> Gene | None:
    if len(columns) < _LEAST_BED_COLUMNS or not (columns[1].isdecimal() and columns[2].isdecimal()):
        return None
    start, end = int(columns[1]), int(columns[2])
    name = columns[3] if len(columns) > 3 else ""
    return Gene(name, start, end, columns[5] if len(columns) > 5 else ".") if start <= end else None
