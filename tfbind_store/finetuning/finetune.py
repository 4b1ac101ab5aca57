"""Train a trained head and its trunk on together, end to end; the trunk that comes out is a trunk of its own.

Starts from a run's head and the folder of the trunk that its embeddings were made with. Writes a new trunk folder, with
a new fingerprint, and a new run whose head belongs to it: ``tfbind embed`` makes the embeddings that the head then
reads. Only training windows and experiments of the run's selection are read; validation chooses the weights. A run that
was stopped goes on where its last saved state stood, on a CPU to the same bytes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from tqdm import tqdm

from tfbind_store import config as configs
from tfbind_store import freed_memory
from tfbind_store.batch import Batch
from tfbind_store.durable import free_bytes, publish, sole_writer, typed_errors
from tfbind_store.errors import ConfigError, NoSpace, StoreExists, TrainingError
from tfbind_store.feeding.feed import Experiments
from tfbind_store.finetuning.config import FinetuneConfig
from tfbind_store.finetuning.feed import FinetuneFeed, ValidationWindows, WindowBatch, validation_windows
from tfbind_store.finetuning.live_model import LiveProteins, LiveTrunk, require_trunk_of
from tfbind_store.finetuning.modes import set_protein_mode, set_running, set_trunk_mode
from tfbind_store.heads import cell_losses, read_header, save_checkpoint
from tfbind_store.heads.signal import Signal
from tfbind_store.learning.optimiser import adamw, clip, set_rate
from tfbind_store.learning.passes import Place, endless
from tfbind_store.learning.runlog import RunLog
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
from tfbind_store.precompute.embedder import make_sequence_embedder
from tfbind_store.precompute.enformer import load_trunk, save_trunk
from tfbind_store.precompute.esm import NOT_USED, EsmEmbedder
from tfbind_store.precompute.esm_save import save_esm2
from tfbind_store.precompute.trunk_files import DOUBLED, HEADS, WEIGHT_FILES
from tfbind_store.precompute.weights import pick_device, weights_digest
from tfbind_store.query.selection import Selection
from tfbind_store.scoring.bins import HEAD_FILE, LoadedRun, load_run
from tfbind_store.store.folder import Store
from tfbind_store.training.material import judge
from tfbind_store.training.run_folder import CONFIG_FILE

__all__ = ["FinetuneConfig", "FinetuneResult", "finetune_run"]

STATE_FILE, BEST_FILE, PROTEINS_FOLDER = "state.safetensors", "best.safetensors", "proteins"
LEFT_OUT: dict[str, tuple[str, ...]] = {"head": (), "trunk": (DOUBLED,), "proteins": NOT_USED}
"""Names of tensors that are second names, or play no part."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_log = logging.getLogger(__name__)


class FinetuneResult(NamedTuple):
    """What `finetune_run` made."""

    trunk: Path
    """Folder of the new trunk."""
    proteins: Path | None
    """Folder of the new protein encoder, where it was trained."""
    run: Path
    """Folder of the new head's run."""
    windows: str
    """Name of the array that the head reads: to be embedded with the new trunk."""
    steps: int
    trained: Mapping[str, int]
    """How many tensors of trunk, proteins and head were trained."""
    before: Mapping[str, float]
    """Validation of the head and trunk that it started from, on the same windows."""
    metrics: Mapping[str, float]
    """Validation at the weights that were kept."""
    seconds: float
    was_resumed: bool
    next_command: str
    """What makes the embeddings that the new head reads."""


@freed_memory.kept()
def finetune_run(
    store: Store,
    run_name: str,
    trunk: Path | str,
    out_dir: Path | str,
    config: FinetuneConfig | None = None,
    *,
    new_run: str | None = None,
    overwrite: bool = False,
) -> FinetuneResult:
    """Fine-tune a run's head and its trunk.

    Parameters
    ----------
    run_name
        The run that it starts from.
    trunk
        Folder of the trunk that the run's embeddings were made with.
    out_dir
        Where the new trunk goes.
    new_run
        Name of the new run, and of the arrays that are to be embedded for it; default ``<run_name>-tuned``.
    overwrite
        Replace a trunk and a run that are there.

    Raises
    ------
    SpecError
        If the embeddings were made with another trunk; the field is named.
    StoreExists
        If there is a trunk or a run already.
    TrainingError
        If a loss is not finite; the windows are named.
    """
    config, out = config or FinetuneConfig(), Path(out_dir)
    new_name = new_run or f"{run_name}-tuned"
    if new_name == run_name or out.resolve() == Path(trunk).resolve():
        what = "the new trunk or run would replace the one that it is made from"
        raise ConfigError(what, where="finetune", fix="choose another folder and another --run")
    if config.shift_bp >= store.grid.bin_bp:
        what = f"shift_bp is {config.shift_bp}, a bin is {store.grid.bin_bp} bp"
        raise ConfigError(what, where="finetune", fix="shift by less than one bin: labels would be their neighbours'")
    _require_free(store, out, new_name, config, overwrite=overwrite)
    device = pick_device(config.device)
    run = load_run(store, run_name, device=device)
    selection = Selection.open(store, str(run.header.selection["name"]))
    selection.require_training_rows()
    tuner = _Tuner(store, selection, run, load_trunk(Path(trunk)), config, out)
    tuner.require_room()
    started = time.monotonic()
    with sole_writer(out, doing="fine-tuning into this folder"):
        was_resumed = tuner.begin(overwrite=overwrite)
        tuner.run()
        names = tuner.publish(new_name)
    seconds = time.monotonic() - started
    state = tuner.state
    _log.info("fine-tuned %s: %d steps in %.0f s, %s", run_name, state.step, seconds, state.best)
    proteins = out / PROTEINS_FOLDER if tuner.proteins is not None else None
    return FinetuneResult(
        out, proteins, store.run_dir(new_name), names["windows"], state.step,
        tuner.trained, state.before, state.best, seconds, was_resumed, tuner.next_command(names["windows"]),
    )  # fmt: skip


