"""Measures of pruned networks, and which network represents a pruning rate or a budget of multiply-adds.

Methods are read in one of two ways. Most of them remove filters in one order, so there is one network at each rate:
they are read at the rate. Early exits and the budget search (:func:`chooses`) have several networks of similar size and
choose among them without test images. Their choice at a rate has often lost far more filters than that, so they are
read only by multiply-adds, for which every method chooses.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lrp_core.control.early_exit import Exit
from lrp_core.control.methods import method
from lrp_core.graph.exits import features_by_exit
from lrp_core.graph.truncation import classifier, up_to
from lrp_core.metrics.accuracy import class_accuracies, harmonic_mean, predict
from lrp_core.metrics.cost import multiply_adds, n_parameters
from lrp_core.metrics.curve import filters_at
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.out_of_fold import out_of_fold_logits, without_out_of_fold_heads
from lrp_core.repair.ridge_head import squared_error
from lrp_core.study.data.workspace import Samples

GRID = tuple(round(0.05 * i, 2) for i in range(20))  # 0 to 0.95 by 0.05
TAIL = (0.96, 0.97, 0.98, 0.985, 0.99)  # where few multiply-adds are left; no part of the area over rates
LAST = TAIL[-1]
BUDGETS = tuple(10 ** (-tenth / 10) for tenth in range(21))  # 100 % to 1 % of a network's multiply-adds


@dataclass(frozen=True)
class Judge:
    """What networks are measured on.

    Attributes:
        n_filters: of the whole network, of which the others are parts.
        fold: of the calibration images, (N,).
        calibration: what the out-of-fold heads are judged on.
        test: images that nothing has seen yet.
        class_names: one name per class.
    """

    n_filters: int
    fold: torch.Tensor
    calibration: Samples
    test: Samples
    class_names: tuple[str, ...]

    def measure(self, network: PrunedNetwork) -> dict:
        """Measure a classifier with its out-of-fold heads (:func:`lrp_core.repair.out_of_fold.with_out_of_fold_heads`).

        Returns:
            removed (number of filters); rate (fraction of the whole network's filters that are removed); crossfitted
            and squared_error (class-averaged accuracy and squared error of the out-of-fold heads on the calibration
            images); accuracy (class-averaged), harmonic_mean and accuracy_<class> on the test images; parameters;
            multiply_adds (of one image); kept_<layer> (number of filters).
        """
        n_classes = len(self.class_names)
        left, own = int(network.active.sum()), without_out_of_fold_heads(network.model, n_classes)
        outputs = predict(network.model, self.calibration.images)[:, n_classes:]
        judged = out_of_fold_logits(outputs, self.fold, n_classes)
        return {
            "removed": network.n_filters - left,
            "rate": 1 - left / self.n_filters,
            "crossfitted": class_accuracies(judged.argmax(dim=1), self.calibration.labels, n_classes).mean().item(),
            "squared_error": squared_error(judged, self.calibration.labels),
            **self._test(predict(own, self.test.images)),
            "parameters": n_parameters(own),
            "multiply_adds": multiply_adds(own, self.test.images[:1]),
            **{f"kept_{name}": len(kept) for name, kept in network.kept().items()},
        }

    def measure_grid(self, network: PrunedNetwork, order: np.ndarray) -> Iterator[dict]:
        """Measure a network that loses filters, at the rates of the grid and the tail that the order reaches.

        Args:
            network: the unpruned classifier with its out-of-fold heads; loses the filters.
            order: filter numbers, first to be removed first.
        """
        n_pruned = 0
        for rate in (*GRID, *TAIL):
            if (size := filters_at(rate, network.n_filters)) > len(order):
                return
            network.remove(order[n_pruned:size])
            n_pruned = size
            yield self.measure(network)

    def measure_exits(self, backbone: torch.nn.Module, exits: list[Exit]) -> Iterator[dict]:
        """Measure a backbone at its exits, each with the head that was fitted there.

        Args:
            backbone: the whole one.
            exits: of it (:func:`lrp_core.control.early_exit.exits`).

        Yields:
            By exit, what :meth:`measure` returns, and truncation, the name of the last layer that is left.
        """
        features = features_by_exit(backbone, self.test.images)
        for exit_ in exits:
            network = PrunedNetwork(classifier(up_to(backbone, exit_.name), exit_.heads.weight), self.test.images[:1])
            yield {
                "truncation": exit_.name,
                "removed": 0,
                "rate": 1 - network.n_filters / self.n_filters,
                "crossfitted": exit_.accuracy,
                "squared_error": exit_.squared_error,
                **self._test(features[exit_.name] @ exit_.heads.weight.T),
                "parameters": n_parameters(network.model),
                "multiply_adds": multiply_adds(network.model, self.test.images[:1]),
                **{f"kept_{name}": len(kept) for name, kept in network.kept().items()},
            }

    def _test(self, logits: torch.Tensor) -> dict[str, float]:
        accuracies = class_accuracies(logits.argmax(dim=1), self.test.labels, len(self.class_names))
        return {
            "accuracy": accuracies.mean().item(),
            "harmonic_mean": harmonic_mean(accuracies),
            **{f"accuracy_{name}": value for name, value in zip(self.class_names, accuracies.tolist(), strict=True)},
        }


def choose(networks: pd.DataFrame, small_enough: pd.Series, refitted: bool) -> pd.Series | None:
    """Return the best row among the networks that are small enough, by the calibration images; None if there is none.

    Among equally good networks it is the one with the fewest multiply-adds.

    Args:
        networks: as :class:`Judge` measures them, or what is known of them.
        small_enough: whether each row is.
        refitted: whether heads were fitted to their features. If so, the least cross-fitted squared error is best: it
            is what they were fitted by, and on development seeds it chose better than accuracy, which counts whole
            images. A head that no longer fits its features gives outputs without a scale; there accuracy decides.
    """
    by = "squared_error" if refitted else "crossfitted"
    allowed = networks[small_enough]
    allowed = allowed.assign(**{by: allowed[by].round(9)})  # equal ones differ in last bits
    ranked = allowed.sort_values([by, "multiply_adds"], ascending=[refitted, True], kind="stable")
    return ranked.iloc[0] if len(ranked) else None


def chooses(name: str) -> bool:
    """Return whether a method has several networks of a size to choose from, so that it cannot be read at a rate.

    Raises:
        ValueError: unknown name.
    """
    how = method(name)
    return how.early_exit or bool(how.actions)


def on_grid(networks: pd.DataFrame, choosing: bool) -> pd.DataFrame:
    """Return measured networks with the rate of the grid that each stands for, in a column rate_requested.

    Args:
        networks: of one run, as :class:`Judge` measures them; first those of the grid, then those of the tail.
        choosing: whether the method :func:`chooses`; its networks stand for no rate (NaN), nor does the tail.
    """
    requested = [rate if rate in GRID and not choosing else np.nan for rate in (*GRID, *TAIL)]
    requested += [np.nan] * len(networks)
    return networks.assign(rate_requested=requested[: len(networks)])


def at_rates(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the networks of methods that are read at a rate, those of the grid: what curves over filters are made of.

    Args:
        networks: columns method, rate_requested and others.
    """
    return networks[networks["rate_requested"].notna() & ~_chosen(networks)]


def measured_once(networks: pd.DataFrame) -> pd.DataFrame:
    """Return every network that was measured, once.

    Earlier versions wrote what a method that :func:`chooses` would take at each rate, a guess where it had nothing,
    before the networks themselves. These rows are left out.

    Args:
        networks: columns method, rate_requested and others.
    """
    return networks[networks["rate_requested"].isna() | ~_chosen(networks)]


def _chosen(networks: pd.DataFrame) -> pd.Series:
    return networks["method"].isin([name for name in networks["method"].unique() if chooses(name)])
