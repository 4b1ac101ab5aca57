"""Train a signal gate on top of a run's head, and score with both.

The head stays as it is. The gate sees the run's own training rows: bins of the training chromosomes, training
experiments, each with the signal of its biotype. It lies in the run's folder as ``signal.safetensors``.
"""

# k bins · p pairs · c biotypes · s scales

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch.nn import functional
from tqdm import tqdm

from tfbind_store.errors import CheckpointError, ConfigError, SelectionError
from tfbind_store.feed import DenseFeed
from tfbind_store.heads.signal import SignalGate, load_gate, save_gate, signals_of
from tfbind_store.query.selection import Selection
from tfbind_store.scoring import LoadedRun, load_run, score_bins
from tfbind_store.signal_features import HALF_WIDTHS, Signals
from tfbind_store.store import Store
from tfbind_store.train_material import gather_material

FILE_NAME = "signal.safetensors"


@dataclass(frozen=True, kw_only=True)
class SignalConfig:
    """How a gate is trained."""

    signals: str = "signals"
    """Name of the array of signals."""
    steps: int = 300
    bins_per_step: int = 512
    pairs_per_step: int = 16
    lr: float = 1e-2
    drop: float = 0.15
    """Share of a step's biotypes whose signal is taken away."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.lr > 0 or not 0 <= self.drop < 1:
            raise ConfigError("steps and lr must be above 0, drop in [0, 1)", where="signal gate")


class SignalResult(NamedTuple):
    """What came of training a gate."""

    path: Path
    losses: list[float]
    n_biotypes: int
    """Training biotypes with a signal."""


def train_gate(store: Store, run_name: str, config: SignalConfig | None = None) -> SignalResult:
    """Train a gate for a run and write it into the run's folder.

    Raises
    ------
    SelectionError
        If no training biotype has a signal.
    """
    config = config or SignalConfig()
    run = load_run(store, run_name)
    signals = Signals(store, store.array_name_for("signals", config.signals))
    selection = Selection.open(store, str(run.header.selection.get("name", "")))
    material = gather_material(store, selection, run.arrays, device=run.source.device, max_valid_bins=1)
    biotype_of = dict(
        zip(material.training.experiment_id.tolist(), material.training.biotype_id.tolist(), strict=True)
    )
    n_with = len(set(biotype_of.values()) & signals.rows.keys())
    if not n_with:
        what = f"none of the {len(set(biotype_of.values()))} training biotypes has a signal in {signals.array_name}"
        raise SelectionError(what, where=run_name, fix="tfbind import signals STORE FOLDER --annotation TABLE")
    feed = DenseFeed(
        material.source, material.truth, material.training, material.train_bins, config.bins_per_step,
        config.pairs_per_step, 0.5, config.seed,
    )  # fmt: skip
    torch.manual_seed(config.seed)
    gate = SignalGate(len(HALF_WIDTHS))
    optimizer = torch.optim.AdamW(gate.parameters(), lr=config.lr)
    losses = []
    run.head.eval()
    for step in tqdm(range(config.steps), desc="train", unit="step", disable=None):
        batch = feed.batch(step)
        with torch.no_grad():
            logits = run.head.score_pairs(batch.dna, run.head.encode(batch.pairs)).float()
        biotypes = np.array([biotype_of[experiment] for experiment in batch.experiments.tolist()], dtype=np.int64)
        distinct, index = np.unique(biotypes, return_inverse=True)
        signal = torch.from_numpy(signals.at(distinct.tolist(), batch.bins))
        gated = gate(logits, signal, torch.from_numpy(index), drop=config.drop)
        known = ~batch.labels.isnan()
        loss = functional.binary_cross_entropy_with_logits(gated[known], batch.labels[known].float())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.item()))
    path = store.run_dir(run_name) / FILE_NAME
    save_gate(path, gate, signals=signals.array_name)
    return SignalResult(path, losses, n_with)


class Gate(NamedTuple):
    """A run's gate, and the signals of the store that it was trained on."""

    module: SignalGate
    signals: Signals
    sha256: str
    """Of its file."""

    def apply(
        self, scores: Float32[np.ndarray, "k p"], biotype_ids: Int64[np.ndarray, " p"], bins: Int64[np.ndarray, " k"]
    ) -> Float32[np.ndarray, "k p"]:
        """Return a head's logits with the stored signal of each pair's biotype."""
        distinct, index = np.unique(biotype_ids, return_inverse=True)
        return self.gated(scores, self.signals.at(distinct.tolist(), bins), index)

    def gated(
        self,
        scores: Float32[np.ndarray, "k p"],
        signal: Float32[np.ndarray, "k c s"],
        context_index: Int64[np.ndarray, " p"],
    ) -> Float32[np.ndarray, "k p"]:
        """Return a head's logits with any signal."""
        with torch.inference_mode():
            given = (torch.from_numpy(np.ascontiguousarray(part)) for part in (scores, signal, context_index))
            gated: Float32[np.ndarray, "k p"] = self.module(*given).numpy()
        return gated


def open_gate(store: Store, run_name: str) -> Gate | None:
    """Return a run's gate; None if none was trained."""
    path = store.run_dir(run_name) / FILE_NAME
    if not path.exists():
        return None
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Gate(load_gate(path), Signals(store, signals_of(path)), digest)


def score_with_signal(
    store: Store,
    run: LoadedRun,
    factor_ids: Int64[np.ndarray, " p"],
    biotype_ids: Int64[np.ndarray, " p"],
    bins: Int64[np.ndarray, " k"],
) -> Float32[np.ndarray, "k p"]:
    """Return the gated logits of bins, with pair i = factor i in biotype i; a biotype without a signal has them too.

    Raises
    ------
    CheckpointError
        If no gate was trained for the run.
    """
    gate = open_gate(store, run.name)
    if gate is None:
        raise CheckpointError("the run has no signal gate", where=run.name, fix="train one: tfbind train-signal RUN")
    blocks = score_bins(run.head, run.source, factor_ids, biotype_ids, bins)
    return np.concatenate([gate.apply(block.scores, biotype_ids, block.global_bins) for block in blocks])
