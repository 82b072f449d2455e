"""A stand-in for Vast's service on loopback, as its API is documented: offers, instances, keys, and machines that are
folders on this computer. Tests give it faults.
"""

import json
import os
import re
import secrets
import socket
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import psutil

PAGE = 25


def offer(number: int, **changes) -> dict:
    """As a search answers it; memory in MB, duration in seconds, prices in dollars an hour."""
    return {
        "id": 1000 + number, "machine_id": 100 + number, "gpu_name": "RTX 4090", "num_gpus": 1, "gpu_ram": 24564,
        "dph_base": 0.30 + 0.01 * number, "dph_total": 0.31 + 0.01 * number, "min_bid": 0.15, "inet_down_cost": 0.002,
        "reliability": 0.995, "reliability2": 0.995, "cuda_max_good": 12.8, "disk_space": 200.0, "rentable": True,
        "rented": False, "verified": True, "external": False, "duration": 9e5, "geolocation": "Sweden, SE",
    } | changes  # fmt: skip


@dataclass
class Fault:
    """The next `times` requests that match get `answer`: (status, content), "drop" (no answer), "cut" (half of one) or
    "hang". With `after`, the request is carried out first."""

    request: str  # a regular expression for "METHOD /path"
    answer: tuple[int, dict] | str
    times: int = 1
    after: bool = False


@dataclass
class Request:
    method: str
    path: str
    body: dict
    key: str
    time: float = field(default_factory=time.time)


class Machine:
    """An instance as processes on this computer. Everything that inherits its environment dies with it."""

    def __init__(self, folder: Path, shell: str, environment: dict[str, str]):
        self.folder, self.shell, self.environment = folder, shell, environment
        folder.mkdir(parents=True, exist_ok=True)
        self.script = folder / "onstart.sh"

    def start(self, script: str) -> None:
        self.script.write_text(script)
        with open(self.folder / "output", "ab") as output:
            subprocess.Popen(
                [self.shell, str(self.script)], cwd=self.folder, env=self.environment, stdout=output,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        for _ in range(3):  # once more for what was being started
            for process in self.processes():
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.05)

    def processes(self) -> list[psutil.Process]:
        mine = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("UPS_MACHINE", "") == self.environment.get("UPS_MACHINE"):
                    mine.append(process)
            except (psutil.Error, OSError):
                continue
        return mine

    def output(self) -> str:
        file = self.folder / "output"
        return file.read_text(errors="replace") if file.exists() else ""


