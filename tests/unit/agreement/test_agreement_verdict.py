"""When looks say that tokens do not agree, which pods are named, and which causes."""

import pytest

from aibrix_extproc.agreement.promises import Found, Kind
from aibrix_extproc.agreement.verdict import (
    ENOUGH,
    MAX_AGE_S,
    WINDOW,
    Evidence,
    Verdicts,
    causes,
)

NO, YES = Found.UNCONFIRMED, Found.CONFIRMED


def verdicts(*looks: Found, pod: str = "d/a", into: Verdicts | None = None) -> Verdicts:
    found = into or Verdicts()
    for look in looks:
        found.add("tiny", pod, Kind.PLAIN, look, 0.0)
    return found


def doubted(found: Verdicts, now: float = 0.0, kind: Kind = Kind.PLAIN) -> list[str]:
    return found.doubted(now).get(("tiny", kind), [])


def test_a_pod_whose_promises_are_never_found_is_named() -> None:
    assert doubted(verdicts(*[NO] * ENOUGH)) == ["d/a"]


def test_a_few_looks_are_not_enough() -> None:
    assert doubted(verdicts(*[NO] * (ENOUGH - 1))) == []


def test_looks_that_show_nothing_do_not_count() -> None:
    assert doubted(verdicts(*[NO] * (ENOUGH - 1), *[Found.VOID] * 20)) == []


def test_a_fair_share_that_is_found_is_no_reason_for_doubt() -> None:
    looks = [NO] * 6 + [YES] * 2
    assert doubted(verdicts(*looks * 4)) == []


def test_only_the_pod_that_differs_is_named() -> None:
    both = verdicts(*[NO] * ENOUGH, into=verdicts(*[YES] * ENOUGH, pod="d/b"))
    assert doubted(both) == ["d/a"]


def test_kinds_and_models_are_judged_apart() -> None:
    found = verdicts(*[NO] * ENOUGH)
    assert doubted(found, kind=Kind.SALTED) == []
    assert found.doubted(0.0).keys() == {("tiny", Kind.PLAIN)}


def test_it_is_over_when_most_of_the_last_are_found() -> None:
    found = verdicts(*[NO] * WINDOW, *[YES] * (ENOUGH // 2))
    assert doubted(found) == ["d/a"]
    assert doubted(verdicts(YES, into=found)) == []


def test_what_is_old_is_forgotten() -> None:
    found = verdicts(*[NO] * ENOUGH)
    assert doubted(found, MAX_AGE_S) == ["d/a"]
    assert doubted(found, MAX_AGE_S + 1) == []


def test_a_pod_that_is_gone_is_forgotten() -> None:
    found = verdicts(*[NO] * ENOUGH)
    found.forget_pod("d/a")
    assert doubted(found) == []
    assert found.page("tiny") == {}


def test_the_page_counts_every_outcome() -> None:
    page = verdicts(NO, YES, Found.VOID).page("tiny")
    assert page == {
        "d/a": {
            "plain": {
                "confirmed": 1,
                "partly": 0,
                "unconfirmed": 1,
                "silent": 0,
                "void": 1,
                "doubted": False,
            }
        }
    }


def test_silence_and_beginnings_are_told_from_the_rest() -> None:
    silent = verdicts(*[Found.SILENT] * ENOUGH)
    assert silent.is_silent("tiny", Kind.PLAIN, ["d/a"])
    assert not verdicts(NO, into=silent).is_silent("tiny", Kind.PLAIN, ["d/a"])
    partly = verdicts(*[Found.PARTLY] * ENOUGH)
    assert partly.is_partly("tiny", Kind.PLAIN, ["d/a"])
    assert not verdicts(*[NO] * ENOUGH).is_partly("tiny", Kind.PLAIN, ["d/a"])


@pytest.mark.parametrize(
    ("kind", "evidence", "word"),
    [
        (Kind.SALTED, Evidence(), "cache_salt"),
        (Kind.ADAPTER, Evidence(unnamed_adapters=True), "lora-id"),
        (Kind.PLAIN, Evidence(pods_disagree=True), "chat template"),
        (Kind.PLAIN, Evidence(lengths_differ=True), "chat template"),
        (Kind.PLAIN, Evidence(partial_sources=True), "PARTIAL"),
        (Kind.PLAIN, Evidence(groups_not_indexed=True), "cache group"),
    ],
)
def test_the_cause_that_the_evidence_points_to_comes_first(
    kind: Kind, evidence: Evidence, word: str
) -> None:
    assert word in causes(kind, evidence, silent=False, partly=False)[0]


def test_without_evidence_every_cause_is_named() -> None:
    told = " ".join(causes(Kind.PLAIN, Evidence(), silent=False, partly=False))
    for word in ("tokenizer", "chat template", "PARTIAL", "lookahead", "model.aibrix.ai/name"):
        assert word in told


def test_a_pod_without_any_event_has_causes_of_its_own() -> None:
    told = causes(Kind.PLAIN, Evidence(), silent=True, partly=False)
    assert "event port" in told[0]
    assert not any("template" in cause for cause in told)
