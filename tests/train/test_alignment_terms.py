"""Alignment terms in the objective: what they add, what they leave alone, and what is refused."""

import dataclasses

import pytest
import torch
import workers
from aligned_runs import TAP, features_of, first, save_encoder, silent, term

from flowgrain.align.gram import GramTarget, gram_loss, unit_rows
from flowgrain.align.grids import Grid
from flowgrain.align.patches import cosine_alignment, cosine_margin, spatial_z_score
from flowgrain.align.relations import gram_anchor, gram_margin
from flowgrain.align.structure import similarity_correlation
from flowgrain.errors import ConfigError, ModelError
from flowgrain.families.base import Prediction
from flowgrain.families.registry import load_family, load_skeleton
from flowgrain.train.runtime import ALONE
from flowgrain.train.setup import prepare
from flowgrain.train.tap_layout import tap_layouts


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder") / "dino")


def gradients(session, batch):
    (batch.weight.float() * session.objective.per_sample(batch).total).sum().backward()
    found = {}
    for name, parameter in session.objective.parameters():
        found[name], parameter.grad = parameter.grad, None
    return found


def moved(session):
    """A session whose adapter is not at its start, where half of its parameters have no gradient."""
    for i, (_, parameter) in enumerate(session.adapter.parameters()):
        parameter.data.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return session


EXPECTED = {
    "gram": (0.5, lambda z, f: gram_loss(z, GramTarget.of(f, 24))),
    "gram_anchor": (0.5, gram_anchor),
    "repa": (0.5, cosine_alignment),
    "irepa": (1.0, lambda z, f: cosine_alignment(z, spatial_z_score(f, 1.0))),
    "vf": (0.1, lambda z, f: gram_margin(z, f, 0.25) + cosine_margin(z, f, 0.5)),
    "trd": (0.5, lambda z, f: gram_margin(z, f, 0.1)),
}


