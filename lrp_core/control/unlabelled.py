"""What images without labels tell of a network that is being pruned: its class accuracies, from its outputs alone.

Both estimates begin at the cross-fitted accuracies before anything is pruned, and follow what happens to images that
nobody has labelled. No method monitors them (:mod:`lrp_core.control.monitored`): ``04_dynamic_pruning.ipynb`` and
``benchmarks/monitored.py`` show why.
"""

import numpy as np
import torch

from lrp_core.metrics.accuracy import class_accuracies


class ThresholdedConfidence:
    """Average thresholded confidence (ATC), by class: as many are right as have an output above a threshold.

    The confidence of an image is its greatest output. The threshold of a class leaves, of the calibration images that
    the unpruned network takes for that class, as many above it as are right. A class is as accurate as at the
    beginning, times the unlabelled images that are above its threshold now over those that were then, at most 1.

    Source: Garg et al., Leveraging Unlabeled Data to Predict Out-of-Distribution Performance, ICLR 2022 (arXiv
    2201.04234), of which the abstract and summaries were at hand: one threshold for all classes, with the maximum
    confidence. One for each class, and counts relative to the beginning, are our reading.
    """

    def __init__(self, judged: torch.Tensor, labels: torch.Tensor, outputs: torch.Tensor):
        """Take what the unpruned network says.

        Args:
            judged: of the calibration images, by the out-of-fold heads that have not seen them, (N, K)
                (:func:`lrp_core.repair.out_of_fold.out_of_fold_logits`).
            labels: of the calibration images, (N,), in 0..K-1, each class present.
            outputs: of the unlabelled images, (U, K).
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
    """The plainest alternative: the share of images on which a network still says what it said at the beginning.

    A class is as accurate as at the beginning, times the share of the unlabelled images that the unpruned network took
    for it and the pruned one still does.
    """

    def __init__(self, judged: torch.Tensor, labels: torch.Tensor, outputs: torch.Tensor):
        """Take what the unpruned network says; arguments as of :class:`ThresholdedConfidence`."""
        n_classes, self._said = judged.shape[1], outputs.argmax(dim=1)
        self._first = class_accuracies(judged.argmax(dim=1), labels, n_classes).numpy()
        self._first_said = np.maximum(self._said.bincount(minlength=n_classes).numpy(), 1)

    def __call__(self, outputs: torch.Tensor) -> np.ndarray:
        """Return the class accuracies, (K,), from the pruned network's outputs for the unlabelled images, (U, K)."""
        still = self._said[outputs.argmax(dim=1) == self._said]
        return self._first * np.bincount(still, minlength=outputs.shape[1]) / self._first_said


UNLABELLED = {"thresholded confidence": ThresholdedConfidence, "agreement": Agreement}
