#!/usr/bin/env python3
"""Writes tests/ops/linear_weights_goldens.inc: KL(teacher's softmax weights || linear attention's weights), its gradients, PyTorch, float64.

    build/oracles/bin/python tests/oracles/make_linear_weights_goldens.py > tests/ops/linear_weights_goldens.inc

T×T and without stabilisers; gradients are autograd's. Cases and inputs as in make_linear_goldens.py; v stands in for the teacher's k, d_o for
its q, which have these shapes. A row holds the loss, and of every gradient sampled elements and two weighted sums.
"""
import torch

from make_linear_goldens import NAMES, inputs, numbers, pair_weights, row_of, summary

WEIGHT, SCALE = 1.25, 0.75  # as test_linear_weights_goldens.c has them


def run(case):
    B, T, H, G, D = case["shape"]
    x, start = inputs(case)
    loss = 0
    for b in range(B):
        for h in range(H):
            seen, weights = pair_weights(case, x, start, b, h)
            score = (x["d_o"][b, :, h] @ x["v"][b, :, h // (H // G)].detach().T / D**0.5).masked_fill(~seen, -torch.inf)
            p = torch.softmax(score, 1)
            a = weights / weights.sum(1, keepdim=True)
            log_ratio = torch.where(seen, torch.log(torch.where(seen, p, 1.0)) - torch.log(torch.where(seen, a, 1.0)), 0.0)
            loss = loss + WEIGHT * (p * log_ratio).sum() / H
    if loss.requires_grad:
        (SCALE * loss).backward()
    wanted = [n for n in NAMES if n not in ("v", "d_o")]
    return loss.item(), [x[n].grad if n in x and x[n].grad is not None else torch.zeros(1) for n in wanted]


CASES = [
    dict(name="exp", shape=(2, 33, 4, 2, 7), kind="exp", columns=24),
    dict(name="exp, documents, window", shape=(2, 70, 2, 1, 16), kind="exp", columns=19, window=9, cuts=[20, 21, 50], beta=True),
    dict(name="exp, one map, window", shape=(1, 129, 4, 2, 8), kind="exp", columns=32, shared=True, window=33, beta=True),
    dict(name="exp, both directions", shape=(2, 70, 2, 1, 8), kind="exp", columns=16, cuts=[20, 21], bidirectional=True),
    dict(name="exp, T 7", shape=(1, 7, 3, 3, 5), kind="exp", columns=9, cuts=[3]),
    dict(name="hedgehog", shape=(1, 129, 2, 1, 48), kind="hedgehog", columns=48, window=32, beta=True, cuts=[40]),
    dict(name="hedgehog, no window", shape=(2, 33, 3, 3, 9), kind="hedgehog", columns=9, cuts=[7]),
    dict(name="hedgehog, windows dropped", shape=(2, 90, 4, 2, 8), kind="hedgehog", columns=8, window=5, no_window=True, beta=True,
         cuts=[31]),
    dict(name="hedgehog, squeeze, no window", shape=(1, 40, 2, 1, 8), kind="hedgehog", columns=8, hidden=5),
    dict(name="relu", shape=(2, 66, 4, 2, 7), kind="relu", columns=12, bias=True, window=7, beta=True, cuts=[30]),
    dict(name="relu, no bias", shape=(1, 129, 2, 2, 8), kind="relu", columns=20),
    dict(name="relu, squeeze", shape=(2, 70, 4, 2, 8), kind="relu", columns=20, hidden=3, bias=True, window=6, beta=True,
         cuts=[33]),
    dict(name="relu, squeeze, windows dropped", shape=(2, 33, 2, 1, 5), kind="relu", columns=11, hidden=4, bias=True, window=4,
         no_window=True, beta=True),
    dict(name="window over everything", shape=(1, 40, 2, 1, 8), kind="hedgehog", columns=8, window=64),
    dict(name="one token", shape=(3, 1, 2, 1, 8), kind="exp", columns=16, beta=True),
]

if __name__ == "__main__":
    print(f"/* Made by tests/oracles/make_linear_weights_goldens.py with PyTorch {torch.__version__.split('+')[0]}, float64. */")
    for case in CASES:
        loss, gradients = run(case)
        print("{" + row_of(case))
        print(f" {loss:.17g},")
        print(" {" + ",\n  ".join(numbers(summary(y)) for y in gradients) + "}},")
