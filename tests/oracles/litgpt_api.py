"""What LitGPT's Python object says of a folder of its own, and how a Trainer trains it.

    python tests/oracles/litgpt_api.py FOLDER UNTIED ROWS

in LitGPT's environment. UNTIED: the model that a Trainer trains. ROWS: token ids, as JSON, one row a step. Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from litgpt.api import LLM, benchmark_dict_to_markdown_table
from litgpt_trainer import losses

FOLDER, UNTIED, ROWS = sys.argv[1], sys.argv[2], torch.tensor(json.loads(sys.argv[3]))
TABLE = {"Seconds total": [1.5, 0.79, 0.8], "Tokens generated": [26, 26, 26]}


llm = LLM.load(FOLDER, distribute=None)
llm.distribute(accelerator="cpu", precision="32-true")
asked = {"prompt": "Once upon a time", "top_k": 1, "max_new_tokens": 30}
masked = ROWS.clone()
masked[:, :4] = -100
with torch.inference_mode():
    llm.model.clear_kv_cache()
    logits, loss = llm(ROWS, target_ids=masked)
found = {
    "text": llm.generate(**asked),
    "pieces": list(llm.generate(**asked, stream=True)),
    "tokens": llm.generate(**asked, return_as_token_ids=True).tolist(),
    "encoded": llm.preprocessor.encode("Once upon a time").tolist(),
    "styled": llm.prompt_style.apply("Once upon a time"),
    "logits": logits[:, -1].tolist(),
    "loss": loss.item(),
    "names": sorted(llm.benchmark(**asked)[1]),
    "table": benchmark_dict_to_markdown_table(TABLE),
}
found["losses"] = losses(LLM, UNTIED, ROWS)
print()
print(json.dumps(found))
