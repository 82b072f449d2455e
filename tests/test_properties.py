"""Whatever is typed or read: it is right, or it is refused in one line that says what is wrong."""

import shutil

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from test_data import generator_settings, reader, write_hdf5

from ups.config.build import build
from ups.config.check import check
from ups.config.compose import composed
from ups.config.mistakes import hydras_line, one_line
from ups.data.generator import Burgers
from ups.errors import UserError
from ups.files import read_json, write_json
from ups.paths import CONFIG_FOLDER
from ups.training.build import build_chain
from ups.training.identity import identity_of, read_identity
from ups.training.runtime import set_up

few = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
AT_ONCE = {"budget": "stage.steps", "dataset": "dataset."}  # a key may be named by what it sets, or its neighbour
APPS = {"train": [], "evaluate": ["checkpoint=somewhere"], "launch": []}
VALUES = ("x", "", "null", "-1", "3", "1e300", "1e-300", ".nan", "inf", "9" * 23, "[]", "[1,x]", "{}", "{a:1}", "'a b'",
          "${seed}", "${nope}", "${stage.steps}", "${oc.env:NOPE}", "ü", "true", "x" * 600, '"a\nb"')  # fmt: skip
ANY = st.one_of(
    st.sampled_from(VALUES), st.integers().map(str), st.floats().map(repr), st.lists(st.integers(-2, 99)).map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40).map(
        lambda text: "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    ),
)  # fmt: skip


def keys_of(node, prefix: str = "") -> list[str]:
    """Of leaves and of nodes; and of neither."""
    below = [keys_of(value, f"{prefix}{name}.") for name, value in node.items() if isinstance(value, dict)]
    return [f"{prefix}{name}" for name in (*node, "foo")] + [key for keys in below for key in keys]


@pytest.fixture(params=APPS)
def app(request):
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        cfg = compose(request.param, overrides=APPS[request.param])
        yield request.param, [key for key in keys_of(OmegaConf.to_container(cfg)) if not key.startswith("hydra")]


@pytest.mark.slow
@few
@given(st.data())
def test_a_config_is_accepted_and_builds_or_is_refused_in_one_line(app, tmp_path, data):
    name, keys = app
    key, sign = data.draw(st.sampled_from(keys)), data.draw(st.sampled_from(("", "++")))
    try:
        cfg = compose(name, overrides=[*APPS[name], f"{sign}{key}={data.draw(ANY)}"])
    except (HydraException, OmegaConfBaseException) as error:
        assert "\n" not in one_line(error, keys)
        return
    except (ValueError, TypeError) as error:
        assert "\n" not in hydras_line(error)
        return
    try:
        check(cfg, name)
        if name != "evaluate":
            identity = identity_of(cfg)
            build(cfg.dataset, "dataset")
            for stage_key, node in cfg.callbacks.items():
                build(node, f"callbacks.{stage_key}", partial=True)
            if cfg.model.width <= 64 and max(cfg.model.get("dilations", [1])) < 99:  # no other is worth its memory
                build_chain(identity, set_up("cpu", 1))
    except UserError as error:
        assert "\n" not in str(error)
        named = key.rpartition(".")[2] in str(error)
        assert named or any(key.startswith(node) and other in str(error) for node, other in AT_ONCE.items())


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
    ).load(tmp_path)
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
        u = reader(path, time_stride=1).load_test(tmp_path).u
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
        reader(path).load(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated")
    return folder, Burgers(**generator_settings()).load_test(folder).u


@settings(few, max_examples=15)
@given(st.integers(0, 2**30), st.integers(0, 7), st.sampled_from(("flip", "cut", "empty", "other")))
def test_a_damaged_cache_is_set_aside_and_made_again(generated, tmp_path, place, bit, fault):
    folder, u = generated
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (file,) = tmp_path.glob("burgers/test*.safetensors")
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes({"flip": content, "cut": content[: place % len(content)], "empty": b"", "other": b"{}"}[fault])
    assert torch.equal(Burgers(**generator_settings()).load_test(tmp_path).u, u)
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
    identity = identity_of(composed("train"))
    file = tmp_path / identity.folder / "identity.json"
    file.parent.mkdir()
    write_json(file, identity.content)
    assert read_identity(file) == identity
    write_json(file, read_json(file) | {"seed": 1})
    with pytest.raises(UserError, match="damaged"):
        read_identity(file)
