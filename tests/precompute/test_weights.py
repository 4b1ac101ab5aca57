"""Devices and environment flags."""

from __future__ import annotations

import pytest
import torch

from tfbind_store.errors import ConfigError
from tfbind_store.precompute.weights import environment_flag, pick_device


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", True), ("true", True), (" YES ", True), ("on", True), ("0", False), ("false", False), ("no", False),
     ("", False), (None, False)],
)  # fmt: skip
def test_flags_are_booleans(monkeypatch, text, expected):
    monkeypatch.delenv("PROTEIN_EMBED_USE_CPU", raising=False)
    if text is not None:
        monkeypatch.setenv("PROTEIN_EMBED_USE_CPU", text)
    assert environment_flag("PROTEIN_EMBED_USE_CPU") is expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = pick_device("auto", cpu_flag="PROTEIN_EMBED_USE_CPU")
    assert device.type == ("cpu" if expected else "cuda")
    assert pick_device("cuda:1", cpu_flag="PROTEIN_EMBED_USE_CPU") == torch.device("cuda:1")


def test_refusals(monkeypatch):
    monkeypatch.setenv("PROTEIN_EMBED_USE_CPU", "maybe")
    with pytest.raises(ConfigError, match="neither yes nor no"):
        pick_device("auto", cpu_flag="PROTEIN_EMBED_USE_CPU")
    with pytest.raises(ConfigError, match="no device is called 'gpu!'"):
        pick_device("gpu!")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU"):
        pick_device("cuda")
