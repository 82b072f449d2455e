"""The optimizer: what it is without bases, what the bases are, and that it stands still where there is no gradient."""

import copy
from dataclasses import replace

import torch
from small_training import OPTIMIZER
from torch import nn

from ups.training.soap import LONGEST, SOAP


def test_without_bases_the_optimizer_is_adamw():
    """Of vectors, matrices and complex numbers, of two learning rates, and after a resume."""
    torch.manual_seed(0)
    waves = nn.ParameterList([torch.randn(4, 3, dtype=torch.cfloat)])
    ours = nn.ModuleDict({"fast": nn.Linear(4, 4), "slow": nn.Linear(4, 4), "waves": waves})
    theirs = copy.deepcopy(ours)
    settings = replace(OPTIMIZER, weight_decay=0.1, basis_interval=None)
    optimizer = SOAP(ours, settings, {"slow": 0.1})
    groups = [{"params": [*theirs["fast"].parameters(), *theirs["waves"].parameters()]},
              {"params": theirs["slow"].parameters()}]  # fmt: skip
    reference = torch.optim.AdamW(groups, betas=tuple(settings.betas), weight_decay=0.1)
    for step in range(9):
        lr = 1e-3 * (step + 1)
        for group, relative in zip(reference.param_groups, (1.0, 0.1), strict=True):
            group["lr"] = lr * relative
        for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            own.grad = torch.randn_like(own)
            other.grad = own.grad.clone()
        optimizer.step(lr)
        reference.step()
        if step == 5:
            remembered = copy.deepcopy(optimizer.state_dict())
            optimizer = SOAP(ours, settings, {"slow": 0.1})
            optimizer.load_state_dict(remembered)
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(own, other, rtol=1e-5, atol=1e-6)


def test_the_bases_are_the_eigenvectors_and_straighten_a_valley():
    """A quadratic bowl whose axes are turned on both sides, of widths over four decades, from noisy gradients."""
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)
    left, right = torch.linalg.qr(normal(6, 6)).Q, torch.linalg.qr(normal(8, 8)).Q
    rows, columns = torch.logspace(-1, 1, 6, dtype=torch.float64), torch.logspace(-1, 1, 8, dtype=torch.float64)
    start = normal(6, 8)

    def descended(basis_interval):
        weight = nn.Parameter(start.clone())
        optimizer = SOAP(nn.ParameterList([weight]), replace(OPTIMIZER, basis_interval=basis_interval), {})
        for step in range(400):
            error = rows[:, None] * (left.T @ weight @ right) * columns
            loss = error.square().sum() / 2
            weight.grad = torch.autograd.grad(loss, weight)[0] * (1 + 0.1 * normal(6, 8))
            optimizer.step(0.05 * (1 - step / 400))
        return loss.item(), optimizer.stacks[0].memory

    (turned, memory), (plain, _) = descended(10), descended(None)
    assert turned < 0.1 * plain
    for side in ("rows", "columns"):
        basis, gram = memory[side][0], memory[f"{side}_gram"][0]
        assert torch.allclose(basis.T @ basis, torch.eye(len(basis), dtype=torch.float64))
        inside = basis.T @ gram @ basis
        assert (inside - inside.diag().diag()).norm() < 0.1 * inside.norm()


def test_the_squares_go_with_their_eigenvectors_when_these_change_places():
    """The least of three directions becomes the largest."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.zeros(1, 3))
    optimizer, expected = SOAP(nn.ParameterList([weight]), replace(OPTIMIZER, basis_interval=20), {}), torch.zeros(3)
    for step in range(1, 61):
        sizes = torch.tensor([1.0, 1e-2, 1e-4] if step <= 40 else [1e-4, 1e-2, 10.0])
        weight.grad = sizes * torch.randn(1, 3, generator=generator).sign()
        expected.lerp_(weight.grad[0].square(), 1 - OPTIMIZER.betas[1])
        optimizer.step(0.0)
    memory = optimizer.stacks[0].memory
    order = memory["columns"][0].abs().argmax(0)  # of the axes, by eigenvalue
    assert order.tolist() == [2, 0, 1]
    # Of the two largest: a basis that is nearly that of the axes leaves some of these in the third.
    torch.testing.assert_close(memory["square"][0, 0, :2], expected[order[:2]], rtol=0.3, atol=0)


def test_the_optimizer_takes_no_steps_along_directions_that_no_gradient_has():
    """Of rank one, as of a layer whose input is the same in each step: what is left in the bases is rounding."""
    generator = torch.Generator().manual_seed(0)
    along = nn.functional.normalize(torch.randn(6, generator=generator), dim=0)
    weight = nn.Parameter(torch.zeros(4, 6))
    optimizer = SOAP(nn.ParameterList([weight]), OPTIMIZER, {})
    for _ in range(800):
        weight.grad = torch.randn(4, 1, generator=generator) * along
        optimizer.step(1e-2)
    across = weight - (weight @ along)[:, None] * along
    assert across.norm() < 0.1 * weight.norm()


def test_without_gradients_nothing_moves():
    network = nn.Linear(3, 3)
    optimizer, before = SOAP(network, OPTIMIZER, {}), copy.deepcopy(network.state_dict())
    for gradient in (None, torch.zeros(3, 3)):
        network.weight.grad = gradient
        optimizer.step(1e-2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_side_that_is_too_long_keeps_its_basis():
    memory = SOAP(nn.ParameterList([torch.zeros(4, LONGEST + 1)]), OPTIMIZER, {}).stacks[0].memory
    assert memory["rows"].shape == (1, 4, 4) and "columns" not in memory
