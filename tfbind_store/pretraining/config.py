"""How a small trunk is trained: its kind, its sizes, and every choice of one run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tfbind_store import config as configs
from tfbind_store.errors import ConfigError
from tfbind_store.heads.losses import LossConfig
from tfbind_store.precompute.convnet import ConvnetSizes


@dataclass(frozen=True, kw_only=True)
class TrunkConfig:
    """Sizes of the trunk; bins are as wide as the store's grid says."""

    dim: int = 192
    """Channels at the end of the convolutions; the embedding has twice as many."""
    depth: int = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads; dim must be a multiple of six times this number."""
    attn_dim_key: int = 32
    """Width of one head's keys."""
    dim_divisible_by: int = 16
    """Channels of every convolution are a multiple of this."""
    dropout_rate: float = 0.1
    """In the transformer."""
    attn_dropout: float = 0.05
    """Of attention weights."""
    pos_dropout: float = 0.01
    """Of position features."""

    def hparams(self, bin_bp: int) -> dict[str, Any]:
        """Return the architecture as enformer-pytorch names it.

        Raises
        ------
        ConfigError
            If a bin is no power of two, or the sizes do not divide.
        """
        halvings = bin_bp.bit_length() - 1
        if bin_bp != 2**halvings or halvings < 2:
            raise ConfigError(f"an Enformer's bins are 4, 8, 16, … bp wide, this store's {bin_bp}", where="trunk")
        if self.dim % self.dim_divisible_by:
            raise ConfigError(
                f"dim is {self.dim}, must be a multiple of dim_divisible_by ({self.dim_divisible_by})",
                where="trunk",
                fix=f"--set trunk.dim={max(1, round(self.dim / self.dim_divisible_by)) * self.dim_divisible_by}",
            )
        if self.dim % self.heads or self.dim // self.heads % 6:
            raise ConfigError(f"dim / heads is {self.dim}/{self.heads}, must be a multiple of 6", where="trunk")
        return {**configs.to_mapping(self), "num_downsamples": halvings, "output_heads": {}}


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """How a trunk is trained."""

    kind: Literal["enformer", "convnet"] = "enformer"
    """An Enformer, or the plain convolutional trunk, which learns a small genome in a fraction of the time."""
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    """Sizes of an Enformer."""
    convnet: ConvnetSizes = field(default_factory=ConvnetSizes)
    """Sizes of a convnet; its bins are the store's."""
    passes: float = 24.0
    """Times that every training base is read."""
    minutes: float | None = None
    """Stop after so long if the passes are not done; the learning rate reaches its end then."""
    window_bp: int | None = None
    """Bases per example; default the store's windows."""
    batch_size: int = 4
    """Examples per step."""
    lr: float = 2e-3
    """Highest learning rate of AdamW."""
    weight_decay: float = 0.05
    """Of the weights of linear layers and convolutions."""
    warmup: float = 0.05
    """Share of the training in which the learning rate rises."""
    output_dropout: float = 0.0
    """Share of the trunk's numbers dropped before the outputs of the tracks."""
    average: float = 0.0
    """Decay of a moving average of the weights, which is then what is validated and saved; 0 saves the weights."""
    clip: float = 3.0
    """Largest norm of a step's gradient."""
    reverse_complement: bool = True
    """Turn half of the examples round, labels mirrored."""
    random_offset: bool = True
    """Begin every pass at another base."""
    mutation: float = 0.0
    """Share of an example's bases that are changed at random, drawn for each example between 0 and this."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Per bin and track."""
    quarter_loss: float = 0.0
    """Weight of a second loss, on labels of quarters of bins, which tells a convnet where in a bin a peak stands."""
    validate_every: float = 8.0
    """Passes between looks at the validation chromosomes; 0 never looks. Nothing is chosen by them."""
    save_every: int = 200
    """Steps between saved states: at most so many are lost in a kill."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """bfloat16 where the machine multiplies it natively."""
    device: str = "auto"
    """cpu, cuda, or whatever is there."""
    permute_labels: bool = False
    """The control: peaks at random places of their chromosome."""
    seed: int = 0
    """Decides weights, order, offsets, strands, dropout."""

    def __post_init__(self) -> None:
        if self.passes <= 0 or self.batch_size < 1 or self.lr <= 0 or not 0 <= self.warmup < 1:
            raise ConfigError(
                "passes and lr must be above 0, batch_size at least 1, warmup in [0, 1)", where="pretrain"
            )
        if not all(0 <= share < 1 for share in (self.output_dropout, self.average, self.mutation)):
            raise ConfigError("output_dropout, average and mutation must be in [0, 1)", where="pretrain")
        if min(self.weight_decay, self.clip, self.validate_every) < 0 or self.save_every < 1:
            what = "weight_decay, clip and validate_every of at least 0 and save_every of at least 1 are needed"
            raise ConfigError(what, where="pretrain")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes is {self.minutes}, must be above 0", where="pretrain")
        if self.quarter_loss < 0 or (self.quarter_loss and self.kind != "convnet"):
            what = f"quarter_loss is {self.quarter_loss}, must be 0 or more, and 0 for an Enformer"
            raise ConfigError(what, where="pretrain", fix="--set kind=convnet, or --set quarter_loss=0")
