"""Which errors mean that memory was short, and how much of it was asked for."""

from __future__ import annotations

import errno
import re
from types import TracebackType

_COMMITMENT_LIMIT = 1455  # of Windows, whose text is in the system's language: the paging file is too small
_MESSAGES = "|".join(
    (
        "out of memory",
        "can't allocate memory",
        "DefaultCPUAllocator: not enough memory",  # as PyTorch says it on Windows
        "[Cc]annot allocate memory",  # Linux, of a file that is to be mapped
        r"os error 1455\b",  # Windows can promise no more memory (ERROR_COMMITMENT_LIMIT), as safetensors says it
        r"error code: <1455>",  # the same, as PyTorch says it
        "Invalid buffer size",
        r"(CU|HIP)(BLAS|DNN|SOLVER)_STATUS_\w*(ALLOC_FAILED|ALLOCATION_FAILED|NOT_INITIALIZED)",
        "miopenStatusAllocFailed",
        "unable to find an engine",  # cuDNN, when none of its kernels got the workspace that it needs
        "Unable to find a valid cuDNN",
    )
)


class caught:
    """Suppresses an error of too little memory raised in its block; all other errors pass.

    Only the text of the error is kept, so that leaving the block frees what the failed attempt held.
    """

    requested = ""  # as `requested` says it; empty as long as nothing was caught

    def __enter__(self) -> caught:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if error is None or not is_out_of_memory(error):
            return False
        self.requested = requested(error)
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means too little memory.

    PyTorch has a class for it only on a GPU, a RuntimeError. On a CPU it raises a plain RuntimeError with a message, on
    an Apple GPU another one where a single tensor is larger than Metal allows. CUDA's libraries (cuBLAS, cuDNN) and
    AMD's name their error code, and one that cannot be initialized mostly lacks memory, too. Where a file is to be
    mapped or a library to be loaded it is an OSError.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and (error.errno == errno.ENOMEM or _code_of_windows(error) == _COMMITMENT_LIMIT):
        return True
    return isinstance(error, (RuntimeError, OSError)) and bool(re.search(_MESSAGES, str(error)))


def _code_of_windows(error: OSError) -> int | None:
    return getattr(error, "winerror", None)  # which other systems' errors lack


def first_line(error: BaseException) -> str:
    """The first line of a library's error, as a part of a sentence; the name of its class where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def requested(error: BaseException) -> str:
    """How much memory was asked for and how much was free, as far as PyTorch's message says."""
    message = str(error)
    if size := re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", message):
        amount = _amount(size[1])
        if gpu := re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", message):
            return f"{amount} more were needed, {gpu[2]} of {gpu[1]} were free"
        if limit := re.search(r"max allowed: ([\d.]+ \w+)", message):  # of an Apple GPU
            return f"{amount} more were needed, of {limit[1]} that PyTorch may take"
        return f"{amount} more were needed"
    if size := re.search(r"Invalid buffer size: ([\d.]+ \w+)", message):
        return f"{size[1]} were needed in one piece"
    return "how much more was needed is not known"


def _amount(text: str) -> str:
    value, unit = re.fullmatch(r"([\d.]+) ?(\w+)", text).groups()  # type: ignore[union-attr]
    return f"{float(value) / 2**20:,.1f} MiB" if unit == "bytes" else f"{value} {unit}"
