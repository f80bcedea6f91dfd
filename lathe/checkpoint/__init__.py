"""Any folder or file becomes configuration, spec, tokenizer and tensors; fills a decoder; writes Hugging Face form."""

from lathe.checkpoint.filling import Checkpoint, blank, fit, slots
from lathe.checkpoint.opening import open, read_json, read_yaml
from lathe.checkpoint.saving import save

__all__ = ["Checkpoint", "blank", "fit", "open", "read_json", "read_yaml", "save", "slots"]
