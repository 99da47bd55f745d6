"""The exits of a backbone, by hand; what it gives and costs there, by hooks and by counting."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.control.block_similarity import cka
from lrp_core.control.early_exit import Exit, earliest, exits, halving
from lrp_core.graph.blocks import identity_blocks
from lrp_core.graph.execution import run
from lrp_core.graph.exits import features_by_exit, multiply_adds_by_exit
from lrp_core.graph.layers import INPUT, Sum
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import classifier, truncated, up_to
from lrp_core.metrics.cost import multiply_adds
from lrp_core.repair.ridge_head import fit_heads


def chain():
    layers = [
        ("conv1", nn.Conv2d(3, 6, 3)),
        ("norm1", nn.BatchNorm2d(6)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(6, 8, 3, padding=1)),
        ("relu2", nn.ReLU()),
        ("drop", nn.Dropout(0.5)),
        ("conv3", nn.Conv2d(8, 5, 1)),
        ("relu3", nn.ReLU()),
        ("pool3", nn.AvgPool2d(2)),
    ]
    return nn.Sequential(OrderedDict(layers))


class Branched(nn.Module):
    """A block whose branches are added or concatenated, and a convolution behind it."""

    def __init__(self, joined):
        super().__init__()
        self.joined = joined
        self.stem, self.stem_relu = nn.Conv2d(3, 6, 3), nn.ReLU()
        self.one, self.one_relu = nn.Conv2d(6, 4, 3, padding=1), nn.ReLU()
        self.two, self.join_relu = nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()
        self.last, self.last_relu = nn.Conv2d(12 if joined else 6, 7, 3), nn.ReLU()

    def forward(self, x):
        x = self.stem_relu(self.stem(x))
        other = self.two(self.one_relu(self.one(x)))  # no exit in between: x goes on beside it
        x = self.join_relu(torch.cat([x, other], dim=1) if self.joined else x + other)
        return self.last_relu(self.last(x))


class Normalised(nn.Module):
    """What is done to the images is no place to end."""

    def __init__(self):
        super().__init__()
        self.net = chain()

    def forward(self, x):
        return self.net(x[:, [2, 1, 0]] * 2 - 1)


BACKBONES = {
    "chain": (chain, ["pool1", "relu2", "pool3"]),
    "normalised": (Normalised, ["net.pool1", "net.relu2", "net.pool3"]),
    "sum": (lambda: Branched(joined=False), ["stem_relu", "join_relu", "last_relu"]),
    "concatenation": (lambda: Branched(joined=True), ["stem_relu", "join_relu", "last_relu"]),
}


@pytest.fixture(params=BACKBONES)
def backbone(request):
    build, names = BACKBONES[request.param]
    torch.manual_seed(0)
    backbone = build().eval().requires_grad_(False)
    return backbone, names, torch.randn(90, 3, 12, 12)


def maps_at(backbone, names, images):
    """What these layers give in one plain pass of the whole backbone."""
    caught = {}
    for name in names:
        layer = backbone.get_submodule(name)
        layer.register_forward_hook(lambda module, inputs, output, name=name: caught.update({name: output.clone()}))
    backbone(images)
    for module in backbone.modules():
        module._forward_hooks.clear()
    return caught


def test_exits_are_where_one_tensor_is_all_that_goes_on(backbone):
    backbone, names, images = backbone
    features = features_by_exit(backbone, images)
    assert list(features) == list(multiply_adds_by_exit(backbone, images[:1])) == names
    for name, maps in maps_at(backbone, names, images).items():
        torch.testing.assert_close(features[name], maps.mean(dim=(2, 3)))


def test_a_part_of_a_backbone_gives_what_the_whole_has_there(backbone):
    backbone, names, images = backbone
    for name, maps in maps_at(backbone, names, images).items():
        part = up_to(backbone, name)
        assert torch.equal(part(images), maps)
        assert not part.training
        assert list(features_by_exit(part, images)) == names[: names.index(name) + 1]
        shared = dict(backbone.named_parameters())
        assert all(parameter is shared[key] for key, parameter in part.named_parameters())
    assert len(dict(up_to(backbone, names[0]).named_parameters())) < len(shared)
    assert list(features_by_exit(backbone, images)) == names  # as it was


def test_multiply_adds_are_those_of_the_part_with_its_head(backbone):
    backbone, _, images = backbone
    costs = multiply_adds_by_exit(backbone, images[:1])
    assert list(costs.values()) == sorted(set(costs.values()))
    for name, features in features_by_exit(backbone, images).items():
        weight = torch.ones(4, features.shape[1])
        assert costs[name] + 4 * features.shape[1] == multiply_adds(
            classifier(up_to(backbone, name), weight), images[:1]
        )


def test_heads_are_judged_on_what_they_have_not_seen(backbone):
    backbone, names, images = backbone
    labels, fold = torch.tensor([0, 0, 1, 1, 1, 2]).repeat(15), torch.arange(90) % 4  # classes of unlike sizes
    images = images + 2 * torch.eye(3)[labels][:, :, None, None]
    found = exits(backbone, images, labels, fold)
    assert [exit_.name for exit_ in found] == names
    for exit_, features in zip(found, features_by_exit(backbone, images).values(), strict=True):
        heads = fit_heads(features, labels, fold)
        assert torch.equal(exit_.heads.weight, heads.weight)
        hits = [
            int((heads.out_of_fold.weight[k] @ x).argmax() == y) for x, y, k in zip(features, labels, fold, strict=True)
        ]
        by_class = [torch.tensor(hits)[labels == label].double() for label in range(3)]
        assert exit_.accuracy == pytest.approx(sum(hit.mean().item() for hit in by_class) / 3)
        missed = [
            (heads.out_of_fold.weight[k] @ x + 1 / 3 - torch.eye(3)[y]).square().sum().item()
            for x, y, k in zip(features, labels, fold, strict=True)
        ]
        means = [torch.tensor(missed)[labels == label].mean().item() for label in range(3)]
        assert exit_.squared_error == pytest.approx(sum(means) / 3, rel=1e-5)
        # The mean of three independent means: their variances add up.
        variance = sum(hit.var(correction=0).item() / len(hit) for hit in by_class) / 9
        assert exit_.error == pytest.approx(variance**0.5)
        assert exit_.multiply_adds == multiply_adds(classifier(up_to(backbone, exit_.name), heads.weight), images[:1])
    assert found[-1].accuracy > 0.5


def by_hand(*rows):
    return [Exit(name, None, accuracy, error, 0.0, multiply_adds) for name, accuracy, error, multiply_adds in rows]


def test_earliest_is_the_first_within_one_standard_error_of_the_best():
    first, *others = by_hand(("a", 0.60, 0.2, 10), ("b", 0.70, 0.01, 30), ("c", 0.72, 0.03, 60), ("d", 0.71, 0.5, 99))
    assert earliest([first, *others]).name == "b"  # the best one's error counts, not its own
    assert earliest(others[1:]).name == "c"
    assert earliest([first]) is first


def test_each_of_the_halving_exits_costs_at_most_half_of_the_one_before():
    found = by_hand(
        ("a", 0.52, 0.05, 4),
        ("b", 0.56, 0.05, 10),  # no better than a
        ("c", 0.68, 0.03, 20),
        ("d", 0.80, 0.03, 45),  # half of e
        ("e", 0.90, 0.03, 90),
        ("f", 0.89, 0.03, 100),  # no better than e
    )
    assert [exit_.name for exit_ in halving(found)] == ["e", "d", "c", "a"]
    assert [exit_.name for exit_ in halving(found[:4])] == ["d", "c", "a"]


def test_cka_is_its_other_form_and_ignores_what_does_not_matter():
    """Kornblith et al., eq. 3: |Y'X|^2 / (|X'X| |Y'Y|) of centred features; turned, scaled and moved ones are alike."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(30, n, dtype=torch.float64, generator=generator) for n in (5, 8))
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    expected = (b.T @ a).square().sum() / ((a.T @ a).square().sum() * (b.T @ b).square().sum()).sqrt()
    assert cka(x, y) == pytest.approx(expected.item())
    assert 0.01 < cka(x, y) < 0.9
    turned, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=generator))
    assert cka(x, 3 * x @ turned + 7) == pytest.approx(1)
    assert cka(x, torch.ones(30, 2)) == 0


