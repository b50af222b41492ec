"""Networks as the estimator sees them: what each declares, the score of what is in fact sampled, and the curvature's rows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy.stats import chi2
from small_networks import ANSWERS, NUM, PROMPTS, case, diffusion, direction, flow, move, relative, seeded, stepped
from torch import Tensor

from crossfeed.describe.network_nodes import Lora
from crossfeed.errors import NotAvailableError, SettingError
from crossfeed.estimate.derivatives import gradient_rows, hessian_product, products, weighted_gradient
from crossfeed.estimate.networks import differentiable
from crossfeed.networks.language import LanguageModel
from crossfeed.networks.tokens import Batch
from networks.small_models import models, world


def rows_of(model: Any, fn: Any, batch: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([*gradient_rows(fn, model.parameters(), batch, 8)])


def language(stops: int = 0, **family: Any) -> LanguageModel:
    """With further tokens that end an answer, so that answers of all lengths come."""
    made = models("p", **({"attention": "sdpa"} | family))["p"]
    move(made, 0.2 if made.family.lora is not None else 0.01)
    made.base.network.generation_config.eos_token_id = [made.tokens.end, *range(40, 40 + stops)]
    return LanguageModel("p", made.family, made.base, world())


# --- what each declares ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "capabilities", "shared"),
    [("flow", {"likelihood", "rsample"}, True), ("diffusion", {"rsample"}, False), ("lora", {"likelihood"}, False)],
)
def test_declarations(kind: str, capabilities: set[str], shared: bool) -> None:
    made = case(kind)
    assert (made.model.name, made.model.capabilities, made.model.loss_is_score) == ("p", capabilities, shared)
    assert made.model.chunk > 1
    assert made.model.device == made.network.device
    assert differentiable(made.network, chunk=3).chunk == 3
    losses = made.model.losses(made.model.parameters(), made.batch())
    torch.testing.assert_close(losses, made.live_losses().detach(), rtol=1e-5, atol=1e-5)


def test_what_a_kind_does_not_have_is_refused() -> None:
    image, text, vector = (case(kind).model for kind in ("diffusion", "lora", "flow"))
    with pytest.raises(NotAvailableError, match=r"models\.p: a diffusion network has no tractable likelihood"):
        image.score_batch(PROMPTS, torch.zeros(NUM, 3, 8, 8))
    with pytest.raises(NotAvailableError, match="no tractable likelihood"):
        image.log_probs({}, ())
    for refused in (
        lambda: text.noise(2, seeded()),
        lambda: text.rsample({}, PROMPTS, torch.zeros(1)),
        lambda: text.replace_outputs((), torch.zeros(1)),
    ):
        with pytest.raises(NotAvailableError, match=r"models\.p: a language model's outputs"):
            refused()
    with pytest.raises(SettingError, match=r"a flow samples at temperature 1 only, found 0\.5"):
        vector.log_probs(vector.parameters(), (torch.zeros(1, 2),), 0.5)
    with pytest.raises(TypeError, match="vectors"):
        vector.loss_batch(PROMPTS, ANSWERS, seeded())
    with pytest.raises(TypeError, match="images"):
        image.loss_batch(PROMPTS, ANSWERS, seeded())
    with pytest.raises(TypeError, match="texts"):
        text.loss_batch(PROMPTS, torch.zeros(1), seeded())

    class Other:
        name = "o"

    with pytest.raises(NotAvailableError, match=r"models\.o: found a Other; need a flow"):
        differentiable(Other())  # type: ignore[arg-type]


def test_parameters_follow_the_network() -> None:
    made = case("flow")
    before = {name: value.clone() for name, value in made.model.parameters().items()}
    held = made.model.parameters()
    made.network.load({name: value + 1 for name, value in before.items()})
    assert all(torch.equal(held[name], value + 1) for name, value in before.items())


# --- flows and diffusion --------------------------------------------------------------------------------------------


def test_flow_samples_are_its_samplers() -> None:
    made = case("flow")
    noise = made.model.noise(NUM, seeded(2))
    assert noise.dtype == torch.float64
    found = made.model.rsample(made.model.parameters(), PROMPTS, noise)
    assert torch.equal(found, made.network.rsample(PROMPTS, noise).detach())
    scores = rows_of(made.model, made.model.log_probs, made.model.score_batch(PROMPTS, made.outputs))
    assert torch.equal(scores, -rows_of(made.model, made.model.losses, made.batch()))


@pytest.mark.parametrize("conditional", [True, False])
def test_diffusion_samples_are_its_samplers(conditional: bool) -> None:
    network = diffusion(conditional=conditional)
    model = differentiable(network)
    noise = model.noise(64, seeded(2))  # as many as sampling draws at once
    drawn = network.sample(torch.tensor([1]), torch.tensor([64]), seeded(2), evaluating=True)
    found = model.rsample(model.parameters(), torch.ones(64, dtype=torch.int64), noise, evaluating=True)
    assert float((found * 255 - drawn).abs().max()) <= 0.51
    batch = model.loss_batch(PROMPTS, drawn[:NUM], seeded(3))
    assert len(batch) == (4 if conditional else 3)
    assert torch.equal(
        model.losses(model.parameters(), batch),
        model.losses(model.parameters(), model.replace_outputs(batch, drawn[:NUM].float() / 255)),
    ) == torch.equal(drawn[:NUM] / 127.5 - 1, 2 * (drawn[:NUM].float() / 255) - 1)
    assert network.module.training


def test_curvature_of_a_flow() -> None:
    """E[h hᵀ] over u at one outcome against ∇z∇zᵀ + ∇log s ∇log sᵀ there; error below 5 standard errors of each entry's draws.

    False alarms: 15 entries, each about 6e-7 for a normal error.
    """
    network = flow(dim=1, bins=2, shift=0.5)
    model: Any = differentiable(network)
    theta, num = model.parameters(), 4000
    y = torch.tensor([[0.7]], dtype=torch.float64)
    sides = [
        torch.cat([part.flatten() for part in torch.autograd.grad(side.sum(), network.module.parameters())])
        for side in (network.module.to_noise(y)[0], network.module.to_noise(y)[1])
    ]
    exact = sum((side[:, None] * side for side in sides), torch.zeros(()))
    batch = model.curvature_batch(torch.zeros(num, dtype=torch.int64), y.expand(num, 1), seeded(4))
    h = rows_of(model, model.curvature_terms, batch)
    assert h.shape == (num, sum(value.numel() for value in theta.values()))
    outer = h[:, :, None] * h[:, None]
    error = outer.std(0) / math.sqrt(num)
    assert bool(((outer.mean(0) - exact).abs() < 5 * error + 1e-12).all())
    assert bool((error.diagonal() < 0.1 * exact.diagonal() + 1e-12).all())


def test_curvature_of_a_standard_normal_flow_is_its_fisher_matrix() -> None:
    """A flow whose map is the identity: on its own outputs the mean of ∇z∇zᵀ + ∇log s ∇log sᵀ is E[∇log q ∇log qᵀ], by quadrature."""
    model: Any = differentiable(flow(dim=1, bins=2, shift=0.0))
    y = torch.linspace(-8, 8, 4001, dtype=torch.float64)[:, None]
    weight = model.log_probs(model.parameters(), (y,)).exp() * 16 / 4000
    sides = [rows_of(model, lambda p, b, k=k: model._to_noise(p, b[0])[k].sum(-1), (y,)) for k in (0, 1)]
    gauss = sum(((rows * weight[:, None]).T @ rows for rows in sides), torch.zeros(()))
    scores = rows_of(model, model.log_probs, (y,))
    fisher = (scores * weight[:, None]).T @ scores
    assert relative(gauss, fisher) < 1e-9


def test_curvature_of_a_diffusion_network() -> None:
    """⟨h, v⟩ is normal with variance vᵀGv = (2/P)|Jv|² exactly, so the sum of squares over it is chi-squared; false alarm 2e-6."""
    network = diffusion()
    model: Any = differentiable(network)
    theta, num = model.parameters(), 300
    images = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8, generator=seeded(1)).expand(num, -1, -1, -1)
    batch = model.curvature_batch(torch.ones(num, dtype=torch.int64), images, seeded(2))
    batch = tuple(part if i == 3 else part[:1].expand_as(part) for i, part in enumerate(batch))  # one level and noise
    v = direction(theta)
    with network.derivatives():
        _, slope = torch.func.jvp(
            lambda values: model._predict(values, batch[4][:1], batch[0][:1], batch[1][:1], batch[2][:1])[0],
            (theta,),
            (dict(zip(theta, _split(theta, v), strict=True)),),
        )
    exact = 2 / slope.numel() * float(slope.square().sum())
    found = products(model.curvature_terms, theta, batch, v, 32).double()
    low, high = chi2.ppf([1e-6, 1 - 1e-6], num)
    assert low < float(found.square().sum()) / exact < high
    # the same G is the loss's second derivative but for the residual's part
    rows = rows_of(model, model.curvature_terms, tuple(part[:3] for part in batch))
    assert relative((rows @ v).double(), found[:3]) < 1e-3


def _split(theta: dict[str, Tensor], v: Tensor) -> list[Tensor]:
    parts = v.split([value.numel() for value in theta.values()])
    return [part.view_as(value) for part, value in zip(parts, theta.values(), strict=True)]


# --- language models: one base, several adapters --------------------------------------------------------------------


def test_models_on_one_base_take_turns_inside_derivatives() -> None:
    """Switching adapters within torch.func's transforms, also where the other model was used last."""
    found = models("pq", attention="sdpa")
    for seed, network in enumerate(found.values()):
        move(network, 0.2, seed)
    adapters = {name: differentiable(network) for name, network in found.items()}
    batches = {name: model.loss_batch(PROMPTS, ANSWERS, seeded()) for name, model in adapters.items()}
    alone = {name: rows_of(model, model.losses, batches[name]) for name, model in adapters.items()}
    for turn in ("p", "q", "p"):
        model, other = adapters[turn], found["q" if turn == "p" else "p"]
        other.probe()
        assert torch.equal(rows_of(model, model.losses, batches[turn]), alone[turn])
        v = direction(model.parameters())
        other.probe()
        assert relative(products(model.losses, model.parameters(), batches[turn], v, 4), alone[turn] @ v) < 1e-3
    assert relative(alone["p"], alone["q"]) > 0.1
    assert all(v.requires_grad for network in found.values() for v in network.parameters().values())


