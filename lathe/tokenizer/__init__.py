"""Text <-> ids and messages -> text, as a checkpoint's own files say; knows no model and no tensor."""

from lathe.tokenizer.making import train_bpe, train_characters
from lathe.tokenizer.stream import StopStrings, TextStream
from lathe.tokenizer.tokenizer import Tokenizer

__all__ = ["StopStrings", "TextStream", "Tokenizer", "train_bpe", "train_characters"]
