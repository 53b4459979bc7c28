"""What an operator reads, and what a program reads: text, JSON, exit codes, no secrets."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from aibrix_extproc.cli import main
from aibrix_extproc.doctor import catalog
from aibrix_extproc.doctor.catalog import CODES, Check, run_checks
from aibrix_extproc.doctor.collect import Asked, collect
from aibrix_extproc.doctor.findings import Area, Code, Finding, Severity, ok, skipped, worst
from aibrix_extproc.doctor.report import as_json, clean, print_text
from tests.support import free_port

RED = Code("a-code", Area.ENVOY, Severity.RED, "it is broken", "Mend it.")
FINDINGS = [
    ok(Area.VARIABLES, "names", "right"),
    RED.found("route", "seen here"),
    skipped(Area.SERVER, "server", "not asked"),
]


@dataclass(frozen=True)
class Ended:
    """A run of the command."""

    code: int
    out: str
    err: str


Doctor = Callable[..., Ended]


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The command, in this process: `doctor(*arguments, **environment)`."""

    def run(*arguments: str, **environment: str) -> Ended:
        for name in os.environ:
            if name.startswith(("AIBRIX_", "ROUTING_")):
                monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        try:
            code = main(["doctor", "--timeout", "0.3", *arguments])
        except SystemExit as ended:  # argparse's own
            code = int(str(ended.code))
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return run


def shown(findings: list[Finding], **options: Any) -> str:
    out = io.StringIO()
    print_text(findings, Console(file=out, highlight=False, **options))
    return out.getvalue()


def test_text_says_code_what_was_seen_and_what_to_do() -> None:
    text = shown(FINDINGS)
    assert "red" in text
    assert "a-code" in text
    assert "seen: seen here" in text
    assert "do:   Mend it." in text
    assert text.rstrip().endswith("1 red, 0 yellow, 1 green, 1 skipped")


def test_colours_are_on_a_terminal_alone_and_never_without_the_word() -> None:
    assert "\x1b[" not in shown(FINDINGS)
    coloured = shown(FINDINGS, force_terminal=True, color_system="standard")
    assert "\x1b[" in coloured
    assert "red" in coloured


def test_json_has_every_finding_and_the_exit_code() -> None:
    page = json.loads(as_json(FINDINGS, 1))
    assert (page["version"], page["result"], page["exit_code"]) == (1, "red", 1)
    assert page["counts"] == {"red": 1, "yellow": 0, "green": 1, "skipped": 1}
    assert page["findings"][1] == {
        "area": "envoy",
        "severity": "red",
        "code": "a-code",
        "subject": "route",
        "seen": "seen here",
        "do": "Mend it.",
    }


@pytest.mark.parametrize(
    ("severities", "expected"),
    [
        ([Severity.GREEN, Severity.SKIPPED], Severity.GREEN),
        ([Severity.YELLOW, Severity.GREEN], Severity.YELLOW),
        ([Severity.YELLOW, Severity.RED], Severity.RED),
        ([], Severity.GREEN),
    ],
)
def test_the_whole_is_as_bad_as_its_worst(severities: list[Severity], expected: Severity) -> None:
    assert worst([RED.found("x", "y", severity) for severity in severities]) is expected


def test_no_password_and_no_control_character_is_shown() -> None:
    assert clean("http://user:secret@host:1/x") == "http://…@host:1/x"
    assert "\x1b" not in clean("a\x1b[31mb")
    assert len(clean("x" * 10_000)) == 600


def test_something_red_is_exit_code_1(doctor: Doctor, tmp_path: Path) -> None:
    pods = tmp_path / "pods.yaml"
    pods.write_text("pods: []")
    ended = doctor("--json", AIBRIX_EXTPROC_ENDPOINTS_FILE=str(pods))
    page = json.loads(ended.out)
    assert (ended.code, page["exit_code"], page["result"]) == (1, 1, "red")
    assert [f["code"] for f in page["findings"] if f["severity"] == "red"] == ["pods-none"]
    assert ended.err == ""


def test_no_file_and_no_cluster_is_named(doctor: Doctor, tmp_path: Path) -> None:
    ended = doctor("--json", KUBECONFIG=str(tmp_path / "none"), AIBRIX_EXTPROC_MAX_STREAMS="7")
    red = [f["code"] for f in json.loads(ended.out)["findings"] if f["severity"] == "red"]
    assert (ended.code, red) == (1, ["kubernetes-none"])


def test_nothing_red_is_exit_code_0(doctor: Doctor) -> None:
    ended = doctor("--envoy-config-dump", str(Path("envoy/override-host.yaml")))
    assert ended.code == 0, ended.out
    assert "0 red, 0 yellow" in ended.out
    assert ended.err == ""


def test_a_dump_is_read_from_standard_input() -> None:
    text = Path("envoy/override-host.yaml").read_text().replace("message_timeout: 2s", "")
    ended = subprocess.run(
        [sys.executable, "-m", "aibrix_extproc.cli", "doctor", "--envoy-config-dump", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "envoy-message-timeout" in ended.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--server", "localhost"],
        ["--envoy-admin", "ftp://x"],
        ["--timeout", "soon"],
        ["--timeout", "0"],
        ["--env-file", "/nowhere"],
        ["--envoy-admin", "http://a:1", "--envoy-config-dump", "x"],
        ["--nonsense"],
    ],
)
def test_options_that_cannot_be_used_are_exit_code_2(arguments: list[str], doctor: Doctor) -> None:
    ended = doctor(*arguments)
    assert ended.code == 2
    assert arguments[0] in ended.err
    assert "Traceback" not in ended.err


def test_secrets_of_the_environment_are_not_shown(doctor: Doctor, tmp_path: Path) -> None:
    env = tmp_path / "env"
    port = free_port()
    env.write_text(
        "REDIS_PASSWORD=hunter2\n"
        "AIBRIX_PREFIX_CACHE_USE_REMOTE_TOKENIZER=true\n"
        f"AIBRIX_PREFIX_CACHE_REMOTE_TOKENIZER_ENDPOINT=http://me:hunter3@127.0.0.1:{port}\n"
        "AIBRIX_CONSOLE_TOKEN=hunter4\n"
        f"AIBRIX_EXTPROC_ENDPOINTS_FILE={tmp_path / 'pods.yaml'}\n"
    )
    (tmp_path / "pods.yaml").write_text("pods: [{name: a, model: m, address: '127.0.0.1:1'}]")
    for form in ([], ["--json"]):
        ended = doctor("--env-file", str(env), *form)
        assert "REDIS_PASSWORD" in ended.out
        assert "AIBRIX_CONSOLE_TOKEN" in ended.out
        assert "hunter" not in ended.out + ended.err


async def test_a_check_that_fails_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(facts: object) -> list[Finding]:
        raise KeyError("x")

    checks = (Check(Area.ENVOY, "broken", broken, ""), *catalog.CHECKS)
    monkeypatch.setattr(catalog, "CHECKS", checks)
    findings = run_checks(await collect(Asked(envoy_dump="/nowhere", timeout_s=0.2), {}))
    assert {"check-failed", "envoy-unreadable"} <= {f.code for f in findings}


def test_codes_are_words_with_dashes_and_each_is_there_once() -> None:
    names = [code.name for code in CODES]
    assert len(set(names)) == len(names)
    assert all(name == name.lower() and " " not in name for name in names)
    assert all(code.severity in {Severity.RED, Severity.YELLOW} for code in CODES)
