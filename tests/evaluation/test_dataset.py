"""The evaluation data is sound, and there is enough of it."""

from collections import Counter

import pytest

from .dataset import PARTS, Fact, Question, Scope, content_words, load, shares_content_word

SCOPES = load()

each_scope = pytest.mark.parametrize("scope", SCOPES, ids=lambda scope: scope.name)


def test_ids_are_unique_over_all_scopes() -> None:
    ids = Counter(fact.id for scope in SCOPES for fact in scope.facts)
    ids.update(question.id for scope in SCOPES for question in scope.questions)
    assert [id_ for id_, count in ids.items() if count > 1] == []


@each_scope
def test_every_question_has_answers_and_they_exist_in_its_scope(scope: Scope) -> None:
    for question in scope.questions:
        assert question.answers, question.id
        assert [a for a in question.answers if a not in scope.by_id] == [], question.id


@each_scope
def test_every_question_belongs_to_a_known_part(scope: Scope) -> None:
    assert {question.part for question in scope.questions} <= set(PARTS)


@each_scope
def test_no_text_occurs_twice_in_a_scope(scope: Scope) -> None:
    for entries in (
        [fact.text for fact in scope.facts],
        [question.text for question in scope.questions],
    ):
        texts = Counter(" ".join(text.lower().split()) for text in entries)
        assert [text for text, count in texts.items() if count > 1] == []


@each_scope
def test_a_correction_is_later_than_what_it_corrects(scope: Scope) -> None:
    for fact in scope.facts:
        if fact.corrects is not None:
            assert fact.at > scope.by_id[fact.corrects].at, fact.id


@each_scope
def test_a_look_alike_resembles_another_fact_of_its_scope_and_corrects_nothing(
    scope: Scope,
) -> None:
    for fact in scope.facts:
        if fact.resembles is not None:
            assert fact.resembles in scope.by_id, fact.id
            assert fact.resembles != fact.id
            assert fact.corrects is None, fact.id


@each_scope
def test_a_correction_question_is_not_answered_by_a_fact_that_was_corrected(scope: Scope) -> None:
    outdated = {fact.corrects for fact in scope.facts}
    for question in scope.questions:
        if question.part == "correction":
            assert not outdated & set(question.answers), question.id


@each_scope
def test_a_paraphrase_shares_no_content_word_but_names_with_its_answers(scope: Scope) -> None:
    shared = {
        question.id: sorted(
            content_words(question.text, question.lang, scope.names)
            & content_words(scope.by_id[answer].text, scope.by_id[answer].lang, scope.names)
        )
        for question in scope.questions
        if question.part == "paraphrase"
        for answer in question.answers
        if shares_content_word(question, scope.by_id[answer], scope.names)
    }
    assert shared == {}


@each_scope
def test_a_keyword_question_shares_a_word_with_each_of_its_answers(scope: Scope) -> None:
    # A keyword may well be a name, so names count here.
    def words(entry: Fact | Question) -> frozenset[str]:
        return content_words(entry.text.lower(), entry.lang)

    for question in scope.questions:
        if question.part == "keyword":
            for answer in question.answers:
                assert words(question) & words(scope.by_id[answer]), question.id


def test_there_are_six_hundred_english_facts_in_ten_scopes_two_of_them_large() -> None:
    counts = [sum(fact.lang == "en" for fact in scope.facts) for scope in SCOPES]
    assert sum(counts) >= 600
    assert sum(count > 0 for count in counts) >= 10
    assert sum(count >= 200 for count in counts) >= 2


def test_at_least_half_of_four_hundred_questions_share_no_content_word_with_their_answers() -> None:
    questions = [(scope, question) for scope in SCOPES for question in scope.questions]
    apart = [question for scope, question in questions if not scope.overlaps(question)]
    assert len(questions) >= 400
    assert len(apart) * 2 >= len(questions)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_has_at_least_sixty_questions(part: str) -> None:
    assert sum(question.part == part for scope in SCOPES for question in scope.questions) >= 60


def test_content_words_are_stems_without_stop_words_and_names() -> None:
    assert content_words("Which allergies does the user have, and Paweł?", "en") == {"allergi"}
    assert content_words("Missä Matti asuu?", "fi") == content_words("Asun", "fi")
    assert content_words("Bułka sleeps.", "en", names={"bułka"}) == {"sleep"}
    assert content_words("Market day", "en", names={"market"}) == {"day"}
    assert content_words("a market", "en", names={"market"}) == {"market"}


def test_weekdays_and_months_are_content_words() -> None:
    assert content_words("We meet on Monday in June.", "en") == {"meet", "monday", "june"}
