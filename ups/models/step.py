"""What an operator is to its stage: a function from one frame to the next."""

from torch import Tensor, nn


class Step(nn.Module):
    """A model that derives from this is used as it is; any other network is made a step by `ConservativeStep`."""

    def forward(self, u: Tensor, nu: Tensor, time_step: float) -> Tensor:
        """u: (B, N) point values, nu: (B,) -> the field a time step later, (B, N)."""
        raise NotImplementedError

    def with_round_trip(self, u: Tensor, nu: Tensor, time_step: float) -> tuple[Tensor, Tensor, Tensor]:
        """The same field; the inner state it was read from; and the inner state that the next step would read from it.

        Where the two differ, a rollout drifts, however small the error of one step. A step without an inner state has
        the field itself.
        """
        field = self(u, nu, time_step)
        return field, field, field
