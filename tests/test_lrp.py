import copy

import pytest
import torch
import zennit.composites
import zennit.torchvision
from conftest import miniature_vgg
from networks import BACKBONES, Branches, Repeating, depthwise_network, draw_images, network, settle, without_biases
from oracle import zennit_relevance
from torch import nn
from zennit.canonizers import SequentialMergeBatchNorm

from lrp_core.graph.batchnorm import fold_batchnorm
from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT
from lrp_core.graph.tracing import trace
from lrp_core.graph.truncation import classifier
from lrp_core.relevance import lrp


def test_filter_relevance_of_a_network_by_hand(no_stabiliser):
    """Two 1x1 filters, one pixel each: everything can be worked out."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)).double()
    model[0].weight.data = torch.tensor([1.0, 2.0], dtype=torch.float64).view(2, 1, 1, 1)
    model[0].bias.data = torch.tensor([0.0, -1.0], dtype=torch.float64)
    model[3].weight.data = torch.tensor([[1.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
    # input 2: filters 2 and 4 - 1 = 3. Class 0: 2/5, 3/5. Class 1: 6/(6-3) = 2, -1.
    images = torch.full((2, 1, 1, 1), 2.0, dtype=torch.float64)
    relevance = lrp.filter_relevance(model, images, torch.tensor([0, 1]))
    assert torch.allclose(relevance["0"], torch.tensor([[0.4, 0.6], [2.0, -1.0]], dtype=torch.float64), atol=1e-12)


def test_lrp_of_a_linear_chain_is_input_times_gradient(images, targets, no_stabiliser):
    """Without biases and with positive weights and inputs, z+ and epsilon are both input x gradient / logit."""
    model = miniature_vgg()
    for layer in model:
        if hasattr(layer, "weight"):
            layer.weight.abs_()
            layer.bias.zero_()
    x = images.abs().requires_grad_()
    logits = model(x)
    chosen = logits.gather(1, targets[:, None])
    gradient = torch.autograd.grad(chosen.sum(), x)[0]
    expected = x.detach() * gradient / chosen.detach()[..., None, None]
    got = lrp.explain(model, images.abs(), targets, pixels=True)
    assert torch.allclose(got.pixels, expected, rtol=1e-10, atol=1e-12)
    assert torch.allclose(got.logits, logits.detach())


@pytest.mark.parametrize("flatten_positions", [False, True])
def test_relevance_is_conserved_as_epsilon_goes_to_zero(images, targets, flatten_positions, no_stabiliser):
    explanation = lrp.explain(miniature_vgg(flatten_positions=flatten_positions), images, targets, pixels=True)
    assert max(explanation.conservation_gap().values()) < 1e-9
    assert torch.allclose(explanation.pixels.sum(dim=(1, 2, 3)), torch.ones(5, dtype=torch.float64), atol=1e-9)
    for name, relevance in explanation.filters.items():
        assert torch.allclose(relevance.sum(dim=1), explanation.totals[name])


def test_absolute_relevance_sums_absolute_values_over_positions(images, targets):
    model = miniature_vgg()
    signed = lrp.filter_relevance(model, images, targets)
    absolute = lrp.filter_relevance(model, images, targets, absolute=True)
    last = "conv3"
    assert (absolute[last] >= signed[last].abs() - 1e-12).all()
    assert not torch.allclose(absolute[last], signed[last])
    # the head's weights give all positions of a channel the same sign, so here the two differ by that sign only
    assert torch.allclose(absolute[last], signed[last].abs())


def test_batches_do_not_matter(images, targets):
    model = miniature_vgg()
    whole = lrp.filter_relevance(model, images, targets, batch_size=5)
    parts = lrp.filter_relevance(model, images, targets, batch_size=2)
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-12) for name in whole)


def test_the_callers_gradient_mode_does_not_matter(images, targets):
    model = miniature_vgg()
    expected = lrp.filter_relevance(model, images, targets)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = lrp.filter_relevance(model, images, targets)
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_model_comes_back_as_it_was(images, targets):
    model = miniature_vgg().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    lrp.filter_relevance(model, images, targets)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in model.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


BOX = (-3.0, 3.0)


def zennit_composite(model, composite):
    """What zennit calls a composite of ours, biases left out of the denominators, batch normalisation merged."""
    kinds = {
        "epsilon-zplus": zennit.composites.EpsilonPlus,
        "epsilon-alpha2-beta1": zennit.composites.EpsilonAlpha2Beta1,
        "epsilon-gamma-box": zennit.composites.EpsilonGammaBox,
    }
    bounds = dict(zip(("low", "high"), BOX, strict=True)) if composite == "epsilon-gamma-box" else {}
    residual = any(type(layer).__name__ == "BasicBlock" for layer in model.modules())
    canonizer = zennit.torchvision.ResNetCanonizer() if residual else SequentialMergeBatchNorm()
    return kinds[composite](zero_params="bias", canonizers=[canonizer], **bounds)


@pytest.fixture(scope="module", params=["vgg16", "vgg16_bn", "resnet18", "depthwise"])
def explained_by_zennit(request, vgg16):
    """A network in float64: the pre-trained VGG16, others with random parameters."""
    if request.param == "vgg16":
        weight = torch.randn(4, 512, generator=torch.Generator().manual_seed(3))
        model = classifier(copy.deepcopy(vgg16), weight)
        for layer in model.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # zennit reads the outputs of convolutions
        images = draw_images("vgg16") * 60
    else:
        model = depthwise_network() if request.param == "depthwise" else network(request.param)
        images = draw_images(request.param).clamp(*BOX)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-12  # zennit leaves eps in a batch normalisation that it has merged
    return model.double(), images.double(), torch.tensor([1, 3])


@pytest.mark.parametrize("composite", ["epsilon-zplus", "epsilon-alpha2-beta1", "epsilon-gamma-box"])
def test_relevance_agrees_with_zennit(explained_by_zennit, composite):
    """Of every filter and of every pixel."""
    model, images, targets = explained_by_zennit
    theirs, their_pixels = zennit_relevance(model, images, targets, zennit_composite(model, composite))
    ours = lrp.explain(model, images, targets, composite, pixels=True, box=BOX)
    assert ours.filters.keys() == theirs.keys()
    for name, relevance in theirs.items():
        assert (ours.filters[name] - relevance).abs().max() <= 1e-6 * relevance.abs().max(), name
    assert (ours.pixels - their_pixels).abs().max() <= 1e-6 * their_pixels.abs().max()


@pytest.mark.parametrize("name", BACKBONES)
def test_every_architecture_is_computed_and_conserved(name, no_stabiliser):
    """Folding changes nothing; all relevance passes the stem and reaches the pixels; float64."""
    model, images = network(name).double(), draw_images(name).double()
    folded = fold_batchnorm(trace(model))
    assert not any(isinstance(layer.module, nn.BatchNorm2d) for layer in folded)
    assert torch.allclose(run(folded, {INPUT: images}), model(images), rtol=1e-9)
    # An output of a linear bottleneck can be negative with negative contributions only, which z+ leaves out.
    bottleneck = name in ("mobilenet_v2", "efficientnet-lite0")
    composite = {"low": "epsilon", "mid": "epsilon", "high": "epsilon"} if bottleneck else "epsilon-zplus"
    explanation = lrp.explain(without_biases(model), images, torch.tensor([0, 3]), composite, pixels=True)
    assert torch.allclose(explanation.logits, model(images), rtol=1e-9)
    convolutions = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    assert set(explanation.filters) == set(convolutions)
    ones = torch.ones(2, dtype=torch.float64)
    assert torch.allclose(explanation.totals[convolutions[0]], ones, atol=1e-5)
    assert torch.allclose(explanation.pixels.sum(dim=(1, 2, 3)), ones, atol=1e-5)


def test_relevance_is_conserved_by_residual_block(no_stabiliser):
    """What arrives at the input of every block of a ResNet is all there was, each rest of the network for itself."""
    backbone, pool, flatten, head = network("resnet18").double()
    stem = nn.Sequential(backbone.conv1, backbone.bn1, backbone.relu, backbone.maxpool)
    blocks = [block for name in ("layer1", "layer2", "layer3", "layer4") for block in getattr(backbone, name)]
    value = stem(draw_images("resnet18").double())
    for i, block in enumerate(blocks):
        rest = nn.Sequential(*blocks[i:], pool, flatten, head)
        arrived = lrp.explain(rest, value, torch.tensor([1, 2]), pixels=True).pixels.sum(dim=(1, 2, 3))
        assert torch.allclose(arrived, torch.ones(2, dtype=torch.float64), atol=1e-5), f"block {i}"
        value = block(value)


@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_epsilon_everywhere_is_input_times_gradient(name, no_stabiliser):
    """LRP-0 on a network without biases, skips and poolings included (Shrikumar et al. 2016)."""
    model = without_biases(network(name).double())
    images = draw_images(name).double().requires_grad_()
    targets = torch.tensor([2, 0])
    chosen = model(images).gather(1, targets[:, None])
    gradient = torch.autograd.grad(chosen.sum(), images)[0]
    expected = images.detach() * gradient / chosen.detach()[..., None, None]
    epsilon = {"low": "epsilon", "mid": "epsilon", "high": "epsilon"}
    got = lrp.explain(model, images.detach(), targets, epsilon, pixels=True).pixels
    assert (got - expected).abs().max() <= 1e-8 * expected.abs().max()


def test_sum_shares_by_contribution_and_concatenation_splits(no_stabiliser):
    """One pixel, worked out: x = 2 goes through weights 1 and 3, the two meet as 2 + 6, then beside a third of 4."""

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.three, self.two = (nn.Conv2d(1, 1, 1, bias=False) for _ in range(3))
            self.head = nn.Linear(2, 1, bias=False)

        def forward(self, x):
            return self.head(torch.flatten(torch.cat([self.one(x) + self.three(x), self.two(x)], dim=1), 1))

    model = Meeting().double()
    for layer, weight in ((model.one, 1.0), (model.three, 3.0), (model.two, 2.0)):
        layer.weight.data.fill_(weight)
    model.head.weight.data = torch.tensor([[0.5, -0.5]], dtype=torch.float64)
    # the head gets 8 and 4: contributions 4 and -2 of 2, so relevance 2 and -1; of the 2, a quarter to weight 1
    image = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64)
    got = lrp.filter_relevance(model, image, torch.tensor([0]))
    expected = {"one": 0.5, "three": 1.5, "two": -1.0}
    assert {name: round(value.item(), 10) for name, value in got.items()} == expected


def test_a_value_that_is_read_twice_is_explained_like_weights_that_are_doubled(no_stabiliser):
    """x + x and [x, x]: by the epsilon rule, relevance is that of the plain network, filter by filter."""
    model = settle(Repeating()).double()
    plain, images = model.read_once(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(model(images), plain(images))
    epsilon, targets = {"low": "epsilon", "mid": "epsilon", "high": "epsilon"}, torch.tensor([0, 1, 3])
    ours, expected = (lrp.explain(net, images, targets, epsilon, pixels=True) for net in (model, plain))
    assert ours.filters.keys() == expected.filters.keys()
    for name, relevance in expected.filters.items():
        torch.testing.assert_close(ours.filters[name], relevance, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.pixels, expected.pixels, rtol=1e-9, atol=1e-9)
    for composite in ("epsilon-zplus", "epsilon-alpha2-beta1"):
        gap = lrp.explain(without_biases(model), images, targets, composite).conservation_gap()
        assert max(gap.values()) < 1e-9, composite


def test_functional_calls_are_understood():
    model = settle(Branches()).double()
    images = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    explanation = lrp.explain(model, images, torch.tensor([0, 1]))
    assert torch.allclose(explanation.logits, model(images), rtol=1e-9)
    assert explanation.filters["own"].shape == (2, 7)


def test_bfloat16_agrees_roughly():
    model, images, targets = network("vgg11"), draw_images("vgg11"), torch.tensor([1, 2])
    exact = lrp.filter_relevance(model, images, targets)
    rough = lrp.filter_relevance(model.bfloat16(), images.bfloat16(), targets)
    for name, relevance in exact.items():
        assert rough[name].dtype == torch.bfloat16
        correlation = torch.corrcoef(torch.stack([relevance.flatten(), rough[name].float().flatten()]))[0, 1]
        assert correlation > 0.95, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_agrees_with_cpu():
    model, images, targets = network("resnet18").double(), draw_images("resnet18").double(), torch.tensor([1, 2])
    expected = lrp.filter_relevance(model, images, targets)
    got = lrp.filter_relevance(model.cuda(), images, targets)
    assert all(torch.allclose(got[name], relevance, rtol=1e-6) for name, relevance in expected.items())


def test_pixels_behind_a_box_need_its_bounds(images, targets):
    with pytest.raises(ValueError, match=r"ends with the z-box rule: give box=\(low, high\)"):
        lrp.explain(miniature_vgg(), images, targets, "epsilon-gamma-box", pixels=True)
    assert lrp.filter_relevance(miniature_vgg(), images, targets, "epsilon-gamma-box")  # the input layer is not reached


def test_unknown_composite_is_named(images, targets):
    with pytest.raises(ValueError, match="unknown composite 'gama'; choose one of: epsilon-alpha2"):
        lrp.filter_relevance(miniature_vgg(), images, targets, composite="gama")


def test_unsupported_layer_is_named(images, targets):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LPPool2d(2, 1), nn.Flatten(), nn.Linear(144, 4)).double()
    with pytest.raises(ValueError, match=r"layer '1' is of the unsupported kind LPPool2d; supported are: .*Conv2d"):
        lrp.filter_relevance(model, images, targets)


def test_targets_must_fit(images):
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.3, got 0\.\.4"):
        lrp.filter_relevance(miniature_vgg(), images, torch.tensor([0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match="5 images with 2 targets"):
        lrp.filter_relevance(miniature_vgg(), images, torch.tensor([0, 1]))
