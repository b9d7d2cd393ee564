"""A unigram tokenizer that is trained here, with the layout of XLM-RoBERTa's tokenizer.

Texts are normalised with NFKC and lower case, and variants of Arabic letters are folded (as in search
engines). A word marker ``▁`` precedes every word of a script that uses spaces, also after punctuation, so
that ``(Berlin)`` and ``Berlin`` share a piece. Scripts without spaces (Chinese, Japanese, Thai) have no
marker, so that a word has the same form everywhere. Both are important for sparse scores, which match pieces.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from m3_connectors.errors import InvalidInput

START, PAD, END, UNKNOWN, MASK = "<s>", "<pad>", "</s>", "<unk>", "<mask>"
FIRST_SPECIALS = (START, PAD, END, UNKNOWN)
"""The tokens with ids 0 to 3, as in XLM-RoBERTa; ``<mask>`` has the last id."""

START_ID, END_ID = FIRST_SPECIALS.index(START), FIRST_SPECIALS.index(END)
FIRST_PIECE = len(FIRST_SPECIALS)
"""The first id of a text piece; the last piece has the second to last id."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}"
_SPACED = rf"[\p{{L}}\p{{M}}\p{{N}}&&[^{_UNSPACED}]]"


def _normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[\u064B-\u0652\u0670\u0640]"), ""),
            normalizers.Replace(Regex("[أإآٱ]"), "ا"),
            normalizers.Replace("ى", "ي"),
            normalizers.Replace(Regex(rf"(?<!{_SPACED})(?={_SPACED})"), "▁"),
        ]
    )


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s+"), "removed"),
            pre_tokenizers.Split(Regex(rf"▁{_SPACED}+|[{_UNSPACED}]+"), "isolated"),
        ]
    )


def sample_texts(
    texts_by_language: Mapping[str, Sequence[str]],
    *,
    total_characters: int,
    exponent: float = 0.3,
    emphasis: Mapping[str, float] | None = None,
    seed: int = 0,
) -> list[str]:
    """Sample texts so that the sizes of the languages become more equal.

    Args:
        texts_by_language: The distinct texts of each language.
        total_characters: The approximate total number of characters to sample.
        exponent: The share of a language is proportional to its size to this power.
        emphasis: Factors for the shares of some languages.
        seed: The seed of the shuffle.

    Returns:
        The texts, one language after the other; all texts of a small language are used.
    """
    sizes = {language: sum(map(len, texts)) for language, texts in texts_by_language.items()}
    shares = {
        language: size**exponent * (emphasis or {}).get(language, 1.0)
        for language, size in sizes.items()
        if size
    }
    whole = sum(shares.values())
    drawn: list[str] = []
    for language in sorted(shares):
        left = total_characters * shares[language] / whole
        texts = list(texts_by_language[language])
        random.Random(f"{seed}/{language}").shuffle(texts)
        for text in texts:
            if left <= 0:
                break
            drawn.append(text)
            left -= len(text)
    return drawn


def train_tokenizer(texts: Iterable[str], vocabulary_size: int, *, min_character_count: int = 5) -> Tokenizer:
    """Train a unigram tokenizer.

    Args:
        texts: Plain texts.
        vocabulary_size: The total number of pieces, including the five special tokens; the texts may yield
            fewer.
        min_character_count: Rarer characters become ``<unk>``, so that they do not need a piece.

    Returns:
        A tokenizer that encodes a text as ``<s> … </s>``.

    Raises:
        InvalidInput: ``vocabulary_size`` is too small for any piece.
    """
    if vocabulary_size <= len(FIRST_SPECIALS) + 1:
        raise InvalidInput(
            f"vocabulary_size is {vocabulary_size}.\n"
            f"  Set it to at least {len(FIRST_SPECIALS) + 2}: five tokens are special."
        )
    normalizer = _normalizer()
    cleaned = [normalizer.normalize_str(text) for text in texts]
    counts = Counter(character for text in cleaned for character in text)
    rare = {ord(character): " " for character, count in counts.items() if count < min_character_count}

    def frequent() -> Iterator[str]:
        for text in cleaned:
            yield text.translate(rare)

    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocabulary_size - 1,
        special_tokens=list(FIRST_SPECIALS),
        unk_token=UNKNOWN,
        show_progress=False,
    )
    try:
        _interruptibly(lambda: learner.train_from_iterator(frequent(), trainer))
    except Exception as error:  # the library raises bare Exception, whatever is wrong
        if "vocabulary" not in str(error):
            raise
        characters = len(counts) - len(rare)
        raise InvalidInput(
            f"vocabulary_size is {vocabulary_size:,}, but the texts have {characters:,} frequent characters, and each "
            f"is a piece.\n  Give at least {characters + len(FIRST_SPECIALS) + 2:,}; words need several times as many."
        ) from None
    pieces = json.loads(learner.to_str())["model"]["vocab"]
    return build_tokenizer([(piece, score) for piece, score in pieces if piece not in FIRST_SPECIALS])


def _interruptibly(call: Callable[[], object]) -> None:
    """Run a call that computes for minutes outside of Python, so that Ctrl-C stops waiting for it at once."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            call()
            done.set_result(None)
        except BaseException as error:  # noqa: BLE001 (raised again in the waiting thread)
            done.set_exception(error)

    threading.Thread(target=run, name="m3-tokenizer", daemon=True).start()
    done.result()


def build_tokenizer(pieces: Sequence[tuple[str, float]]) -> Tokenizer:
    """Create a tokenizer from unigram pieces with log probabilities, best first; adds the special tokens."""
    vocabulary = [
        *((special, 0.0) for special in FIRST_SPECIALS),
        *((piece, round(score, 4)) for piece, score in pieces),
        (MASK, 0.0),
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, FIRST_SPECIALS.index(UNKNOWN), False))
    tokenizer.normalizer = _normalizer()
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} {END} $B {END}",
        special_tokens=[(START, 0), (END, 2)],
    )
    tokenizer.add_special_tokens([*FIRST_SPECIALS, MASK])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write ``tokenizer.json`` without whitespace, because the file counts towards the size of a model.

    Nothing is rounded: otherwise, a tokenizer from another project would split texts differently than in
    training.
    """
    raw = json.loads(tokenizer.to_str(pretty=False))
    path.write_text(json.dumps(raw, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
