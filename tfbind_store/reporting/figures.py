"""Which figures a report has, from the numbers that an evaluation left: one list of pictures.

How a picture is drawn is `drawing`; which numbers there are is `reporting.runs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tfbind_store.drawing import figures
from tfbind_store.drawing.loci import Gene, Panel, draw_locus
from tfbind_store.metrics.summary import (
    LEAST_POSITIVES,
    MODEL,
    ORACLE,
    PREVALENCE,
    Case,
    Row,
    median,
    seen_first,
    spaced,
)
from tfbind_store.reporting.runs import Run

FDR_LEVELS = (5, 10, 25, 50)
_SCORERS = ("model", "training_mean", "nearest_factor", "motif", "gc_content", "accessibility", "training_binding")
_LOOKS = {spaced(scorer): (number, 0) for number, scorer in enumerate(_SCORERS)}
"""One colour for each scorer in every figure of a single run."""


def pictures(runs: Sequence[Run], genes: Mapping[str, Sequence[Gene]] | None = None) -> list[figures.Picture]:
    """Return the figures for which there are numbers.

    Parameters
    ----------
    genes
        By chromosome, for the loci.
    """
    every = _by_holdout([case for run in runs for case in run.cases if case.n_positive >= LEAST_POSITIVES])
    several = len(runs) > 1
    found = [_gain(every, several)] if any(case.best_baseline for case in every) else []
    found += [*_recall(runs), *_curves(runs), *_reliability(runs)]
    found += [_count(every, several), *_similarity(every, several)]
    return [*found, *_training(runs), *_loci(runs, genes or {})]


def _label(case: Case, several: bool) -> str:
    holdout = spaced(case.holdout)
    return f"{case.run}: {holdout}" if several else holdout


def _gain(every: Sequence[Case], several: bool) -> figures.Picture:
    points: dict[str, list[tuple[float, float]]] = {}
    for case in every:
        best = case.best_baseline
        if best:
            points.setdefault(_label(case, several), []).append((best[1]["auprc"], case.model["auprc"]))
    n = sum(len(group) for group in points.values())
    won = sum(case.gain > 0 for case in every)
    return figures.scatter_against(
        "model_against_baseline",
        "AUPRC of the model against that of each one's best admissible baseline, one dot per experiment; "
        f"above the line the model is better: {won} of {n}.",
        points,
        x_label="best baseline, AUPRC",
        y_label="model, AUPRC",
        log=True,
    )


def _is_drawn(row: Row, runs: Sequence[Run]) -> bool:
    """Whether a scorer has a line: of one run all that know anything, of several the models only."""
    return bool(row["scorer"] == MODEL if len(runs) > 1 else row["scorer"] not in (ORACLE, PREVALENCE))


def _line_label(row: Row, run: Run, runs: Sequence[Run]) -> str:
    return run.name if len(runs) > 1 else spaced(row["scorer"])


def _by_holdout(every: Sequence[Case]) -> list[Case]:
    """Return cases in the order of runs and kinds of hold-out, so that a legend has that order too."""
    runs = list(dict.fromkeys(case.run for case in every))
    return sorted(every, key=lambda case: (runs.index(case.run), seen_first(case.holdout)))


def _recall(runs: Sequence[Run]) -> list[figures.Picture]:
    """Return one figure per kind of hold-out; the prevalence finds nothing at any of these levels."""
    grouped: dict[str, dict[str, list[Row]]] = {}
    for run in runs:
        for row in run.scores:
            if row["n_positive"] >= LEAST_POSITIVES and _is_drawn(row, runs):
                grouped.setdefault(row["holdout"], {}).setdefault(_line_label(row, run, runs), []).append(row)
    return [
        _recall_picture(holdout, scorers)
        for holdout, scorers in sorted(grouped.items(), key=lambda item: seen_first(item[0]))
    ]


def _recall_picture(holdout: str, scorers: Mapping[str, Sequence[Row]]) -> figures.Picture:
    curves = {
        label: [(float(fdr), median(row[f"recall_at_fdr_{fdr}"] for row in rows)) for fdr in FDR_LEVELS]
        for label, rows in scorers.items()
    }
    highest = max((recall for curve in curves.values() for _, recall in curve if recall == recall), default=0.0)
    return figures.lines(
        f"recall_at_fdr_{holdout}".replace("+", "_and_"),
        f"Share of bound bins found (recall) when 5, 10, 25 or 50 % of the calls may be wrong; {spaced(holdout)}.",
        curves,
        x_label="false discovery rate, %",
        y_label="recall, median over experiments",
        markers=True,
        limits=(-0.02 * max(highest, 0.01), 1.05 * max(highest, 0.01)),
        looks=_LOOKS,
    )


def _curves(runs: Sequence[Run]) -> list[figures.Picture]:
    """Return one precision-recall and one ROC figure per kind of hold-out."""
    wanted = {
        "pr": ("Precision against recall", "recall", "precision"),
        "roc": ("Recall against the false positive rate", "false positive rate", "recall"),
    }
    grouped: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        for row in run.curves:
            if _is_drawn(row, runs):
                curves = grouped.setdefault((row["holdout"], row["curve"]), {})
                curves.setdefault(_line_label(row, run, runs), []).append((row["x"], row["y"]))
    return [
        figures.lines(
            f"{kind}_{holdout}".replace("+", "_and_"),
            f"{wanted[kind][0]}, mean over experiments; {spaced(holdout)}.",
            curves,
            x_label=wanted[kind][1],
            y_label=wanted[kind][2],
            limits=(0, 1.02),
            diagonal=kind == "roc",
            looks=_LOOKS,
        )
        for (holdout, kind), curves in sorted(grouped.items(), key=lambda item: (seen_first(item[0][0]), item[0][1]))
    ]


def _reliability(runs: Sequence[Run]) -> list[figures.Picture]:
    """Return predicted beside observed share; of several runs only what they predict in the end."""
    curves: dict[str, list[tuple[float, float]]] = {}
    looks: dict[str, tuple[int, int]] = {}
    colours: dict[str, int] = {}
    for run in runs:
        kinds = {row["kind"] for row in run.reliability}
        final = "calibrated" if "calibrated" in kinds else "own"
        for row in sorted(run.reliability, key=lambda row: (seen_first(row["holdout"]), row["kind"], row["low"])):
            if (len(runs) > 1 and row["kind"] != final) or row["observed"] <= 0:
                continue
            said = "as trained" if row["kind"] == "own" else "calibrated"
            label = f"{run.name}: {spaced(row['holdout'])}" if len(runs) > 1 else f"{spaced(row['holdout'])}, {said}"
            curves.setdefault(label, []).append((row["predicted"], row["observed"]))
            colour = colours.setdefault(f"{run.name} {row['holdout']}", len(colours))
            looks[label] = (colour, int(row["kind"] == "own"))
    if not curves:
        return []
    return [
        figures.lines(
            "calibration",
            "Calibration: of the bins given some probability, the share that is bound; on the line both are equal. "
            + ("As each run predicts in the end." if len(runs) > 1 else "Dashed as trained, whole as calibrated."),
            curves,
            x_label="predicted probability",
            y_label="share bound",
            markers=True,
            diagonal=True,
            log=True,
            looks=looks,
        )
    ]


def _count(every: Sequence[Case], several: bool) -> figures.Picture:
    points: dict[str, list[tuple[float, float]]] = {}
    for case in every:
        points.setdefault(_label(case, several), []).append((float(case.n_positive), float(case.model["auprc"])))
    return figures.scatter_counts(
        "auprc_against_positives",
        "AUPRC of the model against the number of bound bins it was scored on, one dot per experiment.",
        points,
        x_label="bound bins scored",
        y_label="model, AUPRC",
    )


def _similarity(every: Sequence[Case], several: bool) -> list[figures.Picture]:
    points: dict[str, list[tuple[float, float]]] = {}
    for case in every:
        alike = case.model.get("similarity", float("nan"))
        if alike == alike:
            points.setdefault(_label(case, several), []).append((float(alike), float(case.model["auprc"])))
    if not points:
        return []
    return [
        figures.scatter_counts(
            "auprc_against_similarity",
            "AUPRC of the model against how alike the factor's protein is to that of the nearest other training factor "
            "(cosine of k-mer counts, 0 to 1), one dot per experiment.",
            points,
            x_label="similarity to the nearest training factor",
            y_label="model, AUPRC",
            is_count=False,
        )
    ]


def _training(runs: Sequence[Run]) -> list[figures.Picture]:
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
    found = []
    if losses:
        caption = "Loss in training and on the validation part."
        found.append(figures.lines("loss", caption, losses, x_label="step", y_label="loss", markers=True))
    if scores:
        caption = "Scores on the validation part, medians over experiments."
        found.append(figures.lines("validation", caption, scores, x_label="step", y_label="score", markers=True))
    return found


def _loci(runs: Sequence[Run], genes: Mapping[str, Sequence[Gene]]) -> list[figures.Picture]:
    """Return each shown locus; of several runs, those of the first that has any."""
    run = next((one for one in runs if one.loci), None)
    if run is None:
        return []
    grouped: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in run.loci:
        grouped.setdefault((row["holdout"], row["locus"]), {}).setdefault(row["experiment"], []).append(row)
    ordered = sorted(grouped.items(), key=lambda item: seen_first(item[0][0]))
    return [
        _locus(run, number, holdout, locus, list(experiments.values()), genes)
        for number, ((holdout, locus), experiments) in enumerate(ordered, 1)
    ]


def _locus(
    run: Run,
    number: int,
    holdout: str,
    locus: str,
    experiments: Sequence[list[Row]],
    genes: Mapping[str, Sequence[Gene]],
) -> figures.Picture:
    panels = [
        Panel(
            f"{rows[0]['factor']} ({rows[0]['biotype']})",
            *([row[key] for row in rows] for key in ("start_bp", "end_bp", "probability", "label")),
        )
        for rows in experiments
    ]
    signal = [row["signal"] for row in experiments[0]]
    first, last = experiments[0][0], experiments[0][-1]
    here = [
        gene
        for gene in genes.get(first["chrom"], ())
        if gene.start_bp < last["end_bp"] and gene.end_bp > first["start_bp"]
    ]
    has_signal = any(value == value for value in signal)
    what = "blue what the model predicts, orange bound bins, light grey bins without a label"
    what += ", dark grey the biotype's signal" if has_signal else ""
    return figures.Picture(
        *draw_locus(
            f"locus_{number}",
            f"{locus}, {spaced(holdout)}, run {run.name}: {what}" + (", black genes." if here else "."),
            panels,
            signal if has_signal else None,
            here,
        )
    )
