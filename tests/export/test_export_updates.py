"""Joined updates are the updates of joined weights, and come apart again."""

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from flowgrain.adapters.source import LayerUpdate
from flowgrain.export.updates import Columns, added, apart, folded, scale_of, under_one_another, untuckered

ALPHAS = st.sampled_from([0.5, 1.0, 3.0, 7.3, 16.0])


@st.composite
def updates(draw, inputs, magnitude=False):
    rank, out = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    down, up = torch.randn(rank, inputs, generator=generator), torch.randn(out, rank, generator=generator)
    lengths = torch.rand(out, generator=generator) + 0.5 if magnitude else None
    return LayerUpdate(down, up, lengths, draw(ALPHAS))


def dense(update):
    return scale_of(update) * (update.up.flatten(1).double() @ update.down.flatten(1).double())


@st.composite
def stacks(draw):
    """Layers one under another, some without an update."""
    inputs = draw(st.integers(1, 6))
    parts = [draw(st.one_of(st.none(), updates(inputs))) for _ in range(draw(st.integers(1, 4)))]
    if not any(parts):
        parts[0] = draw(updates(inputs))
    rows = [draw(st.integers(1, 5)) if part is None else part.shape[0] for part in parts]
    return inputs, parts, rows


@settings(max_examples=60)
@given(stacks())
def test_layers_under_one_another(stack):
    inputs, parts, rows = stack
    joined, columns = under_one_another(parts, rows)
    blocks = [
        torch.zeros(n, inputs).double() if part is None else dense(part) for part, n in zip(parts, rows, strict=True)
    ]
    torch.testing.assert_close(dense(joined), torch.cat(blocks), rtol=1e-5, atol=1e-6)
    assert [found is None for found in columns] == [part is None for part in parts]

    heights = torch.split(joined.up, rows)
    ups = {str(index): up for index, up in enumerate(heights)}
    known = {str(index): found for index, found in enumerate(columns) if found is not None}
    back = apart(joined.down, ups, joined.alpha, known)
    if len(parts) == 1:
        assert back["0"][2] == parts[0].alpha
        return
    assert back.keys() == known.keys()
    for index, part in enumerate(parts):
        if part is not None:
            down, up, alpha = back[str(index)]
            assert torch.equal(down, part.down)
            assert alpha == part.alpha  # the number itself
            torch.testing.assert_close(up, part.up, rtol=1e-6, atol=0)


@settings(max_examples=40)
@given(stacks())
def test_apart_without_a_hint_changes_no_product(stack):
    inputs, parts, rows = stack
    joined, _ = under_one_another(parts, rows)
    ups = {str(index): up for index, up in enumerate(torch.split(joined.up, rows))}
    back = apart(joined.down, ups, joined.alpha)
    for index, (part, height) in enumerate(zip(parts, rows, strict=True)):
        expected = torch.zeros(height, inputs).double() if part is None else dense(part)
        found = torch.zeros_like(expected)
        if str(index) in back:
            down, up, alpha = back[str(index)]
            found = alpha / down.shape[0] * (up.double() @ down.double())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def random_update(out, rank, inputs, alpha, seed, down=None):
    generator = torch.Generator().manual_seed(seed)
    own = torch.randn(rank, inputs, generator=generator)
    return LayerUpdate(own if down is None else down, torch.randn(out, rank, generator=generator), None, alpha)


def test_equal_scales_and_powers_of_two_are_exact():
    parts = [random_update(4, rank, 5, rank / 2, rank) for rank in (2, 3, 4)]
    joined, _ = under_one_another(parts, [4, 4, 4])
    assert (joined.rank, joined.alpha) == (9, 4.5)
    assert torch.equal(joined.up[4:8, 2:5], parts[1].up)
    assert torch.equal(folded(parts[0]).up, parts[0].up / 2)
    assert folded(parts[0]).alpha == 2.0


def test_one_shared_down_matrix_needs_no_more_rank():
    first = random_update(4, 3, 5, 6.0, 0)
    second = random_update(2, 3, 5, 6.0, 1, down=first.down)
    joined, columns = under_one_another([first, second, None], [4, 2, 1])
    assert joined.rank == 3
    assert columns == [Columns(0, 3, 6.0), Columns(0, 3, 6.0), None]
    assert torch.equal(joined.up, torch.cat([first.up, second.up, torch.zeros(1, 3)]))
    back = apart(joined.down, dict(zip("abc", torch.split(joined.up, [4, 2, 1]), strict=True)), joined.alpha)
    assert list(back) == ["a", "b"]  # c is not changed
    assert torch.equal(back["b"][1], second.up)


def test_equal_blocks_on_the_diagonal_come_apart_without_a_hint():
    parts = [random_update(2, 2, 5, 4.0, seed) for seed in range(3)]
    joined, _ = under_one_another(parts, [2, 2, 2])
    back = apart(joined.down, dict(zip("abc", torch.split(joined.up, 2), strict=True)), joined.alpha)
    for name, part in zip("abc", parts, strict=True):
        assert torch.equal(back[name][0], part.down)
        assert torch.equal(back[name][1], part.up)
        assert back[name][2] == 4.0


def test_a_wrong_hint_is_not_believed():
    parts = [random_update(2, 2, 5, 4.0, seed) for seed in range(2)]
    joined, _ = under_one_another(parts, [2, 2])
    ups = dict(zip("ab", torch.split(joined.up, 2), strict=True))
    for wrong in (
        {"a": Columns(0, 4, 4.0), "b": Columns(1, 2, 4.0)},
        {"a": Columns(0, 9, 4.0)},
        {"z": Columns(0, 2, 1.0)},
    ):
        back = apart(joined.down, ups, joined.alpha, wrong)
        assert torch.equal(back["b"][1], parts[1].up)


@settings(max_examples=30)
@given(st.data(), st.integers(1, 5))
def test_sums(data, inputs):
    first = data.draw(updates(inputs))
    second = random_update(first.shape[0], data.draw(st.integers(1, 4)), inputs, data.draw(ALPHAS), 7)
    total = added(first, second)
    assert total.rank == first.rank + second.rank
    torch.testing.assert_close(dense(total), dense(first) + dense(second), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense(folded(total)), dense(total), rtol=1e-5, atol=1e-5)


def test_two_convolutions_in_a_row_are_one():
    generator = torch.Generator().manual_seed(0)
    down, mid = torch.randn(3, 4, 1, 1, generator=generator), torch.randn(3, 3, 3, 3, generator=generator)
    x = torch.randn(2, 4, 6, 6, generator=generator)
    torch.testing.assert_close(
        F.conv2d(x, untuckered(down, mid)), F.conv2d(F.conv2d(x, down), mid), rtol=1e-4, atol=1e-4
    )
