"""The budget search: what each step promises, against networks that are made, counted and judged anew."""

import itertools

import numpy as np
import pytest
import torch
from networks import settle
from torch import nn
from torch.nn import functional as F

from lrp_core.control.budget_search import ACTIONS, BudgetSearch
from lrp_core.graph.blocks import identity_blocks, without_blocks
from lrp_core.graph.exits import features_by_exit
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import classifier, truncated
from lrp_core.importance.registry import criterion
from lrp_core.metrics.cost import multiply_adds
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.relevance.lrp import filter_relevance
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.repair.ridge_head import fit_heads, pooled_features

BUDGETS = [10 ** (-tenth / 10) for tenth in range(16)]


class Residual(nn.Module):
    """Two blocks with an identity for a shortcut, one of them with a depthwise convolution, and one with another."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.wide1, self.deep1 = nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.thin1 = nn.Conv2d(12, 8, 1)
        self.down, self.beside = nn.Conv2d(8, 10, 3, stride=2, padding=1), nn.Conv2d(8, 10, 1, stride=2)
        self.grouped2, self.thin2 = nn.Conv2d(10, 12, 3, padding=1, groups=2), nn.Conv2d(12, 10, 1)
        self.last = nn.Conv2d(10, 16, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.thin1(F.relu(self.deep1(F.relu(self.wide1(x)))))
        x = F.relu(self.beside(x) + self.down(x))
        x = self.thin2(F.relu(self.grouped2(x))) + x
        return F.relu(self.last(x))


@pytest.fixture(scope="module")
def task():
    """A backbone with random weights, and images whose classes are what its own features say."""
    backbone = settle(Residual())
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(90, 3, 12, 12, generator=generator) + torch.randn(90, 3, 1, 1, generator=generator)
    features = pooled_features(backbone, images)
    standard = (features - features.mean(dim=0)) / (features.std(dim=0) + 1e-6)
    labels = (standard @ torch.randn(16, 3, generator=generator)).argmax(dim=1)
    return backbone, images, labels, torch.arange(90) % 4


def search(task, actions=ACTIONS, blocks="branch"):
    return BudgetSearch(*task, criterion("lrp-abs", 3, seed=0), actions, blocks)


@pytest.fixture(scope="module")
def descended(task):
    searching = search(task)
    return searching, list(searching.descend(BUDGETS))


def test_every_step_keeps_its_budget_and_says_what_it_is(task, descended):
    backbone, images, labels, fold = task
    searching, steps = descended
    assert [step.budget for step in steps] == BUDGETS
    whole = multiply_adds(classifier(backbone, torch.zeros(3, 16)), images[:1])
    for step in steps:
        network = searching.network(step.truncation).smaller(step.removed)
        assert multiply_adds(network.model, images[:1]) == pytest.approx(step.multiply_adds * whole)
        assert step.multiply_adds <= step.budget * (1 + 1e-9)
        heads = fit_heads(pooled_features(network.model.backbone, images), labels, fold)
        features = network.model.backbone(images).mean(dim=(2, 3))
        outputs = [heads.out_of_fold.weight[k] @ x for x, k in zip(features, fold, strict=True)]
        missed = [(z - (torch.eye(3)[y] - 1 / 3)).square().sum() for z, y in zip(outputs, labels, strict=True)]
        by_class = [np.mean([m for m, y in zip(missed, labels, strict=True) if y == label]) for label in range(3)]
        assert step.error == pytest.approx(np.mean(by_class), rel=1e-4)
        assert step.error == min(step.candidates.values()) == step.candidates[step.action]


def test_actions_are_taken_where_the_budget_asks_for_it(descended):
    _, steps = descended
    assert steps[0].action == "start"
    for before, after in itertools.pairwise(steps):
        if before.multiply_adds <= after.budget:
            assert (after.action, after.truncation, after.error) == ("none", before.truncation, before.error)
        else:
            assert after.action != "none"
            assert "filters" in after.candidates
    assert len({step.action for step in steps}) >= 4  # this task asks for most of them


def test_at_one_truncation_filters_are_only_removed(descended):
    _, steps = descended
    truncations = [truncation for truncation, _ in itertools.groupby(steps, key=lambda step: step.truncation)]
    assert len(truncations) == len(set(truncations)) > 1
    for before, after in itertools.pairwise(steps):
        if before.truncation == after.truncation:
            assert np.array_equal(after.removed[: len(before.removed)], before.removed)


def test_filters_alone_are_removed_by_relevance(task):
    backbone, images, labels, fold = task
    (_, *steps) = search(task, ["filters"]).descend(BUDGETS[:3])
    assert {step.truncation for step in steps} == {trace(backbone)[-1].name}
    assert {step.action for step in steps} == {"filters"}
    model = classifier(backbone, fit_heads(pooled_features(backbone, images), labels, fold).weight)
    by_layer = filter_relevance(model, images, labels, absolute=True)
    summed = {name: values.sum(dim=0) for name, values in by_layer.items()}
    coupled = [["stem", "thin1"], ["wide1", "deep1"], ["down", "beside", "thin2"], ["grouped2"], ["last"]]
    shares = [sum(summed[f"backbone.{name}"] for name in names) for names in coupled]
    for grouped in (2, 3):  # what stands at the same position in the two groups is removed together
        shares[grouped] = shares[grouped].view(2, -1).sum(dim=0)
    order = torch.cat([share / share.sum() for share in shares]).argsort()
    assert steps[0].removed.tolist() == order[: len(steps[0].removed)].tolist()


def test_where_later_layers_know_nothing_the_backbone_ends_before_them(task):
    backbone, images, labels, fold = task
    blind = settle(Residual())
    blind.last.weight.zero_()
    step = next(search((blind, images, labels, fold)).descend([1.0]))
    assert step.truncation != trace(backbone)[-1].name
    features = features_by_exit(blind, images)
    assert step.error < search((blind, images, labels, fold), ["filters"]).descend([1.0]).__next__().error
    assert step.truncation in features


@pytest.mark.parametrize("blocks", ["branch", "cka"])
def test_a_block_that_adds_nothing_is_skipped_for_nothing(task, blocks):
    _, images, labels, fold = task
    idle = settle(Residual())
    idle.thin2.weight.zero_()
    idle.thin2.bias.zero_()
    saved = (10 // 2 * 12 * 9 + 12 * 10) * 6 * 6
    whole = multiply_adds(classifier(idle, torch.zeros(3, 16)), images[:1])
    first, second = search((idle, images, labels, fold), ["block"], blocks).descend([1.0, 1 - saved / whole])
    assert second.action == "block"
    assert second.truncation.endswith(f" -{list(identity_blocks(trace(idle)))[1]}")
    assert len(second.removed) == 0
    assert second.error == pytest.approx(first.error, rel=1e-4)


def test_a_block_whose_shortcut_is_dead_is_not_the_first_to_be_skipped(task):
    _, images, labels, fold = task
    dead = settle(Residual())
    dead.stem.bias.fill_(-1e4)
    dead.thin1.bias.fill_(1.0)  # all that the first block gives
    _, second = search((dead, images, labels, fold), ["block"]).descend([1.0, 0.99])
    assert second.truncation.endswith(f" -{list(identity_blocks(trace(dead)))[1]}")


def test_a_block_that_adds_a_constant_adds_much_and_changes_nothing(task):
    """The last layer is linear on these images: features are moved, all by as much."""
    _, images, labels, fold = task
    moved = settle(Residual())
    moved.thin2.weight.zero_()
    moved.thin2.bias.fill_(30.0)
    moved.last.bias.fill_(1e3)
    assert moved.last(moved.thin2.bias.view(1, -1, 1, 1).expand(1, -1, 6, 6)).min() > 0
    skipped = {}
    for blocks in ("branch", "cka"):
        _, second = search((moved, images, labels, fold), ["block"], blocks).descend([1.0, 0.99])
        skipped[blocks] = second.truncation.split(" -")[1]
    first_block, second_block = identity_blocks(trace(moved))
    assert skipped == {"branch": first_block, "cka": second_block}


class Linear(nn.Module):
    """A block without an activation, and a convolution that reads it."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.last(x + self.branch(x))


