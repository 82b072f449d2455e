"""Bad input gives one line that names the key and what would be valid, exit 1, and no traceback."""

import dataclasses
import os
import re
import resource
import signal
import subprocess
import sys

import pytest
from conftest import ROOT, clean_environment, train_config
from hydra.errors import HydraException
from omegaconf import OmegaConf
from test_data import write_hdf5

from ups.config.build import build
from ups.config.check import OPTIMIZER_KEYS, _leaves, check, window_keys
from ups.config.compose import composed, plain
from ups.config.mistakes import one_line
from ups.config.nearest import keys
from ups.config.rules import RULES
from ups.errors import UserError
from ups.models.dilresnet import DilatedResNet
from ups.models.step import Step
from ups.runs.preflight import check_watchers
from ups.runs.train import make_callbacks
from ups.training.build import check_names, try_out
from ups.training.identity import canonical, differences, from_content, identity_of
from ups.training.optimizer import OptimizerSettings
from ups.training.plan import check_batch_sizes
from ups.training.runtime import set_up

STAGES = ("operator", "diffusion_residual", "consistency_distill")


def options_of(group):
    return [f"{group}={file.stem}" for file in sorted((ROOT / "conf" / group).glob("*.yaml"))]


@pytest.mark.parametrize("choice", options_of("model") + options_of("experiment"))
def test_every_model_and_preset_is_valid_and_the_same_wherever_a_stage_stands(choice):
    cfg = train_config(f"stage={STAGES[-1]}", choice)
    check(cfg)
    chain = identity_of(cfg).chain()
    try_out(chain[-1], build(cfg.dataset, "dataset"), set_up("cpu", 1))
    alone = [identity_of(train_config(f"stage={stage}", choice)) for stage in STAGES]
    assert [each.digest for each in chain] == [each.digest for each in alone]


def test_a_model_brings_its_learning_rate_and_yields_to_the_command_line():
    rate = lambda *overrides: train_config(*overrides).stage.optimizer.lr
    assert rate("model=fno") == rate("model=fno", "experiment=nu_range") == 2e-3
    assert rate("model=dilresnet") == rate() == 4e-3
    assert rate("model=latent_operator", "operator.lr=1e-3") == 1e-3
    with pytest.raises(UserError, match="operator"):
        check(train_config("operator=fno"))  # the node is no group: no model gets another's


