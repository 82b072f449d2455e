"""Whatever is typed or read: it is right, or it is refused in one line that says what is wrong."""

import shutil

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException
from test_data import CPU, generator_settings, reader, write_hdf5

from ups.config import check
from ups.data.generator import Burgers
from ups.errors import UserError
from ups.files import read_json, write_json
from ups.paths import CONFIG_FOLDER
from ups.training.identity import identity_of, read_identity

few = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
KEYS = ("seed", "store", "require", "runtime", "runtime.device", "runtime.foo", "stage.steps", "stage.requires", "foo",
        "stage.optimizer", "stage.optimizer.lr", "stage.name", "model.width", "dataset.nu", "dataset.time_step",
        "callbacks.progress.every", "logger.wandb.tags", "budget.operator")  # fmt: skip
VALUES = ("x", "", "null", "-1", "3", "1e300", "1e-300", ".nan", "inf", "9" * 23, "[]", "[1,x]", "{}", "{a:1}", "'a b'",
          "${seed}", "${nope}", "${stage.steps}", "${oc.env:NOPE}", "ü", "true", "x" * 600, '"a\nb"')  # fmt: skip


@few
@given(st.sampled_from(("", "++")), st.sampled_from(KEYS), st.sampled_from(VALUES))
def test_a_config_is_accepted_with_an_identity_or_refused_in_one_line(sign, key, value):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        try:
            cfg = compose("train", overrides=[f"{sign}{key}={value}"])
        except (HydraException, OmegaConfBaseException):
            return  # told by ups/cli.py
    try:
        check(cfg)
    except UserError as error:
        text = str(error)
        assert "\n" not in text and len(text) < 400 and (key in text or "stage.steps" in text)
    else:
        assert len(identity_of(cfg).digest) == 12


@few
@given(st.data())
def test_the_readers_strides_shifts_and_splits_are_slices(tmp_path, data):
    draw = lambda low, high: data.draw(st.integers(low, high))
    space, time, test, validation = draw(1, 4), draw(1, 3), draw(1, 3), draw(1, 3)
    shifts, first = draw(1, space), test + validation
    shape = (first + draw(1, 3), draw(2, 7), space * draw(2, 6))
    dtype = data.draw(st.sampled_from(("<f2", "<f4", ">f4", "<f8", ">f8")))
    u = np.random.default_rng(0).normal(size=shape).astype(dtype)
    path = write_hdf5(tmp_path / "a.hdf5", *shape, tensor=u)
    splits = reader(
        path, test=test, validation=validation, space_stride=space, time_stride=time, shifts=shifts
    ).load(tmp_path, CPU)
    single = torch.from_numpy(u.astype("float32"))
    assert torch.equal(splits.test.u, single[:test, ::time, ::space])
    assert torch.equal(splits.validation.u, single[test:first, ::time, ::space])
    assert torch.equal(splits.train.u, torch.cat([single[first:, ::time, k::space] for k in range(shifts)]))


@few
@given(st.integers(0, 2**30), st.integers(0, 7), st.booleans())
def test_a_damaged_hdf5_file_loads_finite_or_is_one_line(tmp_path, place, bit, cut):
    path = write_hdf5(tmp_path / "a.hdf5", frames=3, points=8, samples=9)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content[: place % len(content)] if cut else content)
    try:
        u = reader(path, time_stride=1).load_test(tmp_path, CPU).u
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert not cut and u.shape == (4, 3, 2) and u.isfinite().all()


@pytest.mark.parametrize("changed", [
    {"t-coordinate": np.arange(12)[::-1] * 0.01}, {"t-coordinate": np.arange(12) ** 2 * 0.01}, {"nu": "0.01"},
    {"nu": np.nan}, {"nu": np.ones(3)}, {"x-coordinate": np.array([b"x"] * 32)}, {"tensor": np.zeros((0, 11, 32))},
], ids=str)  # fmt: skip
def test_a_file_of_wrong_content_is_one_line(changed, tmp_path):
    path = write_hdf5(tmp_path / "a.hdf5", **changed)
    with pytest.raises(UserError) as error:
        reader(path).load(tmp_path, CPU)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    return folder, Burgers(**generator_settings()).load_test(folder, CPU).u


@settings(few, max_examples=15)
@given(st.integers(0, 2**30), st.integers(0, 7), st.sampled_from(("flip", "cut", "empty", "other")))
def test_a_damaged_cache_is_set_aside_and_made_again(generated, tmp_path, place, bit, fault):
    folder, u = generated
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("burgers/test*.safetensors")
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes({"flip": content, "cut": content[: place % len(content)], "empty": b"", "other": b"{}"}[fault])
    assert torch.equal(Burgers(**generator_settings()).load_test(tmp_path, CPU).u, u)
    file.with_name(f"{file.name}.damaged").unlink()


@few
@given(st.sampled_from((b"", b"\xff", b"{", b"[]", b"3", b"null", b"{}", b'{"stage": 3}', b'{"stage": {}}')))
def test_a_damaged_identity_is_one_line(tmp_path, content):
    file = tmp_path / "identity.json"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_identity(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_an_intact_identity_is_read_and_a_changed_one_is_not(tmp_path):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        identity = identity_of(compose("train"))
    file = tmp_path / identity.folder / "identity.json"
    file.parent.mkdir()
    write_json(file, identity.content)
    assert read_identity(file) == identity
    write_json(file, read_json(file) | {"seed": 1})
    with pytest.raises(UserError, match="damaged"):
        read_identity(file)
