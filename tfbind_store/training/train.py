"""Train a head on a selection: minutes on stored embeddings, again and again.

A run is a folder ``runs/<name>/``: ``config.toml``, ``head.safetensors`` (the best weights by validation),
``last.safetensors`` (the newest that were looked at), ``state.safetensors`` (all that is needed to go on after a kill,
to the bit on a CPU), ``log.jsonl`` and ``log.csv``. Two ways to learn: ``dense`` (bins of the training chromosomes
against training experiments, the default) and ``rows`` (the selection's rows as they are). Neither sees a valid or test
row; validation chooses the weights that are kept. Under ``torchrun`` several processes share each step's batch.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from tfbind_store import config as configs
from tfbind_store.durable import publish, sole_owner, typed_errors
from tfbind_store.errors import ConfigError, TrainingError
from tfbind_store.feeding.feed import DenseFeed, choose_arrays, prefetch
from tfbind_store.heads import CheckpointHeader, Geometry, Head, header_for, make_head, save_checkpoint
from tfbind_store.heads.base import reads_signals
from tfbind_store.heads.filip import FilipHead
from tfbind_store.learning.average import Average
from tfbind_store.learning.optimiser import adamw, clip, set_rate, trainable
from tfbind_store.learning.processes import Processes, joined, own_device
from tfbind_store.learning.runlog import RunLog, require_trackers
from tfbind_store.learning.schedule import Schedule
from tfbind_store.learning.state import optimizer_tensors, put_back, read_state, restore_optimizer, write_state
from tfbind_store.precompute.weights import pick_device
from tfbind_store.query.loader import Loader
from tfbind_store.query.selection import Selection
from tfbind_store.query.strands import other_strand
from tfbind_store.scoring.signals import HALF_WIDTHS, Signals
from tfbind_store.store.folder import Store
from tfbind_store.training.batches import (
    AnyBatch,
    BatchSource,
    DenseSource,
    Numbered,
    RowSignals,
    RowSource,
    culprits,
    pieces,
)
from tfbind_store.training.config import TrainConfig
from tfbind_store.training.loss import HeadLoss, labelled_weight
from tfbind_store.training.material import Material, gather_material, validate
from tfbind_store.training.strengths import Strengths, training_strengths

__all__ = ["RunState", "TrainConfig", "TrainResult", "train_head"]

HEAD_FILE, LAST_FILE, STATE_FILE, CONFIG_FILE = (
    "head.safetensors",
    "last.safetensors",
    "state.safetensors",
    "config.toml",
)
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
    path = store.run_dir(run_name)
    text = _run_text(selection, config)
    _require_free(path, text, overwrite=overwrite)
    require_trackers(config.trackers)
    device = own_device(pick_device(config.device))
    with joined(device) as processes, _repeatable(config.deterministic):
        processes.wait()  # all have looked at the folder before the first one changes it
        return _train(store, selection, config, path, text, processes, device, overwrite=overwrite)


def _train(
    store: Store,
    selection: Selection,
    config: TrainConfig,
    path: Path,
    text: str,
    processes: Processes,
    device: torch.device,
    *,
    overwrite: bool,
) -> TrainResult:
    material = gather_material(
        store,
        selection,
        choose_arrays(store, windows=config.windows, proteins=config.proteins, contexts=config.contexts),
        device=device,
        max_valid_bins=config.max_valid_bins,
        permute_seed=config.seed if config.permute_labels else None,
    )
    trainer = TrainingRun(material, config, path, processes)
    # only now, when nothing can be refused any more: a run that never began leaves no trace
    with contextlib.ExitStack() as stack:
        if processes.is_first:
            with typed_errors(path):
                path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(sole_owner(path, doing=f"training run {path.name!r}"))
            _begin_folder(path, text, overwrite=overwrite)
        processes.wait()
        was_resumed = trainer.resume() and trainer.state.step > 0
        if processes.is_first and not was_resumed:
            trainer.save_state()  # a run without a state is a finished one
        stack.callback(trainer.log.close)
        started = time.monotonic()
        trainer.run()
    seconds = time.monotonic() - started
    _log.info("run %s: %d steps in %.0f s, %s", path.name, trainer.state.step, seconds, trainer.state.best)
    best = dict(trainer.state.best)
    return TrainResult(path, trainer.state.step, best, seconds, was_resumed, processes.rank)


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
    path = store.run_dir(run_name)
    if not (path / HEAD_FILE).exists() or (path / STATE_FILE).exists() or not (path / CONFIG_FILE).exists():
        return False
    wanted = _run_text(Selection.open(store, selection_name), config)
    return (path / CONFIG_FILE).read_text(encoding="utf-8") == wanted


def _run_text(selection: Selection, config: TrainConfig) -> str:
    return f"# selection: {selection.name}, rows {selection.info['rows_sha256']}\n{configs.to_toml(config)}"


def _require_free(path: Path, text: str, *, overwrite: bool) -> None:
    """Refuse a run that is finished or was made with another config."""
    if overwrite or not (path / CONFIG_FILE).exists():
        return
    name, fix = path.name, "choose another name: --run, or --overwrite"
    if (path / CONFIG_FILE).read_text(encoding="utf-8") != text:
        what = f"run {name!r} was made with another config or selection"
        raise ConfigError(what, where=str(path / CONFIG_FILE), fix=fix)
    if not (path / STATE_FILE).exists() and (path / HEAD_FILE).exists():
        raise TrainingError(f"run {name!r} is finished", where=str(path), fix=fix)


def _begin_folder(path: Path, text: str, *, overwrite: bool) -> None:
    with typed_errors(path):
        for old in path.iterdir() if overwrite else ():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        publish(path / CONFIG_FILE, [text.encode()])


class TrainingRun:
    """One run: head, optimizer, where it stands, and its files."""

    def __init__(
        self, material: Material, config: TrainConfig, path: Path, processes: Processes, head: Head | None = None
    ) -> None:
        self.material, self.config, self.path, self.processes = material, config, path, processes
        self.device = material.source.device
        self.feed = DenseFeed(
            material.source, material.truth, material.training, material.train_bins,
            config.bins_per_step, config.pairs_per_step, config.bound_share, config.seed, config.balance,
        )  # fmt: skip
        self.signals = self._signals(head)
        material.source.signals = self.signals
        self.source = self._make_source()
        torch.manual_seed(config.seed)
        self.head = self._make_head() if head is None else self._taken(head)
        self.named = trainable(self.head)
        self.optimizer = adamw(
            self.head, self.named, lr=config.lr, weight_decay=config.weight_decay, lr_scale=config.lr_scale
        )
        loss = HeadLoss(self.head, config.loss, checkpointing=config.checkpointing, strengths=self._strengths())
        if config.compile:
            loss.compile()
        self.model = processes.wrapped(loss)
        self.average = Average(self.head, config.average)
        self.schedule = Schedule(kind=config.schedule, warmup=config.warmup, n_steps=config.steps)
        self.state = RunState()
        self.log = RunLog(path, trackers=config.trackers, about=configs.to_mapping(config))

    def _strengths(self) -> Strengths | None:
        """Return what a head needs that learns read values beside labels."""
        if not (isinstance(self.head, FilipHead) and self.head.read_values is not None):
            return None
        if self.config.pairing != "rows":
            fix = "--set pairing=rows, or options.read_values=0"
            raise ConfigError("read values are of rows, training is dense", where="options.read_values", fix=fix)
        return training_strengths(self.material.store, self.material.selection, self.device)

    def _make_source(self) -> BatchSource:
        config, material = self.config, self.material
        if config.pairing == "dense":
            return DenseSource(self.feed, self.processes)
        loader = Loader(
            material.store, material.selection, "train",
            arrays=material.arrays, batch_size=config.batch_rows, seed=config.seed, balance=config.balance,
            reverse=self._other_strand() if config.both_strands else "",
        )  # fmt: skip
        signals = None if self.signals is None else RowSignals(material.store, material.selection, self.signals)
        return RowSource(loader, self.device, self.processes, signals)

    def _other_strand(self) -> str:
        """Return the array that holds the other strand of the windows."""
        store, name = self.material.store, self.material.arrays.windows
        found = other_strand(store, name)
        if found is None:
            fix = f"tfbind embed {store.path} windows --name NAME --set strand=reverse, with the same model"
            raise ConfigError(f"the store has no other strand of {name}", where="both_strands", fix=fix)
        return found

    def _signals(self, head: Head | None) -> Signals | None:
        """Return the signals that the head is to read, where the selection declares some and it can."""
        name, store = self.material.selection.config.signals, self.material.store
        can = reads_signals(self.config.head) if head is None else head.signal is not None
        if not name or self.config.signals != "head" or not can:
            return None
        return Signals(store, store.array_name_for("signals", name))

    def _make_head(self) -> Head:
        store, arrays = self.material.store, self.material.arrays
        geometry = Geometry(*(store.array(name).shape[-1] for name in arrays))
        options = dict(self.config.options)
        if self.signals is not None:
            options["signal_scales"] = len(HALF_WIDTHS)
        try:
            head = make_head(self.config.head, geometry, options)
        except TypeError as error:  # an unknown option, with the nearest known one
            raise ConfigError(str(error), where="options", fix="--set options.NAME=VALUE with one of these") from error
        head.fit_scaling(self.feed.scaling(), prevalence=self.feed.prevalence)
        return head.to(self.device)

    def _taken(self, head: Head) -> Head:
        """Return a head that somebody made, to be trained on from where it stands."""
        found = Geometry(*(self.material.store.array(name).shape[-1] for name in self.material.arrays))
        if head.geometry != found:
            what = f"the head reads DNA, proteins and contexts of {tuple(head.geometry)}, stored are {tuple(found)}"
            raise ConfigError(what, where="head", fix="use the embedders that the head was made for")
        return head.to(self.device)

    def resume(self, path: Path | None = None) -> bool:
        """Go on from a saved state, by default the folder's, if there is one."""
        path = path or self.path / STATE_FILE
        if not path.exists():
            return False
        counters, groups = read_state(path)
        self.state = RunState(**counters)
        put_back(path, self.head, groups["weights"])
        restore_optimizer(path, self.optimizer, self.named, groups.get("optimizer", {}))
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
            if self.state.step % self.config.validate_every or not (self.path / HEAD_FILE).exists():
                self.look()
            (self.path / STATE_FILE).unlink(missing_ok=True)
        self.processes.wait()

    def _after_step(self) -> None:
        if not self.processes.is_first:
            return
        if self.state.step % self.config.validate_every == 0:
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
                raise TrainingError(f"loss is {sums[-1].item()} at step {self.state.step}", where=where, fix="lower lr")
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
                save_checkpoint(self.path / HEAD_FILE, self.head, self._header(looked))
            save_checkpoint(self.path / LAST_FILE, self.head, self._header(looked))
        self.head.train()

    def save_state(self, path: Path | None = None) -> None:
        """Write all that is needed to go on, by default into the run's folder."""
        groups = {
            "weights": self.head.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.named),
            "average": self.average.tensors,
        }
        write_state(path or self.path / STATE_FILE, asdict(self.state), groups)

    def _signals_said(self) -> dict[str, str]:
        if self.signals is None:
            return {}
        name = self.signals.array_name
        return {"name": name, "fingerprint": self.material.store.array(name).spec.fingerprint}

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
            selection={**selection.info, "name": selection.name},
            trained_on={key: selection.trained_on[key] for key in ("factors", "chromosomes", "biotypes")},
            trunk_trained_on=specs["windows"].identity.get("trained_on"),
            train=configs.to_mapping(self.config),
            metrics=_finite(looked),
        )


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}
