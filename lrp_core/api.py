"""The function :func:`prune`: takes a trained classifier and a few labelled images, returns a smaller classifier."""

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from lrp_core.control import methods
from lrp_core.control.budget_search import BudgetStep
from lrp_core.control.controller import Step
from lrp_core.control.cross_validation import HeldOut, held_out, was_fitted
from lrp_core.control.descent import Descent, Whole
from lrp_core.control.image_size import smaller_sizes, tried
from lrp_core.control.path import Path as SizePath
from lrp_core.control.path import PathRow
from lrp_core.control.preparation import Prepared, prepare
from lrp_core.control.search_descent import SearchDescent
from lrp_core.control.selection import smallest_within
from lrp_core.graph.explicit import with_modules
from lrp_core.graph.intermediate import has_intermediate
from lrp_core.graph.layers import Layer
from lrp_core.graph.outputs import before_softmax, with_softmax
from lrp_core.graph.resizing import resizing
from lrp_core.graph.tracing import check_trace, trace
from lrp_core.importance.criterion import Criterion
from lrp_core.metrics.accuracy import harmonic_mean, predict
from lrp_core.metrics.cost import Size, latency, n_filters, n_parameters, size
from lrp_core.metrics.estimate import Estimate, certifiable
from lrp_core.pruning.saving import save_pruned
from lrp_core.repair.out_of_fold import OutOfFoldHeads, draw_folds, with_last_layer
from lrp_core.repair.ridge_head import fit_heads, read_by
from lrp_core.repair.temperature import scale_head
from lrp_core.utils.sites import AllReduce, single_site

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEFAULT = "joint-cost+reconstruction"  # and prefixes, which depend on the network (_Run._default)
FOLDS = 4  # fewer if a class has fewer images
BUDGETS = ("pruning_ratio", "multiply_adds", "parameters", "latency")
KEPT_BY_SMALLER_IMAGES = ("pruning_ratio", "parameters")  # budgets


@dataclass(frozen=True)
class Network(Size):
    """Cost of a network, and its accuracy on the given images.

    Attributes:
        accuracies: of each class that has images, by class number. They do not measure a network that was trained on
            these images.
    """

    accuracies: dict[int, float]

    @property
    def harmonic_mean(self) -> float:
        """Harmonic mean of the class accuracies, 0 if any of them is 0."""
        return harmonic_mean(list(self.accuracies.values()))