def test_dropout_plays_no_part() -> None:
    network = models("p", lora=Lora(rank=2, alpha=4, dropout=0.5))["p"]
    move(network, 0.2)
    model = differentiable(network)
    batch = model.loss_batch(PROMPTS, ANSWERS, seeded())
    calm, want = rows_of(model, model.losses, batch), network.losses(PROMPTS, ANSWERS)
    network.train(True)
    assert torch.equal(rows_of(model, model.losses, batch), calm)
    torch.testing.assert_close(model.losses(model.parameters(), batch), want.detach())
    with pytest.raises(SettingError, match="dropout is on"):
        network.losses(PROMPTS, ANSWERS)


def test_attention_code_makes_no_difference() -> None:
    found = []
    for attention in ("eager", "sdpa"):
        network = models("p", attention=attention)["p"]
        move(network, 0.2)
        model = differentiable(network)
        before = network.log_prob(PROMPTS, ANSWERS).detach()
        rows = rows_of(model, model.losses, model.loss_batch(PROMPTS, ANSWERS, seeded()))
        found.append(rows)
        assert network.base.network.config._attn_implementation == attention
        assert torch.equal(network.log_prob(PROMPTS, ANSWERS).detach(), before)
    assert relative(found[0], found[1]) < 1e-4


@pytest.mark.parametrize("lora", [Lora(rank=2, alpha=4), None])
def test_bfloat16_networks_have_float32_derivatives(lora: Lora | None) -> None:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        network = models("p", lora=lora, dtype=dtype, attention="sdpa")["p"]
        move(network, 0.2 if lora else 0.01)
        model = differentiable(network)
        batch = model.loss_batch(PROMPTS, ANSWERS, seeded())
        rows.append(rows_of(model, model.losses, batch))
        v = direction(model.parameters())
        along = products(model.losses, model.parameters(), batch, v, 4)
        assert rows[-1].dtype == along.dtype == torch.float32
        assert relative(along, rows[-1] @ v) < (1e-3 if dtype == torch.float32 else 0.05)
    assert 0 < relative(rows[1], rows[0]) < 0.1


