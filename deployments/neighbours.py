"""Neighbours: chunks that follow each other in their document, found apart from each other and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from msgspec.structs import replace

from deployments.contracts import Passage, Source

_Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Joining:
    """What a passage would do to the runs: touch `num_runs` of them (at most 2) and add `text`, which none has yet."""

    num_runs: int
    text: str


class Runs:
    """Passages, best first, as runs of neighbours; with `merge` off, each is a run of its own."""

    def __init__(self, merge: bool) -> None:
        self._merge = merge
        self._passages: list[Passage] = []
        self._by_place: dict[_Place, Passage] = {}
        self._num_seams = 0

    def __len__(self) -> int:
        return len(self._passages) - self._num_seams

    def joining(self, passage: Passage) -> Joining:
        """What would become of `passage` if it was added."""
        if not self._merge or _place(passage) in self._by_place:
            return Joining(0, passage.text)
        before, after = self._before(passage), self._after(passage)
        start = len(_shared(before, passage)) if before else 0
        end = len(passage.text) - (len(_shared(passage, after)) if after else 0)
        return Joining((before is not None) + (after is not None), passage.text[start:end])

    def add(self, passage: Passage) -> None:
        """Add a passage that is not better than those added before."""
        self._num_seams += self.joining(passage).num_runs
        self._passages.append(passage)
        self._by_place.setdefault(_place(passage), passage)

    def sources(self) -> list[Source]:
        """One source per run, at the place of its best passage. They are not numbered yet: all are number 0."""
        sources: list[Source] = []
        merged: set[int] = set()
        for passage in self._passages:
            if id(passage) not in merged:
                run = self._run_of(passage)
                merged.update(map(id, run))
                sources.append(_source(run))
        return sources

    def _run_of(self, passage: Passage) -> list[Passage]:
        """The passages around `passage`, in the order of their document."""
        if not self._merge or self._by_place[_place(passage)] is not passage:
            return [passage]
        run = [passage]
        while before := self._before(run[0]):
            run.insert(0, before)
        while after := self._after(run[-1]):
            run.append(after)
        return run

    def _before(self, passage: Passage) -> Passage | None:
        before = self._by_place.get((passage.document_id, passage.position - 1))
        return before if before and _continues(before, passage) else None

    def _after(self, passage: Passage) -> Passage | None:
        after = self._by_place.get((passage.document_id, passage.position + 1))
        return after if after and _continues(passage, after) else None


def _place(passage: Passage) -> _Place:
    return passage.document_id, passage.position


def _continues(before: Passage, after: Passage) -> bool:
    """Whether the texts fit the offsets: where they don't, the chunks are of two versions of the document."""
    return after.text.startswith(_shared(before, after))


def _shared(before: Passage, after: Passage) -> str:
    """The end of `before` that stands in `after`, too, by their offsets: chunks may overlap."""
    if not (_has_offsets(before) and _has_offsets(after)):
        return ""
    return before.text[max(0, after.start - before.start) :]


def _has_offsets(passage: Passage) -> bool:
    return passage.end - passage.start == len(passage.text) > 0


def _source(run: Sequence[Passage]) -> Source:
    if len(run) == 1:
        return Source(0, run[0])
    text = run[0].text
    for before, after in pairwise(run):
        touching = _has_offsets(before) and _has_offsets(after) and after.start <= before.end
        # What the chunker leaves out between two chunks is white space.
        text += after.text[len(_shared(before, after)) :] if touching else f"\n{after.text}"
    passage = replace(
        run[0],
        text=text,
        end=max(part.end for part in run),
        score=max(part.score for part in run),
        num_tokens=sum(part.num_tokens for part in run),
    )
    return Source(0, passage, tuple(run))
