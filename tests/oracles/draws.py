"""Inputs as an exact formula of their index: what tests/ops/case_arrays.h computes in C."""
import torch


def draw(count, part):
    """Numbers in [-1, 1), a multiple of 2^-15 each."""
    mask64 = (1 << 64) - 1
    out = []
    for n in range(count):
        x = (n * 2654435761 + part * 40503 + 12345) & mask64
        x = ((x ^ (x >> 15)) * 2246822519) & mask64
        x = (x & 0xFFFFFFFF) ^ ((x & 0xFFFFFFFF) >> 13)
        out.append((x % 65536 - 32768) / 32768)
    return torch.tensor(out, dtype=torch.float64)
