"""The order of sources: requests with sources in common begin alike, and everything is remembered within its bounds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from deployments.contracts import Passage, Source
from deployments.source_order import PrefixOrder

Order = Callable[[Sequence[Source]], Sequence[Source]]


def sources(names: Sequence[str]) -> list[Source]:
    """Sources by rank, named as passages."""
    return [Source(n, Passage(name, "d", f"text of {name}", 0.5)) for n, name in enumerate(names, start=1)]


def names(arranged: Sequence[Source]) -> str:
    return "".join(source.passage.id for source in arranged)


def ordered(order: PrefixOrder, wanted: Sequence[Source]) -> list[Source]:
    """The sources in the order in which they are sent, which is remembered."""
    arranged = order.order(wanted)
    order.record(arranged)
    return arranged


def arrange(order: PrefixOrder, wanted: Sequence[str]) -> str:
    return names(ordered(order, sources(wanted)))


REQUESTS = st.lists(st.permutations("abcdefgh").flatmap(lambda p: st.integers(0, 8).map(lambda n: p[:n])), max_size=20)


def test_the_first_request_keeps_its_ranks() -> None:
    assert arrange(PrefixOrder(100), "cab") == "cab"


def test_the_same_sources_come_in_the_same_order_whatever_their_ranks() -> None:
    order = PrefixOrder(100)
    assert arrange(order, "cab") == "cab"
    assert arrange(order, "abc") == "cab"
    assert arrange(order, "bca") == "cab"


def test_sources_in_common_come_first_and_the_others_by_rank() -> None:
    order = PrefixOrder(100)
    arrange(order, "abcd")
    assert arrange(order, "ycbxa") == "abcyx"


def test_a_request_with_nothing_in_common_keeps_its_ranks() -> None:
    order = PrefixOrder(100)
    arrange(order, "abcd")
    assert arrange(order, "zyx") == "zyx"


def test_the_longest_beginning_wins_over_the_most_used_one() -> None:
    order = PrefixOrder(100)
    arrange(order, "abc")
    for _ in range(3):
        arrange(order, "by")
    assert arrange(order, "bca") == "abc"


def test_of_equally_long_beginnings_the_most_used_wins() -> None:
    order = PrefixOrder(100)
    for wanted in ("ax", "by", "by", "az"):
        arrange(order, wanted)
    arrange(order, "bw")
    assert arrange(order, "ab") == "ba"


def test_a_source_whose_text_has_changed_is_another_one() -> None:
    order = PrefixOrder(100)
    first, second = sources("ab")
    order.record([first, second])
    changed = replace(first, passage=replace(first.passage, text="a new text"))
    assert names(order.order([second, changed])) == "ba"


def test_a_source_is_known_by_what_it_says_and_not_by_its_number() -> None:
    order = PrefixOrder(100)
    first, second = sources("ab")
    order.record([first, second])
    assert names(order.order([replace(second, number=7), replace(first, number=9)])) == "ab"


def test_ordering_alone_remembers_nothing() -> None:
    order = PrefixOrder(100)
    order.order(sources("ab"))
    assert len(order) == 0
    assert names(order.order(sources("ba"))) == "ba"


def test_what_was_used_least_recently_is_forgotten_first() -> None:
    order = PrefixOrder(4)
    arrange(order, "ab")
    arrange(order, "cd")
    arrange(order, "ab")
    arrange(order, "xy")
    assert arrange(order, "ba") == "ab"
    assert names(order.order(sources("dc"))) == "dc"


def test_a_request_with_more_sources_than_can_be_remembered_leaves_its_beginning() -> None:
    order = PrefixOrder(2)
    assert arrange(order, "abcd") == "abcd"
    assert len(order) == 2
    assert arrange(order, "dcba") == "abdc"


@given(REQUESTS, st.integers(1, 20))
def test_no_source_is_lost_or_doubled_and_no_more_is_remembered_than_allowed(
    requests: list[list[str]], max_nodes: int
) -> None:
    order = PrefixOrder(max_nodes)
    for wanted in requests:
        assert sorted(arrange(order, wanted)) == sorted(wanted)
        assert len(order) <= max_nodes


@given(REQUESTS)
def test_the_same_history_gives_the_same_orders(requests: list[list[str]]) -> None:
    one, other = PrefixOrder(15), PrefixOrder(15)
    assert [arrange(one, wanted) for wanted in requests] == [arrange(other, wanted) for wanted in requests]


@given(REQUESTS)
def test_a_request_seen_before_comes_in_the_order_it_had(requests: list[list[str]]) -> None:
    order = PrefixOrder(10_000)
    seen = {frozenset(wanted): arrange(order, wanted) for wanted in requests}
    for wanted, arranged in seen.items():
        assert names(order.order(sources(sorted(wanted)))) == arranged


def shared_share(requests: Sequence[Sequence[str]], arranged: Order) -> float:
    """Share of all sources that stand at the beginning of a prompt where an earlier prompt had the same ones."""
    seen: set[tuple[str, ...]] = set()
    shared = total = 0
    for wanted in requests:
        ids = [source.passage.id for source in arranged(sources(wanted))]
        beginnings = [tuple(ids[:n]) for n in range(1, len(ids) + 1)]
        shared += sum(beginning in seen for beginning in beginnings)
        total += len(ids)
        seen.update(beginnings)
    return shared / total if total else 0.0


def overlapping_requests(num_topics: int, passages_per_topic: int, num_unique: int, seed: int) -> list[list[str]]:
    """Requests of eight sources each: most from a topic's passages, the popular ones more often, in a random order."""
    rng = random.Random(seed)
    weights = [1 / (1 + place) for place in range(passages_per_topic)]
    requests: list[list[str]] = []
    for number in range(300):
        topic = rng.randrange(num_topics)
        found: set[str] = set()
        while len(found) < 8 - num_unique:
            found.add(f"{topic}/{rng.choices(range(passages_per_topic), weights)[0]}")
        request = sorted(found) + [f"unique/{number}/{n}" for n in range(num_unique)]
        rng.shuffle(request)
        requests.append(request)
    return requests


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize(("num_topics", "passages_per_topic", "num_unique"), [(1, 8, 0), (5, 12, 0), (20, 10, 2)])
def test_overlapping_requests_share_more_of_their_beginnings_than_by_rank(
    num_topics: int, passages_per_topic: int, num_unique: int, seed: int
) -> None:
    requests = overlapping_requests(num_topics, passages_per_topic, num_unique, seed)
    by_rank = shared_share(requests, lambda ranked: ranked)
    arranged = shared_share(requests, partial(ordered, PrefixOrder(4096)))
    assert arranged > 2 * by_rank
    if not num_unique:
        assert arranged > 0.5


def test_requests_without_anything_in_common_share_nothing_either_way() -> None:
    requests = [[f"{number}/{place}" for place in range(8)] for number in range(50)]
    assert shared_share(requests, partial(ordered, PrefixOrder(4096))) == 0.0