def test_bfloat16_diffusion_has_the_derivatives_of_float32() -> None:
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        network = diffusion(dtype=dtype)
        model = differentiable(network)
        images = torch.randint(0, 256, (NUM, 3, 8, 8), dtype=torch.uint8, generator=seeded(1))
        batch, before = model.loss_batch(PROMPTS, images, seeded(3)), network.losses(PROMPTS, images, seeded(3))
        rows.append(rows_of(model, model.losses, batch))
        v = direction(model.parameters())
        assert relative(products(model.losses, model.parameters(), batch, v, 4), rows[-1] @ v) < 1e-3
        assert torch.equal(network.losses(PROMPTS, images, seeded(3)), before)
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(before.detach(), model.losses(model.parameters(), batch))  # training rounds


# --- language models: what is sampled -------------------------------------------------------------------------------


def by_hand(network: LanguageModel, prompt: int, tokens: list[int], temperature: float, top_p: float) -> float:
    """Token by token, over a list that is sorted anew each time."""
    total, ids = 0.0, network.tokens.prompt(prompt)
    for k, token in enumerate(tokens):
        with torch.no_grad():
            logits = network.base.use("p")(input_ids=torch.tensor([ids + tokens[:k]])).logits[0, -1].double()
        share = (logits / temperature).softmax(-1).tolist()
        kept: list[int] = []
        for i in sorted(range(len(share)), key=lambda i: -share[i]):
            if sum(share[j] for j in kept) >= top_p:
                break
            kept.append(i)
        drawn = network.tokens.stop if token == network.tokens.end else [token]
        total += math.log(sum(share[i] for i in kept if i in drawn) / sum(share[i] for i in kept))
    return total


