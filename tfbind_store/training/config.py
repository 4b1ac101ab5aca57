"""How a head is trained: every choice of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tfbind_store.errors import ConfigError
from tfbind_store.heads import LossConfig
from tfbind_store.query.loader import Balance


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a head is trained."""

    head: str = "adapter"
    """Its name."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Its own settings, see each head."""
    windows: str | None = None
    """Array of DNA embeddings; default the store's only one."""
    proteins: str | None = None
    """Array of protein embeddings; default the store's only one."""
    contexts: str | None = None
    """Array of context embeddings; default the store's only one."""
    pairing: Literal["dense", "rows"] = "dense"
    """Bins against many experiments at once, or the selection's rows."""
    signals: Literal["head", "gate", "none"] = "head"
    """How signals that the selection declares are read: in the head, where it can (adapter, two_tower), else by a gate
    that is trained after it."""
    steps: int = 1500
    """Optimizer steps."""
    minutes: float | None = None
    """Stop after so long if the steps are not done; the learning rate reaches its end then. Not exactly repeatable."""
    bins_per_step: int = 1024
    """Dense only."""
    pairs_per_step: int = 32
    """Experiments per step; dense only."""
    bound_share: float = 0.5
    """Share of the bins drawn from those that any training experiment binds; dense only."""
    batch_rows: int = 256
    """Rows per step; rows only."""
    both_strands: bool = False
    """Read each row of a pass from either strand, as the seed decides: the store has both; rows only."""
    lr: float = 1e-3
    """Highest learning rate of AdamW."""
    lr_scale: Mapping[str, Any] = field(default_factory=dict)
    """Factor on `lr` by pattern of the parameter's name, ``{"filip.*" = 0.1}``; the last that fits counts."""
    weight_decay: float = 0.05
    """Of the weights of linear layers and convolutions; biases, norms and bare parameters have none."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """What follows the warm-up."""
    clip: float = 1.0
    """Largest norm of a step's gradient; 0 never clips."""
    accumulate: int = 1
    """Pieces that a step's batch is cut into, one after the other: less memory, the same step."""
    average: float = 0.0
    """Decay of a moving average of the weights, which is then what is validated and kept; 0 keeps the weights."""
    balance: Balance = "none"
    """Draw factors, or biotypes, equally often, however many experiments or rows they have."""
    loss: LossConfig = field(default_factory=LossConfig)
    """What is made small."""
    validate_every: int | None = None
    """Steps between looks at the validation part; None looks every 500 steps, four times in a shorter run."""
    patience: int = 0
    """Stop after so many looks without a better one; 0 never stops early."""
    save_every: int = 200
    """Steps between saved states: at most so many are lost in a kill."""
    max_valid_bins: int = 50_000
    """Validation bins, evenly spread, if there are more."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the products; losses, softmax and pooling are always fp32."""
    checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, the same step, a third more time."""
    compile: bool = False
    """Let torch.compile fuse the head; needs a C++ compiler, pays after a minute or so."""
    deterministic: bool = False
    """Refuse operations whose result is not the same each time; CPUs have none in use, GPUs lose some speed."""
    trackers: tuple[str, ...] = ()
    """``tensorboard`` and ``wandb`` (offline, no login), beside the log that is always written."""
    device: str = "auto"
    """cpu, cuda, or whatever is there."""
    permute_labels: bool = False
    """The control: peaks at random places of their chromosome; dense only."""
    seed: int = 0
    """Decides weights, order and dropout."""

    def __post_init__(self) -> None:
        sizes = (self.bins_per_step, self.pairs_per_step, self.batch_rows, self.accumulate)
        if min(self.steps, self.look_every, self.save_every, *sizes) < 1:
            raise ConfigError("steps, sizes, validate_every and save_every must be at least 1", where="train")
        if self.max_valid_bins < 1 or self.patience < 0:
            raise ConfigError("max_valid_bins of at least 1 and patience of at least 0 are needed", where="train")
        if not 0 <= self.average < 1 or self.clip < 0 or self.weight_decay < 0:
            raise ConfigError("average in [0, 1), clip and weight_decay of at least 0 are needed", where="train")
        if not 0 <= self.bound_share <= 1 or not 0 <= self.warmup < 1 or self.lr <= 0:
            raise ConfigError("bound_share in [0, 1], warmup in [0, 1) and lr above 0 are needed", where="train")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes is {self.minutes}, must be above 0", where="train")
        if self.both_strands and self.pairing != "rows":
            raise ConfigError("both_strands needs pairing = rows", where="train")
        if self.permute_labels and self.pairing != "dense":
            raise ConfigError("permute_labels needs pairing = dense", where="train")

    @property
    def look_every(self) -> int:
        """Return the steps between looks at the validation part.

        Examples
        --------
        >>> TrainConfig(steps=100).look_every, TrainConfig(steps=9_000).look_every
        (25, 500)
        """
        if self.validate_every is not None:
            return self.validate_every
        return max(1, min(500, self.steps // 4))
