"""Text <-> ids at the three granularities of MGP-STR (paper section 3.3): characters, GPT-2 BPE, BERT WordPiece.

Characters are `common.text.codecs.GoCodec`. The sub-word codes offer `encode(label) -> ids`, `decode_text(ids) ->
text`, `num_classes`, `start`, `end` and `end_text` (what the end id looks like in decoded text). All targets have T =
longest label + 2 positions, start first, padded with 0, which the losses ignore. Behaviour is that of the slow
tokenizers of transformers 4.2.1, including the English clean-up on decoding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np

from common.text.codecs import Decoded, GoCodec, LabelError
from projects.mgpstr import vocabularies

PAD = 0
GRANULARITIES = ("char", "bpe", "wp")
# the spaces that an English tokenizer put before punctuation and clitics, in the order in which they are removed
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def clean_up(text: str) -> str:
    """Remove the spaces before English punctuation and abbreviated forms, as transformers 4 did by default."""
    for spaced, joined in CLEAN_UP:
        text = text.replace(spaced, joined)
    return text


class SubwordCode:
    """What both sub-word codes share: the rule that turns ids and probabilities into a string and its score."""

    end: int
    end_text: str

    def decode(self, ids: np.ndarray, probabilities: np.ndarray) -> list[Decoded]:
        """Strings and scores of ids [B, P] with probabilities [B, P] (spec 5.5).

        The string is cut at the first end *text*, without one it loses its last character; the score is the product
        up to and including the first end *id*, 0 without one.
        """
        decoded = []
        for row, probs in zip(ids, probabilities):
            text = self.decode_text(row)
            ends = np.flatnonzero(row == self.end)
            counted = probs[: ends[0] + 1] if len(ends) else probs[:0]
            score = float(np.multiply.reduce(counted)) if len(ends) else 0.0
            decoded.append(Decoded(text[: text.find(self.end_text)], score, tuple(counted.tolist())))
        return decoded

    def decode_text(self, ids: Sequence[int]) -> str:
        """The whole decoded text of one row, special tokens as text."""
        raise NotImplementedError


class BpeCode(SubwordCode):
    """GPT-2 byte pairs. Start and end are ids 1 and 2 and the pad 0, which GPT-2 reads as `"`, `#` and `!`."""

    start, end, end_text, num_classes = 1, 2, "#", 50257

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

        vocabulary, merges = vocabularies.gpt2()
        tokenizer = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=list(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.add_special_tokens([AddedToken("<|endoftext|>")])
        return tokenizer

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes of each token: GPT-2 writes every byte as a printable character of its own."""
        vocabulary, _ = vocabularies.gpt2()
        alphabet = byte_alphabet()
        ordered = sorted(vocabulary, key=vocabulary.get)
        return [bytes(alphabet[character] for character in token) for token in ordered]

    def encode(self, label: str) -> list[int]:
        return [self.start, *self._tokenizer.encode(label).ids, self.end]

    def decode_text(self, ids: Sequence[int]) -> str:
        """The bytes of the tokens as UTF-8 (broken sequences become U+FFFD), cleaned up."""
        return clean_up(b"".join(self._pieces[index] for index in ids).decode("utf-8", errors="replace"))


def byte_alphabet() -> dict[str, int]:
    """GPT-2's character for each byte: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and after."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + order): byte for order, byte in enumerate(others)}


class WordPieceCode(SubwordCode):
    """bert-base-uncased: lower-cases and strips accents, so this granularity never sees case."""

    start, end, end_text, num_classes = 101, 102, "[SEP]", 30522
    SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def __init__(self, length: int = 27) -> None:
        self.length = length

    @functools.cached_property
    def _tokenizer(self):
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

        tokenizer = Tokenizer(
            models.WordPiece(vocab=dict(vocabularies.bert()), unk_token="[UNK]", max_input_chars_per_word=100)
        )
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.add_special_tokens(list(self.SPECIAL))
        return tokenizer

    @functools.cached_property
    def _pieces(self) -> list[str]:
        return list(vocabularies.bert())

    def encode(self, label: str) -> list[int]:
        """Ids with `[CLS]` and `[SEP]`; pieces beyond the length are cut and `[SEP]` stays."""
        return [self.start, *self._tokenizer.encode(label).ids[: self.length - 2], self.end]

    def decode_text(self, ids: Sequence[int]) -> str:
        """The pieces joined, cleaned up, and without any white space."""
        text = " ".join(self._pieces[index] for index in ids).replace(" ##", "")
        return "".join(clean_up(text).split())


class LabelCodes:
    """The codes of a model: `codes["char"]`, and for MGP-STR also `codes["bpe"]` and `codes["wp"]`.

    Args:
        charset: characters in index order.
        max_length: longest label in characters (`--batch_max_length`); targets have max_length + 2 positions.
        granularities: which codes to make; vocabularies are only read when one is first used.
    """

    def __init__(self, charset: str, max_length: int = 25, granularities: Sequence[str] = GRANULARITIES) -> None:
        self.length = max_length + 2
        self.char = GoCodec(charset, max_length, through_end=True)
        subwords = {"bpe": BpeCode(), "wp": WordPieceCode(self.length)}
        self.codes = {"char": self.char, **{name: subwords[name] for name in granularities if name != "char"}}
        self._seen: dict[tuple[str, str], np.ndarray] = {}

    def __getitem__(self, granularity: str) -> GoCodec | SubwordCode:
        return self.codes[granularity]

    def __iter__(self) -> Iterator[str]:
        return iter(self.codes)

    def encode(self, labels: Sequence[str]) -> dict[str, np.ndarray]:
        """Targets of a batch: int64 [B, T] for each granularity, 0 where there is nothing to learn.

        Raises `LabelError` (a `UserError`) if a label holds a character outside the charset or takes more than T
        positions.
        """
        targets = {"char": self.char.encode(labels)[0]}
        for name in self.codes:
            if name != "char":
                targets[name] = np.stack([self._padded(name, label) for label in labels])
        return targets

    def collision(self) -> str:
        """A warning where the charset has characters whose BPE ids serve as start, end and padding, "" elsewhere."""
        shared = [character for character in '"#!' if character in self.char.charset]
        if "bpe" not in self.codes or not shared:
            return ""
        return f"bpe: the ids of {' '.join(shared)} are also its start, end and padding, as published; it misreads them"

    def fits(self, label: str) -> bool:
        """True when every code can hold the label."""
        try:
            self.encode([label])
        except LabelError:
            return False
        return True

    def _padded(self, name: str, label: str) -> np.ndarray:
        # Words repeat: a table saves the tokenizers nearly all of their work.
        if len(self._seen) > 400_000:
            self._seen.clear()
        if (name, label) not in self._seen:
            ids = self.codes[name].encode(label)
            if len(ids) > self.length:
                raise LabelError(
                    f"label {label!r}: takes {len(ids)} {name} positions, the model has {self.length}: "
                    "raise --batch_max_length or drop it"
                )
            self._seen[name, label] = np.array(ids + [PAD] * (self.length - len(ids)), dtype=np.int64)
        return self._seen[name, label]
