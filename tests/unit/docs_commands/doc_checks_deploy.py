"""Commands about containers and Kubernetes: docker, kubectl, helm, kustomize, egctl, promtool.

Options are those that the docs use, with the number of words that each takes; objects are looked
for in the manifests.
"""

import re

from tests.unit.docs_commands import doc_facts as facts
from tests.unit.docs_commands.doc_checks import (
    HOW_TO_TEACH,
    Problems,
    check_own,
    checks,
    exists,
    is_json,
    problems,
    split_options,
)
from tests.unit.docs_commands.doc_facts import ROOT
from tests.unit.docs_commands.doc_shell import Command

# -- containers -----------------------------------------------------------------------------------

_COMPOSE = {"--profile": 1, "--file": 1, "-f": 1, "--project-name": 1, "-p": 1, "--env-file": 1}
_COMPOSE_COMMANDS = {
    "up": {"--build": 0, "--detach": 0, "-d": 0, "--wait": 0, "--scale": 1},
    "down": {"--volumes": 0, "-v": 0, "--remove-orphans": 0},
    "run": {"--rm": 0, "--no-deps": 0},
    "build": {}, "ps": {}, "stop": {}, "start": {}, "restart": {}, "kill": {}, "config": {},
    "logs": {"--follow": 0, "-f": 0, "--tail": 1}, "exec": {"-T": 0},
}  # fmt: skip


@checks("docker", "docker-compose")
def check_docker(command: Command) -> Problems:
    words = list(command.words)
    if words[0] == "docker-compose":
        words = ["docker", "compose", *words[1:]]
    if words[1:2] == ["compose"]:
        yield from _compose(words[2:])
    elif words[1:2] == ["build"]:
        yield from _docker_build(words[2:])
    elif words[1:2] == ["run"]:
        known = {"--rm": 0, "-it": 0, "-p": 1, "-e": 1, "-v": 1, "--network": 1, "--name": 1}
        _given, rest, wrong = split_options(_until_image(words[2:]), known, "docker run")
        yield from wrong
        image = words.index("aibrix-extproc") if "aibrix-extproc" in words else 0
        if image:
            inner = Command(command.page, command.line, ("aibrix-extproc", *words[image + 1 :]))
            yield from check_own(inner)
        elif not command.inline:
            yield f"docker run of {rest} is not known here; {HOW_TO_TEACH}"
    elif len(words) > 1 and words[1] not in ("images", "ps", "logs", "load", "save", "push", "tag"):
        yield f"docker {words[1]} is not known here; {HOW_TO_TEACH}"


def _until_image(words: list[str]) -> list[str]:
    return words[: words.index("aibrix-extproc")] if "aibrix-extproc" in words else words


