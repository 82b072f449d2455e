"""Metrics against their public definitions, computed another way on a case small enough to do by hand."""

import json
import math

import numpy as np
import pytest
import torch
from small_training import diffusion, operator, student

from ups.data.solver import finite_volume
from ups.data.trajectories import Trajectories
from ups.errors import UserError
from ups.evaluation.metrics import ensemble_metrics, fair_crps, field_metrics, rollout_nrmse
from ups.evaluation.plots import ensemble_panels, figures_of, save_figures, space_time
from ups.evaluation.rollout import classical_solver, ensemble, one_step, rollout
from ups.files import nulled, write_json
from ups.runs.evaluate import note_other_data, refuse_seen, scores_of, with_evaluations
from ups.training.identity import from_content
from ups.training.load import Obtained
from ups.training.store import Entry


def test_metrics_by_hand():
    """Two trajectories, one frame, four points: truth (2, 2, 2, 2) and (1, -1, 1, -1); errors (1, 0, 0, 0) and
    (0, 2, 0, -2)."""
    truth = torch.tensor([[[2.0, 2, 2, 2]], [[1.0, -1, 1, -1]]])
    error = torch.tensor([[[1.0, 0, 0, 0]], [[0.0, 2, 0, -2]]])
    got = field_metrics(truth + error, truth)
    assert got["rmse"] == pytest.approx((0.5 + math.sqrt(2)) / 2)
    assert got["nrmse"] == pytest.approx((0.25 + math.sqrt(2)) / 2)
    assert got["nrmse_worst"] == pytest.approx(math.sqrt(2))
    assert got["worst_over_mean"] == pytest.approx(math.sqrt(2) / ((0.25 + math.sqrt(2)) / 2))
    assert got["crmse"] == pytest.approx(math.sqrt(0.5) / 4)
    assert got["max_error"] == pytest.approx(2)
    assert got["brmse"] == pytest.approx((math.sqrt((1 + 0) / 2) + math.sqrt((0 + 4) / 2)) / 2)
    assert got["mae"] == pytest.approx((1 / 4 + 4 / 4) / 2)
    # Energies: 2 -> (9 + 3 * 4) / 8 and 1/2 -> (1 + 1 + 1 + 9) / 8; the second grew by twice its own.
    assert got["energy_excess"] == pytest.approx(2)
    assert got["diverged"] == 1
    assert got["nrmse_per_trajectory"] == pytest.approx([0.25, math.sqrt(2)])
    assert got["nrmse_per_frame"] == pytest.approx([(0.25 + math.sqrt(2)) / 2])
    assert ensemble_metrics((truth + error)[None], truth)["crps"] == pytest.approx(got["mae"])
    # |F| of the first: 1, 1, 1; of the second: 0, |2 (-i) - 2 (i)| = 4, 0.
    low = (math.sqrt(0.5) + math.sqrt((1 + 16) / 2) + math.sqrt(0.5)) / 3 / 4
    assert got["frmse_low"] == pytest.approx(low)


def test_means_run_over_frames_and_the_worst_counts():
    """Constant fields of two frames: truth (2, 1) and (4, 4), prediction (2, 1.5) and (3, 5)."""
    field = lambda *rows: torch.tensor(rows)[..., None].expand(-1, -1, 4)
    got = field_metrics(field((2, 1.5), (3.0, 5)), field((2, 1.0), (4.0, 4)))
    assert got["nrmse_per_trajectory"] == pytest.approx([0.25, 0.25])
    assert got["nrmse_per_frame"] == pytest.approx([0.125, 0.375])
    assert got["max_error"] == pytest.approx((1 + 1) / 2) and got["diverged"] == 0
    assert got["crmse"] == pytest.approx((math.sqrt(0.5) + math.sqrt((0.25 + 1) / 2)) / 2)
    assert got["energy_excess"] == pytest.approx((12.5 - 8) / 8)  # relative to the first frame's 8; the other's: 0.3125
    lost = field_metrics(field((1, 0.5), (3.0, 3)), field((2, 1.0), (4.0, 4)))
    assert lost["energy_excess"] == 0


