"""Tasks of lm-evaluation-harness, asked of ours and of its own `hf` backend: the same answers, sample by sample."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from serving import in_process

from lathe import LLM, checkpoint, families
from lathe.cli import main
from lathe.errors import DataError, UsageError
from lathe.evaluation import results
from lathe.evaluation.examination import Examination
from lathe.evaluation.local import Local
from lathe.evaluation.remote import Remote, Server
from lathe.evaluation.tasks import Settings
from lathe.model.decoder import Decoder
from lathe.tokenizer import Tokenizer, train_bpe

lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness (the extra eval) is not installed")

MAX_LENGTH = 200  # below every context here, so that a server and a model have the same room
SIZES = {"vocab_size": 512, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
MORE = {"num_attention_heads": 4, "max_position_embeddings": 512}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-6},
    "neox": {"architectures": ["GPTNeoXForCausalLM"], "rotary_pct": 0.5, "use_parallel_residual": True},
}
CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
TASKS = {
    "choices": """
        output_type: multiple_choice
        doc_to_text: "{{query}}\\nAnswer:"
        doc_to_choice: choices
        doc_to_target: gold
        metric_list: [{metric: acc}, {metric: acc_norm}]
    """,
    "words": """
        output_type: loglikelihood
        doc_to_text: "{{context}}"
        doc_to_target: "{{continuation}}"
        metric_list: [{metric: perplexity}, {metric: acc}]
    """,
    "texts": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
    """,
    "answers": """
        output_type: generate_until
        doc_to_text: "Question: {{question}}\\nAnswer:"
        doc_to_target: "{{answer.split('####')[-1].strip()}}"
        generation_kwargs: {until: ["\\n\\n", "Question:"], do_sample: false, max_gen_toks: 12}
        metric_list: [{metric: exact_match}]
    """,
}
SOURCES = {"choices": "arc_easy", "words": "lambada_openai_1500", "answers": "gsm8k_test"}


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory):
    """No network, and a cache of data sets that is nobody's."""
    with pytest.MonkeyPatch.context() as patch:
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def yaml(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tasks, each of a few rows of a real file."""
    folder = tmp_path_factory.mktemp("tasks")
    book = (shared / "data/eval/lambada_openai_1500.jsonl").read_text().splitlines()
    for name, text in TASKS.items():
        file = folder / f"{name}.jsonl"
        if name == "texts":
            texts = [" ".join(json.loads(line)["context"] for line in book[at : at + at]) for at in (1, 4)]
            file.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
        else:
            rows = (shared / f"data/eval/{SOURCES[name]}.jsonl").read_text().splitlines(keepends=True)
            file.write_text("".join(rows[:6]))
        lines = [line.strip() for line in text.strip().splitlines()]
        head = [f"task: lathe_{name}", "dataset_path: json", f"dataset_kwargs: {{data_files: {{test: {file}}}}}"]
        (folder / f"{name}.yaml").write_text("\n".join([*head, "test_split: test", *lines, "metadata: {version: 1}"]))
    return folder


@pytest.fixture(scope="module")
def asked(yaml: Path) -> Examination:
    """All of these tasks, which are the same whoever is asked."""
    return Examination.of([str(yaml / f"{name}.yaml") for name in TASKS])


@pytest.fixture(scope="module", params=["stories", *FAMILIES])
def model(request: pytest.FixtureRequest, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "stories":
        return shared / "data/models/stories260K-hf"
    folder = tmp_path_factory.mktemp(request.param)
    words = train_bpe([(Path(__file__).parents[1] / "LICENSE").read_text()], 512, ("<|endoftext|>",))
    words.save(folder)
    (folder / "chat_template.jinja").write_text(CHAT)
    config = {**SIZES, **MORE, **FAMILIES[request.param], "tie_word_embeddings": False}
    torch.manual_seed(1)
    decoder = Decoder(families.read(config))
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.2)
    checkpoint.save(folder / "model", decoder, config, tokenizer=Tokenizer.open(folder))
    return folder / "model"


def backend(model: Path, **more: Any):
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(model)
    return HFLM(pretrained=theirs, tokenizer=words, device="cpu", batch_size=2, max_length=MAX_LENGTH, **more)


def asked_of_hf(model: Path, yaml: Path, **more: Any) -> dict[str, list[dict[str, Any]]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = [f"lathe_{name}" for name in TASKS]
    told = {"task_manager": TaskManager(include_path=str(yaml), include_defaults=False), "bootstrap_iters": 0, **more}
    return simple_evaluate(model=backend(model), tasks=names, **told)["samples"]


def same(mine: dict[str, results.Result], theirs: dict[str, list[dict[str, Any]]]) -> int:
    """Hold every sample's answers against each other; returns how many."""
    count = 0
    for task, samples in theirs.items():
        for a, b in zip(mine[task].samples, samples, strict=True):
            assert a["doc"] == b["doc"]
            for mine_, theirs_ in zip(a["resps"], b["resps"], strict=True):
                count += 1
                if task == "lathe_answers":
                    assert mine_[0].strip() == theirs_[0].strip()
                elif task == "lathe_texts":
                    assert mine_[0] == pytest.approx(theirs_[0], abs=1e-3, rel=1e-6)  # hundreds of tokens' together
                else:
                    assert mine_[0][0] == pytest.approx(theirs_[0][0], abs=1e-4)
                    assert bool(mine_[0][1]) == bool(theirs_[0][1])
            for metric in a["metrics"]:
                assert a[metric] == pytest.approx(b[metric], rel=1e-4)
    return count


@contextmanager
def served(model: Path, words: Tokenizer) -> Iterator[Remote]:
    """The model behind the server's requests and answers; test_evaluate.py sends the like over a line."""
    with in_process(model, precision="fp32") as client, pytest.MonkeyPatch.context() as patch:

        def ask(_: Server, path: str, body: Mapping[str, Any] | None = None) -> Any:
            return (client.get(path) if body is None else client.post(path, json=body)).raise_for_status().json()

        patch.setattr(Server, "ask", ask)
        yield Remote("http://here", tokenizer=words, longest=MAX_LENGTH)


def test_answers_are_those_of_the_hf_backend_here_and_of_a_server(
    model: Path, yaml: Path, asked: Examination, tmp_path: Path
) -> None:
    theirs = asked_of_hf(model, yaml)
    llm = LLM.load(model, device="cpu", dtype="fp32")
    near = {each.task: each for each in asked.run(Local(llm.decoder, llm.tokenizer, llm.stops, longest=MAX_LENGTH))}
    assert same(near, theirs) > 30
    results.save(tmp_path, list(near.values()), {"identity": "x"})
    again = results.load(tmp_path)
    assert {task: each.metrics for task, each in again.items()} == {task: each.metrics for task, each in near.items()}
    change = results.paired(near["lathe_texts"], again["lathe_texts"], "word_perplexity,none")
    assert change is not None and change.value == 0 and change.error == 0
    with served(model, llm.tokenizer) as server:
        far = {each.task: each for each in asked.run(server)}
        assert same(far, theirs) > 30


@pytest.mark.parametrize("model", ["qwen3"], indirect=True)
def test_examples_and_the_chat_template_are_those_of_the_hf_backend(model: Path, yaml: Path) -> None:
    theirs = asked_of_hf(
        model, yaml, num_fewshot=2, apply_chat_template=True, fewshot_as_multiturn=True, system_instruction="Be brief."
    )
    settings = Settings(2, chat=True, system="Be brief.")
    llm = LLM.load(model, device="cpu", dtype="fp32")
    asked = Examination.of([str(yaml / f"{name}.yaml") for name in TASKS], settings)
    mine = {each.task: each for each in asked.run(Local(llm.decoder, llm.tokenizer, llm.stops, longest=MAX_LENGTH))}
    for task, samples in theirs.items():
        for a, b in zip(mine[task].samples, samples, strict=True):
            assert [args[0] for args in a["arguments"]] == [args[0] for args in b["arguments"]]
    assert same(mine, theirs) > 30


@pytest.mark.parametrize("model", ["stories"], indirect=True)
def test_our_own_tasks_give_what_the_hf_backend_gives(model: Path, yaml: Path) -> None:
    from lm_eval.api.instance import Instance

    names = [str(yaml / f"{name}.jsonl") for name in TASKS if name != "answers"]
    llm = LLM.load(model, device="cpu", dtype="fp32")
    found = Examination.of(names).run(Local(llm.decoder, llm.tokenizer, llm.stops, longest=MAX_LENGTH))
    theirs = backend(model)
    windows = backend(model, add_bos_token=False)  # else the BOS is judged, behind another one
    for result in found:
        for record in result.samples:
            told = [each[0] for each in record["resps"]]
            kind = "loglikelihood_rolling" if len(record["arguments"][0]) == 1 else "loglikelihood"
            asked = [Instance(kind, {}, tuple(each), at) for at, each in enumerate(record["arguments"])]
            judge = windows if kind == "loglikelihood_rolling" else theirs
            wanted = getattr(judge, kind)(asked, disable_tqdm=True)
            if judge is windows:
                assert sum(logprob for logprob, _ in told) == pytest.approx(wanted[0], rel=1e-6)
            else:
                for (logprob, greedy), (right, best) in zip(told, wanted, strict=True):
                    assert logprob == pytest.approx(right, abs=1e-4) and bool(greedy) == bool(best)


def test_the_command(shared: Path, yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = shared / "data/models/stories260K-hf"
    words = ["evaluate", str(model), "--tasks", str(yaml / "choices.yaml"), "--out-dir", str(tmp_path), "--limit", "4"]
    assert main(words) == 0
    assert "lathe_choices" in capsys.readouterr().out
    page = json.loads((tmp_path / "results.json").read_text())
    assert page["n-samples"]["lathe_choices"] == {"original": 6, "effective": 4}
    assert len((tmp_path / "samples_lathe_choices.jsonl").read_text().splitlines()) == 4
    [journal] = tmp_path.glob("answers-*.jsonl")
    before = journal.read_text()
    assert main([*words, "--compare", str(tmp_path)]) == 0
    assert journal.read_text() == before  # everything was known
    assert "+0.0000 ±0.0000" in capsys.readouterr().out


def test_data_that_cannot_be_had_and_a_name_that_is_none(yaml: Path, tmp_path: Path) -> None:
    """Both are said before a model is loaded."""
    far = tmp_path / "far.yaml"
    far.write_text("task: far\ndataset_path: nobody/nothing\ntest_split: test\noutput_type: multiple_choice\n")
    with pytest.raises(DataError, match=r"The data of .*far\.yaml cannot be had"):
        Examination.of([str(far)])
    with pytest.raises(UsageError, match='Did you mean "lathe_words"'):
        Examination.of(["lathe_wordz"], include=yaml)


def test_the_index_of_tasks_is_kept_and_found_anew_where_a_file_is_another(tmp_path: Path, monkeypatch) -> None:
    from lm_eval.tasks import TaskManager

    from lathe.evaluation import index

    monkeypatch.setenv("LATHE_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (root / "in/one.yaml").write_text("task: one\ntag: [some, more]\ndoc_to_text: !function utils.text\n")
    (root / "in/_base").write_text("tag: some\n")
    (root / "two.yaml").write_text("include: in/_base\ntask: two\n")
    (root / "all.yaml").write_text("group: all\ntask: [one, two]\n")

    def told() -> list[tuple[Any, ...]]:
        """What the harness itself finds is what ours does."""
        ours, theirs = (
            [(each.name, each.kind, each.yaml_path, each.tags) for _, each in sorted(entries.items())]
            for entries in (index.entries(root), TaskManager(include_path=root, include_defaults=False).task_index)
        )
        assert ours == theirs
        return ours

    assert [name for name, *_ in told()] == ["all", "more", "one", "some", "two"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index.TaskIndex, "build", lambda _: pytest.fail("it was kept"))
        again = index.entries(root)
    assert len(again) == 5
    [kept] = (tmp_path / "cache/tasks").iterdir()
    kept.write_text(kept.read_text()[:50])
    told()
    (root / "in/_base").write_text("tag: other\n")
    assert [name for name, *_ in told()] == ["all", "more", "one", "other", "some", "two"]
    (root / "two.yaml").unlink()
    assert [name for name, *_ in told()] == ["all", "more", "one", "some"]
