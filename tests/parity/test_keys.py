"""No value of a case is ignored: every key of the committed cases is named by a test here, or listed with a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.parity import harness

PROJECTS = ("siga", "mgpstr", "dig", "ssm", "textssr")
# key: why nothing compares it
NOTES = {
    "case": "the file's own name",
    "note": "how a table was made, in words",
    "others": "which arrays are stored, in words",
    "stored": "which arrays are stored, in words",
    "cpu_step_seconds": "a duration of the measurement",
    "train_seconds": "a duration of the measurement",
    "torchvision_semantics": "a version that the numbers were measured with",
    "opencv": "a version that the numbers were measured with",
    "pillow": "a version that the numbers were measured with",
    "font": "its digest is compared",
    "fill": "the rule of fill.py, in words; in glyph planes the grey levels, whose minimum is compared",
    "dropout": "always switched off",
    "world_size": "one process; the case of two has its own test",
    "affine_error": "no error was met",
    "second_inverted": "the inputs are stored",
    "one_more_step_raises": "our scripts end with the schedule",
    "printed": "what the published scheduler prints",
    "label_string": "the published text of the same boxes",
    "group": "the published name of a group of operations",
    "char_len": "the published code never reads it",
    "encoder_type": "vit, the only one",
    "queue_size": "without effect in the published code",
    "use_mean_pooling": "without effect in the published code",
    "use_seq_cls_token": "refused here",
    "init_scale": "without effect in the published code",
    "mask_ratio": "stands in the mask's recipe",
    "vision_pt_lengths": "inside the alignment, whose loss is compared",
    "numpy_version": "a version that the numbers were measured with",
    "foreach": "how a step is computed, not what",
    "capturable": "how a step is computed, not what",
    "differentiable": "how a step is computed, not what",
    "initial_lr": "lr once more",
    "font_size": "on the way to the planes, which are compared",
    "xy": "on the way to the planes, which are compared",
    "text_image_wh": "on the way to the glyphs, which are compared",
    "vertex_order": "on the way to the glyphs, which are compared",
    "text26": "how the published run ends at a text of 26 characters; here it is cut",
    "valid": "read by no published code",
    "caption": "read by no published code",
    "wm_score": "read by no published code",
}
# fields whose content is given to a constructor whole, or whose keys are names of tensors, cases or labels
WHOLE = {
    "arguments", "constructor", "scheduler", "config", "saved_config", "defaults_in_effect", "groups", "kwargs",
    "stats", "tensors", "gains", "info", "after_one_adadelta_step", "abinet_eval_losses", "variants", "args",
    "sets", "by_prefix", "result", "json", "charset_adapter_uppercase_only", "kept_by_language", "losses",
    "logit_column_strides", "grad_norm",
}  # fmt: skip
# fields that are read by a pattern, or by a name that is put together
PATTERNS = re.compile(
    r"(L|CE|Dice)_\w+|(rs|t)_loss|after_\w+_step|(char|bpe|wp)_(decode|string)|loss_label_smoothing_\w+|"
    r"(image|masked)_(mean|std)|(layer_\d+_)?(no_)?decay|(affine_\d|perspective)_linear"
)
# tables whose first level is the names of their cases, and files that have their own tests for every key
NAMED = ("schedules", "label_codes", "load_pretrained", "lr_schedule", "full_size", "param_groups_finetune")
OTHERS = ("cli", "hydra_configs", "configs")


def constants() -> tuple[set[str], set[str]]:
    """Texts that the parity tests use as they are, and the fixed beginnings of their f-strings and prefixes."""
    whole, starts = set(), set()
    for path in Path(__file__).parent.glob("*.py"):
        if path.name == Path(__file__).name:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr) and isinstance(node.values[0], ast.Constant):
                starts.add(node.values[0].value)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                whole.add(node.value)
    return whole, {start for start in starts | {text for text in whole if text.endswith("_")} if len(start) > 3}


def keys(content: object) -> Iterator[str]:
    """Names of fields at any depth; keys that are data (names of weights, numbers, paths, flags, labels) are not."""
    for entry in content if isinstance(content, list) else ():
        yield from keys(entry)
    for key, value in content.items() if isinstance(content, dict) else ():
        if re.fullmatch(r"[A-Za-z]\w+", key):
            yield key
        if key not in WHOLE:
            yield from keys(value)


def unread(content: object) -> set[str]:
    """The keys of a case that no test names."""
    whole, starts = constants()
    return {
        key
        for key in keys(content)
        if key not in whole | NOTES.keys()
        and not PATTERNS.fullmatch(key)
        and not any(key.startswith(start) for start in starts)
    }


@pytest.mark.parametrize("project", PROJECTS)
def test_every_key_is_read(project: str) -> None:
    contents = {}
    for path in sorted((ROOT / "tests" / "goldens" / project).iterdir()):
        if path.suffix in (".npz", ".json") and ".manifest" not in path.name and path.stem not in OTHERS:
            content = harness.load(path).meta
            contents[path.name] = list(content.values()) if path.stem in NAMED else content
    left = unread(list(contents.values()))
    assert not left, {name: found for name, content in contents.items() if (found := unread(content))}


def test_a_new_key_is_seen() -> None:
    assert unread({"steps": [{"lr": 0.1, "lookahead_of_the_optimizer": 5}]}) == {"lookahead_of_the_optimizer"}
