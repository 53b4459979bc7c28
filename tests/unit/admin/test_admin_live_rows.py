"""What the live page shows of each source: plain values of what is known."""

from dataclasses import replace

import msgspec
import pytest

from aibrix_extproc.admin.live.rows import Health, Hits, Seen, counted, difference, rows_of
from aibrix_extproc.discovery.pods import Pod
from aibrix_extproc.kvevents.effects import SourceState
from aibrix_extproc.kvevents.manager import SourceView
from aibrix_extproc.routing.types import Load
from tests.unit.admin.admin_rig import VIEW

EXACT = replace(VIEW, state=SourceState.EXACT, usable=True)
POD = Pod("default", "vllm-0", "u", "10.0.0.1:8000", "llama")


def seen(view: SourceView = EXACT, pod: Pod | None = POD, **changes: object) -> Seen:
    fields = {
        "views": (view,),
        "pods": {} if pod is None else {pod.key: pod},
        "out": frozenset(),
        "loads": {},
        "open_requests": 0,
        "notes": (),
    }
    return Seen(**(fields | changes))  # type: ignore[arg-type]


def health(what: Seen, answers: dict[str, bool] | None = None) -> Health:
    (row,) = rows_of(what, {}, answers or {}).values()
    return Health(row["health"])


def test_a_row_joins_what_the_rooms_know_of_a_source() -> None:
    rows = rows_of(
        seen(loads={7: Load(3, 900, 2)}), {7: Hits(4, 1000, 625)}, {"10.0.0.1:8000": True}
    )
    assert msgspec.json.decode(msgspec.json.encode(rows[7])) == {
        "pod": "default/vllm-0",
        "rank": 0,
        "model": "llama",
        "address": "10.0.0.1:8000",
        "health": "ok",
        "state": "EXACT",
        "blocks": 1000,
        "picks": 4,
        "hit": 0.625,
        "requests": 3,
        "prefill": 900,
        "lag_ms": 250.0,
    }


def test_a_source_without_decisions_and_load_has_no_hit_ratio() -> None:
    row = rows_of(seen(replace(EXACT, lag_s=None)), {}, {})[7]
    assert (row["hit"], row["picks"], row["requests"], row["lag_ms"]) == (None, 0, 0, None)


@pytest.mark.parametrize(
    ("what", "answers", "expected"),
    [
        (seen(), {}, Health.OK),
        (seen(), {POD.address: True}, Health.OK),
        (seen(), {POD.address: False}, Health.UNREACHABLE),
        (seen(replace(EXACT, connected=False)), {POD.address: False}, Health.UNREACHABLE),
        (seen(pod=replace(POD, ready=False)), {}, Health.NOT_READY),
        (seen(pod=None), {}, Health.NOT_READY),
        (seen(pod=replace(POD, ready=False), out=frozenset({POD.key})), {}, Health.OUT),
        (seen(replace(EXACT, connected=False)), {}, Health.CUT),
        (seen(replace(EXACT, stale=True, usable=False)), {}, Health.STALE),
        (seen(replace(EXACT, state=SourceState.SYNCING, usable=False)), {}, Health.DOUBTED),
        (seen(replace(EXACT, full=True)), {}, Health.FULL),
    ],
)
def test_health_is_the_worst_that_holds(
    what: Seen, answers: dict[str, bool], expected: Health
) -> None:
    assert health(what, answers) == expected


def test_a_pod_that_sends_no_events_is_not_cut_off() -> None:
    silent = replace(EXACT, state=None, usable=False, connected=False, event_endpoint=None)
    assert health(seen(silent)) == Health.OK


def test_only_fields_that_changed_are_a_difference() -> None:
    before = rows_of(seen(), {}, {})
    after = rows_of(seen(replace(EXACT, placements=1001)), {}, {})
    assert difference(before, after) == ({"7": {"blocks": 1001}}, [])
    assert difference(after, after) == ({}, [])


def test_new_sources_come_whole_and_those_that_went_are_named() -> None:
    before = rows_of(seen(), {}, {})
    after = rows_of(seen(replace(EXACT, source=8)), {}, {})
    changed, gone = difference(before, after)
    assert changed == {"8": after[8]}
    assert gone == [7]


def test_sources_are_counted_by_health() -> None:
    views = (EXACT, replace(EXACT, source=8), replace(EXACT, source=9, stale=True))
    assert counted(rows_of(seen(views=views), {}, {}).values()) == {"ok": 2, "stale": 1}
