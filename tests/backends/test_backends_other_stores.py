"""Stores of other distributions: found by their entry point; one that is at fault is named, and harms no other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from m3_connectors.backends.memory import MemoryBackend
from m3_connectors.backends.registry import backend_for, store_for
from m3_connectors.backends.stores import other_stores
from m3_connectors.backends.urls import redacted
from m3_connectors.bench.scenario import read_scenario
from m3_connectors.cli.app import main
from m3_connectors.errors import InvalidInput, MissingDependency
from m3_connectors.testing.servers import CannotStart
from m3_connectors.testing.servers.start import start

Install = Callable[..., None]

DESCRIPTOR = """
from m3_connectors.backends.store import Store
STORE = Store(name="{name}", schemes=("{name}",), adapter="{module}:{adapter}")
"""
ADAPTER = """
from m3_connectors.backends.memory import MemoryBackend
class Toy(MemoryBackend):
    name = "toy"
    @classmethod
    def from_url(cls, url, collection, options):
        return cls(collection)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution of one module, as pip does."""
    monkeypatch.syspath_prepend(tmp_path)
    modules: list[str] = []

    def do(distribution: str, name: str, code: str) -> None:
        module = distribution.replace("-", "_")
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
        information = tmp_path / f"{module}-1.2.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (information / "entry_points.txt").write_text(f"[m3_connectors.stores]\n{name} = {module}:STORE\n")

    yield do
    for module in modules:
        sys.modules.pop(module, None)


def toy(name: str = "toy", module: str = "m3_toy", adapter: str = "Toy") -> str:
    return DESCRIPTOR.format(name=name, module=module, adapter=adapter) + ADAPTER


def refusal(url: str) -> str:
    with pytest.raises(InvalidInput) as refused:
        backend_for(url)
    return str(refused.value)


def test_an_installed_store_is_used_by_its_url(install: Install) -> None:
    with pytest.raises(InvalidInput, match=r"memory:, qdrant:, qdrant\+http:"):
        backend_for("toy:")
    install("m3-toy", "toy", toy())
    backend = backend_for("TOY:", "notes")
    assert (type(backend).__name__, backend.collection) == ("Toy", "notes")
    store, url = store_for("toy:there")
    assert (store.distribution, url) == ("m3-toy", "toy:there")
    assert "elasticsearch+https:, toy:" in refusal("tiy:")


def test_a_store_of_this_package_needs_no_other_distribution(install: Install) -> None:
    install("m3-exit", "exit", "raise SystemExit('this must not be imported')")
    assert isinstance(backend_for("memory:"), MemoryBackend)
    assert "m3_exit" not in sys.modules


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (
            "import no_such_client",
            "cannot be imported: ModuleNotFoundError: No module named 'no_such_client'",
        ),
        ("raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("x = 1", "cannot be imported: AttributeError: "),
        ("STORE = 7", "is 7, which is not a m3_connectors.backends.store.Store"),
        (toy("duck"), "calls itself 'duck', unlike its entry point"),
        (
            toy().replace('("toy",)', '("memory",)'),
            "has the scheme 'memory'",
        ),
        (toy().replace('("toy",)', "()"), "has no scheme"),
        (toy().replace('"m3_toy:Toy"', '"m3_toy"'), "has the adapter 'm3_toy', not module:class"),
        (toy().replace('"m3_toy:Toy"', "Store"), "has the adapter <class "),
        (toy().replace('("toy",)', "None"), "has the schemes None, not a tuple of strings"),
        (toy().replace('("toy",)', "(1,)"), "has the scheme 1; its schemes are toy, toy+http"),
        (toy().replace('("toy",)', '("toy",), packages=None'), "has the packages None, not a mapping"),
        (
            toy().replace('("toy",)', '("toy",), disk=print'),
            "has the disk <built-in function print>, not module:f",
        ),
        (toy().replace('("toy",)', '("toy",), plan="m3"'), "has the plan 'm3', not module:Formula"),
        (toy().replace('("toy",)', '("toy",), server=7'), "has the server 7, not module:class"),
        (toy().replace('("toy",)', '("toy",), ports=8080'), "has the ports 8080, not a mapping"),
    ],
)
def test_a_faulty_distribution_is_named_with_what_to_do(install: Install, code: str, what: str) -> None:
    install("m3-bad", "toy", code)
    install("m3-well", "well", toy("well", "m3_well"))
    message = refusal("toy:")
    assert f"the store toy: of m3-bad {what}" in message
    assert message.splitlines()[-1].startswith("  Update or uninstall m3-bad")
    assert type(backend_for("well:")).__name__ == "Toy"
    assert isinstance(backend_for("memory:"), MemoryBackend)
    unknown = refusal("tiy:")
    assert "well:" in unknown
    assert "m3-bad" in unknown


def test_a_name_that_is_taken_stays_with_its_owner(install: Install) -> None:
    install("m3-cuckoo", "memory", toy("memory", "m3_cuckoo"))
    install("m3-second", "toy", toy("toy", "m3_second"))
    install("m3-first", "toy", toy("toy", "m3_first"))
    assert type(backend_for("memory:")) is MemoryBackend
    assert store_for("toy:")[0].distribution == "m3-first"
    assert [str(fault) for fault in other_stores()[1]] == [
        "the store memory: of m3-cuckoo uses a name that m3-connectors already has.\n  Uninstall m3-cuckoo.",
        "the store toy: of m3-second uses a name that m3-first already has.\n  Uninstall m3-second or m3-first.",
    ]


@pytest.mark.parametrize(
    ("adapter", "what"),
    [
        ("class Toy: pass", "is not a subclass of m3_connectors.backends.base.Backend"),
        ("Toy = 7", "is not a subclass of"),
        (
            "from m3_connectors.backends.base import Backend\nclass Toy(Backend):\n  name = 'toy'",
            "does not define _count, _create, _delete, _delete_where, _drop, _fetch, _open, _upsert, _vectors, close, "
            "complete, lists, scan_ids, capabilities, from_url",
        ),
        (ADAPTER.replace("Toy", "Other"), "cannot be imported: AttributeError: "),
        ("raise OSError('no disk')", "cannot be imported: OSError: no disk"),
        ("import m3_bad_adapter.part", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_an_adapter_that_lacks_an_answer_is_named(
    install: Install, tmp_path: Path, adapter: str, what: str
) -> None:
    install("m3-bad", "toy", DESCRIPTOR.format(name="toy", module="m3_bad_adapter", adapter="Toy"))
    (tmp_path / "m3_bad_adapter.py").write_text(adapter)
    message = refusal("toy:")
    sys.modules.pop("m3_bad_adapter", None)
    assert what in message
    assert "of m3-bad" in message
    assert message.splitlines()[-1].startswith("  Update or uninstall m3-bad")


def test_a_client_that_is_not_installed_is_named(install: Install, tmp_path: Path) -> None:
    descriptor = DESCRIPTOR.format(name="toy", module="m3_bad_adapter", adapter="Toy")
    install("m3-bad", "toy", descriptor)
    (tmp_path / "m3_bad_adapter.py").write_text("import no_such_client")
    with pytest.raises(
        MissingDependency, match=r"no_such_client is not installed\.\n  pip install no_such_client$"
    ):
        backend_for("toy:")
    (tmp_path / "m3_bad.py").write_text(
        descriptor.replace(
            "STORE = Store(", 'STORE = Store(packages={"no_such_client": "toy-db"}, extra="db", '
        )
    )
    sys.modules.pop("m3_bad")
    for cached in (tmp_path / "__pycache__").glob("*"):
        cached.unlink()
    with pytest.raises(MissingDependency, match=r'toy-db is not installed.\n  pip install "m3-bad\[db\]"$'):
        backend_for("toy:")


def test_the_doctor_names_every_fault(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("m3-bad", "bad", "import no_such_client")
    install("m3-cuckoo", "memory", toy("memory", "m3_cuckoo"))
    install("m3-empty", "empty", toy("empty", "m3_empty", "Nothing"))
    install("m3-well", "well", toy("well", "m3_well"))
    assert main(["doctor", "memory:", "--json"]) == 1
    found = {one["what"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert (found["m3-well"]["level"], found["store"]["level"]) == ("ok", "ok")
    for name, remedy in (
        ("m3-bad", "Update or uninstall m3-bad"),
        ("m3-cuckoo", "Uninstall m3-cuckoo."),
        ("m3-empty", "Update or uninstall m3-empty"),
    ):
        assert found[name]["level"] == "problem"
        assert found[name]["remedy"].startswith(remedy)


def test_the_doctor_notes_a_client_that_is_not_installed(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("m3-toy", "toy", DESCRIPTOR.format(name="toy", module="m3_toy_adapter", adapter="Toy"))
    (tmp_path / "m3_toy_adapter.py").write_text("import no_such_client")
    assert main(["doctor", "memory:", "--json"]) == 0
    found = {one["what"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert found["m3-toy"]["level"] == "note"
    assert found["m3-toy"]["remedy"] == "pip install no_such_client"


@pytest.mark.parametrize(
    ("named", "what"),
    [
        ("m3_toy:Toy", "m3_toy:Toy is <class 'm3_toy.Toy'>, not a m3_connectors.backends.planning.Formula"),
        ("m3_toy:absent", "cannot be imported: AttributeError: module 'm3_toy' has no attribute 'absent'"),
    ],
)
def test_a_formula_that_is_none_is_named_and_the_others_are_calculated(
    install: Install, named: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install("m3-toy", "toy", toy().replace('("toy",)', f'("toy",), plan="{named}"'))
    arguments = ["bench", "plan", "--docs", "10", "--tokens", "10", "--json"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert what in printed.err
    assert {plan["store"] for plan in json.loads(printed.out)["plans"]} == {
        "qdrant",
        "milvus",
        "elasticsearch",
    }
    assert main([*arguments, "--store", "qdrant,toy"]) == 1
    assert "of m3-toy" in capsys.readouterr().err


SERVER = """
class Server:
    url, pid, stopped = "http://127.0.0.1:7", 1, False
    def start(self):
        pass
    def remove(self):
        Server.stopped = True