@dataclass(frozen=True)
class Pruned:
    """A pruned network, and the path of sizes that it belongs to; prints as a summary.

    Attributes:
        model: the smaller network, in eval mode and frozen; to train it, call ``model.requires_grad_(True)``.
        estimate: expected accuracy on unseen images, with 90 % intervals; None with ``folds=0``.
        path: one row for every size along the way; prints as a table.
        before, after: cost of the unpruned and the pruned network, and their class accuracies on the given images.
        pruning_ratio: the fraction of the filters that was removed; filters that can only be removed together count as
            one.
        steps: a record of every step of the method, down to the smallest size.
        kept: for each convolution of ``model``, the indices of its remaining filters in the unpruned network. If
            ``model`` resizes its images, names begin with ``network.``.
        truncation: the layer after which ``model`` was cut, and the residual blocks that it skips
            (:class:`lrp_core.graph.truncation.Truncation`, as text); None if neither applies.
        image_size: to which ``model`` resizes its images first, (H, W); ``model.network`` is the network inside, which
            reads such images. None if it does not resize.
        intermediate_features: the layers, by their names in the unpruned network, whose features the last layer of
            ``model`` reads, averaged over positions, beside the last ones. Empty if it reads the last ones alone.
        example_shape: of one input, (1, C, H, W).
        notes: remarks on the numbers.
    """

    model: nn.Module = field(repr=False)
    estimate: Estimate | None
    path: SizePath = field(repr=False)
    before: Network
    after: Network
    pruning_ratio: float
    steps: list[Step] | list[BudgetStep] = field(repr=False)
    kept: dict[str, list[int]] = field(repr=False)
    truncation: str | None
    image_size: tuple[int, int] | None
    intermediate_features: tuple[str, ...]
    example_shape: tuple[int, ...] = field(repr=False)
    notes: tuple[str, ...]
    _run: "_Run" = field(repr=False)

    @torch.inference_mode(False)  # the network may be trained, whatever the caller's mode
    def select(
        self,
        *,
        max_accuracy_drop: float | None = None,
        pruning_ratio: float | None = None,
        multiply_adds: float | None = None,
        parameters: float | None = None,
        latency: float | None = None,
    ) -> "Pruned":
        """Return another size from the path, without pruning again.

        Give exactly one of the arguments; they mean the same as for :func:`prune`. All sizes of a path read images of
        the same size. For a budget below half, :func:`prune` may choose smaller ones.

        Args:
            max_accuracy_drop: in points of 100, on unseen images.
            pruning_ratio: the fraction of the filters to remove.
            multiply_adds: the largest remaining fraction of the multiply-adds.
            parameters: the largest remaining fraction of the parameters.
            latency: the largest remaining fraction of the seconds for one image.

        Raises:
            ValueError: no budget or several, an invalid one, or one that the path does not reach.
        """
        given = {"pruning_ratio": pruning_ratio, "multiply_adds": multiply_adds, "parameters": parameters}
        given = {"max_accuracy_drop": max_accuracy_drop} | given | {"latency": latency}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"select() takes one budget, got {given or 'none'}")
        ((name, value),) = given.items()
        return self._run.select(name, value)

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw accuracy and harmonic mean on unseen images against multiply-adds, with 90 % intervals.

        Args:
            axes: matplotlib axes to draw into; new ones if not given.

        Raises:
            ValueError: there are no estimates, because of ``folds=0``.
        """
        import matplotlib.pyplot as plt

        rows = [row for row in self.path if row.estimate is not None]
        if not rows:
            raise ValueError("there are no estimates to draw; call prune() with folds=2 or more")
        axes = plt.subplots(figsize=(6.5, 3.6))[1] if axes is None else axes
        sizes = [100 * row.multiply_adds for row in rows]
        for name, label in (("accuracy", "accuracy, class-averaged"), ("harmonic_mean", "harmonic mean of classes")):
            low, high = zip(*(getattr(row.estimate, f"{name}_interval") for row in rows), strict=True)
            (line,) = axes.plot(sizes, [getattr(row.estimate, name) for row in rows], marker="o", ms=3, label=label)
            axes.fill_between(sizes, low, high, alpha=0.15, color=line.get_color(), lw=0)
        here = 100 * self.after.multiply_adds / self.before.multiply_adds
        axes.axvline(here, ls="--", color="0.4", label=f"this network, {here:.3g} %")
        axes.set(xlabel="multiply-adds left, %", ylabel="on unseen images (estimated)", xscale="log", ylim=(0, 1))
        axes.invert_xaxis()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.legend(fontsize=8)
        return axes

    def save(self, path: str | Path) -> None:
        """Write the network to a ``.safetensors`` file; if writing fails, no partial file is left.

        Load it with ``lrp_core.load_pruned(path, build)``, where ``build()`` returns the unpruned network.
        """
        options = {"truncation": self.truncation, "image_size": self.image_size}
        options |= {"intermediate": self.intermediate_features}
        save_pruned(Path(path), self.model, self.kept, self.example_shape, **options)

    def __str__(self) -> str:
        """Return a readable summary."""
        shares = {
            name: f"{getattr(self.after, name) / getattr(self.before, name):.0%}"
            for name in ("multiply_adds", "parameters", "latency")
        }
        text = f"{shares['multiply_adds']} of the multiply-adds, {shares['parameters']} of the parameters, "
        text += f"{self.after.filters} of {self.before.filters} filters, {shares['latency']} of the latency are left\n"
        if self.image_size is not None:
            height, width = self.image_size
            text += f"images are resized to {height} x {width} px in the network\n"
        if self.estimate is not None:
            text += f"expected on new images, in points (from {self.estimate.images} held-out ones, 90 % intervals):\n"
            text += f"{self.estimate}\n"
        return text + "\n".join(self.notes)


@torch.inference_mode(False)  # contributions are gradients, whatever the caller's mode
def prune(
    model: nn.Module,
    images: torch.Tensor | Iterable[tuple[torch.Tensor, torch.Tensor]],
    labels: torch.Tensor | None = None,
    *,
    method: str | methods.Method | Criterion | None = None,
    max_accuracy_drop: float = 2.0,
    pruning_ratio: float | None = None,
    multiply_adds: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    ignored_layers: Collection[str | nn.Module] = (),
    round_to: int = 1,
    groups: torch.Tensor | Sequence[int | str] | None = None,
    head_fitted: bool | None = None,
    folds: int = FOLDS,
    seed: int = 0,
    progress: bool = True,
    callback: Callable[[Step | BudgetStep], object] | None = None,
    all_reduce: AllReduce | None = None,
) -> Pruned:
    """Prune a trained classifier on a few labelled images; by default nothing is trained.

    Pruning passes through all sizes, from large to small. The result holds this whole path, and :meth:`Pruned.select`
    takes another size from it. Cross-validation of the whole pruning estimates the accuracy of
    each size on unseen images (:mod:`lrp_core.control.cross_validation`).

    By default, filters are chosen together, by their effect on all logits per multiply-add that they save, or per
    parameter if the budget is ``parameters`` (:mod:`lrp_core.control.cost_descent`). The weights of all later layers
    are adjusted by least squares, so that their outputs stay close to those of the unpruned network
    (:mod:`lrp_core.repair.reconstruction`). Before that, the network resizes images to fewer pixels, as far as its
    accuracy allows (:mod:`lrp_core.control.image_size`). If the last layer was fitted to these images, as on a frozen
    network, a new one reads features of earlier layers, too (:mod:`lrp_core.control.intermediate_features`).
    :mod:`lrp_core.control.methods` lists the other methods and their sources.

    ``intermediate-features+`` and ``early-exit+`` replace the last layer; the latter drops a softmax behind it. With
    ``+refit``, and with smaller images if it was fitted to them, the last layer is refitted to the images by least
    squares (:mod:`lrp_core.repair.refit`), with a bias if it had one before. Otherwise it stays, changed at most by the
    reconstruction. Fitted layers are scaled so that the softmax of their outputs gives probabilities
    (:mod:`lrp_core.repair.temperature`).

    Args:
        model: maps images to logits (N, K); made of supported layers (:func:`lrp_core.trace`), with any head; not
            changed.
        images: (N, C, H, W), normalised as the model expects them, a few of each class; or a ``DataLoader`` (anything
            that yields pairs of images and labels), then without ``labels``. The last layer may have been trained on
            them (see ``head_fitted``), but no earlier layer: otherwise no estimate holds for other images.
        labels: their classes, (N,), in 0..K-1; at least two classes, and at least two images of each class that occurs.
        method: a name that :func:`lrp_core.control.methods.method` knows; a :class:`lrp_core.control.methods.Method`;
            or your own criterion, a function from model, images and labels to
            :class:`lrp_core.importance.criterion.Scores`. It holds scores (N, C) by convolution; filters with the
            lowest scores are removed first, with reconstruction. ``smaller-images+`` before a name first lets the
            network resize its images; ``early-exit+`` first cuts it and fits a head there. Both keep the accuracy
            within one standard error of the best (smaller images with ``intermediate-features+``: two).
            ``intermediate-features+`` first fits a head that reads features of earlier layers, too. ``budget-search``
            chooses the best action at each size: end earlier, skip a residual block, or remove filters. None:
            ``joint-cost+reconstruction``; before it ``smaller-images+``, with ``intermediate-features+`` if the last
            layer was fitted to these images (see ``head_fitted``). There is no prefix if the budget is ``parameters``
            or ``pruning_ratio``, images are at several sites, or a class has none; nor one that does not suit the
            network. The last layer stays if a class has fewer than three images, or groups. Images become no smaller
            than half of the pixels, nor than a budget of ``multiply_adds`` needs. With ``intermediate-features+`` and a
            budget *b* below half, they become smaller than half, until they leave √(*b*/2) of the multiply-adds. A
            budget of ``latency`` counts as one of ``multiply_adds`` when images are chosen.
        max_accuracy_drop: by how much the class-averaged accuracy may fall on unseen images, in points of 100, from
            that of the given network, or of the first sizes of the path if they are more accurate; used only without
            another budget. :mod:`lrp_core.control.selection` has the rule.
        pruning_ratio: the fraction of the filters to remove.
        multiply_adds: the largest remaining fraction of the unpruned network's multiply-adds.
        parameters: the largest remaining fraction of its parameters.
        latency: the largest remaining fraction of its seconds for one image, measured here on the sizes of the path.
        ignored_layers: convolutions that keep all filters, by name or as modules of the model.
        round_to: each layer keeps a multiple of this many filters, or all of its filters; 8 suits most hardware. Where
            a sum adds a concatenation to something, each part of the concatenation counts as a layer.
        groups: (N,), numbers or names; images that belong together (of one patient, of one video) have the same one.
            They stay in one fold, and count as one observation.
        head_fitted: whether the last layer was fitted to these same images, as on a frozen backbone. Each fold of the
            cross-validation then refits it, if it is dense. None: decided by a test
            (:func:`lrp_core.control.cross_validation.was_fitted`); a last layer that is not dense is believed. A method
            that names ``smaller-images+`` has to be told.
        folds: of the cross-validation; fewer if a class has fewer images. 0: no estimate, in a quarter of the time.
        seed: of the folds, and of random draws.
        progress: whether to show a progress bar.
        callback: called after each step of the pruning on all images, with the record of that step.
        all_reduce: for images at several sites. Every site calls this function on its own images, with the same model
            and settings, and gets the same network. ``all_reduce`` maps a tensor to the sum of all sites' tensors; it
            may overwrite its input. Nothing else is exchanged (``docs/several_sites.md``).

    Raises:
        ValueError: invalid images, labels, groups or budget; several budgets; an unknown method; an unsupported layer;
            a budget that no size of the network meets; or a site without images of a class that other sites have.
    """
    budget = _budget(max_accuracy_drop, pruning_ratio, multiply_adds, parameters, latency)
    head_fitted = None if head_fitted is None else bool(head_fitted)
    how = methods.method(DEFAULT if method is None else method)
    shortens = how.early_exit or bool(how.actions)
    if shortens and (ignored_layers or (how.actions and round_to > 1)):
        raise ValueError(
            f"{method!r} may end the network before a layer, and ranks filters itself: it takes no ignored_layers, and "
            "with budget-search no round_to; leave them out, or choose another method"
        )
    if not isinstance(folds, Integral) or folds == 1 or folds < 0 or (folds == 0 and budget[0] == "max_accuracy_drop"):
        raise ValueError(f"folds must be 2 or more, or 0 with a budget that needs no estimate; got {folds}")
    if not isinstance(round_to, Integral) or round_to < 1:
        raise ValueError(f"round_to must be a whole number, 1 or more; got {round_to}")
    if not isinstance(seed, Integral) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number from 0 to 2**32 - 1, got {seed}")
    if how.smaller_images and budget[0] in KEPT_BY_SMALLER_IMAGES:
        raise ValueError(
            f"smaller images save multiply-adds, and no filters or parameters: with {method!r} ask for multiply_adds, "
            f"latency or max_accuracy_drop instead of {budget[0]}"
        )
    folds, round_to, seed = int(folds), int(round_to), int(seed)
    whole = _copied(model)
    network, softmax = before_softmax(with_modules(whole))
    last = trace(network)[-1]
    ignored = _names(model, network, ignored_layers)
    images, labels = _collect(images, labels)
    images = images.to(next(network.parameters(), images).dtype)
    check_trace(whole, images[:1])
    _check_labels(labels, logits := predict(network, images[:1]))
    n_outputs, all_reduce = logits.shape[1], _on_host(all_reduce)
    if all_reduce is not single_site:
        _check_sites(labels, n_outputs, how, all_reduce)
    is_dense = isinstance(last.module, nn.Linear)
    if how.refit and not is_dense and not shortens:
        kind = type(last.module).__name__
        raise ValueError(f"{method!r} fits the last layer anew: it has to be dense, and {last.name!r} is a {kind}")
    if how.intermediate_features and not is_dense:
        kind = type(last.module).__name__
        raise ValueError(f"{method!r} replaces the last layer: it has to be dense, and {last.name!r} is a {kind}")
    judged = how.refit or how.smaller_images or how.intermediate_features or shortens
    if judged and len(labels.unique()) < n_outputs:
        raise ValueError(
            f"{method!r} fits a last layer, or judges by all classes: each of its {n_outputs} classes needs images"
        )
    how = how if is_dense else replace(how, monitored="training")
    run = _Run(network, images, labels, how, seed, ignored, round_to, all_reduce)
    run.softmax = softmax
    run.groups = torch.arange(len(labels)) if groups is None else _check_groups(groups, labels)
    run.until, run.until_further = _until(*budget), _until(*_half(*budget))
    at_once = all_reduce is single_site and len(labels.unique()) == n_outputs
    run.by_default = method is None and at_once and budget[0] not in KEPT_BY_SMALLER_IMAGES
    run.by_parameters = budget[0] == "parameters"
    run.budget = budget[1] if budget[0] in ("multiply_adds", "latency") else 0.0
    if not is_dense and head_fitted:
        raise ValueError(
            f"head_fitted=True fits the last layer anew in each fold: it has to be dense, and {last.name!r} is a "
            f"{type(last.module).__name__}. Give images that trained no layer, and head_fitted=False"
        )
    if how.smaller_images and is_dense and head_fitted is None and method is not None:
        raise ValueError(
            f"{method!r} has to know whether the last layer was fitted to these images, which no test can always tell: "
            "say head_fitted=True, or head_fitted=False if other images trained it"
        )
    if not is_dense and head_fitted is None and folds:
        run.notes.append(
            f"The network ends with {last.name!r}, no dense layer: the numbers hold only if other images trained it."
        )
    run.go(folds, head_fitted if is_dense else False, is_dense, progress, callback)
    return run.select(*budget)


class _Run:
    """A call of :func:`prune`: its inputs and its results."""

    def __init__(
        self,
        network: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        how: methods.Method,
        seed: int,
        ignored: Collection[str],
        round_to: int,
        all_reduce: AllReduce,
    ):
        self.network, self.images, self.labels, self.how, self.seed = network, images, labels, how, seed
        self.ignored, self.round_to, self.all_reduce = ignored, round_to, all_reduce
        self.groups: torch.Tensor
        self.softmax: Layer | None  # at the end of the user's network
        self.until: Callable[[_Down], bool]
        self.until_further: Callable[[_Down], bool]  # of the folds, which leave other sizes than all images do
        self.by_default = False  # whether the prefixes of the method are chosen here
        self.by_parameters = False  # what a method that chooses by cost counts
        self.budget = 0.0  # of the multiply-adds, if there is one: images need not become so small that fewer are left
        self.judged: HeldOut | None = None
        self.further: Estimate | None = None  # of the size that would come next on the path
        self.fitted = False  # whether the last layer was fitted to these images
        self.whole = Whole.of(network, images[:1], ignored)
        self.notes: list[str] = []

    def go(
        self,
        folds: int,
        head_fitted: bool | None,
        is_dense: bool,
        progress: bool,
        callback: Callable[[Step], object] | None,
    ) -> None:
        """Prune once without each fold, and once with all images."""
        fold = _draw(self.labels, self.groups, folds, self.seed, self.all_reduce) if folds else None
        judges, features = self.by_default or self.how.early_exit or self.how.smaller_images, None
        judging = self._judging() if judges and fold is None else fold
        if is_dense and head_fitted is not False and (judges or fold is not None):
            features = self._find_out(head_fitted, judging)
            name = trace(self.network)[-1].name
            if self.fitted:
                then = ": every fold fits it anew" if folds else ""
                advice = " If other images trained it, say head_fitted=False." if head_fitted is None else ""
                self.notes.append(f"The last layer, {name!r}, counts as fitted to these images{then}.{advice}")
            else:
                then = ": otherwise predictions may be too high" if folds else ""
                advice = f" If these fitted it, say head_fitted=True{then}."
                self.notes.append(f"The last layer, {name!r}, counts as trained by other images.{advice}")
        if self.by_default:
            self.how = self._default(judging)
        n_folds = 0 if fold is None else int(fold.max()) + 1
        with tqdm(
            total=n_folds + 1, desc="pruning", disable=not progress, bar_format=_BAR, postfix={"network": "unpruned"}
        ) as bar:
            if fold is not None:
                self._cross_validate(fold, features, bar)
            self._descend(callback, bar, n_folds)

    def _judging(self) -> torch.Tensor | None:
        """Return folds for judging without estimates; None if the groups allow none."""
        try:
            return _draw(self.labels, self.groups, FOLDS, self.seed, self.all_reduce)
        except ValueError:
            return None

    def _find_out(self, head_fitted: bool | None, fold: torch.Tensor | None) -> torch.Tensor:
        """Decide whether the dense last layer was fitted to the images, if not told; return its inputs.

        Without folds nothing can tell, and it counts as fitted.
        """
        name, numbers = trace(self.network)[-1].name, self.labels.unique(return_inverse=True)[1]
        features = read_by(self.network, name, self.images)
        self.fitted = bool(head_fitted)
        if head_fitted is None and fold is None:
            self.fitted = True
        elif head_fitted is None:
            bias = self.network.get_submodule(name).bias is not None
            heads = fit_heads(features, numbers, fold, self.all_reduce, bias).out_of_fold
            own = (predict(self.network, self.images).argmax(dim=1) == self.labels).numpy()
            theirs = (heads.judge(features).argmax(dim=1) == numbers).numpy()
            self.fitted = was_fitted(own, theirs, self.all_reduce)
        return features

    def _default(self, fold: torch.Tensor | None) -> methods.Method:
        """Return the method with the prefixes that suit the network, if no method is named.

        Where the last layer was fitted to these images, smaller ones gain nothing that is detected without intermediate
        features (docs/results.md).

        Args:
            fold: of the images, (N,), to judge with; None if their groups allow none.
        """
        image, labels = self.images[:1], self.labels.unique()
        # Of three groups of a class, two are left without a fold.
        enough = all(len(self.groups[self.labels == label].unique()) > 2 for label in labels)
        features = self.fitted and enough and fold is not None and has_intermediate(self.network, image)
        shares, least = tried(self.budget, features)
        smaller = (features or not self.fitted) and bool(smaller_sizes(self.network, image, least, shares)[0])
        return replace(self.how, smaller_images=smaller, intermediate_features=features)

    def _cross_validate(self, fold: torch.Tensor, features: torch.Tensor | None, bar: tqdm) -> None:
        numbers = self.labels.unique(return_inverse=True)[1]

        def classifier(k: int) -> tuple[nn.Module, torch.Tensor]:
            if not self.fitted:
                return self.network, self.labels
            others = fold != k  # they alone choose the strength of the ridge, too
            inner = _draw(numbers[others], self.groups[others], methods.FOLDS, self.seed, self.all_reduce)
            bias = trace(self.network)[-1].module.bias is not None
            head = fit_heads(features[others], numbers[others], inner, self.all_reduce, bias)
            return with_last_layer(self.network, head.weight, head.bias), numbers

        done = 0.0

        def show(share: float) -> None:
            nonlocal done
            bar.set_postfix(network=f"{max(0, 1 - share):.0%} of the multiply-adds", refresh=False)
            bar.update(done + share - bar.n)
            done += share == 1

        self.judged = held_out(
            self.images,
            self.labels,
            fold,
            self.groups,
            classifier,
            self.descent,
            self.until_further,
            show,
            self.all_reduce,
        )

    def _descend(self, callback: Callable[[Step], object] | None, bar: tqdm, n_folds: int) -> None:
        self.down = self.descent(self.network, self.images, self.labels, self.groups)
        image, known = self.images[:1], 0
        self.before = _measured(self.network, self.images, self.labels)
        self.before = replace(self.before, latency=self._average(self.before.latency))
        estimates = iter([] if self.judged is None else self.judged.estimates())
        first = None if self.judged is None else self.judged.unpruned()
        rows = [PathRow(None, 0, 0.0, 1.0, 1.0, self.before.filters, self.before.latency, first)]
        for stop in self.down.walk(self.until):
            if callback is not None:
                for step in self.down.steps[known:]:
                    callback(step)
            known = len(self.down.steps)
            if rows[-1].size == stop.size:  # the same network as at the previous size
                rows.pop()
            found = next(estimates, None)
            share, removed = n_parameters(stop.model) / self.before.parameters, self.down.removed(stop.size)
            ratio, seconds = removed / self.whole.filters, self._average(latency(stop.model, image, repeats=5))
            cost = stop.multiply_adds, share, n_filters(stop.model), seconds
            rows.append(PathRow(stop.size, removed, ratio, *cost, found))
            bar.set_postfix(network=f"{stop.multiply_adds:.0%} of the multiply-adds", refresh=False)
            bar.update(n_folds + 1 - stop.multiply_adds - bar.n)
        if callback is not None:
            for step in self.down.steps[known:]:
                callback(step)
        bar.update(n_folds + 1 - bar.n)
        self.path, self.further = SizePath(rows), next(estimates, None)

    def descent(self, model: nn.Module, images: torch.Tensor, labels: torch.Tensor, groups: torch.Tensor) -> "_Down":
        """Return the descent of a classifier on some images."""
        how, fold, heads = self.how, None, None
        if how.actions or how.early_exit or how.intermediate_features or (how.smaller_images and self.fitted):
            fold = _draw(labels, groups, methods.FOLDS, self.seed, self.all_reduce)
        if how.actions:
            return SearchDescent(model, images, labels, how, fold, self.seed, self.whole)
        prepared = prepare(model, images, labels, fold, how, self.fitted, self.budget)
        if how.refit or ((how.rate or how.order) and how.monitored != "training"):
            heads = _out_of_fold_heads(prepared.model, images, labels, groups, self.seed, self.all_reduce, how.refit)
        return Descent(
            prepared,
            images,
            labels,
            how,
            heads,
            self.seed,
            whole=self.whole,
            ignored=prepared.names(self.ignored),
            round_to=self.round_to,
            by_parameters=self.by_parameters,
            all_reduce=self.all_reduce,
        )

    def _average(self, value: float) -> float:
        """Return the mean over all sites; their clocks differ."""
        total, sites = self.all_reduce(torch.tensor([value, 1.0], dtype=torch.float64)).tolist()
        return total / sites

    def select(self, name: str, value: float) -> Pruned:
        """Return the network that meets a budget."""
        _check_budget(name, value)
        notes = list(self.notes)
        size = self._within_drop(value, notes) if name == "max_accuracy_drop" else self._within(name, value)
        model = copy.deepcopy(self.network) if size is None else self.down.model(size)
        truncation = None if size is None else self.down.truncation(size)
        prepared = Prepared(model) if size is None else self.down.prepared
        image_size, intermediate = prepared.image_size, prepared.intermediate
        has_new_head = truncation is not None or intermediate or (image_size is not None and self.fitted)
        if size is not None and (self.how.refit or has_new_head):
            fold = _draw(self.labels, self.groups, methods.FOLDS, self.seed, self.all_reduce)
            scale_head(model, trace(model)[-1].name, self.images, self.labels, fold, self.all_reduce)
            if intermediate:
                notes.append(f"A new last layer reads features of earlier layers, too ({len(intermediate)}).")
            elif image_size is not None and self.fitted and truncation is None:
                notes.append("The last layer was fitted anew to the smaller images.")
        if self.softmax is not None and truncation is None:
            inside = with_softmax(model if image_size is None else model.network, self.softmax)
            model = inside if image_size is None else resizing(inside, image_size)
        estimate = self._estimate(size)
        if estimate is None and self.judged is not None:
            notes.append("No accuracy is predicted for this size: networks pruned without a fold did not get so small.")
        return Pruned(
            model=model,
            estimate=estimate,
            path=self.path,
            before=self.before,
            after=_measured(model, self.images, self.labels),
            pruning_ratio=0.0 if size is None else self.down.pruning_ratio(size),
            steps=self.down.steps,
            kept=_all_filters(model) if size is None else self.down.kept(size),
            truncation=truncation,
            image_size=image_size,
            intermediate_features=intermediate,
            example_shape=tuple(self.images[:1].shape),
            notes=tuple(notes),
            _run=self,
        )

    def _estimate(self, size: int | None) -> Estimate | None:
        """Return the estimate for a size: that of the next smaller size of the path, or of the folds beyond its end."""
        if size is None:
            return self.path[0].estimate
        return next((row.estimate for row in self.path[1:] if row.size >= size), self.further)

    def _within(self, name: str, value: float) -> int:
        """Return the largest size that meets a budget."""
        rows = self.path[1:]
        if name == "latency":
            fits = [row.size for row in rows if row.latency <= value * self.before.latency]
            least = min((row.latency / self.before.latency for row in rows), default=1)
        else:
            size = self.down.first(lambda size: _keeps(self.down, size, name, value)) if rows else None
            fits = [size] if rows and _keeps(self.down, size, name, value) else []
            least = _reached(self.down, self.down.last, name) if rows else 1 - (name == "pruning_ratio")
        if not fits and self.how.criterion is None and not self.how.actions:
            raise ValueError(
                f"{name}={value} cannot be kept: this method removes no filters, and reaches {name}={least:.4f}; add a "
                "method that does, as in 'early-exit+joint-cost+reconstruction'"
            )
        if not fits and least == 1 - (name == "pruning_ratio"):
            raise ValueError(
                f"{name}={value} cannot be kept: nothing of this network can be removed with round_to={self.round_to} "
                f"and {len(self.ignored)} ignored layers"
            )
        if not fits and name == "latency" and least >= 1:
            raise ValueError(
                f"latency={value} cannot be kept: the fastest network of the path takes {least:.2f} times as long as "
                "the given one. Networks as small as this one may not become faster; ask for another budget, or try "
                "method='joint-cost+reconstruction'"
            )
        if not fits:
            further = "a smaller budget of multiply_adds" if name == "latency" else "this budget"
            raise ValueError(
                f"{name}={value} cannot be kept: the path ends at {name}={least:.4f}; ask for that. If this path was "
                f"made for another budget, prune() with {further} may go further"
            )
        return fits[0]

    def _within_drop(self, value: float, notes: list[str]) -> int | None:
        """Return the size to take if the accuracy may fall by so many points on unseen images."""
        if self.judged is None:
            raise ValueError("max_accuracy_drop needs estimates on unseen images; call prune() with folds=2 or more")
        rows = [row for row in self.path if row.estimate is not None]
        row = smallest_within(rows, value)
        independent = rows[0].estimate.observations
        if (least := certifiable(independent)) > value:
            notes.append(
                f"{independent} independent images can exclude a drop of {least:.1f} points at best (90 % confidence), "
                f"and {value} were asked for: give more images to be sure."
            )
        if row.size is None:
            sized = self.down.prepared.image_size is not None
            hint = " On larger images there may be one: try method='joint-cost+reconstruction'." if sized else ""
            notes.append(
                f"No smaller network is expected to lose {value} points or less; this is the unpruned one.{hint}"
            )
        elif row is rows[-1]:
            notes.append("The path ends at this size; prune() with a smaller budget of multiply_adds goes further.")
        for note in notes[len(self.notes) :]:
            warnings.warn(note, stacklevel=5)
        return row.size


_Down = Descent | SearchDescent
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


def _reached(down: _Down, size: int, name: str) -> float:
    """Return the remaining fraction of a cost, or the removed fraction of the filters, at a size."""
    return down.pruning_ratio(size) if name == "pruning_ratio" else getattr(down, name)(size)


def _keeps(down: _Down, size: int, name: str, value: float) -> bool:
    reached = _reached(down, size, name)
    return reached >= value - 1e-12 if name == "pruning_ratio" else reached <= value + 1e-12


def _until(name: str, value: float) -> Callable[[_Down], bool]:
    """Return a function that says whether a descent has gone far enough for a budget."""
    if name in ("max_accuracy_drop", "latency"):
        return lambda _: True
    return lambda down: _keeps(down, down.last, name, value)


def _half(name: str, value: float) -> tuple[str, float]:
    """Return a budget that leaves half of what another one does."""
    return name, 1 - (1 - value) / 2 if name == "pruning_ratio" else value / 2


def _all_filters(model: nn.Module) -> dict[str, list[int]]:
    """Return the filters of every convolution."""
    convolutions = [layer for layer in trace(model) if isinstance(layer.module, nn.Conv2d)]
    return {layer.name: list(range(layer.module.out_channels)) for layer in convolutions}


def _budget(max_accuracy_drop: float, *others: float | None) -> tuple[str, float]:
    """Return the name and value of the one budget that was given."""
    given = [(name, value) for name, value in zip(BUDGETS, others, strict=True) if value is not None]
    if len(given) > 1:
        raise ValueError(f"give one budget at a time, got {', '.join(f'{name}={value}' for name, value in given)}")
    name, value = given[0] if given else ("max_accuracy_drop", max_accuracy_drop)
    _check_budget(name, value)
    return name, value


def _copied(model: nn.Module) -> nn.Module:
    """Return a copy of the model in eval mode, frozen."""
    trace(model)  # says what is not supported, before the copy fails on it
    try:
        return copy.deepcopy(model).eval().requires_grad_(False)
    except RuntimeError as error:
        raise ValueError(
            f"cannot copy {type(model).__name__}: does an attribute hold a tensor that it computed, such as its last "
            f"feature maps? Delete it, or run the model in torch.no_grad() ({error})"
        ) from error


def _check_budget(name: str, value: float) -> None:
    if isinstance(value, str) or not np.isreal(value):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if name == "max_accuracy_drop" and not 0 <= value < 100:
        raise ValueError(f"max_accuracy_drop must lie in [0, 100), in points of 100; got {value}")
    if name != "max_accuracy_drop" and not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, a fraction of the unpruned network's; got {value}")


def _names(model: nn.Module, network: nn.Module, ignored_layers: Collection[str | nn.Module]) -> list[str]:
    """Return the names of convolutions that are given by name or as modules of the model."""
    names = {id(module): name for name, module in model.named_modules()}
    ignored_layers = [ignored_layers] if isinstance(ignored_layers, str | nn.Conv2d) else ignored_layers
    found = [layer if isinstance(layer, str) else names.get(id(layer)) for layer in ignored_layers]
    convolutions = [layer.name for layer in trace(network) if isinstance(layer.module, nn.Conv2d)]
    for layer, name in zip(ignored_layers, found, strict=True):
        if name not in convolutions:
            raise ValueError(f"ignored_layers: {layer!r} is no convolution of this model; it has {convolutions}")
    return found


def _measured(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Network:
    """Return the cost of a network, and its accuracies on the images."""
    right = predict(model, images).argmax(dim=1) == labels
    accuracies = {int(label): right[labels == label].double().mean().item() for label in labels.unique()}
    cost = size(model, images[:1])
    return Network(**{one.name: getattr(cost, one.name) for one in fields(cost)}, accuracies=accuracies)


def _collect(images: object, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels as one tensor each; raise an error if they are invalid."""
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
    if len(images) == 0:
        raise ValueError("there are no images: give two or more of each class")
    if not images.isfinite().all():
        raise ValueError("some pixels are not finite numbers; leave such images out")
    return images.cpu(), labels.long().cpu()  # they go to the model's device batch by batch


