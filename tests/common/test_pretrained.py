"""Start weights are found by name in the caches, warned of where they are missing, downloaded only on request."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.models import pretrained
from common.models.pretrained import DEIT_BASE, MAE_LARGE, PARSEQ_RELEASES, PublishedFile, find, start_from


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches in a temporary home."""
    for name, folder in (("HOME", "home"), ("TORCH_HOME", "torch"), ("XDG_CACHE_HOME", "cache"), ("HF_HOME", "hf")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path


def put(path: Path, content: bytes = b"weights") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_hash_prefix() -> None:
    assert DEIT_BASE.hash_prefix == "b5f2ef4d" and MAE_LARGE.hash_prefix == ""
    assert PARSEQ_RELEASES["parseq-tiny"].hash_prefix == "e7a21b54"


@pytest.mark.parametrize(
    "where",
    [
        "torch/hub/checkpoints/{}",
        "cache/torch/hub/checkpoints/{}",
        "cache/torch/checkpoints/{}",
        "home/.torch/models/{}",
        "hf/hub/models--timm--deit_base_patch16_224.fb_in1k/snapshots/abc/model.safetensors",
    ],
)
def test_found_in_the_usual_caches(where: str, caches: Path) -> None:
    assert find(DEIT_BASE) is None
    path = put(caches / where.format(DEIT_BASE.name))
    assert find(DEIT_BASE) == path
    start = start_from(DEIT_BASE, "auto")
    assert start.path == path and str(path) in start.line


def test_another_content_is_warned_of(caches: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    right = PublishedFile(f"right-{digest[:8]}.pth", "right", "")
    put(caches / "torch/hub/checkpoints" / right.name)
    assert start_from(right, "auto").warning == ""
    put(caches / "torch/hub/checkpoints" / DEIT_BASE.name)
    assert f"its SHA-256 begins with {digest[:8]}" in start_from(DEIT_BASE, "auto").warning


def test_missing_is_a_warning_and_none_is_not() -> None:
    start = start_from(DEIT_BASE, "auto")
    assert start.path is None and start.warning.startswith("WARNING: ") and "cannot be reached" in start.warning
    assert DEIT_BASE.name in start.warning
    start = start_from(DEIT_BASE, "none")
    assert start.path is None and not start.warning and "DeiT-base" in start.line
    assert start_from(None, "auto") == pretrained.Start(None, "start: random weights")


def test_a_path_is_taken_as_it_is(caches: Path) -> None:
    path = put(caches / "home" / "mine.pth")
    assert start_from(DEIT_BASE, "~/mine.pth").path == path
    with pytest.raises(UserError, match=r"--pretrained: .*no\.pth does not exist"):
        start_from(DEIT_BASE, str(caches / "no.pth"))


def test_only_download_uses_the_network(caches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(url: str, target: str, hash_prefix: str | None) -> None:
        asked.append((url, hash_prefix))
        put(Path(target))

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert start_from(DEIT_BASE, "auto").path is None and not asked
    target = caches / "torch/hub/checkpoints" / DEIT_BASE.name
    assert start_from(DEIT_BASE, "auto", may_download=True).path == target
    assert start_from(DEIT_BASE, "auto", may_download=True).path == target
    assert asked == [(DEIT_BASE.url, "b5f2ef4d")]

    def fail(*_: object) -> None:
        raise RuntimeError('invalid hash value (expected "b5f2ef4d", got "0")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(UserError, match=r"--download: .*mae_pretrain_vit_large\.pth: invalid hash"):
        start_from(MAE_LARGE, "auto", may_download=True)
