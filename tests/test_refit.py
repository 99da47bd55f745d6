"""The head of every smaller network, against one fitted to what a plain forward pass gives."""

import copy

import numpy as np
import pytest
import torch
from conftest import miniature_vgg
from networks import Branches, network, settle
from sklearn.linear_model import Ridge

from lrp_core.control.calibration import CalibrationTask
from lrp_core.control.monitored import monitored_accuracies
from lrp_core.importance.registry import criterion
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.out_of_fold import with_out_of_fold_heads
from lrp_core.repair.reconstruction import Reconstruction
from lrp_core.repair.refit import Refit
from lrp_core.repair.ridge_head import fit_heads

LABELS, FOLD = torch.arange(60) % 4, torch.arange(60) // 4 % 3


def draw(model, images, reconstruct=False, out_of_fold=False):
    """Return a network with its compensations; with ``out_of_fold``, three heads stand beside its own."""
    if out_of_fold:
        model = with_out_of_fold_heads(model, torch.zeros(3, 4, model.head.in_features).to(images))
    compensations = [Reconstruction(model, images)] if reconstruct else []
    return PrunedNetwork(model, images, [*compensations, Refit("head", LABELS, FOLD)])


def noise(dtype=torch.float32):
    """60 images of noise (60, 3, 8, 8) with a colour for three of the four classes."""
    images = torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return (images + torch.eye(4)[LABELS][:, :3, None, None]).to(dtype)


def read_by_head(model, images):
    """What the last layer reads in one plain pass."""
    caught = []
    with model.head.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0])), torch.no_grad():
        model(images)
    return caught[0]


def assert_refitted(model, images, out_of_fold, rtol=1e-4):
    heads = fit_heads(read_by_head(model, images), LABELS, FOLD, bias=model.head.bias is not None)
    for name in ("weight", "bias") if model.head.bias is not None else ("weight",):
        want, got = getattr(heads, name), getattr(model.head, name)
        want = torch.cat([want, *getattr(heads.out_of_fold, name)]) if out_of_fold else want
        torch.testing.assert_close(got, want.to(images), rtol=rtol, atol=rtol * want.abs().max().item())
        assert not got.requires_grad


@pytest.mark.parametrize("build", [miniature_vgg, lambda: settle(Branches()).double()])
@pytest.mark.parametrize("out_of_fold", [False, True])
@pytest.mark.parametrize("reconstruct", [False, True])
def test_head_of_a_smaller_network_is_the_one_for_its_features(build, out_of_fold, reconstruct):
    model, images = build(), noise(torch.float64)
    before = copy.deepcopy(model.state_dict())
    pruned = draw(model, images, reconstruct, out_of_fold)
    for filters in ([1, 8, 15], [0, 20]):
        pruned.remove(np.array(filters))
        assert_refitted(pruned.model, images, out_of_fold, rtol=1e-5)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_has_a_bias_where_it_had_one(bias):
    """Against a library's ridge regression, whose intercept is not penalised."""
    model, images = miniature_vgg(), noise(torch.float64)
    if not bias:
        model.head.bias = None
    pruned = draw(model, images)
    pruned.remove(np.array([1, 8, 15]))
    features = read_by_head(pruned.model, images)
    strength = fit_heads(features, LABELS, FOLD, bias=bias).strength
    centred = features - features.mean(dim=0) if bias else features
    alpha = strength * centred.square().sum(dim=1).mean().item()
    want = Ridge(alpha, fit_intercept=bias).fit(features.numpy(), np.eye(4)[LABELS] - 1 / 4)
    np.testing.assert_allclose(pruned.model.head.weight, want.coef_, rtol=1e-5, atol=1e-7)
    if bias:
        np.testing.assert_allclose(pruned.model.head.bias, want.intercept_, rtol=1e-5, atol=1e-7)
    else:
        assert pruned.model.head.bias is None


def test_features_are_of_the_network_as_it_is_reconstructed():
    """The head is fitted last, so that it knows what the other repair has made of the features."""
    model, images, gone = miniature_vgg(), noise(torch.float64), np.array([0, 1, 8, 9])
    rebuilt = PrunedNetwork(model, images, [Reconstruction(model, images)])
    rebuilt.remove(gone)
    both = draw(model, images, reconstruct=True)
    both.remove(gone)
    torch.testing.assert_close(read_by_head(both.model, images), read_by_head(rebuilt.model, images))
    assert not torch.allclose(both.model.head.weight, rebuilt.model.head.weight)


def test_an_unpruned_network_keeps_its_head():
    model, images = miniature_vgg(), noise(torch.float64)
    pruned = draw(model, images)
    assert torch.equal(pruned.model.head.weight, model.head.weight)
    assert torch.equal(pruned.model(images), model(images))


@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
@pytest.mark.parametrize("reconstruct", [False, True])
def test_evaluations_are_judged_by_the_heads_that_the_smaller_network_would_have(name, reconstruct):
    """What is kept from evaluation to evaluation and step to step, against the whole network pruned in one go."""
    model = network(name)
    images = torch.nn.functional.interpolate(noise(), scale_factor=4)
    pruned, rng = draw(model, images, reconstruct, out_of_fold=True), np.random.default_rng(0)
    task = CalibrationTask(pruned, images, LABELS, 4, FOLD, criterion("weight", 4, 0), "probability")
    for _ in range(2):
        left = np.flatnonzero(pruned.active)
        for filters in (left[1:20], rng.choice(left, len(left) // 5, replace=False)):
            got = task.accuracy(filters)
            afresh = draw(model, images, reconstruct, out_of_fold=True)
            afresh.remove(np.append(np.flatnonzero(~pruned.active), filters))
            with torch.no_grad():
                want = monitored_accuracies(afresh.model(images), LABELS, FOLD, 4, "probability")
            np.testing.assert_allclose(got, want, rtol=1e-3)
        task.prune(filters)  # the last that were evaluated: that network goes on
        assert_refitted(task.network.model, images, out_of_fold=True, rtol=1e-3)
        np.testing.assert_allclose(task.accuracy(filters[:0]), want, rtol=1e-3)
