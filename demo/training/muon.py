"""Muon in float32: torch.optim.Muon iterates in bfloat16, which a CPU without such instructions runs 50 times slower.

Momentum, then the nearest orthogonal matrix by five Newton-Schulz steps (https://kellerjordan.github.io/posts/muon),
scaled to the update size of AdamW (https://arxiv.org/abs/2502.16982). Matrices of one shape are iterated together,
shared out among the workers of the default process group where there is one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """The matrices [count, rows, columns] with all singular values near one."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if tall else x


def _shared_out(matrices: Tensor) -> Tensor:
    if not dist.is_initialized():
        return orthogonalized(matrices)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    updates = torch.zeros_like(matrices)
    if len(matrices[mine]):
        updates[mine] = orthogonalized(matrices[mine])
    dist.all_reduce(updates)
    return updates


class Muon(torch.optim.Optimizer):
    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for matrix in matrices:
            by_shape[matrix.shape].append(matrix)
        groups = [{"params": params} for params in by_shape.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("Muon takes the gradients as they are: call step() without a closure.")
        for group in self.param_groups:
            params, momentum = group["params"], group["momentum"]
            gradients = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(gradients)
            state["momentum"].lerp_(gradients, 1 - momentum)
            updates = _shared_out(gradients.lerp(state["momentum"], momentum))
            size = group["lr"] * 0.2 * max(params[0].shape) ** 0.5
            for p, update in zip(params, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=size)
