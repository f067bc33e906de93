"""Tiny GGUF models, made from a seed at test time: what llama.cpp needs to do all of its real work.

The chat models are llamas of two layers whose weights are set by hand, so that they are quick,
deterministic and never endless. They know a few sentences: what a token is followed by stands in
the output layer, and the one attention head that matters looks for the latest word of
:data:`CUES` in the prompt. So the models extract: whoever says "kantele" is told to be a user who
"likes kantele", and who says none of these words has nothing to be remembered. Under a JSON grammar
they close every string, list and object as soon as they may.

The embedding models are BERTs of one layer with random token vectors and mean pooling, nearly a bag
of words: texts that share words that matter are near each other.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

Matrix = NDArray[np.float32]
Tensors = dict[str, NDArray[np.float32] | NDArray[np.float16]]

LIKED = tuple(" kantele| knitting| origami| falconry| croquet| juggling".split("|"))
CITIES = tuple(" Oulu| Turku| Rovaniemi| Kuopio| Joensuu| Vaasa".split("|"))
# The words that a chat model can tell from others, each of them one token.
CUES = LIKED + CITIES

# Words that say little.
_LITTLE = """
a about after all also am an and any are as at be been before but by can could did do does for from
had has have he her him his how i in into is it its just me more my no not of off on one or our she
should so some than that the their them then there they this to up us user was we were what when
where which who why will with would you your
""".split()
# Thoughts of a thinking model, in this order.
_THOUGHTS = " hmm| ponder| mull| muse| brood| perhaps| aha| so-so".split("|")
_NAMED = "The|\n\n| user| likes| lives| in| tea|.".split("|")

_LEARNT = 2560
_WIDTH = 64
# One narrow head: a prompt of 15,000 tokens costs a second or two, nearly all of it attention.
_HEAD = 16
_INNER = 96
_CONSTANT = 0
_STATES = range(1, 32)
_CUE = range(32, 32 + len(CUES))
_SEEN = range(48, 48 + len(CUES))
_ROPE_BASE = 1e10

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# As Qwen3's: llama.cpp sees from what it does with earlier thoughts that the model thinks, and an
# empty thought is put into the model's mouth where thinking is switched off.
THINKING_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' and message.reasoning_content %}"
    "{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{%- endif %}"
    "{{- message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "SWITCH"
    "{%- endif %}"
)
_SWITCH = (
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)


@dataclass(frozen=True)
class ChatModel:
    """What a chat model is to be.

    Attributes:
        thinks: Whether it thinks before it answers.
        endless: Whether its thoughts never end.
        obedient: Whether its chat template honours ``enable_thinking: false``.
        context: Tokens it was "trained" for.
    """

    thinks: bool = False
    endless: bool = False
    obedient: bool = True
    context: int = 32_768


def write_chat_model(path: Path, model: ChatModel = ChatModel()) -> None:
    """Write a chat model of about 0.4 MB.

    Args:
        path: The file, ``*.gguf``.
        model: What it is to be.
    """
    vocabulary = _chat_vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny chat")
    writer.add_context_length(model.context)
    writer.add_embedding_length(_WIDTH)
    writer.add_block_count(2)
    writer.add_feed_forward_length(_INNER)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_key_length(_HEAD)
    writer.add_value_length(_HEAD)
    writer.add_rope_dimension_count(_HEAD)
    writer.add_rope_freq_base(_ROPE_BASE)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(len(vocabulary.tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    vocabulary.write(writer)
    template = THINKING_TEMPLATE if model.thinks else CHAT_TEMPLATE
    writer.add_chat_template(template.replace("SWITCH", _SWITCH if model.obedient else ""))
    for name, tensor in _chat_tensors(vocabulary, model).items():
        writer.add_tensor(name, tensor)
    _close(writer)


def write_embedding_model(path: Path, dimensions: int, seed: int = 1) -> None:
    """Write an embedding model of at most 0.5 MB, with mean pooling and 512 tokens of context.

    Args:
        path: The file, ``*.gguf``.
        dimensions: Length of its vectors, a multiple of 4.
        seed: Of its token vectors.
    """
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()] + list("äöüåéß")
    known = re.findall(r"[a-z]{3,}", _prompts().lower())
    words = sorted({*_LITTLE, *known, *(cue.strip().lower() for cue in CUES)} - set(letters))
    # As llama.cpp wants it: a word begins with the mark, what continues one has none.
    tokens += [f"\u2581{text}" for text in (*words, *letters)] + letters
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(f"tiny embedder of {dimensions} dimensions")
    writer.add_context_length(512)
    writer.add_embedding_length(dimensions)
    writer.add_block_count(1)
    writer.add_feed_forward_length(2 * dimensions)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    kinds = [
        gguf.TokenType.UNKNOWN if token == "[UNK]" else gguf.TokenType.CONTROL
        for token in tokens[:5]
    ]
    writer.add_token_types([*kinds, *[gguf.TokenType.NORMAL] * (len(tokens) - 5)])
    writer.add_token_type_count(2)
    writer.add_pad_token_id(0)
    writer.add_unk_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_sep_token_id(3)
    writer.add_mask_token_id(4)
    for name, tensor in _bert_tensors(tokens, dimensions, seed).items():
        writer.add_tensor(name, tensor)
    _close(writer)


def _close(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclass(frozen=True)
class _Vocabulary:
    """A byte-level BPE vocabulary; what is no part of it by itself is a token of its own."""

    tokens: tuple[str, ...]
    kinds: tuple[gguf.TokenType, ...]
    merges: tuple[str, ...]

    def id(self, text: str) -> int:
        """The token of a text that is one token."""
        spelled = _spelled(text)
        return self.tokens.index(spelled if spelled in self.tokens else text)

    def write(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(list(self.tokens))
        writer.add_token_types(list(self.kinds))
        writer.add_token_merges(list(self.merges))
        writer.add_bos_token_id(self.id("<|endoftext|>"))
        writer.add_eos_token_id(self.id("<|im_end|>"))
        writer.add_add_bos_token(False)


# The alphabet of byte-level BPE (GPT-2's): every byte is a letter that can be printed.
_PLAIN = (*range(33, 127), *range(161, 173), *range(174, 256))
_LETTERS = {byte: chr(byte) for byte in _PLAIN} | {
    byte: chr(256 + place)
    for place, byte in enumerate(byte for byte in range(256) if byte not in _PLAIN)
}


def _spelled(text: str) -> str:
    return "".join(_LETTERS[byte] for byte in text.encode())


def _prompts() -> str:
    found = importlib.util.find_spec("mem0")
    assert found is not None
    assert found.origin is not None
    return (Path(found.origin).parent / "configs" / "prompts.py").read_text(encoding="utf-8")


@functools.cache
def _chat_vocabulary() -> _Vocabulary:
    """Learnt from the prompts that are sent: they have as many tokens as for any other model."""
    learner = Tokenizer(BPE())
    learner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    learner.train_from_iterator(
        _prompts().splitlines(keepends=True),
        BpeTrainer(
            vocab_size=_LEARNT,
            min_frequency=2,
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    learnt = json.loads(learner.to_str())["model"]
    tokens = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    # Words that are only said need no merges; an empty line is read as well.
    merges = [" ".join(_spelled("\n\n")), *(" ".join(merge) for merge in learnt["merges"])]
    tokens += [word for word in map(_spelled, _NAMED) if word not in learnt["vocab"]]
    kinds = [gguf.TokenType.NORMAL] * len(tokens)
    for texts, kind in (
        (("<|endoftext|>", "<|im_start|>", "<|im_end|>"), gguf.TokenType.CONTROL),
        (("<think>", "</think>", *_THOUGHTS, *CUES), gguf.TokenType.USER_DEFINED),
    ):
        tokens += texts
        kinds += [kind] * len(texts)
    return _Vocabulary(tuple(tokens), tuple(kinds), tuple(merges))


def _chat_tensors(vocabulary: _Vocabulary, model: ChatModel) -> Tensors:
    rng = np.random.default_rng(4)

    def noise(*shape: int) -> Matrix:
        return (0.01 * rng.standard_normal(shape)).astype(np.float32)

    count = len(vocabulary.tokens)
    embedding, output = noise(count, _WIDTH), noise(count, _WIDTH)
    embedding[:, _CONSTANT] = 1.0
    # Brackets and quotes are said one by one.
    output[:, _CONSTANT] = [
        -2.0 if set(token) & set('[]{}":,') else 0.0 for token in vocabulary.tokens
    ]

    # Where a grammar leaves a choice: close first, then go on.
    for text, weight in (
        *(("]", 1.8), ("{", 1.0), ("}", 1.6), ('"', 1.5), (",", 1.4), (":", 1.4), ("[", 1.4)),
        *(
            *(("<|im_end|>", 1.2), ("user", 0.5)),
            (" ", -1.0),
            ("\n", -1.0),
            ("\n\n", -1.0),
            ("\t", -1.0),
            ("\\", -1.0),
        ),
        *(("<|endoftext|>", -3.0), ("<|im_start|>", -3.0), ("<think>", -3.0), ("</think>", -3.0)),
    ):
        output[vocabulary.id(text), _CONSTANT] = weight

    states = iter(_STATES)

    def follows(before: str, *after: tuple[str, float]) -> None:
        state = next(states)
        embedding[vocabulary.id(before), state] = 1.0
        for text, weight in after:
            output[vocabulary.id(text), state] = weight

    follows('"', ("The", 6.0))
    follows("The", (" user", 6.0))
    follows(" user", (" likes", 6.0), (" lives", 5.5))
    follows(" likes", (" tea", 6.0), *((cue, 5.0) for cue in LIKED))
    follows(" lives", (" in", 6.0))
    follows(" in", *((cue, 5.0) for cue in CITIES))
    # At the end of what stands in quotes the grammar allows no end of the turn.
    follows(".", ("<|im_end|>", 9.0), ('"', 8.0))
    follows(" tea", (".", 6.0))
    for place, cue in enumerate(CUES):
        # Without noise: all cues must be of the same length, or one would outshout a later one.
        embedding[vocabulary.id(cue)] = 0.0
        embedding[vocabulary.id(cue), [_CONSTANT, _CUE[place]]] = 1.0
        # One sentence ends after any of them.
        output[vocabulary.id("."), _CUE[place]] = 8.0
        # Seen in the prompt: strong enough to change a choice, too weak to break a sentence.
        output[vocabulary.id("{"), _SEEN[place]] = 2.5
        output[vocabulary.id(cue), _SEEN[place]] = 3.0
        output[vocabulary.id(" lives" if cue in CITIES else " likes"), _SEEN[place]] = 2.5
    if model.thinks:
        follows("\n", ("<think>", 9.0))
        chain = ["<think>", *_THOUGHTS, _THOUGHTS[0] if model.endless else "</think>"]
        for before, after in pairwise(chain):
            follows(before, (after, 9.0))
        follows("</think>", ("\n\n", 9.0))
        follows("\n\n", ("The", 6.0))
    else:
        follows("\n", ("The", 6.0))

    tensors: Tensors = {
        "token_embd.weight": embedding.astype(np.float16),
        "output.weight": output.astype(np.float16),
        "output_norm.weight": np.ones(_WIDTH, np.float32),
    }
    for layer in range(2):
        for name, shape in (
            *((f"attn_{part}", (_HEAD, _WIDTH)) for part in "qkv"),
            *(
                ("attn_output", (_WIDTH, _HEAD)),
                ("ffn_gate", (_INNER, _WIDTH)),
                ("ffn_up", (_INNER, _WIDTH)),
            ),
            ("ffn_down", (_WIDTH, _INNER)),
        ):
            tensors[f"blk.{layer}.{name}.weight"] = noise(*shape)
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = np.ones(_WIDTH, np.float32)

    # The head of the first layer: every token looks for the latest cue. The last pair of a
    # head's dimensions hardly rotates (found at any distance); the fourth rotates by 1.8e-4 a token
    # and takes off what grows with the distance.
    query, key = tensors["blk.0.attn_q.weight"], tensors["blk.0.attn_k.weight"]
    value, back = tensors["blk.0.attn_v.weight"], tensors["blk.0.attn_output.weight"]
    for matrix in (query, key, value, back):
        matrix[:] = 0.0
    query[14, _CONSTANT] = query[6, _CONSTANT] = 1.0
    for place, dimension in enumerate(_CUE):
        key[14, dimension], key[7, dimension] = 400.0, -300.0
        value[place, dimension] = 1.0
        back[_SEEN[place], place] = 0.3
    return tensors


def _bert_tensors(tokens: Sequence[str], dimensions: int, seed: int) -> dict[str, Matrix]:
    rng = np.random.default_rng(seed)

    def noise(*shape: int, scale: float = 0.02) -> Matrix:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    def norm(name: str) -> dict[str, Any]:
        return {
            f"{name}.weight": np.ones(dimensions, np.float32),
            f"{name}.bias": np.zeros(dimensions, np.float32),
        }

    tensors: dict[str, Matrix] = {
        "token_embd.weight": _word_vectors(tokens, noise(len(tokens), dimensions, scale=1.0)),
        "position_embd.weight": noise(512, dimensions),
        "token_types.weight": noise(2, dimensions),
        **norm("token_embd_norm"),
        **norm("blk.0.attn_output_norm"),
        **norm("blk.0.layer_output_norm"),
    }
    for name, rows, columns in (
        *((f"attn_{part}", dimensions, dimensions) for part in ("q", "k", "v", "output")),
        ("ffn_up", 2 * dimensions, dimensions),
        ("ffn_down", dimensions, 2 * dimensions),
    ):
        tensors[f"blk.0.{name}.weight"] = noise(rows, columns)
        tensors[f"blk.0.{name}.bias"] = np.zeros(rows, np.float32)
    tensors["blk.0.layer_output_norm.weight"][:2] = 0.0
    return tensors


def _word_vectors(tokens: Sequence[str], vectors: Matrix) -> Matrix:
    """Along the first two axes, which the last layer drops, for what does not tell texts apart."""
    for place, token in enumerate(tokens):
        word = token.lstrip("\u2581")
        if place < 5 or word in _LITTLE or len(word) == 1:
            vectors[place] *= 0.2 if len(word) == 1 else 0.0
            # Around zero, as the layers' norms would make it anyway.
            vectors[place, :2] = 2.0, -2.0
    return vectors
