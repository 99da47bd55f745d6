"""The draws on which pruning is measured: a classifier, its calibration images, and test images.

Frozen backbones get a ridge head, which is fitted to 20 or 40 images a class. Two were trained on ImageNet. The third,
VGG16, was trained on edges as well (HED, Xie and Tu, ICCV 2015): that leaves it of use for solar cells only.

Trained networks are taken as they are: CIFAR-10 ResNets (He et al., Deep Residual Learning for Image Recognition, CVPR
2016, sec. 4.2), trained by Y. Idelbayev (github.com/akamaster/pytorch_resnet_cifar10), and a SqueezeNet 1.1 that
benchmarks/fine_tune.py trains on half of CIFAR-10's test images; its draws are of the other half.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import lrp_core
from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.graph.resizing import resize
from lrp_core.graph.truncation import classifier
from lrp_core.repair.ridge_head import fit_heads, pooled_features
from lrp_core.study.analysis.promise import OURS
from lrp_core.study.data.datasets import Dataset, load_dataset
from lrp_core.study.data.pretrained import IMAGENET_MEAN, IMAGENET_STD, load_backbone, normalise
from lrp_core.study.data.splits import overlap, split_dataset
from lrp_core.utils.devices import device_of, fastest_layout
from lrp_core.utils.errors import check_choice


@dataclass(frozen=True)
class Setup:
    """Where images and weights lie, and what computes.

    Attributes:
        cifar10: class folders of CIFAR-10's test images.
        trashnet: class folders of TrashNet's photographs, 224 px.
        weights: the files ``resnet20-12fca82f.th`` and ``resnet56-4bfd9763.th``, and that of benchmarks/fine_tune.py.
        device: of the networks; images stay on the host.
    """

    cifar10: Path
    trashnet: Path
    weights: Path
    device: torch.device

    @property
    def computed_on(self) -> str:
        """The name of the GPU, or "cpu"."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type


@dataclass(frozen=True)
class Draw:
    """A classifier and the images that it is pruned with and measured on.

    Attributes:
        model: in eval mode, frozen, on the device of the setup.
        images: for calibration, normalised, (N, 3, H, W).
        labels: theirs, (N,).
        test_images: of other blocks, normalised, (M, 3, H, W).
        test_labels: theirs, (M,).
        groups: the block of each calibration image, (N,); None if images are independent of each other.
        overlap: the share of a class's images that are test images, averaged over classes.
        test_pixels: of the test images, (M, 3, H, W), uint8.
        prepare: from pixels to normalised images.
        fit: from calibration images to the classifier: it fits the head of a frozen backbone, and leaves a trained
            network as it is.
        head_fitted: whether the head was fitted to the calibration images, as on a frozen backbone.
    """

    model: nn.Module
    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    groups: torch.Tensor | None
    overlap: float
    test_pixels: torch.Tensor
    prepare: Callable[[torch.Tensor], torch.Tensor]
    fit: Callable[[torch.Tensor], nn.Module]
    head_fitted: bool

    def at(self, px: int) -> "Draw":
        """Return the draw with all images resized to so many pixels a side; ``test_pixels`` stay as they are."""
        small, test = (resize(images, (px, px)) for images in (self.images, self.test_images))
        test = test.contiguous(memory_format=fastest_layout(device_of(self.model)))
        return replace(self, model=self.fit(small), images=small, test_images=test)

    def prune(self, method: str = OURS, **options: object) -> lrp_core.Pruned:
        """Prune the classifier with its images; options as those of :func:`lrp_core.prune`."""
        options = {"method": method, "groups": self.groups, "progress": False} | options
        return lrp_core.prune(self.model, self.images, self.labels, **options)


@dataclass(frozen=True)
class Task:
    """How images are drawn for a frozen backbone.

    Attributes:
        px: pixels a side.
        per_class: calibration images.
        block: consecutive images that stay on one side of the split.
        n_test: test images a class, at most; None for all that there are.
    """

    px: int
    per_class: int
    block: int
    n_test: int | None


@dataclass(frozen=True)
class Trained:
    """A trained CIFAR-10 ResNet.

    Attributes:
        file: of its weights; the name ends in the first eight digits of its SHA-256.
        blocks: residual blocks a stage.
        per_class: calibration images.
        n_test: test images a class.
    """

    file: str
    blocks: int
    per_class: int
    n_test: int = 100


