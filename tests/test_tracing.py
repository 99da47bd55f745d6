"""A trace against the model's own forward, in float64; what cannot be traced is refused by name."""

import operator
import types

import pytest
import torch
from networks import settle
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model

from lrp_core.graph.execution import run
from lrp_core.graph.layers import INPUT
from lrp_core.graph.tracing import trace


class Between(nn.Module):
    """A convolution (6 x 6 pixels to 4 channels of 4 x 4), a function of its output, a dense layer."""

    def __init__(self, function, n_features):
        super().__init__()
        self.function = function
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(n_features, 2)
        self.mean = nn.Parameter(torch.ones(1))  # named like a call

    def forward(self, x):
        return self.head(self.function(self.conv(x)))


def between(function, n_features=4):
    return settle(Between(function, n_features)).double()


def images():
    return torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def add_in_place(x):
    x += x
    x += F.relu(x)
    return x.mean((2, 3))


def multiply_in_place(x):
    x *= 0.1
    x -= 2
    return x.mean((2, 3))


def shuffled(x):
    b, c, h, w = x.size()
    return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w).flatten(1)


SPELLINGS = {
    "flatten(x, 1)": (lambda x: torch.flatten(x, 1), 64),
    "flatten(x, start_dim=1)": (lambda x: torch.flatten(x, start_dim=1), 64),
    "flatten(x, 1, -1)": (lambda x: torch.flatten(x, 1, -1), 64),
    "flatten(x, 1, end_dim=-1)": (lambda x: torch.flatten(x, 1, end_dim=-1), 64),
    "flatten(input=x, end_dim=-1, start_dim=1)": (lambda x: torch.flatten(input=x, end_dim=-1, start_dim=1), 64),
    "flatten(x, -3, 3)": (lambda x: torch.flatten(x, -3, 3), 64),
    "x.flatten(1)": (lambda x: x.flatten(1), 64),
    "x.flatten(start_dim=1)": (lambda x: x.flatten(start_dim=1), 64),
    "x.flatten(1, 3)": (lambda x: x.flatten(1, 3), 64),
    "x.flatten(start_dim=-3, end_dim=-1)": (lambda x: x.flatten(start_dim=-3, end_dim=-1), 64),
    "mean(x, (2, 3))": (lambda x: torch.mean(x, (2, 3)), 4),
    "mean(x, [3, 2])": (lambda x: torch.mean(x, [3, 2]), 4),
    "mean(x, dim=(-1, 2))": (lambda x: torch.mean(x, dim=(-1, 2)), 4),
    "mean(input=x, dim=[-2, -1])": (lambda x: torch.mean(input=x, dim=[-2, -1]), 4),
    "mean(x, axis=(2, 3))": (lambda x: torch.mean(x, axis=(2, 3)), 4),
    "mean(x, (2, 3), True)": (lambda x: torch.mean(x, (2, 3), True).flatten(1), 4),
    "x.mean((3, -2), keepdim=True)": (lambda x: x.mean((3, -2), keepdim=True).flatten(1), 4),
    "x.mean([2, 3], False, dtype=None)": (lambda x: x.mean([2, 3], False, dtype=None), 4),
    "x.mean(dim=(2, 3))": (lambda x: x.mean(dim=(2, 3)), 4),
    "relu(input=x)": (lambda x: F.relu(input=x).mean((2, 3)), 4),
    "relu(x, True)": (lambda x: F.relu(x, True).mean((2, 3)), 4),
    "torch.relu(input=x)": (lambda x: torch.relu(input=x).mean((2, 3)), 4),
    "relu6(x)": (lambda x: F.relu6(x).mean((2, 3)), 4),
    "dropout(x, p=0.5, training=False)": (lambda x: F.dropout(x, p=0.5, training=False).mean((2, 3)), 4),
    "max_pool2d(x, 2)": (lambda x: F.max_pool2d(x, 2).flatten(1), 16),
    "max_pool2d(x, kernel_size=[3, 2], stride=1)": (
        lambda x: F.max_pool2d(x, kernel_size=[3, 2], stride=1).flatten(1),
        24,
    ),
    "avg_pool2d(x, 3, 1, padding=1)": (lambda x: F.avg_pool2d(x, 3, 1, padding=1).flatten(1), 64),
    "avg_pool2d(input=x, kernel_size=2)": (lambda x: F.avg_pool2d(input=x, kernel_size=2).flatten(1), 16),
    "adaptive_avg_pool2d(x, output_size=2)": (lambda x: F.adaptive_avg_pool2d(x, output_size=2).flatten(1), 16),
    "cat([x, relu(x)], 1)": (lambda x: torch.cat([x, F.relu(x)], 1).mean((2, 3)), 8),
    "cat(tensors=(x, relu(x)), dim=-3)": (lambda x: torch.cat(tensors=(x, F.relu(x)), dim=-3).mean((2, 3)), 8),
    "concat((x, relu(x)), axis=1)": (lambda x: torch.concat((x, F.relu(x)), axis=1).mean((2, 3)), 8),
    "cat([x, x], 1)": (lambda x: torch.cat([x, x], 1).mean((2, 3)), 8),
    "cat([x, relu(x), x], 1)": (lambda x: torch.cat([x, F.relu(x), x], 1).mean((2, 3)), 12),
    "x + x": (lambda x: (x + x).mean((2, 3)), 4),
    "x += x": (add_in_place, 4),
    "iadd(x, x)": (lambda x: operator.iadd(x, x).mean((2, 3)), 4),
    "add(x, other=x)": (lambda x: torch.add(x, other=x).mean((2, 3)), 4),
    "add(other=relu(x), input=x, alpha=1)": (lambda x: torch.add(other=F.relu(x), input=x, alpha=1).mean((2, 3)), 4),
    "x.add(other=x)": (lambda x: x.add(other=x).mean((2, 3)), 4),
    "x + dropout(x)": (lambda x: (x + F.dropout(x, training=False)).mean((2, 3)), 4),
    "x.view(x.size(0), -1)": (lambda x: x.view(x.size(0), -1), 64),
    "x.view((x.size(dim=0), -1))": (lambda x: x.view((x.size(dim=0), -1)), 64),
    "x.view(x.size()[0], -1)": (lambda x: x.view(x.size()[0], -1), 64),
    "x.reshape(x.shape[0], -1)": (lambda x: x.reshape(x.shape[0], -1), 64),
    "x.reshape([x.shape[0], -1])": (lambda x: x.reshape([x.shape[0], -1]), 64),
    "x.view(relu(x).size(0), -1)": (lambda x: x.view((y := F.relu(x)).size(0), -1) + y.flatten(1), 64),
    "avg_pool2d(x, x.size(3))": (lambda x: F.avg_pool2d(x, x.size(3)).flatten(1), 4),
    "avg_pool2d(x, x.size()[3])": (lambda x: F.avg_pool2d(x, x.size()[3]).flatten(1), 4),
    "avg_pool2d(x, kernel_size=x.shape[-1])": (lambda x: F.avg_pool2d(x, kernel_size=x.shape[-1]).flatten(1), 4),
    "avg_pool2d(x, x.size(2))": (lambda x: F.avg_pool2d(x, x.size(2)).flatten(1), 4),
    "avg_pool2d(x, x.size()[2:])": (lambda x: F.avg_pool2d(x, x.size()[2:]).flatten(1), 4),
    "avg_pool2d(x, kernel_size=x.shape[-2:], padding=0)": (
        lambda x: F.avg_pool2d(x, kernel_size=x.shape[-2:], padding=0, count_include_pad=False).flatten(1),
        4,
    ),
    "avg_pool2d(x, (h, w), stride=(h, w))": (
        lambda x: F.avg_pool2d(x, (x.size(2), x.size(3)), stride=(x.size(2), x.size(3))).flatten(1),
        4,
    ),
    "max_pool2d(x, [h, w])": (lambda x: F.max_pool2d(x, [x.size(2), x.size(3)]).flatten(1), 4),
    "x.data.view(x.data.size(0), -1)": (lambda x: x.data.view(x.data.size(0), -1), 64),
    "ReLU(inplace=True)(x)": (lambda x: nn.ReLU(inplace=True)(x).mean((2, 3)), 4),
    "Sequential(ReLU(), AdaptiveAvgPool2d(1))(x)": (
        lambda x: nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())(x),
        4,
    ),
    "x[:, :, ::2, ::2]": (lambda x: x[:, :, ::2, ::2].flatten(1), 16),
    "x[:, :, :, 0::3]": (lambda x: x[:, :, :, 0::3].flatten(1), 32),
    "x[:, :, ::2, ::2].relu_()": (lambda x: x[:, :, ::2, ::2].relu_().flatten(1), 16),
    "pad(x, (0, 0, 0, 0, 1, 2))": (lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)).mean((2, 3)), 7),
    "pad(x, [0, 0, 0, 0, 3, 0], 'constant', 0)": (
        lambda x: F.pad(x, [0, 0, 0, 0, 3, 0], "constant", 0).mean((2, 3)),
        7,
    ),
    "pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1), mode='constant', value=0.0)": (
        lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1), mode="constant", value=0.0).flatten(1),
        24,
    ),
    "x + 1": (lambda x: (x + 1).mean((2, 3)), 4),
    "1 - x": (lambda x: (1 - x).mean((2, 3)), 4),
    "x.add(other=1) / 6": (lambda x: (x.add(other=1) / 6).mean((2, 3)), 4),
    "x *= 0.1": (multiply_in_place, 4),
    "x + y of a parameter": (lambda x: (x - torch.arange(4.0).view(4, 1, 1)).mean((2, 3)), 4),
    "sigmoid(x)": (lambda x: torch.sigmoid(x).mean((2, 3)), 4),
    "x * sigmoid(x)": (lambda x: (x * x.sigmoid()).mean((2, 3)), 4),
    "x * relu6(x + 3) / 6": (lambda x: (x * F.relu6(x + 3) / 6).mean((2, 3)), 4),
    "hardswish(hardsigmoid(x), True)": (lambda x: F.hardswish(F.hardsigmoid(x), True).mean((2, 3)), 4),
    "silu(gelu(x, approximate='tanh'))": (lambda x: F.silu(F.gelu(x, approximate="tanh")).mean((2, 3)), 4),
    "leaky_relu(x, 0.2)": (lambda x: F.leaky_relu(x, 0.2).mean((2, 3)), 4),
    "elu(mish(x), alpha=2.0, inplace=True)": (lambda x: F.elu(F.mish(x), alpha=2.0, inplace=True).mean((2, 3)), 4),
    "x.clamp(0, 6)": (lambda x: x.clamp(0, 6).mean((2, 3)), 4),
    "x.clamp(-0.5, max=1)": (lambda x: x.clamp(-0.5, max=1).mean((2, 3)), 4),
    "x.clamp(min=0)": (lambda x: x.clamp(min=0).tanh().mean((2, 3)), 4),
    "pad(x, (1, 2, 0, 1))": (lambda x: F.pad(x, (1, 2, 0, 1)).mean((2, 3)), 4),
    "pad(x, (1, 1, 2, 2), 'reflect')": (lambda x: F.pad(x, (1, 1, 2, 2), "reflect").mean((2, 3)), 4),
    "pad(x, by its size)": (lambda x: F.pad(x, (0, 0, 0, 0, 0, x.size(1))).mean((2, 3)), 8),
    "x[:, 1:]": (lambda x: x[:, 1:].mean((2, 3)), 3),
    "x[:, -3]": (lambda x: x[:, -3].unsqueeze(1).flatten(1), 16),
    "x[:, 1:3] + x[:, :2]": (lambda x: (x[:, 1:3] + x[:, :2]).mean((2, 3)), 2),
    "x[:, :, ::2]": (lambda x: x[:, :, ::2].flatten(1), 32),
    "x[..., ::2]": (lambda x: x[..., ::2].flatten(1), 32),
    "x.chunk(2, 1)": (lambda x: torch.cat([x.chunk(2, 1)[1], x], 1).mean((2, 3)), 6),
    "split(x, [1, 3], dim=1)": (lambda x: torch.split(x, [1, 3], dim=1)[1].mean((2, 3)), 3),
    "for part in x.chunk(2, 1)": (lambda x: torch.cat([part.tanh() for part in x.chunk(2, 1)], 1).mean((2, 3)), 4),
    "x.view(b, 2, 2, *x.shape[2:])": (
        lambda x: x.view(x.size(0), 2, 2, *x.shape[2:]).transpose(1, 2).reshape(*x.shape).flatten(1),
        64,
    ),
    "x[:, [2, 0, 3, 1]]": (lambda x: x[:, [2, 0, 3, 1]].flatten(1), 64),
    "x.flip(1)": (lambda x: x.flip(1).flatten(1), 64),
    "flip(x, dims=[-3])": (lambda x: torch.flip(x, dims=[-3]).flatten(1), 64),
    "interpolate(x, 6)": (lambda x: F.interpolate(x, 6).flatten(1), 144),
    "interpolate(x, scale_factor=1.5, mode='bilinear')": (
        lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear", align_corners=True).flatten(1),
        144,
    ),
    "interpolate(x, size=(2, 3), mode='nearest-exact')": (
        lambda x: F.interpolate(x, size=(2, 3), mode="nearest-exact").flatten(1),
        24,
    ),
    "UpsamplingBilinear2d(2)(x)": (lambda x: nn.UpsamplingBilinear2d(scale_factor=2)(x).mean((2, 3)), 4),
    "x.view(-1, 64)": (lambda x: x.view(-1, 64), 64),
    "x.view(x.size(0), 64)": (lambda x: x.view(x.size(0), 64), 64),
    "x.view(b, c, -1).mean(-1)": (lambda x: x.view(x.size(0), x.size(1), -1).mean(-1), 4),
    "x.flatten(2).transpose(1, 2).mean(1)": (lambda x: x.flatten(2).transpose(1, 2).mean(1), 4),
    "x.flatten(1).view(x.shape)": (lambda x: x.flatten(1).view(x.shape).mean((2, 3)), 4),
    "x.permute(0, 2, 3, 1).relu()": (lambda x: x.permute(0, 2, 3, 1).relu().mean((1, 2)), 4),
    "flatten of a shuffle": (shuffled, 64),
    "amax(x, (2, 3))": (lambda x: torch.amax(x, (2, 3)), 4),
    "adaptive_avg_pool2d(x, 1)[:, :, 0, 0]": (lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0], 4),
    "adaptive_max_pool2d(x, 1).squeeze(-1).squeeze(2)": (
        lambda x: F.adaptive_max_pool2d(x, 1).squeeze(-1).squeeze(2),
        4,
    ),
    "adaptive_avg_pool2d(x, (2, 1)).view(-1, 8)": (lambda x: F.adaptive_avg_pool2d(x, (2, 1)).view(-1, 8), 8),
    "avg_pool2d(x, 4).view(b, c)": (lambda x: F.avg_pool2d(x, 4).view(x.size(0), x.size(1)), 4),
    "avg_pool2d(relu(x), x.size(3))": (lambda x: F.avg_pool2d(F.relu(x), x.size(3)).flatten(1), 4),
    "layer_norm(x) with the channels last": (
        lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2).flatten(1),
        64,
    ),
    "relu_ on pad(x)": (lambda x: (F.pad(x, (0, 0, 0, 0, 0, 4)).relu_() + torch.cat([x, x], 1)).mean((2, 3)), 8),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_call_computes_what_the_model_does(spelling):
    model = between(*SPELLINGS[spelling])
    torch.testing.assert_close(run(trace(model), {INPUT: images()}), model(images()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: x.flatten(), r"'head' is of the unsupported kind Linear on a tensor \(N C H W\)"),
        (lambda x: torch.flatten(x, 2), r"'head' .* Linear on a tensor \(N, C, H W\)"),
        (lambda x: torch.flatten(x, end_dim=1), r"'head' .* Linear on a tensor \(N C, H, W\)"),
        (lambda x: x.flatten(1, 2), r"'head' .* Linear on a tensor \(N, C H, W\)"),
        (lambda x: x.flatten("C"), r"'flatten' .* flatten\(conv, C\)"),
        (lambda x: x.mean(), r"mean\(conv\)"),
        (lambda x: x.mean(2), r"mean\(conv, 2\); supported are: AdaptiveAvgPool2d"),
        (lambda x: x.mean(dim=-1), r"mean\(conv, dim=-1\)"),
        (lambda x: x.mean((1, 2, 3)), r"mean\(conv, \(1, 2, 3\)\)"),
        (lambda x: x.mean((2, 2)), r"mean\(conv, \(2, 2\)\)"),
        (lambda x: torch.mean(x, dim=[1]), r"mean\(conv, dim=\[1\]\)"),
        (lambda x: torch.mean(x, (2, 3), dtype=torch.float32), r"mean\(conv, \(2, 3\), dtype=torch.float32\)"),
        (lambda x: x.mean(2, 3), r"mean\(conv, 2, 3\)"),
        (lambda x: torch.cat([x, x]), r"cat\(\[conv, conv\]\)"),
        (lambda x: torch.cat([x, x], dim=2), r"cat\(\[conv, conv\], dim=2\)"),
        (lambda x: torch.cat(x, 1), r"cat\(conv, 1\)"),
        (lambda x: torch.cat([x, torch.ones(1)], 1), r"cat\(\[conv, _tensor_constant0\], 1\)"),
        (lambda x: torch.cat([x, x], 1, out=x), r"cat\(\[conv, conv\], 1, out=conv\)"),
        (lambda x: torch.add(x, x, alpha=2), r"add\(conv, conv, alpha=2\)"),
        (lambda x: torch.add(x, 2, x), r"add\(conv, 2, conv\)"),
        (lambda x: F.relu(x, inplace=x), r"relu\(conv, inplace=conv\)"),
        (lambda x: x.relu(1, 2, 3), r"relu\(conv, 1, 2, 3\)"),
        (lambda x: F.dropout(x, speed=1), r"cannot trace Between.forward: .*speed"),
        (lambda x: x.relu(speed=1), r"relu\(conv, speed=1\)"),
        (lambda x: torch.max_pool2d(x, 2), r"max_pool2d\(conv, 2\)"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], r"max_pool2d_with_indices\(conv, 2, "),
        (lambda x: F.avg_pool2d(x), r"cannot trace Between.forward|avg_pool2d\(conv\)"),
        (lambda x: F.avg_pool2d(x, x), r"avg_pool2d\(conv, conv\)"),
        (lambda x: F.adaptive_avg_pool2d(x, 1, 2), r"cannot trace Between.forward"),
        (lambda x: F.pad(x, (0, 1, 0, 0, 1, 1)), r"pad\(conv, \(0, 1, 0, 0, 1, 1\)"),
        (lambda x: F.pad(x, (0, 0, 0, 0, -1, 1)), r"pad\(conv, \(0, 0, 0, 0, -1, 1\)"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0), r"pad\(conv, \(0, 0, 0, 0, 1, 1\).*1.0\)"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), "reflect"), r"pad\(conv, \(0, 0, 0, 0, 1, 1\).*reflect"),
        (lambda x: x[:, 1:, ::2, ::2], r"getitem\(conv, \(slice\(None, None, None\), slice\(1, None, None\), "),
        (lambda x: x[:, :, 1::2, ::2], r"getitem\(conv, .* slice\(1, None, 2\), slice\(None, None, 2\)\)"),
        (lambda x: x[:, :, ::2, :0], r"getitem\(conv, .* slice\(None, 0, None\)\)"),
        (lambda x: x[:, :, 0, 0], r"getitem\(conv, .*, 0, 0\)\)"),
        (lambda x: x[:, :, ::2, 0], r"getitem\(conv, .*, 0\)\)"),
        (lambda x: x.squeeze(), r"squeeze\(conv\)"),
        (lambda x: x.permute(0, 3, 1, 2).flatten(1), r"'head' .* Linear on a tensor \(N, W C H\)"),
        (lambda x: torch.stack([x, x], 1), r"stack\(\[conv, conv\], 1\)"),
        (lambda x: x * x.mean(1, keepdim=True), r"mean\(conv, 1, keepdim=True\)"),
        (lambda x: x + x.mean((2, 3), keepdim=True), r"add\(conv, mean\)"),
        (lambda x: x / x, r"truediv\(conv, conv\)"),
        (lambda x: x - x, r"sub\(conv, conv\)"),
        (lambda x: x * torch.ones(4, 4, 4), r"mul\(conv, _tensor_constant0\)"),
        (lambda x: F.layer_norm(x, (4, 4)), r"layer_norm\(conv, \(4, 4\).*over 2 dimensions"),
        (lambda x: x.softmax(1), r"softmax\(conv, 1\)"),
        (lambda x: x.view(x.size(0), 2, 2, 4, 4).mean(2), r"view\(conv, size, 2, 2, 4, 4\)"),
        (lambda x: F.interpolate(x, 6, mode="bicubic"), r"interpolate\(conv, .*mode=bicubic.*only nearest"),
        (lambda x: F.interpolate(x, 6, mode="bilinear", antialias=True), r"interpolate\(conv, .*antialias=True"),
        (lambda x: F.interpolate(x, x.shape[2:]), r"interpolate\(conv, size=getitem"),
        (lambda x: x[:, [0, 1]], r"getitem\(conv, .*\[0, 1\]\)\) \(only of all channels, each once\)"),
        (lambda x: x[:, :, [3, 2, 1, 0]], r"getitem\(conv, .* \[3, 2, 1, 0\]\)\)"),
        (lambda x: x.flip(2), r"flip\(conv, 2\)"),
        (lambda x: x.flip(1, 2), r"flip\(conv, 1, 2\)"),
        (lambda x: x[0], r"getitem\(conv, 0\)"),
        (lambda x: x.view(x.size(1), -1), r"view\(conv, size, -1\)"),
        (lambda x: x.mean((2, 3)) + x.size(0), r"add\(mean, size\)"),
        (lambda x: F.avg_pool2d(x, (x.size(3), x.size(2))), r"avg_pool2d\(conv, \(size, size_1\)\)"),
        (lambda x: F.avg_pool2d(x, x.shape[2:], padding=1), r"avg_pool2d\(conv, getitem, padding=1\)"),
        (lambda x: F.avg_pool2d(x, x.shape[2:], (1, 1)), r"avg_pool2d\(conv, getitem, \(1, 1\)\)"),
        (lambda x: F.max_pool2d(x, x.size(3)), r"max_pool2d\(conv, size, "),
        (lambda x: nn.Conv2d(4, 4, 1)(x).mean((2, 3)), "cannot trace Between.forward: module is not installed"),
        (lambda x: F.avg_pool2d(x, x.size(3), 1), r"avg_pool2d\(conv, size, 1\)"),
    ],
)
def test_other_calls_are_refused_by_name(function, kind):
    with pytest.raises(ValueError, match=kind):
        trace(between(function))


