"""Which of the offered models is used for what."""

from __future__ import annotations

from typing import Any

import pytest

from pikuri_memory.models.families import family_of
from pikuri_memory.models.offers import OfferedModel
from pikuri_memory.models.ranking import billions, rank, use


def models(*names: str, **given: Any) -> list[OfferedModel]:
    return [OfferedModel(name, **given) for name in names]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nomic-embed-text:latest", "embedding"),
        ("nomic-ai/nomic-embed-text-v1.5-GGUF", "embedding"),
        ("text-embedding-bge-large-en-v1.5", "embedding"),
        ("bge-m3:latest", "embedding"),
        ("intfloat/multilingual-e5-large-instruct", "embedding"),
        ("Qwen3-Embedding-0.6B-Q8_0.gguf", "embedding"),
        ("embeddinggemma:300m", "embedding"),
        ("gte-qwen2-7b-instruct", "embedding"),
        ("snowflake-arctic-embed2", "embedding"),
        ("all-minilm:33m", "embedding"),
        ("sentence-transformers/all-mpnet-base-v2", "embedding"),
        ("mxbai-embed-large", "embedding"),
        ("jinaai/jina-embeddings-v3", "embedding"),
        ("llama3.1:8b", "chat"),
        ("Qwen2.5-7B-Instruct-Q4_K_M.gguf", "chat"),
        ("gpt-oss:20b", "chat"),
        ("mistral-small3.2", "chat"),
        ("granite4:micro", "chat"),
        ("bge-reranker-v2-m3", "unknown"),
        ("qwen3-reranker-4b", "unknown"),
        ("whisper-large-v3-turbo", "unknown"),
        ("kokoro-82m-tts", "unknown"),
        ("llama-guard-3-8b", "unknown"),
        ("stable-diffusion-xl", "unknown"),
        ("mmproj-model-f16.gguf", "unknown"),
    ],
)
def test_a_name_tells_what_a_model_is_for(name: str, kind: str) -> None:
    assert use(OfferedModel(name)) == kind


def test_what_the_router_tells_counts_more_than_a_name() -> None:
    assert use(OfferedModel("my-model", kind="embedding")) == "embedding"
    assert use(OfferedModel("embedder-chat", kind="chat")) == "chat"
    assert use(OfferedModel("bge-reranker-v2-m3", kind="embedding")) == "unknown"
    image = OfferedModel("x", details={"capabilities": "image"})
    assert use(image) == "unknown"


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("qwen2.5:7b-instruct", "qwen2.5:7b-base"),
        ("qwen2.5:7b-instruct", "qwen2.5:0.5b-instruct"),
        ("llama3.1:8b-instruct", "llama3.1:1b-instruct"),
        ("llama3.1:8b", "codellama:7b"),
        ("mistral-7b-instruct", "deepseek-r1:8b"),
        ("mistral-7b-instruct", "llava-7b"),
        ("gemma-3-12b-it", "gemma-3-12b-pt"),
        ("qwen3:8b", "qwen2.5-coder:7b"),
        ("phi-4-14b-instruct", "llama-3.1-405b-instruct"),
    ],
)
def test_of_two_chat_models_the_one_that_follows_instructions_is_taken(
    better: str, worse: str
) -> None:
    assert rank(models(better, worse)).chat == better
    assert rank(models(worse, better)).chat == better


def test_a_chat_model_that_is_loaded_is_preferred() -> None:
    offered = [
        OfferedModel("llama3.1:8b-instruct", loaded=False),
        OfferedModel("mistral:7b", loaded=True),
    ]
    found = rank(offered)
    assert found.chat == "mistral:7b"
    assert "loaded" in found.why_chat


def test_a_loaded_model_that_is_too_small_is_not_preferred_to_a_good_one() -> None:
    offered = [
        OfferedModel("qwen2.5:0.5b", loaded=True),
        OfferedModel("qwen2.5:7b-instruct", loaded=False),
    ]
    assert rank(offered).chat == "qwen2.5:7b-instruct"


