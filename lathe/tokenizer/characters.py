"""Texts become a vocabulary of their characters: one token for each, as a `tokenizers` pipeline.

Small and plain, for small models and for learning how one works. A character that is in none of the texts has no token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from lathe.errors import TokenizerError

EOS = "<|endoftext|>"


def learn(texts: Iterable[str], specials: Sequence[str] | None) -> tuple[Tokenizer, Sequence[str]]:
    """A new vocabulary, and its specials: the characters of `texts` in the order of their code points, then `specials`.

    specials: None for EOS where there are several texts, and nothing for a single one.
    """
    seen, count = set[str](), 0
    for text in texts:
        seen.update(text)
        count += 1
    if not seen:
        raise TokenizerError("There are no characters to make a tokenizer of.")
    if specials is None:
        specials = (EOS,) if count > 1 else ()
    made = Tokenizer(models.WordLevel({character: number for number, character in enumerate(sorted(seen))}))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in specials])
    return made, specials


def missing(pipeline: Tokenizer, texts: Iterable[str]) -> str | None:
    """The first character of `texts` without a token, in a vocabulary of characters."""
    return next((one for text in texts for one in text if pipeline.token_to_id(one) is None), None)


def sample(pipeline: Tokenizer) -> str:
    """A text that the pipeline certainly encodes, to see what it puts around one."""
    return next(iter(pipeline.get_vocab())) if isinstance(pipeline.model, models.WordLevel) else "a"
