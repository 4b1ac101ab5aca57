"""One self-contained HTML page about one or several runs: what was trained on what, and how good it is.

Reads what ``evaluate`` and ``train`` left in a run's folder (``scores.parquet``, ``head.safetensors``, ``log.jsonl``,
and ``curves.parquet`` if there) and computes no score itself: it only takes medians over experiments. Models are
compared with the best *admissible* baseline; the oracle (measured binding of other factors) stands apart. The page
loads nothing from anywhere.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from tfbind_store.drawing import figures
from tfbind_store.errors import TfbindError
from tfbind_store.metrics.summary import LEAST_POSITIVES, Headline, compare, headlines, spaced, verdicts
from tfbind_store.reporting.figures import pictures
from tfbind_store.reporting.runs import Run, read_genes, read_run
from tfbind_store.store.folder import Store

REPORT_NAME = "report.html"
SELECTION_FACTS = (
    "name",
    "sql",
    "config",
    "rows",
    "totals",
    "holdouts",
    "held_out",
    "signals",
    "dropped",
    "shortfall",
    "notes",
    "warnings",
)
"""What of ``selection.json`` the page shows; the rest is counts per factor and checksums."""


class ReportFiles(NamedTuple):
    """What was written."""

    page: Path
    figures: list[Path]


def write_report(
    runs: Sequence[Path | str], out: Path | str | None = None, *, genes: Path | str | None = None
) -> ReportFiles:
    """Write the page about `runs`, and its figures as files beside it.

    Parameters
    ----------
    runs
        Folders of runs that were evaluated.
    out
        Where the page goes; into the first run's folder if not given.
    genes
        BED file of genes, drawn at the loci.

    Raises
    ------
    StoreMissing
        If a folder is no run or was not evaluated.
    InputFileError
        If `genes` cannot be read.
    """
    read = named_apart([read_run(Path(run)) for run in runs])
    known = read_genes(Path(genes), _aliases(Path(runs[0]))) if genes else {}
    page = Path(out) if out else Path(runs[0]) / REPORT_NAME
    if page.is_dir():
        page = page / REPORT_NAME
    page.parent.mkdir(parents=True, exist_ok=True)
    drawn = pictures(read, known)
    _write(page, render(read, drawn))
    folder = page.with_name(f"{page.stem}_figures")
    folder.mkdir(exist_ok=True)
    files = [folder / f"{picture.name}.svg" for picture in drawn]
    for file, picture in zip(files, drawn, strict=True):
        _write(file, figures.sized(picture.svg))
    return ReportFiles(page, files)


def named_apart(runs: Sequence[Run]) -> list[Run]:
    """Return the runs, with a number behind the names of those that are called alike: runs of two stores may be."""
    taken = Counter(run.name for run in runs)
    at: Counter[str] = Counter()
    found = []
    for run in runs:
        at[run.name] += 1
        found.append(replace(run, name=f"{run.name} ({at[run.name]})") if taken[run.name] > 1 else run)
    return found


def _aliases(run: Path) -> Mapping[str, str]:
    """Return other names of chromosomes, as the run's store knows them; none where it lies outside a store."""
    try:
        return Store.open(run.resolve().parent.parent).meta.aliases
    except TfbindError:
        return {}


def _write(path: Path, text: str) -> None:
    """Write a file in one step: a reader never meets half a page."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as f:
        f.write(text)
    os.chmod(f.name, 0o644)
    os.replace(f.name, path)


def render(runs: Sequence[Run], drawn: Sequence[figures.Picture]) -> str:
    """Return the page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfbind_store", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    environment.filters["spaced"] = spaced
    return environment.get_template(REPORT_NAME).render(
        title=", ".join(run.name for run in runs),
        runs=[
            {
                "name": run.name,
                "facts": facts(run),
                "leaks": leaks(run),
                "verdicts": verdicts(run.cases),
                "headlines": _grouped(headlines(run.cases)),
                "by": {
                    key: rows
                    for key in ("chrom", "biotype")
                    if len(rows := run.evaluation.get("by", {}).get(key, ())) > 1
                },
            }
            for run in runs
        ],
        comparisons=compare([run.cases for run in runs]),
        cases=[case for run in runs for case in run.cases],
        pictures=[picture for picture in drawn if not picture.name.startswith("locus_")],
        loci=[picture for picture in drawn if picture.name.startswith("locus_")],
        least_positives=LEAST_POSITIVES,
    )


def _grouped(lines: Sequence[Headline]) -> list[tuple[str, list[Headline]]]:
    """Return headlines by kind of hold-out, in the order that they come in."""
    groups: dict[str, list[Headline]] = {}
    for line in lines:
        groups.setdefault(line.holdout, []).append(line)
    return list(groups.items())


def leaks(run: Run) -> list[str]:
    """Return what of the test the training had seen after all, because somebody allowed it."""
    selection = run.header.get("selection")
    if not isinstance(selection, Mapping):
        return []
    config = selection.get("config")
    allowed = config.get("allow_leaks", ()) if isinstance(config, Mapping) else ()
    said = [f"allowed by name: {', '.join(map(str, allowed))}"] if allowed else []
    return said + [_text(leak) for leak in selection.get("leaks") or ()]


def _number(value: float | None, digits: int = 3) -> str:
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.{digits}f}"


def facts(run: Run) -> list[tuple[str, str]]:
    """Return what was trained on what, as pairs of a name and a text."""
    header = run.header
    found = [("run", str(run.path))]
    for key in ("head", "options", "geometry", "genome", "arrays", "train"):
        if header.get(key):
            found.append((key, _text(header[key])))
    for key in ("rule", "probability", "config"):
        if run.evaluation.get(key):
            found.append((f"evaluation: {key}", _text(run.evaluation[key])))
    selection = header.get("selection")
    if isinstance(selection, Mapping):
        found += [(f"selection: {key}", _text(selection[key])) for key in SELECTION_FACTS if selection.get(key)]
    for title, key in (("head trained on", "trained_on"), ("trunk trained on", "trunk_trained_on")):
        card = header.get(key)
        if isinstance(card, Mapping):
            found += [(f"{title}: {part}", _listed(names)) for part, names in card.items()]
        elif key in header:
            found.append((title, "unknown" if card is None else _text(card)))
    if header.get("metrics"):
        found.append(("best validation", _text(header["metrics"])))
    return [(name, text) for name, text in found if text]


def _listed(names: Any) -> str:
    if not isinstance(names, list | tuple):
        return _text(names)
    return f"{len(names)}: {', '.join(map(str, names))}" if names else "none"


def _text(value: Any) -> str:
    """Return a value of a header as people read it; what is empty is left out of mappings."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        said = {key: item for key, item in value.items() if item not in (None, "", {}, [])}
        parts = [
            f"{key} ({_text(item)})" if isinstance(item, Mapping) else f"{key} {_text(item)}"
            for key, item in said.items()
        ]
        return "; ".join(part for part in parts if not part.endswith("()")) or ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