def test_a_parameter_in_the_forward_may_be_named_like_a_call():
    class Shifted(Between):
        def forward(self, x):
            return self.head((self.conv(x) + self.mean).mean((2, 3)))

    model = settle(Shifted(None, 4)).double()
    layers = trace(model)
    assert [layer.name for layer in layers] == ["conv", "add", "mean_1", "mean_1.1", "head"]
    torch.testing.assert_close(run(layers, {INPUT: images()}), model(images()), rtol=1e-12, atol=1e-12)


def test_a_module_that_is_called_with_more_than_a_tensor_is_refused():
    class Called(Between):
        def forward(self, x):
            return self.head(self.conv(x, x).mean((2, 3)))

    with pytest.raises(ValueError, match=r"layer 'conv' is of the unsupported kind Conv2d\(x, x\)"):
        trace(Called(None, 4))
    with pytest.raises(ValueError, match="layer '1' is of the unsupported kind MaxPool2d with return_indices=True"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2, return_indices=True)))


class _Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head, self.act = nn.Conv2d(3, 3, 3), nn.Linear(3, 4), nn.ReLU(inplace=True)

    def forward(self, x):
        return self.head(self.conv(self.conv(x)).mean((2, 3)))


class _Overwriting(_Twice):
    def forward(self, x):
        x = self.conv(x)
        x.relu_()
        return self.head(x.mean((2, 3)))


