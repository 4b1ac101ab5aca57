"""How much memory a step of fine-tuning needs in each mode, counted without computing anything.

The trunk runs once on torch's ``meta`` device, where tensors have shapes but no numbers; what autograd would keep is
added up block by block. Not counted: the library's own buffers, and what a product needs while it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from enformer_pytorch import Enformer
from torch import Tensor, nn

from tfbind_store.finetuning.config import FinetuneConfig
from tfbind_store.finetuning.modes import set_trunk_mode
from tfbind_store.loci import Grid
from tfbind_store.precompute.trunk_files import architecture_of, build_trunk
from tfbind_store.pretraining.forward import in_blocks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GRADIENT_AND_ADAM = 3
"""Numbers kept for each parameter that trains, beside the parameter: its gradient and two moments."""


class ModeMemory(NamedTuple):
    """One mode; sizes in bytes."""

    mode: str
    tensors: int
    """Of the trunk that train."""
    parameters: int
    weights_bytes: int
    """Of trunk and head."""
    optimizer_bytes: int
    """Gradients and moments, of trunk and head."""
    kept_bytes: int
    """Activations of the trunk without checkpointing."""
    checkpointed_bytes: int
    """The same with it: what lies between blocks, and the largest block."""

    @property
    def total_bytes(self) -> int:
        """Weights, optimizer and activations with checkpointing."""
        return self.weights_bytes + self.optimizer_bytes + self.checkpointed_bytes


def finetune_memory(
    trunk: Enformer, head: nn.Module, grid: Grid, config: FinetuneConfig, *, strands: int = 1, final: bool = True
) -> list[ModeMemory]:
    """Return what each mode needs: head, layernorm, last:1, the config's own, all.

    Parameters
    ----------
    strands
        2 where the embeddings are the mean of both strands.
    final
        False where they are taken before the last pointwise layer.
    """
    modes = list(dict.fromkeys(["head", "layernorm", "last:1", config.mode, "all"]))
    ghost = build_trunk(architecture_of(trunk), where="finetune memory").to("meta")
    return [_of_mode(mode, ghost, head, grid, config, strands, final) for mode in modes]


def _of_mode(
    mode: str, ghost: Enformer, head: nn.Module, grid: Grid, config: FinetuneConfig, strands: int, final: bool
) -> ModeMemory:
    names = set_trunk_mode(ghost, mode, dropout=config.trunk_dropout)
    sizes = {name: parameter.numel() for name, parameter in ghost.named_parameters()}
    trained, of_head = sum(sizes[name] for name in names), sum(p.numel() for p in head.parameters())
    count = _Counter(ghost)
    sequence = torch.empty(config.windows_per_step, grid.window_bp, 4, device="meta")
    in_blocks(ghost, sequence, n_bins=grid.n_bins, final=final, dtype=DTYPES[config.precision], run=count.run)
    return ModeMemory(
        mode,
        len(names),
        trained,
        4 * (sum(sizes.values()) + of_head),
        4 * GRADIENT_AND_ADAM * (trained + of_head),
        strands * sum(count.kept),
        strands * sum(count.between) + max(count.kept, default=0),
    )


class _Counter:
    """Adds up what autograd keeps of each block."""

    def __init__(self, model: nn.Module) -> None:
        self._seen = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._alive: list[Tensor] = []  # a freed storage would give its number to the next one
        self.kept: list[int] = []
        self.between: list[int] = []

    def run(self, function: Callable[..., Tensor], module: nn.Module, x: Tensor) -> Tensor:
        """Run one block and note what it keeps."""
        total = 0

        def pack(tensor: Tensor) -> Any:
            nonlocal total
            storage = tensor.untyped_storage()
            if storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self._alive.append(tensor)
                total += storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            out = function(module, x)
        if out.requires_grad:
            self.kept.append(total)
            self.between.append(x.nbytes)
        return out
