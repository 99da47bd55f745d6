"""Estimate the class accuracies of a network that is being pruned, from its outputs for unlabelled images.

Both estimates start from the cross-fitted accuracies of the unpruned network, and follow how its outputs for unlabelled
images change. No method monitors them (:mod:`lrp_core.control.monitored`): ``04_dynamic_pruning.ipynb`` and
``benchmarks/monitored.py`` show why.
"""

import numpy as np
import torch

from lrp_core.metrics.accuracy import class_accuracies


class ThresholdedConfidence:
    """Average thresholded confidence (ATC), by class: the number of outputs above a threshold estimates the accuracy.

    The confidence of an image is its greatest output. Each class has a threshold: of the calibration images that the
    unpruned network assigns to the class, as many lie above it as are correct. The accuracy of a class is its initial
    accuracy times a ratio: unlabelled images above the threshold now, divided by those at the start. It is at most 1.

    Source: Garg et al., Leveraging Unlabeled Data to Predict Out-of-Distribution Performance, ICLR 2022 (arXiv
    2201.04234). We had the abstract and summaries: one threshold for all classes, with the maximum confidence. One
    threshold per class, and counts relative to the start, are our reading.
    """

    def __init__(self, judged: torch.Tensor, labels: torch.Tensor, outputs: torch.Tensor):
        """Store the outputs of the unpruned network.

        Args:
            judged: outputs for the calibration images, by the out-of-fold heads that have not seen them, (N, K)
                (:func:`lrp_core.repair.out_of_fold.out_of_fold_logits`).
            labels: of the calibration images, (N,), in 0..K-1, each class present.
            outputs: for the unlabelled images, (U, K).
        """
        n_classes, (confidence, predicted) = judged.shape[1], judged.max(dim=1)
        self._thresholds = torch.full((n_classes,), torch.inf)
        for label in range(n_classes):
            taken = predicted == label
            if right := int((labels[taken] == label).sum()):
                self._thresholds[label] = confidence[taken].sort(descending=True).values[right - 1]
        self._first = class_accuracies(predicted, labels, n_classes).numpy()
        self._first_right = np.maximum(self._right(outputs), 1)

    def _right(self, outputs: torch.Tensor) -> np.ndarray:
        confidence, predicted = outputs.max(dim=1)
        return np.bincount(predicted[confidence >= self._thresholds[predicted]], minlength=outputs.shape[1])

    def __call__(self, outputs: torch.Tensor) -> np.ndarray:
        """Return the class accuracies, (K,), from the pruned network's outputs for the unlabelled images, (U, K)."""
        return np.minimum(self._first * self._right(outputs) / self._first_right, 1)


class Agreement:
    """The simplest alternative: the share of images whose predicted class has not changed.

    The accuracy of a class is its initial accuracy, times a share: of the unlabelled images that the unpruned network
    assigned to the class, those that the pruned one still does.
    """

    def __init__(self, judged: torch.Tensor, labels: torch.Tensor, outputs: torch.Tensor):
        """Store the outputs of the unpruned network; arguments as for :class:`ThresholdedConfidence`."""
        n_classes, self._said = judged.shape[1], outputs.argmax(dim=1)
        self._first = class_accuracies(judged.argmax(dim=1), labels, n_classes).numpy()
        self._first_said = np.maximum(self._said.bincount(minlength=n_classes).numpy(), 1)

    def __call__(self, outputs: torch.Tensor) -> np.ndarray:
        """Return the class accuracies, (K,), from the pruned network's outputs for the unlabelled images, (U, K)."""
        still = self._said[outputs.argmax(dim=1) == self._said]
        return self._first * np.bincount(still, minlength=outputs.shape[1]) / self._first_said


UNLABELLED = {"thresholded confidence": ThresholdedConfidence, "agreement": Agreement}
