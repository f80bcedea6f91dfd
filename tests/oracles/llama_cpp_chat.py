"""What llama.cpp answers by a GGUF file's own chat template: python llama_cpp_chat.py FILE QUESTION; JSON."""

from __future__ import annotations

import json
import sys

import llama_cpp

model = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=1, verbose=False)
messages = [{"role": "user", "content": sys.argv[2]}]
[choice] = model.create_chat_completion(messages, temperature=0, max_tokens=100)["choices"]
print(json.dumps({"text": choice["message"]["content"], "ended": choice["finish_reason"]}))
