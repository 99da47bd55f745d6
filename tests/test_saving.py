import numpy as np
import pytest
import torch
from networks import Branches, draw_images, network, settle
from safetensors.torch import save_file
from torch import nn

import lrp_core
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.pruning.saving import load_pruned, read_recipe, save_pruned
from lrp_core.repair.reconstruction import Reconstruction


def save(path, pruned):
    save_pruned(path, pruned.model, pruned.kept(), pruned.example_shape, {"note": 1})


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "efficientnet-lite0"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_loading_is_one_call_and_bit_equal(tmp_path, name, memory_format):
    model, images = network(name).to(memory_format=memory_format), draw_images(name)
    pruned = PrunedNetwork(model, images[:1])
    pruned.remove(np.random.default_rng(0).choice(pruned.n_filters, pruned.n_filters // 3, replace=False))
    save(tmp_path / "net.safetensors", pruned)
    loaded = load_pruned(tmp_path / "net.safetensors", lambda: network(name))
    assert torch.equal(loaded(images), pruned.model(images))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert read_recipe(tmp_path / "net.safetensors") == {"note": 1}


def test_a_reconstructed_network_keeps_the_biases_that_it_gained(tmp_path):
    model, images = network("resnet18"), draw_images("resnet18")
    pruned = PrunedNetwork(model, images, [Reconstruction(model, images)])
    pruned.remove(np.arange(0, pruned.n_filters, 3))
    save(tmp_path / "net.safetensors", pruned)
    loaded = load_pruned(tmp_path / "net.safetensors", lambda: network("resnet18"))
    assert len(loaded.state_dict()) > len(model.state_dict())
    assert torch.equal(loaded(images), pruned.model(images))


@pytest.mark.parametrize("where", [{"dtype": torch.float64}, {"device": "meta"}])
def test_a_loaded_network_is_as_the_built_one_all_over(tmp_path, where):
    """Where reconstruction added biases, too; a device without memory stands for a GPU."""
    model, images = network("resnet18"), draw_images("resnet18")
    pruned = PrunedNetwork(model, images, [Reconstruction(model, images)])
    pruned.remove(np.arange(0, pruned.n_filters, 3))
    save(tmp_path / "net.safetensors", pruned)
    loaded = load_pruned(tmp_path / "net.safetensors", lambda: network("resnet18").to(**where))
    assert len({(parameter.dtype, parameter.device) for parameter in loaded.parameters()}) == 1
    assert loaded(images.to(**where)).shape == pruned.model(images).shape


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_reconstructed_network_of_a_single_channel_is_bit_equal_too(tmp_path, memory_format):
    """Where one channel is left, tensors look the same in both formats, and are not computed with alike."""

    def build():
        return settle(nn.Sequential(nn.Conv2d(3, 30, 3), nn.ReLU(), nn.Conv2d(30, 50, 3))).to(
            memory_format=memory_format
        )

    model, images = build(), torch.randn(7, 3, 16, 16).to(memory_format=memory_format)
    pruned = PrunedNetwork(model, images, [Reconstruction(model, images)])
    pruned.remove(np.arange(1, 30))
    save(tmp_path / "net.safetensors", pruned)
    assert torch.equal(load_pruned(tmp_path / "net.safetensors", build)(images), pruned.model(images))


def test_any_network_is_loaded_into_what_build_makes(tmp_path):
    images = torch.randn(2, 3, 8, 8)
    pruned = PrunedNetwork(settle(Branches()), images[:1])
    pruned.remove(np.array([0, 7, 16]))
    save(tmp_path / "net.safetensors", pruned)
    assert torch.equal(load_pruned(tmp_path / "net.safetensors", Branches)(images), pruned.model(images))
    with pytest.raises(ValueError, match="is of another network than the one built for it"):
        load_pruned(tmp_path / "net.safetensors", lambda: nn.Sequential(nn.Conv2d(3, 4, 3)))


class Probabilities(nn.Module):
    """Ends in a softmax, and has a layer that only training uses."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 9, 3), nn.ReLU())
        self.head, self.auxiliary = nn.Linear(9, 3), nn.Linear(9, 3)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.head(x).softmax(dim=1)


@pytest.mark.parametrize("prefix", ["", "smaller-images+", "smaller-images+intermediate-features+"])
def test_a_layer_that_only_training_uses_is_no_obstacle_before_a_softmax(tmp_path, prefix):
    model, images, labels = settle(Probabilities()), torch.randn(12, 3, 16, 16), torch.arange(12) % 3
    told = {"head_fitted": "intermediate" in prefix, "folds": 0, "progress": False, "multiply_adds": 0.3}
    pruned = lrp_core.prune(model, images, labels, method=f"{prefix}joint-cost+reconstruction", **told)
    pruned.save(tmp_path / "net.safetensors")
    loaded = load_pruned(tmp_path / "net.safetensors", Probabilities)
    assert torch.equal(loaded(images), pruned.model(images))
    torch.testing.assert_close(loaded(images).sum(dim=1), torch.ones(12))


@pytest.mark.parametrize("prefix", ["intermediate-features+", "early-exit+"])
def test_another_network_than_the_saved_one_is_told(tmp_path, prefix):
    model, images, labels = settle(Probabilities()), torch.randn(12, 3, 16, 16), torch.arange(12) % 3
    told = {"head_fitted": True, "folds": 0, "progress": False, "multiply_adds": 0.3}
    pruned = lrp_core.prune(model, images, labels, method=f"{prefix}joint-cost+reconstruction", **told)
    pruned.save(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="of another network than the one built for it"):
        load_pruned(tmp_path / "net.safetensors", lambda: network("vgg11"))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="holds no pruned network"):
        load_pruned(path, Branches)
    path.write_bytes(b"cut off")
    with pytest.raises(ValueError, match="holds no pruned network"):
        load_pruned(path, Branches)
