"""The descent by cost: joint selection, from one limit of multiply-adds, or of parameters, to the next.

Each step chooses filters to remove together (:func:`lrp_core.importance.joint.joint_choice`), so that the cost falls to
the next of a series of limits, each :data:`STEP` times the previous one. Harm is measured per cost saved. Between two
steps the network is repaired, and contributions are computed again.

Ours.
"""

from collections.abc import Iterator

import numpy as np
import torch

from lrp_core.control.controller import Step
from lrp_core.control.cost import LayerCost, cost_kept, savings
from lrp_core.importance.contribution import projected_contributions
from lrp_core.importance.joint import joint_choice
from lrp_core.metrics.accuracy import harmonic_mean, predict
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.utils.draws import generators
from lrp_core.utils.sites import AllReduce, single_site

STEP = 2**-0.5  # two steps halve the cost
DIRECTIONS = 2  # combinations of the logits per image; chosen on development seeds, as is STEP
MOST_IMAGES = 512  # that are used to choose filters


def cost_descent(
    network: PrunedNetwork,
    images: torch.Tensor,
    labels: torch.Tensor,
    costs: list[LayerCost],
    n_outputs: int,
    seed: int,
    all_reduce: AllReduce = single_site,
) -> Iterator[Step]:
    """Remove filters step by step, until none can be removed, and yield a record of each step.

    Args:
        network: unpruned; it is changed by every step.
        images: (N, C, H, W), normalised.
        labels: of the images, (N,). Only the accuracies in the records use them, not the choice of filters.
        costs: of the unpruned network's layers, in multiply-adds or in parameters.
        n_outputs: the number of logits of the classifier itself, which are the network's first ones.
        seed: draws the combinations of logits.
        all_reduce: sums over images, over all sites.
    """
    some, (classes, numbers) = evenly(len(images), MOST_IMAGES), labels.unique(return_inverse=True)
    images, labels, numbers = images[some], labels[some], numbers[some]

    def accuracies(logits: torch.Tensor) -> np.ndarray:
        right = (logits[:, :n_outputs].argmax(dim=1) == labels).double()
        hits, counts = numbers.bincount(right, len(classes)), numbers.bincount(minlength=len(classes)).double()
        return (all_reduce(hits) / all_reduce(counts).clamp(min=1)).numpy()

    drawing, limit, step, intact = generators(images, seed), float(cost_kept(costs, network.active)), 0, None
    while True:
        directions = _directions(drawing, n_outputs)
        layers = network.layers(network.model)
        by_layer, logits = projected_contributions(layers, images, directions)
        logits = logits[:, :n_outputs]
        if intact is None:
            intact, now = logits, accuracies(logits)
        drift = torch.einsum("nk,nrk->nr", (logits - intact).double(), directions.double())
        whole, limit = cost_kept(costs, network.active), limit * STEP
        chosen = joint_choice(
            network.flat(by_layer).reshape(-1, network.n_filters),
            drift.numpy().ravel(),
            savings(costs, network.active),
            lambda filters, limit=limit: _without(costs, network.active, filters) - int(limit),
            network.layer_of,
            network.active,
            all_reduce,
        )
        if len(chosen) == 0 and _without(costs, network.active, chosen) > limit:
            return
        if len(chosen) == 0:  # the previous step went further than necessary
            continue
        smaller, outputs = network.compensated_without(chosen)
        network.remove(chosen, smaller)
        given = torch.cat(outputs).to(images.device)
        given = given if len(given) == len(images) else predict(smaller, images)
        before, now = now, accuracies(given)
        yield Step(
            step=step,
            level=0,
            bound=0.0,
            requested=len(chosen),
            removed=chosen,
            deferred=0,
            rate=1 - network.active.mean(),
            before=harmonic_mean(before),
            after=harmonic_mean(now),
            accuracies=now,
            evaluations=step + 1,
        )
        step += 1
        if cost_kept(costs, network.active) == whole:
            return


def evenly(n: int, most: int) -> torch.Tensor:
    """Return ``most`` of the numbers 0..n-1, evenly spaced, or all of them."""
    return torch.arange(n) if n <= most else torch.linspace(0, n - 1, most).round().long()


def _without(costs: list[LayerCost], active: np.ndarray, filters: np.ndarray) -> int:
    kept = active.copy()
    kept[filters] = False
    return cost_kept(costs, kept)


def _directions(drawing: list[torch.Generator], n_outputs: int) -> torch.Tensor:
    """Return combinations of centred logits, (N, R, K): with random signs, or each logit if K <= DIRECTIONS."""
    if n_outputs <= DIRECTIONS:
        directions = torch.eye(n_outputs).expand(len(drawing), -1, -1)
    else:
        bits = [torch.randint(0, 2, (DIRECTIONS, n_outputs), generator=each) for each in drawing]
        directions = 2.0 * torch.stack(bits) - 1
    return directions - directions.mean(dim=2, keepdim=True)
