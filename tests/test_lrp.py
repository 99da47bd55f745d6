import pytest
import torch
import zennit.composites
from conftest import miniature_vgg
from torch import nn
from torch.nn import functional as F

from lrp_core import lrp
from lrp_core.heads import classifier


@pytest.fixture
def no_stabiliser(monkeypatch):
    """Closed forms have no epsilon in the denominator."""
    monkeypatch.setattr(lrp, "EPSILON", 1e-15)


def dense_by_loops(weight, a, relevance, positive):
    """R_j = sum_k a_j w_jk / sum_j a_j w_jk R_k, term by term, for one sample in float64."""
    terms = a[None, :] * weight
    if positive:
        terms = terms.clamp(min=0)
    z = terms.sum(dim=1)
    return sum(terms[k] / z[k] * relevance[k] for k in range(len(z)) if z[k] != 0)


def test_epsilon_in_a_dense_layer_by_hand(no_stabiliser):
    layer, a = nn.Linear(3, 2).double(), torch.tensor([[1.0, 2.0, 0.5]], dtype=torch.float64)
    layer.weight.data = torch.tensor([[1.0, -1.0, 4.0], [0.5, 1.0, 0.0]], dtype=torch.float64)
    relevance = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    # contributions 1, -2, 2 of z = 1; and 0.5, 2, 0 of z = 2.5
    expected = torch.tensor([[1 + 0.4, -2 + 1.6, 2.0]], dtype=torch.float64)
    assert torch.allclose(lrp._redistribute(lrp.epsilon, layer, a, relevance), expected, atol=1e-12)


@pytest.mark.parametrize("signed", [False, True])
def test_zplus_in_a_convolution_against_its_matrix(signed, no_stabiliser):
    """The convolution written out as a matrix; negative inputs (pixels) times negative weights count."""
    generator = torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    a = torch.randn(1, 2, 5, 5, generator=generator, dtype=torch.float64)
    a = a if signed else a.abs()
    units = torch.eye(50, dtype=torch.float64).view(50, 2, 5, 5)
    matrix = F.conv2d(units, layer.weight.detach(), stride=2, padding=1).flatten(1).T
    relevance = torch.rand(1, 3, 3, 3, generator=generator, dtype=torch.float64)
    expected = dense_by_loops(matrix, a.flatten(), relevance.flatten(), positive=True)
    got = lrp._redistribute(lrp.zplus, layer, a, relevance).flatten()
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12)


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


def test_model_comes_back_as_it_was(images, targets):
    model = miniature_vgg().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    lrp.filter_relevance(model, images, targets)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks or layer._backward_hooks for layer in model.modules())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_vgg16_agrees_with_zennit(vgg16):
    """Per-filter relevance and heatmap of the pre-trained VGG16, in float64, against zennit's EpsilonPlus."""
    generator = torch.Generator().manual_seed(3)
    model = classifier(vgg16, torch.randn(1, 4, 512, generator=generator)).double()
    images = (torch.rand(2, 3, 32, 32, generator=generator) * 255 - 110).double()
    targets = torch.tensor([1, 3])
    ours = lrp.explain(model, images, targets, pixels=True)

    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            output.retain_grad()
            outputs[name] = output

        return hook

    for layer in model.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False  # so that the convolution's output is not overwritten
    composite = zennit.composites.EpsilonPlus(zero_params="bias")
    with composite.context(model) as explained:
        hooks = [
            layer.register_forward_hook(keep(name))
            for name, layer in explained.named_modules()
            if isinstance(layer, nn.Conv2d)
        ]
        x = images.clone().requires_grad_()
        explained(x).backward(F.one_hot(targets, 4).double())
        for hook in hooks:
            hook.remove()
    vgg16.float()
    assert len(outputs) == 13
    for name, output in outputs.items():
        theirs = output.grad.sum(dim=(2, 3))
        assert (ours.filters[name] - theirs).abs().max() <= 1e-4 * theirs.abs().max(), name
    assert (ours.pixels - x.grad).abs().max() <= 1e-4 * x.grad.abs().max()


def test_unknown_composite_is_named(images, targets):
    with pytest.raises(ValueError, match="unknown composite 'gama'; choose one of: epsilon-zplus"):
        lrp.filter_relevance(miniature_vgg(), images, targets, composite="gama")


def test_unsupported_layer_is_named(images, targets):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 4)).double()
    with pytest.raises(ValueError, match=r"layer '1' is of the unsupported kind GELU; supported are: .*Conv2d"):
        lrp.filter_relevance(model, images, targets)


@pytest.mark.parametrize(
    "grouped", [nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 3, 3, padding_mode="reflect", padding=1)]
)
def test_unsupported_convolution_is_named(images, targets, grouped):
    model = nn.Sequential(grouped, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)).double()
    with pytest.raises(ValueError, match=r"layer '0' is of the unsupported kind Conv2d with groups="):
        lrp.filter_relevance(model, images, targets)


def test_targets_must_fit(images):
    with pytest.raises(ValueError, match=r"targets must lie in 0\.\.3, got 0\.\.4"):
        lrp.filter_relevance(miniature_vgg(), images, torch.tensor([0, 1, 2, 3, 4]))
    with pytest.raises(ValueError, match="5 images with 2 targets"):
        lrp.filter_relevance(miniature_vgg(), images, torch.tensor([0, 1]))
