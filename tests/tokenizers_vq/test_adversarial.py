"""The discriminator and both players' losses: numbers by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokenizers_vq.errors import UserError
from tokenizers_vq.losses.adversarial import (
    AdversarialLoss,
    PatchDiscriminator,
    discriminator_loss,
    generator_loss,
    lecam,
    r1,
)
from tokenizers_vq.losses.adversarial_config import AdversarialConfig

REAL, FAKE = torch.tensor([[2.0, 0.5], [-1.0, 1.0]]), torch.tensor([[0.0, -3.0], [1.0, -0.5]])


# --- the discriminator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_a_patch(layers: int, field: int) -> None:
    torch.manual_seed(0)
    network = PatchDiscriminator(layers, channels=4)
    for index, part in enumerate(network.layers):
        if isinstance(part, nn.GroupNorm):  # its statistics are of the whole picture
            network.layers[index] = nn.Identity()
    images = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = network(images)
    assert logits.shape == (1, 1, 160 // 2**layers - 2, 160 // 2**layers - 2)
    middle = logits.shape[2] // 2
    logits[0, 0, middle, middle].backward()
    assert images.grad is not None
    seen = images.grad[0].abs().sum(0).nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [field, field]


def test_the_published_size_and_the_smallest_picture() -> None:
    network = PatchDiscriminator()
    assert sum(weight.numel() for weight in network.parameters()) == 2_765_633  # as pix2pix with batch norm
    assert network(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)
    for layers in (1, 2, 3):
        side = AdversarialConfig(layers=layers).smallest_side
        assert PatchDiscriminator(layers, 4)(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, 1)


def test_pictures_of_a_batch_are_judged_alone_and_in_float32() -> None:
    torch.manual_seed(0)
    network, images = PatchDiscriminator(2, 8), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(network(images)[1:2], network(images[1:2]))
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images).dtype == torch.float32


# --- losses ---------------------------------------------------------------------------------------------------------


def test_hinge_by_hand() -> None:
    # relu(1 - real) = 0, 0.5, 2, 0; relu(1 + fake) = 1, 0, 2, 0.5
    assert discriminator_loss(REAL, FAKE, "hinge").item() == 0.5 * (2.5 / 4 + 3.5 / 4)
    assert generator_loss(FAKE, "hinge").item() == 2.5 / 4
    assert discriminator_loss(torch.zeros(2), torch.zeros(2), "hinge").item() == 1


def test_non_saturating_by_hand() -> None:
    def softplus(*values: float) -> float:
        return sum(math.log(1 + math.exp(value)) for value in values) / len(values)

    wanted = 0.5 * (softplus(-2.0, -0.5, 1.0, -1.0) + softplus(0.0, -3.0, 1.0, -0.5))
    assert discriminator_loss(REAL, FAKE, "non_saturating").item() == pytest.approx(wanted)
    assert generator_loss(FAKE, "non_saturating").item() == pytest.approx(softplus(0.0, 3.0, -1.0, 0.5))
    zeros = torch.zeros(2)
    assert discriminator_loss(zeros, zeros, "non_saturating").item() == pytest.approx(math.log(2))


def test_lecam_by_hand() -> None:
    # (real + 1)^2 = 9, 2.25, 0, 4; (fake - 2)^2 = 4, 25, 1, 6.25
    assert lecam(REAL, FAKE, torch.tensor(2.0), torch.tensor(-1.0)).item() == (15.25 + 36.25) / 4


class Linear(nn.Module):
    """One logit a picture: the inner product with known weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(12.0).reshape(3, 2, 2) / 10)

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weight).sum((1, 2, 3))[:, None, None, None]


def test_r1_of_a_linear_discriminator() -> None:
    """The gradient with respect to a picture is the weight: the penalty is |w|^2 / 2, and its own gradient w."""
    network = Linear()
    penalty = r1(network, torch.rand(5, 3, 2, 2))
    torch.testing.assert_close(penalty, 0.5 * network.weight.square().sum())
    penalty.backward()
    torch.testing.assert_close(network.weight.grad, network.weight.detach())


# --- the two together -----------------------------------------------------------------------------------------------


