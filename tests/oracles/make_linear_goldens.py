#!/usr/bin/env python3
"""Writes tests/ops/linear_goldens.inc: linear attention with a softmax window and its gradients by PyTorch in float64.

    build/oracles/bin/python tests/oracles/make_linear_goldens.py > tests/ops/linear_goldens.inc

Written from the formulas, T×T and without stabilisers; gradients are autograd's. Inputs are an exact formula of their index
(`draw`, the same in tests/ops/linear_case.c). Of every output the file holds sampled elements and two weighted sums over all of them.
"""
import torch

SAMPLES = 8
NAMES = ["q", "k", "v", "d_o", "q_map", "k_map", "q_bias", "k_bias", "squeeze", "excite", "beta"]
SIZES = [1.5, 1.5, 1, 1, 0.75, 0.75, 0.5, 0.5, 0.5, 0.5, 0.5]
KINDS = {"exp": "FEATURE_EXP", "hedgehog": "FEATURE_HEDGEHOG", "relu": "FEATURE_RELU"}


def draw(count, part):
    """Numbers in [-1, 1), a multiple of 1/1024 each."""
    n = torch.arange(count, dtype=torch.int64)
    return (((n * 7919 + part * 104729 + (n // 64) * 31) % 2048) - 1024).to(torch.float64) / 1024


def features(kind, x, W, bias):
    D = x.shape[-1]
    if kind == "exp":
        x = x * D**-0.25
        return torch.exp(x @ W.T - (x * x).sum(-1, keepdim=True) / 2) / W.shape[0] ** 0.5
    y = x @ W.T
    if kind == "hedgehog":
        return torch.cat([torch.softmax(y, -1), torch.softmax(-y, -1)], -1)
    return torch.relu(y if bias is None else y + bias) + 1e-6


def inputs(case):
    """The tensors by name, those with gradients marked; start [B,T]."""
    B, T, H, G, D = case["shape"]
    kind, N, R = case["kind"], case["columns"], case.get("hidden", 0)
    M = 2 * N if kind == "hedgehog" else N
    QH, KH = (1, 1) if case.get("shared") else (H, G)
    shapes = {"q": (B, T, H, D), "k": (B, T, G, D), "v": (B, T, G, D), "d_o": (B, T, H, D), "q_map": (QH, N, D), "k_map": (KH, N, D)}
    if case.get("bias"):
        shapes |= {"q_bias": (H, N), "k_bias": (G, N)}
    if R:
        shapes |= {"squeeze": (G, R, M), "excite": (G, M, R)}
    if case.get("beta"):
        shapes |= {"beta": (H,)}
    x = {}
    for part, name in enumerate(NAMES):
        if name in shapes:
            count = torch.Size(shapes[name]).numel()
            x[name] = (SIZES[part] * draw(count, part)).view(shapes[name]).requires_grad_(name != "d_o")
    start = torch.zeros(B, T, dtype=torch.int64)
    for b in range(B):
        for t in range(T):
            start[b, t] = max([0] + [c + b for c in case.get("cuts", []) if c + b <= t])
    return x, start


def pair_weights(case, x, start, b, h):
    """Which pairs of a sequence and head are seen, and their weights: [T,T] each."""
    B, T, H, G, D = case["shape"]
    kind, causal, g = case["kind"], not case.get("bidirectional", False), h // (H // G)
    QH, KH = x["q_map"].shape[0], x["k_map"].shape[0]
    window = 0 if case.get("no_window") and b == 1 else case.get("window", 0)
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    seen = (start[b][:, None] == start[b][None, :]) & ((j <= i) if causal else torch.ones(T, T, dtype=torch.bool))
    near = seen & (i - j < window) if window else torch.zeros(T, T, dtype=torch.bool)
    q, k = x["q"][b, :, h], x["k"][b, :, g]
    phi_q = features(kind, q, x["q_map"][h % QH], x["q_bias"][h] if case.get("bias") else None)
    phi_k = features(kind, k, x["k_map"][g % KH], x["k_bias"][g] if case.get("bias") else None)
    if case.get("hidden", 0):
        p = (seen.to(torch.float64) @ phi_k) / seen.sum(1, keepdim=True)
        e = 2 * torch.sigmoid(torch.relu(p @ x["squeeze"][g].T) @ x["excite"][g].T)
        phi_q = phi_q * e
    far = phi_q @ phi_k.T * (torch.exp(x["beta"][h]) if case.get("beta") else 1)
    exact = torch.exp(q @ k.T / D**0.5)
    far = far * (0 if case.get("near_only") else 1)
    return seen, torch.where(near, exact, torch.where(seen & ~near, far, 0.0))


def run(case):
    B, T, H, G, D = case["shape"]
    x, start = inputs(case)
    o = []
    for b in range(B):
        for h in range(H):
            _, weights = pair_weights(case, x, start, b, h)
            o.append(weights @ x["v"][b, :, h // (H // G)] / weights.sum(1, keepdim=True))
    o = torch.stack(o).view(B, H, T, D).transpose(1, 2)
    (o * x["d_o"]).sum().backward()
    return [o.detach()] + [x[n].grad if n in x else torch.zeros(1) for n in NAMES if n != "d_o"]


def summary(x):
    x = x.to(torch.float64).contiguous().view(-1)
    places = [(n * 2654435761 + 12345) % len(x) for n in range(SAMPLES)]
    sums = [(x * draw(len(x), part)).sum().item() for part in (20, 21)]
    return [x[p].item() for p in places] + sums


CASES = [
    dict(name="exp", shape=(2, 33, 4, 2, 8), kind="exp", columns=24),
    dict(name="exp, documents, window", shape=(2, 70, 2, 1, 16), kind="exp", columns=19, window=9, cuts=[20, 21, 50], beta=True),
    dict(name="exp, both directions", shape=(2, 70, 2, 1, 8), kind="exp", columns=16, cuts=[20, 21], bidirectional=True),
    dict(name="exp, one map", shape=(1, 129, 4, 2, 8), kind="exp", columns=32, shared=True),
    dict(name="hedgehog", shape=(1, 129, 2, 1, 48), kind="hedgehog", columns=48, window=32, beta=True, cuts=[40]),
    dict(name="hedgehog, no window", shape=(2, 31, 3, 3, 8), kind="hedgehog", columns=8, cuts=[7]),
    dict(name="hedgehog, both directions", shape=(1, 75, 2, 2, 8), kind="hedgehog", columns=8, cuts=[30], bidirectional=True),
    dict(name="hedgehog, windows dropped", shape=(2, 90, 2, 1, 8), kind="hedgehog", columns=8, window=5, no_window=True, beta=True),
    dict(name="relu", shape=(2, 66, 4, 2, 8), kind="relu", columns=12, bias=True, window=7, beta=True, cuts=[30]),
    dict(name="relu, squeeze", shape=(2, 70, 4, 2, 8), kind="relu", columns=20, hidden=3, bias=True, window=6, beta=True,
         cuts=[33]),
    dict(name="hedgehog, squeeze, no window", shape=(1, 40, 2, 1, 8), kind="hedgehog", columns=8, hidden=5),
    dict(name="window over everything", shape=(1, 40, 2, 1, 8), kind="hedgehog", columns=8, window=64),
    dict(name="the window alone", shape=(1, 90, 2, 1, 8), kind="hedgehog", columns=8, window=7, near_only=True, cuts=[50]),
    dict(name="one token", shape=(3, 1, 2, 1, 8), kind="exp", columns=16),
]


def row_of(case):
    """A case as the C tables have it."""
    B, T, H, G, D = case["shape"]
    flags = [f".{n} = true" for n in ("bidirectional", "bias", "beta", "shared", "no_window", "near_only") if case.get(n)]
    return (f'{{"{case["name"]}", {B}, {T}, {H}, {G}, {D}, {KINDS[case["kind"]]}, {case["columns"]},'
            f' {case.get("hidden", 0)}, {case.get("window", 0)},\n  '
            + ", ".join([f'.cuts = {{{", ".join(map(str, case.get("cuts", [0])))}}}'] + flags) + "},")


def numbers(values):
    return "{" + ", ".join(f"{x:.17g}" for x in values) + "}"


if __name__ == "__main__":
    print(f"/* Made by tests/oracles/make_linear_goldens.py with PyTorch {torch.__version__.split('+')[0]}, float64. */")
    for case in CASES:
        print("{" + row_of(case))
        print(" {" + ",\n  ".join(numbers(summary(y)) for y in run(case)) + "}},")
