"""Starting from an adapter: continued, or fused into the base weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowgrain.adapters.adapter_file import FUSED_KEY
from flowgrain.adapters.base import WEIGHTS_NAME, AdapterConfig, InitConfig
from flowgrain.adapters.fusing import fuse, fuse_recorded, fused_in
from flowgrain.adapters.low_rank import inject
from flowgrain.adapters.source import init_digest, locate_adapter, read_adapter
from flowgrain.errors import CheckpointError, ModelError
from flowgrain.families.registry import load_family

TARGETS = ["single_transformer_blocks.*.attn.to_q", "ff.net.2"]
KINDS = ("lora", "dora")


@pytest.fixture
def fresh():
    """A model of one's own: what is fused stays in it."""
    return load_model()


def load_model():
    family = load_family("tiny-flux", None, torch.float32, torch.device("cpu"))
    family.max_sequence_length = 16
    return family


def config(kind="dora", init=None, mode="continue", rank=4, alpha=3.0, targets=TARGETS, given=None):
    init = InitConfig(path=init, mode=mode, alpha=given) if init is not None else None
    return AdapterConfig(kind=kind, rank=rank, alpha=alpha, targets=targets, init_from=init)


def predict(family, batch):
    with torch.no_grad():
        return family.predict(*batch).prediction


