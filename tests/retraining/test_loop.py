"""A round does what the spec says: who sees whom, how much is generated, and where every row comes from."""

from __future__ import annotations

import json
import re

import pytest
import torch
from torch import Tensor

from crossfeed.describe.schema import (
    Affine,
    CausalLM,
    Curated,
    Cycle,
    Ecosystem,
    FreshLM,
    Model,
    Pick,
    Picks,
    PreferencesData,
    Pretraining,
    RandomOrder,
    Raw,
    Real,
    RunOptions,
    Samples,
    Sequential,
    Simultaneous,
    SummaryReward,
    Text,
    TextsData,
    Training,
    Update,
)
from crossfeed.errors import SettingError
from crossfeed.networks.base import Outputs
from crossfeed.networks.world import open_world
from crossfeed.record.training_set import Recipe, join, recipe, select
from crossfeed.retraining.recorder import Memory
from crossfeed.retraining.run import run_networks
from networks.tiny import languages
from retraining.fakes import Points, plane, rewards_of


def go(eco: Ecosystem, networks=None, rounds=1, **options):
    """Run in memory, everything kept; the run and the fakes."""
    networks = networks or {name: Points(name, (float(i), -1.0)) for i, name in enumerate(eco.models)}
    rewards = options.pop("rewards", None) or rewards_of(eco)
    memory = options.pop("memory", None) or Memory("all")
    run = run_networks(eco, memory, rounds=rounds, device="cpu", networks=networks, rewards=rewards, **options)
    return run, networks


def each_other(order=None, **changes):
    """p on q's raw outputs and q on p's, with a real source that gives no rows."""
    nothing = Real(data="ring", weight=0)
    sources = {"p": [nothing, Raw(producer="q", weight=1)], "q": [nothing, Raw(producer="p", weight=1)]}
    return plane(sources, update=Update(order=order or Simultaneous()), **changes)


def made(run, round, name) -> Tensor:
    """The one point that all new rows of a model are (the fakes have no spread)."""
    outputs = run.folder.pool(round, name).outputs
    assert (outputs == outputs[0]).all()
    return outputs[0]


# --- update orders ---------------------------------------------------------------------------------------------------


def test_simultaneous_models_see_the_states_before_the_round():
    run, _ = go(each_other(), rounds=3)
    for t in (1, 2, 3):
        for me, other in (("p", "q"), ("q", "p")):
            assert torch.equal(made(run, t, me), run.folder.parameters(t - 1, other)["mean"])


def test_sequential_models_see_the_newest_states():
    run, _ = go(each_other(Sequential(models=["q", "p"])), rounds=2)
    for t in (1, 2):
        assert torch.equal(made(run, t, "q"), run.folder.parameters(t - 1, "p")["mean"])
        assert torch.equal(made(run, t, "p"), run.folder.parameters(t, "q")["mean"])


def test_models_left_out_of_a_round_are_not_touched():
    run, _ = go(each_other(Cycle(rounds=[[["p"]], [["q"]]])), rounds=3)
    updated = [run.folder.round_info(t)["updated"] for t in (1, 2, 3)]
    assert updated == [["p"], ["q"], ["p"]]
    assert [sorted(record.parameters) for record in run.folder.records] == [["p", "q"], ["p"], ["q"], ["p"]]
    assert torch.equal(run.folder.parameters(1, "q")["mean"], torch.tensor([1.0, -1.0]))
    rows = run.metrics().to_pylist()
    q = {r["round"]: r["value"] for r in rows if (r["model"], r["metric"]) == ("q", "delta")}
    assert q[1] == 0
    assert q[2] > 0
    assert q[3] == 0
    alignment = {r["round"]: r["value"] for r in rows if (r["model"], r["metric"]) == ("q", "alignment")}
    assert alignment[1] == alignment[0]
    assert alignment[3] == alignment[2]
    assert not any(r["metric"] == "loss" and r["model"] == "q" for r in rows if r["round"] == 1)
    assert run.folder.pool(3, "p").producer_round == [2] * 20
    assert run.folder.pool(1, "p").producer_round == [0] * 20