def test_frequency_bands_by_hand():
    """32 points, so the modes 0 .. 16; a wave of amplitude A has |F| / N = A / 2, a mean and the Nyquist mode A."""
    x = torch.arange(32) / 32
    wave = lambda mode: torch.cos(2 * math.pi * mode * x)
    error = torch.stack((
        1 * wave(0) + 2 * wave(3) + 4 * wave(4) + 6 * wave(11) + 8 * wave(12) + 5 * wave(16), 6 * wave(3)
    ))[:, None]  # fmt: skip
    got = field_metrics(1 + error, torch.ones(2, 1, 32))
    mean_of_two = lambda first, second=0: math.sqrt((first**2 + second**2) / 2)
    assert got["frmse_low"] == pytest.approx((mean_of_two(1) + mean_of_two(1, 3)) / 4, rel=1e-5)
    assert got["frmse_mid"] == pytest.approx((mean_of_two(2) + mean_of_two(3)) / 8, rel=1e-5)
    assert got["frmse_high"] == pytest.approx((mean_of_two(4) + mean_of_two(5)) / 5, rel=1e-5)


def test_a_band_without_a_mode_has_no_score():
    """No nan either, which would read as a prediction that diverged."""
    got = field_metrics(torch.zeros(2, 3, 16), torch.ones(2, 3, 16))
    assert "frmse_high" not in got and got["frmse_low"] == 0.25 and got["frmse_mid"] == 0


def test_the_classical_solver_has_an_answer_at_any_viscosity():
    """Finite volumes alone would take 16,689 steps for this time step at nu 4."""
    u = torch.sin(2 * math.pi * torch.arange(256) / 256).repeat(3, 1)
    nu = torch.tensor([0.01, 4.0, 4.0])
    stepped = classical_solver(u, nu, 0.05, torch.Generator())
    assert torch.equal(stepped[:1], finite_volume(u[:1], nu[:1, None] / torch.pi, [0.0, 0.05])[:, -1])
    decayed = math.exp(-4 / math.pi * (2 * math.pi) ** 2 * 0.05)  # of the linear equation: u^2 is a 50th of it here
    assert (stepped[1:] - decayed * u[1:]).norm() / (decayed * u[1:]).norm() < 0.05


def test_the_classical_solver_has_the_same_answer_in_any_batch():
    speed = torch.tensor([[1.0], [3.0], [1.0], [2.0]])
    u, nu = speed * torch.sin(2 * math.pi * torch.arange(256) / 256), torch.tensor([0.001, 0.0015, 0.01, 0.001])
    together = classical_solver(u, nu, 0.05, torch.Generator())
    rows = zip(u.split(1), nu.split(1), strict=True)
    alone = torch.cat([classical_solver(*row, 0.05, torch.Generator()) for row in rows])
    assert torch.allclose(together, alone, atol=1e-6) and not torch.allclose(alone[0], alone[2], atol=1e-3)


def test_a_member_that_is_lost_counts_though_the_mean_is_not():
    truth = torch.sin(2 * math.pi * torch.arange(32) / 32).repeat(2, 3, 1)
    members = truth.repeat(19, 1, 1, 1)
    members[4, 1, 2] *= 3
    scores = scores_of(members, truth, Trajectories(torch.cat((truth[:, :1], truth), 1), torch.full((2,), 0.01), 0.05))
    assert scores["diverged"] == 1 and scores["energy_excess"] == pytest.approx(8)
    assert field_metrics(members.mean(0), truth)["diverged"] == 0


