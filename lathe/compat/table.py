"""LitGPT's command lines, each word old -> new: the one table of what its users type and how Lathe writes it.

Knows no word's meaning; `words` reads it, and docs/from-litgpt.md shows it.
"""

from __future__ import annotations

from typing import NamedTuple

from lathe.training.methods import CLASSES

QUESTION = "What food do llamas eat?"  # LitGPT's, where none is asked
GROUPS = {  # of actions, in the rows below
    "training": ("finetune", "pretrain"),
    "answering": ("generate", "chat", "serve", "evaluate"),
    "any": (),
}


class Verb(NamedTuple):
    """One of LitGPT's 22.

    places: what it calls the words without a name, in order. new: the action, and options that are given unless the
    user gives them; {NAME} is the word in that place. why: what is to be known about it.
    """

    places: tuple[str, ...]
    new: str
    why: str = ""


MODEL = ("checkpoint_dir",)
PAIR = ("checkpoint_dir", "output_dir")
VERBS = {
    "download": Verb(("repo_id",), "download {repo_id}"),
    "chat": Verb(MODEL, "chat {checkpoint_dir}"),
    "finetune": Verb(MODEL, "finetune {checkpoint_dir}"),
    "finetune_lora": Verb(MODEL, "finetune {checkpoint_dir} --out-dir {out_dir=out/finetune/lora}"),
    "finetune_full": Verb(MODEL, "finetune {checkpoint_dir} --method full --out-dir {out_dir=out/finetune/full}"),
    "finetune_adapter": Verb(
        MODEL, "finetune {checkpoint_dir} --method adapter --out-dir {out_dir=out/finetune/adapter}"
    ),
    "finetune_adapter_v2": Verb(
        MODEL, "finetune {checkpoint_dir} --method adapter_v2 --out-dir {out_dir=out/finetune/adapter-v2}"
    ),
    "pretrain": Verb(("model_name",), "pretrain {model_name}"),
    "generate": Verb(MODEL, "generate {checkpoint_dir}"),
    "generate_full": Verb(MODEL, "generate {finetuned_path=out/finetune/full/final}"),
    "generate_adapter": Verb(MODEL, "generate {checkpoint_dir} --adapter {adapter_path=out/finetune/adapter/final}"),
    "generate_adapter_v2": Verb(
        MODEL, "generate {checkpoint_dir} --adapter {adapter_path=out/finetune/adapter-v2/final}"
    ),
    "generate_sequentially": Verb(MODEL, "generate {checkpoint_dir} --devices {devices=auto} --strategy layers"),
    "generate_tp": Verb(MODEL, "generate {checkpoint_dir} --devices {devices=auto}"),
    "generate_speculatively": Verb(
        ("draft_model_checkpoint_dir", "target_model_checkpoint_dir"),
        "generate {target_model_checkpoint_dir} --draft {draft_model_checkpoint_dir} --draft-tokens {speculative_k=3}",
    ),
    "convert_to_litgpt": Verb(MODEL, "convert_to_litgpt {checkpoint_dir}", "Lathe opens the folder as it is."),
    "convert_from_litgpt": Verb(
        PAIR,
        "convert_from_litgpt {checkpoint_dir} {output_dir}",
        "Lathe opens the folder as it is; lathe convert FROM TO writes it without model.pth.",
    ),
    "convert_pretrained_checkpoint": Verb(
        PAIR,
        "convert_pretrained_checkpoint {checkpoint_dir} {output_dir}",
        "Lathe opens the folder as it is; lathe convert FROM TO --to litgpt writes it for LitGPT.",
    ),
    "merge_lora": Verb(
        MODEL,
        "merge_lora {checkpoint_dir}",
        "Lathe opens the adapter as it is; lathe merge ADAPTER OUT writes a model.",
    ),
    "evaluate": Verb(MODEL, "evaluate {checkpoint_dir}"),
    "serve": Verb(MODEL, "serve {checkpoint_dir}"),
    "validate": Verb(MODEL, "inspect {checkpoint_dir}/{model_filename=.}"),
}


