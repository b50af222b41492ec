"""The diffusion adapter against diffusers' own scheduler, finite differences and data it can learn; checkpoints and bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import Tensor
from torch.func import functional_call, grad, jvp, vjp, vmap

from crossfeed.describe.network_nodes import Diffusion, Training
from crossfeed.errors import CrossfeedError, DataError, NotAvailableError, SettingError, SpecError
from crossfeed.networks.diffusion import DiffusionNetwork, build
from crossfeed.networks.training import train

CLASSES = 3
SHAPE = (3, 8, 8)


def tiny(*, size: int = 8, num_classes: int | None = CLASSES, dtype: torch.dtype = torch.float32, **family: Any) -> Any:
    """8 channels, attention at the second level, 50 noise levels, 4 sampling steps."""
    sizes = {"channels": [8, 16], "attention": [False, True], "norm_groups": 4, "noise_levels": 50, "sampling_steps": 4}
    node = Diffusion(**(sizes | family))  # type: ignore[arg-type]
    return DiffusionNetwork("p", node, (3, size, size), torch.arange(CLASSES), num_classes, 0, dtype=dtype)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(n: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn((n, *shape), generator=seeded(seed))


def images_of(n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, *SHAPE), dtype=torch.uint8, generator=seeded(seed))


# --- sampling -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def by_scheduler(
    network: DiffusionNetwork, scheduler: DDIMScheduler, prompts: Tensor, noise: Tensor, steps: int
) -> Tensor:
    """The usual loop over diffusers' scheduler."""
    scheduler.set_timesteps(steps)
    network.module.eval()
    x = noise
    for level in scheduler.timesteps:
        found = network.module(x, level, class_labels=prompts).sample
        x = scheduler.step(found, level, x, eta=0.0).prev_sample
    return (x / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_equals_the_schedulers_ddim(schedule: str, clip: bool) -> None:
    network = tiny(schedule=schedule, clip=clip, sampling_steps=7, noise_levels=60)
    scheduler = DDIMScheduler(60, 0.1 / 60, 20 / 60, schedule, clip_sample=clip)
    prompts, noise = torch.tensor([0, 2, 1]), noise_of(3)
    expected = by_scheduler(network, scheduler, prompts, noise, 7)
    torch.testing.assert_close(network.rsample(prompts, noise).detach(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_follows_a_checkpoints_scheduler(tmp_path: Path, prediction: str, spacing: str) -> None:
    start = tiny()
    kinds = {"prediction_type": prediction, "timestep_spacing": spacing, "steps_offset": 1, "set_alpha_to_one": False}
    scheduler = DDIMScheduler(40, 0.001, 0.3, "scaled_linear", clip_sample_range=1.5, **kinds)
    start.module.save_pretrained(tmp_path / "unet")
    scheduler.save_pretrained(tmp_path / "scheduler")
    network = tiny(pretrained=str(tmp_path), sampling_steps=6)
    prompts, noise = torch.tensor([0, 2, 1]), noise_of(3)
    expected = by_scheduler(network, scheduler, prompts, noise, 6)
    torch.testing.assert_close(network.rsample(prompts, noise).detach(), expected, rtol=0, atol=2e-5)


def test_with_a_thousand_levels_the_schedule_is_the_published_one() -> None:
    network = tiny(noise_levels=1000)
    torch.testing.assert_close(network.scheduler.alphas_cumprod, DDPMScheduler().alphas_cumprod, rtol=1e-5, atol=0)


def test_samples_are_rsample_rounded_to_eight_bits() -> None:
    network = tiny()
    prompts, candidates = torch.tensor([1, 0]), torch.tensor([3, 2])
    images = network.sample(prompts, candidates, seeded(4), batch_size=5)
    floats = network.rsample(torch.tensor([1, 1, 1, 0, 0]), torch.randn((5, *SHAPE), generator=seeded(4)))
    assert images.dtype == torch.uint8
    assert int((images - (255 * floats).round()).abs().max()) == 0


def test_batches_take_no_notice_of_prompts() -> None:
    network, sizes = tiny(), []
    network.sample(torch.tensor([0, 1, 2]), torch.tensor([5, 0, 6]), seeded(), batch_size=4, advance=sizes.append)
    assert sizes == [4, 4, 3]


def test_evaluation_has_its_own_number_of_steps() -> None:
    network, levels = tiny(evaluation_steps=6), []
    network.module.register_forward_pre_hook(lambda _, arguments: levels.append(int(arguments[1])))
    one = torch.tensor([0])
    network.sample(one, one + 1, seeded())
    network.sample(one, one + 1, seeded(), evaluating=True)
    assert levels == [36, 24, 12, 0, 40, 32, 24, 16, 8, 0]


def test_labels_are_an_input_unless_unconditional() -> None:
    noise = noise_of(2)
    for classes in (CLASSES, None):
        network = tiny(num_classes=classes, conditional=classes is not None)
        first, second = network.rsample(torch.tensor([0, 1]), noise[:1].expand(2, -1, -1, -1))
        assert torch.equal(first, second) == (classes is None)


def test_autocast_is_close_to_float32() -> None:
    plain, cast = tiny(), tiny(dtype=torch.bfloat16)
    prompts, candidates = torch.tensor([0, 1]), torch.tensor([4, 4])
    first, second = (network.sample(prompts, candidates, seeded(1)).float() for network in (plain, cast))
    assert 0 < float((first - second).abs().mean()) < 4
    assert {value.dtype for value in cast.parameters().values()} == {torch.float32}
    torch.testing.assert_close(plain.probe(), cast.probe())  # in float32, so that small steps show
    losses = [n.losses(torch.zeros(4, dtype=torch.int64), images_of(4), seeded()) for n in (plain, cast)]
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[0], losses[1], rtol=0.02, atol=0)


# --- losses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_loss_is_the_error_of_the_prediction(prediction: str) -> None:
    network = tiny()
    network._predicts = prediction
    prompts, images, random = torch.tensor([0, 1, 2, 0]), images_of(4), seeded(3)
    losses = network.losses(prompts, images, seeded(3))
    levels, noise = torch.randint(50, (4,), generator=random), torch.randn((4, *SHAPE), generator=random)
    scaled = images / 127.5 - 1
    scheduler = DDPMScheduler(50, 0.1 / 50, 20 / 50)
    noisy = scheduler.add_noise(scaled, noise, levels)
    velocity = scheduler.get_velocity(scaled, noise, levels)
    target = {"epsilon": noise, "sample": scaled, "v_prediction": velocity}[prediction]
    found = network.module(noisy, levels, class_labels=prompts).sample
    torch.testing.assert_close(losses, ((found - target) ** 2).mean((1, 2, 3)))


def test_levels_are_uniform() -> None:
    """Mean and spread of 4,000 levels within 4 standard errors: false alarm 1 in 8,000."""
    network, seen = tiny(), []
    network.module = lambda x, levels, **_: seen.append(levels) or (x,)
    network.losses(torch.zeros(4000, dtype=torch.int64), images_of(1).expand(4000, -1, -1, -1), seeded(5))
    levels = seen[0].double()
    assert int(levels.min()) == 0
    assert int(levels.max()) == 49
    assert abs(float(levels.mean()) - 24.5) < 4 * 14.43 / 4000**0.5
    assert abs(float(levels.var()) - (50**2 - 1) / 12) < 4 * 208.25 * 0.8**0.5 / 4000**0.5


def test_float_images_have_the_loss_of_the_same_bytes() -> None:
    network, prompts, images = tiny(), torch.tensor([0, 1]), images_of(2)
    first, second = (network.losses(prompts, y, seeded()) for y in (images, images / 255))
    torch.testing.assert_close(first, second)


def test_learns_what_labels_mean() -> None:
    """Class 0 is red and class 1 is blue; 100 small steps show in the samples."""
    network = tiny(channels=[16], attention=[False], norm_groups=1, sampling_steps=8)
    prompts = torch.arange(64) % 2
    images = torch.full((64, *SHAPE), 20, dtype=torch.uint8)
    images[prompts == 0, 0], images[prompts == 1, 2] = 230, 230
    how = Training(steps=100, batch_size=16, learning_rate=1e-2)
    done = train(network, prompts, images, how, 1, seeded(0))
    assert done.last_loss < 0.5 * done.first_loss
    means = network.sample(torch.tensor([0, 1]), torch.tensor([16, 16]), seeded(1)).float().mean((2, 3))
    red, blue = means[:16].mean(0), means[16:].mean(0)
    assert float(red[0] - red[2]) > 60
    assert float(blue[2] - blue[0]) > 60


# --- derivatives ----------------------------------------------------------------------------------------------------


class Method(torch.nn.Module):
    """Calls a method of a network as a function of its parameters."""

    def __init__(self, network: DiffusionNetwork, method: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.method = network.module, method

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.method(*arguments)


def as_function(
    network: DiffusionNetwork, method: Callable[..., Tensor]
) -> tuple[Callable[..., Tensor], dict[str, Tensor]]:
    path = Method(network, method)
    values = {f"module.{name}": value.detach() for name, value in network.parameters().items()}
    return lambda values, *arguments: functional_call(path, values, arguments), values


def direction(values: dict[str, Tensor], seed: int = 7) -> dict[str, Tensor]:
    random = seeded(seed)
    return {
        name: value.std().nan_to_num(0) * torch.randn(value.shape, generator=random) for name, value in values.items()
    }


def inner(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return float(sum((first[name].double() * second[name].double()).sum() for name in first))


def test_sampler_has_forward_and_reverse_derivatives() -> None:
    network = tiny(clip=False)
    with torch.no_grad():
        network.module.conv_out.weight.mul_(1e-4)
        network.module.conv_out.bias.mul_(1e-4)
    function, values = as_function(network, network.rsample)
    prompts, noise, along = torch.tensor([0, 1]), 0.001 * noise_of(2), direction(values)

    def sampler(values: dict[str, Tensor]) -> Tensor:
        return function(values, prompts, noise)

    assert bool(((sampler(values) > 0) & (sampler(values) < 1)).all())  # else the cut to [0, 1] bends differences
    _, forward = jvp(sampler, (values,), (along,))
    h = 2e-3
    ends = [sampler({name: values[name] + side * h * along[name] for name in values}) for side in (1, -1)]
    central = (ends[0] - ends[1]) / (2 * h)
    assert float((forward - central).norm() / central.norm()) < 5e-3
    weights = noise_of(2, seed=8)
    _, backward = vjp(sampler, values)
    assert inner(backward(weights)[0], along) == pytest.approx(float((weights * forward).sum()), rel=1e-3)


def test_clipped_sampler_has_equal_forward_and_reverse_derivatives() -> None:
    network = tiny()
    function, values = as_function(network, network.rsample)
    prompts, noise, along, weights = torch.tensor([0, 1]), noise_of(2), direction(values), noise_of(2, seed=8)
    _, forward = jvp(lambda v: function(v, prompts, noise), (values,), (along,))
    _, backward = vjp(lambda v: function(v, prompts, noise), values)
    assert inner(backward(weights)[0], along) == pytest.approx(float((weights * forward).sum()), rel=1e-3)


def test_losses_have_second_derivatives_and_derivatives_by_the_image() -> None:
    network = tiny()
    function, values = as_function(network, network.losses_at)
    labels, levels, noise = torch.tensor([0, 1]), torch.tensor([10, 30]), noise_of(2)
    images, along = images_of(2) / 255, direction(values)

    def slope(values: dict[str, Tensor], images: Tensor) -> dict[str, Tensor]:
        return grad(lambda v: function(v, labels, images, levels, noise).mean())(values)

    def along_slope(values: dict[str, Tensor]) -> Tensor:
        return sum((value * along[name]).sum() for name, value in slope(values, images).items())  # type: ignore[return-value]

    with network.derivatives():
        _, hessian = jvp(lambda v: slope(v, images), (values,), (along,))
        again = grad(along_slope)(values)  # double backward
        assert inner(hessian, along) == pytest.approx(inner(again, along), rel=1e-3)
        step = noise_of(2, seed=9)
        _, mixed = jvp(lambda y: slope(values, y), (images,), (step,))
        h = 1e-2
        ends = [slope(values, images + side * h * step) for side in (1, -1)]
    central = (inner(ends[0], along) - inner(ends[1], along)) / (2 * h)
    assert inner(mixed, along) == pytest.approx(central, rel=1e-2)


def test_gradients_by_sample() -> None:
    network = tiny()
    function, values = as_function(network, network.losses_at)
    labels, levels, noise, images = torch.tensor([0, 1, 2]), torch.tensor([3, 20, 40]), noise_of(3), images_of(3) / 255

    def one(values: dict[str, Tensor], *sample: Tensor) -> Tensor:
        return function(values, *(part[None] for part in sample))[0]

    with network.derivatives():
        together = vmap(grad(one), (None, 0, 0, 0, 0))(values, labels, images, levels, noise)
    for i in range(3):
        alone = grad(one)(values, labels[i], images[i], levels[i], noise[i])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][i], value, rtol=1e-3, atol=1e-5)


def test_written_out_attention_is_the_fused_one() -> None:
    network, noise = tiny(channels=[16, 32], head_dim=8), noise_of(2)
    labels = torch.tensor([0, 1])
    with torch.no_grad():
        fused = network._network(noise, torch.tensor(5), labels)
        with network.derivatives():
            plain = network._network(noise, torch.tensor(5), labels)
        assert not network._attend.plain
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
        as_given = UNet2DModel.from_config(network.module.config)
        as_given.load_state_dict(network.module.state_dict())
        diffusers = as_given(noise, torch.tensor(5), class_labels=labels).sample
    torch.testing.assert_close(fused, diffusers, rtol=1e-4, atol=1e-5)


# --- new networks ---------------------------------------------------------------------------------------------------


def test_parameters_depend_on_the_seed_alone() -> None:
    before = torch.get_rng_state()
    first = tiny().parameters()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    second = tiny().parameters()
    assert all(torch.equal(first[name], second[name]) for name in first)
    node = Diffusion(channels=[8, 16], norm_groups=4)
    other = DiffusionNetwork("p", node, SHAPE, torch.arange(3), 3, seed=1).parameters()
    assert not torch.equal(first["conv_in.weight"], other["conv_in.weight"])


def test_the_papers_network_has_its_published_size() -> None:
    network = DiffusionNetwork("p", Diffusion(), (3, 32, 32), torch.arange(10), 10, 0)
    assert sum(value.numel() for value in network.parameters().values()) == 27_356_259
    kinds = [type(block).__name__ for block in network.module.down_blocks]
    assert kinds == ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "DownBlock2D"]


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"norm_groups": 3}, r"models\.p\.family\.norm_groups: 3 groups do not divide the 8 channels of level 0; need a divisor of 8"),
        ({"attention": [True]}, r"models\.p\.family\.attention: 1 entries for 2 levels; need one a level"),
        ({"channels": [8] * 5, "attention": None}, r"family\.channels: 5 levels halve the image 4 times, but it is 8 × 8; need at most 4"),
        ({"sampling_steps": 51}, r"family\.sampling_steps: 51 steps, but the forward process has 50; need at most"),
        ({"evaluation_steps": 99}, r"family\.evaluation_steps: 99 steps"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit(sizes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        tiny(**sizes)


def test_labels_and_prompts_out_of_range() -> None:
    node = Diffusion(channels=[8], norm_groups=4)
    with pytest.raises(DataError, match=r"models\.p: the label 4 is out of range: the network has 3 classes, 0 to 2"):
        DiffusionNetwork("p", node, SHAPE, torch.tensor([0, 4]), 3, 0)
    network = tiny()
    for prompt in (3, -1):
        with pytest.raises(DataError, match=rf"models\.p: prompt {prompt} is out of range; the run has 3 inputs"):
            network.losses(torch.tensor([0, prompt]), images_of(2))


def test_labels_asked_for_where_there_are_none() -> None:
    world = SimpleNamespace(num_classes=None, shape=SHAPE, prompts=SimpleNamespace(labels=torch.zeros(1).long()))
    node = Diffusion(channels=[8], norm_groups=4)
    with pytest.raises(SpecError, match=r"models\.p\.family\.conditional: .*no labels; set conditional: false"):
        build("p", node, world, 0)  # type: ignore[arg-type]
    build("p", node.model_copy(update={"conditional": False}), world, 0)  # type: ignore[arg-type]


def test_only_one_temperature_and_no_likelihood() -> None:
    network, one = tiny(), torch.tensor([1])
    with pytest.raises(SettingError, match=r"models\.p: .* temperature 1 only, found 0\.5; set"):
        network.sample(one, one, seeded(), temperature=0.5)
    with pytest.raises(NotAvailableError, match=r"models\.p: .*no tractable likelihood"):
        network.log_prob(one, images_of(1))


def test_out_of_memory_names_a_smaller_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    network, one = tiny(), torch.tensor([1])
    monkeypatch.setattr(network, "_ddim", full)
    with pytest.raises(CrossfeedError, match=r"models\.p: .* 12 images at once; set run\.generation_batch: 6 or less"):
        network.sample(one, one * 12, seeded())


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(NotAvailableError, match=r"diffusers; install it with `pip install 'crossfeed\[diffusion\]'`"):
        tiny()


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_checkpoints_of_networks_and_pipelines(tmp_path: Path) -> None:
    start = tiny()
    start.module.save_pretrained(tmp_path / "network")
    DDPMPipeline(start.module, DDPMScheduler(50, 0.002, 0.4)).save_pretrained(tmp_path / "pipeline")
    prompts, noise = torch.tensor([0, 1]), noise_of(2)
    for name in ("network", "pipeline"):
        network = tiny(pretrained=str(tmp_path / name), channels=[96])
        assert torch.equal(network.probe(), start.probe())
        assert torch.equal(network.rsample(prompts, noise), start.rsample(prompts, noise))


def refused(folder: Path, words: str, error: type[Exception] = DataError, **options: Any) -> None:
    with pytest.raises(error, match=words):
        tiny(pretrained=str(folder), **options)


def test_checkpoints_for_other_images(tmp_path: Path) -> None:
    tiny(size=16).module.save_pretrained(tmp_path / "size")
    refused(tmp_path / "size", r"makes images of 16 × 16, but the spec's images are 8 × 8; set space\.size: 16")
    tiny().module.save_pretrained(tmp_path / "classes")
    refused(tmp_path / "classes", r"has 3 classes, but the spec's images have 10 labels", num_classes=10)
    refused(
        tmp_path / "classes", r"has 3 classes, but the spec asks for none; set .*conditional: true", num_classes=None
    )
    tiny(num_classes=None).module.save_pretrained(tmp_path / "none")
    refused(tmp_path / "none", r"takes no labels, but the spec's images have 3 labels; set .*conditional: false")
    grey = UNet2DModel(8, 1, 1, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
                       up_block_types=("UpBlock2D",), num_class_embeds=3)  # fmt: skip
    grey.save_pretrained(tmp_path / "grey")
    refused(tmp_path / "grey", r"has in_channels 1, but the spec's images have 3")


def test_checkpoints_that_cannot_be_read(tmp_path: Path) -> None:
    refused(tmp_path / "absent", r"absent has no diffusers network; .* no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty has no diffusers network; need config\.json")
    tiny().module.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    refused(tmp_path / "pickle", r"its weights cannot be read .*pickled weights .* never read")
    tiny().module.save_pretrained(tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text()) | {"_class_name": "UNet2DConditionModel"}
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    refused(tmp_path / "other", r"is a UNet2DConditionModel; need a UNet2DModel")
    (tmp_path / "other" / "config.json").write_text("{broken")
    refused(tmp_path / "other", r"has no diffusers network")
    tiny().module.save_pretrained(tmp_path / "cut")
    file = tmp_path / "cut" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    refused(tmp_path / "cut", r"its weights cannot be read")


def test_schedulers_that_do_more(tmp_path: Path) -> None:
    tiny().module.save_pretrained(tmp_path / "unet")
    DDPMScheduler(50, thresholding=True).save_pretrained(tmp_path / "scheduler")
    refused(tmp_path, r"sets thresholding, which this sampler does not do", NotAvailableError)
