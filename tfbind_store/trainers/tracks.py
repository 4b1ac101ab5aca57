"""Train on bigWig tracks from files, in one object: one call, one optimizer step, one log.

As `trainers.Trainer`, over a store for each species that it makes in a cache folder or finds there. Tracks of factors
are asked of one head, with protein and context, for all species together; tracks that DNA alone gives have an output
layer for each species on a shared one. Rates are held against the numbers of the bins by the Poisson loss or by
1 - Pearson over a window. Bins without a number have no loss. One read of a window serves all tracks of a step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from enformer_pytorch import Enformer
from torch import nn

from tfbind_store.adapter_model import AdapterModel
from tfbind_store.errors import ConfigError
from tfbind_store.fetch import trainer_folder
from tfbind_store.heads import Geometry, Head, make_head
from tfbind_store.heads.track_losses import LossKind
from tfbind_store.loci import Grid
from tfbind_store.precompute.embedder import SequenceEmbedder, TextEmbedder
from tfbind_store.precompute.enformer import EnformerEmbedder, load_trunk
from tfbind_store.store.folder import Store
from tfbind_store.trainers.cache import (
    SPECIES_PRIORITY,
    Choice,
    biotype_template,
    embed_all,
    embed_strand,
    parts_of,
    trunk_folder,
)
from tfbind_store.trainers.plain_heads import PlainSource, plain_heads
from tfbind_store.trainers.species import (
    FACTOR_TRACKS,
    PLAIN_TRACKS,
    SpeciesFiles,
    TrackFiles,
    made_or_found,
    windows_of,
)
from tfbind_store.training.track_steps import TrackRun, TrackSteps
from tfbind_store.training.track_streams import FactorTracks, PlainStream, Stream
from tfbind_store.training.track_windows import WindowSplit

Ids = Iterable[int | str]
Names = Sequence[str]
File = Path | str


class BigWigTrainer:
    """Trains on tracks, one optimizer step per call.

    Give one species by `fasta_file` and `factor_fasta_folder`, or human and mouse by the arguments that begin so.

    Parameters
    ----------
    trunk
        An Enformer, or the folder of one; it is frozen. Or an `AdapterModel` of tracks: its trunk, its encoders and its
        loss; its `head`, and its `finetune_output_heads` where it has them, are what is trained.
    bigwig_folder_path
        ``{experiment}.bw`` of factors, each asked for with its protein and cell type.
    bigwig_tracks_only_folder_path
        The same of anything, given by DNA alone: a head for each species.
    annot_file_path
        ChIP-Atlas's experimentList, ENCODE's metadata, or a table with a column ``track``.
    factor_fasta_folder, fasta_file, loci_path
        Proteins, genome, and a BED of loci outside of which no window is taken.
    only_ref, human_ref, mouse_ref
        Assembly whose rows of the table are a species'.
    train_chromosome_ids, valid_chromosome_ids
        Numbers or names; may be left out where loci say ``train`` and ``valid``.
    enformer_train_valid_split
        The fourth column of the loci says what trains and what validates.
    batch_size
        Windows per micro-batch and species.
    tracks_per_step
        Tracks against which each window is scored.
    context_length, target_length
        Bases that the trunk reads, and the bins in the middle that are kept; None keeps all.
    downsample_factor
        Bases of a bin: the trunk's, and refused if it is another.
    bigwig_reduction_type
        What a bin's number is of its bases: ``sum`` or ``mean``.
    loss
        ``poisson``, or ``pearson``: 1 - Pearson over the bins of each window.
    held_out_targets, held_out_cell_types
        In no training step, in no complex and under no treatment; where given, they alone validate.
    biotypes_metadata_path, include_biotypes_metadata_columns, biotypes_metadata_delimiter
        As in `trainers.Trainer`, and so are the rest.

    Raises
    ------
    ConfigError
        If a choice is out of range, or files of no species or of both kinds are given.
    SelectionError
        If no track is left to train on.
    """

    def __init__(
        self,
        trunk: Enformer | AdapterModel | File,
        *,
        annot_file_path: File,
        batch_size: int,
        bigwig_folder_path: File | None = None,
        bigwig_tracks_only_folder_path: File | None = None,
        factor_fasta_folder: File | None = None,
        fasta_file: File | None = None,
        loci_path: File | None = None,
        only_ref: str | None = None,
        held_out_targets: Names = (),
        held_out_cell_types: Names = (),
        human_factor_fasta_folder: File | None = None,
        human_fasta_file: File | None = None,
        human_loci_path: File | None = None,
        human_ref: str = "hg38",
        held_out_targets_human: Names = (),
        held_out_cell_types_human: Names = (),
        mouse_factor_fasta_folder: File | None = None,
        mouse_fasta_file: File | None = None,
        mouse_loci_path: File | None = None,
        mouse_ref: str = "mm10",
        held_out_targets_mouse: Names = (),
        held_out_cell_types_mouse: Names = (),
        train_chromosome_ids: Ids = (),
        valid_chromosome_ids: Ids = (),
        enformer_train_valid_split: bool = True,
        tracks_per_step: int = 16,
        context_length: int = 4096,
        target_length: int | None = None,
        downsample_factor: int | None = None,
        bigwig_reduction_type: Literal["sum", "mean"] = "sum",
        loss: LossKind = "poisson",
        lr: float = 3e-4,
        wd: float = 0.1,
        grad_clip_norm: float | None = None,
        grad_accum_every: int = 1,
        validate_every: int = 250,
        biotypes_metadata_path: File | None = None,
        include_biotypes_metadata_in_context: bool | None = None,
        include_biotypes_metadata_columns: Names = ("germ_layer", "cellline_cat"),
        biotypes_metadata_delimiter: str = " | ",
        checkpoint_filename: File = "./checkpoint.safetensors",
        head: str = "adapter",
        head_options: Mapping[str, Any] | None = None,
        proteins: Choice | SequenceEmbedder = "composition",
        contexts: Choice | TextEmbedder = "hashed",
        cache_path: File | None = None,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        model, where = trunk if isinstance(trunk, AdapterModel) else None, "BigWigTrainer"
        if model is not None:
            trunk, proteins, contexts = parts_of(model, proteins, contexts, binary=False, where=where)
            loss = model.loss_kind
        steps = TrackSteps(
            loss=loss, windows=batch_size, pieces=grad_accum_every, tracks=tracks_per_step, lr=lr, weight_decay=wd,
            clip=grad_clip_norm or 0.0, seed=seed,
        )  # fmt: skip
        species = _species(
            only=(fasta_file, factor_fasta_folder, loci_path, only_ref, held_out_targets, held_out_cell_types),
            human=(
                human_fasta_file, human_factor_fasta_folder, human_loci_path, human_ref, held_out_targets_human,
                held_out_cell_types_human,
            ),
            mouse=(
                mouse_fasta_file, mouse_factor_fasta_folder or human_factor_fasta_folder, mouse_loci_path, mouse_ref,
                held_out_targets_mouse, held_out_cell_types_mouse,
            ),
        )  # fmt: skip
        cache = trainer_folder() if cache_path is None else Path(cache_path).expanduser()
        embedder = EnformerEmbedder(load_trunk(trunk_folder(trunk, cache)), device=device)
        grid = _grid(embedder.geometry.bin_bp, context_length, target_length, downsample_factor)
        biotypes, template = biotype_template(
            biotypes_metadata_path, include_biotypes_metadata_columns, biotypes_metadata_delimiter,
            wanted=include_biotypes_metadata_in_context, where=where,
        )  # fmt: skip
        shared = TrackFiles(
            Path(annot_file_path), _path(bigwig_folder_path), _path(bigwig_tracks_only_folder_path),
            bigwig_reduction_type, biotypes, template,
        )  # fmt: skip
        found = [made_or_found(cache, grid, files, shared) for files in species]
        self._stores = [one for one in found if one is not None]
        if not self._stores:
            fix = "give bigwig_folder_path or bigwig_tracks_only_folder_path, with files that the table names"
            raise ConfigError("there are no tracks to train on", where=where, fix=fix)
        ids = [list(given) for given in (train_chromosome_ids, valid_chromosome_ids)]
        splits = [one.split(*ids, has_split=enformer_train_valid_split) for one in self._stores]
        torch.manual_seed(seed)
        self.head: Head | None = None
        self.plain_heads: nn.Module | None = None
        by_factor = self._by_factor(splits, embedder, proteins, contexts)
        if by_factor:
            self.head = _shared_head(by_factor, model, head, head_options)
        streams: list[Stream] = [*by_factor, *self._plain(splits, embedder, model)]
        self._run = TrackRun(streams, steps)
        self.loss, self.validate_every, self.checkpoint = loss, validate_every, Path(checkpoint_filename)

    def _by_factor(
        self, splits: Sequence[WindowSplit], embedder: EnformerEmbedder, proteins: Any, contexts: Any
    ) -> list[FactorTracks]:
        """Embed what tracks of factors read, and return them, species by species."""
        found = []
        for one, split in zip(self._stores, splits, strict=True):
            if one.has_factor_tracks:
                arrays = embed_all(one.store, embedder, proteins, contexts, windows_of(split))
                stream = FactorTracks(
                    one.files.name, one.store, arrays, FACTOR_TRACKS, split, held_out=one.files.held_out,
                    held_out_biotypes=one.files.held_out_biotypes, device=embedder.device,
                )  # fmt: skip
                found.append(stream)
        return found

    def _plain(
        self, splits: Sequence[WindowSplit], embedder: EnformerEmbedder, model: AdapterModel | None
    ) -> list[PlainStream]:
        """Embed what plain tracks read, make their heads, and return them, species by species."""
        sources = []
        for one, split in zip(self._stores, splits, strict=True):
            if one.has_plain_tracks:
                name = embed_strand(one.store, embedder, windows_of(split))
                sources.append(PlainSource(one, split, f"embeddings/{name}"))
        if not sources:
            return []
        self.plain_heads, rates = plain_heads(sources, model)
        self.plain_heads.to(embedder.device)
        return [
            PlainStream(
                f"{of.species.files.name}_head".lstrip("_"), of.species.store, of.windows, PLAIN_TRACKS, of.split,
                rate=rate, module=self.plain_heads, device=embedder.device,
            )
            for of, rate in zip(sources, rates, strict=True)
        ]  # fmt: skip

    @property
    def streams(self) -> list[Stream]:
        """What a step reads: tracks of factors of each species, then tracks that DNA alone gives."""
        return self._run.streams

    @property
    def store(self) -> Store:
        """The store of the only species, or of the first."""
        return self._stores[0].store

    @property
    def steps(self) -> int:
        """Optimizer steps that are done."""
        return self._run.steps

    def __call__(self) -> dict[str, float]:
        """Make one optimizer step.

        Returns
        -------
        ``step`` and ``loss``, of several streams also ``human_loss``, ``mouse_loss``, ``human_head_loss``,
        ``mouse_head_loss``. On validation steps also what `validate` says.
        """
        log = self._run.step()
        if self.validate_every and self.steps % self.validate_every == 0:
            log |= self.validate()
        return log

    def validate(self) -> dict[str, float]:
        """Score all validation windows and tracks.

        Returns
        -------
        ``valid_loss``; ``valid_corr_coef``, the mean Pearson along a window; ``valid_pearson`` and ``valid_spearman``
        along all bins of a track, its mean over tracks; ``valid_pearson_over_tracks``. Of several streams, each of
        these by name too: ``human_valid_corr_coef``.
        """
        return self._run.validate()

    def save(self, path: File | None = None) -> Path:
        """Write all that is needed to go on."""
        place = Path(path) if path else self.checkpoint
        self._run.save(place)
        return place

    def load(self, path: File | None = None) -> None:
        """Go on where `save` stood: on a CPU, to the same bytes.

        Raises
        ------
        CheckpointError
            If the file is of other heads, windows or tracks.
        ConfigError
            If there is no such file.
        """
        place = Path(path) if path else self.checkpoint
        if not place.exists():
            raise ConfigError("no such checkpoint", where=str(place), fix="save() writes one")
        self._run.load(place)


Given = tuple[File | None, File | None, File | None, str | None, Names, Names]
PRIORITY = {"mouse": ("mouse", "human", "unknown")}


def _species(**given: Given) -> list[SpeciesFiles]:
    """Return the species whose files are given: the only one, or human, mouse, or both."""
    named = {name: of for name, of in given.items() if of[0] is not None}
    stray = [name for name, of in given.items() if of[0] is None and (of[2] or of[4] or of[5])]
    if not named or ("only" in named and len(named) > 1) or stray:
        fix = "fasta_file for one species, or human_fasta_file, mouse_fasta_file, or both"
        what = f"{stray[0]}: no genome is given" if stray else "which species?"
        raise ConfigError(what, where="BigWigTrainer", fix=fix)
    return [
        SpeciesFiles(
            name="" if name == "only" else name,
            fasta=Path(str(fasta)),
            proteins=_path(folder),
            species_priority=PRIORITY.get(name, SPECIES_PRIORITY),
            assembly=assembly,
            loci=_path(loci),
            held_out=tuple(factors),
            held_out_biotypes=tuple(biotypes),
        )
        for name, (fasta, folder, loci, assembly, factors, biotypes) in named.items()
    ]


def _path(given: File | None) -> Path | None:
    return None if given is None else Path(given)


def _grid(bin_bp: int, context_length: int, target_length: int | None, downsample_factor: int | None) -> Grid:
    if downsample_factor not in (None, bin_bp):
        what = f"downsample_factor is {downsample_factor}, the trunk's bins are {bin_bp} bp"
        raise ConfigError(what, where="BigWigTrainer", fix="leave it out")
    return Grid(window_bp=context_length, n_bins=target_length or context_length // bin_bp, bin_bp=bin_bp)


def _shared_head(
    streams: Sequence[FactorTracks], model: AdapterModel | None, name: str, options: Mapping[str, Any] | None
) -> Head:
    """Return the one head that all species ask."""
    first = streams[0]
    head: Head
    if model is None:
        geometry = Geometry(*(first.store.array(array).shape[-1] for array in first.arrays))
        head = make_head(name, geometry, dict(options or {}))
        head.fit_scaling(first.scaling(), prevalence=0.5)
    else:
        head = model.head
    for stream in streams:
        stream.of(head)
    return head
