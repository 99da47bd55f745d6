"""Random draws for images, each from its own generator, which is seeded by the image's pixels and a seed.

So the draws for an image depend neither on the order of the images nor on the image's site.
"""

import zlib

import torch


def generators(images: torch.Tensor, seed: int) -> list[torch.Generator]:
    """Return a generator for each image of (N, C, H, W)."""
    starts = (zlib.crc32(image.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()) for image in images)
    return [torch.Generator().manual_seed(start + (seed << 32)) for start in starts]
