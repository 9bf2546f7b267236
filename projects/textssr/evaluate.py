#!/usr/bin/env python
"""How well painted words can be read, and how near they are to the pictures they replace.

    python projects/textssr/evaluate.py OUTPUT [OUTPUT …] --reader best.pth

OUTPUT is a folder of `infer.py`. Written into it: `evaluation.json`, `predictions.csv`, `contact_sheet.png`; several
folders are compared in one table. SeqAcc: exact string equality, nothing folded. word36: lower case, letters and digits
only, as text recognition counts. NED: mean of 1 - distance / longer length. Where the regions' own words were painted:
word36 of the real regions and of those after the VAE alone; SSIM of painted and real regions. SeqAcc and word36 of
each language where the data named it. FID and LPIPS need weights that are not fetched; FD reader, which needs none, is
the Frechet distance between painted and real regions in the features of the default reader's convolutions: it compares
runs with each other and is no FID.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import torch
from skimage.metrics import structural_similarity

from common.errors import UserError, command
from common.files import write_bytes, write_text
from common.flags import Parser
from common.infer.recognizer import open_recognizer
from common.metrics.accuracy import Scores
from common.metrics.protocols import PROTOCOL_36
from projects.textssr.judge import DEFAULT, READER_HELP, Read, describe_reader, find_shipped, open_reader
from projects.textssr.metrics import (
    FIGURES,
    PERCEPTUAL,
    READ,
    frechet_distance,
    load,
    mean_similarity,
    sequence_accuracy,
)


def read_labels(run: Path) -> dict[str, str]:
    """`labels.json` of a run (`label.json` in one of the published baselines), in order. Raises UserError."""
    for name in ("labels.json", "label.json"):
        if (run / name).is_file():
            labels = read_names(run / name)
            if not labels:
                raise UserError(f"{run / name}: it names no word: run infer.py again")
            return labels
    raise UserError(f"{run}: no labels.json: give a folder that infer.py has written")


def read_names(path: Path) -> dict[str, str]:
    """{file: text} of a JSON file. Raises UserError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}): run infer.py again") from None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise UserError(f"{path}: not an object of file names and texts: run infer.py again")
    return found


def reading_scores(run: Path, labels: dict[str, str], read: Read) -> tuple[dict, dict[str, list[str]]]:
    """Figures of what the reader made of `region/`, in %, and its predictions by folder.

    Where the regions' own words were painted, also `word36` of the real regions (`truth/`) and of the same after the
    VAE alone (`vae/`): what the reader errs on there is not the painter's fault.
    """
    truth, predictions = list(labels.values()), {}
    for folder in [name for name in READ if name == "region" or (run / name).is_dir()]:
        paths = [run / folder / name for name in labels]
        lost = [path for path in paths if not path.is_file()]
        if lost:
            raise UserError(f"{lost[0]}: missing; run infer.py again")
        predictions[folder] = [prediction.text for prediction in read(paths)]
    scores = Scores()
    for folder, texts in predictions.items():
        scores.add(folder, texts, truth)
    rows = {row.name: row for row in scores.rows()}
    painted = predictions["region"]
    figures = {
        "words": len(truth),
        "SeqAcc": 100 * sequence_accuracy(painted, truth),
        "word36": rows["region"].accuracy["36"],
        "NED": 100 * mean_similarity(painted, truth),
        "NED36": rows["region"].one_minus_ned["36"],
    }
    figures |= {READ[name]: row.accuracy["36"] for name, row in rows.items() if name != "region"}
    figures["lengths"] = grouped(predictions, truth, "length", [len(text) for text in truth])
    if (run / "languages.json").is_file():
        languages = read_names(run / "languages.json")
        named = [languages.get(name, "not named") for name in labels]
        figures["languages"] = grouped(predictions, truth, "language", named)
    return figures, predictions


def grouped(predictions: dict[str, list[str]], truth: list[str], what: str, keys: Sequence[int | str]) -> list[dict]:
    """Words and accuracies (exact and 36 characters, %) for each of the words' `keys`, sorted by them."""
    found = []
    for key in sorted(set(keys)):
        places = [place for place, own in enumerate(keys) if own == key]
        entry = {what: key, "words": len(places)}
        for folder, texts in predictions.items():
            pair = [texts[place] for place in places], [truth[place] for place in places]
            if folder == "region":
                entry["SeqAcc"] = 100 * sequence_accuracy(*pair)
            entry[READ[folder]] = 100 * PROTOCOL_36.accuracy(*pair)[0]
        found.append(entry)
    return found


def mean_ssim(run: Path, names: Sequence[str]) -> float | None:
    """Mean structural similarity of `region/` and `truth/`; None where there is nothing to compare."""
    values = []
    for name in names:
        if (run / "truth" / name).is_file():
            made, real = load(run / "region" / name), load(run / "truth" / name)
            window = min(7, *made.shape[:2])
            window -= 1 - window % 2
            if window >= 3 and made.shape == real.shape:
                values.append(structural_similarity(made, real, channel_axis=2, win_size=window))
    return float(np.mean(values)) if values else None


