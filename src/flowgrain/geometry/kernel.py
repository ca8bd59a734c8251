"""From residuals to gradients: Jacobian, gradient components of the groups and the local neural tangent kernel.

Semantic Granularity Alignment, Proposition 3 and Appendix E (Eqs. 4, 39-45). With the local loss L = |e|^2 / 2 of
Eq. 37, residuals Delta_xi = v - u^xi, densities alpha_xi that sum to 1, and J = d v / d theta:

    g_total = J' e = sum_xi g_xi,    g_xi = alpha_xi J' Delta_xi
    <g_xi, g_eta> = alpha_xi alpha_eta Delta_xi' Theta Delta_eta,    Theta = J J'

Networks enter as a callable ``predict(parameters) -> output`` of any output shape; "d" counts its elements, "p" the
parameters' elements in the mapping's order. Choose the parameters of an adapter alone and all of this happens in
adapter space. The dense functions are for small networks; in float64 the identities hold to rounding.

Two remarks on what the components are.

* The paper remarks that g_xi is "not defined as the gradient of an isolated per-granularity loss". It equals one all
  the same: neither alpha_xi(x) nor u^xi(x) depends on theta, hence g_xi is the gradient of alpha_xi |Delta_xi|^2 / 2
  at that x, with the densities held. It is not the gradient of the diagonal term alpha_xi^2 |Delta_xi|^2 / 2 of Eq. 3,
  and the inner products of Eq. 45 at one x need the group fields there, which training never computes.
* What a trainer can measure cheaply is the gradient of each level's own loss over the slices of an update, a different
  quantity: see ``geometry.gradients``. The two meet in the mean: over x ~ p_t, the mean of g_xi is (N_xi / N) times the
  gradient of half the level's conditional loss, provided that all levels share one time law and one weighting
  (modulation breaks this). Inner products of means are not means of inner products, so that cosines of measured
  gradients estimate the interference of the *expected* components, not the mean of Eq. 45 over x.

Heuristic in the paper, and not claimed here: that the geometry of Omega "directly governs" that of the gradients. The
kernel is positive semi-definite but keeps no signs (:func:`sign_reversing_pair`), so destructive residuals need not
mean conflicting gradients, nor the reverse.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowgrain.errors import ConfigError

Parameters = Mapping[str, Tensor]
Predict = Callable[[dict[str, Tensor]], Tensor]


def module_prediction(module: nn.Module, *inputs: Tensor) -> Predict:
    """The module's output on fixed inputs as a function of its parameters; those not given keep the module's values."""

    def predict(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, parameters, inputs)

    return predict


def _detached(parameters: Parameters) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parameters.items()}


def _flat(parts: Mapping[str, Tensor], names: Parameters) -> Float[Tensor, " p"]:
    return torch.cat([parts[name].reshape(-1) for name in names])


def _split(vector: Float[Tensor, " p"], parameters: Parameters) -> dict[str, Tensor]:
    pieces = vector.split([value.numel() for value in parameters.values()])
    return {name: piece.view_as(value) for (name, value), piece in zip(parameters.items(), pieces, strict=True)}


def jacobian(predict: Predict, parameters: Parameters) -> Float[Tensor, "d p"]:
    """J = d v / d theta (Eq. 39), dense: d p numbers, all rows in one batched backward pass."""
    own = _detached(parameters)
    with sdpa_kernel(SDPBackend.MATH):
        columns = torch.func.jacrev(lambda values: predict(values).reshape(-1))(own)
    return torch.cat([columns[name].flatten(1) for name in own], dim=1)


def transposed_products(
    predict: Predict, parameters: Parameters, residuals: Float[Tensor, "g *output"]
) -> Float[Tensor, "g p"]:
    """J' Delta for each of ``g`` residuals of the output's shape: one forward and ``g`` backward passes.

    Ordinary reverse mode, so that it works wherever training does (checkpointed blocks, fused attention). A parameter
    that the output does not reach has gradient 0.
    """
    own = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    with torch.enable_grad():
        output = predict(own)
    rows = []
    for index, residual in enumerate(residuals):
        parts = torch.autograd.grad(
            output,
            list(own.values()),
            residual.to(output.dtype).reshape(output.shape),
            retain_graph=index + 1 < len(residuals),
            allow_unused=True,
            materialize_grads=True,
        )
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(rows)


def total_gradient(predict: Predict, parameters: Parameters, residual: Float[Tensor, "*output"]) -> Float[Tensor, " p"]:
    """J' e, the gradient of |e|^2 / 2 (Eqs. 37, 40)."""
    return transposed_products(predict, parameters, residual[None])[0]


