"""Train SqueezeNet 1.1 on half of CIFAR-10's test images: a trained network, no ResNet, for benchmarks/real_size.py.

It starts from ImageNet's weights and a fitted head, and trains all weights at 96 px as benchmarks/training.py does.
real_size.py draws images from the other half. Writes squeezenet1_1-cifar10.safetensors into the folder of the weights,
and prints the accuracy on the other half. It takes 5 to 20 minutes.

    python benchmarks/fine_tune.py --cifar10 DIR --weights DIR
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lrp_core.graph.truncation import classifier
from lrp_core.metrics.accuracy import predict
from lrp_core.study.data.pretrained import load_backbone, normalise
from lrp_core.utils.devices import choose_device
from lrp_core.utils.files import atomic
from tasks import FINE_TUNED_FILE, FINE_TUNED_START, Setup, cifar10_halves
from training import fine_tuned, with_head

RATE = 2e-3  # the middle one of benchmarks/training.py; no image chose it


def main() -> None:
    """Train and save the network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for folder in ("cifar10", "weights"):
        parser.add_argument(f"--{folder}", type=Path, required=True)
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: a GPU if there is one")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    seen, unseen = cifar10_halves(Setup(arguments.cifar10, Path(), arguments.weights, device))
    images, labels = normalise(seen.images, *FINE_TUNED_START), seen.labels
    backbone = load_backbone(*FINE_TUNED_START).to(device)
    features = backbone(images[:1].to(device)).shape[1]
    start = with_head(
        classifier(backbone, torch.zeros(len(seen.class_names), features)), images, labels, np.arange(len(labels))
    )
    model = fine_tuned(start, images, labels, RATE, progress=True)
    with atomic(arguments.weights / FINE_TUNED_FILE) as path:
        save_file(model.cpu().state_dict(), path)
    right = predict(model, normalise(unseen.images, *FINE_TUNED_START)).argmax(dim=1) == unseen.labels
    print(f"accuracy on the other half: {right.double().mean():.3f}")


if __name__ == "__main__":
    main()
