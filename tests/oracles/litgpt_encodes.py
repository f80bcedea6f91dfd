"""Let LitGPT's own tokenizer encode texts.

    python tests/oracles/litgpt_encodes.py FOLDER TEXTS

in LitGPT's environment. FOLDER: one with a checkpoint folder for each tokenizer; TEXTS: as JSON. Prints, as JSON, of
each the ids, without what goes at either end, and the id of EOS.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from litgpt.tokenizer import Tokenizer

PLACE, TEXTS = Path(sys.argv[1]), json.loads(sys.argv[2])
found = {}
for folder in PLACE.iterdir():
    words = Tokenizer(folder)
    found[folder.name] = {"ids": [words.encode(text, bos=False).tolist() for text in TEXTS], "eos": words.eos_id}
print(json.dumps(found))
