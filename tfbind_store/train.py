"""Train a head on a selection: minutes on stored embeddings, again and again.

A run is a folder ``runs/<name>/``: ``config.toml``, ``head.safetensors`` (the best weights by validation),
``state.safetensors`` (everything needed to go on after a kill, to the bit on a CPU), ``log.jsonl`` and ``log.csv``.
Two ways to learn: ``dense`` (bins of the training chromosomes against training experiments, the default) and ``rows``
(the selection's rows as they are). Neither sees a valid or test row; validation chooses the weights that are kept.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from tfbind_store import config as configs
from tfbind_store.durable import sole_owner, typed_errors
from tfbind_store.errors import ConfigError, TrainingError
from tfbind_store.feed import DenseFeed, choose_arrays, prefetch, to_torch
from tfbind_store.heads import (
    CheckpointHeader,
    Geometry,
    Head,
    LossConfig,
    batch_loss,
    cell_losses,
    header_for,
    make_head,
    save_checkpoint,
)
from tfbind_store.heads.checkpoint import write_atomically
from tfbind_store.heads.state import RunState, load_state, save_state
from tfbind_store.precompute.weights import pick_device
from tfbind_store.query.loader import Loader
from tfbind_store.query.selection import Selection
from tfbind_store.store import Store
from tfbind_store.train_material import Material, gather_material, validate

HEAD_FILE, STATE_FILE, CONFIG_FILE = "head.safetensors", "state.safetensors", "config.toml"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained."""

    head: str = "adapter"
    """Its name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings, see each head."""
    windows: str | None = None
    """Array of DNA embeddings; default the store's only one."""
    proteins: str | None = None
    """Array of protein embeddings; default the store's only one."""
    contexts: str | None = None
    """Array of context embeddings; default the store's only one."""
    pairing: Literal["dense", "rows"] = "dense"
    """Bins against many experiments at once, or the selection's rows."""
    steps: int = 1500
    """Optimizer steps."""
    minutes: float | None = None
    """Stop after so long if the steps are not done; the learning rate reaches its end then. Not exactly repeatable."""
    bins_per_step: int = 1024
    """Dense only."""
    pairs_per_step: int = 32
    """Experiments per step; dense only."""
    bound_share: float = 0.5
    """Share of the bins drawn from those that any training experiment binds; dense only."""
    batch_rows: int = 256
    """Rows per step; rows only."""
    lr: float = 1e-3
    """Highest learning rate of AdamW."""
    weight_decay: float = 0.05
    """Of weights with two axes or more; the others have none."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is made small."""
    validate_every: int = 500
    """Steps between looks at the validation part."""
    patience: int = 0
    """Stop after so many looks without a better one; 0 never stops early."""
    save_every: int = 200
    """Steps between saved states: at most so many are lost in a kill."""
    max_valid_bins: int = 50_000
    """Validation bins, evenly spread, if there are more."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products; losses, softmax and pooling are always fp32."""
    device: str = "auto"
    """cpu, cuda, or whatever is there."""
    permute_labels: bool = False
    """The control: peaks at random places of their chromosome; dense only."""
    seed: int = 0
    """Decides weights, order and dropout."""

    def __post_init__(self) -> None:
        if min(self.steps, self.bins_per_step, self.pairs_per_step, self.batch_rows, self.validate_every) < 1:
            raise ConfigError("steps, sizes and validate_every must be at least 1", where="train")
        if not 0 <= self.bound_share <= 1 or not 0 <= self.warmup < 1 or self.lr <= 0:
            raise ConfigError("bound_share in [0, 1], warmup in [0, 1) and lr above 0 are needed", where="train")
        if self.permute_labels and self.pairing != "dense":
            raise ConfigError("permute_labels needs pairing = dense", where="train")


