"""A real etcd and kube-apiserver on the loopback: started, stopped, started again, spoken to.

Owns the two processes, their certificates and accounts, and the client of the tests. There is no
kubelet and no controller: tests write what those would. Both programs come from `make kube-test`
(tests/kube/go.mod has their versions).
"""

import contextlib
import secrets
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from tests.certificates import Authority, Pair, openssl
from tests.support import eventually, free_port

Json = dict[str, Any]

_START_S: Final = 120.0
_ISSUER: Final = "https://kubernetes.default.svc"


@dataclass
class Api:
    """The API as one account sees it."""

    url: str
    ca: Path
    token: str
    _plurals: dict[str, tuple[str, bool]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Verified against the cluster's own authority; the machine's proxies are not for it.
        self._http = httpx.Client(
            base_url=self.url,
            verify=ssl.create_default_context(cafile=self.ca),
            headers={"authorization": f"Bearer {self.token}"},
            timeout=30,
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, body: Json | None = None, **query: str) -> httpx.Response:
        """One request, whatever comes of it."""
        return self._http.request(method, path, json=body, params=query)

    def get(self, path: str, **query: str) -> Json:
        """What is there."""
        return self._checked(self.ask("GET", path, **query))

    def create(self, path: str, body: Json) -> Json:
        """A new object in a collection."""
        return self._checked(self.ask("POST", path, body))

    def delete(self, path: str) -> None:
        """At once: nobody is there to end anything."""
        self._checked(self.ask("DELETE", path, {"gracePeriodSeconds": 0}))

    def apply(self, obj: Json, **query: str) -> httpx.Response:
        """Server-side apply, unknown and doubled fields refused."""
        return self._http.patch(
            self.path_of(obj),
            json=obj,
            params={
                "fieldManager": "test",
                "fieldValidation": "Strict",
                "force": "true",
                **query,
            },
            headers={"content-type": "application/apply-patch+yaml"},
        )

    def path_of(self, obj: Json) -> str:
        """Where the API keeps it. KeyError for a kind that it does not serve."""
        version, kind = obj["apiVersion"], obj["kind"]
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if f"{version} {kind}" not in self._plurals:
            for one in self.get(root)["resources"]:
                if "/" not in one["name"]:
                    known = (one["name"], one["namespaced"])
                    self._plurals[f"{version} {one['kind']}"] = known
        plural, namespaced = self._plurals[f"{version} {kind}"]
        metadata = obj["metadata"]
        where = f"/namespaces/{metadata.get('namespace', 'default')}" if namespaced else ""
        return f"{root}{where}/{plural}/{metadata['name']}"

    def _checked(self, reply: httpx.Response) -> Json:
        assert reply.is_success, f"{reply.request.method} {reply.request.url}: {reply.text}"
        found: Json = reply.json()
        return found


class ApiServer:
    """One kube-apiserver on the cluster's etcd; after `stop`, on the same port again."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self.api = self.api_of(cluster.admin_token)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def api_of(self, token: str) -> Api:
        """The API as whoever has this token sees it."""
        return Api(self.url, self._cluster.authority.path, token)

    def start(self) -> "ApiServer":
        self._starts += 1
        log = self._cluster.folder / f"kube-apiserver-{self.port}-{self._starts}.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                self._cluster.server_command(self.port), stdout=out, stderr=subprocess.STDOUT
            )
        eventually(lambda: self._ready(log), timeout_s=_START_S)
        return self

    def _ready(self, log: Path) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(httpx.TransportError):
            return self.api.ask("GET", "/readyz").status_code == 200
        return False

    def stop(self) -> None:
        """Gone, and every watch with it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


class Cluster:
    """etcd, the certificates, and as many API servers as a test wants."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self._programs = programs
        self.admin_token = secrets.token_hex(16)
        self.authority = Authority(folder, "ca")
        self._serving: Pair = self.authority.issue("kube-apiserver")
        self._accounts = folder / "accounts.key"
        openssl("genrsa", "-out", self._accounts, 2048)
        self._tokens = folder / "tokens.csv"
        self._tokens.write_text(f'{self.admin_token},admin,admin,"system:masters"\n')
        self._etcd_port, self._peer_port = free_port(), free_port()
        self._etcd: subprocess.Popen[bytes] | None = None
        self._servers: list[ApiServer] = []

    @property
    def etcd_url(self) -> str:
        return f"http://127.0.0.1:{self._etcd_port}"

    def start(self) -> None:
        """etcd alone; `server` adds API servers."""
        peer = f"http://127.0.0.1:{self._peer_port}"
        command = [
            *(str(self._programs / "etcd"), "--data-dir", str(self.folder / "etcd")),
            *("--listen-client-urls", self.etcd_url, "--advertise-client-urls", self.etcd_url),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}", "--unsafe-no-fsync"),
        ]
        with (self.folder / "etcd.log").open("wb") as out:
            self._etcd = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        eventually(self._etcd_answers, timeout_s=_START_S)

    def _etcd_answers(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            reply = httpx.get(f"{self.etcd_url}/health", trust_env=False)
            return reply.status_code == 200
        return False

    def server(self) -> ApiServer:
        """One more API server, started."""
        server = ApiServer(self)
        self._servers.append(server)
        return server.start()

    def server_command(self, port: int) -> list[str]:
        options = {
            "etcd-servers": self.etcd_url,
            "bind-address": "127.0.0.1",
            "secure-port": port,
            "tls-cert-file": self._serving.cert,
            "tls-private-key-file": self._serving.key,
            "token-auth-file": self._tokens,
            "authorization-mode": "RBAC",
            "service-account-issuer": _ISSUER,
            "service-account-key-file": self._accounts,
            "service-account-signing-key-file": self._accounts,
            "service-cluster-ip-range": "10.96.0.0/16",
            # Two of them share one etcd, and nobody asks for the Service `kubernetes`.
            "endpoint-reconciler-type": "none",
        }
        program = str(self._programs / "kube-apiserver")
        return [program, *(f"--{name}={value}" for name, value in options.items())]

    def compact(self) -> None:
        """Let etcd forget every version but the newest, as it does every five minutes."""
        with httpx.Client(base_url=self.etcd_url, trust_env=False) as http:
            reply = http.post("/v3/kv/range", json={"key": "AA==", "limit": 1})
            revision = reply.json()["header"]["revision"]
            done = http.post("/v3/kv/compaction", json={"revision": revision, "physical": True})
            assert done.status_code == 200, done.text

    def close(self) -> None:
        for server in self._servers:
            server.stop()
            server.api.close()
        if self._etcd is not None:
            self._etcd.kill()
            self._etcd.wait()


@contextlib.contextmanager
def cluster(folder: Path, programs: Path) -> Iterator[Cluster]:
    """A cluster for as long as the block lasts."""
    made = Cluster(folder, programs)
    try:
        made.start()
        yield made
    finally:
        made.close()
