"""One self-contained HTML page about one or several runs: what was trained on what, and how good it is.

Reads what ``evaluate`` and ``train`` left in a run's folder (``scores.parquet``, ``head.safetensors``, ``log.jsonl``,
and ``curves.parquet`` if there) and computes no score itself: it only takes medians over factors. Models are compared
with the best *admissible* baseline; the oracle (measured binding of other factors) stands apart. The page loads nothing
from anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from tfbind_store import figures
from tfbind_store.catalog import Catalog
from tfbind_store.errors import StoreMissing
from tfbind_store.summary import (
    LEAST_POSITIVES,
    ORACLE,
    PREVALENCE,
    Case,
    Row,
    cases,
    headlines,
    median,
    seen_first,
    spaced,
    verdicts,
)

FDR_LEVELS = (5, 10, 25, 50)
REPORT_NAME = "report.html"
SELECTION_FACTS = (
    "name",
    "sql",
    "config",
    "rows",
    "totals",
    "holdouts",
    "held_out",
    "dropped",
    "shortfall",
    "leaks",
    "notes",
    "warnings",
)
"""What of ``selection.json`` the page shows; the rest is counts per factor and checksums."""


class ReportFiles(NamedTuple):
    """What was written."""

    page: Path
    figures: list[Path]


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

    @property
    def cases(self) -> list[Case]:
        """The scored factors."""
        return cases(self.name, self.scores)


def write_report(runs: Sequence[Path | str], out: Path | str | None = None) -> ReportFiles:
    """Write the page about `runs`, and its figures as files beside it.

    Parameters
    ----------
    runs
        Folders of runs that were evaluated.
    out
        Where the page goes; into the first run's folder if not given.

    Raises
    ------
    StoreMissing
        If a folder is no run or was not evaluated.
    """
    read = [read_run(Path(run)) for run in runs]
    page = Path(out) if out else Path(runs[0]) / REPORT_NAME
    if page.is_dir():
        page = page / REPORT_NAME
    page.parent.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(read)
    _write(page, render(read, pictures))
    folder = page.with_name(f"{page.stem}_figures")
    folder.mkdir(exist_ok=True)
    files = [folder / f"{picture.name}.svg" for picture in pictures]
    for file, picture in zip(files, pictures, strict=True):
        _write(file, picture.svg.replace("<svg ", '<svg width="691" height="518" ', 1))
    return ReportFiles(page, files)


def read_run(path: Path) -> Run:
    """Read what a run's folder holds."""
    scores = path / "scores.parquet"
    if not path.is_dir():
        raise StoreMissing("no such run", where=str(path), fix="tfbind info STORE lists the runs of a store")
    if not scores.is_file():
        raise StoreMissing("this run has no scores yet", where=str(scores), fix=f"tfbind evaluate {path}")
    curves = path / "curves.parquet"
    return Run(
        name=path.resolve().name,
        path=path,
        header=_read_header(path / "head.safetensors"),
        scores=_read_rows(scores),
        curves=_read_rows(curves) if curves.is_file() else [],
        log=_read_log(path / "log.jsonl"),
    )


def _read_rows(path: Path) -> list[Row]:
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


