"""What is asked of the running project: routing, the load test, and what goes away under load.

Each check is a function of a `Project`; it returns its evidence in a few words, or raises Failed.
"""

import json
import re
import time
import urllib.parse
import urllib.request
from functools import partial
from typing import Any, Final

from tests.compose import traffic
from tests.compose.docker_engine import Failed
from tests.compose.project import (
    ENGINES,
    PROCESSORS,
    PROMETHEUS,
    SERVICES,
    Project,
    get_json,
)
from tests.compose.waiting import until

_CONVERSATIONS: Final = 8
_TURNS: Final = 4


def comes_up(project: Project) -> str:
    """Every container healthy, both processors EXACT on all engines."""
    begun = time.monotonic()
    project.compose("up", "--detach", "--no-build", timeout_s=300)
    until(project.exact, 60, "both processors EXACT on four engines", project.states)
    for name, service in SERVICES.items():
        if "profiles" not in service and "healthcheck" in service:
            until(partial(project.healthy, name), 60, f"{name} healthy")
    backends = {project.page(name, "/readyz")["index_backend"] for name in PROCESSORS}
    took = time.monotonic() - begun
    return f"within {took:.0f} s; 2 x {len(ENGINES)} sources EXACT, index: {', '.join(backends)}"


def confined(project: Project) -> str:
    """Containers run as the file says: Docker's word, and a look from inside."""
    names = [name for name in SERVICES if "profiles" not in SERVICES[name]]
    for name in names:
        state = project.state(name)
        host = state["HostConfig"]
        is_confined = (
            host["ReadonlyRootfs"]
            and host["CapDrop"] == ["ALL"]
            and "no-new-privileges:true" in host["SecurityOpt"]
            and host["Memory"] > 0
            and state["Config"]["User"].split(":")[0] not in ("", "0", "root")
        )
        if not is_confined:
            raise Failed(f"{name}: {host}")
    status = project.inside(PROCESSORS[0], "cat", "/proc/1/status")
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    inside = (facts["Uid"].split()[0], int(facts["CapEff"], 16), facts["NoNewPrivs"].strip())
    if inside != ("65532", 0, "1"):
        raise Failed(f"user, capabilities, no new privileges: {inside}")
    return f"{len(names)} containers: read-only, no capability, no new privilege, not root"


def routes(project: Project) -> str:
    """The same prefix goes to the same pod, whichever replica decides; others spread."""
    pods: dict[int, list[str]] = {}
    cached: list[int] = []
    deciders: set[str] = set()
    for turn in range(_TURNS):
        for number in range(_CONVERSATIONS):
            words = " ".join(f"conversation{number} word{word}" for word in range(150))
            asked = [{"role": "system", "content": words}, {"role": "user", "content": str(turn)}]
            answer = traffic.ask(asked)
            decider, pod = _decision(project, answer.request_id)
            deciders.add(decider)
            pods.setdefault(number, []).append(pod)
            if turn:
                cached.append(answer.cached_tokens)
    wrong = {number: chosen for number, chosen in pods.items() if len(set(chosen)) != 1}
    used = {chosen[0] for chosen in pods.values()}
    if wrong or len(used) < 2 or deciders != set(PROCESSORS) or min(cached) < 200:
        raise Failed(f"pods {pods}, decided by {deciders}, cached tokens {cached}")
    return (
        f"{_CONVERSATIONS} conversations of {_TURNS} turns, each on one of {len(used)} pods; both "
        f"replicas decided; at least {min(cached)} cached tokens a turn"
    )


def _decision(project: Project, request_id: str) -> tuple[str, str]:
    """Which processor decided, and for which pod."""

    def look() -> tuple[str, str] | None:
        for name in PROCESSORS:
            found = project.page(name, f"/debug/decisions?request_id={request_id}", 8081)
            if found:
                return name, found[0]["pod"].partition("/")[2]
        return None

    decided = until(look, 5, f"a decision about {request_id}")
    assert decided is not None
    return decided


def loadtest(project: Project) -> str:
    """The profile `loadtest`, through Envoy, without a failure: its exit code would say so."""
    said = project.compose("run", "--rm", "-T", "loadtest", timeout_s=180)
    return next(line.strip() for line in said.splitlines() if line.strip())


def engine_scaled_away(project: Project) -> str:
    """Out of the endpoints file, drained, stopped: no request fails. Then back again."""
    *others, leaving = ENGINES
    with traffic.steady(1) as load:
        load.more(30)
        project.endpoints(tuple(others))
        until(lambda: project.exact(*others), 30, f"{leaving} forgotten", project.states)
        until(lambda: _idle(project, leaving), 30, f"{leaving} without requests")
        project.compose("stop", leaving)
        load.more(60)
        traffic.none_failed(load)
        project.compose("start", leaving)
        until(lambda: project.healthy(leaving), 60, f"{leaving} healthy")
        project.endpoints(ENGINES)
        until(project.exact, 60, f"{leaving} EXACT again", project.states)
        load.more(30)
        traffic.none_failed(load)
    return f"{load.sent} requests, none failed; EXACT on four again"


