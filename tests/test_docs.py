"""The README and the helps agree with the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tfbind_store.cli import main
from tfbind_store.cli.frame import Command

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
UNLISTED = {"__pycache__", "templates", "py.typed"}


def commands(group: click.Group = main, prefix: str = "tfbind") -> Iterator[tuple[str, click.Command]]:
    """Yield every command that does something, with its whole name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_an_example_of_the_command(name: str) -> None:
    command = COMMANDS[name]
    assert isinstance(command, Command)
    assert command.help, f"{name} has no help"
    assert command.examples, f"{name} has no example"
    assert all(example.startswith(name) for example in command.examples)
    text = command.get_help(click.Context(command, info_name=name))
    assert text.rstrip().endswith(command.examples[-1])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    silent = [p.name for p in COMMANDS[name].params if isinstance(p, click.Option) and not p.help]
    assert silent == []


@pytest.mark.parametrize("name", COMMANDS)
def test_the_readme_has_every_command(name: str) -> None:
    assert re.search(rf"^### {re.escape(name)}$|`{re.escape(name)}`", README, flags=re.MULTILINE)


def test_the_readme_has_no_other_commands() -> None:
    known = set(COMMANDS) | {"tfbind import"}
    assert set(re.findall(r"^### (tfbind [\w ]+)$", README, flags=re.MULTILINE)) <= known


def test_commands_in_the_readme_parse() -> None:
    lines = [line for line in README.splitlines() if line.startswith("tfbind ")]
    assert len(lines) > 10
    for line in lines:
        words = line.split("  #")[0].replace("import factors  ", "import factors").split()[1:]
        command: click.Command = main
        while isinstance(command, click.Group):
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        options = {name for p in command.params if isinstance(p, click.Option) for name in p.opts}
        used = {word for word in words if re.fullmatch(r"--[a-z-]+", word)}
        assert used <= options, line


def tree() -> set[str]:
    """Return the paths that the README's tree draws."""
    block = README.split("## Tree", 1)[1].split("```")[1]
    paths, folders = set(), [(-1, "")]
    for line in filter(str.strip, block.splitlines()):
        indent = len(line) - len(line.lstrip())
        while folders[-1][0] >= indent:
            folders.pop()
        names = re.split(r" {2,}", line.strip())[0].split()
        parent = folders[-1][1]
        paths.update(parent + name for name in names)
        if len(names) == 1 and names[0].endswith("/"):
            folders.append((indent, parent + names[0]))
    return paths


class TestTree:
    def test_what_it_draws_exists(self) -> None:
        missing = [path for path in sorted(tree()) if not (ROOT / path).exists()]
        assert missing == []

    def test_every_module_is_drawn(self) -> None:
        drawn = tree()
        real = {
            str(path.relative_to(ROOT)) + ("/" if path.is_dir() else "")
            for folder in (ROOT / "tfbind_store", *(p for p in (ROOT / "tfbind_store").iterdir() if p.is_dir()))
            if folder.name not in UNLISTED
            for path in folder.iterdir()
            if path.name not in UNLISTED
            and path.name != "__init__.py"
            and (path.suffix in {".py", ".sql"} or path.is_dir())
        }
        assert sorted(real - drawn) == []


def test_no_document_names_this_machine() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*"), ROOT / "Makefile"]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(?:work|tmp|root|home)/\w", text), path


def test_contributing_fits_on_a_screen_or_two() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60
