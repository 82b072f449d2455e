"""The objects that a config describes."""

import inspect
import re
from collections.abc import Collection
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from ups.errors import UserError, first_line, shortened

UNKNOWN = re.compile(r"got an unexpected keyword argument '(\w+)'")


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
        raise UserError(f"{key}._target_={target} cannot be imported: {first_line(innermost(error))}") from error

    def construct(**arguments: Any) -> Any:
        try:
            return factory(**arguments)
        except (TypeError, ValueError) as error:
            text = first_line(error)
            if isinstance(error, TypeError) and "__init__() " not in text:
                raise  # a bug, not an argument's name
            said = text.rpartition("__init__() ")[2]
            if (offered := UNKNOWN.match(said)) and offered[1] in arguments:
                said = f"the constructor of {node['_target_']} must take {offered[1]}"
            raise UserError(keyed(said, key, (*node, *arguments))) from error

    construct.__signature__ = inspect.signature(factory.func)
    return construct if partial else construct(**arguments)


def innermost(error: BaseException) -> BaseException:
    """What an error was first."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return error


def keyed(text: str, key: str, names: Collection[str]) -> str:
    """What the class of the node `key` says, which knows its arguments' `names` and not where it stands in the config:
    "kernel=4 must be odd" is "model.kernel=4 must be odd", and another text follows the key.
    """
    if unknown := UNKNOWN.match(text):
        text = f"{unknown[1]}: its class has no such key; leave it out, or the preset that sets it"
    if lacking := re.match(r"missing \d+ required .*?'(\w+)'", text):
        return f"{key}.{lacking[1]} is not set, and its class requires it (or the checkpoint is too old)"
    begins = re.match(r"(\w+)[=:]", text)
    return f"{key}{'.' if begins and begins[1] in names else ': '}{text}"
