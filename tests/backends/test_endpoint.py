"""What a server's options may be, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from m3_connectors.backends.capabilities import Capability
from m3_connectors.backends.endpoint import Endpoint
from m3_connectors.backends.registry import backend_for
from m3_connectors.backends.urls import redacted
from m3_connectors.errors import InvalidInput
from m3_connectors.testing.conformance import runs

URL = "elasticsearch+https://localhost"
NAMES = ("API_KEY", "USERNAME", "PASSWORD", "CA_CERTS", "FINGERPRINT")


def parsed(environment: dict[str, str], **options: Any) -> Endpoint:
    endpoint, _ = Endpoint.parse(
        URL, options, default_port=9200, environment=environment, declared=frozenset(Capability)
    )
    return endpoint


def test_an_empty_variable_is_not_set() -> None:
    assert parsed({f"M3_ELASTICSEARCH_{name}": "" for name in NAMES}) == parsed({})


def test_the_environment_counts_where_no_option_is_given() -> None:
    environment = {"M3_ELASTICSEARCH_FINGERPRINT": "ab" * 32}
    assert parsed(environment).fingerprint == "ab" * 32
    assert parsed(environment, fingerprint="cd" * 32).fingerprint == "cd" * 32


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"username": 5, "password": "p"}, "username is 5"),
        ({"fingerprint": 5}, "fingerprint is 5"),
        ({"ca_certs": True}, "ca_certs is True"),
        ({"api_key": 5}, "api_key is of type int"),
        ({"timeout_seconds": "5"}, "timeout_seconds is '5'"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parsed({}, **options)


@pytest.mark.parametrize("key", ["hunter2", "hunter2\n", "hunter2\r\n", " hunter2", SecretStr("hunter2\n")])
def test_a_key_is_cleaned_of_the_blanks_of_its_file(key: str | SecretStr) -> None:
    there = parsed({}, api_key=key).api_key
    assert there is not None
    assert there.get_secret_value() == "hunter2"


@pytest.mark.parametrize("key", ["hun\nter2", "hun ter2", "hünter2", "hunter2\x00"])
def test_a_key_that_no_request_can_carry_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidInput, match="api_key contains a space") as caught:
        parsed({}, api_key=key)
    assert "ter2" not in str(caught.value)


def test_a_password_keeps_its_blanks_and_letters() -> None:
    there = parsed({}, username="me", password=" pässword \n").password
    assert there is not None
    assert there.get_secret_value() == " pässword "


@pytest.mark.parametrize("store", ["elasticsearch", "milvus", "qdrant"])
def test_a_key_goes_over_http_on_loopback_only_or_where_that_is_allowed(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached(host: str, **options: Any) -> None:
        backend_for(f"{store}+{host}", "notes", options)

    for here in ("http://127.0.0.1", "http://localhost:1", "http://[::1]", "https://db.example"):
        reached(here, api_key="hunter2")
    for elsewhere in ("http://db.example", "http://10.0.0.7:6333"):
        with pytest.raises(InvalidInput, match=r"not encrypted.*\n.*allow_unencrypted_key=True") as caught:
            reached(elsewhere, api_key="hunter2")
        assert "hunter2" not in str(caught.value)
        reached(elsewhere)
        reached(elsewhere, api_key="hunter2", allow_unencrypted_key=True)
    monkeypatch.setenv(f"M3_{store.upper()}_ALLOW_UNENCRYPTED_KEY", "true")
    reached("http://db.example", api_key="hunter2")
    with pytest.raises(InvalidInput, match="not encrypted"):
        reached("http://db.example", api_key="hunter2", allow_unencrypted_key=False)


def test_a_password_over_http_is_refused_too() -> None:
    with pytest.raises(InvalidInput, match="not encrypted"):
        backend_for("elasticsearch+http://me:hunter2@db.example", "notes")


@pytest.mark.parametrize(
    "url",
    [
        "elasticsearch+https://me:hunter2@host",
        "elasticsearch+https:me:hunter2@host",
        "elasticsearch+https:/me:hunter2@host",
        "me:hunter2@host:9200",
        "milvus:root:hunter2@host",
        "qdrant:me:hunt@er2@host",
        "qdrant+http:hunter2@host",
        "qdrant:hunter2@host:6333",
        "milvus:hunter2@host:19530/default",
    ],
)
def test_a_mistyped_address_is_shown_without_its_password(url: str) -> None:
    assert "er2" not in redacted(url)
    assert "host" in redacted(url)


@pytest.mark.parametrize(
    "url",
    [
        "qdrant:./data@home",
        "qdrant:./data@home:6333",
        "milvus:/srv/a@b.db",
        "memory:",
        "qdrant:a?b#c",
        "qdrant:C:/a#b",
    ],
)
def test_a_path_is_shown_as_it_is(url: str) -> None:
    assert redacted(url) == url


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("qdrant+https://me:secret@host:6333/x", "qdrant+https://host:6333/x"),
        ("qdrant+https://host/x?api_key=secret#f", "qdrant+https://host/x"),
        ("--model", "--model"),
    ],
)
def test_no_secret_is_recorded(url: str, safe: str) -> None:
    assert redacted(url) == safe


@pytest.mark.parametrize("store", ["elasticsearch", "milvus", "qdrant"])
def test_an_authority_that_is_no_such_file_is_refused_with_what_to_give(store: str, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("nothing of the kind\n")
    for path, why in ((tmp_path / "nope.pem", "No such file"), (garbage, "contains no certificate")):
        with pytest.raises(
            InvalidInput, match=rf"{path.name}.*{why}.*\n  Pass the PEM file .*M3_{store.upper()}_CA"
        ):
            backend_for(f"{store}+https://localhost", "notes", {"ca_certs": str(path)})


@pytest.mark.parametrize("store", ["qdrant", "milvus"])
@runs
async def test_an_authority_that_is_gone_when_a_connection_is_opened_is_named(
    store: str, tmp_path: Path
) -> None:
    trustme = pytest.importorskip("trustme")
    path = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    backend = backend_for(f"{store}+https://127.0.0.1:1", "notes", {"ca_certs": str(path), "attempts": 1})
    path.unlink()
    with pytest.raises(InvalidInput, match=r"ca_certs is '.*authority\.pem', which cannot be read"):
        await backend.open()
    await backend.close()