@pytest.mark.parametrize("file", sorted((ROOT / "conf").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_one_screen_and_starts_with_its_command(file):
    lines = file.read_text().splitlines()
    assert len(lines) <= 60
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# python ")


BAD = {
    "dataset.nu=-1.0": "dataset.nu=-1.0: must be a number above 0",
    "dataset.nu=[0.01,x]": "dataset.nu",
    "dataset.nu=[0.01,0.01]": "dataset.nu=[0.01, 0.01]: must be a number above 0",
    "stage.steps=0": "stage.steps=0: must be a whole number, at least 1",
    "stage.steps=many": "stage.steps=many",
    "stage.steps=": "stage.steps=: must be a whole number",
    "stage.batch_size=1.5": "stage.batch_size=1.5",
    "stage.optimizer.lr=0": "stage.optimizer.lr=0",
    "stage.optimizer.lr=.nan": "stage.optimizer.lr=.nan",
    "stage.input_noise=[0.1,0.01]": "stage.input_noise",
    "operator.input_noise=[0.1,0.01]": "operator.input_noise=[0.1,0.01]: must rise",
    "operator.lr=0": "operator.lr=0",
    "dataset.rollout_steps=32": "dataset.rollout_steps=32: from dataset.initial_frame=9 it must be at most 31",
    "dataset.initial_frame=60": "dataset.initial_frame=60: must be at most 39, since dataset.frames=41",
    "require=maybe": "require=maybe: must be one of train, found",
    "callbacks.figures=null": "callbacks.figures=null: must be a group of keys; ~callbacks.NAME or ~logger.NAME leaves",
    "runtime.device=tpu": "runtime.device=tpu",
    "runtime.threads=0": "runtime.threads=0",
    "seed=-1": "seed=-1",
    "callbacks.progress.every=0": "callbacks.progress.every=0",
    "model.width=0": "model.width=0",
    "dataset.nu_range=[0.1,0.01]": "dataset.nu_range=[0.1,0.01]: must rise",
    "dataset.nu_range=[0.01,0.01]": "dataset.nu_range=[0.01,0.01]: must rise",
    "dataset.nu_range=[0,0.01]": "dataset.nu_range=[0, 0.01]: must be a list of 2 values, each a number above 0",
    "dataset.nu_range=0.01": "dataset.nu_range=0.01: must be a list of 2 values",
    "dataset.initial_condition=waves": "dataset.initial_condition=waves: must be one of sinusoids, random_field",
    "stage.symmetries=[rotation]": "stage.symmetries=['rotation']: must be a list of translation, reflection, galilean",
    "stage.symmetries=[reflection,reflection]": "stage.symmetries",
    "stage.symmetries=reflection": "stage.symmetries=reflection: must be a list",
    "stage.name=123": "stage.name=123: must be a text of letters, digits and _",
    "logger.wandb.project=a/b": "logger.wandb.project=a/b: must be at most 128 characters, none of / ",
    "logger.wandb.project=" + 129 * "a": "logger.wandb.project=",
    "logger.wandb.tags=[" + 65 * "a" + "]": "logger.wandb.tags=[",
}


@pytest.mark.parametrize("override", BAD)
def test_values_out_of_range(override):
    with pytest.raises(UserError) as error:
        check(train_config(override))
    assert str(error.value).startswith(BAD[override]) and "\n" not in str(error.value)


def test_two_stages_of_one_class_have_two_names_too():
    below = {"name": "mine", "_target_": "own.Mine", "requires": None}
    check_names(from_content({"stage": below | {"name": "other", "requires": below}}).chain())
    with pytest.raises(UserError, match=r"^stage\.requires\.name=mine: another stage of the chain has that name"):
        check_names(from_content({"stage": below | {"requires": below}}).chain())


def test_values_deep_in_the_chain_are_checked_under_their_own_name():
    with pytest.raises(UserError, match=r"^stage\.requires\.requires\.steps=0"):
        check(train_config("stage=consistency_distill", "stage.requires.requires.steps=0"))


@pytest.mark.parametrize(("script", "given", "key"), [
    ("train", ["+batch_size=32"], "batch_size"),
    ("train", ["+auto_shutdown=true"], "auto_shutdown"),
    ("train", ["+checkpoint=x"], "checkpoint"),
    ("train", ["++budget.operater=100"], "budget.operater"),
    ("launch", ["+members=19"], "members"),
    ("evaluate", ["checkpoint=x", "+runtime.precision=bfloat16"], "runtime.precision"),
    ("evaluate", ["checkpoint=x", "+seed=3"], "seed"),
])  # fmt: skip
def test_a_key_that_the_script_does_not_read_is_no_key(script, given, key):
    with pytest.raises(UserError, match=f"^{re.escape(key)} is not a key of the config[:;] "):
        check(composed(script, given), script)
    check(composed(script, given[:-1]), script)


def test_a_bid_is_for_an_interruptible_machine():
    check(composed("launch", ["vast.bid=0.1", "vast.interruptible=true"]), "launch")
    with pytest.raises(UserError, match=r"^vast\.bid=0\.1: only an interruptible machine"):
        check(composed("launch", ["vast.bid=0.1"]), "launch")


@pytest.mark.parametrize("key", ["dry_run", "rehearse"])
def test_what_would_not_be_dry_is_not_promised_to_be(key):
    check(composed("launch", [f"vast.{key}=true"]), "launch")
    with pytest.raises(UserError, match=rf"^vast\.{key}=true: vast\.action=reap does not heed it"):
        check(composed("launch", [f"vast.{key}=true", "vast.action=reap"]), "launch")


def test_every_number_of_the_config_has_a_rule():
    """So that a new key cannot be forgotten."""
    choices = [[choice] for choice in options_of("stage") + options_of("model")]
    choices += [[choice, "++dataset.path=any"] for choice in options_of("dataset")]
    scripts = composed("launch"), composed("evaluate", ["checkpoint=any"])
    for cfg in (*(train_config(*choice) for choice in choices), *scripts):
        for key, value in _leaves(plain(cfg)):
            general = re.sub(r"^stage\.(requires\.)*", "stage.", key)
            if isinstance(value, int | float | list) and not key.startswith("logger.wandb.tags"):
                assert any(re.fullmatch(pattern, general) for pattern in RULES), key


@pytest.mark.parametrize("key", [
    "stage.name", "stage.requires", "stage.steps", "stage.batch_size", "stage.symmetries", "stage.validations",
    "stage.optimizer", "stage.optimizer.clip", "stage.requires.requires", "stage.requires.validations",
    "stage.requires.optimizer.basis_interval", "dataset.train", "dataset.rollout_steps",
])  # fmt: skip
def test_what_is_read_of_every_stage_and_dataset_has_to_be_there(key):
    cfg = train_config("stage=diffusion_residual")
    OmegaConf.set_struct(cfg, False)
    parent, _, name = key.rpartition(".")
    del OmegaConf.select(cfg, parent)[name]
    with pytest.raises(UserError, match=rf"^{re.escape(key)} is not set, and every run reads it$"):
        check(cfg)


def test_the_optimizers_keys_are_its_settings():
    assert list(OPTIMIZER_KEYS) == [each.name for each in dataclasses.fields(OptimizerSettings)]


class Unconditioned(DilatedResNet):
    def __init__(self, in_channels, out_channels, width, kernel, dilations):
        super().__init__(in_channels, out_channels, 2, width, kernel, dilations)


class Flat(DilatedResNet):
    def forward(self, x, c):
        return super().forward(x, c)[:, 0]


class Mean(Step):
    def __init__(self, in_channels, out_channels, condition, width, kernel, dilations):
        super().__init__()

    def forward(self, u, nu, time_step):
        return u.mean(-1)


REFUSED = [
    (["dataset=pdebench_burgers"], "dataset.path is not set: give dataset.path=VALUE"),
    (["dataset=pdebench_burgers", "dataset.path=nowhere.hdf5"], "dataset.path=nowhere.hdf5: no such file or folder"),
    (["dataset.train=null"], "dataset.train=null: say how many trajectories to generate"),
    (["+model.foo=1"], "model.foo: its class has no such key; leave it out"),
    (["model._target_=test_config.Unconditioned"],
     "model: the constructor of test_config.Unconditioned must take condition"),
    (["model._target_=test_config.Flat"], "model: the network must give (1, 1, 256), "),
    (["model._target_=test_config.Mean"], "model: the step must give (1, 256): it gives (1,)"),
    (["stage=diffusion_residual", "stage.network._target_=test_config.Flat"],
     "stage.network: the network must give (1, 2, 256), "),
    (["stage=diffusion_residual", "stage.network=unet"],
     "stage.network=unet: an option is chosen by model@stage.network=unet"),
    (["+stage.optimizer.lrr=3"], "stage.optimizer.lrr is not a key of the config: did you mean stage.optimizer.lr?"),
    (["budget=5"], "budget=5: must be a group of keys"),
    (["~model.width", "~model.kernel"], "model.width is not set, and its class requires it"),
    (["+callbacks.progress.foo=1"], "callbacks.progress.foo: its class has no such key"),
    (["+callbacks.foo={}"], "callbacks.foo._target_ is not set"),
    (["model._target_=nowhere.Net"], "model._target_=nowhere.Net cannot be imported: No module named 'nowhere'"),
    (["experiment=smoke", "dataset=pdebench_burgers", "dataset.path=any"],
     "dataset.nu: its class has no such key; leave it out, or the preset that sets it"),
    (["model.kernel=4"], "model.kernel=4 must be odd"),
    (["model=latent_operator", "model.width=10"], "model.width=10 must be even and a multiple of heads=4"),
    (["model=latent_operator", "model.patch=7"], "model.patch=7: must divide the 256 points"),
    (["model=unet", "model.levels=4", "dataset.solver_points=1000", "dataset.points=40"],
     "model.levels=4: 16 must divide the 40 points"),
    (["stage=diffusion_residual", "model@stage.network=unet", "stage.network.levels=4", "dataset.solver_points=1000",
      "dataset.points=40"], "stage.network.levels=4: 16 must divide the 40 points"),
    (["stage=diffusion_residual", "model@stage.network=solver_in_the_loop"],
     "stage.network: solver_in_the_loop is an operator, not a corrector's network: choose dilresnet_small"),
    (["+stage@stage.requires=operator"], "stage.requires: an operator requires no stage"),
    (["stage=diffusion_residual", "stage.name=operator"],  # its charts would be the operator's
     "stage.requires.name=operator: another stage of the chain has that name"),
    (["stage=consistency_distill", "stage.requires=null"], "stage.requires: a consistency_distill requires a"),
    (["stage=consistency_distill", "stage.requires.requires=null"],
     "stage.requires.requires: a diffusion_residual requires an operator"),
    (["stage=consistency_distill", "stage.requires.network.kernel=4"], "stage.requires.network.kernel=4 must be odd"),
    (["stage=consistency_distill", "model@stage.requires.network=latent_operator", "stage.requires.network.patch=7"],
     "stage.requires.network.patch=7: must divide the 256 points"),
    (["stage=consistency_distill", "stage.evaluations_per_step=3"],
     "stage.evaluations_per_step=3: a consistency student takes 1 or 2"),
    (["stage=consistency_distill", "stage.members=1"], "stage.members=1: the spread of a student"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[each[0][-1] for each in REFUSED])
def test_what_cannot_be_built_is_named_by_its_place_in_the_config(overrides, message, tmp_path):
    with pytest.raises(UserError) as error:
        cfg = train_config(*overrides)
        check(cfg)
        try_out(identity_of(cfg), build(cfg.dataset, "dataset"), set_up("cpu", 1))
        make_callbacks(cfg, [], tmp_path)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(("override", "message"), [
    ("+callbacks.figures.foo=1", "callbacks.figures.foo: its class has no such key"),
    ("callbacks.upload._target_=ups.callbacks.Up", "callbacks.upload._target_=ups.callbacks.Up cannot be imported: "),
    ("+logger.wandb.colour=red", "logger.wandb.colour: its class has no such key"),
])  # fmt: skip
def test_a_callback_or_logger_that_cannot_be_made_is_told_before_a_rental(override, message):
    cfg = train_config(override, "logger=[wandb,csv,tensorboard]")
    check(cfg)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        check_watchers(cfg)


def test_a_file_that_a_network_cannot_read_is_refused_before_it_is_read(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5")  # of 32 points
    file = [f"dataset.path={path}", "dataset.initial_frame=0"]
    cfg = train_config("dataset=pdebench_burgers", *file, "model=unet", "model.levels=4")
    check(cfg)
    with pytest.raises(UserError, match=r"^model\.levels=4: 16 must divide the 8 points"):
        try_out(identity_of(cfg), build(cfg.dataset, "dataset"), set_up("cpu", 1))


def test_a_file_with_too_few_frames_is_refused_before_it_is_read(tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5")  # of 3 frames, by the stride of 5
    for first, message in (
        (0, r"dataset\.rollout_steps=31 from dataset\.initial_frame=0 needs 32 frames"),
        (9, r"dataset\.initial_frame=9: no frame is left to predict of the 3 that dataset\.time_stride=5 leaves"),
    ):
        cfg = train_config("dataset=pdebench_burgers", f"dataset.path={path}", f"dataset.initial_frame={first}")
        check(cfg)
        with pytest.raises(UserError, match=f"^{message}"):
            try_out(identity_of(cfg), build(cfg.dataset, "dataset"), set_up("cpu", 1))


@pytest.mark.parametrize(
    ("script", "override", "message"),
    [
        ("train", "seed=0,1,2", "seed=0,1,2: several values are a sweep, for which -m is missing"),
        ("train", "stage=operator,diffusion_residual", "several values are a sweep"),
        ("train", "stage.lr=1", "did you mean stage.optimizer.lr or operator.lr?"),
        ("train", "dataset.nuu=3", "did you mean dataset.nu?"),
        ("train", "stagge.steps=3", "did you mean stage.steps?"),
        ("train", "budget.foo=1", "budget has operator, diffusion_residual, consistency_distill"),
        ("train", "logger.mode=offline", "logger has wandb"),
        ("train", "logger=[wandb,csvv]",
         "logger=csvv is not an option of the group logger: choose of csv, none, tensorboard, wandb"),
        ("train", "callbacks=[default,foo]", "callbacks=foo is not an option of the group callbacks: choose of def"),
        ("launch", "vast.gpu=RTX_4090", "did you mean vast.offer.gpu?"),
    ],
)  # fmt: skip
def test_what_is_no_key_is_answered_by_one_that_was_meant(script, override, message):
    with pytest.raises(HydraException) as error:
        composed(script, [override])
    assert message in one_line(error.value, list(keys(composed(script))))


@pytest.mark.slow
def test_the_keys_of_an_option_of_ones_own_are_known_too(command, tmp_path):
    own = tmp_path / "own" / "model"
    own.mkdir(parents=True)
    (own / "net.yaml").write_text("_target_: mine.Net\nhidden: 8\n")
    answer = command("train.py", f"hydra.searchpath=[file://{tmp_path}/own]", "model=net", "model.hiden=3")
    assert answer.returncode == 1 and "did you mean model.hidden?" in answer.stderr


def test_a_difference_is_spelled_as_it_is_typed():
    found, wanted = {"a": None, "b": [1, 2.5], "c": "x"}, {"a": True, "b": "y"}
    assert differences(wanted, found) == ["a: null -> true", "b: [1,2.5] -> y", "c: x -> absent"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stage.stepz=3"], "stage.stepz is not a key of the config: did you mean stage.steps?"),
        (["model.wdth=3"], "did you mean model.width?"),
        (["stage=operatr"], "stage=operatr is not an option of the group stage: choose one of consistency_distill, "),
        (["experiment=smok", "-m", "seed=0,1"], "experiment=smok is not an option of the group experiment"),
        (["stage=diffusion_residual", "model@stage.network=unet", "stage.network.levls=2"],
         "stage.network.levls is not a key of the config: did you mean stage.network.levels?"),
        (["stage=consistency_distill", "model@stage.network=unet"],
         "model@stage.network is not a choice of this config: did you mean model@stage.requires.network?"),
        (["modle=dilresnet"], "modle is not a key of the config: did you mean model?"),
        (["optimizer=adamw"], "optimizer is not a group of this config: did you mean optimizer@stage.optimizer?"),
        (["~model.width"], "~model.width: the key is needed"),
        (["~callbacks.step_metrics"], "~callbacks.step_metrics: the key is needed"),
        (["--resolve"], "The --resolve flag can only be used"),
        (["seed=${nope}"], "seed: Interpolation key 'nope' not found"),
        (["logger=csv", "+logger.wandb={}"], "logger.wandb.project is not set, and every run reads it"),
        (["experiment=null"], "a group takes the name of an option"),
        (["stage=[0]"], "a group takes the name of an option, no number"),
        (["stage.steps"], "Error parsing override 'stage.steps' missing EQUAL"),
        # These reach the job, as all of the tables above would.
        (["+stage.foo=1", "logger=none", "experiment=smoke"], "stage.foo: its class has no such key"),
        (["experiment=smoke", "logger=none", "stage.batch_size=100000"], "stage.batch_size=100000 (operator): the"),
        (["stage=diffusion_residual", "require=found"], "require=found, and store/operator-"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_one_line_exit_1_no_traceback(command, tmp_path, arguments, message):
    answer = command("train.py", *arguments, "cache=own")
    assert not list(tmp_path.rglob("*.safetensors")) or "batch_size" in message, "data was generated for it"
    lines = [line for line in answer.stderr.splitlines() if line.startswith("error: ")]
    assert answer.returncode == 1, answer.stderr
    assert len(lines) == 1 and message in lines[0]
    assert len(lines[0]) < 300 and "Error executing job" not in answer.stderr
    assert "Traceback" not in answer.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "part"),
    [("train.py", ["-sc", "query=bash"], "operator")] + [
        (script, arguments, part) for arguments in (["--cfg", "job"], ["--help"])
        for script, part in (("train.py", "operator"), ("evaluate.py", "checkpoint"), ("launch_vast.py", "vast"))
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].strip("-"),
)  # fmt: skip
def test_answers_at_once_without_torch(script, arguments, part, tmp_path):
    command = [sys.executable, "-X", "importtime", str(ROOT / script), *arguments]
    environment = clean_environment(tmp_path) | ({"COMP_LINE": "python train.py stage="} if "-sc" in arguments else {})
    worked = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # seconds of its own, whatever runs beside
    laps = []
    for _ in range(2):  # the first of a fresh environment compiles Hydra
        before = worked()
        answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        laps.append(worked() - before)
    assert min(laps) < 1.5, laps  # 0.5 on an idle machine
    assert answer.returncode == 0 and part in answer.stdout, answer.stderr[-2000:]
    assert not re.search(r"\| +(torch|vastai|wandb)\b", answer.stderr)


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_of_the_help_gets_no_traceback(tmp_path):
    """As of `python train.py --help | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    answer = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--help"], cwd=tmp_path, env=clean_environment(tmp_path),
        stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(writing)
    assert (answer.returncode, answer.stderr) == (128 + signal.SIGPIPE, "")


def test_the_keys_of_the_window_are_those_that_set_it():
    assert window_keys(train_config()) == ("dataset.initial_frame", "dataset.rollout_steps")
    own = ["checkpoint=any", "rollout_steps=5"]
    assert window_keys(composed("evaluate", own)) == ("initial_frame", "rollout_steps")
    assert window_keys(composed("evaluate", [*own, "dataset=burgers"])) == ("dataset.initial_frame", "rollout_steps")


def test_a_batch_that_cannot_be_split_is_named_by_its_place_in_the_chain():
    chain = identity_of(train_config("stage=consistency_distill", "stage.requires.batch_size=15")).chain()
    check_batch_sizes(chain, 2, found=[chain[1]])
    for found in ([], [chain[2]]):
        with pytest.raises(UserError, match=r"^stage\.requires\.batch_size=15: 2 processes"):
            check_batch_sizes(chain, 2, found)


def test_identity_is_what_determines_the_weights():
    base = identity_of(train_config("stage=diffusion_residual"))
    same = ["runtime.device=cpu", "runtime.threads=2", "store=elsewhere", "logger=none", "callbacks.progress.every=7",
            "stage.requires.optimizer.lr=0.004", "dataset.time_step=0.050"]  # fmt: skip
    assert all(identity_of(train_config("stage=diffusion_residual", key)).digest == base.digest for key in same)
    other = ["seed=1", "model.width=16", "dataset.nu=0.01", "stage.requires.steps=7", "stage.members=3"]
    digests = {identity_of(train_config("stage=diffusion_residual", key)).digest for key in other}
    assert len(digests | {base.digest}) == len(other) + 1


def test_the_option_adamw_is_what_the_reports_of_the_docs_spell_out():
    spelt = ("stage.optimizer.basis_interval=null", "stage.optimizer.betas=[0.9,0.99]")
    digests = [identity_of(train_config(*keys)).digest for keys in (("optimizer@stage.optimizer=adamw",), spelt, ())]
    assert digests[0] == digests[1] != digests[2]


def test_a_required_stage_is_the_same_entry_as_the_stage_alone():
    chain = identity_of(train_config("stage=consistency_distill")).chain()
    assert [each.digest for each in chain] == [identity_of(train_config(f"stage={name}")).digest for name in STAGES]


def test_canonical_numbers():
    assert canonical({"a": [1.0, 2], "b": 0.5, "c": True}) == {"a": [1, 2], "b": 0.5, "c": True}
