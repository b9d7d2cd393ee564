"""Tiny random models of sentence-transformers on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXT = "query passage : rain falls on the hills ship sails sea green grass in winter cold snow"
WORDS = TEXT.split()


def write_sentence_model(directory: Path) -> Path:
    """Write a BERT with one layer and no pooling configuration: sentence-transformers takes the mean."""
    _tokenizer().save_pretrained(directory)
    torch.manual_seed(3)
    BertModel(_config()).save_pretrained(directory)
    return directory


def write_cross_encoder(directory: Path, labels: int = 1) -> Path:
    """Write a BERT with a classifier of this many labels."""
    _tokenizer().save_pretrained(directory)
    torch.manual_seed(4)
    config = _config()
    config.num_labels = labels
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def _config() -> BertConfig:
    return BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.5,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    tokens = {token: id for id, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, tokens[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )
