"""The environment: defaults, checks, and the README's table of variables."""

import re
from pathlib import Path

import pytest

from aibrix_extproc.errors import SettingsError
from aibrix_extproc.settings import IGNORED, Settings, variables, warnings

ROOT = Path(__file__).parents[2]
SYNC = "AIBRIX_PREFIX_CACHE_KV_EVENT_SYNC_ENABLED"
REMOTE = "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER"


def read(**environment: str) -> Settings:
    return Settings.from_environment(environment)


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = read()
    assert not settings.kv_event_sync
    assert not settings.use_remote_tokenizer
    assert settings.decision_metrics
    assert settings.routing_algorithm == "prefix-cache"
    assert settings.grpc_address == "0.0.0.0:50052"
    assert settings.max_body_bytes == 16 * 1024 * 1024
    assert settings.decision_timeout_s == 1.0


def test_an_empty_value_counts_as_unset() -> None:
    assert read(AIBRIX_EXTPROC_DECISION_TIMEOUT="").decision_timeout_s == 1.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("1s", 1.0), ("1m30s", 90.0), ("0.25", 0.25), ("2", 2.0)]
)
def test_a_duration_has_three_notations(text: str, seconds: float) -> None:
    assert read(AIBRIX_EXTPROC_DECISION_TIMEOUT=text).decision_timeout_s == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("1048576", 1048576), ("1MiB", 1048576), ("1Mi", 1048576), ("1M", 1000000)]
)
def test_a_size_has_units(text: str, size: int) -> None:
    assert read(AIBRIX_EXTPROC_MAX_BODY_BYTES=text).max_body_bytes == size


