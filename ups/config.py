"""All about the composed config that needs no torch: its ranges, its errors, and the call that builds objects."""

import difflib
import inspect
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ups.errors import UserError, first_line, shortened
from ups.paths import CONFIG_FOLDER


@dataclass(frozen=True)
class Rule:
    """What a value may be. `text` ends the sentence "KEY=VALUE must be ..."."""

    text: str
    accepts: Callable[[Any], object]  # truthy or not


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def integer(low: int, high: int = 10**9) -> Rule:
    return Rule(f"a whole number, at least {low} and at most {high}", lambda v: _is_int(v) and low <= v <= high)


def number(low: float, high: float = 1e12, open_low: bool = False) -> Rule:
    return Rule(
        f"a number {'above' if open_low else 'at least'} {low:g} and at most {high:g}",
        lambda v: _is_number(v) and (v > low if open_low else v >= low) and v <= high,
    )


def one_of(*choices) -> Rule:
    return Rule("one of " + ", ".join(map(str, choices)), lambda v: v in choices and isinstance(v, str))


def list_of(rule: Rule, length: int | None = None) -> Rule:
    size = "" if length is None else f"{length} values, each "
    return Rule(
        f"a list of {size}{rule.text}",
        lambda v: isinstance(v, list) and len(v) == (length or len(v)) > 0 and all(map(rule.accepts, v)),
    )


def either(*rules: Rule) -> Rule:
    return Rule(" or ".join(rule.text for rule in rules), lambda v: any(rule.accepts(v) for rule in rules))


def distinct(rule: Rule) -> Rule:
    return Rule(f"{rule.text}, each once", lambda v: rule.accepts(v) and len({*v}) == len(v))


def subset_of(*choices) -> Rule:
    return Rule(
        f"a list of {', '.join(choices)}, each at most once; it may be empty",
        lambda v: isinstance(v, list) and all(v.count(each) == 1 and each in choices for each in v),
    )


TEXT = Rule("a text", lambda v: isinstance(v, str) and v.strip() != "")
NULL = Rule("null", lambda v: v is None)
BOOL = Rule("true or false", lambda v: isinstance(v, bool))
POSITIVE = number(0, open_low=True)
NODE = Rule("a group of keys, which --cfg job shows", lambda v: v == {})
PATH = Rule(
    "a path", lambda v: TEXT.accepts(v) and len(v.encode()) < 4000 and all(len(p.encode()) < 256 for p in v.split("/"))
)
SEED = integer(0, 2**63 - 1)
SECONDS = number(0, 1e6, open_low=True)

TRAINING = r"seed|store|cache|require|budget|operator|runtime|stage|model|dataset|callbacks|logger"
SCORING = r"checkpoint|compare|initial_frame|rollout_steps|members|batch_size|cache|dataset"
READ_BY = {  # which keys each script has; one that another has, or that was added with +, would do nothing
    "train": TRAINING, "launch": rf"{TRAINING}|vast|auto_shutdown", "evaluate": rf"{SCORING}|runtime\.(device|threads)",
}  # fmt: skip
BUDGETS = "|".join(sorted(file.stem for file in (CONFIG_FOLDER / "stage").glob("*.yaml")))

