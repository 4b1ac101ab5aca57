"""The Enformer trunk as an embedder: the same numbers as enformer-pytorch's own forward, with a fraction of the work.

Windows that overlap share one pass of the convolutions (``stretch``), and the layers run as ``fast_forward`` has them,
on CPUs and GPUs alike. N is all zeros, positions outside the chromosome are 0.25 in each channel, the centre bins are
kept. Weights come from a hub id, a folder, or architecture and seed. Reading and writing trunk folders is in
``trunk_files``.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from enformer_pytorch import Enformer
from jaxtyping import Float, UInt8

from tfbind_store.errors import ConfigError, SpecError
from tfbind_store.loci import Grid, Locus, Tiling
from tfbind_store.precompute.embedder import Codes, MemoryNeed, TrunkGeometry, WindowEmbedding, read_options
from tfbind_store.precompute.fast_forward import FastTrunk
from tfbind_store.precompute.hand_over import to_host
from tfbind_store.precompute.random_trunk import random_trunk
from tfbind_store.precompute.stretch import (
    CPU_CHUNK_TOKENS,
    GPU_CHUNK_TOKENS,
    LEAST_CHUNK_TOKENS,
    CodesReader,
    Run,
    embed_run,
    threads_of,
)
from tfbind_store.precompute.trunk_files import (
    CONFIG_FILE,
    DOUBLED,
    HEADS,
    WEIGHT_FILES,
    Trunk,
    TrunkCard,
    architecture_of,
    load_trunk,
    save_trunk,
)
from tfbind_store.precompute.versions import REMEMBERED_CHUNK_TOKENS, RememberingTrunk
from tfbind_store.precompute.weights import hub_folder, pick_device, weights_digest
from tfbind_store.processor import multiplies_bfloat16
from tfbind_store.spec import EmbeddingSpec

__all__ = [
    "EnformerEmbedder",
    "EnformerOptions",
    "Trunk",
    "TrunkCard",
    "crop_bins",
    "from_options",
    "load_trunk",
    "one_hot",
    "random_trunk",
    "reverse_complement",
    "save_trunk",
    "trunk_features",
]

_log = logging.getLogger(__name__)
OFFICIAL = "EleutherAI/enformer-official-rough"
GAMMA_BINS = 1536
"""enformer-pytorch's stored gamma features exist for this many bins only."""
Tap = Literal["trunk", "transformer"]
Strand = Literal["forward", "reverse", "mean"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
CODE_ROWS = np.vstack([np.eye(4), np.zeros((1, 4)), np.full((1, 4), 0.25)]).astype(np.float32)
"""One row per code: A, C, G, T, N, outside the chromosome; as ``seq_indices_to_one_hot`` has them."""
COMPLEMENT = np.array([3, 2, 1, 0, 4, 5], dtype=np.uint8)
TOKENS_PER_BATCH = {"cpu": 1536, "cuda": 6144}
"""Tokens that the transformer sees at once, where no batch size is given; a CPU gains nothing from more."""
MAX_MEAN_WINDOWS = 16
"""Windows of which both strands wait in memory for each other."""
DTYPES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class EnformerOptions:
    """Where the weights come from and what is kept: either `checkpoint`, or `dim` and the rest of an architecture."""

    checkpoint: str | None = None
    """Hub id or folder."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    allow_download: bool = False
    """Ask the hub for what is not on this machine."""
    use_tf_gamma: bool | None = None
    """TensorFlow's gamma features; None takes the checkpoint's word, and True for the official hub id."""
    tap: Tap = "trunk"
    """``trunk`` (2 x dim, after the last pointwise layer) or ``transformer`` (dim)."""
    strand: Strand = "forward"
    """``reverse`` and ``mean`` are stored in genome order."""
    dim: int | None = None
    """Width of a random trunk; with `heads`, dim / heads must be a multiple of 6."""
    depth: int = 4
    heads: int = 4
    attn_dim_key: int = 32
    num_downsamples: int = 7
    dim_divisible_by: int = 16
    seed: int = 0
    """Of a random trunk's weights."""
    precision: Precision = "float32"
    """Of the products: ``bfloat16`` on CPUs that have it and GPUs, ``tf32`` and ``float16`` on GPUs."""
    batch_size: int | None = None
    """Windows per pass of the transformer; None chooses by size. Changes speed only."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, …"""


def from_options(options: Mapping[str, Any]) -> EnformerEmbedder:
    """Return the Enformer embedder for the registry.

    Raises
    ------
    ConfigError
        If neither or both of `checkpoint` and `dim` are given.
    WeightsError
        If the checkpoint is not on this machine.
    """
    choice = read_options(EnformerOptions, options, name="enformer")
    if (choice.checkpoint is None) == (choice.dim is None):
        raise ConfigError(
            "enformer needs either a checkpoint or an architecture",
            where="options of embedder enformer",
            fix=f"checkpoint={OFFICIAL}, checkpoint=FOLDER, or dim=192 depth=4 heads=4 seed=0 (a random trunk)",
        )
    if choice.checkpoint is not None:
        gamma = True if choice.use_tf_gamma is None and choice.checkpoint == OFFICIAL else choice.use_tf_gamma
        folder = hub_folder(
            choice.checkpoint,
            files=(CONFIG_FILE, *WEIGHT_FILES),
            allow_download=choice.allow_download,
            revision=choice.revision,
        )
        trunk = load_trunk(folder, use_tf_gamma=gamma)
    else:
        names = ("dim", "depth", "heads", "attn_dim_key", "num_downsamples", "dim_divisible_by")
        architecture = {name: getattr(choice, name) for name in names}
        trunk = random_trunk({**architecture, "use_tf_gamma": bool(choice.use_tf_gamma)}, seed=choice.seed)
    return EnformerEmbedder(
        trunk,
        tap=choice.tap,
        strand=choice.strand,
        precision=choice.precision,
        batch_size=choice.batch_size,
        device=choice.device,
    )


class EnformerEmbedder:
    """A frozen Enformer.

    Parameters
    ----------
    trunk
        Model and card, as `load_trunk` or `random_trunk` give them.
    tap, strand, precision, batch_size, device
        As in `EnformerOptions`.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        tap: Tap = "trunk",
        strand: Strand = "forward",
        precision: Precision = "float32",
        batch_size: int | None = None,
        device: str = "auto",
    ) -> None:
        self.device = pick_device(device)
        _require_precision(precision, self.device)
        self.model = trunk.model.to(self.device).eval()
        self.card = trunk.card
        self.tap: Tap = tap
        self.strand: Strand = strand
        self.precision: Precision = precision
        self.batch_size = batch_size
        self.chunk_tokens = CPU_CHUNK_TOKENS if self.device.type == "cpu" else GPU_CHUNK_TOKENS
        self.n_threads: int | None = None  # of a CPU; fewer where memory is short
        self._digest = weights_digest(self.model.state_dict(), skip=(DOUBLED, HEADS))

    @property
    def geometry(self) -> TrunkGeometry:
        """Bins of 2^num_downsamples bp; any whole number of them, or 1536 with TensorFlow's gamma features."""
        config = self.model.config
        bin_bp = 2**config.num_downsamples
        return TrunkGeometry(
            bin_bp=bin_bp,
            dim=2 * config.dim if self.tap == "trunk" else config.dim,
            taps=("trunk", "transformer"),
            window_bp=GAMMA_BINS * bin_bp if config.use_tf_gamma else None,
        )

    @property
    def _where(self) -> str:
        if self.model.config.use_tf_gamma:
            return f"enformer with use_tf_gamma, which works at {GAMMA_BINS:,} positions only,"
        return "enformer"

    def exact(self) -> EnformerEmbedder:
        """Return the same trunk in float32, to measure the error of a faster precision against."""
        twin = object.__new__(type(self))
        twin.__dict__.update({**self.__dict__, "precision": "float32"})
        twin.__dict__.pop("fast", None)  # its weights are laid out anew
        return twin

    def remembering(self) -> EnformerEmbedder:
        """Return the same trunk, convolutions kept for bases that come again (`versions`)."""
        twin = object.__new__(type(self))
        twin.__dict__.update({**self.__dict__, "chunk_tokens": REMEMBERED_CHUNK_TOKENS})
        twin.__dict__["fast"] = RememberingTrunk(self.fast)
        return twin

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        """Return the spec; the weights are named by their digest."""
        self.geometry.require_fits(grid, where=self._where)
        architecture = architecture_of(self.model)
        identity = {
            "class": "enformer_pytorch.Enformer",
            "architecture": {
                name: value
                for name, value in architecture.items()
                if name != "output_heads" and not name.endswith("dropout") and name != "dropout_rate"
            },
            "weights_sha256": self._digest,
            "layer": self.tap,
            "strand": self.strand,
            "crop": "centre",
            "n_policy": "zeros",
            "pad_policy": "quarter",
            "matmul": self.precision,
            "trained_on": self.card.trained_on_json,
        }
        return EmbeddingSpec(
            kind="windows",
            embedder="enformer",
            dim=self.geometry.dim,
            identity=identity,
            grid={"window_bp": grid.window_bp, "n_bins": grid.n_bins, "bin_bp": grid.bin_bp},
            genome=genome_digest,
        )

    @cached_property
    def fast(self) -> FastTrunk:
        """The trunk's weights, laid out for the fast forward."""
        return FastTrunk(self.model, dtype=DTYPES[self.precision], tf32=self.precision == "tf32")

    def memory_need(self, grid: Grid) -> MemoryNeed:
        """Return about what weights and windows on their way take."""
        own = itertools.chain(self.model.parameters(), self.model.buffers())
        weights_bytes = sum(tensor.nbytes for tensor in own)
        weights_bytes += self.fast.laid_out_bytes(window_tokens=grid.window_bp // grid.bin_bp)
        return MemoryNeed(str(self.device), weights_bytes, self._batch(grid), self._working_bytes(grid))

    def _working_bytes(self, grid: Grid) -> int:
        return self.fast.working_bytes(
            chunk_tokens=self.chunk_tokens,
            window_tokens=grid.window_bp // grid.bin_bp,
            batch_windows=self._batch(grid),
            n_threads=self.n_threads or threads_of(self.fast),
        )

    def limit_memory(self, max_bytes: int, grid: Grid) -> None:
        """Take shorter chunks, smaller batches and fewer threads until what is on its way fits.

        The numbers stay the same.

        Raises
        ------
        ConfigError
            If the smallest chunk and one window at a time are still too much.
        """
        while self._working_bytes(grid) > max_bytes and self._batch(grid) > 1:
            self.batch_size = self._batch(grid) // 2
        while self._working_bytes(grid) > max_bytes and self.chunk_tokens > LEAST_CHUNK_TOKENS:
            self.chunk_tokens //= 2
        if self._working_bytes(grid) > max_bytes:
            self.n_threads = 1
        if (need := self._working_bytes(grid)) > max_bytes:
            what = f"a window takes {need:,} bytes on its way through the trunk, {max_bytes:,} are left for that"
            raise ConfigError(what, where="--max-memory", fix=f"allow {need - max_bytes:,} bytes more")

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        """Yield the kept bins of each window; those that overlap share the convolutions."""
        self.geometry.require_fits(tiling.grid, where=self._where)
        self.batch_size = self._batch(tiling.grid)
        blocks = (
            block
            for together in left_to_right(windows, tiling, at_most=MAX_MEAN_WINDOWS if self.strand == "mean" else None)
            for block in self._run(together, codes, tiling)
        )
        for window, values in zip(windows, to_host(blocks, self.device), strict=True):
            yield WindowEmbedding(int(window), values)

    def halve_batch(self) -> int:
        """Take half as many windows at once from now on, then half the chunk; return how many, 0 at the least."""
        if self.batch_size is not None and self.batch_size >= 2:
            self.batch_size //= 2
            return self.batch_size
        if self.batch_size is None or self.chunk_tokens < 2 * LEAST_CHUNK_TOKENS:
            return 0
        self.chunk_tokens //= 2
        return 1

    def _run(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterable[torch.Tensor]:
        """Embed windows of one chromosome, from left to right."""
        if self.strand == "forward":
            return self._strand(windows, codes, tiling, flip=False)
        backward = [kept.flip(0) for kept in self._strand(windows, codes, tiling, flip=True)][::-1]
        if self.strand == "reverse":
            return backward
        forward = self._strand(windows, codes, tiling, flip=False)
        return ((ahead.float() + back.float()) / 2 for ahead, back in zip(forward, backward, strict=True))

    def _strand(self, windows: Sequence[int], codes: Codes, tiling: Tiling, *, flip: bool) -> Iterator[torch.Tensor]:
        """Read one strand in its own direction: position p of the other one is -p, its windows come last first."""
        grid = tiling.grid
        loci = [tiling.read(window) for window in windows]
        crop = grid.margin_bp // grid.bin_bp

        def forward(begin: int, end: int) -> UInt8[np.ndarray, " bp"]:
            return codes(Locus(loci[0].chrom, begin, end))

        def backward(begin: int, end: int) -> UInt8[np.ndarray, " bp"]:
            (other_strand,) = reverse_complement(codes(Locus(loci[0].chrom, -end, -begin))[None])
            return np.asarray(other_strand, dtype=np.uint8)

        run = Run(
            starts_bp=tuple(-locus.end for locus in reversed(loci)) if flip else tuple(locus.start for locus in loci),
            window_bp=grid.window_bp,
            keep=slice(crop, crop + grid.n_bins),
            shares=grid.stride_bp < grid.window_bp,
        )
        reader: CodesReader = backward if flip else forward
        return embed_run(
            self.fast, run, reader,
            batch_windows=self._batch(grid), chunk_tokens=self.chunk_tokens, final=self.tap == "trunk",
            n_threads=self.n_threads,
        )  # fmt: skip

    def _batch(self, grid: Grid) -> int:
        at_once = TOKENS_PER_BATCH.get(self.device.type, TOKENS_PER_BATCH["cuda"])
        return self.batch_size or max(1, at_once // (grid.window_bp // grid.bin_bp))


def left_to_right(windows: Sequence[int], tiling: Tiling, *, at_most: int | None = None) -> Iterator[list[int]]:
    """Cut a list of windows where the next is on another chromosome or further left, or the run holds `at_most`.

    Examples
    --------
    >>> tiling = Tiling.over(Grid(window_bp=12, n_bins=2, bin_bp=4), {"a": 24, "b": 24})
    >>> list(left_to_right([0, 2, 3, 5, 4], tiling))
    [[0, 2], [3, 5], [4]]
    """
    run: list[int] = []
    chroms = tiling.window_chrom(windows)
    for place, window in enumerate(windows):
        follows = run and window > run[-1] and chroms[place] == chroms[place - 1]
        if run and (not follows or len(run) == at_most):
            yield run
            run = []
        run.append(int(window))
    if run:
        yield run


def _require_precision(precision: Precision, device: torch.device) -> None:
    if device.type == "cpu" and precision in ("tf32", "float16"):
        raise ConfigError(f"{precision} on a CPU", where="precision", fix="precision=float32, or device=cuda")
    if device.type == "cpu" and precision == "bfloat16" and not multiplies_bfloat16():
        _log.warning("this processor has no bfloat16 products: precision=bfloat16 is slower than float32 here")


def one_hot(codes: UInt8[np.ndarray, "b bp"]) -> Float[torch.Tensor, "b bp 4"]:
    """Return sequence codes as Enformer reads them.

    Examples
    --------
    >>> one_hot(np.array([[2, 4, 5]], dtype=np.uint8)).tolist()
    [[[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]]
    """
    return torch.from_numpy(CODE_ROWS[codes])


def reverse_complement(codes: UInt8[np.ndarray, "b bp"]) -> UInt8[np.ndarray, "b bp"]:
    """Return the other strand, read in its own direction.

    Examples
    --------
    >>> reverse_complement(np.array([[0, 0, 1, 5]], dtype=np.uint8)).tolist()
    [[5, 2, 3, 3]]
    """
    flipped: UInt8[np.ndarray, "b bp"] = COMPLEMENT[codes[:, ::-1]]
    return flipped


def trunk_features(
    model: Enformer, sequence: Float[torch.Tensor, "b bp 4"], *, n_bins: int, tap: Tap = "trunk"
) -> Float[torch.Tensor, "b n_bins dim"]:
    """Run the trunk and keep the centre bins; gradients flow if they are on.

    The crop comes before the last pointwise layer, as in the model's own order.
    """
    x = rearrange(sequence, "b n d -> b d n")
    x = model.conv_tower(model.stem(x))
    x = model.transformer(rearrange(x, "b d n -> b n d"))
    x = crop_bins(x, n_bins)
    return x if tap == "transformer" else model.final_pointwise(x)


def crop_bins(x: Float[torch.Tensor, "b n d"], n_bins: int) -> Float[torch.Tensor, "b n_bins d"]:
    """Keep exactly the `n_bins` centre bins.

    Raises
    ------
    SpecError
        If an odd number of bins is to go: there is no centre then (enformer-pytorch silently drops one bin more).
    """
    spare = x.shape[1] - n_bins
    if spare < 0 or spare % 2:
        raise SpecError(f"{n_bins} bins are not the centre of {x.shape[1]}", where="enformer")
    return x[:, spare // 2 : spare // 2 + n_bins]
