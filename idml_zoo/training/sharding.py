"""Splits weights, gradients and optimiser states over the processes (PyTorch's FSDP2), proxies too.

accelerate's own way to FSDP2 takes one module and no CPU. Here are two modules, and a test runs on a CPU's processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from idml_zoo.distributed import rank_and_count
from idml_zoo.models.model import IDMLModel
from idml_zoo.types import Embedding


def shard(model: IDMLModel, criterion: nn.Module, device: torch.device) -> None:
    """Shards both in place: the backbone block by block, and the rest of the network, and the proxies, each as one.

    All processes must call, with the same weights, before the optimiser is made.
    """
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (rank_and_count()[1],))
    _register_embedding()
    for part in model.backbone.children():
        if isinstance(part, nn.Sequential | nn.ModuleList):
            for block in part:
                if next(block.parameters(), None) is not None:
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if next(criterion.parameters(), None) is not None:
        fully_shard(criterion, mesh=mesh)


@cache
def _register_embedding() -> None:
    """Lets FSDP look for tensors in the data class that the network returns."""
    torch.export.register_dataclass(Embedding)


@contextmanager
def unsharded(module: Any) -> Iterator[None]:
    """Gathers the module's own parameters, for use outside its forward pass; all processes must enter."""
    sharded = hasattr(module, "unshard")
    if sharded:
        module.unshard()
    try:
        yield
    finally:
        if sharded:
            module.reshard()


def full_state(state: Any) -> Any:
    """Returns a state with every sharded tensor gathered; all processes must call."""
    return tree_map(lambda v: v.full_tensor() if isinstance(v, DTensor) else v, state)


def copy_unsharded(source: nn.Module, target: nn.Module) -> None:
    """Copies parameters and buffers of a sharded module into one that is not; all processes must call."""
    into = target.state_dict()
    for name, value in source.state_dict().items():
        into[name].copy_(full_state(value))


def shard_state(state: dict[str, Any], part: Any) -> dict[str, Any]:
    """Returns a full state as ``part``, a module or an optimiser, loads it: sharded where its tensors are."""
    if isinstance(part, nn.Module):
        now = part.state_dict()
        return {k: _like(v, now[k]) for k, v in state.items()}
    if not hasattr(part, "param_groups"):
        return state
    parameters = [p for group in part.param_groups for p in group["params"]]
    moments = {i: {k: _like(v, parameters[i]) for k, v in values.items()} for i, values in state["state"].items()}
    return {**state, "state": moments}


def _like(value: Any, target: Any) -> Any:
    if not isinstance(target, DTensor) or not isinstance(value, Tensor) or value.shape != target.shape:
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
