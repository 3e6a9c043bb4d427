"""Kernels on Triton's interpreter, in a process of their own: Triton reads its variable at import."""

import os
import subprocess
import sys

import pytest


def run_on_interpreter(code: str, says: str) -> None:
    """Run `code`, which asserts, and prints `says` at its end. Skips the test without Triton."""
    pytest.importorskip("triton", reason="Triton is not installed; the kernel is tried on a GPU")
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert ran.stdout.strip() == says, ran.stderr[-2000:]
