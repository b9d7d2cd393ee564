"""RemoteEncoder against the service itself; its faults are tested against a server of its own (tests/encoder)."""

from __future__ import annotations

import numpy as np
import pytest
from serving import serving
from stub_encoder import StubEncoder

from m3_connectors import Document, M3Encoder, RemoteEncoder, connect
from m3_connectors.errors import InvalidInput, NotFound, Unauthorised
from m3_connectors.service.keys import Keys
from m3_connectors.testing.checkpoints import TEXTS, write_checkpoint

RIGHT = "a-right-key-of-the-tests"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> M3Encoder:
    model = write_checkpoint(tmp_path_factory.mktemp("small"))
    (model / "weights.json").write_text('{"all": [1, 0.5, 2]}')
    return M3Encoder(model, device="cpu", precision="float32", max_length=64)


def test_it_is_the_encoder_of_the_service(encoder: M3Encoder) -> None:
    texts = ["", *TEXTS.values(), "tea, \u0000 and 👩‍👩‍👧"]
    with serving(encoder) as running, RemoteEncoder(running.url) as remote:
        assert remote.info == encoder.info
        assert dict(remote.recommended_weights) == dict(encoder.recommended_weights) != {}
        assert remote.max_length == encoder.max_length
        assert remote.token_strings(texts[1]) == encoder.token_strings(texts[1])
        got, wanted = remote.encode(texts), encoder.encode(texts)
    np.testing.assert_allclose(got.dense, wanted.dense, atol=1e-6)
    np.testing.assert_allclose(got.sparse.toarray(), wanted.sparse.toarray(), atol=1e-5)
    np.testing.assert_array_equal(got.multivectors.offsets, wanted.multivectors.offsets)
    np.testing.assert_allclose(got.multivectors.rows, wanted.multivectors.rows, atol=1e-6)
    np.testing.assert_array_equal(got.token_counts, wanted.token_counts)


def test_an_index_and_explanations_need_no_other_encoder(encoder: M3Encoder) -> None:
    with (
        serving(encoder) as running,
        RemoteEncoder(running.url) as remote,
        connect("memory:", encoder=remote) as index,
    ):
        index.add([Document("1", "Plums ripen in late summer."), Document("2", "Snow falls in winter.")])
        assert index.search("Plums ripen in late summer.")[0].document.id == "1"
        assert index.explain("Plums ripen.", "1").tokens


def test_keys_are_asked_for_and_sent(encoder: M3Encoder) -> None:
    with serving(encoder, keys=Keys({RIGHT: "read"})) as running:
        with pytest.raises(Unauthorised, match="the API key is unknown"):
            RemoteEncoder(running.url, api_key="a-wrong-key-of-the-tests")
        with RemoteEncoder(running.url, api_key=RIGHT) as admitted:
            assert len(admitted.encode(["tea"])) == 1


def test_a_refusal_is_the_librarys_own_message(encoder: M3Encoder) -> None:
    with (
        serving(encoder) as running,
        RemoteEncoder(running.url) as remote,
        pytest.raises(InvalidInput, match="lone surrogate"),
    ):
        remote.encode(["a\ud800"])


def test_an_encoder_without_a_tokenizer_is_named() -> None:
    with (
        serving(StubEncoder()) as running,
        RemoteEncoder(running.url) as remote,
        pytest.raises(NotFound, match="StubEncoder does not offer its tokenizer"),
    ):
        remote.count_tokens(["tea"])