TASKS = {"elpv": Task(48, 40, 32, 100), "cifar10": Task(48, 20, 1, 100), "trashnet": Task(128, 20, 8, None)}
REAL_SIZE = {"elpv": Task(224, 20, 32, 100), "trashnet": Task(224, 20, 8, 60)}
VGG = "vgg16"
VGG_SIZE = {"elpv": replace(REAL_SIZE["elpv"], px=96)}  # at 224 px it takes hours
IMAGENET = {"squeezenet1_1": "imagenet-caffe", "efficientnet-lite0": "imagenet"}  # network: weights
FROZEN = IMAGENET | {VGG: "hed-bsds500"}
TRAINED = {"resnet20": Trained("resnet20-12fca82f.th", 3, 20), "resnet56": Trained("resnet56-4bfd9763.th", 9, 10)}
FINE_TUNED_START = ("squeezenet1_1", IMAGENET["squeezenet1_1"])
FINE_TUNED, FINE_TUNED_FILE = "squeezenet1_1-trained", "squeezenet1_1-cifar10.safetensors"
FINE_TUNED_TASK = Task(96, 20, 1, 100)
ALL = (  # in minutes; REAL_SIZE takes longer
    *((task, network) for task in ("elpv", "cifar10") for network in IMAGENET),
    ("trashnet", "squeezenet1_1"),
    *(("cifar10", network) for network in TRAINED),
)

_load_dataset = lru_cache(load_dataset)  # CIFAR-10 has 10,000 files


def draw(
    task: str,
    network: str,
    seed: int,
    setup: Setup,
    frozen: dict[str, Task] = TASKS,
    trained: dict[str, Trained] = TRAINED,
) -> Draw:
    """Return the draw of a seed.

    Args:
        task: one of ``TASKS``; "cifar10" for a trained network.
        network: one of ``FROZEN`` or ``TRAINED``, or ``FINE_TUNED``.
        seed: draws calibration and test images, and the folds that choose a head's ridge.
        setup: of images and weights; ELPV comes from the package registry.
        frozen: how images are drawn for frozen backbones.
        trained: how for trained ResNets.

    Raises:
        ValueError: an unknown task or network, or a file of weights that is not what its name says.
        FileNotFoundError: no such file of weights.
    """
    check_choice("network", network, [*FROZEN, *TRAINED, FINE_TUNED])
    check_choice("task", task, list(frozen) if network in FROZEN else ["cifar10"])
    if network in TRAINED:
        return _trained(trained[network], seed, setup)
    if network == FINE_TUNED:
        return _fine_tuned(seed, setup)
    return _frozen(task, frozen[task], network, seed, setup)


def _frozen(task: str, how: Task, network: str, seed: int, setup: Setup) -> Draw:
    """Draw images, and fit a ridge head to a frozen backbone's features of the calibration images."""
    weights = FROZEN[network]
    backbone = load_backbone(network, weights).to(setup.device)

    def with_ridge_head(images: torch.Tensor, labels: torch.Tensor, blocks: np.ndarray) -> nn.Module:
        fold = draw_folds(labels, blocks, 5, seed)
        return classifier(backbone, fit_heads(pooled_features(backbone, images), labels, fold).weight)

    prepare = partial(_normalise, network, weights)
    return _drawn(with_ridge_head, True, _dataset(task, how.px, setup), how, seed, prepare)


def _trained(how: Trained, seed: int, setup: Setup) -> Draw:
    """Draw images for a trained CIFAR-10 ResNet."""
    model, task = _cifar_resnet(how, setup.weights).to(setup.device), Task(32, how.per_class, 1, how.n_test)
    return _drawn(lambda *_: model, False, _dataset("cifar10", 32, setup), task, seed, _normalise_for_cifar)


def _fine_tuned(seed: int, setup: Setup) -> Draw:
    """Draw images that SqueezeNet 1.1 was not trained on."""
    path = setup.weights / FINE_TUNED_FILE
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}: python benchmarks/fine_tune.py makes them")
    backbone = load_backbone(*FINE_TUNED_START)
    state = load_file(path)
    model = classifier(backbone, state["head.weight"])
    model.load_state_dict(state)
    model, (_, unseen) = model.to(setup.device), cifar10_halves(setup)
    return _drawn(lambda *_: model, False, unseen, FINE_TUNED_TASK, seed, partial(_normalise, *FINE_TUNED_START))


