"""Where the repo's own files are, wherever a script is started from."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG_FOLDER = ROOT / "conf"
