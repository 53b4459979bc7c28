"""When a source could begin one more request: what it was sent, and how fast it was seen to work.

Owns an account of each source's prefills, in the order in which they were sent, and the pace at
which they are done. `now` is seconds of any clock that does not go back. It knows no candidate, no
stream and no limit: what to make of a delay is `admission`'s business. One thread's, the event
loop's.

An engine computes prompts in the order in which they come. So the beginning of an answer tells that
all that was sent before it is computed too, and between two such moments the account runs on at the
pace that was measured. Where an answer is overdue by that account, something else holds it up (the
batch or the KV cache is full, others send too, the engine stands still): whoever comes next waits
for as long at least.
"""

from collections import deque
from enum import IntEnum
from typing import Final

import msgspec

REQUEST_TOKENS: Final = 256
"""What a request costs beside the tokens of its prompt, in tokens: its part of a step."""

FASTEST_TOKENS_PER_S: Final = 200_000.0
"""No engine is faster. It stands for a pace that is not known yet, so that nobody is kept from a
source of which nothing was seen, and bounds one whose answers begin before prompts are computed."""

SLOWEST_TOKENS_PER_S: Final = 1.0

_ENOUGH: Final = 3
"""Prefills seen, before a pace counts."""
_KEEP: Final = 0.95
"""Of what was seen before, with each prefill more: some twenty of them make the pace."""
_STEP_S: Final = 0.01
"""Answers that begin within less were computed in one step, and count as one prefill."""


class _State(IntEnum):
    WAITING = 0
    OVER = 1


class Work(msgspec.Struct, eq=False, gc=False):
    """One prefill: handed out by `Pace.sent`, given back to it, opaque to its holder."""

    source: int
    group: str
    tokens: int
    end: int
    """Of all that was ever sent to the source, in tokens, with this."""
    left: float
    """How much had been called off by then."""
    sent_s: float
    due_s: float
    """When its answer should begin, by the account of then."""
    is_seen: bool
    state: _State = _State.WAITING


class _Rate:
    """Tokens and the time that they took, the older the less."""

    __slots__ = ("seconds", "seen", "tokens")

    def __init__(self) -> None:
        self.tokens = self.seconds = 0.0
        self.seen = 0

    def add(self, tokens: float, seconds: float) -> None:
        if seconds >= _STEP_S:
            self.tokens *= _KEEP
            self.seconds *= _KEEP
        self.tokens += tokens
        self.seconds += seconds
        self.seen += 1

    def value(self) -> float | None:
        """Tokens in a second; None until enough was seen."""
        if self.seen < _ENOUGH:
            return None
        if self.tokens >= FASTEST_TOKENS_PER_S * self.seconds:
            return FASTEST_TOKENS_PER_S
        return max(SLOWEST_TOKENS_PER_S, self.tokens / self.seconds)


class _Account:
    """What one source was sent, by position: the sum of all tokens up to there."""

    __slots__ = (
        "as_of_s",
        "done",
        "gone",
        "is_first_known",
        "left",
        "rate",
        "seen_at_s",
        "seen_done",
        "sent",
        "unseen_end",
        "waiting",
    )

    def __init__(self, now: float) -> None:
        self.sent = 0
        self.left = 0.0
        """Tokens called off behind one that waits."""
        self.gone: list[tuple[int, float]] = []
        """The same since something was last seen to be done: up to where each lay, and how much."""
        self.done = 0.0
        """By account, at `as_of_s`."""
        self.as_of_s = now
        self.seen_done = 0
        """Up to where it was seen to be done, or known to be idle; and when."""
        self.seen_at_s = now
        self.is_first_known = True
        """What follows `seen_done` began at `seen_at_s`, as far as is known."""
        self.unseen_end = 0
        """Up to here lies something whose beginning nobody sees."""
        self.waiting: deque[Work] = deque()
        """Those whose beginning will be seen, in order."""
        self.rate = _Rate()

    def oldest(self) -> Work | None:
        """The first whose answer has not begun, and none that was sent after it."""
        waiting = self.waiting
        while waiting and (waiting[0].state or waiting[0].end <= self.seen_done):
            waiting.popleft()
        return waiting[0] if waiting else None

    def done_by(self, now: float, pace: float, oldest: Work | None) -> float:
        """Up to where it should have come."""
        done = self.done + pace * (now - self.as_of_s)
        if oldest is not None:  # which is not done, and what left after it was not computed
            done = min(done, oldest.end + self.left - oldest.left)
        return min(done, self.sent)

    def settle(self, done: float, now: float) -> None:
        self.done, self.as_of_s = min(done, self.sent), now

    def see(self, done: int, now: float) -> None:
        """All up to there is done now, or nothing before it is left to do."""
        self.seen_done, self.seen_at_s = done, now
        self.gone = [one for one in self.gone if one[0] > done]


