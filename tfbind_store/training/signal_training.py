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

from tfbind_store.config import from_mapping
from tfbind_store.errors import ConfigError, SelectionError
from tfbind_store.feeding.feed import DenseFeed
from tfbind_store.heads import LossConfig
from tfbind_store.heads.signal_gate import SignalGate, save_gate
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import LoadedRun, load_run, score_bins
from tfbind_store.scoring.gate import FILE_NAME, head_digest, open_gate
from tfbind_store.scoring.signals import HALF_WIDTHS, Signals
from tfbind_store.store.folder import Store
from tfbind_store.training.material import Material, gather_material, judge


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
    ConfigError
        If the head reads signals itself.
    SelectionError
        If no training biotype has a signal.
    """
    config = config or SignalConfig()
    run = load_run(store, run_name)
    if run.head.signal is not None:
        fix = "nothing is needed; a head without: tfbind train --set signals=gate"
        raise ConfigError("the head reads signals itself", where=run_name, fix=fix)
    selection = Selection.open(store, str(run.header.selection.get("name", "")))
    name = config.signals or selection.config.signals or "signals"
    signals = Signals(store, store.array_name_for("signals", name))
    material = _material(store, run, selection, max_valid_bins=1)
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
    """Train the gate of a run whose selection declares signals that its head does not read; None if it needs none."""
    run = load_run(store, run_name)
    selection = Selection.open(store, str(run.header.selection.get("name", "")))
    is_wanted = selection.config.signals and run.header.train.get("signals") != "none"
    return train_gate(store, run_name) if is_wanted and run.head.signal is None else None


def validate_gated(store: Store, run_name: str) -> dict[str, float]:
    """Return what `training.material.validate` says of a run, with its gate; empty without validation or gate."""
    run, gate = load_run(store, run_name), open_gate(store, run_name)
    selection = Selection.open(store, str(run.header.selection.get("name", "")))
    valid = _material(store, run, selection, max_valid_bins=int(run.header.train["max_valid_bins"])).valid
    if gate is None or valid is None or not len(valid.bins):
        return {}
    pairs = valid.experiments
    blocks = score_bins(run.head, run.source, pairs.factor_id, pairs.biotype_id, valid.bins)
    scores = np.concatenate([gate.apply(block.scores, pairs.biotype_id, block.global_bins) for block in blocks])
    return judge(valid, scores, from_mapping(LossConfig, run.header.train["loss"], where="loss"))


def _material(store: Store, run: LoadedRun, selection: Selection, *, max_valid_bins: int) -> Material:
    """Return what the run itself was trained and validated on."""
    how = run.header.train
    return gather_material(
        store, selection, run.arrays, device=run.source.device, max_valid_bins=max_valid_bins,
        permute_seed=int(how["seed"]) if how.get("permute_labels") else None,
    )  # fmt: skip
