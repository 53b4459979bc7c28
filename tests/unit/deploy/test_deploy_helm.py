"""The Helm chart makes what the kustomizations make, fits the schemas, and refuses nonsense."""

import copy
import json
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from aibrix_extproc.settings import Settings, variables
from tests.manifests import deployed, kube_schemas

Json = dict[str, Any]

HELM = deployed.tool("helm")
needs_helm = pytest.mark.skipif(HELM is None, reason="no helm: make kube-tools builds it with go")
KUBERNETES = "1.37.0"
OF_HELM = {
    *("app.kubernetes.io/instance", "app.kubernetes.io/managed-by"),
    *("app.kubernetes.io/version", "helm.sh/chart"),
}
"""Labels that only the chart writes."""
SCHEMA: Json = json.loads((deployed.CHART / "values.schema.json").read_text())
VALUES: Json = yaml.safe_load((deployed.CHART / "values.yaml").read_text())

SAME: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "default": ((), []),
    "tls": (("tls",), ["tls.enabled=true"]),
    "curve": (("curve",), ["curve.enabled=true"]),
    "autoscaling": (("autoscaling",), ["autoscaling.enabled=true"]),
    "monitoring": (("monitoring",), ["podMonitor.enabled=true"]),
    "all": (
        ("autoscaling", "monitoring", "tls", "curve"),
        [
            *("autoscaling.enabled=true", "curve.enabled=true"),
            *("podMonitor.enabled=true", "tls.enabled=true"),
        ],
    ),
}
"""By name: components of kustomize, and the values that mean the same."""


def run(*sets: str) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    command = [HELM, "template", "aibrix-extproc", str(deployed.CHART)]
    command += ["--namespace", deployed.NAMESPACE, "--kube-version", KUBERNETES]
    for one in sets:
        command += ["--set-json" if one.endswith("[]") else "--set", one]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def render(*sets: str) -> list[Json]:
    result = run(*sets)
    assert result.returncode == 0, result.stderr
    return [one for one in yaml.load_all(result.stdout, yaml.CSafeLoader) if one]


def plain(obj: Json) -> Json:
    """Without what only one of the two writes; settings as the process reads them."""
    obj = copy.deepcopy(obj)
    labels = obj["metadata"]["labels"]
    obj["metadata"]["labels"] = {n: v for n, v in labels.items() if n not in OF_HELM}
    if obj["kind"] == "ConfigMap":
        obj["data"] = Settings.from_environment(obj["data"]).model_dump()
    if obj["kind"] == "Deployment":
        obj["spec"]["template"]["metadata"].pop("annotations", None)
        del obj["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"]
    return obj


def keyed(objects: list[Json]) -> dict[str, Json]:
    return {f"{o['kind']} {o['metadata']['name']}": o for o in objects}


def without_pull_policy(objects: list[Json]) -> list[Json]:
    """The kustomizations leave it to Kubernetes, whose default for a tag is the chart's."""
    objects = copy.deepcopy(objects)
    deployed.container(objects)["imagePullPolicy"] = "IfNotPresent"
    return objects


@needs_helm
@pytest.mark.parametrize("name", SAME)
def test_the_chart_makes_what_kustomize_makes(name: str) -> None:
    components, sets = SAME[name]
    ours = keyed([plain(o) for o in without_pull_policy(deployed.processor(*components))])
    charts = keyed([plain(o) for o in render(*sets)])
    assert charts.keys() == ours.keys()
    for key, obj in ours.items():
        assert charts[key] == obj, key


@needs_helm
def test_all_namespaces_are_watched_by_a_cluster_role() -> None:
    charts = keyed([plain(o) for o in render("engines.namespace=")])
    ours = keyed([plain(o) for o in without_pull_policy(deployed.processor("all-namespaces"))])
    del ours["NetworkPolicy aibrix-extproc-engines"]  # it is for one namespace
    assert charts == ours


@needs_helm
def test_the_doctors_account_is_the_same() -> None:
    charts = keyed([plain(o) for o in render("doctor.enabled=true")])
    for kind in ("ServiceAccount", "Role", "RoleBinding"):
        ours = deployed.find(deployed.everything(), kind, "aibrix-extproc-doctor")
        assert charts[f"{kind} aibrix-extproc-doctor"] == ours


