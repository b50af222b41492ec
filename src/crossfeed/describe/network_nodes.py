"""Spec nodes of real networks: text as outcomes, data, rewards, families, training and the run itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from crossfeed.describe.arrays import FINITE, Array, Columns, Count, Number, Positive, Share
from crossfeed.describe.node import File, Name, Node, Pretrained

NonNegative = Annotated[float, Field(ge=0), FINITE]
Decay = Annotated[float, Field(ge=0, lt=1), FINITE]
Whole0 = Annotated[int, Field(ge=0), FINITE]
Even = Annotated[int, Field(ge=2, multiple_of=2), FINITE]


class Text(Node):
    """Outcomes are answers in words to prompts in words."""

    kind: Literal["text"] = "text"


# --- data -----------------------------------------------------------------------------------------------------------


class MixtureData(Node):
    """A mixture of Gaussians, drawn afresh each time (vectors)."""

    kind: Literal["mixture"] = "mixture"
    means: Columns = Field(description="(components, dim)")
    std: Positive = Field(description="Standard deviation of every component, the same in all directions.")
    weights: Array | None = Field(default=None, description="(components,) nonnegative, normalised; null for equal.")


class TextsData(Node):
    """A table of texts: inputs, and answers where there are any."""

    kind: Literal["texts"] = "texts"
    file: File = Field(description="Parquet, JSONL or CSV, or `hub:NAME:SPLIT` (`hub:NAME:CONFIG:SPLIT`).")
    input_column: str = Field(default="input", description="Column of the inputs.")
    answer_column: str | None = Field(default=None, description="Column of the answers; null: inputs only.")
    template: str = Field(default="{input}", description="The prompt a model sees; `{input}` stands for the input.")
    strip: str | None = Field(
        default=None, description="Regular expression; what it matches at the beginning of an input is taken off."
    )
    where: dict[str, str] = Field(
        default_factory=dict, description="Only rows with this text in this column, e.g. {task: paraphrase}."
    )
    rows: Count | None = Field(
        default=None, description="Use this many rows, drawn with the spec's seed; null for all."
    )


class PreferencesData(Node):
    """Picks that people made: prompt, chosen and rejected, in TRL's preference format (text or chat messages).

    A prompt of one message is its content, a longer one becomes paragraphs `role: content`; an answer is one message.
    """

    kind: Literal["preferences"] = "preferences"
    file: File = Field(description="Parquet, JSONL or CSV, or `hub:NAME:SPLIT`.")
    prompt_column: str = Field(default="prompt", description="Column of the prompts.")
    chosen_column: str = Field(default="chosen", description="Column of the answers that were picked.")
    rejected_column: str = Field(default="rejected", description="Column of the answers that were not.")
    rows: Count | None = Field(
        default=None, description="Use this many rows, drawn with the spec's seed; null for all."
    )


# --- rewards --------------------------------------------------------------------------------------------------------


class SummaryReward(Node):
    """What people who want short summaries like (the paper's language experiment, p).

    length_weight · exp(−|words − length|/width) + coverage_weight · coverage of the source's `top_words` most frequent words −
    copy_weight · share of the answer's 4-grams that the source has.
    """

    kind: Literal["summary"] = "summary"
    length: Positive = Field(default=12.0, description="Best length in words.")
    width: Positive = Field(default=2.0, description="Words off that cost a factor e.")
    top_words: Count = Field(default=20, description="Most frequent words of the source that should be covered.")
    length_weight: Number = Field(default=0.55, description="Weight of the length.")
    coverage_weight: Number = Field(default=0.55, description="Weight of the coverage.")
    copy_weight: Number = Field(default=0.60, description="Weight of what is copied; subtracted.")


class ParaphraseReward(Node):
    """What people who want formal paraphrases like (the paper's language experiment, q).

    length_weight · exp(−|words/source words − 1|/length_width) + formality_weight · (1 − contractions per word) +
    copy_weight · exp(−|share of copied 4-grams − copy_target|/copy_width).
    """

    kind: Literal["paraphrase"] = "paraphrase"
    length_width: Positive = Field(default=0.25, description="Length ratio off that costs a factor e.")
    copy_target: Share = Field(default=0.2, description="Best share of copied 4-grams.")
    copy_width: Positive = Field(default=0.1, description="Share off that costs a factor e.")
    length_weight: Number = Field(default=0.45, description="Weight of the length ratio.")
    formality_weight: Number = Field(default=0.35, description="Weight of formality.")
    copy_weight: Number = Field(default=0.30, description="Weight of the copied share.")


class RewardModel(Node):
    """A sequence classifier with one output, from a hub or a folder: its logit for prompt and answer."""

    kind: Literal["reward_model"] = "reward_model"
    pretrained: Pretrained = Field(description="A folder beside the spec, or a name on a hub.")
    max_tokens: Count = Field(default=1024, description="Longer texts are cut at the front.")
    scale: Positive = Field(default=1.0, description="The logit is multiplied by it.")


# --- families -------------------------------------------------------------------------------------------------------


class Flow(Node):
    """Autoregressive spline flow on vectors: exact likelihood and reparameterised samples; loss −log q."""

    kind: Literal["flow"] = "flow"
    width: Count = Field(default=64, description="Hidden units of the network that gives each coordinate's spline.")
    layers: Count = Field(default=2, description="Hidden layers.")
    bins: Annotated[int, Field(ge=2), FINITE] = Field(default=16, description="Bins of a spline.")
    bound: Positive = Field(default=4.0, description="The spline covers [−bound, bound]; beyond, the map is linear.")


class Diffusion(Node):
    """Class-conditional diffusion on images: noise-prediction loss (DDPM), DDIM sampling."""

    kind: Literal["diffusion"] = "diffusion"
    pretrained: Pretrained | None = Field(
        default=None, description="A diffusers checkpoint, name or folder; null: a new network of the sizes below."
    )
    channels: list[Count] = Field(default=[96, 192, 192, 384], min_length=1, description="Channels by level.")
    layers_per_block: Count = Field(default=1, description="Residual blocks a level.")
    attention: list[bool] | None = Field(
        default=None, description="Attention by level; null: at the middle levels, neither first nor last."
    )
    head_dim: Count = Field(default=32, description="Channels of an attention head.")
    norm_groups: Count = Field(default=32, description="Groups of the group norms; divides every level's channels.")
    conditional: bool = Field(default=True, description="The label is an input.")
    noise_levels: Count = Field(default=1000, description="Steps of the forward process.")
    schedule: Literal["linear", "squaredcos_cap_v2"] = Field(default="linear", description="Of the forward process.")
    sampling_steps: Count = Field(default=30, description="DDIM steps when outputs become training data.")
    evaluation_steps: Count | None = Field(default=None, description="DDIM steps for evaluation; null: the same.")
    clip: bool = Field(default=True, description="Clip the predicted image to [−1, 1] at every step.")


class Lora(Node):
    """Low-rank adapters; the base stays frozen and is shared by all models that have it."""

    rank: Count = Field(default=16, description="r")
    alpha: Positive = Field(default=32.0, description="α; the update is scaled by α/r.")
    dropout: Decay = Field(default=0.0, description="On the adapters' inputs.")
    target: str | list[str] = Field(default="all-linear", description="Layers, as peft names them.")


class FreshLM(Node):
    """A small Llama-like network made on the spot, with a byte-pair vocabulary trained on the spec's texts."""

    width: Even = Field(default=64, description="Hidden size.")
    layers: Count = Field(default=2, description="Transformer blocks.")
    heads: Count = Field(default=4, description="Attention heads; the width is a multiple of twice their number.")
    vocabulary: Annotated[int, Field(ge=260), FINITE] = Field(default=512, description="Tokens, bytes included.")


class CausalLM(Node):
    """Causal language model; loss −log q of the answer's tokens given the prompt."""

    kind: Literal["causal_lm"] = "causal_lm"
    pretrained: Pretrained | None = Field(
        default=None, description="A folder beside the spec, or a name on a hub; null: `fresh`."
    )
    gguf_file: str | None = Field(default=None, description="GGUF file in that folder or repository.")
    fresh: FreshLM | None = Field(default=None, description="A new network instead of a pretrained one.")
    lora: Lora | None = Field(default=None, description="Train adapters only; null: train every parameter.")
    adapter: File | None = Field(default=None, description="Start from this peft adapter, a folder.")
    system: str | None = Field(default=None, description="System message of the chat template.")
    chat: bool | None = Field(
        default=None, description="Use the tokenizer's chat template; null: when it has one and is pretrained."
    )
    max_prompt_tokens: Count = Field(default=512, description="Longer prompts lose a part of their input, see `cut`.")
    cut: Literal["beginning", "end"] = Field(
        default="beginning", description="The part of the input that goes when a prompt is too long."
    )
    max_new_tokens: Count = Field(default=64, description="Longest answer.")
    temperature: Positive = Field(default=1.0, description="Of sampling; a source's own temperature multiplies it.")
    top_p: Annotated[float, Field(gt=0, le=1), FINITE] = Field(default=1.0, description="Nucleus sampling; 1 is off.")
    attention: Literal["sdpa", "eager"] = Field(default="sdpa", description="Attention code; `eager` for derivatives.")


# --- training and running -------------------------------------------------------------------------------------------


class Training(Node):
    """Optimiser steps from the current parameters."""

    steps: Count = Field(description="Optimiser steps, a round or in all for pretraining.")
    batch_size: Count = Field(default=64, description="Samples of one forward pass.")
    accumulate: Count = Field(default=1, description="Passes a step; a step sees batch_size × accumulate samples.")
    optimizer: Literal["adamw", "sgd"] = Field(
        default="adamw", description="AdamW, or plain stochastic gradient descent."
    )
    learning_rate: Positive = Field(default=1e-3, description="Peak learning rate.")
    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999), description="AdamW's decay rates.")
    weight_decay: NonNegative = Field(default=0.0, description="Decoupled weight decay (AdamW), or L2 (SGD).")
    momentum: Decay = Field(default=0.0, description="SGD's momentum.")
    gradient_clip: Positive | None = Field(default=1.0, description="Largest gradient norm; null: none.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant", description="Within a round, down to 0."
    )
    warmup: Whole0 = Field(default=0, description="Steps of linear warm-up, in every round.")
    decay_from: Count | None = Field(default=None, description="From this round on the rate shrinks; null: never.")
    decay: Annotated[float, Field(gt=0, le=1), FINITE] = Field(default=0.5, description="Factor a round from there on.")
    keep_optimizer: bool = Field(default=False, description="Carry the optimiser's moments from round to round.")


class Pretraining(Training):
    """Training on real data before round 1."""

    data: Name | None = Field(default=None, description="Name under `data`; null: the model's real sources.")


class Stop(Node):
    """When a run ends early."""

    collapse: Share = Field(
        default=0.02, description="A model whose diversity falls below this share of round 0's has collapsed; 0: never."
    )
    patience: Count = Field(default=2, description="Collapsed rounds in a row, of every model, that end the run.")
    divergence: Annotated[float, Field(gt=1), FINITE] = Field(
        default=100.0,
        description="Training loss above this many times round 1's ends the run; as does anything non-finite.",
    )


class RunOptions(Node):
    """How the retraining loop of networks is run and recorded."""

    rounds: Count = Field(default=10, description="Rounds.")
    evaluation_samples: Count = Field(default=512, description="Outputs a model, evaluation and round.")
    generation_batch: Count = Field(default=64, description="Outputs generated at once.")
    record_candidates: bool | None = Field(
        default=None, description="Keep the candidates that were not picked; null: of texts and vectors, not of images."
    )
    checkpoints: Literal["all", "last"] = Field(
        default="all", description="Keep every round's parameters, or round 0's and the last two."
    )
    stop: Stop = Field(default_factory=Stop, description="When the run ends early.")
