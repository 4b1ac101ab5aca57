"""Bring stored embeddings to a head as torch tensors.

Two ways: the rows of a selection as they are (`to_torch`, `prefetch` around ``query.loader``), or *dense*: many bins of
the training chromosomes against many training experiments at once (`DenseFeed`), which labels hundreds of pairs for
each embedding that is read. Both use the selection's label rule and nothing outside its training part.
"""

# k bins · p pairs (experiments) · d trunk dim · f factors · l residues · e protein dim · t context dim

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int8, Int64
from torch import Tensor

from tfbind_store.arrays.layouts import read_layout
from tfbind_store.arrays.sharded import ShardedArray
from tfbind_store.batch import Batch
from tfbind_store.errors import SelectionError, StoreMissing, TfbindError
from tfbind_store.feeding.bins import BinReader
from tfbind_store.heads.base import Head, Pairs, Scaling
from tfbind_store.heads.signal import Signal
from tfbind_store.names import near_miss
from tfbind_store.query.labels import Intervals, Truth, as_labels
from tfbind_store.query.loader import Arrays, Balance
from tfbind_store.spec import PROJECTED
from tfbind_store.store.folder import Store
from tfbind_store.store.residues import FactorProteins

T = TypeVar("T")
RESIDENT_BYTES = 2 * 1024**3
"""Embeddings, proteins and labels up to this size are kept in memory."""
SCALING_BINS = 20_000
COPY_BINS = 65_536


def choose_arrays(
    store: Store, *, windows: str | None = None, proteins: str | None = None, contexts: str | None = None
) -> Arrays:
    """Return the arrays to read: those named, else the only one of each kind that is not derived from another.

    Raises
    ------
    StoreMissing
        If a kind has no array, several without a choice, or none of this name.
    """
    chosen = {}
    for kind, name in (("windows", windows), ("proteins", proteins), ("contexts", contexts)):
        folder = store.array_name_for(kind, "x").partition("/")[0]  # type: ignore[arg-type]
        known = [known for known in store.array_names() if known.startswith(f"{folder}/")]
        wanted = name if name is None or "/" in name else f"{folder}/{name}"
        own = known if len(known) == 1 or wanted else [one for one in known if not _is_projected(store, one)]
        if wanted is None and len(own) == 1:
            wanted = own[0]
        if wanted not in known:
            what = f"no array {name!r}" if name else f"{len(known)} arrays of {kind}: {', '.join(known) or 'none'}"
            close = near_miss(wanted or "", known)
            verb = {"windows": "windows", "proteins": "factors", "contexts": "contexts"}[kind]
            make = f"make it: tfbind embed {store.path} {verb}"
            which = f"say which, such as --{kind} {own[0].partition('/')[2]}, or {make}" if own else make
            fix = f"did you mean {close}?" if close else which
            raise StoreMissing(what, where=str(store.path), fix=fix)
        chosen[kind] = wanted
    return Arrays(**chosen)


def _is_projected(store: Store, name: str) -> bool:
    try:
        return read_layout(store.array_path(name), store.path / "receipts", name=name).spec.embedder == PROJECTED
    except TfbindError:  # whoever reads it will say what is wrong
        return False


def to_torch(batch: Batch[np.ndarray], device: torch.device) -> Batch[Tensor]:
    """Return a numpy batch as tensors on `device`."""
    tensors = [None if field is None else _tensor(field, device) for field in batch]
    return Batch(*cast(list[Tensor], tensors))


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class _Failed(NamedTuple):
    error: BaseException


