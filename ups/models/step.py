"""The operator's interface to its stage: a function from one frame to the next."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from ups.errors import UserError


@dataclass(frozen=True)
class OpenedStep:
    """A time step, opened at the model's inner state: there a corrector can work. States and fields are (B, N).

    before, after: the inner state read from the given field, and the one a time step later.
    to_field, to_state: between the inner state and the field a time step later.
    at_points: what belongs to the cells of that state -> at the points of the field.
    """

    before: Tensor
    after: Tensor
    to_field: Callable[[Tensor], Tensor]
    to_state: Callable[[Tensor], Tensor]
    at_points: Callable[[Tensor], Tensor]


class Step(nn.Module):
    """A model that derives from this is used as it is; any other network is made a step by `ConservativeStep`."""

    def forward(self, u: Tensor, nu: Tensor, time_step: float) -> Tensor:
        """u: (B, N) point values, nu: (B,) -> the field a time step later, (B, N)."""
        raise NotImplementedError

    def opened(self, u: Tensor, nu: Tensor, time_step: float) -> OpenedStep:
        """The same step. A model without an inner state has the field itself."""
        unchanged = lambda field: field
        return OpenedStep(u, self(u, nu, time_step), unchanged, unchanged, unchanged)


def output_of(network: nn.Module, channels: Tensor, conditions: Tensor, count: int) -> Tensor:
    """channels: (B, C, N), conditions: (B, K) -> (B, count, N) float32: half precision ends at a network.

    Raises a `UserError` if the network gives another shape, which might be broadcast.
    """
    given = network(channels, conditions)
    if given.shape != (wanted := (len(channels), count, channels.shape[-1])):
        raise UserError(f"the network must give {wanted}, of batch, channels and points: it gives {tuple(given.shape)}")
    return given.float()


def called_networks(network: nn.Module) -> Iterator[nn.Module]:
    """Those whose `forward` runs in a loss: not a `Step`'s, which is opened, nor that of a mere container."""
    if isinstance(network, Step) or type(network).forward is nn.Module.forward:
        for child in network.children():
            yield from called_networks(child)
    else:
        yield network
