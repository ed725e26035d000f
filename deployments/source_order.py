"""The order of sources in a prompt, chosen so that requests with sources in common begin alike.

A language model's engine keeps what it computed for the beginning of a prompt and skips that part in the next prompt
that begins with the same tokens. Sources by rank rarely begin alike, even where two requests found the same ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from deployments.contracts import Source

# Places of the tree that one request may look at. The first ones follow the most used branch to its end.
MAX_VISITS = 128


class _Node:
    """A source at its place in some request: which sources came before it is what its parents say."""

    __slots__ = ("children", "key", "last_used", "parent", "uses")

    def __init__(self, key: int, parent: _Node | None) -> None:
        self.key = key
        self.parent = parent
        self.children: dict[int, _Node] = {}
        self.uses = 0
        self.last_used = 0


class PrefixOrder:
    """Remembers the sequences of sources sent lately, as a tree of at most `max_nodes` places, and orders new ones.

    The places used least recently are forgotten first. The same requests in the same order always give the same result.
    """

    def __init__(self, max_nodes: int) -> None:
        self._max_nodes = max_nodes
        self._root = _Node(0, None)
        self._nodes: OrderedDict[_Node, None] = OrderedDict()  # least recently used first
        self._clock = 0

    def __len__(self) -> int:
        """Places remembered."""
        return len(self._nodes)

    def order(self, sources: Sequence[Source]) -> list[Source]:
        """The longest beginning of a remembered sequence that these sources can form, then the others as given.

        Of beginnings of the same length, the most used, then the most recent one. Remembers nothing. Numbers stay as
        they are: number the sources afterwards.
        """
        first = self._longest_beginning([_key(source) for source in sources])
        rest = (place for place in range(len(sources)) if place not in first)
        return [sources[place] for place in (*first, *rest)]

    def record(self, sources: Sequence[Source]) -> None:
        """Remember that a prompt was sent with `sources` in this order."""
        self._clock += 1
        path: list[_Node] = []
        node = self._root
        for source in sources:
            key = _key(source)
            node = node.children.setdefault(key, _Node(key, node))
            node.uses += 1
            node.last_used = self._clock
            path.append(node)
        # The deepest first: so no place is ever forgotten before those that come after it.
        for node in reversed(path):
            self._nodes[node] = None
            self._nodes.move_to_end(node)
        while len(self._nodes) > self._max_nodes:
            forgotten, _ = self._nodes.popitem(last=False)
            assert forgotten.parent is not None, "the root is not among the nodes"
            del forgotten.parent.children[forgotten.key]

    def _longest_beginning(self, keys: Sequence[int]) -> tuple[int, ...]:
        """Indices into `keys`."""
        best: tuple[int, ...] = ()
        best_value = (0, 0, 0)
        ahead = [(self._root, best)]
        visits = 0
        while ahead and visits < MAX_VISITS:
            node, taken = ahead.pop()
            visits += 1
            value = (len(taken), node.uses, node.last_used)
            if value > best_value:
                best, best_value = taken, value
            steps = [
                (child, (*taken, place))
                for place, key in enumerate(keys)
                if place not in taken and (child := node.children.get(key))
            ]
            # Taken from the end: the most used first.
            ahead += sorted(steps, key=lambda step: (step[0].uses, step[0].last_used))
        return best


def _key(source: Source) -> int:
    """The same for sources that read the same, whatever their number."""
    return hash((tuple(part.id for part in source.stored()), source.passage.title, source.passage.text))
