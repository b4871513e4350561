"""The models: DeiT-S as timm has it, the locality feed-forward, LocalViT-S, and positions at any image size."""

import itertools
from collections.abc import Callable

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from vit24h.config import ModelConfig
from vit24h.errors import UserError
from vit24h.models import build_model, count_macs, no_weight_decay
from vit24h.models.depthwise import convolve, convolve_shifted
from vit24h.models.position import resample_positions

DEIT_S = {
    "feed_forward": "mlp",
    "image_size": 224,
    "patch_size": 16,
    "embed_dim": 384,
    "depth": 12,
    "num_heads": 6,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "drop_path": 0.1,
    "init": "deit",
    "squeeze_reduction": 384,
}
LOCALITY = {**DEIT_S, "feed_forward": "locality"}
LOCALVIT_S = {**DEIT_S, "feed_forward": "localvit", "num_heads": 8}
# The same in small: 4×4 patches of 8 px at the full size, 16 channels, 32 hidden ones.
SMALL = {
    **DEIT_S,
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "drop_path": 0.0,
    "squeeze_reduction": 8,
}
KINDS = ("mlp", "locality", "localvit")
CONVOLVING_KINDS = ("locality", "localvit")


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def make(fields: dict, num_classes: int = 5, **changes) -> nn.Module:
    return build_model(ModelConfig(**{**fields, **changes}), num_classes)