def test_what_a_skipped_block_gave_is_made_up_for_where_it_can_be():
    """V (x + W x) is V (I + W) x: reconstruction towards the whole backbone finds that, and the bias."""
    backbone = settle(Linear()).double()
    images = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    part, reconstruction = without_blocks(backbone, ["add"]), Reconstruction(backbone, images, strength=1e-9)
    assert (part(images) - backbone(images)).abs().max() > 0.1
    compensated = PrunedNetwork(part, images, [reconstruction]).without(np.array([], dtype=int))
    torch.testing.assert_close(compensated(images), backbone(images), atol=1e-6, rtol=1e-6)
    v, w = backbone.last.weight[:, :, 0, 0], backbone.branch.weight[:, :, 0, 0]
    torch.testing.assert_close(compensated.last.weight[:, :, 0, 0], v + v @ w, atol=1e-6, rtol=1e-6)


def test_unknown_actions_are_named(task):
    with pytest.raises(ValueError, match="unknown action 'heads'; choose one of: block, exit, filters"):
        search(task, ["filters", "heads"])
    with pytest.raises(ValueError, match="unknown ranking of blocks 'size'; choose one of: branch, cka"):
        search(task, blocks="size")


def test_skipping_blocks_leaves_the_rest_as_it_is(task):
    backbone, images, *_ = task
    blocks = identity_blocks(trace(backbone))
    assert list(blocks.values()) == [("thin1", "relu_2", "deep1", "relu_1", "wide1"), ("thin2", "relu_4", "grouped2")]
    first, second = blocks
    x = F.relu(backbone.stem(images))
    x = F.relu(backbone.beside(x) + backbone.down(x))
    expected = F.relu(backbone.last(backbone.thin2(F.relu(backbone.grouped2(x))) + x))
    part = without_blocks(backbone, [first])
    torch.testing.assert_close(part(images), expected)
    assert list(identity_blocks(trace(part))) == [second]  # under its name
    torch.testing.assert_close(truncated(backbone, f" -{first} -{second}")(images), F.relu(backbone.last(x)))
    torch.testing.assert_close(
        truncated(backbone, f"{second} -{first}")(images), backbone.thin2(F.relu(backbone.grouped2(x))) + x
    )
    assert not any(
        name.startswith(("wide1", "thin2")) for name, _ in truncated(backbone, f" -{first} -{second}").named_modules()
    )
    with pytest.raises(ValueError, match="unknown residual block 'add_9'; choose one of: add"):
        without_blocks(backbone, ["add_9"])
