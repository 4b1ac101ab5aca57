"""A run's signal gate: opened, and applied to the logits of its head.

`signal_training` makes it. Whoever scores bins with a run, in evaluation, calibration or prediction, asks for it here.
"""

# k bins · p pairs · c biotypes · s scales

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from tfbind_store.errors import CheckpointError
from tfbind_store.heads.signal_gate import SignalGate, load_gate, trained_on
from tfbind_store.scoring.bins import HEAD_FILE
from tfbind_store.scoring.signals import Signals
from tfbind_store.store.folder import Store

FILE_NAME = "signal.safetensors"


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
        signal = self.signals.at(distinct.tolist(), bins)
        with torch.inference_mode():
            given = (torch.from_numpy(np.ascontiguousarray(part)) for part in (scores, signal, index))
            gated: Float32[np.ndarray, "k p"] = self.module(*given).numpy()
        return gated


def open_gate(store: Store, run_name: str) -> Gate | None:
    """Return a run's gate; None if none was trained.

    Raises
    ------
    CheckpointError
        If the head has been trained anew since.
    """
    path = store.run_dir(run_name) / FILE_NAME
    if not path.exists():
        return None
    signals, head = trained_on(path)
    if head != head_digest(store, run_name):
        fix = f"train the gate again: tfbind train-signal {store.run_dir(run_name)}"
        raise CheckpointError("the signal gate is of another head than the run has now", where=run_name, fix=fix)
    return Gate(load_gate(path), Signals(store, signals), hashlib.sha256(path.read_bytes()).hexdigest())


def has_gate(store: Store, run_name: str) -> bool:
    """Tell whether a run has a gate, of the head that it has now."""
    path = store.run_dir(run_name) / FILE_NAME
    return path.exists() and trained_on(path)[1] == head_digest(store, run_name)


def head_digest(store: Store, run_name: str) -> str:
    """Return the sha256 of a run's head."""
    return hashlib.sha256((store.run_dir(run_name) / HEAD_FILE).read_bytes()).hexdigest()
