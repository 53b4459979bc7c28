"""The endpoints file: its format, and files that are really edited."""

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from aibrix_extproc.discovery.endpoints_file import EndpointsFile
from aibrix_extproc.discovery.endpoints_format import BadEndpoints, parse_pods
from aibrix_extproc.discovery.pods import Pod, Rank
from aibrix_extproc.discovery.registry import Registry
from aibrix_extproc.errors import SettingsError
from aibrix_extproc.metrics import Metrics
from aibrix_extproc.settings import Settings
from tests.support import eventually_async


def text_of(*entries: dict[str, Any]) -> str:
    return yaml.safe_dump({"pods": list(entries)})


def entry(name: str = "a", address: str = "10.0.0.1:8000", **fields: Any) -> dict[str, Any]:
    return {"name": name, "model": "llama", "address": address} | fields


def parse(*entries: dict[str, Any]) -> tuple[Pod, ...]:
    return parse_pods(text_of(*entries), 5557, 5558).pods


def refusal(text: str) -> str:
    with pytest.raises(BadEndpoints) as caught:
        parse_pods(text, 5557, 5558)
    return str(caught.value)


# -- the format -------------------------------------------------------------------------------


def test_the_shortest_entry_is_a_ready_pod_without_events() -> None:
    (pod,) = parse(entry())
    assert pod == Pod(
        namespace="default",
        name="a",
        uid=pod.uid,
        address="10.0.0.1:8000",
        model="llama",
    )


def test_every_field_has_its_place() -> None:
    (pod,) = parse(
        entry(
            namespace="n",
            labels={"zone": "eu"},
            ready=False,
            adapters=["x", "y"],
            lora_id=2,
            ranks=2,
            kv_events={"port": 6000, "replay_port": 7000},
            metrics_port=9000,
        )
    )
    assert (pod.key, pod.labels, pod.ready) == ("n/a", {"zone": "eu"}, False)
    assert (pod.adapters, pod.lora_id) == (("x", "y"), 2)
    assert (pod.kv_events, pod.metrics_address) == (True, "10.0.0.1:9000")
    assert pod.ranks == (
        Rank(0, "tcp://10.0.0.1:6000", "tcp://10.0.0.1:7000"),
        Rank(1, "tcp://10.0.0.1:6001", "tcp://10.0.0.1:7001"),
    )


def test_kv_events_true_takes_the_settings_ports_and_lets_the_pod_correct_them() -> None:
    listing = parse_pods(text_of(entry(kv_events=True)), 6000, 7000)
    assert listing.pods[0].ranks == (Rank(0, "tcp://10.0.0.1:6000", "tcp://10.0.0.1:7000"),)
    assert listing.ranks_written == frozenset()


def test_ports_that_are_written_rule_and_those_left_out_are_the_settings() -> None:
    listing = parse_pods(text_of(entry(kv_events={"port": 6100})), 6000, 7000)
    assert listing.pods[0].ranks == (Rank(0, "tcp://10.0.0.1:6100", "tcp://10.0.0.1:7000"),)
    assert listing.ranks_written == {"default/a"}


def test_a_replay_port_of_null_means_that_the_engine_has_none() -> None:
    (pod,) = parse(entry(kv_events={"replay_port": None}))
    assert pod.ranks == (Rank(0, "tcp://10.0.0.1:5557", None),)


def test_ranks_without_events_have_no_endpoints() -> None:
    assert parse(entry(ranks=2))[0].ranks == (Rank(0), Rank(1))


def test_an_ipv6_address_is_written_in_brackets() -> None:
    (pod,) = parse(entry(address="[2001:DB8::01]:8000", metrics_port=9, kv_events=True))
    assert pod.address == "[2001:db8::1]:8000"
    assert pod.metrics_address == "[2001:db8::1]:9"
    assert pod.ranks[0].event_endpoint == "tcp://[2001:db8::1]:5557"


def test_another_address_under_the_same_name_is_another_identity() -> None:
    (first,), (second,) = parse(entry()), parse(entry(address="10.0.0.2:8000"))
    assert first.uid != second.uid
    assert parse(entry(model="qwen"))[0].identity == first.identity


def test_a_file_may_list_no_pod() -> None:
    assert parse() == ()


