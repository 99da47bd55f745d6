"""Criteria by name."""

from lrp_core.importance.activation import BY_ACTIVATION, ByActivation
from lrp_core.importance.contribution import Contribution
from lrp_core.importance.convex_masking import representative
from lrp_core.importance.criterion import Criterion
from lrp_core.importance.integrated_gradients import IntegratedGradients
from lrp_core.importance.magnitude import weight
from lrp_core.importance.random_scores import Random
from lrp_core.importance.relevance import Relevance
from lrp_core.utils.errors import check_choice

# Rules by depth. Hatefi et al. 2024 choose them for each network; these ones are our reading.
_BY_DEPTH = {"low": "alpha2-beta1", "mid": "gamma", "high": "zplus", "dense": "epsilon"}
_LRP = {"lrp": Relevance(), "lrp-abs": Relevance(absolute=True), "lrp-depth": Relevance(composite=_BY_DEPTH)}
_AS_IT_IS = {"weight": weight, "kcm": representative}
CRITERIA = (*_LRP, "random", *_AS_IT_IS, *BY_ACTIVATION, "singe", "contribution")


def criterion(name: str, n_classes: int, seed: int) -> Criterion:
    """Return a criterion by name.

    Args:
        name: one of ``CRITERIA``.
        n_classes: of the task; a network's first outputs.
        seed: of random draws.

    Raises:
        ValueError: unknown name.
    """
    check_choice("criterion", name, CRITERIA)
    if name == "random":
        return Random(seed)
    if name == "singe":
        return IntegratedGradients(n_classes)
    if name == "contribution":
        return Contribution()
    if name in BY_ACTIVATION:
        return ByActivation(BY_ACTIVATION[name], n_classes)
    return (_AS_IT_IS | _LRP)[name]
