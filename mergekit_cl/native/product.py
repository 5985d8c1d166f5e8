"""A product of a tall and a wide factor added to a part of a matrix, as lora/kernels.py adds it."""

from __future__ import annotations


def add_product(block, left, right, upper, lower, rows, rank, columns, first, end, most):
    """block, (rows, end - first) flat, += left @ right[:, first:end].

    left: (rows, rank). right: (rank, columns). upper, lower: scratch of `most`, the columns made at
    a time. All float64. Each sum goes through the rank from 0 on, every product and every sum
    rounded on its own, and is then added to the block. Two rows at a time, which read a right
    factor once.
    """
    whole = rank - rank % 4
    stride = end - first
    for tile in range(first, end, most):
        width = min(most, end - tile)
        for row in range(0, rows, 2):
            a, b = row * rank, min(row + 1, rows - 1) * rank
            for j in range(width):
                upper[j] = -0.0
                lower[j] = -0.0
            for k in range(0, whole, 4):
                a0, a1, a2, a3 = left[a + k], left[a + k + 1], left[a + k + 2], left[a + k + 3]
                b0, b1, b2, b3 = left[b + k], left[b + k + 1], left[b + k + 2], left[b + k + 3]
                r0 = k * columns + tile
                r1, r2, r3 = r0 + columns, r0 + 2 * columns, r0 + 3 * columns
                for j in range(width):
                    x0, x1, x2, x3 = right[r0 + j], right[r1 + j], right[r2 + j], right[r3 + j]
                    upper[j] = (((upper[j] + a0 * x0) + a1 * x1) + a2 * x2) + a3 * x3
                    lower[j] = (((lower[j] + b0 * x0) + b1 * x1) + b2 * x2) + b3 * x3
            for k in range(whole, rank):
                ak, bk = left[a + k], left[b + k]
                at = k * columns + tile
                for j in range(width):
                    upper[j] += ak * right[at + j]
                    lower[j] += bk * right[at + j]
            at = row * stride + tile - first
            for j in range(width):
                block[at + j] += upper[j]
            if row + 1 < rows:
                for j in range(width):
                    block[at + stride + j] += lower[j]
    return 0
