"""Rewriting by rule: what is searched beside a question that asks for several things; nothing beside a simple one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import InvalidInput
from deployments.parsing import ParsedQuestion, ParsingConfig, parse_question
from deployments.rewriting import RewritingConfig, sub_queries

PIECES = (
    *(
        "Are ",
        "Which is older, ",
        "Who wrote ",
        "both ",
        "between ",
        "difference between ",
        "compare ",
        "Ann Lee ",
        "x ",
    ),
    *(
        " and ",
        " or ",
        ", ",
        " vs ",
        " differ from ",
        "the film ",
        "the ",
        "of ",
        '"',
        '"a b" ',
        "? ",
        ". ",
        "who ",
        "it ",
    ),
    *("more ", "same ", "first ", "when was it made", "and who made ", "and is it ", "1999 ", "'s ", "\ud800", "is "),
)
TEXTS = st.text() | st.lists(st.sampled_from(PIECES)).map("".join)


def rewritten(text: str, **config: int) -> tuple[str, ...]:
    return sub_queries(parse_question(text), RewritingConfig(**config))


class TestSimpleQuestions:
    @pytest.mark.parametrize(
        "question",
        [
            "What is the population of New York City?",
            "Who is the director of the film Big Stone Gap?",
            "When did Ann Lee release the album Blue?",
            'Who wrote "Dear Brother"?',
            "How many people live in New York City today?",
            "How do I configure Ray Serve with HAProxy?",
            "When and where was Marie Curie born?",
            "Who won the war between France and England?",
            "What happened between 1990 and 2000?",
            "Is it safe to take aspirin or ibuprofen?",
            "Is Ann Lee both a writer and a painter?",
            "What is a film that was shot in or around Rome?",
            "raglane install",
            "Aspirin and ibuprofen have the same effect on patients.",
            "Treated mice lived longer than untreated mice in a trial of the new drug vs placebo.",
            "The film Big Stone Gap was directed by a woman who was born in Virginia.",
            "Replacing H2A with H2A.Z speeds it up.",
        ],
    )
    def test_they_and_statements_give_nothing_more_to_search(self, question: str) -> None:
        assert rewritten(question) == ()


class TestSeveralQuestions:
    @pytest.mark.parametrize(
        ("question", "queries"),
        [
            (
                "What is the Eiffel Tower? How tall is it? Who built it?",
                ("What is the Eiffel Tower?", "How tall is the Eiffel Tower?", "Who built the Eiffel Tower?"),
            ),
            (
                "Who directed Big Gap? Where was he born?",
                ("Who directed Big Gap?", "Where was the person who directed Big Gap born?", "Big Gap"),
            ),
            (
                "Ann Lee wrote many books. When did she write the first?",
                ("Ann Lee wrote many books.", "When did Ann Lee write the first?"),
            ),
            (
                "Replacing H2A with H2A.Z speeds it up. Yeast and plants gain most.",
                ("Replacing H2A with H2A.Z speeds it up.", "Yeast and plants gain most."),
            ),
            (
                "Drug A slows the heart. There is no effect on the liver.",
                ("Drug A slows the heart.", "There is no effect on the liver."),
            ),
        ],
    )
    def test_each_is_searched_with_its_reference_resolved(self, question: str, queries: tuple[str, ...]) -> None:
        assert rewritten(question) == queries

    def test_their_own_parts_come_after_them(self) -> None:
        queries = rewritten("Who was Ann Lee? Which is older, Emma or Ulysses?")
        assert queries == ("Who was Ann Lee?", "Which is older, Emma or Ulysses?", "Emma older", "Ulysses older")

    def test_a_pasted_text_is_not_taken_apart(self) -> None:
        assert rewritten("A sentence has a few words. " * 8) == ()
        assert rewritten("A sentence has " + "many " * 300 + "words. So it has another one.") == ()


class TestComparisons:
    @pytest.mark.parametrize(
        ("question", "queries"),
        [
            ("Are Ann Lee and Bob Ray both film directors?", ("Ann Lee film directors", "Bob Ray film directors")),
            ("Are cats and dogs both mammals?", ("cats mammals", "dogs mammals")),
            (
                "Are both magazines, the Old View and Pick Me Up, British publications?",
                ("Old View magazines British publications", "Pick Me Up magazines British publications"),
            ),
            ("Both Blue Sky and Big Hero 6 were made by whom?", ("Blue Sky made", "Big Hero 6 made")),
            ('Who starred in both "Blue Sky" and "Jaws"?', ("Blue Sky starred", "Jaws starred")),
            (
                "Blue Lacy, a Texan breed, and Old Hound, are both dogs of what kind?",
                ("Blue Lacy dogs kind", "Old Hound dogs kind"),
            ),
            ("Were Ann Lee and Bob Ray from the same country?", ("Ann Lee country", "Bob Ray country")),
            ("Are cats and dogs members of the same family?", ("cats members family", "dogs members family")),
            ("What do E. B. White and Ann Lee have in common?", ("E. B. White", "Ann Lee")),
            ("Which is older, X or Y?", ("X older", "Y older")),
            ("Who is older: Ann Lee or Bob Ray?", ("Ann Lee older", "Bob Ray older")),
            ("Which film is longer, the Blue Sky or the Red Sea?", ("Blue Sky film longer", "Red Sea film longer")),
            ("Who was born first, Ann Lee or Bob Ray?", ("Ann Lee born", "Bob Ray born")),
            ("Which band was formed first The Exes or Old Dog ?", ("The Exes band formed", "Old Dog band formed")),
            ("Which is larger, Paris, London, or Rome?", ("Paris larger", "London larger", "Rome larger")),
            ("Does aspirin or ibuprofen cause ulcers?", ("aspirin cause ulcers", "ibuprofen cause ulcers")),
            ("Was Ann Lee or Bob Ray born in Rome?", ("Ann Lee born Rome", "Bob Ray born Rome")),
            ("Between Ann Lee and Bob Ray, who wrote more plays?", ("Ann Lee wrote plays", "Bob Ray wrote plays")),
            ("What is the difference between TCP and UDP?", ("TCP", "UDP")),
            ("difference between a virus and a bacterium", ("virus", "bacterium")),
            ("Postgres vs MySQL", ("Postgres", "MySQL")),
            ("Postgres vs. MySQL for analytics", ("Postgres analytics", "MySQL analytics")),
            ("Is Ray Serve versus Triton slower?", ("Ray Serve slower", "Triton slower")),
            ("Compare Python with Rust for web servers", ("Python web servers", "Rust web servers")),
            ("How does Ray Serve compare to Triton?", ("Ray Serve", "Triton")),
            ("How is green tea different from black tea?", ("green tea", "black tea")),
        ],
    )
    def test_each_thing_is_searched_with_what_is_asked_about_it(self, question: str, queries: tuple[str, ...]) -> None:
        assert rewritten(question) == queries


class TestTwoPredicates:
    @pytest.mark.parametrize(
        ("question", "queries"),
        [
            ("Who wrote Jaws and when was it published?", ("Who wrote Jaws?", "When was Jaws published?")),
            ("Who wrote Jaws, and when was it published", ("Who wrote Jaws", "When was Jaws published")),
            (
                "Who wrote Pride and Prejudice and when was it published?",
                ("Who wrote Pride and Prejudice?", "When was Pride and Prejudice published?"),
            ),
            ("What is RAG and how does it work?", ("What is RAG?", "How does RAG work?")),
            ("Is Rust fast and does it have threads?", ("Is Rust fast?", "Does Rust have threads?")),
            ("Tell me who wrote Jaws and when it was made", ("Tell me who wrote Jaws", "When Jaws was made")),
        ],
    )
    def test_each_is_searched_on_its_own(self, question: str, queries: tuple[str, ...]) -> None:
        assert rewritten(question) == queries

    def test_a_clause_that_goes_on_describing_is_none(self) -> None:
        queries = rewritten("When was the singer born who is known for a voice and who was born in Ann Arbor?")
        assert queries == ("Ann Arbor",)


class TestFirstHops:
    @pytest.mark.parametrize(
        ("question", "queries"),
        [
            ("What nationality is the director of the film Big Stone Gap?", ("the film Big Stone Gap",)),
            ("What genre is the author of the novel Sandloper known for?", ("the novel Sandloper",)),
            ('The soundtrack of the film "Born Killers" was made by a man born when?', ("the film Born Killers",)),
            ("Who founded the company that Ann Lee left?", ("Ann Lee",)),
            ('What year did the author of "Emma" die?', ("Emma",)),
            ("Who shot the film that was made in Leland, North Carolina?", ("Leland, North Carolina",)),
            (
                'Ann Lee wrote the show "Big Gap" which was filmed by whom?',
                ("Ann Lee", "the show Big Gap"),
            ),
        ],
    )
    def test_the_name_that_leads_to_the_answer_is_searched_with_its_noun(
        self, question: str, queries: tuple[str, ...]
    ) -> None:
        assert rewritten(question) == queries

    def test_a_quoted_phrase_is_one_only_while_phrases_are_on(self) -> None:
        question = 'What year did the author of "emma and i" die?'
        assert rewritten(question) == ("emma and i",)
        assert sub_queries(parse_question(question, ParsingConfig(phrases=False))) == ()


class TestSwitches:
    def test_nothing_is_searched_beside_the_question_when_switched_off(self) -> None:
        parsed = parse_question("Which is larger, Paris, London or Rome?")
        assert sub_queries(parsed, RewritingConfig(decompose=False)) == ()

    def test_the_most_useful_ones_are_kept(self) -> None:
        question = "Which is larger, Paris, London or Rome?"
        assert rewritten(question, max_sub_queries=2) == rewritten(question)[:2]
        assert len(rewritten(question)) == 3


@settings(max_examples=300)
@given(TEXTS, st.integers(1, 5))
def test_the_sub_queries_of_any_text_are_few_and_differ_from_it_and_from_each_other(text: str, limit: int) -> None:
    try:
        parsed = parse_question(text)
    except InvalidInput:
        parsed = ParsedQuestion(text=text, questions=(text,))
    queries = sub_queries(parsed, RewritingConfig(max_sub_queries=limit))
    folded = [query.casefold() for query in queries]
    assert len(queries) <= limit
    assert len(set(folded)) == len(folded)
    assert parsed.text.casefold() not in folded
    assert all(query.strip() for query in queries)


@given(TEXTS, st.lists(TEXTS, min_size=1))
def test_a_text_that_was_never_cleaned_is_no_problem(text: str, questions: list[str]) -> None:
    assert len(sub_queries(ParsedQuestion(text=text, questions=tuple(questions)))) <= RewritingConfig().max_sub_queries


@pytest.mark.timeout(60)
@pytest.mark.parametrize("opening", ["", "What is ", "Who did "])
@pytest.mark.parametrize(
    "piece", [*PIECES, "a", "A", " ", "Aa Bb, ", "or x, ", "a? b ", "?) ", "and who ed ", "a-", "“"]
)
def test_a_text_of_full_length_that_repeats_one_piece_is_read(opening: str, piece: str) -> None:
    text = (opening + piece * 8192)[:8192]
    assert len(sub_queries(ParsedQuestion(text=text, questions=(text,)))) <= RewritingConfig().max_sub_queries
