"""Every row of "What a client sees" that is an error: status, headers, and OpenAI's JSON."""

import json

import pytest

from aibrix_extproc.errors import (
    BadBody,
    BadFilter,
    BodyModeUnsupported,
    BodyTooLarge,
    ModelNotFound,
    NoCandidate,
    NoModelInRequest,
    NoPodReady,
    RequestError,
    TooManyStreams,
    UnknownStrategy,
)
from aibrix_extproc.extproc.decides import Answered
from aibrix_extproc.extproc.replies import answer, refusal
from tests.unit.extproc.extproc_fixtures import set_headers

ROWS: list[tuple[RequestError, int, str, dict[str, str]]] = [
    (ModelNotFound("gpt"), 404, "model_not_found", {"x-error-no-model-backends": "gpt"}),
    (NoPodReady("llama"), 503, "service_unavailable", {"x-error-no-model-backends": "true"}),
    (
        UnknownStrategy("fastest", ("random",)),
        400,
        "invalid_routing_strategy",
        {"x-error-invalid-routing-strategy": "fastest"},
    ),
    (BadFilter("no ="), 400, "invalid_external_filter", {"x-error-routing": "true"}),
    (BadBody("no"), 400, "invalid_request_body", {"x-error-request-body-processing": "true"}),
    (
        NoModelInRequest(),
        400,
        "no_model_in_request",
        {"x-error-request-body-processing": "true", "x-error-no-model-in-request": "true"},
    ),
    (NoCandidate("none"), 503, "no_candidate", {"x-error-routing": "true"}),
    (BodyTooLarge(5), 413, "request_too_large", {"x-error-request-body-processing": "true"}),
    (TooManyStreams(5), 429, "too_many_requests", {"retry-after": "1"}),
    (BodyModeUnsupported("no"), 500, "body_mode_unsupported", {}),
]


@pytest.mark.parametrize(
    ("error", "status", "code", "headers"), ROWS, ids=[type(row[0]).__name__ for row in ROWS]
)
def test_an_error_becomes_openais_json_with_its_headers(
    error: RequestError, status: int, code: str, headers: dict[str, str]
) -> None:
    immediate = refusal(error, "req-1").immediate_response
    assert immediate.status.code == status
    assert set_headers(immediate.headers) == {
        "content-type": "application/json",
        "request-id": "req-1",
        **headers,
    }
    fields = json.loads(immediate.body)["error"]
    assert list(fields) == ["message", "type", "code", "param"]
    assert fields["message"] == error.message
    assert fields["type"] == error.error_type
    assert fields["code"] == code
    assert fields["param"] == error.param
    assert immediate.details == f"aibrix_extproc_{error.reason}"


def test_what_a_client_sent_cannot_break_a_header() -> None:
    error = ModelNotFound("a\r\nset-cookie: b=c\x00ü" + "x" * 500)
    value = set_headers(refusal(error, "r").immediate_response.headers)["x-error-no-model-backends"]
    assert value.isascii()
    assert value.isprintable()
    assert len(value) <= 128


def test_no_error_header_passes_unchecked() -> None:
    error = BadBody("no")
    error.headers = {"X-Error": "a\r\nb"}
    assert set_headers(refusal(error, None).immediate_response.headers) == {
        "content-type": "application/json",
        "x-error": "a??b",
    }


def test_an_answer_keeps_its_content_type_and_any_status() -> None:
    immediate = answer(Answered(418, b"tea", "text/plain"), None).immediate_response
    assert immediate.status.code == 418
    assert immediate.body == b"tea"
    assert set_headers(immediate.headers) == {"content-type": "text/plain"}
