"""From logits to probabilities, and a cut-off for a false discovery rate: measured on a run's validation bins.

Every labelled bin of the selection's validation cells counts, so that the prevalence is the genome's. The result lies
in the run's folder as ``calibration.json``, with the sha256 of the head that it is of; another head makes it anew.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64

from tfbind_store.durable import publish, read_regular, sealed_json, unsealed_json
from tfbind_store.errors import CheckpointError, ConfigError, SelectionError
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import HEAD_FILE, LoadedRun, score_bins
from tfbind_store.scoring.gate import Gate
from tfbind_store.store.folder import Store
from tfbind_store.training.material import gather_material

FILE_NAME = "calibration.json"
GATED_FILE_NAME, UNSIGNALLED_FILE_NAME = "calibration_signal.json", "calibration_no_signal.json"
FORMAT = 1
Method = Literal["isotonic", "platt"]
MAX_CELLS = 20_000_000
MAX_BINS = 200_000
FDR_STEPS = tuple(round(0.01 * step, 2) for step in range(1, 51))
"""False discovery rates whose cut-offs are kept."""


class Calibration(NamedTuple):
    """How a head's logits are read."""

    method: Method
    head_sha256: str
    logits: Float64[np.ndarray, " knots"]
    """Ascending. Of Platt's method: slope and offset."""
    probabilities: Float64[np.ndarray, " knots"]
    cutoffs: dict[str, float]
    """Lowest logit at which the share of unbound bins among those called is at most the key."""
    n_cells: int
    """Bins times experiments that were measured."""
    prevalence: float

    def probability(self, logits: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
        """Return the share of bound bins among those with such a logit; NaN stays NaN."""
        values = np.asarray(logits, dtype=np.float64)
        if self.method == "platt":
            slope, offset = self.logits.tolist()
            with np.errstate(over="ignore"):
                return np.asarray(1 / (1 + np.exp(-(slope * values + offset))), dtype=np.float32)
        out = np.interp(values, self.logits, self.probabilities)
        return np.asarray(np.where(np.isnan(values), np.nan, out), dtype=np.float32)

    def cutoff(self, fdr: float) -> float:
        """Return the lowest logit to call at a false discovery rate.

        Raises
        ------
        ConfigError
            If validation never reached so low a rate.
        """
        known = {float(rate): logit for rate, logit in self.cutoffs.items()}
        fitting = [rate for rate in known if rate <= fdr + 1e-9]
        if not 0 < fdr < 1:
            raise ConfigError(f"false discovery rate {fdr:g} is not between 0 and 1", where="fdr")
        if not fitting:
            lowest = f"the lowest was {min(known):g}" if known else f"not even {FDR_STEPS[-1]:g}"
            what = f"no cut-off reached a false discovery rate of {fdr:g} on the validation bins; {lowest}"
            raise ConfigError(what, where="fdr", fix="ask for a higher --fdr, or write the scores alone")
        return known[max(fitting)]

    def rate(self, logit: float) -> float:
        """Return the lowest kept false discovery rate at which a logit is called; NaN where it never is."""
        return min((float(rate) for rate, cutoff in self.cutoffs.items() if logit >= cutoff), default=float("nan"))


def calibrate(store: Store, run: LoadedRun, *, method: Method = "isotonic", gate: Gate | None = None) -> Calibration:
    """Return a run's calibration: the stored one if it is of this head and method, else measured now and stored.

    With a `gate` it is that of the gated logits, in a file of its own.

    Raises
    ------
    CheckpointError
        If its selection has no validation bins, or is gone.
    """
    path = store.run_dir(run.name)
    file = path / (FILE_NAME if gate is None else GATED_FILE_NAME)
    digest = hashlib.sha256((path / HEAD_FILE).read_bytes()).hexdigest()
    if gate is not None:
        digest = hashlib.sha256(f"{digest} {gate.sha256}".encode()).hexdigest()
    if run.head.signal is not None and run.source.signals is None:  # scored as if there were no signals
        file, digest = path / UNSIGNALLED_FILE_NAME, hashlib.sha256(f"{digest} no signal".encode()).hexdigest()
    stored = _read(file)
    if stored is not None and (stored.head_sha256, stored.method) == (digest, method):
        return stored
    logits, labels = _validation_cells(store, run, gate)
    found = fit(logits, labels, method=method, head_sha256=digest)
    value: dict[str, Any] = {"format": FORMAT, **found._asdict()}
    value |= {"logits": found.logits.tolist(), "probabilities": found.probabilities.tolist()}
    publish(file, [sealed_json(value)])
    return found


def fit(
    logits: Float32[np.ndarray, " n"], labels: Bool[np.ndarray, " n"], *, method: Method, head_sha256: str = ""
) -> Calibration:
    """Return the calibration that labelled logits give.

    Raises
    ------
    CheckpointError
        If all bins are bound, or none.
    """
    from sklearn.isotonic import IsotonicRegression
    from sklearn.linear_model import LogisticRegression

    n_bound = int(labels.sum())
    if n_bound in (0, len(labels)):
        what = f"{n_bound:,} of {len(labels):,} validation bins are bound: nothing to calibrate on"
        raise CheckpointError(what, where="calibration", fix="select with validation chromosomes that hold peaks")
    x = np.asarray(logits, dtype=np.float64)
    if method == "platt":
        model = LogisticRegression(C=1e12, max_iter=1000).fit(x[:, None], labels)
        knots = np.array([model.coef_[0, 0], model.intercept_[0]])
        values = np.zeros(2)
    else:
        isotonic = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x, labels)
        knots = np.asarray(isotonic.X_thresholds_, dtype=np.float64)
        values = np.asarray(isotonic.y_thresholds_, dtype=np.float64)
    return Calibration(method, head_sha256, knots, values, _cutoffs(x, labels), len(labels), n_bound / len(labels))


