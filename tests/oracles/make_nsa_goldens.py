#!/usr/bin/env python3
"""Writes tests/ops/nsa_goldens.inc: kind nsa by PyTorch in float64, naively, T×T, from docs/attention.md.

    build/oracles/bin/python tests/oracles/make_nsa_goldens.py > tests/ops/nsa_goldens.inc

Inputs are an exact formula of their index (draws.py, the same as case_draw in tests/ops/case_arrays.h); the cases are those of nsa_cases
there, read from the source. Of every output the file holds sampled elements and two weighted sums over all of them, of the choice a
sum; gradients are autograd's of sum(o·d_o) + 0.7·sum(losses), with the choice held fixed.
"""
import math
import pathlib
import re

import torch

from draws import draw

SAMPLES = 4
SOURCE = pathlib.Path(__file__).parent.parent / "ops" / "nsa_case.c"


def cases():
    text = SOURCE.read_text()
    table = text[text.index("nsa_cases[] = {"):text.index("const int nsa_case_count")]
    for name, numbers, apart, cuts, repeated in re.findall(r'\{"([^"]+)", ([\d, ]+), (true|false), \{([\d, ]*)\}, (true|false)\}', table):
        keys = ["B", "T", "H", "G", "D", "l", "d", "block", "n", "w", "sg"]
        case = dict(zip(keys, map(int, numbers.split(","))), name=name, apart=apart == "true", repeated=repeated == "true")
        case["cuts"] = [c for c in map(int, cuts.split(",")) if c]
        yield case