class Pace:
    """The accounts of all sources. `group`: sources of one model, which are alike until known."""

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}
        self._groups: dict[str, _Rate] = {}
        self._sees_beginnings = False
        """Some answer was seen to begin: else none may be called late (an Envoy that does not show
        response headers)."""

    def sent(
        self, source: int, group: str, prefill_tokens: int, now: float, *, is_seen: bool
    ) -> Work:
        """A request was sent. `is_seen`: the beginning of its answer tells that it is computed."""
        account = self._accounts.get(source)
        if account is None:
            account = self._accounts[source] = _Account(now)
        pace = self.tokens_per_s(source, group)
        oldest = account.oldest()
        done = account.done_by(now, pace, oldest)
        delay_s = self._delay_s(account, done, pace, oldest, now)
        account.settle(done, now)
        tokens = prefill_tokens + REQUEST_TOKENS
        before = account.sent
        account.sent += tokens
        work = Work(
            source=source,
            group=group,
            tokens=tokens,
            end=account.sent,
            left=account.left,
            sent_s=now,
            due_s=now + delay_s + tokens / pace,
            is_seen=is_seen,
        )
        if not is_seen:
            account.unseen_end = account.sent
            return work
        if oldest is None:
            # It begins at once, unless something that nobody sees is before it.
            account.is_first_known = account.unseen_end <= account.seen_done
            account.see(before, now)
        account.waiting.append(work)
        return work

    def began(self, work: Work, now: float, *, is_computed: bool = True) -> None:
        """Its answer has begun. `is_computed`: it is no error of the engine's, and of the source
        that it was sent to."""
        account = self._accounts.get(work.source)
        if work.state or account is None:
            return
        if not is_computed:
            self._call_off(account, work, now)
            return
        self._sees_beginnings = self._sees_beginnings or work.is_seen
        pace = self.tokens_per_s(work.source, work.group)
        done = account.done_by(now, pace, account.oldest())
        work.state = _State.OVER
        if work.is_seen and work.end > account.seen_done:
            if account.is_first_known:
                self._learn(account, work, now)
            account.is_first_known = True  # the next one waits already, or finds it idle
            account.see(work.end, now)
        elif work.end == account.unseen_end:
            account.unseen_end = 0
        account.settle(max(done, work.end + account.left - work.left), now)

    def ended(self, work: Work, now: float) -> None:
        """The request is over. Where its answer had not begun, it is called off."""
        account = self._accounts.get(work.source)
        if work.state or account is None:
            return
        if work.is_seen:
            self._call_off(account, work, now)
        else:
            self.began(work, now)

    def delay_s(self, source: int, group: str, now: float) -> float:
        """Until the source could begin one more request: what is before it, and by how much that
        is late. 0 for one that was sent nothing."""
        account = self._accounts.get(source)
        if account is None:
            return 0.0
        pace, oldest = self.tokens_per_s(source, group), account.oldest()
        done = account.done_by(now, pace, oldest)
        return self._delay_s(account, done, pace, oldest, now)

    def tokens_per_s(self, source: int, group: str) -> float:
        """The pace of a source; that of its group until enough was seen of it; else the fastest."""
        account = self._accounts.get(source)
        own = account.rate.value() if account is not None else None
        if own is not None:
            return own
        shared = self._groups.get(group)
        return (shared.value() if shared is not None else None) or FASTEST_TOKENS_PER_S

    def is_beyond_belief(self, source: int) -> bool:
        """Its answers begin sooner than any engine could compute their prompts."""
        account = self._accounts.get(source)
        return account is not None and account.rate.value() == FASTEST_TOKENS_PER_S

    def forget(self, source: int) -> None:
        """The source was removed."""
        self._accounts.pop(source, None)

    def _delay_s(
        self, account: _Account, done: float, pace: float, oldest: Work | None, now: float
    ) -> float:
        overdue_s = 0.0
        if oldest is not None and self._sees_beginnings:
            overdue_s = max(0.0, now - oldest.due_s)
        return (account.sent - done) / pace + overdue_s

    def _learn(self, account: _Account, work: Work, now: float) -> None:
        """All between what was last seen to be done and the end of this took until now."""
        gone = sum(tokens for end, tokens in account.gone if end <= work.end)
        tokens = work.end - account.seen_done - gone
        seconds = now - account.seen_at_s
        account.rate.add(tokens, seconds)
        self._groups.setdefault(work.group, _Rate()).add(tokens, seconds)

    def _call_off(self, account: _Account, work: Work, now: float) -> None:
        """It left before it was computed: nobody need wait for what is left of it."""
        oldest = account.oldest()
        work.state = _State.OVER
        if work.end <= account.seen_done:
            return
        pace = self.tokens_per_s(work.source, work.group)
        done = account.done_by(now, pace, oldest)
        rest = min(work.tokens, max(0.0, work.end + account.left - work.left - done))
        account.gone.append((work.end, rest))
        if work is not oldest:
            account.left += rest
        account.settle(done + rest, now)