class TrainResult(NamedTuple):
    """What a run came to."""

    path: Path
    """Folder of the run."""
    steps: int
    metrics: dict[str, float]
    """Validation at the weights that were kept; empty without validation rows."""
    seconds: float
    was_resumed: bool


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
    text = f"# selection: {selection.name}, rows {selection.info['rows_sha256']}\n{configs.to_toml(config)}"
    _require_free(path, text, overwrite=overwrite)
    device = pick_device(config.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("no CUDA device on this machine", where="device", fix="train with --device cpu")
    material = gather_material(
        store,
        selection,
        choose_arrays(store, windows=config.windows, proteins=config.proteins, contexts=config.contexts),
        device=device,
        max_valid_bins=config.max_valid_bins,
        permute_seed=config.seed if config.permute_labels else None,
    )
    trainer = _Trainer(material, config, path)
    # only now, when nothing can be refused any more: a run that never began leaves no trace
    with typed_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with sole_owner(path, doing=f"training run {run_name!r}"):
        _begin_folder(path, text, overwrite=overwrite)
        was_resumed = trainer.resume()
        started = time.monotonic()
        try:
            trainer.run()
        finally:
            trainer.log.close()
    seconds = time.monotonic() - started
    _log.info("run %s: %d steps in %.0f s, %s", run_name, trainer.state.step, seconds, trainer.state.best)
    return TrainResult(path, trainer.state.step, dict(trainer.state.best), seconds, was_resumed)


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
        write_atomically(path / CONFIG_FILE, text.encode())


class _Trainer:
    """One run: head, optimizer, where it stands, and its files."""

    def __init__(self, material: Material, config: TrainConfig, path: Path) -> None:
        self.material, self.config, self.path = material, config, path
        self.device = material.source.device
        self.feed = DenseFeed(
            material.source, material.truth, material.training, material.train_bins,
            config.bins_per_step, config.pairs_per_step, config.bound_share, config.seed,
        )  # fmt: skip
        self.loader = self._make_loader() if config.pairing == "rows" else None
        torch.manual_seed(config.seed)
        self.head = self._make_head()
        self.named = sorted(self.head.named_parameters())
        self.optimizer = torch.optim.AdamW(self._groups(), lr=config.lr, betas=(0.9, 0.98))
        self.state = RunState()
        self.log = _Log(path)

    def _make_loader(self) -> Loader:
        config, material = self.config, self.material
        return Loader(
            material.store, material.selection, "train",
            arrays=material.arrays, batch_size=config.batch_rows, seed=config.seed,
        )  # fmt: skip

    def _make_head(self) -> Head:
        store, arrays = self.material.store, self.material.arrays
        geometry = Geometry(*(store.array(name).shape[-1] for name in arrays))
        try:
            head = make_head(self.config.head, geometry, self.config.options)
        except TypeError as error:  # an unknown option, with the nearest known one
            raise ConfigError(str(error), where="options", fix="--set options.NAME=VALUE with one of these") from error
        head.fit_scaling(self.feed.scaling(), prevalence=self.feed.prevalence)
        return head.to(self.device)

    def _groups(self) -> list[dict[str, Any]]:
        decayed = [parameter for _, parameter in self.named if parameter.ndim > 1]
        rest = [parameter for _, parameter in self.named if parameter.ndim <= 1]
        return [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": rest, "weight_decay": 0.0}]

    def resume(self) -> bool:
        """Go on from a saved state if there is one."""
        path = self.path / STATE_FILE
        if not path.exists():
            return False
        self.state = load_state(path, self.head, self.optimizer, self.named)
        if self.loader is not None and self.state.cursor:
            self.loader.resume(self.state.cursor)
        self.log.rewind(self.state.step)
        _log.info("resumed at step %d", self.state.step)
        return True

    def run(self) -> None:
        """Train to the end; the state file is gone afterwards, the best head stays."""
        started, already = time.monotonic(), self.state.seconds
        limit = self.config.minutes * 60 if self.config.minutes else math.inf
        self.head.train()
        with tqdm(total=self.config.steps, initial=self.state.step, desc="train", unit="step", disable=None) as bar:
            for batch in self._batches():
                self.state.seconds = already + time.monotonic() - started
                share = max(self.state.step / self.config.steps, self.state.seconds / limit)
                if share >= 1 or self._has_lost_patience():
                    break
                self._one_step(batch, share)
                bar.update()
                if self.state.step % self.config.validate_every == 0:
                    self._look()
                if self.state.step % self.config.save_every == 0:
                    self._save_state()
        if self.state.step % self.config.validate_every or not (self.path / HEAD_FILE).exists():
            self._look()
        (self.path / STATE_FILE).unlink(missing_ok=True)

    def _batches(self) -> Iterator[Any]:
        """Yield batches for the steps that are left."""
        with contextlib.ExitStack() as stack:
            source = self._row_batches() if self.loader is not None else self._dense_batches()
            batches = prefetch(source)
            stack.callback(batches.close)  # type: ignore[attr-defined]
            yield from batches

    def _dense_batches(self) -> Iterator[Any]:
        for number in range(self.state.step, self.config.steps + 1):
            yield self.feed.batch(number)

    def _row_batches(self) -> Iterator[Any]:
        assert self.loader is not None, "rows need a loader"
        cursor = dict(self.state.cursor)
        epoch, first = int(cursor.get("epoch", 0)), int(cursor.get("batch", 0))
        while True:
            for number, batch in self.loader.epoch(epoch, first_batch=first):
                yield {"epoch": epoch, "batch": number + 1}, batch
            epoch, first = epoch + 1, 0

    def _one_step(self, batch: Any, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * self._rate(share)
        # dropout depends on seed and step alone, so that a resumed run draws the same
        torch.manual_seed((self.config.seed << 32) + self.state.step)
        loss = self._loss(batch)
        if not loss.isfinite():
            raise TrainingError(
                f"loss is {loss.item()} at step {self.state.step}", where=f"batch {self.state.cursor}", fix="lower lr"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_([parameter for _, parameter in self.named], self.config.clip)
        self.optimizer.step()
        self.state.step += 1
        self.state.losses.append(float(loss.item()))

    def _loss(self, batch: Any) -> Float[Tensor, ""]:
        with self._autocast():
            if self.loader is not None:
                where, numpy_batch = batch
                self.state.cursor = {**self.loader.state(), **where}
                tensors = to_torch(numpy_batch, self.device)
                return batch_loss(self.config.loss, self.head(tensors), tensors.labels, tensors.weights)
            pairs = self.head.encode(batch.pairs)
            logits = self.head.score_pairs(batch.dna, pairs, max_cells=batch.labels.numel())
            labelled = (~batch.labels.isnan()).sum().clamp(min=1)
            loss: Tensor = cell_losses(self.config.loss, logits, batch.labels).sum() / labelled
            return loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16")

    def _rate(self, share: float) -> float:
        rising = (share + 1 / self.config.steps) / max(self.config.warmup, 1 / self.config.steps)
        if share < self.config.warmup or self.config.schedule == "constant":
            return min(1.0, rising)
        done = (share - self.config.warmup) / (1 - self.config.warmup)
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, done))

    def _has_lost_patience(self) -> bool:
        return bool(self.config.patience) and self.state.looks_since_best >= self.config.patience

    def _look(self) -> None:
        """Validate, log, and keep the head if it is the best so far."""
        found = validate(self.head, self.material, self.config.loss)
        loss = float(np.mean(self.state.losses)) if self.state.losses else float("nan")
        self.state.losses.clear()
        self.head.train()
        line = {"step": self.state.step, "train_loss": loss, **found, "seconds": round(self.state.seconds, 1)}
        self.log.write(line)
        best = self.state.best.get("valid_auprc", -math.inf)
        if not found or not (found["valid_auprc"] <= best):
            self.state.best = {**found, "step": float(self.state.step)}
            self.state.looks_since_best = 0
            save_checkpoint(self.path / HEAD_FILE, self.head, self._header())
        else:
            self.state.looks_since_best += 1

    def _save_state(self) -> None:
        save_state(self.path / STATE_FILE, self.state, self.optimizer, self.named, self.head)

    def _header(self) -> CheckpointHeader:
        material, store = self.material, self.material.store
        specs = {kind: store.array(name).spec for kind, name in material.arrays._asdict().items()}
        names = material.arrays._asdict()
        selection = material.selection
        return header_for(
            self.head,
            arrays={kind: {"name": names[kind], "fingerprint": spec.fingerprint} for kind, spec in specs.items()},
            genome=store.meta.genome,
            selection=selection.info,
            trained_on={key: selection.trained_on[key] for key in ("factors", "chromosomes", "biotypes")},
            trunk_trained_on=specs["windows"].identity.get("trained_on"),
            train=configs.to_mapping(self.config),
            metrics=_finite(self.state.best),
        )


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


class _Log:
    """Metrics as JSON lines and as CSV."""

    def __init__(self, path: Path) -> None:
        self.jsonl, self.csv = path / "log.jsonl", path / "log.csv"
        self._lines: list[dict[str, float]] = []

    def rewind(self, step: int) -> None:
        """Forget what a stopped run wrote after its last saved state."""
        if self.jsonl.exists():
            lines = [json.loads(line) for line in self.jsonl.read_text(encoding="utf-8").splitlines() if line]
            self._lines = [line for line in lines if line["step"] <= step]

    def write(self, line: dict[str, float]) -> None:
        """Add a line to both files."""
        self._lines.append({key: value for key, value in _finite(line).items() if value is not None})
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        self.jsonl.write_text(text, encoding="utf-8")
        with self.csv.open("w", encoding="utf-8", newline="") as file:
            names = list(dict.fromkeys(key for line in self._lines for key in line))
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._lines)

    def close(self) -> None:
        """Nothing is held open between lines."""
