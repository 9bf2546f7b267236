"""The GPT-2 and BERT vocabularies: compressed in `vocabulary/`, checked by hash, never fetched.

`STRLAB_MGPSTR_VOCABULARY` may name another folder with the same files, packed (`.xz`) or not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import os
from pathlib import Path

from common.errors import UserError

FOLDER = Path(__file__).parent / "vocabulary"
SHA256 = {
    "gpt2_encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "gpt2_merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "bert_base_uncased_vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}


def read(name: str, folder: Path | None = None) -> bytes:
    """Return the unpacked bytes of one vocabulary file.

    Raises `UserError` if the file is missing, cannot be unpacked or does not have its published SHA-256: ids of another
    vocabulary would load into the weights and read nonsense.
    """
    folder = folder or Path(os.environ.get("STRLAB_MGPSTR_VOCABULARY", FOLDER))
    packed, plain = folder / f"{name}.xz", folder / name
    try:
        data = lzma.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{packed}: vocabulary file is missing; restore it as {FOLDER.name}/README.md says") from None
    except lzma.LZMAError as error:
        raise UserError(f"{packed}: cannot be unpacked ({error}); restore it as {FOLDER.name}/README.md says") from None
    found = hashlib.sha256(data).hexdigest()
    if found != SHA256[name]:
        raise UserError(
            f"{folder / name}: SHA-256 is {found[:12]}…, not the published {SHA256[name][:12]}…; restore the file"
        )
    return data


@functools.cache
def gpt2() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Return (token -> id, merges in order) of GPT-2: 50,257 tokens of byte symbols and 50,000 merges."""
    lines = read("gpt2_merges.txt").decode().split("\n")[1:-1]  # the first line names the version
    left_right = tuple(tuple(line.split()) for line in lines)
    return json.loads(read("gpt2_encoder.json")), left_right


@functools.cache
def bert() -> dict[str, int]:
    """Return token -> id of bert-base-uncased: 30,522 word pieces, `##` marking continuations."""
    return {token: index for index, token in enumerate(read("bert_base_uncased_vocab.txt").decode().splitlines())}