def _idle(project: Project, engine: str) -> bool:
    look = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8000/metrics').read())"
    said = project.inside(engine, "python3", "-c", look)
    counts = re.findall(r"vllm:num_requests_(?:running|waiting)\{[^}]*\} ([0-9.]+)", said)
    return len(counts) == 2 and not any(float(count) for count in counts)


def engine_killed(project: Project) -> str:
    """Without a warning: only what it was serving may fail. Then it comes again."""
    name = "engine-3"
    with traffic.steady(2) as load:
        load.more(30)
        before = time.monotonic()
        project.kill(name)
        after = time.monotonic()
        load.more(90)
        lost = traffic.only_in_flight(load, before, after)
        last = {one: project.sequence(one, name) for one in PROCESSORS}
        project.compose("start", name)

        def followed_anew() -> bool:
            now = {one: project.sequence(one, name) for one in PROCESSORS}
            return project.exact() and all(0 <= now[one] < last[one] for one in PROCESSORS)

        until(followed_anew, 60, f"both follow the new {name}", project.states)
        load.more(30)
    traffic.only_in_flight(load, before, after)
    return (
        f"{load.sent} requests, {lost} failed, in flight as it was killed; both follow the new one"
    )


def processor_killed(project: Project) -> str:
    """One replica at a time, by SIGKILL: the other decides, no request fails."""
    with traffic.steady(3) as load:
        for name in PROCESSORS:
            load.more(30)
            project.kill(name)
            load.more(60)
            traffic.none_failed(load)
            project.compose("start", name)
            until(partial(project.healthy, name), 60, f"{name} healthy")
            until(project.exact, 60, f"{name} EXACT again", project.states)
            load.more(30)
    traffic.none_failed(load)
    return f"each in turn; {load.sent} requests, none failed"


def processor_stopped(project: Project) -> str:
    """By SIGTERM: it drains, and ends by itself with 0."""
    name = PROCESSORS[1]
    with traffic.steady(4) as load:
        load.more(30)
        begun = time.monotonic()
        project.compose("stop", name)
        took = time.monotonic() - begun
        code = project.state(name)["State"]["ExitCode"]
        if code != 0:
            raise Failed(f"exit code {code}")
        load.more(30)
        project.compose("start", name)
        until(project.exact, 60, f"{name} EXACT again", project.states)
    traffic.none_failed(load)
    return f"exit code 0 after {took:.0f} s; {load.sent} requests, none failed"


def tokenizer_stopped(project: Project) -> str:
    """Engines tokenize meanwhile: no request fails."""
    with traffic.steady(5) as load:
        load.more(30)
        project.compose("stop", "tokenizer")
        load.more(60)
        project.compose("start", "tokenizer")
        until(lambda: project.healthy("tokenizer"), 60, "tokenizer healthy")
        load.more(30)
    traffic.none_failed(load)
    return f"{load.sent} requests, none failed"


def monitoring(project: Project) -> str:
    """The profile `monitoring`: all targets are up, all rules loaded and evaluated."""
    project.compose("--profile", "monitoring", "up", "--detach", "--no-build", "prometheus")
    targets = until(_targets, 60, "every target up", lambda: _api("targets"))
    assert targets is not None
    expected = len(PROCESSORS) + len(ENGINES) + 1
    rules = until(_rules, 60, "every rule evaluated", lambda: _api("rules"))
    assert rules is not None
    sources = _query('count(aibrix_kv_source_state{state="EXACT"} == 1)')
    if len(targets) != expected or sources != 2 * len(ENGINES):
        raise Failed(f"targets {targets}, {sources} sources EXACT")
    critical = [rule["name"] for rule in rules if rule["labels"]["severity"] == "critical"]
    firing = [rule["name"] for rule in rules if rule["state"] == "firing"]
    if set(critical) & set(firing):
        raise Failed(f"firing: {firing}")
    return (
        f"{len(targets)} targets up, {len(rules)} rules in order, {sources:.0f} sources EXACT in it"
    )


def _api(page: str) -> Any:
    reply = get_json(f"{PROMETHEUS}/api/v1/{page}")
    return reply["data"] if reply else None


def _targets() -> list[str] | None:
    data = _api("targets")
    found = [(one["scrapeUrl"], one["health"]) for one in data["activeTargets"]] if data else []
    return [url for url, _ in found] if found and all(h == "up" for _, h in found) else None


def _rules() -> list[dict[str, Any]] | None:
    data = _api("rules")
    found = [rule for group in data["groups"] for rule in group["rules"]] if data else []
    return found if found and all(rule["health"] == "ok" for rule in found) else None


def _query(expression: str) -> float:
    url = f"{PROMETHEUS}/api/v1/query?query={urllib.parse.quote(expression)}"
    with urllib.request.urlopen(url, timeout=5) as reply:
        result = json.load(reply)["data"]["result"]
    return float(result[0]["value"][1]) if result else 0.0
