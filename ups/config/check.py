"""`check`: a config whose values are all there, in range and fit together, before anything is done with it."""

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ups.config.compose import plain
from ups.config.nearest import keys, nearest
from ups.config.rules import GROUPS, NODE, READ_BY, RULES
from ups.errors import UserError, first_line, shortened

LOOP_KEYS = ("name", "steps", "batch_size", "symmetries", "validations", "optimizer")  # of a stage; the rest is its own
OPTIMIZER_KEYS = ("lr", "warmup", "betas", "basis_interval", "weight_decay", "clip", "ema_decay")
OPTION_OF = {"network": "model", "optimizer": "optimizer", "requires": "stage"}  # the group of a node in a stage
SPLIT_KEYS = ("train", "validation", "test", "initial_frame", "rollout_steps")  # of a dataset


def check(cfg: DictConfig, script: str = "train") -> None:
    """Raise a `UserError` for the first value that is missing, out of range or not of the script's config."""
    try:
        for key in ("budget", "operator"):  # from which a stage takes values
            if key in cfg and not OmegaConf.is_dict(cfg[key]):
                raise UserError(f"{key}={cfg[key]}: must be {NODE.text}")
        missing = sorted(OmegaConf.missing_keys(cfg))
        if missing:
            raise UserError(f"{missing[0]} is not set: give {missing[0]}=VALUE")
        content = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:  # an interpolation
        raise UserError(f"{error.full_key}: {first_line(error)}") from error
    lacking = [] if script == "evaluate" else [group for group in GROUPS if group not in content]
    if lacking:
        raise UserError(f"{lacking[0]} is not set: give {lacking[0]}=OPTION")
    # What a stage takes from elsewhere is told under the key that was typed.
    for key, value in sorted(_leaves(content), key=lambda leaf: leaf[0].startswith("stage.")):
        general = re.sub(r"^stage\.(requires\.)*(?=.)", "stage.", key)
        parent, _, name = key.rpartition(".")
        rules = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, general)]
        for rule in rules:
            if not rule.accepts(value):
                told = "null" if value is None else shortened(str(value), 80)
                if isinstance(value, str) and key.startswith("stage.") and name in OPTION_OF:
                    raise UserError(f"{key}={told}: an option is chosen by {OPTION_OF[name]}@{key}={told}")
                raise UserError(f"{key}={told}: must be {rule.text}")
        known = rules or name == "_target_" or _is_part(content, parent)
        if not known or not re.fullmatch(rf"({READ_BY[script]})(\..+)?", key):
            others = [other for other in keys(cfg) if not f"{key}.".startswith(f"{other}.")]
            raise UserError(f"{shortened(key, 80)} is not a key of the config{nearest(key, others)}")
    _check_present(content)
    _check_pairs(cfg)


def _is_part(content: dict, key: str) -> bool:
    """Whether the node describes an object: then its constructor knows its keys, see `build`."""
    node = content
    for name in key.split(".") if key else ():
        node = node.get(name, {}) if isinstance(node, dict) else {}
    return isinstance(node, dict) and "_target_" in node


def _chain(content: dict) -> Iterator[tuple[str, dict]]:
    """(its key, its node) of the stage that is asked for, and of each that it requires."""
    key, stage = "stage", content.get("stage")
    while stage is not None:
        yield key, stage
        key, stage = f"{key}.requires", stage.get("requires")


def _check_present(content: dict) -> None:
    """What is read of every stage, dataset and W&B, also of one that is not of conf/."""
    needed = [(key, node, ("requires", *LOOP_KEYS)) for key, node in _chain(content)]
    needed += [(f"{key}.optimizer", node.get("optimizer", {}), OPTIMIZER_KEYS) for key, node in _chain(content)]
    needed += [("dataset", content["dataset"], SPLIT_KEYS)] if "dataset" in content else []
    loggers = content.get("logger", {})
    needed += [("logger.wandb", loggers["wandb"], ("project", "entity", "checkpoints"))] if "wandb" in loggers else []
    for key, node, names in needed:
        for name in names:
            if name not in node:
                raise UserError(f"{key}.{name} is not set, and every run reads it")


def _check_pairs(cfg: DictConfig) -> None:
    """What holds between keys."""
    content = plain(cfg)
    for path, node in (("operator", content.get("operator")), *_chain(content)):
        low, high = node["input_noise"] if node and "input_noise" in node else (0, 0)
        if low > high or (high > 0 and low == 0):
            raise UserError(f"{path}.input_noise=[{low},{high}]: must rise, from above 0 (or be [0, 0])")
    vast = cfg.get("vast")
    if vast is not None and vast.max_hours < vast.min_hours:
        raise UserError(f"vast.max_hours={vast.max_hours}: less than vast.min_hours={vast.min_hours}; lower that too")
    if vast is not None and vast.bid is not None and not vast.interruptible:
        raise UserError(f"vast.bid={vast.bid}: only an interruptible machine is bid for, set vast.interruptible=true")
    for key in ("dry_run", "rehearse"):
        if vast is not None and vast[key] and vast.action != "launch":
            raise UserError(f"vast.{key}=true: vast.action={vast.action} does not heed it, leave it out")
    dataset = cfg.get("dataset")
    if dataset is None or "frames" not in dataset:
        return
    if dataset.get("nu_range") is not None and dataset.nu_range[0] >= dataset.nu_range[1]:
        low, high = dataset.nu_range
        raise UserError(f"dataset.nu_range=[{low},{high}]: must rise, or be null for the values of dataset.nu alone")
    first_key, steps_key = window_keys(cfg)
    first, steps = OmegaConf.select(cfg, first_key), OmegaConf.select(cfg, steps_key)
    most = dataset.frames - 1 - first
    since = f"since dataset.frames={dataset.frames}"
    if most < 1:
        raise UserError(f"{first_key}={first}: must be at most {dataset.frames - 2}, {since}")
    if steps > most:
        raise UserError(f"{steps_key}={steps}: from {first_key}={first} it must be at most {most}, {since}")


def window_keys(cfg: DictConfig) -> tuple[str, str]:
    """Of the given frame and the steps to predict: the dataset's, or evaluate.py's own, which go before them."""
    own = lambda name: cfg.get(name) is not None or "dataset" not in cfg  # then it is the checkpoint's
    first, steps = (name if own(name) else f"dataset.{name}" for name in ("initial_frame", "rollout_steps"))
    return first, steps


def _leaves(node: Any, key: str = ""):
    """(dotted key, value) of each value that is no dict, or an empty one; a list is one value."""
    if not isinstance(node, dict) or not node:
        yield key, node
        return
    for name, value in node.items():
        yield from _leaves(value, f"{key}.{name}" if key else str(name))
