"""What may be expected of an exchange, by name.

Each matcher is given the exchange, its argument and the target, and raises `Mismatch` with what
was expected and what came, in words. Owns no message's form (`envoy_view`) and no vector.
"""

import ipaddress
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb
from tests.contract.picker.envoy_view import (
    DESTINATION,
    chunks,
    common_of,
    effective,
    metadata_of,
    mutations,
    pick_replies,
    picked,
    pod_headers,
    removed_by,
    sent_headers,
    set_by,
)
from tests.contract.picker.exchange import Exchange, Target


class Mismatch(AssertionError):
    """What was expected and what came."""


def check(exchange: Exchange, name: str, argument: Any, target: Target) -> None:
    """Raises Mismatch; KeyError where no matcher has this name."""
    MATCHERS[name](exchange, argument, target)


def _must(holds: bool, text: str) -> None:
    if not holds:
        raise Mismatch(text)


# -- the pick ---------------------------------------------------------------------------------


def _picked(exchange: Exchange, wanted: bool, _target: Target) -> None:
    value = picked(exchange)
    if wanted:
        _must(value is not None, f"expected a pick: no reply sets the header {DESTINATION}")
    else:
        _must(not pick_replies(exchange), f"expected no pick, and {DESTINATION} is {value!r}")


def _endpoints(exchange: Exchange) -> list[str]:
    value = picked(exchange)
    if value is None:
        raise Mismatch(f"expected a pick: no reply sets the header {DESTINATION}")
    return value.split(",")


def _is_list(exchange: Exchange, _argument: Any, _target: Target) -> None:
    found = _endpoints(exchange)
    for endpoint in found:
        _must(
            _is_endpoint(endpoint),
            f"expected ip:port, several divided by commas alone; {DESTINATION} has {endpoint!r}",
        )
    _must(len(set(found)) == len(found), f"expected each endpoint once; the list is {found}")


