"""Quantizers: latents <-> codes, the search, gradients, and when the codebook may move."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import vector_quantize_pytorch as library
from torch import Tensor

from tokenizers_vq.errors import UserError
from tokenizers_vq.quantizers.config import BSQ, FSQ, IBQ, LFQ, VQ, Cosine, Gumbel, MultiVQ, QuantizerConfig, SimVQ
from tokenizers_vq.quantizers.lookup import nearest_rows
from tokenizers_vq.quantizers.single_scale import Quantizer, make_quantizer

CONFIGS: dict[str, QuantizerConfig] = {
    "vq": VQ(codebook_size=32, dim=4),
    "vq without k-means": VQ(codebook_size=32, dim=4, kmeans_init=False, revive_below=0.0),
    "vq rotation": VQ(codebook_size=32, dim=4, rotation_trick=True),
    "vq learned": VQ(codebook_size=32, dim=4, learned=True),
    "cosine": Cosine(codebook_size=32, dim=4),
    "cosine learned": Cosine(codebook_size=32, dim=4, learned=True),
    "multi": MultiVQ(codebook_size=8, dim=2, codebooks=3),
    "simvq": SimVQ(codebook_size=32, dim=4),
    "simvq rotation": SimVQ(codebook_size=32, dim=4, rotation_trick=True),
    "fsq": FSQ(levels=(5, 4, 3)),
    "fsq with bits": FSQ(levels=(2, 4, 2)),
    "lfq": LFQ(codebook_size=32),
    "bsq": BSQ(codebook_size=32),
    "ibq": IBQ(codebook_size=32, dim=4),
    "gumbel": Gumbel(codebook_size=32, dim=4),
}
every_quantizer = pytest.mark.parametrize("name", CONFIGS)


def made(name: str, trained: bool = True) -> tuple[Quantizer, Tensor]:
    """A quantizer after two training batches, and latents (2, D, 3, 5)."""
    torch.manual_seed(0)
    quantizer = make_quantizer(CONFIGS[name])
    if trained:
        for _ in range(2):
            quantizer(torch.randn(4, quantizer.width, 4, 4))
    return quantizer, torch.randn(2, quantizer.width, 3, 5)


def state(quantizer: Quantizer) -> dict[str, Tensor]:
    return copy.deepcopy(quantizer.state_dict())


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@every_quantizer
def test_codes_give_the_vectors_of_the_forward_pass(name: str) -> None:
    quantizer, z = made(name)
    quantizer.eval()
    out = quantizer(z)
    assert out.latents.shape == z.shape
    assert out.latents.dtype == torch.float32
    assert out.codes.shape == (2, 15 * quantizer.config.grids)
    assert out.codes.dtype == torch.int64
    assert 0 <= out.codes.min() <= out.codes.max() < quantizer.codebook_size
    assert len(out.codes.unique()) > 5
    torch.testing.assert_close(quantizer.vectors(out.codes, (3, 5)), out.latents, atol=1e-6, rtol=1e-5)


@every_quantizer
def test_nearest_is_the_forward_pass_and_idempotent(name: str) -> None:
    quantizer, z = made(name)
    quantizer.eval()
    codes = quantizer.nearest(z)
    assert torch.equal(codes, quantizer(z).codes)
    if name.startswith(("fsq", "ibq", "gumbel")):
        return  # vectors behind the tanh that latents still have to pass, or codes chosen by score, not nearness
    assert torch.equal(quantizer.nearest(quantizer.vectors(codes, (3, 5))), codes)


@pytest.mark.parametrize("name", ["fsq", "fsq with bits", "lfq", "bsq"])
def test_every_code_of_a_fixed_codebook_has_its_own_vector(name: str) -> None:
    quantizer, _ = made(name)
    codes = torch.arange(quantizer.codebook_size).reshape(1, -1)
    vectors = quantizer.vectors(codes, (1, quantizer.codebook_size))[0, :, 0].T
    assert len(vectors.unique(dim=0)) == quantizer.codebook_size


@every_quantizer
def test_mode_changes_neither_codes_nor_losses(name: str) -> None:
    quantizer, z = made(name)
    with torch.no_grad():
        training, evaluation = quantizer.train()(z), quantizer.eval()(z)
    assert torch.equal(training.codes, evaluation.codes)
    torch.testing.assert_close(training.latents, evaluation.latents, atol=1e-6, rtol=1e-5)
    assert training.losses.keys() == evaluation.losses.keys()
    for part, loss in training.losses.items():
        assert loss.ndim == 0
        torch.testing.assert_close(loss, evaluation.losses[part])


@every_quantizer
def test_only_training_with_gradients_moves_the_codebook(name: str) -> None:
    for trained in (False, True):  # the library starts k-means in evaluation, and learns under no_grad
        quantizer, z = made(name, trained)
        before = state(quantizer)
        quantizer.train()
        quantizer.nearest(z)
        with torch.no_grad():
            quantizer(z)
        quantizer.eval()
        quantizer.nearest(z)
        quantizer(z.requires_grad_())
        assert same(before, state(quantizer))
    quantizer.train()
    quantizer(z)
    assert same(before, state(quantizer)) != name.startswith(("vq", "cosine", "multi"))


@every_quantizer
def test_gradients_reach_the_latents(name: str) -> None:
    quantizer, z = made(name)
    z.requires_grad_()
    out = quantizer(z)
    (out.latents * torch.randn_like(out.latents)).sum().backward()
    assert z.grad is not None
    assert (z.grad.abs().sum(dim=1) > 0).all()


@every_quantizer
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_changes_nothing(name: str, dtype: torch.dtype) -> None:
    quantizer, z = made(name)
    z = z.to(dtype)
    torch.manual_seed(2)  # gumbel draws
    plain = copy.deepcopy(quantizer)(z)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        codes, out = quantizer.nearest(z), quantizer(z)
    assert torch.equal(codes, plain.codes)
    assert torch.equal(out.codes, plain.codes)
    assert torch.equal(out.latents, plain.latents)
    assert all(torch.equal(out.losses[part], plain.losses[part]) for part in plain.losses)


@every_quantizer
def test_ids_outside_the_codebook_are_refused(name: str) -> None:
    quantizer, _ = made(name, trained=False)
    size = quantizer.codebook_size
    with pytest.raises(UserError, match=f"code {size} is outside the codebook of {size}: ids go from 0 to {size - 1}"):
        quantizer.vectors(torch.tensor([[0, size]]), (1, 2))
    with pytest.raises(UserError, match=f"code -3 is outside the codebook of {size}"):
        quantizer.vectors(torch.tensor([[0, -3]]), (1, 2))
    with pytest.raises(UserError, match=r"codes are torch.float32: give integer ids"):
        quantizer.vectors(torch.zeros(1, 2), (1, 2))


# --- the search against the library ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
def test_search_equals_a_distance_table(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenizers_vq.quantizers.lookup.CHUNK", chunk)
    torch.manual_seed(0)
    vectors, codebook = torch.randn(57, 6), torch.randn(33, 6)
    table = (vectors[:, None] - codebook[None]).norm(dim=-1)
    assert torch.equal(nearest_rows(vectors, codebook), table.argmin(dim=1))
    unit = F.normalize(codebook, dim=1)
    assert torch.equal(nearest_rows(vectors, unit, cosine=True), (vectors @ unit.T).argmax(dim=1))
    assert nearest_rows(vectors[:0], codebook).shape == (0,)


def test_search_by_hand() -> None:
    codebook = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 10.0]])
    vectors = torch.tensor([[0.4, 0.0], [0.6, 0.0], [0.5, 0.0], [5.0, 4.0], [0.0, 9.0]])
    assert nearest_rows(vectors, codebook).tolist() == [0, 1, 0, 1, 2]


@pytest.mark.parametrize("size", [64, 1024])
@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("bsq", "ibq", "gumbel", "multi")])
def test_codes_equal_the_librarys(name: str, size: int) -> None:
    torch.manual_seed(1)
    quantizer = make_quantizer(CONFIGS[name])
    if name.startswith(("vq", "cosine")):
        quantizer(torch.randn(8, quantizer.width, 8, 8))
    z = torch.randn(4, quantizer.width, size // 16, 4)
    rows = z.permute(0, 2, 3, 1).reshape(1, -1, quantizer.width)
    theirs = quantizer.library.eval()(rows)[1][0].long()
    assert torch.equal(quantizer.nearest(z).reshape(-1), theirs)


def test_scores_choose_the_code() -> None:
    ibq = make_quantizer(IBQ(codebook_size=3, dim=2))
    ibq.load_state_dict({"embedding.weight": torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])})
    z = torch.tensor([[[[1.0, 0.1]], [[0.0, 1.0]]]])  # two vectors, (1, 0) and (0.1, 1)
    assert ibq.nearest(z).tolist() == [[1, 2]]  # (3, 0), though (1, 0) is nearest
    gumbel = make_quantizer(Gumbel(codebook_size=2, dim=2))
    weights = {"proj.weight": torch.eye(2), "proj.bias": torch.tensor([0.0, 5.0]), "embedding.weight": torch.ones(2, 2)}
    gumbel.load_state_dict(weights)
    assert gumbel.nearest(z).tolist() == [[1, 1]]  # the bias counts
    with pytest.raises(UserError, match=r"quantizer.temperature is 0: choose a value above 0"):
        Gumbel(temperature=0)


@pytest.mark.parametrize("name", ["ibq", "gumbel"])
def test_every_code_of_a_soft_choice_learns(name: str) -> None:
    quantizer, z = made(name)
    quantizer(z).latents.square().sum().backward()
    rows = quantizer.embedding.weight.grad
    assert rows is not None and (rows.abs().sum(dim=1) > 0).all()


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [False, True])
def test_moving_average_equals_the_librarys(cosine: bool) -> None:
    """Same start, same batches: codebook, loss and straight-through value as the library's own training step gives."""
    torch.manual_seed(0)
    kind = Cosine if cosine else VQ
    ours = make_quantizer(kind(codebook_size=16, dim=4, decay=0.9, kmeans_init=False, revive_below=0.0)).train()
    theirs = library.VectorQuantize(
        4, 16, decay=0.9, use_cosine_sim=cosine, commitment_weight=0.25, rotation_trick=False, accept_image_fmap=True
    ).train()
    theirs._codebook.load_state_dict(ours.library._codebook.state_dict())
    for _ in range(5):
        z = torch.randn(3, 4, 5, 5, requires_grad=True)
        out = ours(z)
        latents, codes, loss = theirs(z)
        assert torch.equal(out.codes, codes.reshape(3, -1))
        torch.testing.assert_close(out.latents, latents, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(out.losses["commitment"], loss)
        gradient = torch.autograd.grad((out.latents**2).sum() + out.losses["commitment"], z)[0]
        wanted = torch.autograd.grad((latents**2).sum() + loss, z)[0]
        torch.testing.assert_close(gradient, wanted)
        torch.testing.assert_close(ours.codebook, theirs.codebook)


def test_lfq_losses_equal_the_librarys() -> None:
    torch.manual_seed(0)
    config = LFQ(codebook_size=64, commitment_weight=0.3, entropy_weight=0.2, diversity=1.5)
    theirs = library.LFQ(
        codebook_size=64, commitment_loss_weight=0.3, entropy_loss_weight=0.2, diversity_gamma=1.5
    ).train()
    z = torch.randn(2, 6, 4, 4)
    (latents, codes, loss), _ = theirs(z, return_loss_breakdown=True)
    out = make_quantizer(config)(z)
    assert torch.equal(out.codes, codes.reshape(2, -1))
    torch.testing.assert_close(out.latents, latents)
    torch.testing.assert_close(out.losses["commitment"] + out.losses["entropy"], loss)


def test_bsq_codes_and_vectors_equal_the_librarys() -> None:
    torch.manual_seed(0)
    ours, theirs = make_quantizer(BSQ(codebook_size=64)), library.LFQ(codebook_size=64, spherical=True).eval()
    z = torch.randn(2, 6, 4, 4)
    latents, codes, _ = theirs(z)
    out = ours(z)
    assert torch.equal(out.codes, codes.reshape(2, -1))
    torch.testing.assert_close(out.latents, latents)
    torch.testing.assert_close(out.latents.norm(dim=1), torch.ones(2, 4, 4))


def test_bsq_entropy_equals_that_of_the_table_of_all_codes() -> None:
    torch.manual_seed(0)
    quantizer = make_quantizer(BSQ(codebook_size=8, entropy_weight=0.5, diversity=2.0))
    z = 0.02 * torch.randn(2, 3, 4, 4)
    rows = F.normalize(z.permute(0, 2, 3, 1).reshape(-1, 3), dim=1)
    codes = quantizer.vectors(torch.arange(8)[None], (1, 8))[0, :, 0].T

    def entropy(p: Tensor) -> Tensor:
        return -(p * p.clamp(min=1e-5).log()).sum(-1)

    each = entropy((100 * rows @ codes.T).softmax(-1)).mean()
    ones = (200 / 3**0.5 * rows).sigmoid().mean(0)
    together = (entropy(torch.stack([ones, 1 - ones], -1))).sum()
    torch.testing.assert_close(quantizer(z).losses["entropy"], 0.5 * (each - 2 * together), atol=1e-4, rtol=1e-3)


def test_bsq_of_two_to_the_24_codes_needs_no_table() -> None:
    quantizer = make_quantizer(BSQ(codebook_size=2**24))
    assert list(quantizer.state_dict()) == []
    out = quantizer(torch.randn(1, 24, 8, 8))
    torch.testing.assert_close(quantizer.vectors(out.codes, (8, 8)), out.latents)


def test_ibq_gradients_by_hand() -> None:
    """The value is the best code; the gradient is that of hard + soft - stopped soft times the codebook."""
    torch.manual_seed(0)
    quantizer = make_quantizer(IBQ(codebook_size=8, dim=3, entropy_weight=0.0, commitment_weight=2.0))
    z, pull = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randn(16, 3)
    out = quantizer(z)
    rows = z.permute(0, 2, 3, 1).reshape(-1, 3)
    scores = rows @ quantizer.codebook.T
    soft, hard = scores.softmax(-1), F.one_hot(scores.argmax(-1), 8).float()
    chosen = (hard + soft - soft.detach()) @ quantizer.codebook
    assert torch.equal(out.codes[0], scores.argmax(-1))
    torch.testing.assert_close(out.latents.permute(0, 2, 3, 1).reshape(-1, 3), chosen)
    best = hard @ quantizer.codebook
    loss = (chosen - rows).square().mean() + (best.detach() - rows).square().mean()
    loss = 2 * (loss + 0.25 * (best - rows.detach()).square().mean())
    torch.testing.assert_close(out.losses["commitment"], loss)
    wanted = torch.autograd.grad((chosen * pull).sum() + loss, [z, quantizer.codebook])
    total = (out.latents.permute(0, 2, 3, 1).reshape(-1, 3) * pull).sum() + out.losses["commitment"]
    for mine, other in zip(torch.autograd.grad(total, [z, quantizer.codebook]), wanted, strict=True):
        torch.testing.assert_close(mine, other)
    assert (wanted[1].abs().sum(1) > 0).all()  # codes that nobody chose learn too


def test_accumulated_micro_batches_move_the_codebook_as_one_batch() -> None:
    torch.manual_seed(0)
    whole = make_quantizer(VQ(codebook_size=16, dim=4, kmeans_init=False))
    parts = copy.deepcopy(whole)
    z = torch.randn(6, 4, 5, 5)
    whole(z)
    untouched = parts.codebook.clone()
    parts(z[:2], accumulate=True)
    parts(z[2:4], accumulate=True)
    assert torch.equal(parts.codebook, untouched)
    parts(z[4:])
    torch.testing.assert_close(parts.codebook, whole.codebook)
    assert not torch.equal(parts.codebook, untouched)


@pytest.mark.parametrize("kind", [VQ, Cosine])
def test_kmeans_and_revival_bring_all_codes_into_use(kind: type[VQ]) -> None:
    """16 clusters in the plane, 64 codes: without revival most codes of a bad start would never be chosen."""

    def use(config: VQ) -> int:
        torch.manual_seed(0)
        quantizer = make_quantizer(config).train()
        centres = torch.randn(16, 4) * 3
        for _ in range(80):
            rows = centres[torch.randint(16, (256,))] + 0.1 * torch.randn(256, 4)
            out = quantizer(rows.T.reshape(1, 4, 16, 16))
        return len(out.codes.unique())

    config = {"codebook_size": 64, "dim": 4, "decay": 0.8}
    alone = use(kind(**config, kmeans_init=False, revive_below=0.0))
    assert use(kind(**config, kmeans_init=True, revive_below=0.0)) > 48
    assert use(kind(**config, kmeans_init=False, revive_below=0.1)) > max(40, alone)


@pytest.mark.parametrize("kind", [VQ, Cosine])
def test_learned_codebook_moves_by_its_gradient_alone(kind: type[VQ]) -> None:
    torch.manual_seed(0)
    quantizer = make_quantizer(kind(codebook_size=8, dim=4, learned=True, kmeans_init=False, revive_below=0.0)).train()
    z, before = torch.randn(1, 4, 5, 5, requires_grad=True), quantizer.codebook.detach().clone()
    out = quantizer(z)
    (out.latents.sum() + out.losses["commitment"]).backward()
    assert quantizer.library._codebook.embed.grad is None
    assert torch.equal(quantizer.codebook.detach(), before)
    quantizer(z.detach()).losses["codebook"].backward()
    chosen = torch.zeros(8, dtype=torch.bool).index_fill(0, out.codes.flatten(), True)
    gradient = quantizer.library._codebook.embed.grad[0]
    assert torch.equal(gradient.abs().sum(1) > 0, chosen)
    with torch.no_grad():
        quantizer.library._codebook.embed -= gradient
    assert quantizer(z).losses["codebook"] < out.losses["codebook"]


def test_codebooks_side_by_side() -> None:
    """Each chunk is quantized as alone; ids tell the codebooks apart; missing codebooks give their mean. (An id of
    another codebook is refused where codes are decoded: tests/sample/test_decoding.py.)"""
    quantizer, z = made("multi")
    codes = quantizer.eval().nearest(z)
    for number, (book, part) in enumerate(zip(quantizer.books, z.chunk(3, 1), strict=True)):
        own = codes[:, 15 * number : 15 * (number + 1)]
        assert torch.equal(own, book.nearest(part) + 8 * number)
    first = quantizer.vectors(codes[:, :15], (3, 5))
    whole = quantizer.vectors(codes, (3, 5))
    assert torch.equal(first[:, :2], whole[:, :2])
    torch.testing.assert_close(
        first[:, 2:4], quantizer.books[1].codebook.mean(0)[None, :, None, None].expand(2, 2, 3, 5)
    )


def test_averaged_cosine_codebook_still_has_unit_vectors() -> None:
    """Averaging weights over time shortens the rows; the search and the vectors must not notice."""
    quantizer, z = made("cosine")
    codes = quantizer.nearest(z)
    with torch.no_grad():
        quantizer.library._codebook.embed *= torch.linspace(0.1, 1.0, 32)[None, :, None]
    assert torch.equal(quantizer.nearest(z), codes)
    torch.testing.assert_close(quantizer.vectors(codes, (3, 5)).norm(dim=1), torch.ones(2, 3, 5))
