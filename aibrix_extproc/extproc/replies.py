"""Answers that never reach a pod: the one place that turns a `RequestError` into HTTP.

Owns the shape of an error (OpenAI's: `{"error": {"message", "type", "code", "param"}}`) and the
headers on it. Every value is made safe here before it becomes a header.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from aibrix_extproc.errors import RequestError
from aibrix_extproc.extproc.decides import Answered
from aibrix_extproc.extproc.messages import RESPONSE_ID, mutation, safe_value
from aibrix_extproc.extproc.stubs import aibrix_ext_proc_pb2 as pb

_JSON = "application/json"


def error_body(error: RequestError) -> bytes:
    """The JSON that a client of OpenAI's API expects of an error."""
    fields = {
        "message": error.message,
        "type": error.error_type,
        "code": error.code,
        "param": error.param,
    }
    return json.dumps({"error": fields}).encode()


def refusal(error: RequestError, request_id: str | None) -> pb.ProcessingResponse:
    """The immediate response for an error. `details` shows in Envoy's access log."""
    return _immediate(
        error.status,
        {"content-type": _JSON, **error.headers},
        error_body(error),
        request_id,
        f"aibrix_extproc_{error.reason}",
    )


def answer(answered: Answered, request_id: str | None) -> pb.ProcessingResponse:
    """The immediate response for a request that this server answers itself."""
    headers = {"content-type": answered.content_type}
    return _immediate(
        answered.status, headers, answered.body, request_id, "aibrix_extproc_answered"
    )


def _immediate(
    status: int, headers: Mapping[str, str], body: bytes, request_id: str | None, details: str
) -> pb.ProcessingResponse:
    named = {**headers, RESPONSE_ID: request_id} if request_id else headers
    safe = {name.lower(): safe_value(value) for name, value in named.items()}
    # The enum is open: any status of HTTP goes by its number.
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=pb.HttpStatus(code=cast(Any, status)),
            headers=mutation(safe),
            body=body,
            details=details,
        )
    )