def _cutoffs(logits: Float64[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> dict[str, float]:
    """Return for each rate the lowest logit such that calling it and all above has at most this rate."""
    order = np.argsort(-logits, kind="stable")
    ordered, bound = logits[order], np.cumsum(labels[order])
    called = np.arange(1, len(ordered) + 1)
    ends = np.append(ordered[1:] != ordered[:-1], True)  # equal logits are called together
    rate = 1 - bound[ends] / called[ends]
    found: dict[str, float] = {}
    for wanted in FDR_STEPS:
        good = np.flatnonzero(rate <= wanted + 1e-12)
        if len(good):
            found[str(wanted)] = float(ordered[ends][good[-1]])
    return found


def _validation_cells(
    store: Store, run: LoadedRun, gate: Gate | None
) -> tuple[Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    name = str(run.header.selection.get("name", ""))
    try:
        selection = Selection.open(store, name)
    except SelectionError as error:
        what = f"the run's selection {name!r} cannot be read: {error.what}"
        raise CheckpointError(what, where=run.name, fix="predict with --raw, or train the run again") from error
    device = run.source.device
    material = gather_material(store, selection, run.arrays, device=device, max_valid_bins=MAX_BINS)
    valid = material.valid
    if valid is None or not len(valid.bins):
        fix = "select with --valid-chroms, or predict with --raw"
        raise CheckpointError(f"selection {name!r} has no validation bins", where=run.name, fix=fix)
    step = max(1, len(valid.bins) * valid.labels.shape[1] // MAX_CELLS)
    bins, labels = valid.bins[::step], valid.labels[::step]
    pairs = valid.experiments
    with torch.inference_mode():
        blocks = score_bins(run.head, run.source, pairs.factor_id, pairs.biotype_id, bins)
        scores = np.concatenate([block.scores for block in blocks])
    if gate is not None:
        scores = gate.apply(scores, pairs.biotype_id, bins)
    known = ~np.isnan(labels)
    return scores[known], labels[known] > 0.5


def _read(path: Path) -> Calibration | None:
    try:
        value = unsealed_json(read_regular(path))
        value.pop("check", None)
        if value.pop("format") != FORMAT:
            return None
        value |= {name: np.asarray(value[name], dtype=np.float64) for name in ("logits", "probabilities")}
        return Calibration(**value)
    except (OSError, ValueError, KeyError, TypeError):  # absent, or not ours: it is measured again
        return None
