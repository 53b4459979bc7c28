"""TLS of the gRPC port: who gets in, what is refused at the start, and how files are renewed."""

import logging
import shutil
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.extproc.health import Health
from aibrix_extproc.extproc.service import listen, make_server
from aibrix_extproc.extproc.tls import Certificates
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.certificates import Authority, Pair, openssl

pytestmark = pytest.mark.asyncio


@dataclass
class Files:
    """What the variables name: tests write other files in their place."""

    folder: Path
    authority: Authority
    server: Pair
    client: Pair

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "grpc_tls_cert": str(self.folder / "tls.crt"),
            "grpc_tls_key": str(self.folder / "tls.key"),
        }

    @property
    def mutual(self) -> dict[str, Any]:
        return self.settings | {"grpc_tls_client_ca": str(self.folder / "ca.crt")}

    def install(self, pair: Pair, ca: Path) -> None:
        """As a renewal does it: each file is replaced at once."""
        for source, name in ((pair.cert, "tls.crt"), (pair.key, "tls.key"), (ca, "ca.crt")):
            draft = self.folder / "draft"
            shutil.copy(source, draft)
            draft.replace(self.folder / name)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    authority = Authority(tmp_path, "authority")
    made = Files(tmp_path, authority, authority.issue("server"), authority.issue("client"))
    made.install(made.server, authority.path)
    return made


@dataclass
class Served:
    """A gRPC server with TLS."""

    port: int
    certificates: Certificates
    metrics: Metrics

    async def is_let_in(self, trusted: Path, client: Pair | None = None) -> bool:
        """Whether a real client gets an answer."""
        credentials = as_client(trusted, client)
        async with grpc.aio.secure_channel(f"127.0.0.1:{self.port}", credentials) as channel:
            return await answers(channel)

    def shown(self, files: Files) -> str:
        """The common name of the certificate that a new connection is shown."""
        context = ssl.create_default_context(cafile=str(files.authority.path))
        context.load_cert_chain(files.client.cert, files.client.key)
        context.set_alpn_protocols(["h2"])
        address = ("127.0.0.1", self.port)
        with (
            socket.create_connection(address, timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            subject: Any = (wrapped.getpeercert() or {})["subject"]
        return str(subject[0][0][1])

    def reloads(self, result: str) -> float | None:
        return self.metrics.registry.get_sample_value(
            "aibrix_extproc_tls_reloads_total", {"result": result}
        )

    def broken(self) -> float | None:
        return self.metrics.registry.get_sample_value("aibrix_extproc_tls_renewal_broken")


def as_client(trusted: Path, client: Pair | None) -> grpc.ChannelCredentials:
    key = client.key.read_bytes() if client else None
    chain = client.cert.read_bytes() if client else None
    return grpc.ssl_channel_credentials(trusted.read_bytes(), key, chain)


async def answers(channel: Any) -> bool:
    """False where no connection comes about; anything else is an error."""
    stub = health_pb2_grpc.HealthStub(channel)
    try:
        await stub.Check(health_pb2.HealthCheckRequest(service="liveness"), timeout=10)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return False
        raise
    return True


@asynccontextmanager
async def serving(settings: dict[str, Any]) -> AsyncIterator[Served]:
    metrics = Metrics()
    chosen = Settings(**settings)
    certificates = Certificates(chosen, metrics)
    server = make_server(chosen)
    await Health().start(server)
    port = listen(server, "127.0.0.1:0", certificates.credentials())
    await server.start()
    try:
        yield Served(port, certificates, metrics)
    finally:
        await server.stop(None)


# -- who gets in ------------------------------------------------------------------------------


async def test_without_client_ca_whoever_trusts_the_certificate_is_let_in(files: Files) -> None:
    other = Authority(files.folder, "other")
    async with serving(files.settings) as served:
        assert await served.is_let_in(files.authority.path)
        assert not await served.is_let_in(other.path)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{served.port}") as channel:
            assert not await answers(channel)


async def test_with_client_ca_only_its_certificates_are_let_in(files: Files) -> None:
    stranger = Authority(files.folder, "other").issue("stranger")
    async with serving(files.mutual) as served:
        assert await served.is_let_in(files.authority.path, files.client)
        assert not await served.is_let_in(files.authority.path)
        assert not await served.is_let_in(files.authority.path, stranger)


# -- files that cannot be used at the start ---------------------------------------------------


def spoil_cert(files: Files) -> None:
    (files.folder / "tls.crt").write_text("no certificate")


def spoil_key(files: Files) -> None:
    (files.folder / "tls.key").write_text("no key")


def swap_key(files: Files) -> None:
    shutil.copy(files.client.key, files.folder / "tls.key")


def encrypt_key(files: Files) -> None:
    encrypted = files.folder / "encrypted"
    openssl("pkcs8", "-topk8", "-in", files.server.key, "-out", encrypted, "-passout", "pass:x")
    encrypted.replace(files.folder / "tls.key")


def lose_cert(files: Files) -> None:
    (files.folder / "tls.crt").unlink()


def lose_key(files: Files) -> None:
    (files.folder / "tls.key").unlink()


def spoil_ca(files: Files) -> None:
    (files.folder / "ca.crt").write_bytes(b"\xff\x00")


def lose_ca(files: Files) -> None:
    (files.folder / "ca.crt").unlink()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_cert, "CERT"),
        (lose_cert, "CERT"),
        (spoil_key, "KEY"),
        (swap_key, "KEY"),
        (encrypt_key, "KEY"),
        (lose_key, "KEY"),
        (spoil_ca, "CLIENT_CA"),
        (lose_ca, "CLIENT_CA"),
    ],
)
async def test_a_file_that_cannot_be_used_is_an_error_that_names_its_variable(
    files: Files, spoil: Any, named: str
) -> None:
    spoil(files)
    with pytest.raises(SettingsError, match=f"^AIBRIX_EXTPROC_GRPC_TLS_{named}: ") as caught:
        Certificates(Settings(**files.mutual), Metrics())
    assert str(files.folder) in str(caught.value)
    assert "BEGIN" not in str(caught.value)


