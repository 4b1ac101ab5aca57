"""Where a training run stands, in one file: weights, optimizer by parameter name, counters, the loader's cursor.

Written whole or not at all; the random numbers of a step follow from seed and step and need no saving.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from tfbind_store.errors import CheckpointError
from tfbind_store.heads.checkpoint import write_atomically

METADATA_KEY = "tfbind_run_state"


@dataclass
class RunState:
    """Counters of a run."""

    step: int = 0
    """Optimizer steps that are done."""
    best: dict[str, float] = field(default_factory=dict)
    """Validation at the best weights so far, and their step."""
    looks_since_best: int = 0
    losses: list[float] = field(default_factory=list)
    """Since the last validation."""
    cursor: dict[str, Any] = field(default_factory=dict)
    """The loader's next batch; empty where batches follow from the step."""
    seconds: float = 0.0


Named = Sequence[tuple[str, nn.Parameter]]


def save_state(path: Path, state: RunState, optimizer: torch.optim.Optimizer, named: Named, head: nn.Module) -> None:
    """Write weights, optimizer and counters."""
    tensors: dict[str, Tensor] = {f"head/{name}": tensor for name, tensor in head.state_dict().items()}
    for name, parameter in named:
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{name}/{key}"] = torch.as_tensor(value)
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    write_atomically(path, safetensors.torch.save(ready, {METADATA_KEY: json.dumps(asdict(state))}))


def load_state(path: Path, head: nn.Module, optimizer: torch.optim.Optimizer, named: Named) -> RunState:
    """Put weights and optimizer back where they were and return the counters.

    Raises
    ------
    CheckpointError
        If the file is damaged or of another head.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = RunState(**json.loads((file.metadata() or {})[METADATA_KEY]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        head.load_state_dict({name[5:]: tensor for name, tensor in tensors.items() if name.startswith("head/")})
        for name, parameter in named:
            prefix = f"optimizer/{name}/"
            own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in own.items()
            }
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        fix = "delete the run's folder, or train with --overwrite"
        raise CheckpointError(f"state of the run cannot be read: {error}", where=str(path), fix=fix) from error
    return state
