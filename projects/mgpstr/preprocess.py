"""From a decoded picture and a raw label to what MGP-STR and ACDS-STR see (spec section 3). Pixels stay in [0, 1]."""

from __future__ import annotations

import numpy as np

from common.data.decode import pad_right, resize_bicubic, resize_keeping_ratio
from common.text.normalise import Normaliser, kept_by_regex_class

SIZE = (32, 128)


def fit(image: np.ndarray, size: tuple[int, int] = SIZE, pad: bool = False) -> np.ndarray:
    """uint8 [h, w, 3] -> [H, W, 3]: bicubic regardless of the aspect, or with `pad` keeping it, black to the right."""
    return pad_right(resize_keeping_ratio(image, size), size[1]) if pad else resize_bicubic(image, size)


def label_normaliser(charset: str, sensitive: bool = False, published: bool = False) -> Normaliser:
    """Lower-case unless `sensitive`, then keep the characters of the charset only.

    The published code puts the charset unescaped into a regular expression and so deletes the backslash from
    case-sensitive labels; `published=True` does as well (no case-sensitive weights were published).
    """
    return Normaliser(kept_by_regex_class(charset) if published else charset, lower=not sensitive)
