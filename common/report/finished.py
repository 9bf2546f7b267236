"""What a finished reproduction leaves for its report: `finished.json` in the output folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json, write_text

ABOUT = "about.json"  # written when a reproduction begins: its data, and the images that each of its readers sees


@dataclass(frozen=True)
class PublishedRow:
    """Published figures of one model: folder name of an evaluation set, in any case -> word accuracy in %."""

    name: str
    accuracy: Mapping[str, float]


@dataclass(frozen=True)
class Done:
    """A finished step: its command and how long it took."""

    name: str
    command: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Finished:
    """What the report of a reproduction is made from.

    Attributes:
        project, title, scale, note: what was reproduced, at which scale of its recipe.
        model: registry entry of the evaluated reader; "" where the checkpoint's metadata file names it.
        data: the data root; `own_data` is True where the user gave it with --data.
        out: the output folder.
        run_dir: folder of the training run that the report shows.
        checkpoint: what was evaluated, None for nothing.
        steps: the commands and their times.
        published, published_rows: the paper's figures and where they come from.
        corpus: options of the rendered corpus, "" for the user's own data.
        images: labelled images that each reader saw; 0 where the scale does not fix them.
    """

    project: str
    title: str
    scale: str
    note: str
    model: str
    data: Path
    own_data: bool
    out: Path
    run_dir: Path
    checkpoint: Path | None
    steps: tuple[Done, ...]
    published: Mapping[str, str] = field(default_factory=dict)
    published_rows: tuple[PublishedRow, ...] = ()
    corpus: str = ""
    images: int = 0

    def announce(self) -> None:
        """State the data before the first step, for those who look at a checkpoint of this run."""
        data = f"rendered words ({self.corpus})" if self.corpus else str(self.data)
        write_text(self.out / ABOUT, json.dumps({"data": data, "images_seen": self.images or None}))

    def save(self) -> None:
        """Keep what is needed to write the report again."""
        write_text(self.out / "finished.json", json.dumps(asdict(self), indent=1, default=str))

    @classmethod
    def load(cls, out: Path) -> Finished:
        """What `save` kept in this folder, which may have been moved. Raises `UserError` for another file."""
        path = out / "finished.json"
        try:
            entry = read_json(path, dict, "run `strlab reproduce` again")
            before = Path(entry["out"])
            entry["steps"] = tuple(
                Done(step["name"], tuple(step["command"]), step["seconds"]) for step in entry["steps"]
            )
            entry["published_rows"] = tuple(PublishedRow(**row) for row in entry["published_rows"])
            for name in ("data", "run_dir", "checkpoint"):
                found = Path(entry[name]) if entry[name] else None
                inside = found is not None and found.is_relative_to(before)
                entry[name] = out / found.relative_to(before) if inside else found
            return cls(**{**entry, "out": out})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not the note of a finished reproduction ({error}); run `strlab reproduce` again"
            ) from None

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """What `strlab eval` wrote, None where nothing was evaluated."""
        path = self.out / "eval" / "eval.json"
        return read_json(path, dict, "evaluate again") if path.exists() else None
