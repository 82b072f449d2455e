"""The whole rental on this computer: the real launcher, script and training against stand-ins for Vast and W&B."""

import os
import secrets
import shutil
import subprocess
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from ups.console import console
from ups.errors import Interrupted, UserError
from ups.launch.actions import TrainingFailed
from ups.launch.rehearsal.vast_server import VastServer, inherited_environment, offer
from ups.launch.rehearsal.wandb_server import ENTITY, WandbServer

POLL_SECONDS = 0.5
NEEDED = ("flock", "setsid")  # by the machine's script; any Linux has them


@contextmanager
def rehearsed(cfg: DictConfig, folder: Path) -> Iterator[DictConfig]:
    """The config to launch with while this computer plays the service; machines are folders in `folder`/machines."""
    lacking = [program for program in NEEDED if shutil.which(program) is None]
    if lacking:
        raise UserError(f"vast.rehearse=true: {', '.join(lacking)} is not installed here: rehearse on Linux")
    machines = folder.resolve() / "machines"
    environment = inherited_environment(machines) | {"PATH": f"{interpreter(machines)}:{os.environ['PATH']}"}
    key = secrets.token_hex(32)
    with VastServer(key, machines, environment) as service, WandbServer(secrets.token_hex(32)) as tracker:
        service.offers = offers_that_fit(cfg.vast)
        tracker.team = cfg.logger.get("wandb", {}).get("entity")
        before = dict(os.environ)
        os.environ |= {"VAST_URL": service.url, "VAST_API_KEY": key, "WANDB_ENTITY": ENTITY} | tracker.environment
        console.print(
            f"rehearsal: {service.url} plays Vast, {tracker.url} plays W&B, machines are folders in {machines}; "
            "nothing is rented"
        )
        if not (cfg.auto_shutdown or cfg.vast.dry_run):
            console.print(
                f"rehearsal: without +auto_shutdown=true it lasts until the deadline, vast.max_hours="
                f"{cfg.vast.max_hours:g} from now; Ctrl-C ends it"
            )
        here = OmegaConf.merge(
            cfg, {"vast": {"follow": True, "poll_seconds": POLL_SECONDS, "ledger": str(folder / "rentals")}}
        )
        failure = None
        try:
            yield here
        except TrainingFailed as error:
            failure = error
        except Interrupted as interruption:
            raise Interrupted(interruption.signum, "rehearsal stopped, and its machines with it") from None
        finally:
            os.environ.clear()
            os.environ |= before
        if cfg.vast.dry_run:
            return
        saved = [artifact.name for artifact in tracker.artifacts if artifact.state == "COMMITTED"]
        console.print(f"rehearsal: W&B holds {', '.join(saved) or 'no stage'}")
        left = f"instances {sorted(service.rows)} are left" if service.rows else "the instance destroyed itself"
        console.print(f"rehearsal: {left}")
        if failure or not list(machines.glob("*/ups/saved")):
            log = f"the log is {machines}/*/ups/log"
            raise UserError(f"rehearsal: the training failed or was not saved; {log}") from failure


def interpreter(machines: Path) -> Path:
    """The folder of a Python that sees this one's packages, as an image has torch, and installs into its own."""
    home = machines / "image"
    venv.create(home, with_pip=False, symlinks=True)
    site = subprocess.run(
        [home / "bin" / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    Path(site, "image.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def offers_that_fit(settings: DictConfig) -> list[dict]:
    wanted = settings.offer
    changes = {
        "num_gpus": wanted.gpus, "gpu_ram": max(24564, wanted.gpu_memory * 1000), "cuda_max_good": wanted.cuda,
        "reliability": wanted.reliability, "reliability2": wanted.reliability, "disk_space": settings.disk,
        "duration": settings.max_hours * 3600,
    }  # fmt: skip
    if wanted.gpu:
        changes["gpu_name"] = wanted.gpu[0].replace("_", " ")
    if wanted.region:
        changes["geolocation"] = f"Somewhere, {wanted.region[0]}"
    offers = [offer(number, **changes) for number in range(6)]
    return [each | {"dph_total": min(each["dph_total"], settings.max_price)} for each in offers]
