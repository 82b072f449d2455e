"""What is sent to a machine: the script with its overrides, and the environment with its secrets."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from ups.errors import UserError
from ups.launch.repository import Source

SCRIPT = Path(__file__).with_name("onstart.sh")
MAX_BYTES = 4047  # the documents of the field's limit disagree from 4048 on
END_MARK = ": end of onstart.sh\n"
GRACE = 900  # seconds that onstart.sh gives a start after the deadline, to save what is saved nowhere else


@dataclass(frozen=True)
class Job:
    """`prove`: "insist" that the results are proven saved before a destroy, "try", or "" not. `secrets` go into the
    environment only."""

    source: Source
    overrides: tuple[str, ...]
    gpus: int
    auto_shutdown: bool
    prove: str
    on_failure: str
    settings: dict[str, str]
    secrets: dict[str, str]
    wandb_page: str | None  # of the project, None if the run is not tracked there

    @property
    def script(self) -> str:
        """onstart.sh after the overrides, each of which is one word whatever is in it.

        Left out are comments and half of the indentation.
        """
        shebang, *lines = SCRIPT.read_text().splitlines(keepends=True)
        words = "set -- " + " ".join(map(shlex.quote, self.overrides)) + "\n"
        lines = [line for line in lines if not line.lstrip().startswith("#")]
        script = shebang + words + "".join(re.sub("^ +", lambda indent: indent[0][::2], line) for line in lines)
        size = len(script.encode())
        if size > MAX_BYTES:
            raise UserError(
                f"the machine's script has {size} bytes, {MAX_BYTES} are sure to arrive whole: the overrides take "
                f"{len(words.encode())}; put them into a preset in conf/experiment/ and push it"
            )
        assert script.endswith(END_MARK)
        return script

    def run_page(self, label: str) -> str | None:
        return f"{self.wandb_page}/runs/{label}" if self.wandb_page else None

    def environment(self, label: str, deadline: float) -> dict[str, str]:
        values = {
            "UPS_REPO": self.source.url,
            "UPS_BRANCH": self.source.branch,
            "UPS_COMMIT": self.source.commit,
            "UPS_GPUS": str(self.gpus),
            "UPS_DEADLINE": str(int(deadline)),
            "UPS_SHUTDOWN": "1" if self.auto_shutdown else "",
            "UPS_PROVE": self.prove,
            "UPS_ON_FAILURE": self.on_failure,
            "GIT_TERMINAL_PROMPT": "0",
            "PIP_BREAK_SYSTEM_PACKAGES": "1",  # the image's Python is the machine's only one
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "WANDB_RUN_ID": label,  # a start after a stop goes on in the same run
            "WANDB_RESUME": "allow",
        }
        return values | self.settings | self.secrets
