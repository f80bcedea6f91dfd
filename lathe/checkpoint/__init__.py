"""Any folder or file becomes configuration, spec, tokenizer and tensors; fills a decoder; writes every form."""

from lathe.checkpoint import parts
from lathe.checkpoint.adapters import Adapted, Adapter, Named, by_name, put_on
from lathe.checkpoint.documents import read_json, read_yaml, write_json
from lathe.checkpoint.filling import Checkpoint, fit
from lathe.checkpoint.lightning import trained
from lathe.checkpoint.llama_adapter import files as llama_adapter_files
from lathe.checkpoint.merging import weights
from lathe.checkpoint.opening import open, shape
from lathe.checkpoint.peft_folder import Files as AdapterFiles
from lathe.checkpoint.peft_folder import files as adapter_files
from lathe.checkpoint.peft_folder import write as write_adapter
from lathe.checkpoint.placing import beside, recover, refuse, remove, room
from lathe.checkpoint.saving import kept, save
from lathe.model.blank import blank, slots

__all__ = [
    "Adapted",
    "Adapter",
    "AdapterFiles",
    "Checkpoint",
    "Named",
    "adapter_files",
    "beside",
    "blank",
    "by_name",
    "fit",
    "kept",
    "llama_adapter_files",
    "open",
    "parts",
    "put_on",
    "read_json",
    "read_yaml",
    "recover",
    "refuse",
    "remove",
    "room",
    "save",
    "shape",
    "slots",
    "trained",
    "weights",
    "write_adapter",
    "write_json",
]
