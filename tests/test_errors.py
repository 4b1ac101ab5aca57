"""Errors say what, where and fix; the drawn tree is the real one; they survive a trip between processes."""

from __future__ import annotations

import inspect
import pickle

import pytest

from tfbind_store import errors

ALL = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, errors.TfbindError) and cls.__module__ == errors.__name__
]


def test_three_lines() -> None:
    error = errors.PeakFileError("end 5 <= start 9", where="peaks.bed:3", fix="swap them")
    assert str(error) == "end 5 <= start 9\n  where: peaks.bed:3\n  fix:   swap them"


def test_an_empty_where_takes_no_line() -> None:
    assert str(errors.LocusError("odd", fix="even it")) == "odd\n  fix:   even it"


def test_what_libraries_say_on_several_lines_takes_one() -> None:
    error = errors.WeightsError("odd:\n\tfirst\n  second ", where="a\nb", fix="even\r\nit")
    assert str(error).splitlines() == ["odd: first second", "  where: a b", "  fix:   even it"]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_an_error_without_a_fix_gives_the_usual_one_of_its_kind(cls: type[errors.TfbindError]) -> None:
    assert str(cls("odd")) == f"odd\n  fix:   {cls.usual_fix}"
    assert cls is errors.TfbindError or cls.__dict__.get("usual_fix"), "a kind of its own has a fix of its own"


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_each_is_drawn_in_the_tree_and_pickles(cls: type[errors.TfbindError]) -> None:
    assert errors.__doc__ is not None
    assert cls.__name__ in errors.__doc__
    back = pickle.loads(pickle.dumps(cls("what", where="here", fix="so")))
    assert type(back) is cls
    assert (back.what, back.where, back.fix) == ("what", "here", "so")


def test_builtin_a_caller_would_expect() -> None:
    assert issubclass(errors.MissingWindow, LookupError)
    assert issubclass(errors.StoreMissing, FileNotFoundError)
    assert issubclass(errors.SqlTimeout, TimeoutError)
    assert errors.StoreBusy("busy").exit_status == 75
