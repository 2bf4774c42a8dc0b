"""Sentence embeddings on the device against the NumPy reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ml_dtypes import finfo
from numpy.typing import NDArray

from hipattn import ArgumentError, ClosedError, HipError, Stream
from hipattn.errors import ModelError
from hipattn.models import minilm
from hipattn.models.bert import Bert
from hipattn.models.bert_file import BertHyperparameters, BertTokenizer, BertWeights
from hipattn.models.bert_reference import BertReference
from hipattn.models.safetensors_file import SafetensorsFile
from hipattn.runtime import bindings, buffer
from tests.helpers import tiny_bert
from tests.helpers.tolerance import DTYPES
from tests.models.conftest import fetched

pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

# With the two tokens around each: 3 to 40 tokens, two texts of one length.
TEXTS = (
    "the cat sat.",
    "sat",
    "the cats sat. the cat sat. the cats sat on the cats.",
    "cat. the sat",
    " ".join(["the cat sat"] * 12) + " . .",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_bert.write(tmp_path, positions=40)


def expected(folder: Path, texts: tuple[str, ...] = TEXTS, dtype: Any = np.float32) -> NDArray[np.float64]:
    """The reference's embeddings, in float64 from weights that were rounded to `dtype`."""
    sizes = BertHyperparameters.read(folder / "config.json")
    tokenizer = BertTokenizer(folder / "tokenizer.json", sizes)
    weights = BertWeights(SafetensorsFile(folder / "model.safetensors"), sizes)
    reference = BertReference(sizes, weights.load(dtype))
    return np.array([reference.embed(tokenizer.encode(text)) for text in texts])


def copies(calls: list[tuple[str, tuple[Any, ...]]]) -> tuple[int, int]:
    """How many copies went to the device and back."""
    kinds = [arguments[3].name for name, arguments in calls if name.startswith("hipMemcpy")]
    assert set(kinds) <= {"hipMemcpyHostToDevice", "hipMemcpyDeviceToHost"}
    return kinds.count("hipMemcpyHostToDevice"), kinds.count("hipMemcpyDeviceToHost")


@pytest.mark.parametrize("method", ["auto", "flash", "staged"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_against_the_reference(stream: Stream, folder: Path, dtype: np.dtype[Any], method: str) -> None:
    with Bert(folder, dtype=dtype, method=method, stream=stream) as model:
        got = model.embed(TEXTS, batch=3)
    assert (got.shape, got.dtype) == ((5, 12), np.float32)
    wanted = expected(folder, dtype=dtype)
    assert (wanted @ wanted.T)[~np.eye(5, dtype=bool)].max() < 0.98  # each could be told from the others
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, rtol=0, atol=1e-6)
    assert (got * wanted).sum(axis=1).min() >= 0.9999
    np.testing.assert_allclose(got, wanted, rtol=0, atol=4 * float(finfo(dtype).eps))


def test_a_batch_gives_each_text_what_it_has_alone(stream: Stream, folder: Path) -> None:
    with Bert(folder, stream=stream, dtype=np.float32) as model:
        alone = np.concatenate([model.embed(text) for text in TEXTS])
        for batch in (1, 2, 32):
            np.testing.assert_allclose(model.embed(TEXTS, batch=batch), alone, rtol=0, atol=2e-6)
        np.testing.assert_allclose(model.embed(TEXTS[::-1]), alone[::-1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["flash", "staged"])
def test_a_batch_is_one_copy_up_and_one_down_and_allocates_nothing(stream: Stream, folder: Path, method: str) -> None:
    with Bert(folder, method=method, stream=stream) as model:
        model.embed(TEXTS, batch=2)
        with bindings.record() as calls:
            model.embed(TEXTS, batch=2)
        batches = {"flash": 3, "staged": 4}[method]  # by twos, or of four lengths
        assert copies(calls) == (batches, batches)
        assert not [name for name, _ in calls if "Malloc" in name or "Free" in name]


def test_memory_is_made_once_and_grows(stream: Stream, folder: Path) -> None:
    with Bert(folder, stream=stream) as model:
        model.embed(TEXTS[0])
        first = buffer.live()
        model.embed([TEXTS[0], TEXTS[1]])
        two_texts = buffer.live()
        model.embed([TEXTS[4]])  # longer, and still room for two
        model.embed(TEXTS, batch=2)
        grown = buffer.live()
        model.embed(TEXTS[0])
        assert buffer.live() == grown
        assert first[0] == two_texts[0] == grown[0]
        assert first[1] < two_texts[1] < grown[1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_memory_held_before_does_not_matter(stream: Stream, folder: Path, dtype: np.dtype[Any]) -> None:
    with Bert(folder, dtype=dtype, stream=stream) as model:
        before = model.embed(TEXTS)
        workspace = model._workspace
        assert workspace is not None
        for tensor in (*workspace.plan._memory.values(), workspace.pooled):
            tensor.copy_from(np.full(tensor.shape, np.nan, tensor.dtype), stream=stream)
        np.testing.assert_array_equal(model.embed(TEXTS), before)


def test_no_texts(folder: Path) -> None:
    with Bert(folder) as model:
        assert model.embed([]).shape == (0, 12)


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (["cat", ""], {}, r"texts\[1\] is ''; it takes a text"),
        (" \n", {}, r"texts\[0\] is ' \\n'; it takes a text"),
        (["cat", "sat", 7], {}, r"texts\[2\] is int; it takes a str"),
        (None, {}, r"texts\[0\] is None; it takes a str"),
        (["cat", "the " * 39], {}, r"texts\[1\] has 41 tokens; the model takes 40"),
        (["cat\udfff"], {}, r"texts\[0\] is 'cat\\udfff'; it takes a text that can be written in UTF-8"),
        (["cat"], {"batch": 0}, "batch is 0; it takes an integer of 1 or more"),
    ],
)
def test_bad_texts(folder: Path, texts: Any, options: dict[str, Any], message: str) -> None:
    with Bert(folder) as model, bindings.record() as calls:
        with pytest.raises(ArgumentError, match=message):
            model.embed(texts, **options)
        assert not calls


def test_bad_options(folder: Path) -> None:
    with pytest.raises(ArgumentError, match="dtype is float64; accepted: float32, float16, bfloat16"):
        Bert(folder, dtype=np.float64)
    with pytest.raises(ArgumentError, match="stream is int; it takes a Stream"):
        Bert(folder, stream=3)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="method is 'fast'; accepted: auto"):
        Bert(folder, method="fast")