def gradient_components(
    predict: Predict, parameters: Parameters, residuals: Float[Tensor, "g *output"], density: Float[Tensor, " g"]
) -> Float[Tensor, "g p"]:
    """g_xi = alpha_xi J' Delta_xi (Eq. 42); the rows sum to the total gradient (Eq. 41). See the module's remarks."""
    lifted = transposed_products(predict, parameters, residuals)
    return density.to(lifted.dtype)[:, None] * lifted


def component_gram(components: Float[Tensor, "g p"]) -> Float[Tensor, "g g"]:
    """<g_xi, g_eta>; all entries sum to |g_total|^2 (Eq. 43)."""
    return components @ components.T


def neural_tangent_kernel(predict: Predict, parameters: Parameters) -> Float[Tensor, "d d"]:
    """Theta = J J' at the inputs that ``predict`` holds (Eq. 44), dense.

    With a batch as the output this is the kernel among all of its elements: residuals that are zero outside one
    level's slices then give the level's loss gradients, and :func:`kernel_interactions` their inner products.
    """
    rows = jacobian(predict, parameters)
    return rows @ rows.T


def kernel_interactions(
    kernel: Float[Tensor, "d d"], residuals: Float[Tensor, "g *output"], density: Float[Tensor, " g"]
) -> Float[Tensor, "g g"]:
    """alpha_xi alpha_eta Delta_xi' Theta Delta_eta, the right side of Eqs. 4, 44 and 45."""
    weighted = density[:, None] * residuals.flatten(1)
    return weighted @ kernel @ weighted.T


def level_matrix(
    predict: Predict, parameters: Parameters, residuals: Float[Tensor, "g *output"]
) -> Float[Tensor, "g g"]:
    """Delta_a' Theta Delta_b without densities, as the Gram matrix of J' Delta, in float64 (Eq. 45)."""
    lifted = transposed_products(predict, parameters, residuals).double()
    return lifted @ lifted.T


def rayleigh_quotients(matrix: Float[Tensor, "g g"], residuals: Float[Tensor, "g *output"]) -> Float[Tensor, " g"]:
    """Delta_a' Theta Delta_a / |Delta_a|^2 from :func:`level_matrix`: how fast the network moves along each residual.

    Between Theta's least and greatest eigenvalue. The paper's E.5 expects noise levels matched to a granularity to
    raise this "self-alignment signal"; it states no theorem, so compare levels and arms by this number.
    """
    return matrix.diagonal() / residuals.to(matrix).flatten(1).square().sum(dim=1)


def ntk_vector_product(
    predict: Predict, parameters: Parameters, vector: Float[Tensor, "*output"]
) -> Float[Tensor, "*output"]:
    """Theta w = J (J' w): one reverse and one forward-mode pass, no matrix.

    Attention runs in its plain form for this, since the fused kernels of PyTorch have no forward mode: it needs the
    memory of its score matrix. Activation checkpointing may stay on where it is the non-reentrant kind.
    """
    own = _detached(parameters)
    with sdpa_kernel(SDPBackend.MATH):
        tangent = _split(total_gradient(predict, own, vector), own)
        return torch.func.jvp(predict, (own,), (tangent,))[1]


def cosine_matrix(gram: Float[Tensor, "g g"]) -> Float[Tensor, "g g"]:
    """Cosines from a Gram matrix, in [-1, 1] up to rounding; NaN for a vector whose squared norm is not positive."""
    square = gram.diagonal()
    norm = torch.where(square > 0, square, torch.nan).sqrt()
    return gram / norm[:, None] / norm[None, :]


def diagonal_dominance(matrix: Float[Tensor, "g g"]) -> Float[Tensor, " g"]:
    """Gershgorin ratio of each row, |a_ii| / sum_{j != i} |a_ij|: above 1 the row dominates; inf without neighbours.

    Where every ratio is above 1 the eigenvalues lie within a_ii (1 -+ 1 / ratio). That dominance "ensures stable and
    accelerated optimization" (paper, E.5) is a heuristic for networks: it bounds the spectrum of this matrix only.
    """
    size = matrix.abs()
    own = size.diagonal()
    return own / (size - torch.diag(own)).sum(dim=1)


def condition_number(matrix: Float[Tensor, "g g"]) -> float:
    """Largest over smallest eigenvalue of a symmetric positive semi-definite matrix; inf where singular to rounding.

    Of :func:`cosine_matrix` it tells the angles alone; of the Gram matrix the levels' magnitudes too.
    """
    values = torch.linalg.eigvalsh(matrix.double())
    lowest, highest = values[0].item(), values[-1].item()
    if highest <= 0:
        return math.nan
    return math.inf if lowest <= len(values) * torch.finfo(torch.float64).eps * highest else highest / lowest


