"""The command line: every help's examples run, in the order of the flow, and errors are three lines and a status."""

from __future__ import annotations

import gzip
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import pyBigWig
import pytest
from click.testing import CliRunner, Result

from tfbind_store.cli import main
from tfbind_store.cli.frame import Command, Group, MainGroup, plain, table
from tfbind_store.errors import Interrupted, PeakFileError, StoreBusy

FACTORS = {"REB1": "CGGGTAA", "RAP1": "TGTATGGGT", "ABF1": "TCACTAAACGA", "MCM1": "CCTAATTAGG"}
CHROM_BP = 24_000


def write_inputs(folder: Path) -> None:
    """Write the files that the examples name: three small chromosomes with planted motifs."""
    rng = np.random.default_rng(7)
    genome = {chrom: rng.choice(list("ACGT"), CHROM_BP) for chrom in ("chrI", "chrII", "chrIII")}
    peaks = []
    for number, (factor, motif) in enumerate(FACTORS.items()):
        for chrom, bases in genome.items():
            for place in range(200 + 60 * number, CHROM_BP - 500, 800):
                bases[place : place + len(motif)] = list(motif)
                peaks.append((chrom, place, place + len(motif), f"E{number}.{factor}.BY4741", 100 + number))
    fasta = "".join(f">{chrom}\n{''.join(bases)}\n" for chrom, bases in genome.items())
    with gzip.open(folder / "genome.fa.gz", "wt") as file:
        file.write(fasta)
    with gzip.open(folder / "peaks.bed.gz", "wt") as file:
        file.writelines("\t".join(map(str, peak)) + "\n" for peak in peaks)
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    with gzip.open(folder / "proteins.fa.gz", "wt") as file:
        for factor in FACTORS:
            file.write(f">Y{factor} gene={factor}\nM{''.join(rng.choice(letters, 80))}\n")
    (folder / "peaks").mkdir()
    (folder / "peaks" / "E9_REB1.bed").write_text("chrI\t5000\t5010\nchrII\t7000\t7010\nchrIII\t9000\t9010\n")
    (folder / "more").mkdir()
    (folder / "more" / "one.bed.gz").write_bytes(gzip.compress(b"1\t11000\t11010\n3\t12000\t12010\n"))
    (folder / "more.tsv").write_text("file\taccession\tTarget\none.bed.gz\tE10\tABF1\n")
    (folder / "unbound.tsv").write_text("experiment\nE11.MCM1.BY4741\n")
    (folder / "names.tsv").write_text("REB1\tGRF2\nRAP1\tGRF1\n")
    (folder / "cells.tsv").write_text("biotype\tdescription\nBY4741\thaploid laboratory strain in rich medium\n")
    (folder / "experiments.tsv").write_text("experiment\tlaboratory\nE0.REB1.BY4741\tours\n")
    (folder / "promoters.bed").write_text("chrI\t100\t600\tfirst\n")
    (folder / "blacklist.bed").write_text("chr1\t23000\t23500\n")
    (folder / "domains.tsv").write_text("gene\tdomain\nREB1\tMyb/SANT\nRAP1\tMyb/SANT\n")
    (folder / "targets_human.txt").write_text("index\tdescription\n0\tDNASE:K562\n1\tCHIP:CTCF:MCF-7\n")
    (folder / "random-ranges.bed").write_text("chrI\t4100\t4164\nchrII\t20100\t20164\n")
    (folder / "negative-peaks").mkdir()
    unbound = np.array([".REB1." not in peak[3] for peak in peaks])
    np.save(folder / "negative-peaks" / "E0.REB1.BY4741.bed.bool.npy", unbound)
    (folder / "tracks").mkdir()
    for track in ("SRX1", "SRX2"):
        bigwig = pyBigWig.open(str(folder / "tracks" / f"{track}.bw"), "w")
        bigwig.addHeader([("I", CHROM_BP), ("II", CHROM_BP)])
        for chrom in ("I", "II"):
            bigwig.addEntries(chrom, 0, values=rng.random(CHROM_BP // 2).tolist(), span=2, step=2)
        bigwig.close()
    (folder / "experimentList.tab").write_text("SRX1\tR64\tTFs and others\tREB1\tYeast\tBY4741\tx\ty\n")
    (folder / "signals.tsv").write_text("track\tbiotype\nSRX2\tBY4741\n")
    ref = genome["chrI"][999]
    (folder / "snps.vcf").write_text(
        f"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\nI\t1000\trs1\t{ref}\t{ref}A,{'ACGT'.replace(ref, '')[0]}\n"
    )
    (folder / "plan.toml").write_text(
        'store = "planned.store"\n[init]\nfasta = "genome.fa.gz"\nwindow_bp = 4096\nbins = 16\n'
        '[peaks]\npath = "peaks.bed.gz"\n[proteins]\npath = "proteins.fa.gz"\n[select.all]\n'
    )
    (folder / "motifs.jaspar").write_text(
        ">MA0363.1\tREB1\n" + "".join(f"{b} [ {' '.join(str(9 * (b == c)) for c in 'CGGGTAA')} ]\n" for b in "ACGT")
    )


def flow(group: click.Group = main) -> Iterator[str]:
    """Yield the examples of all commands, in the order in which help lists them."""
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from flow(command)
        elif isinstance(command, Command) and command.name != "demo":
            yield from command.examples


EXAMPLES = list(flow())


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    """Run all examples one after the other in one folder."""
    folder = tmp_path_factory.mktemp("flow")
    write_inputs(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        return {example: CliRunner().invoke(main, shlex.split(example)[1:]) for example in EXAMPLES}
    finally:
        os.chdir(before)


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_helps_run(ran: dict[str, Result], example: str) -> None:
    result = ran[example]
    assert result.exit_code == 0, result.output
    assert result.stdout or " --out " in example  # a file instead
    if "--json" in example:
        json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_runs_and_will_not_remove_what_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-store").mkdir()
    (tmp_path / "demo-store" / "mine.txt").write_text("mine")
    refused = CliRunner().invoke(main, ["demo", "demo-store", "--overwrite"])
    assert refused.exit_code == 1
    assert (tmp_path / "demo-store" / "mine.txt").exists()
    (tmp_path / "demo-store" / "mine.txt").unlink()
    result = CliRunner().invoke(main, ["demo", "demo-store"])
    assert result.exit_code == 0, result.output
    assert "unseen factor" in result.stdout
    assert "report.html" in result.stdout


def running(action: Callable[[], object]) -> Result:
    """Run a command that does `action`."""

    @click.group(cls=MainGroup)
    def tool() -> None: ...

    @tool.command("fail", cls=Command)
    def fail() -> None:
        action()

    return CliRunner().invoke(tool, ["fail"])


def failing(error: BaseException) -> Result:
    """Run a command that raises `error`."""

    def fail() -> None:
        raise error

    return running(fail)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["factors", "--dry-run"], "--dry-run is of windows, not of factors"),
        (["contexts", "--loci", "promoters"], "--loci is of windows, not of contexts"),
        (["factors", "--engine", "ray"], "--engine is of windows, not of factors"),
        (["windows", "--every-protein"], "--every-protein is of factors, not of windows"),
    ],
)
def test_options_that_mean_nothing_to_an_embed_are_refused(arguments: list[str], what: str) -> None:
    result = CliRunner().invoke(main, ["embed", "none.store", *arguments])
    assert result.exit_code == 1
    assert what in result.stderr


