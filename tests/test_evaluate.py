"""lathe evaluate without a library of tasks: what is asked, what it is worth, what is written, kept and compared."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from serving import adapter

from lathe import LLM
from lathe.cli import main
from lathe.errors import DataError, LatheError
from lathe.evaluation import figures, results, tasks, wording
from lathe.evaluation.asks import Answer, Ask, Generation, Likelihood, Likely, ask_all
from lathe.evaluation.examination import Examination
from lathe.evaluation.journal import Journal, Nothing
from lathe.evaluation.local import Local
from lathe.evaluation.samples import sample
from lathe.evaluation.tasks import Settings

CHOICES = [
    {"query": f"Question: {question}\nAnswer:", "choices": ["the cat sat down", "a dog", "rain"], "gold": at % 3}
    for at, question in enumerate(("Who sat?", "What fell?", "Who ran away?", "Where is it?", "What is wet?", "Why?"))
]
PAIRS = [{"context": "Once upon a time there was a", "continuation": word} for word in ("girl", "little boy", "dog")]
SUMS = [{"question": f"What is {n} and {n}?", "answer": f"{n} + {n} = {n + n}\n#### {n + n}"} for n in range(3)]
TEXTS = [{"text": "She went home. " * n} for n in (1, 3, 80)]


def lines(path: Path, rows: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    named = {"choices": CHOICES, "pairs": PAIRS, "sums": SUMS, "texts": TEXTS}
    return {name: str(lines(tmp_path / f"{name}.jsonl", rows)) for name, rows in named.items()}


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM.load(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def subject(llm: LLM) -> Local:
    return Local(llm.decoder, llm.tokenizer, llm.stops, batch_tokens=64)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def alone(llm: LLM, ask: Likelihood) -> Likely:
    """The answer from scores without cache or company."""
    tokens = [*ask.context, *ask.continuation]
    rows = llm.logits(tokens[:-1]).log_softmax(-1)[len(ask.context) - 1 :]
    own = rows.gather(-1, torch.tensor(ask.continuation)[:, None])[:, 0]
    return Likely(own.sum().item(), bool((rows.argmax(-1) == torch.tensor(ask.continuation)).all()))


# ---- what is asked ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("settings", [Settings(), Settings(2), Settings(2, chat=True, system="Be brief.")], ids=str)
def test_every_likelihood_is_that_of_its_text_alone(
    settings: Settings, files: dict[str, str], llm: LLM, subject: Local
) -> None:
    task = tasks.read("choices", files["choices"], settings)
    result = tasks.examine(task, subject, Nothing())
    asked = [ask for some, _ in tasks._asks(task, subject) for ask in some]
    told = [Likely(*each[0]) for record in result.samples for each in record["resps"]]
    for ask, answer in zip(asked, told, strict=True):
        assert isinstance(ask, Likelihood)
        wanted = alone(llm, ask)
        assert answer.logprob == pytest.approx(wanted.logprob, abs=1e-4) and answer.greedy == wanted.greedy
    best = [int(np.argmax([each[0][0] for each in record["resps"]])) for record in result.samples]
    assert [float(b == row["target"]) for b, row in zip(best, result.samples, strict=True)] == [
        record["acc"] for record in result.samples
    ]
    assert result.metrics["acc"] == np.mean([record["acc"] for record in result.samples])


def test_examples_are_the_first_rows_and_are_not_asked(files: dict[str, str], subject: Local) -> None:
    task = tasks.read("choices", files["choices"], Settings(2, limit=3))
    prompt = task.prompt(subject.words, task.samples[0])
    shots = [f"{row['query']} {row['choices'][row['gold']]}" for row in CHOICES[:2]]
    assert prompt == "\n\n".join([*shots, CHOICES[2]["query"]])
    assert [asked.number for asked in task.samples] == [2, 3, 4] and task.of == 4
    assert task.pair("It is ", "wet") == ("It is ", "wet") and task.pair("It is", "wet") == ("It is", " wet")


def test_examples_are_of_a_samples_own_subject(tmp_path: Path, subject: Local) -> None:
    rows = [
        {"subject": name, "question": f"{name} {n}?", "choices": ["one", "two"], "answer": n % 2}
        for n in range(3)
        for name in ("logic", "world_history")
    ]
    task = tasks.read("mmlu", str(lines(tmp_path / "mmlu.jsonl", rows)), Settings(1))
    assert len(task.samples) == 4
    asked = next(one for one in task.samples if one.group == "world_history")
    assert task.prompt(subject.words, asked) == (
        "The following are multiple choice questions (with answers) about world history.\n\n"
        "world_history 0?\nA. one\nB. two\nAnswer: A\n\n"
        "world_history 1?\nA. one\nB. two\nAnswer:"
    )


def test_every_token_of_a_long_text_is_judged_once(llm: LLM, subject: Local) -> None:
    ids = llm.tokenizer.encode("She went home. It was late. " * 40, special=False)
    pieces = wording.windows(subject.words, ids, 50)
    assert [id for piece in pieces for id in piece.continuation] == ids
    assert all(len(piece.context) + len(piece.continuation) <= 51 for piece in pieces)
    assert len(pieces[-1].context) + len(pieces[-1].continuation) == 51  # sees as much as there is room for
    assert pieces[0].context == (subject.words.prefix,)


def test_what_is_too_long_loses_its_beginning(subject: Local) -> None:
    [ask] = wording.likelihoods(subject.words, [("word " * 50, "end of it")], 20)
    [whole] = wording.likelihoods(subject.words, [("word " * 50, "end of it")], 10_000)
    assert (*ask.context, *ask.continuation) == (*whole.context, *whole.continuation)[-21:]
    assert ask.continuation == whole.continuation
    cut = wording.fitted(Generation(tuple(range(30)), most=8), 20)
    assert cut.prompt == tuple(range(18, 30)) and cut.most == 8


def test_the_last_token_may_lie_behind_the_context(llm: LLM) -> None:
    subject = Local(llm.decoder, llm.tokenizer, llm.stops)
    ids = tuple(range(5, 5 + subject.longest + 1 - 490)) + (7,) * 490
    [(_, answer)] = subject.answers([Likelihood(ids[:-1], ids[-1:])])
    assert isinstance(answer, Likely)
    assert answer.logprob == pytest.approx(alone(llm, Likelihood(ids[:-1], ids[-1:])).logprob, abs=1e-4)
    with pytest.raises(LatheError, match="tokens long"):
        list(subject.answers([Likelihood((1, *ids[:-1]), ids[-1:])]))


def test_answers_end_where_they_are_told(llm: LLM, subject: Local) -> None:
    prompts = [tuple(llm.tokenizer.encode(text)) for text in ("Copyright", "You may", "The")]
    free = [text for _, text in sorted(subject.answers([Generation(p, most=24) for p in prompts]))]
    for prompt, text in zip(prompts, free, strict=True):
        assert text == llm.complete(prompt, temperature=0, max_new_tokens=24).text
    stop = free[0][3:5]
    [(_, cut)] = subject.answers([Generation(prompts[0], (stop,), 24)])
    assert cut == free[0].split(stop)[0]


KINDS = {
    "arc_challenge": "multiple choice",
    "arc_easy": "multiple choice",
    "commonsense_qa": "multiple choice",
    "hellaswag_val_1000": "multiple choice",
    "mmlu_dev_12subjects": "multiple choice",
    "mmlu_test_12subjects": "multiple choice",
    "piqa": "multiple choice",
    "lambada_openai_1500": "continuation",
    "humaneval": "continuation",
    "gsm8k_test": "exact match",
    "gsm8k_train_500": "exact match",
    "mt_bench_questions": "generation",
}


@pytest.mark.parametrize("name", KINDS)
def test_every_real_file_is_a_task(name: str, shared: Path, tmp_path: Path, subject: Local) -> None:
    data = shared / f"data/eval/{name}.jsonl"
    few = lines(tmp_path / "few.jsonl", [json.loads(line) for line in data.read_text().splitlines()[:2]])
    assert {asked.kind for asked in tasks.read(name, str(data), Settings()).samples} == {KINDS[name]}
    result = tasks.examine(tasks.read(name, str(few), Settings(max_new_tokens=2)), subject, Nothing())
    assert result.count == 2 and all(math.isfinite(figure.value) for figure in result.figures.values())


# ---- what it is worth ------------------------------------------------------------------------------------------------
def test_samples_are_worth_what_a_person_would_say() -> None:
    choice = sample(0, {"query": "q", "choices": ["long long long", "no"], "gold": 0})
    assert choice.measures([Likely(-6.0, False), Likely(-4.0, True)], 9) == {"acc": 0.0, "acc_norm": 1.0}
    for said, right in (("3 + 4 = 7\n#### 7\nQ", 1.0), ("it is 7.", 1.0), ("#### 8\n 7", 0.0), ("", 0.0), ("1,7", 0.0)):
        assert sample(0, {"question": "?", "answer": "#### 7"}).measures([said], 0) == {"exact_match": right}
    assert sample(0, {"question": "?", "answer": "Oslo"}).measures([" oslo."], 0) == {"exact_match": 1.0}
    document = sample(0, {"text": "two words"}).measures([Likely(-1.0, False), Likely(-2.0, False)], 4)
    assert document["word_perplexity"] == (-3.0, 2) and document["bits_per_byte"] == (-3.0, 9)


@pytest.mark.parametrize(
    "row",
    [{"a": 1}, {"choices": ["one"], "query": "q", "gold": 0}, {"choices": ["a", "b"], "query": "q", "gold": 2}],
    ids=str,
)
def test_a_row_that_is_no_sample_is_named(row: dict, tmp_path: Path) -> None:
    path = lines(tmp_path / "bad.jsonl", [CHOICES[0], row])
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2"):
        tasks.read("bad", str(path), Settings())


def test_standard_errors_are_those_of_resampling() -> None:
    """Against the bootstrap: figures of samples drawn again, with what was measured of each."""
    rng = np.random.default_rng(0)
    words = rng.integers(5, 50, 300)
    now, then = (-words * rng.gamma(8, 0.1, 300) for _ in range(2))
    then = 0.8 * now + 0.2 * then  # the same samples are hard for both
    draws = rng.integers(0, 300, (2000, 300))
    for metric in ("acc", "perplexity", "word_perplexity", "bits_per_byte"):
        pick = (lambda v: list(zip(v, words, strict=True))) if metric in figures.PAIRED else list
        a, b = np.array(pick(now)), np.array(pick(then))
        drawn = [
            (figures.estimate(metric, a[at]).value, figures.estimate(metric, b[at]).value)
            for at in draws  # type: ignore[arg-type]
        ]
        scale = np.array(drawn) if metric != "perplexity" else np.log(np.array(drawn))
        found, change = figures.figure(metric, a), figures.difference(metric, a, b)  # type: ignore[arg-type]
        if metric == "perplexity":  # far from linear here: compared where it is
            assert found.error is not None
            assert found.error / found.value == pytest.approx(scale[:, 0].std(), rel=0.1)
            continue
        assert found.error == pytest.approx(scale[:, 0].std(), rel=0.1)
        assert change.error == pytest.approx((scale[:, 0] - scale[:, 1]).std(), rel=0.1)
    assert figures.figure("perplexity", [-900.0, -1000.0]).error is None
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert figures.figure("acc", values).error == pytest.approx(math.sqrt(0.3 / 5))


# ---- what is kept ----------------------------------------------------------------------------------------------------
class Cut(Local):
    """A subject that is killed after so many answers; it counts them."""

    after, given = 10**9, 0

    def answers(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        for each in super().answers(asks):
            if self.given == self.after:
                raise KeyboardInterrupt
            self.given += 1
            yield each


def test_what_was_cut_short_goes_on(files: dict[str, str], llm: LLM, subject: Local, tmp_path: Path) -> None:
    asked = Examination.of([files["choices"], files["sums"]], Settings(max_new_tokens=4))
    wanted = asked.run(subject)
    first, second = (Cut(llm.decoder, llm.tokenizer, llm.stops) for _ in range(2))
    first.after = 7
    path = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt), Journal(path) as known:
        asked.run(first, known)
    with path.open("a") as file:
        file.write('{"ask": "cut')
    with Journal(path) as known:
        made = asked.run(second, known)
    assert second.given == len(CHOICES) * 3 + len(SUMS) - 7
    assert [result.metrics for result in made] == [result.metrics for result in wanted]
    with Journal(path) as known:
        assert len(known.answers) == len(CHOICES) * 3 + len(SUMS)


def test_the_same_ask_is_asked_once(llm: LLM) -> None:
    subject = Cut(llm.decoder, llm.tokenizer, llm.stops)
    asks: list[Ask] = [Likelihood((1, 2), (3,)), Likelihood((1, 2), (4,)), Likelihood((1, 2), (3,))]
    ticks: list[int] = []
    answers = ask_all(subject, asks, Nothing(), ticks.append)
    assert answers[0] == answers[2] != answers[1] and subject.given == 2 and sum(ticks) == 3
    assert Likelihood((1,), (2, 3)).key != Likelihood((1, 2), (3,)).key


# ---- the command -----------------------------------------------------------------------------------------------------
def lathe(*words: object) -> int:
    return main(["evaluate", *map(str, words)])


def test_a_folder_gets_its_results(copy: Path, files: dict[str, str], capsys: pytest.CaptureFixture) -> None:
    assert lathe(copy, "--tasks", f"{files['choices']},{files['pairs']}", "--max-new-tokens", 4) == 0
    table = capsys.readouterr().out
    assert re.search(r"choices.jsonl +6 +0 +acc +0\.\d{4} ±0\.\d{4}", table) and "token_perplexity" in table
    page = json.loads((copy / "evaluate/results.json").read_text())
    assert page["results"]["choices.jsonl"].keys() >= {"alias", "acc,none", "acc_stderr,none", "acc_norm,none"}
    assert page["n-samples"]["choices.jsonl"] == {"original": 6, "effective": 6}
    assert len((copy / "evaluate/samples_choices.jsonl.jsonl").read_text().splitlines()) == 6
    found = results.load(copy)
    assert found["choices.jsonl"].metrics["acc"] == page["results"]["choices.jsonl"]["acc,none"]
    LLM.load(copy, device="cpu")  # a model's folder as before
    assert lathe(copy, "--tasks", "perplexity", "--data", files["texts"]) == 0
    page = json.loads((copy / "evaluate/results.json").read_text())
    assert page["results"].keys() == {"choices.jsonl", "pairs.jsonl", "perplexity texts.jsonl"}


def test_models_side_by_side_and_before(
    copy: Path, tmp_path: Path, files: dict[str, str], capsys: pytest.CaptureFixture
) -> None:
    other = adapter(copy, tmp_path / "tuned", seed=3)
    told = json.loads((other / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(copy)}
    (other / "adapter_config.json").write_text(json.dumps(told))
    assert lathe(copy, other, "--tasks", files["choices"], "--json") == 0
    page = json.loads(capsys.readouterr().out)
    assert page["results"].keys() == {"model", "tuned"} and (other / "evaluate/results.json").is_file()
    [change] = [each for each in page["differences"] if each["metric"] == "acc_norm,none"]
    mine, theirs = (
        [record["acc_norm"] for record in results.load(place)["choices.jsonl"].samples] for place in (copy, other)
    )
    apart = np.array(theirs) - np.array(mine)
    assert change["value"] == pytest.approx(apart.mean())
    assert change["error"] == pytest.approx(apart.std(ddof=1) / math.sqrt(6))
    words = ["--tasks", files["choices"], "--adapter", other, "--compare", other, "--compare", copy, "--json"]
    assert lathe(copy, *words) == 0  # the same by another way, in a folder of its own
    page = json.loads(capsys.readouterr().out)
    assert {each["of"]: each["value"] for each in page["differences"] if each["metric"] == "acc,none"}.keys() == {
        "model - tuned",
        "model - model",
    }
    assert all(each["value"] == 0 for each in page["differences"] if each["of"] == "model - tuned")
    assert (copy / "evaluate/tuned/results.json").is_file()


def test_every_form_is_evaluated_as_it_is(shared: Path, tmp_path: Path, files: dict[str, str], capsys) -> None:
    """One model as files for transformers, LitGPT and llama.cpp, and packed in 8 bits."""
    models = shared / "data/models"
    forms = [models / "stories260K-hf", models / "stories260K-litgpt", models / "stories260K-gguf/stories260K-f32.gguf"]
    words = ["--tasks", files["pairs"], "--out-dir", tmp_path / "out", "--json"]
    assert lathe(*forms, *words) == 0
    page = json.loads(capsys.readouterr().out)
    told = [each["pairs.jsonl"]["token_perplexity,none"]["value"] for each in page["results"].values()]
    assert told == pytest.approx([told[0]] * 3, rel=1e-5) and told[0] < 10
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in forms)
    local = shutil.copytree(forms[0], tmp_path / "stories")
    assert lathe(local, "--tasks", files["pairs"], "--quantize", "int8", "--json") == 0
    page = json.loads(capsys.readouterr().out)
    packed = page["results"]["stories"]["pairs.jsonl"]["token_perplexity,none"]["value"]
    assert packed == pytest.approx(told[0], rel=0.05) and packed != told[0]
    assert (local / "evaluate/int8/results.json").is_file()


def test_a_server_answers_as_the_model(
    server, tiny_model: Path, llm: LLM, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = [files["choices"], files["pairs"], files["sums"]]
    words = ["--tasks", ",".join(names), "--max-new-tokens", 6, "--max-length", 300]
    assert lathe("--url", server.url, *words, "--out-dir", tmp_path / "far") == 0
    assert lathe(tiny_model, *words, "--out-dir", tmp_path / "near") == 0
    far, near = results.load(tmp_path / "far"), results.load(tmp_path / "near")
    for task in near:
        for a, b in zip(far[task].samples, near[task].samples, strict=True):
            assert a["arguments"] == b["arguments"]
            for mine, theirs in zip(a["filtered_resps"], b["filtered_resps"], strict=True):
                if isinstance(mine, str):
                    assert mine == theirs
                else:
                    assert mine[0] == pytest.approx(theirs[0], abs=1e-4) and mine[1] == theirs[1]
    chat = ["--tasks", files["choices"], "--apply-chat-template", "--num-fewshot", 1, "--max-length", 500]
    assert lathe("--url", server.url, *chat, "--tokenizer", tiny_model, "--out-dir", tmp_path / "a", "--json") == 0
    assert lathe("--url", f"{server.url}/v1", *chat, "--out-dir", tmp_path / "b") == 0
    [a], [b] = (results.load(tmp_path / name).values() for name in "ab")
    assert [record["arguments"] for record in a.samples] == [record["arguments"] for record in b.samples]


@pytest.mark.parametrize(
    "words, told",
    [
        (["MODEL", "--tasks", "perplexity"], "Name them with --data"),
        (["MODEL", "--tasks", "gone/rows.jsonl"], "There is no file gone/rows.jsonl"),
        (["--tasks", "CHOICES"], "No model is named"),
        (["MODEL", "--tasks", "CHOICES", "--num-fewshot", "6"], "has no samples left"),
        (["MODEL", "--tasks", "CHOICES", "--num-fewshot", "7"], "has not 7 examples"),
        (["MODEL", "--tasks", "CHOICES", "--compare", "."], "holds no results"),
        (["MODEL", "--tasks", "CHOICES", "--limit", "0"], "It must be above 0"),
        (["--url", "http://127.0.0.1:1", "--tasks", "CHOICES"], "Is the server there?"),
    ],
)
def test_what_cannot_be_done_is_said(
    words: list[str], told: str, tiny_model: Path, files: dict[str, str], tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"MODEL": str(tiny_model), "CHOICES": files["choices"]}
    assert lathe(*(named.get(word, word) for word in words)) == 2
    assert told in capsys.readouterr().err


def test_without_the_harness_it_is_said_how_to_get_it(tiny_model: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.delitem(sys.modules, "lathe.evaluation.answering", raising=False)  # as before it was ever imported
    assert lathe(tiny_model, "--tasks", "arc_easy") == 2
    assert 'pip install "lathe-llm[eval]"' in capsys.readouterr().err
    assert lathe("list") == 0
    assert "perplexity" in capsys.readouterr().out


def test_litgpts_words_are_taken(copy: Path, files: dict[str, str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")  # where the token goes
    words = (
        f"--tasks {files['choices']} --batch_size 4 --num_fewshot 1 --force_conversion true --limit 2 --dtype float32"
    )
    words += f" --out_dir {tmp_path}/out --save_filepath {tmp_path}/there/mine.json --seed 7 --access_token x"
    assert lathe(copy, *words.split()) == 0
    page = json.loads((tmp_path / "there/mine.json").read_text())
    assert page == json.loads((tmp_path / "out/results.json").read_text())
    assert page["n-shot"] == {"choices.jsonl": 1} and page["n-samples"]["choices.jsonl"]["effective"] == 2


def test_a_training_is_measured_on_its_way(
    tiny_model: Path, tmp_path: Path, files: dict[str, str], monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("She went home. It was late. " * 200)
    words = f"{tiny_model} --data notes.txt --out-dir out --train.max-seq-length=128 --train.max-steps=3"
    words += " --eval.interval=2"
    words += f" --eval-tasks {files['choices']} --eval-limit 4 --train.global-batch-size=2 --train.micro-batch-size=2"
    assert main(["pretrain", *words.split()]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row for row in rows if "task/choices.jsonl/acc" in row}
    assert found.keys() == {2, 3}
    [result] = LLM.load("out/final", device="cpu").evaluate(files["choices"], limit=4).values()
    assert found[3]["task/choices.jsonl/acc"] == result.metrics["acc"]
    assert '"choices.jsonl/acc_norm"' in (tmp_path / "out/report.html").read_text()
