"""DNA through any ``torch.nn.Module``: named by import path, with a geometry that its user declares.

The module is imported, so its code runs: name only what you trust. It gets one-hot windows (N is zeros, what lies past
the chromosome's end is a quarter each) and gives numbers per bin, of which the centre ones are kept. What it gives is
held against the declared geometry at the first window. Windows run one by one, unless it is said how the module is cut
(`split_module`). Borzoi is such a module whose geometry is known here.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8

from tfbind_store.errors import ConfigError, SpecError, WeightsError
from tfbind_store.loci import Grid, Tiling
from tfbind_store.precompute.embedder import (
    Codes,
    MemoryNeed,
    TrunkGeometry,
    WindowEmbedding,
    batches,
    read_options,
)
from tfbind_store.precompute.enformer import crop_bins, one_hot
from tfbind_store.precompute.split_module import SplitModule, embed_shared
from tfbind_store.precompute.weights import exact_float32, pick_device, read_tensors, take_back, weights_digest
from tfbind_store.spec import EmbeddingSpec

Layout = Literal["bins_first", "channels_first"]


@dataclass(frozen=True, kw_only=True)
class ModuleOptions:
    """What to import, and how it is called."""

    target: str | None = None
    """``package.module:Name`` of a class or function that gives the module."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What it is called with."""
    checkpoint: str | None = None
    """State dict as ``.safetensors`` or a pickle of tensors; None keeps the weights it is made with."""
    seed: int = 0
    """Set before it is made."""
    bin_bp: int | None = None
    """Bases per bin that it gives."""
    dim: int | None = None
    """Numbers per bin that it gives."""
    window_bp: int | None = None
    """The one window length it reads; None where any whole number of bins will do."""
    n_bins: int | None = None
    """Bins that it gives per window; None where it gives one for every `bin_bp` of the window."""
    call: str = "forward"
    """The method to call."""
    call_arguments: Mapping[str, Any] = field(default_factory=dict)
    """What it is called with beside the sequence."""
    output: str | None = None
    """Key or index of the wanted part of what the call returns."""
    reads: Layout = "channels_first"
    """Whether it takes ``[batch, 4, bp]`` (channels_first) or ``[batch, bp, 4]``."""
    gives: Layout = "bins_first"
    """Whether it gives ``[batch, bins, dim]`` or ``[batch, dim, bins]`` (channels_first)."""
    tokens: str | None = None
    """The method that runs the convolutions alone; with it, windows that overlap share them. Changes speed only."""
    from_tokens: str | None = None
    """The method that makes bins of a window's tokens."""
    kernels: tuple[int, ...] = ()
    """Width of each level's convolution, the first on bases; every level ends in a pooling of two."""
    batch_size: int = 1
    """Windows per call. Changes speed only."""
    device: str = "auto"


def from_options(options: Mapping[str, Any]) -> ModuleEmbedder:
    """Return a module's embedder for the registry.

    Raises
    ------
    ConfigError
        If target or geometry is missing, or the target cannot be made.
    WeightsError
        If the weights do not fit.
    """
    choice = read_options(ModuleOptions, options, name="module")
    if not choice.target or not choice.dim or not choice.bin_bp:
        raise ConfigError(
            "a module needs target, bin_bp and dim",
            where="options of embedder module",
            fix="--set target=package.module:Class --set bin_bp=128 --set dim=256",
        )
    model = make_module(choice.target, choice.arguments, seed=choice.seed)
    if choice.checkpoint is not None:
        load_weights(model, read_tensors(Path(choice.checkpoint).expanduser()), where=choice.checkpoint)
    geometry = TrunkGeometry(bin_bp=choice.bin_bp, dim=choice.dim, window_bp=choice.window_bp, n_bins=choice.n_bins)
    identity = {
        "class": choice.target,
        "arguments": dict(choice.arguments),
        "call": choice.call,
        "call_arguments": dict(choice.call_arguments),
        "output": choice.output,
        "reads": choice.reads,
        "gives": choice.gives,
    }
    return ModuleEmbedder(
        model,
        geometry,
        forward=Caller(choice.call, choice.call_arguments, choice.output, choice.reads, choice.gives),
        name="module",
        identity=identity,
        batch_size=choice.batch_size,
        device=choice.device,
        split=_split(model, choice),
    )


