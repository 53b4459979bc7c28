"""What a client may be told, and what of its own words is echoed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc import errors


@given(st.text(max_size=400))
def test_what_is_echoed_is_printable_and_bounded(text: str) -> None:
    shown = errors.printable(text)
    assert len(shown) <= errors.ECHO_LIMIT_BYTES
    assert all(" " <= c <= "~" for c in shown)


@given(st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=128))
def test_a_plain_name_is_echoed_as_it_is(text: str) -> None:
    assert errors.printable(text) == text


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (errors.ModelNotFound("m"), 404, {"x-error-no-model-backends": "m"}),
        (errors.NoPodReady("m"), 503, {"x-error-no-model-backends": "true"}),
        (errors.UnknownStrategy("s", ("a",)), 400, {"x-error-invalid-routing-strategy": "s"}),
        (errors.BadFilter("why"), 400, {"x-error-routing": "true"}),
        (errors.BadBody("why"), 400, {"x-error-request-body-processing": "true"}),
        (errors.NoCandidate("why"), 503, {"x-error-routing": "true"}),
        (errors.BodyTooLarge(9), 413, {"x-error-request-body-processing": "true"}),
        (errors.TooManyStreams(9, 2), 429, {"retry-after": "2"}),
    ],
)
def test_each_error_has_its_status_and_headers(
    error: errors.RequestError, status: int, headers: dict[str, str]
) -> None:
    assert error.status == status
    assert dict(error.headers) == headers


def test_a_missing_model_is_told_by_two_headers() -> None:
    assert dict(errors.NoModelInRequest().headers) == {
        "x-error-request-body-processing": "true",
        "x-error-no-model-in-request": "true",
    }


def test_reasons_are_distinct() -> None:
    kinds = errors.RequestError.__subclasses__()
    assert len({kind.reason for kind in kinds}) == len(kinds)