def inputs(c):
    B, T, H, G, D, l = (c[k] for k in "BTHGDl")
    gates = 3 if c["apart"] else 1
    w1, w2 = 2 / math.sqrt(l * D), 2 / math.sqrt(2 * D)
    shapes = [("q", (B, T, H, D), 2), ("k", (B, T, G, D), 1), ("v", (B, T, G, D), 1), ("logits", (B, T, H * gates), 2)]
    for side in "kv":
        shapes += [("w1_" + side, (2 * D, l * D), w1), ("b1_" + side, (2 * D,), 0.5), ("w2_" + side, (D, 2 * D), w2),
                   ("places_" + side, (l, D), 0.5)]
    shapes += [("teacher_q", (B, T, H, D), 2), ("teacher_k", (B, T, G, D), 1)]
    made = {}
    for part, (name, shape, size) in enumerate(shapes):
        count = math.prod(shape)
        if c["repeated"] and part <= 2:
            x = draw(count // (B * T), part).repeat(B * T)
        else:
            x = draw(count, part)
        x = (size * x).to(torch.float32).to(torch.float64).view(shape)
        made[name] = x.requires_grad_(not name.startswith("teacher"))
    return made


def gelu(x):
    return torch.nn.functional.gelu(x, approximate="tanh")


def softmax_over(scores, mask):
    """Row softmax over the mask; rows of 0 where it is empty."""
    some = mask.any(dim=-1, keepdim=True)
    p = torch.softmax(torch.where(mask | ~some, scores, -torch.inf), dim=-1)
    return torch.where(some & mask, p, 0.0)


def sequence(c, x, b):
    """o [T,H,D], the compressed branch's, losses [lists,T], choices."""
    T, H, G, D, l, d, block, n, w, sg = (c[k] for k in ["T", "H", "G", "D", "l", "d", "block", "n", "w", "sg"])
    starts = sorted({0} | {cut + b for cut in c["cuts"] if cut + b < T})
    start = torch.tensor([max(s for s in starts if s <= t) for t in range(T)])
    ends = starts[1:] + [T]
    firsts = [f for s, e in zip(starts, ends) for f in range(s, e - l + 1, d)]

    def compress(rows, side):
        """[blocks,G,D]"""
        out = []
        for f in firsts:
            tokens = rows[f:f + l]  # [l,G,D]
            flat = (tokens + x["places_" + side][:, None, :]).permute(1, 0, 2).reshape(G, l * D)
            hidden = gelu(flat @ x["w1_" + side].T + x["b1_" + side])
            out.append(tokens.mean(dim=0) + hidden @ x["w2_" + side].T)
        return torch.stack(out) if out else torch.zeros(0, G, D, dtype=torch.float64)

    q, k, v = x["q"][b], x["k"][b], x["v"][b]
    kc, vc = compress(k, "k"), compress(v, "v")
    i = torch.arange(T)
    visible = torch.tensor([[start[t] <= f and f + l - 1 <= t for f in firsts] for t in range(T)], dtype=torch.bool).view(T, len(firsts))
    same = (start[:, None] == start[None, :]) & (i[None, :] <= i[:, None])
    own_block = (i - start) // block  # block number of each token in its document
    # overlap of compressed block (column) with selection block number (row) of its own document, in tokens / d
    numbers = int(own_block.max()) + 1
    overlap = torch.zeros(len(firsts), numbers, dtype=torch.float64)
    for column, f in enumerate(firsts):
        for t in range(f, f + l):
            overlap[column, own_block[t]] += 1 / d
    weights = []
    for h in range(H):
        g = h // (H // G)
        weights.append(softmax_over(q[:, h] @ kc[:, g].T / math.sqrt(D), visible))
    lists = H // sg
    choices = torch.full((T, lists, n), -1, dtype=torch.int64)
    chosen_mask, losses = [], []
    for u in range(lists):
        importance = sum(weights[h] for h in range(u * sg, (u + 1) * sg)) @ overlap  # [T,numbers]
        mask = torch.zeros(T, T, dtype=torch.bool)
        detached = importance.detach()
        for t in range(T):
            own = int(own_block[t])
            forced = {0, own, max(own - 1, 0)}
            rest = sorted((b2 for b2 in range(own + 1) if b2 not in forced), key=lambda b2: (-float(detached[t, b2]), b2))
            take = sorted(forced | set(rest[:max(n - len(forced), 0)]))
            choices[t, u, :len(take)] = torch.tensor(take)
            mask[t] = same[t] & torch.isin(own_block, torch.tensor(take))
        chosen_mask.append(mask)
        # learning to choose
        mass = torch.zeros(T, numbers, dtype=torch.float64)
        for h in range(u * sg, (u + 1) * sg):
            g = h // (H // G)
            p = softmax_over(x["teacher_q"][b][:, h] @ x["teacher_k"][b][:, g].T / math.sqrt(D), same)
            mass = mass + p @ torch.nn.functional.one_hot(own_block, numbers).to(torch.float64)
        reached = (visible.to(torch.float64) @ overlap) > 0
        mass = torch.where(reached, mass, 0.0)
        total = mass.sum(dim=1, keepdim=True)
        mass = torch.where(total > 0, mass / torch.where(total > 0, total, 1.0), 0.0)
        # a whole compressed block counts l/d strides, all of them in blocks of its document
        normal = importance / (sg * l / d)
        safe = torch.where(mass > 0, mass, 1.0)
        losses.append((torch.where(mass > 0, mass * (torch.log(safe) - torch.log(normal + 1e-9)), 0.0)).sum(dim=1))
    window = same & (i[:, None] - i[None, :] < w)
    o, coarse = [], []
    for h in range(H):
        g, u = h // (H // G), h // sg
        scores = q[:, h] @ k[:, g].T / math.sqrt(D)
        oc = weights[h] @ vc[:, g]
        if c["apart"]:
            gate = torch.sigmoid(x["logits"][b].view(T, H, 3)[:, h])
            os = softmax_over(scores, chosen_mask[u]) @ v[:, g]
            ow = softmax_over(scores, window) @ v[:, g]
            o.append(gate[:, 0:1] * oc + gate[:, 1:2] * os + gate[:, 2:3] * ow)
        else:
            gate = torch.sigmoid(x["logits"][b][:, h:h + 1])
            o.append((1 - gate) * (softmax_over(scores, chosen_mask[u] | window) @ v[:, g]) + gate * oc)
        coarse.append(oc)
    return torch.stack(o, dim=1), torch.stack(coarse, dim=1), torch.stack(losses), choices


def summary(x):
    x = x.contiguous().view(-1)
    places = [(n * 2654435761 + 12345) % len(x) for n in range(SAMPLES)]
    return [x[p].item() for p in places] + [(x * draw(len(x), part)).sum().item() for part in (30, 31)]


print(f"/* Made by tests/oracles/make_nsa_goldens.py with PyTorch {torch.__version__.split('+')[0]}, float64. */")
for c in cases():
    x = inputs(c)
    parts = [sequence(c, x, b) for b in range(c["B"])]
    o, coarse, losses = (torch.stack([p[n] for p in parts]) for n in range(3))
    choices = torch.stack([p[3] for p in parts]).view(-1)
    d_o = draw(o.numel(), 20).view(o.shape)
    ((o * d_o).sum() + 0.7 * losses.sum()).backward()
    learning = [t for t in x.values() if t.requires_grad]
    rows = [summary(t.detach()) for t in (o, coarse, losses)]
    rows += [summary(t.grad if t.grad is not None else torch.zeros_like(t)) for t in learning]
    check = int((choices * (torch.arange(len(choices)) % 9973 + 1)).sum())
    print(f'{{"{c["name"]}", {check}LL,')
    print(" {" + ",\n  ".join("{" + ", ".join(f"{v:.17g}" for v in row) + "}" for row in rows) + "}},")
