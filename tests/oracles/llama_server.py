"""Takes llama-server's options and becomes `lathe serve`: what llama.cpp's own tests start in its place.

Their model is stories260K; what their options say of it goes into a copy of its folder (context, longest answer,
sampling, chat template), and the rest into options of `lathe serve`. $LATHE_STORIES is the folder with the model, and
$LATHE_PLACE where copies are made.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

# llama.cpp's own names for templates that the tests ask for by name; chatml is the one where a model has none.
TEMPLATES = {
    "chatml": "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "command-r": "{% for message in messages %}<|START_OF_TURN_TOKEN|>"
    "{{ {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>', 'assistant': '<|CHATBOT_TOKEN|>'}[message.role] }}"
    "{{ message.content }}<|END_OF_TURN_TOKEN|>{% endfor %}"
    "{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
}
STYLES = ("llama3",)  # names that Lathe has, too

WITH_VALUE = "host port temp seed hf-repo hf-file alias tags ctx-size batch-size ubatch-size parallel n-predict".split()
WITH_VALUE += "api-key chat-template chat-template-file reasoning reasoning-format cors-origins media-path".split()
WITH_VALUE += "pooling threads model lora".split()
FLAGS = "offline cont-batching slots no-slots metrics embedding jinja no-jinja no-ui kv-unified verbose".split()


def read(words: list[str]) -> argparse.Namespace:
    """The options that llama.cpp's tests give; any other ends the program, which fails the test."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in WITH_VALUE:
        parser.add_argument(f"--{name}")
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args(words)


def folder(told: argparse.Namespace, stories: Path, place: Path) -> Path:
    """A copy of the model's folder that says what the options say."""
    shutil.copytree(stories, place, dirs_exist_ok=True)
    config = json.loads((place / "config.json").read_text())
    # llama-server divides its context among its slots; Lathe's is each request's own.
    slots = 1 if told.kv_unified else int(told.parallel or 1)
    config["max_position_embeddings"] = int(told.ctx_size or 512) // slots
    (place / "config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": 2, "temperature": float(told.temp or 0.8), "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    if told.n_predict and int(told.n_predict) > 0:  # -1 is as many as there is room for
        generation["max_new_tokens"] = int(told.n_predict)
    (place / "generation_config.json").write_text(json.dumps(generation))
    name = told.chat_template or "chatml"
    template = TEMPLATES.get(name, name)
    if told.chat_template_file:
        template = Path(told.chat_template_file).read_text()
    # llama-server tells every template whether to reason, by --reasoning; Lathe leaves it to the requests.
    thinks = f"{{%- set enable_thinking = enable_thinking | default({told.reasoning != 'off'}) -%}}"
    if name not in STYLES:
        (place / "chat_template.jinja").write_text(thinks + template)
    return place


def command(told: argparse.Namespace, model: Path) -> list[str]:
    options = {
        "host": told.host,
        "port": told.port,
        "max-seqs": told.parallel,
        "api-key": told.api_key,
        "seed": told.seed,
    }
    options |= {"served-model-name": told.alias or "tinyllama-2", "cors-origin": told.cors_origins, "device": "cpu"}
    named = [word for name, value in options.items() if value for word in (f"--{name}", str(value))]
    template = model / "chat_template.jinja"
    style = [] if template.exists() else ["--prompt-style", told.chat_template]
    return [sys.executable, "-m", "lathe", "serve", str(model), *named, *style, "--any-model-name"]


def main() -> None:
    told = read(sys.argv[1:])
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    place = Path(tempfile.mkdtemp(dir=os.environ["LATHE_PLACE"]))
    words = command(told, folder(told, Path(os.environ["LATHE_STORIES"]), place / "stories"))
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
