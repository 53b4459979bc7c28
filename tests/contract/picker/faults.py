"""The faults of the wrong server: each breaks one rule, and names the vectors that must see it.

Knows neither gRPC (`wrong_server`) nor how a message is spoilt (`spoil`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.contract.picker import spoil
from tests.contract.picker.spoil import Passing, Reply, Request
from tests.contract.picker.vectors import Mode


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule."""

    name: str
    breaks: tuple[str, ...]
    """Ids of the vectors that must fail; the first names the rule."""
    mode: Mode = Mode.DUPLEX
    requests: Callable[[Passing, Request], list[Request]] = spoil.as_it_came
    replies: Callable[[Passing, Reply], list[Reply]] = spoil.as_it_is

    def __str__(self) -> str:
        return self.name


NONE: Final = Fault("none", ())
_B, _D, _A = Mode.BUFFERED, Mode.DUPLEX, Mode.ANY
FAULTS: Final = (
    Fault(
        "early-ok-end",
        (
            "early-end-on-a-broken-message",
            "early-end-never-empties-the-body",
            "early-end-after-the-headers",
        ),
    ),
    Fault("ok-end-after-a-piece", ("no-end-before-the-echo",), replies=spoil.ok_after_a_piece),
    Fault(
        "one-large-piece",
        ("duplex-message-limit", "duplex-chunk-limit"),
        replies=spoil.in_one_piece,
    ),
    Fault("body-written-anew", ("duplex-echo-same-with-a-pick",), replies=spoil.rewritten),
    Fault("body-cut", ("duplex-echo-whole",), replies=spoil.cut),
    Fault("body-emptied", ("duplex-echo-whole",), replies=spoil.emptied),
    Fault("end-on-each-piece", ("duplex-echo-framed",), replies=spoil.end_on_each),
    Fault("no-end-at-all", ("duplex-echo-framed",), replies=spoil.no_end),
    Fault("wrong-content-length", ("headers-length-fits-the-body",), replies=spoil.wrong_length),
    Fault("streams-mixed", ("streams-do-not-mix",), replies=spoil.of_another_stream),
    Fault("trailers-before-the-body", ("duplex-trailers",), replies=spoil.body_first),
    Fault("second-end-answered", ("duplex-end-twice",), requests=spoil.end_answered_again),
    Fault("first-piece-alone", ("duplex-one-byte-at-a-time",), requests=spoil.first_piece_alone),
    Fault("body-reply-twice", ("buffered-one-reply-to-each-message",), _B, replies=spoil.twice),
    Fault("body-replaced", ("buffered-body-untouched",), _B, replies=spoil.replaced),
    Fault("no-large-body", ("buffered-large-body",), _B, requests=spoil.no_large_body),
    Fault("set-by-value", ("headers-set-by-raw-value",), replies=spoil.by_value),
    Fault("value-unread", ("headers-read-from-value",), requests=spoil.only_raw_read),
    Fault("value-before-raw", ("headers-raw-value-before-value",), requests=spoil.value_read_first),
    Fault("host-set", ("headers-never-set-what-envoy-rejects",), replies=spoil.host_set),
    Fault("unknown-fields-refused", ("headers-unknown-fields",), requests=spoil.known_fields_only),
    Fault(
        "client-steering-kept",
        ("all-steering-gone-without-a-pick", "steering-gone-on-a-get"),
        replies=spoil.nothing_removed,
    ),
    Fault(
        "first-reply-plain",
        ("steering-headers-gone-in-every-reply",),
        _B,
        replies=spoil.header_reply_plain,
    ),
    Fault(
        "no-mode-is-duplex",
        ("headers-no-protocol-config-is-buffered",),
        _B,
        requests=spoil.no_mode_is_duplex,
    ),
    Fault("streamed-mode-taken", ("error-streamed-mode",), _A, requests=spoil.streamed_taken),
    Fault("pick-of-a-stranger", ("pick-among-the-pods",), replies=spoil.stranger),
    Fault("session-is-the-pick", ("session-names-no-endpoint",), replies=spoil.session_obeyed),
    Fault("list-with-spaces", ("pick-is-a-list-of-ip-and-port",), replies=spoil.spaces),
    Fault("pick-by-name", ("pick-is-a-list-of-ip-and-port",), replies=spoil.name),
    Fault("list-with-repeats", ("pick-is-a-list-of-ip-and-port",), replies=spoil.repeated),
    Fault("other-metadata", ("pick-same-in-header-and-metadata",), replies=spoil.other_metadata),
    Fault("no-metadata", ("pick-same-in-header-and-metadata",), _B, replies=spoil.no_metadata),
    Fault(
        "no-header", ("pick-by-header", "pick-same-in-header-and-metadata"), replies=spoil.no_header
    ),
    Fault(
        "subset-unread",
        ("subset-nothing-eligible", "subset-restricts"),
        requests=spoil.subset_unread,
    ),
    Fault("pick-with-the-body", ("pick-in-the-right-reply",), replies=spoil.pick_with_the_body),
    Fault(
        "route-cache-always", ("no-pick-keeps-the-route-cache",), replies=spoil.route_cache(True)
    ),
    Fault("route-cache-never", ("pick-clears-the-route-cache",), replies=spoil.route_cache(False)),
    Fault(
        "answer-unheard", ("answer-headers-replied-to",), replies=spoil.silent("response_headers")
    ),
    Fault("answer-kept", ("answer-echoed-in-duplex",), replies=spoil.silent("response_body")),
    Fault("plain-errors", ("error-unknown-model", "error-bad-json"), replies=spoil.plain_text),
    Fault("no-content-type", ("error-unknown-model",), _B, replies=spoil.no_content_type),
    Fault("always-500", ("error-bad-json", "subset-empty"), replies=spoil.always_500),
    Fault(
        "dead-after-a-cancel", ("stream-cancelled-in-the-body",), requests=spoil.dead_after_a_cancel
    ),
    Fault("never-ready", ("health-readiness", "health-ext-proc"), _A),
)
"""Of these `early-ok-end` and `never-ready` are done by the server itself (`wrong_server`)."""
