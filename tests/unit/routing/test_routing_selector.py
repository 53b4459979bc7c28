"""`external-filter` reads and means what Kubernetes' label selectors do."""

import contextlib
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aibrix_extproc.errors import BadFilter
from aibrix_extproc.routing.selector import (
    MAX_REQUIREMENTS,
    MAX_SELECTOR_BYTES,
    parse_selector,
)

LABELS = {"env": "prod", "tier": "gpu", "example.com/zone": "a", "empty": ""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "env=prod",
        "env==prod",
        " env = prod ",
        "env!=test",
        "env in (prod,test)",
        "env in(prod)",
        "env in ( test , prod )",
        "env notin (test)",
        "env",
        "!gone",
        "! gone",
        "env=prod,tier=gpu,!gone",
        "example.com/zone=a",
        "empty=",
        "empty in (,x)",
        "empty",
        "gone!=x",
        "gone notin (x,y)",
        "gone != ",
    ],
)
def test_these_match_the_labels(text: str) -> None:
    assert parse_selector(text).matches(LABELS)


@pytest.mark.parametrize(
    "text",
    [
        "env=test",
        "env!=prod",
        "env in (test)",
        "env notin (prod,test)",
        "!env",
        "gone",
        "gone=x",
        "gone=",
        "gone in (x,)",
        "env=prod,tier=cpu",
        "Env=prod",
    ],
)
def test_these_do_not_match_the_labels(text: str) -> None:
    assert not parse_selector(text).matches(LABELS)


@pytest.mark.parametrize("text", ["in=x", "in in (x)", "in in (in,x),in"])
def test_a_label_may_be_named_like_an_operator(text: str) -> None:
    assert parse_selector(text).matches({"in": "x"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (",", "',' stands where a label's name should be"),
        ("a=b,", "it ends where a label's name should be"),
        ("=b", "'=' stands where a label's name"),
        ("a b", "'b' stands where =, ==, !=, in or notin after 'a'"),
        ("a===b", "'=' stands where a value"),
        ("a=!b", "'!' stands where a value"),
        ("a=b c", "'c' stands where a comma after the condition on 'a'"),
        ("!a=b", "'=' stands where a comma"),
        ("a in b", "'b' stands where an opening parenthesis"),
        ("a in", "it ends where an opening parenthesis"),
        ("a in ()", "the set of values for 'a' is empty"),
        ("a in (b", "it ends where a comma or a closing parenthesis"),
        ("a in (b c)", "'c' stands where a comma or a closing parenthesis"),
        ("a in (b)) ", "')' stands where a comma"),
        ("a notin (b=c)", "'=' stands where a comma or a closing parenthesis"),
        ("a > 1", "'>' stands where"),
        ("-a=b", "'-a' is no label name"),
        ("a-=b", "'a-' is no label name"),
        ("x/y/z=b", "prefix that is no lower-case DNS name"),
        ("/a=b", "prefix that is no lower-case DNS name"),
        ("a/=b", "'a/' is no label name"),
        ("Example.com/a=b", "prefix that is no lower-case DNS name"),
        ("a=b/c", "'b/c' is no label value"),
        ("a=b-", "'b-' is no label value"),
        ("a=" + "b" * 64, "is no label value"),
        ("a" * 64, "is no label name"),
        ("a" * 254 + "/b", "prefix that is no lower-case DNS name"),
        ("ä=b", "'?' is no label name"),
        ("a=b\x00", "'b?' is no label value"),
        ("a=b\u00a0", "'b?' is no label value"),
    ],
)
def test_what_is_no_selector_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(BadFilter) as refused:
        parse_selector(text)
    assert reason in refused.value.message
    assert refused.value.status == 400


def test_names_and_values_of_the_greatest_length_are_taken() -> None:
    prefix, name = ".".join(["a" * 63] * 3), "b" * 63
    selector = parse_selector(f"{prefix}/{name}={'c' * 63}")
    assert selector.matches({f"{prefix}/{name}": "c" * 63})


def test_a_selector_that_is_too_long_is_refused() -> None:
    longest = "a" + " " * (MAX_SELECTOR_BYTES - 1)
    assert parse_selector(longest).matches({"a": ""})
    with pytest.raises(BadFilter, match="longer than 1024 bytes"):
        parse_selector(longest + " ")
    with pytest.raises(BadFilter, match="longer than 1024 bytes"):
        parse_selector("ä" * 600)


def test_a_selector_with_too_many_requirements_is_refused() -> None:
    parse_selector(",".join(["a"] * MAX_REQUIREMENTS))
    with pytest.raises(BadFilter, match="more than 32 requirements"):
        parse_selector(",".join(["a"] * (MAX_REQUIREMENTS + 1)))


Evaluator = Callable[[Mapping[str, str]], bool]

keys = st.sampled_from(["a", "b", "in", "x.y/c"])
values = st.sampled_from(["", "u", "v", "notin"])
space = st.sampled_from(["", " ", "\t "])


@st.composite
def requirements(draw: st.DrawFn) -> tuple[str, Evaluator]:
    """A condition as text, and the same as plain Python."""
    key, value, gap = draw(keys), draw(values), draw(space)
    chosen = draw(st.lists(values, min_size=1, max_size=3))
    if chosen == [""]:
        chosen = ["", ""]  # an empty set is an error, a set of nothing but the empty value is not
    listed = f"({gap}{','.join(chosen)}{gap})"
    return draw(
        st.sampled_from(
            [
                (f"{key}{gap}={gap}{value}", lambda labels: labels.get(key) == value),
                (f"{key}=={value}{gap}", lambda labels: labels.get(key) == value),
                (f"{key}{gap}!={gap}{value}", lambda labels: labels.get(key) != value),
                (f"{key} in {listed}", lambda labels: labels.get(key) in chosen),
                (f"{key} notin{listed}", lambda labels: labels.get(key) not in chosen),
                (f"{gap}{key}{gap}", lambda labels: key in labels),
                (f"!{gap}{key}", lambda labels: key not in labels),
            ]
        )
    )


@given(st.lists(requirements(), min_size=1, max_size=4), st.dictionaries(keys, values))
def test_a_selector_says_what_plain_python_says(
    conditions: list[tuple[str, Evaluator]], labels: dict[str, str]
) -> None:
    text = ",".join(text for text, _ in conditions)
    expected = all(evaluate(labels) for _, evaluate in conditions)
    assert parse_selector(text).matches(labels) is expected


@given(st.text(alphabet="ab/.-_=!(), in\té", max_size=30))
def test_any_text_is_either_a_selector_or_refused(text: str) -> None:
    with contextlib.suppress(BadFilter):
        parse_selector(text).matches({"a": "b"})