def sign_agreement(residual_gram: Float[Tensor, "g g"], parameter_gram: Float[Tensor, "g g"]) -> float:
    """Share of pairs whose residuals (Omega) and gradients (Eq. 45) interact with the same sign; NaN for one group.

    How far the geometry of the outputs tells that of the parameters, which the paper's E.5 leaves open.
    """
    rows, columns = torch.triu_indices(len(residual_gram), len(residual_gram), offset=1)
    same = torch.sign(residual_gram[rows, columns]) == torch.sign(parameter_gram[rows, columns]).to(residual_gram.dtype)
    return same.double().mean().item()


def sign_reversing_pair(kernel: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Two residuals with Delta_i . Delta_j > 0 and Delta_i' Theta Delta_j < 0: the remark of E.5, made constructive.

    With the eigenvectors u, w of the least and greatest eigenvalues l < h take u +- c w, c^2 = sqrt(l / h) or 1/2 at
    l = 0: the plain product is 1 - c^2 > 0, the kernel's is l - c^2 h < 0. Such a pair exists for every kernel but
    multiples of the identity, for which ValueError is raised.
    """
    values, vectors = torch.linalg.eigh(kernel)
    low, high = max(values[0].item(), 0.0), values[-1].item()
    if high - low <= 1e-9 * abs(high):
        raise ValueError("the kernel is a multiple of the identity, which keeps all signs")
    square = math.sqrt(low / high) if low > 0 else 0.5
    u, w = vectors[:, 0], math.sqrt(square) * vectors[:, -1]
    return u + w, u - w


@dataclass(frozen=True)
class Spectrum:
    """Leading eigenpairs of a kernel."""

    values: Float[np.ndarray, " k"]
    """Descending. Fewer than asked for where the iteration did not converge for all."""
    vectors: Float[np.ndarray, "d k"]
    residuals: Float[np.ndarray, " k"]
    """|Theta w - value w| of each unit eigenvector w, from one more product each."""
    products: int
    """Matrix-vector products spent."""


def leading_spectrum(
    predict: Predict,
    parameters: Parameters,
    output: Float[Tensor, "*output"],
    count: int,
    *,
    tolerance: float = 1e-6,
    generator: np.random.Generator,
) -> Spectrum:
    """The ``count`` greatest eigenvalues of Theta (Eq. 44) by ARPACK's restarted Lanczos, matrix-free.

    ``output`` gives shape, dtype and device. ``tolerance`` is relative to each eigenvalue; a float32 network cannot do
    much better than 1e-5. Raises :class:`ConfigError` unless 1 <= count < number of output elements.
    """
    size = output.numel()
    if not 1 <= count < size:
        raise ConfigError(f"{count} eigenvalues of a kernel of size {size}: must be between 1 and {size - 1}")
    spent = 0

    def multiply(vector: np.ndarray) -> np.ndarray:
        nonlocal spent
        spent += 1
        w = torch.from_numpy(np.array(vector, dtype=np.float64).reshape(-1)).to(output).view_as(output)
        return ntk_vector_product(predict, parameters, w).detach().double().cpu().numpy().reshape(-1)

    operator = LinearOperator((size, size), matvec=multiply, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    try:
        start = generator.standard_normal(size)
        values, vectors = eigsh(operator, k=count, which="LA", tol=tolerance, v0=start)  # pyright: ignore
    except ArpackNoConvergence as partial:
        values, vectors = partial.eigenvalues, partial.eigenvectors
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[:, order]
    defects = [np.linalg.norm(multiply(w) - value * w) for value, w in zip(values, vectors.T, strict=True)]
    return Spectrum(values, vectors, np.array(defects), spent)


@dataclass(frozen=True)
class TraceEstimate:
    """A stochastic trace and its standard error (NaN for one probe)."""

    trace: float
    standard_error: float
    probes: int


def kernel_trace(
    predict: Predict, parameters: Parameters, output: Float[Tensor, "*output"], probes: int, generator: torch.Generator
) -> TraceEstimate:
    """tr Theta = E |J' z|^2 over random signs z (Hutchinson 1990): one backward pass a probe. ``probes`` >= 1."""
    own = _detached(parameters)
    squares = np.empty(probes)
    for index in range(probes):
        signs = torch.randint(0, 2, tuple(output.shape), generator=generator).to(output) * 2 - 1
        squares[index] = total_gradient(predict, own, signs).double().square().sum().item()
    error = squares.std(ddof=1) / math.sqrt(probes) if probes > 1 else math.nan
    return TraceEstimate(float(squares.mean()), float(error), probes)