class Player(nn.Module):
    """A tokenizer in miniature: grey pictures through one 1x1 convolution, its `last_layer`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images * 0.5)


def setting(**values: Any) -> tuple[AdversarialLoss, Player, Tensor]:
    config = AdversarialConfig(**{"weight": 0.5, "start": 0, "ramp": 0, "layers": 1, "channels": 4, **values})
    torch.manual_seed(0)
    return AdversarialLoss(config), Player(), torch.rand(4, 3, 16, 16) * 2 - 1


def play(loss: AdversarialLoss, player: Player, images: Tensor, step: int = 0, **more: Any) -> dict[str, Tensor]:
    """One forward and backward pass; the parts of the loss."""
    copy = player(images)
    plain = (copy - images).square().mean()
    parts, _ = loss(images, copy, plain, player.conv.weight, step, **more)
    ((plain + sum(parts.values())) * more.get("share", 1.0)).backward()
    return parts


def test_nothing_happens_before_the_start() -> None:
    loss, player, images = setting(start=3)
    assert play(loss, player, images, step=2) == {}
    assert all(weight.grad is None for weight in loss.parameters())
    assert set(play(loss, player, images, step=3)) == {"adversarial", "discriminator", "lecam"}
    assert all(weight.grad is not None for weight in loss.parameters())


def test_the_weight_ramps_up() -> None:
    loss, player, images = setting(start=10, ramp=20, adaptive=False, weight=0.8)
    assert [loss.config.ramp_at(step) for step in (9, 10, 20, 30, 31)] == [0, 0, 0.5, 1, 1]
    assert [AdversarialConfig(start=10, ramp=0).ramp_at(step) for step in (9, 10)] == [0, 1]
    logits = loss.discriminator(player(images))
    assert play(loss, player, images, step=20)["adversarial"].item() == pytest.approx(-0.4 * logits.mean().item())


def test_each_player_gets_the_gradient_of_its_own_loss() -> None:
    loss, player, images = setting(adaptive=False, lecam_weight=0.0)
    play(loss, player, images)
    copy = player(images)
    real, fake = loss.discriminator(images), loss.discriminator(copy.detach())
    weights = list(loss.discriminator.parameters())
    wanted = torch.autograd.grad(discriminator_loss(real, fake, "hinge"), weights)
    for weight, gradient in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient)
    total = (copy - images).square().mean() - 0.5 * loss.discriminator(copy).mean()
    torch.testing.assert_close(player.conv.weight.grad, torch.autograd.grad(total, player.conv.weight)[0])


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_the_adaptive_weight_is_the_ratio_of_the_gradients_of_the_step_before(kind: str) -> None:
    loss, player, images = setting(loss=kind)
    copy = player(images)
    long, short = (
        torch.autograd.grad(part, player.conv.weight, retain_graph=True)[0].norm()
        for part in ((copy - images).square().mean(), generator_loss(loss.discriminator(copy), kind))
    )
    assert play(loss, player, images)["adversarial"].item() == 0  # nothing has been measured yet
    torch.testing.assert_close(loss.balance, long / (short + 1e-4))
    part = play(loss, player, images, step=1)["adversarial"]
    torch.testing.assert_close(part, 0.5 * long / (short + 1e-4) * generator_loss(loss.discriminator(copy), kind))
    loss, player, images = setting(adaptive_max=0.25)
    play(loss, player, images)
    assert loss.balance.item() == 0.25


def test_lecam_means_follow_the_logits_from_the_next_step_on() -> None:
    loss, player, images = setting(lecam_decay=0.6, lecam_weight=2.0)
    real, fake = loss.discriminator(images), loss.discriminator(player(images))
    play(loss, player, images)
    torch.testing.assert_close((loss.real_mean, loss.fake_mean), (real.mean(), fake.mean()))
    loss.real_mean.fill_(3.0)
    loss.fake_mean.fill_(-2.0)
    part = play(loss, player, images, step=9)["lecam"]
    torch.testing.assert_close(part, 2 * ((real + 2).square().mean() + (fake - 3).square().mean()))
    torch.testing.assert_close(loss.real_mean, 0.6 * torch.tensor(3.0) + 0.4 * real.mean())


def test_r1_comes_every_few_steps_and_counts_for_them() -> None:
    loss, player, images = setting(start=2, r1_weight=10.0, r1_every=4)
    assert [step for step in range(2, 12) if "r1" in play(loss, player, images, step)] == [2, 6, 10]
    torch.testing.assert_close(play(loss, player, images, step=6)["r1"], 40 * r1(loss.discriminator, images))


def test_micro_batches_add_up_to_the_whole_step() -> None:
    gradients = []
    for sizes in ([4], [1, 3]):
        loss, player, images = setting(r1_weight=1.0, r1_every=1)
        for step in (0, 1):
            for index, part in enumerate(images.split(sizes)):
                play(loss, player, part, step, share=len(part) / 4, last=index == len(sizes) - 1)
        gradients.append([*[weight.grad for weight in (*loss.parameters(), *player.parameters())], *loss.buffers()])
    assert loss.balance > 0
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_the_discriminator_learns_to_tell_grey_from_pictures(kind: Any) -> None:
    loss, _, images = setting(loss=kind)
    optimizer = torch.optim.Adam(loss.parameters(), lr=2e-3, betas=(0.5, 0.9))
    grey = torch.zeros(1, requires_grad=True)
    losses = []
    for step in range(40):
        parts, _ = loss(images, grey.expand_as(images), grey.square().sum(), grey, step)
        optimizer.zero_grad()
        parts["discriminator"].backward()
        optimizer.step()
        losses.append(parts["discriminator"].item())
    assert losses[-1] < 0.3 * losses[0], losses


# --- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": -1.0}, "adversarial.weight is -1.0: choose 0 or more"),
        ({"lr": 0.0}, "adversarial.lr is 0.0: choose a value above 0"),
        ({"layers": 0}, "adversarial.layers is 0: choose 1 or more"),
        ({"loss": "wasserstein"}, "adversarial.loss is 'wasserstein': choose hinge or non_saturating"),
        ({"lecam_decay": 1.0}, r"adversarial.lecam_decay is 1.0: choose 0 \(the last step alone\) or a value below 1"),
        (
            {"ramp": -1, "r1_every": 0},
            r"(?s)2 problems:.*ramp is -1: choose 0 or more.*r1_every is 0: choose 1 or more",
        ),
    ],
)
def test_wrong_values_say_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AdversarialConfig(**values)


def test_settings_that_do_not_fit_the_run() -> None:
    AdversarialConfig(start=99).check_run((32, 24), steps=100)
    config = AdversarialConfig(start=100)
    with pytest.raises(UserError, match=r"adversarial.start is 100, but the run has 100 steps: choose a smaller start"):
        config.check_run((32, 32), steps=100)
    with pytest.raises(
        UserError, match=r"layers is 3, which needs pictures of 24 pixels, .* have 16: choose 2 or less"
    ):
        config.check_run((64, 16), steps=1000)
    with pytest.raises(UserError, match=r"have 4: choose larger pictures or adversarial.weight 0"):
        config.check_run((4, 4), steps=1000)
