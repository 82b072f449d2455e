"""A stage and a dataset of one's own, in a folder of one's own, train, are found and are scored as those of conf/."""

import json
import sys

import pytest
from conftest import train_config
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from ups.config.build import build
from ups.config.check import check
from ups.errors import UserError
from ups.files import write_json
from ups.paths import CONFIG_FOLDER
from ups.training.identity import from_content, identity_of, read_identity

STAGE = """# python train.py hydra.searchpath=[file://conf] stage=scaled
defaults:
  - /stage@requires: operator
  - _self_

_target_: "own.Scaled"
name: scaled
start: 0.9

steps: 6
batch_size: 4
symmetries: []
validations: 2
optimizer:
  {lr: 1.0e-2, warmup: 0.0, betas: [0.9, 0.9], basis_interval: null, weight_decay: 0.0, clip: 1.0, ema_decay: 0.9}
"""
DATASET = """# python train.py hydra.searchpath=[file://conf] dataset=waves
_target_: own.Waves
train: 8
validation: 4
test: 3
initial_frame: 1
rollout_steps: 3
"""
CODE = '''
import math

import torch
from torch import nn

from ups.data.initial_conditions import random_sinusoids
from ups.data.solver import solve
from ups.data.trajectories import Dataset, Splits, Trajectories
from ups.stages.stage import Stage, relative_l2


class Scaled(Stage):
    """The required stage's step, times a factor that is learned."""

    def __init__(self, requires, start):
        self.operator, self.network = requires, nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.network.weight, start)

    def loss(self, batch):
        u, truth = batch.u.unbind(1)
        return relative_l2(self.step(u, batch.nu, batch.time_step, batch.generator), truth).mean(), {}

    def step(self, u, nu, time_step, generator):
        with torch.no_grad():
            after = self.operator.step(u, nu, time_step, generator)
        return self.network(after[..., None])[..., 0]


class Waves(Dataset):
    """Strongly damped, on 64 points."""

    def __init__(self, initial_frame, rollout_steps, **counts):
        self.initial_frame, self.rollout_steps, self.counts = initial_frame, rollout_steps, counts

    def load(self, cache):
        return Splits(**{split: self.solved(split) for split in self.counts})

    def load_test(self, cache):
        return self.solved("test")

    def solved(self, split):
        generator = torch.Generator().manual_seed(len(split))
        u0 = random_sinusoids(self.counts[split], 64, generator).float()
        u = solve(u0, 0.1 / math.pi, [0.05 * frame for frame in range(6)])
        return Trajectories(u, torch.full((len(u),), 0.1), 0.05)
'''


@pytest.fixture
def own(tmp_path):
    """The overrides that train them."""
    for name, text in (("conf/stage/scaled.yaml", STAGE), ("conf/dataset/waves.yaml", DATASET), ("own.py", CODE)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return [f"hydra.searchpath=[file://{tmp_path}/conf]", "stage=scaled", "dataset=waves"]


@pytest.mark.slow
def test_they_train_are_found_and_are_scored(own, command, tmp_path):
    python = {"PYTHONPATH": str(tmp_path)}
    small = ["budget.operator=6", "stage.requires.validations=2", "runtime.threads=1", "~callbacks.figures"]
    for action in ("trained", "found"):
        answer = command("train.py", *own, *small, "logger=none", "hydra.run.dir=run", **python)
        assert answer.returncode == 0, answer.stderr
        plan = json.loads((tmp_path / "run" / "result.json").read_text())["plan"]
        assert [(each["stage"], each["action"]) for each in plan] == [("operator", action), ("scaled", action)]

    (checkpoint,) = tmp_path.glob("store/scaled-*/")
    refused = command("evaluate.py", f"checkpoint={checkpoint}", **python)
    assert refused.returncode == 1 and "if it is your own, name the folder of its options: hydra" in refused.stderr
    scored = command("evaluate.py", f"checkpoint={checkpoint}", own[0], "hydra.run.dir=scored", **python)
    assert scored.returncode == 0, scored.stderr
    assert json.loads((tmp_path / "scored" / "metrics.json").read_text())["trajectories"] == 3


@pytest.mark.parametrize(
    ("text", "reason"),
    [("import a_package_that_is_missing", "No module named 'a_package_that_is_missing'"),
     ("class Net(:", r"invalid syntax \(broken\.py, line 1\)"), ("", "module 'broken' has no attribute 'Net'")],
)  # fmt: skip
def test_code_that_cannot_be_imported_tells_why(text, reason, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken", raising=False)
    with pytest.raises(UserError, match=rf"^model\._target_=broken\.Net cannot be imported: {reason}$"):
        build({"_target_": "broken.Net"}, "model")


def test_a_checkpoint_is_built_of_what_the_calls_own_search_path_names(own, tmp_path, monkeypatch):
    """And not of what it names itself."""
    cfg = train_config(*own)
    check(cfg)
    identity = identity_of(cfg)
    evil = from_content(identity.content | {"model": {"_target_": "os.system"}})
    files = {each.digest: tmp_path / "store" / each.folder / "identity.json" for each in (identity, evil)}
    for each in (identity, evil):
        files[each.digest].parent.mkdir(parents=True)
        write_json(files[each.digest], each.content)
    file = files[identity.digest]
    with pytest.raises(UserError, match=r"_target_=own\.\w+ is not what conf/ builds .* hydra\.searchpath=\[file:"):
        read_identity(file)
    assert read_identity(file, [tmp_path / "conf"]) == identity
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        HydraConfig.instance().set_config(compose("evaluate", [own[0], "checkpoint=any"], return_hydra_config=True))
    assert read_identity(file) == identity
    with pytest.raises(UserError, match=r"model\._target_=os\.system is not what conf/ builds"):
        read_identity(files[evil.digest])