def test_an_exact_prediction_has_scores():
    """At large nu the fields of float32 freeze, and persistence is exact."""
    got = field_metrics(torch.ones(2, 3, 32), torch.ones(2, 3, 32))
    assert got["nrmse"] == got["energy_excess"] == got["diverged"] == 0 and math.isnan(got["worst_over_mean"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
def test_a_rollout_that_blew_up_is_counted_and_can_be_written(bad, tmp_path):
    truth = 1 + torch.rand(3, 4, 32, generator=torch.Generator().manual_seed(0))
    prediction = truth.clone()
    prediction[1, 2:] = bad
    prediction[2, 3, 7] = bad
    got = field_metrics(prediction, truth)
    assert got["diverged"] == 2 and got["nrmse_per_trajectory"][0] == 0
    assert not math.isfinite(got["nrmse"]) and not math.isfinite(got["energy_excess"])
    write_json(tmp_path / "metrics.json", nulled(got))
    text = (tmp_path / "metrics.json").read_text()
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["nrmse"] is None and read["nrmse_per_frame"][:2] == [0, 0] and read["nrmse_per_frame"][2] is None
    save_figures(tmp_path, "operator", prediction[None], truth, 0.05, {"persistence": truth})
    drawn = {path.stem: path.stat().st_size for path in tmp_path.glob("*.png")}
    assert set(drawn) == {"operator_space_time", "operator_error", "operator_spectrum"} and min(drawn.values()) > 1000
    with_one_lost = torch.stack((truth + 0.1, prediction, truth - 0.1))
    assert ensemble_metrics(with_one_lost, truth)["crps_per_trajectory"][0] < 0.1
    ensemble_panels(with_one_lost, truth, 0.05, "").savefig(tmp_path / "members.png")
    figure = space_time(prediction[1], truth[1], 0.05, "")  # the median above is the one that did not
    figure.savefig(tmp_path / "lost.png")
    (drawn,) = figure.axes[2].images
    assert drawn.get_clim() == pytest.approx((-float(truth[1].max()), float(truth[1].max())) if bad == bad else (0, 0))


def test_the_figures_show_the_median_trajectory_and_all_errors():
    truth = 1 + torch.rand(3, 4, 32, generator=torch.Generator().manual_seed(0))
    prediction = truth * torch.tensor([1.1, 1.3, 1.2])[:, None, None]
    figures = figures_of("any", prediction[None], truth, 0.05, {"persistence": 2 * truth})
    panels = [torch.tensor(axis.images[0].get_array()) for axis in figures["space_time"].axes if axis.images]
    for panel, field in zip(panels, (truth[2], prediction[2], 0.2 * truth[2]), strict=True):
        torch.testing.assert_close(panel, field)
    assert figures["space_time"].get_suptitle() == "any: median trajectory, nRMSE 2.0e-01"
    curves = {line.get_label(): line for line in figures["error"].axes[0].lines}
    assert curves["surrogate"].get_xdata() == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert curves["surrogate"].get_ydata() == pytest.approx([0.2] * 4)
    assert curves["persistence"].get_ydata() == pytest.approx([1] * 4)
    modes = {line.get_label(): line.get_ydata() for line in figures["spectrum"].axes[0].lines}
    for label, field in {"truth": truth, "surrogate": prediction, "error": prediction - truth}.items():
        power = torch.fft.rfft(field[:, -1]).abs().square().mean(0) / 32**2
        assert modes[label] == pytest.approx(power.sqrt()[1:].numpy(), rel=1e-4)


def test_an_ensemble_has_a_figure_of_its_own(tmp_path):
    members, truth = torch.randn(9, 3, 4, 32, generator=torch.Generator().manual_seed(0)).split((8, 1))
    save_figures(tmp_path, "any", members, truth[0], 0.05, {})
    kinds = ("space_time", "error", "spectrum", "ensemble")
    assert {path.name for path in tmp_path.iterdir()} == {f"any_{kind}.png" for kind in kinds}
    figure = ensemble_panels(members, truth[0], 0.05, "")
    few = ensemble_panels(members[:2], truth[0], 0.05, "").axes[0].get_legend_handles_labels()[1]
    assert few == ["33% interval", "truth"] and figure.axes[0].get_legend_handles_labels()[1] == [
        "78% interval", "33% interval", "truth"
    ]  # fmt: skip
    scores = ensemble_metrics(members, truth[0])
    assert [bar.get_height() for bar in figure.axes[3].patches] == pytest.approx(scores["rank_histogram"])
    spread, error = (line.get_ydata() for line in figure.axes[2].lines)
    assert error == pytest.approx((members.mean(0) - truth[0]).square().mean((0, 2)).sqrt().numpy())
    assert spread / error == pytest.approx(scores["spread_skill_per_frame"])


def test_crps_equals_its_definition():
    """Fair CRPS: mean |x - y| - sum over pairs |x - x'| / (2 M (M - 1))."""
    generator = torch.Generator().manual_seed(0)
    members, truth = torch.randn(5, 2, 3, 4, generator=generator), torch.randn(2, 3, 4, generator=generator)
    pairs = (members[:, None] - members[None]).abs().sum((0, 1)) / (2 * 5 * 4)
    expected = ((members - truth).abs().mean(0) - pairs).mean()
    assert ensemble_metrics(members, truth)["crps"] == pytest.approx(float(expected), rel=1e-5)


def test_the_right_spread_has_the_least_crps():
    members, truth = torch.randn(3, 20000, generator=torch.Generator().manual_seed(0)).split((2, 1))
    scores = {spread: fair_crps(spread * members, truth[0]).mean() for spread in (0.0, 0.5, 0.9, 1.0, 1.1, 2.0)}
    assert min(scores, key=scores.get) == 1.0
    assert scores[0.0] > 1.3 * scores[1.0]  # members that agree have the error of a point forecast


def test_spread_skill_of_a_calibrated_ensemble_is_one():
    draw = np.random.default_rng(0).normal(size=(9, 40, 10, 64)).astype("float32")
    calibrated = torch.from_numpy(draw)
    assert ensemble_metrics(calibrated[:8], calibrated[8])["spread_skill"] == pytest.approx(1, abs=0.02)
    narrow = ensemble_metrics(0.5 * calibrated[:8], calibrated[8])
    square = sum(narrow["variance_per_trajectory"]) / sum(narrow["square_error_per_trajectory"])
    assert narrow["spread_skill"] == pytest.approx(square**0.5, rel=1e-4) and square < 0.36


def test_coverage_and_ranks_of_a_calibrated_ensemble():
    draw = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 40, 10, 64)).astype("float32"))
    got = ensemble_metrics(draw[:19], draw[19])
    assert got["coverage_90"] == pytest.approx(0.9, abs=0.01) and got["coverage_50"] == pytest.approx(0.5, abs=0.01)
    assert got["rank_histogram"] == pytest.approx([1 / 20] * 20, abs=0.005) and len(got["spread_skill_per_frame"]) == 10
    few = ensemble_metrics(draw[:8], draw[19])
    assert "coverage_90" not in few and few["coverage_50"] == pytest.approx(0.5, abs=0.02)
    narrow = ensemble_metrics(0.5 * draw[:19], draw[19])
    assert narrow["coverage_90"] < 0.65 and narrow["rank_histogram"][0] > 0.1 < narrow["rank_histogram"][-1]