"""


def test_a_test_server_of_an_installed_store_is_started(install: Install) -> None:
    with pytest.raises(
        CannotStart, match=r"'toy' has no server that can be started\.\n  Choose from qdrant, "
    ):
        start("toy", environment={})
    install("m3-toy", "toy", toy().replace('("toy",)', '("toy",), server="m3_toy:Server"') + SERVER)
    scenario = read_scenario({"name": "s", "stores": [{"name": "a", "start": "toy"}], "loads": [{}]}, "s")
    running = start(str(scenario.stores[0].start), environment={})
    assert (running.url, running.how) == ("toy+http://127.0.0.1:7", "process")
    running.stop()
    assert sys.modules["m3_toy"].Server.stopped


def test_a_path_of_an_installed_store_is_shown_whole(install: Install) -> None:
    assert redacted("toy:./data@home") == "toy:home"
    install("m3-toy", "toy", toy().replace('("toy",)', '("toy",), takes_path=True'))
    assert redacted("toy:./data@home") == "toy:./data@home"
    assert redacted("toy:user:secret@host") == "toy:host"


def test_a_store_that_keeps_nothing_is_named(
    install: Install, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("m3-toy", "toy", toy())
    assert main(["search", "toy:", "a question"]) == 1
    assert "toy: is empty when a command starts" in capsys.readouterr().err
