"""The equation's solvers, the generator and the reader, against an exact solution and files of other people's."""

import itertools
import math
import multiprocessing
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, foreign

from ups.data.batches import batch_at
from ups.data.exact import cole_hopf
from ups.data.generator import Burgers
from ups.data.initial_conditions import INITIAL_CONDITIONS, cell_centres, random_field, random_sinusoids
from ups.data.pdebench import PDEBenchBurgers
from ups.data.solver import finite_volume, points_needed, solve, spectral
from ups.data.trajectories import Trajectories
from ups.errors import UserError


def initial(points: int) -> torch.Tensor:
    return random_sinusoids(3, points, torch.Generator().manual_seed(3))


def nrmse(field: torch.Tensor, truth: torch.Tensor) -> float:
    return float(((field - truth).square().mean(-1) / truth.square().mean(-1)).sqrt().mean())


def generator_settings(**changed):
    return dict(
        nu=0.01, train=6, validation=5, test=4, seed=0, solver_points=128, points=32, shifts=2, frames=5,
        time_step=0.05, initial_frame=1, rollout_steps=3, nu_range=None, initial_condition="sinusoids",
    ) | changed  # fmt: skip


def test_a_field_without_a_relative_error_is_refused(monkeypatch, tmp_path):
    nothing = lambda count, points, stream: torch.zeros(count, points).double()
    for changed in ({"nu": 4.0}, {"nu": 1.0, "frames": 11}):  # what is left of it is nothing, or rounding
        settings = generator_settings(initial_condition="random_field", solver_points=512, time_step=0.2, **changed)
        with pytest.raises(UserError, match=rf"^dataset\.nu={changed['nu']}: a field decays to zero"):
            Burgers(**settings).load_test(tmp_path)
    monkeypatch.setitem(INITIAL_CONDITIONS, "sinusoids", nothing)
    with pytest.raises(UserError, match=r"^dataset\.nu=0\.01: a field decays to zero"):
        Burgers(**generator_settings()).load_test(tmp_path)


def test_exact_solution_satisfies_the_equation():
    """By finite differences of the quadrature itself: u_t + u u_x = kappa u_xx."""
    kappa, h = 0.01, 1e-3
    x = torch.linspace(0.1, 0.9, 9).double()
    at = lambda time, shift: cole_hopf(initial(1024), kappa, [time], x + shift)[:, 0]
    u = at(0.3, 0.0)
    u_t = (at(0.3 + h, 0.0) - at(0.3 - h, 0.0)) / (2 * h)
    u_x = (at(0.3, h) - at(0.3, -h)) / (2 * h)
    u_xx = (at(0.3, h) - 2 * u + at(0.3, -h)) / h**2
    # The bound is of the differences, which a derivative of order 30^3 meets with h^2.
    assert (u_t + u * u_x - kappa * u_xx).abs().max() < 0.02 * u_t.abs().max()


def sawtooth(x: torch.Tensor, time: float, kappa: float) -> torch.Tensor:
    """A solution in closed form for every kappa: the heat kernels of all integers. Its shock is at 1/2 + 0.3 time."""
    distance = (x - 0.3 * time)[:, None] % 1 - torch.arange(-20, 22)
    age = 1 + time
    return 0.3 + (torch.softmax(-(distance**2) / (4 * kappa * age), -1) * distance).sum(-1) / age


@pytest.mark.parametrize("nu", [1e-4, 1e-3, 0.1, 10.0])
def test_exact_solution_is_exact_for_any_nu(nu):
    """Also inside of the shock, which at nu 1e-4 is 2e-4 wide, and 30 000 cells are needed to give it as u0."""
    kappa, cells = nu / math.pi, 2**15 if nu < 1e-3 else 4096
    u0 = sawtooth(cell_centres(cells), 0.0, kappa)[None]
    for time in (0.05, 0.5):
        x = torch.cat((torch.linspace(0, 0.95, 10), 0.5 + 0.3 * time + torch.linspace(-4, 4, 9) * kappa)).double()
        difference = cole_hopf(u0, kappa, [time], x)[0, 0] - sawtooth(x, time, kappa)
        assert difference.abs().max() < 1e-6


