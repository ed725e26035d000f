"""Documents of several passages, and what a collection holds of them."""

from __future__ import annotations

from deployments.contracts import SearchRequest
from tests.contract.backends import Backend

PARAGRAPHS = (
    "The moon pulls the tides of the sea, and the sun helps it a little every day.",
    "Bees make honey from nectar.\nA hive has one queen, who lays every egg of it herself.",
    "Iron rusts in moist air; steel is iron with some carbon and rusts as well.",
    "Rivers carry sand to the sea, and the sea carries it back to the beaches.",
)
LONG = "\n\n".join(PARAGRAPHS)


def folded(text: str) -> str:
    return " ".join(text.split())


async def texts_in(backend: Backend, collection: str = "docs") -> dict[str, list[str]]:
    """Every passage's text by document id, in the order of the document."""
    vector = (await backend.embed("anything"))[0]
    found = await backend.search(SearchRequest(collection, 1000, vector=vector))
    texts: dict[str, list[str]] = {}
    for passage in sorted(found, key=lambda passage: (passage.document_id, passage.start)):
        texts.setdefault(passage.document_id, []).append(passage.text)
    return texts
