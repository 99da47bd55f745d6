import pytest
import torch
from torch import nn

import lrp_core
from lrp_core.utils import devices
from lrp_core.utils.devices import choose_device, device_of, layout_of, nth_device

PLAIN, LAST = torch.contiguous_format, torch.channels_last


def test_auto_takes_the_gpu_if_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(device) or torch.zeros(size))
    choose_device("auto")
    assert asked == ["cuda"]


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=rf"cannot compute on device '{name}' \(.+\); use auto, cpu or cuda"):
        choose_device(name)


def test_device_of_a_network():
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == torch.device("cpu")


def test_runs_at_a_time_have_a_gpu_each(monkeypatch):
    cuda, cpu = torch.device("cuda", 0), torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert [nth_device(cuda, n).index for n in range(5)] == [0, 1, 2, 0, 1]
    assert nth_device(cpu, 1) == cpu
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert nth_device(cuda, 1) == cuda


@pytest.mark.parametrize(
    ("shape", "layout", "on_cpu", "elsewhere"),
    [
        ((4, 3, 5, 5), PLAIN, PLAIN, PLAIN),
        ((4, 3, 5, 5), LAST, LAST, LAST),
        ((4, 1, 3, 3), PLAIN, LAST, PLAIN),  # a depthwise kernel: in both layouts
        ((4, 3, 1, 1), LAST, LAST, PLAIN),
    ],
)
def test_what_is_in_both_layouts_has_the_fastest_one(shape, layout, on_cpu, elsewhere):
    assert layout_of(torch.zeros(shape).to(memory_format=layout)) == on_cpu
    assert layout_of(torch.empty(shape, device="meta").to(memory_format=layout)) == elsewhere


def test_what_is_no_image_has_no_other_layout():
    assert layout_of(torch.zeros(3)) == layout_of(torch.zeros(4, 5, 3, 3).transpose(2, 3)) == PLAIN


@pytest.mark.parametrize("layout", [PLAIN, LAST])
def test_a_pruned_network_has_the_fastest_layout(monkeypatch, layout):
    """On a GPU, a depthwise kernel that turns to channels last would make each step compile convolutions."""
    monkeypatch.setattr(devices, "fastest_layout", lambda device: layout)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 4, 1)).eval()
    smaller = lrp_core.remove_filters(model, {"0": [1]}, torch.zeros(1, 3, 8, 8))
    assert [layer.weight.stride() for layer in smaller] == [
        torch.empty_like(layer.weight, memory_format=layout).stride() for layer in smaller
    ]
