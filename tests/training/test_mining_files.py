"""``m3 mine`` and ``m3 score-pairs``: files in, files out, the same bytes after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sentence_checkpoints import write_cross_encoder, write_sentence_model
from stub_encoder import StubEncoder

from m3_connectors import CrossEncoder, Document, M3Encoder, connect
from m3_connectors.cli.app import main
from m3_connectors.errors import InvalidInput
from m3_connectors.training.mining import MiningSettings
from m3_connectors.training.mining_files import Corpus, MiningReport, ScoringReport, mine_files, score_files
from m3_connectors.training.pairs import read_pairs

LOOSE = MiningSettings(num_negatives=3, range_min=1, range_max=20, relative_margin=None)


class Lengths:
    """A teacher by length of text."""

    fingerprint = "lengths"

    def score(self, query: str, documents: Sequence[Document]) -> Sequence[float]:
        return [float(len(document.text)) for document in documents]


def write_pairs(path: Path, count: int = 40, **more: Any) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            pair = {"query": f"question {i} é", "pos": [f"answer {i} of {i % 7}"]} | more
            file.write(json.dumps(pair, ensure_ascii=False) + "\n")
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_lines_are_flag_embeddings_and_train_reads_them(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", lang_q="de", lang_p="en")
    (tmp_path / "out").mkdir()
    report = mine_files(StubEncoder(), [pairs], tmp_path / "out" / "mined.jsonl", LOOSE)
    mined = records(tmp_path / "out" / "mined.jsonl")
    assert [one["query"] for one in mined] == [f"question {i} é" for i in range(40)]
    answers = {f"answer {i} of {i % 7}" for i in range(40)}
    for one in mined:
        assert list(one) == ["query", "pos", "neg", "pos_scores", "neg_scores", "lang_q", "lang_p"]
        assert set(one["neg"]) < answers - set(one["pos"])
        assert len(one["neg"]) == len(set(one["neg"])) == len(one["neg_scores"]) == 3
        assert len(one["pos_scores"]) == 1
        assert one["neg_scores"] == sorted(one["neg_scores"], reverse=True)
        assert (one["lang_q"], one["lang_p"]) == ("de", "en")
    assert [pair.query for pair in read_pairs(tmp_path / "out")] == [one["query"] for one in mined]
    assert (report.lines, report.written, report.passages, report.negatives) == (40, 40, 40, {"3": 40})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mined.jsonl",
        "mined.jsonl.report.json",
    ]


def test_broken_lines_are_named_and_the_rest_is_used(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    good = pairs.read_text(encoding="utf-8").splitlines(keepends=True)
    broken = [
        "{not JSON}\n",
        '{"query": "a", "pos": []}\n',
        '{"query": "a", "pos": ["b"], "neg": "c"}\n',
        '{"query": "a", "pos": ["b"], "neg": ["\\ud800"]}\n',
        '{"query": " ", "positive": "b", "lang_q": "en", "lang_p": "en"}\n',
    ]
    pairs.write_text("".join([*broken[:3], *good[:20], "\n", *broken[3:], *good[20:]]), encoding="utf-8")
    report = mine_files(StubEncoder(), [pairs], tmp_path / "mined.jsonl", LOOSE)
    assert (report.lines, report.written, report.skipped) == (40, 40, 5)
    numbers = [int(line.split(":")[1].split()[0].rstrip(":")) for line in report.skipped_lines]
    assert numbers == [1, 2, 3, 25, 26]
    assert "neg[0]" in report.skipped_lines[3] or "surrogate" in report.skipped_lines[3]
    pairs.write_text("".join(broken), encoding="utf-8")
    with pytest.raises(
        InvalidInput, match=r"has no training pair. The first problem: .*pairs.jsonl:1 is not"
    ):
        mine_files(StubEncoder(), [pairs], tmp_path / "none.jsonl", LOOSE)
    assert not list(tmp_path.glob("none*"))
    with pytest.raises(InvalidInput, match="does not exist"):
        mine_files(StubEncoder(), [tmp_path / "absent"], tmp_path / "none.jsonl", LOOSE)


def test_repeated_lines_and_texts_are_encoded_once_and_mined_alike(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    text = pairs.read_text(encoding="utf-8")
    pairs.write_text(text + text, encoding="utf-8")
    encoder = StubEncoder()
    report = mine_files(encoder, [pairs], tmp_path / "mined.jsonl", LOOSE)
    mined = (tmp_path / "mined.jsonl").read_bytes()
    assert mined[: len(mined) // 2] == mined[len(mined) // 2 :]
    assert report.passages == 40
    assert (
        sum(text.startswith("answer") for text in encoder.texts) <= 2 * 40
    )  # once, and if not found by a search


def test_negatives_of_the_file_and_the_corpus_are_passages(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 1, neg=["old negative"])
    corpus = Corpus((pairs,), "text", lambda: ["from the corpus", "answer  0 of 0", ""])
    settings = MiningSettings(num_negatives=2, range_min=0, relative_margin=None)
    report = mine_files(StubEncoder(), [pairs], tmp_path / "mined.jsonl", settings, corpus=corpus)
    (mined,) = records(tmp_path / "mined.jsonl")
    assert set(mined["neg"]) == {"old negative", "from the corpus"}
    assert report.passages == 3


def test_lines_without_a_negative_are_counted_and_left_out_unless_asked_for(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    strict = MiningSettings(num_negatives=3, range_min=1, range_max=20, relative_margin=0.2)
    report = mine_files(StubEncoder(), [pairs], tmp_path / "mined.jsonl", strict)
    mined = records(tmp_path / "mined.jsonl")
    none = report.negatives["0"]
    assert 0 < none < 40
    assert len(report.without) == min(none, 10)
    assert len(mined) == report.written == 40 - none
    assert all(one["neg"] for one in mined)
    kept = mine_files(StubEncoder(), [pairs], tmp_path / "all.jsonl", strict, keep_all=True)
    everything = records(tmp_path / "all.jsonl")
    assert kept.written == 40
    assert [one for one in everything if one["neg"]] == mined
    assert {one["query"] for one in everything if not one["neg"]} >= set(report.without)


PROGRAM = """
import os, signal, sys
from pathlib import Path
from stub_encoder import StubEncoder
from m3_connectors.training import mining, mining_files

