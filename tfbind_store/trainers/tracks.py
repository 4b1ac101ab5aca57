"""Train a head on bigWig tracks from files, in one object: one call, one optimizer step, one log.

As `trainers.Trainer`, over a store that it makes in a cache folder or finds there. Each track is of a factor in a cell
type; the head's answer for a bin becomes a rate by softplus, and is held against the track's number in that bin by the
Poisson loss or by 1 - Pearson over the bins of a window. Bins without a number have no loss. One read of a window
serves all tracks of a step.
"""

# w windows · n bins · t tracks · d trunk dim

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from enformer_pytorch import Enformer
from jaxtyping import Float, Int64
from torch import Tensor

from tfbind_store.adapter_model import AdapterModel
from tfbind_store.errors import ConfigError, SelectionError, TrainingError
from tfbind_store.feeding.feed import Experiments, PairSource
from tfbind_store.fetch import trainer_folder
from tfbind_store.heads import Geometry, Scaling, make_head
from tfbind_store.heads.track_losses import LossKind, n_counted, pearson, summed_loss
from tfbind_store.ingest import import_proteins, import_tracks
from tfbind_store.learning.optimiser import adamw, clip, trainable
from tfbind_store.learning.passes import Place, endless
from tfbind_store.learning.state import optimizer_tensors, put_back, read_state, restore_optimizer, write_state
from tfbind_store.loci import Grid
from tfbind_store.precompute.embedder import SequenceEmbedder, TextEmbedder
from tfbind_store.precompute.enformer import EnformerEmbedder, load_trunk
from tfbind_store.store.folder import Store
from tfbind_store.trainers.peaks import (
    SPECIES_PRIORITY,
    Choice,
    embed_all,
    hashed_inputs,
    known_chroms,
    parts_of,
    trunk_folder,
)

TRACKS = "tracks/tracks"


class Tracks(NamedTuple):
    """Tracks by row of the array, and what each is of."""

    rows: Int64[np.ndarray, " t"]
    pairs: Experiments

    def take(self, places: np.ndarray) -> Tracks:
        """Return some of them."""
        return Tracks(self.rows[places], self.pairs.take(places))