class VastServer:
    """`with VastServer(key) as server: server.url`. `machines`: the folder for machines; without it they do nothing.

    `environment`: what a machine has of this computer (PATH, ...); `shell` runs its script.
    """

    def __init__(self, key: str, machines: Path | None = None, environment: dict | None = None, shell: str = "bash"):
        self.key, self.machines, self.environment, self.shell = key, machines, environment or {}, shell
        self.loading_seconds = 0.3
        self.offers = [offer(number) for number in range(8)]
        self.rows: dict[int, dict] = {}
        self.last_id = 7000
        self.running: dict[int, Machine] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.stays_loading: set[int] = set()  # machine ids
        self.exits: set[int] = set()
        self.keys_outlive = False  # the key of an instance that is gone: still answered (no_such_instance), or refused
        self.keys_gone: set[str] = set()
        self.lock = threading.RLock()
        self.released = threading.Event()  # ends answers that hang

    def __enter__(self) -> "VastServer":
        server = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self):
                server.handle(self)

            do_GET = do_PUT = do_POST = do_DELETE = handle_any

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
        for machine in self.running.values():
            machine.kill()

    # What a test or a rehearsal looks at -----------------------------------------------------------------------

    def sent(self, request: str) -> list[Request]:
        return [each for each in self.requests if re.fullmatch(request, f"{each.method} {each.path}")]

    def machine_of(self, instance_id: int) -> Machine:
        return self.running[instance_id]

    def restart(self, instance_id: int) -> None:
        """As after an outbid: the processes are killed without notice, the disk is kept, the script runs again."""
        self.running[instance_id].kill()
        self._boot(instance_id)

    # Requests ---------------------------------------------------------------------------------------------------

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        path, _, query = http.path.partition("?")
        length = int(http.headers.get("Content-Length") or 0)
        body = json.loads(http.rfile.read(length) or b"{}") if length else {}
        key = (http.headers.get("Authorization") or "").removeprefix("Bearer ")
        line = f"{http.command} {path}"
        with self.lock:
            self.requests.append(Request(http.command, path, body, key))
            fault = next((each for each in self.faults if each.times and re.fullmatch(each.request, line)), None)
            if fault:
                fault.times -= 1
        if fault and not fault.after:
            return self._answer(http, fault.answer)
        with self.lock:
            answer = self._carry_out(http.command, path, parse_qs(query), body, key)
        return self._answer(http, fault.answer if fault else answer)

    def _answer(self, http: BaseHTTPRequestHandler, answer: tuple[int, dict] | str) -> None:
        if answer == "hang":
            self.released.wait()
        if answer == "cut":
            http.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{")
        if isinstance(answer, str):
            http.close_connection = True
            http.connection.shutdown(socket.SHUT_RDWR)
            return
        status, content = answer
        with suppress(BrokenPipeError, ConnectionResetError):  # a client that did not wait for it
            self._write(http, status, content)

    def _write(self, http: BaseHTTPRequestHandler, status: int, content: dict | str) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        http.send_response(status)
        http.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        http.send_header("Content-Length", str(len(text.encode())))
        http.end_headers()
        http.wfile.write(text.encode())

    def _carry_out(self, method: str, path: str, query: dict, body: dict, key: str) -> tuple[int, dict | str]:
        if log := re.fullmatch(r"/logs/(\d+)", path):  # the result_url of a log, which needs no key
            machine = self.running.get(int(log[1]))
            return 200, machine.output() if machine else ""
        one = re.fullmatch(r"/api/v0/instances/(?:(request_logs)/)?(\d+)/", path)
        row = self.rows.get(int(one[2])) if one else None
        if self.keys_outlive and key in self.keys_gone:
            return 404, {"success": False, "error": "no_such_instance", "msg": path}
        if key != self.key and not (row and key == row["instance_api_key"]):
            return 404, {"success": False, "error": "auth_error", "msg": "Invalid user key"}
        if (method, path) == ("POST", "/api/v0/bundles/"):
            return 200, {"offers": [each for each in self.offers if self._fits(each, body)]}
        if (method, path) == ("GET", "/api/v1/instances/"):
            return 200, self._page(int(query.get("after_token", ["0"])[0]))
        if method == "PUT" and (ask := re.fullmatch(r"/api/v0/asks/(\d+)/", path)):
            return self._create(int(ask[1]), body)
        if one is None:
            return 404, {"success": False, "error": "not_found", "msg": path}
        if method == "GET":
            return 200, {"instances": self._seen(row) if row else None}
        if row is None:
            return 404, {"success": False, "error": "no_such_instance", "msg": f"no instance {one[2]}"}
        if one[1]:
            return 200, {"success": True, "result_url": f"{self.url}/logs/{one[2]}"}
        if method == "DELETE":
            self._destroy(int(one[2]))
        elif body.get("state") == "stopped":
            row |= {"actual_status": "exited", "cur_state": "stopped", "intended_status": "stopped"}
            threading.Timer(0.2, self._kill, [int(one[2])]).start()
        return 200, {"success": True}

    def _fits(self, each: dict, query: dict) -> bool:
        compare = {"eq": lambda a, b: a == b, "gte": lambda a, b: a >= b, "lte": lambda a, b: a <= b,
                   "in": lambda a, b: a in b or str(a).rpartition(", ")[2] in b}  # fmt: skip
        return all(
            compare[operation](each[name], value)
            for name, conditions in query.items() if isinstance(conditions, dict)
            for operation, value in conditions.items()
        )  # fmt: skip

    def _create(self, offer_id: int, body: dict) -> tuple[int, dict]:
        found = next((each for each in self.offers if each["id"] == offer_id and each["rentable"]), None)
        if found is None:
            return 410, {"success": False, "error": "no_such_ask", "msg": f"offer {offer_id} is not available"}
        found["rentable"] = False
        self.last_id += 1 + secrets.randbelow(90)  # never one that was: it is the name of a disk
        instance_id = self.last_id
        self.rows[instance_id] = {
            "id": instance_id, "machine_id": found["machine_id"], "label": body["label"], "start_date": time.time(),
            "actual_status": "loading", "cur_state": "running", "intended_status": "running", "next_state": "running",
            "dph_total": found["dph_total"], "gpu_name": found["gpu_name"], "num_gpus": found["num_gpus"],
            "extra_env": [list(item) for item in body["env"].items()], "onstart": body["onstart"], "offer": found,
            "instance_api_key": secrets.token_hex(32),
        }  # fmt: skip
        if found["machine_id"] not in self.stays_loading:
            threading.Timer(self.loading_seconds, self._boot, [instance_id]).start()
        return 200, {
            "success": True, "new_contract": instance_id,
            "instance_api_key": self.rows[instance_id]["instance_api_key"],
        }  # fmt: skip

    def _boot(self, instance_id: int) -> None:
        with self.lock:
            row = self.rows.get(instance_id)
            if row is None:
                return
            row["actual_status"] = "exited" if row["machine_id"] in self.exits else "running"
            if self.machines is None or row["machine_id"] in self.exits:
                return
            machine = Machine(self.machines / str(instance_id), self.shell, self.variables(instance_id))
            self.running[instance_id] = machine
        machine.start(row["onstart"])

    def variables(self, instance_id: int) -> dict[str, str]:
        """The environment of a machine's script. UPS_MACHINE tells its processes from others'."""
        row = self.rows[instance_id]
        return self.environment | dict(row["extra_env"]) | {
            "CONTAINER_ID": str(instance_id), "CONTAINER_API_KEY": row["instance_api_key"], "VAST_URL": self.url,
            "UPS_FOLDER": str(self.machines / str(instance_id) / "ups"), "UPS_MACHINE": f"{self.url}/{instance_id}",
        }  # fmt: skip

    def _destroy(self, instance_id: int) -> None:
        row = self.rows.pop(instance_id)
        row["offer"]["rentable"] = True
        self.keys_gone.add(row["instance_api_key"])
        threading.Timer(1.0, self._kill, [instance_id]).start()  # so that the machine sees its own end

    def _kill(self, instance_id: int) -> None:
        if machine := self.running.get(instance_id):
            machine.kill()

    def _page(self, after: int) -> dict:
        rows = [self.rows[instance_id] for instance_id in sorted(self.rows) if instance_id > after]
        more = len(rows) > PAGE
        return {"instances": [self._seen(row) for row in rows[:PAGE]],
                "next_token": str(rows[PAGE - 1]["id"]) if more else None}  # fmt: skip

    def _seen(self, row: dict) -> dict:
        return {name: value for name, value in row.items() if name not in ("offer", "instance_api_key")}


def inherited_environment(folder: Path) -> dict[str, str]:
    """What a fresh machine would have of this computer: a search path and a home of its own, no secret."""
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "UPS_PAUSE")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"HOME": str(folder)}