def trained(family, settings, seed=1):
    adapter = inject(family, settings, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter.parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
    return adapter


def saved(family, folder, kind, **options):
    adapter = trained(family, config(kind, **options))
    adapter.save(folder, {})
    return adapter


def rewrite(folder, change, header=None):
    """Another trainer's file: tensors changed by ``change``, with ``header`` or none."""
    path = folder / WEIGHTS_NAME
    tensors = load_file(path)
    save_file(change(tensors), folder / "other.safetensors", metadata=header)
    (folder / "other.safetensors").replace(path)


@pytest.mark.parametrize("kind", KINDS)
def test_continue_takes_over_every_bit(flux, batch, tmp_path, kind):
    first = saved(flux, tmp_path, kind)
    state, live = first.state_dict(), predict(flux, batch)
    first.remove()
    second = inject(flux, config(kind, tmp_path), seed=9)
    assert all(torch.equal(state[name], tensor) for name, tensor in second.state_dict().items())
    assert torch.equal(predict(flux, batch), live)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "lora"}, "is a dora, adapter.kind is lora"),
        ({"rank": 5}, r"rank of transformer_blocks\.0\.ff\.net\.2 is 4 there and 5 here"),
        ({"alpha": 5.0}, r"alpha of transformer_blocks\.0\.ff\.net\.2 is 3 there and 5 here"),
        ({"targets": ["ff.net.2"]}, "also adapts single_transformer_blocks"),
        ({"targets": [*TARGETS, "attn.to_k"]}, r"lacks single_transformer_blocks\.0\.attn\.to_k"),
        ({"given": 7.0}, r"alpha of .* is 3 there, adapter\.init_from\.alpha is 7"),
    ],
)
def test_continue_names_what_differs(flux, tmp_path, changed, message):
    saved(flux, tmp_path, "dora").remove()
    with pytest.raises(CheckpointError, match=message):
        inject(flux, config(init=tmp_path, **changed), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_fused_weights_predict_as_the_adapter(fresh, batch, tmp_path, kind):
    base = predict(fresh, batch)
    first = saved(fresh, tmp_path / "first", kind)
    live = predict(fresh, batch)
    first.remove()
    second = inject(fresh, config("dora", tmp_path / "first", "fuse", rank=8), seed=2)
    torch.testing.assert_close(predict(fresh, batch), live, rtol=1e-4, atol=1e-5)
    assert (live - base).abs().max() > 0.05
    second.save(tmp_path / "second", {})
    (record,) = read_adapter(tmp_path / "second").fused
    assert record.path == str((tmp_path / "first" / WEIGHTS_NAME).resolve())
    assert record.sha256 == init_digest(tmp_path / "first")


def test_sampling_reproduces_a_chain_of_fused_adapters(fresh, batch, tmp_path):
    saved(fresh, tmp_path / "a", "lora").remove()
    second = trained(fresh, config("dora", tmp_path / "a", "fuse"), seed=2)
    second.save(tmp_path / "b", {})
    second.remove()
    third = trained(fresh, config("dora", tmp_path / "b", "fuse"), seed=3)
    third.save(tmp_path / "c", {})
    live = predict(fresh, batch)

    family = load_model()
    assert [entry.path.split("/")[-2] for entry in fuse_recorded(family, tmp_path / "c")] == ["a", "b"]
    family.pipeline(tmp_path / "c")
    torch.testing.assert_close(predict(family, batch), live, rtol=1e-4, atol=1e-5)
    # a second call changes nothing, and another chain is refused
    family.components()["transformer"].unload_lora()
    before = predict(family, batch)
    fuse_recorded(family, tmp_path / "c")
    assert torch.equal(predict(family, batch), before)
    with pytest.raises(ModelError, match="hold other fused adapters"):
        fuse_recorded(family, tmp_path / "b")


def test_continuing_an_adapter_on_fused_weights_fuses_them_first(fresh, batch, tmp_path):
    saved(fresh, tmp_path / "a", "lora").remove()
    second = trained(fresh, config("dora", tmp_path / "a", "fuse"), seed=2)
    second.save(tmp_path / "b", {})
    live = predict(fresh, batch)
    family = load_model()
    adapter = inject(family, config("dora", tmp_path / "b"), seed=0)
    torch.testing.assert_close(predict(family, batch), live, rtol=1e-4, atol=1e-5)
    adapter.save(tmp_path / "c", {})
    assert read_adapter(tmp_path / "c").fused == read_adapter(tmp_path / "b").fused
    adapter.remove()
    with pytest.raises(CheckpointError, match="other fused adapters"):
        inject(load_model(), config("dora"), seed=0).load(tmp_path / "b")


def test_what_was_fused_must_be_there_and_the_same(fresh, tmp_path):
    saved(fresh, tmp_path / "a", "lora").remove()
    second = inject(fresh, config("dora", tmp_path / "a", "fuse"), seed=2)
    second.save(tmp_path / "b", {})
    saved(load_model(), tmp_path / "other", "lora", rank=5)
    (tmp_path / "other" / WEIGHTS_NAME).replace(tmp_path / "a" / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match="the adapter was trained on top of"):
        fuse_recorded(load_model(), tmp_path / "b")
    (tmp_path / "a" / WEIGHTS_NAME).unlink()
    with pytest.raises(CheckpointError, match="it is gone"):
        fuse_recorded(load_model(), tmp_path / "b")


def test_a_file_without_alpha_needs_one(flux, batch, tmp_path):
    first = saved(flux, tmp_path, "lora")
    live = predict(flux, batch)
    first.remove()
    rewrite(tmp_path, lambda tensors: tensors)
    with pytest.raises(CheckpointError, match=r"diffusers would silently take alpha = rank \(4\); set adapter\.init"):
        inject(flux, config("lora", tmp_path), seed=0)
    inject(flux, config("lora", tmp_path, given=3.0), seed=0)
    assert torch.equal(predict(flux, batch), live)


def test_alpha_keys_and_other_spellings_of_other_trainers_are_read(flux, batch, tmp_path):
    first = saved(flux, tmp_path, "dora")
    live = predict(flux, batch)
    first.remove()

    def change(tensors):
        renamed = {
            f"{name}.weight" if name.endswith("lora_magnitude_vector") else name: tensor
            for name, tensor in tensors.items()
        }
        return {
            **renamed,
            **{
                name.replace("lora_A.weight", "alpha"): torch.tensor(3.0) for name in tensors if "lora_A.weight" in name
            },
        }

    rewrite(tmp_path, change)
    inject(flux, config("dora", tmp_path), seed=0)
    assert torch.equal(predict(flux, batch), live)


def test_rslora_alpha_is_converted(flux, tmp_path):
    saved(flux, tmp_path, "lora").remove()
    described = {"transformer.lora_alpha": 3.0, "transformer.use_rslora": True}
    rewrite(tmp_path, lambda tensors: tensors, {"lora_adapter_metadata": json.dumps(described)})
    layer = next(iter(read_adapter(tmp_path).components["transformer"].values()))
    assert layer.alpha / layer.rank == pytest.approx(3.0 / 4**0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "lora_unet_x.lora_down.weight": torch.zeros(1)}, "is no tensor of a LoRA or DoRA"),
        (lambda t: {**t, "text_encoder.q.lora_A.weight": torch.zeros(1, 1)}, "lora_B of q are missing"),
        (lambda t: {k: v for k, v in t.items() if "0.ff.net.2.lora_B" not in k}, "are missing or do not fit"),
        (lambda t: {}, "holds weights of nothing"),
    ],
)
def test_files_of_another_kind_are_refused(flux, tmp_path, change, message):
    saved(flux, tmp_path, "lora").remove()
    rewrite(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(tmp_path, 3.0)


def test_fusing_checks_all_before_it_changes_anything(fresh, batch, tmp_path):
    saved(fresh, tmp_path, "lora").remove()
    before = predict(fresh, batch)
    last = "transformer.single_transformer_blocks.4.attn.to_q.lora_B.weight"
    rewrite(tmp_path, lambda tensors: {**tensors, last: torch.zeros(7, 4)})
    with pytest.raises(CheckpointError, match=r"attn\.to_q is 7x192 there and 192x192 in the model"):
        fuse(fresh, tmp_path, 3.0)
    assert torch.equal(predict(fresh, batch), before)
    assert fused_in(fresh) == ()


def test_where_an_adapter_is_found(flux, tmp_path):
    adapter = inject(flux, config("lora"), seed=0)
    checkpoints = tmp_path / "run" / "checkpoints"
    for update in ("000010", "000200", "1000000"):
        adapter.save(checkpoints / f"update-{update}" / "adapter", {})
        if update != "000200":
            (checkpoints / f"update-{update}" / "COMPLETE").touch()
    assert locate_adapter(tmp_path / "run") == checkpoints / "update-1000000" / "adapter" / WEIGHTS_NAME
    checkpoint = checkpoints / "update-000010"
    file = checkpoint / "adapter" / WEIGHTS_NAME
    assert locate_adapter(checkpoint) == locate_adapter(checkpoint / "adapter") == locate_adapter(file) == file
    with pytest.raises(CheckpointError, match="unfinished checkpoint"):
        locate_adapter(checkpoints / "update-000200")
    with pytest.raises(CheckpointError, match="no complete checkpoint and no adapter"):
        locate_adapter(checkpoints)
    with pytest.raises(CheckpointError, match="no such adapter"):
        locate_adapter(tmp_path / "none")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "fox.safetensors").write_bytes(file.read_bytes())
    assert init_digest(foreign) == init_digest(checkpoint)
    (foreign / "wolf.safetensors").write_bytes(file.read_bytes())
    with pytest.raises(CheckpointError, match="2 safetensors files, name one of them"):
        locate_adapter(foreign)
    (foreign / "wolf.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read as an adapter"):
        read_adapter(foreign / "wolf.safetensors")


def test_an_ordinary_adapter_records_nothing(flux, tmp_path):
    saved(flux, tmp_path, "lora").remove()
    assert fuse_recorded(flux, tmp_path) == ()
    assert FUSED_KEY.encode() not in (tmp_path / WEIGHTS_NAME).read_bytes()