def test_a_round_may_update_nobody():
    eco = each_other(RandomOrder(probability=0.2, seed=1))
    run, _ = go(eco, rounds=6)
    updated = [run.folder.round_info(t)["updated"] for t in range(1, 7)]
    assert [] in updated
    assert any(updated)
    assert run.folder.rounds == list(range(7))


def test_a_network_is_trained_at_most_once_a_round():
    with pytest.raises(SettingError, match=r"update\.order\.rounds\[0\]: found 'p' in two steps.*make two rounds"):
        go(each_other(Cycle(rounds=[[["p"], ["q"], ["p"]]])))


# --- generation ------------------------------------------------------------------------------------------------------


def three_sources():
    q = [Raw(producer="p", weight=0.25), Curated(producer="p", weight=0.75, candidates=3)]
    two = Curated(producer="p", weight=0.4, candidates=2, then=Pick(candidates=3))
    return plane(
        {
            "p": [Real(data="ring", weight=0.4), Raw(producer="p", weight=0.2), two],
            "q": [Real(data="ring", weight=0), *q],
        }
    )


def test_only_what_will_be_used_is_generated_in_one_call():
    eco = three_sources()
    run, networks = go(eco, rounds=2)
    asked = [call for call in networks["p"].asked if not call[3]]
    assert len(asked) == 2  # one a round, for both consumers and all their sources
    for prompts, candidates, _, _ in asked:
        assert candidates.tolist() == [1] * 4 + [6] * 8 + [1] * 5 + [3] * 15
        assert len(prompts) == len(candidates)
    assert not [call for call in networks["q"].asked if not call[3]]  # nobody wants q's outputs
    assert run.summaries[1].counts == {
        "p": {"real": 8, "raw_p": 4, "curated_p": 8},
        "q": {"real": 0, "raw_p": 5, "curated_p": 15},
    }


def test_rows_have_their_origin():
    run, _ = go(three_sources(), {n: Points(n, spread=1.0) for n in "pq"}, rounds=2)
    p1, p2 = run.folder.pool(1, "p"), run.folder.pool(2, "p")
    assert p2.ids[:2] == ["r0002-p-000000", "r0002-p-000001"]
    assert len(set(p2.ids)) == 20
    assert p2.kind == ["real"] * 8 + ["raw"] * 4 + ["curated"] * 8
    assert p2.source == ["real"] * 8 + ["raw_p"] * 4 + ["curated_p"] * 8
    assert p2.data == ["ring"] * 8 + [None] * 12
    assert p2.producer == [None] * 8 + ["p"] * 12
    assert p2.producer_round == [None] * 8 + [1] * 12
    assert p2.parent[:8] == [None] * 8
    assert set(p2.parent[8:]) <= set(p1.ids)
    # prompts of p's pool are drawn for all its consumers without replacement while rows last: 32 of 20 rows
    parents = p2.parent[8:] + run.folder.pool(2, "q").parent
    assert len(parents) == 32
    assert set(parents) == set(p1.ids)
    assert max(parents.count(parent) for parent in parents) == 2
    assert p2.num_candidates == [0] * 12 + [6] * 8
    assert [len(r) for r in p2.rewards] == p2.num_candidates
    assert all(0 <= k < 6 for k in p2.picked[12:])
    assert p2.picked[:12] == [-1] * 12
    assert p2.picker == [None] * 12 + ["right"] * 8
    assert p2.candidates.shape == (48, 2)
    for i in range(8):
        assert torch.equal(p2.candidates[6 * i + p2.picked[12 + i]], p2.outputs[12 + i])
        assert p2.rewards[12 + i] == pytest.approx(p2.candidates[6 * i : 6 * i + 6, 0].tolist())


