"""Methods by name: what a name is made of, and what it says."""

from dataclasses import asdict, replace
from itertools import product

import pytest

from lrp_core.control.methods import COMPLETE, PLAIN, PREFIXES, SUFFIXES, Method, method


def test_a_composed_name_changes_what_its_parts_say_and_nothing_else():
    assert method("taylor") == Method("taylor")
    assert method("taylor+reconstruction") == Method("taylor", reconstruct=True)
    assert method("taylor+refit") == Method("taylor", refit=True)
    assert method("taylor+reconstruction+refit") == Method("taylor", reconstruct=True, refit=True)
    assert method("taylor+distillation") == Method("taylor", distil=True)
    assert method("taylor+reconstruction+distillation") == Method("taylor", reconstruct=True, distil=True)
    by_cost = Method("contribution", monitored="training", by_cost=True)
    assert method("joint-cost") == by_cost
    assert method("joint-cost+reconstruction") == replace(by_cost, reconstruct=True)
    assert method("smaller-images+taylor") == Method("taylor", smaller_images=True)
    both = Method("taylor", smaller_images=True, early_exit=True, reconstruct=True)
    assert method("smaller-images+early-exit+taylor+reconstruction") == both
    assert method("intermediate-features+taylor") == Method("taylor", intermediate_features=True)
    assert method("early-exit+taylor") == Method("taylor", early_exit=True)
    assert method("early-exit+taylor+refit") == Method("taylor", early_exit=True, refit=True)
    assert method("early-exit") == Method(None, refit=True, early_exit=True)


def test_no_two_names_say_the_same():
    added = ["".join(parts) for parts in product(*(("", f"+{suffix}") for suffix in SUFFIXES))]
    added = [parts for parts in added if "+refit+distillation" not in parts]
    before = ["".join(parts) for parts in product(*(("", f"{prefix}+") for prefix in PREFIXES))]
    before = [parts for parts in before if "intermediate-features+early-exit" not in parts]
    names = [*COMPLETE, *(f"{start}{name}{end}" for name in PLAIN for start in before for end in added)]
    said = [tuple(asdict(method(name)).values()) for name in names]
    assert len(set(said)) == len(names) == 5 + 21 * 6 * 6
    assert set(PREFIXES) == {"smaller-images", "intermediate-features", "early-exit"}
    assert set(SUFFIXES) == {"reconstruction", "refit", "distillation"}


@pytest.mark.parametrize("name", ["taylor+refit+distillation", "joint-cost+reconstruction+refit+distillation"])
def test_a_refitted_head_follows_no_logits(name):
    with pytest.raises(ValueError, match=r"'\+refit' and '\+distillation' contradict each other"):
        method(name)


@pytest.mark.parametrize("first", ["smaller_images", "intermediate_features", "early_exit"])
def test_the_budget_search_starts_from_the_whole_network(first):
    with pytest.raises(ValueError, match="takes images and networks as they are: give it no prefix"):
        replace(method("budget-search"), **{first: True})


def test_a_method_stands_for_itself_and_a_criterion_is_reconstructed():
    own = Method("taylor", taper=0.3)
    assert method(own) is own

    def criterion(model, images, labels):
        raise NotImplementedError

    assert method(criterion) == Method(criterion, reconstruct=True)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "tailor",
        "taylor+",
        "+refit",
        "taylor+refit+reconstruction",  # one order, so that a method has one name
        "taylor+refit+refit",
        "taylor+distillation+refit",
        "joint-cost+distillation+reconstruction",
        "taylor+early-exit",
        "early-exit+",
        "early-exit+early-exit",
        "early-exit+smaller-images+taylor",
        "intermediate-features+smaller-images+taylor",
        "smaller-images",
        "smaller-images+early-exit",
        "smaller-images+budget-search",
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
    assert all(
        known in message
        for known in (
            *PLAIN,
            *COMPLETE,
            "'smaller-images+', 'intermediate-features+', 'early-exit+' before",
            "'+reconstruction', '+refit', '+distillation'",
        )
    )
