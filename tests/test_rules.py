"""Each rule against its definition: the layer written out as a matrix, contributions summed term by term, float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.layers import PointwiseConv
from lrp_core.relevance import composites, rules
from lrp_core.relevance.linear_map import LinearMap

LAYERS = {
    "dense": (nn.Linear(7, 5), (7,)),
    "convolution": (nn.Conv2d(2, 3, 3, stride=2, padding=1), (2, 5, 5)),
    "dilated": (nn.Conv2d(2, 3, (3, 2), padding=(2, 1), dilation=2), (2, 6, 5)),
    "same": (nn.Conv2d(2, 3, 4, padding="same"), (2, 5, 5)),
    "valid": (nn.Conv2d(2, 3, 3, padding="valid", bias=False), (2, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 4)),
    "depthwise": (nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4), (4, 5, 5)),
    "pointwise": (PointwiseConv(nn.Linear(4, 5)), (4, 3, 2)),
}


def matrix_of(layer: nn.Module, shape: tuple[int, ...], weight: torch.Tensor) -> torch.Tensor:
    """(outputs, inputs): the layer with this weight and no bias, applied to every unit vector."""
    size = torch.Size(shape).numel()
    units = torch.eye(size, dtype=torch.float64).view(size, *shape)
    if isinstance(layer, nn.Linear):
        return F.linear(units, weight).T
    geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation, "groups": layer.groups}
    return F.conv2d(units, weight, None, **geometry).flatten(1).T


def by_definition(rule, layer, shape, a, output, relevance):
    """R_j of one sample, from the (outputs, inputs) table of contributions."""
    w = matrix_of(layer, shape, layer.weight.detach())
    c = w * a

    def spread(terms, relevance=relevance):
        z = terms.sum(dim=1, keepdim=True)
        return (torch.where(z == 0, torch.zeros_like(terms), terms / z) * relevance[:, None]).sum(dim=0)

    if isinstance(rule, rules.Epsilon):
        return spread(c)
    if isinstance(rule, rules.ZPlus):
        return spread(c.clamp(min=0))
    if isinstance(rule, rules.AlphaBeta):
        return rule.alpha * spread(c.clamp(min=0)) - rule.beta * spread(c.clamp(max=0))
    if isinstance(rule, rules.Gamma):
        agreeing = torch.where(output[:, None] > 0, c.clamp(min=0), c.clamp(max=0))
        return spread(c + rule.gamma * agreeing)
    if isinstance(rule, rules.WSquare):
        return spread(matrix_of(layer, shape, layer.weight.detach() ** 2))
    if isinstance(rule, rules.Flat):
        return spread(matrix_of(layer, shape, torch.ones_like(layer.weight)))
    low, high = (torch.as_tensor(bound).double().view(-1, 1, 1).expand(shape).flatten() for bound in rule.bounds)
    return spread(c - w.clamp(min=0) * low - w.clamp(max=0) * high)


ALL = [*rules.RULES.values(), rules.Gamma(2.0), rules.AlphaBeta(1.0, 0.0), rules.ZBox((-3.0, 3.5))]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("rule", ALL, ids=repr)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rectified", [False, True])
def test_rule_against_its_definition(kind, rule, signed, rectified, no_stabiliser):
    layer, shape = LAYERS[kind]
    if kind == "dense" and isinstance(rule, rules.ZBox):
        pytest.skip("z-box is for pixels")
    generator = torch.Generator().manual_seed(0)
    layer = layer.double()
    layer.weight.data = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    a = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    a = a if signed else a.relu()
    output = layer(a).detach()
    relevance = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    if rectified:
        relevance *= output > 0
    mapping = LinearMap(layer, signed, rectified)
    got = rule(mapping, a, output, relevance)
    for i in range(2):
        expected = by_definition(rule, layer, shape, a[i].flatten(), output[i].flatten(), relevance[i].flatten())
        assert torch.allclose(got[i].flatten(), expected, rtol=1e-10, atol=1e-10 * expected.abs().max())
    if rule.uses_output:
        assert torch.equal(output, layer(a))  # read only


def test_zbox_takes_bounds_by_channel(no_stabiliser):
    layer, shape = LAYERS["convolution"]
    layer, a = layer.double(), torch.rand(1, *shape, dtype=torch.float64)
    bounds = (torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 2.0]))
    output = layer(a).detach()
    relevance = torch.ones_like(output)
    rule = rules.ZBox(bounds)
    got = rule(LinearMap(layer, True, False), a, output, relevance)
    expected = by_definition(rule, layer, shape, a.flatten(), output.flatten(), relevance.flatten())
    assert torch.allclose(got.flatten(), expected, rtol=1e-10)


def test_alpha_and_beta_must_conserve():
    with pytest.raises(ValueError, match=r"alpha - beta must be 1 and beta not negative, got alpha=2, beta=0\.5"):
        rules.AlphaBeta(2, 0.5)


def test_composites_assign_by_depth():
    names = {f"conv{i}": nn.Conv2d(1, 1, 1) for i in range(7)} | {"head": nn.Linear(1, 1)}
    chosen = {"low": "flat", "mid": rules.Gamma(0.1), "high": "zplus", "first": "wsquare"}
    assigned = composites.composite(chosen).assign(names)
    expected = ["WSquare", "Flat", "Flat", "Gamma", "Gamma", "ZPlus", "ZPlus", "Epsilon"]
    assert [type(rule).__name__ for rule in assigned.values()] == expected
    assert assigned["conv3"].gamma == 0.1


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("gama", "unknown composite 'gama'; choose one of: epsilon-alpha2-beta1, epsilon-gamma-box, epsilon-zplus"),
        ({"low": "zplus", "mid": "zplus", "top": "zplus"}, "unknown depth of a composite 'top'; choose one of: dense"),
        ({"low": "zplus", "mid": "z"}, r"missing: high"),
        ({"low": "zplus", "mid": "z", "high": "zplus"}, "unknown rule for mid 'z'; choose one of: alpha2-beta1"),
    ],
)
def test_impossible_composites_are_refused(choice, message):
    with pytest.raises(ValueError, match=message):
        composites.composite(choice)
