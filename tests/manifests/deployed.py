"""What deploy/ ships, as tests see it: every object, and the views of it that many tests need.

Owns the paths and the sets that are rendered. Knows no rule.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from aibrix_extproc.settings import Settings
from tests.manifests import kustomize

Json = dict[str, Any]

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy" / "kubernetes"
CHART: Final = ROOT / "deploy" / "helm" / "aibrix-extproc"
COMPONENTS: Final = ("all-namespaces", "autoscaling", "curve", "monitoring", "tls")
NAME: Final = "aibrix-extproc"
NAMESPACE: Final = "aibrix-system"
ENGINES_NAMESPACE: Final = "models"


def tool(name: str) -> str | None:
    """The program of `make kube-tools`, else one on the PATH."""
    ours = ROOT / ".tools" / "bin" / name
    return str(ours) if os.access(ours, os.X_OK) else shutil.which(name)


def processor(*components: str) -> list[Json]:
    """The objects of deploy/kubernetes/default with these components."""
    folders = (DEPLOY / "components" / name for name in components)
    return kustomize.with_components(DEPLOY / "default", *folders)


def everything() -> list[Json]:
    """Every object that deploy/kubernetes ships, in the order of applying it."""
    return [
        *kustomize.documents(DEPLOY / "namespace.yaml"),
        *kustomize.documents(DEPLOY / "examples" / "namespace.yaml"),
        *processor(*(name for name in COMPONENTS if name != "all-namespaces")),
        *kustomize.documents(DEPLOY / "components" / "all-namespaces" / "clusterrole.yaml"),
        *(
            obj
            for folder in ("doctor", "examples/vllm", "examples/fake-engines")
            for obj in kustomize.render(DEPLOY / folder)
        ),
    ]


def find(objects: list[Json], kind: str, name: str = NAME) -> Json:
    """The one object of that kind and name."""
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)
    return found


def pod_spec(objects: list[Json], deployment: str = NAME) -> Json:
    """Of a Deployment's pods."""
    spec: Json = find(objects, "Deployment", deployment)["spec"]["template"]["spec"]
    return spec


def container(objects: list[Json], deployment: str = NAME) -> Json:
    """The only container of a Deployment's pods."""
    (only,) = pod_spec(objects, deployment)["containers"]
    found: Json = only
    return found


def environment(objects: list[Json]) -> dict[str, str]:
    """The variables that the processor's container gets."""
    (source,) = container(objects)["envFrom"]
    data: dict[str, str] = find(objects, "ConfigMap", source["configMapRef"]["name"])["data"]
    return data


def settings(objects: list[Json]) -> Settings:
    """What the processor makes of them."""
    return Settings.from_environment(environment(objects))


def title(obj: Json) -> str:
    """`Deployment aibrix-system/aibrix-extproc`, for people."""
    metadata = obj["metadata"]
    namespace = metadata.get("namespace")
    return f"{obj['kind']} {f'{namespace}/' if namespace else ''}{metadata['name']}"


def gateway_folders() -> list[Path]:
    """The kustomizations of envoy/gateway that make objects of their own (no Components)."""
    found = sorted((ROOT / "envoy" / "gateway").rglob("kustomization.yaml"))
    kinds = {path: yaml.safe_load(path.read_text()).get("kind", "Kustomization") for path in found}
    return [path.parent for path, kind in kinds.items() if kind == "Kustomization"]


def built(folder: Path) -> list[Json]:
    """What the real kustomize makes of a folder. FileNotFoundError where it is not there."""
    program = tool("kustomize")
    if program is None:
        raise FileNotFoundError("no kustomize: make kube-tools builds it where go is")
    result = subprocess.run(
        [program, "build", str(folder)], capture_output=True, text=True, check=True
    )
    return [one for one in yaml.load_all(result.stdout, yaml.CSafeLoader) if one]
