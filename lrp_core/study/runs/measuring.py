"""What is measured of pruned networks: accuracy by pruning rate, and by multiply-adds."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from lrp_core.control.early_exit import Exit
from lrp_core.graph.exits import features_by_exit
from lrp_core.graph.truncation import up_to
from lrp_core.metrics.accuracy import class_accuracies, filters_at, harmonic_mean, predict
from lrp_core.metrics.cost import multiply_adds, n_parameters
from lrp_core.pruning.network import PrunedNetwork
from lrp_core.repair.ridge_head import classifier, out_of_fold_logits, squared_error, without_out_of_fold_heads
from lrp_core.study.data.workspace import Samples

GRID = tuple(round(0.05 * i, 2) for i in range(20))  # 0 to 0.95 by 0.05
TAIL = (0.96, 0.97, 0.98, 0.985, 0.99)  # where few multiply-adds are left; no part of the area over rates
LAST = TAIL[-1]
BUDGETS = tuple(10 ** (-tenth / 10) for tenth in range(21))  # 100 % to 1 % of a network's multiply-adds


@dataclass(frozen=True)
class Judge:
    """What networks are measured on.

    Attributes:
        n_filters: of the whole network, of which others are parts.
        fold: of the calibration images.
        calibration: what the copies of a head are judged on.
        test: images that nothing has seen yet.
        class_names: one name a class.
    """

    n_filters: int
    fold: torch.Tensor
    calibration: Samples
    test: Samples
    class_names: tuple[str, ...]

    def measure(self, network: PrunedNetwork) -> dict:
        """Measure a classifier with copies of its head (:func:`lrp_core.repair.ridge_head.with_out_of_fold_heads`).

        Returns:
            removed (filters), rate (of the whole network's filters that are gone), crossfitted and squared_error
            (class-averaged accuracy and squared error of the copies on the calibration images), accuracy (class-averaged, on
            the test images), harmonic_mean, accuracy_<class>, parameters, multiply_adds (of one image), kept_<layer>.
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
            network: the unpruned classifier with copies of its head; loses the filters.
            order: filter numbers, first to go first.
        """
        n_pruned = 0
        for rate in (*GRID, *TAIL):
            if (size := filters_at(rate, network.n_filters)) > len(order):
                return
            network.remove(order[n_pruned:size])
            n_pruned = size
            yield self.measure(network)

    def measure_exits(self, backbone: torch.nn.Module, exits: list[Exit]) -> Iterator[dict]:
        """Measure a backbone that ends earlier and earlier, with the heads that it has there.

        Args:
            backbone: the whole one.
            exits: of it (:func:`lrp_core.control.early_exit.ends`).

        Yields:
            By end, what :meth:`measure` returns, and cut, the name of the layer behind which the backbone ends.
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


def without_guesses(networks: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are networks; those without multiply-adds stand for a guess (:func:`on_grid`)."""
    return networks[networks["multiply_adds"] > 0]


def choose(networks: pd.DataFrame, small_enough: pd.Series, refitted: bool) -> pd.Series | None:
    """Return the best row among the networks that are small enough, as the calibration images have it; None if none is.

    Of equal ones the smallest, by multiply-adds.

    Args:
        networks: as :class:`Judge` measures them, or what is known of them.
        small_enough: of each row, whether it is.
        refitted: whether heads were fitted to their features. If so, the least cross-fitted squared error is best: it
            is what they were fitted by, and on development seeds it chose better than accuracy, which counts whole
            images. The outputs of a head that its features have left have no scale; there it is accuracy.
    """
    by = "squared_error" if refitted else "crossfitted"
    allowed = without_guesses(networks[small_enough])
    allowed = allowed.assign(**{by: allowed[by].round(9)})  # equal ones differ in last bits
    ranked = allowed.sort_values([by, "multiply_adds"], ascending=[refitted, True], kind="stable")
    return ranked.iloc[0] if len(ranked) else None


def on_grid(networks: pd.DataFrame, choosing: bool) -> pd.DataFrame:
    """Return measured networks with the rate of the grid that each stands for, in a column rate_requested.

    Args:
        networks: as :class:`Judge` measures them.
        choosing: whether the method, one that refits heads, chooses at each rate among all of its networks that have
            lost as many filters; its choices stand before the networks themselves, which then stand for no rate. If
            not, those of the grid are the first ones.
    """
    if not choosing:
        requested = [*GRID, *TAIL][: len(networks)]
        return networks.assign(rate_requested=[rate if rate in GRID else np.nan for rate in requested])
    chosen = [choose(networks, networks["rate"] >= rate - 1e-9, refitted=True) for rate in GRID]
    # Without a network that small one can only guess, which costs nothing.
    measures = [name for name in networks if name.startswith(("accuracy", "harmonic_mean", "crossfitted"))]
    guess = dict.fromkeys(measures, 1 / sum(name.startswith("accuracy_") for name in networks))
    guess |= {
        "truncation": "",
        "removed": 0,
        "squared_error": 1 - guess["accuracy"],
        "parameters": 0,
        "multiply_adds": 0,
    }
    rows = [({"rate": rate} | guess if row is None else row.to_dict()) for row, rate in zip(chosen, GRID, strict=True)]
    grid = pd.DataFrame([row | {"rate_requested": rate} for row, rate in zip(rows, GRID, strict=True)])
    return pd.concat([grid, networks], ignore_index=True)
