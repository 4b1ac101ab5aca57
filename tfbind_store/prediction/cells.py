"""The signal of the cells that were asked for, and a run's logits with it: in its head, by its gate, or not at all.

The signal is that of a bigWig that is given, else the biotype's stored one, else none: then what the head or the gate
learned to stand for none.
"""

# k bins · p pairs · d trunk dim

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tfbind_store.errors import ConfigError
from tfbind_store.heads.base import Pairs
from tfbind_store.heads.signal import Signal
from tfbind_store.scoring.bins import LoadedRun
from tfbind_store.scoring.gate import Gate, open_gate
from tfbind_store.scoring.signals import HALF_WIDTHS, GenomeSignal, Signals
from tfbind_store.store.folder import Store


class Cells:
    """Scores bins with the signal of one kind of cells.

    Parameters
    ----------
    run
        Its head reads signals, or a gate stands beside it, or neither.
    biotype_id
        Of the store; None for cells that only a text describes.
    bigwig
        Signal of these very cells.
    folder
        Where a bigWig's bins may be kept meanwhile.

    Raises
    ------
    ConfigError
        If a bigWig is given to a run that reads no signal.
    """

    def __init__(
        self,
        store: Store,
        run: LoadedRun,
        biotype_id: int | None,
        *,
        bigwig: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        self.run = run
        self.gate: Gate | None = None if run.head.signal is not None else open_gate(store, run.name)
        signals = self.gate.signals if self.gate is not None else run.source.signals
        self._signal: GenomeSignal | None = None
        self.reads_signal = signals is not None
        if not isinstance(signals, Signals):
            if bigwig is not None:
                fix = f"train a gate: tfbind train-signal {store.run_dir(run.name)}"
                raise ConfigError("the run reads no signal", where="--signal", fix=fix)
        elif bigwig is not None:
            self._signal = signals.of_bigwig(bigwig, folder or Path.cwd())
        elif biotype_id in signals.rows:
            self._signal = signals.of(biotype_id)

    def logits(self, dna: Float[Tensor, "k d"], pairs: Pairs, bins: Int64[np.ndarray, " k"]) -> Float[Tensor, "k p"]:
        """Return the logits of bins, which are theirs in the genome, with all pairs."""
        head = self.run.head
        if not self.reads_signal:
            return head.score_pairs(dna, pairs)
        shape = (len(bins), len(HALF_WIDTHS))
        numbers = np.full(shape, np.nan, dtype=np.float32) if self._signal is None else self._signal.at(bins)
        values = torch.from_numpy(numbers).unsqueeze(1).to(dna.device)
        signal = Signal(values, torch.zeros(len(pairs[0]), dtype=torch.int64, device=dna.device))
        if self.gate is None:
            return head.score_pairs(dna, pairs, signal=signal)
        logits = head.score_pairs(dna, pairs).float()
        return cast(Tensor, self.gate.module.to(dna.device)(logits, *signal))

    @property
    def digest(self) -> str:
        """Says which gate and which signal decide the logits, beside the head."""
        if not self.reads_signal:
            return ""
        gate = "" if self.gate is None else self.gate.sha256
        return f"{gate} {'none' if self._signal is None else self._signal.digest}"