def _require_free(store: Store, out: Path, new_run: str, config: FinetuneConfig, *, overwrite: bool) -> None:
    """Refuse to replace a trunk or a run, but for those of a run that was stopped while it published them."""
    fix = "choose another name, or --overwrite"
    is_stopped, head = (out / STATE_FILE).exists(), store.run_dir(new_run) / HEAD_FILE
    there = [] if is_stopped else [out / name for name in WEIGHT_FILES if (out / name).exists()]
    if head.exists():
        is_own = is_stopped and read_header(head).train.get("finetune") == configs.to_mapping(config)
        there += [] if is_own else [head]
    if there and not overwrite:
        raise StoreExists("there is a trunk or a run of this name already", where=str(there[0]), fix=fix)


@dataclasses.dataclass
class TunerState:
    """Counters of a run."""

    identity: str
    """Config, head, trunk and selection: a state of others is not gone on with."""
    step: int = 0
    cursor: list[int] = dataclasses.field(default_factory=lambda: list(Place()))
    losses: list[float] = dataclasses.field(default_factory=list)
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    best: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0


class _Tuner:
    """A head and a trunk in training, and where they stand."""

    def __init__(
        self, store: Store, selection: Selection, run: LoadedRun, trunk: Any, config: FinetuneConfig, out: Path
    ) -> None:
        self.store, self.selection, self.loaded, self.config, self.out = store, selection, run, config, out
        self.device = run.source.device
        self.spec = require_trunk_of(store, run.arrays.windows, trunk)
        self.trunk = LiveTrunk(trunk, self.spec, checkpointing=config.checkpointing, dtype=DTYPES[config.precision]).to(
            self.device
        )
        self.proteins = self._live_proteins()
        self.feed = FinetuneFeed(store, selection, config)
        self.valid = validation_windows(store, selection, run.arrays, config)
        torch.manual_seed(config.seed)
        parts: dict[str, nn.Module] = {"head": run.head.requires_grad_(True), "trunk": self.trunk.model}
        if self.proteins is not None:
            parts["proteins"] = self.proteins.model
        self.parts = nn.ModuleDict(parts)
        self.trained = self._set_modes()
        self.named = [item for item in sorted(self.parts.named_parameters()) if item[1].requires_grad]
        scales = {"trunk.*": config.trunk_lr / config.lr, "proteins.*": config.protein_lr / config.lr}
        fitting = {key: value for key, value in scales.items() if self.trained.get(key[:-2], 0)}
        self.optimizer = adamw(self.parts, self.named, lr=config.lr, weight_decay=config.weight_decay, lr_scale=fitting)
        self.schedule = Schedule(kind=config.schedule, warmup=config.warmup, n_steps=config.steps)
        digests = f"{self.spec.fingerprint}\n{selection.info['rows_sha256']}\n{weights_digest(run.head.state_dict())}"
        self.state = TunerState(f"{configs.to_toml(config)}\n{digests}")
        self.log = RunLog(out)

    def _live_proteins(self) -> LiveProteins | None:
        if self.config.proteins == "none":
            return None
        options = {**self.config.protein_options, "device": str(self.device)}
        embedder = make_sequence_embedder("esm", options)
        return LiveProteins(self.store, self.loaded.arrays.proteins, cast(EsmEmbedder, embedder))

    def _set_modes(self) -> dict[str, int]:
        trained = {"trunk": len(set_trunk_mode(self.trunk.model, self.config.mode, dropout=self.config.trunk_dropout))}
        if self.proteins is not None:
            trained["proteins"] = len(set_protein_mode(self.proteins.model, self.config.proteins))
        return {**trained, "head": len(list(self.loaded.head.parameters()))}

    def require_room(self) -> None:
        """Refuse a folder that cannot be written, or a disk that cannot hold the result."""
        with typed_errors(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        weights = sum(tensor.nbytes for group in self._weights().values() for tensor in group.values())
        needed = 3 * weights + 8 * sum(parameter.numel() for _, parameter in self.named)
        if free_bytes(self.out) < needed:
            raise NoSpace(f"need {needed:,} bytes, have {free_bytes(self.out):,}", where=str(self.out))

    def begin(self, *, overwrite: bool) -> bool:
        """Go on from a saved state if there is one; returns whether there was."""
        path = self.out / STATE_FILE
        if overwrite:
            path.unlink(missing_ok=True)
        if not path.exists():
            return False
        counters, groups = read_state(path)
        if counters["identity"] != self.state.identity:
            fix = "choose another folder, or --overwrite"
            raise ConfigError(
                "a stopped run in this folder had another config, head or trunk", where=str(path), fix=fix
            )
        state = read_counters(path, TunerState, counters)
        require_step(path, state.step, self.config.steps)
        self._put_back(path, groups)
        restore_optimizer(path, self.optimizer, self.named, groups.get("optimizer", {}), step=state.step)
        self.state = state
        self.log.rewind(self.state.step)
        return True

    def run(self) -> None:
        """Train to the end."""
        config, state = self.config, self.state
        started, already = time.monotonic(), state.seconds
        if not state.step and not state.before:
            state.before = self._validated()
            self.log.write({"step": 0, **state.before})
        batches = endless(self.feed.one_pass, config.windows_per_step, Place(*state.cursor))
        with tqdm(total=config.steps, initial=state.step, desc="finetune", unit="step", disable=None) as bar:
            while state.step < config.steps:
                after, stretches = next(batches)
                self._one_step(self.feed.batch(stretches, state.step))
                state.cursor, state.seconds = list(after), already + time.monotonic() - started
                bar.update()
                if state.step % config.validate_every == 0 or state.step == config.steps:
                    self._look()
                if state.step % config.save_every == 0:
                    self._save_state()

    def _one_step(self, batch: WindowBatch) -> None:
        config, state = self.config, self.state
        set_rate(self.optimizer, config.lr * self.schedule.rate(state.step / config.steps))
        torch.manual_seed((config.seed << 32) + state.step)
        self.loaded.head.train()
        set_running(self.trunk.model, dropout=config.trunk_dropout)
        labels = torch.from_numpy(batch.labels).to(self.device)
        logits = self._logits(batch)
        loss = cell_losses(config.loss, logits, labels).sum() / (~labels.isnan()).sum().clamp(min=1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = clip((parameter for _, parameter in self.named), config.clip)
        if not math.isfinite(float(loss.item()) + norm):
            what = f"loss is {loss.item()}, gradient {norm}, at step {state.step}"
            windows = np.unique(batch.bins[:, batch.bins.shape[1] // 2] // self.store.grid.n_bins).tolist()
            raise TrainingError(what, where=f"windows {', '.join(map(str, windows))}", fix="lower trunk_lr and lr")
        self.optimizer.step()
        state.step += 1
        state.losses.append(float(loss.item()))

    def _logits(self, batch: WindowBatch) -> Float[Tensor, "b n p"]:
        features = self.trunk(batch.codes, self.feed.tracks.n_bins)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            pairs = self.loaded.head.encode(self._pairs(batch.pairs))
            signal = self._signal(batch.pairs, batch.bins.reshape(-1))
            cells = batch.labels.size
            logits = self.loaded.head.score_pairs(features.flatten(0, 1), pairs, max_cells=cells, signal=signal)
        return logits.view(batch.labels.shape)

    def _pairs(self, pairs: Experiments) -> Batch[Tensor]:
        inputs = self.loaded.source.inputs(pairs.factor_id, pairs.biotype_id)
        if self.proteins is None:
            return inputs
        live = self.proteins.get(np.unique(pairs.factor_id))
        return inputs._replace(protein=live.protein, mask=live.mask, subunit=live.subunit)

    def _signal(self, pairs: Experiments, bins: Int64[np.ndarray, " k"]) -> Signal | None:
        """Return the stored signal of bins, for a head that reads one."""
        return None if self.loaded.head.signal is None else self.loaded.source.signal(pairs.biotype_id, bins)

    @torch.no_grad()
    def _validated(self) -> dict[str, float]:
        if self.valid is None:
            return {}
        self.loaded.head.eval()
        set_running(self.trunk.model, dropout=0.0)
        scores = np.concatenate(list(self._scores(self.valid)))
        return judge(self.valid.valid, scores, self.config.loss)

    def _scores(self, windows: ValidationWindows) -> Any:
        pairs = self.loaded.head.encode(self._pairs(windows.valid.experiments))
        at = 0
        for codes, places in windows.codes(self.store, self.config.windows_per_step):
            features = self.trunk(codes, self.store.grid.n_bins).flatten(0, 1)[torch.from_numpy(places)]
            signal = self._signal(windows.valid.experiments, windows.valid.bins[at : at + len(places)])
            at += len(places)
            yield self.loaded.head.score_pairs(features, pairs, signal=signal).float().cpu().numpy()

    def _look(self) -> None:
        """Validate, log, and keep the weights if they are the best so far."""
        state, found = self.state, self._validated()
        line = {"step": state.step, "train_loss": float(np.mean(state.losses)), **found}
        state.losses.clear()
        self.log.write({**line, "seconds": round(state.seconds, 1)})
        if not found or not found["valid_auprc"] <= state.best.get("valid_auprc", -math.inf):
            state.best = {**found, "step": float(state.step)}
            write_state(self.out / BEST_FILE, {}, self._weights())

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        return {
            name: {key: value for key, value in part.state_dict().items() if not key.startswith(LEFT_OUT[name])}
            for name, part in self.parts.items()
        }

    def _put_back(self, path: Path, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        for name, part in self.parts.items():
            put_back(path, part, groups[name], left_out=LEFT_OUT[name])

    def _save_state(self) -> None:
        groups = {**self._weights(), "optimizer": optimizer_tensors(self.optimizer, self.named)}
        write_state(self.out / STATE_FILE, dataclasses.asdict(self.state), groups)

    def publish(self, new_run: str) -> dict[str, str]:
        """Write the best trunk, protein encoder and head; returns the names of the head's arrays."""
        self._put_back(self.out / BEST_FILE, read_state(self.out / BEST_FILE).groups)
        card, own = self.trunk.card, self.selection.trained_on
        trained_on = None
        if card.trained_on is not None:
            trained_on = {key: sorted({*card.trained_on[key], *own[key]}) for key in card.trained_on}
        notes = {**card.notes, "finetune": configs.to_mapping(self.config), "finetuned_from": self.spec.fingerprint}
        save_trunk(self.trunk.model, self.out, trained_on, notes=notes, keep_heads=bool(self._has_heads()))
        arrays = {kind: dict(array) for kind, array in self.loaded.header.arrays.items()}
        tuned = LiveTrunk(load_trunk(self.out), self.spec, checkpointing=False, dtype=torch.float32)
        arrays["windows"] = {"name": f"embeddings/{new_run}", "fingerprint": tuned.spec(self.store).fingerprint}
        if self.proteins is not None:
            place = save_esm2(self.proteins.model, self.proteins.embedder.alphabet, self.out / PROTEINS_FOLDER)
            options = {**self.config.protein_options, "checkpoint": str(place), "device": "cpu"}
            spec = make_sequence_embedder("esm", options).spec()
            arrays["proteins"] = {"name": f"proteins/{new_run}", "fingerprint": spec.fingerprint}
        self._write_run(new_run, arrays, trained_on)
        for name in (STATE_FILE, BEST_FILE):
            (self.out / name).unlink(missing_ok=True)
        return {kind: array["name"] for kind, array in arrays.items()}

    def next_command(self, windows: str) -> str:
        """Return the command that embeds the genome for the new head."""
        usual = {"strand": "forward", "layer": "trunk", "matmul": "float32"}
        names = {"strand": "strand", "layer": "tap", "matmul": "precision"}
        chosen = [
            f" --set {names[key]}={self.spec.identity[key]}"
            for key, value in usual.items()
            if self.spec.identity[key] != value
        ]
        name = windows.partition("/")[2]
        return f"tfbind embed {self.store.path} windows --checkpoint {self.out} --name {name}{''.join(chosen)}"

    def _has_heads(self) -> bool:
        return any(name.startswith(HEADS) for name in self.trunk.model.state_dict())

    def _write_run(self, new_run: str, arrays: dict[str, dict[str, str]], trained_on: Any) -> None:
        path = self.store.run_dir(new_run)
        with typed_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        header = dataclasses.replace(
            self.loaded.header,
            arrays=arrays,
            trunk_trained_on=trained_on,
            train={**self.loaded.header.train, "finetune": configs.to_mapping(self.config)},
            metrics={key: value if math.isfinite(value) else None for key, value in self.state.best.items()},
        )
        publish(path / CONFIG_FILE, [configs.to_toml(self.config).encode()])
        save_checkpoint(path / HEAD_FILE, self.loaded.head.cpu(), header)
