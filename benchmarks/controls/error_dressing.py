"""A probabilistic control that needs no training: a deterministic prediction, dressed with the errors that its model
made elsewhere (Roulston and Smith, Tellus A 55, 2003).

A member is the prediction plus, at every point on its own, a validation error of the same lead time from a place of
about the same slope: errors are large at shocks and small away from them. So it knows where and how much the model
errs on average, and nothing else; its members are no fields that the equation could give.

Shapes: M members, S and V trajectories, T frames, N points.
"""

import torch
from torch import Tensor

NEIGHBOURS = 512  # places in the validation set, the nearest in slope, that an error is drawn from


def dressed(prediction: Tensor, past: Tensor, past_truth: Tensor, members: int, generator: torch.Generator) -> Tensor:
    """prediction (S, T, N); past, past_truth (V, T, N): rollouts of the same model and their truth -> (M, S, T, N)."""
    frames = []
    for now, before, truth in zip(prediction.unbind(1), past.unbind(1), past_truth.unbind(1), strict=True):
        slopes, order = steepness(before).flatten().sort()
        errors = (truth - before).flatten()[order]
        place = torch.searchsorted(slopes, steepness(now)) - NEIGHBOURS // 2
        first = place.clamp(0, len(errors) - NEIGHBOURS)  # (S, N)
        drawn = first + torch.randint(NEIGHBOURS, (members, *first.shape), generator=generator)
        frames.append(now + errors[drawn])
    return torch.stack(frames, 2)


def steepness(u: Tensor) -> Tensor:
    """(..., N) -> (..., N): the larger of the differences to the two neighbours."""
    right = (u.roll(-1, -1) - u).abs()
    return torch.maximum(right, right.roll(1, -1))