def _check_labels(labels: torch.Tensor, logits: torch.Tensor) -> None:
    """Raise an error if labels do not fit the network's outputs, or if there are too few images."""
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
    """Return an all-reduce that runs on the host, whatever device the sums are on."""
    if all_reduce is None:
        return single_site
    return lambda part: all_reduce(part.cpu().contiguous()).to(part.device)


def _check_sites(labels: torch.Tensor, n_outputs: int, how: methods.Method, all_reduce: AllReduce) -> None:
    """Raise an error at all sites if one lacks a class, or if the method needs more than sums over images."""
    if how.criterion == "kcm":
        raise ValueError("'kcm' scores filters by means over all images, which are no sums: choose another criterion")
    if how.smaller_images or how.intermediate_features or how.early_exit or how.actions:
        raise ValueError(
            "image sizes and new heads are judged by the images of one site: prune at one, or choose a method without "
            "smaller-images, intermediate-features, early-exit and budget-search"
        )
    if how.distil:
        raise ValueError("distillation trains on single images, which are no sums: choose a method without it")
    having = all_reduce((labels.bincount(minlength=n_outputs) > 0).double())
    sites = int(all_reduce(torch.ones(1)).item())
    if lacking := ((having > 0) & (having < sites)).nonzero().flatten().tolist():
        found = ", ".join(f"class {label}: {int(having[label])}" for label in lacking)
        raise ValueError(f"every site needs images of every class; so many of {sites} sites have some of {found}")


