"""A spec's fingerprint is its identity: equal fields give equal digits, any other field is named."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfbind_store.errors import SpecError
from tfbind_store.spec import Difference, EmbeddingSpec, canonical_json, fingerprint_of

SPEC = EmbeddingSpec(
    kind="windows",
    embedder="enformer",
    dim=192,
    identity={"weights": "ab", "architecture": {"depth": 2, "heads": 4}},
    grid={"window_bp": 4096, "n_bins": 16, "bin_bp": 128},
    genome="d1",
)


def test_key_order_does_not_change_the_fingerprint() -> None:
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})


def test_fingerprint_is_pinned_across_versions_of_this_code() -> None:
    expected = "ffbc1e25b248a5e0b708aa9b7388d24ea52d654c7765a3581eabc62aa7bc3548"
    assert fingerprint_of({"dim": 8, "n": None, "x": [1, 2.5, "ä"]}) == expected


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}, object()])
def test_what_is_not_json_has_no_identity(bad: object) -> None:
    with pytest.raises(SpecError):
        canonical_json({"value": bad})


def test_spec_comes_back_from_its_json() -> None:
    assert EmbeddingSpec.from_json(json.loads(canonical_json(SPEC.to_json()))) == SPEC


def test_unknown_field_is_refused() -> None:
    with pytest.raises(SpecError, match="layer"):
        EmbeddingSpec.from_json({**SPEC.to_json(), "layer": 3})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dim": 96}, "dim"),
        ({"genome": "d2"}, "genome"),
        ({"dtype": "float32"}, "dtype"),
        ({"numerics_version": 2}, "numerics_version"),
        ({"identity": {"weights": "ab", "architecture": {"depth": 3, "heads": 4}}}, "identity.architecture.depth"),
        ({"grid": {"window_bp": 8192, "n_bins": 16, "bin_bp": 128}}, "grid.window_bp"),
    ],
)
def test_every_change_changes_the_fingerprint_and_is_named(change: dict[str, object], field: str) -> None:
    other = dataclasses.replace(SPEC, **change)  # type: ignore[arg-type]
    assert other.fingerprint != SPEC.fingerprint
    assert [difference.field for difference in SPEC.differences(other)] == [field]
    with pytest.raises(SpecError, match=f"stored with {field} = "):
        SPEC.require_same(other, where="windows", fix="use --name other")


def test_same_spec_is_accepted() -> None:
    SPEC.require_same(dataclasses.replace(SPEC), where="windows", fix="")
    assert SPEC.differences(SPEC) == []


def test_absent_field_reads_as_none() -> None:
    other = dataclasses.replace(SPEC, identity={"weights": "ab", "architecture": {"depth": 2}})
    assert SPEC.differences(other) == [Difference("identity.architecture.heads", 4, None)]


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.booleans() | st.none()))
def test_canonical_json_is_json(value: dict[str, object]) -> None:
    assert json.loads(canonical_json(value)) == value