class Doubling(nn.Module):
    """A residual block, between sums of a value with itself, one of them in the block's branch, and one in place."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.outer = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1)
        self.mix, self.last = nn.Conv2d(5, 5, 1), nn.Conv2d(10, 4, 1)
        self.skips = False

    def block(self, x):
        return self.outer(F.relu(self.inner(x)))

    def other(self, x):
        x = self.mix(x)
        return x + x

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + x
        x = x if self.skips else x + self.block(x)
        x = x + self.other(x)
        x = F.relu(self.last(torch.cat([x, x], dim=1)))
        x += x
        return x


def test_sums_of_a_value_with_itself_are_kept_and_are_no_residual_blocks():
    torch.manual_seed(0)
    model, images = Doubling().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert identity_blocks(trace(model)) == {"add_1": ("outer", "relu_1", "inner")}
    stem = F.relu(model.stem(images))
    torch.testing.assert_close(up_to(model, "add")(images), 2 * stem)
    features = features_by_exit(model, images)
    assert list(features) == ["add", "add_1", "cat", "add_4"]
    torch.testing.assert_close(features["add"], 2 * stem.mean((2, 3)))
    torch.testing.assert_close(features["add_4"], model(images).mean((2, 3)))
    smaller = truncated(model, " -add_1")
    assert [layer.name for layer in trace(smaller) if isinstance(layer.module, Sum)] == [
        "add",
        "add_2",
        "add_3",
        "add_4",
    ]
    model.skips = True
    torch.testing.assert_close(smaller(images), model(images))
    torch.testing.assert_close(run(trace(smaller), {INPUT: images}), model(images))
