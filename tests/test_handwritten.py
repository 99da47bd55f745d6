"""Blocks as people write them by hand: what the trace computes, what is coupled, and the smaller network."""

import copy

import numpy as np
import pytest
import torch
from masked import masked_run
from networks import settle
from torch import nn
from torch.nn import functional as F

from lrp_core.control.cost import cost_kept, layer_costs, parameter_costs
from lrp_core.graph.execution import run
from lrp_core.graph.explicit import with_modules
from lrp_core.graph.layers import INPUT, ChannelConv, ChannelNorm, ChannelScale, PointwiseConv, Product, needed
from lrp_core.graph.tracing import trace, trace_with_nodes
from lrp_core.graph.truncation import up_to
from lrp_core.metrics.cost import multiply_adds, n_parameters
from lrp_core.pruning.dependency import couple
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.pruning.saving import load_pruned, save_pruned
from lrp_core.pruning.surgery import remove_filters


class Around(nn.Module):
    """A convolution, a block on 8 channels, another convolution, a head."""

    def __init__(self, block, channels=8):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block = block
        self.last, self.head = nn.Conv2d(channels, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        x = self.block(F.relu(self.norm(self.stem(x)), inplace=True))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """As in the paper's first implementations: dense layers on a pooled vector, expanded again."""

    def __init__(self, view):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(8, 5, bias=False), nn.ReLU(inplace=True), nn.Linear(5, 8), nn.Sigmoid())
        self.view = view

    def forward(self, x):
        b, c, _, _ = x.size()
        if self.view == "view":
            y = self.fc(self.pool(x).view(b, c)).view(b, c, 1, 1)
            return x * y.expand_as(x)
        if self.view == "mean":
            return x * self.fc(x.mean((2, 3)))[:, :, None, None]
        if self.view == "numbers":
            y = self.fc(self.pool(x).view(-1, 8))
            return torch.mul(y.reshape(-1, 8, 1, 1), x)
        return x.mul_(self.fc(F.avg_pool2d(x, 10).flatten(1)).unsqueeze(-1).unsqueeze(2))


class ChannelAttention(nn.Module):
    """ECA, as its authors wrote it."""

    def __init__(self, size=3):
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel_size=size, padding=(size - 1) // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x):
        y = self.avg_pool(x)
        y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        return x * self.sigmoid(y).expand_as(x)


