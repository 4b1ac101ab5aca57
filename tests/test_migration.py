"""The new calls of docs/migration.md, run as they stand there on small files; only sizes of windows are made small."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyBigWig
import pytest
import torch
from enformer_pytorch import Enformer

from tests.precompute.test_bert import write_folder
from tfbind_store import AdapterModel, BigWigTrainer, Grid, Store, Trainer
from tfbind_store.feeding.feed import choose_arrays
from tfbind_store.feeding.rows import torch_batches
from tfbind_store.ingest import import_negatives, import_peaks, import_proteins, import_tracks
from tfbind_store.precompute.composition import CompositionEmbedder
from tfbind_store.precompute.embedder import make_text_embedder
from tfbind_store.precompute.enformer import EnformerEmbedder, load_trunk, random_trunk, save_trunk
from tfbind_store.precompute.rows import embed_contexts, embed_factors
from tfbind_store.precompute.run import embed_windows
from tfbind_store.query.loader import Loader

PAGE = Path(__file__).parents[1] / "docs" / "migration.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
TRUNK = {"dim": 24, "depth": 1, "heads": 2, "attn_dim_key": 6, "num_downsamples": 5, "dim_divisible_by": 4}
HUMAN = {f"chr{n}": 12_288 for n in (1, 2, 3, 5)}
MOUSE = {"chr1": 8_192, "chr2": 8_192}
FACTORS = {"AAA": "TGACGTCAAG", "BBB": "CCGATTAGCC", "AFF4": "GGAATTTCCG"}
ESM = {"name": "esm", "num_layers": 2, "embed_dim": 16, "attention_heads": 4, "device": "cpu"}


def new_call(starts: str) -> str:
    """The part under ``# new`` of the block whose old part begins so, with windows of a size for tests."""
    (block,) = (block for block in BLOCKS if block.startswith(f"# old\n{starts}"))
    code = block.partition("\n# new")[2].partition("\n")[2]
    return code.replace("196_608", "4096").replace("896", "96")


def written(path: Path, lengths: dict[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    genome = {chrom: rng.choice(list("ACGT"), length) for chrom, length in lengths.items()}
    path.write_text("".join(f">{chrom}\n{''.join(bases)}\n" for chrom, bases in genome.items()))
    return genome


def bigwig(path: Path, genome: dict[str, np.ndarray]) -> None:
    """GC along the genome."""
    with pyBigWig.open(str(path), "w") as file:
        file.addHeader([(chrom, len(bases)) for chrom, bases in genome.items()])
        for chrom, bases in genome.items():
            values = np.where(np.isin(bases, ["G", "C"]), 0.1, 0.01)
            file.addEntries(chrom, 0, values=values.tolist(), span=1, step=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the page's calls name."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    human, mouse = written(folder / "hg38.fa", HUMAN, rng), written(folder / "mm10.fa", MOUSE, rng)
    peaks = [
        f"{chrom}\t{start}\t{start + 10}\tGSE{number}.{factor}.{cell}\t100\t.\t{start}\t{start + 1}\t0\n"
        for number, factor in enumerate(FACTORS)
        for chrom in HUMAN
        for start in range(600 + 700 * number, 8_000, 2_400)
        for cell in ("MCF-7", "K-562")
    ]
    (folder / "remap.bed").write_text("".join(peaks))
    (folder / "negatives.bed").write_text(
        "".join(f"{c}\t{s}\t{s + 10}\n" for c in HUMAN for s in range(9_000, 12_000, 50))
    )
    for name in ("npy", "fastas", "bigwigs", "tracks"):
        (folder / name).mkdir()
    for cell in ("MCF-7", "K-562"):
        unbound = np.array([f".AAA.{cell}\t" not in peak for peak in peaks])
        np.save(folder / "npy" / f"GSE0.AAA.{cell}.bed.bool.npy", unbound)
    for factor in FACTORS:
        protein = "M" + "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), 40))
        (folder / "fastas" / f"{factor}.{factor}_HUMAN.fasta").write_text(f">sp|P1|{factor}_HUMAN\n{protein}\n")
    rows = []
    for name, genome, assembly, factor, cell in (
        ("bigwigs/SRX0", human, "hg38", "AAA", "K-562"), ("bigwigs/SRX1", human, "hg38", "BBB", "K-562"),
        ("bigwigs/SRX5", mouse, "mm10", "Aaa", "MEL"), ("tracks/SRX8", human, "hg38", "", "K-562"),
        ("tracks/SRX9", mouse, "mm10", "", "MEL"),
    ):  # fmt: skip
        bigwig(folder / f"{name}.bw", genome)
        kind = "TFs and others" if factor else "ATAC-Seq"
        rows.append(f"{name[-4:]}\t{assembly}\t{kind}\t{factor or kind}\tBlood\t{cell}\n")
    (folder / "experimentList.tab").write_text("".join(rows))
    (folder / "human.bed").write_text(
        "".join(f"chr{n}\t0\t8192\t{'valid' if n == 2 else 'train'}\n" for n in (1, 2, 3, 5))
    )
    (folder / "mouse.bed").write_text("chr1\t0\t8192\ttrain\nchr2\t0\t8192\tvalid\n")
    return folder


@pytest.fixture(scope="module")
def trunk() -> Enformer:
    model = random_trunk(TRUNK, seed=0).model
    assert isinstance(model, Enformer)
    return model


@pytest.fixture
def names(files: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Names that the page's calls use; relative paths are those of the files."""
    monkeypatch.chdir(files)
    monkeypatch.setenv("TFBIND_CACHE", str(files / "cache"))
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {
        "torch": torch, "AdapterModel": AdapterModel, "Trainer": Trainer, "BigWigTrainer": BigWigTrainer,
        "Loader": Loader, "torch_batches": torch_batches, "choose_arrays": choose_arrays,
        "import_negatives": import_negatives, "import_tracks": import_tracks,
    }  # fmt: skip
    torch.set_num_threads(before)


def small_model(trunk: Enformer, **options: Any) -> AdapterModel:
    return AdapterModel(
        enformer=trunk, use_aa_embeds=True, aa_embed_encoder="composition", use_free_text_context=True,
        free_text_context_encoder="hashed", latent_dim=4, latent_heads=4, **options,
    )  # fmt: skip


def test_the_model(names: dict[str, Any], trunk: Enformer, tmp_path: Path) -> None:
    write_folder(tmp_path)
    encoders = {"aa_embed_encoder": ESM, "free_text_context_encoder": {"name": "bert", "checkpoint": str(tmp_path)}}

    def with_small_encoders(**options: Any) -> AdapterModel:
        return AdapterModel(**options, **encoders, latent_dim=4, latent_heads=4)

    names |= {
        "AdapterModel": with_small_encoders, "enformer": trunk, "seq": torch.randint(0, 4, (2, 512)),
        "target": torch.tensor([0, 1]), "aa": ["KVFGRCELAA", ("AMKRHGLDNY", "YNDLGHRKMA")],
        "texts": ["cell type: GM12878", "cell type: H1-hESC"],
    }  # fmt: skip
    exec(new_call("model = AdapterModel("), names)
    assert names["loss"].shape == ()
    names["loss"].backward()
    assert names["model"].head.filip.null.grad.abs().sum() > 0


def test_the_trainer_of_peaks(names: dict[str, Any], trunk: Enformer) -> None:
    names["model"] = small_model(trunk, binary_target=True)
    exec(new_call("trainer = Trainer("), names)
    assert names["log"]["step"] == 1
    assert 0.3 < names["log"]["loss"] < 3
    trained = names["trainer"].selection.trained_on
    assert trained["factors"] == ["AAA", "BBB"]
    assert trained["chromosomes"] == ["chr1", "chr3", "chr5"]
    assert names["trainer"].selection.info["config"]["negatives"] == ["listed:1"]


def test_the_trainer_of_tracks(names: dict[str, Any], trunk: Enformer) -> None:
    names["model"] = small_model(trunk)
    made: list[BigWigTrainer] = []

    def kept(*args: Any, **options: Any) -> BigWigTrainer:
        made.append(BigWigTrainer(*args, **options))
        return made[-1]

    names["BigWigTrainer"] = kept
    exec(new_call("trainer = BigWigTrainer("), names)
    both, alone = made
    assert [(one.name, one.n_tracks) for one in both.streams] == [
        ("human", 2), ("mouse", 1), ("human_head", 1), ("mouse_head", 1),
    ]  # fmt: skip
    assert [(one.name, one.n_tracks) for one in alone.streams] == [("", 2)]
    assert set(alone.store.tiling.window_chrom(alone.streams[0].split.train)) == {0, 2, 3}
    assert both.store.grid.n_bins == 96
    assert names["log"]["step"] == 1
    assert np.isfinite(names["log"]["loss"])


def test_peak_datasets_and_the_loop(names: dict[str, Any], trunk: Enformer, files: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", fasta=files / "hg38.fa", grid=Grid(window_bp=4096, n_bins=128, bin_bp=32))
    import_proteins(store, files / "fastas")
    import_peaks(store, files / "remap.bed")
    save_trunk(trunk, tmp_path / "trunk", None)
    embed_windows(store, EnformerEmbedder(load_trunk(tmp_path / "trunk"), device="cpu"))
    embed_factors(store, CompositionEmbedder())
    embed_contexts(store, make_text_embedder("hashed"))
    names["store"] = store
    call = (
        new_call("dataset = RemapAllPeakDataset(").replace("sample=0.1", "sample=0.9").replace("workers=4", "workers=0")
    )
    exec(call, names)
    rows = names["rows"]
    assert rows.trained_on == {
        "factors": ["AAA", "BBB"], "biotypes": ["MCF-7"], "chromosomes": ["chr1", "chr3", "chr5"],
        "experiments": ["GSE0.AAA.MCF-7", "GSE1.BBB.MCF-7"],
    }  # fmt: skip
    small = {"latent_dim": 4, "latent_heads": 4}
    names["AdapterModel"] = lambda **options: AdapterModel(**options, **small)
    exec(new_call("seq, tf_aa, contextual_texts"), names)
    assert 0.1 < float(names["loss"].detach()) < 5
    steps = names["optimizer"].state[names["model"].head.filip.null]["step"]
    assert int(steps) == -(-len(rows.columns("train", names=("row",))["row"]) // 8)


def test_bigwig_datasets(names: dict[str, Any], files: Path, tmp_path: Path) -> None:
    store = Store.create(tmp_path / "store", fasta=files / "hg38.fa", grid=Grid(window_bp=4096, n_bins=128, bin_bp=32))
    import_proteins(store, files / "fastas")
    names["store"] = store
    exec(new_call("loader = get_bigwig_dataloader("), names)
    with pyBigWig.open(str(files / "bigwigs" / "SRX0.bw")) as file:
        wanted = np.array(file.values("chr1", 0, 4096)).reshape(128, 32).sum(1)
    np.testing.assert_allclose(names["labels"][0], wanted, rtol=1e-5)


def test_every_new_call_of_the_page_is_run_here() -> None:
    starts = [block.partition("\n")[2].partition("(")[0].partition(",")[0] for block in BLOCKS]
    assert starts == [
        "model = AdapterModel", "trainer = Trainer", "trainer = BigWigTrainer", "dataset = RemapAllPeakDataset", "seq",
        "loader = get_bigwig_dataloader",
    ]  # fmt: skip
