#!/usr/bin/env python3
"""Writes tests/ops/attention_goldens.inc: attention over candidate sets and its gradients by PyTorch in float64.

    build/oracles/bin/python tests/oracles/make_attention_goldens.py > tests/ops/attention_goldens.inc

Inputs are an exact formula of their index (`draw`, the same in tests/ops/test_attention_goldens.c). Of every output the file
holds sampled elements and two weighted sums over all of them. Plain full attention is PyTorch's own
scaled_dot_product_attention, mixtures are written out with masks; gradients are autograd's.
"""
import torch

SAMPLES = 8
KINDS = {"full": "FULL", "window": "WINDOW", "sinks": "SINKS", "offset": "OFFSET", "dilated": "DILATED",
         "stride": "STRIDE", "blocks": "BLOCKS"}


def draw(count, part):
    """Numbers in [-1, 1), a multiple of 1/1024 each."""
    n = torch.arange(count, dtype=torch.int64)
    return (((n * 7919 + part * 104729 + (n // 64) * 31) % 2048) - 1024).to(torch.float64) / 1024


def visible(candidate, causal, start, length):
    kind, a, b = candidate
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    same = start[:, None] == start[None, :]
    back, place, own = i - j, j - start[None, :], i - start[:, None]
    away = back.abs()
    mask = {
        "full": lambda: away >= 0,
        "window": lambda: away < a,
        "sinks": lambda: (place < a) & (away >= 0),
        "offset": lambda: away == a,
        "dilated": lambda: (away % b == 0) & (away < a * b),
        "stride": lambda: (place % a == 0) & (away >= 0),
        "blocks": lambda: place // a == own // a,
    }[kind]()
    return mask & same & ((back >= 0) if causal else torch.ones_like(mask))


def run(case):
    B, T, H, G, D = case["shape"]
    count, causal = len(case["candidates"]), not case.get("bidirectional", False)
    q = (3 * draw(B * T * H * D, 1)).view(B, T, H, D).requires_grad_()
    k = draw(B * T * G * D, 2).view(B, T, G, D).requires_grad_()
    v = draw(B * T * G * D, 3).view(B, T, G, D).requires_grad_()
    d_o = draw(B * T * H * D, 4).view(B, T, H, D)
    rows = torch.tensor([case["coefficients"][h % 2] for h in range(H)], dtype=torch.float64).requires_grad_()
    start = torch.zeros(B, T, dtype=torch.int64)
    for b in range(B):
        for t in range(T):
            start[b, t] = max([0] + [c + b for c in case.get("cuts", []) if c + b <= t])
    qh = q.transpose(1, 2)
    kh = k.repeat_interleave(H // G, dim=2).transpose(1, 2)
    vh = v.repeat_interleave(H // G, dim=2).transpose(1, 2)
    outputs = []
    for b in range(B):
        masks = [visible(c, causal, start[b], T) for c in case["candidates"]]
        if count == 1 and case["candidates"][0][0] == "full":
            o = torch.nn.functional.scaled_dot_product_attention(qh[b], kh[b], vh[b], attn_mask=masks[0])
            outputs.append(rows[:, 0, None, None] * o)
            continue
        scores = qh[b] @ kh[b].transpose(1, 2) / D**0.5
        weights = 0
        for m, mask in enumerate(masks):
            some = mask.any(dim=1)[:, None]
            p = torch.softmax(torch.where(mask | ~some, scores, -torch.inf), dim=-1)
            weights = weights + rows[:, m, None, None] * torch.where(some & mask, p, 0.0)
        outputs.append(weights @ vh[b])
    o = torch.stack(outputs).transpose(1, 2)
    (o * d_o).sum().backward()
    return [o.detach(), q.grad, k.grad, v.grad, rows.grad]


def summary(x):
    x = x.contiguous().view(-1)
    places = [(n * 2654435761 + 12345) % len(x) for n in range(SAMPLES)]
    sums = [(x * draw(len(x), part)).sum().item() for part in (5, 6)]
    return [x[p].item() for p in places] + sums


CASES = [
    dict(name="full", shape=(2, 33, 4, 2, 24), candidates=[("full", 0, 0)], coefficients=[[1], [1]]),
    dict(name="full, documents, both directions", shape=(1, 70, 2, 1, 64), candidates=[("full", 0, 0)],
         coefficients=[[1], [0.5]], cuts=[20, 21], bidirectional=True),
    dict(name="window and sinks", shape=(2, 150, 2, 1, 16), candidates=[("window", 40, 0), ("sinks", 4, 0)],
         coefficients=[[1, 0.25], [0.75, -0.5]], cuts=[60]),
    dict(name="seven candidates", shape=(1, 170, 2, 2, 8),
         candidates=[("full", 0, 0), ("window", 17, 0), ("sinks", 3, 0), ("offset", 31, 0), ("dilated", 6, 9),
                     ("stride", 13, 0), ("blocks", 25, 0)],
         coefficients=[[0.5, 1, 0.25, -0.5, 0.5, 0.125, 0.25], [-0.5, 1, 0.25, 0.5, 0.5, 0.5, -0.25]], cuts=[90]),
    dict(name="scattered", shape=(1, 170, 2, 1, 8),
         candidates=[("window", 5, 0), ("offset", 31, 0), ("dilated", 6, 9), ("stride", 13, 0), ("dilated", 3, 40)],
         coefficients=[[1, -0.5, 0.5, 0.125, 0.25], [1, 0.5, -0.5, 0.5, 0.25]], cuts=[50]),
    dict(name="scattered, both directions", shape=(1, 120, 2, 1, 8),
         candidates=[("window", 5, 0), ("offset", 31, 0), ("dilated", 4, 9), ("blocks", 16, 0)],
         coefficients=[[1, -0.5, 0.5, 0.125], [1, 0.5, -0.5, 0.5]], cuts=[50], bidirectional=True),
]

print(f"/* Made by tests/oracles/make_attention_goldens.py with PyTorch {torch.__version__.split('+')[0]}, float64. */")
for case in CASES:
    B, T, H, G, D = case["shape"]
    candidates = ", ".join(f"{{CANDIDATE_{KINDS[k]}, {a}, {b}}}" for k, a, b in case["candidates"])
    coefficients = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in case["coefficients"])
    print(f'{{{{"{case["name"]}", {B}, {T}, {H}, {G}, {D}, {len(case["candidates"])}, {{{candidates}}},')
    print(f'  .coefficients = {{{coefficients}}}, .cuts = {{{", ".join(map(str, case.get("cuts", [0])))}}},'
          f' .bidirectional = {"true" if case.get("bidirectional") else "false"}}},')
    print(" {" + ",\n  ".join("{" + ", ".join(f"{x:.17g}" for x in summary(y)) + "}" for y in run(case)) + "}},")