# One line for each key of conf/; `stage.` stands for every stage of the chain. Another key of a network is for the
# network to check, so that a model of one's own needs no line here; the names below hold for all that use them.
RULES: dict[str, Rule] = {
    r"seed": SEED,
    r"store|cache": PATH,
    r"budget|operator|runtime|model|dataset|stage(\.(optimizer|network))?|vast(\.offer)?": NODE,
    r"(callbacks|logger)(\.\w+)?": NODE,
    r"stage\.requires": Rule("null or a stage", lambda v: v is None),
    r"require": one_of("train", "found"),
    rf"budget\.({BUDGETS})": integer(1),
    r"runtime\.device": Rule("auto, cpu, cuda or cuda:N", lambda v: re.fullmatch(r"auto|cpu|cuda(:\d{1,2})?", str(v))),
    r"runtime\.precision": one_of("float32", "bfloat16"),
    r"runtime\.compile": BOOL,
    r"runtime\.on_nonfinite": one_of("stop", "skip"),
    r"runtime\.max_skipped": integer(0),
    r"runtime\.max_hours": either(number(0, 1e6, open_low=True), NULL),
    r"runtime\.threads": either(one_of("auto"), integer(1, 1024)),
    r"stage\.name": Rule("a name of letters, digits and _", lambda v: re.fullmatch(r"\w{1,100}", str(v), re.ASCII)),
    r"stage\.steps": integer(1),
    r"stage\.(batch_size|evaluations|members|unroll)": integer(1),
    r"stage\.symmetries": subset_of("translation", "reflection", "galilean"),
    r"stage\.intervals": integer(2),
    r"stage\.evaluations_per_step": integer(1),
    r"stage\.round_trip": number(0, 1e3),
    r"stage\.operator_relative_lr": number(0, 1),
    r"(stage|operator)\.input_noise": list_of(number(0, 1), 2),
    r"stage\.optimizer\.lr|operator\.lr": POSITIVE,
    r"stage\.optimizer\.(warmup|average)": number(0, 1),
    r"stage\.optimizer\.betas": list_of(number(0, 0.999999), 2),
    r"stage\.optimizer\.basis_interval": either(integer(1), NULL),
    r"stage\.optimizer\.weight_decay": number(0),
    r"stage\.optimizer\.clip": POSITIVE,
    r"(model|stage\.network)\.(width|kernel|patch|heads|blocks|modes|levels)": integer(1, 65536),
    r"model\.solver": one_of("cole_hopf", "finite_volume"),
    r"model\.solver_gradient": BOOL,
    r"(model|stage\.network)\.dilations": list_of(integer(1, 65536)),
    r"dataset\.nu": either(number(0, 1e3, open_low=True), distinct(list_of(number(0, 1e3, open_low=True)))),
    r"dataset\.nu_range": either(list_of(number(0, 1e3, open_low=True), 2), NULL),
    r"dataset\.initial_condition": one_of("sinusoids", "random_field"),
    r"dataset\.(test|validation|shifts|rollout_steps|space_stride|time_stride)": integer(1),
    r"dataset\.(points|solver_points)": integer(8),
    r"dataset\.train": either(integer(1), NULL),
    r"dataset\.frames": integer(2),
    r"dataset\.seed": SEED,
    r"dataset\.initial_frame": integer(0),
    r"dataset\.time_step": number(1e-6, 1e3),
    r"dataset\.path": PATH,
    r"dataset\.download": BOOL,
    r"callbacks\.\w+\.every": integer(1),
    r"logger\.wandb\.checkpoints": BOOL,
    r"logger\.wandb\.(init|finish)_timeout": SECONDS,
    r"logger\.wandb\.project": TEXT,
    r"logger\.wandb\.(entity|name)": either(TEXT, NULL),
    r"logger\.wandb\.tags": Rule("a list of texts", lambda v: isinstance(v, list) and all(map(TEXT.accepts, v))),
    r"auto_shutdown": either(BOOL, NULL),
    r"vast\.action": one_of("launch", "status", "logs", "destroy", "reap"),
    r"vast\.(dry_run|rehearse|follow|yes|interruptible|allow_loss|offer\.verified)": BOOL,
    r"vast\.on_failure": one_of("destroy", "hold"),
    r"vast\.(image|ledger)": TEXT,
    r"vast\.instance": either(integer(1), NULL),
    r"vast\.offer\.(gpu|region)": either(list_of(TEXT), NULL),
    r"vast\.(offer\.gpus|max_tries)": integer(1),
    r"vast\.offer\.reliability": number(0, 1),
    r"vast\.offer\.(gpu_memory|cuda)": number(0),
    r"vast\.disk": number(8),
    r"vast\.bid": either(POSITIVE, NULL),
    r"vast\.(traffic|pause|min_hours)": number(0, 1e6),
    r"vast\.(max_hours|max_price|max_cost|max_total_cost|loading_minutes|poll_seconds|request_timeout)": SECONDS,
    r"checkpoint": PATH,
    r"compare": either(PATH, NULL),
    r"initial_frame": either(integer(0), NULL),
    r"(rollout_steps|members)": either(integer(1), NULL),
    r"batch_size": integer(1),
}