# -- what is refused, and how -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"adress": "x"}, "pods[1] (b).adress: unknown key; did you mean address?"),
        ({"kv_events": {"prot": 1}}, "pods[1] (b).kv_events.prot: unknown key; did you mean port?"),
        ({"colour": "red"}, "known are name, namespace, model"),
        ({"address": "llama.svc:8000"}, "'llama.svc:8000' is a host name: write the pod's IP"),
        ({"address": "10.0.0.1"}, "'10.0.0.1' is not ip:port"),
        ({"address": "2001:db8::1:8000"}, "is not ip:port"),
        ({"address": "10.0.0.1:0"}, "has no valid port"),
        ({"address": "0.0.0.0:8000"}, "is no address of a pod"),
        ({"address": 8000}, "pods[1] (b).address: 8000 is no text: write it in quotes"),
        ({"model": 7}, "pods[1] (b).model: 7 is no text: write it in quotes"),
        ({"labels": {"gpu": True}}, "pods[1] (b).labels.gpu: True is no text"),
        ({"ranks": 0}, "pods[1] (b).ranks: "),
        ({"ranks": "2"}, "pods[1] (b).ranks: "),
        ({"metrics_port": 70000}, "pods[1] (b).metrics_port: "),
        ({"kv_events": {"port": 0}}, "pods[1] (b).kv_events.port: "),
        ({"kv_events": "yes"}, "pods[1] (b).kv_events: write true, false or {port: 5557"),
        ({"kv_events": None}, "pods[1] (b).kv_events: write true, false or {port: 5557"),
        ({"kv_events": {"port": "5557"}}, "pods[1] (b).kv_events.port: "),
        ({"labels": None}, "pods[1] (b).labels: write a mapping"),
        ({"adapters": "lora"}, "pods[1] (b).adapters: write a list"),
        ({"lora_id": -1}, "pods[1] (b).lora_id: "),
        ({"name": "a"}, "pods[1]: name default/a is already that of pods[0]"),
        ({"address": "10.0.0.1:8000"}, "address 10.0.0.1:8000 is already that of pods[0]"),
        ({"kv_events": True, "ranks": 2}, "keep them at least 2 apart, for example 5557 and 5657"),
        ({"kv_events": {"port": 65535, "replay_port": 1}, "ranks": 2}, "goes past 65535"),
    ],
)
def test_a_bad_entry_is_refused_with_its_place_and_what_to_write(
    fields: dict[str, Any], expected: str
) -> None:
    second = entry("b", "10.0.0.2:8000") | fields
    assert expected in refusal(text_of(entry(), second))


@pytest.mark.parametrize("value", ["true", None, {"port": 1.0}, {"prot": 1}])
def test_one_bad_value_is_told_in_one_line_without_names_of_the_code(value: object) -> None:
    message = refusal(text_of(entry(kv_events=value)))
    assert ";" not in message.replace("; did you", "")
    assert "_KvEvents" not in message


@pytest.mark.parametrize(
    "value", ["2024-13-01", "9" * 5000, "[" * 5000], ids=["no date", "endless number", "deep"]
)
def test_values_that_the_yaml_reader_trips_over_are_refused(value: str) -> None:
    text = f"pods: [{{name: a, model: m, address: '10.0.0.1:1', labels: {{x: {value}}}}}]"
    assert "not YAML" in refusal(text)


def test_an_anchor_may_be_merged_and_overridden() -> None:
    text = """pods:
  - &a {name: a, model: m, address: "10.0.0.1:1", labels: &l {x: "1", y: "1"}}
  - &b {<<: *a, name: b, address: "10.0.0.2:1", labels: {<<: *l, x: "2"}}
  - {<<: *b, name: c, address: "10.0.0.3:1"}
"""
    pods = parse_pods(text, 5557, 5558).pods
    assert [(p.name, p.labels["x"], p.labels["y"]) for p in pods] == [
        ("a", "1", "1"),
        ("b", "2", "1"),
        ("c", "2", "1"),
    ]


@pytest.mark.parametrize("change", [lambda t: "\ufeff" + t, lambda t: t.replace("\n", "\r\n")])
def test_an_editor_of_another_system_does_no_harm(change: Callable[[str], str]) -> None:
    assert len(parse_pods(change(text_of(entry())), 5557, 5558).pods) == 1


def test_a_missing_field_is_named() -> None:
    assert refusal("pods: [{name: a, model: m}]") == (
        "pods[0] (a).address: missing, and it is required"
    )


@pytest.mark.parametrize("text", ["", "[]", "pods", "pods: null", "endpoints: []"])
def test_a_file_that_is_no_list_of_pods_is_refused(text: str) -> None:
    assert "pods" in refusal(text)


def test_broken_yaml_is_refused_with_its_line() -> None:
    assert "line 2" in refusal("pods:\n  - {name: a")


def test_a_key_that_stands_twice_is_refused() -> None:
    assert "'address' stands 2 times" in refusal("pods: [{name: a, address: x, address: y}]")


