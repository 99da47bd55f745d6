"""What tables and figures on the pages call tasks, networks and methods."""

from lrp_core.study.analysis.promise import DISTILLED, OURS
from lrp_core.study.analysis.real_size import LRP, NAMES

TASKS = {"cifar10": "CIFAR-10", "elpv": "ELPV", "trashnet": "TrashNet"}
NETWORKS = {
    "efficientnet-lite0": "EfficientNet-Lite0",
    "resnet18": "ResNet-18",
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "squeezenet1_1": "SqueezeNet 1.1",
    "squeezenet1_1-trained": "SqueezeNet 1.1 (trained)",
    "vgg11": "VGG11",
    "vgg16": "VGG16",
}
METHODS = NAMES | {
    DISTILLED: f"{NAMES[OURS]}, distillation",
    f"{LRP}+refit": f"{NAMES[LRP]}, refitted head",
    "early-exit": "early exit",
    f"early-exit+{LRP}+reconstruction+refit": f"early exit, {NAMES[LRP]}, reconstruction, refitted head",
    "budget-search": "budget search",
}
_PIXELS = {"resnet20": 32, "resnet56": 32, "squeezenet1_1-trained": 96, "vgg16": 96}  # at real size, unless it is 224


def pair(task: str, network: str) -> str:
    """Return a task and a network in words."""
    return f"{TASKS[task]}, {NETWORKS[network]}"


def at_real_size(task: str, network: str) -> str:
    """Return a task, a network and its pixels, as benchmarks/real_size.py has them, in words."""
    return f"{pair(task, network)}, {_PIXELS.get(network, 224)} px"
