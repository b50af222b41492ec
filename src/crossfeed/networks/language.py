r"""Language models of transformers as networks of an ecosystem, trained whole or by low-rank adapters on a shared base.

The model is a distribution on token sequences a_1 … a_m that end with the end token, or have ``max_new_tokens`` tokens:

    log q(a | x; θ) = Σ_t log softmax(logits(x, a_1 … a_{t−1}; θ))_{a_t},        ℓ(θ; z) = −log q(a | x; θ),

the loss on the answer only. Low-rank adapters: Hu et al. 2022, W + (α/r) B A with W frozen.

Outcomes are texts, and models are trained on the tokens that the tokenizer gives a text. One text can be written in several ways as
tokens, and a model may sample another way than the tokenizer's. So sampled texts remember their tokens, and the
log-probability of a sampled text is that of its tokens: the score, its gradient, has mean zero exactly. A text that comes from
a file remembers nothing and is tokenised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from crossfeed.describe.network_nodes import CausalLM
from crossfeed.errors import CheckFailedError, CrossfeedError, DataError, NotAvailableError, SettingError
from crossfeed.networks.base import LIKELIHOOD, Advance, Outputs
from crossfeed.networks.bases import Base, copy_into, share_key
from crossfeed.networks.fresh import fresh_network, fresh_tokenizer
from crossfeed.networks.generate import Sampling, first_logits, generate
from crossfeed.networks.pretrained import open_pretrained
from crossfeed.networks.randomness import child_seed
from crossfeed.networks.tokens import Batch, Tokens
from crossfeed.networks.world import World

_PROBES = 2


def build_all(
    families: Mapping[str, CausalLM],
    world: World,
    seeds: Mapping[str, int],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> dict[str, LanguageModel]:
    """Make the language models of an ecosystem; those with adapters on the same base share one copy of it.

    Args:
        families: By model name.
        world: The open world, for prompts and, with ``fresh``, for the vocabulary.
        seeds: Of the parameters, by model name. The base of fresh networks with adapters depends on the ecosystem's seed instead.
        device: Where the parameters go.
        dtype: bfloat16 keeps the frozen base in it and runs forward passes under autocast; what is trained is float32.

    Raises:
        DataError: a model cannot be opened or used; says why.
        NotAvailableError: transformers, peft or another library is missing.
    """
    device = torch.device(device)
    shared: dict[str, Base] = {}
    models: dict[str, LanguageModel] = {}
    for name, family in families.items():
        key = share_key(family) if family.lora is not None else f"alone: {name}"
        if key not in shared:
            seed = seeds[name] if family.lora is None else child_seed(world.eco.seed, 0, None, "base")
            network, tokenizer = _open(name, family, world, seed)
            shared[key] = Base(network, tokenizer, device, dtype, frozen=family.lora is not None)
        base = shared[key]
        if family.lora is not None:
            base.add(name, family.lora, seeds[name])
            if family.adapter is not None:
                base.read_adapter(name, family.lora, family.adapter)
        elif family.adapter is not None:
            raise DataError(
                f"models.{name}.family.adapter: found an adapter without `lora`; need `lora` with its sizes"
            )
        models[name] = LanguageModel(name, family, base, world)
    return models


class LanguageModel:
    """One language model of an ecosystem.

    Args:
        name: The model's name in the spec.
        family: What it is.
        base: The network in memory.
        world: Its prompts are the run's.

    Attributes:
        base: The network in memory, shared by all models with the same base.
        tokens: From words to tokens and back.
        sampling: How answers are drawn, at temperature factor 1.
    """

    capabilities = frozenset({LIKELIHOOD})

    def __init__(self, name: str, family: CausalLM, base: Base, world: World) -> None:
        self.name, self.family, self.base = name, family, base
        self.device = base.device
        prompts = world.prompts
        ends = getattr(base.network.generation_config, "eos_token_id", None)
        stop = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        self.tokens = Tokens(name, family, base.tokenizer, prompts.texts, prompts.inputs, stop)
        self.sampling = Sampling(
            family.max_new_tokens, self.tokens.stop, self.tokens.pad, family.temperature, family.top_p
        )
        self._probes = range(min(_PROBES, len(prompts)))
        self._training = False
        self._random = _has_dropout(base, family)
        self._check_context()

    def parameters(self) -> dict[str, Tensor]:
        """What is trained, live: the adapter's weights under the names of a peft file, or the whole network's."""
        return self.base.parameters(self.name)

    def load(self, parameters: dict[str, Tensor]) -> None:
        """Copy these values into the trained parameters.

        Raises:
            DataError: names or shapes differ; says which.
        """
        copy_into(self.parameters(), parameters, f"models.{self.name}")

    def train(self, mode: bool) -> None:
        """Switch dropout on or off."""
        self._training = mode

    def lengths(self, prompts: Tensor, outputs: Outputs) -> Tensor:
        """Tokens of prompt and answer, (n,)."""
        return self.tokens.lengths(prompts, _texts(outputs))

    def losses(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator | None = None) -> Tensor:
        """−log q of each answer, as the tokenizer writes it, (n,) float32; random where there is dropout, by ``generator``.

        Raises:
            SettingError: dropout is on and there is no generator.
        """
        answers = self.tokens.answers(_texts(outputs))
        if not (self._training and self._random):
            return -self.log_prob_tokens(prompts, answers)
        if generator is None:
            raise SettingError(f"models.{self.name}: dropout is on; need a generator to draw it, or `train(False)`")
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)  # torch's dropout takes no generator
            return -self.log_prob_tokens(prompts, answers)

    def log_prob(self, prompts: Tensor, outputs: Outputs) -> Tensor:
        """Log q(y | x; θ) of each answer, (n,) float32: the sum over its tokens and the end token.

        An answer of ``max_new_tokens`` tokens or more counts as its first so many, without an end token: so sampling leaves it.
        Sampled answers count by the tokens they were sampled as.

        This is the model itself, temperature 1 and no nucleus. Answers sampled at another temperature or with top_p < 1 come from
        another distribution, whose likelihood this is not.
        """
        return self.log_prob_tokens(prompts, self.tokens.remembered(_texts(outputs)))

    def log_prob_tokens(self, prompts: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
        """The same for answers given as tokens, with their end token (:meth:`Tokens.closed`)."""
        return self.log_prob_of(self.tokens.batch(prompts, answers, self.device))

    def log_prob_of(self, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """The same for a batch of tokens; a pure function of the parameters when they are given.

        Args:
            batch: From :meth:`Tokens.batch`.
            parameters: Used instead of the live ones, as in :meth:`answer_logits`.
        """
        logits = self.answer_logits(batch, parameters)
        picked = logits.gather(-1, batch.targets[..., None]).squeeze(-1)
        if len(self.tokens.stop) > 1:  # any of them ends an answer
            ended = logits[..., self.tokens.stop].logsumexp(-1)
            picked = torch.where(batch.targets == self.tokens.end, ended, picked)
        return ((picked - logits.logsumexp(-1)) * batch.answer).sum(-1)

    def answer_logits(self, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (n, k, tokens) float32 from which each token of the answers is predicted.

        With ``parameters`` a pure function of them, without dropout, that works under torch.func's grad, vmap, jvp and their
        compositions: attention is then written out, as the fused kernels have neither forward-mode nor second derivatives.

        Args:
            batch: From :meth:`Tokens.batch`.
            parameters: Used instead of the live ones, by the names of :meth:`parameters`.
        """
        network = self.base.use(self.name, self._training and parameters is None)
        keep = batch.places if self.base.gathers else 0
        fields = {"input_ids": batch.inputs, "use_cache": False, "logits_to_keep": keep}
        with torch.autocast(self.device.type, self.base.dtype, enabled=self.base.dtype != torch.float32):
            if parameters is None:
                logits = network(**fields).logits
            else:
                inside = {self.base.inside(self.name, key): value for key, value in parameters.items()}
                with self.base.plain_attention():
                    logits = torch.func.functional_call(network, inside, (), fields).logits
        if not self.base.gathers:
            logits = torch.take_along_dim(logits, batch.places[..., None], dim=1)
        return logits.float()

    def sample(
        self,
        prompts: Tensor,
        candidates: Tensor,
        generator: torch.Generator,
        *,
        temperature: float = 1.0,
        evaluating: bool = False,
        batch_size: int = 64,
        advance: Advance | None = None,
    ) -> list[str]:
        """``candidates[i]`` answers to prompt i, all of prompt 0 first.

        The family's temperature times ``temperature``, and its top_p. A prompt is read once for all its answers. Answers do not
        depend on ``batch_size`` or on each other, beyond rounding.

        Raises:
            CheckFailedError: the network's numbers are not finite.
            CrossfeedError: out of memory; names what to lower.
        """
        found = self.sample_tokens(
            prompts, candidates, generator, temperature=temperature, batch_size=batch_size, advance=advance
        )
        return [*self.tokens.sampled(found)]

    def sample_tokens(
        self,
        prompts: Tensor,
        candidates: Tensor,
        generator: torch.Generator | None,
        *,
        temperature: float = 1.0,
        batch_size: int = 64,
        advance: Advance | None = None,
    ) -> list[list[int]]:
        """The same as tokens, without end tokens; without a generator, the most probable token each time."""
        how = Sampling(
            self.sampling.max_new_tokens,
            self.sampling.stop,
            self.sampling.pad,
            self.sampling.temperature * temperature,
            self.sampling.top_p,
        )
        indices, counts = prompts.tolist(), candidates.tolist()
        uniforms = None
        if generator is not None:
            shape = (sum(counts), how.max_new_tokens)
            uniforms = torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device).cpu()
        known: dict[int, int] = {}
        for index in indices:  # prompts that come several times are read once
            known.setdefault(index, len(known))
        totals, places = [0] * len(known), []
        for index, count in zip(indices, counts, strict=True):
            places += [(known[index], totals[known[index]] + k) for k in range(count)]
            totals[known[index]] += count
        starts = list(accumulate(totals, initial=0))
        slots = [starts[owner] + k for owner, k in places]
        ordered = None
        if uniforms is not None:
            ordered = torch.empty_like(uniforms)
            ordered[slots] = uniforms
        try:
            with self.base.generating(self.name) as network:
                ids = [self.tokens.prompt(index) for index in known]
                found = generate(network, ids, totals, ordered, how, batch_size=batch_size, advance=advance)
        except CheckFailedError as error:
            raise CheckFailedError(
                f"models.{self.name}: {error} while generating; lower train.learning_rate or use --dtype float32"
            ) from None
        except torch.OutOfMemoryError:
            raise CrossfeedError(
                f"run.generation_batch: {batch_size} outputs of models.{self.name} at once do not fit into the memory of "
                f"{self.device}; set run.generation_batch: {max(1, batch_size // 2)}"
            ) from None
        return [found[slot] for slot in slots]

    def rsample(self, prompts: Tensor, noise: Tensor) -> Tensor:
        """Not possible: words are no differentiable function of anything.

        Raises:
            NotAvailableError: always.
        """
        raise NotAvailableError(
            f"models.{self.name}: language models have no reparameterised samples; their capability is `likelihood`"
        )

    def probe(self) -> Tensor:
        """Logits after the run's first prompts and one token more, by the path that generates; float32 on the CPU."""
        return self._probe(self.name)

    def base_probe(self) -> Tensor | None:
        """The same without the adapter; None where every parameter is trained."""
        return self._probe(None) if self.base.frozen else None

    def _probe(self, model: str | None) -> Tensor:
        prompts = [self.tokens.prompt(i) for i in self._probes] or [[self.tokens.end]]
        with self.base.generating(model) as network:
            return first_logits(network, prompts, self.tokens.end, self.tokens.pad).flatten().cpu()

    def _check_context(self) -> None:
        longest = getattr(self.base.network.config.get_text_config(), "max_position_embeddings", None)
        asked = self.family.max_prompt_tokens + self.family.max_new_tokens
        if isinstance(longest, int) and asked > longest:
            raise DataError(
                f"models.{self.name}.family: found max_prompt_tokens + max_new_tokens = {asked:,}; need at most {longest:,}, the "
                "context of this model"
            )


def _open(name: str, family: CausalLM, world: World, seed: int) -> tuple[Any, Any]:
    """A network on the CPU and its tokenizer."""
    if family.pretrained is not None:
        return open_pretrained(f"models.{name}.family", family.pretrained, family.gguf_file, family.attention)
    if family.fresh is None:
        raise DataError(f"models.{name}.family: found neither `pretrained` nor `fresh`; need one of them")
    texts = list(world.prompts.texts)
    for data in world.data.values():
        texts += data.outputs if isinstance(data.outputs, list) else []
        texts += data.rejected
    tokenizer = fresh_tokenizer(texts, family.fresh.vocabulary)
    return fresh_network(family.fresh, tokenizer, seed, family.attention), tokenizer


def _has_dropout(base: Base, family: CausalLM) -> bool:
    """Whether training draws random numbers."""
    if family.lora is not None and family.lora.dropout > 0:
        return True
    modules = base.network.modules()
    rates = [getattr(module, name, 0.0) for module in modules for name in ("p", "dropout", "attention_dropout")]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _texts(outputs: Outputs) -> list[str]:
    if not isinstance(outputs, list):
        raise TypeError("language models take texts as outcomes")
    return outputs
