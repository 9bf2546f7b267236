"""Published weight files that a training starts from: found on this machine by name, downloaded only when asked to.

A published file carries the first digits of its SHA-256 in its name (`deit_base_patch16_224-b5f2ef4d.pth`), as
`torch.hub` has it. torch.hub, timm and Hugging Face leave these files in known cache folders, where they are found.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from common.errors import UserError
from common.models.weights import load_strict, strip_prefix

AUTO, NONE = "auto", "none"


@dataclass(frozen=True)
class PublishedFile:
    """A weight file as its authors published it.

    name: file name, with the hash prefix where it has one. about: what the weights are. url: where `--download` gets
    it. hub: Hugging Face repository whose `model.safetensors` holds the same tensors under the same names, or "".
    """

    name: str
    about: str
    url: str
    hub: str = ""

    @property
    def hash_prefix(self) -> str:
        """The first digits of the file's SHA-256 as the name gives them, "" for a name without."""
        found = re.search(r"-([0-9a-f]{8,64})\.\w+$", self.name)
        return found[1] if found else ""


def _deit(size: str, digits: str) -> PublishedFile:
    kind = "deit_base_patch16_224" if size == "base" else f"deit_{size}_distilled_patch16_224"
    name = f"{kind}-{digits}.pth"
    return PublishedFile(name, f"DeiT-{size}", f"https://dl.fbaipublicfiles.com/deit/{name}", f"timm/{kind}.fb_in1k")


DEIT_TINY = _deit("tiny", "b40b3cf7")
DEIT_SMALL = _deit("small", "649709d9")
DEIT_BASE = _deit("base", "b5f2ef4d")
MAE_LARGE = PublishedFile(
    "mae_pretrain_vit_large.pth",
    "MAE ViT-large",
    "https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_large.pth",
    "timm/vit_large_patch16_224.mae",
)
_PARSEQ = "https://github.com/baudm/parseq/releases/download/v1.0.0/"
# torch.hub.load("baudm/parseq", …) leaves these files in its cache
PARSEQ_RELEASES = {
    model: PublishedFile(name, f"{model} of PARSeq's authors", _PARSEQ + name)
    for model, name in (
        ("parseq", "parseq-bb5792a6.pt"),
        ("parseq-tiny", "parseq_tiny-e7a21b54.pt"),
        ("parseq-patch16-224", "parseq_small_patch16_224-fcf06f5a.pt"),
        ("abinet", "abinet-1d1e373e.pt"),
        ("trba", "trba-cfaed284.pt"),
        ("vitstr", "vitstr-26d0fcf4.pt"),
        ("crnn", "crnn-679d0e31.pt"),
    )
}


@dataclass(frozen=True)
class Start:
    """What a training starts from: a file or None (random), a line for the log, and a warning or ""."""

    path: Path | None
    line: str
    warning: str = ""


def checkpoint_folders() -> list[Path]:
    """The folders in which torch.hub and timm keep downloaded weight files, `$TORCH_HOME/hub/checkpoints` first."""
    from torch import hub

    home, cache = Path.home(), Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folders = [Path(os.environ["TORCH_HOME"]).expanduser() / "hub/checkpoints"] if os.environ.get("TORCH_HOME") else []
    folders += [Path(hub.get_dir()) / "checkpoints", cache / "torch/hub/checkpoints"]
    folders += [cache / "torch/checkpoints", home / ".torch/models"]  # where torch before 1.6 put them
    return list(dict.fromkeys(folders))


