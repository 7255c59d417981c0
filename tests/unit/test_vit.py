"""Vision transformers with hooks: timm's own numbers bit for bit, prefixes and LoRA against loops."""

import pytest
import torch

from engram.backbones import petl
from engram.backbones.vit import HookedViT, Prompts
from engram.models.parts.vision_transformer import require_vit
from engram.utils.errors import UserError
from tests.unit.test_backbones import network

timm = pytest.importorskip("timm")
TINY = "timm:test_vit"  # 6 blocks of width 64, patches of 16 pixels
SIDE = 32


def tiny(**flags):
    return network(TINY, shape=(3, SIDE, SIDE), input_size=SIDE, **flags).eval()


def images(n=3, side=SIDE):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def values(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("test_vit", 48),
        ("vit_tiny_patch16_224", 224),
        ("vit_small_patch14_dinov2", 28),  # layer scale
        ("vit_small_patch14_reg4_dinov2", 28),  # and registers
        ("deit3_small_patch16_224", 32),  # no position for the class token
        ("vit_xsmall_patch16_clip_224", 32),  # a norm before the blocks
    ],
)
def test_features_and_names_are_timms_bit_for_bit(name, side):
    net = network(f"timm:{name}", input_size=0 if side == 224 else side).eval()
    original = timm.create_model(name, num_classes=0, img_size=side).eval()
    assert isinstance(net, HookedViT) and list(net.body.state_dict()) == list(original.state_dict())
    original.load_state_dict(net.body.state_dict())
    x = images(2, side)
    with torch.no_grad():
        assert torch.equal(net.features(x), original(x))
        assert torch.equal(net.tokens(x), original.forward_features(x))
    assert (net.depth, net.width) == (len(original.blocks), original.embed_dim)


@pytest.mark.parametrize("name", ["test_vit2", "test_vit4", "vit_relpos_small_patch16_224"])
def test_other_transformers_have_no_hooks(name):
    """Averaged tokens, other norms, relative positions: timm's forward, not ours."""
    assert not isinstance(network(f"timm:{name}", input_size=SIDE if "test" in name else 0), HookedViT)


def test_images_of_any_size_where_timm_takes_them():
    net = tiny()
    net.side = 0
    original = timm.create_model("test_vit", num_classes=0, img_size=SIDE, dynamic_img_size=True).eval()
    original.load_state_dict(net.body.state_dict())
    with torch.no_grad():
        assert torch.equal(net.features(images(2, 64)), original(images(2, 64)))


@pytest.mark.parametrize("kind", ["adapter", "ssf", "lora", "head"])
def test_what_is_attached_changes_nothing_before_it_has_learned(kind):
    with torch.no_grad():
        assert torch.equal(tiny(tune=kind).features(images()), tiny().features(images()))


def test_prompts_of_no_length_change_nothing():
    net, x = tiny(), images()
    expected = net.features(x)
    nothing = torch.empty(3, 0, net.width)
    prompts = Prompts(nothing, dict.fromkeys(range(net.depth), (nothing, nothing)))
    assert torch.equal(net.features(x, prompts), expected)
    petl.attach_visual_prompts(net, 0, torch.Generator())
    assert torch.equal(net.features(x), expected)


def test_attention_with_a_prefix_against_a_loop():
    """softmax(q [p_K; k]ᵀ / √d) [p_V; v] for each sample, head and query."""
    net, x = tiny(), values(2, 5, 64)
    keys, kept = values(2, 3, 64, seed=2), values(2, 3, 64, seed=3)
    attention = net.blocks[1].attn
    q, k, v = attention.qkv(x).split(64, dim=-1)
    expected = torch.empty(2, 5, 64)
    for n in range(2):
        all_keys, all_values = torch.cat([keys[n], k[n]]), torch.cat([kept[n], v[n]])
        for head in (slice(0, 32), slice(32, 64)):
            for i in range(5):
                weights = torch.stack([q[n, i, head] @ key[head] for key in all_keys]) / 32**0.5
                expected[n, i, head] = weights.softmax(0) @ all_values[:, head]
    torch.testing.assert_close(attention(x, (keys, kept)), attention.proj(expected))


def test_prompts_stand_behind_the_class_token_and_prefixes_reach_their_block():
    net, x = tiny(), images()
    prompts = values(3, 4, net.width)
    tokens = net.tokens(x, Prompts(prompts))
    assert tokens.shape == (3, 1 + 4 + 4, net.width)
    z = net.embedded(x)
    z = torch.cat([z[:, :1], prompts, z[:, 1:]], 1)
    pair = (values(3, 2, net.width, seed=5), values(3, 2, net.width, seed=6))
    for i, block in enumerate(net.blocks):
        z = block(z, pair if i == 2 else None)
    assert torch.equal(net.tokens(x, Prompts(prompts, {2: pair})), net.body.norm(z))
    assert not torch.equal(net.tokens(x, Prompts(prompts, {2: pair})), tokens)