def _docker_build(words: list[str]) -> Problems:
    given, rest, wrong = split_options(
        words, {"-t": 1, "--tag": 1, "--build-arg": 1, "-f": 1}, "docker build"
    )
    yield from wrong
    dockerfile = (ROOT / "Dockerfile").read_text()
    predefined = {"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}
    arguments = set(re.findall(r"^ARG (\w+)", dockerfile, re.M)) | predefined
    for name, value in given:
        argument = value.partition("=")[0]
        if name == "--build-arg" and argument not in arguments:
            yield f"the Dockerfile has no ARG {argument}"
        if name == "-f":
            yield from exists(value)
    for folder in rest:
        yield from exists(folder)


def _compose(words: list[str]) -> Problems:
    at = next((n for n, word in enumerate(words) if word in _COMPOSE_COMMANDS), len(words))
    given, rest, wrong = split_options(words[:at], _COMPOSE, "docker compose")
    yield from wrong
    if rest:
        yield f"docker compose {rest[0]} is not known here; {HOW_TO_TEACH}"
    for name, value in given:
        if name == "--profile" and value not in facts.compose_profiles():
            yield f"docker-compose.yaml has no profile {value}"
        if name in ("--file", "-f"):
            yield from exists(value)
    if at == len(words):
        return
    name = words[at]
    _given, rest, wrong = split_options(
        words[at + 1 :], _COMPOSE_COMMANDS[name], f"docker compose {name}"
    )
    yield from wrong
    services = rest[:1] if name in ("run", "exec") else rest
    for service in services:
        if service not in facts.compose()["services"]:
            yield f"docker-compose.yaml has no service {service}"


# -- Kubernetes -----------------------------------------------------------------------------------

_KUBECTL = {
    "-n": 1, "--namespace": 1, "-f": 1, "-k": 1, "-l": 1, "-o": 1, "--as": 1, "-w": 0, "-A": 0,
    "--all-namespaces": 0, "--server-side": 0, "--dry-run": 1, "--tail": 1, "--timeout": 1, "-c": 1,
    "--to-revision": 1, "--from-literal": 1, "--from-file": 1, "--replicas": 1, "--overwrite": 0,
    "--context": 1, "--type": 1, "-p": 1, "--for": 1, "--selector": 1, "--force-conflicts": 0,
    "--previous": 0, "--cert": 1, "--key": 1, "--prune": 0, "--rm": 0, "-it": 0, "-i": 0,
    "--image": 1, "--since": 1, "--patch-file": 1, "--patch": 1, "--local": 0, "--no-headers": 0,
    "--subresource": 1, "--restart": 1, "--grace-period": 1,
}  # fmt: skip
_KUBECTL_COMMANDS = {
    "apply", "delete", "get", "describe", "rollout", "port-forward", "auth", "logs", "exec",
    "label", "create", "scale", "annotate", "patch", "wait", "set", "kustomize", "diff", "edit",
    "top", "run", "explain",
}  # fmt: skip
_KINDS = {
    "deployment": "Deployment", "deployments": "Deployment", "deploy": "Deployment",
    "role": "Role", "rolebinding": "RoleBinding", "clusterrole": "ClusterRole",
    "service": "Service", "svc": "Service", "configmap": "ConfigMap",
    "networkpolicy": "NetworkPolicy",
    "gateway": "Gateway", "httproute": "HTTPRoute", "serviceaccount": "ServiceAccount",
    "envoyextensionpolicy": "EnvoyExtensionPolicy", "clienttrafficpolicy": "ClientTrafficPolicy",
    "backendtrafficpolicy": "BackendTrafficPolicy", "envoypatchpolicy": "EnvoyPatchPolicy",
}  # fmt: skip
_OF_OBJECTS = {"get", "describe", "patch", "delete", "scale", "edit", "label", "annotate"}
_GENERATED = {"ConfigMap"}
"""Made by kustomize, with a hash in their names."""


@checks("kubectl")
def check_kubectl(command: Command) -> Problems:
    words = list(command.words[1:])
    if "--" in words:
        inner = tuple(words[words.index("--") + 1 :])
        yield from problems(Command(command.page, command.line, inner, inline=command.inline))
        words = words[: words.index("--")]
    given, rest, wrong = split_options(words, _KUBECTL, "kubectl")
    yield from wrong
    if not rest:
        return
    if rest[0] not in _KUBECTL_COMMANDS:
        yield f"kubectl {rest[0]} is not known here; {HOW_TO_TEACH}"
    for name, value in given:
        yield from _kubectl_option(name, value)
    if rest[0] == "kustomize":
        for folder in rest[1:]:
            yield from _kustomization(folder)
    for word in rest[1:]:
        yield from _resource(word)
    if rest[0] in _OF_OBJECTS and len(rest) > 2 and "/" not in rest[1]:
        yield from _resource(f"{rest[1]}/{rest[2]}")
    if (
        rest[0] in ("rollout",)
        and rest[1:2]
        and rest[1] not in ("status", "undo", "restart", "history")
    ):
        yield f"kubectl rollout has no {rest[1]}"
    if rest[0] == "port-forward":
        for ports in rest[2:]:
            yield from _port(ports)


def _kubectl_option(name: str, value: str) -> Problems:
    if name in ("-n", "--namespace"):
        if value not in facts.namespaces() | facts.FOREIGN_NAMESPACES and not value.isupper():
            yield f"no manifest is in a namespace {value}; {HOW_TO_TEACH} (doc_facts)"
    elif name == "-k" and value:
        yield from _kustomization(value)
    elif name == "-f" and value and value != "-" and "://" not in value:
        yield from exists(value)
    elif name in ("-p", "--patch") and value:
        yield from is_json(value)
    elif name in ("-l", "--selector") and value:
        for label in value.split(","):
            key, _, wanted = label.partition("=")
            if (key, wanted) not in facts.label_values():
                yield f"no manifest has the label {label}"
    elif name == "--as" and value.startswith("system:serviceaccount:"):
        namespace, account = value.split(":")[2:4]
        if account not in facts.names_of("ServiceAccount") or namespace not in facts.namespaces():
            yield f"no manifest makes the service account {namespace}/{account}"


def _kustomization(folder: str) -> Problems:
    if not (ROOT / folder / "kustomization.yaml").exists():
        yield f"there is no {folder}/kustomization.yaml"


def _resource(word: str) -> Problems:
    kind, slash, name = word.partition("/")
    if not slash or name.isupper():
        return
    known = _KINDS.get(kind.lower())
    if known is None:
        if kind.lower() not in ("pod", "pods", "po"):
            yield f"the kind {kind} is not known here; {HOW_TO_TEACH}"
    elif known not in _GENERATED and name not in facts.names_of(known) | facts.FOREIGN_OBJECTS:
        yield f"no manifest has the {known} {name}"


def _port(ports: str) -> Problems:
    port = ports.rpartition(":")[2]
    known = set(facts.applications()) | facts.ENVOY_PORTS | facts.ENGINE_PORTS
    known |= set(facts.OTHER_PORTS) | {50052, 5557, 5657}
    if not port.isdigit() or int(port) not in known:
        yield f"nothing that is known here listens on port {port}; {HOW_TO_TEACH}"


_HELM = {
    "--namespace": 1, "-n": 1, "--create-namespace": 0, "--set": 1, "--set-string": 1, "-f": 1,
    "--values": 1, "--install": 0, "--wait": 0, "--timeout": 1, "--version": 1, "--dry-run": 0,
    "--reuse-values": 0,
}  # fmt: skip


@checks("helm")
def check_helm(command: Command) -> Problems:
    given, rest, wrong = split_options(command.words[1:], _HELM, "helm")
    yield from wrong
    if rest[:1] and rest[0] not in (
        "install", "upgrade", "uninstall", "rollback", "template", "lint", "history", "status",
    ):  # fmt: skip
        yield f"helm {rest[0]} is not known here; {HOW_TO_TEACH}"
    for name, value in given:
        if name in ("--set", "--set-string"):
            for one in value.split(","):
                key = one.partition("=")[0].replace("\\.", "\0")
                if not facts.chart_has(key.partition("[")[0]):
                    yield f"the chart has no value {key}"
        elif name in ("-n", "--namespace"):
            yield from _kubectl_option("-n", value)
        elif name in ("-f", "--values") and value:
            yield from exists(value)
    for word in rest[1:]:
        if "/" in word and "://" not in word:
            yield from exists(f"{word}/Chart.yaml", "chart")


@checks("kustomize")
def check_kustomize(command: Command) -> Problems:
    for folder in command.words[2:]:
        if not folder.startswith("-"):
            yield from _kustomization(folder)
    if command.words[1:2] and command.words[1] != "build":
        yield f"kustomize {command.words[1]} is not known here; {HOW_TO_TEACH}"


@checks("egctl")
def check_egctl(command: Command) -> Problems:
    known = {
        "--from": 1,
        "--to": 1,
        "-f": 1,
        "--file": 1,
        "-o": 1,
        "--type": 1,
        "--add-missing-resources": 0,
    }
    given, rest, wrong = split_options(command.words[1:], known, "egctl")
    yield from wrong
    known_commands = (["x", "translate"], ["experimental", "translate"], ["config", "envoy-proxy"])
    if rest[:1] and rest[:2] not in known_commands:
        yield f"egctl {' '.join(rest[:2])} is not known here; {HOW_TO_TEACH}"
    for name, value in given:
        if name in ("-f", "--file") and value not in ("", "-"):
            yield from exists(value)


@checks("promtool")
def check_promtool(command: Command) -> Problems:
    kinds = {("check", "rules"), ("check", "config"), ("test", "rules")}
    if command.words[1:3] and command.words[1:3] not in kinds:
        yield f"promtool {' '.join(command.words[1:3])} is not known here; {HOW_TO_TEACH}"
    for path in command.words[3:]:
        yield from exists(path)


@checks("apt-get")
def check_apt_get(command: Command) -> Problems:
    known = {"--yes": 0, "-y": 0, "--no-install-recommends": 0}
    _, rest, wrong = split_options(command.words[1:], known, "apt-get")
    yield from wrong
    if rest[:1] and rest[0] not in ("update", "install"):
        yield f"apt-get {rest[0]} is not known here; {HOW_TO_TEACH}"
