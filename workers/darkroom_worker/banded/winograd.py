"""Winograd's convolution along the rows: four output rows for six products instead of twelve.

Four neighbouring outputs of a filter with three taps g are the transposed product of polynomials,
and polynomials multiply pointwise where they are known by their values (Cook and Toom): with the
values of g at five points and at infinity,

    y = A^T [(G g) * (B^T d)]

where d are six neighbouring inputs. Here d are rows of a picture and the pointwise products are
convolutions along the columns, 1 x 3. The points 0, 1, -1, 1/2 and -2 keep the rounding errors of
float32 at one and a half times those of the direct sum (S. Winograd, "Arithmetic complexity of
computations", 1980; points after B. Barabasz et al., "Error analysis and improving the accuracy of
Winograd convolution for deep neural networks", 2020).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import prod

import torch
from torch import Tensor

ROWS = 4
"""How many output rows are made at once."""

POINTS = (Fraction(0), Fraction(1), Fraction(-1), Fraction(1, 2), Fraction(-2))
ONE = POINTS.index(Fraction(1))
Matrix = tuple[tuple[float, ...], ...]


def _polynomial(roots: tuple[Fraction, ...]) -> list[Fraction]:
    """Multiply out (x - root) over all roots; coefficients from the constant one up."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [
            above - root * below
            for above, below in zip(shifted, [*coefficients, Fraction(0)], strict=True)
        ]
    return coefficients


def _matrices() -> tuple[Matrix, Matrix, Matrix]:
    """Make the matrices of `y = A^T [(G g) * (B^T d)]`: A^T [4, 6], G [6, 3], B^T [6, 6]."""
    inputs, filters = [], []
    for point in POINTS:
        others = tuple(other for other in POINTS if other != point)
        inputs.append([*_polynomial(others), Fraction(0)])
        weight = prod((point - other for other in others), start=Fraction(1))
        filters.append([point**power / weight for power in range(3)])
    inputs.append(_polynomial(POINTS))
    filters.append([Fraction(0), Fraction(0), Fraction(1)])
    outputs = [
        [*(point**power for point in POINTS), Fraction(power == ROWS - 1)] for power in range(ROWS)
    ]
    return _floats(outputs), _floats(filters), _floats(inputs)


def _floats(rows: list[list[Fraction]]) -> Matrix:
    return tuple(tuple(float(value) for value in row) for row in rows)


OUTPUTS, FILTERS, INPUTS = _matrices()


Convolve = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Convolves each row by itself: rows [B, r, W, C], a filter [O, C, t, 3] and a bias [O]."""


class WinogradRows:
    """A 3 x 3 convolution, or a 3 x 3 x 3 one, by Winograd's method along the rows.

    Takes weights [O, C, 3, t, 3], rows first, and a bias [O]; holds twice the weights' size.
    `convolve` does what is left for each row, whatever it has beside its columns.
    """

    def __init__(self, weight: Tensor, bias: Tensor, convolve: Convolve) -> None:
        combination = torch.tensor(FILTERS, dtype=weight.dtype, device=weight.device)
        # One filter [O, C, t, 3] for each of the six products.
        self._filters = torch.einsum("ny,ocytx->notxc", combination, weight).permute(0, 1, 4, 2, 3)
        self._bias = bias
        self._convolve = convolve

    def __call__(self, rows: Tensor) -> Tensor:
        """Convolve [B, 4 t + 2, W, C] to [B, 4 t, W', O]."""
        batch, height, width, channels = rows.shape
        tiles = (height - 2) // ROWS
        transformed = rows.new_empty(batch, tiles, width, channels)
        result = torch.empty(0)
        # Every output has the product at the point 1 once: it comes first, and brings the bias.
        for product in sorted(range(len(INPUTS)), key=lambda product: product != ONE):
            _combine(rows, INPUTS[product], transformed)
            bias = self._bias if product == ONE else None
            convolved = self._convolve(transformed, self._filters[product], bias)
            if product == ONE:
                result = convolved[:, :, None].repeat(1, 1, ROWS, 1, 1)
                continue
            for row in range(ROWS):
                if factor := OUTPUTS[row][product]:
                    result[:, :, row].add_(convolved, alpha=factor)
        return result.flatten(1, 2)


def _combine(rows: Tensor, factors: tuple[float, ...], out: Tensor) -> None:
    """Write the combination of every four rows and the two after them to `out`."""
    last = rows.shape[1] - 2
    terms = [
        (factor, rows[:, offset : offset + last : ROWS][:, : out.shape[1]])
        for offset, factor in enumerate(factors)
        if factor
    ]
    # The polynomials are monic: the term with the factor 1 needs no pass of its own.
    terms.sort(key=lambda term: term[0] != 1)
    (_, first), (factor, second), *others = terms
    torch.add(first, second, alpha=factor, out=out)
    for factor, term in others:
        out.add_(term, alpha=factor)