def test_each_sample_gets_its_own_prompts():
    """The features of a batch are those of its samples one by one, in whatever order."""
    net, x = tiny(), images()
    prompts, keys = values(3, 4, net.width), values(3, 2, net.width, seed=2)
    together = net.features(x, Prompts(prompts, {0: (keys, keys)}))
    for n in range(3):
        alone = net.features(x[n : n + 1], Prompts(prompts[n : n + 1], {0: (keys[n : n + 1],) * 2}))
        torch.testing.assert_close(alone[0], together[n], rtol=1e-5, atol=1e-5)


def test_adapters_are_parallel_to_the_mlp_and_see_the_stream_after_attention():
    net, z = tiny(tune="adapter"), values(2, 5, 64)
    block = net.blocks[0]
    with torch.no_grad():
        block.adapter.up.weight.copy_(values(64, 64)), block.adapter.up.bias.fill_(0.5)
    stream = z + block.attn(block.norm1(z))
    hidden = (stream @ block.adapter.down.weight.T + block.adapter.down.bias).clamp_min(0)
    change = 0.1 * (hidden @ block.adapter.up.weight.T + 0.5)
    torch.testing.assert_close(block(z), stream + block.mlp(block.norm2(stream)) + change)


def test_lora_is_a_change_of_the_projections_weights():
    """Σ_j B_j A_j added to the rows of qkv that belong to queries and values, by a loop over pairs."""
    net, x = tiny(), values(2, 5, 64)
    petl.attach_lora(net, 3, torch.Generator().manual_seed(0), "qv", n_pairs=2)
    attention = net.blocks[0].attn
    plain, weight = attention(x), attention.qkv.weight.detach().clone()
    for name, rows in (("q", slice(0, 64)), ("v", slice(128, 192))):
        for j in range(2):
            with torch.no_grad():
                attention.lora[name].up[j].copy_(values(64, 3, seed=j))
            for r in range(3):
                b, a = attention.lora[name].up[j][:, r], attention.lora[name].down[j][r]
                weight[rows] += torch.outer(b, a).detach()
    changed = attention(x)
    assert (changed - plain).abs().max() > 0.1
    attention.lora.clear()
    attention.qkv.weight.data.copy_(weight)
    torch.testing.assert_close(attention(x), changed, rtol=1e-4, atol=1e-4)


def test_scales_and_shifts_follow_every_linear_and_norm_layer():
    net = tiny(tune="ssf")
    added = [name for name, module in net.named_modules() if isinstance(module, petl.ScaleShift)]
    assert len(added) == 1 + 6 * net.depth + 1  # patches; two norms and four linear layers; the last norm
    norm = net.body.norm
    with torch.no_grad():
        norm.scale_shift.scale.copy_(values(64)), norm.scale_shift.shift.copy_(values(64, seed=2))
    z = values(2, 5, 64, seed=3)
    plain = torch.nn.functional.layer_norm(z, (64,), norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(norm(z), values(64) * plain + values(64, seed=2))
    with torch.no_grad():
        net.body.patch_embed.proj.scale_shift.shift.fill_(1)
        assert torch.isfinite(net.features(images())).all()


@pytest.mark.parametrize(("kind", "n_layers"), [("vpt", 6), ("vpt_shallow", 1)])
def test_visual_prompts_pass_through_or_are_replaced_in_every_block(kind, n_layers):
    net, x = tiny(tune=kind, tune_size=2), images()
    prompts = net.visual_prompts.tokens
    assert prompts.shape == (n_layers, 2, net.width)
    z = net.embedded(x)
    z = torch.cat([z, prompts[0].expand(3, -1, -1)], 1)
    for i, block in enumerate(net.blocks):
        if 0 < i < n_layers:
            z = torch.cat([z[:, :5], prompts[i].expand(3, -1, -1)], 1)
        z = block(z)
    assert torch.equal(net.tokens(x), net.body.norm(z[:, :5]))


def test_a_chosen_member_is_used_and_saved():
    net, x = tiny(), images()
    choices = petl.attach_adapter_sets(net, 3, 8, torch.Generator().manual_seed(0))
    with torch.no_grad():
        choices[0].members[2].up.bias.fill_(1)
    before = net.features(x)
    petl.choose(choices, 2)
    after = net.features(x)
    assert not torch.equal(before, after)
    twin = tiny()
    petl.attach_adapter_sets(twin, 3, 8, torch.Generator().manual_seed(1))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.features(x), after)
    choices[0].learn(1)
    assert [m.up.bias.requires_grad for m in choices[0].members] == [False, True, False]


