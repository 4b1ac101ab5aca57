"""Train a small trunk from a random start on peaks as tracks, so that the frozen trunk knows something.

It reads the training chromosomes and training experiments of one selection and nothing else, and says so on the card
of the trunk it saves; the leak check and every checkpoint on top of it read that card. Each experiment is a track with
one output of a linear layer that is thrown away afterwards, and of a second one where quarters of bins are learnt too.
A run that was stopped goes on where its last saved state stood, on a CPU to the same bytes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from tfbind_store import config as configs
from tfbind_store.durable import free_bytes, sole_writer, typed_errors
from tfbind_store.errors import ConfigError, NoSpace, StoreExists, TrainingError
from tfbind_store.feeding.feed import permuted
from tfbind_store.heads.losses import cell_losses
from tfbind_store.learning.average import Average
from tfbind_store.learning.optimiser import adamw, clip, set_rate
from tfbind_store.learning.passes import Place, endless
from tfbind_store.learning.runlog import RunLog
from tfbind_store.learning.schedule import Schedule
from tfbind_store.learning.state import optimizer_tensors, put_back, read_state, restore_optimizer, write_state
from tfbind_store.metrics.ranking import score_binary
from tfbind_store.precompute.convnet import Convnet
from tfbind_store.precompute.enformer import one_hot
from tfbind_store.precompute.trunk_files import DOUBLED, WEIGHT_FILES
from tfbind_store.precompute.weights import pick_device
from tfbind_store.pretraining.config import PretrainConfig, TrunkConfig
from tfbind_store.pretraining.feed import Stretch, TrackFeed, mutated
from tfbind_store.pretraining.forward import fast_dtype
from tfbind_store.pretraining.kinds import Features, build_model, features, save_model, tensors_of
from tfbind_store.query import rows, splits
from tfbind_store.query.selection import Selection
from tfbind_store.store.folder import Store

__all__ = ["PretrainConfig", "PretrainResult", "TrunkConfig", "pretrain_trunk", "training_feed"]

STATE_FILE = "state.safetensors"
_log = logging.getLogger(__name__)


class PretrainResult(NamedTuple):
    """What `pretrain_trunk` made."""

    path: Path
    """Folder of the trunk; ``tfbind embed STORE windows --checkpoint`` reads it."""
    n_steps: int
    n_tracks: int
    loss: float
    """Mean of the last pass."""
    validation: Mapping[str, float]
    seconds: float
    was_resumed: bool


def pretrain_trunk(
    store: Store,
    selection_name: str,
    config: PretrainConfig | None = None,
    out_dir: Path | str | None = None,
    *,
    overwrite: bool = False,
) -> PretrainResult:
    """Train a trunk on the training part of a selection and save it; a run that was stopped goes on.

    Parameters
    ----------
    out_dir
        Where the trunk goes; default ``trunks/<selection>`` in the store.
    overwrite
        Replace a trunk that is there, and begin anew where a stopped run is.

    Raises
    ------
    StoreExists
        If there is a trunk, anybody's, and it may not be replaced.
    StoreBusy
        If another process trains into this folder.
    NoSpace
        If the disk cannot hold the trunk.
    ConfigError
        If sizes do not fit the store's grid, or a stopped run was of another config.
    TrainingError
        If a loss is not finite.
    """
    config = config or PretrainConfig()
    out = Path(out_dir) if out_dir else store.path / "trunks" / selection_name
    weights = next((out / name for name in WEIGHT_FILES if (out / name).exists()), None)
    if weights and not overwrite:
        fix = "choose another folder, or --overwrite"
        raise StoreExists("there is a trunk in this folder already", where=str(weights), fix=fix)
    selection = Selection.open(store, selection_name)
    selection.require_training_rows()
    feed = training_feed(store, selection, config)
    trainer = _Trainer(store, selection, feed, config, out)
    trainer.require_room()
    started = time.monotonic()
    with sole_writer(out, doing="training a trunk into this folder"):
        was_resumed = trainer.begin(overwrite=overwrite)
        loss = trainer.run(_validation_feed(store, selection, feed))
        _save(store, selection, trainer)
    seconds = time.monotonic() - started
    _log.info("trunk of %s: %d steps in %.0f s, loss %.4f", selection_name, trainer.step, seconds, loss)
    n_tracks = len(feed.experiment_ids)
    return PretrainResult(out, trainer.step, n_tracks, loss, trainer.validation, seconds, was_resumed)


def _save(store: Store, selection: Selection, trainer: _Trainer) -> None:
    """Write the trunk with its card; the state of the run is gone afterwards."""
    config, trained_on = trainer.config, selection.trained_on
    notes = {
        "genome": store.meta.genome,
        "selection": selection.name,
        "window_bp": trainer.feed.window_bp,
        "pretrain": configs.to_mapping(config),
        "steps": trainer.step,
        "validation": trainer.validation,
        "labels": "permuted" if config.permute_labels else "measured",
    }
    seen = {key: trained_on[key] for key in ("factors", "chromosomes", "biotypes")}
    with trainer.average.applied():
        save_model(trainer.model, trainer.out, seen, notes=notes)
    (trainer.out / STATE_FILE).unlink(missing_ok=True)


def training_feed(store: Store, selection: Selection, config: PretrainConfig) -> TrackFeed:
    """Return the examples that a selection allows a trunk to see: its training experiments and chromosomes."""
    with store.reader() as catalog:
        evidence = rows.gather(store, catalog)
    trained = set(selection.trained_on["experiments"])
    ids = evidence.experiments["experiment_id"].astype(np.int64)
    named = np.array([name in trained for name in evidence.experiments["experiment"].tolist()], dtype=bool)
    if config.permute_labels:
        evidence = evidence._replace(peaks=permuted(evidence.peaks, store.tiling.lengths_bp, seed=config.seed))
    # on a chromosome that a split divides, only its training part
    evidence = evidence._replace(scorable=evidence.scorable & (selection.place_parts() == splits.TRAIN))
    window_bp = config.window_bp or store.grid.window_bp
    if window_bp % store.grid.bin_bp:
        raise ConfigError(
            f"window_bp {window_bp} is no multiple of the {store.grid.bin_bp} bp of a bin", where="pretrain"
        )
    return TrackFeed(
        store.genome,
        evidence,
        selection.config.choices().rule,
        ids[named],
        tuple(store.tiling.chrom_index[chrom] for chrom in selection.trained_on["chromosomes"]),
        window_bp,
        config.reverse_complement,
        config.random_offset,
    )


def _validation_feed(store: Store, selection: Selection, feed: TrackFeed) -> TrackFeed | None:
    """Return the same tracks on places of validation rows."""
    valid = selection.place_parts() == splits.VALID
    with store.reader() as catalog:
        scorable = rows.gather(store, catalog).scorable & valid
    chroms = tuple(n for n in range(len(store.tiling.chroms)) if valid[store.tiling.global_bins(n)].any())
    if not chroms:
        return None
    evidence = feed.evidence._replace(scorable=scorable)
    return TrackFeed(feed.genome, evidence, feed.rule, feed.experiment_ids, chroms, feed.window_bp, False, False)


def _output(width: int, prior: Float[Tensor, " tracks"]) -> nn.Linear:
    """Return a layer with an output per track, which says the track's prevalence at first."""
    made = nn.Linear(width, len(prior))
    with torch.no_grad():
        made.weight.mul_(0.1)
        made.bias.copy_(torch.logit(prior))
    return made


