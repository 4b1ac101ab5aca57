"""Train a head on a selection: minutes on stored embeddings, again and again.

A run is a folder (`training.run_folder`); one that was stopped goes on, to the bit on a CPU. Two ways to learn:
``dense`` (bins of the training chromosomes against training experiments, the default) and ``rows`` (the selection's
rows as they are). Neither sees a valid or test row; validation chooses the weights that are kept. Under ``torchrun``
several processes share each step's batch.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from tfbind_store import config as configs
from tfbind_store import freed_memory
from tfbind_store.errors import TrainingError
from tfbind_store.feeding.feed import DenseFeed, choose_arrays, prefetch
from tfbind_store.heads import CheckpointHeader, Head, header_for, save_checkpoint
from tfbind_store.learning.average import Average
from tfbind_store.learning.optimiser import adamw, clip, set_rate, trainable
from tfbind_store.learning.processes import Processes, joined, own_device
from tfbind_store.learning.runlog import RunLog, require_trackers
from tfbind_store.learning.schedule import Schedule
from tfbind_store.learning.state import (
    optimizer_tensors,
    put_back,
    read_counters,
    read_state,
    require_step,
    restore_optimizer,
    write_state,
)
from tfbind_store.precompute.weights import pick_device
from tfbind_store.query.selection import Selection
from tfbind_store.store.folder import Store
from tfbind_store.training.batches import (
    AnyBatch,
    Numbered,
    culprits,
    pieces,
)
from tfbind_store.training.config import TrainConfig
from tfbind_store.training.loss import HeadLoss, labelled_weight
from tfbind_store.training.material import Material, gather_material, validate
from tfbind_store.training.run_folder import RunFolder
from tfbind_store.training.starting import batch_source, new_head, signals_read, strengths_read, taken_head

__all__ = ["RunState", "TrainConfig", "TrainResult", "train_head"]

_log = logging.getLogger(__name__)


class TrainResult(NamedTuple):
    """What a run came to."""

    path: Path
    """Folder of the run."""
    steps: int
    metrics: dict[str, float]
    """Validation at the weights that were kept; empty without validation rows."""
    seconds: float
    was_resumed: bool
    rank: int = 0
    """Of this process among those that trained together; only number 0 has metrics."""


@dataclass
class RunState:
    """Counters of a run."""

    step: int = 0
    """Optimizer steps that are done."""
    best: dict[str, float] = field(default_factory=dict)
    """Validation at the best weights so far, and their step."""
    looks_since_best: int = 0
    losses: list[float] = field(default_factory=list)
    """Since the last validation."""
    cursor: dict[str, Any] = field(default_factory=dict)
    """The loader's next batch; empty where batches follow from the step."""
    seconds: float = 0.0


def train_head(
    store: Store,
    selection_name: str,
    config: TrainConfig | None = None,
    run_name: str = "run",
    *,
    overwrite: bool = False,
) -> TrainResult:
    """Train a head and write the run; a run that was stopped goes on where it stood.

    Parameters
    ----------
    run_name
        Folder in ``runs/``. If it holds a stopped run of the same config it is resumed; a finished one is refused.
    overwrite
        Begin anew whatever is there.

    Raises
    ------
    ConfigError
        If the run exists and was made with another config.
    StoreBusy
        If another process trains this run.
    TrainingError
        If a loss is not finite, or the run is finished.
    """
    config = config or TrainConfig()
    selection = Selection.open(store, selection_name)
    selection.require_training_rows()
    folder = RunFolder.of(store.run_dir(run_name), selection, config)
    folder.require_free(overwrite=overwrite)
    require_trackers(config.trackers)
    device = own_device(pick_device(config.device))
    with joined(device) as processes, _repeatable(config.deterministic), freed_memory.kept():
        processes.wait()  # all have looked at the folder before the first one changes it
        return _train(store, selection, config, folder, processes, device, overwrite=overwrite)


def _train(
    store: Store,
    selection: Selection,
    config: TrainConfig,
    folder: RunFolder,
    processes: Processes,
    device: torch.device,
    *,
    overwrite: bool,
) -> TrainResult:
    arrays = choose_arrays(store, windows=config.windows, proteins=config.proteins, contexts=config.contexts)
    selection.require_unseen_by(arrays.windows)
    material = gather_material(
        store,
        selection,
        arrays,
        device=device,
        max_valid_bins=config.max_valid_bins,
        permute_seed=config.seed if config.permute_labels else None,
    )
    trainer = TrainingRun(material, config, folder, processes)
    # only now, when nothing can be refused any more: a run that never began leaves no trace
    with contextlib.ExitStack() as stack:
        if processes.is_first:
            stack.enter_context(folder.begun(overwrite=overwrite))
        processes.wait()
        was_resumed = trainer.resume() and trainer.state.step > 0
        if processes.is_first and not was_resumed:
            trainer.save_state()  # a run without a state is a finished one
        stack.callback(trainer.log.close)
        started = time.monotonic()
        trainer.run()
    seconds = time.monotonic() - started
    _log.info("run %s: %d steps in %.0f s, %s", folder.path.name, trainer.state.step, seconds, trainer.state.best)
    best = dict(trainer.state.best)
    return TrainResult(folder.path, trainer.state.step, best, seconds, was_resumed, processes.rank)