def test_of_embedding_models_the_better_family_is_taken() -> None:
    names = ["all-minilm:latest", "nomic-embed-text:latest", "bge-m3:latest"]
    assert rank(models(*names)).embedding == "bge-m3:latest"
    assert rank(models(*names[:2])).embedding == "nomic-embed-text:latest"
    assert rank(models(*names[:1])).embedding == "all-minilm:latest"


def test_of_equals_the_first_in_the_list_is_taken() -> None:
    assert rank(models("a:7b", "b:7b")).chat == "a:7b"
    assert rank(models("b:7b", "a:7b")).chat == "b:7b"


def test_nothing_is_chosen_where_nothing_is_offered() -> None:
    found = rank([])
    assert (found.chat, found.embedding) == (None, None)
    assert found.why_chat == found.why_embedding == "none is offered"
    assert rank(models("whisper-1", "bge-reranker-base")).chat is None


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("llama3.1:8b", 8.0),
        ("qwen2.5-0.5b-instruct", 0.5),
        ("embeddinggemma:300m", 0.3),
        ("Mixtral-8x7B-Instruct", 7.0),
        ("llama3", None),
    ],
)
def test_the_size_is_read_from_a_name(name: str, size: float | None) -> None:
    assert billions(OfferedModel(name)) == size


def test_the_size_is_read_from_what_the_router_tells() -> None:
    assert billions(OfferedModel("x", details={"size": "7.6B"})) == 7.6
    assert billions(OfferedModel("x", details={"size": "137M"})) == 0.137
    assert billions(OfferedModel("x", details={"size": 8_030_261_312})) == pytest.approx(8.03, 0.01)


INSTRUCT = "Instruct: Given a web search query, retrieve relevant passages that answer the query"
SENTENCE = "Represent this sentence for searching relevant passages: "


@pytest.mark.parametrize(
    ("name", "query", "document"),
    [
        ("nomic-embed-text:latest", "search_query: ", "search_document: "),
        ("nomic-embed-text-v2-moe", "search_query: ", "search_document: "),
        ("text-embedding-nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("intfloat/e5-base-v2", "query: ", "passage: "),
        ("multilingual-e5-large", "query: ", "passage: "),
        ("jeffh/intfloat-multilingual-e5-large:f16", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large-instruct", f"{INSTRUCT}\nQuery: ", ""),
        ("e5-mistral-7b-instruct", f"{INSTRUCT}\nQuery: ", ""),
        ("Qwen3-Embedding-0.6B-Q8_0.gguf", f"{INSTRUCT}\nQuery:", ""),
        ("qwen3-embedding:8b", f"{INSTRUCT}\nQuery:", ""),
        ("gte-Qwen2-7B-instruct", f"{INSTRUCT}\nQuery: ", ""),
        ("bge-large-en-v1.5", SENTENCE, ""),
        ("bge-large:latest", SENTENCE, ""),
        ("bge-small-zh-v1.5", "为这个句子生成表示以用于检索相关文章：", ""),
        ("bge-m3", "", ""),
        ("mxbai-embed-large:335m", SENTENCE, ""),
        ("snowflake-arctic-embed:latest", SENTENCE, ""),
        ("snowflake-arctic-embed-m-v1.5", SENTENCE, ""),
        ("snowflake-arctic-embed2:latest", "query: ", ""),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: ", ""),
        (
            "jina-embeddings-v3",
            "Represent the query for retrieving evidence documents: ",
            "Represent the document for retrieval: ",
        ),
        ("jina-embeddings-v2-base-en", "", ""),
        ("embeddinggemma:300m", "task: search result | query: ", "title: none | text: "),
        ("embedding-gemma-300m-qat", "task: search result | query: ", "title: none | text: "),
        ("thenlper/gte-large", "", ""),
        ("granite-embedding:278m", "", ""),
        ("all-minilm:latest", "", ""),
    ],
)
def test_families_have_the_prefixes_of_their_model_cards(
    name: str, query: str, document: str
) -> None:
    family = family_of(name)
    assert family is not None
    assert (family.query_prefix, family.document_prefix) == (query, document)


@pytest.mark.parametrize("name", ["llama3.1:8b", "my-embedder", "text-embedding-3-small", "e5"])
def test_names_of_no_known_family_have_none(name: str) -> None:
    assert family_of(name) is None
