"""Train a signal gate on top of a run's head.

The head stays as it is. The gate sees the run's own training rows: bins of the training chromosomes, training
experiments, each with the signal of its biotype. It lies in the run's folder as ``signal.safetensors``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.feeding.feed import DenseFeed
from tfbind_store.heads.signal import SignalGate, save_gate
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import load_run
from tfbind_store.scoring.gate import FILE_NAME, head_digest
from tfbind_store.scoring.signals import HALF_WIDTHS, Signals
from tfbind_store.store.folder import Store
from tfbind_store.training.material import gather_material


@dataclass(frozen=True, kw_only=True)
class SignalConfig:
    """How a gate is trained."""

    signals: str = ""
    """Name of the array of signals; empty takes the one that the selection declares, else ``signals``."""
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
    selection = Selection.open(store, str(run.header.selection.get("name", "")))
    name = config.signals or selection.config.signals or "signals"
    signals = Signals(store, store.array_name_for("signals", name))
    how = run.header.train
    material = gather_material(
        store, selection, run.arrays, device=run.source.device, max_valid_bins=1,
        permute_seed=int(how["seed"]) if how.get("permute_labels") else None,
    )  # fmt: skip
    biotype_of = dict(zip(material.training.experiment_id.tolist(), material.training.biotype_id.tolist(), strict=True))
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
    save_gate(path, gate, signals=signals.array_name, head=head_digest(store, run_name))
    return SignalResult(path, losses, n_with)


def train_declared_gate(store: Store, run_name: str) -> SignalResult | None:
    """Train the gate of a run whose selection declares signals; None where it declares none."""
    selection = Selection.open(store, str(load_run(store, run_name).header.selection.get("name", "")))
    return train_gate(store, run_name) if selection.config.signals else None
