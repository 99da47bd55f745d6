"""Methods by name: what a name is made of, and what it says."""

from dataclasses import asdict

import pytest

from lrp_core.control.methods import COMPLETE, PLAIN, SUFFIXES, Method, method


def test_a_composed_name_changes_what_its_parts_say_and_nothing_else():
    assert method("taylor") == Method("taylor")
    assert method("taylor+reconstruction") == Method("taylor", reconstruct=True)
    assert method("taylor+refit") == Method("taylor", refit=True)
    assert method("taylor+reconstruction+refit") == Method("taylor", reconstruct=True, refit=True)
    assert method("early-exit+taylor") == Method("taylor", early_exit=True)
    assert method("early-exit+taylor+refit") == Method("taylor", early_exit=True, refit=True)
    assert method("early-exit") == Method(None, refit=True, early_exit=True)


def test_no_two_names_say_the_same():
    added = ["", "+reconstruction", "+refit", "+reconstruction+refit"]
    names = [
        *COMPLETE,
        *(f"{before}{name}{after}" for name in PLAIN for before in ("", "early-exit+") for after in added),
    ]
    said = [tuple(asdict(method(name)).values()) for name in names]
    assert len(set(said)) == len(names) == 5 + 20 * 2 * 4
    assert set(SUFFIXES) == {"reconstruction", "refit"}


@pytest.mark.parametrize(
    "name",
    [
        "",
        "tailor",
        "taylor+",
        "+refit",
        "taylor+refit+reconstruction",  # one order, so that a method has one name
        "taylor+refit+refit",
        "taylor+early-exit",
        "early-exit+",
        "early-exit+early-exit",
        "early-exit+refit",
        "budget-search+refit",
        "early-exit+budget-search",
    ],
)
def test_what_is_no_name_is_refused_with_the_names(name):
    with pytest.raises(ValueError, match="unknown method '") as error:
        method(name)
    message = str(error.value)
    assert repr(name) in message
    assert all(known in message for known in (*PLAIN, *COMPLETE, "'early-exit+' before", "'+reconstruction', '+refit'"))
