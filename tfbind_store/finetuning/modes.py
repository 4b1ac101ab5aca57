"""Which parameters of a trunk or a protein encoder train, and in which mode its modules run.

A mode first freezes everything, then frees what it names, so that any mode after any other trains exactly what it says.
LayerNorms are found by their type. BatchNorms are frozen in every mode, statistics and weights: with the few windows of
a step, their statistics would drown what the trunk knows.
"""

from __future__ import annotations

import re
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tfbind_store.errors import ConfigError
from tfbind_store.precompute.esm import NOT_USED
from tfbind_store.precompute.trunk_files import DOUBLED, HEADS

LAST = re.compile(r"last:([1-9]\d*)")
TRUNK_MODES = ("head", "layernorm", "last:N", "all")
ProteinMode = Literal["none", "layernorm"]


def require_mode(mode: str, *, depth: int | None = None) -> None:
    """Refuse a mode that is none, or asks for more blocks than there are.

    Raises
    ------
    ConfigError
        With what there is.
    """
    found = LAST.fullmatch(mode)
    if (mode not in TRUNK_MODES and not found) or mode == "last:N":
        what, fix = f"no mode {mode!r}", f"choose {', '.join(TRUNK_MODES)} with a number for N"
        raise ConfigError(what, where="finetune: mode", fix=fix)
    if found and depth is not None and int(found[1]) > depth:
        raise ConfigError(
            f"{mode} of a trunk with {depth} blocks", where="finetune: mode", fix=f"last:{depth} or fewer"
        )


def set_trunk_mode(trunk: nn.Module, mode: str, *, dropout: float = 0.0) -> list[str]:
    """Freeze the trunk but for what `mode` trains, and return the names of what it trains.

    Parameters
    ----------
    trunk
        An Enformer.
    mode
        ``head`` (nothing of the trunk), ``layernorm``, ``last:N`` (the last N transformer blocks) or ``all``.
    dropout
        Of the trunk's transformer; 0 is none, whatever the trunk was trained with.
    """
    require_mode(mode, depth=len(trunk.transformer))  # type: ignore[arg-type]
    trunk.requires_grad_(False)
    if mode == "all":
        trunk.requires_grad_(True)
    elif mode == "layernorm":
        free_layernorms(trunk)
    elif found := LAST.fullmatch(mode):
        for block in list(trunk.transformer.children())[-int(found[1]) :]:  # type: ignore[union-attr]
            block.requires_grad_(True)
    for name, module in trunk.named_modules():
        if isinstance(module, _BatchNorm) or name.startswith(HEADS.rstrip(".")):
            module.requires_grad_(False)
    set_running(trunk, dropout=dropout)
    return sorted(name for name, p in trunk.named_parameters() if p.requires_grad and not name.startswith(DOUBLED))


def set_running(trunk: nn.Module, *, dropout: float) -> None:
    """Let a trunk run as in evaluation, BatchNorms too; only its transformer's dropout may be on."""
    trunk.eval()
    for module in trunk.transformer.modules():  # type: ignore[union-attr]
        if dropout and isinstance(module, nn.Dropout):
            module.p = dropout
            module.train()


def free_layernorms(model: nn.Module) -> list[str]:
    """Let the parameters of every LayerNorm train, and return their names.

    A module that is registered under several names is one module: each of its parameters is named once.
    """
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)
    return sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)


def set_protein_mode(model: nn.Module, mode: ProteinMode) -> list[str]:
    """Freeze a protein encoder but for what `mode` trains, and return the names of what it trains."""
    model.requires_grad_(False)
    model.eval()
    if mode == "layernorm":
        free_layernorms(model)
    for name, module in model.named_children():
        if f"{name}." in NOT_USED:
            module.requires_grad_(False)
    return sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