def _is_endpoint(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return bool(colon) and port.isdigit() and 0 < int(port) < 65_536


def _same_in_metadata(exchange: Exchange, _argument: Any, _target: Target) -> None:
    for kind, reply in pick_replies(exchange):
        header, metadata = set_by(mutations(reply)).get(DESTINATION), metadata_of(reply)
        _must(
            header == metadata,
            f"the header {DESTINATION} and the metadata envoy.lb/{DESTINATION} of the reply to "
            f"{kind} must say the same; the header says {header!r}, the metadata {metadata!r}",
        )
    _must(bool(pick_replies(exchange)), "expected a pick: no reply carries one")


def _among(exchange: Exchange, allowed: Sequence[str], _target: Target) -> None:
    found = _endpoints(exchange)
    others = [endpoint for endpoint in found if endpoint not in allowed]
    _must(not others, f"expected endpoints of {list(allowed)} alone; there are others: {others}")


def _in_one_reply(exchange: Exchange, _argument: Any, _target: Target) -> None:
    expected = "request_headers" if exchange.duplex or not exchange.request_body else "request_body"
    kinds = [kind for kind, _ in pick_replies(exchange)]
    found = ", ".join(kinds) or "no reply that Envoy takes it from"
    _must(kinds == [expected], f"expected the pick in the reply to {expected} alone; in {found}")


def _target_pod(exchange: Exchange, _argument: Any, _target: Target) -> None:
    first, value = _endpoints(exchange)[0], pod_headers(exchange).get("target-pod")
    _must(value == first, f"expected target-pod {first!r}, the first of the list; it is {value!r}")


def _route_cache(exchange: Exchange, _argument: Any, _target: Target) -> None:
    carrying = [id(reply) for _, reply in pick_replies(exchange)]
    for reply in exchange.got:
        common = common_of(reply)
        clears = common is not None and common.clear_route_cache
        kind = reply.WhichOneof("response")
        if id(reply) in carrying:
            _must(clears, f"the reply to {kind} carries the pick and does not clear_route_cache")
        else:
            _must(not clears, f"the reply to {kind} has no pick, and does clear_route_cache")


# -- headers ----------------------------------------------------------------------------------


def _steering_gone(exchange: Exchange, names: Sequence[str], _target: Target) -> None:
    """What the client sent under these names does not reach the router."""
    if exchange.immediate is not None:
        return  # the request goes nowhere
    before, after = sent_headers(exchange.request_head), pod_headers(exchange)
    for name in names:
        _must(name in before, f"the vector sends no {name}")
        _must(
            after.get(name) != before[name],
            f"the client's own {name}: {before[name]} reaches the router: no reply overwrites or "
            "removes it",
        )


def _stripped_in_every_reply(exchange: Exchange, names: Sequence[str], _target: Target) -> None:
    for kind, reply in effective(exchange):
        mutation = mutations(reply)
        touched = removed_by(mutation) | set(set_by(mutation))
        left = [name for name in names if name not in touched]
        _must(not left, f"the reply to {kind} neither sets nor removes {', '.join(left)}")


def _raw_only(exchange: Exchange, _argument: Any, _target: Target) -> None:
    for reply in exchange.got:
        for option in mutations(reply).set_headers:
            header = option.header
            _must(
                not header.value,
                f"the header {header.key} is set by value ({header.value!r}): Envoy reads "
                "raw_value alone, and makes an empty header of it",
            )
            _must(bool(header.raw_value), f"the header {header.key} is set without a raw_value")


_FORBIDDEN: Final = ("host", ":authority", ":method", ":scheme")


def _allowed_only(exchange: Exchange, _argument: Any, _target: Target) -> None:
    for reply in exchange.got:
        mutation = mutations(reply)
        bad = [n for n in set_by(mutation) if n in _FORBIDDEN or n.startswith("x-envoy-")]
        bad += [n for n in removed_by(mutation) if n == "host" or n.startswith(":")]
        _must(not bad, f"Envoy rejects a change of {', '.join(bad)}, and counts it as an error")


def _sets(exchange: Exchange, wanted: Mapping[str, Any], _target: Target) -> None:
    headers = pod_headers(exchange)
    for name, value in wanted.items():
        found = headers.get(name)
        _must(found == value, f"expected the pod to get {name}: {value}; it gets {found!r}")


def _told_client(exchange: Exchange, names: Sequence[str], _target: Target) -> None:
    told: set[str] = set()
    for reply in exchange.got:
        if reply.WhichOneof("response") in ("response_headers", "immediate_response"):
            told |= set(set_by(mutations(reply)))
    left = [name for name in names if name not in told]
    _must(not left, f"expected the client to be told {', '.join(left)}; it is told {sorted(told)}")


def _not_told_client(exchange: Exchange, names: Sequence[str], _target: Target) -> None:
    for reply in exchange.got:
        if reply.WhichOneof("response") in ("response_headers", "immediate_response"):
            told = [name for name in names if name in set_by(mutations(reply))]
            _must(not told, f"the client is told {', '.join(told)}")


# -- replies and bodies -----------------------------------------------------------------------


def _kinds(exchange: Exchange, wanted: Sequence[str], _target: Target) -> None:
    """The kinds of the replies, in order; pieces of one body count as one where they are
    streamed."""
    found: list[str] = []
    for reply in exchange.got:
        kind = reply.WhichOneof("response") or "nothing"
        common = common_of(reply)
        streamed = common is not None and common.body_mutation.HasField("streamed_response")
        if not (streamed and found and found[-1] == kind):
            found.append(kind)
    _must(found == list(wanted), f"expected replies to {', '.join(wanted)}; they are to {found}")


def _body_untouched(exchange: Exchange, _argument: Any, _target: Target) -> None:
    for reply in exchange.got:
        common = common_of(reply)
        if common is not None:
            kind = common.body_mutation.WhichOneof("mutation")
            _must(kind is None, f"the reply to {reply.WhichOneof('response')} changes the body")
            _must(common.status == 0, "CONTINUE_AND_REPLACE discards the client's body")


def _echo_framed(exchange: Exchange, limits: Mapping[str, int], _target: Target) -> None:
    """Pieces small enough, and the end once, on the last."""
    pieces = chunks(exchange)
    ends = [number for number, piece in enumerate(pieces, start=1) if piece.end_of_stream]
    expected = [] if exchange.has_trailers else [len(pieces)]
    _must(
        ends == expected,
        f"expected end_of_stream {'on no piece, for trailers follow' if not expected else 'once'}"
        f"{', on the last' if expected else ''}; of {len(pieces)} pieces it is on {ends or 'none'}",
    )
    for reply in exchange.got:
        if (limit := limits.get("message")) and reply.ByteSize() > limit:
            raise Mismatch(f"a message of {reply.ByteSize():,} bytes is above {limit:,}")
    for piece in pieces:
        if (limit := limits.get("chunk")) and len(piece.body) > limit:
            raise Mismatch(f"a piece of {len(piece.body):,} bytes is above {limit:,}")


def _echo_same(exchange: Exchange, _argument: Any, _target: Target) -> None:
    back = b"".join(piece.body for piece in chunks(exchange))
    _must(back == exchange.request_body, _difference(exchange.request_body, back))


def _answer_same(exchange: Exchange, _argument: Any, _target: Target) -> None:
    back = b"".join(piece.body for piece in chunks(exchange, "response_body"))
    _must(back == exchange.answer, _difference(exchange.answer, back))


def _difference(sent: bytes, back: bytes) -> str:
    pairs = zip(sent, back, strict=False)
    at = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(sent), len(back)))
    return (
        f"the body that went back is another: {len(sent):,} bytes were sent and {len(back):,} came "
        f"back, equal up to byte {at:,}"
    )


def _echo_whole(exchange: Exchange, fields: Sequence[str], _target: Target) -> None:
    """JSON with the client's own fields: a picker may write it anew, and must lose nothing."""
    back = b"".join(piece.body for piece in chunks(exchange))
    _must(bool(back), f"an empty body goes to the pod; {len(exchange.request_body):,} bytes came")
    try:
        found = json.loads(back)
    except ValueError:
        raise Mismatch(f"{len(back):,} bytes went back, which are no JSON any more") from None
    sent = json.loads(exchange.request_body)
    for name in fields:
        _must(found.get(name) == sent[name], f"the field {name!r} came back as another")


