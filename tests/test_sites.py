"""Images at three sites, in processes of their own that exchange sums alone, against the pooled images."""

import os
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import miniature_vgg
from networks import settle
from torch import nn
from torch.nn import functional as F

import lrp_core
from lrp_core import api
from lrp_core.control import cost_descent
from lrp_core.importance.by_class import class_shares
from lrp_core.importance.joint import joint_order
from lrp_core.metrics import cost
from lrp_core.repair import reconstruction
from lrp_core.repair.ridge_head import fit_heads

SITES = 3
DEFAULT = "joint-cost+reconstruction"
METHODS = (
    DEFAULT,
    "px-iterative-abs",
    "px-static",
    "joint",
    "taylor",
    "dynamic",
    "dynamic-probability",
    "px-iterative-abs+reconstruction",
    "dynamic+reconstruction",
    "px-iterative-abs+reconstruction+refit",
)


class Small(nn.Module):
    """Convolutions, a residual sum, and a dense head."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.thin = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.Conv2d(16, 8, 1),
        )
        self.last, self.head = nn.Conv2d(8, 20, 3), nn.Linear(20, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.thin(F.relu(self.wide(x)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


def task():
    """A network, images with labels that it mostly gives, folds, and the site that each image is at."""
    model = settle(Small()).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(96, 3, 8, 8, dtype=torch.float64, generator=generator)
    images += 2 * torch.randn(96, 3, 1, 1, dtype=torch.float64, generator=generator)
    logits = model(images)
    model.head.bias -= logits.mean(dim=0)  # no class is left out
    labels = (model(images) + 0.1 * torch.randn(96, 3, generator=generator)).argmax(dim=1)
    return model, images, labels, torch.arange(96) // SITES % 4, torch.arange(96) % SITES


def all_reduce(part: torch.Tensor) -> torch.Tensor:
    dist.all_reduce(part)
    return part


def nothing_drawn(patch: pytest.MonkeyPatch) -> None:
    """What each site draws by itself is given instead: folds are groups; all positions and logits are looked at."""
    patch.setattr(api, "_draw", lambda labels, groups, *_: groups)
    patch.setattr(reconstruction, "SAMPLES", 10**6)
    patch.setattr(cost_descent, "DIRECTIONS", 3)


def n_filters(model: nn.Module) -> int:
    return sum(layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d))


def results_of(prune, labels: torch.Tensor, fold: torch.Tensor, name: str) -> tuple:
    pruned = prune(labels, method=name, pruning_ratio=0.5, groups=fold, folds=4 if name == DEFAULT else 0)
    estimates = [row.estimate for row in pruned.path]
    return pruned.kept, [step.after for step in pruned.steps], dict(pruned.model.state_dict()), estimates


def pruned_at(rank: int, folder: str) -> None:
    """What one site runs; it sees its own images only."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=SITES)
    model, images, labels, fold, site = task()
    own = site == rank
    prune = partial(lrp_core.prune, model, images[own], progress=False, all_reduce=all_reduce)
    with pytest.MonkeyPatch.context() as patch:
        nothing_drawn(patch)
        results = {name: results_of(prune, labels[own], fold[own], name) for name in METHODS}
    for name in (DEFAULT, "dynamic+refit"):  # as it is: each site draws its own folds, positions and combinations
        pruned = prune(labels[own], method=name, multiply_adds=0.3)
        results[f"drawn, {name}"] = pruned.kept, pruned.estimate, dict(pruned.model.state_dict())
    # So many images alike that one site draws two folds for all.
    uneven = prune(labels[own], multiply_adds=0.5, groups=torch.arange(32) if rank else fold[own] % 2)
    results["uneven"] = uneven.kept, uneven.estimate
    with pytest.MonkeyPatch.context() as patch:  # clocks that count filters, each at a pace of its own
        for module in (api, cost):
            patch.setattr(module, "latency", lambda network, *_, **__: 60 + (rank + 1) * n_filters(network))
        results["latency"] = prune(labels[own], latency=0.8, folds=0).kept
    refused = {}
    for what, arguments in {
        "class": {"labels": labels[own].clamp(max=1) if rank else labels[own]},
        "kcm": {"labels": labels[own], "method": "kcm", "pruning_ratio": 0.5},
    }.items():
        with pytest.raises(ValueError, match=r"\w") as error:  # the message is compared outside
            prune(**arguments)
        refused[what] = str(error.value)
    torch.save((results, refused), os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("sites"))
    torch.multiprocessing.spawn(pruned_at, (folder,), nprocs=SITES)
    return [torch.load(os.path.join(folder, f"{rank}.pt"), weights_only=False) for rank in range(SITES)]