def _normalise(network: str, weights: str, pixels: torch.Tensor) -> torch.Tensor:
    return normalise(pixels, network, weights)


def _normalise_for_cifar(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels.float() / 255 - mean) / std


def cifar10_halves(setup: Setup) -> tuple[Dataset, Dataset]:
    """Return the first and the second half of each class of CIFAR-10's test images: to train on, and to draw from."""
    dataset = _dataset("cifar10", FINE_TUNED_TASK.px, setup)
    of_class = [torch.nonzero(dataset.labels == label).flatten() for label in range(len(dataset.class_names))]
    halves = [torch.cat(half) for half in zip(*(index.tensor_split(2) for index in of_class), strict=True)]
    tensors = ("images", "labels", "positions")
    return tuple(replace(dataset, **{name: getattr(dataset, name)[half] for name in tensors}) for half in halves)


def _dataset(task: str, px: int, setup: Setup) -> Dataset:
    return _load_dataset(task if task == "elpv" else str(getattr(setup, task).resolve()), px)


def _drawn(
    network: Callable[[torch.Tensor, torch.Tensor, np.ndarray], nn.Module],
    head_fitted: bool,
    dataset: Dataset,
    how: Task,
    seed: int,
    prepare: Callable[[torch.Tensor], torch.Tensor],
) -> Draw:
    """Split the images, and make the network from the calibration images, their labels and their blocks."""
    split = split_dataset(dataset, seed, how.per_class, how.n_test or len(dataset.labels), how.block)
    calibration, test = (split[split["split"] == side] for side in ("calibration", "test"))
    index, test_index = (torch.tensor(rows["index"].to_numpy(copy=True)) for rows in (calibration, test))
    blocks = calibration["block"].to_numpy(copy=True)
    images, labels = prepare(dataset.images[index]), dataset.labels[index]
    test_pixels, test_labels = dataset.images[test_index], dataset.labels[test_index]

    def fit(images: torch.Tensor) -> nn.Module:
        return network(images, labels, blocks)

    model = fit(images)
    return Draw(
        model=model,
        images=images,
        labels=labels,
        test_images=prepare(test_pixels).contiguous(memory_format=fastest_layout(device_of(model))),
        test_labels=test_labels,
        groups=torch.from_numpy(blocks) if how.block > 1 else None,
        overlap=overlap(dataset.labels, test_labels),
        test_pixels=test_pixels,
        prepare=prepare,
        fit=fit,
        head_fitted=head_fitted,
    )


class LambdaLayer(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut without parameters (option A of the paper)."""

    def __init__(self, n_inputs: int, n_outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_inputs, n_outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_outputs)
        self.conv2 = nn.Conv2d(n_outputs, n_outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_inputs != n_outputs:
            side = (n_outputs - n_inputs) // 2
            self.shortcut = LambdaLayer(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side), "constant", 0))

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.shortcut(x)
        return F.relu(out)


class CifarResNet(nn.Module):
    """The paper's network for 32 x 32 px: three stages of 16, 32 and 64 channels; parameters as in Idelbayev's."""

    def __init__(self, blocks: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(n_inputs: int, n_outputs: int, stride: int, blocks: int) -> nn.Sequential:
        rest = (BasicBlock(n_outputs, n_outputs, 1) for _ in range(blocks - 1))
        return nn.Sequential(BasicBlock(n_inputs, n_outputs, stride), *rest)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


def _cifar_resnet(how: Trained, folder: Path) -> nn.Module:
    """Return a trained network, in eval mode and frozen; nothing in its file is run."""
    path, begins = folder / how.file, how.file.removesuffix(".th").rpartition("-")[2]
    source = f"download it from github.com/akamaster/pytorch_resnet_cifar10, pretrained_models/{how.file}"
    if not path.is_file():
        raise FileNotFoundError(f"no weights {path}: {source}, or name the folder that holds them")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(begins):
        raise ValueError(f"{path} has SHA-256 {digest}, expected one that begins with {begins}: delete it and {source}")
    state = torch.load(path, "cpu", weights_only=True)["state_dict"]
    network = CifarResNet(how.blocks)
    # DataParallel saved it.
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return network.eval().requires_grad_(False)
