"""Where a run stands, in one file: tensors by group and name, counters as JSON. Written whole or not at all.

The random numbers of a step follow from seed and step and need no saving; what is drawn ahead (a shuffled pass) goes
into the counters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tfbind_store.config import from_mapping
from tfbind_store.durable import publish
from tfbind_store.errors import CheckpointError, ConfigError

METADATA_KEY = "tfbind_run_state"
Named = Sequence[tuple[str, nn.Parameter]]
CountersT = TypeVar("CountersT")


class SavedState(NamedTuple):
    """What a state file holds."""

    counters: dict[str, Any]
    groups: dict[str, dict[str, Tensor]]
    """Tensors by group (``weights``, ``optimizer``, …) and name."""


def write_state(path: Path, counters: Mapping[str, Any], groups: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write `path`, replacing an older state in one step."""
    tensors = {f"{group}/{name}": tensor for group, own in groups.items() for name, tensor in own.items()}
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    publish(path, [safetensors.torch.save(ready, {METADATA_KEY: json.dumps(counters)})])


def read_state(path: Path) -> SavedState:
    """Read what `write_state` wrote.

    Raises
    ------
    CheckpointError
        If the file is damaged.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            counters = json.loads((file.metadata() or {})[METADATA_KEY])
            for full in file.keys():  # noqa: SIM118 - not a dict
                group, _, name = full.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(full)
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
        raise _unreadable(path, error) from error
    return SavedState(counters, groups)


def read_counters(path: Path, cls: type[CountersT], counters: Mapping[str, Any]) -> CountersT:
    """Return saved counters as the dataclass `cls`, or refuse what it has no place for."""
    try:
        return from_mapping(cls, counters, where="counters")
    except ConfigError as error:
        raise _unreadable(path, ValueError(f"{error.what} ({error.where})")) from error


def require_step(path: Path, step: int, n_steps: int) -> None:
    """Refuse a state that stands outside its run."""
    if not 0 <= step <= n_steps:
        raise _unreadable(path, ValueError(f"it stands at step {step:,} of {n_steps:,}"))


def put_back(path: Path, model: nn.Module, weights: Mapping[str, Tensor], *, left_out: Sequence[str] = ()) -> None:
    """Load saved weights into `model`; names that begin with one of `left_out` are not in the file.

    Raises
    ------
    CheckpointError
        If the weights are of another model.
    """
    own = {name for name in model.state_dict() if not name.startswith(tuple(left_out))}
    odd = own.symmetric_difference(weights)
    if odd:
        raise _unreadable(path, ValueError(f"weights of another model: {sorted(odd)[0]}"))
    try:
        model.load_state_dict(dict(weights), strict=not left_out)
    except RuntimeError as error:
        raise _unreadable(path, error) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: Named) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named ``<parameter>/<key>``."""
    return {
        f"{name}/{key}": torch.as_tensor(value)
        for name, parameter in named
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    path: Path, optimizer: torch.optim.Optimizer, named: Named, tensors: Mapping[str, Tensor], *, step: int = 0
) -> None:
    """Put back what `optimizer_tensors` gave after `step` steps, by the parameters' names.

    Raises
    ------
    CheckpointError
        If it is the state of other parameters, or absent after a first step.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition("/")
        by_name.setdefault(name, {})[key] = tensor
    odd = sorted(set(by_name) - {name for name, _ in named})
    if odd:
        raise _unreadable(path, ValueError(f"optimizer state of unknown parameters: {', '.join(odd[:3])}"))
    if not by_name and step:
        raise _unreadable(path, ValueError("the optimizer's state is absent"))
    for name, parameter in named:
        for key, value in by_name.get(name, {}).items():
            if key != "step" and value.shape != parameter.shape:
                raise _unreadable(path, ValueError(f"{name}/{key} is {list(value.shape)}, not {list(parameter.shape)}"))
        if name in by_name:
            # AdamW keeps its step count on the CPU, whatever the device
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in by_name[name].items()
            }


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    fix = "delete the run's folder, or train with --overwrite"
    return CheckpointError(f"state of the run cannot be read: {error}", where=str(path), fix=fix)
