"""Reconstruction without training: the channels that stay take over the part of those that are gone.

A layer reads channels of which some, K, stay and others, R, are gone. Over positions and scarce images, in the unpruned
network, the best linear stand-in for R is a ridge regression on K and a constant. With G the second moments of all
these, M = (G_KK + strength * mean(diag G) * I)^-1 G_KR. Then the layer's weights for K gain W_R M^T, tap by tap, and
its bias gains the constant's part. No label is read, nothing is trained, and one forward pass serves every pruning.

Ours. The nearest in the literature fits the weights of one layer after the other to sampled outputs (He et al., Channel
Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, sec. 3.1); here inputs stand in for inputs.
"""

import numpy as np
import torch
from torch import nn

from lrp_core.devices import device_of
from lrp_core.graph import INPUT, Layer, run, trace
from lrp_core.pruning import Coupling, replace_tensor

STRENGTH = 1e-3  # chosen on development seeds, that no result uses


class Reconstruction:
    """What the layers of an unpruned network read, as second moments, and the weights that these give a smaller one.

    Convolutions with groups, depthwise ones among them, stay as they are: no other channel can stand in for the one
    that a filter reads. A dense layer without a bias gets none.
    """

    def __init__(self, model: nn.Module, images: torch.Tensor, strength: float = STRENGTH, batch_size: int = 40):
        """Run the unpruned network over the scarce images.

        Args:
            model: made of supported layers; untouched, and expected not to change.
            images: (N, C, H, W), normalised.
            strength: of the ridge, relative to the mean second moment of all channels that the layer reads.
            batch_size: images at a time.
        """
        if strength <= 0:
            raise ValueError(f"the ridge needs a strength above 0, got {strength}")
        self._strength = strength
        layers, device = trace(model), device_of(model)
        self._originals = {
            layer.name: layer.module
            for layer in layers
            if isinstance(layer.module, nn.Linear) or (isinstance(layer.module, nn.Conv2d) and layer.module.groups == 1)
        }
        self._moments: dict[str, torch.Tensor] = {}
        self._last: dict[str, tuple[bytes, tuple[torch.Tensor, torch.Tensor | None]]] = {}
        channels = {}

        def visit(layer: Layer, live: dict[str, torch.Tensor]) -> None:
            a = live[layer.inputs[0]]
            if isinstance(layer.module, nn.Flatten):
                channels[layer.name] = a.shape[1]
            if layer.name in self._originals:
                # As (C, samples), where the positions of a map count as samples, before and after flattening.
                x = a.unflatten(1, (channels.get(layer.inputs[0], a.shape[1]), -1)) if a.dim() == 2 else a
                x = x.transpose(0, 1).flatten(1)
                x = torch.cat([x, torch.ones_like(x[:1])])
                self._moments[layer.name] = self._moments.get(layer.name, 0) + (x @ x.T).double()

        with torch.no_grad():
            for i in range(0, len(images), batch_size):
                run(layers, {INPUT: images[i : i + batch_size].to(device)}, visit)

    def apply(self, smaller: nn.Module, coupling: Coupling, stays: np.ndarray) -> None:
        """Give the layers of a smaller network weights and biases that make up for what is gone, in place.

        Args:
            smaller: the unpruned network without the groups that do not stay.
            coupling: of the unpruned network.
            stays: (n_groups,), boolean.
        """
        stays = np.append(stays, True)  # group -1
        for name, original in self._originals.items():
            inputs = stays[coupling.channels[name]]
            if inputs.all():
                continue
            filters = coupling.filters.get(name)
            outputs = np.ones(len(original.weight), dtype=bool) if filters is None else stays[filters]
            # Tries of a controller differ from one another in few layers: the last result is often asked for again.
            key = inputs.tobytes() + outputs.tobytes()
            if self._last.get(name, (b"",))[0] != key:
                self._last[name] = key, self._solve(name, original, inputs, outputs)
            weight, bias = self._last[name][1]
            module = smaller.get_submodule(name)
            replace_tensor(module, "weight", weight)
            if bias is not None:
                module.bias = nn.Parameter(bias, requires_grad=False)

    def _solve(
        self, name: str, original: nn.Module, inputs: np.ndarray, outputs: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight and bias of a layer that keeps these inputs and outputs, boolean masks."""
        moments = self._moments[name]
        n_channels = len(moments) - 1
        keeps = torch.from_numpy(inputs.reshape(n_channels, -1)[:, 0])
        kept, gone = keeps.nonzero()[:, 0], (~keeps).nonzero()[:, 0]
        has_constant = isinstance(original, nn.Conv2d) or original.bias is not None
        known = torch.cat([kept, torch.tensor([n_channels])]) if has_constant else kept
        g = moments[known][:, known]
        # Of all channels: those that stay may be dead on these images. Any number will do if all channels are.
        scale = moments.diagonal()[:-1].mean().item() or 1.0
        g.diagonal().add_(self._strength * scale)
        mix = torch.linalg.solve(g, moments[known][:, gone])
        full = original.weight.detach()[torch.from_numpy(outputs)]
        taps = full.unflatten(1, (n_channels, -1)).flatten(2)  # (C_out, C_in, taps)
        gain = torch.einsum("ort,kr->okt", taps[:, gone], mix.to(taps))
        weight = (taps[:, kept] + gain[:, : len(kept)]).reshape(len(full), -1, *full.shape[2:])
        if not has_constant:
            return weight, None
        bias = gain[:, -1].sum(dim=1)
        return weight, bias if original.bias is None else bias + original.bias.detach()[torch.from_numpy(outputs)]