class _OverwritingByModule(_Twice):
    def forward(self, x):
        x = self.conv(x)
        return self.head((self.act(x) + x).mean((2, 3)))


class _OverwritingByAddition(_Twice):
    """What is added at last is not what the convolution made, but what ``+=`` has made of it."""

    def forward(self, x):
        x = same = self.conv(x)
        x += F.relu(x)
        return self.head((x + same).mean((2, 3)))


class _OverwritingUnderAnotherName(_Twice):
    """Dropout that does nothing returns the very tensor that it is given."""

    def forward(self, x):
        x = self.conv(x)
        return self.head((F.dropout(x, training=False).relu_() + x).mean((2, 3)))


class _OverwritingAView(_Twice):
    """What flattening returns shares its memory with what was flattened."""

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.flatten(1).relu_()) + self.head(x.mean((2, 3)))


class _OverwritingASlice(_Twice):
    """So does what a slice returns."""

    def forward(self, x):
        x = self.conv(x)
        return self.head(x[:, :, ::2, ::2].relu_().mean((2, 3))) + self.head(x.mean((2, 3)))


class _OverwritingAViewByBatchSize(_Twice):
    """And what a view returns."""

    def forward(self, x):
        x = self.conv(x)
        return self.head(x.view(x.size(0), -1).relu_()) + self.head(x.mean((2, 3)))


