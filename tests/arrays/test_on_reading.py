"""What a spec may say about reading; anything else is refused."""

import pytest

from tfbind_store.arrays.on_reading import FIELD, Reading, stored_bins
from tfbind_store.errors import SpecError

SHA = "a" * 64


@pytest.mark.parametrize(
    "reading",
    [
        Reading(),
        Reading(scale_rows=4),
        Reading(pointwise_dim=96, pointwise_sha256=SHA),
        Reading(scale_rows=4, pointwise_dim=96, pointwise_sha256=SHA),
    ],
)
def test_comes_back_as_it_was_written(reading):
    identity = {"class": "x", **({} if reading.is_plain else {FIELD: reading.to_json()})}
    assert Reading.of(identity) == reading
    assert stored_bins(identity, 10) == 10 + reading.scale_rows


@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        "int8",
        7,
        {"zstd": {}},
        {"int8": {}},
        {"int8": {"scale_rows": 5}},
        {"int8": {"scale_rows": 4, "more": 1}},
        {"int8": None},
        {"pointwise": {}},
        {"pointwise": {"dim": 96}},
        {"pointwise": {"dim": 96, "sha256": SHA, "run": "this"}},
        {"pointwise": {"dim": -96, "sha256": SHA}},
        {"pointwise": {"dim": 2**40, "sha256": SHA}},
        {"pointwise": {"dim": 96.0, "sha256": SHA}},
        {"pointwise": {"dim": True, "sha256": SHA}},
        {"pointwise": {"dim": "96", "sha256": SHA}},
        {"pointwise": {"dim": 0, "sha256": SHA}},
        {"int8": {"scale_rows": 4}, "other": 1},
    ],
)
def test_anything_else_is_refused(said):
    with pytest.raises(SpecError, match="this version cannot read an array by"):
        Reading.of({FIELD: said})