@pytest.mark.parametrize("kind", ["adapter", "ssf", "vpt", "vpt_shallow", "lora", "head"])
def test_what_does_not_learn_needs_no_gradient(kind):
    net = tiny(tune=kind)
    names = {"adapter": ".adapter.", "ssf": ".scale_shift.", "lora": ".lora.", "head": "head."}
    inside = names.get(kind, "visual_prompts.")
    for name, parameter in net.named_parameters():
        assert parameter.requires_grad == (inside in name or name.startswith("head.")), name
    assert any("learn" in note for note in net.notes)


def test_first_values_depend_on_the_seed_alone():
    """Not on the global generator, and the head is the same whatever is attached."""
    torch.manual_seed(5)
    first = tiny(tune="adapter").state_dict()
    torch.manual_seed(6)
    again = tiny(tune="adapter").state_dict()
    other = network(TINY, shape=(3, SIDE, SIDE), input_size=SIDE, tune="adapter", seed=1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "body.blocks.0.adapter.down.weight"
    assert not torch.equal(first[name], other[name])
    assert torch.equal(first["head.weight"], tiny().head.weight)


def test_bf16_passes_take_prompts():
    net, x = tiny(tune="adapter"), images()
    prompts = Prompts(values(3, 4, net.width), {1: (values(3, 2, net.width), values(3, 2, net.width))})
    exact = net.features(x, prompts)
    net.precision = "bf16"
    rounded = net.features(x, prompts)
    assert rounded.dtype == torch.float32 and not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)


def test_a_small_transformer_for_small_images():
    """timm's network of these sizes: 16 patches of 8x8 pixels, and the names that timm gives."""
    sizes = {"patch_size": 2, "embed_dim": 16, "depth": 3, "num_heads": 2}
    net = network("small_vit", shape=(1, 8, 8), **sizes).eval()
    from timm.models.vision_transformer import VisionTransformer

    arguments = {"img_size": 8, "num_classes": 0, **sizes}
    original = VisionTransformer(**arguments).eval()
    original.load_state_dict(net.body.state_dict())
    x = images(2, 8)[:, :1]
    assert isinstance(net, HookedViT) and (net.depth, net.width, net.num_heads) == (3, 16, 2)
    assert net.tokens(x).shape == (2, 17, 16)
    assert torch.equal(net.features(x), original(x.expand(-1, 3, -1, -1)))
    tuned = network("small_vit", shape=(1, 8, 8), tune="adapter", **sizes)
    assert any(".adapter." in name for name, p in tuned.named_parameters() if p.requires_grad)
    assert not tuned.body.pos_embed.requires_grad and tuned.notes


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"patch_size": 3}, "--patch_size 3: does not divide the sides of 8x8 images"),
        ({"num_heads": 5}, "--num_heads 5: does not divide the width, --embed_dim 192"),
    ],
)
def test_sizes_of_a_small_transformer_that_do_not_fit_are_refused(flags, said):
    with pytest.raises(UserError, match=said):
        network("small_vit", shape=(1, 8, 8), **flags)


def test_methods_that_need_a_transformer_say_so():
    net = tiny()
    assert require_vit(net, "l2p") is net
    with pytest.raises(
        UserError, match=r"--model l2p needs a vision transformer .* --backbone timm:vit_small"
    ):
        require_vit(network("mlp"), "l2p")


@pytest.mark.parametrize("kind", ["head", "adapter", "lora"])
def test_methods_that_choose_what_learns_refuse_tune(kind):
    """They would freeze what was attached, and the line at the start would say that it learns."""
    net = network("small_vit", shape=(1, 8, 8), tune=kind)
    with pytest.raises(UserError, match="--model l2p chooses itself what learns: leave --tune out"):
        require_vit(net, "l2p")


def test_a_small_transformer_starts_from_the_encoder_of_a_run(tmp_path):
    """The head of the file, of another number of classes, is left out; another network is refused."""
    sizes = {"patch_size": 2, "embed_dim": 16, "depth": 2, "num_heads": 2}
    trained, file = network("small_vit", shape=(1, 8, 8), seed=1, **sizes), tmp_path / "last.pt"
    weights = {f"body.{name}": value for name, value in trained.body.state_dict().items()}
    torch.save({**weights, "head.weight": torch.zeros(3, 16), "prompts.keys": torch.zeros(3)}, file)
    net = network("small_vit", shape=(1, 8, 8), pretrained=str(file), **sizes)
    x = images(2, 8)[:, :1]
    assert torch.equal(net.eval().features(x), trained.eval().features(x))
    with pytest.raises(UserError, match="the weights of another network"):
        network("small_vit", shape=(1, 8, 8), pretrained=str(file), **sizes | {"depth": 3})
    with pytest.raises(UserError, match="there is no such file"):
        network("small_vit", shape=(1, 8, 8), pretrained=str(tmp_path / "none.pt"), **sizes)
    with pytest.raises(UserError, match=r"default: expected a file .* small_vit has no published weights"):
        network("small_vit", shape=(1, 8, 8), pretrained="default", **sizes)
