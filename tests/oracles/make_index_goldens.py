#!/usr/bin/env python3
"""Writes tests/ops/index_goldens.inc: the indexer by PyTorch in float64, naively, T×T, from docs/attention.md and kernels/ops.h.

    build/oracles/bin/python tests/oracles/make_index_goldens.py > tests/ops/index_goldens.inc

Inputs are an exact formula of their index (draws.py, the same as case_draw in tests/ops/case_arrays.h); the cases are those of
index_cases there of at most 301 tokens, read from the source. Of every output and gradient the file holds sampled elements and a
weighted sum over all of them, of the choices (by what is learned, by attention) a sum each. Gradients are autograd's: of sum(o·d_o) for
q, k, v; of 0.7·sum(losses) for r, u, a, over all pairs and over those attended; with the choice held fixed.
"""
import math
import pathlib
import re

import torch

from draws import draw

SAMPLES = 4
LONGEST = 301
SOURCE = pathlib.Path(__file__).parent.parent / "ops" / "index_case.c"


def cases():
    text = SOURCE.read_text()
    table = text[text.index("index_cases[] = {"):text.index("const int index_case_count")]
    table = re.sub(r"\s+", " ", table)
    for name, numbers, cuts, repeated, size in re.findall(r'\{"([^"]+)", ([\d, ]+), \{([\d, ]*)\}, (true|false), ([\d.]+)\}', table):
        keys = ["B", "T", "H", "G", "D", "S", "J", "K", "E", "n", "w", "sinks", "coarse", "coarse_blocks", "fewer"]
        case = dict(zip(keys, map(int, numbers.split(","))), name=name, repeated=repeated == "true", size=float(size))
        case["cuts"] = [c for c in map(int, cuts.split(",")) if c]
        if case["T"] <= LONGEST:
            yield case


def inputs(c):
    B, T, H, G, D, S, J, K, E = (c[k] for k in "BTHGDSJKE")
    shapes = [("q", (H, D), 2 * c["size"]), ("k", (G, D), 1), ("v", (G, D), 1), ("r", (S * J, E), 2 * c["size"]),
              ("u", (S * K, E), 1.5), ("a", (S * J,), 1.5), ("teacher_q", (H, D), 3 * c["size"]), ("teacher_k", (G, D), 1)]
    made = {}
    for part, (name, shape, size) in enumerate(shapes):
        count = math.prod(shape)
        x = draw(count, part).repeat(B * T) if c["repeated"] else draw(B * T * count, part)
        x = (size * x).to(torch.float32).to(torch.float64).view(B, T, *shape)
        made[name] = x.requires_grad_(not name.startswith("teacher"))
    return made


def starts_of(c, b):
    cuts = sorted({0} | {cut + b for cut in c["cuts"] if cut + b < c["T"]})
    return cuts, torch.tensor([max(s for s in cuts if s <= t) for t in range(c["T"])])


def softmax_over(scores, mask):
    return torch.softmax(torch.where(mask, scores, -torch.inf), dim=-1)


