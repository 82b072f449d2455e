"""What the scripts share: a user's mistake is one line on stderr and exit 1, a signal is 128 + its number."""

import os
import sys
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from ups.errors import Interrupted, UserError


def run(main: Callable[[], None]) -> None:
    """Run a function that `hydra.main` made."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors out of Hydra, whose own report is several lines
    try:
        main()
    except UserError as error:
        _fail(str(error))
    except Interrupted as interruption:
        print(interruption, file=sys.stderr)
        sys.exit(interruption.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        from ups.config import one_line

        _fail(one_line(error, _known_keys(main)))


def fail_now(error: UserError) -> None:
    """End a single run without Hydra's line about its overrides; in a sweep, let the other jobs go on."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise error
    _fail(str(error))


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _known_keys(main: Callable) -> list[str]:
    """All dotted keys of the script's config as it composes without the overrides that failed."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from ups.paths import CONFIG_FOLDER

    GlobalHydra.instance().clear()
    groups = [o for o in sys.argv[1:] if "=" in o and "." not in o.split("=")[0] and "," not in o and "-" not in o[0]]
    with initialize_config_dir(str(CONFIG_FOLDER), version_base=None):
        for overrides in (groups, []):
            try:
                cfg = compose(main.config_name, overrides=overrides)
                return list(_all_keys(cfg))
            except (HydraException, OmegaConfBaseException):
                GlobalHydra.instance()
    return []


def _all_keys(node, prefix: str = ""):
    for name in node:
        yield prefix + name
        child = node._get_node(name)
        if hasattr(child, "keys") and not child._is_none() and not child._is_missing():
            yield from _all_keys(child, f"{prefix}{name}.")