@pytest.mark.parametrize("name", METHODS)
def test_three_sites_get_what_the_pooled_images_give(apart, name, monkeypatch):
    nothing_drawn(monkeypatch)
    model, images, labels, fold, _ = task()
    pooled = results_of(partial(lrp_core.prune, model, images, progress=False), labels, fold, name)
    assert min(map(len, pooled[0].values())) < 8
    for results, _ in apart:
        kept, after, weights, estimates = results[name]
        assert kept == pooled[0]
        np.testing.assert_allclose(after, pooled[1], rtol=1e-9)
        for key, tensor in pooled[2].items():
            torch.testing.assert_close(weights[key], tensor, rtol=1e-6, atol=1e-8)
        for one, other in zip(estimates, pooled[3], strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                assert one.images == other.images == 96
                # Images of a group at two sites count as two: the values agree, the widths nearly.
                assert (one.accuracy, one.harmonic_mean, one.drop) == pytest.approx(
                    (other.accuracy, other.harmonic_mean, other.drop), rel=1e-9
                )


def test_the_default_is_estimated_at_three_sites(apart):
    for results, _ in apart:
        estimates = results[DEFAULT][3]
        assert sum(one is not None for one in estimates) > 8
        assert estimates == apart[0][0][DEFAULT][3]


def test_every_site_has_the_same_network_and_no_pooled_one_is_needed(apart):
    first, *others = (results for results, _ in apart)
    for results in others:
        for name in (f"drawn, {DEFAULT}", "drawn, dynamic+refit"):
            assert results[name][:2] == first[name][:2]
            assert all(torch.equal(tensor, first[name][2][key]) for key, tensor in results[name][2].items())
        assert results["uneven"] == first["uneven"]
        assert results["latency"] == first["latency"]  # whose clock is it?
        for name in METHODS:
            assert all(torch.equal(tensor, first[name][2][key]) for key, tensor in results[name][2].items())
    assert first[f"drawn, {DEFAULT}"][1].images == first["uneven"][1].images == 96
    model, images, labels, _, site = task()
    own = site == 0
    by_itself = lrp_core.prune(
        model, images[own], labels[own], method="px-iterative-abs", pruning_ratio=0.5, folds=0, progress=False
    )
    assert by_itself.kept != first["px-iterative-abs"][0]  # one site's images alone say something else


def test_what_cannot_be_added_up_is_refused_at_all_sites(apart):
    for _, refused in apart:
        assert refused["class"] == (
            "every site needs images of every class; so many of 3 sites have some of class 2: 1"
        )
        assert refused["kcm"].startswith("'kcm' scores filters by means over all images")


def test_a_function_that_adds_nothing_changes_nothing_but_last_digits():
    generator = torch.Generator().manual_seed(1)
    x, labels = torch.randn(60, 9, generator=generator), torch.arange(60) % 3
    x += torch.randn(3, 9, generator=generator)[labels]
    single_site, together = (
        fit_heads(x, labels, torch.arange(60) % 4, *all_reduce) for all_reduce in ((), (torch.clone,))
    )
    assert single_site.strength == together.strength
    torch.testing.assert_close(together.weight, single_site.weight)
    torch.testing.assert_close(together.out_of_fold.weight, single_site.out_of_fold.weight)
    scores, layers = np.abs(np.random.default_rng(0).normal(size=(6, 5))), np.array([0, 0, 1, 1, 1])
    doubled = class_shares(scores, np.arange(6) % 2, layers, lambda part: 2 * part)
    np.testing.assert_allclose(doubled, class_shares(scores, np.arange(6) % 2, layers))  # shares of a sum
    contributions, drift = [(slice(3), slice(2), scores.reshape(3, 2, 5))], np.zeros((3, 2))
    active = np.ones(5, dtype=bool)
    orders = [joint_order(contributions, drift, layers, active, 2, *all_reduce) for all_reduce in ((), (torch.clone,))]
    np.testing.assert_array_equal(*orders)


def test_a_layer_too_wide_for_moments_at_several_sites_keeps_what_it_gave(monkeypatch):
    """Its weights stay; filters that give nothing go, so that nothing has to be made up for."""
    monkeypatch.setattr(reconstruction, "_WIDEST", 10)
    model = settle(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 9, 3), nn.Flatten(), nn.Linear(144, 3)))
    model[0].weight[:4], model[0].bias[:4] = 0, -1
    images, labels = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    pruned = lrp_core.prune(
        model,
        images,
        labels,
        method="weight+reconstruction",
        pruning_ratio=4 / 17,
        folds=0,
        progress=False,
        all_reduce=torch.clone,
    )
    assert pruned.kept == {"0": [4, 5, 6, 7], "2": list(range(9))}
    torch.testing.assert_close(pruned.model(images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([0, 1, 0], r"groups must be integers or names \(N,\), one per image; got int64 \(3,\)"),
        ([0.0] * 12, r"got float32 \(12,\)"),
        ([7] * 12, "all images of class 0 are of one group, 7: none could judge a network that has not seen them"),
        ([0, 1, 2] * 4, "all images of class 0 are of one group, 0"),
        ([0, 1, 2] * 2 + [0, 4, 2] * 2, "all images of class 0 are of one group, 0: .* give images of two or more"),
    ],
)
def test_groups_that_cannot_be_used_are_refused(groups, message):
    images, labels = torch.randn(12, 3, 8, 8, dtype=torch.float64), torch.arange(12) % 3
    with pytest.raises(ValueError, match=message):
        lrp_core.prune(miniature_vgg(), images, labels, groups=torch.tensor(groups), progress=False)