class _Trainer:
    """A trunk in training: model, optimizer, schedule and where they stand."""

    def __init__(self, store: Store, selection: Selection, feed: TrackFeed, config: PretrainConfig, out: Path) -> None:
        self.feed, self.config, self.out = feed, config, out
        self.identity = f"{selection.info['rows_sha256']}\n{configs.to_toml(config)}"
        self.device = torch.device(pick_device(config.device))
        wanted = {"float32": torch.float32, "bfloat16": torch.bfloat16}
        self.dtype = wanted.get(config.precision) or fast_dtype(self.device)
        torch.manual_seed(config.seed)
        self.model, width = build_model(config, store.grid.bin_bp)
        prior = torch.from_numpy(feed.prevalence()).clamp(min=1e-5, max=0.5)
        self.output = _output(width, prior)
        self.dropout = nn.Dropout(config.output_dropout)
        parts = {"trunk": self.model, "output": self.output}
        self.quarter_output: nn.Linear | None = None
        if config.quarter_loss and isinstance(self.model, Convnet):
            self.n_parts = self.model.sizes.pools[1]
            self.quarter_output = parts["quarter_output"] = _output(width, prior / self.n_parts)
        both = nn.ModuleDict(parts).to(self.device).train()
        self.average = Average(both, config.average)
        self.named = sorted((n, p) for n, p in both.named_parameters() if DOUBLED not in n)
        self.optimizer = adamw(both, self.named, lr=config.lr, weight_decay=config.weight_decay)
        self.per_pass = -(-len(feed.one_pass(np.random.default_rng(0))) // config.batch_size)
        self.total = max(1, round(config.passes * self.per_pass))
        self.schedule = Schedule(warmup=config.warmup, n_steps=self.total)
        self.log = RunLog(out)
        self.step, self.seconds = 0, 0.0
        self.cursor = Place()
        self.recent: list[float] = []  # losses, of one pass at most
        self.validation: dict[str, float] = {}

    def require_room(self) -> None:
        """Refuse to train for a folder that cannot be written, or on a disk that cannot hold the result."""
        with typed_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        needed = sum(value.nbytes for value in self.model.state_dict().values())
        free = free_bytes(self.out)
        if free < needed:
            raise NoSpace(f"the trunk needs {needed:,} bytes, the disk has {free:,}", where=str(self.out))

    def begin(self, *, overwrite: bool) -> bool:
        """Go on from a saved state if there is one; returns whether there was."""
        path = self.out / STATE_FILE
        if overwrite:
            path.unlink(missing_ok=True)
        if not path.exists():
            return False
        counters, groups = read_state(path)
        if counters["identity"] != self.identity:
            fix = "choose another folder, or --overwrite"
            raise ConfigError("a stopped run in this folder has another config or selection", where=str(path), fix=fix)
        put_back(path, self.model, groups["trunk"], left_out=[DOUBLED])
        put_back(path, self.output, groups["output"])
        if self.quarter_output is not None:
            put_back(path, self.quarter_output, groups["quarter_output"])
        self.average.restore(groups.get("average", {}))
        restore_optimizer(path, self.optimizer, self.named, groups.get("optimizer", {}))
        self.step, self.seconds, self.recent = counters["step"], counters["seconds"], counters["recent"]
        self.cursor = Place(*counters["cursor"])
        self.log.rewind(self.step)
        _log.info("resumed at step %d", self.step)
        return True

    def save_state(self) -> None:
        """Write where the run stands."""
        counters = {
            "identity": self.identity,
            "step": self.step,
            "seconds": self.seconds,
            "recent": self.recent,
            "cursor": list(self.cursor),
        }
        groups = {
            "trunk": tensors_of(self.model),
            "output": self.output.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.named),
            "average": self.average.tensors,
        }
        if self.quarter_output is not None:
            groups["quarter_output"] = self.quarter_output.state_dict()
        write_state(self.out / STATE_FILE, counters, groups)

    def run(self, valid: TrackFeed | None) -> float:
        """Train to the end and return the mean loss of the last pass."""
        limit = self.config.minutes * 60 if self.config.minutes else math.inf
        started, already = time.monotonic(), self.seconds
        with tqdm(total=self.total, initial=self.step, desc="pretrain", unit="step", disable=None) as bar:
            for after, stretches in self._batches():
                self.seconds = already + time.monotonic() - started
                share = max(self.step / self.total, self.seconds / limit)
                if share >= 1:
                    break
                self._one_step(stretches, share)
                self.cursor = after
                bar.update()
                self._report(valid)
                if self.step % self.config.save_every == 0:
                    self.save_state()
        if valid is not None and self.config.validate_every:
            self.validation = self._validate(valid)
        return float(np.mean(self.recent)) if self.recent else float("nan")

    def _report(self, valid: TrackFeed | None) -> None:
        """Log the end of a pass."""
        if self.step % self.per_pass and self.step != self.total:
            return
        line = {"step": self.step, "pass": self.step / self.per_pass, "train_loss": float(np.mean(self.recent))}
        if valid is not None and self._wants_validation():
            line |= self._validate(valid)
        self.log.write({**line, "seconds": round(self.seconds, 1)})

    def _batches(self) -> Iterator[tuple[Place, list[Stretch]]]:
        return endless(self._pass, self.config.batch_size, self.cursor)

    def _pass(self, number: int) -> list[Stretch]:
        return self.feed.one_pass(np.random.default_rng([self.config.seed, number]))

    def _one_step(self, stretches: list[Stretch], share: float) -> None:
        set_rate(self.optimizer, self.config.lr * self.schedule.rate(share))
        # dropout depends on seed and step alone, so that a resumed run draws the same
        torch.manual_seed((self.config.seed << 32) + self.step)
        batch = self.feed.batch(stretches)
        labels = torch.from_numpy(batch.labels).to(self.device)
        found = self._features(self._changed(batch.codes), framed=batch.codes)
        # summed over tracks, so that the step does not shrink as tracks are added
        n_bins = labels.shape[0] * labels.shape[1]
        of_bins = cell_losses(self.config.loss, self._logits(found.bins), labels).sum() / n_bins
        loss = of_bins
        if self.quarter_output is not None and found.quarters is not None:
            parts = torch.from_numpy(self.feed.part_labels(stretches, batch.labels, self.n_parts)).to(self.device)
            logits = self.quarter_output(self.dropout(found.quarters))
            loss = of_bins + self.config.quarter_loss * cell_losses(self.config.loss, logits, parts).sum() / n_bins
        if not loss.isfinite():
            where = ", ".join(f"{self.feed.chrom_name(s)}:{s.start}" for s in stretches)
            raise TrainingError(f"loss is {loss.item()} at step {self.step}", where=where, fix="lower lr")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clip((parameter for _, parameter in self.named), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self.average.update(self.step)
        self.recent = [*self.recent, float(of_bins.item())][-self.per_pass :]

    def _changed(self, codes: UInt8[np.ndarray, "b bp"]) -> UInt8[np.ndarray, "b bp"]:
        most = self.config.mutation
        return mutated(codes, most, np.random.default_rng([self.config.seed, 1, self.step])) if most else codes

    def _features(self, codes: np.ndarray, framed: np.ndarray) -> Features:
        read, unchanged = one_hot(codes).to(self.device), one_hot(framed).to(self.device)
        return features(self.model, read, dtype=self.dtype, framed=unchanged)

    def _logits(self, bins: Float[Tensor, "b n d"]) -> Float[Tensor, "b n tracks"]:
        logits: Tensor = self.output(self.dropout(bins) if self.model.training else bins)
        return logits

    def _wants_validation(self) -> bool:
        every = self.config.validate_every * self.per_pass
        return bool(every) and self.step % max(1, round(every)) == 0 and self.step < self.total

    @torch.inference_mode()
    def _validate(self, feed: TrackFeed) -> dict[str, float]:
        """Return the medians over tracks with a positive bin."""
        self.model.eval()
        stretches = sorted(feed.one_pass(np.random.default_rng(0)))
        size, n_tracks = self.config.batch_size, len(feed.experiment_ids)
        parts = [feed.batch(stretches[at : at + size]) for at in range(0, len(stretches), size)]
        with self.average.applied():
            bins = (self._features(part.codes, framed=part.codes).bins for part in parts)
            logits = [self._logits(values).float().cpu().numpy() for values in bins]
        scores = np.concatenate([part.reshape(-1, n_tracks) for part in logits])
        labels = np.concatenate([part.labels.reshape(-1, n_tracks) for part in parts])
        self.model.train()
        per_track = [score_binary(labels[:, track], scores[:, track]) for track in range(n_tracks)]
        found = [track for track in per_track if track.n_positive]
        if not found:
            return {}
        medians = {name: float(np.nanmedian([getattr(track, name) for track in found])) for name in ("auroc", "auprc")}
        return {f"valid_{name}": value for name, value in medians.items()}
