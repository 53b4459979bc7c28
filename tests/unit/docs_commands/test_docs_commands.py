"""Every command in the docs is run or checked: programs, options, paths, names."""

import re
from pathlib import Path

import httpx
import pytest
import yaml

from aibrix_extproc import cli
from aibrix_extproc.app import App
from aibrix_extproc.settings import Settings
from tests.support import data_path
from tests.unit.docs_commands import doc_checks_deploy, doc_checks_http
from tests.unit.docs_commands import doc_facts as facts
from tests.unit.docs_commands.doc_checks import CHECKS, problems
from tests.unit.docs_commands.doc_facts import ROOT
from tests.unit.docs_commands.doc_shell import (
    BadLine,
    Block,
    Command,
    blocks,
    commands,
    in_block,
    pages,
)

PAGES = pages(ROOT)
PROGRAMS = set(CHECKS)
"""Known by now: the modules that register them are imported."""
assert {"curl", "kubectl"} <= PROGRAMS, (doc_checks_deploy, doc_checks_http)
FOUND = [command for page, text in PAGES.items() for command in commands(page, text, PROGRAMS)]


def test_there_are_commands_in_many_pages() -> None:
    assert len(FOUND) > 80
    assert len({command.page for command in FOUND}) > 10


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_right(page: str) -> None:
    wrong = [
        f"{command}\n    {problem}"
        for command in FOUND
        if command.page == page
        for problem in problems(command)
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_and_metric_that_a_page_names_exists(page: str) -> None:
    # What another server reads, in a table that says so, is no setting here.
    text = re.sub(r"^.*\| gone \|.*$", "", PAGES[page], flags=re.M)
    known, metrics = facts.known_variables(), facts.metric_names()
    wrong = [
        f"no setting {name}"
        for name in sorted(set(re.findall(r"\b(?:AIBRIX|ROUTING)_[A-Z][A-Z_]*[A-Z]\b", text)))
        if name not in known and not begins_any(name, known)
    ]
    wrong += [
        f"no metric {name}"
        for name in sorted(set(re.findall(r"\baibrix_(?:extproc|kv)_[a-z_]*[a-z]\b", text)))
        if name not in metrics and not begins_any(name, metrics)
    ]
    assert not wrong, f"{page}: {wrong}"


def begins_any(name: str, known: frozenset[str]) -> bool:
    """`AIBRIX_KV_…`, `aibrix_kv_source_*`: several at once."""
    return any(one.startswith(f"{name}_") for one in known)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (here / path).resolve() if path else ROOT / page
        if not file.exists():
            wrong.append(f"{target}: there is no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            wrong.append(f"{target}: the page has no such heading")
    assert not wrong, f"{page}: {wrong}"


def anchors(path: Path) -> set[str]:
    """The headings of a page as links name them."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", path.read_text(), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_the_repository_that_a_page_names_exists(page: str) -> None:
    """In backticks, beginning with one of its folders."""
    folders = "aibrix_extproc|benchmarks|core|deploy|docs|envoy|proto|tests"
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.S)
    named = set(re.findall(rf"`((?:{folders})/[\w./-]*)`", prose))
    missing = sorted(
        name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "core"))
    )
    assert not missing, f"{page}: {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_every_yaml_block_of_a_page_can_be_read(page: str) -> None:
    for block in blocks(page, PAGES[page]):
        if block.language in ("yaml", "yml"):
            try:
                list(yaml.safe_load_all(block.body))
            except yaml.YAMLError as error:
                pytest.fail(f"{page}:{block.line}: {error}")


def taken_from(text: str) -> list[Command]:
    return list(in_block(Block("page.md", 1, "sh", text)))


def test_a_block_is_cut_as_a_shell_cuts_it() -> None:
    block = """A=1 make demo   # it's a comment; with "quotes
    curl -s localhost:8080/metrics | grep 'a b' > out.txt && echo done
    vllm serve MODEL \\
      --kv-events-config '{"a":
      1}'
    export B=2
    """
    found = taken_from(block)
    assert [(one.variables, one.words, one.files) for one in found] == [
        ((("A", "1"),), ("make", "demo"), ()),
        ((), ("curl", "-s", "localhost:8080/metrics"), ()),
        ((), ("grep", "a b"), ("out.txt",)),
        ((), ("echo", "done"), ()),
        ((), ("vllm", "serve", "MODEL", "--kv-events-config", '{"a":\n      1}'), ()),
        ((("B", "2"),), (), ()),
    ]


def test_a_quote_that_does_not_end_is_told() -> None:
    with pytest.raises(BadLine, match=r"page\.md:1"):
        taken_from("echo 'a\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("frobnicate --now", "the program 'frobnicate' is not known here; teach it"),
        ("make nonsense", "nonsense"),
        ("make bench NONSENSE=1", "reads no variable NONSENSE"),
        ('make bench-index BENCH="--nonsense"', "has no option --nonsense"),
        ('make bench-index BENCH="--only nonsense"', "knows no nonsense"),
        ("aibrix-extproc nonsense --x", "invalid choice: 'nonsense'"),
        ("aibrix-extproc serve --nonsense", "unrecognized arguments: --nonsense"),
        ("aibrix-extproc watch --replay a --record b", "--record"),
        ("aibrix-extproc watch 10.0.0.1:5557", "is no source"),
        ("curl localhost:8081/debug/nonsense", "port 8081 has no page /debug/nonsense"),
        ("curl localhost:8080/debug/sources", "port 8080 has no page /debug/sources"),
        ("curl -X DELETE localhost:8080/metrics", "does not answer DELETE"),
        ("curl localhost:8081/debug/explain -d '{}'", "content-type: application/json"),
        ("curl localhost:10000/v1/nonsense", "no path of the OpenAI API"),
        ("curl localhost:1234/", "listens on port 1234"),
        ("curl --nonsense localhost:8080/metrics", "curl has no option --nonsense"),
        ("curl localhost:10000/v1/completions -d '{x}'", "the body is no JSON"),
        (
            "AIBRIX_EXTPROC_NONSENSE=1 make demo",
            "nothing reads the variable AIBRIX_EXTPROC_NONSENSE",
        ),
        ("kubectl apply -f nonsense.yaml", "there is no file or folder nonsense.yaml"),
        ("kubectl apply -k deploy", "there is no deploy/kustomization.yaml"),
        ("kubectl apply --nonsense", "kubectl has no option --nonsense"),
        ("kubectl patch deploy aibrix-extproc -p '{x'", "the body is no JSON"),
        ("kubectl delete deploy nonsense", "no manifest has the Deployment nonsense"),
        ("kubectl exec POD -- aibrix-extproc nonsense -x", "invalid choice: 'nonsense'"),
        ("kubectl nonsense", "kubectl nonsense is not known here"),
        ("kubectl -n nonsense get pods", "in a namespace nonsense"),
        ("kubectl rollout status deployment/nonsense", "no manifest has the Deployment nonsense"),
        ("kubectl get pods -l app=nonsense", "no manifest has the label app=nonsense"),
        ("kubectl port-forward POD 1234", "listens on port 1234"),
        (
            "kubectl auth can-i list pods --as system:serviceaccount:x:nonsense",
            "the service account x/nonsense",
        ),
        ("helm install x deploy/helm/nonsense", "there is no chart"),
        ("helm install x deploy/helm/aibrix-extproc --set non.sense=1", "no value non.sense"),
        ("docker compose up nonsense", "no service nonsense"),
        ("docker compose --profile nonsense up", "no profile nonsense"),
        ("docker build --build-arg NONSENSE=1 .", "no ARG NONSENSE"),
        ("docker run --rm aibrix-extproc nonsense", "invalid choice: 'nonsense'"),
        ("apt-get nonsense", "apt-get nonsense is not known here"),
        ("apt-get install --nonsense docker.io", "apt-get has no option --nonsense"),
        ("promtool check rules nonsense.yaml", "there is no file or folder nonsense.yaml"),
        ("pytest tests/nonsense", "there is no file or folder tests/nonsense"),
        ("pytest --nonsense", "pytest has no option --nonsense"),
        ("python -m benchmarks.nonsense", "there is no module benchmarks.nonsense"),
        ("pip install --constraint nonsense.txt .", "there is no file or folder nonsense.txt"),
        ("envoy --config-path nonsense.yaml", "there is no file or folder nonsense.yaml"),
        ("vllm serve M --nonsense", "vllm has no option --nonsense"),
        ("vllm serve M --kv-events-config '{\"nonsense\": 1}'", "have no ['nonsense']"),
        ("echo x > nonsense/x", "there is no folder nonsense"),
    ],
)
def test_each_kind_of_error_is_found_and_told(line: str, said: str) -> None:
    found = [problem for command in taken_from(line) for problem in problems(command)]
    assert any(said in problem for problem in found), found


RUN = {
    "aibrix-extproc watch --replay recordings/monday",
    "aibrix-extproc watch --replay monday.jsonl",
    "aibrix-extproc watch --replay monday.jsonl --speed 10",
}
"""What is run here as it stands, with a recording in the place of the reader's."""


@pytest.mark.parametrize("line", sorted(RUN))
def test_what_is_cheap_is_really_run(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = {one.words for one in FOUND if " ".join(one.words) == line}
    recording = str(data_path("vllm/0.32-map-u64"))
    words = [recording if "monday" in word else word for word in command[1:]]
    words = ["max" if word == "10" else word for word in words]
    assert cli.main(words) == 0
    assert "no trouble" in capsys.readouterr().out


async def test_every_page_that_is_asked_for_is_really_answered() -> None:
    """Over HTTP, by the real servers: no answer is a 404, and none an internal error."""
    asked = {
        word
        for command in FOUND
        if command.program == "curl" and "-d" not in command.words
        for word in command.words[1:]
        if re.search(r":808[01]/", word)
    }
    assert len(asked) >= 2
    settings = Settings(
        endpoints_file=str(ROOT / "envoy" / "endpoints.yaml"),
        admin_address="127.0.0.1:0",
        debug_address="127.0.0.1:0",
    )
    app = App(settings)
    await app.admin.start()
    await app.debug.start()
    try:
        async with httpx.AsyncClient() as client:
            for url in sorted(asked):
                port = app.admin.port if ":8080/" in url else app.debug.port
                path = url.partition(":808")[2][1:]
                reply = await client.get(f"http://127.0.0.1:{port}{path}")
                ready = reply.status_code == 200 or path == "/readyz"
                assert ready, f"{url}: {reply.status_code} {reply.text}"
    finally:
        await app.admin.close()
        await app.debug.close()
