"""What is recognised as the successor of an older fact, and what is not."""

from __future__ import annotations

import pytest

from pikuri_memory.embedded import succession, wording
from pikuri_memory.embedded.links import Link, Links
from pikuri_memory.embedded.model import StoredMemory
from pikuri_memory.embedded.succession import LONGEST, Older, predecessor, worth_a_look
from pikuri_memory.embedded.successors import Recogniser
from pikuri_memory.errors import DamagedInstallationError
from pikuri_memory.models.builtin import BuiltinEmbedder, builtin_identity
from pikuri_memory.record import Scope

from .parts import HashEmbedder

CHANGES = [
    ("User lives in Turku with her partner", "User moved from Turku to Oulu in April", 0.6),
    ("User has been vegetarian for years", "User is no longer vegetarian", 0.7),
    ("I smoke ten cigarettes a day", "I quit smoking, not one cigarette since", 0.6),
    ("User's laptop is a 2017 MacBook Air", "User replaced the MacBook with a Framework", 0.7),
    ("The accounts are done by Frau Wehrle", "Frau Wehrle retired, a firm does it now", 0.5),
    ("The API listens on port 8080", "The API listens on port 9000", 0.95),
    ("User weighs 71 kg", "User weighs 68 kg", 0.9),
    ("User's manager is Henrik Sand", "User's manager is now Reetta Kivelä", 0.5),
    ("The rent is 940 euros warm", "The rent goes up to 1,015 euros from August", 0.8),
    ("The standup is at 9:40 every day", "The standup has been moved to 10:15", 0.8),
    ("The frontend is written in Vue", "The frontend has been migrated to Svelte", 0.7),
]

LOOK_ALIKES = [
    ("User lives in Turku", "User's brother Aki moved from Turku to Tampere", 0.7),
    ("User's mother lives in Kuopio", "User moved from Kuopio to Oulu", 0.7),
    ("User has a cat named Mirri", "User has a cat named Hippu", 0.95),
    ("User likes jazz", "User likes Finnish rap", 0.8),
    ("User is allergic to shellfish", "User is also allergic to kiwi", 0.9),
    ("User visited Lisbon in March", "User visited Porto in October", 0.9),
    ("The admin panel listens on port 8081", "The API listens on port 9000", 0.8),
    ("User drinks coffee every morning", "User ordered tea, the machine was broken", 0.6),
    ("User likes the bakery on Prospect Street", "User stopped by the bakery for rye", 0.8),
    ("Dana is training for the marathon", "Dana's coworker Bea is training for it now", 0.8),
    ("User moved from Turku to Oulu", "User has moved to Oulu from Turku", 0.95),
    ("User switched from Spotify to Tidal", "User uses Tidal instead of Spotify", 0.9),
    ("User wakes up at 5:50", "User wakes up at 5:50 and makes tea", 0.9),
    ("User left her job at the bank", "User quit the bank and is looking around", 0.8),
    ("User's landlord Herr Lang died in June", "Herr Lang, user's landlord, died this summer", 0.9),
    ("Asun Turussa", "Muutin Turusta Ouluun", 0.9),
    ("トゥルクに住んでいる", "トゥルクからオウルに引っ越した", 0.9),
]


@pytest.mark.parametrize(("old", "new", "cosine"), CHANGES)
def test_a_change_is_recognised(old: str, new: str, cosine: float) -> None:
    assert predecessor(new, [Older(old, cosine, 1)]) == 0


@pytest.mark.parametrize(("old", "new", "cosine"), LOOK_ALIKES)
def test_a_look_alike_is_no_change(old: str, new: str, cosine: float) -> None:
    assert predecessor(new, [Older(old, cosine, 1)]) is None


@pytest.mark.parametrize(("old", "new", "cosine"), CHANGES)
def test_what_is_far_from_it_in_meaning_is_not_replaced(old: str, new: str, cosine: float) -> None:
    assert predecessor(new, [Older(old, 0.2, 1)]) is None


def test_of_several_the_nearest_is_replaced_and_of_equals_the_latest() -> None:
    new = "User moved from Turku to Oulu"
    home, again = "User lives in Turku", "User's home is in Turku"
    other = "User has a cat named Mirri"
    assert predecessor(new, [Older(other, 0.3, 9), Older(home, 0.7, 1)]) == 1
    assert predecessor(new, [Older(home, 0.7, 1), Older(again, 0.72, 2)]) == 1
    assert predecessor(new, [Older(home, 0.7, 2), Older(again, 0.7, 1)]) == 0


def test_what_is_less_alike_than_another_fact_is_not_replaced() -> None:
    new = "User moved from Turku to Oulu"
    nearer = Older("User likes moving house in the north", 0.9, 1)
    assert predecessor(new, [Older("User lives in Turku", 0.7, 1), nearer]) is None


def test_the_answer_does_not_depend_on_the_order_of_the_older_facts() -> None:
    older = [Older(old, cosine, i) for i, (old, _, cosine) in enumerate(CHANGES)]
    for _, new, _ in CHANGES:
        one, other = predecessor(new, older), predecessor(new, older[::-1])
        assert (one is None) == (other is None)
        assert one is None or other is None or older[one] == older[::-1][other]