class Row(NamedTuple):
    """An option.

    actions: of Lathe, or a group of them. old: its name, or NAME=VALUE. new: what is written instead, with {} for the
    value and {0}, {1} for its items; nothing where no word is needed; MODEL where the value is the model; $NAME where
    it belongs into the environment; ! where it is refused. why: the reason, where it is not the same.
    """

    actions: str
    old: str
    new: str
    why: str = ""


ANYWAY = "It is done anyway."
EVERY_STEP = "Every step is in metrics.jsonl."
HOSTED = "It belongs to a hosted service that Lathe does not log to."
CACHED = "Downloads are cached in one place."
NAMED = "There are AdamW8bit and torch.optim's but LBFGS, Rprop and SparseAdam; what others remember is not known."
ARGUMENTS = (  # of one or some of them alone
    "alpha",
    "amsgrad",
    "centered",
    "dampening",
    "decoupled_weight_decay",
    "initial_accumulator_value",
    "lambd",
    "lr_decay",
    "maximize",
    "momentum_decay",
    "nesterov",
    "rho",
    "t0",
)
ROWS = [
    # ---- everywhere
    Row("any", "print_config", "--print-config"),
    Row("download", "access_token", "--token {}"),
    Row("any", "access_token", "$HF_TOKEN"),
    Row("any", "quantize=bnb.nf4", "--quantize nf4"),
    Row("any", "quantize=bnb.nf4-dq", "--quantize nf4-dq"),
    Row("any", "quantize=bnb.fp4", "--quantize fp4"),
    Row("any", "quantize=bnb.fp4-dq", "--quantize fp4-dq"),
    Row("any", "quantize=bnb.int8", "--quantize int8"),
    Row("any", "quantize=bnb.int8-training", "--quantize int8"),
    # ---- download
    Row("download", "checkpoint_dir", "--checkpoints {}"),
    Row("download", "convert_checkpoint", "", "Nothing is converted: Lathe opens what is downloaded."),
    Row("download", "dtype", "", "Files stay as they are; --precision is given when a model is opened."),
    Row("download", "model_name", "", "config.json says what the model is."),
    # ---- chat, generate, serve
    Row("answering", "compile", "", "What pays is compiled by itself."),
    Row("answering", "precision=bf16-true", "--precision bf16"),
    Row("answering", "precision=16-true", "--precision fp16"),
    Row("answering", "precision=32-true", "--precision fp32"),
    Row("answering", "precision=bf16-mixed", "--precision bf16"),
    Row("answering", "precision=16-mixed", "--precision fp16"),
    Row("chat", "multiline", "", "Alt+Enter begins a new line."),
    Row("generate", "sys_prompt", "--system {}"),
    Row("generate", "input", "--prompt", "It follows the prompt, as in training."),
    Row("serve", "openai_spec=false", ""),
    Row(
        "serve",
        "openai_spec",
        "--any-model-name",
        "OpenAI's routes are always there; whatever a client calls the model is it.",
    ),
    Row("serve", "timeout", "", "No answer is ended by the clock."),
    Row("serve", "accelerator=auto", ""),
    Row("serve", "accelerator=gpu", "--device cuda"),
    Row("serve", "accelerator", "--device {}"),
    Row("serve", "generate_strategy=sequential", ""),
    Row("serve", "generate_strategy", "", "A server's layers lie on its devices one after the other."),
    # ---- inspect
    Row("inspect", "dtype", "", "The memory is shown for all formats."),
    Row("inspect", "training", "", "The memory that training takes is shown too."),
    # ---- evaluate
    Row("evaluate", "force_conversion", "", "Nothing is converted: the model is evaluated as it is."),
    Row("evaluate", "batch_size", "", "Passes are filled by tokens: --batch-tokens."),
    Row("evaluate", "dtype", "--precision {}"),
    Row("evaluate", "system_instruction", "--system {}"),
    # ---- convert_to_litgpt
    Row("convert_to_litgpt", "model_name", "", "config.json says what the model is."),
    Row("convert_to_litgpt", "debug_mode", "", "Tensors always pass through memory a piece at a time."),
    # ---- finetune and pretrain
    Row("pretrain", "model_config", "MODEL", "MODEL may be a config.json itself, as {...}."),
    Row("pretrain", "initial_checkpoint_dir", "--initial-checkpoint {}"),
    Row("pretrain", "tokenizer_dir", "--tokenizer {}"),
    Row("training", "precision=16-true", "--precision 16-mixed", "Gradients in fp16 alone vanish or overflow."),
    Row("training", "resume=true", "--resume true"),
    Row("training", "resume=false", ""),
    Row("training", "resume", "--resume {}"),
    Row("training", "logger_name=litlogger", "", HOSTED),
    Row("training", "logger_name", "--logger {}"),
    Row("training", "log.project", "$WANDB_PROJECT"),
    Row("training", "log.run", "$WANDB_NAME"),
    Row("training", "log.group", "$WANDB_RUN_GROUP"),
    Row("training", "log.teamspace", "", HOSTED),
    Row("training", "log.metadata", "", HOSTED),
    Row("training", "log.log_model", "", HOSTED),
    Row("training", "log.save_logs", "", HOSTED),
    Row("training", "log.checkpoint_name", "", HOSTED),
    Row("training", "train.max_time", "--train.max-seconds {}"),
    Row("training", "train.log_interval", "", EVERY_STEP),
    Row("pretrain", "train.tie_embeddings", "--shape.tie-word-embeddings {}"),
    Row("finetune", "train.tie_embeddings", "", "The model says whether they are."),
    Row("pretrain", "eval.max_new_tokens", "", "Nothing is written while pretraining, in LitGPT neither."),
    Row("training", "eval.initial_validation", "", "The first validation is after --eval.interval steps."),
    Row("training", "eval.final_validation", "", ANYWAY),
    Row("training", "eval.evaluate_example", "", "The first question held out is asked, or --eval.prompt."),
    *(Row("finetune", f"lora_{part}=false", "") for part in ("query", "key", "value", "projection", "mlp", "head")),
    Row("finetune", "lora_query=true", "--lora-targets q_proj"),
    Row("finetune", "lora_key=true", "--lora-targets k_proj"),
    Row("finetune", "lora_value=true", "--lora-targets v_proj"),
    Row("finetune", "lora_projection=true", "--lora-targets o_proj"),
    Row("finetune", "lora_mlp=true", "--lora-targets gate_proj --lora-targets up_proj --lora-targets down_proj"),
    Row("finetune", "lora_head=true", "--lora-targets lm_head"),
    # ---- the optimizer
    Row("training", "optimizer=adamw", "--optimizer.name adamw"),
    Row("training", "optimizer=pagedadamw", "--optimizer.name adamw", "It does not page."),
    Row("training", "optimizer=adamw8bit", "--optimizer.name adamw-8bit"),
    Row("training", "optimizer=pagedadamw8bit", "--optimizer.name adamw-8bit", "It does not page."),
    Row("training", "optimizer=muon", "--optimizer.name muon"),
    Row("training", "optimizer=adafactor", "--optimizer.name adafactor"),
    *(Row("training", f"optimizer={name}", f"--optimizer.name {name}") for name in CLASSES),
    Row("training", "optimizer", "!", NAMED),
    Row("training", "optimizer.betas", "--optimizer.beta1 {0} --optimizer.beta2 {1}"),
    Row("training", "optimizer.amsgrad=false", ""),
    Row("training", "optimizer.maximize=false", ""),
    *(Row("training", f"optimizer.{name}", f"--optimizer.more {name}={{}}") for name in ARGUMENTS),
    *(
        Row("training", f"optimizer.{name}", "", "What pays is chosen by itself.")
        for name in ("foreach", "capturable", "differentiable", "fused")
    ),
    # ---- data
    Row("training", "data.json_path", "--data {}"),
    Row("training", "data.train_data_path", "--data {}"),
    Row("training", "data.data_path", "", "What has a name is cached in one place; LitData's is what --data names."),
    Row("training", "data.file_url", "--data {}"),
    Row("finetune", "data.url", "", "The Hub has the files of FLAN."),
    Row("training", "data.repo_id", "--data {}"),
    Row("training", "data.subsets", "--data {}", "Each is two files at the Hub: to train on and to validate on."),
    Row("training", "data.use_starcoder=false", "--data MicroLlama"),
    Row("training", "data.split_names", "--data {0} --val-data {1}"),
    Row("training", "data.val_data_path", "--val-data {}"),
    Row("training", "data.val_split_fraction", "--val-split-fraction {}"),
    Row("training", "data.prompt_style", "--prompt-style {}"),
    Row("finetune", "data.mask_prompt=false", "--loss-on all"),
    Row("finetune", "data.mask_prompt=true", "--loss-on assistant"),
    Row("finetune", "data.mask_inputs=false", "--loss-on all"),
    Row("finetune", "data.mask_inputs=true", "--loss-on assistant"),
    Row("training", "data.max_seq_length", "--train.max-seq-length {}"),
    Row("training", "data.include_multiturn_conversations", "", "Conversations are learned whole, all their turns."),
    Row("training", "data.access_token", "$HF_TOKEN"),
    Row("training", "data.help", "--help"),
    Row("training", "data.download_dir", "", CACHED),
    Row("training", "data.file_name", "", CACHED),
    Row("pretrain", "data.num_workers", "--num-workers {}"),
    Row("finetune", "data.num_workers", "", "One process is enough to encode examples."),
    Row("training", "data.ignore_index", "", "There is one way to leave a token out."),
    Row("training", "data.seed", "", "--seed is for all of it."),
]

