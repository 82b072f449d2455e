"""W&B's server on loopback, as much of it as the real client asks for: runs, their rows, artifacts, and the public API.

    with WandbServer() as server:
        subprocess.run(..., env=os.environ | server.environment)
        assert server.runs["abc"].state == "finished"
        assert server.artifact("operator-ca4aecb06142").state == "COMMITTED"

Everything is kept in memory. A test sets a fault as an attribute, at any time.
"""

import base64
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ENTITY = "tester"
API_KEY = "5ecre7" + "0123456789abcdef" * 2 + "00"
NOW = "2025-01-01T00:00:00Z"


@dataclass
class Run:
    id: str
    project: str
    name: str | None = None
    state: str = "running"  # running | finished | failed
    exit_code: int | None = None
    config: dict = field(default_factory=dict)
    summary: dict = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)  # as the client sends them, with its own `_step`


@dataclass
class Artifact:
    id: str
    project: str
    name: str
    type: str
    digest: str
    version: int
    run: str
    aliases: list[str]
    state: str = "PENDING"  # PENDING | COMMITTED | DELETED
    manifest: bytes = b""

    @property
    def entries(self) -> dict[str, dict]:
        """File name -> {digest, size, ...}."""
        return json.loads(self.manifest)["contents"]


class WandbServer:
    down = False  # every request is answered with 503
    slow = 0.0  # seconds before every answer
    refuse_uploads = False  # the body of an artifact's file is answered with 403
    forget_commits = False  # a commit is confirmed, and the artifact stays PENDING
    forget_ends = False  # the end of a run is confirmed, and the run stays running
    team: str | None = None  # of which the account is a member

    def __init__(self, api_key: str = API_KEY):
        self.api_key = api_key
        self.runs: dict[str, Run] = {}
        self.artifacts: list[Artifact] = []
        self.blobs: dict[str, bytes] = {}  # content of artifacts' files, by the hex of its digest
        self.requests: list[tuple[str, str, bytes]] = []  # (method and path, GraphQL operation, body)
        self.lock = threading.Lock()
        self.http = _HTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": self}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """For the process of a client."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": self.api_key, "WANDB_ERROR_REPORTING": "false"}

    def artifact(self, name: str) -> Artifact | None:
        """The latest version."""
        return next((each for each in reversed(self.artifacts) if each.name == name), None)

    def content(self, name: str, file: str) -> bytes:
        """Of one file of the latest version."""
        return self.blobs[_hex(self.artifact(name).entries[file]["digest"])]

    def tamper(self, name: str, file: str, content: bytes) -> None:
        """Other content under the same digest, as a server that lies would send it."""
        self.blobs[_hex(self.artifact(name).entries[file]["digest"])] = content

    def operations(self) -> list[str]:
        return [operation for _, operation, _ in self.requests if operation]

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.http.server_close()

    # One method for each GraphQL operation, by its name; `v` are the variables.

    def Viewer(self, v: dict) -> dict:
        viewer = {"id": "VXNlcjox", "name": ENTITY, "entity": ENTITY, "username": ENTITY, "email": "t@example.org",
                  "flags": "{}", "admin": False, "deletedAt": None, "apiKeys": {"edges": []},
                  "teams": {"edges": [{"node": {"name": self.team}}] if self.team else []}}  # fmt: skip
        return {"viewer": viewer}

    GetViewer = GetDefaultEntity = Viewer

    def ServerFeaturesQuery(self, v: dict) -> dict:
        return {"serverInfo": {"features": []}}

    def UpsertBucket(self, v: dict) -> dict:
        inserted = v["name"] not in self.runs
        run = self.runs.setdefault(v["name"], Run(v["name"], v.get("project") or "uncategorized"))
        run.state, run.exit_code = "running", None
        run.name = v.get("displayName") or run.name or run.id
        run.config |= json.loads(v.get("config") or "{}")
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def RunResumeStatus(self, v: dict) -> dict:
        run = self.runs.get(v["name"])
        return {"model": {"id": "project", "name": v["project"], "entity": {"id": "entity", "name": ENTITY},
                          "bucket": run and self._bucket(run)}}  # fmt: skip

    def Run(self, v: dict) -> dict:
        run = self.runs.get(v.get("run") or v.get("name"))
        known = run is not None and run.project == v["project"]
        return {"project": {"run": self._bucket(run) if known else None}}

    RunState = QueryRunInfo = Run

    def CreateRunFiles(self, v: dict) -> dict:
        files = [{"name": name, "uploadUrl": f"{self.url}/run/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": v["run"], "uploadHeaders": [], "files": files}}

    def MarkRunFilesUploaded(self, v: dict) -> dict:
        return {"markRunFilesUploaded": {"success": True}}

    def ArtifactType(self, v: dict) -> dict:
        found = self.artifact(v["name"].partition(":")[0])
        return {"project": {"artifact": found and {"artifactType": {"name": found.type}}}}

    def CreateArtifact(self, v: dict) -> dict:
        given = v["input"]
        name, project = given["artifactCollectionName"], given["projectName"]
        versions = [each for each in self.artifacts if (each.project, each.name) == (project, name)]
        same = [each for each in versions if each.digest == given["digest"] and each.state == "COMMITTED"]
        aliases = [alias["alias"] for alias in given.get("aliases") or []]
        for each in versions:
            each.aliases = [alias for alias in each.aliases if alias not in aliases]
        if same:  # nothing new, as the real one decides
            artifact = same[-1]
            artifact.aliases += aliases
        else:
            artifact = Artifact(f"artifact{len(self.requests)}", project, name, given["artifactTypeName"],
                                given["digest"], len(versions), given["runName"], aliases)  # fmt: skip
            self.artifacts.append(artifact)
        latest = {"latestArtifact": {"id": artifact.id}}
        answer = {"id": artifact.id, "state": artifact.state, "artifactSequence": latest}
        return {"createArtifact": {"artifact": answer}}

    def CreateArtifactManifest(self, v: dict) -> dict:
        file = {"id": "file", "uploadUrl": f"{self.url}/manifest/{v['artifactID']}", "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": v["artifactID"], "file": file}}}

    def UpdateArtifactManifest(self, v: dict) -> dict:
        created = self.CreateArtifactManifest({"artifactID": v["artifactManifestID"]})
        return {"updateArtifactManifest": created["createArtifactManifest"]}

    def CreateArtifactFiles(self, v: dict) -> dict:
        nodes = [
            {"storagePath": f"blob/{_hex(file['md5'])}", "uploadUrl": f"{self.url}/blob/{_hex(file['md5'])}",
             "uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}
            for file in v["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}

    def CommitArtifact(self, v: dict) -> dict:
        artifact = self._by_id(v["artifactID"])
        if not self.forget_commits:
            artifact.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def ArtifactByID(self, v: dict) -> dict:
        return {"artifact": self._fragment(self._by_id(v["id"]))}

    def ArtifactMembershipByName(self, v: dict) -> dict:
        name, _, alias = v["name"].partition(":")
        found = [
            each for each in self.artifacts
            if (each.project, each.name) == (v["project"], name) and alias in (*each.aliases, f"v{each.version}")
        ]  # fmt: skip
        membership = None
        if found:
            fragment = self._fragment(found[-1])
            membership = {"__typename": "ArtifactCollectionMembership", "id": "membership", "createdAt": NOW,
                          "artifact": fragment, "artifactCollection": fragment["artifactSequence"],
                          "versionIndex": fragment["versionIndex"], "aliases": fragment["aliases"]}  # fmt: skip
        known = any(each.project == v["project"] for each in (*self.artifacts, *self.runs.values()))
        return {"project": {"artifactCollectionMembership": membership} if known else None}

    def FetchArtifactManifest(self, v: dict) -> dict:
        file = {"directUrl": f"{self.url}/manifest/{v['id']}"}
        return {"artifact": {"currentManifest": {"file": file}}}

    def _by_id(self, artifact_id: str) -> Artifact:
        return next(each for each in self.artifacts if each.id == artifact_id)

    def _bucket(self, run: Run) -> dict:
        project = {"id": "project", "name": run.project, "entity": {"id": "entity", "name": ENTITY}}
        return {
            "id": run.id, "name": run.id, "displayName": run.name, "state": run.state, "project": project,
            "projectId": 1, "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}", "historyLineCount": len(run.rows), "logLineCount": 0, "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in run.rows[-1:]]), "eventsTail": "[]", "tags": [],
            "notes": "", "description": "", "wandbConfig": json.dumps({"t": 1}), "sweepName": None, "jobType": None,
            "group": None, "createdAt": NOW, "heartbeatAt": NOW, "readOnly": False,
            "user": {"name": ENTITY, "username": ENTITY}, "historyKeys": None,
        }  # fmt: skip

    def _fragment(self, artifact: Artifact) -> dict:
        project = {"id": "project", "internalId": "1", "name": artifact.project, "entity": {"name": ENTITY}}
        sequence = {"__typename": "ArtifactSequence", "name": artifact.name, "project": project}
        aliases = [
            {"__typename": "ArtifactAlias", "id": alias, "alias": alias, "artifactCollection": sequence}
            for alias in artifact.aliases
        ]
        entries = artifact.entries.values() if artifact.manifest else []
        return {
            "__typename": "Artifact", "id": artifact.id, "artifactSequence": sequence, "aliases": aliases,
            "versionIndex": artifact.version, "artifactType": {"name": artifact.type}, "description": None,
            "metadata": "{}", "ttlDurationSeconds": -1, "ttlIsInherited": True, "tags": [], "historyStep": None,
            "state": artifact.state, "size": sum(entry["size"] for entry in entries), "digest": artifact.digest,
            "digestAlgorithm": "MANIFEST_MD5", "commitHash": None, "fileCount": len(entries), "createdAt": NOW,
            "updatedAt": None,
        }  # fmt: skip


class _HTTPServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away is no error of a test
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: WandbServer

    def do_POST(self) -> None:
        state, body = self.server_state, self._body()
        operation, variables = "", {}
        if self.path == "/graphql":
            asked = json.loads(body)
            operation = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])[1]
            variables = asked.get("variables") or {}
        if not self._admitted(operation, body, needs_key=True):
            return
        with state.lock:
            if operation and not hasattr(state, operation):
                self._answer(200, {"data": None, "errors": [{"message": f"{operation} is not known here"}]})
            elif operation:
                self._answer(200, {"data": getattr(state, operation)(variables)})
            elif stream := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                self._take_stream(state.runs[stream[1]], json.loads(body))
                self._answer(200, {})
            else:
                self._answer(404, {})

    def do_PUT(self) -> None:
        state, body = self.server_state, self._body()
        if not self._admitted("", body):
            return None
        kind, _, name = self.path[1:].partition("/")
        with state.lock:
            if kind == "blob" and state.refuse_uploads:
                return self._answer(403, {})
            if kind == "blob":
                state.blobs[name] = body
            elif kind == "manifest":
                state._by_id(name).manifest = body
        return self._answer(200, {})

    def do_GET(self) -> None:
        state = self.server_state
        if not self._admitted("", b"", needs_key=self.path.startswith("/artifacts")):
            return
        with state.lock:
            parts = self.path.strip("/").split("/")
            if parts[0] == "manifest":
                content = state._by_id(parts[1]).manifest
            elif parts[0] == "artifacts":
                content = state.blobs.get(parts[2])
            elif parts[0] == "artifactsV2":
                content = state.blobs.get(parts[-2])
            else:
                content = None
        self._answer(404 if content is None else 200, content or b"")

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _admitted(self, operation: str, body: bytes, needs_key: bool = False) -> bool:
        state = self.server_state
        state.requests.append((f"{self.command} {self.path}", operation, body))
        time.sleep(state.slow)
        if self.path.startswith("/sdk/otel/"):  # so a server says that it takes none; 401 would be told as an error
            self._answer(404, {})
            return False
        expected = "Basic " + base64.b64encode(f"api:{state.api_key}".encode()).decode()
        if state.down:
            self._answer(503, {})
        elif needs_key and self.headers.get("Authorization") != expected:
            self._answer(401, {"errors": [{"message": "invalid API key"}]})
        else:
            return True
        return False

    def _take_stream(self, run: Run, sent: dict) -> None:
        for name, part in (sent.get("files") or {}).items():
            lines = part["content"]
            if name == "wandb-history.jsonl":
                run.rows[part["offset"] :] = [json.loads(line) for line in lines]
            elif name == "wandb-summary.json":
                run.summary = json.loads(lines[-1])
        if sent.get("complete") and not self.server_state.forget_ends:
            run.exit_code = sent["exitcode"]
            run.state = "failed" if run.exit_code else "finished"

    def _answer(self, status: int, content: dict | bytes) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """pytest's output is not the place."""


def _hex(digest: str) -> str:
    """Of the base64 that the client sends."""
    return base64.b64decode(digest).hex()
