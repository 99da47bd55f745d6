"""The one call, :func:`prune`: a trained classifier and a few labelled images in, a smaller classifier out."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from lrp_core.control import methods
from lrp_core.control.controller import Settings, Step, greatest_rate
from lrp_core.graph.tracing import trace
from lrp_core.metrics.accuracy import harmonic_mean, predict
from lrp_core.metrics.cost import Size, size
from lrp_core.metrics.curve import MAX_RATE, filters_at
from lrp_core.pruning.saving import save_pruned
from lrp_core.repair.out_of_fold import OutOfFoldHeads, draw_folds
from lrp_core.repair.ridge_head import fit_heads, read_by
from lrp_core.repair.temperature import scale_head
from lrp_core.utils.sites import AllReduce, single_site

FOLDS = 5  # of the cross-fitting; fewer where a class has fewer images


@dataclass(frozen=True)
class Pruned:
    """A pruned network, and how it came about.

    Attributes:
        model: the smaller network, in eval mode and frozen; ``model.requires_grad_(True)`` lets it be trained on.
        pruning_ratio: the fraction of the filters that was removed; filters that only go together count as one.
        steps: what the method did, step by step.
        monitored: which accuracy of the images the method watched, and recorded in ``steps``: ``"cross-fitted"``, of
            out-of-fold heads that each judge a fold that they were not fitted to, ``"training"``, of the network
            itself, or ``"probability"`` (:func:`lrp_core.control.monitored.monitored_accuracies`).
        before, after: what the network costs unpruned and pruned.
        kept: by convolution, the filters that are kept, by their indices in the unpruned network.
        example_shape: of one input, (1, C, H, W).
    """

    model: nn.Module = field(repr=False)
    pruning_ratio: float
    steps: list[Step] = field(repr=False)
    monitored: str
    before: Size
    after: Size
    kept: dict[str, list[int]] = field(repr=False)
    example_shape: tuple[int, ...]

    def save(self, path: str | Path) -> None:
        """Write the network to a ``.safetensors`` file, whole or not at all.

        ``lrp_core.load_pruned(path, build)`` reads it, where ``build()`` makes the unpruned network.
        """
        save_pruned(Path(path), self.model, self.kept, self.example_shape)


def prune(
    model: nn.Module,
    images: torch.Tensor | Iterable[tuple[torch.Tensor, torch.Tensor]],
    labels: torch.Tensor | None = None,
    *,
    method: str = "dynamic+reconstruction",
    pruning_ratio: float | None = None,
    max_accuracy_drop: float = 2.0,
    seed: int = 0,
    progress: bool = True,
    fold: torch.Tensor | None = None,
    all_reduce: AllReduce | None = None,
) -> Pruned:
    """Prune a trained classifier on a few labelled images, without training it.

    By default the controller of this project (:mod:`lrp_core.control.controller`) chooses the filters, and the channels
    that are kept take over the part of those that are removed (:mod:`lrp_core.repair.reconstruction`).
    :mod:`lrp_core.control.methods` has the other methods and says where each comes from.

    The pruned network's last layer is the given one, updated at most by the reconstruction, unless the method ends with
    ``+refit``: then it is fitted anew to the images by least squares (:mod:`lrp_core.repair.refit`). It keeps a bias
    where it had one, and is scaled so that the softmax of its outputs is probabilities
    (:mod:`lrp_core.repair.temperature`).

    Args:
        model: images to logits (N, K), made of supported layers (:func:`lrp_core.trace`), with any head; left as it is.
        images: (N, C, H, W), normalised as the model expects them, a few of each class; or a ``DataLoader`` (anything
            that yields pairs of images and labels), then without ``labels``. All of them are held in memory, and with
            the controller what every convolution gives for them, twice.
        labels: their classes, (N,), in 0..K-1, two or more images of each class that occurs, two classes or more.
        method: a name that :func:`lrp_core.control.methods.method` knows, but for ``early-exit`` and ``budget-search``.
        pruning_ratio: the fraction of the filters to remove, above 0 and below 1. None: as many as can be removed
            before the harmonic mean of the monitored class accuracies has fallen by more than ``max_accuracy_drop``.
        max_accuracy_drop: in points of 100; read where there is no ``pruning_ratio``.
        seed: of the folds, and of random draws.
        progress: show a progress bar.
        fold: of each image, (N,), in 0..k-1, where images that belong together (of one patient, say) are to share one;
            drawn if not given.
        all_reduce: where the images are at several sites, which all call this function on their own (with the same
            model and settings) and get the same network: from a tensor to the sum of all sites' tensors, which may
            overwrite it. Nothing else is exchanged (``docs/several_sites.md``).

    Raises:
        ValueError: images, labels, folds, ``pruning_ratio`` or ``max_accuracy_drop`` that cannot be used, an unknown
            method, an unsupported layer, more filters to remove than can be, a class that is never right while its
            accuracy is monitored, or a site that has no image of a class that others have.
    """
    how = methods.method(method)
    if pruning_ratio is not None and not 0 < pruning_ratio < 1:
        raise ValueError(
            f"pruning_ratio must lie between 0 and 1, got {pruning_ratio}; None prunes as far as the accuracy holds"
        )
    if not 0 <= max_accuracy_drop < 100:
        raise ValueError(f"max_accuracy_drop must lie in [0, 100), got {max_accuracy_drop}")
    network = copy.deepcopy(model).eval().requires_grad_(False)
    if how.early_exit or how.actions:
        raise ValueError(
            f"{method!r} is a method of the study, which knows where a backbone can end; lrp_core.control.early_exit "
            "finds the exits of a backbone of yours, lrp_core.graph.truncation ends it there, and prune() goes on"
        )
    images, labels = _collect(images, labels)
    images = images.to(next(network.parameters(), images).dtype)
    _check_labels(labels, logits := predict(network, images[:1]))
    n_outputs, all_reduce = logits.shape[1], _on_host(all_reduce)
    if all_reduce is not single_site:
        _check_sites(labels, n_outputs, how, all_reduce)
    out_of_fold = (
        None
        if how.monitored == "training" and not how.refit
        else _out_of_fold_heads(network, images, labels, fold, seed, all_reduce, how.refit)
    )
    if out_of_fold is None:
        how = replace(how, monitored="training")
    if how.refit and (out_of_fold is None or len(labels.unique()) < n_outputs):
        raise ValueError(
            f"{method!r} fits the last layer anew: it has to be dense, and each of its {n_outputs} classes needs images"
        )
    task = methods.task(network, out_of_fold, images, labels, how, seed, all_reduce)
    floor, settings = 0.0, Settings()
    if pruning_ratio is None:
        floor, settings = _monitor(
            harmonic_mean(task.accuracy(np.array([], dtype=int))), max_accuracy_drop, how.monitored
        )
    until = pruning_ratio or min(MAX_RATE, greatest_rate(task.network.layer_of))
    steps = []
    with tqdm(
        total=filters_at(until, task.network.n_filters), desc="pruning", unit="filter", disable=not progress
    ) as bar:
        for step in methods.steps(task, how, settings, until):
            if step.after < floor:
                break
            steps.append(step)
            bar.update(len(step.removed))
            bar.set_postfix(harmonic_mean=f"{step.after:.3f}")
    pruned = methods.unpruned(network, images, labels, out_of_fold and out_of_fold.fold, how, all_reduce)
    if removed := [filter_ for step in steps for filter_ in step.removed.tolist()]:
        pruned.remove(np.array(removed))
        if how.refit:
            scale_head(pruned.model, trace(network)[-1].name, images, labels, out_of_fold.fold, all_reduce)
    return Pruned(
        model=pruned.model,
        pruning_ratio=len(removed) / pruned.n_filters,
        steps=steps,
        monitored=how.monitored,
        before=size(network, images[:1]),
        after=size(pruned.model, images[:1]),
        kept=pruned.kept(),
        example_shape=pruned.example_shape,
    )


def _collect(images: object, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels as one tensor each, or say what is wrong with them."""
    if labels is None:
        if isinstance(images, torch.Tensor):
            raise ValueError("images come without labels: give labels (N,), or a DataLoader that yields both")
        pairs = list(images)
        if not pairs or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            raise ValueError("a DataLoader must yield pairs of images (N, C, H, W) and labels (N,), one or more")
        images, labels = (torch.cat([torch.as_tensor(part) for part in parts]) for parts in zip(*pairs, strict=True))
    labels = torch.as_tensor(labels)
    if not isinstance(images, torch.Tensor) or images.dim() != 4 or not images.is_floating_point():
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"images must be a float tensor (N, C, H, W), normalised as the model expects; got {got}")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"{len(images)} images need as many integer labels (N,), got {labels.dtype} {tuple(labels.shape)}"
        )
    if not images.isfinite().all():
        raise ValueError("some pixels are not finite numbers; leave such images out")
    return images.cpu(), labels.long().cpu()  # they go to the model's device batch by batch


