"""Read values beside labels: which row has which, and what they add to the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from tests.planted import N_BINS, Planted, planted
from tfbind_store.errors import ConfigError
from tfbind_store.feeding.feed import choose_arrays, to_torch
from tfbind_store.heads import Geometry, LossConfig, cell_losses, load_checkpoint, make_head
from tfbind_store.heads.filip import FilipHead
from tfbind_store.query.loader import Loader
from tfbind_store.query.selection import Selection, make_selection
from tfbind_store.training.loss import HeadLoss
from tfbind_store.training.strengths import training_strengths
from tfbind_store.training.train import TrainConfig, train_head

__all__ = ["planted"]
CPU = torch.device("cpu")
SMALL = {"latent_heads": 4, "latent_dim": 4, "attention_heads": 2, "attention_dim": 4, "dropout": 0.0}


@pytest.fixture(scope="module")
def scored(planted: Planted) -> Planted:
    """Peaks of EA.WEA.cellA are 7 times their bin; WEB's have no score; of cellA the number of peaks is known."""
    with planted.store.writer() as catalog, catalog.transaction():
        of = "experiment_id = (SELECT experiment_id FROM data.experiments WHERE experiment = 'EA.{}.cellA')"
        catalog.execute(f"UPDATE data.peaks SET score = 7 * bin WHERE {of.format('WEA')}")
        catalog.execute(f"UPDATE data.peaks SET score = NULL WHERE {of.format('WEB')}")
        catalog.execute("UPDATE data.experiments SET peaks_nr = 250 WHERE experiment LIKE '%.cellA'")
        catalog.execute("UPDATE data.experiments SET peaks_nr = NULL WHERE experiment LIKE '%.cellB'")
    made = make_selection(planted.store, "scored", Selection.open(planted.store, planted.selection).config)
    return planted._replace(selection=made.name)


def test_each_row_has_the_score_of_its_own_peak(scored: Planted) -> None:
    store = scored.store
    selection = Selection.open(store, scored.selection)
    strengths = training_strengths(store, selection, CPU)
    with store.reader() as catalog:
        names = dict(catalog.rows("SELECT experiment_id, experiment FROM data.experiments"))
        sql = "SELECT window_id, bin, bin * 7 FROM data.peaks WHERE experiment_id = ?"
        wea = next(key for key, name in names.items() if name == "EA.WEA.cellA")
        peaks = {int(w) * N_BINS + int(b): float(score) for w, b, score in catalog.rows(sql, [wea])}
    table = selection.columns("train", names=("row", "window", "bin", "experiment", "label"))
    seen = set()
    for row, window, bin_, experiment, label in zip(*(table[name] for name in table), strict=True):
        number, value = (float(part) for part in strengths.of(torch.tensor(int(row))))
        name = names[int(experiment)]
        assert number == 250 if name.endswith("cellA") else np.isnan(number)
        if not (label == 1).any():
            assert value == 0
        elif name == "EA.WEB.cellA":
            assert np.isnan(value)
        elif name == "EA.WEA.cellA":
            first = int(window) * N_BINS + int(bin_)
            assert value in {peaks.get(first + offset) for offset in range(len(label))}
        else:
            assert value == 100
        seen.add((name, bool((label == 1).any())))
    assert {("EA.WEA.cellA", True), ("EA.WEB.cellA", True), ("EB.WEA.cellB", False)} <= seen


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_loss_is_that_of_labels_and_a_share_of_that_of_strengths(scored: Planted, checkpointing: bool) -> None:
    store, selection = scored.store, Selection.open(scored.store, scored.selection)
    torch.manual_seed(0)
    arrays = choose_arrays(store)
    geometry = Geometry(*(store.array(name).shape[-1] for name in arrays))
    head = make_head("filip", geometry, {**SMALL, "read_values": 0.25, "fourier_dims": 8})
    assert isinstance(head, FilipHead)
    assert head.read_values is not None
    strengths = training_strengths(store, selection, CPU)
    _, batch = next(iter(Loader(store, selection, "train", arrays=arrays, batch_size=512).epoch(0)))
    given = to_torch(batch, CPU)
    config = LossConfig()
    found = HeadLoss(head, config, checkpointing=checkpointing, strengths=strengths)(given)
    numbers, values = strengths.of(given.rows)
    described = torch.cat(
        [head.read_values.norm(head.mixed_rows(given).mean(1)), head.read_values.features(numbers)], dim=-1
    )
    target = values.nan_to_num(0).log1p()
    each = F.smooth_l1_loss(head.read_values.net(described).squeeze(-1), target, reduction="none")
    each = torch.where(values.isnan(), torch.zeros_like(each), each)
    plain = cell_losses(config, head(given), given.labels)
    wanted = (plain + 0.25 * each.unsqueeze(-1) * ~given.labels.isnan()) * given.weights.unsqueeze(-1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert 0 < int(values.isnan().sum()) < len(values)


def test_a_run_learns_them_and_its_head_opens_again(scored: Planted) -> None:
    options = {**SMALL, "read_values": 0.05, "fourier_dims": 8}
    config = TrainConfig(head="filip", options=options, pairing="rows", steps=3, batch_rows=32, device="cpu")
    result = train_head(scored.store, scored.selection, config, "strengths")
    head = load_checkpoint(result.path / "head.safetensors").head
    assert isinstance(head, FilipHead)
    assert head.read_values is not None
    with pytest.raises(ConfigError, match="training is dense"):
        train_head(scored.store, scored.selection, TrainConfig(head="filip", options=options, device="cpu"), "dense")
