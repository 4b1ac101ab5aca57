"""AdamW over named groups of parameters.

The rule of decay is by what a parameter is, not by its shape: the weights of linear layers and convolutions decay;
biases, norms, embeddings and bare parameters (null tokens, queries, attention biases) do not. Groups and their members
are ordered by name, so that a saved optimizer fits in every process.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tfbind_store.errors import ConfigError
from tfbind_store.learning.state import Named
from tfbind_store.names import near_miss

BETAS = (0.9, 0.98)
DECAYED = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def trainable(model: nn.Module) -> Named:
    """Return the parameters that train, once each, by name."""
    return sorted((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def decayed_names(model: nn.Module) -> set[str]:
    """Return the names of the parameters that decay: weights of linear layers and convolutions."""
    return {
        f"{place}.weight" if place else "weight"
        for place, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, DECAYED)
    }


def adamw(
    model: nn.Module,
    named: Named,
    *,
    lr: float,
    weight_decay: float,
    lr_scale: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """Return AdamW over `named`, one group for each combination of learning rate and decay.

    Parameters
    ----------
    model
        Owns the parameters; says which of them decay.
    lr
        Highest learning rate.
    weight_decay
        Of the parameters that decay.
    lr_scale
        Factor on the learning rate by pattern of the parameter's name (``trunk.*``); the last pattern that fits counts.

    Raises
    ------
    ConfigError
        If a pattern fits no parameter.
    """
    scales = _scales([name for name, _ in named], lr_scale or {})
    decayed = decayed_names(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        key = (scales[name], weight_decay if name in decayed else 0.0)
        groups.setdefault(key, []).append(parameter)
    described = [
        {"params": parameters, "scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]
    # one pass over each parameter instead of a dozen: a third of an adapter's step on a CPU was this
    fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in named)
    return torch.optim.AdamW(described, lr=lr, betas=BETAS, fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["scale"]


def clip(parameters: Iterable[nn.Parameter], largest: float) -> float:
    """Shorten a step's gradient to norm `largest` and return the norm that it had; 0 never shortens."""
    limit = largest or float("inf")
    return float(nn.utils.clip_grad_norm_(list(parameters), limit))


def _scales(names: list[str], patterns: Mapping[str, Any]) -> dict[str, float]:
    scales = dict.fromkeys(names, 1.0)
    for pattern, scale in patterns.items():
        fitting = fnmatch.filter(names, pattern)
        if not fitting or not isinstance(scale, int | float) or not 0 <= scale < float("inf"):
            close = near_miss(pattern, names)
            fix = f"did you mean {close}?" if close else f"parameters: {', '.join(names[:8])}, …"
            what = f"lr_scale {pattern!r} = {scale!r} fits no parameter, or is no factor"
            raise ConfigError(what, where="lr_scale", fix=fix)
        scales.update(dict.fromkeys(fitting, float(scale)))
    return scales
