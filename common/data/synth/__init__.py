"""The embedded corpus: word crops rendered from open fonts, with masks and character boxes.

`render_corpus` writes the LMDBs, `render_word` draws one word in memory, `add_parser` adds `strlab data synth`.
"""

from __future__ import annotations

from common.data.synth.command import add_parser
from common.data.synth.corpus import is_rendered, render_corpus
from common.data.synth.options import SynthOptions
from common.data.synth.word import RenderedWord, render_word

__all__ = ["RenderedWord", "SynthOptions", "add_parser", "is_rendered", "render_corpus", "render_word"]
