"""The report of `make reproduce-mgpstr`: the shared one, with each head's accuracy, A3's attention and ACDS's maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.data.decode import decode_rgb, resize_bicubic
from common.data.sources import open_words
from common.data.words import discover
from common.infer.pictures import as_picture, enlarge, heat
from common.infer.recognizer import open_recognizer
from common.report.page import Cell, Report
from common.report.standard import open_for, read_predictions, set_folders, standard_report
from projects.mgpstr.box_masks import mask_from_boxes, parse_boxes
from projects.mgpstr.evaluate import COLUMNS
from projects.mgpstr.sheets import demo_sheet

if TYPE_CHECKING:
    from common.report.finished import Finished

SHEETS, MAPS = 4, 8


def build(run_dir: Path, finished: Finished) -> Report:
    """The shared report with our sections after the examples."""
    sections = [
        lambda report: add_heads(report, finished),
        lambda report: add_attention(report, finished),
        lambda report: add_maps(report, finished),
    ]
    return standard_report(finished, extra_sections=sections)


def add_heads(report: Report, finished: Finished) -> None:
    """Accuracy of characters, BPE, WordPiece and fusion, from what test_final.py wrote."""
    files = sorted(finished.out.rglob("evaluation.json"))
    if not files:
        return
    report.heading("Heads and fusion").text(
        "Word accuracy in % by the papers' rule (labels in lower case, reduced to the 36 characters) for each head "
        "alone and for the most confident of them; `won` says how often each head gave the fused answer. ACDS-STR has "
        "characters only. Words of evaluation are not trained on, and a short word is mostly a single token of the "
        "sub-word vocabularies: on this corpus those heads can read only what they have learnt to spell in pieces."
    )
    for file in files:
        content = json.loads(file.read_text("utf-8"))
        rows = []
        for name, one in content["sets"].items():
            won = ", ".join(f"{head} {count}" for head, count in sorted(one["won"].items(), key=lambda item: -item[1]))
            rows.append([name, one["words"], *(one[column] for column in COLUMNS), won])
        rows.append(["all words", sum(row[1] for row in rows), *(content["total"][column] for column in COLUMNS), ""])
        report.heading(Path(content["checkpoint"]).parent.name, level=3)
        report.table(["set", "words", *COLUMNS, "won"], rows, strong=[len(rows) - 1])


def add_attention(report: Report, finished: Finished) -> None:
    """Sheets of all heads for a few crops."""
    rows = read_predictions(finished.out / "eval" / "predictions.csv") if finished.evaluation else []
    if not rows or finished.checkpoint is None:
        return
    recognizer = open_for(finished)
    folders = set_folders(finished.evaluation)
    rows.sort(key=lambda row: (-int(row["correct_36"] or 0), -float(row["confidence"]), row["set"], int(row["index"])))
    chosen = rows[:: max(len(rows) // SHEETS, 1)][:SHEETS]
    crops = [recognizer.prepare(open_words(folders[row["set"]]).image_bytes(int(row["index"]))) for row in chosen]
    cells = []
    for row, crop, prediction in zip(chosen, crops, recognizer(crops, attention=True)):
        good = row["correct_36"] == "1"
        cells.append(
            Cell([demo_sheet(crop, prediction)], f"fused: {prediction.text}", [f"truth `{row['label']}`"], good)
        )
    if cells:
        report.heading("A3: where each head looked").text(
            "From left to right characters, BPE and WordPiece of the same crop; one line for each token and the end."
        )
        report.grid(cells, cell_width=640)


def add_maps(report: Report, finished: Finished) -> None:
    """ACDS-STR's character map next to the mask of the boxes, on words of the validation set."""
    found = sorted(finished.out.glob("acds*/best_accuracy.pth"))
    if not found:
        return
    recognizer = open_recognizer(found[0])
    size = recognizer.image_size
    crops, masks = [], []
    for words in map(open_words, discover(finished.data / "validation")):
        for index in range(min(len(words), MAPS)):
            image, boxes = decode_rgb(words.image_bytes(index)), words.value("boxes", index)
            if boxes is not None:
                height, width = image.shape[:2]
                crops.append(resize_bicubic(image, size))
                masks.append(mask_from_boxes(parse_boxes(boxes, str(words.path)), width, height, size))
    if not crops:
        return
    predictions = recognizer(crops)
    with torch.inference_mode():
        maps = recognizer.reader.extras(torch.from_numpy(np.stack(crops)).to(recognizer.reader.device))["character map"]
    cells = [
        Cell(
            [enlarge(crop, 3), enlarge(as_picture(mask.astype(float)), 3), heat(enlarge(crop, 3), values)],
            f"read: {one.text}",
        )
        for crop, mask, values, one in zip(crops, masks, maps, predictions)
    ]
    report.heading("ACDS-STR: character map and its mask").text(
        "Held-out words. From above: the crop, the mask made of its character boxes (what the map is trained towards "
        "on training words), the predicted map over the crop."
    )
    report.grid(cells[:MAPS])