def test_exact_solution_stays_on_the_device_of_its_input():
    """The meta device has shapes alone, and refuses what is on another."""
    u = cole_hopf(initial(64).to("meta"), 0.01, [0.1, 0.2], cell_centres(32))
    assert u.device.type == "meta" and u.shape == (3, 2, 32)


@pytest.mark.parametrize("nu", [0.01, 0.1, 1.0])
def test_spectral_solver_is_exact_where_it_is_chosen(nu):
    kappa, times = nu / math.pi, [0.0, 0.5, 1.0]
    truth = cole_hopf(initial(1024), kappa, times[1:], cell_centres(256))
    assert nrmse(spectral(initial(256), kappa, times)[:, 1:], truth) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("nu", "time"), [(0.001, 0.05), (0.03, 0.5)])
def test_finite_volumes_converge_with_second_order(nu, time):
    """Where the time step is that of the flow, before the shocks, and where it is that of diffusion."""
    kappa, times, errors = nu / math.pi, [0.0, time], []
    for points in (256, 512, 1024):
        u = finite_volume(initial(points), kappa, times)[:, 1:]
        truth = cole_hopf(initial(2048), kappa, times[1:], cell_centres(points)[:: points // 64])
        errors.append(nrmse(u[..., :: points // 64], truth))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) > 1.8 and errors[-1] < 2e-5, (orders, errors)


def test_spectral_solver_converges_with_fourth_order():
    """Its error is that of the time step, which goes with the cells."""
    kappa, times, errors = 0.01, [0.0, 0.5], []
    for points in (64, 128, 256):
        truth = cole_hopf(initial(1024), kappa, times[1:], cell_centres(points))
        errors.append(nrmse(spectral(initial(points), kappa, times)[:, 1:], truth))
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert min(orders) > 3.8 and errors[-1] < 3e-8, (orders, errors)


def test_spectral_solver_needs_few_points_where_diffusion_is_strong():
    kappa, times, u0 = 0.1 / math.pi, [0.0, 0.2, 0.4], initial(1024)
    u = spectral(u0.float(), kappa, times)
    assert nrmse(u[:, 1:, ::64], cole_hopf(u0, kappa, times[1:], cell_centres(1024)[::64])) < 3e-6
    assert points_needed(u[:, 1], kappa) < 256 and points_needed(u[:, 1], kappa / 100) > 1024


def test_spectral_solver_keeps_what_a_field_sharper_than_shocks_holds():
    """A window's flanks, as PDEBench cuts a tenth of its fields, at a nu whose shocks are far wider."""
    kappa, x = 0.1 / math.pi, cell_centres(1024)
    u0 = initial(1024) * 0.5 * (torch.tanh((x - 0.3) / 0.01) - torch.tanh((x - 0.7) / 0.01))
    u = spectral(u0.float(), kappa, [0.0, 0.01])[:, 1:, ::16]
    assert nrmse(u, cole_hopf(u0, kappa, [0.01], x[::16])) < 5e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_modes_left_out_are_below_rounding(dtype):
    """Of the shock of height 2 at kappa 0.005, and its mirror image that makes it periodic, on twice the interval."""
    shock = torch.tanh((cell_centres(1024) - 0.5) / 0.01)
    modes = torch.fft.rfft(torch.cat((shock, -shock)), norm="forward").abs()[1::2]  # the even ones are 0
    last = points_needed(shock[None].to(dtype), 0.005) // 3
    assert modes[last] < torch.finfo(dtype).eps < modes[last // 2]


@pytest.mark.parametrize("method", [finite_volume, spectral])
def test_solvers_conserve_the_mean(method):
    u = initial(128)
    advanced = method(u, 0.01, [0.0, 0.4])[:, -1]
    assert torch.allclose(advanced.mean(-1), u.mean(-1), atol=1e-12)


@pytest.mark.parametrize(("nu", "bound"), [("0.001", 6e-4), ("0.01", 1e-3)])
def test_solver_agrees_with_pdebench_files(nu, bound):
    """Their trajectories solved again from their own first frame."""
    with h5py.File(foreign(f"1D_Burgers_Sols_Nu{nu}_n16.hdf5")) as file:
        reference = torch.from_numpy(file["tensor"][:, ::25])
    u = solve(reference[:, 0], float(nu) / math.pi, [0.25 * k for k in range(9)])
    assert nrmse(u[:, 1:], reference[:, 1:]) < bound


@pytest.mark.slow
def test_finite_volumes_are_nearer_to_the_exact_solution_than_pdebench_files():
    """At each time, from the same first frame on the same 1024 points."""
    with h5py.File(foreign("1D_Burgers_Sols_Nu0.001_n16.hdf5")) as file:
        theirs = torch.from_numpy(file["tensor"][:, ::50])
    kappa, times = 0.001 / math.pi, [0.5 * k for k in range(5)]
    truth = cole_hopf(theirs[:, 0], kappa, times[1:], cell_centres(1024))
    ours = finite_volume(theirs[:, 0], kappa, times)[:, 1:]
    for k in range(4):
        assert nrmse(ours[:, k], truth[:, k]) < 0.8 * nrmse(theirs[:, 1 + k], truth[:, k])


def test_exact_solution_agrees_with_deepxde():
    """Their interval is [-1, 1]: x = 2 y - 1, so the viscosity is 0.01/pi / 4 and the speed u / 2 on ours."""
    data = np.load(foreign("deepxde_Burgers.npz"))
    y = (torch.from_numpy(data["x"]).flatten().double() + 1) / 2
    times = torch.from_numpy(data["t"]).flatten().double()
    usol = torch.from_numpy(data["usol"]).double()
    usol = usol if usol.shape[0] == len(times) else usol.T
    chosen = [len(times) // 4, len(times) // 2]
    u0 = -torch.sin(math.pi * (2 * cell_centres(2048) - 1))[None]
    u = 2 * cole_hopf(u0 / 2, 0.01 / math.pi / 4, times[chosen].tolist(), y)[0]
    assert nrmse(u, usol[chosen]) < 5e-3


def test_solvers_agree_with_neuraloperator():
    """Their small test set: viscosity 0.01 on an interval of length 1, 17 frames 0.06 apart, a mean of zero.

    16 points hold the initial fields to 5e-4, the size of their last mode: so it is an interpolation to 128 points.
    """
    data = torch.load(foreign("neuralop_burgers_test_16.pt"), weights_only=True)
    kappa, u = float(data["visc"]), data["y"]
    assert kappa == 0.01 and torch.equal(data["x"], u[:, 0])
    modes = torch.fft.rfft(data["x"], norm="forward")
    fine = torch.fft.irfft(torch.nn.functional.pad(modes, (0, 65 - 9)), 128, norm="forward")
    times = [0.06 * frame for frame in range(17)]
    assert nrmse(spectral(fine, kappa, times)[:, 1:, ::8], u[:, 1:]) < 2e-4
    at = torch.arange(16) / 16 + cell_centres(128)[0]  # their first point is at the centre of our first cell
    assert nrmse(cole_hopf(fine[:50], kappa, times[4::4], at), u[:50, 4::4]) < 2e-4


def test_generator_caches_and_splits_are_disjoint(tmp_path):
    splits = Burgers(**generator_settings()).load(tmp_path)
    assert splits.train.u.shape == (12, 5, 32)  # six trajectories on two interleaved grids
    first = [split.u[:, 0] for split in (splits.train, splits.validation, splits.test)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        distance = torch.cdist(first[a], first[b]).min()
        assert distance > 1e-3, "two splits share an initial condition"
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("burgers/*.safetensors")}
    again = Burgers(**generator_settings()).load(tmp_path)
    assert torch.equal(again.train.u, splits.train.u)
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("burgers/*.safetensors")}
    assert len(files) == 3


def test_the_shifted_grids_are_a_solvers_cell_apart(tmp_path):
    coarse = Burgers(**generator_settings()).load(tmp_path).train.u
    full = Burgers(**generator_settings(points=128, shifts=1)).load(tmp_path).train.u
    assert torch.equal(coarse, torch.cat((full[..., ::4], full[..., 1::4])))


@pytest.mark.parametrize(
    "changed",
    [{"time_step": 0.1}, {"frames": 6}, {"points": 64}, {"solver_points": 256}, {"nu": 0.02}, {"seed": 1},
     {"initial_condition": "random_field"}],
    ids=str,
)  # fmt: skip
def test_a_cache_keeps_settings_apart(changed, tmp_path):
    load = lambda folder, **settings: Burgers(**generator_settings(**settings)).load_test(tmp_path / folder).u
    load("shared")
    assert torch.equal(load("shared", **changed), load("own", **changed))


def test_the_initial_conditions_are_those_of_the_papers_text():
    """Of 4000: every wave number of two draws and no other, a tenth of one sign, a tenth cut off near the boundary."""
    u = random_sinusoids(4000, 64, torch.Generator().manual_seed(0))
    cut = (u[:, [0, 1, -2, -1]].abs() < 1e-4).all(-1)
    assert float(cut.float().mean()) == pytest.approx(0.1, abs=0.015)
    power = torch.fft.rfft(u[~cut]).abs() > 1e-6 * 64
    pure = power.sum(-1) <= 3  # neither an absolute value nor cut
    assert set(power[pure].nonzero()[:, 1].tolist()) == {0, 1, 2, 3, 4, 6, 8}
    assert float(pure.float().mean()) == pytest.approx(0.9, abs=0.03)
    of_one_sign = (u[~cut] >= 0).all(-1) | (u[~cut] <= 0).all(-1)
    assert float(of_one_sign[~pure].float().mean()) == 1 and u[~cut].sign().mean().abs() < 0.05


@pytest.mark.parametrize(
    ("nu", "of_one", "last"), [
        (0.01, [-0.499817, -2.02686, -1.50030], [-0.121535, 0.0, -1.50030, 0.150777]),
        (0.3, [-0.288948, -0.961145, -1.50538], [0.264245, 0.421514, -1.50538, -0.123972]),
    ],
)
def test_what_is_generated_is_what_it_was(nu, of_one, last, tmp_path):
    """By either method. Numbers that change for a reason need other VERSIONS and another FORMAT of the identities.

    Of every trajectory: the fastest alone may be as before where the others are not.
    """
    u = Burgers(**generator_settings(nu=nu)).load_test(tmp_path).u
    assert u[2, ::2, 5].tolist() == pytest.approx(of_one, rel=1e-5)
    assert u[:, -1, 5].tolist() == pytest.approx(last, rel=1e-5, abs=1e-8)


def test_no_two_trajectories_of_the_published_sizes_are_alike(tmp_path, monkeypatch):
    """Those of all splits, and of other seeds: the docs' test sets are of another seed than what was trained on."""
    monkeypatch.setattr("ups.data.workers.cores", lambda: 1)  # processes take longer to start than this does
    sizes = dict(nu=0.001, train=512, validation=64, test=256, solver_points=32, shifts=1, frames=2, time_step=1e-6,
                 initial_frame=0, rollout_steps=1)  # fmt: skip
    splits = [Burgers(**generator_settings(**sizes, seed=seed)).load(tmp_path) for seed in (0, 1, 2)]
    first = torch.cat([part.u[:, 0] for each in splits for part in (each.train, each.validation, each.test)])
    distance = torch.cdist(first, first) + torch.eye(len(first))
    assert len(first) == 3 * (512 + 64 + 256) and distance.min() > 1e-3


def test_a_larger_test_set_generates_only_itself(tmp_path):
    Burgers(**generator_settings()).load(tmp_path)
    Burgers(**generator_settings(test=7)).load(tmp_path)
    assert len(list(tmp_path.glob("burgers/*.safetensors"))) == 4


def test_a_range_of_nu_is_drawn_for_training_and_validation_alone(tmp_path):
    low, high = 0.002, 0.2
    settings = generator_settings(nu=[0.01, 0.1], nu_range=[low, high], train=30, validation=30)
    splits = Burgers(**settings).load(tmp_path)
    assert splits.test.nu.tolist() == pytest.approx([0.01] * 4 + [0.1] * 4)
    assert len(splits.train) == 60 and torch.equal(splits.train.nu[:30], splits.train.nu[30:])  # two grids
    for nu in (splits.train.nu[:30], splits.validation.nu):
        assert len(nu.unique()) == 30 and low <= nu.min() and nu.max() <= high
        assert torch.histc(nu.log(), 4, math.log(low), math.log(high)).min() > 2  # also within a decade
    first = [split.u[:, 0] for split in (splits.train, splits.validation, splits.test)]
    assert min(float(torch.cdist(first[a], first[b]).min()) for a, b in ((0, 1), (0, 2), (1, 2))) > 1e-3
    assert not set(splits.train.nu.tolist()) & set(splits.validation.nu.tolist())
    again = Burgers(**settings).load(tmp_path)
    assert torch.equal(again.train.u, splits.train.u) and torch.equal(again.train.nu, splits.train.nu)
    alone = Burgers(**generator_settings(nu=[0.01, 0.1], train=1, validation=1)).load(tmp_path)
    assert torch.equal(alone.test.u, splits.test.u) and len(list(tmp_path.glob("burgers/test*.safetensors"))) == 2


def test_a_trajectory_of_a_range_is_its_own_nus(tmp_path):
    """Each is the exact solution from its first frame at the nu that is told, also from several processes."""
    settings = generator_settings(nu_range=[0.02, 0.5], train=1, validation=40, solver_points=256, points=256, shifts=1)
    validation = Burgers(**settings).load(tmp_path).validation
    for k in range(0, 40, 8):
        truth = cole_hopf(validation.u[k : k + 1, 0], float(validation.nu[k]) / math.pi, [0.2], cell_centres(256))
        assert nrmse(validation.u[k : k + 1, 4:], truth) < 1e-3


def test_few_trajectories_are_generated_by_one_thread(tmp_path, monkeypatch):
    """Beside other work, two made minutes of seconds; what follows has as many as before."""
    threads = []
    monkeypatch.setattr("ups.data.generator.solve_frames", lambda u0, *_, frames, **__: (
        threads.append(torch.get_num_threads()), torch.ones(len(u0), frames, u0.shape[-1]))[1])  # fmt: skip
    torch.set_num_threads(2)
    try:
        Burgers(**generator_settings()).load_test(tmp_path)
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_a_batch_of_many_nus_is_each_solved_alone():
    """Also across the border of the two methods: at 128 points nu = 0.0184."""
    u, nu = initial(128), torch.tensor([0.1, 0.004, 0.03])
    kappa, times = nu[:, None] / math.pi, [0.0, 0.1, 0.3]
    together = solve(u, kappa, times)
    for k in range(3):
        for alone in (solve(u[k : k + 1], float(kappa[k]), times), solve(u[k : k + 1], kappa[k : k + 1], times)):
            assert nrmse(together[k : k + 1], alone) < 1e-5
    for method, bound in ((finite_volume, 1e-12), (spectral, 1e-3)):  # whose time steps are the batch's
        together = method(u, kappa, times)
        for k in range(3):
            assert nrmse(together[k : k + 1], method(u[k : k + 1], float(kappa[k]), times)) < bound


def test_random_fields_have_the_covariance_that_is_said(tmp_path):
    u = random_field(2000, 512, torch.Generator().manual_seed(0))
    power = torch.fft.rfft(u, norm="forward").abs().square().mean(0)[:9]
    wave = 2 * math.pi * torch.arange(9.0)
    expected = 625 * (wave**2 + 25) ** -2.0
    assert power[0] < 1e-20 and torch.allclose(power[1:], expected[1:].double(), rtol=0.1)
    assert float(u.square().mean().sqrt()) == pytest.approx(0.59, abs=0.02)
    other = Burgers(**generator_settings(initial_condition="random_field")).load_test(tmp_path)
    usual = Burgers(**generator_settings()).load_test(tmp_path)
    assert other.u.mean(-1).abs().max() < 0.01 < usual.u.mean(-1).abs().max() and other.u.shape == usual.u.shape


def _generate(folder, queue):
    queue.put(float(Burgers(**generator_settings(train=24)).load(folder).train.u.sum()))


@pytest.mark.slow
def test_two_generators_of_one_cache_agree(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    runs = [context.Process(target=_generate, args=(tmp_path, queue)) for _ in range(2)]
    for run in runs:
        run.start()
    sums = [queue.get(timeout=100) for _ in runs]
    for run in runs:
        run.join(10)
    assert sums[0] == sums[1]
    assert len(list(tmp_path.glob("burgers/train*.safetensors"))) == 1
    assert not list(tmp_path.glob("burgers/*partial*"))


def test_batches_depend_on_seed_and_step_alone(tmp_path):
    data = Burgers(**generator_settings()).load(tmp_path).train
    torch.manual_seed(1)
    a = batch_at(data, 4, 2, seed=0, step=7)
    torch.manual_seed(2)
    b = batch_at(data, 4, 2, seed=0, step=7)
    assert torch.equal(a.u, b.u) and torch.equal(a.normal(a.u), b.normal(b.u))
    assert not torch.equal(a.u, batch_at(data, 4, 2, seed=0, step=8).u)
    assert not torch.equal(a.u, batch_at(data, 4, 2, seed=1, step=7).u)


def test_a_batch_starts_at_any_frame_and_nu_stays_with_its_trajectory():
    nu = torch.tensor([1.0, 2.0, 3.0])
    u = nu[:, None, None] ** torch.arange(5.0)[:, None].expand(5, 4)  # frame k is nu^k
    batch = batch_at(Trajectories(u.contiguous(), nu, 0.05), 64, 2, 0, 0)
    assert torch.equal(batch.u[:, 1], batch.u[:, 0] * batch.nu[:, None])
    assert set(batch.frame.tolist()) == {0, 1, 2} and torch.equal(batch.u[:, 0, 0], batch.nu**batch.frame)


def write_hdf5(path, samples=12, frames=11, points=32, nu=0.01, **changed):
    content = {
        "tensor": np.random.default_rng(0).normal(size=(samples, frames, points)).astype("float32"),
        "x-coordinate": ((np.arange(points) + 0.5) / points).astype("float32"),
        "t-coordinate": (np.arange(frames + 1) * 0.01).astype("float32"),
    } | changed
    with h5py.File(path, "w") as file:
        for key, value in content.items():
            if value is not None:
                file[key] = value
        if nu is not None:
            file.attrs["Nu"] = nu
    return path


def reader(path, **changed):
    settings = dict(path=str(path), test=4, validation=3, train=None, space_stride=4, time_stride=5, shifts=1,
                    initial_frame=0, rollout_steps=2)  # fmt: skip
    return PDEBenchBurgers(**settings | changed)


def test_pdebench_reader_strides_and_splits(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5")
    with h5py.File(path) as file:
        full = torch.from_numpy(file["tensor"][:])
    splits = reader(path, shifts=2).load(tmp_path)
    assert torch.equal(splits.test.u, full[:4, ::5, ::4])
    assert torch.equal(splits.validation.u, full[4:7, ::5, ::4])
    assert torch.equal(splits.train.u, torch.cat((full[7:, ::5, ::4], full[7:, ::5, 1::4])))
    assert splits.train.time_step == pytest.approx(0.05) and splits.train.nu.unique().item() == pytest.approx(0.01)


def test_a_file_of_more_rows_than_are_read_at_once(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", samples=300)
    with h5py.File(path) as file:
        full = torch.from_numpy(file["tensor"][:])[:, ::5, ::4]
    splits = reader(path, test=100, validation=70).load(tmp_path)
    assert torch.equal(splits.test.u, full[:100]) and torch.equal(splits.validation.u, full[100:170])
    assert torch.equal(splits.train.u, full[170:])


def test_a_folder_of_files_is_one_dataset_in_the_order_of_their_names(tmp_path):
    u = np.random.default_rng(1).normal(size=(2, 12, 11, 32)).astype("float32")
    with pytest.raises(UserError, match=rf"^dataset\.path={tmp_path}: the folder holds no \.hdf5 file"):
        reader(tmp_path)
    (tmp_path / "._a.hdf5").write_bytes(b"of macOS")
    for name, nu, tensor in (("b.h5", 0.1, u[1]), ("a.hdf5", 0.01, u[0])):
        write_hdf5(tmp_path / name, nu=nu, tensor=tensor)
    (tmp_path / "notes.txt").touch()
    dataset, strided = reader(tmp_path), torch.from_numpy(u)[:, :, ::5, ::4]
    splits = dataset.load(tmp_path)
    for split, rows in ((splits.test, slice(4)), (splits.validation, slice(4, 7)), (splits.train, slice(7, None))):
        count = len(strided[0, rows])
        assert torch.equal(split.u, strided[:, rows].flatten(0, 1)) and len(split) == 2 * count
        assert split.nu.tolist() == pytest.approx([0.01] * count + [0.1] * count)
    test = dataset.load_test(tmp_path)
    assert torch.equal(test.u, splits.test.u) and torch.equal(test.nu, splits.test.nu)

    write_hdf5(tmp_path / "c.hdf5", frames=16)
    for load in (reader(tmp_path).load, reader(tmp_path).load_test):
        with pytest.raises(UserError, match=r"^dataset\.path: the files differ in frames, points or time step"):
            load(tmp_path)


BAD_FILES = {
    "not HDF5": (lambda path: path.write_text("hello"), "not a readable HDF5 file"),
    "truncated": (lambda path: (write_hdf5(path), path.write_bytes(path.read_bytes()[:900])), "not a readable HDF5"),
    "missing key": (lambda path: write_hdf5(path, **{"x-coordinate": None}), "lacks x-coordinate"),
    "no viscosity": (lambda path: write_hdf5(path, nu=None), "lacks the attribute Nu"),
    "negative viscosity": (lambda path: write_hdf5(path, nu=-1.0), "must be positive"),
    "wrong rank": (lambda path: write_hdf5(path, tensor=np.zeros((4, 32), "float32")), "must be (samples"),
    "integers": (lambda path: write_hdf5(path, tensor=np.zeros((12, 11, 32), "int32")), "of floats"),
    "wrong length": (lambda path: write_hdf5(path, **{"x-coordinate": np.linspace(0, 5, 32)}), "the length 1"),
    "coordinates of another grid": (lambda path: write_hdf5(path, **{"x-coordinate": np.zeros(9)}), "do not fit"),
    "NaN": (lambda path: write_hdf5(path, tensor=np.full((12, 11, 32), np.nan, "float32")), "holds NaN"),
    "never written": (
        lambda path: write_hdf5(path, tensor=np.ones((12, 11, 32), "float32") * (np.arange(12) != 3)[:, None, None]),
        "trajectory 3 holds a field of zeros",
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_pdebench_reader_says_what_is_wrong(fault, tmp_path):
    make, message = BAD_FILES[fault]
    path = tmp_path / "bad.hdf5"
    make(path)
    with pytest.raises(UserError) as error:
        reader(path).load(tmp_path)
    assert message in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_pdebench_reader_wants_enough_trajectories(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5")
    with pytest.raises(UserError, match=r"dataset\.test=12"):
        reader(path, test=12).load(tmp_path)
    assert len(reader(path, test=1000).load_test(tmp_path)) == 12


@pytest.mark.slow
def test_pdebench_reader_memory_on_a_file_of_2_gigabytes(tmp_path):
    """A sparse file of a quarter of the published one's length: chunks that were never written read as ones."""
    path = tmp_path / "big.hdf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("tensor", (2500, 201, 1024), "float32", chunks=(1, 201, 1024), fillvalue=1)
        file["x-coordinate"] = (np.arange(1024) + 0.5) / 1024
        file["t-coordinate"] = np.arange(202) * 0.01
        file.attrs["Nu"] = 0.001
    script = (
        "import resource, sys, torch; from pathlib import Path\n"
        "from ups.data.pdebench import PDEBenchBurgers\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        f"dataset = PDEBenchBurgers({str(path)!r}, 1000, 64, None, 4, 5, 1, 9, 31)\n"
        "before = peak(); splits = dataset.load(Path('.'))\n"
        "size = sum(s.u.nbytes for s in (splits.train, splits.validation, splits.test)) / 2**20\n"
        "print(peak() - before - size)\n"
    )
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    beside = float(answer.stdout)
    assert beside < 200, f"{beside:.0f} MB beside the strided data"
