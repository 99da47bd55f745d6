"""Choose the residual block to skip next by CKA: the one without which the features stay most similar.

This is the published alternative to :mod:`lrp_core.control.block_ranking`. It takes one pass for each block, and gained
nothing in measurements before 0.4.0 (docs/results.md, its last section).
"""

import torch
from torch import nn

from lrp_core.graph.blocks import without_blocks
from lrp_core.repair.ridge_head import pooled_features


def cka(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the similarity of two representations of the same images, within 0..1: linear centered kernel alignment.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019, sec. 3.

    Args:
        x: (N, C).
        y: (N, D).

    Returns:
        The similarity; 0 if one representation is the same for all images.
    """
    x, y = (part.double() - part.double().mean(dim=0) for part in (x, y))
    x, y = x @ x.T, y @ y.T  # (N, N); there are fewer images than features
    scale = x.norm() * y.norm()
    return ((x * y).sum() / scale).item() if scale else 0.0


def dissimilarities(backbone: nn.Module, blocks: dict[str, tuple[str, ...]], images: torch.Tensor) -> dict[str, float]:
    """Return, by block, how much the backbone's pooled features change without it: 1 minus their :func:`cka`.

    Source: Pons et al., Effective Layer Pruning Through Similarity Metric Perspective, 2024 (arXiv 2405.17081), who
    remove layers in this order.

    Args:
        backbone: images to feature maps, made of supported layers.
        blocks: of the backbone (:func:`lrp_core.graph.blocks.identity_blocks`).
        images: (N, C, H, W), normalised.
    """
    features = pooled_features(backbone, images)
    return {block: 1 - cka(features, pooled_features(without_blocks(backbone, [block]), images)) for block in blocks}