def test_coverage_and_ranks_by_hand():
    """Members 0, 1, 2: the central half reaches from the first to the third; a truth that is a member is between."""
    members = torch.tensor([0.0, 1, 2])[:, None, None, None].expand(-1, 1, 1, 4)
    got = ensemble_metrics(members, torch.tensor([[[-1.0, 0.5, 1.0, 1.5]]]))
    assert got["coverage_50"] == 0.75 and "coverage_90" not in got
    assert got["rank_histogram"] == [1 / 4, 1.5 / 4, 1.5 / 4, 0]
    members = torch.tensor([-math.inf, 1, 2])[:, None, None, None].expand(-1, 1, 1, 4)
    assert ensemble_metrics(members, torch.tensor([[[-1.0, 0.5, 2.0, 2.5]]]))["coverage_50"] == 0.75


def window():
    u = torch.arange(6.0)[None, :, None] + torch.zeros(3, 6, 4)
    return Trajectories(u, torch.full((3,), 0.01), 0.05)


def test_rollout_feeds_back_and_one_step_does_not():
    double = lambda u, nu, time_step, generator: 2 * u + 1
    assert rollout(double, window().window(1, 3))[0, :, 0].tolist() == [3, 7, 15]
    assert one_step(double, window().window(1, 3))[0, :, 0].tolist() == [3, 5, 7]
    truth = window().u[:, 1:4]
    assert rollout_nrmse(truth, truth) == 0


def test_nu_stays_with_its_trajectory():
    nu = torch.tensor([1.0, 2.0, 3.0])
    u = nu[:, None, None] ** torch.arange(5.0)[:, None].expand(5, 4)  # frame k is nu^k
    window = Trajectories(u.contiguous(), nu, 0.05)
    grow = lambda u, nu, time_step, generator: u * nu[:, None]
    for predicted in (rollout(grow, window, batch_size=2), one_step(grow, window, batch_size=1)):
        assert torch.equal(predicted, u[:, 1:])