@pytest.mark.parametrize(
    ("temperature", "top_p", "stops"), [(0.9, 0.95, 20), (0.9, 0.95, 0), (1.3, 0.5, 60), (0.7, 1.0, 20)]
)
def test_log_probabilities_are_those_of_sampling(temperature: float, top_p: float, stops: int) -> None:
    network = language(stops, temperature=temperature, top_p=top_p)
    model = differentiable(network)
    answers = network.sample(torch.arange(3), torch.tensor([4, 4, 4]), seeded(), temperature=0.8)
    prompts = torch.arange(3).repeat_interleave(4)
    found = model.log_probs(model.parameters(), model.score_batch(prompts, answers), 0.8)
    tokens = network.tokens.remembered(answers)
    if stops:
        assert len({len(ids) for ids in tokens}) > 2
    want = [by_hand(network, int(x), ids, 0.8 * temperature, top_p) for x, ids in zip(prompts, tokens, strict=True)]
    assert found.tolist() == pytest.approx(want, rel=1e-4, abs=1e-4)


def test_derivatives_of_the_sampled_log_probability() -> None:
    """Across the nucleus's edge nothing is differentiated: each mode agrees with differences at a small step."""
    network = language(stops=20, temperature=0.9, top_p=0.6)
    model: Any = differentiable(network)
    theta, prompts = model.parameters(), torch.arange(3).repeat_interleave(4)
    answers = network.sample(torch.arange(3), torch.tensor([4, 4, 4]), seeded())
    batch = model.score_batch(prompts, answers)
    v, rows, h = direction(theta), rows_of(model, model.log_probs, batch), 1e-3
    along = products(model.log_probs, theta, batch, v, 5, model.chunks)
    assert relative(along, rows @ v) < 1e-3
    ends = [model.log_probs(stepped(theta, v, s * h), batch) for s in (1, -1)]
    error = ((ends[0] - ends[1]) / (2 * h) - along).abs() / along.abs().mean()
    assert float(error.median()) < 1e-2  # an answer whose nucleus changes within the step jumps
    weights = torch.ones(len(answers))
    twice = hessian_product(model.log_probs, theta, batch, weights, v, 5)
    slopes = [weighted_gradient(model.log_probs, theta, batch, weights, size) for size in (5, 12)]
    assert bool(twice.isfinite().all())
    assert relative(slopes[0], slopes[1]) < 1e-4
    none = model.score_batch(prompts[:0], [])
    assert list(model.chunks(none, 4)) == []
    assert products(model.log_probs, theta, none, v, 4, model.chunks).shape == (0,)