class TestErrors:
    def test_are_what_where_fix_and_no_traceback(self) -> None:
        result = failing(PeakFileError("end 5 <= start 5", where="a.bed:3", fix="mend the line"))
        assert result.stderr == "Error: end 5 <= start 5\n  where: a.bed:3\n  fix:   mend the line\n"
        assert result.stdout == ""
        assert result.exit_code == 1

    def test_busy_is_75(self) -> None:
        assert failing(StoreBusy("another process writes")).exit_code == 75

    def test_interrupted_is_130(self) -> None:
        assert failing(Interrupted("stopped")).exit_code == 130
        assert failing(KeyboardInterrupt()).exit_code == 130

    def test_ctrl_c_says_so_and_that_the_command_may_be_given_again(self) -> None:
        result = failing(KeyboardInterrupt())
        assert result.stderr.split() == f"Error: stopped where: tfbind fail fix: {Interrupted.usual_fix}".split()

    def test_sigterm_is_143_and_says_so(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        try:
            result = running(lambda: os.kill(os.getpid(), signal.SIGTERM))
        finally:
            signal.signal(signal.SIGTERM, before)
        assert result.exit_code == 143
        assert "Error: stopped" in result.stderr

    def test_always_has_three_lines(self) -> None:
        result = failing(StoreBusy("somebody writes"))
        assert result.stderr == f"Error: somebody writes\n  where: tfbind fail\n  fix:   {StoreBusy.usual_fix}\n"

    def test_a_closed_output_is_no_fault(self) -> None:
        command = f"{shlex.quote(sys.executable)} -m tfbind_store --help >&-"
        ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, "")

    def test_a_full_disk_says_so(self) -> None:
        result = failing(OSError(28, "No space left on device", "/somewhere/x"))
        assert "No space left on device" in result.stderr
        assert "where: /somewhere/x" in result.stderr
        assert "fix:   free space" in result.stderr
        assert result.exit_code == 1

    def test_our_own_fault_is_called_so(self) -> None:
        result = failing(KeyError("x"))
        assert "unexpected KeyError: 'x'" in result.stderr
        assert "not yours" in result.stderr
        assert result.exit_code == 1

    def test_a_wrong_option_is_the_users_mistake(self) -> None:
        result = CliRunner().invoke(main, ["info", "--jsn"])
        assert result.exit_code == 1
        assert "where: tfbind info" in result.stderr
        assert "fix:   tfbind info --help" in result.stderr

    def test_a_store_that_is_not_there(self, tmp_path: Path) -> None:
        result = CliRunner().invoke(main, ["info", str(tmp_path / "none.store")])
        assert result.exit_code == 1
        assert [line.split(":")[0] for line in result.stderr.splitlines()] == ["Error", "  where", "  fix"]