class Lengths:
    fingerprint = "lengths"

    def score(self, query, documents):
        return [float(len(document.text)) for document in documents]

LOOSE = mining.MiningSettings(num_negatives=3, range_min=1, range_max=20, relative_margin=None)

mining._CHUNK_PASSAGES, mining_files.BLOCK_QUERIES = 8, 8
left = {events}

def counted(function):
    def call(*arguments, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return call

os.replace, os.fsync = counted(os.replace), counted(os.fsync)
StubEncoder.encode = counted(StubEncoder.encode)
folder = Path({folder!r})
if {command!r} == "mine":
    mining_files.mine_files(StubEncoder(), [folder / "pairs.jsonl"], folder / {target!r}, LOOSE, teacher=Lengths())
else:
    mining_files.score_files(Lengths(), [folder / "pairs.jsonl"], folder / {target!r})
"""


def run(folder: Path, command: str, target: str, events: int) -> int:
    program = PROGRAM.format(folder=str(folder), command=command, target=target, events=events)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", program], env=environment).returncode


@pytest.mark.parametrize(("command", "kills"), [("mine", [3, 9, 14, 8]), ("score", [2, 7])])
def test_a_killed_run_goes_on_and_writes_the_same_bytes(
    tmp_path: Path, command: str, kills: list[int]
) -> None:
    write_pairs(tmp_path / "pairs.jsonl", neg=["another"])
    assert run(tmp_path, command, "whole.jsonl", 10**9) == 0
    for events in kills:
        code = run(tmp_path, command, "killed.jsonl", events)
        assert code == -signal.SIGKILL
        assert not (tmp_path / "killed.jsonl").exists()
    assert run(tmp_path, command, "killed.jsonl", 10**9) == 0
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    reports = [
        json.loads((tmp_path / f"{name}.jsonl.report.json").read_text()) for name in ("killed", "whole")
    ]
    assert reports[0] == reports[1]
    assert not (tmp_path / "killed.jsonl.work").exists()


def test_an_end_before_the_last_rename_and_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    target = tmp_path / "mined.jsonl"
    whole = mine_files(StubEncoder(), [pairs], tmp_path / "whole.jsonl", LOOSE)
    content = (tmp_path / "whole.jsonl").read_bytes()
    rename = os.replace

    def fail(source: Path, name: Path) -> None:
        if name == target:
            raise OSError("no space left on device")
        rename(source, name)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        mine_files(StubEncoder(), [pairs], target, LOOSE)
    monkeypatch.undo()
    assert not target.exists()
    encoder = StubEncoder()
    assert mine_files(encoder, [pairs], target, LOOSE) == whole
    assert encoder.texts == []
    assert target.read_bytes() == content
    # After the rename: the folder of the run is still there.
    (tmp_path / "mined.jsonl.work").mkdir()
    encoder = StubEncoder()
    assert mine_files(encoder, [pairs], target, LOOSE) == whole
    assert encoder.texts == []
    assert target.read_bytes() == content
    assert not (tmp_path / "mined.jsonl.work").exists()


def test_another_run_does_not_continue_or_replace_a_file(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    target = tmp_path / "mined.jsonl"

    class Interrupted(Exception):
        pass

    def interrupt(step: str, done: int) -> None:
        if step == "mining":
            raise Interrupted

    with pytest.raises(Interrupted):
        mine_files(StubEncoder(), [pairs], target, LOOSE, progress=interrupt)
    other = MiningSettings(num_negatives=2)
    with pytest.raises(
        InvalidInput,
        match=r"(?s)was begun by another run: num_negatives was 3 and is 2; .* delete mined.jsonl.work",
    ):
        mine_files(StubEncoder(), [pairs], target, other)
    mine_files(StubEncoder(), [pairs], target, LOOSE)
    content = target.read_bytes()
    with pytest.raises(
        InvalidInput, match=r"was written by another run: teacher was null and is \"lengths\""
    ):
        mine_files(StubEncoder(), [pairs], target, LOOSE, teacher=Lengths())
    write_pairs(pairs, 41)
    with pytest.raises(InvalidInput, match=r"pairs was .*\n  Choose another file, or delete mined.jsonl to"):
        mine_files(StubEncoder(), [pairs], target, LOOSE)
    assert target.read_bytes() == content
    (tmp_path / "foreign.jsonl").write_text("{}\n")
    with pytest.raises(InvalidInput, match=r"foreign.jsonl.report.json is missing or damaged"):
        mine_files(StubEncoder(), [pairs], tmp_path / "foreign.jsonl", LOOSE)
    assert (tmp_path / "foreign.jsonl").read_text() == "{}\n"
    with pytest.raises(InvalidInput, match="it is a folder"):
        mine_files(StubEncoder(), [pairs], tmp_path, LOOSE)


def test_a_file_that_is_read_is_never_the_output(tmp_path: Path) -> None:
    pairs, corpus = write_pairs(tmp_path / "pairs.jsonl"), write_pairs(tmp_path / "corpus.jsonl")
    further = Corpus((corpus,), "text", lambda: [])
    before = pairs.read_bytes()
    for target in (pairs, corpus):
        with pytest.raises(InvalidInput, match=f"{target.name} is both read, as .*, and to be written"):
            mine_files(StubEncoder(), [tmp_path / "pairs.jsonl"], target, LOOSE, corpus=further)
    with pytest.raises(InvalidInput, match="is both read, as"):
        score_files(Lengths(), [tmp_path], tmp_path / "pairs.jsonl")
    assert pairs.read_bytes() == before


def test_a_file_of_unknown_origin_is_not_to_be_deleted(tmp_path: Path) -> None:
    pairs, other = write_pairs(tmp_path / "pairs.jsonl"), write_pairs(tmp_path / "other.jsonl")
    with pytest.raises(InvalidInput, match="cannot be continued") as refused:
        mine_files(StubEncoder(), [pairs], other, LOOSE)
    assert "delete" not in str(refused.value)


def test_a_line_in_another_encoding_is_skipped_as_in_training(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    with pairs.open("ab") as file:
        file.write(b'{"query": "caf\xe9", "pos": ["x"]}\n')
    (tmp_path / "out").mkdir()
    report = mine_files(StubEncoder(), [pairs], tmp_path / "out" / "mined.jsonl", LOOSE)
    assert report.lines == 40
    assert report.skipped == 1
    assert "pairs.jsonl:41 is not UTF-8" in report.skipped_lines[0]


def test_a_teacher_scores_what_was_mined_and_files_that_have_negatives(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    mine_files(StubEncoder(), [pairs], tmp_path / "plain.jsonl", LOOSE)
    mine_files(StubEncoder(), [pairs], tmp_path / "taught.jsonl", LOOSE, teacher=Lengths())
    report = score_files(Lengths(), [tmp_path / "plain.jsonl"], tmp_path / "scored.jsonl")
    assert report == ScoringReport(lines=40)
    assert records(tmp_path / "scored.jsonl") == records(tmp_path / "taught.jsonl")
    for one in records(tmp_path / "taught.jsonl"):
        assert one["pos_scores"] == [float(len(text)) for text in one["pos"]]
        assert one["neg_scores"] == [float(len(text)) for text in one["neg"]]


def test_scoring_keeps_other_keys_and_names_broken_lines(tmp_path: Path) -> None:
    lines = [
        '{"query": "q", "pos": ["a", "bb"], "neg": ["ccc"], "prompt": "p", "id": 7, "pos_scores": [0, 0]}',
        '{"query": "q"}',
        '{"query": "q", "positive": "dddd", "lang_q": "en", "lang_p": "th"}',
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    report = score_files(Lengths(), [tmp_path], tmp_path / "scored.out.jsonl")
    assert report.skipped == 1
    assert "pairs.jsonl:2 is not a training pair" in report.skipped_lines[0]
    first, second = records(tmp_path / "scored.out.jsonl")
    assert first == {"query": "q", "pos": ["a", "bb"], "neg": ["ccc"], "prompt": "p", "id": 7} | {
        "pos_scores": [1.0, 2.0],
        "neg_scores": [3.0],
    }
    assert second == {"query": "q", "lang_q": "en", "lang_p": "th", "pos": ["dddd"], "neg": []} | {
        "pos_scores": [4.0],
        "neg_scores": [],
    }


@pytest.mark.parametrize("scores", [[1.0], [1.0, float("nan")], []])
def test_a_teacher_without_a_finite_score_for_each_text_is_refused(
    tmp_path: Path, scores: list[float]
) -> None:
    class Wrong(Lengths):
        def score(self, query: str, documents: Sequence[Document]) -> Sequence[float]:
            return scores

    pairs = write_pairs(tmp_path / "pairs.jsonl", neg=["another"])
    with pytest.raises(InvalidInput, match="one finite number for each text"):
        score_files(Wrong(), [pairs], tmp_path / "scored.jsonl")
    assert not list(tmp_path.glob("scored*"))


def test_the_commands(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With an encoder, a cross-encoder, further passages and a store on disk."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", 20)
    with pairs.open("a") as file:
        file.write("{broken\n")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": str(i), "text": f"rain {i} falls"}) + "\n" for i in range(30))
    )
    teacher = write_cross_encoder(tmp_path / "teacher")
    mined, scored = tmp_path / "mined.jsonl", tmp_path / "scored.jsonl"
    common = [
        "mine",
        str(pairs),
        "--model",
        str(checkpoint),
        "--range-min",
        "2",
        "--no-margin",
        "--negatives",
        "4",
    ]
    assert main([*common, "--to", str(mined), "--corpus", str(corpus), "--method", "all", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passages"], report["lines"], report["negatives"], report["skipped"]) == (
        50,
        20,
        {"4": 20},
        1,
    )
    assert main(["score-pairs", str(mined), "--teacher", str(teacher), "--to", str(scored)]) == 0
    assert "20 lines written to" in capsys.readouterr().out
    exact = CrossEncoder(str(teacher))
    for one, plain in zip(records(scored), records(mined), strict=True):
        assert one["neg"] == plain["neg"]
        documents = [Document(text, text) for text in one["neg"]]
        assert one["neg_scores"] == pytest.approx(exact.score(one["query"], documents), abs=1e-5)
    url = f"qdrant:{tmp_path / 'store'}"
    with connect(url, encoder=M3Encoder(str(checkpoint))) as index:
        index.add([Document(str(i), f"snow {i} on the hills") for i in range(25)])
    assert main([*common, "--to", str(tmp_path / "other.jsonl"), "--store", url]) == 0
    shown = capsys.readouterr()
    assert "20 of 20 lines with 4 negatives" in shown.out
    assert "pairs.jsonl:21 is not a training pair" in shown.err
    assert all(text.startswith("snow") for one in records(tmp_path / "other.jsonl") for text in one["neg"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "mined.json"], "must end in .jsonl"),
        (["--to", "m.jsonl", "--store", "qdrant:./x", "--corpus", "c.jsonl"], "exclude each other"),
        (["--to", "m.jsonl", "--weights", "1,0.3,1"], "method dense takes no weights"),
        (["--to", "m.jsonl", "--sampling-strategy", "best"], "choose one of random, top"),
    ],
)
def test_wrong_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    assert main(["mine", str(pairs), "--model", "m3-tiny", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_the_report_survives_its_own_file(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl")
    report = mine_files(StubEncoder(), [pairs], tmp_path / "mined.jsonl", LOOSE)
    written = json.loads((tmp_path / "mined.jsonl.report.json").read_text(encoding="utf-8"))
    assert MiningReport(**written["report"]) == report
    assert written["run"]["range_max"] == 20


def test_a_model_without_a_classifier_is_no_teacher(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"is not a cross-encoder: .* BertModel"):
        CrossEncoder(str(write_sentence_model(tmp_path / "model")))