def test_all_kinds_at_once_add_weight_times_their_value(recipe, encoder):
    """Six heads on one tap: values by hand from what the block gives, one encoder and one grid."""
    session = prepare(recipe(align=[term(encoder, kind) for kind in EXPECTED]), silent)
    batch, family, objective = first(session), session.family, session.objective
    assert list(batch.features) and len(batch.features) == 1  # computed once for all of them
    seen = {}
    predict = family.predict
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "predict", lambda *args: seen.setdefault("out", predict(*args)))
        losses = objective.per_sample(batch)
    tokens, features = seen["out"].taps[TAP], next(iter(batch.features.values()))
    height, width = (side // 2 for side in batch.x0.shape[2:])
    assert tokens.shape[1] == height * width
    total = losses.parts["flow"].clone()
    for item in objective.terms:
        weight, loss = EXPECTED[item.name]
        # the head by hand: a map, row by row, then the mean over equal cells
        maps = item.head().project(tokens.mT.unflatten(2, (height, width)))
        grid = item.grid(*batch.x0.shape[2:])
        maps = torch.nn.functional.adaptive_avg_pool2d(maps, tuple(grid))
        value = loss(maps.flatten(2).mT, features)
        assert item.weight == weight
        assert torch.allclose(losses.parts[item.name], value, atol=1e-6), item.name
        assert torch.equal(losses.watched[item.name], losses.parts[item.name])
        total = total + weight * value
        correlation = losses.watched[f"{item.name}.similarity"]
        assert torch.allclose(correlation, similarity_correlation(
            unit_rows(maps.flatten(2).mT), unit_rows(features)), atol=1e-5)  # fmt: skip
    assert torch.allclose(losses.total.float(), total, atol=1e-5)
    assert objective.terms[0].name not in ("", None)


def test_weight_zero_is_the_baseline_bitwise_and_opens_no_encoder(recipe):
    """The encoder's folder does not exist."""
    config = recipe(align=[term("dino:nowhere", weight=0)])
    assert config.identity() == recipe().identity()
    plain, switched = moved(prepare(recipe(), silent)), moved(prepare(config, silent))
    batch = first(switched)
    assert switched.objective.terms == () and batch.features == {} and batch.watch is None
    expected, found = gradients(plain, first(plain)), gradients(switched, batch)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_only_the_blocks_up_to_the_tap_are_pulled(recipe, encoder):
    plain = gradients(moved(prepare(recipe(), silent)), first(prepare(recipe(), silent)))
    session = moved(prepare(recipe(align=[term(encoder)]), silent))
    found = gradients(session, first(session))
    changed = {name for name, value in plain.items() if not torch.equal(found[name], value)}
    assert changed and all(name.startswith("transformer.transformer_blocks.0.") for name in changed)
    assert {name for name in found if name not in plain} == {"align.gram.conv.weight", "align.gram.conv.bias"}
    assert all(found[f"align.gram.conv.{name}"].norm() > 0 for name in ("weight", "bias"))


def test_cached_and_live_tokens_are_the_same_bits(recipe, encoder, tmp_path):
    """Half of the slices are mirrored."""
    live = features_of(recipe, encoder, False)
    for kept in (True, str(tmp_path / "cache"), str(tmp_path / "cache")):
        found = features_of(recipe, encoder, kept)
        assert len(found) > 3 and found.keys() == live.keys()
        assert all(torch.equal(found[name], live[name]) for name in live)
        assert {value.dtype for value in found.values()} == {torch.float16}
    assert list((tmp_path / "cache").glob("*structure*"))


def test_terms_share_an_encoder_and_slices_keep_their_mirror_state(recipe, encoder):
    align = [term(encoder), term(encoder, "repa", grid={"edge": 2}), term(encoder, "irepa", grid={"edge": 2})]
    session = prepare(recipe(align=align), silent)
    batch, keys = first(session), {item.name: item.key(8, 8) for item in session.objective.terms}
    assert set(batch.features) == set(keys.values()) and keys["repa"] == keys["irepa"] != keys["gram"]
    assert batch.features[keys["repa"]].shape[1:] == (4, 24) and batch.features[keys["gram"]].shape[1:] == (16, 24)
    references = session.builder._references
    plain, mirrored = (references.tokens([0], [flip])[keys["gram"]] for flip in (False, True))
    assert plain.shape == mirrored.shape and not torch.equal(plain, mirrored)


@pytest.mark.parametrize("kind", ["gram", "irepa"])
def test_any_micro_batch_size_gives_the_same_gradient(recipe, encoder, kind):
    found = []
    for micro in (1, 16):
        config = recipe(align=[term(encoder, kind, weight=5.0)], tuples={"batch_size": 5, "micro_batch": micro})
        session = workers.prepare_double(config, ALONE)
        update = session.plan(0)[0]
        assert micro == 1 or any(len(part.slices) > 1 for part in update.micro_batches)
        found.append(workers.gradient(session, update)[1])
    assert (found[0] - found[1]).norm() <= 1e-6 * found[0].norm()


@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_give_the_gradient_of_one(recipe, encoder, tmp_path, sharded):
    """Heads are a part of what is summed; frozen blocks in shards give the same features."""
    recipes = [recipe(align=[term(encoder, weight=5.0)], tuples={"batch_size": batch}) for batch in (1, 5)]
    expected = workers.gradients(recipes)
    environment = workers.SHARDED if sharded else {}
    ended = workers.run_processes(tmp_path / "two", 2, workers.gradients, recipes, environment=environment)
    assert [process.exit_code for process in ended] == [0, 0], ended
    for process in ended:
        for (_, mine, _), (_, theirs, _) in zip(expected, process.value, strict=True):
            assert (mine - theirs).norm() <= 1e-6 * mine.norm()


def test_checkpointed_blocks_give_the_same_gradient(recipe, unet_recipe, encoder):
    """What is captured is what the block returned in the forward pass, not what the backward pass computes again."""
    for build, tap in ((recipe, TAP), (unet_recipe, "down_blocks.1"), (unet_recipe, "mid_block")):
        aligned = {"align": [term(encoder, tap=tap, weight=5.0, grid={"edge": 1 if tap == "mid_block" else 2})]}
        found = []
        for checkpointing in (False, True):
            session = moved(prepare(build(**aligned, memory={"gradient_checkpointing": checkpointing}), silent))
            assert any(getattr(m, "gradient_checkpointing", False) for m in session.family.backbone.modules()) == (
                checkpointing
            )
            found.append(gradients(session, first(session)))
        for name, value in found[0].items():
            assert torch.allclose(found[1][name], value, rtol=1e-6, atol=1e-9), (tap, name)


def test_a_u_nets_maps_are_found_and_read_row_by_row(unet_recipe, small_sdxl, encoder):
    """At a size that is not square, against the block's own output."""
    taps = ("down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
    family = load_family(str(small_sdxl), None, torch.float32, torch.device("cpu"))
    layouts = tap_layouts(load_skeleton(str(small_sdxl), None, torch.float32), taps)
    edge = {"grid": {"edge": 64}, "head": {"kind": "identity"}}
    aligned = [term(encoder, "gram", name=tap.replace(".", "-"), tap=tap, **edge) for tap in taps]
    session = prepare(unet_recipe(align=aligned), silent)
    batch = next(b for b in batches(session) if b.x0.shape[2] != b.x0.shape[3])
    seen = {}
    for tap in taps:
        block = family._block(tap)
        block.register_forward_hook(lambda _m, _i, out, tap=tap: seen.setdefault(tap, out))
    t = torch.full((len(batch.x0), 1), 0.5)
    with torch.no_grad():
        family.predict(batch.x0, t, family.condition(batch.inputs))
    for item, tap in zip(session.objective.terms, taps, strict=True):
        maps = seen[tap][0] if isinstance(seen[tap], tuple) else seen[tap]
        assert (item.shape.width, item.shape.cells) == (layouts[tap].width, layouts[tap].cells)
        assert maps.shape[1] == layouts[tap].width
        assert [side * layouts[tap].cells for side in maps.shape[2:]] == list(batch.x0.shape[2:])
        grid = item.grid(*batch.x0.shape[2:])
        assert grid == Grid(*maps.shape[2:])
        tokens = item.head()(family._tapped(maps), grid, Grid(*maps.shape[2:]))
        assert torch.equal(tokens, maps.flatten(2).mT)


def batches(session):
    return [session.builder.build(micro, 0) for update in session.plan(0) for micro in update.micro_batches]


def test_outside_of_its_noise_levels_a_term_is_nothing(recipe, encoder):
    plain = prepare(recipe(align=[term(encoder)]), silent)
    whole = [plain.objective.per_sample(batch) for batch in batches(plain)]
    session = prepare(recipe(align=[term(encoder, t_range=[0.0, 0.5])]), silent)
    inside = 0
    for batch, all_levels in zip(batches(session), whole, strict=True):
        losses = session.objective.per_sample(batch)
        for k, t in enumerate(losses.t.tolist()):
            inside += t <= 0.5
            expected = all_levels.parts["gram"][k] if t <= 0.5 else torch.tensor(0.0)
            assert torch.equal(losses.parts["gram"][k], expected)
            assert losses.watched["gram"][k].isnan() == (t > 0.5)
    assert 0 < inside < sum(len(losses.t) for losses in whole)


def test_masked_tokens_do_not_count(recipe, encoder, tmp_path):
    from aligned_runs import write_masked_pictures

    folder = write_masked_pictures(tmp_path / "pictures")
    data = {"path": str(folder), "resolution": 64, "mask": "file"}
    kinds = [term(encoder, kind) for kind in EXPECTED]
    session = prepare(recipe(data=data, align=kinds, tuples={"batch_size": 3, "grouping": "slice"}), silent)
    batch = first(session)
    (key, mask), (_, features) = next(iter(batch.token_masks.items())), next(iter(batch.features.items()))
    by_name = dict(zip(batch.names, mask.unflatten(1, (4, 4)), strict=True))
    assert len(by_name) == 3
    left = torch.tensor([[True, True, False, False]] * 4)
    shown = {name.split("-")[0]: value for name, value in by_name.items()}
    assert torch.equal(shown["half"], left) and shown["whole"].all() and not shown["sliver"].any()

    def parts(batch):
        return session.objective.per_sample(batch)

    before = parts(batch)
    spoiled = features.clone()
    spoiled[~mask] = torch.randn(int((~mask).sum()), 24, generator=torch.Generator().manual_seed(0)).half()
    after = parts(dataclasses.replace(batch, features={key: spoiled}))
    kept = parts(dataclasses.replace(batch, token_masks={}))
    half = next(k for k, name in enumerate(batch.names) if "half" in name)
    none = next(k for k, name in enumerate(batch.names) if "sliver" in name)
    for name in EXPECTED:
        assert torch.allclose(before.parts[name], after.parts[name], atol=1e-6), name
        assert not torch.equal(before.parts[name], torch.zeros(3)), name
        assert before.parts[name][none] == 0
        assert not torch.allclose(before.parts[name][half], kept.parts[name][half], rtol=1e-3), name
    assert all(value.isfinite().all() for value in gradients(session, batch).values())


def test_a_watched_share_is_drawn_by_identity(recipe, encoder):
    half = prepare(recipe(align=[term(encoder, watch=0.5)]), silent)
    whole = prepare(recipe(align=[term(encoder)]), silent)
    assert half.recipe.identity() == whole.recipe.identity()  # it changes nothing that is computed
    shown = drawn = 0
    for a, b in zip(batches(half), batches(whole), strict=True):
        some = half.objective.per_sample(a).watched.get("gram.similarity")
        every = whole.objective.per_sample(b).watched["gram.similarity"]
        assert every.isfinite().all()
        for k, name in enumerate(a.names):
            assert name == b.names[k]
            drawn += 1
            if some is not None and not some[k].isnan():
                shown += 1
                assert torch.allclose(some[k], every[k], atol=1e-6)
    assert 0 < shown < drawn


def test_names_and_short_forms(recipe, encoder):
    listed = recipe(align=[term(encoder, weight=0.25)])
    mapped = recipe(align={"gram": {k: v for k, v in term(encoder, weight=0.25).items() if k != "kind"}, "off": None})
    assert mapped == listed and mapped.align[0].encoder.model == encoder
    assert listed.identity() != recipe().identity()
    assert listed.identity() != recipe(align=[term(encoder, weight=0.5)]).identity()
    assert type(listed).model_validate(listed.model_dump(mode="json")) == listed


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"align": [term("mobilenet"), term("mobilenet", "gram")]}, "two terms are called 'gram'"),
        ({"align": [term("mobilenet", name="flow")]}, "the name of a loss"),
        ({"align": [term("mobilenet", name="a.b")]}, "name"),
        ({"align": [term("mobilenet")], "memory": {"compile": True}}, "compiled without them: set it to false"),
        ({"align": [term("mobilenett")]}, "did you mean 'mobilenet'"),
        ({"align": [term("mobilenet", t_range=[0.5, 0.1])]}, "t_range must be two noise levels"),
        ({"align": [term("mobilenet", weight=-1)]}, "greater than or equal to 0"),
        ({"align": [term("mobilenet", gamma=0.5)]}, "gamma"),
        ({"align": [term("mobilenet", "grm")]}, "grm"),
        ({"align": {"weight": 1, "tap": TAP}}, "align.weight is no term; write align as a map of terms by name"),
        ({"loss": {"bands": {"hh": 2.0}}}, "loss.bands is not read"),
        (
            {"loss": {"kind": "wavelet", "bands": dict.fromkeys(("ll", "lh", "hl", "hh"), 0)}},
            "nothing would be",
        ),
    ],
)
def test_recipes_that_mean_nothing_are_refused(recipe, sections, message):
    with pytest.raises(ValueError, match=message):
        recipe(**sections)


