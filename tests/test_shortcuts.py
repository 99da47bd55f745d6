"""Residual networks whose shortcuts have no parameters: slices of positions, and channels of zeros (option A)."""

import copy

import numpy as np
import pytest
import torch
from networks import settle, without_biases
from tasks import CifarResNet
from torch import nn
from torch.nn import functional as F

from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT
from lrp_core.graph.tracing import trace
from lrp_core.metrics.cost import n_parameters
from lrp_core.pruning.dependency import couple
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.pruning.saving import load_pruned, save_pruned
from lrp_core.pruning.surgery import remove_filters
from lrp_core.relevance import lrp
from lrp_core.repair.reconstruction import Reconstruction


def cifar_resnet(blocks=1):
    return settle(CifarResNet(blocks)).double()


def images(n=3):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# Channel k of the first stage is k + 8 of the second, and k + 24 of the third: pads have 8 and 16 before and behind.
FILTERS = {"conv1": [3], "layer2.0.conv2": [20, 31], "layer3.0.conv2": [0, 30, 60]}
STREAM = [0, 27, 30, 36, 47, 60]  # the same, as channels of the third stage
INNER = {"layer1.0.conv1": [5], "layer2.0.conv1": [0, 7, 31], "layer3.0.conv1": [63]}


def masked_output(model, stream, inner, x):
    """The network by hand, with channels of the residual streams, and some within the blocks, set to 0."""
    kept = torch.ones(64, dtype=torch.float64)
    kept[stream] = 0
    x = F.relu(model.bn1(model.conv1(x))) * kept[24:40].view(-1, 1, 1)
    for stage, of_stage in (("layer1", kept[24:40]), ("layer2", kept[16:48]), ("layer3", kept)):
        for i, block in enumerate(model.get_submodule(stage)):
            inside = F.relu(block.bn1(block.conv1(x)))
            inside[:, inner.get(f"{stage}.{i}.conv1", [])] = 0
            x = F.relu(block.bn2(block.conv2(inside)) + block.shortcut(x)) * of_stage.view(-1, 1, 1)
    return model.linear(x.mean((2, 3)))


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_trace_computes_what_the_network_does(blocks):
    model, x = cifar_resnet(blocks), images()
    torch.testing.assert_close(run(trace(model), {INPUT: x}), model(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(masked_output(model, [], {}, x), model(x), rtol=1e-12, atol=1e-12)


def test_filters_of_the_stages_are_coupled_through_the_padded_shortcuts():
    coupling = couple(cifar_resnet(2), images(1))
    assert coupling.n_groups == 64 + 2 * (16 + 32 + 64)  # the streams are one; within the blocks each filter is alone
    third = coupling.filters["layer3.1.conv2"]
    assert len(set(third)) == 64
    for name in ("conv1", "layer1.0.conv2", "layer1.1.conv2"):
        assert coupling.filters[name].tolist() == third[24:40].tolist()
    for name in ("layer2.0.conv2", "layer2.1.conv2"):
        assert coupling.filters[name].tolist() == third[16:48].tolist()
    second_pad, third_pad = coupling.padded.values()
    assert [groups.tolist() for groups in second_pad] == [third[16:24].tolist(), third[40:48].tolist()]
    assert [groups.tolist() for groups in third_pad] == [third[:16].tolist(), third[48:].tolist()]


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_smaller_network_is_the_whole_one_with_the_channels_of_every_stream_set_to_0(blocks):
    model, x = cifar_resnet(blocks), images()
    smaller = remove_filters(model, FILTERS | INNER, x[:1])
    expected = masked_output(model, STREAM, INNER, x)
    torch.testing.assert_close(smaller(x), expected, rtol=1e-10, atol=1e-10)
    assert (expected - model(x)).abs().max() > 0.01
    # 27, 30 and 36 lie in the first stage, and 47 in the second, too.
    sizes = {"conv1": 16 - 3, "layer2.0.conv2": 32 - 4, "layer3.0.conv2": 64 - 6, "layer3.0.conv1": 64 - 1}
    assert {name: smaller.get_submodule(name).out_channels for name in sizes} == sizes
    assert smaller.linear.in_features == 58
    assert n_parameters(smaller) < n_parameters(model)


def test_a_network_that_loses_filters_step_by_step_is_the_one_that_loses_them_at_once():
    model, x = cifar_resnet(), images()
    pruned = PrunedNetwork(model, x)
    numbers = [pruned.coupling.filters["layer3.0.conv2"][channel] for channel in STREAM]
    numbers += [pruned.coupling.filters[name][channel] for name, channels in INNER.items() for channel in channels]
    for part in (numbers[:4], numbers[4:]):
        pruned.remove(np.array(part))
    torch.testing.assert_close(pruned.model(x), remove_filters(model, FILTERS | INNER, x[:1])(x))
    torch.testing.assert_close(pruned.model(x), masked_output(model, STREAM, INNER, x), rtol=1e-10, atol=1e-10)
    inner = np.concatenate([pruned.coupling.filters[name] for name in INNER])
    for layer in range(len(pruned.layer_names)):
        assert pruned.active[pruned.layer_of == layer].any()
    assert (~pruned.active[inner]).sum() == 5


def test_only_the_layers_behind_the_first_that_loses_filters_need_be_run():
    model, x = cifar_resnet(), images()
    pruned = PrunedNetwork(model, x)
    first = F.relu(model.bn1(model.conv1(x)))
    stage1 = model.layer1(first)
    inside = model.layer2[0].conv1(stage1)
    layers = trace(model)
    names = [layer.name for layer in layers]
    behind = layers[names.index("layer2.0.conv1") + 1 :]
    outside = {name for layer in behind for name in layer.inputs} - {layer.name for layer in behind}
    (shortcut,) = outside - {"layer2.0.conv1"}
    filters = pruned.coupling.filters["layer2.0.conv1"][[0, 7]]
    known = {"layer2.0.conv1": inside, shortcut: _of(layers, shortcut, x)}
    _, (output,) = pruned.outputs_without(filters, [known])
    expected = masked_output(model, [], {"layer2.0.conv1": [0, 7]}, x)
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


def _of(layers, name, x):
    """What a layer gives."""
    return run(layers[: [layer.name for layer in layers].index(name) + 1], {INPUT: x})


def test_the_model_itself_goes_on_padding_as_before():
    model, x = cifar_resnet(), images()
    before, expected = copy.deepcopy(model.state_dict()), model(x)
    smaller = remove_filters(model, FILTERS, x[:1])
    pruned = PrunedNetwork(model, x, [Reconstruction(model, x)])
    pruned.remove(np.arange(0, pruned.n_filters, 3))
    for tensor in (*smaller.parameters(), *smaller.buffers()):
        tensor.data.fill_(7)
    assert torch.equal(model(x), expected)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert list(dict(model.named_modules())) == list(dict(CifarResNet(1).named_modules()))


@pytest.mark.parametrize("reconstruct", [False, True])
def test_a_pruned_network_comes_back_from_its_file_bit_by_bit(tmp_path, reconstruct):
    def build():
        return settle(CifarResNet(1), seed=5)  # its weights are of no account

    model, x = cifar_resnet().float(), images(8).float()
    pruned = PrunedNetwork(model, x, [Reconstruction(model, x)] if reconstruct else [])
    pruned.remove(np.random.default_rng(0).choice(pruned.n_filters, pruned.n_filters // 3, replace=False))
    save_pruned(tmp_path / "net.safetensors", pruned.model, pruned.kept(), pruned.example_shape)
    loaded = load_pruned(tmp_path / "net.safetensors", build)
    assert torch.equal(loaded(x), pruned.model(x))
    assert not torch.allclose(loaded(x), model(x), rtol=1e-3)
    assert n_parameters(loaded) == n_parameters(pruned.model) < n_parameters(model)


def test_reconstruction_brings_the_outputs_nearer():
    model, x = cifar_resnet(2), images(24)
    gone = np.random.default_rng(0).choice(PrunedNetwork(model, x).n_filters, 70, replace=False)
    off = {}
    for name, repairs in (("plain", []), ("rebuilt", [Reconstruction(model, x)])):
        off[name] = (PrunedNetwork(model, x, repairs).without(gone)(x) - model(x)).square().mean().item()
    assert off["rebuilt"] < 0.2 * off["plain"]


def test_relevance_is_conserved_and_none_goes_to_padded_channels(no_stabiliser):
    model, x, targets = without_biases(cifar_resnet()), images(), torch.tensor([0, 9, 4])
    explanation = lrp.explain(model, x, targets, pixels=True)
    torch.testing.assert_close(explanation.logits, model(x), rtol=1e-9, atol=1e-12)
    assert set(explanation.filters) == {name for name, part in model.named_modules() if isinstance(part, nn.Conv2d)}
    ones = torch.ones(3, dtype=torch.float64)
    # All relevance passes the first convolution; the rest of it takes the way of the shortcut.
    torch.testing.assert_close(explanation.totals["conv1"], ones, rtol=0, atol=1e-6)
    torch.testing.assert_close(explanation.pixels.sum(dim=(1, 2, 3)), ones, rtol=0, atol=1e-6)
    by_filter = lrp.filter_relevance(model, x, targets)
    assert all(torch.equal(by_filter[name], explanation.filters[name]) for name in by_filter)


def test_by_the_epsilon_rule_relevance_is_input_times_gradient(no_stabiliser):
    """Through slices, pads and sums: of a network without biases, by autograd."""
    model, x, targets = without_biases(cifar_resnet()), images().requires_grad_(), torch.tensor([2, 0, 7])
    chosen = model(x).gather(1, targets[:, None])
    (gradient,) = torch.autograd.grad(chosen.sum(), x)
    expected = x.detach() * gradient / chosen.detach()[..., None, None]
    epsilon = {"low": "epsilon", "mid": "epsilon", "high": "epsilon"}
    got = lrp.explain(model, x.detach(), targets, epsilon, pixels=True).pixels
    assert (got - expected).abs().max() <= 1e-8 * expected.abs().max()


class Padded(nn.Module):
    """Channels of zeros that meet no filter: behind the pad there is a convolution, and no sum."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(7), nn.Conv2d(7, 5, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        x = self.norm(F.pad(F.relu(self.first(x)), (0, 0, 0, 0, 1, 2)))
        return self.head(F.relu(self.second(x)).mean((2, 3)))


def test_padded_channels_that_meet_no_filter_are_not_counted_and_stay():
    model, x = settle(Padded()).double(), images()
    coupling = couple(model, x[:1])
    assert coupling.n_groups == 4 + 5
    assert coupling.channels["second"].tolist() == [-1, 0, 1, 2, 3, -1, -1]
    assert [groups.tolist() for (pair,) in [coupling.padded.values()] for groups in pair] == [[-1], [-1, -1]]
    pruned = PrunedNetwork(model, x)
    pruned.remove(np.array([0, 2]))
    assert pruned.model.second.in_channels == 1 + 2 + 2
    masked = F.relu(model.first(x)) * torch.tensor([0, 1, 0, 1.0]).view(-1, 1, 1)
    padded = model.norm(F.pad(masked, (0, 0, 0, 0, 1, 2)))
    padded[:, [1, 3]] = 0  # which the normalisation moves, where removal leaves nothing
    expected = model.head(F.relu(model.second(padded)).mean((2, 3)))
    torch.testing.assert_close(pruned.model(x), expected, rtol=1e-10, atol=1e-10)


def test_ignored_convolutions_keep_their_filters_and_those_coupled_to_them():
    model, x = cifar_resnet(), images()
    pruned = PrunedNetwork(model, x, ignored=["layer1.0.conv2", "layer3.0.conv1"])
    assert pruned.n_filters == (64 - 16) + 16 + 32  # of the stream, those of the first stage stay
    assert (pruned.coupling.filters["conv1"] == -1).all()
    assert (pruned.coupling.filters["layer3.0.conv2"] == -1).nonzero()[0].tolist() == list(range(24, 40))
    pruned.remove(
        np.concatenate([np.flatnonzero(pruned.layer_of == layer)[1:] for layer in np.unique(pruned.layer_of)])
    )
    sizes = {"conv1": 16, "layer1.0.conv2": 16, "layer3.0.conv1": 64, "layer1.0.conv1": 1, "layer2.0.conv1": 1}
    assert {name: pruned.model.get_submodule(name).out_channels for name in sizes} == sizes
    assert pruned.model(x).shape == (3, 10)
