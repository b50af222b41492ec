r"""Derivatives of language models: the loss as they are trained, and the score of answers as they are sampled.

An answer is drawn token by token from softmax(logits/T), cut to a nucleus N_t and normalised there. With the end token standing for
all tokens that end an answer,

    log q_T(a | x; θ) = Σ_t [ log Σ_{i ∈ a_t ∩ N_t} exp(z_{t,i}/T) − log Σ_{i ∈ N_t} exp(z_{t,i}/T) ],

and it is the gradient of this, at fixed N_t, whose mean over sampled answers is zero. That of the plain log-probability at T = 1 is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import torch
from torch import Tensor

from crossfeed.errors import NotAvailableError
from crossfeed.estimate.base import Batch as Fields
from crossfeed.estimate.base import Parameters
from crossfeed.estimate.derivatives import rows_at_once
from crossfeed.networks.base import Outputs
from crossfeed.networks.generate import draw
from crossfeed.networks.language import LanguageModel
from crossfeed.networks.tokens import Batch

_MOST = 16
ACTIVATIONS = 2 << 30
"""Bytes of activations, about, that samples which are gone through together may take; one sample may take more."""


class DifferentiableLanguage:
    """A :class:`~crossfeed.networks.language.LanguageModel` as a :class:`~crossfeed.estimate.base.Differentiable`.

    Batches are the four tensors of :class:`crossfeed.networks.tokens.Batch`, padded to the longest; :meth:`chunks` takes the padding away.
    θ is this model's adapter alone where it has one, whatever other adapters are on the same base. Dropout is off. Attention is
    written out while derivatives are taken (sdpa's fused kernels have none beyond the first), and nothing of the network is changed.

    Losses are those of the words as the tokenizer writes them, log-probabilities those of the tokens that were sampled, so that the
    two have different gradients even at temperature 1 and without a nucleus.

    Precision: parameters and results are float32. With a bfloat16 base forward passes run under autocast, as in training, and
    derivatives carry its rounding (relative 2⁻⁸ a product): products with the same gradients, worked out in different modes, agree to
    about 1e-2 only, and sampling, which rounds otherwise, is not quite the distribution that the score is of.

    Args:
        network: The language model.
        chunk: Samples whose gradients are worked out at once; None: as many as 256 MiB of gradients hold, at most 16.
    """

    capabilities = LanguageModel.capabilities
    loss_is_score = False
    smooth_in_outputs = False  # tokens are discrete

    def __init__(self, network: LanguageModel, chunk: int | None = None) -> None:
        self.name, self.device, self._network = network.name, network.device, network
        self.chunk = rows_at_once(self.parameters(), _MOST) if chunk is None else chunk

    def parameters(self) -> dict[str, Tensor]:
        """What this model trains, detached; it shares memory with the network and follows it when that is trained or loaded."""
        return {name: value.detach() for name, value in self._network.parameters().items()}

    def loss_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator) -> Fields:
        """Answers as the tokenizer writes them; nothing is random."""
        return self._fields(prompts, self._network.tokens.answers(_texts(outputs)))

    def losses(self, parameters: Parameters, batch: Fields) -> Tensor:
        """−log q at temperature 1, without a nucleus, (n,)."""
        return -self._network.log_prob_of(Batch(*batch), parameters)

    def score_batch(self, prompts: Tensor, outputs: Outputs) -> Fields:
        """Answers by the tokens that they were sampled as; texts that remember none are tokenised."""
        return self._fields(prompts, self._network.tokens.remembered(_texts(outputs)))

    def log_probs(self, parameters: Parameters, batch: Fields, temperature: float = 1.0) -> Tensor:
        """Log-probability (n,) under which answers are sampled: the family's temperature times this one, its top_p, its end tokens.

        The nucleus is worked out at the given parameters and held fixed under derivatives. A token that was sampled counts as inside it
        with all that are more probable, as rounding may have put the edge elsewhere; so of answers that this model would never
        sample the value is too large, rather than −∞. The nucleus takes a sort of the logits, three times their room.
        """
        fields, sampling = Batch(*batch), self._network.sampling
        logits = self._network.answer_logits(fields, parameters) / (sampling.temperature * temperature)
        stop = torch.tensor(sampling.stop, device=logits.device)
        ending = fields.targets == self._network.tokens.end
        if sampling.top_p < 1:
            likeliest = stop[logits.detach()[..., stop].argmax(-1)]
            drawn = torch.where(ending, likeliest, fields.targets)
            # finite, as the logarithm of nothing would spoil derivatives even where it is not used
            logits = logits.masked_fill(
                _outside(logits.detach(), drawn, sampling.top_p), torch.finfo(logits.dtype).min / 4
            )
        picked = logits.gather(-1, fields.targets[..., None]).squeeze(-1)
        picked = torch.where(ending, logits[..., stop].logsumexp(-1), picked)
        return ((picked - logits.logsumexp(-1)) * fields.answer).sum(-1)

    def noise(self, num: int, generator: torch.Generator) -> Tensor:
        """Not available: raises NotAvailableError."""
        self._no_sampler()

    def rsample(self, parameters: Parameters, prompts: Tensor, noise: Tensor, *, evaluating: bool = False) -> Tensor:
        """Not available: raises NotAvailableError."""
        self._no_sampler()

    def replace_outputs(self, batch: Fields, outputs: Tensor) -> Fields:
        """Not available: raises NotAvailableError."""
        self._no_sampler()

    @torch.no_grad()
    def curvature_batch(self, prompts: Tensor, outputs: Outputs, generator: torch.Generator) -> Fields:
        """The loss batch with each token of an answer drawn anew from the model, after the answer's own tokens before it.

        So the model is asked at the places of ``outputs``, and with p_t its probabilities and J_t its logits' Jacobian there,

            E[h hᵀ] = Σ_t J_tᵀ (diag p_t − p_t p_tᵀ) J_t,

        exactly the generalised Gauss–Newton matrix of the loss on these samples. Whole answers drawn anew would give that of the
        loss on the model's own answers instead.
        """
        batch = self.loss_batch(prompts, outputs, generator)
        targets, parameters = batch[1].clone(), self.parameters()
        uniforms = torch.rand(targets.shape, dtype=torch.float64, generator=generator, device=generator.device)
        stop = torch.tensor(self._network.tokens.stop, device=self.device)
        for index, part in self.chunks(batch, self.chunk):
            logits = self._network.answer_logits(Batch(*part), parameters)
            index, long = index.to(self.device), logits.shape[1]
            drawn = draw(logits.flatten(0, 1), uniforms.to(self.device)[index, :long].flatten(), 1.0, 1.0)
            drawn = torch.where(torch.isin(drawn, stop), self._network.tokens.end, drawn)
            targets[index, :long] = drawn.view(-1, long)
        return (batch[0], targets, *batch[2:])

    def curvature_terms(self, parameters: Parameters, batch: Fields) -> Tensor:
        """Log-probability of the drawn tokens, (n,)."""
        return self._network.log_prob_of(Batch(*batch), parameters)

    def chunks(self, batch: Fields, chunk: int) -> Iterator[tuple[Tensor, Fields]]:
        """Samples of like length together, without the padding that these do not need, and no more than :data:`ACTIVATIONS` allows.

        A ``split`` for derivatives.

        Yields:
            (m,) int64 on the CPU, which samples these are; and their fields, of which derivatives are the same as before.
        """
        inputs, targets, places, answer = batch
        if not len(inputs):
            return
        sizes = answer.sum(1).long().cpu()
        lengths = (places + 1).amax(1).cpu()
        order = torch.argsort(lengths, stable=True)
        for index in order.split(self._together(lengths[order].tolist(), chunk)):
            here = index.to(inputs.device)
            most, size = int(lengths[index].max()), int(sizes[index].max())
            yield index, (inputs[here, :most], targets[here, :size], places[here, :size], answer[here, :size])

    def _together(self, lengths: list[int], chunk: int) -> list[int]:
        """How many of the samples, in the order of their lengths, are gone through at once, part by part."""
        parts, count = [], 0
        for length in lengths:
            if count and (count == chunk or (count + 1) * self._activations(length) > ACTIVATIONS):
                parts.append(count)
                count = 0
            count += 1
        return [*parts, count]

    def _activations(self, length: int) -> int:
        """Bytes that a sample of so many tokens keeps on its way, about.

        Layers times 17 T width + 5/2 heads T² numbers (Korthikanti et al. 2022, their bytes at two a number), of 4 bytes, twice
        for what derivatives of derivatives keep.
        """
        config = self._network.base.network.config
        width, layers, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
        return int(8 * layers * (17 * length * width + 2.5 * heads * length**2))

    def _fields(self, prompts: Tensor, answers: list[list[int]]) -> Fields:
        batch = self._network.tokens.batch(prompts, answers, self.device)
        return (batch.inputs, batch.targets, batch.places, batch.answer)

    def _no_sampler(self) -> NoReturn:
        raise NotAvailableError(
            f"models.{self.name}: a language model's outputs are no differentiable function of anything; use its likelihood"
        )


def _outside(logits: Tensor, drawn: Tensor, top_p: float) -> Tensor:
    """(…, tokens) bool: tokens outside the nucleus, which is as :func:`crossfeed.networks.generate.draw` cuts it, or up to ``drawn``."""
    mass = (logits - logits.amax(-1, keepdim=True)).exp()
    ordered = mass.sort(-1, descending=True).values
    upto, needed = ordered.double().cumsum(-1), top_p * mass.sum(-1, keepdim=True).double()
    last = (upto < needed).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
    edge = torch.minimum(ordered.gather(-1, last), mass.gather(-1, drawn[..., None]))
    return mass < edge


def _texts(outputs: Outputs) -> list[str]:
    if not isinstance(outputs, list):
        raise TypeError("language models take texts as outcomes")
    return outputs