class _OverwritingWhatWasSliced(_Twice):
    """The other way round: the slice is read after its source has been overwritten."""

    def forward(self, x):
        x = self.conv(x)
        part = x[:, :, ::2, ::2]
        return self.head(x.relu_().mean((2, 3))) + self.head(part.mean((2, 3)))


class _Unread(_Twice):
    def forward(self, x):
        x = self.conv(x)
        F.relu(x)
        return self.head(x.mean((2, 3)))


class _Branching(_Twice):
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3))) if x.sum() > 0 else x


class _Dictionary(_Twice):
    def forward(self, x):
        return {"out": self.head(self.conv(x).mean((2, 3)))}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Twice(), "layer 'conv_1' is used twice; give each use a module of its own"),
        (_Overwriting(), "layer 'relu_' works in place on a tensor that 'mean' reads afterwards"),
        (_OverwritingByModule(), "layer 'act' works in place on a tensor that 'add' reads afterwards"),
        (_OverwritingByAddition(), "layer 'add' works in place on a tensor that 'add_1' reads afterwards"),
        (_OverwritingUnderAnotherName(), "layer 'relu_' works in place on a tensor that 'add' reads afterwards"),
        (_OverwritingAView(), "layer 'relu_' works in place on a tensor that 'mean' reads afterwards"),
        (_OverwritingASlice(), "layer 'relu_' works in place on a tensor that 'mean_1' reads afterwards"),
        (_OverwritingAViewByBatchSize(), "layer 'relu_' works in place on a tensor that 'mean' reads afterwards"),
        (_OverwritingWhatWasSliced(), "layer 'relu_' works in place on a tensor that 'mean_1' reads afterwards"),
        (_Unread(), "nothing reads the result of layer 'relu'"),
        (_Branching(), "cannot trace _Branching.forward"),
        (_Dictionary(), "_Dictionary must return the tensor that its last layer makes"),
    ],
)
def test_untraceable_networks_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        trace(model)


