"""The scripts as a user runs them: results, logs read back, sweeps, signals, figures."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import wandb_log
from conftest import DRAWN, ROOT, SMALL, clean_environment, foreign
from machines import Machine, steps_of, wait_for
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ups.files import alone_in
from ups.launch.rehearsal.wandb_server import WandbServer
from ups.runs.proof import MadeRun
from ups.runs.sweep import Job, print_sweep
from ups.training.state import read_state

pytestmark = pytest.mark.slow

OTHER_DATA = "scored on other data than it was trained on"
STAGES = ("operator", "diffusion_residual", "consistency_distill")


def run_folders(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in tmp_path.rglob("result.json") if "store" not in path.parts)


def metrics_of(folder: Path) -> list[dict]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_chain_trains_and_its_charts_have_points(command, tmp_path):
    validated = ["stage.requires.validations=2", "stage.requires.requires.validations=2"]
    chain = ["stage=consistency_distill", *DRAWN, *validated]
    answer = command("train.py", *chain)
    assert answer.returncode == 0, answer.stderr
    (folder,) = run_folders(tmp_path)
    result = json.loads((folder / "result.json").read_text())
    assert [(line["stage"], line["action"], line["steps"]) for line in result["plan"]] == [
        (name, "trained", 6) for name in STAGES
    ]  # fmt: skip
    assert result["stage"] == "consistency_distill" and result["seed"] == 0
    assert result["score"] == result["metrics"]["validation"]["rollout_nrmse"] > 0
    score, test = result["score"], result["metrics"]["test"]
    assert (
        f"rollout nRMSE of the ensemble's mean {score:.2e} on validation, {test['rollout_nrmse']:.2e} on test "
        f"trajectories, CRPS {test['crps']:.2e}; one step of one member {test['one_step_nrmse']:.2e}\n"
    ) in answer.stderr
    assert (tmp_path / result["checkpoint"] / "weights.safetensors").exists()
    assert {path.name for path in (folder / "figures").iterdir()} == {
        *(f"{name}_{kind}.png" for name in STAGES for kind in ("space_time", "error", "spectrum")),
        *(f"{name}_ensemble.png" for name in STAGES[1:]),
    }
    assert answer.stderr.count("wandb: offline") == 1 and "wandb sync" in answer.stderr
    assert "operator 6/6" in answer.stderr

    # What W&B's own log holds is what the CSV file holds: the first step, every second one, and each evaluation.
    run = wandb_log.read(folder)
    assert run.exit_code == 0 and not run.set_step
    rows = metrics_of(folder)
    for name in STAGES:
        for metric in ("loss", "lr", "grad_norm", "samples_per_second"):
            points = sorted(run.points(f"training/{name}/{metric}"))
            assert [x for x, _ in points] == [1, 2, 3, 4, 6], (name, metric)
            written = [
                (float(row[f"training/{name}/step"]), float(row[f"training/{name}/{metric}"]))
                for row in rows if row[f"training/{name}/step"]
            ]  # fmt: skip
            assert points == [(x, pytest.approx(y)) for x, y in written]
        assert {x for x, _ in run.points(f"evaluation/{name}/rollout_nrmse")} == {3, 6}
        defined = [run.order.index(f"define {glob}") for glob in (f"training/{name}/step", f"training/{name}/*")]
        first = next(k for k, event in enumerate(run.order) if event.startswith("log ") and f"/{name}/" in event)
        assert defined[0] < defined[1] < first
        last = [line for line in answer.stderr.splitlines() if line.startswith(f"{name} 6/6")]
        (scored,) = (row for row in rows if row[f"training/{name}/step"] == "6")
        assert len(last) == 1 and f"rollout nRMSE {float(scored[f'evaluation/{name}/rollout_nrmse']):.2e}" in last[0]
    for split, scores in result["metrics"].items():  # of the weights that are kept, for W&B's table of runs
        for metric, score in scores.items():
            assert run.summary[f"score/consistency_distill/{split}/{metric}"] == score
    figures = {key.rpartition("/")[0] for row in run.rows for key in row if key.startswith("figures/")}
    assert len(figures) == 11

    # The same command again finds everything and starts no tracker.
    again = command("train.py", *chain)
    assert again.returncode == 0
    second = json.loads((run_folders(tmp_path)[-1] / "result.json").read_text())
    assert {line["action"] for line in second["plan"]} == {"found"}
    assert second["score"] == result["score"] and "operator 6/6" not in again.stderr
    pictures = [{path.name: path.read_bytes() for path in each.glob("figures/*")} for each in run_folders(tmp_path)]
    assert len(pictures[0]) == 11 and pictures[1] == pictures[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU on this machine")
def test_a_gpu_gives_the_same_weights_twice(command, tmp_path):
    """cuDNN's default kernels do not."""
    longer = [*SMALL, "logger=none", "runtime.device=cuda", "budget.operator=100"]
    for store in ("one", "other"):
        assert command("train.py", *longer, f"store={store}").returncode == 0
    one, other = (load_file(next(tmp_path.glob(f"{store}/*/weights.safetensors"))) for store in ("one", "other"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_sweep_trains_a_shared_operator_once(command, tmp_path):
    # `stage.validations` would be of the job's own stage, and so make two different operators.
    shared = [override for override in SMALL if not override.startswith("stage.")]
    kept = "+hydra.callbacks.returned._target_=returned.Returned"
    answer = command("train.py", "-m", "stage=operator,diffusion_residual", kept, *shared,
                     PYTHONPATH=str(ROOT / "tests"))  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr.count("wandb: offline") == 2  # each job tries, and tells, for itself
    results = [json.loads((folder / "result.json").read_text()) for folder in run_folders(tmp_path)]
    actions = [[line["action"] for line in result["plan"]] for result in results]
    assert actions == [["trained"], ["found", "trained"]]
    returned = [float(line) for line in (tmp_path / "returned").read_text().splitlines()]
    assert returned == [result["score"] for result in results]
    for result in results:
        assert re.search(rf"│ stage={result['stage']} +│ +{result['score']:.2e} │", answer.stdout)
    for name, folder in zip(STAGES, run_folders(tmp_path), strict=False):
        steps = [float(step) for row in metrics_of(folder) if (step := row[f"training/{name}/step"])]
        assert [x for x, _ in wandb_log.read(folder).points(f"training/{name}/loss")] == steps and len(steps) >= 5


def test_a_sweep_says_at_its_end_what_was_not_trained(command):
    answer = command("train.py", "-m", "seed=-1,-2", "logger=none")
    assert answer.returncode == 1 and answer.stderr.endswith("error: 2 of 2 jobs failed\n")
    assert all(re.search(rf"│ seed=-{job} │ +not trained │", answer.stdout) for job in (1, 2))


def test_the_table_of_a_sweep_that_was_stopped_in_its_first_job_tells_what_was_swept(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=0,1", "model.width=16"])
    print_sweep([Job(["seed=0", "model.width=16"])])
    assert re.search(r"│ seed=0 │ +not trained │", capsys.readouterr().out)


def test_a_run_that_is_refused_hides_nothing_from_the_proof(command, tmp_path):
    """Hydra writes its files into the folder before the run can find that it is in use."""
    assert command("train.py", *SMALL, "hydra.run.dir=run").returncode == 0
    folder = tmp_path / "run"
    result = json.loads((folder / "result.json").read_text())
    with alone_in(folder):
        refused = command("train.py", *SMALL, "hydra.run.dir=run", "seed=1")
    assert refused.returncode == 1 and "another run is writing in" in refused.stderr
    assert "seed: 1" in (folder / ".hydra" / "config.yaml").read_text()
    made = MadeRun.read(folder)
    assert made.is_complete and [entry.identity.digest for entry in made.entries] == [result["digest"]]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_and_closes_the_tracker(number, code, command, tmp_path, cache):
    overrides = ["logger=wandb", *SMALL, "budget.operator=40000", "stage.validations=1"]  # many minutes
    run = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *overrides, f"cache={cache}"], cwd=tmp_path, text=True,
        env=clean_environment(tmp_path), stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: any(len(metrics_of(path.parent)) > 3 for path in tmp_path.rglob("metrics.csv")))
    os.killpg(run.pid, number)  # all its processes, as a terminal and a scheduler do
    error = run.communicate(timeout=30)[1]
    assert run.returncode == code, error
    assert "the same command goes on from there" in error and "Traceback" not in error
    (folder,) = {path.parent for path in tmp_path.rglob("metrics.csv")}
    assert wandb_log.read(folder).exit_code == code
    (state,) = tmp_path.glob("store/operator-*/state.safetensors")
    step = read_state(state).facts["step"]
    assert 0 < step < 40000
    assert str(step) in error


def test_a_run_that_is_resumed_has_every_point_once_on_wandb(tmp_path, cache):
    """As on a rented machine that is started again: the new process logs the rows of the state, into the same run."""
    machine = Machine(tmp_path / "machine", cache)
    same_run = {"WANDB_RUN_ID": "abc", "WANDB_RESUME": "allow"}
    with WandbServer() as server:
        run = machine.train(server, "budget.operator=400", **same_run)
        wait_for(lambda: (machine.folder / "run" / "metrics.csv").exists() and len(machine.rows()) > 3)
        run.send_signal(signal.SIGTERM)
        assert "Traceback" not in run.communicate(timeout=30)[1] and run.returncode == 143
        (made,) = server.runs.values()
        assert len(steps_of(made.rows)) > 1

        result, _ = machine.trained(server, "budget.operator=400", **same_run)
        assert [line["action"] for line in result["plan"]] == ["resumed"]
        (made,) = server.runs.values()
        assert steps_of(made.rows) == steps_of(machine.rows()) and made.state == "finished"


def test_a_loss_that_is_not_finite_finishes_the_loggers_and_can_be_repeated(command, tmp_path):
    """Also in the folder of an earlier run, whose result would not be its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text("{}")
    (folder / "metrics.csv").write_text("training/operator/step\n6\n")
    answer = command("train.py", *SMALL, "stage.optimizer.lr=1e12", "stage.optimizer.warmup=0", "hydra.run.dir=run")
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    assert re.search(r"error: operator: loss .* at step \d", answer.stderr)
    assert wandb_log.read(folder).exit_code == 1
    assert not (folder / "result.json").exists()
    assert "6" not in [row["training/operator/step"] for row in metrics_of(folder)]

    repeat = re.search(r"`python (-m ups\.runs\.replay \S+)`", answer.stderr)[1].split()
    environment = clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    again = subprocess.run([sys.executable, *repeat], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "loss nan" in again.stdout and "largest weight before it: 1e+12" in again.stdout
    assert re.search(r"first output that is not finite: \w", again.stdout)


@pytest.mark.parametrize("loggers", ["csv", "[wandb,csv,tensorboard]"])
def test_metrics_csv_is_written_whatever_the_logger(loggers, command, tmp_path):
    answer = command("train.py", f"logger={loggers}", *SMALL)
    assert answer.returncode == 0, answer.stderr
    (folder,) = run_folders(tmp_path)
    steps = [row["training/operator/step"] for row in metrics_of(folder)]
    assert steps == ["1", "2", "3", "4", "6"]
    for tracker in ("wandb", "tensorboard"):
        assert (folder / tracker).exists() == (tracker in loggers)
    if "wandb" in loggers:
        assert [x for x, _ in wandb_log.read(folder).points("training/operator/loss")] == [int(step) for step in steps]


def test_tensorboard_has_every_point_of_both_stages_over_its_own_step(command, tmp_path):
    """Once, though the second start in the folder shows the first stage again."""
    folder = tmp_path / "run"
    # `stage.validations` of DRAWN is the job's own stage's.
    for chosen in (["stage=operator"], ["stage=diffusion_residual", "stage.requires.validations=2"]):
        answer = command("train.py", "logger=tensorboard", *chosen, "hydra.run.dir=run", *DRAWN)
        assert answer.returncode == 0, answer.stderr
    plan = json.loads((folder / "result.json").read_text())["plan"]
    assert [line["action"] for line in plan] == ["found", "trained"]
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    expected = {}
    for row in metrics_of(folder):
        (axis,) = (name for name, value in row.items() if name.endswith("/step") and value)
        for name, value in row.items():
            if value and name != axis:
                expected.setdefault(name, []).append((int(row[axis]), pytest.approx(float(value), rel=1e-6)))
    points = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert points == expected
    for stage in STAGES[:2]:
        assert [step for step, _ in points[f"training/{stage}/loss"]] == [1, 2, 3, 4, 6]
    images = {name.removeprefix("figures/").replace("/", "_") for name in events.Tags()["images"]}
    assert images == {path.stem for path in (folder / "figures").glob("*.png")}


def test_an_unreachable_server_does_not_stop_a_training(command, tmp_path):
    answer = command(
        "train.py", *SMALL, "logger.wandb.init_timeout=3", WANDB_API_KEY="0" * 40, WANDB_BASE_URL="http://127.0.0.1:9"
    )
    assert answer.returncode == 0, answer.stderr
    assert "wandb: offline" in answer.stderr and answer.stderr.count("warning: ") == 1  # no look at its checkpoints
    (folder,) = run_folders(tmp_path)
    assert len(metrics_of(folder)) == len(wandb_log.read(folder).points("training/operator/loss")) == 5


@pytest.mark.xdist_group("evaluate")
def test_the_store_is_listed_with_what_is_not_as_by_default(tmp_path, diffusion):
    shutil.copytree(diffusion / "store", tmp_path / "store")
    (operator,), (corrector,) = (tmp_path.glob(f"store/{name}-*/") for name in STAGES[:2])
    score = json.loads((corrector / "result.json").read_text())["score"]
    (operator / "result.json").unlink()
    (tmp_path / "store" / "unknown-0").mkdir()
    (tmp_path / "store" / "unknown-0" / "identity.json").write_text("{}")
    listed = subprocess.run(
        [sys.executable, "-m", "ups.runs.stored", "store"], cwd=tmp_path, text=True, check=True, capture_output=True,
        env=clean_environment(tmp_path) | {"PYTHONPATH": str(ROOT)},
    ).stdout  # fmt: skip
    lines = dict(zip(listed.splitlines()[:-1:2], listed.splitlines()[1::2], strict=True))
    told = rf"{corrector.name}  6 steps, nRMSE {score:.2e} on validation, \S+ on test, CRPS \S+"
    for head in (told, f"{operator.name}  0 of 6 steps"):
        (changed,) = (keys for line, keys in lines.items() if re.fullmatch(head, line))
        assert " dataset.nu=0.01 " in changed and "model." not in changed
    assert listed.splitlines()[-1] == "unknown-0  store/unknown-0/identity.json is no stage's"


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory, cache) -> Path:
    """A folder with a trained diffusion and its operator in its store."""
    folder = tmp_path_factory.mktemp("diffusion")
    subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "stage=diffusion_residual", "logger=none", *SMALL, f"cache={cache}"],
        cwd=folder, env=clean_environment(folder), check=True, capture_output=True,
    )  # fmt: skip
    return folder


def shown(table: str, measure: str) -> list[str]:
    """The cells of a measure's row."""
    return [cell.strip() for cell in re.search(rf"^│ {measure} +│(.*)│$", table, re.MULTILINE)[1].split("│")]


@pytest.mark.xdist_group("evaluate")
def test_evaluate_gives_the_metrics_beside_baselines(command, tmp_path, cache, diffusion):
    scored = {}
    for name in STAGES[:2]:
        (checkpoint,) = (diffusion / "store").glob(f"{name}-*/")
        compared = f"compare={'null' if name == 'operator' else scored['operator']['checkpoint']}"
        answer = command(
            "evaluate.py", f"checkpoint={checkpoint}", f"cache={cache}", "rollout_steps=5", compared
        )
        assert answer.returncode == 0, answer.stderr
        folder = max(tmp_path.rglob("metrics.json"), key=lambda path: path.stat().st_mtime).parent
        metrics = json.loads((folder / "metrics.json").read_text())
        scored[name] = metrics | {"checkpoint": str(checkpoint)}
        expected = {"rmse", "nrmse", "crmse", "max_error", "brmse", "frmse_low", "frmse_mid", "frmse_high", "mae",
                    "one_step_nrmse", "nrmse_worst", "energy_excess", "diverged", "crps"}  # fmt: skip
        for scores in (metrics, metrics["baselines"]["persistence"], metrics["baselines"]["solver"]):
            assert expected <= set(scores) and len(scores["nrmse_per_frame"]) == 5
            assert scores["nrmse"] == pytest.approx(sum(scores["nrmse_per_trajectory"]) / 8)
            low, high = scores["nrmse_interval"]
            assert low < scores["nrmse"] < high
        for other in ("persistence", "solver"):
            ratio = metrics[f"versus_{other}"]
            assert ratio["ratio"] == pytest.approx(metrics["nrmse"] / metrics["baselines"][other]["nrmse"], rel=1e-5)
            assert ratio["low"] < ratio["ratio"] < ratio["high"]
        assert metrics["trajectories"] == 8 and metrics["seconds"] > 0
        trained = json.loads((checkpoint / "result.json").read_text())["metrics"]["test"]
        assert metrics["nrmse"] == pytest.approx(trained["rollout_nrmse"], rel=1e-4)
        corrector = {"members", "spread_skill", "rank_histogram", "evaluations_per_step"}
        assert bool(corrector & set(metrics)) == (corrector <= set(metrics)) == (name == "diffusion_residual")
        if name == "diffusion_residual":
            low, high = metrics["spread_skill_interval"]
            assert low < metrics["spread_skill"] < high
        columns = {name: metrics["baselines"][name] for name in ("persistence", "solver")}
        for measure in ("nrmse", "rmse", "mae", "crps", "one_step_nrmse", "worst_over_mean"):
            told = [f"{scores[measure]:.3g}" for scores in (metrics, *columns.values())]
            assert shown(answer.stdout, measure)[:3] == told
        for measure, key in (("nrmse ratio", "ratio"), ("crps ratio", "crps_ratio")):
            told = [f"{metrics[f'versus_{other}'][key]:.3g}" for other in columns]
            assert shown(answer.stdout, measure)[1:3] == told
        figures = {"space_time", "error", "spectrum"} | ({"ensemble"} if name == "diffusion_residual" else set())
        assert {path.stem for path in (folder / "figures").iterdir()} == {f"{name}_{kind}" for kind in figures}
        assert ("versus_compare" in metrics) == ("compare" in answer.stdout) == (name == "diffusion_residual")
    operator, corrector = scored.values()
    ratio = corrector["versus_compare"]
    assert ratio["checkpoint"] == operator["checkpoint"] and ratio["nrmse"] == pytest.approx(operator["nrmse"])
    assert ratio["low"] < ratio["ratio"] < ratio["high"]
    assert ratio["ratio"] == pytest.approx(corrector["nrmse"] / operator["nrmse"], rel=1e-5)
    assert operator["crps"] == pytest.approx(operator["mae"], rel=1e-5)
    assert ratio["crps_low"] < ratio["crps_ratio"] < ratio["crps_high"]
    assert ratio["crps_ratio"] == pytest.approx(corrector["crps"] / operator["mae"], rel=1e-5)


@pytest.mark.xdist_group("evaluate")
def test_evaluate_reads_files_of_others_and_other_initial_conditions(command, tmp_path, diffusion):
    path = foreign("1D_Burgers_Sols_Nu0.01_n16.hdf5")
    (checkpoint,) = (diffusion / "store").glob("operator-*/")
    answer = command("evaluate.py", f"checkpoint={checkpoint}", "dataset=pdebench_burgers", f"dataset.path={path}")
    assert answer.returncode == 0, answer.stderr
    (file,) = tmp_path.rglob("metrics.json")
    metrics = json.loads(file.read_text())
    assert metrics["trajectories"] == 16 and len(metrics["nrmse_per_frame"]) == 31
    assert metrics["baselines"]["solver"]["nrmse"] < 1e-3 < 0.3 < metrics["baselines"]["persistence"]["nrmse"]
    assert metrics["dataset"]["path"] == str(path) and metrics["checkpoint"] == str(checkpoint)
    assert f"note: checkpoint is {OTHER_DATA} (points: 64 -> 256)" in answer.stderr

    file.unlink()
    fields = ["dataset=burgers", "dataset.initial_condition=random_field", "dataset.nu=0.01", "dataset.test=3"]
    answer = command("evaluate.py", f"checkpoint={checkpoint}", *fields)
    assert answer.returncode == 0
    assert f"note: checkpoint is {OTHER_DATA} (initial_condition: sinusoids -> random_" in answer.stderr
    (file,) = tmp_path.rglob("metrics.json")
    metrics = json.loads(file.read_text())
    assert metrics["trajectories"] == 3 and 0 < metrics["baselines"]["solver"]["nrmse"] < 1e-3


@pytest.mark.xdist_group("evaluate")
def test_evaluate_says_what_is_missing(command, tmp_path, diffusion):
    answer = command("evaluate.py", "checkpoint=nowhere")
    assert answer.returncode == 1 and answer.stderr.strip().splitlines()[-1].startswith("error: checkpoint=nowhere")
    answer = command("evaluate.py", "checkpoint=nowhere", "dataset.points=64")
    assert answer.returncode == 1 and answer.stderr.strip().endswith(": give dataset=OPTION too"), answer.stderr
    shutil.copytree(diffusion / "store", tmp_path / "store")
    (operator,) = (tmp_path / "store").glob("operator-*/")
    os.rename(operator, tmp_path / "elsewhere")
    (corrector,) = (tmp_path / "store").glob("diffusion_residual-*/")
    answer = command("evaluate.py", f"checkpoint={corrector}")
    assert answer.returncode == 1 and f"store/{operator.name} is missing" in answer.stderr
    (corrector / "result.json").unlink()
    answer = command("evaluate.py", f"checkpoint={corrector}")
    assert answer.returncode == 1 and "its training is not finished; the same train.py command" in answer.stderr


@pytest.mark.xdist_group("evaluate")
def test_evaluate_names_each_nu_and_members_are_of_either_stage(command, tmp_path, diffusion):
    operator, corrector = (next((diffusion / "store").glob(f"{name}-*/")) for name in STAGES[:2])
    fields = ["dataset=burgers", "dataset.nu=[0.1,0.05]", "dataset.test=2", "dataset.frames=15", "dataset.points=64"]
    answer = command("evaluate.py", f"checkpoint={operator}", f"compare={corrector}", "members=3", "rollout_steps=5",
                     *fields)  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    metrics = json.loads(next(tmp_path.rglob("metrics.json")).read_text())
    errors = metrics["nrmse_of_nu"]
    assert set(errors) == {"0.1", "0.05"} and sum(errors.values()) / 2 == pytest.approx(metrics["nrmse"], rel=1e-5)
    assert errors["0.1"] == pytest.approx(sum(metrics["nrmse_per_trajectory"][:2]) / 2, rel=1e-5)  # in nu's order
    assert re.search(r"spread_skill +│ +│ +│ +│ +[0-9]", answer.stdout)  # the last column, of `compare`, alone has one
    assert "of nu 0.05" in answer.stdout and "nu 0.05, 0.1, 64 points, 5 steps" in answer.stdout

    next(tmp_path.rglob("metrics.json")).unlink()
    chosen = ["members=3", "initial_frame=2", "rollout_steps=5", "evaluations_per_step=1", f"compare={corrector}"]
    assert command("evaluate.py", f"checkpoint={corrector}", *chosen, *fields).returncode == 0
    others = json.loads(next(tmp_path.rglob("metrics.json")).read_text())
    assert others["evaluations_per_step"] == 1 and others["versus_compare"]["crps_ratio"] != 1
    assert others["members"] == 3 and len(others["rank_histogram"]) == 4
    of_persistence = [each["baselines"]["persistence"]["nrmse_per_frame"] for each in (metrics, others)]
    assert all(late != early for late, early in zip(*of_persistence, strict=True))


def test_training_on_pdebench_files(command, tmp_path):
    path = foreign("1D_Burgers_Sols_Nu0.001_n16.hdf5")
    small = ["dataset=pdebench_burgers", f"dataset.path={path}", "dataset.test=4", "dataset.validation=4"]
    answer = command("train.py", *small, "budget.operator=4", "stage.validations=1", "logger=none", "runtime.threads=1")
    assert answer.returncode == 0, answer.stderr

    (checkpoint,) = (tmp_path / "store").glob("operator-*/")
    scored = ["evaluate.py", f"checkpoint={checkpoint}", "dataset=pdebench_burgers", f"dataset.path={path}"]
    refused = command(*scored)
    assert refused.returncode == 1 and "the stage of checkpoint has seen all but the first 4" in refused.stderr
    assert command(*scored, "dataset.test=4", "rollout_steps=2").returncode == 0

    assert command("train.py", "logger=none", *SMALL, "store=other").returncode == 0
    (other,) = (tmp_path / "other").glob("operator-*/")
    refused = command("evaluate.py", f"checkpoint={other}", f"compare={checkpoint}", *scored[2:])
    assert refused.returncode == 1 and "the stage of compare has seen all but the first 4" in refused.stderr


@pytest.mark.parametrize("choice", ["model=latent_operator", "model=solver_in_the_loop", "stage=consistency_distill"])
def test_training_in_half_precision(choice, command, tmp_path):
    answer = command("train.py", choice, "runtime.precision=bfloat16", "logger=none", *SMALL)
    assert answer.returncode == 0, answer.stderr
