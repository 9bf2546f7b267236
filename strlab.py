"""Scene text recognition from Python.

Examples:
    >>> import strlab
    >>> reader = strlab.load()                                   # doctest: +SKIP
    >>> reader("crop.png").text                                  # doctest: +SKIP
    'coffee'
    >>> [p.text for p in reader(["a.jpg", "b.jpg"])]             # doctest: +SKIP
    ['north', 'street']
    >>> [(w.text, w.box) for w in reader.read_page("page.jpg")]  # doctest: +SKIP
    [('Coffee', array(...)), ('house', array(...))]

`load` opens the reader that ships with the package, another shipped one by its name, or a checkpoint file. Nothing is
downloaded. Importing this module is cheap: PyTorch is imported when a reader is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import projects  # noqa: F401  (refuses another package `common` that comes first on the path)
from common import __version__
from common.errors import UserError

if TYPE_CHECKING:
    from common.infer.pages import Word
    from common.infer.recognizer import Prediction, Recognizer

__all__ = ["Prediction", "Recognizer", "UserError", "Word", "__version__", "evaluate", "load", "models"]

_HOW = ("batch_size", "amp", "workers", "upright", "published", "engine")


def __getattr__(name: str) -> Any:
    """`Prediction`, `Recognizer` and `Word`, imported when they are first used, so that `import strlab` is quick."""
    if name == "Word":
        from common.infer.pages import Word  # loads OpenCV

        return Word
    if name in ("Prediction", "Recognizer"):
        from common.infer import recognizer  # loads torch; so below

        return getattr(recognizer, name)
    raise AttributeError(f"module 'strlab' has no attribute {name!r}")


def load(name_or_file: str | Path | None = None, device: str = "auto", **options: Any) -> Recognizer:
    """Open a trained reader.

    Args:
        name_or_file: a checkpoint file or folder, the name of a shipped reader, or the registry entry of one
            (`strlab models` lists them); without it the default reader.
        device: `auto` (CUDA where there is a GPU), `cpu`, `cuda`, `cuda:1`.
        options: `model` (registry entry, where a checkpoint has no metadata file), `batch_size`, `amp` (`no`, `fp16` or
            `bf16`), `workers` (decoding threads), `upright` (follow EXIF orientation), `engine` (`auto`, `torch`,
            `onnx` or `int8`); any other is a build option of the model.

    Returns:
        A `Recognizer`: call it with one picture or with many. For a shipped reader, one line on stderr reports which
        one it is and its word accuracy.

    Raises:
        UserError: nothing ships under that name, no such file, a checkpoint that does not fit, an unknown option.

    Examples:
        >>> load("no-such-reader.pth")
        Traceback (most recent call last):
        ...
        common.errors.UserError: --checkpoint: no-such-reader.pth does not exist
    """
    # torch, as in `__getattr__`
    from common.infer import shipped
    from common.infer.recognizer import open_recognizer

    model = options.pop("model", None)
    how = {name: options.pop(name) for name in _HOW if name in options}
    if name_or_file is not None and _is_file(name_or_file):
        return open_recognizer(name_or_file, model, device, options, **how)
    one = shipped.default() if name_or_file is None else shipped.find(str(name_or_file))
    one.check()
    shipped.announce(one.name)
    return open_recognizer(one.path, model, device, options, **how)


def _is_file(name: str | Path) -> bool:
    """Whether this names a checkpoint rather than a shipped reader."""
    path = Path(name).expanduser()
    return path.exists() or not isinstance(name, str) or bool(path.suffix) or name.startswith((".", "~", "/"))


def evaluate(recognizer: Recognizer, data: str | Path | Iterable[str | Path], max_samples: int = 0) -> dict[str, Any]:
    """Measure a reader on every word LMDB at or below some folders.

    Args:
        recognizer: what `load` returned.
        data: one folder or several.
        max_samples: at most the first so many words of each set; 0 takes all.

    Returns:
        The content of `eval.json`: for each set and in total the word accuracy under the protocols of 36, 62 and 94
        characters with its 95 % interval and the number of words, 1-NED and confidence.

    Raises:
        UserError: no LMDB there, or a set without one readable sample.
    """
    # torch, as in `__getattr__`
    from common.infer.evaluate import evaluate as run
    from common.infer.evaluate import find_sets

    folders = [data] if isinstance(data, (str, Path)) else list(data)
    return run(recognizer, find_sets([Path(folder) for folder in folders]), max_samples, progress=False).as_dict()


def models(pattern: str = "") -> list[Mapping[str, Any]]:
    """List what can be loaded or trained: the shipped readers first, then every registered model.

    Args:
        pattern: only names that contain this, in any case.

    Examples:
        >>> any(one["name"] == "siga/TRBA" for one in models("trba"))
        True
    """
    # the modules of every project, as in `__getattr__`
    from common import registry
    from common.infer import shipped
    from common.infer.models_command import describe

    found = [one.describe() for one in shipped.all_shipped()] + [describe(row) for row in registry.rows()]
    return [one for one in found if pattern.lower() in str(one["name"]).lower()]
