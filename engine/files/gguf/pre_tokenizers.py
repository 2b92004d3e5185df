"""The pre-tokenizers of GGUF files (`tokenizer.ggml.pre`): how a text is split before BPE merges.

The names are llama.cpp's (src/llama-vocab.cpp). The patterns are those of the original tokenizer.json files,
which llama.cpp quotes in comments if its own patterns differ. A wrong pattern silently gives different
tokens than those that the model was trained with, so unknown names are rejected.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tokenizers import Regex, normalizers, pre_tokenizers

from pagefleet.engine.errors import ModelLoadError

__all__ = ["PreTokenizer", "pre_tokenizer"]


@dataclass(frozen=True)
class PreTokenizer:
    """The pre-tokenizer of one family of byte-level BPE vocabularies."""

    patterns: tuple[str, ...] = ()
    """Regular expressions, applied in order, each to the pieces that the previous one left."""
    splits_words: bool = False
    """Whether GPT-2's pattern is applied after `patterns`."""
    composes: bool = False
    """Whether texts are normalized to NFC first."""
    ignores_merges: bool = False
    """Whether a piece that is a token is used as it is, even if no merges lead to it."""
    adds_bos: bool = False
    """Whether a BOS token is added if the file does not specify it."""

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.composes else None

    def build(self, *, add_prefix_space: bool = False) -> pre_tokenizers.PreTokenizer:
        """Return the pre-tokenizer. As in transformers, `add_prefix_space` applies only to GPT-2's pattern
        alone."""
        if not self.patterns and self.splits_words:
            return pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True)
        splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.splits_words)
        return pre_tokenizers.Sequence([*splits, last])


def pre_tokenizer(name: str | None) -> PreTokenizer:
    """Return the pre-tokenizer with this name. Raises ModelLoadError if the name is missing or unknown."""
    if name is None or name == "default":
        raise ModelLoadError(
            f"tokenizer.ggml.pre is {'missing' if name is None else repr(name)}, so the pre-tokenizer is "
            "unknown: "
            "convert the model again with a newer llama.cpp, or use its safetensors checkpoint."
        )
    if name not in _NAMES:
        raise ModelLoadError(
            f"The pre-tokenizer {name!r} (tokenizer.ggml.pre) is not supported; use the model's safetensors "
            "checkpoint."
        )
    return _NAMES[name]


# -- patterns -------------------------------------------------------------------------------------------

_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BLANKS: Final = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGIT: Final = r"\p{N}"
_UP_TO_THREE: Final = r"\p{N}{1,3}"
_CJK: Final = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


def _words(
    numbers: str,
    *,
    contractions: str = f"{_CONTRACTIONS}|",
    letters: str = r"\p{L}+",
    signs: str = r"[^\s\p{L}\p{N}]+[\r\n]*",
) -> str:
    """Return tiktoken's cl100k pattern: contractions, words with a leading sign, numbers, signs, white
    space."""
    return rf"{contractions}[^\r\n\p{{L}}\p{{N}}]?{letters}|{numbers}| ?{signs}|{_BLANKS}"


def _cased_words(numbers: str, contractions: str = "") -> str:
    """Return tiktoken's o200k pattern: a word also ends before a capital letter."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{upper}*{lower}+{contractions}|{before}{upper}+{lower}*{contractions}"
        rf"|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
    )


def _class(ranges: str) -> str:
    """Return a character class from ranges of code points in hexadecimal."""
    pairs = [each.split("-") for each in ranges.split()]
    return "".join("-".join(rf"\x{{{end}}}" for end in pair) for pair in pairs)


_CASED_LETTERS: Final = _class(
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376 377 37b-37d 37f 386 388-38a "
    "38c 38e-3a1 3a3-3f5 3f7-481 48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf "
    "1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d "
    "1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 "
    "1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 213c-213f "
    "2145-2149 214e 2183 2184 2c00-2c7b 2c7e-2ce4 2ceb-2cee 2cf2 2cf3 a640-a66d a680-a69b a722-a76f "
    "a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a 10400-1044f 104b0-104d3 "
    "104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df "
    "1e900-1e943"
)
_GPT2_WORDS: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_FALCON_SIGNS: Final = r"[\p{P}\$\+<=>\^~\|`]+"
_DEEPSEEK_CJK: Final = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_SIGNS: Final = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_DEEPSEEK3_WORDS: Final = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_BLANKS}"
)
_CLAUSES: Final = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_LING: Final = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
_EXAONE_MOE: Final = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_JAIS2_BLANKS: Final = "|".join(
    [r"\s*[\r\n]+", *(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)), r"\s{1,2}(?!\S)|\s{1}"]
)

# -- families -------------------------------------------------------------------------------------------

_GPT2 = PreTokenizer(splits_words=True)
_DIGITS = PreTokenizer((_DIGIT,), splits_words=True)
_LLAMA3 = PreTokenizer((_words(_UP_TO_THREE),), ignores_merges=True, adds_bos=True)
_CL100K = PreTokenizer((_words(_UP_TO_THREE),))
_QWEN2 = PreTokenizer((_words(_DIGIT),), composes=True)
_SINGLE_DIGITS = PreTokenizer((_words(_DIGIT),))
_O200K = PreTokenizer((_cased_words(_UP_TO_THREE, f"{_CONTRACTIONS}?"),))
_DEEPSEEK3 = PreTokenizer((_UP_TO_THREE, _CJK, _DEEPSEEK3_WORDS))
_BLOOM = PreTokenizer((_CLAUSES,))
_BAILING = PreTokenizer((_LING,))

_FAMILIES: Final[dict[str, PreTokenizer]] = {
    "gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling": _GPT2,
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": _DIGITS,
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2": _LLAMA3,
    "dbrx smaug-bpe glm4 chatglm-bpe": _CL100K,
    "qwen2 deepseek-r1-qwen": _QWEN2,
    "kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": _SINGLE_DIGITS,
    "gpt-4o llama4 kanana2 talkie minimax-m2": _O200K,
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": _DEEPSEEK3,
    "poro-chat bloom gpt3-finnish": _BLOOM,
    "bailingmoe bailingmoe2 llada-moe": _BAILING,
    "viking": PreTokenizer((_CLAUSES, _DIGIT)),
    "tekken": PreTokenizer((_cased_words(_DIGIT),), ignores_merges=True, adds_bos=True),
    "falcon": PreTokenizer((_FALCON_SIGNS, _GPT2_WORDS, "[0-9][0-9][0-9]")),
    "deepseek-llm": PreTokenizer(
        ("[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _DEEPSEEK_SIGNS, r"\s+$", _DEEPSEEK_CJK, r"\p{N}+")
    ),
    "deepseek-coder": PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, _DIGIT)),
    "qwen35": PreTokenizer(
        (_words(_DIGIT, letters=r"[\p{L}\p{M}]+", signs=r"[^\s\p{L}\p{M}\p{N}]+[\r\n]*"),), composes=True
    ),
    "seed-coder": PreTokenizer((_words(_DIGIT, signs=r"[^\s\p{L}\p{N}\r\n]+"),)),
    "ufakzeka": PreTokenizer((_words(_DIGIT, contractions=""),)),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "jais-2": PreTokenizer((_words(_UP_TO_THREE).replace(_BLANKS, _JAIS2_BLANKS),)),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _words(_DIGIT))),
    "minicpm5": PreTokenizer((_UP_TO_THREE, _words(r"\p{N}+")), ignores_merges=True),
}
_NAMES: Final = {name: family for names, family in _FAMILIES.items() for name in names.split()}