@needs_helm
@pytest.mark.parametrize(
    "sets",
    [
        *([list(sets) for _, sets in SAME.values()]),
        ["replicaCount=1"],
        ["engines.namespace=team-b", "networkPolicy.envoyNamespaces={edge,gateways}"],
        ["engines.namespace=", "doctor.enabled=true"],
        ["networkPolicy.enabled=false", "rbac.create=false", "serviceAccount.create=false"],
        ["networkPolicy.engines=false", "networkPolicy.monitoringNamespaces=[]"],
        ["warmStart.fromPeer=false", "warmStart.snapshot=false"],
        ["tls.enabled=true", "tls.clientCA=false", "podDisruptionBudget.enabled=false"],
        ["settings.AIBRIX_EXTPROC_USAGE_SAMPLE=0.1", "engines.ranks=4", "fullnameOverride=edge"],
        ["priorityClassName=high", "nodeSelector.disk=ssd", "podAnnotations.a=b"],
    ],
    ids=" ".join,
)
def test_every_set_of_values_fits_the_schemas_and_is_accepted_by_the_process(
    sets: list[str],
) -> None:
    objects = render(*sets)
    assert [fault for obj in objects for fault in kube_schemas.faults(obj)] == []
    (config,) = (o for o in objects if o["kind"] == "ConfigMap")
    assert config["data"].keys() <= variables().keys()
    Settings.from_environment(config["data"])
    kinds = [o["kind"] for o in objects]
    if "networkPolicy.enabled=false" in sets:
        assert "NetworkPolicy" not in kinds
    if "replicaCount=1" in sets:
        assert deployed.find(objects, "Deployment")["spec"]["replicas"] == 1


@needs_helm
def test_an_installation_of_any_name_is_the_job_that_the_alert_rules_ask_for() -> None:
    monitors = [
        one
        for one in render("fullnameOverride=edge", "podMonitor.enabled=true")
        if one["kind"] == "PodMonitor"
    ]
    jobs = [one["spec"]["podMetricsEndpoints"][0]["relabelings"] for one in monitors]
    assert [rule["replacement"] for (rule,) in jobs] == ["aibrix-extproc", "vllm"]


@needs_helm
def test_a_changed_variable_rolls_the_pods() -> None:
    sums = {
        deployed.find(render(*sets), "Deployment")["spec"]["template"]["metadata"]["annotations"][
            "checksum/settings"
        ]
        for sets in ((), ("index.maxBytes=512MiB",))
    }
    assert len(sums) == 2


@needs_helm
def test_ranks_open_as_many_ports() -> None:
    policy = deployed.find(render("engines.ranks=4"), "NetworkPolicy")
    ports = [p for rule in policy["spec"]["egress"] for p in rule["ports"] if "endPort" in p]
    assert [(p["port"], p["endPort"]) for p in ports] == [(5557, 5560), (5657, 5660)]


BAD = {
    "replicaCount": 0,
    "networkPolicy": {"enabld": True},
    "settings": {"AIBRIX_EXTPROC_TYPO": ["a list"]},
    "engines": {"eventPort": 70_000},
    "image": {"repository": ""},
    "index": {"maxBytes": "much"},
    "preStopDelaySeconds": "5s",
    "autoscaling": {"maxReplicas": 0},
    "resources": {"limits": {"memory": "2 gigs"}},
    "unknown": {},
}
"""Values that no chart of ours may take, by their name."""


def test_the_values_that_are_shipped_fit_their_schema() -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(VALUES)


def test_every_value_is_in_the_schema() -> None:
    assert VALUES.keys() == SCHEMA["properties"].keys() - {"global"}


@pytest.mark.parametrize("name", BAD)
def test_bad_values_are_refused_by_the_schema(name: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate({**VALUES, name: BAD[name]})


@needs_helm
@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["replicaCount=0"], "replicaCount"),
        (["networkPolicy.enabld=true"], "enabld"),
        (["terminationGracePeriodSeconds=12"], "terminationGracePeriodSeconds"),
        (["engines.replayPort=5558"], "engines.ranks"),
        (["autoscaling.enabled=true", "autoscaling.minReplicas=9"], "autoscaling.minReplicas"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_helm_refuses_them_and_says_which(sets: list[str], words: str) -> None:
    result = run(*sets)
    assert result.returncode != 0
    assert words in result.stderr