@pytest.mark.parametrize("text", ["true", "True", "1", "yes"])
def test_a_flag_may_be_written_in_several_ways(text: str) -> None:
    assert read(AIBRIX_EXTPROC_DEBUG_HEADERS=text).debug_headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AIBRIX_EXTPROC_DECISION_TIMEOUT", "1 parsec"),
        ("AIBRIX_EXTPROC_DECISION_TIMEOUT", "0"),
        ("AIBRIX_EXTPROC_DECISION_TIMEOUT", "-1s"),
        ("AIBRIX_EXTPROC_DECISION_TIMEOUT", "nan"),
        ("AIBRIX_EXTPROC_MAX_BODY_BYTES", "16 potatoes"),
        ("AIBRIX_KV_EVENT_PORT", "70000"),
        ("AIBRIX_KV_EVENT_PORT", "tcp"),
        ("AIBRIX_EXTPROC_GRPC_ADDRESS", "50052"),
        ("AIBRIX_EXTPROC_GRPC_ADDRESS", "::1:50052"),
        ("AIBRIX_EXTPROC_GRPC_ADDRESS", "http://host:50052"),
        ("AIBRIX_EXTPROC_GRPC_ADDRESS", "unix:/run/extproc.sock"),
        ("AIBRIX_EXTPROC_GRPC_ADDRESS", "host:²"),
        ("AIBRIX_EXTPROC_GRPC_ADDRESS", "host:" + "9" * 5000),
        ("AIBRIX_EXTPROC_DEBUG_HOSTS", "processor:8081"),
        ("AIBRIX_EXTPROC_DEBUG_HOSTS", "http://processor"),
        ("AIBRIX_EXTPROC_DECISION_TIMEOUT", "9" * 40),
        ("AIBRIX_EXTPROC_DECISION_TIMEOUT", "9" * 400),
        ("AIBRIX_EXTPROC_MAX_BODY_BYTES", "9" * 400),
        ("AIBRIX_EXTPROC_MAX_BODY_BYTES", "4GiB"),
        ("AIBRIX_KV_INDEX_MAX_BYTES", "9" * 400),
        ("AIBRIX_EXTPROC_DEBUG_HEADERS", "maybe"),
        ("AIBRIX_EXTPROC_LOG_LEVEL", "LOUD"),
        ("AIBRIX_EXTPROC_DECISION_LOG_SHARE", "1.5"),
        ("AIBRIX_EXTPROC_DECISION_LOG_SHARE", "-0.1"),
        ("AIBRIX_EXTPROC_DECISION_LOG_SHARE", "nan"),
        ("AIBRIX_EXTPROC_DECISION_LOG_SHARE", "50%"),
        ("AIBRIX_EXTPROC_DEFAULT_BODY_MODE", "streamed"),
        ("AIBRIX_EXTPROC_ALTERNATIVES", "0"),
        ("AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT", "tokenizer:8000"),
        ("AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT", "http://:8000"),
        ("AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT", "http://host:99999"),
        ("AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT", "http://a host"),
        ("AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT", "http://[::1"),
        (SYNC, "perhaps"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        read(**{name: value})


@pytest.mark.parametrize(
    ("text", "address"),
    [
        (":50052", "0.0.0.0:50052"),
        ("[::]:50052", "[::]:50052"),
        (" localhost:0 ", "localhost:0"),
        ("[fe80::1%eth0]:50052", "[fe80::1%eth0]:50052"),
    ],
)
def test_an_address_may_leave_out_its_host_or_be_ipv6(text: str, address: str) -> None:
    assert read(AIBRIX_EXTPROC_GRPC_ADDRESS=text).grpc_address == address


def test_a_list_of_names_is_separated_by_commas() -> None:
    assert read(AIBRIX_EXTPROC_DEBUG_HOSTS=" A.example, b ,").debug_hosts == ("a.example", "b")


def test_a_word_of_a_closed_list_may_be_written_in_any_case() -> None:
    settings = read(
        AIBRIX_EXTPROC_LOG_LEVEL=" debug ",
        AIBRIX_EXTPROC_LOG_FORMAT="JSON",
        AIBRIX_EXTPROC_DEFAULT_BODY_MODE="BUFFERED",
    )
    assert (settings.log_level, settings.log_format) == ("DEBUG", "json")
    assert settings.default_body_mode == "buffered"


def test_space_around_a_value_is_no_part_of_it() -> None:
    settings = read(
        ROUTING_ALGORITHM=" random ",
        AIBRIX_EXTPROC_NAMESPACE="models\n",
        AIBRIX_EXTPROC_ENDPOINTS_FILE=" pods.yaml",
        AIBRIX_EXTPROC_MAX_STREAMS=" 8 ",
        AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT=" http://[::1]:8000/ ",
    )
    assert settings.routing_algorithm == "random"
    assert settings.namespace == "models"
    assert settings.endpoints_file == "pods.yaml"
    assert settings.max_streams == 8
    assert settings.tokenizer_endpoint == "http://[::1]:8000"


def test_what_kubernetes_sets_for_a_service_of_this_name_is_no_misspelling() -> None:
    of_a_service = {
        "AIBRIX_EXTPROC_SERVICE_HOST": "10.0.0.1",
        "AIBRIX_EXTPROC_SERVICE_PORT": "50052",
        "AIBRIX_EXTPROC_SERVICE_PORT_GRPC": "50052",
        "AIBRIX_EXTPROC_PORT": "tcp://10.0.0.1:50052",
        "AIBRIX_EXTPROC_PORT_50052_TCP": "tcp://10.0.0.1:50052",
        "AIBRIX_EXTPROC_PORT_50052_TCP_ADDR": "10.0.0.1",
    }
    assert warnings(of_a_service) == []
    assert warnings({"AIBRIX_KV_EVENTS_PORT": "5557"}) != []


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        read(AIBRIX_KV_EVENT_PORT="x", AIBRIX_KV_REPLAY_PORT="y")
    assert "AIBRIX_KV_EVENT_PORT" in str(caught.value)
    assert "AIBRIX_KV_REPLAY_PORT" in str(caught.value)


def test_event_sync_needs_the_remote_tokenizer_and_the_message_names_both() -> None:
    with pytest.raises(SettingsError) as caught:
        read(**{SYNC: "true"})
    assert SYNC in str(caught.value)
    assert REMOTE in str(caught.value)
    assert read(**{SYNC: "true", REMOTE: "true"}).kv_event_sync


@pytest.mark.parametrize(
    ("given", "missing"), [("CERT", "KEY"), ("KEY", "CERT"), ("CLIENT_CA", "CERT")]
)
def test_the_files_of_tls_go_together_and_the_missing_one_is_named(
    given: str, missing: str
) -> None:
    with pytest.raises(SettingsError, match=f"^AIBRIX_EXTPROC_GRPC_TLS_{missing}: is unset"):
        read(**{f"AIBRIX_EXTPROC_GRPC_TLS_{given}": "/x.pem"})


def test_variables_of_aibrix_that_mean_nothing_here_are_accepted_with_a_reason() -> None:
    for name, why in IGNORED.items():
        read(**{name: "x"})
        assert warnings({name: "x"}) == [f"{name} is ignored: {why}"]


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant() -> None:
    (line,) = warnings({"AIBRIX_EXTPROC_MAX_STREAM": "1"})
    assert "AIBRIX_EXTPROC_MAX_STREAMS" in line


def test_the_settings_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        read().max_streams = 1  # type: ignore[misc]


def _table() -> dict[str, tuple[str, str]]:
    text = (ROOT / "README.md").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \|$", text, re.MULTILINE)
    return {name: (default, meaning) for name, default, meaning in rows}


def test_the_readme_has_one_row_for_every_variable_and_no_other() -> None:
    assert set(_table()) == set(variables()) | set(IGNORED)


def test_the_readme_gives_each_default_and_meaning_as_the_code_does() -> None:
    table = _table()
    for name, field in variables().items():
        default, meaning = table[name]
        assert meaning == field.description, name
        written = default.strip("`")
        value = read(**({name: written} if written and written != "(unset)" else {}))
        assert value == read(), f"{name}: the README's default {default} is not the code's"
