"""Configs come from TOML and go back; unknown keys and wrong types are refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tfbind_store.config import from_mapping, load_toml, to_toml, with_settings
from tfbind_store.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    lr: float = 3e-4
    schedule: Literal["cosine", "constant"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Run:
    steps: int = 100
    seed: int = 0
    name: str = "run"
    compile: bool = False
    seeds: tuple[int, ...] = (0, 1)
    clip: float | None = 1.0
    weights: dict[str, float] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)


def test_toml_out_and_in_is_the_same_config(tmp_path: Path) -> None:
    config = Run(steps=7, name='a "b" é', seeds=(3,), weights={"SOX2": 0.5}, optimizer=Optimizer(lr=1e-5))
    path = tmp_path / "run.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_toml(Run, path) == config


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        from_mapping(Run, {"optimizer": {"shedule": "cosine"}}, where="run.toml")
    assert "shedule" in caught.value.what
    assert caught.value.fix == "did you mean schedule?"
    assert caught.value.where == "run.toml: optimizer"


def test_a_missing_value_is_named() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Needs:
        path: Path
        name: str = ""

    with pytest.raises(ConfigError, match="path is missing") as caught:
        from_mapping(Needs, {}, where="plan.toml: peaks")
    assert caught.value.where == "plan.toml: peaks"


@pytest.mark.parametrize(
    "values",
    [
        {"steps": 1.5},
        {"steps": True},
        {"name": 3},
        {"compile": "yes"},
        {"seeds": [1, "x"]},
        {"optimizer": {"schedule": "linear"}},
        {"optimizer": 3},
        {"clip": "none"},
        {"clip": float("nan")},
        {"optimizer": {"lr": float("inf")}},
        {"optimizer": {"lr": 10**400}},
        {"seed": -1},
        {"seed": 2**31},
    ],
)
def test_wrong_type_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        from_mapping(Run, values, where="test")


def test_integers_are_good_floats() -> None:
    assert from_mapping(Run, {"clip": 2}, where="test").clip == 2.0


def test_settings_change_nested_values_and_leave_the_rest() -> None:
    config = with_settings(Run(), ["optimizer.lr=1e-4", "name=probe", "seeds=[5, 6]", "compile=true"])
    assert config == Run(name="probe", seeds=(5, 6), compile=True, optimizer=Optimizer(lr=1e-4))


@pytest.mark.parametrize("setting", ["steps", "optimizer.rate=1", "steps.x=1", "steps=many"])
def test_bad_settings_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError):
        with_settings(Run(), [setting])


def test_absent_and_broken_files_are_refused_by_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such config file"):
        load_toml(Run, tmp_path / "none.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("steps = ", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML") as caught:
        load_toml(Run, broken)
    assert caught.value.where == str(broken)
