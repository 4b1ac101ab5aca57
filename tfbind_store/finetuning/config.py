"""How trunk and head are fine-tuned together: every choice of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tfbind_store.errors import ConfigError
from tfbind_store.finetuning.modes import ProteinMode, require_mode
from tfbind_store.heads import LossConfig
from tfbind_store.learning.schedule import ScheduleKind


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a trained head and its trunk are trained on together."""

    mode: str = "layernorm"
    """What of the trunk trains: ``head`` (nothing), ``layernorm``, ``last:N`` (transformer blocks) or ``all``."""
    proteins: ProteinMode = "none"
    """``layernorm`` trains the LayerNorms of the protein encoder, an ESM-2."""
    protein_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the ESM that the proteins array was made with: ``checkpoint`` and what was set beside it."""
    steps: int = 500
    """Optimizer steps."""
    windows_per_step: int = 2
    """Windows that each step reads."""
    pairs_per_step: int = 32
    """Experiments against which their bins are scored."""
    lr: float = 3e-4
    """Highest learning rate of the head."""
    trunk_lr: float = 3e-5
    """Of the trunk."""
    protein_lr: float = 3e-5
    """Of the protein encoder."""
    weight_decay: float = 0.01
    """Of the weights of linear layers and convolutions."""
    warmup: float = 0.1
    """Share of the steps in which the learning rates rise."""
    schedule: ScheduleKind = "cosine"
    """What follows the warm-up."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    trunk_dropout: float = 0.0
    """In the trunk's transformer; 0 is none, whatever the trunk was trained with."""
    checkpointing: bool = True
    """Compute the trunk's activations twice instead of keeping them, those of its convolutions too."""
    shift_bp: int = 2
    """Windows are moved by up to so many bases, labels with them."""
    reverse_complement: bool = True
    """Turn half of the windows round, labels mirrored."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Per bin and experiment."""
    validate_every: int = 100
    """Steps between looks at validation windows."""
    max_valid_windows: int = 64
    """Validation windows, evenly spread, if there are more."""
    save_every: int = 50
    """Steps between saved states: at most so many are lost in a kill."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the trunk's products; losses, softmax and pooling are always fp32."""
    device: str = "auto"
    """cpu, cuda, or whatever is there."""
    seed: int = 0
    """Decides order, shifts, strands, draws and dropout."""

    def __post_init__(self) -> None:
        require_mode(self.mode)
        sizes = (self.steps, self.windows_per_step, self.pairs_per_step, self.validate_every, self.save_every)
        if min(sizes) < 1 or self.max_valid_windows < 1 or self.shift_bp < 0:
            raise ConfigError("steps and sizes must be at least 1, shift_bp at least 0", where="finetune")
        if min(self.lr, self.trunk_lr, self.protein_lr) <= 0 or not 0 <= self.trunk_dropout < 1:
            raise ConfigError("learning rates must be above 0, trunk_dropout in [0, 1)", where="finetune")
        if not 0 <= self.warmup < 1 or min(self.weight_decay, self.clip) < 0:
            raise ConfigError("warmup in [0, 1), weight_decay and clip of at least 0 are needed", where="finetune")
        if self.proteins != "none" and not self.protein_options:
            fix = "--set protein_options.checkpoint=PLACE"
            raise ConfigError("the protein encoder is not named", where="finetune: protein_options", fix=fix)
