"""Stage 3: a student of the diffusion that needs one or two evaluations of its flow and is trained on the CRPS of its
own rollouts.

The student maps any point of the teacher's path to the path's end (Song et al., arXiv 2303.01469): one part of its loss
compares its answers at two neighbouring points of one path. At the path's end its answer is the point itself, by
construction: so a student that answers zero everywhere does not minimise the loss, and a teacher's spread is kept.

The teacher knows one step from a true field alone. A rollout starts from a member's own, and what is calibrated for one
step is not for many. One evaluation a step makes rollouts cheap enough to train through: the other part of the loss is
the CRPS of the members' own rollouts, of which a spread that is too small or too large costs more than the right one.
The operator learns with it, in a copy: the small biases that it was left with away from shocks add up over a rollout.

Shapes: B batch, N points, M members.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ups.data.batches import Batch
from ups.evaluation.metrics import fair_crps
from ups.models.corrector import Corrector, Velocity, size_of
from ups.models.step import Step
from ups.stages.diffusion_residual import DiffusionResidual
from ups.stages.sampled_correction import TAIL, SampledCorrection, full_precision

SMALLEST_SCALE = 0.003  # of a correction's unit: what is smaller, some 1e-5 of the field, need not be known any better


class ConsistencyDistill(SampledCorrection):
    """Arguments: see conf/stage/consistency_distill.yaml. `requires` is the teacher, which is never changed."""

    def __init__(
        self, requires: DiffusionResidual, intervals: int, unroll: int, evaluations_per_step: int, members: int,
        operator_relative_lr: float,
    ):  # fmt: skip
        check_evaluations(evaluations_per_step)
        if members < 2:
            raise ValueError(f"members={members}: the spread of a student is learned from 2 or more")
        if not isinstance(requires, DiffusionResidual):
            raise ValueError("requires: a consistency_distill requires a diffusion_residual")
        self.teacher = requires
        self.intervals, self.evaluations_per_step, self.members = intervals, evaluations_per_step, members
        self.frames_per_sample = unroll + 1
        self.relative_lr = {"operator": operator_relative_lr}
        operator, corrector = copy.deepcopy(requires.networks())
        self.network = nn.ModuleDict({"operator": operator, "corrector": corrector}).requires_grad_(True).train()

    def with_evaluations(self, count: int) -> SampledCorrection:
        check_evaluations(count)
        return super().with_evaluations(count)

    def networks(self) -> tuple[Step, Corrector]:
        return self.network["operator"], self.network["corrector"]

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        # The rollout first: autocast keeps its first cast of a weight, and one that was made in the other's `no_grad`
        # would have no gradient (on older PyTorch).
        terms = {"rollout_loss": self._rollout_crps(batch), "consistency_loss": self._consistency(batch)}
        return sum(terms.values()), terms

    def _consistency(self, batch: Batch) -> Tensor:
        """Of the first step, as the student's own operator, mean and scale leave it; they start as the teacher's."""
        u, truth = batch.u[:, 0], batch.u[:, 1]
        operator, corrector = self.networks()
        with torch.no_grad():
            with full_precision(u):
                opened = operator.opened(u, batch.nu, batch.time_step)
                residual = opened.to_state(truth) - opened.after
            mean, scale = corrector.moments(opened, batch.nu, batch.time_step)
        z1 = ((residual - mean) / scale).clamp(-TAIL, TAIL)
        context = (opened, scale, batch.nu, batch.time_step)

        interval = (batch.uniform(1) * self.intervals).long()
        t, later = interval / self.intervals, (interval + 1) / self.intervals
        z = (1 - t) * batch.normal(z1) + t * z1
        own, teacher = (network.velocity_at(*context) for network in (corrector, self.teacher.network))
        with torch.no_grad():
            target = end_of_path(own, midpoint_step(teacher, z, t, later), later)
        return (end_of_path(own, z, t) - target).square().mean()

    def _rollout_crps(self, batch: Batch) -> Tensor:
        """Of M members that start from the same field; the gradient goes through all of their steps.

        In two units, summed: the correction's own, which is the score in the field, and the local scale, which is far
        smaller away from shocks and makes all points count.
        """
        first, truth = batch.u[:, 0], batch.u[:, 1:]
        u, nu = first.repeat(self.members, 1), batch.nu.repeat(self.members)  # (M B, N), (M B,)
        draw = lambda: torch.cat([batch.normal(first) for _ in range(self.members)])
        unit = size_of(first)
        scores = []
        for k in range(truth.shape[1]):
            u, scale = self.sampled_step(u, nu, batch.time_step, draw)
            members, scales = (values.unflatten(0, (self.members, -1)) for values in (u, scale.detach()))  # (M, B, N)
            with full_precision(u):
                crps = fair_crps(members, truth[:, k])
            scores.append(crps / unit + crps / (scales.mean(0) + SMALLEST_SCALE * unit))
        return torch.stack(scores).mean()

    def sample(self, velocity: Velocity, draw: Callable[[], Tensor]) -> Tensor:
        """Straight from noise to the path's end; a second evaluation starts again from half way."""
        noise = draw()
        full = lambda t: noise.new_full((len(noise), 1), t)
        z = end_of_path(velocity, noise, full(0.0))
        if self.evaluations_per_step == 2:
            z = end_of_path(velocity, (z + draw()) / 2, full(0.5))
        return z


def check_evaluations(count: int) -> None:
    if count not in (1, 2):
        raise ValueError(f"evaluations_per_step={count}: a consistency student takes 1 or 2")


def end_of_path(velocity: Velocity, z: Tensor, t: Tensor) -> Tensor:
    """A student's answer, (B, N); at t = 1 it is z itself."""
    return z + (1 - t) * velocity(z, t)


def midpoint_step(velocity: Velocity, z: Tensor, t: Tensor, later: Tensor) -> Tensor:
    """dz/dt = velocity(z, t) from one time of the flow to a later one, second order. t, later: (B, 1)."""
    middle = (t + later) / 2
    half_way = z + (middle - t) * velocity(z, t)
    return z + (later - t) * velocity(half_way, middle)
