"""A real Envoy that reaches the processor by mutual TLS."""

import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from aibrix_extproc.stack import envoy_config
from tests.certificates import Authority, Pair
from tests.e2e.beside import MODES, another_envoy
from tests.e2e.stack import gateway
from tests.e2e.watching import PICKED, counted, text
from tests.support import eventually_async

ENVOY_PAGE = (Path(__file__).parents[2] / "docs" / "envoy.md").read_text()


def transport(trusted: Path, client: Pair | None) -> Any:
    """The `transport_socket` of docs/envoy.md, with these files."""
    found = re.search(r"```yaml\n( +transport_socket:.*?)```", ENVOY_PAGE, re.DOTALL)
    assert found is not None
    socket = yaml.safe_load(textwrap.dedent(found[1]))["transport_socket"]
    common = socket["typed_config"]["common_tls_context"]
    common["validation_context"]["trusted_ca"]["filename"] = str(trusted)
    (name,) = common["validation_context"]["match_typed_subject_alt_names"]
    name["matcher"]["exact"] = "localhost"
    if client is None:
        del common["tls_certificates"]
    else:
        (own,) = common["tls_certificates"]
        own["certificate_chain"]["filename"] = str(client.cert)
        own["private_key"]["filename"] = str(client.key)
    return socket


@pytest.mark.asyncio
async def test_envoy_with_the_right_certificate_gets_picks_and_others_get_none(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path, "authority")
    server, client = authority.issue("server"), authority.issue("envoy")
    stranger = Authority(tmp_path, "other").issue("stranger")
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    shutil.copy(server.cert, cert)
    shutil.copy(server.key, key)
    environment = {
        "AIBRIX_EXTPROC_GRPC_TLS_CERT": str(cert),
        "AIBRIX_EXTPROC_GRPC_TLS_KEY": str(key),
        "AIBRIX_EXTPROC_GRPC_TLS_CLIENT_CA": str(authority.path),
    }

    def by(client: Pair | None) -> Any:
        def edit(config: envoy_config.Config) -> None:
            cluster = envoy_config.cluster(config, "ext_proc")
            cluster["transport_socket"] = transport(authority.path, client)

        return edit

    async with gateway(engines=2, environment=environment, edit=by(client)) as stack:
        first = await stack.complete(text("tls"))
        assert first.status == 200
        assert PICKED in first.headers

        renewed = authority.issue("renewed")
        for source, path in ((renewed.key, key), (renewed.cert, cert)):
            draft = tmp_path / "draft"
            shutil.copy(source, draft)
            draft.replace(path)

        async def is_renewed() -> bool:
            name = "aibrix_extproc_tls_reloads_total"
            return await counted(stack, name, result="renewed") == 1

        await eventually_async(is_renewed)
        # A new Envoy meets the new certificate; the first one's connection goes on.
        again = await another_envoy(stack, MODES[0], edit=by(client))
        assert PICKED in (await again.complete(text("tls"))).headers
        assert PICKED in (await stack.complete(text("tls"))).headers

        for wrong in (None, stranger):
            gate = await another_envoy(stack, MODES[0], edit=by(wrong))
            reply = await gate.complete(text("tls"))
            assert reply.status == 200
            assert PICKED not in reply.headers
