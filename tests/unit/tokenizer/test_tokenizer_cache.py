"""What the cache keeps, and what leaves it first."""

from array import array

from aibrix_extproc.tokenizer.cache import OVERHEAD_BYTES, TokenCache


def ids(count: int) -> "array[int]":
    return array("I", range(count))


def entry_bytes(count: int) -> int:
    return OVERHEAD_BYTES + 4 * count


def test_what_was_put_is_found() -> None:
    cache = TokenCache(10_000)
    cache.put(b"a", ids(5), now=0)
    assert cache.get(b"a", now=1) == ids(5)
    assert cache.get(b"b", now=1) is None


def test_the_least_recently_used_leaves_first() -> None:
    cache = TokenCache(3 * entry_bytes(10))
    for key in (b"a", b"b", b"c"):
        cache.put(key, ids(10), now=0)
    cache.get(b"a", now=0)
    cache.put(b"d", ids(10), now=0)
    assert [key for key in (b"a", b"b", b"c", b"d") if cache.get(key, now=0)] == [b"a", b"c", b"d"]


def test_it_never_grows_past_its_limit() -> None:
    cache = TokenCache(5_000)
    for i in range(1000):
        cache.put(b"%d" % i, ids(i % 300), now=0)
        assert cache.bytes <= 5_000
    assert cache.bytes == sum(
        entry_bytes(i % 300) for i in range(1000) if cache.get(b"%d" % i, now=0) is not None
    )


def test_a_prompt_larger_than_the_limit_pushes_nothing_out() -> None:
    cache = TokenCache(entry_bytes(10))
    cache.put(b"small", ids(10), now=0)
    cache.put(b"large", ids(11), now=0)
    assert cache.get(b"small", now=0) is not None
    assert cache.get(b"large", now=0) is None


def test_a_limit_of_zero_switches_it_off() -> None:
    cache = TokenCache(0)
    cache.put(b"a", ids(0), now=0)
    assert (len(cache), cache.bytes) == (0, 0)


def test_putting_a_key_again_replaces_it_and_its_size() -> None:
    cache = TokenCache(10_000)
    cache.put(b"a", ids(100), now=0)
    cache.put(b"a", ids(3), now=0)
    assert cache.bytes == entry_bytes(3)


def test_what_is_old_is_asked_for_again() -> None:
    cache = TokenCache(10_000, max_age_s=60)
    cache.put(b"a", ids(3), now=0)
    assert cache.get(b"a", now=60) is not None
    assert cache.get(b"a", now=61) is None
    assert cache.bytes == 0


def test_clearing_leaves_nothing() -> None:
    cache = TokenCache(10_000)
    cache.put(b"a", ids(3), now=0)
    cache.clear()
    assert (cache.get(b"a", now=0), cache.bytes) == (None, 0)


def test_the_prompts_of_one_model_can_be_forgotten() -> None:
    cache = TokenCache(10_000)
    cache.put(b"a", array("I", [1]), 0.0, "one")
    cache.put(b"b", array("I", [2]), 0.0, "other")
    size = cache.bytes
    cache.drop_models({"one"})
    assert cache.get(b"a", 0.0) is None
    assert cache.get(b"b", 0.0) is not None
    assert cache.bytes == size // 2