class Shuffled(nn.Module):
    """A unit of ShuffleNetV2, with grouped convolutions around the shuffle."""

    def __init__(self, by_hand):
        super().__init__()
        self.by_hand, self.shuffle = by_hand, nn.ChannelShuffle(4)
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.first(x))
        if self.by_hand:
            b, c, h, w = x.shape
            x = x.reshape(b, 4, c // 4, h, w).permute(0, 2, 1, 3, 4).reshape(b, c, h, w)
        else:
            x = self.shuffle(x)
        left, right = x.split(x.size(1) // 2, dim=1)
        return torch.cat([left, F.relu(self.second(right))], dim=1)


class ConvNeXtBlock(nn.Module):
    """As its authors wrote it."""

    def __init__(self):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(8, 8, 7, padding=3, groups=8), nn.LayerNorm(8, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)
        self.gamma = nn.Parameter(torch.linspace(0.5, 1.5, 8))

    def forward(self, x):
        shortcut = x
        x = self.dwconv(x).permute(0, 2, 3, 1)
        x = self.pwconv2(self.act(self.pwconv1(self.norm(x))))
        return shortcut + (self.gamma * x).permute(0, 3, 1, 2)


class BlurPool(nn.Module):
    """A fixed kernel, by channel, with its rims reflected."""

    def __init__(self):
        super().__init__()
        kernel = torch.tensor([1.0, 2, 1])
        self.register_buffer("kernel", (kernel[:, None] * kernel / 16)[None, None].repeat(8, 1, 1, 1))

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


class Gated(nn.Module):
    """A gated linear unit: half of the channels scale the other half."""

    def __init__(self):
        super().__init__()
        self.both = nn.Conv2d(8, 16, 1)

    def forward(self, x):
        value, gate = self.both(x).chunk(2, dim=1)
        return value * torch.sigmoid(gate)


class Tokens(nn.Module):
    """A perceptron on the positions of a map, one after the other."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        b, c, h, w = x.shape
        if x.ndim != 4 or c % 2 or int(c / 2) != len(range(c // 2)):
            raise ValueError("an even number of channels")
        y = self.fc2(F.gelu(self.fc1(x.flatten(2).transpose(1, 2))))
        return x + y.transpose(1, 2).reshape(b, c, h, w)


def asymmetric():
    return nn.Sequential(
        nn.Conv2d(8, 8, (1, 5), padding=(0, 2)), nn.PReLU(8), nn.Conv2d(8, 8, (5, 1), padding=(4, 0), dilation=(2, 1)),
        nn.PReLU(), nn.MaxPool2d(3, 2, ceil_mode=True), nn.LeakyReLU(0.1, inplace=True),
    )  # fmt: skip


def group_norms():
    return nn.Sequential(
        nn.Conv2d(8, 12, 3), nn.GroupNorm(4, 12), nn.SiLU(inplace=True), nn.Conv2d(12, 8, 3), nn.GroupNorm(8, 8)
    )


def weight_normed():
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), nn.ELU(),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, bias=False)), nn.Hardswish(),
    )  # fmt: skip


BLOCKS = {
    "squeeze by view": lambda: SqueezeExcite("view"),
    "squeeze by mean": lambda: SqueezeExcite("mean"),
    "squeeze by numbers": lambda: SqueezeExcite("numbers"),
    "squeeze in place": lambda: SqueezeExcite("in place"),
    "eca": ChannelAttention,
    "eca of 5": lambda: ChannelAttention(5),
    "shuffle by hand": lambda: Shuffled(True),
    "shuffle": lambda: Shuffled(False),
    "convnext": ConvNeXtBlock,
    "blur pool": BlurPool,
    "gated": Gated,
    "tokens": Tokens,
    "asymmetric": asymmetric,
    "group norms": group_norms,
    "weight norm": weight_normed,
}


def network(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = settle(Around(BLOCKS[name]()))
        for part in model.modules():
            if isinstance(part, nn.GroupNorm | nn.LayerNorm):
                part.weight.uniform_(0.5, 1.5), part.bias.uniform_(-0.5, 0.5)
    return model.double()


def images(n=3):
    return torch.randn(n, 3, 10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def some(pruned, share=0.4):
    """Some filters of each layer, but never all."""
    generator = np.random.default_rng(2)
    layers = [np.flatnonzero(pruned.layer_of == layer) for layer in range(len(pruned.layer_names))]
    chosen = [generator.choice(of, min(int(share * len(of)), len(of) - 1), replace=False) for of in layers]
    return np.concatenate(chosen)


@pytest.mark.parametrize("name", BLOCKS)
def test_the_trace_computes_what_the_model_does(name):
    model, x = network(name), images()
    state = [*model.named_modules()]
    torch.testing.assert_close(run(trace(model), {INPUT: x}), model(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(with_modules(model)(x), model(x), rtol=1e-10, atol=1e-12)
    assert [*model.named_modules()] == state


@pytest.mark.parametrize("name", BLOCKS)
def test_a_smaller_network_is_what_the_whole_one_is_when_masked(name):
    model, x = network(name), images()
    pruned = PrunedNetwork(model, x)
    gone = some(pruned)
    assert len(gone) >= 4
    smaller, expected = pruned.without(gone), masked_run(model, pruned.coupling, _mask(pruned, gone), x)
    torch.testing.assert_close(smaller(x), expected, rtol=1e-10, atol=1e-10)
    assert (expected - model(x)).abs().max() > 1e-3
    for part in np.array_split(gone, 3):  # step by step
        pruned.remove(part)
    torch.testing.assert_close(pruned.model(x), expected, rtol=1e-10, atol=1e-10)


def _mask(pruned, gone):
    return np.isin(np.arange(pruned.n_filters), gone)


@pytest.mark.parametrize("name", BLOCKS)
def test_costs_are_those_of_the_smaller_network(name):
    model, x = network(name).float(), images(1).float()
    pruned = PrunedNetwork(model, x)
    gone = some(pruned)
    smaller, kept = pruned.without(gone), ~_mask(pruned, gone)
    assert cost_kept(layer_costs(pruned, x), kept) == multiply_adds(smaller, x)
    assert cost_kept(parameter_costs(pruned, adds_biases=False), kept) == n_parameters(smaller)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_pruned_network_comes_back_from_its_file(name, tmp_path):
    model, x = network(name).float(), images().float()
    pruned = PrunedNetwork(model, x)
    pruned.remove(some(pruned))
    save_pruned(tmp_path / "net.safetensors", pruned.model, pruned.kept(), pruned.example_shape)
    loaded = load_pruned(tmp_path / "net.safetensors", lambda: Around(BLOCKS[name]()))
    assert torch.equal(loaded(x), pruned.model(x))


def test_a_gate_goes_with_the_channels_that_it_scales():
    model = network("squeeze by view")
    coupling = couple(with_modules(model), images(1))
    assert coupling.n_groups == 8 + 5 + 6
    assert coupling.filters["block.fc.2"].tolist() == coupling.filters["stem"].tolist() == list(range(8))
    kinds = {layer.name: type(layer.module) for layer in trace(model)}
    assert [kinds[name] for name in ("block.fc.0", "block.fc.2", "mul")] == [PointwiseConv, PointwiseConv, Product]


def test_channels_that_a_layer_normalisation_reads_stay():
    coupling = couple(network("convnext"), images(1))
    assert coupling.n_groups == 32 + 6
    assert (coupling.filters["stem"] == coupling.filters["block.dwconv"]).all()
    assert (coupling.filters["stem"] == -1).all()
    assert (coupling.filters["block.pwconv2"] == -1).all()
    layers = {layer.name: layer for layer in trace(network("convnext"))}
    assert isinstance(layers["block.norm"].module, ChannelNorm)
    assert isinstance(layers["mul"].module, ChannelScale)
    assert layers["add"].inputs == ("relu", "mul")


def test_channels_that_are_normalised_together_go_together():
    model = network("group norms")
    pruned = PrunedNetwork(model, images())
    assert pruned.coupling.filters["block.0"].reshape(4, 3).T.tolist() == [[8, 9, 10, 11]] * 3
    pruned.remove(np.array([8, 10, 12]))
    first, second = pruned.model.block[1], pruned.model.block[4]
    assert (first.num_groups, first.num_channels, second.num_groups, second.num_channels) == (2, 6, 7, 7)


def test_a_channel_that_is_gone_leaves_a_gap_in_the_attention_of_its_neighbours():
    pruned = PrunedNetwork(network("eca"), images())
    pruned.remove(np.array([0, 4]))
    (conv,) = [part for part in pruned.model.modules() if isinstance(part, ChannelConv)]
    assert conv.index.tolist() == [[-1, 0, 1], [0, 1, 2], [1, 2, -1], [-1, 3, 4], [3, 4, 5], [4, 5, -1]]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_smaller_network_shares_no_tensor_with_the_unpruned_one(name):
    """Training the one would change the other."""
    model = network(name)
    pruned = PrunedNetwork(model, images())
    own = {tensor.data_ptr() for tensor in model.state_dict().values()}
    for smaller in (pruned.without(np.array([0])), remove_filters(model, {}, images(1))):
        assert not own & {tensor.data_ptr() for tensor in smaller.state_dict().values()}


def test_a_shuffle_shows_in_the_groups_behind_it():
    """Channels 0, 2, 4, 6, 1, 3, 5, 7: the last four are read by the second convolution."""
    coupling = couple(network("shuffle by hand"), images(1))
    first = coupling.filters["block.first"]
    assert coupling.channels["block.second"].tolist() == first[[1, 3, 5, 7]].tolist()
    assert coupling.channels["last"].tolist() == [*first[[0, 2, 4, 6]], *coupling.filters["block.second"]]


def test_what_a_hook_computes_is_refused():
    model = network("weight norm")
    model.block[0] = nn.utils.weight_norm(nn.Conv2d(8, 8, 3))
    with pytest.raises(ValueError, match=r"'block\.0' is .* Conv2d whose weight a hook computes \(remove"):
        trace(model)


class TwoUses(nn.Module):
    """A vector that scales channels, and that the head reads, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x)
        gate = self.fc(x.mean((2, 3)))
        return self.head((x * gate[:, :, None, None]).mean((2, 3)) + gate)


def test_a_vector_may_scale_maps_and_be_read_as_a_vector():
    model, x = settle(TwoUses()).double(), images()
    torch.testing.assert_close(run(trace(model), {INPUT: x}), model(x), rtol=1e-10, atol=1e-12)
    pruned = PrunedNetwork(model, x)
    gone = np.array([1, 2])
    expected = masked_run(model, pruned.coupling, _mask(pruned, gone), x)
    torch.testing.assert_close(pruned.without(gone)(x), expected, rtol=1e-10, atol=1e-10)


class ByParameters(nn.Module):
    """Parameters in the code: some for each channel, one for all, and what is computed of them."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.scale, self.shift = (
            nn.Parameter(torch.linspace(1, 2, 4)),
            nn.Parameter(torch.linspace(-1, 1, 4)[:, None, None]),
        )
        self.one = nn.Parameter(torch.tensor([0.5]))

    def forward(self, x):
        x = self.conv(x) * self.scale.exp().view(1, -1, 1, 1) - self.shift
        return self.head((F.relu(x) * self.one / (1 + self.one)).mean((2, 3)))


def test_parameters_in_the_code_shrink_too():
    with torch.random.fork_rng():
        model, x = ByParameters().eval().double(), images()
    pruned = PrunedNetwork(model, x)
    gone = np.array([0, 3])
    expected = masked_run(model, pruned.coupling, _mask(pruned, gone), x)
    torch.testing.assert_close(pruned.without(gone)(x), expected, rtol=1e-10, atol=1e-10)
    copy.deepcopy(pruned.without(gone))


class Reused(nn.Module):
    """A dense layer that serves two maps."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x).permute(0, 2, 3, 1)
        return self.head(self.fc(F.relu(self.fc(x))).mean((1, 2)))


class GateOfPositions(Reused):
    """A gate that is computed of all positions of a map."""

    def forward(self, x):
        x = self.conv(x)
        return self.head((x * self.fc(F.avg_pool2d(x, 3).flatten(1))[:, :, None, None]).mean((2, 3)))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Reused(), "layer 'fc_1' is used twice; give each use a module of its own"),
        (GateOfPositions(), "layer 'mul' .* which makes maps of vectors"),
    ],
)
def test_what_cannot_be_read_is_refused(model, message):
    if isinstance(model, GateOfPositions):
        model.fc = nn.Linear(16, 4)
    with pytest.raises(ValueError, match=message):
        trace(model)


@pytest.mark.parametrize("name", BLOCKS)
def test_a_network_may_end_at_any_layer_that_makes_maps(name):
    """Whose value stands in the code somewhere as maps (N, C, H, W); with its channels last it may not."""
    model, x = network(name), images()
    layers, nodes, _ = trace_with_nodes(model)
    ends = [layer.name for layer in layers if layer.name in nodes.values()]
    assert {"stem", "relu", "last"} <= set(ends)
    for end in ends:
        expected = run(needed(layers, end), {INPUT: x})
        torch.testing.assert_close(up_to(model, end)(x), expected, rtol=1e-10, atol=1e-10)
