"""The paper's datasets as data: where each comes from at which commit, and how the paper ran it.

Published numbers stand in ``published``, and how much each task has in ``sizes``. Every commit was looked up,
not guessed: MLDR's and NarrativeQA's are those that MTEB pins for its tasks on them, the others are pinned by
several public projects, with the files that we read.
"""

from __future__ import annotations

import dataclasses

from m3_connectors.errors import InvalidInput
from m3_connectors.evaluation.datasets.dataset import PaperProtocol


@dataclasses.dataclass(frozen=True)
class Repository:
    """A dataset repository of the Hugging Face hub.

    Attributes:
        name: Owner and name.
        revision: Commit, 40 hexadecimal digits.
        files: Patterns of the files that are needed; ``{language}`` and ``{split}`` are filled in.
        licence: As the repository states it.
    """

    name: str
    revision: str
    files: tuple[str, ...]
    licence: str

    def filled(self, language: str | None, split: str) -> Repository:
        """The same repository with the files of one task."""
        files = tuple(pattern.format(language=language, split=split) for pattern in self.files)
        return dataclasses.replace(self, files=files)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A dataset of the hub.

    Attributes:
        family: First part of its name.
        languages: Second part of its name; of the queries. Empty where there is only one task.
        splits: Judged splits; the first is the paper's.
        repositories: Where the files are.
        paper: How the paper ran it.
        passage_language: Language of the passages where it is not the queries'.
        note: What a user should know.
    """

    family: str
    languages: tuple[str, ...]
    splits: tuple[str, ...]
    repositories: tuple[Repository, ...]
    paper: PaperProtocol
    passage_language: str | None
    note: str

    @property
    def licence(self) -> str:
        """The licences of its repositories."""
        stated = dict.fromkeys(repository.licence for repository in self.repositories)
        return ", ".join(stated)

    @property
    def source(self) -> str:
        """The names of its repositories."""
        return ", ".join(repository.name for repository in self.repositories)

    @property
    def revision(self) -> str:
        """The commits of its repositories, in the order of ``source``."""
        return ", ".join(repository.revision for repository in self.repositories)

    def names(self) -> list[str]:
        """Names of its tasks, such as ``miracl/de``."""
        return [f"{self.family}/{language}" for language in self.languages] or [self.family]


def _codes(spaced: str) -> tuple[str, ...]:
    return tuple(spaced.split())


MIRACL = Entry(
    family="miracl",
    languages=_codes("ar bn en es fa fi fr hi id ja ko ru sw te th zh de yo"),
    splits=("dev", "train"),
    repositories=(
        Repository(
            "miracl/miracl",
            "5be20db9509754dadad47689368639fcec739c00",
            (
                "miracl-v1.0-{language}/topics/topics.miracl-v1.0-{language}-{split}.tsv",
                "miracl-v1.0-{language}/qrels/qrels.miracl-v1.0-{language}-{split}.tsv",
            ),
            "Apache-2.0",
        ),
        Repository(
            "miracl/miracl-corpus",
            "d921ec7e349ce0d28daf30b2da9da5ee698bef0d",
            ("miracl-corpus-v1.0-{language}/docs-*.jsonl.gz",),
            "Apache-2.0",
        ),
    ),
    paper=PaperProtocol(
        measures=("nDCG@10", "Recall@100"),
        query_max_length=512,
        passage_max_length=512,
        dense_sparse=(1, 0.3, 0),
        all=(1, 0.3, 1),
    ),
    passage_language=None,
    note="Wikipedia passages, title and text. Passages whose id equals the query's are kept, as in version 4 of the "
    "paper. German and Yoruba have no train split. The hub asks for a login to miracl/miracl.",
)

MKQA = Entry(
    family="mkqa",
    languages=_codes("ar da de es fi fr he hu it ja km ko ms nl no pl pt ru sv th tr vi zh_cn zh_hk zh_tw"),
    splits=("test",),
    repositories=(
        Repository(
            "Shitao/bge-m3-data",
            "a69db8b86e9c1767d193ee0de95e5c4001a71eae",
            ("MKQA_test-data.zip",),
            "MIT",
        ),
        Repository(
            "BeIR/nq",
            "b7253e6c379163d024ddb1d6948152a91a2e3b46",
            ("corpus/corpus-*.parquet",),
            "CC-BY-SA-4.0",
        ),
    ),
    paper=PaperProtocol(
        measures=("Recall@100", "Recall@20"),
        query_max_length=512,
        passage_max_length=512,
        dense_sparse=(1, 0.3, 0),
        all=(1, 0.3, 1),
    ),
    passage_language="en",
    note="Questions in 25 languages over English passages of Natural Questions; a hit is a passage with an answer "
    "string. Passages are lower-cased and their punctuation is unified before they are encoded, as in the paper's "
    "scripts.",
)

MLDR = Entry(
    family="mldr",
    languages=_codes("ar de en es fr hi it ja ko pt ru th zh"),
    splits=("test", "dev", "train"),
    repositories=(
        Repository(
            "Shitao/MLDR",
            "d67138e705d963e346253a80e59676ddb418810a",
            ("mldr-v1.0-{language}/corpus.jsonl.gz", "mldr-v1.0-{language}/{split}.jsonl.gz"),
            "MIT",
        ),
    ),
    paper=PaperProtocol(
        measures=("nDCG@10", "Recall@100"),
        query_max_length=512,
        passage_max_length=8192,
        dense_sparse=(0.2, 0.8, 0),
        all=(0.15, 0.5, 0.35),
    ),
    passage_language=None,
    note="Long documents, whole.",
)

NARRATIVEQA = Entry(
    family="narrativeqa",
    languages=(),
    splits=("test", "validation", "train"),
    repositories=(
        Repository(
            "deepmind/narrativeqa",
            "2e643e7363944af1c33a652d1c87320d0871c4e4",
            ("data/{split}-*.parquet",),
            "Apache-2.0",
        ),
    ),
    paper=PaperProtocol(
        measures=("nDCG@10", "Recall@100"),
        query_max_length=512,
        passage_max_length=8192,
        dense_sparse=(0.2, 0.8, 0),
        all=(0.15, 0.5, 0.35),
    ),
    passage_language="en",
    note="Questions about whole books and film scripts, read as MTEB's NarrativeQARetrieval reads them. The paper "
    "does not publish its own preparation: take its numbers as near, not as the same task.",
)

CATALOGUE = {entry.family: entry for entry in (MIRACL, MKQA, MLDR, NARRATIVEQA)}


def find_entry(name: str) -> tuple[Entry, str | None]:
    """Return the dataset of this name, and its language.

    Raises:
        InvalidInput: No such dataset, or not in this language.
    """
    family, _, language = name.partition("/")
    entry = CATALOGUE.get(family)
    if entry is None:
        raise InvalidInput(
            f"{name!r} is neither a folder nor the name of a dataset.\n  Use a folder, or one of "
            f"{', '.join(entry.family + '/LANGUAGE' * bool(entry.languages) for entry in CATALOGUE.values())} "
            "and irds:ID."
        )
    if language not in (entry.languages or ("",)):
        known = ", ".join(entry.names())
        raise InvalidInput(f"{name!r} is not a dataset of {family}.\n  Use one of {known}.")
    return entry, language or None
