"""The kernel of the real model: matrix-free products are those of the explicit Jacobian, in forward and reverse."""

import json

import numpy as np
import pytest
import torch
import yaml

from flowgrain.diagnose.kernel import draw_level_queries, measure_kernel, query_matrices
from flowgrain.diagnose.kernel_model import adapter_function, differentiable, level_products
from flowgrain.diagnose.sections import NotMeasurable
from flowgrain.geometry.kernel import jacobian, leading_spectrum, level_matrix, ntk_vector_product
from flowgrain.report.diagnose_kernel import finding, sections
from flowgrain.report.page import Page
from flowgrain.train.loop import Observer, train
from flowgrain.train.recipe import Recipe


@pytest.fixture(scope="module")
def dora_run(run_folder, tmp_path_factory):
    values = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    output = tmp_path_factory.mktemp("runs") / "dora"
    values["adapter"] |= {"kind": "dora", "rank": 2, "alpha": 4}
    train(Recipe.model_validate({**values, "output": str(output)}), False, Observer())
    return output


@pytest.fixture(scope="module", params=["lora", "dora"])
def double_opened(request, run_folder, dora_run, open_short):
    """Runs in float64 with their adapter at the last checkpoint."""
    opened = open_short(run=run_folder if request.param == "lora" else dora_run)
    for component in opened.family.components().values():
        component.double()
    for _, parameter in opened.adapter.parameters():
        parameter.data = parameter.data.double()
    opened.load(opened.checkpoints[-1])
    return opened


@pytest.fixture(scope="module")
def inputs(double_opened):
    generator = torch.Generator().manual_seed(0)
    shape = double_opened.spaces[0].shape
    return torch.randn(1, *shape, generator=generator), torch.tensor([0.6], dtype=torch.float64), [""], [0]


@pytest.fixture(scope="module")
def explicit(double_opened, inputs):
    """The dense Jacobian."""
    with differentiable(double_opened):
        return jacobian(*adapter_function(double_opened, *inputs))


@pytest.fixture(scope="module")
def measured(opened, small_config):
    result = measure_kernel(opened, small_config, lambda *_: None)
    return json.loads(json.dumps(result.as_json(), allow_nan=False))


def test_function_predicts_what_the_run_does(double_opened, inputs):
    x, t, captions, rows = inputs
    outside = double_opened.predict(x, t, double_opened.inputs(double_opened.train, rows, captions))
    with differentiable(double_opened):
        predict, parameters = adapter_function(double_opened, *inputs)
        inside = predict(parameters)
    torch.testing.assert_close(inside.float(), outside, rtol=1e-6, atol=1e-6)
    after = double_opened.predict(x, t, double_opened.inputs(double_opened.train, rows, captions))
    assert torch.equal(after, outside)


def test_all_adapter_parameters_are_the_functions(double_opened, inputs):
    _, parameters = adapter_function(double_opened, *inputs)
    assert sum(p.numel() for p in parameters.values()) == sum(p.numel() for _, p in double_opened.adapter.parameters())


def test_reverse_mode_is_that_of_training(double_opened, inputs):
    """The plain operations of DoRA have the gradients of its written-out backward pass."""
    residual = torch.randn(2, 1, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    predict, parameters = adapter_function(double_opened, *inputs)
    trained = level_products(predict, parameters, residual)
    with differentiable(double_opened):
        predict, parameters = adapter_function(double_opened, *inputs)
        plain = level_products(predict, parameters, residual)
    torch.testing.assert_close(plain, trained, rtol=1e-6, atol=0)


def test_matrix_free_products_are_those_of_the_jacobian(double_opened, inputs, explicit):
    generator = torch.Generator().manual_seed(2)
    with differentiable(double_opened):
        predict, parameters = adapter_function(double_opened, *inputs)
        kernel = explicit @ explicit.T
        vector = torch.randn(inputs[0].shape, generator=generator, dtype=torch.float64)
        product = ntk_vector_product(predict, parameters, vector)
        expected = kernel @ vector.flatten()
        assert (product.flatten() - expected).norm() < 1e-6 * expected.norm()
        found = leading_spectrum(predict, parameters, vector, 3, tolerance=1e-6, generator=np.random.default_rng(0))
    values = torch.linalg.eigvalsh(kernel).flip(0)[:3]
    np.testing.assert_allclose(found.values, values.numpy(), rtol=1e-5)
    assert (found.residuals < 1e-3 * found.values[0]).all()


def test_level_matrix_is_autograds_inner_products(double_opened, inputs, explicit):
    residual = torch.randn(3, 1, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with differentiable(double_opened):
        predict, parameters = adapter_function(double_opened, *inputs)
        found = level_products(predict, parameters, residual)
        expected = level_matrix(predict, parameters, residual)
    lifted = residual.flatten(1) @ explicit
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(found, lifted @ lifted.T, rtol=1e-6, atol=1e-9)


def test_query_matrices_are_grams(opened, small_config):
    queries = draw_level_queries(opened, small_config)
    with opened.at(opened.points[-1]), differentiable(opened):
        found = query_matrices(opened, queries)
    assert queries.levels == ("macro", "meso", "micro") and found.theta.shape == found.omega.shape
    for matrices in (found.omega, found.theta):
        scale = matrices.diagonal(dim1=1, dim2=2).amax(dim=1)
        assert (torch.linalg.eigvalsh(matrices).amin(dim=1) > -1e-5 * scale).all()


def test_result_is_the_same_again(measured, opened, small_config):
    again = measure_kernel(opened, small_config, lambda *_: None).as_json()
    assert json.loads(json.dumps(again)) == measured


def test_result_holds_both_ends_and_a_descending_spectrum(measured):
    assert [point["update"] for point in measured["points"]] == [2, 4]
    for point in measured["points"]:
        spectrum = point["spectrum"]
        assert spectrum["values"] == sorted(spectrum["values"], reverse=True) and len(spectrum["inputs"]) == 3
        assert sum(spectrum["values"]) < spectrum["trace"] + 4 * spectrum["trace_error"]
        assert all(0 <= row["share_in_leading"] <= 1 for row in spectrum["inputs"])
        for row in point["levels"]:
            assert np.allclose(np.diagonal(row["sign_agreement"]["mean"]), 1)
            assert sum(row["alpha"]) == pytest.approx(1, abs=1e-4)


def test_page_tells_the_sign_agreement_within_its_interval(measured):
    page = Page("run", "test", sections(measured)).render()
    assert "The local kernel" in page and "None" not in page
    row = {"mean": [0.9], "low": [0.4], "high": [1.0]}
    for level in measured["points"][-1]["levels"]:
        level["sign_agreement_all"] = row
    assert finding(measured)[0].startswith("No more often than chance")


def test_one_level_cannot_be_compared(open_short, small_config):
    opened = open_short()
    one = tuple(item for item in opened.train.dataset.slices if item.granularity == 0)
    object.__setattr__(opened.train.dataset, "slices", one)
    with pytest.raises(NotMeasurable, match="no two levels"):
        draw_level_queries(opened, small_config)
