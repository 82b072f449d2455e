"""The `neuraloperator` package's FNO as a step: the field at one time in, the field a time step later out.

Nothing of this repo's own is added: no flux form, no moving frame. It is built for one nu and one time step.
"""

from neuralop.models import FNO
from torch import Tensor

from ups.models.step import Step


class NeuralOperatorFNO(Step):
    def __init__(self, in_channels: int, out_channels: int, condition: int, modes: int, width: int, blocks: int):
        super().__init__()
        self.fno = FNO((modes,), in_channels, out_channels, hidden_channels=width, n_layers=blocks)

    def forward(self, u: Tensor, nu: Tensor, time_step: float) -> Tensor:
        return u + self.fno(u[:, None])[:, 0]

    def state_dict(self, *arguments, **options) -> dict:
        """Tensors alone: the package adds the constructor's arguments."""
        state = super().state_dict(*arguments, **options)
        state.pop("_metadata", None)
        return state