class BigWigTrainer:
    """Trains a head on tracks, one optimizer step per call.

    Parameters
    ----------
    trunk
        An Enformer, or the folder of one; it is frozen. Or an `AdapterModel` of tracks: its trunk, its encoders and its
        loss, and its `head` is what is trained.
    bigwig_folder_path, annot_file_path
        ``{experiment}.bw``, and ChIP-Atlas's experimentList, ENCODE's metadata, or a table with a column ``track``.
    factor_fasta_folder, fasta_file
        Proteins and genome.
    train_chromosome_ids, valid_chromosome_ids
        Numbers or names.
    batch_size
        Windows per micro-batch.
    tracks_per_step
        Tracks against which each window is scored.
    context_length, target_length
        Bases that the trunk reads, and the bins in the middle that are kept; None keeps all.
    only_ref
        Assembly whose rows of the table are taken.
    bigwig_reduction_type
        What a bin's number is of its bases: ``sum`` or ``mean``.
    loss
        ``poisson``, or ``pearson``: 1 - Pearson over the bins of each window.
    held_out_targets, held_out_cell_types
        In no training step, in no complex and under no treatment; where given, they alone validate.
    lr, wd, grad_clip_norm, grad_accum_every, validate_every, checkpoint_filename
        As in `trainers.Trainer`, and so are the rest.

    Raises
    ------
    ConfigError
        If a choice is out of range.
    SelectionError
        If no track is left to train on.
    """

    def __init__(
        self,
        trunk: Enformer | AdapterModel | Path | str,
        *,
        bigwig_folder_path: Path | str,
        annot_file_path: Path | str,
        factor_fasta_folder: Path | str,
        fasta_file: Path | str,
        train_chromosome_ids: Iterable[int | str],
        valid_chromosome_ids: Iterable[int | str],
        batch_size: int,
        tracks_per_step: int = 16,
        context_length: int = 4096,
        target_length: int | None = None,
        only_ref: str | None = None,
        bigwig_reduction_type: Literal["sum", "mean"] = "sum",
        loss: LossKind = "poisson",
        held_out_targets: Sequence[str] = (),
        held_out_cell_types: Sequence[str] = (),
        lr: float = 3e-4,
        wd: float = 0.1,
        grad_clip_norm: float | None = None,
        grad_accum_every: int = 1,
        validate_every: int = 250,
        checkpoint_filename: Path | str = "./checkpoint.safetensors",
        head: str = "adapter",
        head_options: Mapping[str, Any] | None = None,
        proteins: Choice | SequenceEmbedder = "composition",
        contexts: Choice | TextEmbedder = "hashed",
        cache_path: Path | str | None = None,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        if min(batch_size, tracks_per_step, grad_accum_every) < 1:
            raise ConfigError("batch_size, tracks_per_step and grad_accum_every are 1 or more", where="BigWigTrainer")
        cache, model = trainer_folder() if cache_path is None else Path(cache_path).expanduser(), None
        if isinstance(trunk, AdapterModel):
            model, where = trunk, "BigWigTrainer"
            trunk, proteins, contexts = parts_of(model, proteins, contexts, binary=False, where=where)
            loss = model.loss_kind
        embedder = EnformerEmbedder(load_trunk(trunk_folder(trunk, cache)), device=device)
        bin_bp = embedder.geometry.bin_bp
        grid = Grid(window_bp=context_length, n_bins=target_length or context_length // bin_bp, bin_bp=bin_bp)
        paths = [Path(path) for path in (fasta_file, bigwig_folder_path, annot_file_path, factor_fasta_folder)]
        said = f"{grid} {only_ref} {bigwig_reduction_type}"
        path = cache / f"{hashed_inputs(said, paths)}.store"
        self.store = Store.open(path) if path.exists() else Store.create(path, fasta=fasta_file, grid=grid)
        import_proteins(self.store, factor_fasta_folder, species_priority=SPECIES_PRIORITY)
        import_tracks(
            self.store, bigwig_folder_path, annotation=annot_file_path, assembly=only_ref,
            statistic=bigwig_reduction_type, gaps="zero",
        )  # fmt: skip
        chroms = [known_chroms(self.store, ids) for ids in (train_chromosome_ids, valid_chromosome_ids)]
        if set(chroms[0]) & set(chroms[1]):
            raise ConfigError("a chromosome both trains and validates", where="BigWigTrainer")
        self._windows = [_windows(self.store, names) for names in chroms]
        asked = np.concatenate(self._windows)
        names = embed_all(self.store, embedder, proteins, contexts, np.unique(asked))
        self.tracks, self.valid_tracks = _split(self.store, held_out_targets, held_out_cell_types)
        self.batch_size, self.tracks_per_step, self.pieces = batch_size, tracks_per_step, grad_accum_every
        self.loss, self.clip, self.seed = loss, grad_clip_norm or 0.0, seed
        self.validate_every, self.checkpoint = validate_every, Path(checkpoint_filename)
        self._source = PairSource(self.store, names, embedder.device)
        self._labels = self.store.array(TRACKS)
        torch.manual_seed(seed)
        geometry = Geometry(*(self.store.array(name).shape[-1] for name in names))
        if model is None:
            self.head = make_head(head, geometry, dict(head_options or {}))
            self.head.fit_scaling(self._scaling(), prevalence=0.5)
        else:
            self.head = model.head
        self._begin(lr, wd)

    def _begin(self, lr: float, wd: float) -> None:
        self.head.to(self._source.device)
        self._named = trainable(self.head)
        self._optimizer = adamw(self.head, self._named, lr=lr, weight_decay=wd)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self.steps, self._place = 0, Place()
        self._batches: Iterator[tuple[Place, list[int]]] | None = None

    def __call__(self) -> dict[str, float]:
        """Make one optimizer step.

        Returns
        -------
        ``step`` and ``loss``; on validation steps also ``valid_loss`` and ``valid_corr_coef``, over every validation
        window.
        """
        if self._batches is None:
            self._batches = endless(self._pass, self.batch_size * self.pieces, self._place)
        after, windows = next(self._batches)
        rng = np.random.default_rng([self.seed, 1, self.steps])
        n_tracks = len(self.tracks.rows)
        chosen = np.sort(rng.choice(n_tracks, min(self.tracks_per_step, n_tracks), replace=False))
        torch.manual_seed((self.seed << 32) + self.steps)
        self.head.train()
        self._optimizer.zero_grad(set_to_none=True)
        tracks, total = self.tracks.take(chosen), 0.0
        parts = [np.array(windows[at : at + self.batch_size]) for at in range(0, len(windows), self.batch_size)]
        # of the whole step, so that micro-batches with more missing bins do not count for more
        n_known = sum(n_counted(self.loss, self._labels_of(part, tracks)) for part in parts)
        for part in parts:
            loss = summed_loss(self.loss, *self._rates(part, tracks)) / max(1, n_known)
            loss.backward()
            total += float(loss.item())
        norm = clip((parameter for _, parameter in self._named), self.clip)
        if not np.isfinite(total + norm):
            where = f"windows {', '.join(map(str, windows[:8]))}"
            raise TrainingError(f"loss is {total}, gradient {norm}, at step {self.steps}", where=where, fix="lower lr")
        self._optimizer.step()
        self.steps, self._place = self.steps + 1, after
        log = {"step": float(self.steps), "loss": total}
        if self.validate_every and self.steps % self.validate_every == 0:
            log |= self.validate()
        return log

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return loss and mean Pearson over all validation windows and tracks."""
        self.head.eval()
        loss, n_known, correlations = 0.0, 0, []
        for window in self._windows[1]:
            rates, labels = self._rates(np.array([window]), self.valid_tracks)
            loss += float(summed_loss(self.loss, rates, labels))
            n_known += n_counted(self.loss, labels)
            correlations.append(pearson(rates, labels).flatten())
        found = torch.cat(correlations)
        return {"valid_loss": loss / max(1, n_known), "valid_corr_coef": float(found[~found.isnan()].mean())}

    def save(self, path: Path | str | None = None) -> Path:
        """Write all that is needed to go on."""
        place = Path(path) if path else self.checkpoint
        counters = {"step": self.steps, "place": list(self._place), "head": self.head.settings()}
        groups = {"weights": self.head.state_dict(), "optimizer": optimizer_tensors(self._optimizer, self._named)}
        write_state(place, counters, groups)
        return place

    def load(self, path: Path | str | None = None) -> None:
        """Go on where `save` stood: on a CPU, to the same bytes."""
        place = Path(path) if path else self.checkpoint
        if not place.exists():
            raise ConfigError("no such checkpoint", where=str(place), fix="save() writes one")
        counters, groups = read_state(place)
        put_back(place, self.head, groups["weights"])
        restore_optimizer(place, self._optimizer, self._named, groups.get("optimizer", {}))
        self.steps, self._place, self._batches = counters["step"], Place(*counters["place"]), None

    def _pass(self, number: int) -> list[int]:
        order = np.random.default_rng([self.seed, 0, number]).permutation(self._windows[0])
        return [int(window) for window in order]

    def _rates(self, windows: np.ndarray, tracks: Tracks) -> tuple[Float[Tensor, "w n t"], Float[Tensor, "w n t"]]:
        """Return what the head says and what the tracks say."""
        device, n_bins = self._source.device, self.store.grid.n_bins
        dna = self.store.array(self._source.arrays.windows).gather_bins(windows * n_bins, n_bins)
        pairs = self.head.encode(self._source.inputs(tracks.pairs.factor_id, tracks.pairs.biotype_id))
        bins = torch.from_numpy(np.ascontiguousarray(dna)).to(device).flatten(0, 1)
        logits = self.head.score_pairs(bins, pairs, max_cells=len(bins) * len(tracks.rows))
        labels = self._labels_of(windows, tracks)
        return F.softplus(logits.float()).view(labels.shape), labels

    def _labels_of(self, windows: np.ndarray, tracks: Tracks) -> Float[Tensor, "w n t"]:
        labels = np.stack([self._labels.row(int(row))[windows] for row in tracks.rows], axis=-1)
        return torch.from_numpy(labels).to(self._source.device)

    def _scaling(self) -> Scaling:
        n_bins = self.store.grid.n_bins
        windows = self._windows[0][:: max(1, len(self._windows[0]) * n_bins // 20_000)]
        array = self.store.array(self._source.arrays.windows)
        dna = torch.from_numpy(array.gather_bins(windows * n_bins, n_bins).reshape(-1, array.shape[-1]).astype("f8"))
        batch = self._source.inputs(self.tracks.pairs.factor_id[:64], self.tracks.pairs.biotype_id[:64])
        residues = batch.protein[batch.mask].double().cpu()
        moments = [(x.mean(0).float(), x.std(0, correction=0).float()) for x in (dna, residues)]
        return Scaling(*moments[0], *moments[1])


def _windows(store: Store, chroms: Sequence[str]) -> Int64[np.ndarray, " w"]:
    first = store.tiling.first_window
    places = [store.tiling.chrom_index[chrom] for chrom in chroms]
    return np.concatenate([np.arange(first[place], first[place + 1], dtype=np.int64) for place in places])


def _split(store: Store, targets: Sequence[str], cell_types: Sequence[str]) -> tuple[Tracks, Tracks]:
    """Return the tracks that train, and those that validate: the held-out ones, or all where nothing is held out."""
    with store.reader() as catalog:
        rows = catalog.rows(
            "SELECT t.row_index, e.experiment_id, e.factor_id, e.biotype_id, f.genes, b.biotype, b.base_biotype "
            "FROM data.tracks t JOIN data.experiments e USING (experiment_id) JOIN data.factors f USING (factor_id) "
            "JOIN data.biotypes b ON b.biotype_id = e.biotype_id WHERE t.array_name = ? AND f.has_protein "
            "ORDER BY t.row_index",
            [TRACKS],
        )
    unseen = {gene.upper() for name in targets for gene in store.proteins.genes(name)}
    is_out = np.array(
        [
            bool({str(gene).upper() for gene in genes} & unseen or {biotype, base} & set(cell_types))
            for *_, genes, biotype, base in rows
        ],
        dtype=bool,
    )
    numbers = np.array([row[:4] for row in rows], dtype=np.int64).reshape(-1, 4)
    every = Tracks(numbers[:, 0], Experiments(numbers[:, 1], numbers[:, 2], numbers[:, 3]))
    if not len(rows) or is_out.all():
        what = f"{len(rows)} tracks are of a factor with a protein, {int(is_out.sum())} of them held out"
        raise SelectionError(what, where="BigWigTrainer", fix="hold out fewer, or give proteins of the tracks' factors")
    valid = every.take(np.flatnonzero(is_out)) if is_out.any() else every
    return every.take(np.flatnonzero(~is_out)), valid
