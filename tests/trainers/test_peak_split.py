import numpy as np
import pytest

from tests.planted import planted  # noqa: F401
from tfbind_store.errors import ConfigError
from tfbind_store.trainers.peak_split import PeakSplit


def split_of(store, **changes):
    choice = {"held_out": {"factor": ["OLA"], "biotype": []}, "excluded": {"factor": ["WEA"], "biotype": []}} | changes
    return PeakSplit.of(store, [1, "chr2"], ["3"], **choice)


def test_names_of_chromosomes_come_from_numbers(planted):  # noqa: F811
    split = split_of(planted.store)
    assert (split.train_chroms, split.valid_chroms) == (("chr1", "chr2"), ("chr3",))
    with pytest.raises(ConfigError, match="none of the chromosomes 77"):
        PeakSplit.of(planted.store, [77], [3], held_out={}, excluded={})


def test_held_out_factors_do_not_train_and_excluded_ones_do_not_occur(planted):  # noqa: F811
    selection = split_of(planted.store).selected(["random:1"], 1.0, 5)
    assert "OLA" not in selection.trained_on["factors"]
    named = {name.split(".")[1] for name in selection.trained_on["experiments"]}
    assert named
    assert "WEA" not in named


def test_the_same_split_is_the_same_selection(planted):  # noqa: F811
    first, again = (split_of(planted.store).selected(["random:1"], 0.5, 6) for _ in range(2))
    assert first.name == again.name
    assert split_of(planted.store).selected(["random:1"], 0.5, 7).name != first.name


def test_validation_reads_whole_chromosomes(planted):  # noqa: F811
    split, tiling = split_of(planted.store), planted.store.tiling
    windows = split.windows(split.selected(["random:1"], 1.0, 5))
    valid = np.arange(*tiling.first_window[tiling.chrom_index["chr3"] :][:2])
    assert set(valid) <= set(windows.all)
    assert set(windows.train) <= set(windows.all)
    assert not set(valid) & set(windows.train)
    assert (np.diff(windows.all) > 0).all()
