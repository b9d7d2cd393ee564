"""The choice of the device and of the dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch

from m3_connectors.errors import InvalidInput, Unsupported

Precision = Literal["auto", "float32", "bfloat16", "float16", "int8"]


def choose_device(device: str | None) -> torch.device:
    """Return the device of that name; None selects CUDA if available, then MPS, then the CPU.

    Raises:
        InvalidInput: The device does not exist or cannot be used.
    """
    if device is None:
        device = (
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        chosen = torch.device(device)
    except RuntimeError:  # PyTorch's message lists two dozen rare kinds of device
        raise InvalidInput(
            f"device {device!r} is unknown.\n  Use cpu, cuda or mps; cuda:1 is the second GPU."
        ) from None
    try:
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # "not compiled with" asserts
        reason = str(error).splitlines()[0]
        raise InvalidInput(
            f"device {device!r} cannot be used: {reason}\n  Use device='cpu', which always works."
        ) from error
    return chosen


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of a precision on a device; with int8, that of what is not computed in integers.

    Raises:
        InvalidInput: The precision is unknown, or it is float16 on a CPU, where it is slow.
        Unsupported: The precision is int8, and the device is no CPU.
    """
    if precision not in get_args(Precision):
        raise InvalidInput(
            f"precision is {precision!r}; it must be one of {', '.join(get_args(Precision))}.\n"
            "  Use 'auto' for the best precision of the device."
        )
    if precision == "float16" and device.type == "cpu":
        raise InvalidInput(
            "precision='float16' is not supported on a CPU, where it is slow.\n"
            "  Use 'bfloat16', 'float32' or 'auto'."
        )
    if precision == "int8" and device.type != "cpu":
        raise Unsupported(
            f"precision='int8' is for CPUs; the device is {str(device)!r}.\n"
            "  Use 'auto' on this device, or device='cpu'."
        )
    if precision not in ("auto", "int8"):
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    return torch.float16 if device.type == "mps" else torch.float32


def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 natively (AVX-512-BF16 or AMX)."""
    has: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # not in PyTorch before 2.10
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