def _split(model: torch.nn.Module, choice: ModuleOptions) -> SplitModule | None:
    if not choice.tokens and not choice.from_tokens and not choice.kernels:
        return None
    if not choice.tokens or not choice.from_tokens or not choice.kernels or not choice.bin_bp:
        raise ConfigError(
            "a module that shares its convolutions needs tokens, from_tokens and kernels",
            where="options of embedder module",
            fix="--set tokens=METHOD --set from_tokens=METHOD --set kernels='[15, 5, 5]', or none of them",
        )
    convolve = Caller(choice.tokens, {}, None, choice.reads, choice.gives)
    # tokens come as bins do, so the second method takes what the first one gave
    finish = Caller(choice.from_tokens, choice.call_arguments, choice.output, choice.gives, choice.gives)
    return SplitModule(
        model, convolve=convolve, finish=finish, kernels=choice.kernels, bin_bp=choice.bin_bp,
        device=pick_device(choice.device),
    )  # fmt: skip


@dataclass(frozen=True)
class Caller:
    """How a module is called: ``[b, bp, 4]`` in, ``[b, bins, dim]`` out."""

    method: str
    arguments: Mapping[str, Any]
    output: str | None
    reads: Layout
    gives: Layout

    def __call__(self, model: torch.nn.Module, sequence: Float[torch.Tensor, "b bp 4"]) -> torch.Tensor:
        """Call the method and return the wanted part of what it gives."""
        function = getattr(model, self.method, None)
        if not callable(function):
            raise ConfigError(f"it has no method {self.method!r}", where=type(model).__name__)
        read = sequence.transpose(1, 2).contiguous() if self.reads == "channels_first" else sequence
        found = function(read, **self.arguments)
        if self.output is not None:
            try:
                found = found[int(self.output)] if isinstance(found, tuple | list) else found[self.output]
            except (KeyError, IndexError, ValueError, TypeError) as error:
                raise ConfigError(f"it gives no output {self.output!r}", where=type(model).__name__) from error
        if not isinstance(found, torch.Tensor) or found.ndim != 3:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise SpecError(
                f"it gives {shape}, not one tensor of three axes", where=type(model).__name__, fix="--set output=0"
            )
        return found.transpose(1, 2) if self.gives == "channels_first" else found


class ModuleEmbedder:
    """A frozen module of DNA.

    Parameters
    ----------
    model
        Put into eval mode.
    geometry
        What it reads and gives; held against what it does give.
    forward
        Takes the module and one-hot windows ``[b, bp, 4]``, gives ``[b, bins, dim]``.
    name, identity
        In the spec, beside the digest of the weights.
    batch_size, device
        As in `ModuleOptions`.
    split
        The module cut in two, where its user said how.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        geometry: TrunkGeometry,
        *,
        forward: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor],
        name: str,
        identity: Mapping[str, Any],
        batch_size: int = 1,
        device: str = "auto",
        split: SplitModule | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError("batch_size must be 1 or more", where=f"options of embedder {name}")
        self.device = pick_device(device)
        self.model = model.eval()
        self.geometry = geometry
        self._call = forward
        self._name = name
        self._batch_size = batch_size
        self._split = split
        self._identity = {**identity, "weights_sha256": weights_digest(model.state_dict())}

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        """Return the spec; the weights are named by their digest."""
        self.geometry.require_fits(grid, where=self._name)
        policies = {"crop": "centre", "n_policy": "zeros", "pad_policy": "quarter", "matmul": "float32"}
        return EmbeddingSpec(
            kind="windows",
            embedder=self._name,
            dim=self.geometry.dim,
            identity={**self._identity, **policies},
            grid={"window_bp": grid.window_bp, "n_bins": grid.n_bins, "bin_bp": grid.bin_bp},
            genome=genome_digest,
        )

    def embed(self, windows: Sequence[int], codes: Codes, tiling: Tiling) -> Iterator[WindowEmbedding]:
        """Yield the kept bins of each window, in the order given."""
        self.geometry.require_fits(tiling.grid, where=self._name)
        if self._split is not None and tiling.grid.stride_bp < tiling.grid.window_bp:
            yield from map(WindowEmbedding, map(int, windows), self._shared(self._split, windows, codes, tiling))
            return
        for batch in batches(windows, self._batch_size):
            values = self._forward(np.stack([codes(tiling.read(window)) for window in batch]), tiling.grid)
            for window, kept in zip(batch, values.float().cpu().numpy(), strict=True):
                yield WindowEmbedding(window, kept)

    def memory_need(self, grid: Grid) -> MemoryNeed:
        """Return what the weights take; what a window takes, only trying tells."""
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())
        return MemoryNeed(str(self.device), weights, self._batch_size, None)

    def _shared(
        self, split: SplitModule, windows: Sequence[int], codes: Codes, tiling: Tiling
    ) -> Iterator[Float[np.ndarray, "n_bins dim"]]:
        self.model.to(self.device)

        def alone(window: int) -> Float[np.ndarray, "n_bins dim"]:
            (values,) = self._forward(codes(tiling.read(window))[None], tiling.grid).float().cpu().numpy()
            return np.asarray(values)

        return embed_shared(
            split, windows, codes, tiling,
            spare_bins=self._gives(tiling.grid) - tiling.grid.n_bins, batch_windows=self._batch_size, alone=alone,
        )  # fmt: skip

    def _gives(self, grid: Grid) -> int:
        return self.geometry.n_bins or grid.window_bp // grid.bin_bp

    def one_by_one(self) -> ModuleEmbedder:
        """Return the same module without sharing, for sequence that differs from window to window."""
        twin = copy.copy(self)
        twin._split = None
        return twin

    def halve_batch(self) -> int:
        """Read half as many windows at once from now on and return how many; 0 where it is one already."""
        if self._batch_size < 2:
            return 0
        self._batch_size //= 2
        return self._batch_size

    def release(self) -> None:
        """Give the device's memory back until the next call of `embed`."""
        take_back(self.model, self.device)

    def live(self, sequence: Float[torch.Tensor, "b bp 4"], grid: Grid) -> Float[torch.Tensor, "b n_bins dim"]:
        """Return the kept bins of one-hot windows; in grad mode with a gradient back to them.

        Raises
        ------
        SpecError
            If the module gives another shape than was declared.
        """
        with exact_float32(self.device):
            found = self._call(self.model.to(self.device), sequence.to(self.device))
        wanted = (len(sequence), self._gives(grid), self.geometry.dim)
        if tuple(found.shape) != wanted:
            raise SpecError(
                f"it gives [batch, bins, dim] = {list(found.shape)}, declared were {list(wanted)}",
                where=self._name,
                fix="--set dim, bin_bp, n_bins, gives as the module has them",
            )
        return crop_bins(found, grid.n_bins)

    def _forward(self, codes: UInt8[np.ndarray, "b bp"], grid: Grid) -> Float[torch.Tensor, "b n_bins dim"]:
        with torch.inference_mode():
            return self.live(one_hot(codes), grid)


def make_module(target: str, arguments: Mapping[str, Any], *, seed: int) -> torch.nn.Module:
    """Import ``package.module:Name`` and call it.

    Raises
    ------
    ConfigError
        If it cannot be imported or made, or gives no module.
    """
    place, colon, name = target.partition(":")
    where = "option target of embedder module"
    if not colon or not place or not name:
        raise ConfigError(f"{target!r} is no import path", where=where, fix="write package.module:Class")
    try:
        function: Any = importlib.import_module(place)
        for part in name.split("."):
            function = getattr(function, part)
    except (ImportError, AttributeError, ValueError) as error:
        fix = "install its package, or put its folder on PYTHONPATH"
        raise ConfigError(f"cannot import {target!r}: {error}", where=where, fix=fix) from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = function(**arguments)
        except Exception as error:  # whatever a stranger's code raises
            raise ConfigError(f"{target} fails with {dict(arguments)}: {error}", where=where) from error
    if not isinstance(model, torch.nn.Module):
        raise ConfigError(f"{target} gives a {type(model).__name__}, not a torch.nn.Module", where=where)
    return model


def load_weights(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Fill a module from a state dict, all of it and nothing else."""
    own = set(model.state_dict())
    absent, odd = sorted(own - set(tensors)), sorted(set(tensors) - own)
    if absent or odd:
        what = f"weights do not fit: {len(absent)} absent {absent[:2]}, {len(odd)} unknown {odd[:2]}"
        raise WeightsError(what, where=where)
    try:
        model.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise WeightsError(f"weights do not fit: {str(error)[:300]}", where=where) from error