def _write(path: Path, text: str) -> None:
    """Write a file in one step: a reader never meets half a page."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as f:
        f.write(text)
    os.chmod(f.name, 0o644)
    os.replace(f.name, path)


# figures --------------------------------------------------------------------------------------------------------


def _pictures(runs: Sequence[Run]) -> list[figures.Picture]:
    """Return the figures for which there are numbers."""
    every = [case for run in runs for case in run.cases if case.n_positive >= LEAST_POSITIVES]
    pictures = [_gain_picture(every, len(runs) > 1)] if any(case.best_baseline for case in every) else []
    pictures += [*_recall_pictures(runs), *_curve_pictures(runs)]
    pictures.append(_count_picture(every, len(runs) > 1))
    return [*pictures, *_training_pictures(runs)]


def _label(case: Case, several: bool) -> str:
    holdout = spaced(case.holdout)
    return f"{case.run}: {holdout}" if several else holdout


def _gain_picture(every: Sequence[Case], several: bool) -> figures.Picture:
    points: dict[str, list[tuple[float, float]]] = {}
    for case in every:
        best = case.best_baseline
        if best:
            points.setdefault(_label(case, several), []).append((best[1]["auprc"], case.model["auprc"]))
    return figures.scatter_against(
        "model_against_baseline",
        "AUPRC of the model against that of each factor's best admissible baseline, one dot per factor; "
        "above the line the model is better.",
        points,
        x_label="best baseline, AUPRC",
        y_label="model, AUPRC",
        log=True,
    )


def _recall_pictures(runs: Sequence[Run]) -> list[figures.Picture]:
    """Return one figure per kind of hold-out; the prevalence finds nothing at any of these levels."""
    grouped: dict[str, dict[str, list[Row]]] = {}
    for run in runs:
        for row in run.scores:
            if row["n_positive"] >= LEAST_POSITIVES and row["scorer"] not in (ORACLE, PREVALENCE):
                label = f"{run.name}: {row['scorer']}" if len(runs) > 1 else row["scorer"]
                grouped.setdefault(row["holdout"], {}).setdefault(label.replace("_", " "), []).append(row)
    return [
        figures.lines(
            f"recall_at_fdr_{holdout}".replace("+", "_and_"),
            f"Share of bound bins found (recall) when 5, 10, 25 or 50 % of the calls may be wrong; {spaced(holdout)}.",
            {
                label: [(float(fdr), median(row[f"recall_at_fdr_{fdr}"] for row in rows)) for fdr in FDR_LEVELS]
                for label, rows in scorers.items()
            },
            x_label="false discovery rate, %",
            y_label="recall, median over factors",
            markers=True,
        )
        for holdout, scorers in sorted(grouped.items(), key=lambda item: seen_first(item[0]))
    ]


def _curve_pictures(runs: Sequence[Run]) -> list[figures.Picture]:
    """Return one precision-recall and one ROC figure per kind of hold-out."""
    wanted = {
        "pr": ("Precision against recall", "recall", "precision"),
        "roc": ("Recall against the false positive rate", "false positive rate", "recall"),
    }
    grouped: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        for row in run.curves:
            if row["scorer"] not in (ORACLE, PREVALENCE):
                label = spaced(f"{run.name}: {row['scorer']}" if len(runs) > 1 else row["scorer"])
                curves = grouped.setdefault((row["holdout"], row["curve"]), {})
                curves.setdefault(label, []).append((row["x"], row["y"]))
    return [
        figures.lines(
            f"{kind}_{holdout}".replace("+", "_and_"),
            f"{wanted[kind][0]}, mean over factors; {spaced(holdout)}.",
            curves,
            x_label=wanted[kind][1],
            y_label=wanted[kind][2],
            limits=(0, 1.02),
            diagonal=kind == "roc",
        )
        for (holdout, kind), curves in sorted(grouped.items(), key=lambda item: (seen_first(item[0][0]), item[0][1]))
    ]


def _count_picture(every: Sequence[Case], several: bool) -> figures.Picture:
    points: dict[str, list[tuple[float, float]]] = {}
    for case in every:
        points.setdefault(_label(case, several), []).append((float(case.n_positive), float(case.model["auroc"])))
    return figures.scatter_counts(
        "auroc_against_positives",
        "AUROC of the model against the number of bound bins it was scored on, one dot per factor.",
        points,
        x_label="bound bins scored",
        y_label="model, AUROC",
    )


def _training_pictures(runs: Sequence[Run]) -> list[figures.Picture]:
    losses: dict[str, list[tuple[float, float]]] = {}
    scores: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        prefix = f"{run.name}: " if len(runs) > 1 else ""
        for index, row in enumerate(run.log):
            x = float(row.get("step", index))
            for key, label in (("train_loss", "training"), ("valid_loss", "validation")):
                if isinstance(row.get(key), int | float):
                    losses.setdefault(prefix + label, []).append((x, float(row[key])))
            for key in ("valid_auroc", "valid_auprc"):
                if isinstance(row.get(key), int | float):
                    scores.setdefault(prefix + key.removeprefix("valid_").upper(), []).append((x, float(row[key])))
    pictures = []
    if losses:
        caption = "Loss in training and on the validation part."
        pictures.append(figures.lines("loss", caption, losses, x_label="step", y_label="loss", markers=True))
    if scores:
        caption = "Scores on the validation part, medians over factors."
        pictures.append(figures.lines("validation", caption, scores, x_label="step", y_label="score", markers=True))
    return pictures


# page -----------------------------------------------------------------------------------------------------------


def render(runs: Sequence[Run], pictures: Sequence[figures.Picture]) -> str:
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
            {"name": run.name, "facts": facts(run), "verdicts": verdicts(run.cases), "headlines": headlines(run.cases)}
            for run in runs
        ],
        cases=[case for run in runs for case in run.cases],
        pictures=pictures,
        least_positives=LEAST_POSITIVES,
    )


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
