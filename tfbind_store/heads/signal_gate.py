"""A gate that lets a biotype's own signal, such as accessibility, speak beside a head that reads none.

The head says what sequence and protein have to say; the gate turns a bin's signal, at several scales, into a factor
and a summand of its logit. It does not know the biotype, so that it serves one that nobody trained on. Where a biotype
has no signal, learned numbers stand for it; in training signals are dropped now and then, so that these are learned.
"""

# k bins · p pairs · c biotypes · s scales

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from jaxtyping import Float, Int
from torch import Tensor, nn

from tfbind_store.durable import publish
from tfbind_store.errors import CheckpointError

METADATA_KEY, HEAD_KEY = "tfbind_signals", "tfbind_head"
MAX_LOG_SCALE = 2.0
"""A logit is never stretched by more than e to this."""


class SignalGate(nn.Module):
    """See the module's docstring.

    Parameters
    ----------
    n_scales
        Numbers per bin.
    width
        Hidden numbers.
    """

    def __init__(self, n_scales: int, *, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(n_scales, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.out = nn.Linear(width, 2)
        self.absent = nn.Parameter(torch.zeros(2))
        nn.init.zeros_(self.out.weight)  # begins as the head alone
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        logits: Float[Tensor, "k p"],
        signal: Float[Tensor, "k c s"],
        context_index: Int[Tensor, " p"],
        *,
        drop: float = 0.0,
    ) -> Float[Tensor, "k p"]:
        """Return gated logits.

        Parameters
        ----------
        logits
            Of a head.
        signal
            Of each biotype in each bin; NaN in any scale: there is none.
        context_index
            Which biotype a pair is in.
        drop
            Chance that a biotype is taken as without a signal, for training.
        """
        is_absent = signal.isnan().any(dim=-1)
        if drop > 0:
            is_absent = is_absent | (torch.rand(signal.shape[1], device=signal.device) < drop)
        known = torch.where(is_absent.unsqueeze(-1), torch.zeros_like(signal), signal)
        both = torch.where(is_absent.unsqueeze(-1), self.absent, self.out(self.encoder(known)))
        both = both[:, context_index]
        scale = torch.exp(MAX_LOG_SCALE * F.tanh(both[..., 0]))
        return logits * scale + both[..., 1]


def save_gate(path: Path, gate: SignalGate, *, signals: str = "", head: str = "") -> None:
    """Write a gate, whole or not at all, with the array of signals and the head (a digest) that it was trained on."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(gate.state_dict().items())}
    publish(path, [safetensors.torch.save(tensors, {METADATA_KEY: signals, HEAD_KEY: head})])


def load_gate(path: Path) -> SignalGate:
    """Read a gate back.

    Raises
    ------
    CheckpointError
        If there is none, or the file is of something else.
    """
    try:
        tensors = safetensors.torch.load_file(path)
        width, n_scales = tensors["encoder.0.weight"].shape
        gate = SignalGate(n_scales, width=width)
        gate.load_state_dict(tensors)
    except Exception as error:  # the library has one error class of its own and passes on others
        raise CheckpointError(f"no signal gate: {error}", where=str(path), fix="tfbind train-signal RUN") from error
    return gate.eval()


def trained_on(path: Path) -> tuple[str, str]:
    """Return the name of the array of signals and the digest of the head that a gate was trained on."""
    load_gate(path)
    with safetensors.safe_open(path, framework="pt") as file:
        said = file.metadata() or {}
    return str(said.get(METADATA_KEY, "")), str(said.get(HEAD_KEY, ""))
