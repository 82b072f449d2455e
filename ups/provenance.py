"""By which code a result was made."""

import hashlib
import subprocess
from functools import cache

from ups.paths import ROOT

CODE = ("ups", "conf", "benchmarks", ":(glob)*.py", "requirements.txt")


@cache
def git_commit() -> str | None:
    """The repo's commit, None outside of a git checkout: at its first call, which is before any work.

    Where code or config differ from it, "-dirty." and a hash of the changes follow, untracked files included.
    """
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _git("diff", "HEAD", "--", *CODE) or ""
    files = (_git("ls-files", "-z", "--others", "--exclude-standard", "--", *CODE) or "").split("\0")
    for file in sorted(filter(None, files)):
        changes += f"{file} {_git('hash-object', '--', file)}\n"
    return f"{commit}-dirty.{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else commit


def shortened_commit(commit: str) -> str:
    """Nine letters of the hash, and what follows it."""
    return f"{commit[:9]}{commit[40:]}"


def _git(*arguments: str) -> str | None:
    """None if git fails, or is not there."""
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