def prefetch(items: Iterable[T], *, depth: int = 2) -> Iterator[T]:
    """Yield `items` in order while a thread reads up to `depth` of them ahead."""
    ready: queue.Queue[T | _Failed | None] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: T | _Failed | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put(item)
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:
            put(_Failed(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        stop.set()
        thread.join()


class SignalReader(Protocol):
    """Signals of biotypes, read where they are asked for."""

    array_name: str

    def at(self, biotype_ids: Sequence[int], bins: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k c s"]:
        """Return the numbers of bins in each biotype; NaN where there are none."""


class PairSource:
    """Proteins and contexts of a store, ready for a head's `encode`, and signals for one that reads them."""

    def __init__(self, store: Store, arrays: Arrays, device: torch.device | None = None) -> None:
        self.store, self.arrays = store, arrays
        self.signals: SignalReader | None = None
        """For heads that read signals; None gives them none."""
        self.device = device or torch.device("cpu")
        self._proteins = FactorProteins(store, arrays.proteins)
        self._contexts: dict[int, Float32[np.ndarray, " t"]] = {}

    def inputs(self, factor_ids: Int64[np.ndarray, " p"], biotype_ids: Int64[np.ndarray, " p"]) -> Batch[Tensor]:
        """Return a batch without DNA whose pair i is factor i in biotype i."""
        factors, factor_index = np.unique(factor_ids, return_inverse=True)
        biotypes, context_index = np.unique(biotype_ids, return_inverse=True)
        protein, mask, subunit = self._proteins.get(factors)
        context = self._context(biotypes)
        n_pairs, nothing = len(factor_index), np.empty((0, 0), dtype=np.float32)
        batch: Batch[np.ndarray] = Batch(
            dna=nothing,
            protein=protein,
            mask=mask,
            subunit=subunit,
            factor_index=factor_index.astype(np.int64),
            context=context,
            context_index=context_index.astype(np.int64),
            signal=None,
            labels=nothing,
            weights=np.ones(n_pairs, dtype=np.float32),
            rows=np.arange(n_pairs, dtype=np.int64),
        )
        return to_torch(batch, self.device)

    def signal(self, biotype_ids: Int64[np.ndarray, " p"], bins: Int64[np.ndarray, " k"]) -> Signal | None:
        """Return the signal of bins in the biotype of each pair."""
        if self.signals is None:
            return None
        distinct, index = np.unique(biotype_ids, return_inverse=True)
        values = self.signals.at(distinct.tolist(), bins)
        return Signal(_tensor(values, self.device), _tensor(index.astype(np.int64), self.device))

    def _context(self, biotypes: Int64[np.ndarray, " c"]) -> Float32[np.ndarray, "c t"]:
        """Return the contexts of biotypes; each is looked up in the catalog once."""
        new = np.array([biotype for biotype in biotypes.tolist() if biotype not in self._contexts], dtype=np.int64)
        if len(new):
            found = np.asarray(self.store.contexts(self.arrays.contexts, new), dtype=np.float32)
            self._contexts.update(zip(new.tolist(), found, strict=True))
        return np.stack([self._contexts[biotype] for biotype in biotypes.tolist()])

    @torch.inference_mode()
    def encode(
        self,
        head: Head,
        factor_ids: Int64[np.ndarray, " p"],
        biotype_ids: Int64[np.ndarray, " p"],
        *,
        at_once: int = 64,
    ) -> Pairs:
        """Return a head's encoding of many pairs, `at_once` proteins at a time."""
        parts = [
            head.encode(self.inputs(factor_ids[at : at + at_once], biotype_ids[at : at + at_once]))
            for at in range(0, len(factor_ids), at_once)
        ]
        return head.join(parts)


class Experiments(NamedTuple):
    """Experiments as a head sees them: which factor, in which biotype."""

    experiment_id: Int64[np.ndarray, " p"]
    factor_id: Int64[np.ndarray, " p"]
    biotype_id: Int64[np.ndarray, " p"]

    def take(self, places: Int64[np.ndarray, " q"]) -> Experiments:
        """Return some of them."""
        return Experiments(*(column[places] for column in self))


class DenseBatch(NamedTuple):
    """Bins against pairs."""

    dna: Float[Tensor, "k d"]
    pairs: Batch[Tensor]
    """Proteins and contexts; its `dna` is empty."""
    labels: Float[Tensor, "k p"]
    bins: Int64[np.ndarray, " k"]
    """Global bins."""
    experiments: Int64[np.ndarray, " p"]
    """Experiment ids."""
    signal: Signal | None = None
    """Of the bins in each pair's biotype, where the source has signals."""


@dataclass(frozen=True)
class DenseFeed:
    """Draws bins and experiments; batch number i is the same whoever draws it, so that a stopped run can go on."""

    source: PairSource
    truth: Truth
    experiments: Experiments
    bins: Int64[np.ndarray, " n"]
    """Global bins that may be drawn."""
    bins_per_step: int
    pairs_per_step: int
    bound_share: float
    """Share of the bins that some training experiment binds."""
    seed: int
    balance: Balance = "none"
    """Draw experiments so that factors, or biotypes, come equally often."""

    def __post_init__(self) -> None:
        if not len(self.bins) or not len(self.experiments.experiment_id):
            raise SelectionError("no bins or no experiments to train on", where="dense feed")

    def batch(self, number: int, *, part: int = 0, n_parts: int = 1) -> DenseBatch:
        """Return batch `number`, or every `n_parts`-th of its bins from bin `part` on."""
        rng = np.random.default_rng([self.seed, number])
        n_pairs = min(self.pairs_per_step, len(self.experiments.experiment_id))
        chosen = np.sort(rng.choice(len(self.experiments.experiment_id), n_pairs, replace=False, p=self._chances))
        n_bound = int(self.bins_per_step * self.bound_share) if len(self.bound) else 0
        places = rng.integers(len(self.bins), size=self.bins_per_step - n_bound)
        if n_bound:
            places = np.concatenate([self.bound[rng.integers(len(self.bound), size=n_bound)], places])
        places, pairs = places[part::n_parts], self.experiments.take(chosen)
        return DenseBatch(
            self._dna_there(places),
            self.source.inputs(pairs.factor_id, pairs.biotype_id),
            self._labels_there(places, chosen),
            self.bins[places],
            pairs.experiment_id,
            self.source.signal(pairs.biotype_id, self.bins[places]),
        )

    def _dna_there(self, places: Int64[np.ndarray, " k"]) -> Float[Tensor, "k d"]:
        device = self.source.device
        if self._dna_on_device is None:
            if self._resident is None:
                return BinReader(self._array, device)(self.bins[places])
            return _tensor(self.dna(places), device)
        return self._dna_on_device[_tensor(places, device)]

    def _labels_there(self, places: Int64[np.ndarray, " k"], chosen: Int64[np.ndarray, " p"]) -> Float[Tensor, "k p"]:
        device = self.source.device
        if self._codes_on_device is None:
            return _tensor(as_labels(self.codes(places, chosen)), device)
        codes = self._codes_on_device[_tensor(places, device).unsqueeze(1), _tensor(chosen, device)]
        return codes.float().masked_fill(codes < 0, torch.nan)

    def dna(self, places: Int64[np.ndarray, " k"]) -> np.ndarray:
        """Return the embeddings [k, d] of bins given by their place in `bins`."""
        if self._resident is not None:
            return np.asarray(self._resident[places])
        return self._read(self.bins[places]).numpy()

    def codes(self, places: Int64[np.ndarray, " k"], chosen: Int64[np.ndarray, " p"]) -> Int8[np.ndarray, "k p"]:
        """Return the labels of bins in experiments, both by place: 1, 0 or -1."""
        if self._all_codes is not None:
            return np.asarray(self._all_codes[places[:, None], chosen])
        ids = np.tile(self.experiments.experiment_id[chosen], len(places))
        codes = self.truth.codes(ids, np.repeat(self.bins[places], len(chosen)))
        return np.asarray(codes[:, 0].reshape(len(places), -1))

    @cached_property
    def bound(self) -> Int64[np.ndarray, " b"]:
        """Places of the bins that at least one of the experiments binds."""
        bound = [self.truth.positives(int(experiment)) for experiment in self.experiments.experiment_id]
        return np.flatnonzero(np.isin(self.bins, np.unique(np.concatenate(bound))))

    @cached_property
    def prevalence(self) -> float:
        """Share of bound bins among those that batches hold."""
        n_pairs = len(self.experiments.experiment_id)
        total = sum(
            len(np.intersect1d(self.truth.positives(int(e)), self.bins)) for e in self.experiments.experiment_id
        )
        evenly = total / (len(self.bins) * n_pairs)
        among_bound = total / (len(self.bound) * n_pairs) if len(self.bound) else 0.0
        return self.bound_share * among_bound + (1 - self.bound_share) * evenly

    def scaling(self) -> Scaling:
        """Return the channels' mean and standard deviation over a sample of the bins and all proteins."""
        rng = np.random.default_rng(self.seed)
        places = np.sort(rng.choice(len(self.bins), min(SCALING_BINS, len(self.bins)), replace=False))
        dna = torch.from_numpy(self.dna(places).astype(np.float64))
        proteins = _RunningMoments()
        factors = np.unique(self.experiments.factor_id)
        for at in range(0, len(factors), 64):
            part = factors[at : at + 64]
            batch = self.source.inputs(part, np.repeat(self.experiments.biotype_id[:1], len(part)))
            proteins.add(batch.protein[batch.mask].double().cpu())
        mean, std = proteins.result()
        return Scaling(dna.mean(0).float(), dna.std(0, correction=0).float(), mean, std)

    @cached_property
    def _array(self) -> ShardedArray:
        return self.source.store.array(self.source.arrays.windows)

    @cached_property
    def _read(self) -> BinReader:
        return BinReader(self._array, torch.device("cpu"))

    @cached_property
    def _resident(self) -> np.ndarray | None:
        if len(self.bins) * self._array.shape[-1] * 2 > RESIDENT_BYTES:
            return None
        return self._read(self.bins).numpy()

    @cached_property
    def _dna_on_device(self) -> Float[Tensor, "n d"] | None:
        """All embeddings that may be drawn, on the accelerator, where they fit: then no batch copies any."""
        dim, device = self._array.shape[-1], self.source.device
        if len(self.bins) * dim * 2 > room_on(device):
            return None
        there = torch.empty(len(self.bins), dim, dtype=torch.float16, device=device)
        for at in range(0, len(self.bins), COPY_BINS):
            part = BinReader(self._array, device)(self.bins[at : at + COPY_BINS])
            there[at : at + len(part)] = part
        return there

    @cached_property
    def _codes_on_device(self) -> Int8[Tensor, "n p"] | None:
        codes, device = self._all_codes, self.source.device
        if codes is None or codes.nbytes > room_on(device):
            return None
        return _tensor(codes, device)

    @cached_property
    def _chances(self) -> Float64[np.ndarray, " p"] | None:
        if self.balance == "none":
            return None
        groups = self.experiments.factor_id if self.balance == "factor" else self.experiments.biotype_id
        _, which, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        weights = 1 / sizes[which]
        return np.asarray(weights / weights.sum())

    @cached_property
    def _all_codes(self) -> Int8[np.ndarray, "n p"] | None:
        n_pairs = len(self.experiments.experiment_id)
        if len(self.bins) * n_pairs > RESIDENT_BYTES // 4:
            return None
        columns = [
            self.truth.codes(np.full(len(self.bins), experiment), self.bins)[:, 0]
            for experiment in self.experiments.experiment_id
        ]
        return np.stack(columns, axis=1)


def room_on(device: torch.device) -> int:
    """Return how many bytes of embeddings or labels may be kept on an accelerator: a third of what is free there."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) // 3


class _RunningMoments:
    """Mean and standard deviation of rows that come in parts."""

    def __init__(self) -> None:
        self.n, self.total, self.squares = 0, torch.zeros(1), torch.zeros(1)

    def add(self, rows: Float[Tensor, "n e"]) -> None:
        self.n += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    def result(self) -> tuple[Float[Tensor, " e"], Float[Tensor, " e"]]:
        mean = self.total / max(self.n, 1)
        return mean.float(), (self.squares / max(self.n, 1) - mean.square()).clamp(min=0).sqrt().float()


def labels_of(truth: Truth, experiments: Experiments, bins: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k p"]:
    """Return the labels of bins in experiments, NaN where not known."""
    columns = [truth.codes(np.full(len(bins), int(e)), bins)[:, 0] for e in experiments.experiment_id]
    return as_labels(np.stack(columns, axis=1)) if columns else np.empty((len(bins), 0), dtype=np.float32)


def permuted(peaks: Intervals, lengths_bp: Sequence[int], *, seed: int) -> Intervals:
    """Return the peaks moved to random places of their own chromosome: the control that nothing can be learned from.

    Each experiment keeps its number of peaks and their lengths on every chromosome; that is all it keeps.
    """
    rng = np.random.default_rng(seed)
    summit = (rng.random(len(peaks.chrom_id)) * np.asarray(lengths_bp)[np.asarray(peaks.chrom_id)]).astype(np.int64)
    moved = summit - np.asarray(peaks.summit_bp, dtype=np.int64)
    ends = np.asarray(lengths_bp, dtype=np.int64)[np.asarray(peaks.chrom_id)]
    start = np.clip(np.asarray(peaks.start_bp, dtype=np.int64) + moved, 0, ends - 1)
    end = np.clip(np.asarray(peaks.end_bp, dtype=np.int64) + moved, start + 1, ends)
    return peaks._replace(start_bp=start, end_bp=end, summit_bp=summit)
