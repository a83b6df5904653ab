"""PyTorch's L-BFGS on a head and its cached features."""

import contextlib

import numpy as np
import torch


def torch_lbfgs(head, theta, z, y, check, device="cpu", block=None):
    """Minimize the cross-entropy of a head until `check` raises StopIteration, and return theta.

    Args:
        head: a plain head, or one with a gated branch beside it, whose gates are computed once.
        theta: where it starts, `(P,)`.
        z: features `(n, m)`.
        y: classes `(n,)`.
        check: called with the loss at every point.
        device: of PyTorch.
        block: samples of which the maps exist at a time; all by default.
    """
    parts = [_moved(part, device).clone().requires_grad_() for part in head.split(theta)]
    rows = [slice(begin, begin + (block or len(z))) for begin in range(0, len(z), block or len(z))]
    logits, labels = _logits(head, z, rows, device), torch.as_tensor(y, device=device)
    solver = torch.optim.LBFGS(
        parts, max_iter=20, history_size=20, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0
    )

    def closure():
        solver.zero_grad()
        total = 0.0
        for some in rows:
            loss = torch.nn.functional.cross_entropy(logits(parts, some), labels[some], reduction="sum") / len(z)
            loss.backward()
            total = total + loss.detach()
        check(float(total))
        return total

    with contextlib.suppress(StopIteration):
        while True:
            solver.step(closure)
    return np.concatenate([part.detach().cpu().numpy().ravel() for part in parts])


def _logits(head, z, rows, device):
    """Return the head as a function of its parameters and of a slice of the samples."""
    inputs, mixture = _moved(z, device), getattr(head, "parts", [None])[0]
    if mixture is None:
        return lambda theta, some: inputs[some] @ theta[0] + theta[1]
    u, gates = (
        torch.cat([_moved(of(z[some]), device) for some in rows]) for of in (mixture.standardize, mixture.gates)
    )

    def logits(theta, some):
        maps = (u[some] @ theta[0].flatten(1)).unflatten(1, theta[1].shape) + theta[1]
        return (gates[some, None] @ maps)[:, 0] + inputs[some] @ theta[2] + theta[3]

    return logits


def _moved(array, device):
    return torch.as_tensor(array, dtype=torch.float32, device=device)