def test_the_affine_map_comes_after_the_pick():
    # in closed form too: crossfeed.families.gaussian maps what was picked
    flip = Affine(matrix=[[-1.0, 0.0], [0.0, 2.0]], shift=[0.0, 1.0])
    picked = Curated(producer="p", weight=1, candidates=4, temperature=0, map=flip)
    run, _ = go(plane({"p": [Real(data="ring", weight=0), picked]}), {"p": Points("p", spread=1.0)})
    pool = run.folder.pool(1, "p")
    candidates = pool.candidates.view(20, 4, 2)
    best = candidates[torch.arange(20), candidates[..., 0].argmax(1)]
    torch.testing.assert_close(pool.outputs, best * torch.tensor([-1.0, 2.0]) + torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("keep", [True, False, None])
def test_candidates_are_kept_when_asked(keep):
    eco = three_sources()
    eco = eco.model_copy(update={"run": eco.run.model_copy(update={"record_candidates": keep})})
    run, _ = go(eco)
    assert (run.folder.pool(1, "q").candidates is None) is (keep is False)


def test_multinomial_counts_are_drawn_anew_each_round():
    eco = three_sources()
    run, _ = go(eco.model_copy(update={"samples": Samples(per_round=20, counts="multinomial")}), rounds=4)
    counts = [tuple(s.counts["p"].values()) for s in run.summaries[1:]]
    assert all(sum(c) == 20 for c in counts)
    assert len(set(counts)) > 1
    assert len(run.folder.pool(1, "p")) == 20


def test_seeds_change_every_stochastic_stage():
    eco = three_sources()
    eco = eco.model_copy(update={"samples": Samples(per_round=20, counts="multinomial")})
    runs = [
        go(eco.model_copy(update={"seed": seed}), {n: Points(n, spread=1.0) for n in "pq"}, rounds=1)[0].folder
        for seed in (0, 0, 1)
    ]
    first, same, other = map(_everything, runs)
    assert first == same
    for key, value in first.items():
        assert value != other[key], key


def _everything(folder):
    pool, first = folder.pool(1, "q"), folder.pool(0, "p")
    return {
        "start": first.outputs.tolist(),
        "generation": pool.outputs.tolist(),
        "picks": pool.picked,
        "prompts": pool.parent,
        "training": folder.parameters(1, "q")["mean"].tolist(),
        "evaluation": [r["value"] for r in folder.metrics().to_pylist() if r["metric"] == "alignment"],
    }


# --- regimes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", ["replace", "accumulate", "subsample"])
def test_regimes_train_on_what_they_say(regime, monkeypatch):
    seen = []
    from crossfeed.retraining import rounds as module

    train = module.train
    monkeypatch.setattr(
        module,
        "train",
        lambda net, prompts, outputs, *a, **k: seen.append(outputs) or train(net, prompts, outputs, *a, **k),
    )
    eco = plane({"p": [Real(data="ring", weight=1)]})
    run, _ = go(eco, rounds=3, regime=regime)
    new = [run.folder.pool(t, "p").outputs for t in (1, 2, 3)]
    assert [len(rows) for rows in new] == [20] * 3  # the record keeps each round's new rows, once
    sets = [run.folder.round_info(t)["training_sets"]["p"] for t in (1, 2, 3)]
    if regime == "replace":
        assert sets == [{"rounds": [t]} for t in (1, 2, 3)]
    else:
        assert [s["rounds"] for s in sets] == [[1], [1, 2], [1, 2, 3]]
    for t, rows in enumerate(seen):
        whole = new[t] if regime == "replace" else torch.cat(new[: t + 1])
        index = sets[t].get("index")
        assert torch.equal(rows, whole if index is None else whole[index])
        assert len(rows) == (20 * (t + 1) if regime == "accumulate" else 20)
    if regime == "subsample":
        assert max(sets[2]["index"]) >= 40
        assert min(sets[2]["index"]) < 20
        assert len(set(sets[2]["index"])) < 20  # with replacement


def test_prompts_come_from_the_whole_training_set_that_accumulates():
    run, _ = go(
        plane({"p": [Real(data="ring", weight=0.1), Raw(producer="p", weight=0.9)]}), rounds=4, regime="accumulate"
    )
    rounds = {parent[:5] for parent in run.folder.pool(4, "p").parent if parent}
    assert rounds == {"r0001", "r0002", "r0003"}


def test_recipes_join_and_select():
    run, _ = go(three_sources(), {n: Points(n, spread=1.0) for n in "pq"}, rounds=2)
    pools = {t: run.folder.pool(t, "p") for t in (1, 2)}
    both = join([pools[1], pools[2]])
    assert len(both) == 40
    assert len(both.candidates) == 96
    some = select(both, torch.tensor([39, 0, 12, 39]))
    assert some.ids == ["r0002-p-000019", "r0001-p-000000", "r0001-p-000012", "r0002-p-000019"]
    assert some.num_candidates == [6, 0, 6, 6]
    assert len(some.candidates) == 18
    assert torch.equal(some.candidates[some.picked[0]], some.outputs[0])
    made = recipe("subsample", [1], 2, [20, 20], seed=3)
    assert Recipe.read(json.loads(json.dumps(made.info()))) == made
    assert len(made.of(pools.__getitem__)) == 20


# --- the start -------------------------------------------------------------------------------------------------------


def test_the_start_has_rows_of_real_data_and_pretraining():
    eco = plane({"p": [Real(data="ring", weight=1)], "q": [Raw(producer="p", weight=1), Real(data="ring", weight=0)]})
    some = Pretraining(steps=40, batch_size=16, optimizer="sgd", learning_rate=0.5)
    models = {"p": eco.models["p"].model_copy(update={"pretrain": some}), "q": eco.models["q"]}
    run, _networks = go(eco.model_copy(update={"models": models}), {n: Points(n, (9.0, 9.0)) for n in "pq"})
    start = run.folder.pool(0, "p")
    assert start.kind == ["real"] * 20
    assert start.ids[0] == "r0000-p-000000"
    assert run.folder.parameters(0, "q")["mean"].tolist() == [9, 9]
    assert (run.folder.parameters(0, "p")["mean"] - 1.5).abs().max() < 0.5  # the ring's mean
    assert run.folder.round_info(0)["updated"] == ["p"]
    assert run.folder.pool(1, "q").parent[0].startswith("r0000-p-")


# --- text ------------------------------------------------------------------------------------------------------------


class Echo(Points):
    """Answers a prompt with its number, how often it was asked and the temperature."""

    def sample(self, prompts: Tensor, candidates: Tensor, generator: torch.Generator, **options) -> list[str]:  # type: ignore[override]
        warmth = options.get("temperature", 1.0)
        self.asked.append((prompts, candidates, warmth, options.get("evaluating", False)))
        return [f"{p} {k} {warmth:g}" for p, n in zip(prompts, candidates, strict=True) for k in range(n)]

    def losses(self, prompts: Tensor, outputs: Outputs, generator=None) -> Tensor:
        return (self.mean - torch.tensor([[float(len(text)), 0.0] for text in outputs])).square().sum(-1)


def texts(tmp_path, sources):
    rows = [{"input": f"text {i}", "output": f"answer {i}"} for i in range(12)]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    picks = [{"prompt": f"prompt {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(6)]
    (tmp_path / "picks.jsonl").write_text("\n".join(map(json.dumps, picks)))
    return Ecosystem(
        space=Text(),
        data={
            "texts": TextsData(file=str(tmp_path / "texts.jsonl"), answer_column="output"),
            "picks": PreferencesData(file=str(tmp_path / "picks.jsonl")),
        },
        rewards={"short": SummaryReward()},
        models={
            "p": Model(
                family=CausalLM(fresh=FreshLM()),
                reward="short",
                train=Training(steps=2, batch_size=4, optimizer="sgd", learning_rate=0.1),
                sources=sources,
            )
        },
        samples=Samples(per_round=12),
        run=RunOptions(rounds=2, evaluation_samples=8),
    )


def test_text_prompts_picks_and_temperatures(tmp_path):
    sources = [
        Real(data="texts", weight=0.25),
        Picks(data="picks", weight=0.25, name="people"),
        Raw(producer="p", weight=0.25, sampling_temperature=0.5),
        Curated(producer="p", weight=0.25, candidates=2),
    ]
    length = {"short": lambda prompts, answers: -torch.tensor([float(len(a)) for a in answers])}
    run, networks = go(texts(tmp_path, sources), {"p": Echo("p")}, rounds=2, rewards=length)
    calls = [call for call in networks["p"].asked if not call[3]]
    assert [(call[2], call[1].tolist()) for call in calls[:2]] == [(0.5, [1] * 3), (1.0, [2] * 3)]
    pool = run.folder.pool(2, "p")
    before = dict(zip(run.folder.pool(1, "p").ids, run.folder.pool(1, "p").prompts.tolist(), strict=True))
    for row in range(6, 12):
        assert before[pool.parent[row]] == pool.prompts[row]
        assert pool.outputs[row].startswith(f"{pool.prompts[row]} ")
    assert pool.outputs[6].endswith(" 0.5")
    assert pool.outputs[11].endswith(" 1")
    assert pool.kind[3:6] == ["picks"] * 3
    assert pool.data[3:6] == ["picks"] * 3
    assert pool.num_candidates[3:6] == [0] * 3
    assert all(re.fullmatch(rf"good {row}", text) for text, row in zip(pool.outputs[3:6], pool.row[3:6], strict=True))
    assert len(pool.candidates) == 6
    assert isinstance(pool.candidates, list)
    shares = [r["value"] for r in run.metrics().to_pylist() if r["metric"] == "curation"]
    assert shares == [0.5, 0.5]  # picks count as curated


# --- progress and modes ----------------------------------------------------------------------------------------------


def test_progress_names_rounds_models_and_stages():
    said = []
    go(three_sources(), rounds=2, progress=lambda *what: said.append(what))
    stages = [stage for stage, _, _ in said]
    assert "round 1/2 · p: generating" in stages
    assert "round 2/2 · q: training" in stages
    assert ("rounds", 0, 2) in said
    assert said[-1] == ("rounds", 2, 2)
    assert all(done <= total or not total for _, done, total in said)
    assert any(re.fullmatch(r"rounds · about .* left", stage) for stage in stages)


def test_summaries_are_told_after_each_round():
    told = []
    run, _ = go(three_sources(), rounds=2, report=told.append)
    assert [s.round for s in told] == [0, 1, 2]
    assert told == run.summaries
    text = str(told[1])
    assert text.startswith("round 1/2 · ")
    assert "\n  p:  own 0." in text
    assert "loss" in text
    assert "Δ" in text
    assert run.result == "finished"
    assert "all 2 rounds are done" in run.summary()
    assert "<pre>" in run._repr_html_()


def test_in_memory_without_state_and_with_few_measures():
    eco = three_sources()
    networks = {name: Points(name, spread=1.0) for name in "pq"}
    run = run_networks(eco, None, rounds=2, device="cpu", networks=networks, rewards=rewards_of(eco), minimal=True)
    assert {r["metric"] for r in run.metrics().to_pylist()} == {
        *("alignment", "diversity", "loss", "delta", "moved", "gradient_norm", "curation")
    }
    assert all(not record.parameters and not record.pools and not record.shown for record in run.folder.records)
    whole, _ = go(eco, {name: Points(name, spread=1.0) for name in "pq"}, rounds=2)
    values = [[r["value"] for r in x.metrics().to_pylist() if r["metric"] == "alignment"] for x in (run, whole)]
    assert values[0] == values[1]  # what is kept changes nothing


def test_a_source_may_name_whose_inputs_are_answered(tmp_path):
    """With 100 % cross-model data, prompts swap round by round, unless the sources name their inputs."""
    eco = languages(tmp_path, steps=1)

    def cross(inputs):
        models = {}
        for name, other, mine, their in (("p", "q", "tools", "games"), ("q", "p", "games", "tools")):
            given = {"inputs": their} if inputs else {}
            sources = [
                Real(data=mine, weight=0),
                Raw(producer=other, weight=0.5, **given),
                Curated(producer=other, weight=0.5, candidates=2, **given),
            ]
            models[name] = eco.models[name].model_copy(update={"sources": sources})
        return eco.model_copy(update={"models": models})

    for inputs in (False, True):
        memory = Memory("all")
        run = run_networks(cross(inputs), memory, device="cpu", rounds=2)
        prompts = open_world(run.eco).prompts
        for name, own, their in (("p", "tools", "games"), ("q", "games", "tools")):
            for number in (1, 2):
                pool = memory.pool(number, name)
                asked = {prompts.domain[i] for i in pool.prompts.tolist()}
                assert asked == {their if inputs or number == 1 else own}
                if not inputs:
                    assert all(pool.parent)
                    assert pool.data == [None] * len(pool)
                    continue
                assert pool.parent == [None] * len(pool)
                assert pool.data == [their] * len(pool)
                assert pool.row == [prompts.row[i] for i in pool.prompts.tolist()]
                assert len(set(pool.row)) == len(pool)  # 12 of 24 rows: none twice, of both sources together
                assert pool.producer_round == [number - 1] * len(pool)