def test_numbers_that_the_dtype_cannot_hold(stream: Stream, tmp_path: Path) -> None:
    names = "embeddings.LayerNorm.weight", "encoder.layer.1.attention.output.LayerNorm.weight"
    large = {name: np.full(12, 5e4, np.float32) for name in names}
    folder = tiny_bert.write(tmp_path, changed=large)
    message = r"the embedding of texts\[0\] holds NaN: .* too large for float16"
    with Bert(folder, dtype=np.float16, stream=stream) as model, pytest.raises(ModelError, match=message):
        model.embed(["cat", "sat"])


def test_closed(folder: Path) -> None:
    before = buffer.live()
    with Bert(folder, method="flash") as model:
        model.embed("cat")
    assert buffer.live() == before
    with pytest.raises(ClosedError, match="the model is closed"):
        model.embed("cat")
    model.close()


def test_no_room(stream: Stream, folder: Path, fail: Any) -> None:
    """Wherever memory ends, nothing stays; a model that found none for a batch works when there is some."""
    call = "hipMallocAsync" if stream.device.memory_pools else "hipMalloc"
    before = buffer.live()
    for nth in (1, 5, 6, 17, 29, 30, 31):  # embeddings, layers, and two beside
        with fail(f"{call}:{nth}"), pytest.raises(HipError):
            Bert(folder, stream=stream)
        assert buffer.live() == before
    with Bert(folder, method="flash", stream=stream) as model:
        loaded = buffer.live()
        for nth in (1, 5, 6, 7):  # the plan's five, and two beside
            with fail(f"{call}:{nth}"), pytest.raises(HipError):
                model.embed(TEXTS)
            assert buffer.live() == loaded
        model.embed("cat")
        with fail(f"{call}:2"), pytest.raises(HipError):
            model.embed(TEXTS)  # which takes more
        assert buffer.live() == loaded
        np.testing.assert_allclose(model.embed(TEXTS), expected(folder), rtol=0, atol=1e-6)


VARIED = (
    "Hello, world!",
    "A man is eating pasta.",
    "Someone is having a plate of noodles.",
    "The stock market fell sharply today.",
    "Shares dropped a lot this afternoon.",
    "How do I reset my password?",
    "I forgot my login and need a new one.",
    "yes",
    "2 + 2 = 4, and 3.14159 is close to pi.",
    "def attention(q, k, v): return softmax(q @ k.T) @ v",
    "THIS IS WRITTEN IN CAPITALS!!!",
    "Der Zug nach München fährt um 7 Uhr ab.",
    "Le café était déjà fermé quand nous sommes arrivés.",
    "東京は日本の首都です。",
    "🙂🙃 emoji are words, too",
    "https://example.org/a/b?c=d#e",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "Attention maps a query and a set of key-value pairs to an output: a weighted sum of the values, where the weight "
    "of each value is computed from the query and its key.",
    "word " * 40,
)


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest) -> Path:
    return fetched(request, minilm.FILE).parent


@pytest.fixture(scope="module")
def embedded(real: Path) -> NDArray[np.float32]:
    with minilm.load(real, dtype=np.float32) as model:
        return model.embed(VARIED, batch=8)


@pytest.fixture(scope="module")
def wanted(real: Path) -> NDArray[np.float64]:
    return expected(real, VARIED)


@pytest.mark.model
class TestRealModel:
    """all-MiniLM-L6-v2."""

    def test_against_the_reference(self, embedded: NDArray[np.float32], wanted: NDArray[np.float64]) -> None:
        np.testing.assert_allclose(embedded, wanted, rtol=0, atol=2e-6)

    @pytest.mark.parametrize(("dtype", "least"), [("float16", 0.9999), ("bfloat16", 0.9998)])
    def test_in_16_bits(self, real: Path, wanted: NDArray[np.float64], dtype: str, least: float) -> None:
        """The reference's weights are the file's: rounding them to bfloat16 alone costs 6e-5."""
        with minilm.load(real, dtype=dtype) as model:
            assert (model.embed(VARIED) * wanted).sum(axis=1).min() >= least

    def test_paraphrases_are_closer_than_strangers(self, embedded: NDArray[np.float32]) -> None:
        first, second = embedded[[1, 3, 5]], embedded[[2, 4, 6]]
        similarity = first @ second.T
        assert np.diag(similarity).min() > similarity[~np.eye(3, dtype=bool)].max() + 0.3