# -- renewal ----------------------------------------------------------------------------------


async def test_a_renewed_certificate_is_shown_to_new_connections(files: Files) -> None:
    async with serving(files.mutual) as served:
        assert served.shown(files) == "server"
        files.install(files.authority.issue("renewed"), files.authority.path)
        served.certificates.look()
        assert served.shown(files) == "renewed"
        assert served.shown(files) == "renewed"
        assert (served.reloads("renewed"), served.reloads("failed")) == (1, 0)
        assert await served.is_let_in(files.authority.path, files.client)


async def test_other_authorities_for_clients_hold_from_the_next_connection_on(
    files: Files,
) -> None:
    other = Authority(files.folder, "other")
    stranger = other.issue("stranger")
    async with serving(files.mutual) as served:
        assert not await served.is_let_in(files.authority.path, stranger)
        files.install(files.server, other.path)
        served.certificates.look()
        assert await served.is_let_in(files.authority.path, stranger)
        assert not await served.is_let_in(files.authority.path, files.client)


@pytest.mark.parametrize("spoil", [spoil_cert, spoil_key, swap_key, lose_cert, lose_key, spoil_ca])
async def test_a_renewal_that_went_wrong_leaves_the_old_one_and_is_told_once(
    files: Files, spoil: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(files.mutual) as served:
        spoil(files)
        with caplog.at_level(logging.WARNING):
            served.certificates.look()
            served.certificates.look()
        assert served.shown(files) == "server"
        assert (served.reloads("failed"), served.broken()) == (1, 1)
        assert caplog.text.count("stays in force") == 1
        assert "AIBRIX_EXTPROC_GRPC_TLS_" in caplog.text

        files.install(files.authority.issue("repaired"), files.authority.path)
        served.certificates.look()
        assert served.shown(files) == "repaired"
        assert (served.reloads("renewed"), served.broken()) == (1, 0)


async def test_a_connection_that_stands_goes_on_through_a_renewal(files: Files) -> None:
    async with serving(files.mutual) as served:
        credentials = as_client(files.authority.path, files.client)
        async with grpc.aio.secure_channel(f"127.0.0.1:{served.port}", credentials) as channel:
            assert await answers(channel)
            files.install(files.authority.issue("renewed"), files.authority.path)
            served.certificates.look()
            assert await answers(channel)


async def test_files_that_are_written_again_with_the_same_content_are_no_renewal(
    files: Files,
) -> None:
    async with serving(files.mutual) as served:
        files.install(files.server, files.authority.path)
        served.certificates.look()
        assert served.reloads("renewed") == 0
        assert served.shown(files) == "server"


async def test_a_link_that_leads_elsewhere_is_a_change(files: Files) -> None:
    """As Kubernetes swaps the files of a secret."""
    folder = files.folder / "secret"
    for version, name in (("v1", "server"), ("v2", "second")):
        (folder / version).mkdir(parents=True)
        pair = files.authority.issue(name)
        shutil.copy(pair.cert, folder / version / "tls.crt")
        shutil.copy(pair.key, folder / version / "tls.key")
    link = folder / "now"
    link.symlink_to(folder / "v1")
    settings = {"grpc_tls_cert": str(link / "tls.crt"), "grpc_tls_key": str(link / "tls.key")}
    async with serving(settings) as served:
        draft = folder / "draft"
        draft.symlink_to(folder / "v2")
        draft.replace(link)
        served.certificates.look()
        assert served.shown(files) == "second"