def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """conf/NAME.yaml, as its script has it; outside of a run, and in one thread at a time."""
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        return compose(name, overrides=list(overrides))


GROUPS = ("stage", "model", "dataset", "callbacks", "logger")  # of a training
LOOP_KEYS = ("name", "steps", "batch_size", "symmetries", "evaluations", "optimizer")  # of a stage; the rest is its own
OPTIMIZER_KEYS = ("lr", "warmup", "betas", "basis_interval", "weight_decay", "clip", "average")
SPLIT_KEYS = ("train", "validation", "test", "initial_frame", "rollout_steps")  # of a dataset


def check(cfg: DictConfig, script: str = "train") -> None:
    """Raise a `UserError` for the first value that is missing, out of range or not of the script's config."""
    try:
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
        rules = [rule for pattern, rule in RULES.items() if re.fullmatch(pattern, general)]
        for rule in rules:
            if not rule.accepts(value):
                raise UserError(f"{key}={shortened(str(value), 80)}: must be {rule.text}")
        parent, _, name = key.rpartition(".")
        known = rules or name == "_target_" or _is_part(content, parent)
        if not known or not re.fullmatch(rf"({READ_BY[script]})(\..+)?", key):
            raise UserError(f"{shortened(key, 80)} is not a key of the config")
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
    """What is read of every stage and dataset, also of one that is not of conf/."""
    needed = [(key, node, ("requires", *LOOP_KEYS)) for key, node in _chain(content)]
    needed += [(f"{key}.optimizer", node.get("optimizer", {}), OPTIMIZER_KEYS) for key, node in _chain(content)]
    needed += [("dataset", content["dataset"], SPLIT_KEYS)] if "dataset" in content else []
    for key, node, names in needed:
        for name in names:
            if name not in node:
                raise UserError(f"{key}.{name} is not set: every {key.split('.')[0]} of conf/ has it")


def _check_pairs(cfg: DictConfig) -> None:
    """What holds between keys."""
    content = plain(cfg)
    for path, node in (("operator", content.get("operator")), *_chain(content)):
        low, high = node["input_noise"] if node and "input_noise" in node else (0, 0)
        if low > high or (high > 0 and low == 0):
            raise UserError(f"{path}.input_noise=[{low},{high}]: must rise, from above 0 (or be [0, 0])")
    named = {}
    for key, node in _chain(content):
        if named.setdefault(node["name"], node.get("_target_")) != node.get("_target_"):
            raise UserError(f"{key}.name={node['name']}: another stage of the chain has that name, and its charts")
    vast = cfg.get("vast")
    if vast is not None and vast.max_hours < vast.min_hours:
        raise UserError(f"vast.max_hours={vast.max_hours}: less than vast.min_hours={vast.min_hours}; lower that too")
    if vast is not None and vast.bid is not None and not vast.interruptible:
        raise UserError(f"vast.bid={vast.bid}: only an interruptible machine is bid for, set vast.interruptible=true")
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


def build(node: DictConfig | dict, key: str, partial: bool = False, **arguments: Any) -> Any:
    """The object that a config node describes, or with `partial` a function that makes it of further arguments.

    The only call of Hydra's `instantiate`. `key` is the node's, for the one line about a wrong argument.
    """
    if "_target_" not in node:
        raise UserError(f"{key}._target_ is not set: it names the class that {key} describes")
    try:
        factory = instantiate(node, _convert_="all", _partial_=True)
    except InstantiationException as error:
        target = shortened(str(node.get("_target_")), 80)
        raise UserError(f"{key}._target_={target}: there is no such class") from error

    def construct(**arguments: Any) -> Any:
        try:
            return factory(**arguments)
        except (TypeError, ValueError) as error:
            text = first_line(error)
            if isinstance(error, TypeError) and "__init__() " not in text:
                raise  # a bug, not an argument's name
            raise UserError(keyed(text.rpartition("__init__() ")[2], key, (*node, *arguments))) from error

    construct.__signature__ = inspect.signature(factory.func)
    return construct if partial else construct(**arguments)


