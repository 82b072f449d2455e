"""Stage 2: a diffusion model of the operator's one-step error, trained by flow matching.

Shapes: B batch, N points.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ups.data.batches import Batch
from ups.models.corrector import Corrector, Velocity
from ups.models.step import Step
from ups.stages.operator import Operator
from ups.stages.sampled_correction import TAIL, SampledCorrection, full_precision
from ups.stages.stage import Stage, relative_l2


class DiffusionResidual(SampledCorrection):
    """Arguments: see conf/stage/diffusion_residual.yaml. `requires` is the operator, `network` builds networks."""

    def __init__(self, network, requires: Stage, evaluations_per_step: int, members: int):
        if not isinstance(requires, Operator):
            raise ValueError("requires: a diffusion_residual requires an operator")
        self.operator = requires
        self.evaluations_per_step, self.members = evaluations_per_step, members
        self.network = Corrector(network)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of three: the mean's error relative to the operator's, the scale's likelihood (Laplace's, since the
        tails are heavy), the velocity's error."""
        u, truth = batch.u.unbind(1)
        with torch.no_grad(), full_precision(u):
            opened = self.operator.opened(u, batch.nu, batch.time_step)
            truth = opened.to_state(truth)
        mean, scale = self.network.moments(opened, batch.nu, batch.time_step)
        mean_loss = relative_l2(opened.after + mean, truth).mean() / batch.mean(relative_l2(opened.after, truth))

        left = truth - opened.after - mean.detach()
        left_size = batch.mean(left.square()).add(1e-12).sqrt()
        scale_loss = (scale.log() + math.sqrt(2) * left.abs() / scale).mean() - left_size.log()

        scale = scale.detach()
        z1, noise, t = (left / scale).clamp(-TAIL, TAIL), batch.normal(left), batch.uniform(1)
        velocity = self.network.velocity((1 - t) * noise + t * z1, t, opened, scale, batch.nu, batch.time_step)
        velocity_loss = (velocity - (z1 - noise)).square().mean()
        terms = {"mean_loss": mean_loss, "scale_loss": scale_loss, "velocity_loss": velocity_loss}
        return mean_loss + scale_loss + velocity_loss, terms

    def networks(self) -> tuple[Step, Corrector]:
        return self.operator.network, self.network

    def sample(self, velocity: Velocity, draw: Callable[[], Tensor]) -> Tensor:
        """The flow from t = 0 to 1 -> z1 (B, N), by the second order method of Adams and Bashforth.

        One evaluation a step of t. The first answers the mean less the noise: one evaluation gives the mean itself.
        """
        z, before = draw(), None
        for k in range(self.evaluations_per_step):
            now = velocity(z, z.new_full((len(z), 1), k / self.evaluations_per_step))
            z = z + (now if before is None else (3 * now - before) / 2) / self.evaluations_per_step
            before = now
        return z
