"""Known families of embedding models: how they want questions and texts to begin.

The strings are those of the model cards, to the blank. A model that was trained with them finds
less without; the routers add none by themselves. Sources, each the card of that name on
huggingface.co: nomic-ai/nomic-embed-text-v1.5 and -v2-moe ("task instruction prefix"),
intfloat/e5-base-v2 and multilingual-e5-large (FAQ 1), intfloat/multilingual-e5-large-instruct and
e5-mistral-7b-instruct (``get_detailed_instruct``), Qwen/Qwen3-Embedding-0.6B (the same function, no
blank after ``Query:``), Alibaba-NLP/gte-Qwen2-7B-instruct, BAAI/bge-large-en-v1.5 and -zh-v1.5
("Model List", query instruction), mixedbread-ai/mxbai-embed-large-v1, Snowflake/
snowflake-arctic-embed-m-v1.5 and -l-v2.0, jinaai/jina-embeddings-v3
(``config_sentence_transformers.json``), google/embeddinggemma-300m ("Prompt Instructions"). Without
prefixes: BAAI/bge-m3, thenlper/gte-large, jinaai/jina-embeddings-v2, ibm-granite/granite-embedding,
sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_TASK: Final = "Given a web search query, retrieve relevant passages that answer the query"
_RELEVANT_ZH: Final = "为这个句子生成表示以用于检索相关文章："
_RELEVANT: Final = "Represent this sentence for searching relevant passages: "


@dataclass(frozen=True)
class Family:
    """Embedding models of one kind.

    Attributes:
        name: For people.
        pattern: Found in their names, in lower case with ``-`` for every separator.
        query_prefix: Stands before a question.
        document_prefix: Stands before a text that is to be found.
        rank: The higher, the rather it is chosen where several are offered: families that know
            many languages and were trained to find answers come first, the built-in one's last.
    """

    name: str
    pattern: str
    query_prefix: str = ""
    document_prefix: str = ""
    rank: int = 50


FAMILIES: Final = (
    # The first that fits counts: the particular before the general.
    Family("Qwen3 Embedding", r"qwen3-(vl-)?embedding", f"Instruct: {_TASK}\nQuery:", "", 100),
    Family(
        "EmbeddingGemma",
        r"embedding-?gemma",
        "task: search result | query: ",
        "title: none | text: ",
        95,
    ),
    Family("Arctic Embed 2", r"arctic-embed-?2|arctic-embed-[a-z]-v2", "query: ", "", 90),
    Family("Arctic Embed", r"arctic-embed", _RELEVANT, "", 70),
    Family("BGE-M3", r"bge-m3", "", "", 90),
    Family(
        "BGE zh", r"bge-(small|base|large)-zh", "为这个句子生成表示以用于检索相关文章：", "", 60
    ),
    Family("BGE en", r"bge-(small|base|large)(-en|$|[^a-z])", _RELEVANT, "", 65),
    Family(
        "E5 instruct",
        r"e5-.*instruct|e5-mistral",
        f"Instruct: {_TASK}\nQuery: ",
        "",
        88,
    ),
    Family("multilingual E5", r"multilingual-e5|(^|-)me5-", "query: ", "passage: ", 85),
    Family("E5", r"(^|-)e5-", "query: ", "passage: ", 60),
    Family("Nomic Embed 2", r"nomic-embed-text-v2", "search_query: ", "search_document: ", 85),
    Family("Nomic Embed", r"nomic-embed-text", "search_query: ", "search_document: ", 75),
    Family("GTE Qwen2", r"gte-qwen2", f"Instruct: {_TASK}\nQuery: ", "", 80),
    Family("GTE", r"(^|-)gte-", "", "", 65),
    Family("mxbai", r"mxbai-embed", _RELEVANT, "", 72),
    Family(
        "Jina 3",
        r"jina-embeddings-v3",
        "Represent the query for retrieving evidence documents: ",
        "Represent the document for retrieval: ",
        80,
    ),
    Family("Jina", r"jina-embeddings", "", "", 62),
    Family("Granite Embedding", r"granite-embedding", "", "", 66),
    Family("MiniLM", r"minilm", "", "", 20),
)


def family_of(model: str) -> Family | None:
    """The family that a model's name tells; None where it tells none."""
    name = normal(model)
    return next((family for family in FAMILIES if re.search(family.pattern, name)), None)


def normal(model: str) -> str:
    """A name in lower case, without owner, path and file ending, with ``-`` for separators."""
    name = model.lower().replace("\\", "/").rstrip("/").rpartition("/")[2].removesuffix(".gguf")
    return re.sub(r"[\s_:@]+", "-", name)
