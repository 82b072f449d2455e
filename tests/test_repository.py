"""What is rented is what was pushed: real git over a bare remote, and a server that asks for a password."""

import subprocess
from pathlib import Path

import pytest
from git_repos import git, private_git

from ups.errors import UserError
from ups.launch.repository import clone_url, is_tracked, pushed_source


@pytest.fixture
def clone(tmp_path) -> Path:
    """A clone that is clean and pushed; its remote is ../remote.git."""
    git(tmp_path, "init", "-q", "--bare", "-b", "main", "remote.git")
    git(tmp_path, "clone", "-q", "remote.git", "clone")
    folder = tmp_path / "clone"
    (folder / "conf").mkdir()
    (folder / "train.py").write_text("print()\n")
    git(folder, "checkout", "-q", "-b", "main")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    git(folder, "push", "-q", "-u", "origin", "main")
    return folder


def source(folder: Path, token: str | None = None):
    return pushed_source(folder, token, local=True)


def test_a_clean_and_pushed_clone(clone):
    found = source(clone)
    assert (found.branch, found.commit, found.token) == ("main", git(clone, "rev-parse", "HEAD"), None)
    assert Path(found.url).resolve() == clone.parent / "remote.git"


def test_an_untracked_file_that_no_machine_would_miss(clone):
    for name in ("notes.txt", "train.py.bak", "requirements.txt~"):
        (clone / name).write_text("x")
    assert source(clone).branch == "main"


def no_repository(clone):
    subprocess.run(["rm", "-rf", str(clone / ".git")], check=True)


def no_commit(clone):
    git(clone, "checkout", "-q", "--orphan", "other")
    git(clone, "rm", "-rq", "--cached", ".")


def detached(clone):
    git(clone, "checkout", "-q", "--detach")


def no_remote(clone):
    git(clone, "remote", "remove", "origin")


def changed(clone):
    (clone / "train.py").write_text("print(1)\n")


def untracked(clone):
    (clone / "conf" / "new.yaml").write_text("a: 1\n")


def untracked_of_the_benchmarks(clone):
    (clone / "benchmarks" / "conf").mkdir(parents=True)
    (clone / "benchmarks" / "conf" / "new.yaml").write_text("a: 1\n")


def index_damaged(clone):
    (clone / ".git" / "index").write_text("x")


def not_pushed(clone):
    git(clone, "commit", "-q", "--allow-empty", "-m", "second")


def branch_not_pushed(clone):
    git(clone, "checkout", "-q", "-b", "idea")


def behind(clone):
    """The remote has moved on; what git remembers of it has not."""
    git(clone.parent, "clone", "-q", "remote.git", "other")
    git(clone.parent / "other", "commit", "-q", "--allow-empty", "-m", "theirs")
    git(clone.parent / "other", "push", "-q")


def gone(clone):
    subprocess.run(["rm", "-rf", str(clone.parent / "remote.git")], check=True)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_repository, "is no git repository: git init"),
        (no_commit, "no commit yet: git add"),
        (detached, "HEAD is detached, so it is no branch's: git switch -c"),
        (no_remote, "no remote: git remote add origin URL && git push -u origin main"),
        (changed, "not committed: train.py; .*git add -A && git commit && git push"),
        (untracked, r"not committed: conf/new\.yaml"),
        (untracked_of_the_benchmarks, r"not committed: benchmarks/conf/new\.yaml"),
        (index_damaged, "git status fails, .*: git -C .* status shows why"),
        (not_pushed, r"HEAD is \w{9}, origin's main is at \w{9}: git push origin main"),
        (branch_not_pushed, r"origin's idea does not exist: git push origin idea"),
        (behind, r"HEAD is \w{9}, origin's main is at \w{9}: git push origin main"),
        (gone, "cannot be read: git ls-remote"),
    ],
)
def test_what_is_not_pushed_is_one_line_with_its_mend(spoil, message, clone):
    spoil(clone)
    with pytest.raises(UserError, match=message) as error:
        source(clone)
    assert "\n" not in str(error.value)


def test_the_remote_is_the_one_that_is_pushed_to(clone):
    git(clone, "remote", "rename", "origin", "fork")
    git(clone, "remote", "add", "upstream", str(clone.parent / "upstream.git"))
    git(clone, "config", "branch.main.remote", "upstream")
    with pytest.raises(UserError, match=r"upstream\.git cannot be read"):
        source(clone)
    git(clone, "config", "remote.pushDefault", "fork")
    assert source(clone).branch == "main"


def test_a_branch_that_tracks_a_local_one(clone):
    git(clone, "config", "branch.main.remote", ".")
    assert Path(source(clone).url).resolve() == clone.parent / "remote.git"


def test_a_remote_on_this_machine_is_for_rehearsals(clone):
    with pytest.raises(UserError, match="is on this machine"):
        pushed_source(clone, None)


@pytest.mark.parametrize(
    ("address", "url", "password"),
    [
        ("git@host.org:us/ups.git", "https://host.org/us/ups.git", None),
        ("ssh://git@host.org:2222/us/ups.git", "https://host.org/us/ups.git", None),
        ("host.org:us/ups", "https://host.org/us/ups", None),
        ("https://me:secret@host.org/us/ups.git", "https://host.org/us/ups.git", "secret"),
        ("https://host.org:8443/us/ups.git", "https://host.org:8443/us/ups.git", None),
        ("git://127.0.0.1:9418/ups", "git://127.0.0.1:9418/ups", None),
    ],
)
def test_an_address_that_a_machine_can_clone(address, url, password):
    assert clone_url(address, local=False) == (url, password)


def test_is_tracked(clone):
    (clone / "data").write_text("x")
    assert is_tracked(clone, "train.py") and not is_tracked(clone, "data") and not is_tracked(clone, "/etc/hosts")


@pytest.fixture
def private(clone):
    """The bare remote behind the password "token"."""
    with private_git(clone.parent, "token") as url:
        yield f"{url}/remote.git"


def test_a_private_remote_wants_a_token(private, clone, monkeypatch):
    git(clone, "remote", "set-url", "origin", private)
    # As this computer's user has it: git's own credentials.
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "credential.helper")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "!f() { echo username=git; echo password=token; }; f")
    with pytest.raises(UserError, match=r"is private: a rented machine needs a token .*export GIT_TOKEN"):
        source(clone)
    with pytest.raises(UserError, match="is private"):
        source(clone, "wrong")
    assert source(clone, "token").token == "token"
    assert git(clone, "config", "--list").count("token") == 1  # the helper above; nothing of it was written


def test_a_token_in_the_address_is_taken_out_of_it(private, clone):
    git(clone, "remote", "set-url", "origin", private.replace("://", "://git:token@"))
    found = source(clone)
    assert (found.url, found.token) == (private, "token")