def _check_labels(labels: torch.Tensor, logits: torch.Tensor) -> None:
    """Refuse labels that do not fit what the network gives, and images too few to tell anything."""
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the model must give logits (N, K) for K classes, two or more; for one image {tuple(logits.shape)}"
        )
    classes, counts = labels.unique(return_counts=True)
    if classes[0] < 0 or classes[-1] >= logits.shape[1]:
        raise ValueError(f"labels must lie in 0..{logits.shape[1] - 1}, got {classes[0]}..{classes[-1]}")
    if len(classes) < 2 or counts.min() < 2:
        found = ", ".join(f"class {label}: {n}" for label, n in zip(classes.tolist(), counts.tolist(), strict=True))
        raise ValueError(f"two classes or more are needed, with two images or more of each; got {found}")


def _on_host(all_reduce: AllReduce | None) -> AllReduce:
    """Return the sum over all sites, on the host, whatever device the sums are on."""
    if all_reduce is None:
        return single_site
    return lambda part: all_reduce(part.cpu().contiguous()).to(part.device)


def _check_sites(labels: torch.Tensor, n_outputs: int, how: methods.Method, all_reduce: AllReduce) -> None:
    """Refuse, at all sites alike, classes that some do not have, and a criterion that is no sum over images."""
    if how.criterion == "kcm":
        raise ValueError("'kcm' scores filters by means over all images, which are no sums: choose another criterion")
    having = all_reduce((labels.bincount(minlength=n_outputs) > 0).double())
    sites = int(all_reduce(torch.ones(1)).item())
    if lacking := ((having > 0) & (having < sites)).nonzero().flatten().tolist():
        found = ", ".join(f"class {label}: {int(having[label])}" for label in lacking)
        raise ValueError(f"every site needs images of every class; so many of {sites} sites have some of {found}")


