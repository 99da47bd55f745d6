"""Smaller images through the one call: which size is chosen, what the network then is, that no fold sees its own."""

import copy
from functools import partial

import onnxruntime
import pytest
import torch
from networks import settle
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize

import lrp_core
from lrp_core.control import image_size
from lrp_core.control.one_standard_error import first_as_good
from lrp_core.graph.resizing import resizing
from lrp_core.metrics.accuracy import predict
from lrp_core.metrics.cost import multiply_adds
from lrp_core.repair.out_of_fold import draw_folds
from lrp_core.repair.ridge_head import fit_heads, read_by
from lrp_core.study.show.export import write_exported

METHOD = "smaller-images+joint-cost+reconstruction"
WITH_HEAD = "smaller-images+intermediate-features+joint-cost+reconstruction"
SIDE = 16
SMALLEST = (11, 11)  # half of the pixels


class Residual(nn.Module):
    """Reads images of any size."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.thin, self.last = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 10, 3, stride=2, padding=1)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(x + self.thin(F.relu(self.wide(x))))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


def colours(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a colour for each of three classes: fewer pixels show it as well."""
    labels = torch.arange(n) % 3
    noise = 0.3 * torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return noise + torch.eye(3)[labels][:, :, None, None], labels


def stripes(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    """Lines one pixel wide, upright, level or none: smaller images show grey."""
    labels, line = torch.arange(n) % 3, (torch.arange(SIDE) % 2).float()
    kinds = torch.stack([line.expand(SIDE, SIDE), line[:, None].expand(SIDE, SIDE), torch.full((SIDE, SIDE), 0.5)])
    noise = 0.05 * torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return noise + kinds[labels][:, None], labels


def trained(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Return a network that was trained on these images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Residual()
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
    model.eval().requires_grad_(False)
    assert (predict(model, images).argmax(dim=1) == labels).all()
    return model


def folds() -> torch.Tensor:
    """As prune() draws them with seed 0, where every image is a group."""
    return draw_folds(torch.arange(60) % 3, torch.arange(60).numpy(), 5, 0)


@pytest.fixture(scope="module")
def by_colour() -> nn.Module:
    return trained(*colours())


@pytest.fixture(scope="module")
def frozen() -> nn.Module:
    """A head that was fitted to images of the full size, on a backbone that was not."""
    model, (images, labels) = settle(Residual()), colours()
    heads = fit_heads(read_by(model, "head", images), labels, folds(), bias=True)
    model.head.weight.copy_(heads.weight)
    model.head.bias.copy_(heads.bias)
    return model


def prune(*args, **kwargs) -> lrp_core.Pruned:
    return lrp_core.prune(*args, **{"method": METHOD, "multiply_adds": 0.25, "folds": 0, "progress": False} | kwargs)


def test_resizing_is_that_of_torchvision(by_colour):
    images, _ = colours(6)
    model = resizing(by_colour, (11, 7))
    assert torch.allclose(model(images), by_colour(resize(images, [11, 7], antialias=True)), atol=1e-6)
    assert torch.equal(resizing(by_colour, (SIDE, SIDE))(images), by_colour(images))


def test_the_smallest_that_is_as_good_is_taken():
    assert first_as_good({"s": (0.70, 0.04), "m": (0.77, 0.04), "l": (0.80, 0.04)}) == "m"
    assert first_as_good({"s": (0.76, 0.01), "l": (0.80, 0.04)}) == "s"
    assert first_as_good({"s": (0.70, 0.2), "l": (0.80, 0.0)}) == "l"


def test_images_become_smaller_where_that_costs_nothing(by_colour):
    images, labels = colours()
    pruned = prune(by_colour, images, labels, head_fitted=False)
    assert pruned.image_size == SMALLEST
    assert "resized to 11 x 11 px" in str(pruned)
    small = F.interpolate(images, SMALLEST, mode="bilinear", antialias=True)
    share = multiply_adds(by_colour, small[:1]) / multiply_adds(by_colour, images[:1])
    assert [row.multiply_adds for row in pruned.path[:2]] == pytest.approx([1, share])
    assert share < 0.55
    assert torch.equal(pruned.model(images), pruned.model.network(small))
    # The rest is pruning on smaller images, with budgets that count from the whole network.
    by_weight = prune(by_colour, images, labels, head_fitted=False, method="smaller-images+weight")
    same = prune(by_colour, small, labels, head_fitted=False, method="weight", multiply_adds=0.25 / share)
    assert {name.removeprefix("network."): kept for name, kept in by_weight.kept.items()} == same.kept
    assert torch.equal(by_weight.model(images), same.model(small))
    assert by_weight.after.multiply_adds == same.after.multiply_adds <= 0.25 * by_weight.before.multiply_adds
    assert isinstance(pruned.model.network, Residual)


def test_they_keep_their_size_where_it_is_needed():
    images, labels = stripes()
    model = trained(images, labels)
    pruned = prune(model, images, labels, head_fitted=False)
    plain = prune(model, images, labels, head_fitted=False, method="joint-cost+reconstruction")
    assert pruned.image_size is None
    assert pruned.kept == plain.kept
    assert torch.equal(pruned.model(images), plain.model(images))
    assert "resized" not in str(pruned)


def test_a_head_that_was_fitted_to_the_images_is_fitted_to_the_smaller_ones(frozen):
    images, labels = colours()
    judge = partial(image_size.refit_last_layer, frozen, labels=labels, fold=folds())
    size, model = image_size.smaller_images(frozen, images, judge)
    assert size == SMALLEST
    x = read_by(frozen, "head", F.interpolate(images, size, mode="bilinear", antialias=True))
    expected = fit_heads(x, labels, folds(), bias=True)
    assert torch.allclose(model.head.weight, expected.weight, atol=1e-5)
    assert not torch.allclose(model.head.weight, frozen.head.weight, atol=1e-3)
    # In the call it is scaled to logits, too, whose softmax gives probabilities.
    pruned = prune(frozen, images, labels, head_fitted=True, multiply_adds=0.5)
    assert torch.allclose(pruned._run.down.model(0).network.head.weight, expected.weight, atol=1e-5)
    scale = pruned.model.network.head.weight.norm() / pruned._run.down.model(0).network.head.weight.norm()
    assert scale > 2
    assert "fitted anew to the smaller images" in str(pruned)
    left = prune(frozen, images, labels, head_fitted=False, multiply_adds=0.5)
    assert left.image_size == SMALLEST
    assert torch.equal(left._run.down.model(0).network.head.weight, frozen.head.weight)
    assert "fitted anew" not in str(left)


def test_sizes_are_chosen_inside_the_folds(by_colour, monkeypatch):
    seen, (images, labels) = [], colours()

    def watched(model, some, *others):
        seen.append({int((images == image).flatten(1).all(dim=1).nonzero()) for image in some})
        return image_size.smaller_images(model, some, *others)

    monkeypatch.setattr("lrp_core.control.preparation.smaller_images", watched)
    pruned = prune(by_colour, images, labels, head_fitted=False, folds=4)
    *inside, every = seen
    assert every == set(range(60))
    assert [len(some) for some in inside] == [45] * 4
    assert set.union(*(every - some for some in inside)) == every
    assert pruned.estimate.images == 60


@pytest.mark.parametrize("ends", [nn.Identity, lambda: nn.Softmax(dim=1)], ids=["logits", "softmax"])
@pytest.mark.parametrize("method", [METHOD, "smaller-images+early-exit+px-static+reconstruction"])
def test_what_is_saved_is_what_is_loaded(by_colour, tmp_path, method, ends):
    """The network inside reads images of the smaller size, whatever was done to its end."""
    images, labels = colours()
    pruned = prune(nn.Sequential(by_colour, ends()).eval(), images, labels, head_fitted=False, method=method)
    assert pruned.image_size == SMALLEST
    assert (pruned.truncation is None) == (method == METHOD)
    pruned.save(tmp_path / "small.safetensors")
    loaded = lrp_core.load_pruned(tmp_path / "small.safetensors", lambda: nn.Sequential(Residual(), ends()))
    assert torch.equal(loaded(images), pruned.model(images))
    small = F.interpolate(images, SMALLEST, mode="bilinear", antialias=True)
    assert torch.equal(pruned.model.network(small), pruned.model(images))


class TwoPaths(nn.Module):
    """Reads every second side, from 32 px: 22 and 26, but not 29."""

    def __init__(self, every: int = 2):
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=every, padding=1)
        self.up, self.head = nn.Upsample(scale_factor=every), nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.head(F.relu(torch.cat([x, self.up(self.down(x))], dim=1)).mean((2, 3)))


def test_sizes_that_cannot_be_read_are_left_out():
    images, labels = torch.randn(12, 3, 32, 32), torch.arange(12) % 3
    assert image_size.smaller_sizes(settle(TwoPaths()), images[:1])[0] == [(22, 22), (26, 26)]
    assert prune(settle(TwoPaths()), images, labels, head_fitted=False).image_size in {None, (22, 22), (26, 26)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_keep_their_precision(by_colour, dtype):
    images, labels = colours()
    other = copy.deepcopy(by_colour).to(dtype)
    pruned = prune(other, images.to(dtype), labels, head_fitted=False, method="smaller-images+weight")
    assert pruned.image_size == SMALLEST
    assert pruned.model(images.to(dtype)).dtype == dtype


def test_other_runtimes_resize_alike(by_colour, tmp_path):
    images, labels = colours()
    pruned = prune(by_colour, images, labels, head_fitted=False).model
    write_exported(pruned, images[:2], tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": images.numpy()})
    exported = torch.export.load(tmp_path / "network.pt2").module()(images)
    for got in (torch.from_numpy(logits), exported):
        assert (got - pruned(images)).abs().max() <= 1e-5 * pruned(images).abs().max()


def test_a_softmax_stays_and_ignored_layers_keep_their_filters(by_colour):
    images, labels = colours()
    with_softmax = nn.Sequential(by_colour, nn.Softmax(dim=1)).eval()
    settings = {"head_fitted": False, "multiply_adds": 0.3}
    logits = prune(by_colour, images, labels, ignored_layers=["wide"], **settings)
    probabilities = prune(with_softmax, images, labels, ignored_layers=[by_colour.wide], **settings)
    assert logits.image_size == probabilities.image_size == SMALLEST
    assert len(logits.kept["network.wide"]) == 12
    assert torch.allclose(probabilities.model(images), logits.model(images).softmax(dim=1), atol=1e-6)


def test_predictions_are_those_of_the_smaller_images(by_colour):
    """The first size of the path is the unpruned network on smaller images, judged by images without a part in it."""
    images, labels = colours()
    pruned = prune(by_colour, images, labels, head_fitted=False, folds=4)
    unpruned, first, *_ = pruned.path
    assert (first.filters, first.parameters) == (unpruned.filters, 1)
    assert first.estimate.accuracy == unpruned.estimate.accuracy  # both are right on all images
    whole, small = pruned._run.down.model(0), F.interpolate(images, SMALLEST, mode="bilinear", antialias=True)
    assert torch.allclose(whole(images), by_colour(small), atol=1e-4)


def by_default(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, **options) -> lrp_core.Pruned:
    return prune(model, images, labels, **{"method": None} | options)


@pytest.mark.parametrize("folds", [0, 4])
def test_the_default_makes_images_smaller_and_replaces_a_last_layer_that_was_fitted_to_them(by_colour, folds):
    images, labels = colours()
    named = prune(by_colour, images, labels, head_fitted=False, folds=folds)
    for told in (False, None):  # it is found out
        default = by_default(by_colour, images, labels, head_fitted=told, folds=folds)
        assert default.image_size == SMALLEST
        assert default.intermediate_features == ()
        assert torch.equal(default.model(images), named.model(images))
        assert default.estimate == named.estimate
    # A head that was fitted to noise knows only these images.
    noise, overfitted = torch.randn(60, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), settle(Residual())
    with_one = F.pad(read_by(overfitted, "head", noise).double(), (0, 1), value=1)
    solution = torch.linalg.lstsq(with_one, torch.eye(3).double()[labels]).solution
    overfitted.head.weight.copy_(solution[:-1].T)
    overfitted.head.bias.copy_(solution[-1])
    named = prune(overfitted, noise, labels, method=WITH_HEAD, head_fitted=True, folds=folds)
    assert named.image_size is not None
    assert named.intermediate_features
    for told in (True, 1, None):
        default = by_default(overfitted, noise, labels, head_fitted=told, folds=folds)
        assert default.intermediate_features == named.intermediate_features
        assert torch.equal(default.model(noise), named.model(noise))
        assert default.estimate == named.estimate


def test_images_become_no_smaller_than_a_budget_needs(by_colour):
    """13 and 14 px leave about 70 and 80 % of the multiply-adds."""
    images, labels = colours()
    for budget, size in ((0.9, (14, 14)), (0.75, (13, 13)), (0.6, SMALLEST), (0.1, SMALLEST)):
        pruned = by_default(by_colour, images, labels, head_fitted=False, multiply_adds=budget)
        assert pruned.image_size == size
        assert pruned.after.multiply_adds <= budget * pruned.before.multiply_adds
    assert (
        by_default(by_colour, images, labels, max_accuracy_drop=30, multiply_adds=None, folds=2).image_size == SMALLEST
    )


def test_with_a_new_head_a_budget_below_half_makes_images_smaller_than_half_of_the_pixels(frozen):
    """10 px leave 38 % of the multiply-adds, 9 px 31 %: less than the root of 1/8. So do 7 px with that of 1/20."""
    images, labels = colours()
    for budget, size in ((0.5, SMALLEST), (0.25, (9, 9)), (0.1, (7, 7))):
        for method in (WITH_HEAD, None):
            pruned = prune(frozen, images, labels, method=method, head_fitted=True, multiply_adds=budget)
            assert pruned.image_size == size
            assert pruned.after.multiply_adds <= budget * pruned.before.multiply_adds
        assert prune(frozen, images, labels, head_fitted=True, multiply_adds=budget).image_size == SMALLEST
    without = prune(frozen, images, labels, method=None, head_fitted=True, multiply_adds=None, folds=2)
    assert without.image_size == SMALLEST


def test_a_budget_finds_sizes_for_networks_that_read_few():
    images, labels = colours()
    model = settle(TwoPaths(every=8))  # of 16 px it reads 8, and none of half of the pixels and more
    assert by_default(model, images, labels, head_fitted=True).image_size == (8, 8)
    kept = by_default(model, images, labels, head_fitted=True, multiply_adds=0.5)
    assert (kept.image_size, kept.intermediate_features != ()) == (None, True)
    with pytest.raises(ValueError, match="none of 50% to 85% of these pixels"):
        prune(model, images, labels, head_fitted=True, method=WITH_HEAD, multiply_adds=0.5)


def test_of_sizes_within_a_budget_only_the_largest_is_tried():
    """Of 16 px the network keeps 4 x 4 positions, of 9 to 11 px 3 x 3, and of 8 px 2 x 2."""
    model = settle(nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    image, shares = torch.randn(1, 3, 16, 16), image_size.SHARES + image_size.FURTHER
    for enough in (0.0, 0.5):
        assert image_size.smaller_sizes(model, image, enough)[0] == [(11, 11)]
    assert image_size.smaller_sizes(model, image, 0.6, shares)[0] == [(11, 11)]
    assert image_size.smaller_sizes(model, image, 0.5, shares)[0] == [(8, 8), (9, 9), (10, 10), (11, 11)]
    assert image_size.smaller_sizes(settle(TwoPaths()), torch.randn(1, 3, 32, 32), 0.3, shares)[0] == [
        (16, 16),  # nor 19 and 17, which it cannot read
        (20, 20),
        (22, 22),
        (26, 26),
    ]


def test_groups_need_no_folds_of_their_own_for_it(by_colour):
    """Three patients, each with two of three classes: without one of two folds a class would have no image left."""
    images, labels = colours()
    patients = [((0, 1), (1, 2), (0, 2))[label][i // 3 % 2] for i, label in enumerate(labels.tolist())]
    pruned = by_default(by_colour, images, labels, head_fitted=False, groups=patients)
    assert pruned.image_size == SMALLEST
    kept = by_default(by_colour, images, labels, groups=patients)  # no fold can tell whether the head was fitted
    assert kept.image_size is None
    assert kept.intermediate_features == ()


KEEP = {
    "a budget of parameters": {"multiply_adds": None, "parameters": 0.5},
    "a budget of filters": {"multiply_adds": None, "pruning_ratio": 0.5},
    "a class without images": {},
    "several sites": {"all_reduce": lambda tensor: tensor},
    "a network that reads one size": {},
}


@pytest.mark.parametrize("case", KEEP)
def test_the_default_leaves_images_as_they_are_where_they_cannot_become_smaller(by_colour, case):
    images, labels = colours()
    some = labels > 0 if case == "a class without images" else labels >= 0
    model = settle(Flattening()) if "reads one size" in case else by_colour
    options = {"head_fitted": False} | KEEP[case]
    kept = by_default(model, images[some], labels[some], **options)
    same = prune(model, images[some], labels[some], method="joint-cost+reconstruction", **options)
    assert kept.image_size is None
    assert kept.kept == same.kept
    assert kept.notes == same.notes


def test_the_default_leaves_images_as_they_are_if_no_intermediate_features_help_the_last_layer(monkeypatch, frozen):
    images, labels = colours()
    monkeypatch.setattr("lrp_core.api.has_intermediate", lambda *_: False)
    kept = by_default(frozen, images, labels, head_fitted=True)
    same = prune(frozen, images, labels, head_fitted=True, method="joint-cost+reconstruction")
    assert (kept.image_size, kept.intermediate_features) == (None, ())
    assert torch.equal(kept.model(images), same.model(images))


class Flattening(nn.Module):
    """Reads images of one size."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6 * 12 * 12, 3)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(x)))).flatten(1))


BAD = {
    "a budget of parameters": ({"multiply_adds": None, "parameters": 0.5}, "ask for multiply_adds, .* of parameters"),
    "a budget of filters": (
        {"multiply_adds": None, "pruning_ratio": 0.5},
        "max_accuracy_drop instead of pruning_ratio",
    ),
    "a head of unknown origin": ({"head_fitted": None}, "say head_fitted=True, or head_fitted=False if other images"),
    "a class without images": ({}, "each of its 3 classes needs images"),
    "several sites": ({"all_reduce": lambda tensor: tensor}, "prune at one, or choose a method without smaller-images"),
    "a network that reads one size": ({}, r"of 16 x 16 px, and none of 50% to 85%.*without smaller-images"),
    "a network that resizes itself": ({}, r"it needs as many multiply-adds for them.*without smaller-images"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told(by_colour, case):
    changes, message = BAD[case]
    images, labels = colours()
    some = labels > 0 if case == "a class without images" else labels >= 0
    others = {"reads one size": settle(Flattening()), "resizes itself": resizing(by_colour, (14, 14))}
    model = next((model for part, model in others.items() if part in case), by_colour)
    with pytest.raises(ValueError, match=message):
        prune(model, images[some], labels[some], **{"head_fitted": False} | changes)
