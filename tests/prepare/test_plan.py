"""What a plan may say, and what is said about one that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfbind_store.errors import ConfigError, NameParseError
from tfbind_store.prepare.plan import KINDS, Plan, read_plan

HEAD = 'store = "s"\n[init]\nfasta = "g.fa"\n'


def plan_of(folder: Path, text: str) -> Plan:
    (folder / "plan.toml").write_text(text)
    return read_plan(folder / "plan.toml")


def test_stages_come_in_the_order_of_doing_and_know_what_they_stand_on(tmp_path):
    text = """
        store = "s"
        [select.all]
        [[peaks]]
        path = "a.bed"
        [[peaks]]
        path = "sub/b.bed"
        [loci.promoters]
        path = "p.bed"
        [[proteins]]
        path = "one.fa"
        [[proteins]]
        path = "fetch:two"
        [fetch.two]
        source = "uniprot"
        set = { taxid = 9606, genes = ["SOX2"] }
        [init]
        fasta = "g.fa"
    """
    stages = plan_of(tmp_path, text).stages
    assert {stage.id: stage.after for stage in stages} == {
        "fetch two": (),
        "init": (),
        "proteins one.fa": ("init",),
        "proteins two": ("init", "proteins one.fa", "fetch two"),
        "peaks a.bed": ("init",),
        "peaks b.bed": ("init",),
        "loci promoters": ("init",),
        "select all": ("proteins one.fa", "proteins two", "peaks a.bed", "peaks b.bed", "loci promoters"),
    }
    assert [KINDS[stage.kind] for stage in stages] == sorted(
        (KINDS[stage.kind] for stage in stages), key=list(KINDS.values()).index
    )


def test_files_are_relative_to_the_plan(tmp_path):
    plan = plan_of(tmp_path, HEAD)
    assert plan.store == tmp_path / "s"
    assert plan.place(plan.stages[0].files()["fasta"][0]) == tmp_path / "g.fa"
    assert plan.place(Path("/elsewhere/g.fa")) == Path("/elsewhere/g.fa")


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        (HEAD + "[peeks]\n", "unknown key 'peeks'", "did you mean peaks?"),
        (HEAD + "[zzzzzz]\n", "unknown key 'zzzzzz'", "known: store, sources"),
        (HEAD + '[peaks]\npath = "a"\nlabeled_chroms = "all"\n', "'labeled_chroms'", "did you mean labelled_chroms?"),
        (HEAD + '[select.x]\nnegative = ["random:1"]\n', "unknown key 'negative'", "did you mean negatives?"),
        (HEAD + "[select.x.split]\nhold_outs = {}\n", "unknown key 'hold_outs'", "did you mean hold_out?"),
        (HEAD + "[peaks]\n", "path is missing", "add path = …"),
        (HEAD + "[peaks]\npath = 3\n", "3 is not of type Path", ""),
        (HEAD + '[peak_tracks.x]\nnumber = "many"\n', "'many' is not", ""),
        (HEAD + '[tracks.x]\npath = "a"\n', "annotation is missing", "add annotation"),
        (HEAD + '[loci]\npath = "a"\n', "loci is no table of named tables", "[loci.NAME]"),
        ('peaks = "a.bed"\n' + HEAD, "peaks is no table", "[[peaks]] for each file"),
        (HEAD + '[[peaks]]\npath="x/a"\n[[peaks]]\npath="y/a"\n', "two stages are called 'peaks a'", "different names"),
        (
            HEAD + '[fetch.hg38]\nsource = "hg38"\n[peaks]\npath = "fetch:hg39"\n',
            "nothing fetches 'hg39'",
            "fetch:hg38?",
        ),
        ('[init]\nfasta = "g.fa"\n', "names no store", "store = "),
        ('store = "s"\n', "names no genome", "[init]"),
        ('store = 3\n[init]\nfasta = "g"\n', "store is no path", ""),
        ("store = \n", "not valid TOML", ""),
    ],
)
def test_mistakes_are_named_with_the_nearest_word(tmp_path, text, what, fix):
    with pytest.raises(ConfigError) as caught:
        plan_of(tmp_path, text)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert str(tmp_path / "plan.toml") in caught.value.where


def test_names_that_become_paths_are_safe(tmp_path):
    with pytest.raises(NameParseError, match="cannot become a path"):
        plan_of(tmp_path, HEAD + '[select."../x"]\n')


def test_a_plan_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="no such plan"):
        read_plan(tmp_path / "none.toml")


def test_the_example_is_a_plan():
    plan = read_plan(Path(__file__).parents[2] / "examples" / "yeast.toml")
    assert [stage.kind for stage in plan.stages] == [
        "init",
        "proteins",
        "peaks",
        "experiments",
        "blacklist",
        "loci",
        "select",
    ]
