"""What each key of conf/ may be, and which script reads it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
WATCHER = Rule("a group of keys; ~callbacks.NAME or ~logger.NAME leaves one out", NODE.accepts)
PATH = Rule(
    "a path", lambda v: TEXT.accepts(v) and len(v.encode()) < 4000 and all(len(p.encode()) < 256 for p in v.split("/"))
)
SEED = integer(0, 2**63 - 1)
SECONDS = number(0, 1e6, open_low=True)

GROUPS = ("stage", "model", "dataset", "callbacks", "logger")  # of a training
TRAINING = r"seed|store|cache|require|budget|operator|runtime|stage|model|dataset|callbacks|logger"
SCORING = r"checkpoint|compare|initial_frame|rollout_steps|members|evaluations_per_step|batch_size|cache|dataset"
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
    r"callbacks|logger": NODE,
    r"(callbacks|logger)\.\w+": WATCHER,
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
    r"stage\.name": Rule(
        "a text of letters, digits and _", lambda v: isinstance(v, str) and re.fullmatch(r"\w{1,100}", v, re.ASCII)
    ),
    r"stage\.steps": integer(1),
    r"stage\.(batch_size|validations|members|unroll)": integer(1),
    r"stage\.symmetries": subset_of("translation", "reflection", "galilean"),
    r"stage\.intervals": integer(2),
    r"stage\.evaluations_per_step": integer(1),
    r"stage\.round_trip": number(0, 1e3),
    r"stage\.operator_relative_lr": number(0, 1),
    r"(stage|operator)\.error_floor": number(0, 1, open_low=True),
    r"(stage|operator)\.input_noise": list_of(number(0, 1), 2),
    r"stage\.optimizer\.lr|operator\.lr": POSITIVE,
    r"stage\.optimizer\.(warmup|ema_decay)": number(0, 1),
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
    r"logger\.wandb\.project": Rule(
        "at most 128 characters, none of / \\ # ? % :",
        lambda v: TEXT.accepts(v) and re.fullmatch(r"[^/\\#?%:]{1,128}", v),
    ),
    r"logger\.wandb\.(entity|name)": either(TEXT, NULL),
    r"logger\.wandb\.tags": Rule(
        "a list of texts of at most 64 characters",
        lambda v: isinstance(v, list) and all(TEXT.accepts(tag) and len(tag) <= 64 for tag in v),
    ),
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
    r"rollout_steps|members|evaluations_per_step": either(integer(1), NULL),
    r"batch_size": integer(1),
}
