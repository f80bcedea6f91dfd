"""Turns the name of a model into a folder or file on this machine, downloading it where it must; never imports torch.

Knows names of files and the Hugging Face Hub; knows nothing of what the files hold.
"""

from lathe.hub.bar import amount
from lathe.hub.finding import download, find, placed
from lathe.hub.known import Known, known

__all__ = ["Known", "amount", "download", "find", "known", "placed"]
