import pytest
import scipy.stats
import torch
from small_models import SIZES, models, shake, world
from torch import Tensor

from crossfeed.errors import CheckFailedError
from crossfeed.networks.fresh import fresh_network, fresh_tokenizer
from crossfeed.networks.generate import Sampling, _State, draw, first_logits, generate

TOKENIZER = fresh_tokenizer(world().prompts.texts, 280)
NETWORK = fresh_network(SIZES.model_copy(update={"width": 48}), TOKENIZER, 3, "sdpa").eval()
PROMPTS = [TOKENIZER(text).input_ids for text in ("a tool", "sorts files of several kinds, and cards", "x", "Tool 3")]
HOW = Sampling(10, [TOKENIZER.eos_token_id], TOKENIZER.pad_token_id)


def uniforms(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, HOW.max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_stop(*ids: int) -> Sampling:
    return Sampling(HOW.max_new_tokens, ids, HOW.pad)


# --- against transformers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_is_what_transformers_generates(attention: str) -> None:
    network = fresh_network(SIZES, TOKENIZER, 5, attention).eval()
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[HOW.pad] * (longest - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in PROMPTS])
    stop = 40  # some token, so that rows end at different times
    theirs = network.generate(
        ids, attention_mask=mask, do_sample=False, max_new_tokens=10, eos_token_id=stop, pad_token_id=HOW.pad
    )[:, longest:]
    cut = [row[: row.index(stop)] if stop in row else row for row in theirs.tolist()]
    ours = generate(network, PROMPTS, [1, 1, 1, 1], None, with_stop(stop), batch_size=3)
    assert ours == cut


def test_the_cache_gives_what_reading_everything_again_gives() -> None:
    state = _State(NETWORK, PROMPTS, HOW.pad)
    state.select(torch.tensor([3, 0, 0, 1, 2]))  # repeat and reorder
    rows = [list(PROMPTS[i]) for i in (3, 0, 0, 1, 2)]
    with torch.inference_mode():
        for step in range(70):  # past the room the cache starts with
            new = torch.tensor([(7 * step + 3 * row) % 270 for row in range(len(rows))])
            state.step(new)
            for row, token in zip(rows, new.tolist(), strict=True):
                row.append(token)
            if step == 30:
                keep = torch.tensor([4, 1, 2])
                state.select(keep)
                rows = [rows[i] for i in keep.tolist()]
            if step in {0, 30, 31, 69}:
                again = torch.stack([NETWORK(input_ids=torch.tensor([row])).logits[0, -1] for row in rows])
                torch.testing.assert_close(state.logits, again, rtol=1e-4, atol=1e-5)


def test_first_logits_are_the_networks() -> None:
    first, second = first_logits(NETWORK, PROMPTS, 5, HOW.pad)
    with torch.no_grad():
        for i, prompt in enumerate(PROMPTS):
            torch.testing.assert_close(first[i], NETWORK(torch.tensor([prompt])).logits[0, -1], rtol=1e-4, atol=1e-5)
            again = NETWORK(torch.tensor([[*prompt, 5]])).logits[0, -1]
            torch.testing.assert_close(second[i], again, rtol=1e-4, atol=1e-5)


# --- what an output depends on --------------------------------------------------------------------------------------


def test_outputs_do_not_depend_on_their_batch() -> None:
    counts, u = [3, 1, 0, 4], uniforms(8)
    stop = with_stop(*range(20, 40))
    together = generate(NETWORK, PROMPTS, counts, u, stop, batch_size=100)
    assert len({len(row) for row in together}) > 2  # they end at different times
    for size in (1, 2, 3, 5):
        assert generate(NETWORK, PROMPTS, counts, u, stop, batch_size=size) == together
    owner = [0, 0, 0, 1, 3, 3, 3, 3]
    for row in range(8):
        assert generate(NETWORK, [PROMPTS[owner[row]]], [1], u[row : row + 1], stop) == [together[row]]


def test_rows_that_ended_leave_and_finished_batches_stop_early() -> None:
    calls: list[int] = []
    handle = NETWORK.register_forward_hook(
        lambda module, args, kwargs, out: calls.append(len(out.logits)), with_kwargs=True
    )
    try:
        found = generate(NETWORK, PROMPTS, [4, 4, 4, 4], uniforms(16), with_stop(*range(20, 150)))
    finally:
        handle.remove()
    lengths = [len(row) for row in found]
    assert calls[0] == 4  # each prompt is read once
    assert calls[1] < 16
    assert calls[1:] == sorted(calls[1:], reverse=True)
    assert len(calls) == 1 + min(max(lengths), HOW.max_new_tokens - 1)


