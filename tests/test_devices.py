import pytest
import torch
from torch import nn

from lrp_core.utils.devices import choose_device, device_of, nth_device


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