def attention(c, q, k, mask):
    """Weights [H,T,T] over the mask [H,T,T]."""
    k = k.repeat_interleave(c["H"] // c["G"], dim=1)
    return softmax_over(torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(c["D"]), mask)


def index_scores(c, r, u, a):
    """I [S,T,T]."""
    S, J, K, E, T = c["S"], c["J"], c["K"], c["E"], c["T"]
    u = u.view(T, S, K, E).expand(T, S, J, E) if K == 1 else u.view(T, S, K, E)
    relu = torch.relu(torch.einsum("ishe,jshe->shij", r.view(T, S, J, E), u) / math.sqrt(E))
    return torch.einsum("shij,ish->sij", relu, a.view(T, S, J))


def pooled_keys(c, u, cuts):
    """Means and largest elements of whole blocks, each [blocks,S·K,E], and the first token of each."""
    size = c["coarse"] or 3
    firsts = [f for s, e in zip(cuts, cuts[1:] + [c["T"]]) for f in range(s, e - size + 1, size)]
    if not firsts:
        return torch.zeros(0, *u.shape[1:], dtype=torch.float64), torch.zeros(0, *u.shape[1:], dtype=torch.float64), firsts
    blocks = [u[f:f + size] for f in firsts]
    return torch.stack([x.mean(dim=0) for x in blocks]), torch.stack([x.amax(dim=0) for x in blocks]), firsts


def block_scores(c, r, a, means, largest):
    """[S,T,blocks]"""
    T, S, J, K, E = (c[k] for k in "TSJKE")
    total = 0
    for x in (means, largest):
        x = x.view(-1, S, K, E).expand(-1, S, J, E)
        relu = torch.relu(torch.einsum("ishe,jshe->shij", r.view(T, S, J, E), x) / math.sqrt(E))
        total = total + torch.einsum("shij,ish->sij", relu, a.view(T, S, J))
    return total


def best(scores, places, n):
    """The n places with the highest scores; what differs only by rounding is equal, and the lower place goes first."""
    return sorted(places, key=lambda j: (-round(float(scores[j]), 10), j))[:n]


def choice(c, scores, start, blocks=None):
    """Lists [T,S,n] by scores [S,T,T]; blocks: (scores, first tokens) where the choice has two levels."""
    T, S, n, w, sinks, size = (c[k] for k in ["T", "S", "n", "w", "sinks", "coarse"])
    lists = torch.full((T, S, n), -1, dtype=torch.int64)
    for s in range(S):
        most = max(n - c["fewer"] * s, 0)
        for i in range(T):
            first, window = int(start[i]), i - w + 1
            places = range(first + sinks, window)
            if blocks and window >= first:
                own = first + (window - first) // size * size
                whole = [m for m, f in enumerate(blocks[1]) if f >= first and f + size <= window]
                taken = best(blocks[0][s, i], whole, c["coarse_blocks"])
                inside = {j for m in taken for j in range(blocks[1][m], blocks[1][m] + size)} | set(range(own, window))
                places = [j for j in places if j in inside]
            take = sorted(best(scores[s, i], places, most))
            lists[i, s, :len(take)] = torch.tensor(take, dtype=torch.int64)
    return lists


def divergence(m, scores, mask):
    """[S,T]"""
    log_p = torch.log_softmax(torch.where(mask, scores, -torch.inf), dim=-1)
    some = m > 0
    return torch.where(some, m * (torch.log(torch.where(some, m, 1.0)) - torch.where(some, log_p, 0.0)), 0.0).sum(dim=-1)


def sequence(c, x, b):
    T, H, S, w, sinks = (c[k] for k in ["T", "H", "S", "w", "sinks"])
    cuts, start = starts_of(c, b)
    q, k, v, r, u, a, tq, tk = (t[b] for t in x.values())
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    causal = (start[:, None] == start[None, :]) & (j <= i)
    scores = index_scores(c, r, u, a)
    means, largest, firsts = pooled_keys(c, u, cuts)
    with torch.no_grad():
        blocks = (block_scores(c, r, a, means, largest), firsts) if c["coarse"] else None
        learned = choice(c, scores, start, blocks)
        weights = attention(c, q, k, causal.expand(H, T, T)).view(S, H // S, T, T).sum(dim=1)
        by_attention = choice(c, weights, start)
    reads = (causal & ((i - j < w) | (j - start[:, None] < sinks))).repeat(S, 1, 1)
    for s in range(S):
        for t in range(T):
            reads[s, t, learned[t, s][learned[t, s] >= 0]] = True
    by_head = reads.repeat_interleave(H // S, dim=0)
    p = attention(c, q, k, by_head)
    o = torch.einsum("hij,jhd->ihd", p, v.repeat_interleave(H // c["G"], dim=1))
    raw = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(H // c["G"], dim=1)) / math.sqrt(c["D"])
    log_sums = torch.logsumexp(torch.where(by_head, raw, -torch.inf), dim=-1)
    m = attention(c, tq, tk, causal.expand(H, T, T)).view(S, H // S, T, T).mean(dim=1)
    m_read = attention(c, tq, tk, by_head).view(S, H // S, T, T).mean(dim=1)
    size = c["coarse"] or 3
    pooled = torch.zeros(1 if T < size else (T - size) // size + 1, 2 * u.shape[1], u.shape[2], dtype=torch.float64)
    pooled[:len(firsts)] = torch.cat([means, largest], dim=1)
    return (learned, by_attention, o, log_sums, divergence(m, scores, causal.expand(S, T, T)), divergence(m_read, scores, reads),
            (m * reads).sum(), pooled)


def summary(x):
    x = x.contiguous().view(-1)
    places = [(n * 2654435761 + 12345) % len(x) for n in range(SAMPLES)]
    return [x[p].item() for p in places] + [(x * draw(len(x), 30)).sum().item()]


print(f"/* Made by tests/oracles/make_index_goldens.py with PyTorch {torch.__version__.split('+')[0]}, float64. */")
for c in cases():
    x = inputs(c)
    parts = [sequence(c, x, b) for b in range(c["B"])]
    learned, by_attention, o, log_sums, everywhere, attended, hits, pooled = (torch.stack([p[n] for p in parts]) for n in range(8))
    d_o = draw(o.numel(), 20).view(o.shape)
    gradients = list(torch.autograd.grad((o * d_o).sum(), [x[n] for n in "qkv"], retain_graph=True))
    for losses in (everywhere, attended):
        gradients += torch.autograd.grad(0.7 * losses.sum(), [x[n] for n in "rua"], retain_graph=True)
    rows = [summary(t.detach()) for t in (o, log_sums, everywhere, attended, hits.sum()[None], pooled, *gradients)]
    checks = [int((t.reshape(-1) * (torch.arange(t.numel()) % 9973 + 1)).sum()) for t in (learned, by_attention)]
    print(f'{{"{c["name"]}", {{{checks[0]}LL, {checks[1]}LL}},')
    print(" {" + ",\n  ".join("{" + ", ".join(f"{v:.17g}" for v in row) + "}" for row in rows) + "}},")
