"""Stage 1: a deterministic step of Burgers' equation, trained by the relative L2 error of its rollouts.

Shapes: B batch, N points.
"""

import torch
from torch import Tensor

from ups.data.batches import Batch
from ups.models.conditioning import CONDITIONS
from ups.models.conservative_step import ConservativeStep
from ups.models.step import OpenedStep, Step
from ups.stages.stage import Stage, relative_l2


class Operator(Stage):
    """Arguments: see conf/stage/operator.yaml. `model` builds a network from its channels and conditions."""

    steadied_by = "operator.input_noise=[1e-4,1e-2]"

    def __init__(
        self, model, requires: None, unroll: int, round_trip: float, input_noise: list[float], error_floor: float
    ):  # fmt: skip
        if requires is not None:
            raise ValueError("requires: an operator requires no stage, leave it null")
        built = model(in_channels=1, out_channels=1, condition=CONDITIONS)
        self.network: Step = built if isinstance(built, Step) else ConservativeStep(built)
        self.frames_per_sample = unroll + 1
        self.round_trip, self.input_noise, self.error_floor = round_trip, input_noise, error_floor

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The relative L2 error of a rollout's steps, and of the cell averages after the way to points and back."""
        u, truth = batch.u[:, 0], batch.u[:, 1:]
        u = u + self._input_noise(batch)
        errors, drifts = [], []
        for k in range(truth.shape[1]):
            opened = self.opened(u, batch.nu, batch.time_step)
            u = opened.to_field(opened.after)
            errors.append(relative_l2(u, truth[:, k], self.error_floor))
            # The same in each step of a stationary shock, which a rollout adds up.
            drifts.append(relative_l2(opened.to_state(u), opened.after, self.error_floor))
        error, drift = torch.stack(errors).mean(0), torch.stack(drifts).mean(0)
        loss = (weights_by_nu(error, batch) * (error + self.round_trip * drift)).mean()
        return loss, {"one_step_loss": errors[0].mean(), "round_trip_loss": drift.mean()}

    def _input_noise(self, batch: Batch) -> Tensor | float:
        """White, of a standard deviation log-uniform in the given range of the field's: rollouts meet their errors."""
        low, high = self.input_noise
        if high == 0:
            return 0.0
        u = batch.u[:, 0]
        level = low * (high / low) ** batch.uniform(1)
        return batch.normal(u) * level * u.std(-1, keepdim=True)

    def opened(self, u: Tensor, nu: Tensor, time_step: float) -> OpenedStep:
        return self.network.opened(u, nu, time_step)

    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator | None = None) -> Tensor:
        return self.network(u, nu, time_step)


def weights_by_nu(error: Tensor, batch: Batch) -> Tensor:
    """(B,) -> (B,): nu^-p, where the batch's errors go as nu^p. Of one nu all are 1.

    A small viscosity's sharp shocks would drown what is to be learned of a large one, whose errors are a hundred times
    smaller.
    """
    x, y = (batch.nu / 0.01).log(), error.detach().log()
    x_mean = batch.mean(x)
    variance = batch.mean(x.square()) - x_mean.square()
    power = (batch.mean(x * y) - x_mean * batch.mean(y)) / variance.clamp(min=1e-3)
    return (-power * (x - x_mean)).exp()
