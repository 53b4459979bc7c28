"""A sample says whether an engine reused what was predicted."""

from dataclasses import replace

import pytest

from aibrix_extproc.agreement.samples import (
    KEPT_SAMPLES,
    Compared,
    Predicted,
    Sample,
    Samples,
    compare,
)
from aibrix_extproc.agreement.usage import NoUsage, Usage

PREDICTED = Predicted("r1", "tiny", "default/a", 100, 64, tokens_known=True)


def result(found: Usage | NoUsage, other: bool = False, **changes: bool | int) -> Sample:
    return compare(replace(PREDICTED, **changes), found, "10.0.0.1:8000", is_other_pod=other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("cached", "expected", "difference"),
    [(64, Compared.EQUAL, 0), (96, Compared.MORE, -32), (0, Compared.LESS, 64)],
)
def test_predicted_and_actual_are_compared(
    cached: int, expected: Compared, difference: int
) -> None:
    sample = result(Usage(100, cached))
    assert (sample.result, sample.difference_tokens) == (expected, difference)


def test_another_number_of_prompt_tokens_means_another_tokenizer() -> None:
    sample = result(Usage(101, 64))
    assert (sample.result, sample.difference_tokens) == (Compared.LENGTH, None)


def test_what_another_pod_answered_says_nothing_of_the_prediction() -> None:
    sample = result(Usage(100, 0), other=True)
    assert (sample.result, sample.difference_tokens) == (Compared.OTHER_POD, None)


def test_without_tokens_there_was_no_prediction() -> None:
    assert result(Usage(100, 64), tokens_known=False).result is Compared.NO_TOKENS


def test_a_known_prefix_is_a_lower_bound() -> None:
    assert result(Usage(130, 96), is_prefix=True).result is Compared.PREFIX
    assert result(Usage(130, 64), is_prefix=True).result is Compared.PREFIX
    wrong = result(Usage(130, 16), is_prefix=True)
    assert (wrong.result, wrong.difference_tokens) == (Compared.LESS, 48)


def test_what_was_known_at_scheduling_is_compared_where_it_is_known() -> None:
    sample = result(Usage(130, 96), is_prefix=True, prompt_tokens=130, scheduled_tokens=96)
    assert (sample.result, sample.difference_tokens) == (Compared.EQUAL, 0)
    less = result(Usage(100, 64), scheduled_tokens=80)
    assert (less.result, less.difference_tokens) == (Compared.LESS, 16)
    other = result(Usage(131, 96), is_prefix=True, prompt_tokens=130, scheduled_tokens=96)
    assert other.result is Compared.LENGTH


def test_mean_differences_of_both_figures_are_told_by_cause() -> None:
    samples = Samples()
    samples.add(result(Usage(100, 64)))  # not followed: of no cause
    for cached in (80, 96):
        samples.add(result(Usage(100, cached), scheduled_tokens=96, cause="tail"))
    samples.add(result(Usage(100, 64), scheduled_tokens=64))
    samples.add(result(NoUsage.NOT_SENT, scheduled_tokens=64))
    assert samples.by_cause() == {
        "none": {"requests": 1, "decision_minus_engine": 0.0, "scheduling_minus_engine": 0.0},
        "tail": {"requests": 2, "decision_minus_engine": -24.0, "scheduling_minus_engine": 8.0},
    }


def test_an_answer_without_usage_keeps_its_reason() -> None:
    assert result(NoUsage.NO_DETAILS).result is NoUsage.NO_DETAILS


def test_the_page_has_the_last_samples_newest_first() -> None:
    samples = Samples()
    for number in range(KEPT_SAMPLES + 5):
        samples.add(
            replace(result(Usage(100, 64)), predicted=replace(PREDICTED, request_id=str(number)))
        )
    page = samples.page()
    assert len(page) == KEPT_SAMPLES
    assert page[0] == {
        "request_id": "104",
        "model": "tiny",
        "pod": "default/a",
        "prompt_tokens": 100,
        "matched_tokens": 64,
        "tokens_known": True,
        "is_prefix": False,
        "scheduled_tokens": None,
        "cause": None,
        "result": "equal",
        "actual_prompt_tokens": 100,
        "cached_tokens": 64,
        "predicted_minus_actual": 0,
        "served_by": "10.0.0.1:8000",
    }