def test_every_prompt_is_read_once_for_all_its_outputs() -> None:
    read: list[int] = []
    handle = NETWORK.register_forward_hook(
        lambda module, args, kwargs, out: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        generate(NETWORK, PROMPTS, [8, 8, 8, 8], None, Sampling(1, [0], HOW.pad))
    finally:
        handle.remove()
    assert read == [4 * max(map(len, PROMPTS))]


def test_the_most_tokens_is_the_most() -> None:
    for most in (1, 2, 7):
        found = generate(NETWORK, PROMPTS, [2] * 4, uniforms(8), Sampling(most, [], HOW.pad))
        assert [len(row) for row in found] == [most] * 8


def test_advance_counts_outputs() -> None:
    done: list[int] = []
    generate(NETWORK, PROMPTS, [3, 0, 2, 2], uniforms(7), HOW, batch_size=3, advance=done.append)
    assert done == [3, 3, 1]
    assert generate(NETWORK, PROMPTS, [0] * 4, uniforms(0), HOW) == []


# --- one token ------------------------------------------------------------------------------------------------------


def reference(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """The distribution sampled from, the slow way."""
    p = (logits.double() / temperature).softmax(-1)
    order = p.argsort(descending=True)
    before = p[order].cumsum(0) - p[order]
    kept = order[before < top_p]
    out = torch.zeros_like(p)
    out[kept] = p[kept]
    return out / out.sum()


@pytest.mark.parametrize("tokens", [3, 127, 128, 129, 1000])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (1.5, 0.3), (1.0, 1e-9)])
def test_draw_inverts_the_distribution_function(tokens: int, temperature: float, top_p: float) -> None:
    random = torch.Generator().manual_seed(tokens)
    logits = 2 * torch.randn(tokens, generator=random)
    p = reference(logits, temperature, top_p)
    upto = p.cumsum(0)
    inside = p > 1e-4  # far enough from both edges for rounding
    middles = (upto - p / 2)[inside]
    found = draw(logits.expand(len(middles), -1), middles, temperature, top_p)
    assert found.tolist() == inside.nonzero().squeeze(1).tolist()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_edges_of_the_unit_interval_give_possible_tokens(u: float) -> None:
    logits = torch.full((300,), -torch.inf)
    logits[[5, 200]] = 0.0
    number = torch.tensor([u], dtype=torch.float64)
    for top_p in (1.0, 0.5, 0.9):
        assert int(draw(logits[None], number, 1.0, top_p)) in {5, 200}
    assert int(draw(logits[None], number, 1.0, 1.0)) == (5 if u == 0 else 200)


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 20,000 draws; false alarm 1 in 10,000."""
    logits = torch.linspace(-2, 2, 30)
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for temperature, top_p in ((1.0, 1.0), (0.5, 0.8)):
        found = torch.bincount(draw(logits.expand(len(u), -1), u, temperature, top_p), minlength=30)
        p = reference(logits, temperature, top_p)
        assert int(found[p == 0].sum()) == 0
        test = scipy.stats.chisquare(found[p > 0], (len(u) * p[p > 0]).numpy())
        assert test.pvalue > 1e-4


def test_equally_probable_tokens_share_the_nucleus() -> None:
    logits = torch.zeros(1, 500)
    found = draw(logits.expand(100, -1), torch.arange(100).double() / 100, 1.0, 0.1)
    assert int(found.max()) > 450


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    logits = torch.zeros(2, 10)
    logits[1, 3] = bad
    with pytest.raises(CheckFailedError, match="not finite"):
        draw(logits, torch.zeros(2), 1.0, 1.0)


def test_models_name_themselves_when_numbers_are_not_finite() -> None:
    p = models()["p"]
    with torch.no_grad():
        next(iter(p.parameters().values())).fill_(float("nan"))
    with pytest.raises(CheckFailedError, match=r"models\.p: .*not finite.*float32"):
        p.sample(torch.tensor([0]), torch.tensor([2]), torch.Generator())


# --- from the model down --------------------------------------------------------------------------------------------


def test_sampling_twice_from_a_prompt_equals_asking_for_two() -> None:
    p = models(max_new_tokens=6)["p"]
    shake(p, 0.3)
    once = p.sample(torch.tensor([1, 4]), torch.tensor([2, 2]), torch.Generator().manual_seed(0))
    apart = p.sample(torch.tensor([1, 1, 4, 4]), torch.tensor([1, 1, 1, 1]), torch.Generator().manual_seed(0))
    mixed = p.sample(torch.tensor([1, 1, 4]), torch.tensor([1, 1, 2]), torch.Generator().manual_seed(0), batch_size=1)
    assert once == apart == mixed


def test_temperature_multiplies_the_familys() -> None:
    cold, warm = models(temperature=0.5)["p"], models(temperature=1.0)["p"]
    prompts, counts = torch.tensor([0, 1]), torch.tensor([3, 3])
    a = warm.sample(prompts, counts, torch.Generator().manual_seed(0), temperature=0.5)
    b = cold.sample(prompts, counts, torch.Generator().manual_seed(0))
    assert a == b
    assert a != warm.sample(prompts, counts, torch.Generator().manual_seed(0))
    nearly_greedy = warm.sample(prompts, counts, torch.Generator().manual_seed(0), temperature=1e-4)
    greedy = warm.tokens.texts(warm.sample_tokens(prompts, counts, None))
    assert nearly_greedy == greedy
