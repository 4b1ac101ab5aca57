"""An exponential moving average of a model's weights: what is validated and kept, where it is asked for.

Early averages forget faster, by ``(1 + n) / (10 + n)`` after n steps, so that the first weights do not linger.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The average of `model`'s floating-point weights and buffers; others are taken as they are.

    Parameters
    ----------
    decay
        Share of the old average that stays at each step; 0 is no average: `applied` then changes nothing.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.tensors: dict[str, Tensor] = {}
        if decay:
            self.tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, n_steps: int) -> None:
        """Move towards the model's weights after step number `n_steps` (from 1)."""
        if not self.decay:
            return
        keep = min(self.decay, (1 + n_steps) / (10 + n_steps))
        for name, tensor in self.model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, 1 - keep)
            else:
                self.tensors[name].copy_(tensor)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model its average within the block, and its own weights back after it."""
        if not self.decay:
            yield
            return
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.tensors)
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a saved average."""
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)
