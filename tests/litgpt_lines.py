"""The command lines that LitGPT's users know, each form once, with names of our own: as typed, and in Lathe's words.

Models are called a/b and c/d, files and folders by a letter or two.
"""

from __future__ import annotations

FIELDS = "--prompt Hello --max_new_tokens 256"
TEXTS = "--data TextFiles --data.train_data_path d/ --train.max_tokens 10_000_000"
JSON = "--data JSON --data.json_path d.json"
ASK = "--prompt 'What food do llamas eat?'"
LORA, FULL = "finetune a/b --out-dir out/finetune/lora", "finetune a/b --method full --out-dir out/finetune/full"
ADAPTER = "finetune a/b --method adapter --out-dir out/finetune/adapter"
ADAPTER_V2 = "finetune a/b --method adapter_v2 --out-dir out/finetune/adapter-v2"

# Lines of its pages that name no model. LitGPT ends with status 2 and names what is missing, and so does Lathe.
REFUSED = ("finetune_lora", "finetune_full", "finetune_adapter", "finetune_adapter_v2")

LINES: dict[str, str] = {  # as typed: as meant; "" where it is the same
    # ---- download
    "download list": "",
    "download a/b": "",
    "download a/b --tokenizer_only true": "",
    "download a/b --tokenizer_only True": "",
    "download a/b --access_token t": "download a/b --token t",
    "download a/b --access_token t --tokenizer_only true": "download a/b --token t --tokenizer-only true",
    "download a/b --convert_checkpoint false": "download a/b",
    "download a/b --model_name b-7b --dtype bfloat16": "download a/b",
    "download --repo_id a/b --tokenizer_only true": "download a/b --tokenizer-only true",
    "download a/b --checkpoint_dir models": "download a/b --checkpoints models",
    # ---- chat
    "chat a/b": "",
    "chat a/b --multiline true --compile true": "chat a/b",
    "chat a/b --access_token t": "HF_TOKEN=t chat a/b",
    "chat a/b --precision bf16-true --quantize bnb.int8": "chat a/b --precision bf16 --quantize int8",
    "chat --checkpoint_dir a/b --top_k 1": "chat a/b --top-k 1",
    # ---- generate
    "generate a/b": f"generate a/b {ASK}",
    "generate a/b --prompt Hello": "",
    f"generate a/b {FIELDS} --precision 32-true": f"generate a/b {FIELDS} --precision fp32",
    f"generate a/b {FIELDS} --precision bf16-true": f"generate a/b {FIELDS} --precision bf16",
    f"generate a/b {FIELDS} --quantize bnb.nf4": f"generate a/b {FIELDS} --quantize nf4",
    f"generate a/b {FIELDS} --quantize bnb.nf4-dq": f"generate a/b {FIELDS} --quantize nf4-dq",
    f"generate a/b {FIELDS} --quantize bnb.fp4": f"generate a/b {FIELDS} --quantize fp4",
    f"generate a/b {FIELDS} --quantize bnb.fp4-dq": f"generate a/b {FIELDS} --quantize fp4-dq",
    f"generate a/b {FIELDS} --quantize bnb.int8 --precision 16-true": (
        f"generate a/b {FIELDS} --quantize int8 --precision fp16"
    ),
    "generate c/d --prompt Hello --sys_prompt Hi --num_samples 2": (
        "generate c/d --prompt Hello --system Hi --num-samples 2"
    ),
    "generate a/b --prompt Hello --finetuned_path f.pth": "generate f.pth --prompt Hello",
    "generate_full a/b --prompt Hello": "generate out/finetune/full/final --prompt Hello",
    "generate_full a/b --finetuned_path f.pth --input more --prompt Hello": "generate f.pth --prompt 'Hello\n\nmore'",
    "generate_adapter a/b --prompt Hello": "generate a/b --adapter out/finetune/adapter/final --prompt Hello",
    "generate_adapter a/b --prompt Hello --adapter_path f": "generate a/b --adapter f --prompt Hello",
    "generate_adapter_v2 a/b --prompt Hello": "generate a/b --adapter out/finetune/adapter-v2/final --prompt Hello",
    "generate_sequentially a/b --max_new_tokens 256 --num_samples 2": (
        f"generate a/b --devices auto --strategy layers {ASK} --max-new-tokens 256 --num-samples 2"
    ),
    "generate_tp a/b --max_new_tokens 256 --quantize bnb.nf4-dq": (
        f"generate a/b --devices auto {ASK} --max-new-tokens 256 --quantize nf4-dq"
    ),
    "generate_speculatively a/b c/d": f"generate c/d --draft a/b --draft-tokens 3 {ASK}",
    "generate_speculatively a/b c/d --prompt Hello --speculative_k 5": (
        "generate c/d --draft a/b --draft-tokens 5 --prompt Hello"
    ),
    "generate_speculatively --draft_model_checkpoint_dir a/b --target_model_checkpoint_dir c/d --prompt Hello": (
        "generate c/d --draft a/b --draft-tokens 3 --prompt Hello"
    ),
    # ---- finetune: what with
    "finetune a/b": "finetune a/b --data Alpaca",
    "finetune_lora a/b": f"{LORA} --data Alpaca",
    "finetune_full a/b": f"{FULL} --data Alpaca",
    "finetune_adapter a/b": f"{ADAPTER} --data Alpaca",
    "finetune_adapter_v2 a/b --data Alpaca": f"{ADAPTER_V2} --data Alpaca",
    "finetune adapter_v2 a/b --data Alpaca": f"{ADAPTER_V2} --data Alpaca",
    "finetune lora --data LIMA --checkpoint_dir a/b": f"{LORA} --data LIMA",
    "finetune_full a/b --data Alpaca --out_dir o --precision 32-true": (
        "finetune a/b --method full --out-dir o --data Alpaca --precision 32-true"
    ),
    "finetune_lora a/b --data Alpaca --precision 16-true": f"{LORA} --data Alpaca --precision 16-mixed",
    'finetune_lora a/b --data Alpaca --quantize "bnb.nf4"': f"{LORA} --data Alpaca --quantize nf4",
    "finetune_adapter a/b --data Alpaca --quantize bnb.nf4-dq": f"{ADAPTER} --data Alpaca --quantize nf4-dq",
    "finetune_lora a/b --data Alpaca --devices 2 --num_nodes 1": f"{LORA} --data Alpaca --devices 2 --num-nodes 1",
    "finetune a/b --data Alpaca --train.max_steps 10": "",
    "finetune_lora a/b --data Alpaca --lora_r 4": f"{LORA} --data Alpaca --lora-r 4",
    "finetune_lora a/b --data Alpaca --lora_key true": (
        f"{LORA} --data Alpaca --lora-targets k_proj --lora-targets q_proj --lora-targets v_proj"
    ),
    "finetune_lora a/b --data Alpaca --lora_query false --lora_head true": (
        f"{LORA} --data Alpaca --lora-targets lm_head --lora-targets v_proj"
    ),
    "finetune_lora a/b --data Alpaca --train.log_interval 5 --eval.initial_validation true": f"{LORA} --data Alpaca",
    "finetune_lora a/b --data Alpaca --train.max_time 60": f"{LORA} --data Alpaca --train.max-seconds 60",
    "finetune_lora a/b --data Alpaca --access_token t": f"HF_TOKEN=t {LORA} --data Alpaca",
    "finetune_full a/b --data Alpaca --resume auto": f"{FULL} --data Alpaca --resume auto",
    "finetune_full a/b --data Alpaca --resume": f"{FULL} --data Alpaca --resume true",
    "finetune_full a/b --data Alpaca --resume false": f"{FULL} --data Alpaca",
    # ---- finetune: on what
    f"finetune a/b {JSON} --data.val_split_fraction 0.1 --out_dir o": (
        "finetune a/b --data d.json --val-split-fraction 0.1 --out-dir o"
    ),
    f"finetune_lora a/b {JSON} --data.seed 42 --data.mask_inputs False --data.ignore_index -100": (
        f"{LORA} --data d.json --loss-on all"
    ),
    f"finetune_lora a/b {JSON} --data.mask_prompt true --data.prompt_style phi-2 --data.num_workers 4": (
        f"{LORA} --data d.json --loss-on assistant --prompt-style phi-2"
    ),
    "finetune_lora a/b --data Alpaca --train.max_seq_length 256": f"{LORA} --data Alpaca --train.max-seq-length 256",
    "finetune_lora a/b --data Alpaca --data.max_seq_length 256": f"{LORA} --data Alpaca --train.max-seq-length 256",
    "finetune_lora a/b --data Alpaca2k --data.val_split_fraction 0.1 --data.download_dir d": (
        f"{LORA} --data Alpaca2k --val-split-fraction 0.1"
    ),
    "finetune lora a/b --data AlpacaGPT4": f"{LORA} --data AlpacaGPT4",
    "finetune_lora a/b --data Alpaca --data.file_url https://h/x.json --data.file_name x.json": (
        f"{LORA} --data https://h/x.json"
    ),
    "finetune_lora a/b --data Deita --data.include_multiturn_conversations True": f"{LORA} --data Deita",
    "finetune_lora a/b --data Dolly": f"{LORA} --data Dolly",
    "finetune_lora a/b --data LongForm --train.max_seq_length 1500": (
        f"{LORA} --data LongForm --train.max-seq-length 1500"
    ),
    "finetune_lora a/b --data LIMA --data.access_token t": f"HF_TOKEN=t {LORA} --data LIMA",
    "finetune_lora a/b --data FLAN": f"{LORA} --data FLAN",
    "finetune lora a/b --data FLAN --data.subsets one,two": (
        f"{LORA} --data Muennighoff/flan/train/one_train.jsonl --data Muennighoff/flan/train/two_train.jsonl"
        " --val-data Muennighoff/flan/test/one_test.jsonl --val-data Muennighoff/flan/test/two_test.jsonl"
    ),
    "finetune_lora a/b --data litgpt.data.Alpaca2k --data.repo_id c/d": f"{LORA} --data c/d",
    """finetune_lora a/b --data '{"class_path": "litgpt.data.JSON", "init_args": {"json_path": "d.json"}}'""": (
        f"{LORA} --data d.json"
    ),
    # ---- finetune: how fast
    "finetune_lora a/b --data Alpaca --optimizer AdamW --optimizer.lr 0.005 --optimizer.betas [0.9,0.95]": (
        f"{LORA} --data Alpaca --optimizer.name adamw --optimizer.lr 0.005 --optimizer.beta1 0.9 --optimizer.beta2 0.95"
    ),
    "finetune_lora a/b --data Alpaca --optimizer torch.optim.AdamW --optimizer.fused true": (
        f"{LORA} --data Alpaca --optimizer.name adamw"
    ),
    "finetune_lora a/b --data Alpaca --optimizer SGD --optimizer.momentum 0.9 --optimizer.nesterov true": (
        f"{LORA} --data Alpaca --optimizer.name sgd --optimizer.momentum 0.9 --optimizer.more nesterov=true"
    ),
    "finetune_full a/b --data Alpaca --optimizer torch.optim.RAdam --optimizer.eps 1e-6": (
        f"{FULL} --data Alpaca --optimizer.name radam --optimizer.eps 1e-6"
    ),
    "finetune_lora a/b --data Alpaca --optimizer bitsandbytes.optim.PagedAdamW8bit": (
        f"{LORA} --data Alpaca --optimizer.name adamw-8bit"
    ),
    "finetune_lora a/b --data Alpaca --logger_name wandb --log.project p --log.run r --log.group g": (
        f"WANDB_PROJECT=p WANDB_NAME=r WANDB_RUN_GROUP=g {LORA} --data Alpaca --logger wandb"
    ),
    "finetune_lora a/b --data Alpaca --logger_name=litlogger --log.teamspace t": f"{LORA} --data Alpaca",
    # ---- pretrain
    "pretrain list": "models",
    "pretrain a/b": "pretrain a/b --data TinyLlama",
    "pretrain Gemma-2b": "pretrain google/gemma-2b --data TinyLlama",
    "pretrain tiny-llama-1.1b --data OpenWebText --tokenizer_dir a/b": (
        "pretrain TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T --data OpenWebText --tokenizer a/b"
    ),
    f"pretrain a/b --tokenizer_dir a/b {TEXTS} --out_dir o": (
        "pretrain a/b --tokenizer a/b --data d/ --train.max-tokens 10_000_000 --out-dir o"
    ),
    f"pretrain a/b --tokenizer_dir a/b --initial_checkpoint_dir a/b {TEXTS} --out_dir o": (
        "pretrain a/b --tokenizer a/b --initial-checkpoint a/b --data d/ --train.max-tokens 10_000_000 --out-dir o"
    ),
    f"pretrain pythia-160m {TEXTS} --train.lr_warmup_steps=200 --optimizer AdamW --optimizer.lr 0.005": (
        "pretrain EleutherAI/pythia-160m --data d/ --train.max-tokens 10_000_000 --train.lr-warmup-steps 200"
        " --optimizer.name adamw --optimizer.lr 0.005"
    ),
    f'pretrain a/b --resume "auto" {TEXTS} --data.val_data_path v': (
        "pretrain a/b --resume auto --data d/ --train.max-tokens 10_000_000 --val-data v"
    ),
    "pretrain a/b --data LitData --data.data_path d": "pretrain a/b --data d",
    "pretrain a/b --data LitData --data.data_path d --data.split_names [x,y]": (
        "pretrain a/b --data d/x --val-data d/y"
    ),
    "pretrain a/b --data TinyLlama --data.data_path d --data.use_starcoder false": "pretrain a/b --data MicroLlama",
    "pretrain a/b --data TinyStories --data.num_workers 2": "pretrain a/b --data TinyStories --num-workers 2",
    "pretrain a/b --data TinyStories --train.tie_embeddings true": (
        "pretrain a/b --data TinyStories --shape.tie-word-embeddings true"
    ),
    "pretrain a/b --data TinyStories --print_config": "",
    # ---- serve
    "serve a/b": "",
    "serve a/b --stream true": "",
    "serve c/d --openai_spec true": "serve c/d --any-model-name",
    "serve a/b --timeout 90 --devices 1 --accelerator auto": "serve a/b --devices 1",
    "serve a/b --devices 2 --generate_strategy sequential": "serve a/b --devices 2",
    "serve a/b --accelerator cpu --port 8001 --api_path /ask": "serve a/b --device cpu --port 8001 --api-path /ask",
    "serve a/b --temperature 0.5 --top_k 5 --top_p 0.9 --max_new_tokens 9": "",
    # ---- evaluate
    "evaluate list": "",
    "evaluate a/b": "",
    "evaluate a/b --tasks 'x,y'": "",
    "evaluate a/b/ --batch_size 4 --tasks x --out_dir o/": "evaluate a/b/ --tasks x --out-dir o/",
    "evaluate a/b --tasks x --force_conversion true --dtype bfloat16": "evaluate a/b --tasks x --precision bfloat16",
    "evaluate a/b --tasks x --limit 10 --num_fewshot 2 --seed 1 --save_filepath f.json --device cpu": "",
    # ---- the others
    "validate a/b": "inspect a/b",
    "validate a/b --dtype bfloat16 --training true": "inspect a/b",
    "validate a/b --model_filename f.pth": "inspect a/b/f.pth",
    "convert_to_litgpt a/b": "",
    "convert_to_litgpt a/b --model_name b --debug_mode true": "convert_to_litgpt a/b",
    "convert_from_litgpt a/b o": "",
    "convert_pretrained_checkpoint a/b o": "",
    "convert_pretrained_checkpoint a/b --output_dir o": "convert_pretrained_checkpoint a/b o",
    "merge_lora a/b": "",
    "merge_lora a/b --pretrained_checkpoint_dir c/d --precision bf16-true": "",
}
SERVERS = [line for line in LINES if line.startswith("serve ")]
TRAININGS = [line for line in LINES if line.startswith(("finetune", "pretrain ")) and line != "pretrain list"]
OTHERS = [line for line in LINES if line not in (*SERVERS, *TRAININGS)]
