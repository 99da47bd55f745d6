"""Distillation: a pruned network learns the logits of the unpruned one, on the calibration images, without labels.

It takes a few small steps of Adam on the squared distance of the logits (Kim et al., Comparing Kullback-Leibler
Divergence and Mean Squared Error Loss in Knowledge Distillation, IJCAI 2021). This is the only repair that trains.
"""

import torch
from torch import nn
from torch.nn import functional as F

from lrp_core.utils.devices import device_of

STEPS, RATE, BATCH = 30, 1e-4, 64  # few and small: larger steps destroy the gains of reconstruction


def distil(model: nn.Module, teacher: nn.Module, images: torch.Tensor, seed: int) -> None:
    """Train a pruned network, in place, towards the logits of the unpruned one, with batch normalisation in eval mode.

    Args:
        model: the pruned network, in eval mode.
        teacher: the unpruned network.
        images: (N, C, H, W), normalised; each batch is shifted by up to an eighth of a side, and mirrored or not.
        seed: draws batches, shifts and mirrors.
    """
    generator, device = torch.Generator().manual_seed(seed), device_of(model)
    parameters = list(model.parameters())
    optimiser = torch.optim.Adam(parameters, RATE)
    for parameter in parameters:
        parameter.requires_grad_(True)
    for _ in range(STEPS):
        chosen = torch.randperm(len(images), generator=generator)[:BATCH]
        batch = _varied(images[chosen], generator).to(device)
        with torch.no_grad():
            wanted = teacher(batch)
        with torch.enable_grad():  # whatever the caller's mode
            loss = (model(batch) - wanted).square().mean() / wanted.var()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for parameter in parameters:
        parameter.requires_grad_(False)


def _varied(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return images (N, C, H, W), each shifted at random and mirrored or not."""
    height, width = images.shape[2:]
    rows, columns = height // 8, width // 8
    wide, varied = F.pad(images, (columns, columns, rows, rows), mode="reflect"), []
    for image in wide:
        top, left, mirrored = (
            int(torch.randint(0, n, (), generator=generator)) for n in (2 * rows + 1, 2 * columns + 1, 2)
        )
        part = image[:, top : top + height, left : left + width]
        varied.append(part.flip(2) if mirrored else part)
    return torch.stack(varied)