def hugging_face_folders(repository: str) -> Iterator[Path]:
    """The stored versions of a Hugging Face repository in its cache, the newest first."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface").expanduser()
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    versions = (hub / f"models--{repository.replace('/', '--')}" / "snapshots").glob("*")
    yield from sorted(versions, key=lambda path: path.stat().st_mtime, reverse=True)


def find(file: PublishedFile) -> Path | None:
    """The path of a published file on this machine, None if no cache has it."""
    for folder in checkpoint_folders():
        if (folder / file.name).is_file():
            return folder / file.name
    for folder in hugging_face_folders(file.hub) if file.hub else ():
        if (folder / "model.safetensors").is_file():
            return folder / "model.safetensors"
    return None


def other_content(path: Path, file: PublishedFile) -> str:
    """Say that `path` has the published file's name and another SHA-256; "" where the digits agree or are not known."""
    if not file.hash_prefix or path.name != file.name:
        return ""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest.startswith(file.hash_prefix):
        return ""
    return (
        f"{path} is not the published file: its SHA-256 begins with {digest[:8]}, the name says {file.hash_prefix}; "
        "its weights are used all the same"
    )


def download(file: PublishedFile) -> Path:
    """Fetch a published file into torch.hub's cache, once for all processes of a machine; its hash is checked.

    Raises `UserError` where the network, the hash or the disk fails.
    """
    from filelock import FileLock
    from torch import hub

    target = checkpoint_folders()[0] / file.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_file():
                print(f"download: {file.url} -> {target}", flush=True)
                hub.download_url_to_file(file.url, str(target), file.hash_prefix or None)
    except (OSError, RuntimeError) as error:  # URLError is an OSError, a wrong hash a RuntimeError
        raise UserError(
            f"--download: {file.url}: {error}; fetch it elsewhere, put it into {target.parent}, or give its path"
        ) from None
    return target


def start_from(file: PublishedFile | None, given: str, may_download: bool = False, flag: str = "--pretrained") -> Start:
    """Settle what a training starts from.

    Args:
        file: the published start weights, None for a model whose published training starts from random weights.
        given: value of the flag: "auto" looks in the caches, "none" starts from random weights without a warning,
            anything else is a path.
        may_download: `--download` was given.
        flag: name of the option, for messages.

    Raises `UserError` for a path that does not exist, and for a failed download.
    """
    if given not in (AUTO, NONE, ""):
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(f"{flag}: {given} does not exist; give a weight file, {AUTO} or {NONE}")
        return Start(path, f"start: {path}")
    if file is None:
        return Start(None, "start: random weights")
    if given != AUTO:
        return Start(None, f"start: random weights ({flag} none; the published training starts from {file.about})")
    path = find(file)
    if path is None and may_download:
        path = download(file)
    if path is not None:
        wrong = other_content(path, file)
        return Start(path, f"start: {file.about} from {path}", f"WARNING: {wrong}" if wrong else "")
    looked = ", ".join(str(folder) for folder in checkpoint_folders()[:2])
    return Start(
        None,
        "start: random weights",
        f"WARNING: the published training starts from {file.about} ({file.name}), which was not found on this machine "
        f"(looked in {looked} and the Hugging Face cache). Training starts from random weights; the paper's figures "
        f"cannot be reached this way. Give the file with {flag} FILE, fetch it with --download, or give {flag} none "
        "if random weights are meant.",
    )


ENCODER = ("cls_token", "blocks.", "norm.")
# names in the files of DeiT and MAE that the published code drops: other patches, positions and classes
DROPPED = ("patch_embed", "pos_embed", "head.", "dist_token", "head_dist.", "decoder", "mask_token")


def load_encoder(encoder: nn.Module, content: object, what: str) -> str:
    """Put the content of a DeiT or MAE file into a ViT with timm's names; returns the end of a line for the log.

    Class token, blocks and norm are loaded; patch embedding, positions and classes stay random, as MGP-STR and SIGA-T
    have it. Raises `UserError` for a file that does not have every tensor of the encoder in its shape.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{what}: holds a {type(content).__name__}; give DeiT's or MAE's file of weights")
    state = strip_prefix(content.get("model", content))
    taken = {name: value for name, value in state.items() if not any(part in name for part in DROPPED)}
    report = load_strict(encoder, taken, what=what, allow_missing=lambda name: not name.startswith(ENCODER))
    return f"{len(report.kept)} tensors loaded; patch embedding, positions and heads start from random weights"
