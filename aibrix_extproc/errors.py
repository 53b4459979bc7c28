"""The one hierarchy of errors.

`RequestError` and its children are what a client may be told; `extproc.replies` is the one
place that turns them into an HTTP reply. `SettingsError` stops the start with exit code 2.
This module knows no Envoy message and no metric.
"""

from collections.abc import Mapping
from typing import ClassVar

ECHO_LIMIT_BYTES = 128


def printable(text: str, limit_bytes: int = ECHO_LIMIT_BYTES) -> str:
    """What may be echoed of a client's text: printable ASCII, at most `limit_bytes` long.

    Anything else becomes `?`, so that a name can stand in a header value.
    """
    clean = "".join(c if " " <= c <= "~" else "?" for c in text[: limit_bytes + 1])
    return clean if len(clean) <= limit_bytes else clean[: limit_bytes - 3] + "..."


class ExtprocError(Exception):
    """The root: every error that this project raises on purpose."""


class SettingsError(ExtprocError):
    """A variable or file that cannot be used; the message names it and says what to write."""


class RequestError(ExtprocError):
    """A request that gets an answer from this server and never reaches a pod.

    The message is for the client: it says what to do. `headers` are set on the reply beside
    the content type.
    """

    status: ClassVar[int]
    error_type: ClassVar[str]
    code: ClassVar[str]
    reason: ClassVar[str]
    """The label value of this error in metrics and logs."""
    model_label: str = "unknown"
    """The model in metrics: a known one, or `unknown`, so that no client can add a series."""

    def __init__(
        self, message: str, *, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.headers: Mapping[str, str] = dict(headers or {})


class ModelNotFound(RequestError):
    """No pod, ready or not, serves the model that the request names."""

    status = 404
    error_type = "invalid_request_error"
    code = "model_not_found"
    reason = "model_not_found"

    def __init__(self, model: str) -> None:
        name = printable(model)
        super().__init__(
            f"The model '{name}' is not served here. GET /v1/models lists those that are.",
            param="model",
            headers={"x-error-no-model-backends": name},
        )


class NoPodReady(RequestError):
    """The model is known, but none of its pods is ready."""

    status = 503
    error_type = "service_unavailable"
    code = "service_unavailable"
    reason = "no_pod_ready"

    def __init__(self, model: str) -> None:
        super().__init__(
            f"No pod of the model '{printable(model)}' is ready. Try again shortly.",
            headers={"x-error-no-model-backends": "true"},
        )


class UnknownStrategy(RequestError):
    """The header `routing-strategy` names a strategy that does not exist."""

    status = 400
    error_type = "invalid_request_error"
    code = "invalid_routing_strategy"
    reason = "unknown_strategy"

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        shown = printable(name)
        super().__init__(
            f"The routing strategy '{shown}' does not exist. Use one of: {', '.join(known)}; "
            "or leave the header out.",
            param="routing-strategy",
            headers={"x-error-invalid-routing-strategy": shown},
        )


class BadFilter(RequestError):
    """The header `external-filter` is no label selector."""

    status = 400
    error_type = "invalid_request_error"
    code = "invalid_external_filter"
    reason = "bad_filter"

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The header external-filter is not a label selector: {why}. "
            "Write for example: a=b,c!=d,e in (f,g).",
            param="external-filter",
            headers={"x-error-routing": "true"},
        )


class BadBody(RequestError):
    """The body is not JSON, or a field that routing needs has the wrong type."""

    status = 400
    error_type = "invalid_request_error"
    code = "invalid_request_body"
    reason = "bad_body"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, headers={"x-error-request-body-processing": "true"})


class NoModelInRequest(RequestError):
    """The body names no model."""

    status = 400
    error_type = "invalid_request_error"
    code = "no_model_in_request"
    reason = "no_model"

    def __init__(self) -> None:
        super().__init__(
            "The request names no model: set the field 'model' to one that GET /v1/models lists.",
            param="model",
            headers={
                "x-error-request-body-processing": "true",
                "x-error-no-model-in-request": "true",
            },
        )


class NoCandidate(RequestError):
    """Pods are ready, but the filter or the subset hint of the request leaves none."""

    status = 503
    error_type = "service_unavailable"
    code = "no_candidate"
    reason = "no_candidate"

    def __init__(self, message: str) -> None:
        super().__init__(message, headers={"x-error-routing": "true"})


class BodyTooLarge(RequestError):
    """The body is above AIBRIX_EXTPROC_MAX_BODY_BYTES."""

    status = 413
    error_type = "invalid_request_error"
    code = "request_too_large"
    reason = "body_too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(
            f"The request body is larger than {limit_bytes} bytes. Send a shorter prompt, or ask "
            "the operator to raise AIBRIX_EXTPROC_MAX_BODY_BYTES.",
            headers={"x-error-request-body-processing": "true"},
        )


class TooManyStreams(RequestError):
    """More requests are open than AIBRIX_EXTPROC_MAX_STREAMS allows."""

    status = 429
    error_type = "rate_limit_error"
    code = "too_many_requests"
    reason = "too_many_streams"

    def __init__(self, limit: int, retry_after_s: int = 1) -> None:
        super().__init__(
            f"{limit} requests are open here already. Try again in {retry_after_s} s.",
            headers={"retry-after": str(retry_after_s)},
        )


class Overloaded(RequestError):
    """No candidate could begin the request within AIBRIX_EXTPROC_MAX_START_DELAY."""

    status = 429
    error_type = "rate_limit_error"
    code = "overloaded"
    reason = "overload"

    def __init__(self, model: str, limit_s: float, retry_after_s: int) -> None:
        super().__init__(
            f"The pods of the model '{printable(model)}' are busy: none that may serve this "
            f"request could begin within {limit_s:g} s. Try again in {retry_after_s} s.",
            headers={"retry-after": str(retry_after_s)},
        )
        self.model_label = model


class BodyModeUnsupported(RequestError):
    """Envoy's processing mode is one that this server cannot answer safely."""

    status = 500
    error_type = "server_error"
    code = "body_mode_unsupported"
    reason = "body_mode"
