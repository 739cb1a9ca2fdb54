"""The example of `docs/several-gpus.md`, as it is started there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed here")
if not torch.distributed.is_available():
    pytest.skip("this torch has no torch.distributed", allow_module_level=True)

from tools import several_gpus

ROOT = Path(__file__).resolve().parents[2]


def test_two_processes_make_the_same_video_sooner():
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tools.several_gpus"]
    result = subprocess.run([*command, "--steps", "16"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    out = result.stdout
    assert result.returncode == 0, out + result.stderr
    assert "the same video in all processes: yes" in out
    assert out.count("Foresight decides together in 2 processes (diffusers' context parallelism)") == 1  # one speaks
    computed, evaluations = map(int, re.search(r"computed\s+(\d+) of (\d+) evaluations", out).groups())
    assert 0 < computed < evaluations == 16
    assert float(re.search(r"against plain ([\d.]+) dB", out)[1]) > 20


def test_it_says_how_it_is_started(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="torchrun --nproc-per-node 2 -m tools.several_gpus"):
        several_gpus.start()