@pytest.mark.parametrize("axis", [2, 3])
def test_a_pool_as_wide_or_as_high_as_its_input_may_leave_a_rest(axis):
    """Of maps of 7 x 4, or 4 x 7, a square of 4 leaves a strip, which is left out."""
    model = between(lambda x: F.avg_pool2d(x, x.size(axis)).flatten(1))
    shape = (2, 3, 9, 6) if axis == 3 else (2, 3, 6, 9)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(run(trace(model), {INPUT: x}), model.head(model.conv(x)[:, :, :4, :4].mean((2, 3))))


@pytest.mark.parametrize(("wrap", "inside"), [(torch.compile, "_orig_mod"), (nn.DataParallel, "module")])
def test_a_wrapped_network_is_refused(wrap, inside):
    model = wrap(between(lambda x: x.mean((2, 3))))
    with pytest.raises(ValueError, match=rf"wraps the network: give the network itself, model\.{inside}$"):
        trace(model)
    assert len(trace(getattr(model, inside))) > 1


@pytest.mark.parametrize("name", ["", "conv"])
def test_a_forward_that_was_replaced_on_an_object_is_refused(name):
    """A copy of the network would hold the replacement, which calls the unpruned one."""
    model = between(lambda x: x.mean((2, 3)))
    part = model.get_submodule(name)
    part.forward = types.MethodType(lambda self, x: type(self).forward(self, x) * 2, part)
    kind = type(part).__name__
    with pytest.raises(ValueError, match=rf"^{kind}\.forward was replaced on an object .*class Mine\({kind}\)"):
        trace(model)