def perceptual(run: Path) -> dict[str, float | str]:
    """FID and LPIPS, or in words why they were not measured."""
    found: dict[str, float | str] = {}
    for name, (package, weights) in PERCEPTUAL.items():
        if importlib.util.find_spec(package) is None:
            found[name] = f"not measured: the package {package} is not installed"
        elif not (Path(torch.hub.get_dir()) / "checkpoints" / weights).is_file():
            found[name] = f"not measured: {weights} is not among the downloaded weights"
        elif not (run / "truth").is_dir():
            found[name] = "not measured: no truth/ folder"
        else:
            found[name] = _fid(run) if name == "FID" else _lpips(run)
    return found


def reader_distance(run: Path, names: Sequence[str], device: str) -> float | None:
    """`frechet_distance` of `region/` and `truth/` in the default reader's features; None where there is no truth/."""
    if not (run / "truth").is_dir() or len(names) < 2:
        return None
    painted, real = (reader_features([run / folder / name for name in names], device) for folder in ("region", "truth"))
    return frechet_distance(painted, real)


def reader_features(paths: Sequence[Path], device: str) -> np.ndarray:
    """`[N, 192]`: what the convolutions of the default reader see in each picture, averaged over the word."""
    opened = open_recognizer(find_shipped(DEFAULT).path, device=device, engine="torch")
    model, (height, width) = opened.reader.model, opened.image_size
    found = []
    for path in paths:
        crop = cv2.resize(load(path), (width, height), interpolation=cv2.INTER_AREA)
        image = torch.from_numpy(crop).permute(2, 0, 1)[None].to(opened.device).float() / 127.5 - 1
        with torch.inference_mode():
            found.append(model.trunk(image).mean((2, 3))[0].cpu().numpy())
    return np.stack(found)


def _fid(run: Path) -> float:
    from pytorch_fid.fid_score import calculate_fid_given_paths

    return float(calculate_fid_given_paths([str(run / "region"), str(run / "truth")], 1, "cpu", 2048, 0))


def _lpips(run: Path) -> float:
    import lpips

    network, values = lpips.LPIPS(net="alex", verbose=False), []
    for path in sorted((run / "region").iterdir()):
        pair = [torch.from_numpy(load(p)).permute(2, 0, 1)[None] / 127.5 - 1 for p in (path, run / "truth" / path.name)]
        values.append(float(network(*pair)))
    return float(np.mean(values))


def contact_sheet(run: Path, labels: dict[str, str], predictions: Sequence[str] | None, most: int = 48) -> np.ndarray:
    """Real crop next to painted crop for the first words, with text and reading: uint8 `[h, w, 3]`."""
    side, columns, line = 96, 6, 96 + 16
    shown = list(labels.items())[:most]
    rows = -(-len(shown) // columns)
    sheet = np.full((rows * line, columns * (2 * side + 8), 3), 255, np.uint8)
    for number, (name, text) in enumerate(shown):
        top, left = number // columns * line, number % columns * (2 * side + 8)
        for place, folder in enumerate(("source", "local")):
            if (run / folder / name).is_file():
                at = left + place * side
                picture = cv2.resize(load(run / folder / name), (side, side), interpolation=cv2.INTER_AREA)
                sheet[top : top + side, at : at + side] = picture
        read = "" if predictions is None else f" > {predictions[number]}"
        good = predictions is None or predictions[number].lower() == text.lower()
        words = f"{text}{read}".encode("ascii", "replace").decode()
        colour = (0, 110, 0) if good else (190, 0, 0)
        cv2.putText(sheet, words, (left, top + side + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, 1, cv2.LINE_AA)
    return sheet


def evaluate(run: Path, read: Read | None, reader: str, device: str = "cpu") -> dict:
    """Measure one run, write its files, return its figures; `reader` is the name of what reads."""
    labels = read_labels(run)
    figures: dict = {"run": str(run), "reader": reader, "words": len(labels)}
    predictions = None
    if read is not None:
        scores, predictions = reading_scores(run, labels, read)
        figures |= scores
        text = io.StringIO()
        table = csv.writer(text)
        table.writerow(["file", "text", *("prediction" if name == "region" else name for name in predictions)])
        table.writerows(zip(labels, labels.values(), *predictions.values()))
        write_text(run / "predictions.csv", text.getvalue())
    figures["SSIM"] = mean_ssim(run, list(labels))
    figures["FD reader"] = reader_distance(run, list(labels), device)
    figures |= perceptual(run)
    sheet = contact_sheet(run, labels, predictions and predictions["region"])
    write_bytes(run / "contact_sheet.png", cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    write_text(run / "evaluation.json", json.dumps(figures, indent=1))
    return figures


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Measure all runs and print one table."""
    parser = Parser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="OUTPUT", help="folders of infer.py")
    parser.add_argument("--reader", default=DEFAULT, metavar="READER", help=f"{READER_HELP}; none: no reading")
    parser.add_argument("--reader-model", default=None, help="its model, where it has no metadata file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    options = parser.parse_args(argv)
    read = options.reader != "none"
    reader = open_reader(options.reader, options.reader_model, options.device) if read else None
    name = describe_reader(options.reader)
    results = [evaluate(run, reader, name, options.device) for run in options.runs]
    print(f"read by {name}" if read else "nothing was read (--reader none)")
    for result in results:
        parts = [f"{name} {_shown(result[name])}" for name in FIGURES if result.get(name) is not None]
        print(f"{result['run']}: {', '.join(parts)}")
        for entry in result.get("languages", []):
            parts = [f"{name} {_shown(value)}" for name, value in entry.items() if name != "language"]
            print(f"    {entry['language']}: {', '.join(parts)}")


def _shown(value: float | int | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
