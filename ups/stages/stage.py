"""The interface of a stage: a network, a loss, an evaluation. It knows no loop, optimizer, logger or file.

Shapes: B batch, K steps, N points.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ups.data.batches import Batch
from ups.data.trajectories import Trajectories
from ups.evaluation.metrics import ensemble_metrics, rollout_nrmse
from ups.evaluation.rollout import ensemble, one_step


class Stage(ABC):
    """`network` is all that is trained and saved; a prerequisite is another stage, frozen, with its best weights."""

    network: nn.Module
    relative_lr: Mapping[str, float] = {}  # of submodules of the network, as a fraction of optimizer.lr; else 1
    frames_per_sample: int = 2  # consecutive frames that a training sample holds
    stochastic: bool = False  # its step draws noise, so it has members
    members: int = 1  # rollouts of the validation's ensemble
    evaluations_per_step: int = 1  # of its network, where it has members
    steadied_by: str | None = None  # what keeps its rollouts from diverging, beside more steps: KEY=VALUE
    selects_by: str = "rollout_nrmse"  # the validation score that the kept weights minimise

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise and the terms worth a chart. All randomness is drawn from the batch.

        A mean over samples, so that parts of a batch can be computed apart; `batch.mean` is for what is not.
        """

    @abstractmethod
    def step(self, u: Tensor, nu: Tensor, time_step: float, generator: torch.Generator) -> Tensor:
        """u: (B, N), nu: (B,), as in `Trajectories` -> the field a time step later, (B, N)."""

    def evaluate(self, window: Trajectories) -> dict[str, float]:
        """Scores in the physical field of rollouts from the window's first frame."""
        truth = window.u[:, 1:]
        members = ensemble(self.step, window, self.members)
        scores = {
            "rollout_nrmse": rollout_nrmse(members.mean(0), truth),
            "one_step_nrmse": rollout_nrmse(one_step(self.step, window), truth),
        }
        if self.stochastic:
            scores["member_nrmse"] = rollout_nrmse(members[0], truth)
            of_ensemble = ensemble_metrics(members, truth)
            scores |= {name: of_ensemble[name] for name in ("crps", "spread_skill") if name in of_ensemble}
        return scores


def relative_l2(prediction: Tensor, truth: Tensor, floor: float = 1e-5) -> Tensor:
    """(..., N) -> (...): |error| / |truth|, with a finite gradient at an exact prediction and at a zero field.

    `floor`: the root-mean-square error below which an error hardly counts any more.
    """
    error, size = (prediction - truth).square().mean(-1), truth.square().mean(-1)
    return ((error + floor**2) / (size + 1e-6)).sqrt()
