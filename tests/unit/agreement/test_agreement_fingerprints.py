"""Pods that make other tokens of one text are found and named."""

from array import array

from aibrix_extproc.agreement.fingerprints import Difference, Fingerprint, Fingerprints, digest

A, B = digest(array("I", [1, 2, 3])), digest(array("I", [1, 2, 4]))


def known(**pods: Fingerprint) -> Fingerprints:
    found = Fingerprints()
    for who, one in pods.items():
        found.learn("tiny", who, one)
    return found


def test_equal_ids_have_one_name_and_others_another() -> None:
    assert digest(array("I", [1, 2, 3])) == A != B


def test_pods_that_agree_are_not_named() -> None:
    found = known(a=Fingerprint(A, A), b=Fingerprint(A, A))
    assert found.difference("tiny") is None
    assert len(found.versions("tiny")) == 1


def test_the_pod_that_differs_from_most_is_named() -> None:
    found = known(a=Fingerprint(A, A), b=Fingerprint(B, B), c=Fingerprint(A, A))
    assert found.difference("tiny") == Difference("text", ("b",), ("a", "c"))


def test_a_template_alone_is_told_from_a_tokenizer() -> None:
    found = known(a=Fingerprint(A, A), b=Fingerprint(A, B), c=Fingerprint(A, B))
    assert found.difference("tiny") == Difference("chat", ("a",), ("b", "c"))


def test_of_two_halves_one_is_named_always_the_same() -> None:
    forth, back = (
        known(a=Fingerprint(A, A), b=Fingerprint(B, B)),
        known(b=Fingerprint(B, B), a=Fingerprint(A, A)),
    )
    assert forth.difference("tiny") == back.difference("tiny")
    assert forth.difference("tiny") == Difference("text", ("b",), ("a",))


def test_what_a_pod_would_not_tokenize_counts_for_nothing() -> None:
    found = known(a=Fingerprint(A, None), b=Fingerprint(A, B), c=Fingerprint(None, None))
    assert found.difference("tiny") is None


def test_a_pod_that_changed_is_noticed() -> None:
    found = known(a=Fingerprint(A, A))
    assert not found.learn("tiny", "a", Fingerprint(A, A))
    assert not found.learn("tiny", "b", Fingerprint(B, B))
    assert found.learn("tiny", "a", Fingerprint(B, B))
    assert found.difference("tiny") is None


def test_a_pod_that_is_gone_is_forgotten() -> None:
    found = known(a=Fingerprint(A, A), b=Fingerprint(B, B))
    found.forget("tiny", "b")
    assert found.difference("tiny") is None
    found.forget("tiny", "a")
    found.forget("tiny", "a")
    assert list(found.models()) == []
    assert found.page("tiny") == {}
