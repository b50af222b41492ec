"""One round of two language models with adapters: the library against a loop written as published scripts work.

python -m benchmarks.language_loop [--quick] [--threads T] [--device cuda] [--model DIR [--data DIR]]

The other loop does the same work with transformers and peft alone: a copy of the base for each model, in float32, answers sampled
without a KV cache, K candidates for every row of the training set, those that nobody picks from too, prompts in the order they come
in, and padded batches to train on. Its shortcomings are taken away one by one, so that the table says what each is worth. Every line
is a process of its own, starts from the same network and the same prompts, and trains and evaluates both models as much.

Without a model's folder, the network is a Llama of SmolLM2-135M's sizes with random weights, whose words are tokens and which hardly
ever ends an answer before ``max_new_tokens``; nothing else about the work depends on the weights.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine, timed
from crossfeed.describe.schema import (
    CausalLM,
    Curated,
    Ecosystem,
    Evaluation,
    Lora,
    Model,
    ParaphraseReward,
    Raw,
    Real,
    RunOptions,
    Samples,
    SummaryReward,
    Text,
    TextsData,
    Training,
)
from crossfeed.networks.pretrained import quiet
from crossfeed.networks.text_rewards import text_reward
from crossfeed.networks.world import open_world
from crossfeed.retraining.counts import source_counts
from crossfeed.retraining.evaluation import Evaluator
from crossfeed.retraining.start import start_pool

SIDES = {
    "published": "as published scripts work: no KV cache, K candidates for every row, float32",
    "cached": "· with a KV cache",
    "used": "· and only candidates that somebody picks from",
    "shared": "· and one base for both models",
    "float32": "library, float32",
    "bfloat16": "library, bfloat16",
}
NUM_CANDIDATES = 4
PASSES = 8  # the published round: 512 steps of 2 × 8 samples on 1,024 rows
DATA = {
    "articles": ("debian_synopsis_train.parquet", "article", "summary", "Summarise this in one line: {input}"),
    "sentences": ("coedit_paraphrase_train.parquet", "src", "tgt", "Paraphrase this sentence: {input}"),
}
LENGTHS = {"articles": (66, 0.5, 26, 190), "sentences": (14, 0.4, 7, 50)}  # words: median, spread of logs, least, most
WORDS = (
    "the a of and to in for with from that this small large old new quick quiet first last other every file "
    "tool user river house game card music letter network library server window garden winter morning "
    "question answer reads writes sorts finds keeps shows counts builds opens follows between under after "
    "before without because often never again slowly clearly"
)


def measure(
    threads: int, quick: bool, device: str = "cpu", model: str | None = None, data: str | None = None
) -> dict[str, Any]:
    """A round of two language models with adapters, against a loop written as published scripts work."""
    raw = {}
    with tempfile.TemporaryDirectory() as folder:
        if model is None:
            make_network(folder, quick)
        options = ["--device", device, "--model", model or folder, *(["--data", data] if data else [])]
        for side in SIDES:
            command = [sys.executable, "-m", "benchmarks.language_loop", "--side", side, *options, *["--quick"] * quick]
            found = timed(command, threads)
            if found["code"]:
                raise RuntimeError(f"{side} ended with code {found['code']}: {found['complaint']}")
            raw[side] = json.loads(found["output"].splitlines()[-1])
    return table(raw, None if model is None else Path(model).name)


def table(raw: dict[str, dict[str, Any]], model: str | None) -> dict[str, Any]:
    """Rows and notes from what each side found."""
    rows, base = [], raw["published"]
    for side, words in SIDES.items():
        one = raw[side]
        rows.append({"what": words, "seconds": one["seconds"], "peak_mb": one["peak_mb"]})
        rows[-1] |= {"number": f"{base['seconds'] / one['seconds']:.2f}×", "of": "faster than the first line"}
    parts = {side: " + ".join(f"{value:.3g} {name}" for name, value in raw[side]["stages"].items()) for side in raw}
    by_stage = {
        side: ", ".join(f"{name} {base['stages'][name] / raw[side]['stages'][name]:.2f}×" for name in base["stages"])
        for side in ("float32", "bfloat16")
    }
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "peft"))
    notes = [
        f"{base['what']}; {model or 'SmolLM2-135M in size, random weights'}; {versions}.",
        "CPU seconds: "
        + ", ".join(
            f"{side} {one['cpu_seconds']:.3g} ({base['cpu_seconds'] / one['cpu_seconds']:.2f}×)"
            for side, one in raw.items()
        )
        + ".",
        "Seconds by stage: " + "; ".join(f"{side}: {words}" for side, words in parts.items()) + ".",
        "Faster by stage: " + "; ".join(f"{side}: {words}" for side, words in by_stage.items()) + ".",
        "Tokens of an answer that is trained on: "
        + ", ".join(f"{side} {one['answer_tokens']:.1f}" for side, one in raw.items())
        + ".",
    ]
    return {"rows": rows, "notes": notes, "raw": raw}


def make_network(folder: str, quick: bool) -> None:
    """A Llama of SmolLM2-135M's sizes (``quick``: a tiny one) with random weights, and a tokenizer whose tokens are words."""
    import tokenizers
    import transformers

    syllables = [a + b for a, b in product("bdfghjklmnprstvz", "aeiou")]
    made = (a + b + c for a, b, c in product(syllables, repeat=3))
    known = [word for _, _, _, template in DATA.values() for word in template.split()]
    words = dict.fromkeys(["<|end|>", "<|pad|>", "<|unknown|>", *WORDS.split(), *known])
    words |= dict.fromkeys(islice(made, (2048 if quick else 49152) - len(words)))
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|unknown|>")
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    names = {"eos_token": "<|end|>", "pad_token": "<|pad|>", "unk_token": "<|unknown|>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64 if quick else 576,
        intermediate_size=128 if quick else 1536,
        num_hidden_layers=2 if quick else 30,
        num_attention_heads=4 if quick else 9,
        num_key_value_heads=2 if quick else 3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    with quiet():
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def make_texts(file: Path, name: str) -> None:
    """Rows of words in random order, as long as the inputs of the experiment are."""
    random = torch.Generator().manual_seed(len(name))
    median, spread, least, most = LENGTHS[name]
    known, lines = WORDS.split(), []
    for _ in range(256):
        num = int((median * torch.randn((), generator=random).mul(spread).exp()).clamp(least, most))
        words = [known[i] for i in torch.randint(len(known), (num,), generator=random)]
        lines.append(json.dumps({"input": " ".join(words), "output": " ".join(words[:10])}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")


def ecosystem(folder: Path, device: str, quick: bool, model: str, data: str | None) -> Ecosystem:
    """The language experiment with 20 % of it curated, with fewer rows a round and as many passes over them."""
    rows = 5 if device == "cpu" else 100 if quick else 1000
    nodes = {}
    for name, (file, source, answer, template) in DATA.items():
        if data is None:
            file, source, answer = str(folder / f"{name}.jsonl"), "input", "output"
            make_texts(Path(file), name)
        else:
            file = str(Path(data).resolve() / file)
        nodes[name] = TextsData(
            file=file, input_column=source, answer_column=answer, template=template, rows=None if data is None else 2048
        )
    family = CausalLM(
        pretrained=model,
        lora=Lora(rank=16, alpha=32, dropout=0.05),
        max_prompt_tokens=192,
        max_new_tokens=32,
        temperature=0.9,
        top_p=0.95,
    )
    accumulate = 4 if device == "cpu" else 8
    train = Training(steps=rows * PASSES // (2 * accumulate), batch_size=2, accumulate=accumulate, learning_rate=2e-4)
    models = {
        name: Model(
            family=family,
            reward=reward,
            train=train,
            sources=[
                Real(data=own, weight=0),
                Raw(producer=other, weight=0.8),
                Curated(producer=other, weight=0.2, candidates=NUM_CANDIDATES),
            ],
            evaluate=[Evaluation(name="own", data=own), Evaluation(name="cross", data=their)],
        )
        for name, other, reward, own, their in (
            ("p", "q", "short", "articles", "sentences"),
            ("q", "p", "formal", "sentences", "articles"),
        )
    }
    return Ecosystem(
        space=Text(),
        data=nodes,
        rewards={"short": SummaryReward(), "formal": ParaphraseReward()},
        models=models,
        samples=Samples(per_round=rows),
        run=RunOptions(rounds=1, evaluation_samples=rows // 2),
    )


def side(name: str, device: str, quick: bool, model: str, data: str | None) -> dict[str, Any]:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        eco = ecosystem(Path(folder), device, quick, model, data)
        if name in ("float32", "bfloat16"):
            found = by_library(eco, name, device, folder)
        else:
            done = ("published", "cached", "used", "shared").index(name)
            loop = Loop(eco, torch.device(device), cache=done > 0, every_row=done < 2, shared=done > 2)
            found = loop.round()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if device != "cpu":
        peak = torch.cuda.max_memory_allocated() / 2**20
    train, run, rows = eco.models["p"].train, eco.run, eco.samples.per_round
    assert train is not None
    what = (
        f"A round: 2 models with adapters of rank 16, {rows:,} rows each, all of them the other's outputs and 20 % of them best "
        f"of {NUM_CANDIDATES}, answers of at most 32 tokens, {train.steps} steps of {train.batch_size} × {train.accumulate} "
        f"({PASSES} passes over the rows, as the published round's 512 of 2 × 8), {2 * run.evaluation_samples:,} answers to evaluate each"
    )
    return found | {"peak_mb": peak, "what": what}


def by_library(eco: Ecosystem, dtype: Any, device: str, folder: str) -> dict[str, Any]:
    """Round 1 of a run with everything that belongs to it, its record included."""
    import pyarrow.parquet

    from crossfeed.retraining.run import run_networks

    marks: list[tuple[float, float]] = []
    done = run_networks(
        eco,
        f"{folder}/run",
        device=device,
        dtype=dtype,
        report=lambda _: marks.append((time.perf_counter(), time.process_time())),
    )
    answers: list[str] = []
    for name in eco.models:
        table = pyarrow.parquet.read_table(f"{folder}/run/rounds/0001/samples-{name}.parquet")
        answers += table.column("output").to_pylist()
    tokens = done.networks["p"].tokens  # type: ignore[attr-defined]
    return {
        "seconds": marks[1][0] - marks[0][0],
        "cpu_seconds": marks[1][1] - marks[0][1],
        "stages": done.summaries[1].seconds,
        "answer_tokens": sum(map(len, tokens.answers(answers))) / len(answers),
    }


Rows = list[tuple[str, str]]  # prompts and answers


@dataclass
class Loop:
    """A round written as published scripts work.

    Args:
        eco: The ecosystem.
        device: Where the networks are.
        cache: Keep keys and values while sampling.
        every_row: K candidates for rows that nobody picks from as well; their first is used.
        shared: One base for both models.
    """

    eco: Ecosystem
    device: torch.device
    cache: bool
    every_row: bool
    shared: bool

    def __post_init__(self) -> None:
        import peft
        import transformers

        self.world = open_world(self.eco)
        self.family: Any = self.eco.models["p"].family
        lora, folder = self.family.lora, self.family.pretrained
        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target,
            task_type="CAUSAL_LM",
        )
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, truncation_side="left")
        self.models: dict[str, Any] = {}
        for name in self.eco.models:
            if self.shared and self.models:
                self.models[name] = next(iter(self.models.values()))
                self.models[name].add_adapter(name, config)
            else:
                with quiet():
                    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
                self.models[name] = peft.get_peft_model(base, config, adapter_name=name).to(self.device)
        self.judges = {name: text_reward(self.eco.rewards[m.reward]) for name, m in self.eco.models.items()}  # type: ignore[arg-type]

    def round(self) -> dict[str, Any]:
        """Build both training sets, train both models, evaluate both."""
        stages: dict[str, float] = {}
        pools = {name: start_pool(self.world, name).prompts.tolist() for name in self.models}
        inputs = Evaluator(self.world, {}).inputs
        self.generate("p", [pools["p"][0]], 1)
        begin, cpu = time.perf_counter(), time.process_time()
        sets = {
            name: self._timed(stages, "generation", lambda n=name: self.training_set(n, pools)) for name in self.models
        }
        for name, rows in sets.items():
            self._timed(stages, "training", lambda n=name, r=rows: self.train(n, r))
        for name in self.models:
            for data in self.eco.data:
                some = inputs((data,), self.eco.run.evaluation_samples).tolist()
                self._timed(stages, "evaluation", lambda n=name, s=some: self.evaluate(n, s))
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        answers = [self._closed(answer) for rows in sets.values() for _, answer in rows]
        mean = sum(map(len, answers)) / len(answers)
        return {"seconds": seconds, "cpu_seconds": cpu, "stages": stages, "answer_tokens": mean}

    def _timed(self, stages: dict[str, float], name: str, work: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        found = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        stages[name] = stages.get(name, 0.0) + time.perf_counter() - begin
        return found

    def _use(self, name: str) -> Any:
        if self.shared:
            self.models[name].set_adapter(name)
        return self.models[name]

    def _prompt(self, index: int) -> str:
        text = self.world.prompts.texts[index]
        if not self.tokenizer.chat_template:
            return text
        message = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))

    def _closed(self, answer: str) -> list[int]:
        ids = [*self.tokenizer(answer, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        return ids[: self.family.max_new_tokens]

    @torch.no_grad()
    def generate(self, name: str, prompts: list[int], num: int) -> list[list[str]]:
        """``num`` answers to each prompt, a batch of prompts at a time, in the order they come in."""
        model, out = self._use(name).eval(), []
        size = self.eco.run.generation_batch // num
        for begin in range(0, len(prompts), size):
            batch = self.tokenizer(
                [self._prompt(i) for i in prompts[begin : begin + size]],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                truncation=True,
                max_length=self.family.max_prompt_tokens,
                add_special_tokens=False,
                return_token_type_ids=False,
            ).to(self.device)
            found = model.generate(
                **batch,
                do_sample=True,
                temperature=self.family.temperature,
                top_p=self.family.top_p,
                top_k=0,
                max_new_tokens=self.family.max_new_tokens,
                num_return_sequences=num,
                use_cache=self.cache,
                pad_token_id=self.tokenizer.pad_token_id,
            )
            texts = self.tokenizer.batch_decode(found[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            out += [texts[i : i + num] for i in range(0, len(texts), num)]
        return out

    def training_set(self, name: str, pools: dict[str, list[int]]) -> Rows:
        """Rows of every source: the producer's answers to the prompts of its own pool."""
        model = self.eco.models[name]
        counts = source_counts([source.weight for source in model.sources], self.eco.samples.per_round)
        left, rows = {key: list(pool) for key, pool in pools.items()}, []
        for source, count in zip(model.sources, counts, strict=True):
            if isinstance(source, (Raw, Curated)):
                picked = isinstance(source, Curated)
                prompts, left[source.producer] = left[source.producer][:count], left[source.producer][count:]
                answers = self.generate(source.producer, prompts, NUM_CANDIDATES if picked or self.every_row else 1)
                best = self.picks(source.producer, prompts, answers) if picked else [some[0] for some in answers]
                rows += [(self._prompt(i), answer) for i, answer in zip(prompts, best, strict=True)]
        return rows

    def picks(self, name: str, prompts: list[int], answers: list[list[str]]) -> list[str]:
        """One of K candidates a prompt, by Plackett and Luce's model."""
        out = []
        for index, some in zip(prompts, answers, strict=True):
            rewards = torch.from_numpy(self.judges[name]([self.world.prompts.inputs[index]] * len(some), some))
            out.append(some[int(torch.distributions.Categorical(logits=rewards).sample())])
        return out

    def train(self, name: str, rows: Rows) -> None:
        """Loss on the answers in float32, on batches that are padded on the right and drawn without regard to length."""
        how, model = self.eco.models[name].train, self._use(name).train()
        assert how is not None
        values = [value for value in model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(values, lr=how.learning_rate, weight_decay=how.weight_decay)
        num = how.steps * how.accumulate * how.batch_size
        order = torch.cat([torch.randperm(len(rows)) for _ in range(-(-num // len(rows)))])[:num]
        for step in order.view(how.steps, how.accumulate, how.batch_size):
            optimizer.zero_grad()
            for part in step:
                loss = model(**self.collate([rows[i] for i in part])).loss / how.accumulate
                loss.backward()
                loss.item()
            torch.nn.utils.clip_grad_norm_(values, 1.0)
            optimizer.step()

    def collate(self, rows: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
        """Token ids, mask and labels of prompts with their answers."""
        pairs = []
        for prompt, answer in rows:
            first = self.tokenizer(
                prompt, add_special_tokens=False, truncation=True, max_length=self.family.max_prompt_tokens
            )["input_ids"]
            pairs.append((first, self._closed(answer)))
        longest = max(len(first) + len(last) for first, last in pairs)
        ids = torch.full((len(pairs), longest), self.tokenizer.pad_token_id)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for row, (first, last) in enumerate(pairs):
            both = len(first) + len(last)
            ids[row, :both] = torch.tensor([*first, *last])
            labels[row, len(first) : both] = torch.tensor(last)
            mask[row, :both] = 1
        return {
            key: value.to(self.device)
            for key, value in zip(("input_ids", "attention_mask", "labels"), (ids, mask, labels), strict=True)
        }

    def evaluate(self, name: str, prompts: list[int]) -> float:
        """Mean reward of fresh answers."""
        answers = [some[0] for some in self.generate(name, prompts, 1)]
        return float(self.judges[name]([self.world.prompts.inputs[i] for i in prompts], answers).mean())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.language_loop", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny network, unless --model names one")
    parser.add_argument("--threads", type=int, default=1, help="threads of each process (default 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--model", help="folder of a causal language model; default: random weights")
    parser.add_argument("--data", help="folder with the experiment's parquet files; default: words in random order")
    parser.add_argument("--side", choices=SIDES, help="one line only, as JSON; needs --model")
    chosen = parser.parse_args()
    if chosen.model is None and (chosen.data or chosen.side):
        parser.error("--data and --side need --model")
    model = chosen.model and str(Path(chosen.model).resolve())
    if chosen.side:
        print(json.dumps(side(chosen.side, chosen.device, chosen.quick, model, chosen.data)))
        return
    print(json.dumps(machine(chosen.threads) | {"device": chosen.device}))
    found = measure(chosen.threads, chosen.quick, chosen.device, model, chosen.data)
    for line in found["rows"]:
        print(f"{line['what']:78s} {line['seconds']:8.2f} s {line['peak_mb']:7.0f} MB {line['number']}")
    print(*found["notes"], sep="\n")


if __name__ == "__main__":
    main()