class _Summed(nn.Conv2d):
    """A convolution that does something else, too."""

    def forward(self, x):
        return super().forward(x).cumsum(1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (nn.Conv2d(3, 3, 3, padding_mode="reflect", padding=1), "layer '0' .* Conv2d with padding_mode='reflect'"),
        (nn.BatchNorm2d(3, track_running_stats=False), "layer '0' .* BatchNorm2d without running statistics"),
        (_Summed(3, 3, 3), r"layer 'cumsum' is of the unsupported kind cumsum\(conv2d, 1\)"),
        (nn.Sequential(nn.LocalResponseNorm(2)), "layer '0.0' is of the unsupported kind LocalResponseNorm"),
    ],
)
def test_unsupported_layers_are_refused_by_name(body, message):
    model = nn.Sequential(body, nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    with pytest.raises(ValueError, match=message):
        trace(model)


def test_regnet_is_traced():
    """Its forward flattens with a keyword; its convolutions are grouped."""
    with torch.random.fork_rng():
        model = settle(get_model("regnet_x_400mf", num_classes=4)).double()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(run(trace(model), {INPUT: x}), model(x), rtol=1e-9, atol=1e-12)


def test_the_model_is_as_before():
    """In training mode, say; and constants of its code are not left on it."""
    model = between(lambda x: (x * torch.ones(4, 1, 1)).mean((2, 3))).train()
    before = set(vars(model))
    trace(model)
    assert model.training
    assert model.conv.training
    assert set(vars(model)) == before