def shake(model: nn.Module) -> nn.Module:
    """Every weight, bias and running statistic random, so that none can be left out without notice."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model


def silence_attention(model: nn.Module) -> nn.Module:
    """Only the feed-forward halves of the blocks are left at work."""
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
    return model


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---- DeiT-S ---------------------------------------------------------------------------------------------------------


def test_timms_deit_small_loads_by_name_and_gives_the_same_logits():
    theirs = shake(timm.create_model("deit_small_patch16_224", pretrained=False)).eval()
    ours = make(DEIT_S, num_classes=1000).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected, found = theirs(images), ours(images)
    assert expected.std() > 0.1  # the comparison is about something
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# Without its feed-forward halves, at 384 channels, 196 patches, 1000 classes, in the order of the forward pass.
AROUND_BLOCKS = (16 * 16 * 3 * 384 + 384) + 384 + 197 * 384 + 2 * 384 + (384 * 1000 + 1000)
ATTENTION_HALF = 2 * 384 + (384 * 1152 + 1152) + (384 * 384 + 384)
NORM2 = 2 * 384
MLP = (384 * 1536 + 1536) + (1536 * 384 + 384)
LOCALITY_FEED_FORWARD = 384 * 1536 + 9 * 1536 + 1536 * 384
LOCALVIT_FEED_FORWARD = (
    (384 * 1536 + 2 * 1536)  # 1×1 convolution, batch norm
    + (9 * 1536 + 2 * 1536)  # depth-wise convolution, batch norm
    + (1536 * 4 + 4)  # squeeze
    + (4 * 1536 + 1536)  # excite
    + (1536 * 384 + 2 * 384)  # 1×1 convolution, batch norm
)


@pytest.mark.parametrize(
    ("fields", "parts", "published"),
    [
        (DEIT_S, NORM2 + MLP, 22_050_664),
        (LOCALITY, NORM2 + LOCALITY_FEED_FORWARD, 22_193_512),
        (LOCALVIT_S, LOCALVIT_FEED_FORWARD, 22_433_176),
        ({**DEIT_S, "qkv_bias": False}, NORM2 + MLP - 1152, 22_050_664 - 12 * 1152),
    ],
    ids=["DeiT-S", "locality", "LocalViT-S", "DeiT-S without qkv bias"],
)
def test_parameter_counts(fields, parts, published):
    assert AROUND_BLOCKS + 12 * (ATTENTION_HALF + parts) == published
    assert count(make(fields, num_classes=1000)) == published


def test_locality_adds_11904_parameters_a_block_to_deit_s():
    assert 22_193_512 - 22_050_664 == 12 * 11_904
    assert LOCALITY_FEED_FORWARD - MLP == 11_904


@pytest.mark.parametrize(
    ("fields", "published_gmacs"), [(DEIT_S, 4.6), (LOCALITY, None), (LOCALVIT_S, None)], ids=KINDS
)
def test_macs_at_224_px(fields, published_gmacs):
    patches, tokens, blocks = 196, 197, 12
    feed_forward = {
        "mlp": tokens * 2 * 384 * 1536,
        "locality": patches * (2 * 384 * 1536 + 9 * 1536),  # the class token stays out
        "localvit": patches * (2 * 384 * 1536 + 9 * 1536) + 2 * 1536 * 4,  # squeeze-excitation is once an image
    }[fields["feed_forward"]]
    attention = tokens * 384 * (1152 + 384) + 2 * tokens * tokens * 384
    expected = patches * 768 * 384 + blocks * (attention + feed_forward) + 384 * 1000

    model = make(fields, num_classes=1000)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count_macs(model, 224) == expected
    if published_gmacs:
        assert round(expected / 1e9, 1) == published_gmacs
    assert model.training
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_small_images_cost_what_their_tokens_cost():
    model = make(DEIT_S, num_classes=1000)
    # 5 tokens at 32 px against 197 at 224: a little less than their ratio, attention being quadratic.
    assert 0.9 * 5 / 197 < count_macs(model, 32) / count_macs(model, 224) < 5 / 197


# ---- Positions ------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 20), columns=st.integers(1, 20), full=st.integers(1, 14))
@settings(max_examples=50, deadline=None)
def test_positions_are_resampled_as_bicubic_interpolation_does(rows, columns, full):
    embedding = torch.randn(1, 1 + full * full, 3, dtype=torch.float64, requires_grad=True)
    found = resample_positions(embedding, (full, full), (rows, columns))

    image = embedding[:, 1:].transpose(1, 2).unflatten(2, (full, full))  # (1, C, full, full)
    image = F.interpolate(image, size=(rows, columns), mode="bicubic", align_corners=False, antialias=False)
    expected = torch.cat((embedding[:, :1], image.flatten(2).transpose(1, 2)), dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)

    weights = torch.randn_like(found)
    (found_gradient,) = torch.autograd.grad((found * weights).sum(), embedding)
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), embedding)
    torch.testing.assert_close(found_gradient, expected_gradient, rtol=0, atol=1e-12)


def test_positions_at_the_full_grid_are_the_parameter_itself():
    embedding = torch.randn(1, 1 + 9, 4)
    assert resample_positions(embedding, (3, 3), (3, 3)) is embedding


def test_the_class_tokens_position_is_the_same_at_every_size():
    embedding = torch.randn(1, 1 + 9, 4)
    for grid in ((1, 1), (2, 5), (7, 3)):
        assert torch.equal(resample_positions(embedding, (3, 3), grid)[:, 0], embedding[:, 0])


def test_positions_are_not_rounded_under_autocast():
    embedding = torch.randn(1, 1 + 9, 4)
    plain = resample_positions(embedding, (3, 3), (2, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = resample_positions(embedding, (3, 3), (2, 4))
    assert cast.dtype == torch.float32
    assert torch.equal(cast, plain)


@pytest.mark.parametrize("kind", KINDS)
# At 32 px the 2 × 2 points fall on grid points 3 and 10 exactly, so bicubic without antialiasing reads 4 positions.
@pytest.mark.parametrize(("image_size", "positions_trained"), [(32, 4), (96, 196), (192, 196), (224, 196)])
def test_every_image_size_trains_the_one_position_embedding(kind, image_size, positions_trained):
    model = make(DEIT_S, feed_forward=kind, embed_dim=16, depth=1, num_heads=2, squeeze_reduction=8)
    model(torch.randn(2, 3, image_size, image_size)).square().sum().backward()
    gradient = model.pos_embed.grad[0].norm(dim=1)
    assert gradient[0] > 0  # the class token's
    assert (gradient[1:] > 0).sum() == positions_trained


def test_evaluating_between_training_sizes_leaves_positions_alone():
    model = make(SMALL)
    parameter, before = model.pos_embed, model.pos_embed.detach().clone()
    with torch.no_grad():
        for size in (16, 32, 24, 64, 32):
            model(torch.randn(1, 3, size, size))
    assert model.pos_embed is parameter
    assert torch.equal(parameter, before)
    assert parameter.shape == (1, 1 + 4 * 4, 16)


# ---- Any image ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(8, 8), (24, 24), (40, 40), (64, 64), (16, 40), (56, 8)], ids=str)
def test_any_image_that_patches_tile_gets_logits(kind, size):
    model = make(SMALL, feed_forward=kind)
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()
    logits.sum().backward()


@pytest.mark.parametrize("size", [(50, 48), (48, 50), (4, 8)], ids=str)
def test_an_image_that_patches_do_not_tile_is_refused(size):
    with pytest.raises(UserError, match=f"{size[0]}×{size[1]} px.*multiples of the model's patch size, 8 px"):
        make(SMALL)(torch.randn(1, 3, *size))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 50}, r"model.image_size is 50, .* model.patch_size, 8; set model.image_size to 48 or 56"),
        ({"image_size": 4}, r"model.image_size is 4, .* model.patch_size, 8; set model.image_size to 8"),
        ({"num_heads": 3}, r"model.embed_dim is 16, .* model.num_heads, 3; set model.embed_dim to 15 or 18"),
        ({"feed_forward": "localvit", "squeeze_reduction": 33}, r"squeeze_reduction is 33, .*set it to 32 at most"),
    ],
    ids=["image size", "image below patch", "heads", "squeeze"],
)
def test_sizes_that_do_not_fit_each_other_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as raised:
        make(SMALL, **changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_without_breaks_holds_the_whole_training_step(kind):
    torch.compiler.reset()  # the limit of compilations is per process
    model = shake(make(SMALL, feed_forward=kind, depth=2, drop_path=0.5))
    images = torch.randn(2, 3, 16, 24)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
    compiled(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    torch.testing.assert_close(compiled(images), model(images))


# ---- The locality feed-forward and LocalViT's -----------------------------------------------------------------------


def h_swish(x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6


def convolve_by_hand(tokens: Tensor, grid: tuple[int, int], kernel: Tensor) -> Tensor:
    """Depth-wise 3×3 on tokens (B, rows · columns, C), one neighbour at a time; kernel (C, 1, 3, 3)."""
    rows, columns = grid
    mixed = torch.zeros_like(tokens)
    for row, column, down, right in itertools.product(range(rows), range(columns), (-1, 0, 1), (-1, 0, 1)):
        if 0 <= row + down < rows and 0 <= column + right < columns:
            neighbour = tokens[:, (row + down) * columns + column + right]
            mixed[:, row * columns + column] += neighbour * kernel[:, 0, 1 + down, 1 + right]
    return mixed


def test_the_locality_block_is_the_published_formula():
    block = shake(make(SMALL, feed_forward="locality")).eval().blocks[0]
    grid, tokens = (3, 5), torch.randn(2, 1 + 15, 16)
    after_attention = tokens + block.attn(block.norm1(tokens))
    x = after_attention[:, 1:]
    y = F.layer_norm(x, (16,), block.norm2.weight, block.norm2.bias, eps=1e-6)
    y = h_swish(y @ block.mlp.fc1.weight.T)
    y = h_swish(convolve_by_hand(y, grid, block.mlp.depthwise.weight))
    x = x + y @ block.mlp.fc2.weight.T
    torch.testing.assert_close(block(tokens, grid), torch.cat((after_attention[:, :1], x), dim=1))


def test_the_localvit_block_is_the_published_formula():
    block = shake(make(SMALL, feed_forward="localvit")).eval().blocks[0]
    mlp, grid, tokens = block.mlp, (3, 5), torch.randn(2, 1 + 15, 16)

    def norm(y: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        return (y - layer.running_mean) / (layer.running_var + layer.eps).sqrt() * layer.weight + layer.bias

    def linear(y: Tensor, layer: nn.Conv2d) -> Tensor:
        y = y @ layer.weight[:, :, 0, 0].T
        return y if layer.bias is None else y + layer.bias

    after_attention = tokens + block.attn(block.norm1(tokens))
    x = after_attention[:, 1:]
    y = h_swish(norm(linear(x, mlp.expand), mlp.expand_norm))
    y = h_swish(norm(convolve_by_hand(y, grid, mlp.depthwise.weight), mlp.depthwise_norm))
    squeezed = F.relu(linear(y.mean(dim=1, keepdim=True), mlp.squeeze_excite.fc1))
    assert squeezed.shape == (2, 1, 32 // 8)
    y = y * F.relu6(linear(squeezed, mlp.squeeze_excite.fc2) + 3) / 6
    x = x + norm(linear(y, mlp.project), mlp.project_norm)
    torch.testing.assert_close(block(tokens, grid), torch.cat((after_attention[:, :1], x), dim=1))


@pytest.mark.parametrize("kind", CONVOLVING_KINDS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_the_class_token_passes_the_convolving_half_unchanged(kind, training):
    block = silence_attention(shake(make(SMALL, feed_forward=kind, drop_path=0.3))).train(training).blocks[1]
    tokens = torch.randn(4, 1 + 6, 16)
    found = block(tokens, (2, 3))
    assert torch.equal(found[:, 0], tokens[:, 0])
    assert not torch.equal(found[:, 1:], tokens[:, 1:])


@pytest.mark.parametrize("kind", CONVOLVING_KINDS)
@pytest.mark.parametrize("hot", [(1, 2), (0, 0), (2, 4), (0, 4), (2, 0)], ids=str)
def test_one_hot_pixel_reaches_exactly_its_neighbours_on_the_grid(kind, hot):
    """On 3 × 5 patches, where swapped axes or a row that wraps into the next would show."""
    rows, columns = 3, 5
    model = silence_attention(shake(make(SMALL, feed_forward=kind, depth=1))).eval()
    if kind == "localvit":  # the gate is a mean over the whole image; hold it still
        nn.init.zeros_(model.blocks[0].mlp.squeeze_excite.fc2.weight)
    seen = []
    model.blocks[0].register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens))
    image = torch.zeros(1, 3, rows * 8, columns * 8)
    with torch.inference_mode():
        model(image)
        image[0, 0, hot[0] * 8 + 3, hot[1] * 8 + 5] = 1.0
        model(image)
    before, after = seen
    changed = (before != after)[0, 1:].any(dim=1).unflatten(0, (rows, columns))
    expected = torch.zeros(rows, columns, dtype=torch.bool)
    expected[max(hot[0] - 1, 0) : hot[0] + 2, max(hot[1] - 1, 0) : hot[1] + 2] = True
    assert torch.equal(changed, expected)


@pytest.mark.parametrize("convolution", [convolve, convolve_shifted])
def test_the_kernels_upper_row_looks_at_the_row_above(convolution):
    weight = torch.zeros(2, 1, 3, 3)
    weight[:, :, 0, 2] = 1.0  # above, to the right
    tokens = torch.arange(2.0 * 15).reshape(1, 15, 2)  # 3 × 5 patches
    found = convolution(tokens, weight, (3, 5)).unflatten(1, (3, 5))
    grid = tokens.unflatten(1, (3, 5))
    assert torch.equal(found[:, 1:, :4], grid[:, :2, 1:])
    assert not found[:, 0].any()
    assert not found[:, :, 4].any()


@pytest.mark.parametrize("num_heads", [2, 8])
def test_the_number_of_heads_is_the_configs(num_heads):
    for kind in KINDS:
        model = make(SMALL, feed_forward=kind, num_heads=num_heads)
        assert {block.attn.num_heads for block in model.blocks} == {num_heads}


def test_heads_see_different_things():
    one, two = (shake(make(SMALL, num_heads=heads)).eval() for heads in (1, 2))
    two.load_state_dict(one.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(one(images), two(images))


def test_localvit_has_no_layer_norm_before_its_feed_forward():
    names = {
        name for name, module in make(SMALL, feed_forward="localvit").named_modules() if type(module) is nn.LayerNorm
    }
    assert names == {"blocks.0.norm1", "blocks.1.norm1", "blocks.2.norm1", "norm"}


@pytest.mark.parametrize("kind", ["mlp", "locality"])
def test_no_batch_norm_outside_localvit(kind):
    assert not any(isinstance(module, nn.BatchNorm2d) for module in make(SMALL, feed_forward=kind).modules())


# ---- Stochastic depth -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_depth_grows_linearly_from_zero(kind):
    model = make(SMALL, feed_forward=kind, depth=5, drop_path=0.2)
    rates = [module.p for module in model.modules() if isinstance(module, StochasticDepth)]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert make(SMALL, feed_forward=kind, depth=1, drop_path=0.2).blocks[0].drop_path.p == 0.0


def residuals(model: nn.Module, silence: Callable[[nn.Module], object]) -> tuple[Tensor, Tensor]:
    """What the last block adds to the patch tokens of 400 copies of an image: in training, and in evaluation."""
    block = model.blocks[-1]
    silence(block)
    tokens = torch.randn(1, 1 + 6, 16).expand(400, -1, -1)
    with torch.no_grad():
        training, evaluation = ((block.train(mode)(tokens, (2, 3)) - tokens)[:, 1:] for mode in (True, False))
    return training, evaluation


def silence_attention_half(block: nn.Module) -> None:
    nn.init.zeros_(block.attn.proj.weight)
    nn.init.zeros_(block.attn.proj.bias)


def silence_feed_forward_half(block: nn.Module) -> None:
    last = block.mlp.project_norm if hasattr(block.mlp, "project_norm") else block.mlp.fc2
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


@pytest.mark.parametrize(
    ("kind", "silence"),
    [
        ("mlp", silence_attention_half),
        ("mlp", silence_feed_forward_half),
        ("locality", silence_attention_half),
        ("locality", silence_feed_forward_half),
        ("localvit", silence_feed_forward_half),
    ],
)
def test_a_sample_loses_a_half_block_or_gains_what_keeps_the_mean(kind, silence):
    training, evaluation = residuals(shake(make(SMALL, feed_forward=kind, drop_path=0.4)), silence)
    dropped = (training == 0).flatten(1).all(dim=1)
    assert 0.3 < dropped.float().mean() < 0.5  # 400 draws at 0.4: four standard deviations
    torch.testing.assert_close(training[~dropped], evaluation[~dropped] / 0.6, rtol=1e-4, atol=1e-5)


def test_localvits_feed_forward_is_never_dropped():
    training, _ = residuals(shake(make(SMALL, feed_forward="localvit", drop_path=0.9)), silence_attention_half)
    assert training.flatten(1).any(dim=1).all()


# ---- Initialisation and parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_deit_initialisation_is_a_normal_of_deviation_002_with_zero_biases(kind):
    model = make(DEIT_S, feed_forward=kind, depth=1)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert module.bias is None or not module.bias.any(), name
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.cls_token.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_released_initialisation_is_xavier_normal_with_pytorchs_biases(kind):
    model = make(DEIT_S, feed_forward=kind, depth=1, init="released")
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            xavier = (2 / (module.in_features + module.out_features)) ** 0.5
            assert module.weight.std().item() == pytest.approx(xavier, rel=0.05), name
            if module.bias is not None:  # uniform within ±1/√in_features
                assert module.bias.any(), name
                assert module.bias.abs().max() <= module.in_features**-0.5, name
    assert model.cls_token.std().item() == pytest.approx((2 / (384 + 384)) ** 0.5, rel=0.2)
    # A (1, 197, 384) tensor read as a convolution's weight: 197 · 384 in, 1 · 384 out.
    assert model.pos_embed.std().item() == pytest.approx((2 / (197 * 384 + 384)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("init", ["deit", "released"])
def test_the_same_seed_gives_the_same_weights(init):
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(make(SMALL, init=init).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_no_parameter_is_there_for_nothing(kind, qkv_bias):
    model = shake(make(SMALL, feed_forward=kind, qkv_bias=qkv_bias))
    model(torch.randn(2, 3, 24, 24)).square().sum().backward()
    # Zero for the bias of keys by symmetry of softmax, but a gradient all the same.
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert ("blocks.0.attn.qkv.bias" in dict(model.named_parameters())) == qkv_bias


def test_weight_decay_spares_biases_norms_class_token_and_positions():
    decayed = {kind: set(dict(make(SMALL, feed_forward=kind, depth=1).named_parameters())) for kind in KINDS}
    for kind in KINDS:
        decayed[kind] -= no_weight_decay(make(SMALL, feed_forward=kind, depth=1))
    shared = {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "head.weight"}
    assert decayed["mlp"] == shared | {"blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"}
    assert decayed["locality"] == decayed["mlp"] | {"blocks.0.mlp.depthwise.weight"}
    convolutions = ("expand", "depthwise", "project", "squeeze_excite.fc1", "squeeze_excite.fc2")
    assert decayed["localvit"] == shared | {f"blocks.0.mlp.{name}.weight" for name in convolutions}
    assert {"cls_token", "pos_embed"} <= no_weight_decay(make(SMALL))


def test_deit_names_are_kept_where_the_layer_is_the_same():
    deit, locality, localvit = (set(make(SMALL, feed_forward=kind, depth=1).state_dict()) for kind in KINDS)
    assert deit - locality == {"blocks.0.mlp.fc1.bias", "blocks.0.mlp.fc2.bias"}
    assert locality - deit == {"blocks.0.mlp.depthwise.weight"}
    assert {name for name in deit - localvit if ".mlp." not in name} == {"blocks.0.norm2.weight", "blocks.0.norm2.bias"}
