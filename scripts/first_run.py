"""A first look at pikuri-memory: what ``make run`` shows.

Stores a handful of memories for two users in a data directory of its own, asks for them in other
words, restarts the server and asks again. Run it twice: the memories of the first time are known.
"""

from __future__ import annotations

import platform
import sys
import time
from datetime import datetime

from pikuri_memory import EmbeddedServer, Mem0Client, PikuriMemoryError, Record
from pikuri_memory.paths import default_data_dir

MEMORIES = {
    "anna": [
        "I can't eat anything with hazelnuts in it, my throat swells",
        "Our dog Rocco is scared of thunder, he hides in the bathtub",
        "I work from home on Tuesdays and Thursdays",
        "We are saving for a trip to Iceland next summer",
    ],
    "ben": [
        "I moved from Turku to Oulu last week",
        "My daughter Liisa plays the cello in the school orchestra",
        "I only drink decaf after lunch, otherwise I lie awake",
    ],
}
QUESTIONS = [
    ("anna", "Which food allergy should the caterer know about?"),
    ("anna", "How does the pet react to a storm?"),
    ("ben", "Where is home these days?"),
    ("ben", "What instrument does his child practise?"),
]


def show(record: Record) -> str:
    """One found memory on a line."""
    learnt = record.created_at.astimezone() if record.created_at else datetime.now().astimezone()
    return f"{record.score or 0:.2f}  {learnt:%Y-%m-%d %H:%M}  {record.text}"


def ask(client: Mem0Client) -> None:
    """Ask all questions and print the best answer to each."""
    for user, question in QUESTIONS:
        print(f"  {user}: {question}")
        found = client.search(question, user_id=user, top_k=1)
        for record in found:
            print(f"      {show(record)}")
        if not found:
            print("      nothing was found")


def main() -> int:
    """Run it."""
    if platform.system() not in ("Linux", "Darwin"):
        print("error: pikuri-memory runs on Linux and macOS; on Windows use WSL", file=sys.stderr)
        return 1
    data_dir = default_data_dir().parent / "first-run"
    started = time.monotonic()
    with EmbeddedServer(port=0, data_dir=data_dir) as server:
        client = server.client()
        print(f"The server is up after {time.monotonic() - started:.1f} s at {server.endpoint}")
        print(f"It keeps its memories in {server.data_dir}\n")
        print("Storing memories of two users:")
        for user, texts in MEMORIES.items():
            for text in texts:
                for record in client.add(text, user_id=user):
                    known = "known since an earlier run" if record.event == "NONE" else "stored"
                    print(f"  {user}: {text} ({known})")
        print("\nAsking in other words (score, when it was learnt, memory):")
        ask(client)
    print("\nThe server is stopped. Starting it again: is everything still there?")
    with EmbeddedServer(port=0, data_dir=data_dir) as server:
        client = server.client()
        for user in MEMORIES:
            print(f"  {user}: {len(client.get_all(user_id=user))} memories")
        ask(client)
    print(
        "\nNow with a server of your own:\n"
        "  . .venv/bin/activate\n"
        "  pikuri-memory up\n"
        "  pikuri-memory add 'I take my coffee black' --user me\n"
        "  pikuri-memory search 'how do I like my coffee?' --user me\n"
        "  pikuri-memory down\n"
        f"\nTo forget this first run: pikuri-memory destroy --data-dir {data_dir}"
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PikuriMemoryError as error:
        print(f"error: {error.message}", file=sys.stderr)
        print(f"hint: {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
