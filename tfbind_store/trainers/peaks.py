"""Train a head from files in one object: one call, one optimizer step, one log.

`Trainer` takes the files that the reference's takes (ReMap peaks, a FASTA folder of factors, a genome), makes a store
of them in a cache folder, or finds the one it made before, embeds what the selection needs and no window twice, and
then makes one step at each call. What is in the store is never computed again: not by the next run or another head.

Differences from the reference, on purpose: negatives are drawn by SQL from the labels themselves, seeded; labels are
per bin; what is held out is held out under every name; validation is complete, un-augmented and the same at each look;
the trunk is frozen (``tfbind finetune`` trains it); an unknown argument is a TypeError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from enformer_pytorch import Enformer

from tfbind_store import config as configs
from tfbind_store.adapter_model import AdapterModel
from tfbind_store.errors import ConfigError
from tfbind_store.feeding.feed import choose_arrays
from tfbind_store.fetch import trainer_folder
from tfbind_store.heads import Head, LossConfig
from tfbind_store.learning.processes import Processes
from tfbind_store.precompute.embedder import SequenceEmbedder, TextEmbedder
from tfbind_store.precompute.enformer import EnformerEmbedder, load_trunk
from tfbind_store.precompute.weights import pick_device
from tfbind_store.trainers.cache import (
    Choice,
    biotype_template,
    embed_all,
    embed_strand,
    hashed,
    parts_of,
    trunk_folder,
)
from tfbind_store.trainers.peak_split import PeakSplit
from tfbind_store.trainers.peak_store import ListedNegatives, PeakFiles, all_bins, made_or_found
from tfbind_store.training.batches import Numbered
from tfbind_store.training.material import gather_material
from tfbind_store.training.run_folder import RunFolder
from tfbind_store.training.train import TrainConfig, TrainingRun

WITHOUT_END = 10**9


class Trainer:
    """Trains a head on peaks, one optimizer step per call.

    Parameters
    ----------
    trunk
        An Enformer, or the folder of one; it is frozen. Or an `AdapterModel` with ``binary_target``: its trunk and its
        encoders, and its `head` is what is trained, in place of `head`, `head_options`, `proteins` and `contexts`.
    remap_bed_file
        Peaks as ReMap writes them: column 4 is ``EXPERIMENT.TARGET.BIOTYPE``.
    factor_fasta_folder
        ``{GENE}.{UNIPROT}.fasta``, or one multi-FASTA.
    fasta_file
        The genome.
    train_chromosome_ids, valid_chromosome_ids
        Numbers or names; those that the genome does not have are left out, counted.
    context_length
        Bases that the trunk reads at once; all its bins are kept.
    batch_size
        Rows per micro-batch: positives and negatives together.
    lr, wd, grad_clip_norm, grad_accum_every
        Of AdamW at a constant rate; a step's batch is `grad_accum_every` micro-batches.
    validate_every
        Calls between looks at all validation cells; 0 never looks.
    held_out_targets, held_out_cell_types
        In no training row, under any name, in any complex, with any treatment; they validate.
    exclude_targets, exclude_cell_types
        In no row.
    remap_sample_frac, train_sample_frac
        Shares of the peaks to take, chosen by the seed; both count. Validation is complete whatever they are.
    negative_bed_file
        Loci that are not bound, as many as positives; what peaks contradict is left out. Without it, bins are drawn
        that no factor binds.
    include_scoped_negs
        Also take as negatives what other factors bind in the same cell type.
    scoped_negs_remap_bed_path, scoped_negs_path
        Take these from the rows of a BED and a folder of ``EXPERIMENT.bed.bool.npy`` over them, in place of the peaks.
    biotypes_metadata_path, include_biotypes_metadata_columns, biotypes_metadata_delimiter
        Table of cell types, and its columns that the context's text names beside the cell type.
    include_biotypes_metadata_in_context
        Needs the table; False does without it.
    experiments_json_path
        ReMap's ``experiments.json``: numbers of peaks.
    balance_sampling_by_target
        Factors come equally often.
    rc_aug
        Embed both strands, and read each training row from either; labels stay with their bins. Validation reads the
        forward one.
    checkpoint_filename
        Where `save` writes and `load` reads.
    head, head_options
        Name and options of the head.
    proteins, contexts
        Embedder of proteins and of texts: its name, or ``{"name": "esm", "checkpoint": …}``.
    cache_path
        Folder of the stores; default ``trainers`` in $TFBIND_CACHE, where `tfbind cache` shows and clears them.

    Raises
    ------
    ConfigError
        If a choice is out of range or no chromosome is left.
    """

    def __init__(
        self,
        trunk: Enformer | AdapterModel | Path | str,
        *,
        remap_bed_file: Path | str,
        factor_fasta_folder: Path | str,
        fasta_file: Path | str,
        train_chromosome_ids: Iterable[int | str],
        valid_chromosome_ids: Iterable[int | str],
        batch_size: int,
        context_length: int = 4096,
        lr: float = 3e-4,
        wd: float = 0.1,
        grad_clip_norm: float | None = None,
        grad_accum_every: int = 1,
        validate_every: int = 250,
        held_out_targets: Sequence[str] = (),
        held_out_cell_types: Sequence[str] = (),
        exclude_targets: Sequence[str] = (),
        exclude_cell_types: Sequence[str] = (),
        remap_sample_frac: float = 1.0,
        train_sample_frac: float = 1.0,
        negative_bed_file: Path | str | None = None,
        include_scoped_negs: bool = False,
        scoped_negs_remap_bed_path: Path | str | None = None,
        scoped_negs_path: Path | str | None = None,
        biotypes_metadata_path: Path | str | None = None,
        include_biotypes_metadata_in_context: bool | None = None,
        include_biotypes_metadata_columns: Sequence[str] = ("germ_layer", "cellline_cat"),
        biotypes_metadata_delimiter: str = " | ",
        experiments_json_path: Path | str | None = None,
        balance_sampling_by_target: bool = True,
        rc_aug: bool = False,
        checkpoint_filename: Path | str = "./checkpoint.safetensors",
        head: str = "adapter",
        head_options: Mapping[str, Any] | None = None,
        proteins: Choice | SequenceEmbedder = "composition",
        contexts: Choice | TextEmbedder = "hashed",
        cache_path: Path | str | None = None,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        cache, model = trainer_folder() if cache_path is None else Path(cache_path).expanduser(), None
        if isinstance(trunk, AdapterModel):
            model, (trunk, proteins, contexts) = (
                trunk,
                parts_of(trunk, proteins, contexts, binary=True, where="Trainer"),
            )
            head, head_options = model.head.name, model.head.settings()["options"]
        loaded = load_trunk(trunk_folder(trunk, cache))
        embedder = EnformerEmbedder(loaded, device=device)
        files = PeakFiles.given(
            fasta_file, remap_bed_file, factor_fasta_folder, experiments_json_path,
            biotype_template(
                biotypes_metadata_path, include_biotypes_metadata_columns, biotypes_metadata_delimiter,
                wanted=include_biotypes_metadata_in_context, where="Trainer",
            ),
            ListedNegatives.given(
                negative_bed_file, include_scoped_negs, scoped_negs_remap_bed_path, scoped_negs_path
            ),
        )  # fmt: skip
        self.store = made_or_found(cache, all_bins(embedder.geometry.bin_bp, context_length), files)
        split = PeakSplit.of(
            self.store, train_chromosome_ids, valid_chromosome_ids,
            held_out={"factor": held_out_targets, "biotype": held_out_cell_types},
            excluded={"factor": exclude_targets, "biotype": exclude_cell_types},
        )  # fmt: skip
        self.selection = split.selected(files.negatives.rules, remap_sample_frac * train_sample_frac, seed)
        windows = split.windows(self.selection)
        names = embed_all(self.store, embedder, proteins, contexts, windows.all)
        if rc_aug:
            other = EnformerEmbedder(loaded, strand="reverse", device=device)
            embed_strand(self.store, other, windows.train)
        self.config = TrainConfig(
            head=head,
            options=dict(head_options or {}),
            pairing="rows",
            loss=LossConfig(kind="mse" if model is not None and model.target_mse_loss else "bce"),
            steps=WITHOUT_END,
            batch_rows=batch_size * grad_accum_every,
            accumulate=grad_accum_every,
            lr=lr,
            weight_decay=wd,
            warmup=0.0,
            schedule="constant",
            clip=grad_clip_norm or 0.0,
            balance="factor" if balance_sampling_by_target else "none",
            both_strands=rc_aug,
            validate_every=max(1, validate_every),
            device=device,
            seed=seed,
            windows=names.windows,
            proteins=names.proteins,
            contexts=names.contexts,
        )
        self.validate_every = validate_every
        self.checkpoint = Path(checkpoint_filename)
        self._run = self._begin(None if model is None else model.head)
        self._batches: Iterator[Numbered] | None = None

    def _begin(self, head: Head | None) -> TrainingRun:
        config = self.config
        arrays = choose_arrays(self.store, windows=config.windows, proteins=config.proteins, contexts=config.contexts)
        device = pick_device(config.device)
        material = gather_material(
            self.store, self.selection, arrays, device=device, max_valid_bins=config.max_valid_bins
        )
        digest = hashed(configs.to_toml(config) + self.selection.info["rows_sha256"])
        path = self.store.run_dir(f"trainer-{digest}")
        path.mkdir(parents=True, exist_ok=True)
        return TrainingRun(material, config, RunFolder.of(path, self.selection, config), Processes(), head)

    @property
    def steps(self) -> int:
        """Optimizer steps that are done."""
        return self._run.state.step

    @property
    def head_file(self) -> Path:
        """The best head by validation so far, once there was a look."""
        return self._run.folder.head

    def __call__(self) -> dict[str, float]:
        """Make one optimizer step.

        Returns
        -------
        ``step`` and ``loss``; on validation steps also ``valid_loss``, ``valid_auroc`` and ``valid_auprc``.
        """
        run = self._run
        if self._batches is None:
            self._batches = run.source.batches(run.state.step, run.state.cursor)
        run.head.train()
        run.one_step(next(self._batches), 0.0)
        log = {"step": float(run.state.step), "loss": run.state.losses[-1]}
        if self.validate_every and run.state.step % self.validate_every == 0:
            run.look()
            log |= {key: value for key, value in run.log.lines[-1].items() if key.startswith("valid_")}
        return log

    def save(self, path: Path | str | None = None) -> Path:
        """Write all that is needed to go on: weights, optimizer by parameter name, and the place in the data."""
        place = Path(path) if path else self.checkpoint
        self._run.save_state(place)
        return place

    def load(self, path: Path | str | None = None) -> None:
        """Go on where `save` stood, in this process or another: on a CPU, to the same bytes.

        Raises
        ------
        CheckpointError
            If the file is of another head or of other rows.
        ConfigError
            If there is no such file.
        """
        place = Path(path) if path else self.checkpoint
        if not self._run.resume(place):
            raise ConfigError("no such checkpoint", where=str(place), fix="save() writes one")
        self._batches = None