def _length_right(exchange: Exchange, _argument: Any, _target: Target) -> None:
    back = sum(len(piece.body) for piece in chunks(exchange))
    for _, reply in effective(exchange):
        length = set_by(mutations(reply)).get("content-length")
        _must(
            length is None or length == str(back),
            f"content-length is set to {length}, and the body that went back has {back} bytes",
        )


# -- the end ----------------------------------------------------------------------------------


def _no_early_ok(exchange: Exchange, _argument: Any, _target: Target) -> None:
    """In duplex an OK end before the echo is complete makes Envoy forward an empty body."""
    ended = any(piece.end_of_stream for piece in chunks(exchange))
    if exchange.immediate is None and not exchange.request_ended:
        _must(
            exchange.end != "OK",
            "the stream was ended with OK before the body was complete: Envoy forwards what it "
            "has, an empty or cut body; only an error status is safe",
        )
        _must(not ended, "the picker said the end of a body whose end never came")
    elif exchange.immediate is None and exchange.request_head is not None:
        told = ended or exchange.has_trailers or exchange.request_head.end_of_stream
        _must(told or exchange.end != "OK", "the stream was ended with OK before the whole echo")


def _ends(exchange: Exchange, wanted: str, _target: Target) -> None:
    found = exchange.end
    holds = (found == "OK") if wanted == "ok" else found not in (None, "OK")
    _must(holds, f"expected the stream to end with {wanted}; it ended with {found or 'nothing'}")


# -- answers of the picker --------------------------------------------------------------------


def _immediate(exchange: Exchange, wanted: Mapping[str, Any], _target: Target) -> None:
    answer = exchange.immediate
    if answer is None:
        raise Mismatch(f"expected an immediate response with status {wanted['status']}; none came")
    status = int(answer.status.code)
    _must(status == wanted["status"], f"expected status {wanted['status']}; it is {status}")
    headers = set_by(answer.headers)
    for name, value in wanted.get("headers", {}).items():
        found = headers.get(name)
        _must(found is not None, f"expected the header {name} on the answer; it has {headers}")
        _must(value in (None, found), f"expected {name}: {value}; it is {found!r}")
    if "error" in wanted:
        _openai_error(answer, wanted["error"])
    if "json" in wanted:
        found_json = json.loads(answer.body)
        for name, value in wanted["json"].items():
            _must(found_json.get(name) == value, f"expected {name}: {value!r} in {found_json}")


def _openai_error(answer: pb.ImmediateResponse, wanted: Mapping[str, Any]) -> None:
    kind = set_by(answer.headers).get("content-type")
    _must(kind == "application/json", f"expected content-type application/json; it is {kind!r}")
    try:
        error = json.loads(answer.body)["error"]
    except (ValueError, KeyError, TypeError):
        raise Mismatch(
            f"expected OpenAI's error object; the body is {answer.body[:200]!r}"
        ) from None
    missing = {"message", "type", "code", "param"} - set(error)
    _must(not missing, f"OpenAI's error object lacks {sorted(missing)}: {error}")
    _must(bool(error["message"]), "the error's message is empty")
    for name, value in wanted.items():
        if name == "mentions":
            _must(value in error["message"], f"expected {value!r} in {error['message']!r}")
        else:
            _must(error[name] == value, f"expected the error's {name} {value!r}: {error[name]!r}")


def _no_immediate(exchange: Exchange, _argument: Any, _target: Target) -> None:
    answer = exchange.immediate
    status = answer.status.code if answer is not None else 0
    _must(answer is None, f"expected the request to go on; the picker answered it: {status}")


Matcher = Callable[[Exchange, Any, Target], None]
MATCHERS: Final[Mapping[str, Matcher]] = {
    "picked": _picked,
    "pick_is_list": _is_list,
    "pick_same_in_metadata": _same_in_metadata,
    "pick_among": _among,
    "pick_in_one_reply": _in_one_reply,
    "target_pod_is_first": _target_pod,
    "route_cache_cleared_by_pick_alone": _route_cache,
    "steering_gone": _steering_gone,
    "stripped_in_every_reply": _stripped_in_every_reply,
    "raw_values_only": _raw_only,
    "allowed_headers_only": _allowed_only,
    "pod_gets": _sets,
    "client_gets": _told_client,
    "client_does_not_get": _not_told_client,
    "kinds": _kinds,
    "body_untouched": _body_untouched,
    "echo_framed": _echo_framed,
    "echo_same": _echo_same,
    "echo_whole": _echo_whole,
    "answer_same": _answer_same,
    "length_right": _length_right,
    "no_early_ok": _no_early_ok,
    "ends": _ends,
    "immediate": _immediate,
    "goes_on": _no_immediate,
}
"""Beside these `health` (`runner`)."""
