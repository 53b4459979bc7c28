"""Makes tests/data/gateway again, or compares it: `make gateway-xds`, after `make gateway-tools`.

Owns running kustomize and egctl, and what is kept of the xDS: one listener, its routes and the
clusters. Endpoints are not kept: egctl always routes to the address
of a Service, and tests put in their own.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

import yaml

from tests.manifests.crds import RELEASES
from tests.manifests.gateway_sets import GATEWAY, GOLDENS, ROOT, SETS, Set

Json = dict[str, Any]

TOOLS: Final = ROOT / ".tools" / "bin"
# What an API server and deploy/kubernetes would have given egctl.
PROCESSOR: Final = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "aibrix-extproc", "namespace": "aibrix-system"},
    "spec": {
        "selector": {"app.kubernetes.io/name": "aibrix-extproc"},
        "ports": [{"name": "grpc", "port": 50052, "appProtocol": "kubernetes.io/h2c"}],
    },
}
CLUSTER_IP: Final = "10.96.0.1"


def run(name: str, *arguments: str) -> str:
    """Standard output of a tool of `make gateway-tools`; ends with what it says if it fails."""
    command = [str(TOOLS / name), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit(f"no {TOOLS / name}: run `make gateway-tools`")
    if result.returncode:
        sys.exit(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def render(one: Set) -> list[Json]:
    """By the real kustomize, as somebody's own overlay would."""
    with tempfile.TemporaryDirectory(dir=GATEWAY) as folder:
        kustomization = {
            "resources": [f"../{one.folder}"],
            "components": [f"../{name}" for name in one.components],
        }
        (Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return list(yaml.safe_load_all(run("kustomize", "build", folder)))


def translate(objects: list[Json], release: str) -> Json:
    """What Envoy Gateway of that release makes of these objects."""
    given = [*objects, PROCESSOR]
    services = [o | {"spec": o["spec"] | {"clusterIP": CLUSTER_IP}} for o in given if _service(o)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all([*(o for o in given if not _service(o)), *services], file)
        file.flush()
        kinds = ("--from", "gateway-api", "--to", "gateway-api,xds", "--type", "all")
        tool = f"egctl-{release.rpartition(' ')[2]}"
        output = run(tool, "x", "translate", *kinds, "-o", "json", "-f", file.name)
    made = json.loads(output)
    (configs,) = ({c["@type"].rpartition(".")[2]: c for c in x["configs"]} for x in _xds(made))
    states = configs["ListenersConfigDump"]["dynamicListeners"]
    listeners = [state["activeState"]["listener"] for state in states]
    (listener,) = (one for one in listeners if one["name"] == "models/llm/http")
    (routes,) = configs["RoutesConfigDump"]["dynamicRouteConfigs"]
    clusters = configs["ClustersConfigDump"]["dynamicActiveClusters"]
    return {
        "refused": list(_refused(made)),
        "listener": listener,
        "routes": routes["routeConfig"],
        "clusters": [one["cluster"] for one in clusters],
    }


def _service(obj: Json) -> bool:
    return bool(obj["kind"] == "Service")


def _xds(made: Json) -> list[Json]:
    return list(made["xds"].values())


def _refused(part: Any, name: str = "") -> Any:
    """Each condition that is not as it should be, wherever in the output it stands."""
    if isinstance(part, list):
        for one in part:
            yield from _refused(one, name)
    elif isinstance(part, dict):
        name = part.get("metadata", {}).get("name", name) if "kind" in part else name
        for condition in part.get("conditions") or ():
            if condition["status"] != "True":
                yield f"{name}: {condition['type']}: {condition.get('message')}"
        for value in part.values():
            yield from _refused(value, name)


def goldens() -> dict[Path, Json]:
    found: dict[Path, Json] = {}
    for one in SETS:
        objects = render(one)
        for release in RELEASES if one.translates else ():
            found[one.xds_path(release)] = {
                "made_of": one.fingerprint(),
                "made_by": f"egctl x translate, {release}",
                **translate(objects, release),
            }
    return found


def main() -> None:
    GOLDENS.mkdir(exist_ok=True)
    changed = []
    for path, golden in goldens().items():
        text = json.dumps(golden, indent=1, sort_keys=True) + "\n"
        if not path.exists() or path.read_text() != text:
            changed.append(path.name)
            if "--check" not in sys.argv:
                path.write_text(text)
    print("changed:" if changed else "nothing has changed", *changed)
    sys.exit(1 if changed and "--check" in sys.argv else 0)


if __name__ == "__main__":
    main()
