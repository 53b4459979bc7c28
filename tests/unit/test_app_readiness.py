"""When the server says that it is ready, and to whom first."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from aibrix_extproc.app import App
from aibrix_extproc.settings import Settings


@pytest.fixture
async def app(tmp_path: Path) -> App:
    """With its pods listed, and nothing left to wait for."""
    pods = tmp_path / "pods.yaml"
    pods.write_text("pods: [{name: a, model: m, address: '127.0.0.1:1'}]")
    built = App(Settings(endpoints_file=str(pods)))
    await built.discovery.start()
    await built.discovery.close()
    return built


async def test_readyz_is_not_ahead_of_grpc_health(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: list[Mapping[str, bool]] = [app.readiness()]
    tell = app.health.set_serving

    async def told(serving: bool) -> None:
        pages.append(app.readiness())
        await tell(serving)

    monkeypatch.setattr(app.health, "set_serving", told)
    await app._follow_readiness()
    assert app.health.serving
    unready = {"pods_listed": False, "first_sync_done": False, "not_draining": True}
    assert pages == [unready, unready]
    assert all(app.readiness().values())


async def test_a_drain_is_seen_at_once(app: App) -> None:
    await app._follow_readiness()
    await app.drain()
    assert app.readiness() == {
        "pods_listed": True,
        "first_sync_done": True,
        "not_draining": False,
    }