def test_nothing_is_replaced_where_there_is_nothing_and_a_document_replaces_nothing() -> None:
    assert predecessor("User moved from Turku to Oulu", []) is None
    old = Older("User lives in Turku", 0.9, 1)
    new = "User moved from Turku to Oulu. "
    assert predecessor(new, [old]) == 0
    assert predecessor(new + "x" * LONGEST, [old]) is None
    assert predecessor(new, [Older("User lives in Turku. " + "x" * LONGEST, 0.9, 1)]) is None


@pytest.mark.parametrize(
    "text", ["", " ", "...", "!?", "'s", "7", "€", "\x00", "\ud800", "I've", "a" * 900]
)
def test_any_text_can_be_read(text: str) -> None:
    assert predecessor(text, [Older(text, 1.0, 1), Older("User lives in Turku", 1.0, 1)]) is None
    assert predecessor("User moved from Turku", [Older(text, 1.0, 1)]) is None


def test_nothing_is_replaced_unless_the_measured_precision_is_enough() -> None:
    old, new, cosine = CHANGES[0]
    assert succession.PRECISION >= succession.LEAST_PRECISION
    assert predecessor(new, [Older(old, cosine, 1)], precision=0.95) == 0
    assert predecessor(new, [Older(old, cosine, 1)], precision=0.949) is None


def test_worth_a_look_is_what_words_alone_would_allow() -> None:
    assert worth_a_look("User moved from Turku to Oulu", ["User likes jazz", "User lives in Turku"])
    assert not worth_a_look("User has a red bicycle", ["User likes jazz", "User lives in Turku"])


def test_a_subject_is_what_stands_before_the_verb_and_a_person_its_last_possession() -> None:
    reading = wording.read("Klara's friend Ida plays the cello, lessons on Wednesdays")
    assert reading.head == ("klara", "friend", "ida")
    assert reading.persons == {"friend", "ida"}
    assert wording.read("I've moved to Oulu").subject == frozenset()
    assert wording.read("The rate limit is 60").subject == {"rat", "limit"}


def test_a_change_says_what_is_over() -> None:
    def over(text: str) -> set[frozenset[str]]:
        return set(wording.change_in(wording.read(text)).over)

    assert over("User moved from Turku to Oulu") == {frozenset({"turku"})}
    assert over("User flew from Boston to Seattle") == set()
    assert over("User left a bottle at the gym") == set()
    assert over("Got rid of Orderbird, the till is new") == {frozenset({"orderbird"})}
    assert not wording.change_in(wording.read("User has a cat")).told
    assert wording.change_in(wording.read("User also has a dog")).more


def memory(text: str) -> StoredMemory:
    return StoredMemory(text, text, Scope("anna"), {}, 1, 1, None)


def test_cosines_of_another_embedder_are_not_believed() -> None:
    recogniser = Recogniser()
    home, mother = memory("User lives in Turku"), memory("User's mother lives in Kuopio")
    new = "User moved from Turku to Oulu"
    near = [(mother, 0.99), (home, 0.1)]
    assert recogniser.predecessor(new, near, builtin_identity()) is None
    assert recogniser.predecessor(new, near, HashEmbedder.identity) is home


def test_the_recogniser_finds_what_the_built_in_embedder_has_near() -> None:
    texts = ["User moved from Turku to Oulu", "User lives in Turku", "User likes jazz"]
    vectors = BuiltinEmbedder().embed(texts)
    home, jazz = memory(texts[1]), memory(texts[2])
    near = [(jazz, float(vectors[0] @ vectors[2])), (home, float(vectors[0] @ vectors[1]))]
    assert Recogniser().predecessor(texts[0], near, builtin_identity()) is home
    assert Recogniser().predecessor(texts[0], [], builtin_identity()) is None


def test_a_damaged_installation_costs_the_order_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def load() -> BuiltinEmbedder:
        raise DamagedInstallationError("the model is missing", hint="reinstall it")

    recogniser = Recogniser(load)
    home = memory("User lives in Turku")
    for _ in range(2):
        found = recogniser.predecessor(
            "User moved from Turku to Oulu", [(home, 0.9)], HashEmbedder.identity
        )
        assert found is None
    assert caplog.messages == ["what replaces what is not recognised: the model is missing"]


def test_links_are_known_from_both_sides_until_they_are_removed() -> None:
    links = Links([Link(2, 1, "b", "a"), Link(3, 2, "c", "b")])
    assert links
    assert links.newer_of == {1: (2,), 2: (3,)}
    assert links.ids_of(2) == (("a",), ("c",))
    assert links.ids_of(9) == ((), ())
    links.add(Link(2, 1, "b", "a"))
    links.remove(3, 2)
    links.remove(3, 2)
    assert links.ids_of(2) == (("a",), ())
    links.remove(2, 1)
    assert not links
    assert links.ids_of(1) == ((), ())
    links.add(Link(2, 1, "b", "a"))
    links.clear()
    assert not links
