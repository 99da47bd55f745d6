"""Removal of filters: the pruned network is a smaller network, not a masked one."""

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from lrp_core.graph.explicit import with_modules
from lrp_core.graph.layers import BATCH_NORMS, WEIGHTED, ChannelConv, ChannelPermutation, ChannelSlice
from lrp_core.pruning.dependency import Coupling, couple
from lrp_core.utils.devices import layout_of


def remove_filters(model: nn.Module, filters: Mapping[str, Iterable[int]], example_input: torch.Tensor) -> nn.Module:
    """Return a copy of the network without some filters and the filters that are coupled to them.

    All layers that read their channels shrink too: convolutions, normalisations, dense layers, slices.

    Args:
        model: made of supported layers; not changed.
        filters: maps the name of a convolution to the indices of its output channels to remove.
        example_input: one input (1, C, H, W); its size determines how many positions a flattened channel has.

    Raises:
        ValueError: an unknown layer, an index out of range, a filter that cannot be removed (its channel is the
            network's input or output), a layer that would lose its last filter, or an unsupported layer.
    """
    model = with_modules(model)
    coupling = couple(model, example_input)
    pruned = np.zeros(coupling.n_groups, dtype=bool)
    for name, indices in filters.items():
        if name not in coupling.filters:
            raise ValueError(f"{name!r} is no convolution of this network; it has: {', '.join(coupling.filters)}")
        groups = coupling.filters[name]
        for index in indices:
            if not 0 <= index < len(groups):
                raise ValueError(f"layer {name!r} has filters 0..{len(groups) - 1}, not {index}")
            if groups[index] < 0:
                raise ValueError(
                    f"filter {index} of {name!r} cannot be removed: its channel is the network's input or output"
                )
            pruned[groups[index]] = True
    for name, groups in coupling.filters.items():
        if (pruned[groups] & (groups >= 0)).all():
            raise ValueError(f"layer {name!r} would lose all of its {len(groups)} filters; leave at least one")
    # Tensors that are about to be sliced are shared with the copy until then, not copied whole.
    modules = [model.get_submodule(name) for name in coupling.channels]
    tensors = [getattr(module, name, None) for module in modules for name in _TENSORS]
    smaller = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors if tensor is not None})
    slice_channels(smaller, coupling, ~pruned)
    return smaller


_TENSORS = ("weight", "bias", "running_mean", "running_var")  # of the layers that shrink


def slice_channels(model: nn.Module, coupling: Coupling, kept_groups: np.ndarray) -> None:
    """Keep only these groups of an unpruned network, in place; ``kept_groups`` is boolean, (n_groups,)."""
    kept_groups = np.append(kept_groups, True)  # group -1
    for name, channels in coupling.channels.items():
        module = model.get_submodule(name)
        filters = torch.from_numpy(kept_groups[coupling.filters[name]]) if name in coupling.filters else None
        _keep(module, filters, torch.from_numpy(kept_groups[channels]))
    for name, (before, behind) in coupling.padded.items():
        module = model.get_submodule(name)
        module.before, module.behind = int(kept_groups[before].sum()), int(kept_groups[behind].sum())


def copy_weights(module: nn.Module, other: nn.Module, outputs: torch.Tensor | slice) -> None:
    """Copy the weights of these outputs of another layer."""
    replace_tensor(module, "weight", other.weight.detach()[outputs], other.weight)
    module.bias = None if other.bias is None else nn.Parameter(other.bias.detach()[outputs], requires_grad=False)


def _keep(module: nn.Module, outputs: torch.Tensor | None, inputs: torch.Tensor) -> None:
    """Keep these outputs (None: all) and inputs, boolean masks, of a layer, in place."""
    if isinstance(module, ChannelSlice):
        module.start, module.stop = (int(inputs[:bound].sum()) for bound in (module.start, module.stop))
    elif isinstance(module, ChannelPermutation):
        module.index = _renumbered(module.index[inputs.to(module.index.device)[module.index]], inputs)
    elif isinstance(module, ChannelConv):
        module.index = _renumbered(module.index[inputs.to(module.index.device)], inputs)
        for name in ("weight", "bias"):  # shared by all channels, but not with the unpruned network
            if getattr(module, name) is not None:
                replace_tensor(module, name, getattr(module, name).detach())
    elif isinstance(module, WEIGHTED):
        _keep_weights(module, outputs, inputs)
    else:
        for name in _TENSORS:
            tensor = getattr(module, name, None)
            if tensor is not None:
                by_channel = len(tensor) == len(inputs)  # not if one value is shared by all channels
                replace_tensor(module, name, tensor.detach()[inputs] if by_channel else tensor.detach())
        if isinstance(module, nn.GroupNorm):
            per_group = module.num_channels // module.num_groups
            module.num_channels = int(inputs.sum())
            module.num_groups = module.num_channels // per_group
        elif isinstance(module, BATCH_NORMS):
            module.num_features = int(inputs.sum())
            if module.num_batches_tracked is not None:
                module.num_batches_tracked = module.num_batches_tracked.clone()
        elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
            module.num_parameters = int(inputs.sum())


def _renumbered(index: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Renumber indices of channels among the kept ones, boolean (C,); -1 for channels that are not kept."""
    places = (kept.cumsum(0) - 1).masked_fill(~kept, -1)
    return torch.cat([places, places.new_tensor([-1])]).to(index.device)[index]


def _keep_weights(module: nn.Module, outputs: torch.Tensor | None, inputs: torch.Tensor) -> None:
    """Keep these outputs (None: all) and inputs of a convolution or dense layer."""
    if outputs is None:
        outputs = torch.ones(len(module.weight), dtype=torch.bool)
    weight = module.weight.detach()[outputs]
    if isinstance(module, nn.Linear):
        weight = weight[:, inputs]
        module.in_features = weight.shape[1]
    else:
        if module.groups == module.in_channels:  # depthwise, or one input channel
            module.groups = int(inputs.sum()) if module.groups > 1 else 1
        else:
            weight = weight[:, inputs.view(module.groups, -1)[0]]
        module.out_channels, module.in_channels = len(weight), int(inputs.sum())
    if module.bias is not None:
        replace_tensor(module, "bias", module.bias.detach()[outputs])
    replace_tensor(module, "weight", weight)


def replace_tensor(module: nn.Module, name: str, tensor: torch.Tensor, like: torch.Tensor | None = None) -> None:
    """Replace a parameter or buffer, with the gradient flag of the old one and the memory layout of it or of ``like``.

    The strides of a kernel with one input channel do not reveal its layout: then give the unpruned network's tensor.
    """
    old = getattr(module, name)
    like = old if like is None else like
    # A clone sets all strides, also of 1 x 1 kernels, as they will be when the tensor is loaded from a file.
    tensor = tensor.clone(memory_format=layout_of(like))
    is_parameter = isinstance(old, nn.Parameter)
    setattr(module, name, nn.Parameter(tensor, requires_grad=old.requires_grad) if is_parameter else tensor)
