"""The context: which passages an answer may draw on, how they are put together, and that the prompt fits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import ValidationError

from deployments.context import ContextBuilder, ContextConfig, CountTokens
from deployments.contracts import Passage, Source
from deployments.prompts import PromptsConfig, prompt_messages, render_source, render_sources

EACH_ON_ITS_OWN = ContextConfig(drop_near_duplicates=False, merge_neighbours=False)

TIDES = (
    "The moon pulls the water of the sea towards itself, and the sea rises twice a day on every coast of the world, "
    "a little later each day, because the moon has moved on in the meantime."
)


def passage(text: str, title: str = "", name: str = "p") -> Passage:
    return Passage(name, "d", text, 0.5, title)


def chunks(document: str, *texts: str, overlap: int = 0, gap: int = 1) -> list[Passage]:
    """Chunks of one document; each shares `overlap` characters with the one before, or stands `gap` behind it."""
    found: list[Passage] = []
    start = 0
    for position, text in enumerate(texts):
        found.append(
            Passage(
                id=f"{document}:{position}",
                document_id=document,
                text=text,
                score=0.9 - position / 10,
                title=f"About {document}",
                start=start,
                end=start + len(text),
                num_tokens=len(text.split()),
                position=position,
            )
        )
        start += len(text) + gap - overlap
    return found


def count_words(text: str) -> int:
    return len(text.split())


def count_characters(text: str) -> int:
    return len(text)


def count_message_words(messages: Sequence[Mapping[str, str]]) -> int:
    return 7 + sum(3 + count_words(message["content"]) for message in messages)


def texts_of(sources: Sequence[Source]) -> list[str]:
    return [source.passage.text for source in sources]


def choose_sources(passages: Iterable[Passage], config: ContextConfig, count_tokens: CountTokens) -> tuple[Source, ...]:
    return ContextBuilder(config, count_tokens).build("", passages).sources


class TestTheBudget:
    def test_sources_are_numbered_from_one_in_the_order_given(self) -> None:
        sources = choose_sources([passage("b"), passage("a")], ContextConfig(), count_words)
        assert [(source.number, source.passage.text) for source in sources] == [(1, "b"), (2, "a")]

    def test_no_more_sources_are_taken_than_one_answer_may_have(self) -> None:
        sources = choose_sources([passage(str(n)) for n in range(9)], ContextConfig(max_sources=3), count_words)
        assert texts_of(sources) == ["0", "1", "2"]

    def test_a_passage_that_does_not_fit_is_left_out_and_the_next_takes_its_number(self) -> None:
        texts = ["short one", "long " * 100, "short two"]
        sources = choose_sources([passage(text) for text in texts], ContextConfig(max_context_tokens=64), count_words)
        assert [(source.number, source.passage.text) for source in sources] == [(1, "short one"), (2, "short two")]

    @given(st.lists(st.integers(1, 60), max_size=12), st.integers(64, 200), st.integers(1, 9))
    def test_it_is_kept_as_rendered_and_no_passage_that_fits_is_left_out(
        self, lengths: list[int], budget: int, max_sources: int
    ) -> None:
        passages = [passage("word " * length, name=f"p{index}") for index, length in enumerate(lengths)]
        config = EACH_ON_ITS_OWN.model_copy(update={"max_context_tokens": budget, "max_sources": max_sources})
        sources = choose_sources(passages, config, count_words)
        used = sum(count_words(render_source(source)) for source in sources)
        assert used <= budget
        assert [source.number for source in sources] == list(range(1, len(sources) + 1))
        left_out = [p for p in passages if p not in [source.passage for source in sources]]
        if len(sources) < max_sources:
            assert all(used + count_words(render_source(Source(1, p))) > budget for p in left_out)

    @given(st.lists(st.text(max_size=200), max_size=12), st.integers(64, 1000), st.booleans())
    def test_it_is_kept_by_the_block_of_sources_as_it_stands_in_the_prompt(
        self, texts: list[str], budget: int, for_a_language_model: bool
    ) -> None:
        def count_pairs(text: str) -> int:  # the whole is less than the sum of its parts, or more
            return (len(text.encode(errors="replace")) + 1) // 2

        config = ContextConfig(max_context_tokens=budget)
        builder = ContextBuilder(config, count_pairs, (lambda _: 0) if for_a_language_model else None)
        for _ in range(2):
            sources = builder.build("Why?", map(passage, texts)).sources
            assert count_pairs(render_sources(sources)) <= budget

    def test_a_whole_that_is_longer_than_its_parts_loses_its_worst_source(self) -> None:
        def count(text: str) -> int:
            return len(text.split()) + 3 * text.count("</source>\n\n<source")

        passages = [passage(f"{word} " * 20) for word in ("one", "two", "three")]
        alone = count(render_source(Source(1, passages[0])))
        config = ContextConfig(max_context_tokens=3 * alone)
        assert texts_of(choose_sources(passages, config, count)) == texts_of([Source(1, p) for p in passages[:2]])

    def test_in_place_of_a_source_that_is_too_long_by_a_token_a_shorter_one_comes_in(self) -> None:
        def count(text: str) -> int:
            return len(text.split()) + (render_source(Source(1, best)) == text)

        best, shorter = passage("one " * 100), passage("two " * 50)
        config = ContextConfig(max_context_tokens=count(render_source(Source(1, best))) - 1)
        assert texts_of(choose_sources([best, shorter], config, count)) == [shorter.text]

    def test_a_thousand_passages_that_do_not_fit_are_not_all_counted(self) -> None:
        counted: list[str] = []

        def count(text: str) -> int:
            counted.append(text)
            return 10_000

        assert choose_sources([passage(str(n)) for n in range(1000)], ContextConfig(), count) == ()
        assert len(counted) < 100

    def test_a_passage_is_counted_once_however_often_it_is_found(self) -> None:
        counted: list[str] = []

        def count(text: str) -> int:
            counted.append(text)
            return len(text.split())

        builder = ContextBuilder(ContextConfig(), count)
        passages = [passage(f"passage {n}", f"title {n}") for n in range(8)]
        for rotation in range(8):
            builder.build("Why?", passages[rotation:] + passages[:rotation])
        assert len(counted) == 8


class TestNearDuplicates:
    def test_the_better_one_of_two_stays(self) -> None:
        repeated = TIDES.upper().replace(",", ";")
        found = [passage("Bees make honey."), passage(TIDES), passage(repeated), passage("Iron rusts.")]
        assert texts_of(choose_sources(found, ContextConfig(), count_words)) == [
            "Bees make honey.",
            TIDES,
            "Iron rusts.",
        ]

    def test_a_part_of_a_better_passage_adds_nothing(self) -> None:
        part = " ".join(TIDES.split()[5:20])
        assert texts_of(choose_sources([passage(TIDES), passage(part)], ContextConfig(), count_words)) == [TIDES]

    def test_a_longer_passage_that_contains_a_better_one_says_more(self) -> None:
        longer = f"{TIDES} {' '.join(f'word{n}' for n in range(40))}"
        found = [passage(TIDES), passage(longer)]
        assert texts_of(choose_sources(found, ContextConfig(), count_words)) == [TIDES, longer]

    def test_passages_that_differ_in_a_number_say_different_things(self) -> None:
        years = [passage(f"{TIDES} This was so in {year}.") for year in (2023, 2024)]
        assert len(choose_sources(years, ContextConfig(), count_words)) == 2

    def test_a_passage_that_repeats_one_which_did_not_fit_is_kept(self) -> None:
        long, short = passage(f"{TIDES} {'more ' * 100}"), passage(TIDES)
        sources = choose_sources([long, short], ContextConfig(max_context_tokens=64), count_words)
        assert texts_of(sources) == [TIDES]

    @pytest.mark.parametrize(
        "texts", [["潮汐是由月球的引力造成的。", "潮汐是由月球的引力造成的!"], ["***", "***"], ["a b", "A b."]]
    )
    def test_texts_without_spaces_without_words_or_without_many_words_are_compared_too(self, texts: list[str]) -> None:
        assert texts_of(choose_sources(map(passage, texts), ContextConfig(), count_words)) == texts[:1]

    @pytest.mark.parametrize("texts", [["***", "---"], ["a b", "a c"], ["", "a"], ["潮汐", "引力"]])
    def test_short_texts_that_differ_are_both_kept(self, texts: list[str]) -> None:
        assert texts_of(choose_sources(map(passage, texts), ContextConfig(), count_words)) == texts

    def test_how_similar_is_too_similar_can_be_set(self) -> None:
        words = TIDES.split()
        found = [passage(TIDES), passage(" ".join([*words[:15], "new", "words", "here", *words[15:]]))]
        assert len(choose_sources(found, ContextConfig(near_duplicate_similarity=0.8), count_words)) == 1
        assert len(choose_sources(found, ContextConfig(near_duplicate_similarity=0.95), count_words)) == 2

    def test_they_are_kept_where_the_config_says_so(self) -> None:
        config = ContextConfig(drop_near_duplicates=False)
        assert len(choose_sources([passage(TIDES), passage(TIDES)], config, count_words)) == 2


class TestNeighbours:
    def test_become_one_source_where_the_best_of_them_stood(self) -> None:
        one, two, three = chunks("tides", "The sea rises.", "Then it falls.", "Ships wait.")
        other = chunks("bees", "Bees make honey.")[0]
        sources = choose_sources([two, other, three, one], ContextConfig(), count_words)
        assert [source.number for source in sources] == [1, 2]
        assert sources[0].passage.text == "The sea rises.\nThen it falls.\nShips wait."
        assert sources[0].parts == sources[0].stored() == (one, two, three)
        assert sources[1] == Source(2, other)

    def test_keep_the_place_in_the_document_the_best_score_and_all_tokens(self) -> None:
        one, two = chunks("tides", "The sea rises.", "Then it falls.")
        better = replace(two, score=2.0)
        (source,) = choose_sources([better, one], ContextConfig(), count_words)
        assert source.passage == replace(
            one, text="The sea rises.\nThen it falls.", end=two.end, score=2.0, num_tokens=6
        )

    def test_that_overlap_say_what_they_share_once(self) -> None:
        found = chunks("tides", "The sea rises. ", "rises. Then it falls. ", "falls. Ships wait.", overlap=7, gap=0)
        for order in (found, found[::-1], [found[0], found[2], found[1]]):
            (source,) = choose_sources(order, ContextConfig(), count_words)
            assert source.passage.text == "The sea rises. Then it falls. Ships wait."

    def test_without_anything_between_them_are_joined_as_they_are(self) -> None:
        (source,) = choose_sources(chunks("words", "Donau", "dampf", gap=0), ContextConfig(), count_words)
        assert source.passage.text == "Donaudampf"

    def test_without_offsets_are_joined_by_their_positions(self) -> None:
        found = [replace(chunk, start=0, end=0) for chunk in chunks("tides", "The sea rises.", "Then it falls.")]
        (source,) = choose_sources(found, ContextConfig(), count_words)
        assert source.passage.text == "The sea rises.\nThen it falls."

    def test_of_two_versions_of_a_document_stay_apart(self) -> None:
        one, two = chunks("tides", "The sea rises.", "A wholly new text.", overlap=7, gap=0)
        assert len(choose_sources([one, two], ContextConfig(), count_words)) == 2

    def test_are_chunks_of_the_same_document_alone(self) -> None:
        found = [chunks("tides", "The sea rises.", "x")[0], chunks("bees", "x", "Bees make honey.")[1]]
        assert len(choose_sources(found, ContextConfig(), count_words)) == 2

    def test_with_a_chunk_missing_between_them_stay_apart_by_rank(self) -> None:
        one, _, three = chunks("tides", "The sea rises.", "Then it falls.", "Ships wait.")
        assert texts_of(choose_sources([three, one], ContextConfig(), count_words)) == ["Ships wait.", "The sea rises."]

    def test_join_a_source_even_where_there_is_room_for_no_other(self) -> None:
        one, two, three = chunks("tides", "The sea rises.", "Then it falls.", "Ships wait.")
        other, late = chunks("bees", "Bees make honey.")[0], chunks("iron", "Iron rusts.")[0]
        sources = choose_sources([one, other, late, three, two], ContextConfig(max_sources=2), count_words)
        assert texts_of(sources) == ["The sea rises.\nThen it falls.", "Bees make honey."]

    def test_that_close_the_gap_between_two_sources_make_room_for_another(self) -> None:
        one, two, three = chunks("tides", "The sea rises.", "Then it falls.", "Ships wait.")
        late = chunks("iron", "Iron rusts.")[0]
        sources = choose_sources([one, three, two, late], ContextConfig(max_sources=2), count_words)
        assert texts_of(sources) == ["The sea rises.\nThen it falls.\nShips wait.", "Iron rusts."]

    def test_spare_the_tokens_of_their_fences(self) -> None:
        found = chunks("tides", *(f"{word} " * 10 for word in ("one", "two", "three", "four")))
        config = ContextConfig(max_context_tokens=64)
        apart = choose_sources(found, config.model_copy(update={"merge_neighbours": False}), count_words)
        (together,) = choose_sources(found, config, count_words)
        assert len(apart) == len(found)
        assert together.parts == tuple(found)
        assert count_words(render_sources([together])) < count_words(render_sources(apart))

    def test_are_not_taken_for_near_duplicates_where_they_overlap(self) -> None:
        found = chunks("tides", TIDES, f"{TIDES[20:]} And so on.", overlap=len(TIDES) - 20, gap=0)
        (source,) = choose_sources(found, ContextConfig(), count_words)
        assert source.passage.text == f"{TIDES} And so on."

    def test_stay_apart_where_the_config_says_so(self) -> None:
        found = chunks("tides", "The sea rises.", "Then it falls.")
        sources = choose_sources(found, ContextConfig(merge_neighbours=False), count_words)
        assert sources == (Source(1, found[0]), Source(2, found[1]))

    @given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, 5), st.data())
    def test_merged_in_whatever_order_they_come_hold_the_documents_own_text(
        self, lengths: list[int], overlap: int, data: st.DataObject
    ) -> None:
        text = "".join(chr(ord("a") + n * 7 % 26) for n in range(sum(lengths) + overlap))
        starts = [sum(lengths[:n]) for n in range(len(lengths))]
        spans = [(start, start + length + overlap) for start, length in zip(starts, lengths, strict=True)]
        document = [
            Passage(f"d:{n}", "d", text[start:end], 0.5, start=start, end=end, position=n)
            for n, (start, end) in enumerate(spans)
        ]
        found = data.draw(st.permutations(document))[: data.draw(st.integers(1, len(document)))]
        sources = choose_sources(found, ContextConfig(max_sources=99, drop_near_duplicates=False), count_words)
        for source in sources:
            assert source.passage.text == text[source.passage.start : source.passage.end]
        parts = [part.position for source in sources for part in source.stored()]
        assert sorted(parts) == sorted(chunk.position for chunk in found)
        neighbours = sum(chunk.position + 1 in parts for chunk in found)
        assert len(sources) == len(found) - neighbours


class TestThePromptAsAWhole:
    def passages(self) -> list[Passage]:
        words = ("one", "two", "three", "four", "five")
        return [passage(f"{word} " * 50, name=word) for word in words]

    def builder(self, config: ContextConfig | None = None) -> ContextBuilder:
        return ContextBuilder(config or ContextConfig(), count_words, count_message_words)

    def test_holds_the_sources_that_are_returned(self) -> None:
        context = self.builder().build("Why?", self.passages())
        assert len(context.sources) == 5
        assert context.messages == prompt_messages("Why?", context.sources, PromptsConfig())

    @given(st.integers(0, 500), st.integers(1, 20))
    def test_fits_the_limit_with_as_many_sources_as_possible(self, limit: int, question_words: int) -> None:
        question = " ".join(["why"] * question_words)
        context = self.builder().build(question, self.passages(), prompt_limit=limit)
        alone = prompt_messages(question, (), PromptsConfig())
        assert count_message_words(context.messages) <= max(limit, count_message_words(alone))
        if len(context.sources) < 5:
            one_more = tuple(Source(n, p) for n, p in enumerate(self.passages()[: len(context.sources) + 1], start=1))
            assert count_message_words(prompt_messages(question, one_more, PromptsConfig())) > limit

    def test_whose_question_is_too_long_is_left_to_the_engine(self) -> None:
        context = self.builder().build("why " * 100, self.passages(), prompt_limit=50)
        assert context.sources == ()
        assert context.messages == prompt_messages("why " * 100, (), PromptsConfig())

    def test_has_fewer_sources_where_the_whole_is_longer_than_its_parts(self) -> None:
        def count_messages(messages: Sequence[Mapping[str, str]]) -> int:
            return count_message_words(messages) + 4 * messages[1]["content"].count("</source>")

        builder = ContextBuilder(ContextConfig(), count_words, count_messages)
        whole = builder.build("Why?", self.passages())
        limit = count_messages(whole.messages) - 1
        context = builder.build("Why?", self.passages(), prompt_limit=limit)
        assert len(context.sources) == 4
        assert count_messages(context.messages) <= limit

    def test_is_in_the_words_of_the_config(self) -> None:
        prompts = PromptsConfig(answer_system="Be brief.", answer_user="{question}\n{sources}", no_sources="nothing")
        context = self.builder(ContextConfig(prompts=prompts)).build("Why?", ())
        assert [message["content"] for message in context.messages] == ["Be brief.", "Why?\nnothing"]

    def test_begins_with_the_sources_that_an_earlier_one_had(self) -> None:
        builder = self.builder()
        one, two, three, four, _ = self.passages()
        builder.build("Why?", [one, two, three])
        context = builder.build("What?", [four, three, two, one])
        assert texts_of(context.sources) == texts_of([Source(0, p) for p in (one, two, three, four)])
        assert [source.number for source in context.sources] == [1, 2, 3, 4]

    @pytest.mark.parametrize("for_a_language_model", [True, False])
    def test_keeps_the_best_first_where_nothing_is_gained_by_another_order(self, for_a_language_model: bool) -> None:
        config = ContextConfig(share_prefix=not for_a_language_model)
        builder = ContextBuilder(config, count_words, count_message_words if for_a_language_model else None)
        one, two, *_ = self.passages()
        builder.build("Why?", [one, two])
        assert texts_of(builder.build("Why?", [two, one]).sources) == [two.text, one.text]

    def test_leaves_out_the_worst_passages_whatever_the_order(self) -> None:
        builder = self.builder()
        one, two, three, *_ = self.passages()
        builder.build("Why?", [three, two, one])
        limit = count_message_words(builder.build("Why?", [one, two]).messages)
        context = builder.build("Why?", [one, two, three], prompt_limit=limit)
        assert sorted(texts_of(context.sources)) == sorted([one.text, two.text])


@pytest.mark.parametrize(
    "wrong",
    [
        {"system_prompt": "x"},
        {"near_duplicate_similarity": 0},
        {"near_duplicate_similarity": 1.1},
        {"prefix_tree_nodes": 0},
        {"reserved_answer_tokens": 0},
        {"prompts": {"answer_user": "{question}"}},
    ],
)
def test_a_config_that_can_not_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ContextConfig.model_validate(wrong)
