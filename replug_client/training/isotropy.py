"""SIGReg: keeps vectors from collapsing into a few directions.

Balestriero and LeCun 2025, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics" (arXiv
2511.08544), section 4: embeddings should follow an isotropic Gaussian. Seen along random directions
("sketched"), each is then a standard normal; how far it is from one is measured by the test of Epps and Pulley
(1983), which compares characteristic functions:

    T(u) = n * integral |phi_n(t) - exp(-t^2/2)|^2 exp(-t^2/2) dt,    phi_n(t) = mean_j exp(i t u.x_j)

The term is the mean of T(u) / n over the directions u. Vectors of a retriever are compared by their directions,
so they are first scaled to a mean square length of D: vectors of length 1 that point everywhere evenly are then as
good as standard normal along any direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_DIRECTIONS = 256
_KNOTS, _LAST_KNOT = 17, 3.0


def sigreg(vectors: Tensor, directions: int = _DIRECTIONS) -> Tensor:
    """How far vectors are from isotropic: a scalar from 0, with gradient.

    The directions are drawn anew at each call, from torch's generator of the vectors' device. A handful of
    vectors looks far from isotropic whatever they are (about 1 / n more): take batches of 32 and more.

    Args:
        vectors: ``(n, D)``.
        directions: How many are looked along.

    Raises:
        ValueError: fewer than two vectors.
    """
    if vectors.ndim != 2 or len(vectors) < 2:
        raise ValueError(
            f"vectors of shape {tuple(vectors.shape)}; expected (n, D) with at least two of them"
        )
    values = vectors.float()
    width = values.shape[1]
    # The scale is no part of the aim: without its gradient, lengths of unnormalised vectors are left alone.
    length = values.detach().square().sum(dim=-1).mean().sqrt().clamp(min=1e-12)
    seen = torch.randn(width, directions, device=values.device)
    seen = seen / seen.norm(dim=0)
    return epps_pulley(values @ seen * (math.sqrt(width) / length)).mean()


def epps_pulley(samples: Tensor) -> Tensor:
    """T / n of the Epps-Pulley test of each column against a standard normal.

    The integral is taken by the trapezoidal rule from 0 to 3 and doubled: the integrand is even, and beyond that
    its weight is below 0.012.

    Args:
        samples: ``(n, m)``: m samples of n numbers.

    Returns:
        ``(m,)``.
    """
    knots = torch.linspace(0.0, _LAST_KNOT, _KNOTS, device=samples.device, dtype=samples.dtype)
    normal = (-knots.square() / 2).exp()
    angles = samples.unsqueeze(-1) * knots
    apart = (angles.cos().mean(dim=0) - normal).square() + angles.sin().mean(dim=0).square()
    return 2 * torch.trapezoid(apart * normal, knots, dim=-1)
