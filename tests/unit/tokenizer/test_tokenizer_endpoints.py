"""Which endpoint is asked next, what is remembered of it, and when it is forgotten."""

from aibrix_extproc.tokenizer.endpoints import (
    FORGET_AFTER_S,
    MAX_ENDPOINTS,
    NO_RENDER_S,
    UNKNOWN_MODEL_S,
    Endpoint,
    Endpoints,
)
from aibrix_extproc.tokenizer.types import Reason

PODS = ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]


def endpoints(first: str = "") -> Endpoints:
    return Endpoints(first, failures=2, cooldown_s=10)


def chosen(table: Endpoints, *tried: str, pods: list[str] = PODS, now: float = 0) -> Endpoint:
    endpoint = table.choose("m", pods, set(tried), now)
    assert isinstance(endpoint, Endpoint)
    return endpoint


def test_idle_pods_take_turns() -> None:
    table = endpoints()
    assert len({chosen(table).url for _ in PODS}) == len(PODS)


def test_the_pod_with_the_fewest_calls_is_asked() -> None:
    table = endpoints()
    for _ in PODS:
        chosen(table).in_flight = 5
    quiet = chosen(table)
    quiet.in_flight = 4
    assert [chosen(table) for _ in range(4)] == [quiet] * 4


def test_the_configured_endpoint_goes_first_until_it_was_tried() -> None:
    table = endpoints("http://first:80")
    assert chosen(table).url == "http://first:80"
    assert chosen(table, "http://first:80").url != "http://first:80"


def test_a_model_unknown_to_an_endpoint_is_asked_for_there_again_after_a_while() -> None:
    table = endpoints("http://first:80")
    chosen(table).forget_model("m", now=0)
    assert chosen(table, now=UNKNOWN_MODEL_S - 1).url != "http://first:80"
    assert chosen(table, now=UNKNOWN_MODEL_S).url == "http://first:80"
    other = table.choose("other", PODS, set(), 0)
    assert isinstance(other, Endpoint)
    assert other.url == "http://first:80"


def test_a_missing_render_is_asked_for_again_after_a_while() -> None:
    endpoint = chosen(endpoints())
    endpoint.forget_render("/a/render", now=0)
    assert not endpoint.renders("/a/render", now=NO_RENDER_S - 1)
    assert endpoint.renders("/a/render", now=NO_RENDER_S)
    assert endpoint.renders("/b/render", now=0)


def test_why_nobody_can_be_asked_is_said() -> None:
    table = endpoints()
    assert table.choose("m", [], set(), 0) is Reason.NO_ENDPOINT
    pod = chosen(table, pods=PODS[:1])
    pod.forget_model("m", now=0)
    assert table.choose("m", PODS[:1], set(), 0) is Reason.MODEL_UNKNOWN
    pod.breaker.fail(0)
    pod.breaker.fail(0)
    assert table.choose("other", PODS[:1], set(), 0) is Reason.BREAKER_OPEN


def test_what_nobody_named_for_long_is_forgotten_unless_a_call_is_under_way() -> None:
    table, forgotten = endpoints(), []
    for pod in PODS:
        chosen(table, pods=[pod])
    chosen(table, pods=PODS[:1]).in_flight = 1
    chosen(table, pods=PODS[1:2], now=FORGET_AFTER_S)
    table.sweep(FORGET_AFTER_S + 1, lambda endpoint: forgotten.append(endpoint.url))
    assert forgotten == ["http://10.0.0.3:80"]
    assert len(table) == 2


def test_the_number_of_endpoints_is_bounded() -> None:
    table = endpoints()
    for i in range(MAX_ENDPOINTS + 10):
        chosen(table, pods=[f"10.0.0.1:{i}"], now=i / 1000)
    table.sweep(10, lambda _: None)
    assert len(table) == MAX_ENDPOINTS


def test_unknown_models_of_an_endpoint_are_bounded() -> None:
    endpoint = chosen(endpoints())
    for i in range(10_000):
        endpoint.forget_model(f"m{i}", now=0)
    assert len(endpoint.unknown_models) < 1000
    assert not endpoint.knows("m9999", now=1)
