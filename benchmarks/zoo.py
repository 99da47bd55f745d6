"""Which classifiers are read, and is what comes of them right? A row each, of torchvision, timm and Hugging Face.

A classifier with random weights is traced, its filters grouped, relevance taken, and half of its multiply-adds pruned
by relevance. The smaller network is compared with the whole one in which the same channels are set to zero; of each
family one is saved, exported and read again. Writes results/benchmarks/zoo.csv; `make zoo` makes docs/zoo.md of it.
Classifiers that have been measured are not measured again.

    python benchmarks/zoo.py
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

import lrp_core  # before torchvision, which it makes importable with any torch
from lrp_core.graph.tracing import trace
from lrp_core.metrics.accuracy import predict
from lrp_core.pruning.dependency import couple
from lrp_core.study.data.files import write_csv
from lrp_core.study.paths import ROOT
from lrp_core.study.show.export import write_exported
from masked import masked_run

import timm
import transformers
from torchvision import models

MEASURED, ROWS = ROOT / "data" / "zoo", ROOT / "results" / "benchmarks" / "zoo.csv"
ATTENTION = ("vit", "swin", "maxvit")
CLASSIFIERS = [name for name in models.list_models(module=models) if not name.startswith(ATTENTION)]
HEADS = {name: {"aux_logits": True, "init_weights": False} for name in ("googlenet", "inception_v3")}
TIMM = (
    *("convnext_atto", "cspresnet50", "dla46_c", "ecaresnet26t", "ese_vovnet19b_dw", "ghostnet_050", "hardcorenas_a"),
    *(
        "hgnetv2_b0",
        "hrnet_w18_small",
        "inception_next_atto",
        "mixnet_s",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_050",
    ),
    *("nf_regnet_b0", "regnety_002", "repvgg_a0", "repvit_m0_9", "res2net50_26w_4s", "resnet18d", "resnetblur50"),
    *("resnetv2_50x1_bit", "rexnet_100", "seresnet18", "test_efficientnet", "tf_efficientnet_lite0", "xception41"),
)
B0 = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}  # the default is B7
HUGGING_FACE = {"ConvNext": {}, "EfficientNet": B0, "RegNet": {}, "ResNet": {}}  # family: other than by default
HUGGING_FACE_REFUSED = ("ConvNextV2", "MobileNetV1", "MobileNetV2")
FAMILIES = (  # of torchvision, one network each; chains of convolutions and plain residual networks apart
    *("squeezenet1_1", "densenet121", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5"),
    *("shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf"),
    *("resnext50_32x4d", "convnext_tiny"),
)
NOT_EXPORTED = "resnetv2_50x1_bit"  # onnxruntime makes its padding by zeros before max pooling a padding by -inf
EXPORTED = (
    "alexnet",
    "vgg11_bn",
    "resnet18",
    *FAMILIES,
    *(name for name in TIMM if name != NOT_EXPORTED),
    *HUGGING_FACE,
)
REFUSED = ("convnextv2_atto", "gcresnext26ts", "resnest14d", "skresnet18", "vgg11")  # of timm's
LAST = ("convnext_b", "convnext_l", "efficientnet_b5", "efficientnet_b6", "efficientnet_b7", "efficientnet_v2_l")
LAST += ("densenet201", "regnet_x_32gf", "regnet_y_32gf", "regnet_y_128gf", "resnext101", "vgg", "wide_resnet101")
LARGE = 100_000_000  # parameters; above, float32 instead of float64


def side(name: str) -> int:
    """Return the side of the images that a classifier is measured with, in pixels."""
    return 96 if "inception" in name else 64


def classifiers() -> dict[tuple[str, str], Callable[..., nn.Module]]:
    """Return what makes each classifier, by source and name; it takes ``num_classes``."""
    found = {
        ("torchvision", name): lambda name=name, **more: models.get_model(name, **HEADS.get(name, {}), **more)
        for name in CLASSIFIERS
    }
    names = (*TIMM, *REFUSED)
    found |= {("timm", name): lambda name=name, **more: timm.create_model(name, **more) for name in names}
    names = (*HUGGING_FACE, *HUGGING_FACE_REFUSED)
    return found | {("transformers", name): partial(hugging_face, name) for name in names}


class Logits(nn.Module):
    """A network of Hugging Face that returns its logits alone."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x).logits


def hugging_face(family: str, num_classes: int) -> nn.Module:
    """Return a classifier of a family of Hugging Face's, with random weights."""
    config = getattr(transformers, f"{family}Config")(**HUGGING_FACE.get(family, {}), num_labels=num_classes)
    return Logits(getattr(transformers, f"{family}ForImageClassification")(config))


