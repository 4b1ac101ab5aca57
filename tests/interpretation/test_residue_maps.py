"""Bins against residues: literal intermediates, trained heads of several kinds, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from tests.planted import DOMAINS, Planted, make_planted, planted_protein
from tfbind_store.catalog.database import Catalog
from tfbind_store.errors import ConfigError
from tfbind_store.heads.base import Intermediates
from tfbind_store.interpretation.residue_maps import ResidueMap, residue_map, views_of, write_map
from tfbind_store.loci import Locus
from tfbind_store.scoring.bins import load_run, score_bins
from tfbind_store.training.train import TrainConfig, train_head

HEADS = {
    "adapter": {"width": 16, "filip_heads": 4, "filip_dim": 4, "tower_dim": 8, "n_queries": 3, "joint_depth": 1},
    "filip": {"latent_heads": 4, "latent_dim": 4},
    "linear": {},
}
LOCUS = Locus("chr1", 1_000, 1_100)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    torch.set_num_threads(1)
    made = make_planted(tmp_path_factory.mktemp("planted"))
    for head, options in HEADS.items():
        config = TrainConfig(head=head, options=options, steps=3, bins_per_step=32, pairs_per_step=4, device="cpu")
        train_head(made.store, made.selection, config, head)
    return made


def test_tokens_give_their_part_to_the_residues_they_were_read_from() -> None:
    """Two bins, two FILIP heads, two tokens over three residues; one head of bin 1 met nothing."""
    found = Intermediates(
        torch.zeros(1, 2),
        strongest=torch.tensor([[[0, 0], [1, -1]]]),
        token_residues=torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]]),
        attention=(torch.tensor([[[[1.0, 0.0], [0.25, 0.75]], [[0.0, 1.0], [0.25, 0.75]]]]),),
    )
    views = views_of(found, 3)
    assert views["filip"].tolist() == [[0.5, 0.5, 0], [0, 0, 0.5]]
    assert views["attention"].tolist() == [[0.25, 0.25, 0.5], [0.125, 0.125, 0.75]]
    assert views["reading"].tolist() == [[0.25, 0.25, 0.5]] * 2


def test_where_tokens_are_the_residues_nothing_is_spread() -> None:
    views = views_of(Intermediates(torch.zeros(1, 1), strongest=torch.tensor([[[2, 2, 0, -1]]])), 4)
    assert views["filip"].tolist() == [[0.25, 0, 0.5, 0]]
    assert set(views) == {"filip"}


def literal_map() -> ResidueMap:
    return ResidueMap(
        locus=Locus("c", 0, 20), factor="F", biotype="b", starts=np.array([0, 10]), ends=np.array([10, 20]),
        logits=np.array([1, 2], dtype=np.float32), letters="MKRW", subunit=np.array([0, 0, 1, 1], dtype=np.int16),
        views={"filip": np.array([[0.1, 0.2, 0.3, 0.0], [0.0, 0.2, 0.0, 0.2]], dtype=np.float32)},
    )  # fmt: skip


def test_a_domain_is_counted_beside_its_length() -> None:
    domain = literal_map().domain(1, 3)
    assert domain.share_of_length == 0.5
    assert domain.share["filip"] == pytest.approx(0.7)
    for start, end in ((3, 3), (-1, 2), (0, 5)):
        with pytest.raises(ConfigError, match="are not in F"):
            literal_map().domain(start, end)


def test_the_table_has_every_bin_and_residue(tmp_path: Path) -> None:
    columns = Catalog.read_parquet(write_map(tmp_path / "a" / "m.parquet", literal_map()))
    assert columns["start"].tolist() == [0] * 4 + [10] * 4
    assert columns["letter"].tolist() == list("MKRW") * 2
    assert columns["subunit"].tolist() == [0, 0, 1, 1] * 2
    assert columns["residue"].tolist() == [0, 1, 0, 1] * 2
    assert columns["filip"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0, 0, 0.2, 0, 0.2])
    with pytest.raises(ConfigError, match="no kind of file"):
        write_map(tmp_path / "m.txt", literal_map())


def test_the_group_opens_with_plain_zarr_and_is_replaced(tmp_path: Path) -> None:
    found = literal_map()
    for _ in range(2):
        group = zarr.open_group(write_map(tmp_path / "m.zarr", found, [found.domain(1, 3)]), mode="r")
    assert dict(group.attrs) == {"locus": "c:0-20", "factor": "F", "biotype": "b", "domains": [[1, 3]]}
    np.testing.assert_array_equal(group["filip"][:], found.views["filip"])
    assert group["filip"].metadata.dimension_names == ("bin", "residue")
    assert bytes(group["letter"][:]).decode() == "MKRW"
    for name, values in {"start": found.starts, "end": found.ends, "subunit": found.subunit}.items():
        np.testing.assert_array_equal(group[name][:], values)
    assert [path.name for path in tmp_path.iterdir()] == ["m.zarr"]


def test_the_figure_is_one_svg(tmp_path: Path) -> None:
    text = write_map(tmp_path / "m.svg", literal_map(), [literal_map().domain(1, 3)]).read_text()
    assert text.startswith("<svg")
    assert "filip" in text


@pytest.mark.parametrize(
    ("head", "views"), [("adapter", {"filip", "attention", "reading"}), ("filip", {"filip", "attention"})]
)
def test_trained_heads_are_looked_into(planted: Planted, head: str, views: set[str]) -> None:
    found = residue_map(planted.store, head, "WEA", "cellA", LOCUS)
    protein = planted_protein("WEA")
    assert found.letters == protein
    assert DOMAINS["WE"] in protein
    assert (found.starts.tolist(), found.ends.tolist()) == ([992, 1_024, 1_056, 1_088], [1_024, 1_056, 1_088, 1_120])
    assert set(found.views) == views
    for name, view in found.views.items():
        assert view.shape == (4, len(protein))
        assert (view >= 0).all()
        if name == "filip":
            assert (view.sum(axis=1) <= 1 + 1e-5).all()
        else:
            assert view.sum(axis=1) == pytest.approx(1, abs=1e-4)
    run = load_run(planted.store, head)
    (block,) = score_bins(run.head, run.source, np.array([0]), np.array([0]), np.arange(31, 35))
    np.testing.assert_allclose(found.logits, block.scores[:, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("run", "factor", "biotype", "said"),
    [
        ("linear", "WEA", "cellA", "nothing that tells residues apart"),
        ("adapter", "WEX", "cellA", "no factor"),
        ("adapter", "WEA", "cellC", "no biotype"),
        ("adapter", "WEA", None, "2 biotypes"),
    ],
)
def test_what_cannot_be_looked_into_is_said(
    planted: Planted, run: str, factor: str, biotype: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        residue_map(planted.store, run, factor, biotype, LOCUS)