def keyed(text: str, key: str, names: Collection[str]) -> str:
    """What the class of the node `key` says, which knows its arguments' `names` and not where it stands in the config:
    "kernel=4 must be odd" is "model.kernel=4 must be odd", and another text follows the key.
    """
    begins = re.match(r"(\w+)[=:]", text)
    return f"{key}{'.' if begins and begins[1] in names else ': '}{text}"


def check_origin(content: Any, file: Path, key: str = "") -> None:
    """Raise for a config from a file of somebody else's if building it could do more than conf/ does.

    `_target_` may be any callable, and `_args_` and interpolations are ways to feed one, or to read the environment.
    """
    if isinstance(content, dict):
        for name, value in content.items():
            below = f"{key}.{name}" if key else name
            if name.startswith("_") and (name != "_target_" or value not in known_targets()):
                refusal = f"{file}: {below}={value} is not what conf/ builds a stage of; it is not used"
                own = "; if it is your own, give hydra.searchpath=[file://FOLDER] as its training did"
                raise UserError(refusal + own * (name == "_target_"))
            check_origin(value, file, below)
    elif isinstance(content, list):
        for position, value in enumerate(content):
            check_origin(value, file, f"{key}[{position}]")
    elif isinstance(content, str) and "${" in content:
        raise UserError(f"{file}: {key}={content} is not resolved, as it would be in an identity that train.py wrote")


def known_targets() -> list[str]:
    """The classes that the options of the groups of an identity name, in conf/ and in this call's own hydra.searchpath,
    which no checkpoint can set.
    """
    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else ()
    folders = [CONFIG_FOLDER, *(Path(source.path) for source in sources if source.schema == "file")]
    groups = [folder / group for folder in folders for group in ("stage", "model", "dataset")]
    files = [file for group in groups for file in group.rglob("*.yaml")]
    target = re.compile(r"""^[^#\n]*\b_target_:\s*["']?([\w.]+)""", re.MULTILINE)
    return [name for file in files for name in target.findall(file.read_text())]


def plain(node: DictConfig) -> dict:
    """The node as dicts, lists and values, interpolations resolved."""
    return OmegaConf.to_container(node, resolve=True)


def one_line(error: HydraException | OmegaConfBaseException, known_keys: list[str]) -> str:
    """What a person needs of an error of composition, which Hydra tells in several lines."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if key := re.search(r"Could not override '([^']+)'", text):
        return f"{key[1]} is not a key of the config" + _nearest(key[1], known_keys)
    if option := re.search(r"Could not find '([^']+)'", text):
        group, _, name = option[1].rpartition("/")
        choices = [line for line in lines[lines.index(f"Available options in '{group}':") + 1 :] if " " not in line] \
            if f"Available options in '{group}':" in lines else []  # fmt: skip
        known = f": choose one of {', '.join(choices)}" if choices else ""
        return f"{group}={shortened(name, 80)} is not an option of the group {group}{known}"
    return " ".join(lines[:2])


def is_of_a_group(error: ValueError | TypeError) -> bool:
    """Whether it is Hydra's, about an option of a group that is no name: `stage=null`, `stage=[3]`."""
    return Path(traceback.extract_tb(error.__traceback__)[-1].filename).name == "defaults_list.py"


def _nearest(key: str, known_keys: list[str]) -> str:
    parent = key.rpartition(".")[0]
    near = difflib.get_close_matches(key, known_keys, 1, 0.6)
    if near:
        return f": did you mean {near[0]}?"
    siblings = [known for known in known_keys if known.rpartition(".")[0] == parent]
    if siblings:
        return f": {parent or 'at the top'} has {', '.join(siblings)}"
    if parent in GROUPS and parent not in known_keys:
        return f" until its group has an option: give {parent}=OPTION too"
    return "; --cfg job shows them all"
