"""The effect of each part of a method: pairs of methods that differ only in that part."""

from dataclasses import asdict
from itertools import permutations

import pandas as pd

from lrp_core.control.methods import Method, method
from lrp_core.study.analysis.areas import MEASURES, TASK
from lrp_core.study.analysis.comparisons import compared


def ablation_table(areas: pd.DataFrame) -> pd.DataFrame:
    """Return the differences between methods that differ in only one part, each pair on the seeds of both.

    Args:
        areas: as returned by :func:`lrp_core.study.analysis.areas.area_table`. A pair is compared by the measures
            that both methods have.

    Returns:
        One row per dataset, backbone, measure and pair of methods: dataset, backbone, measure, ablation (an attribute
        of :class:`lrp_core.control.methods.Method` that has another value than its default, or more actions;
        "controller" for its order and rate together), value (of actions those that are added), without, with_ablation
        (the two methods), difference (of the area, mean over seeds), low, high (its 95 % interval), seeds, verdict.
    """
    rows = []
    for (dataset, backbone), group in areas.groupby(TASK, sort=False):
        tables = {
            measure: group.pivot(index="seed", columns="method", values=measure).dropna(axis="columns", how="all")
            for measure in MEASURES
        }
        for without, other in permutations(group["method"].unique(), 2):
            if (what := _ablation(method(without), method(other))) is None:
                continue
            for measure, area in tables.items():
                if {without, other} <= set(area):
                    row = {"dataset": dataset, "backbone": backbone, "measure": measure, **what}
                    row |= {"without": without, "with_ablation": other}
                    rows.append(row | compared(area[other], area[without], group["overlap"].iloc[0]))
    columns = ["ablation", "value", "without", "with_ablation", "difference", "low", "high", "seeds", "verdict"]
    table = pd.DataFrame(rows, columns=[*TASK, "measure", *columns])
    return table.sort_values("ablation", kind="stable", ignore_index=True)


def _ablation(without: Method, other: Method) -> dict[str, object] | None:
    """Return the one part that a method has in addition to another, with its value; None if it is not one part."""
    old, new, default = asdict(without), asdict(other), asdict(Method())
    changed = [name for name in default if old[name] != new[name]]
    # Methods that rank once also sum over images in a way of their own; early exits alone score nothing.
    if changed in (["static"], []) or None in (old["criterion"], new["criterion"]):
        return None
    if changed == ["order", "rate"] and not (old["order"] or old["rate"]):
        return {"ablation": "controller", "value": True}
    if changed == ["actions"]:
        added = [action for action in new["actions"] if action not in old["actions"]]
        more = set(old["actions"]) < set(new["actions"])
        return {"ablation": "actions", "value": "+".join(added)} if more else None
    if len(changed) > 1 or old[changed[0]] != default[changed[0]]:
        return None
    return {"ablation": changed[0], "value": new[changed[0]]}