@contextlib.contextmanager
def _repeatable(wanted: bool) -> Iterator[None]:
    """Let torch refuse what does not give the same numbers twice."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first product
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def is_finished(store: Store, selection_name: str, config: TrainConfig, run_name: str) -> bool:
    """Return whether this very run is there, and at its end."""
    folder = RunFolder.of(store.run_dir(run_name), Selection.open(store, selection_name), config)
    return folder.has_ended and folder.is_of_this_config


class TrainingRun:
    """One run: head, optimizer, where it stands, and its files."""

    def __init__(
        self, material: Material, config: TrainConfig, folder: RunFolder, processes: Processes, head: Head | None = None
    ) -> None:
        self.material, self.config, self.folder, self.processes = material, config, folder, processes
        self.device = material.source.device
        self.feed = DenseFeed(
            material.source, material.truth, material.training, material.train_bins,
            config.bins_per_step, config.pairs_per_step, config.bound_share, config.seed, config.balance,
        )  # fmt: skip
        self.signals = signals_read(material, config, head)
        material.source.signals = self.signals
        self.source = batch_source(material, config, self.feed, processes, self.signals)
        torch.manual_seed(config.seed)
        self.head = new_head(material, config, self.feed, self.signals) if head is None else taken_head(material, head)
        self.named = trainable(self.head)
        self.optimizer = adamw(
            self.head, self.named, lr=config.lr, weight_decay=config.weight_decay, lr_scale=config.lr_scale
        )
        strengths = strengths_read(self.head, material, config)
        loss = HeadLoss(self.head, config.loss, checkpointing=config.checkpointing, strengths=strengths)
        if config.compile:
            loss.compile()
        self.model = processes.wrapped(loss)
        self.average = Average(self.head, config.average)
        self.schedule = Schedule(kind=config.schedule, warmup=config.warmup, n_steps=config.steps)
        self.state = RunState()
        self.log = RunLog(folder.path, trackers=config.trackers, about=configs.to_mapping(config))

    def resume(self, path: Path | None = None) -> bool:
        """Go on from a saved state, by default the folder's, if there is one."""
        path = path or self.folder.state
        if not path.exists():
            return False
        counters, groups = read_state(path)
        state = read_counters(path, RunState, counters)
        require_step(path, state.step, self.config.steps)
        put_back(path, self.head, groups.get("weights", {}))
        restore_optimizer(path, self.optimizer, self.named, groups.get("optimizer", {}), step=state.step)
        self.state = state
        self.average.restore(groups.get("average", {}))
        self.log.rewind(self.state.step)
        _log.info("resumed at step %d", self.state.step)
        return True

    def run(self) -> None:
        """Train to the end; the state file is gone afterwards, the best head stays."""
        started, already = time.monotonic(), self.state.seconds
        limit = self.config.minutes * 60 if self.config.minutes else math.inf
        self.head.train()
        quiet = None if self.processes.is_first else True
        bar = tqdm(total=self.config.steps, initial=self.state.step, desc="train", unit="step", disable=quiet)
        batches = prefetch(self.source.batches(self.state.step, self.state.cursor))
        with bar, contextlib.closing(batches):  # type: ignore[type-var]
            for numbered in batches:
                self.state.seconds = already + time.monotonic() - started
                share = max(self.state.step / self.config.steps, self.state.seconds / limit)
                # the clock and validation are the first process's alone, and so is the end
                share = self.processes.told(1.0 if self._has_lost_patience() else share, self.device)
                if share >= 1:
                    break
                self.one_step(numbered, share)
                bar.update()
                self._after_step()
        if self.processes.is_first:
            if self.state.step % self.config.look_every or not self.folder.head.exists():
                self.look()
            self.folder.state.unlink(missing_ok=True)
        self.processes.wait()

    def _after_step(self) -> None:
        if not self.processes.is_first:
            return
        if self.state.step % self.config.look_every == 0:
            self.look()
        if self.state.step % self.config.save_every == 0:
            self.save_state()

    def one_step(self, numbered: Numbered, share: float) -> None:
        """Make one optimizer step, at the learning rate of a run of which `share` is done."""
        set_rate(self.optimizer, self.config.lr * self.schedule.rate(share))
        # dropout depends on seed, process and step alone, so that a resumed run draws the same
        torch.manual_seed((self.config.seed << 32) + (self.processes.rank << 28) + self.state.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(numbered.batch)
        norm = clip((parameter for _, parameter in self.named), self.config.clip)
        if not math.isfinite(norm):
            where = f"step {self.state.step}: {culprits(self.material.store, numbered.batch, self._all(numbered))}"
            raise TrainingError(f"gradient is {norm} at step {self.state.step}", where=where)
        self.optimizer.step()
        self.state.step += 1
        self.state.cursor = numbered.after
        self.state.losses.append(loss)
        self.average.update(self.state.step)

    def _backward(self, batch: AnyBatch) -> float:
        """Leave the gradient of the whole batch, all processes together, and return its loss."""
        parts = pieces(batch, self.config.accumulate)
        labelled = torch.stack([labelled_weight(part) for part in parts]).sum()
        total = self.processes.total(labelled).clamp(min=torch.finfo(torch.float32).tiny)
        sums = []
        for place, part in enumerate(parts):
            is_last = place == len(parts) - 1
            with contextlib.nullcontext() if is_last else self._unsynchronised():
                cells = self._cells(part)
                summed = cells.sum() / total
                # processes take the mean of their gradients: times their number, it is the sum
                (summed * self.processes.world).backward()
            sums.append(summed.detach())
            if not sums[-1].isfinite():
                where = culprits(self.material.store, part, ~cells.isfinite())
                raise TrainingError(f"loss is {sums[-1].item()} at step {self.state.step}", where=where)
        return float(self.processes.total(torch.stack(sums).sum()).item())

    def _cells(self, batch: AnyBatch) -> Float[Tensor, "rows columns"]:
        with self._autocast():
            cells: Tensor = self.model(batch)
        return cells

    def _unsynchronised(self) -> contextlib.AbstractContextManager[None]:
        model = self.model
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def _all(self, numbered: Numbered) -> Tensor:
        return torch.ones(numbered.batch.labels.shape, dtype=torch.bool)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _has_lost_patience(self) -> bool:
        return bool(self.config.patience) and self.state.looks_since_best >= self.config.patience

    def look(self) -> None:
        """Validate, log, and keep the head: as the last, and as the best if it is."""
        with self.average.applied():
            found = validate(self.head, self.material, self.config.loss)
            loss = float(np.mean(self.state.losses)) if self.state.losses else float("nan")
            self.state.losses.clear()
            line = {"step": self.state.step, "train_loss": loss, **found, "seconds": round(self.state.seconds, 1)}
            self.log.write(line)
            looked = {**found, "step": float(self.state.step)}
            best = self.state.best.get("valid_auprc", -math.inf)
            self.state.looks_since_best += 1
            if not found or not (found["valid_auprc"] <= best):
                self.state.best, self.state.looks_since_best = looked, 0
                save_checkpoint(self.folder.head, self.head, self._header(looked))
            save_checkpoint(self.folder.last, self.head, self._header(looked))
        self.head.train()

    def save_state(self, path: Path | None = None) -> None:
        """Write all that is needed to go on, by default into the run's folder."""
        groups = {
            "weights": self.head.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.named),
            "average": self.average.tensors,
        }
        write_state(path or self.folder.state, asdict(self.state), groups)

    def _signals_said(self) -> dict[str, str]:
        if self.signals is None:
            return {}
        name = self.signals.array_name
        return {"name": name, "fingerprint": self.material.store.array(name).spec.fingerprint}

    @cached_property
    def _leaks(self) -> list[Mapping[str, Any]]:
        return self.material.selection.leaks_to(self.material.arrays.windows)

    def _header(self, looked: Mapping[str, float]) -> CheckpointHeader:
        material, store = self.material, self.material.store
        specs = {kind: store.array(name).spec for kind, name in material.arrays._asdict().items()}
        names = material.arrays._asdict()
        selection = material.selection
        return header_for(
            self.head,
            arrays={kind: {"name": names[kind], "fingerprint": spec.fingerprint} for kind, spec in specs.items()},
            signals=self._signals_said(),
            genome=store.meta.genome,
            selection={**selection.info, "name": selection.name, "leaks": self._leaks},
            trained_on={key: selection.trained_on[key] for key in ("factors", "chromosomes", "biotypes")},
            trunk_trained_on=specs["windows"].identity.get("trained_on"),
            train=configs.to_mapping(self.config),
            metrics=_finite(looked),
        )


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