def test_yaml_tags_build_no_objects() -> None:
    assert "not YAML" in refusal("pods: !!python/object/apply:os.getcwd []")


# -- following a file -------------------------------------------------------------------------


class Follower:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        self.file = EndpointsFile(str(path), self.registry, Settings(), self.metrics, poll_s=0.01)

    def addresses(self) -> list[str]:
        return [pod.address for pod in self.registry.pods()]

    def errors(self) -> float:
        return self.metrics.discovery_errors.labels("endpoints_file")._value.get()

    async def see(self, *addresses: str) -> None:
        await eventually_async(lambda: self.addresses() == list(addresses))


@asynccontextmanager
async def following(path: Path) -> AsyncIterator[Follower]:
    follower = Follower(path)
    await follower.file.start()
    try:
        yield follower
    finally:
        await follower.file.close()


def write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogateescape"))


def move(path: Path, target: Path) -> None:
    path.rename(target)


def replace_unseen(path: Path, text: str) -> None:
    """Put another file in its place, of the same size and modification time."""
    before = path.stat()
    other = path.with_suffix(".new")
    write(other, text)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert other.stat().st_size == before.st_size
    move(other, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "endpoints.yaml"
    write(path, text_of(entry()))
    return path


async def test_the_first_reading_is_complete_when_start_returns(path: Path) -> None:
    async with following(path) as follower:
        assert follower.registry.listed
        assert follower.addresses() == ["10.0.0.1:8000"]


async def test_an_edit_in_place_is_noticed(path: Path) -> None:
    async with following(path) as follower:
        write(path, text_of(entry(), entry("b", "10.0.0.2:8000")))
        await follower.see("10.0.0.1:8000", "10.0.0.2:8000")
        write(path, text_of(entry("b", "10.0.0.2:8000")))
        await follower.see("10.0.0.2:8000")
        assert follower.errors() == 0


async def test_an_atomic_rename_of_equal_size_and_time_is_noticed(path: Path) -> None:
    async with following(path) as follower:
        replace_unseen(path, text_of(entry(address="10.0.0.9:8000")))
        await follower.see("10.0.0.9:8000")


async def test_a_swap_of_the_link_above_it_is_noticed(tmp_path: Path) -> None:
    """As Kubernetes updates a ConfigMap: `..data` is a link to a folder, and is replaced."""
    for name, address in (("v1", "10.0.0.1:8000"), ("v2", "10.0.0.2:8000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "endpoints.yaml").write_text(text_of(entry(address=address)))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "endpoints.yaml").symlink_to("..data/endpoints.yaml")
    async with following(tmp_path / "endpoints.yaml") as follower:
        assert follower.addresses() == ["10.0.0.1:8000"]
        (tmp_path / "..data_tmp").symlink_to("v2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        await follower.see("10.0.0.2:8000")


@pytest.mark.parametrize("bad", ["", "pods: [", "pods: [{name: a}]", "\udcff"])
async def test_a_bad_edit_keeps_the_pods_until_a_good_one(
    path: Path, bad: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        async with following(path) as follower:
            write(path, bad)
            await eventually_async(lambda: follower.errors() == 1)
            assert follower.addresses() == ["10.0.0.1:8000"]
            write(path, text_of(entry(address="10.0.0.2:8000")))
            await follower.see("10.0.0.2:8000")
            assert follower.errors() == 1
    assert caplog.text.count("the pods stay") == 2  # when it went bad, and as what it was before
    assert caplog.text.count("→ ok") == 1


async def test_a_file_that_is_removed_keeps_the_pods_until_it_is_back(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(path) as follower:
        away = path.with_suffix(".away")
        move(path, away)
        await eventually_async(lambda: follower.errors() >= 2)
        assert follower.addresses() == ["10.0.0.1:8000"]
        write(away, text_of(entry(address="10.0.0.2:8000")))
        move(away, path)
        await follower.see("10.0.0.2:8000")
    assert caplog.text.count("there is no such file") == 1


async def test_a_missing_file_stops_the_start_and_names_the_variable(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "none.yaml")
    with pytest.raises(SettingsError, match=r"AIBRIX_EXTPROC_ENDPOINTS_FILE: .*no such file"):
        await follower.file.start()
    await follower.file.close()


async def test_a_bad_first_file_stops_the_start_and_says_why(path: Path) -> None:
    write(path, "pods: [{name: a, model: m}]")
    with pytest.raises(SettingsError, match=r"pods\[0\] \(a\).address: missing"):
        await Follower(path).file.start()