def test_members_have_their_own_noise_and_can_be_repeated():
    noisy = lambda u, nu, time_step, generator: u + torch.randn(u.shape, generator=generator)
    members = ensemble(noisy, window(), 2)
    assert (members[0] - members[1]).abs().max() > 0.1
    assert torch.equal(members, ensemble(noisy, window(), 2))


def test_evaluations_are_those_of_a_flow(tmp_path):
    entry = Entry(tmp_path, from_content({"stage": {"name": "any", "requires": None}}))
    asked = diffusion()
    assert with_evaluations(Obtained(entry, asked, {}), 3).stage.evaluations_per_step == 3 != asked.evaluations_per_step
    with pytest.raises(UserError, match=r"^evaluations_per_step=3: a consistency student takes 1 or 2"):
        with_evaluations(Obtained(entry, student(), {}), 3)
    with pytest.raises(UserError, match=r"^evaluations_per_step=1: any has no flow to evaluate"):
        with_evaluations(Obtained(entry, operator(), {}), 1)


def test_trajectories_that_a_stage_has_seen_are_refused(tmp_path):
    file, folder = str(tmp_path / "data" / "one.hdf5"), str(tmp_path / "data")
    for chosen, own in ((file, file), (folder, file), (file, folder)):
        refuse_seen({"path": chosen, "test": 4}, {"path": own, "test": 4}, "checkpoint")
        with pytest.raises(UserError, match=r"^dataset\.test=5: the stage of compare has seen all but the first 4"):
            refuse_seen({"path": chosen, "test": 5}, {"path": own, "test": 4}, "compare")
    for other in ({"path": str(tmp_path / "data" / "two.hdf5"), "test": 5}, {"path": str(tmp_path / "more"), "test": 5},
                  {"nu": 0.01, "test": 5}):  # fmt: skip
        refuse_seen(other, {"path": file, "test": 4}, "checkpoint")


def test_a_published_file_is_the_same_wherever_it_lies():
    """It may have been fetched by another machine, to a folder of that."""
    name = "1D_Burgers_Sols_Nu0.001.hdf5"
    with pytest.raises(UserError, match="has seen all but the first 4"):
        refuse_seen({"path": f"/elsewhere/{name}", "test": 5}, {"path": name, "test": 4}, "checkpoint")


def test_a_window_beyond_the_data_is_refused():
    with pytest.raises(UserError, match="rollout_steps=9 from initial_frame=1"):
        window().window(1, 9)
    with pytest.raises(UserError, match=r"^dataset\.rollout_steps=9 from dataset\.initial_frame=1"):
        window().window(1, 9, ("dataset.initial_frame", "dataset.rollout_steps"))


@pytest.mark.parametrize(("trained", "nu", "told"), [
    ({"nu": 0.01}, 0.01, None),
    ({"nu": 0.01}, 0.02, "nu: 0.01 -> 0.02"),
    ({"nu": [0.001, 0.01]}, 0.01, None),
    ({"nu": 0.5, "nu_range": [0.001, 0.1]}, 0.02, None),
    ({"nu": 0.02, "nu_range": [0.001, 0.01]}, 0.02, "nu: [0.001,0.01] -> 0.02"),
    ({"nu": 0.01, "points": 64}, 0.01, "points: 64 -> 32"),
    ({"path": "a.hdf5"}, 0.02, None),
])  # fmt: skip
@pytest.mark.parametrize("of_file", [False, True])
def test_a_note_tells_of_data_that_a_stage_was_not_trained_for(of_file, trained, nu, told, tmp_path, capsys):
    """Also of the stage that another is compared with."""
    dataset = {"points": 32, "time_step": 0.05} | trained
    content = {"stage": {"name": "operator", "requires": None}, "dataset": dataset}
    other = Obtained(Entry(tmp_path, from_content(content)), None, {})
    window = Trajectories(torch.ones(2, 3, 32), torch.full((2,), nu), 0.05)
    chosen = {"path": "b.hdf5"} if of_file else {"nu": nu, "points": 32, "time_step": 0.05}
    note_other_data({"compare": other}, chosen, window)
    note = f"note: compare is scored on other data than it was trained on ({told})"
    assert " ".join(capsys.readouterr().err.split()) == (note if told else "")
