"""Seeded random checkpoints: a complete M3 model directory in a second, without any download.

The vectors have no meaning, but everything else is real: the file formats, the tokenizer, the shapes and the
arithmetic. ``M3_LARGE`` has the size of the published model, for benchmarks.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from m3_connectors.encoder.config import ModelConfig
from m3_connectors.encoder.model import M3Model

TEXTS: dict[str, str] = {
    "Latin": "The quick brown fox jumps over the lazy dog while seven wizards mix brews. Où est la forêt près du lac?",
    "Greek": "Η αλεπού πηδά πάνω από τον τεμπέλη σκύλο. Το βιβλίο βρίσκεται στη βιβλιοθήκη της πόλης.",
    "Cyrillic": "Быстрая лиса прыгает через ленивую собаку. Книга лежит на столе в городской библиотеке.",
    "Arabic": "يقفز الثعلب البني السريع فوق الكلب الكسول. الكتاب على الطاولة في مكتبة المدينة.",
    "Hebrew": "השועל החום המהיר קופץ מעל הכלב העצלן. הספר מונח על השולחן בספריית העיר.",
    "Devanagari": "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। किताब शहर के पुस्तकालय में मेज़ पर रखी है।",
    "Bengali": "দ্রুত বাদামী শিয়াল অলস কুকুরের উপর দিয়ে লাফ দেয়। বইটি শহরের গ্রন্থাগারে টেবিলে আছে।",
    "Thai": "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ หนังสืออยู่บนโต๊ะในห้องสมุดของเมือง",
    "Han": "敏捷的棕色狐狸跳过了懒狗。书放在城市图书馆的桌子上。",
    "Japanese": "すばやい茶色のキツネがのろまな犬を飛び越える。本は市立図書館の机の上にあります。",
    "Hangul": "빠른 갈색 여우가 게으른 개를 뛰어넘는다. 책은 도시 도서관의 책상 위에 있다.",
    "Ethiopic": "ፈጣኑ ቡናማ ቀበሮ ሰነፉን ውሻ ይዘላል። መጽሐፉ በከተማው ቤተ መጻሕፍት ጠረጴዛ ላይ ነው።",
}
"""A few words in each of 12 scripts, from which ``small_tokenizer`` is built."""

SMALL = ModelConfig(
    vocab_size=1200,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=8194,
)
"""A model that loads and encodes in milliseconds, with the real model's 8,192 positions."""

M3_LARGE = ModelConfig(
    vocab_size=250_002,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    max_position_embeddings=8194,
)
"""The sizes of BAAI/bge-m3: 568 million parameters, 2.3 GB in float32."""


def small_tokenizer() -> Tokenizer:
    """Return a unigram tokenizer over ``TEXTS`` with about a thousand pieces, in the layout of XLM-RoBERTa's.

    Its pieces are counted and not trained, because the library's trainer gives a different vocabulary in
    every run.
    """
    normalizer = normalizers.NFKC()
    words = [f"▁{word}" for text in TEXTS.values() for word in normalizer.normalize_str(text).split()]
    counts = Counter(
        word[start:end]
        for word in words
        for start in range(len(word))
        for end in range(start + 1, min(start + 6, len(word)) + 1)
    )
    counts.update(words)
    pieces = {piece: count for piece, count in counts.items() if len(piece) == 1 or count > 1}
    pieces |= {word: counts[word] for word in words}
    total = sum(counts.values())
    special = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    scores = [(piece, math.log(count * len(piece) / total)) for piece, count in sorted(pieces.items())]
    tokenizer = Tokenizer(models.Unigram([*special, *scores, ("<mask>", 0.0)], unk_id=3))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name, _ in special])
    tokenizer.add_special_tokens([AddedToken("<mask>", special=True, lstrip=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def write_checkpoint(
    directory: str | os.PathLike[str],
    *,
    config: ModelConfig = SMALL,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    weights: Literal["model.safetensors", "pytorch_model.bin"] = "model.safetensors",
) -> Path:
    """Write a complete M3 checkpoint with random weights.

    Args:
        directory: The target directory; created if it does not exist.
        config: The sizes of the model.
        seed: Equal seeds give equal weights on every machine (numpy's PCG64).
        tokenizer: ``small_tokenizer()`` by default; its ids must fit into the configuration's vocabulary.
        weights: The file format of the backbone.

    Returns:
        The directory.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    config.save(target / "config.json")
    (tokenizer or small_tokenizer()).save(str(target / "tokenizer.json"))
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>"}
    tokenizer_config: dict[str, object] = {f"{role}_token": token for role, token in names.items()}
    tokenizer_config |= {"tokenizer_class": "XLMRobertaTokenizerFast", "mask_token": "<mask>"}
    tokenizer_config["model_max_length"] = config.max_length
    (target / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2), encoding="utf-8")
    state = _random_state(config, seed)
    for head in ("sparse_linear", "colbert_linear"):
        torch.save({part: state.pop(f"{head}.{part}") for part in ("weight", "bias")}, target / f"{head}.pt")
    if weights == "model.safetensors":
        save_file(state, target / weights, metadata={"format": "pt"})
    else:
        torch.save({f"roberta.{name}": tensor for name, tensor in state.items()}, target / weights)
    return target


def _random_state(config: ModelConfig, seed: int) -> dict[str, torch.Tensor]:
    """Return weights of a scale at which every layer matters: products keep the variance of their input."""
    rng = np.random.default_rng(seed)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in M3Model(config).state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("LayerNorm.weight"):
            values = 1 + 0.1 * values
        elif name.endswith("bias"):
            values *= 0.1
        else:
            values *= shape[-1] ** -0.5
        if name == "sparse_linear.bias":
            values = np.ones(shape, np.float32)  # otherwise a random model may give every token the weight 0
        state[name] = torch.from_numpy(values)
    return state