def test_what_does_not_fit_the_model_is_refused(recipe, encoder, unet_recipe):
    with pytest.raises(ModelError, match=r"tap 'blocks.3' is no block .* transformer_blocks.0 to transformer_blocks.0"):
        prepare(recipe(align=[term(encoder, tap="blocks.3")]), silent)
    with pytest.raises(ModelError, match=r"tap 'up_blocks.9' .* mid_block, up_blocks.0"):
        prepare(unet_recipe(align=[term(encoder, tap="up_blocks.9")]), silent)
    with pytest.raises(ConfigError, match=r"align.repa compares channels: .* set head.kind to conv or mlp"):
        prepare(recipe(align=[term(encoder, "repa", head={"kind": "identity"})]), silent)
    with pytest.raises(ConfigError, match=r"align.gram: head: a map of .* is smaller than the kernel"):
        prepare(recipe(align=[term(encoder, head={"kind": "conv", "kernel": 31, "padding": 0})]), silent)


def test_an_encoder_can_leave_the_device(encoder):
    from flowgrain.align.encoders.registry import EncoderConfig, open_structure_encoder

    opened = open_structure_encoder(EncoderConfig(model=encoder))
    size = opened.weight_bytes()
    assert size == sum(p.numel() * 4 for p in opened._network.parameters()) > 0
    opened.move("meta")
    assert opened.device.type == "meta" and {p.device.type for p in opened._network.parameters()} == {"meta"}
    assert opened.weight_bytes() == size


def test_no_tap_is_asked_for_without_terms(recipe, encoder, monkeypatch):
    """Neither for a prediction in validation and previews: the taps of terms are training's alone."""
    session = prepare(recipe(align=[term(encoder)], validation={"path": str(recipe().data.path)}), silent)
    asked, predict = [], session.family.predict

    def watching(x_t, times, conditioning, taps=()) -> Prediction:
        asked.append(taps)
        return predict(x_t, times, conditioning, taps)

    monkeypatch.setattr(session.family, "predict", watching)
    session.validator.measure(session.autocast)
    assert asked and set(asked) == {()}
    session.objective.per_sample(first(session))
    assert asked[-1] == (TAP,)
