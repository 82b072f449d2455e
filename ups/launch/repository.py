"""What is rented is what was pushed: the commit that a machine can clone, or one line that says what to do first."""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from ups.errors import UserError

TOKEN_HELPER = '!f() { echo username=git; echo "password=$GIT_TOKEN"; }; f'
# An untracked file elsewhere is not missed, unless the config imports it: see `refuse_untracked`.
MATTERS = re.compile(r'"?(ups/.*|(benchmarks/)?conf/.*|train\.py|requirements\.txt)')
SECONDS = 30


@dataclass(frozen=True)
class Source:
    """url: cloned without a terminal, with `token` (or None) as the password."""

    url: str
    branch: str
    commit: str
    token: str | None


def pushed_source(folder: Path, token: str | None, local: bool = False) -> Source:
    """The commit of HEAD on its remote branch. `local`: a remote on this machine's disk will do (a rehearsal).

    Raises `UserError`: no repository, no commit, no branch, no remote, changes, not pushed, private, unreachable.
    """
    if git(folder, "rev-parse", "--is-inside-work-tree") is None:
        raise UserError(f"{folder} is no git repository: git init && git add -A && git commit -m start, then push it")
    branch = git(folder, "symbolic-ref", "--quiet", "--short", "HEAD")
    if branch is None:
        raise UserError("HEAD is detached, so it is no branch's: git switch -c NAME && git push -u origin NAME")
    commit = git(folder, "rev-parse", "--verify", "--quiet", "HEAD")
    if commit is None:
        raise UserError("there is no commit yet: git add -A && git commit -m start, then push it")
    remotes = (git(folder, "remote") or "").split()
    if not remotes:
        raise UserError(f"the repository has no remote: git remote add origin URL && git push -u origin {branch}")
    own = git(folder, "for-each-ref", "--format=%(push:remotename)", f"refs/heads/{branch}")
    remote = own if own and own != "." else "origin" if "origin" in remotes else remotes[0]
    refuse_changes(folder)

    url, embedded = clone_url(git(folder, "remote", "get-url", remote) or remote, local)
    remote = remote if remote in remotes else url  # an address may hold a token, and is told below
    token = token or embedded
    head = remote_head(url, branch, None)
    if head is None and token:
        head = remote_head(url, branch, token)
    else:
        token = None  # not needed, so not sent
    if head is None:
        raise UserError(why_unreadable(folder, remote, url, branch))
    if head != commit:
        known = f"is at {head[:9]}" if head else "does not exist"
        raise UserError(f"HEAD is {commit[:9]}, {remote}'s {branch} {known}: git push {remote} {branch}")
    return Source(url, branch, commit, token)


def refuse_changes(folder: Path) -> None:
    answer = git(folder, "status", "--porcelain=v1", "--untracked-files=all", strip=False)
    if answer is None:
        raise UserError(f"git status fails, so nobody knows what is not committed: git -C {folder} status shows why")
    lines = answer.splitlines()
    refuse_uncommitted([line[3:] for line in lines if not line.startswith("??") or MATTERS.fullmatch(line[3:])])


def refuse_untracked(folder: Path, files: list[str]) -> None:
    """`files`, not none: code that a config imports, wherever it is. What git is told to ignore (an environment) is
    not missed."""
    refuse_uncommitted((git(folder, "ls-files", "--others", "--exclude-standard", "--", *files) or "").splitlines())


def refuse_uncommitted(paths: list[str]) -> None:
    if paths:
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        raise UserError(
            f"not committed: {', '.join(paths[:3])}{more}; a rented machine trains what is pushed: git add -A && "
            "git commit && git push"
        )


def is_tracked(folder: Path, path: str) -> bool:
    return git(folder, "ls-files", "--error-unmatch", path) is not None


def clone_url(address: str, local: bool) -> tuple[str, str | None]:
    """The https address of an ssh one, without user and password -> (url, password or None)."""
    scp_like = re.fullmatch(r"(?:[^/@:]+@)?([^/:]+):(?!//)(.+)", address)
    if scp_like and not Path(address).exists():
        return f"https://{scp_like[1]}/{scp_like[2].lstrip('/')}", None
    parts = urlsplit(address)
    if parts.scheme == "ssh":
        return f"https://{parts.hostname}{parts.path}", None
    if parts.scheme in ("https", "http", "git"):
        host = parts.hostname + (f":{parts.port}" if parts.port else "")
        return urlunsplit((parts.scheme, host, parts.path, "", "")), parts.password
    if not local:
        raise UserError(f"the remote {address} is on this machine; a rented one cannot clone it: push to a server")
    return address, None


def remote_head(url: str, branch: str, token: str | None) -> str | None:
    """The remote branch's commit as the machine would see it, "" if there is no such branch, None if unreadable."""
    helper = ["-c", f"credential.helper={TOKEN_HELPER}"] if token else []
    bare = {"HOME": "/nowhere", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_CONFIG_COUNT": "0", "GIT_TOKEN": token or ""}  # fmt: skip
    answer = git(Path("/"), *helper, "ls-remote", url, f"refs/heads/{branch}", **bare)
    return answer if answer is None else answer.partition("\t")[0]


def why_unreadable(folder: Path, remote: str, url: str, branch: str) -> str:
    if git(folder, "ls-remote", remote, f"refs/heads/{branch}"):
        return (
            f"{url} is private: a rented machine needs a token that may read it: export GIT_TOKEN=TOKEN (it is sent in "
            "the instance's environment only)"
        )
    return f"{url} cannot be read: git ls-remote {url} shows why"


def git(folder: Path, *arguments: str, strip: bool = True, **environment: str) -> str | None:
    """The output, None if git failed. It asks no questions."""
    quiet = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS": "true", "LC_ALL": "C",
             "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -oBatchMode=yes")}  # fmt: skip
    try:
        answer = subprocess.run(
            ["git", *arguments], cwd=folder, env=os.environ | quiet | environment, capture_output=True, text=True,
            timeout=SECONDS,
        )  # fmt: skip
    except FileNotFoundError:
        raise UserError("git is not installed, and a rented machine clones what git pushed: install git") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"git {arguments[0]} gave no answer in {SECONDS} s: is the network there?") from None
    if answer.returncode != 0:
        return None
    return answer.stdout.strip() if strip else answer.stdout
