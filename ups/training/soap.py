"""SOAP: Adam in the eigenbases of Shampoo's preconditioner (Vyas et al., arXiv 2409.11321).

The gradient G of a weight is seen as P^T G Q, where P and Q are the eigenvectors of the running means of G G^T and
G^T G. In these bases its entries are nearly uncorrelated, so that Adam's scale of each comes close to a second-order
method's; the update is turned back. The bases follow by one iteration of the QR algorithm every few steps. Without
bases it is AdamW.

Weights of one shape are updated as one tensor. Shapes: S weights, R rows (a weight's first dimension), C columns (all
its others).
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn

from ups.training.optimizer import OptimizerSettings

LONGEST = 640  # a longer side is not turned: an iteration costs the cube of it
EAGER = 10  # first steps, after each of which the bases are updated
EPSILON = 1e-8
TINY = 1e-15  # of a Gram matrix: with no gradient yet, the basis stays
LEAST_SCALE = 1e-5  # of a weight's largest: along directions that no gradient has, Adam would scale up its rounding


class SOAP:
    """A parameter without gradient counts as one whose gradient is zero (torch's optimizers skip it)."""

    def __init__(self, network: nn.Module, settings: OptimizerSettings, relative_lr: Mapping[str, float]):
        """`relative_lr`: see Stage."""
        self.settings = settings
        self.count = torch.tensor(0.0)
        groups: dict[tuple, list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                alike = (relative_lr.get(name.partition(".")[0], 1.0), parameter.ndim, as_matrix(parameter).shape)
                groups.setdefault(alike, []).append(parameter)
        has_bases = settings.basis_interval is not None
        self.stacks = [Stack(group, alike[0], has_bases) for alike, group in groups.items()]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        self.count += 1
        count, interval = int(self.count), self.settings.basis_interval
        for stack in self.stacks:
            gradient = stack.gradient()
            stack.move(stack.direction(gradient, self.settings.betas, count), lr, self.settings.weight_decay)
            # Last: in bases that know this gradient, it is rounding along most directions, which Adam would scale up.
            stack.update_grams(gradient, self.settings.betas[1])
            if interval is not None and (count <= EAGER or count % interval == 0):
                stack.update_bases()

    def state_dict(self) -> dict[str, Tensor]:
        """All that it remembers; its settings come from the config, the learning rate with each step."""
        memories = {
            f"{index}.{name}": tensor
            for index, stack in enumerate(self.stacks) for name, tensor in stack.memory.items()
        }  # fmt: skip
        return {"count": self.count} | memories

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(tensors[name])


class Stack:
    """Parameters of one shape, and what is remembered of their gradients.

    memory: the running means "mean" of G and "square" of the squares of P^T G Q, (S, R, C); of each side that is turned
    its basis and the running mean of its Gram matrix, "rows" and "rows_gram" (S, R, R), "columns" and "columns_gram"
    (S, C, C).
    """

    def __init__(self, parameters: list[nn.Parameter], relative_lr: float, has_bases: bool):
        self.parameters, self.relative_lr = parameters, relative_lr
        zeros = torch.stack([torch.zeros_like(as_matrix(parameter)) for parameter in parameters])
        self.memory = {"mean": zeros, "square": zeros.clone()}
        for side, size in zip(("rows", "columns"), zeros.shape[1:], strict=True):
            if has_bases and parameters[0].ndim > 1 and 1 < size <= LONGEST:
                basis = torch.eye(size, dtype=zeros.dtype, device=zeros.device).repeat(len(parameters), 1, 1)
                self.memory |= {side: basis, f"{side}_gram": torch.zeros_like(basis)}

    def gradient(self) -> Tensor:
        """(S, R, C); zero where there is none."""
        none = torch.zeros_like(self.memory["mean"][0])
        return torch.stack([
            none if parameter.grad is None else as_matrix(parameter.grad) for parameter in self.parameters
        ])  # fmt: skip

    def direction(self, gradient: Tensor, betas: list[float], count: int) -> Tensor:
        """Adam's, (S, R, C): its second moments are those of the turned gradient."""
        beta1, beta2 = betas
        mean, square = self.memory["mean"], self.memory["square"]
        mean.lerp_(gradient, 1 - beta1)
        square.lerp_(self.to_bases(gradient).square(), 1 - beta2)
        scale = (square / (1 - beta2**count)).sqrt() + EPSILON
        if next(self.sides(), None):
            scale = scale.clamp(min=LEAST_SCALE * scale.amax((1, 2), keepdim=True))
        return self.from_bases(self.to_bases(mean) / scale) / (1 - beta1**count)

    def move(self, direction: Tensor, lr: float, weight_decay: float) -> None:
        matrices = [as_matrix(parameter) for parameter in self.parameters]
        lr = lr * self.relative_lr
        torch._foreach_mul_(matrices, 1 - lr * weight_decay)
        torch._foreach_add_(matrices, list(direction), alpha=-lr)

    def sides(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Those that are turned, each with the view of (S, R, C) in which it is the last."""
        if "rows" in self.memory:
            yield "rows", lambda matrices: matrices.mT
        if "columns" in self.memory:
            yield "columns", lambda matrices: matrices

    def to_bases(self, matrices: Tensor) -> Tensor:
        """G -> P^T G Q, (S, R, C)."""
        for side, last in self.sides():
            matrices = last(last(matrices) @ self.memory[side])
        return matrices

    def from_bases(self, matrices: Tensor) -> Tensor:
        for side, last in self.sides():
            matrices = last(last(matrices) @ self.memory[side].mT)
        return matrices

    def update_grams(self, gradient: Tensor, beta: float) -> None:
        for side, last in self.sides():
            self.memory[f"{side}_gram"].lerp_(last(gradient).mT @ last(gradient), 1 - beta)

    def update_bases(self) -> None:
        """One iteration of the QR algorithm, which wants the eigenvectors in order; each takes its squares along.

        It writes to the memory in place, through views.
        """
        for side, last in self.sides():
            basis, gram, square = self.memory[side], self.memory[f"{side}_gram"], last(self.memory["square"])
            order = (basis * (gram @ basis)).sum(1, keepdim=True).argsort(descending=True, stable=True)  # eigenvalues
            square.copy_(square.take_along_dim(order, 2))
            ordered = basis.take_along_dim(order, 2)
            basis.copy_(torch.linalg.qr(gram @ ordered + TINY * ordered).Q)


def as_matrix(parameter: Tensor) -> Tensor:
    """A view, (R, C); a vector is one row, a complex number is two columns."""
    real = torch.view_as_real(parameter) if parameter.is_complex() else parameter
    return real.view(len(parameter) if parameter.ndim > 1 else 1, -1)
