"""What trunks have seen of what is held out: of all arrays, of those that will be read, of those that say nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.planted import MotifEmbedder, Planted, make_planted
from tfbind_store.errors import LeakError
from tfbind_store.ingest.kin_tables import import_trunk
from tfbind_store.ingest.loci import import_loci
from tfbind_store.loci import Grid
from tfbind_store.precompute.run import embed_windows
from tfbind_store.query.selection import Selection, SelectionConfig, make_selection
from tfbind_store.query.splits import SplitConfig
from tfbind_store.query.trunks import Trunk, looked_at
from tfbind_store.spec import EmbeddingSpec

HOLD_OUT_CHR1 = SplitConfig(test_chroms=("chr1",), valid_chroms=("chr3",))
"""The planted store's own trunk was trained on chr1."""
SAW_CHR1 = "chromosomes of embeddings/windows"


class _TrainedOn(MotifEmbedder):
    def __init__(self, trained_on: dict[str, list[str]] | None) -> None:
        self.trained_on = trained_on

    def spec(self, genome_digest: str, grid: Grid) -> EmbeddingSpec:
        spec = super().spec(genome_digest, grid)
        return replace(spec, identity={**spec.identity, "class": "other", "trained_on": self.trained_on})


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    made = make_planted(tmp_path_factory.mktemp("planted"))
    embed_windows(made.store, _TrainedOn({"factors": ["WEB"], "chromosomes": ["chr2"], "biotypes": []}), name="other")
    embed_windows(made.store, _TrainedOn(None), name="silent")
    return made


def leaks_of(planted: Planted, name: str, *windows: str, **choices: object) -> list[str]:
    config = SelectionConfig(split=HOLD_OUT_CHR1, windows=windows, allow_leaks=("trunk",), **choices)
    info = make_selection(planted.store, name, config, overwrite=True).info
    return [leak["shared"] for leak in info["leaks"] if leak["kind"] == "trunk"]


def test_all_trunks_are_looked_at_unless_some_arrays_are_named(planted: Planted) -> None:
    assert leaks_of(planted, "every") == [SAW_CHR1]
    assert leaks_of(planted, "one", "windows") == [SAW_CHR1]
    assert leaks_of(planted, "full_name", "embeddings/windows", "other") == [SAW_CHR1]
    assert leaks_of(planted, "another", "other") == []


def test_a_refused_selection_can_be_made_for_a_trunk_yet_to_be_trained(planted: Planted) -> None:
    """As the error's fix says: the array is named before there is one, and a trunk is trained on the selection."""
    with pytest.raises(LeakError, match="the trunk has seen held-out chromosomes") as refused:
        make_selection(planted.store, "new", SelectionConfig(split=HOLD_OUT_CHR1))
    assert "--windows NAME" in refused.value.fix
    made = make_selection(planted.store, "new", SelectionConfig(split=HOLD_OUT_CHR1, windows=("mine",)))
    assert "mine is not embedded yet: training looks at its trunk" in made.info["notes"]
    selection = Selection.open(planted.store, "new")
    selection.require_unseen_by("embeddings/other")
    with pytest.raises(LeakError, match=f"the trunk has seen held-out {SAW_CHR1}: chr1"):
        selection.require_unseen_by("embeddings/windows")


def test_leaks_of_trunks_that_a_model_does_not_read_are_not_its_own(planted: Planted) -> None:
    assert leaks_of(planted, "allowed") == [SAW_CHR1]
    selection = Selection.open(planted.store, "allowed")
    assert [leak["shared"] for leak in selection.leaks_to("embeddings/windows")] == [SAW_CHR1]
    assert selection.leaks_to("embeddings/other") == []


def test_imported_trunks_speak_for_arrays_that_say_nothing(planted: Planted, tmp_path: Path) -> None:
    """By name and by place; of an array that says itself what its trunk was trained on they are not."""
    table, bed = tmp_path / "targets.tsv", tmp_path / "split.bed"
    table.write_text("factor\tbiotype\nWEB\tcellA\n")
    bed.write_text("chr1\t0\t6000\ttrain\nchr2\t0\t3000\tvalid\n")
    store = planted.store
    import_trunk(store, table, "published")
    import_loci(store, bed, "published")
    split = replace(HOLD_OUT_CHR1, hold_out={"factor": ("WEB",)})
    config = SelectionConfig(split=split, windows=("other",), allow_leaks=("trunk", "paralog"))
    make_selection(store, "places", config, overwrite=True)
    selection = Selection.open(store, "places")
    said = [leak["shared"] for leak in selection.leaks_to("embeddings/silent") if leak["kind"] == "trunk"]
    assert said[0] == "factors of published"
    assert said[1].startswith("places of published (")
    assert len(said) == 2
    own = [leak["shared"] for leak in selection.leaks_to("embeddings/other") if leak["kind"] == "trunk"]
    assert own == ["factors of embeddings/other"]
    made_for_it = replace(config, windows=("silent",))
    info = make_selection(store, "silent", made_for_it).info
    assert [leak["shared"] for leak in info["leaks"] if leak["kind"] == "trunk"] == said
    repeated = [leak["shared"] for leak in Selection.open(store, "silent").leaks_to("embeddings/silent")]
    assert sorted(repeated) == sorted(leak["shared"] for leak in info["leaks"])


def test_imported_trunks_are_of_no_array() -> None:
    known = [
        Trunk("embeddings/a", {"factors": ["X"]}, None, True),
        Trunk("embeddings/b", None, None, True),
        Trunk("published", {"factors": ["Y"]}, None, False),
    ]

    def names(*arrays: str) -> list[str]:
        return [trunk.name for trunk in looked_at(known, arrays).trunks]

    assert names() == ["embeddings/a", "embeddings/b", "published"]
    assert names("a") == ["embeddings/a"]
    assert names("b") == ["embeddings/b", "published"]
    assert names("published") == []
    assert looked_at(known, ("published",)).notes == ["published is not embedded yet: training looks at its trunk"]
