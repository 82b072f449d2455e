"""A published file is fetched over HTTP from a stand-in for DaRUS; whatever breaks, what came is not sent again."""

import hashlib
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT, train_config
from machines import wait_for
from test_data import reader, write_hdf5

from ups.data import darus
from ups.errors import UserError
from ups.training.identity import identity_of

BLOCK = 500  # bytes; the file has 19 kB
NAME = "1D_Burgers_Sols_Nu0.01.hdf5"


@dataclass
class Server:
    """`faults` are of the next requests: "cut" (a third of the answer), "stall" (that, and no end), "no range" (all of
    it), "page", or a status.
    """

    content: bytes
    faults: list = field(default_factory=list)
    asked: list = field(default_factory=list)  # the first byte of each request
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        assert http.path == "/api/access/datafile/281363"
        first = int(re.fullmatch(r"bytes=(\d+)-", http.headers["Range"])[1])
        self.asked.append(first)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            http.send_error(fault)
            return
        content = {"page": b"<html>Back soon.</html>", "no range": self.content}.get(fault, self.content[first:])
        http.send_response(200 if fault in ("page", "no range") else 206)
        http.send_header("Content-Length", str(len(content)))
        http.end_headers()
        http.wfile.write(content[: len(content) // 3] if fault in ("cut", "stall") else content)
        if fault == "stall":
            http.wfile.flush()
            self.over.wait(60)


@pytest.fixture
def server(tmp_path, monkeypatch):
    made = Server(write_hdf5(tmp_path / "made.hdf5").read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.answer(self)

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setattr(darus, "SERVER", f"http://127.0.0.1:{http.server_port}")
        monkeypatch.setitem(darus.PUBLISHED, NAME, (281363, hashlib.md5(made.content).hexdigest()))
        monkeypatch.setattr(darus, "SIZE", len(made.content))
        monkeypatch.setattr(darus, "PAUSES", (0, 0))
        monkeypatch.setattr(darus, "BLOCK", BLOCK)
        yield made
        made.over.set()
        http.shutdown()


def part(path):
    return path.with_name(f".{NAME}.part")


def fetched(path):
    return reader(path, download=True).load_test(path.parent)


@pytest.mark.parametrize(
    "faults",
    [[], ["cut"], ["cut", 503, "cut"], [503, 429], ["cut", "no range"], ["page"], ["cut", "page"], ["stall"]], ids=str,
)  # fmt: skip
def test_a_file_is_fetched_whole_whatever_breaks(faults, server, tmp_path, monkeypatch):
    if "stall" in faults:
        monkeypatch.setattr(darus, "TIMEOUT", 0.5)
    server.faults = list(faults)
    assert len(fetched(tmp_path / NAME)) == 4 and (tmp_path / NAME).read_bytes() == server.content
    expected = [0]
    for fault in faults:
        third = (len(server.content) - expected[-1]) // 3
        expected.append(expected[-1] + third * (fault in ("cut", "stall")))
    assert len(server.asked) == len(expected) - (faults[-1:] == ["no range"])
    assert all(first - 2 * BLOCK <= asked <= first for asked, first in zip(server.asked, expected, strict=False))
    assert not part(tmp_path / NAME).exists()
    server.faults = [404]
    assert len(fetched(tmp_path / NAME)) == 4  # nothing is asked


def test_what_cannot_be_had_is_one_line_and_what_came_is_kept(server, tmp_path):
    path = tmp_path / NAME
    server.faults = ["cut", 503, 503, 503]
    with pytest.raises(UserError, match=r"datafile/281363 \(503 .*\): the same command goes on"):
        fetched(path)
    came = part(path).read_bytes()
    assert len(came) > 5 * BLOCK and server.content.startswith(came) and not path.exists()
    server.faults = [404]
    with pytest.raises(UserError, match=r"datafile/281363: 404 Not Found; what came is kept"):
        fetched(path)
    fetched(path)
    assert path.read_bytes() == server.content and set(server.asked[1:]) == {len(came)}


def test_a_whole_part_is_taken_as_it_is(server, tmp_path):
    """Whoever fetched it was killed before the renaming."""
    part(tmp_path / NAME).write_bytes(server.content)
    fetched(tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == server.content


def test_a_killed_download_goes_on_where_it_was(server, tmp_path):
    path = tmp_path / NAME
    constants = {name: getattr(darus, name) for name in ("SERVER", "SIZE", "BLOCK", "PUBLISHED")}
    code = f"from pathlib import Path; from ups.data import darus; vars(darus).update({constants!r})"
    server.faults = ["stall"]
    fetching = subprocess.Popen([sys.executable, "-c", f"{code}; darus.fetch(Path({str(path)!r}))"], cwd=ROOT)
    wait_for(lambda: part(path).exists() and part(path).stat().st_size > 5 * BLOCK)
    fetching.kill()
    fetching.wait()
    came = part(path).read_bytes()
    assert server.content.startswith(came) and not path.exists()
    fetched(path)
    assert path.read_bytes() == server.content and server.asked == [0, len(came)]


def test_what_is_not_the_published_file_is_thrown_away(server, tmp_path):
    part(tmp_path / NAME).write_bytes(server.content[:-1] + b"x")
    with pytest.raises(UserError, match="it is thrown away, try again"):
        fetched(tmp_path / NAME)
    assert not (tmp_path / NAME).exists() and not part(tmp_path / NAME).exists()


def test_room_is_asked_for_before_it_is_filled(server, tmp_path, monkeypatch):
    monkeypatch.setattr(darus.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match=r"0\.0 GB free, .* needs 0\.0 GB: make room"):
        fetched(tmp_path / NAME)


def test_of_two_that_want_it_one_fetches(server, tmp_path):
    with ThreadPoolExecutor(2) as pool:
        assert [len(test) for test in pool.map(fetched, [tmp_path / NAME] * 2)] == [4, 4]
    assert server.asked == [0]


def test_only_a_published_name_is_fetched(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.download=true fetches what is .* 1D_Burgers_Sols_Nu0\.001\.hdf5"):
        reader(tmp_path / "own.hdf5", download=True)
    with pytest.raises(UserError, match=r"no such file or folder; with .* dataset\.download=true it is fetched"):
        reader(tmp_path / NAME)


def test_how_a_file_came_is_no_part_of_an_identity():
    words = ["dataset=pdebench_burgers", f"dataset.path={NAME}"]
    fetched, given = (identity_of(train_config(*words, f"dataset.download={value}")) for value in ("true", "false"))
    assert fetched.digest == given.digest
