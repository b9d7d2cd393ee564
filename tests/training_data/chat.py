"""A language model on loopback, in the format of an OpenAI-compatible chat endpoint."""

from __future__ import annotations

from typing import Any

from loopback import Answer


def message(text: str) -> Answer:
    """The answer of a model."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return 200, {}, {"object": "chat.completion", "choices": [choice]}


def prompt_of(body: dict[str, Any]) -> str:
    """What a model was asked."""
    content: str = body["messages"][-1]["content"]
    return content