@pytest.mark.parametrize(
    ("content", "said"), [(b"\xff\xfe", "not UTF-8"), (b"a b c\n", "3 columns"), (b"a\tchr9\n", "'chr9'")]
)
def test_odd_alias_tables_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "genome.fa").write_text(">chr1\nACGT\n")
    (tmp_path / "aliases.tsv").write_bytes(content)
    made = ["init", str(tmp_path / "s"), str(tmp_path / "genome.fa"), "--window-bp", "4096", "--bins", "16"]
    result = CliRunner().invoke(main, [*made, "--aliases", str(tmp_path / "aliases.tsv")])
    assert result.exit_code == 1
    assert said in result.stderr.splitlines()[0]
    assert not (tmp_path / "s").exists()


def test_no_arguments_show_the_help() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert "init" in result.stderr


def test_groups_list_commands_in_flow_order() -> None:
    names = list(main.commands)
    order = ["init", "import", "info", "select", "pretrain", "embed", "train", "evaluate", "report"]
    assert [name for name in names if name in order] == order
    assert isinstance(main, Group)


def test_table_aligns_numbers_to_the_right() -> None:
    assert table(("name", "n"), [("a", 1), ("bcd", 1200)]) == ["name      n", "a         1", "bcd   1,200"]


def test_plain_turns_anything_into_json() -> None:
    value = {"a": np.int64(3), "b": np.array([1.0, np.nan]), "c": Path("x"), "d": (1, {2})}
    assert plain(value) == {"a": 3, "b": [1.0, None], "c": "x", "d": [1, [2]]}