# Words that LitGPT takes, or its tutorials show, behind a verb, and options that only another has: what is meant.
INSTEAD = {
    ("pretrain", "list"): "models",
    ("finetune", "lora"): "finetune_lora",
    ("finetune", "full"): "finetune_full",
    ("finetune", "adapter"): "finetune_adapter",
    ("finetune", "adapter_v2"): "finetune_adapter_v2",
    ("generate", "finetuned_path"): "generate_full",
}

# What is given where the user gives none of the options before it.
USUAL = {
    "finetune": ({"data"}, "--data Alpaca"),
    "pretrain": ({"data"}, "--data TinyLlama"),
    "generate": ({"prompt", "prompt_file"}, f"--prompt '{QUESTION}'"),
}

# Names of LitGPT's models that are not the ends of well-known repos.
MODELS = {
    "tiny-llama-1.1b": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    "tiny-llama": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    "tiny-llama-1.1b-chat": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "micro-llama-300M": "keeeeenw/MicroLlama",
    "Llama-3-8B": "meta-llama/Meta-Llama-3-8B",
    "Llama-3-8B-Instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "Llama-3-70B": "meta-llama/Meta-Llama-3-70B",
    "Llama-3-70B-Instruct": "meta-llama/Meta-Llama-3-70B-Instruct",
    "R1-Distill-Llama-8B": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
    "R1-Distill-Llama-70B": "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
    "stablecode-completion-alpha-3b-4k": "stabilityai/stablecode-completion-alpha-3b-4k",
    "Platypus-30B": "garage-bAInd/Platypus-30B",
    "Platypus2-13B": "garage-bAInd/Platypus2-13B",
    "Platypus2-70B-instruct": "garage-bAInd/Platypus2-70B-instruct",
    "Camel-Platypus2-13B": "garage-bAInd/Camel-Platypus2-13B",
    "Camel-Platypus2-70B": "garage-bAInd/Camel-Platypus2-70B",
    "Stable-Platypus2-13B": "garage-bAInd/Stable-Platypus2-13B",
}
