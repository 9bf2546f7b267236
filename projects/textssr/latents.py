"""Latents kept as mean and log-variance: the frozen VAE sees every region once instead of once an epoch.

A region's crop then stays where the first epoch put it (the published code moves it anew in every epoch), so this is
off by default; what is drawn from the posteriors is drawn anew at every step.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from common.data.bad import BadSample
from common.errors import UserError
from common.files import read_json, write_text
from projects.textssr.data import LmdbRegions, Sample, everyones
from projects.textssr.model.diffusion import Posterior, encode

PICTURES = ("image", "masked", "glyph")
NOTE = "latents.json"


class CachedRegions(Dataset):
    """The words of `regions` with moments `[3, 8, h, w]` (image, masked, glyph; mean, then log-variance) from files.

    Args:
        vae: frozen, on the accelerator's device.
        folder: of the files, which all processes must see; made if they are not there or belong to something else.
        identity: the options that decide what the latents are, among them `pretrained_vae`.
        batch: regions that are encoded in one call.
    """

    def __init__(
        self,
        regions: LmdbRegions,
        vae: AutoencoderKL,
        folder: Path,
        accelerator: Accelerator,
        identity: dict,
        batch: int,
    ) -> None:
        self.regions, self.folder, self.epoch = regions, folder, 0
        side = regions.maker.resolution // 2 ** (len(vae.config.block_out_channels) - 1)
        shape = (len(regions), len(PICTURES), 2 * vae.config.latent_channels, side, side)
        files = [(path.stat().st_size, path.stat().st_mtime_ns) for path in self._sources(identity)]
        key = hashlib.sha256(json.dumps([identity, shape, files], sort_keys=True).encode()).hexdigest()
        note = folder / NOTE
        kept = read_json(note, dict) if note.is_file() else {}
        ready = kept.get("key") == key
        accelerator.wait_for_everyone()
        if accelerator.is_main_process and not ready:
            self._create(shape)
        accelerator.wait_for_everyone()
        self.moments, self.masks, self.usable = (
            np.load(folder / f"{name}.npy", mmap_mode="r+") for name in ("moments", "masks", "usable")
        )
        if not ready:
            own = range(accelerator.process_index, len(regions), accelerator.num_processes)
            self._fill(vae, accelerator.device, own, batch)
            kept = {"key": key, **identity, "rejected": everyones(regions.rejected)}
            if accelerator.is_main_process:
                write_text(note, json.dumps(kept, indent=1))
        known = {int(index): reason for index, reason in kept.get("rejected", {}).items()}
        unusable = np.flatnonzero(self.usable == 0).tolist()
        self.rejected = {index: known.get(index, "no latents, the region cannot be used") for index in unusable}

    def _sources(self, identity: dict) -> list[Path]:
        """The files that the latents are made from."""
        weights = sorted(Path(identity["pretrained_vae"]).glob("diffusion_pytorch_model.*"))
        font = self.regions.maker.renderer.path
        return [environment.path / "data.mdb" for environment in self.regions.environments] + [*weights, font]

    def _create(self, shape: tuple[int, ...]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / NOTE).unlink(missing_ok=True)
        wanted, free = 4 * int(np.prod(shape)), shutil.disk_usage(self.folder).free
        if wanted > free:
            raise UserError(
                f"cache_latents: {wanted / 1e9:.1f} GB are needed in {self.folder}, {free / 1e9:.1f} GB are free"
            )
        kinds = {"moments": (np.float32, shape), "masks": (np.uint8, (shape[0], 1, *shape[-2:]))}
        kinds["usable"] = (np.uint8, shape[:1])
        for name, (kind, extent) in kinds.items():
            np.lib.format.open_memmap(self.folder / f"{name}.npy", "w+", kind, extent).flush()

    def _fill(self, vae: AutoencoderKL, device: torch.device, indices: Sequence[int], batch: int) -> None:
        for start in range(0, len(indices), batch):
            taken = [(index, self.regions[index]) for index in indices[start : start + batch]]
            kept = [(index, sample) for index, sample in taken if sample is not None]
            if not kept:
                continue
            moments = moments_of(vae, [sample for _, sample in kept], device).cpu().numpy()
            for (index, sample), row in zip(kept, moments):
                small = F.interpolate(sample.mask[None], self.masks.shape[-2:], mode="nearest")
                self.moments[index], self.masks[index], self.usable[index] = row, small[0].numpy(), 1
        for array in (self.moments, self.masks, self.usable):
            array.flush()

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, index: int) -> dict[str, Tensor] | None:
        if not self.usable[index]:
            return None
        planes = torch.from_numpy(self.regions.maker.renderer.planes(self.regions.text(index))).float() / 255
        mask = torch.from_numpy(self.masks[index].astype(np.float32))
        return {"moments": torch.from_numpy(self.moments[index].copy()), "masks": mask, "ttf_images": planes}

    def blank(self) -> dict[str, Tensor]:
        """A sample without content in the shapes of the others."""
        planes, mask = self.regions.blank().planes, torch.ones(self.masks.shape[1:])
        return {"moments": torch.zeros(self.moments.shape[1:]), "masks": mask, "ttf_images": planes}

    def bad_samples(self, rejected: Mapping[int, str]) -> list[BadSample]:
        """The register's rows of samples that were skipped."""
        return self.regions.bad_samples(rejected)


def moments_of(vae: AutoencoderKL, samples: Sequence[Sample], device: torch.device) -> Tensor:
    """Moments `[B, 3, 8, h, w]` of the samples, encoded in one call in the order of the training loss."""
    pictures = torch.cat([torch.stack([getattr(sample, name) for sample in samples]) for name in PICTURES])
    posterior = encode(vae, pictures.to(device))
    return torch.stack(torch.cat([posterior.mean, posterior.logvar], 1).split(len(samples)), 1)


def posteriors(moments: Tensor) -> list[Posterior]:
    """Those of image, masked image and glyph of a batch of moments."""
    return [Posterior(*part.chunk(2, 1)) for part in moments.unbind(1)]


def collate_cached(samples: list[dict[str, Tensor] | None]) -> dict[str, Tensor] | None:
    """Stack the usable samples; None if there is none."""
    kept = [sample for sample in samples if sample is not None]
    return {name: torch.stack([sample[name] for sample in kept]) for name in kept[0]} if kept else None