def test_without_temperature_and_nucleus_it_is_the_models_own() -> None:
    network = language(stops=20)
    model = differentiable(network)
    answers = network.sample(torch.arange(3), torch.tensor([2, 2, 2]), seeded())
    prompts = torch.arange(3).repeat_interleave(2)
    found = model.log_probs(model.parameters(), model.score_batch(prompts, answers))
    torch.testing.assert_close(found, network.log_prob(prompts, answers).detach())


def test_scores_of_sampled_answers_have_mean_zero() -> None:
    """Along the direction that scales all logits, where temperature and nucleus show, and along two at random.

    z is normal: |z| < 4.5 for all three fails by chance in 2e-5 of cases. Along the first, the log-probability at temperature 1 without a
    nucleus, or with it but without the temperature, or the reverse, have |z| > 5 on the same draws: the test can tell.
    """
    network = language(stops=20, lora=None, temperature=0.9, top_p=0.95)
    model: Any = differentiable(network)
    theta, prompts = model.parameters(), torch.arange(4)
    drawn = network.sample(prompts, torch.full((4,), 600), seeded(1), batch_size=600)
    batch = model.score_batch(prompts.repeat_interleave(600), drawn)
    scale = torch.cat([value.flatten() * (name == "model.norm.weight") for name, value in theta.items()])
    assert bool(scale.any())

    def z(fn: Any, v: Tensor) -> float:
        found = products(fn, theta, batch, v, 200, model.chunks).double()
        return float(found.mean() / found.std() * math.sqrt(len(found)))

    def plain(parameters: Any, batch: Any) -> Tensor:
        return network.log_prob_of(Batch(*batch), parameters)

    def hot(parameters: Any, batch: Any) -> Tensor:
        return model.log_probs(parameters, batch, 1 / 0.9)

    whole = differentiable(language(stops=20, lora=None, temperature=0.9)).log_probs

    for v in [scale, *(direction(theta, seed) for seed in range(2))]:
        assert abs(z(model.log_probs, v)) < 4.5
    for wrong in (plain, hot, whole):
        assert abs(z(wrong, scale)) > 5


# --- language models: curvature -------------------------------------------------------------------------------------


def test_curvature_of_a_language_model() -> None:
    """E⟨h, v⟩² against Σ_t (J_t v)ᵀ(diag p_t − p_t p_tᵀ)(J_t v), with all end tokens as one.

    1200 draws; four directions within 5 standard errors of the draws, which are below 8 %: false alarm 2e-6 for normal errors.
    """
    network = language(stops=20)
    model: Any = differentiable(network)
    theta, num, answer = model.parameters(), 1200, ["counts things"]
    one = model.loss_batch(torch.tensor([2]), answer, seeded())
    places = int(one[3].sum())
    batch = model.curvature_batch(torch.full((num,), 2), answer * num, seeded(5))
    assert all(
        torch.equal(part, mine.expand_as(part)) for k, (part, mine) in enumerate(zip(batch, one, strict=True)) if k != 1
    )
    assert not set(batch[1].flatten().tolist()) & set(network.tokens.stop[1:])

    def log_p(values: Any) -> Tensor:
        """(places, classes): all tokens that end an answer together, in the place of the first."""
        logits = network.answer_logits(Batch(*one), values)[0, :places].log_softmax(-1)
        stop = network.tokens.stop
        together = logits[:, stop].logsumexp(-1, keepdim=True)
        return torch.cat([together, logits[:, [i for i in range(logits.shape[1]) if i not in stop]]], 1)

    for seed in range(4):
        v = direction(theta, seed)
        values, slope = torch.func.jvp(log_p, (theta,), (dict(zip(theta, _split(theta, v), strict=True)),))
        exact = float((values.exp() * slope.square()).sum())  # E_p[slope] = 0 place by place
        square = products(model.curvature_terms, theta, batch, v, 100).double().square()
        error = float(square.std()) / math.sqrt(num)
        assert error < 0.08 * exact
        assert abs(float(square.mean()) - exact) < 5 * error
