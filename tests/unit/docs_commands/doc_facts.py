"""What the repository really has: targets, options, routes, variables, manifests, metrics."""

import asyncio
import functools
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from aibrix_extproc.app import App
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import IGNORED, Settings, variables

ROOT = Path(__file__).parents[3]
MAKEFILE = (ROOT / "Makefile").read_text()

OPENAI_PATHS = {"/v1/chat/completions", "/v1/completions", "/v1/models"}
"""What a client asks Envoy for."""
ENVOY_PORTS = {10000, 80, 443}
ENGINE_PORTS = {8000, 8001, 8002, 8003}
OTHER_PORTS = {9090: "Prometheus", 9901: "Envoy's admin port", 19000: "that of Envoy Gateway's"}
FOREIGN_NAMESPACES = {"envoy-gateway-system", "monitoring"}
FOREIGN_OBJECTS = {
    "aibrix-gateway-plugins", "aibrix-gateway-plugins-extension-policy", "aibrix-epp",
    "aibrix-reserved-router",
}  # fmt: skip
"""What AIBrix and Envoy Gateway install: docs/migration.md changes it."""


@functools.cache
def make_says(target: str) -> str | None:
    """None where `make -n TARGET` knows what to do, else its error."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else result.stderr.strip().splitlines()[-1]


def make_variables() -> set[str]:
    """Variables that the Makefile reads."""
    return set(re.findall(r"\$\((\w+)\)", MAKEFILE)) | set(
        re.findall(r"^(\w+) \?=", MAKEFILE, re.M)
    )


@functools.cache
def known_variables() -> frozenset[str]:
    """Variables of the environment that something here reads."""
    read = set(variables()) | set(IGNORED) | make_variables() | {"PATH", "CI"}
    for path in (ROOT / "tests").rglob("*.py"):
        read |= set(re.findall(r"\bAIBRIX_TEST_[A-Z]+\b", path.read_text()))
    return frozenset(read)


@functools.cache
def applications() -> dict[int, web.Application]:
    """The real servers' pages, by the port that they have unless told otherwise."""
    path = ROOT / "envoy" / "endpoints.yaml"
    app = App(Settings(endpoints_file=str(path)))
    defaults = Settings()
    ports = {
        port_of(defaults.admin_address): app.admin,
        port_of(defaults.debug_address): app.debug,
        8082: app.peers,
    }
    return {port: server._http._application for port, server in ports.items()}  # type: ignore[attr-defined]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def route_says(port: int, method: str, path: str) -> str | None:
    """None where the server of that port answers the path, else what it would say."""

    async def resolve() -> str | None:
        request = make_mocked_request(method, path)
        match = await applications()[port].router.resolve(request)
        if isinstance(match.http_exception, web.HTTPMethodNotAllowed):
            return f"port {port} does not answer {method} {path}"
        moved = getattr(match.handler, "__name__", "") == "_moved"
        if match.http_exception is not None or moved:
            return f"port {port} has no page {path}"
        return None

    return asyncio.run(resolve())


@functools.cache
def metric_names() -> frozenset[str]:
    """Every name that a scrape may hold."""
    names = set()
    for metric in Metrics().registry.collect():
        names |= {metric.name, *(sample.name for sample in metric.samples)}
        names |= {metric.name + ending for ending in SAMPLE_ENDINGS[metric.type]}
    return frozenset(names)


SAMPLE_ENDINGS = {
    "counter": ("_total", "_created"),
    "histogram": ("_bucket", "_sum", "_count", "_created"),
    "summary": ("_sum", "_count"),
    "gauge": (),
    "info": ("_info",),
    "unknown": (),
}


@functools.cache
def manifests() -> tuple[dict[str, Any], ...]:
    """Every object of the plain manifests."""
    found: list[dict[str, Any]] = []
    for path in [*ROOT.glob("deploy/kubernetes/**/*.yaml"), *ROOT.glob("envoy/gateway/**/*.yaml")]:
        documents = yaml.safe_load_all(path.read_text())
        found += [one for one in documents if isinstance(one, dict) and one.get("kind")]
    return tuple(found)


def names_of(kind: str) -> set[str]:
    """Names of the objects of a kind; prefixes that kustomize adds are not known."""
    wanted = kind.lower()
    objects = [o for o in manifests() if o["kind"].lower() == wanted]
    return {o["metadata"]["name"] for o in objects if "name" in o.get("metadata", {})}


def namespaces() -> set[str]:
    """Namespaces that the manifests make or name, and those of every cluster."""
    named = {o.get("metadata", {}).get("namespace") for o in manifests()}
    named |= {o.get("namespace") for o in manifests()}
    return {name for name in named | names_of("Namespace") if name} | {"default", "kube-system"}


def label_values() -> set[tuple[str, str]]:
    """Labels of the objects and of their pods; those that Kubernetes sets itself too."""
    found = {("kubernetes.io/service-name", "kubernetes")}

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key in ("labels", "matchLabels", "pairs") and isinstance(inner, dict):
                    found.update((str(k), str(v)) for k, v in inner.items())
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    for one in manifests():
        collect(one)
    return found


@functools.cache
def compose() -> dict[str, Any]:
    page: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())
    return page


def compose_profiles() -> set[str]:
    return {name for one in compose()["services"].values() for name in one.get("profiles", [])}


def benchmark_names(module: str, word: str) -> bool:
    """Whether a benchmark's source has this word as a name of its own, or within a text."""
    places = [ROOT / "benchmarks" / f"{module}.py", *(ROOT / "benchmarks" / module).glob("*.py")]
    return any(
        re.search(rf"[\"',]\s*{re.escape(word)}\s*[\"',]", path.read_text())
        for path in places
        if path.exists()
    )


def chart_has(key: str) -> bool:
    """Whether the chart's values have this key, as `a.b`."""
    value: Any = yaml.safe_load((ROOT / "deploy/helm/aibrix-extproc/values.yaml").read_text())
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True
