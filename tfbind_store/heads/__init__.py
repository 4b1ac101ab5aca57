"""Heads: the small trained modules on top of stored embeddings. Importing this package fills `HEADS`."""

from __future__ import annotations

from tfbind_store.heads.adapter import Adapter, AdapterConfig
from tfbind_store.heads.base import HEADS, Geometry, Head, HeadConfig, Intermediates, Scaling, make_head
from tfbind_store.heads.bilinear import Bilinear, BilinearConfig
from tfbind_store.heads.checkpoint import (
    Checkpoint,
    CheckpointHeader,
    header_for,
    load_checkpoint,
    read_header,
    save_checkpoint,
)
from tfbind_store.heads.filip import FilipConfig, FilipHead
from tfbind_store.heads.linear import LinearConfig, LinearProbe
from tfbind_store.heads.losses import LossConfig, batch_loss, cell_losses
from tfbind_store.heads.two_tower import TwoTower, TwoTowerConfig

__all__ = [
    "HEADS",
    "Adapter",
    "AdapterConfig",
    "Bilinear",
    "BilinearConfig",
    "Checkpoint",
    "CheckpointHeader",
    "FilipConfig",
    "FilipHead",
    "Geometry",
    "Head",
    "HeadConfig",
    "Intermediates",
    "LinearConfig",
    "LinearProbe",
    "LossConfig",
    "Scaling",
    "TwoTower",
    "TwoTowerConfig",
    "batch_loss",
    "cell_losses",
    "header_for",
    "load_checkpoint",
    "make_head",
    "read_header",
    "save_checkpoint",
]