def _check_fold(fold: torch.Tensor, labels: torch.Tensor) -> None:
    """Refuse folds that leave an out-of-fold head without images to be fitted to, or to judge."""
    if fold.shape != labels.shape or fold.is_floating_point() or fold.is_complex():
        raise ValueError(f"fold must be integers (N,), one for each image; got {fold.dtype} {tuple(fold.shape)}")
    counts = fold.bincount() if fold.min() >= 0 else torch.zeros(1)
    if len(counts) < 2 or (counts == 0).any():
        raise ValueError(f"folds must be 0..k-1, two or more, each with images; got {fold.unique().tolist()}")
    for k in range(len(counts)):
        if missing := sorted(set(labels.tolist()) - set(labels[fold != k].tolist())):
            raise ValueError(f"all images of class {missing[0]} are in fold {k}; spread them over two or more")


def _out_of_fold_heads(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    fold: torch.Tensor | None,
    seed: int,
    all_reduce: AllReduce,
    bias: bool,
) -> OutOfFoldHeads | None:
    """Fit out-of-fold heads to what the last layer reads; None if it is no dense layer.

    With ``bias`` they have one where the last layer does.
    """
    last = trace(network)[-1]
    if not isinstance(last.module, nn.Linear):
        return None
    numbers = labels.unique(return_inverse=True)[1]
    if fold is None:
        able = torch.zeros(FOLDS + 1)
        able[min(FOLDS, int(numbers.bincount().min()))] = 1
        n_folds = int(all_reduce(able).nonzero().min())  # as many as every site can have
        fold = draw_folds(numbers, np.arange(len(numbers)), n_folds, seed)
    else:
        _check_fold(fold := torch.as_tensor(fold).cpu(), labels)
    k = int(fold.max()) + 1
    sites, total, squares = all_reduce(torch.tensor([1.0, k, k * k], dtype=torch.float64)).tolist()
    if sites * squares != total**2:
        raise ValueError(f"all sites need as many folds; here there are {k}, and on average {total / sites:.1f}")
    features = read_by(network, last.name, images)
    return fit_heads(features, numbers, fold.long(), all_reduce, bias and last.module.bias is not None).out_of_fold


def _monitor(unpruned: float, max_accuracy_drop: float, monitored: str) -> tuple[float, Settings]:
    """Return the least harmonic mean that is allowed, and a controller that removes all that it can above it."""
    if unpruned == 0:
        raise ValueError(
            f"the harmonic mean of the {monitored} accuracies is 0 before anything is pruned: a class is never right, "
            "so there is nothing to monitor; give more images, or a pruning_ratio"
        )
    floor = unpruned - max_accuracy_drop / 100
    if floor <= 0:
        raise ValueError(
            f"max_accuracy_drop must be less than the harmonic mean before anything is pruned, "
            f"{100 * unpruned:.1f} points; got {max_accuracy_drop}"
        )
    return floor - 1e-12, Settings(levels=(floor / unpruned,), least=0.0)