def drawn(model: nn.Module, size: int) -> nn.Module:
    """Give a network in eval mode random weights and statistics, so that all its channels say something; freeze it."""
    generator = torch.Generator().manual_seed(0)
    settled = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    known = {id(part) for layer in model.modules() if isinstance(layer, settled) for part in layer.parameters(False)}
    for part in model.parameters():
        if id(part) not in known:
            part.data.uniform_(0.5, 1.5, generator=generator)
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.uniform_(0.5, 1.5, generator=generator)
        norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
        norm.momentum = None  # the mean of all batches
        norm.train()  # the rest predicts, without auxiliary heads
    with torch.no_grad():
        model(torch.randn(8, 3, size, size, generator=generator))
    return model.eval().requires_grad_(False)


def measured(name: str, make: Callable[..., nn.Module]) -> dict:
    """Return a row."""
    size = side(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make(num_classes=4)
    try:
        layers = trace(model.eval())
    except ValueError as error:
        return {"refused": str(error).partition("; supported are")[0]}
    model = drawn(model, size)
    large = sum(part.numel() for part in model.parameters()) > LARGE
    model = model if large else model.double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, size, size, generator=generator, dtype=next(model.parameters()).dtype)
    labels = torch.arange(4) % 2
    began = time.perf_counter()
    coupling = couple(model, images[:1])
    grouping = time.perf_counter() - began
    predict(model, images)
    began = time.perf_counter()
    predict(model, images)
    one_pass = time.perf_counter() - began
    began = time.perf_counter()
    found = lrp_core.explain(model, images, labels, "epsilon-zplus", pixels=True)
    relevance = (time.perf_counter() - began) / one_pass
    arrived = found.pixels.sum(dim=(1, 2, 3)) / found.initial
    began = time.perf_counter()
    pruned = lrp_core.prune(
        model, images, labels, method="px-static", multiply_adds=0.5, folds=0, head_fitted=False, progress=False
    )
    seconds = time.perf_counter() - began
    kept = np.zeros(coupling.n_groups, dtype=bool)
    for convolution, groups in coupling.filters.items():
        of = groups[pruned.kept[convolution]]
        kept[of[of >= 0]] = True
    masked = masked_run(model, coupling, ~kept, images)
    error = (predict(pruned.model, images) - masked).abs().max() / masked.abs().max()
    return {
        "refused": "",
        "layers": len(layers),
        "filters": sum(len(groups) for groups in coupling.filters.values()),
        "removable": sum(int((groups >= 0).sum()) for groups in coupling.filters.values()),
        "groups": coupling.n_groups,
        "grouping_seconds": grouping,
        "relevance_passes": relevance,
        "relevance_at_pixels": arrived.mean().item(),
        "pruning_seconds": seconds,
        "multiply_adds": pruned.after.multiply_adds / pruned.before.multiply_adds,
        "parameters": pruned.after.parameters / pruned.before.parameters,
        "dtype": str(images.dtype).removeprefix("torch."),
        "error": error.item(),
    } | (handed_over(pruned, images, make) if name in EXPORTED else {})


def handed_over(pruned: lrp_core.Pruned, images: torch.Tensor, make: Callable[..., nn.Module]) -> dict:
    """Return how far the logits of a pruned network, in float32, are from those of its files.

    As a share of the largest logit: of the file that lrp_core.load_pruned reads; and of ONNX and torch.export, the
    worse of both.
    """
    images, model = images.float(), pruned.model.float()
    began = time.perf_counter()
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pruned.save(Path(folder) / "network.safetensors")
        loaded = lrp_core.load_pruned(Path(folder) / "network.safetensors", lambda: make(num_classes=4))
        expected = predict(model, images)
        reloaded = (predict(loaded, images) - expected).abs().max() / expected.abs().max()
        exported = write_exported(model, images, Path(folder))
    return {"reloaded": reloaded.item(), "exported": exported, "export_seconds": time.perf_counter() - began}


def main() -> None:
    """Measure every classifier, the smaller families first, and write the rows of all that have been measured."""
    rows = []
    found = sorted(classifiers().items(), key=lambda one: one[0][1].startswith(LAST))
    for (source, name), make in tqdm(found, unit="network"):
        path = MEASURED / f"{source}-{name}.csv"
        if not path.exists():
            torch.manual_seed(0)
            row = measured(name, make)
            write_csv(path, pd.DataFrame([{"source": source, "network": name} | row]))
        rows.append(pd.read_csv(path))
        write_csv(ROWS, pd.concat(rows, ignore_index=True))


if __name__ == "__main__":
    main()