def _check_groups(groups: torch.Tensor | Sequence[int | str], labels: torch.Tensor) -> torch.Tensor:
    """Return the groups of the images as numbers; raise an error if they are none."""
    names = groups.cpu().numpy() if isinstance(groups, torch.Tensor) else np.asarray(groups)
    if names.shape != labels.shape or names.dtype.kind not in "iuUO":
        raise ValueError(f"groups must be integers or names (N,), one per image; got {names.dtype} {names.shape}")
    if len(kinds := sorted({type(name).__name__ for name in names.tolist()})) > 1:
        raise ValueError(f"groups must be all integers or all names; got {' and '.join(kinds)}")
    for label in labels.unique():
        if len(found := np.unique(names[(labels == label).numpy()])) < 2:
            raise ValueError(
                f"all images of class {int(label)} are of one group, {found[0]}: none could judge a network that has "
                "not seen them; give images of two or more"
            )
    return torch.from_numpy(np.unique(names, return_inverse=True)[1])


def _draw(labels: torch.Tensor, groups: torch.Tensor, n_folds: int, seed: int, all_reduce: AllReduce) -> torch.Tensor:
    """Return each image's fold, (N,); fewer folds if a class has fewer groups, the same number at all sites."""
    numbers = labels.unique(return_inverse=True)[1]
    most = min(len(groups[numbers == number].unique()) for number in range(int(numbers.max()) + 1))
    able = torch.zeros(n_folds + 1)
    able[min(n_folds, most)] = 1
    n_folds = int(all_reduce(able).nonzero().min())
    if n_folds < 2:  # within a fold, of a class with images of two groups: those of each class by turns
        of = groups.unique(return_inverse=True)[1]
        of = of if of.any() else torch.arange(len(groups))
        classes = numbers.new_full((int(of.max()) + 1,), len(numbers)).scatter_reduce_(0, of, numbers, "amin")
        return classes.argsort(stable=True).argsort()[of] % 2
    return draw_folds(numbers, groups.numpy(), n_folds, seed)


def _out_of_fold_heads(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    groups: torch.Tensor,
    seed: int,
    all_reduce: AllReduce,
    bias: bool,
) -> OutOfFoldHeads:
    """Fit out-of-fold heads to the inputs of the last layer; with ``bias`` they have one if the last layer has."""
    last, numbers = trace(network)[-1], labels.unique(return_inverse=True)[1]
    fold = _draw(labels, groups, methods.FOLDS, seed, all_reduce)
    features = read_by(network, last.name, images)
    return fit_heads(features, numbers, fold, all_reduce, bias and last.module.bias is not None).out_of_fold
