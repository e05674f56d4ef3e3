#!/usr/bin/env python3
"""The peer of `squint bench attention --kinds full`: PyTorch's scaled_dot_product_attention, causal, fp32, forward and backward.

q, k, v and the output's gradient are drawn once for each length; one run that is not timed, then the medians of `repeats`. One
line of JSON with a row for each length.

    build/oracles/bin/python tests/bench/attention_peer.py [--lengths 1024 4096 16384] [--batch 1] [--heads 12] [--width 64]
                                                           [--repeats 3] [--threads N]
"""
import argparse
import json
import statistics
import time

import torch
from torch.nn.functional import scaled_dot_product_attention


def measure(options, length):
    q, k, v = (torch.randn(options.batch, options.heads, length, options.width, requires_grad=True) for _ in range(3))
    d_o = torch.randn(options.batch, options.heads, length, options.width)
    forward, backward = [], []
    for repeat in range(options.repeats + 1):
        q.grad = k.grad = v.grad = None
        begin = time.perf_counter()
        o = scaled_dot_product_attention(q, k, v, is_causal=True)
        middle = time.perf_counter()
        o.backward(d_o)
        end = time.perf_counter()
        if repeat:
            forward.append(middle - begin)
            backward.append(end - middle)
    return {"length": length, "forward_s": statistics.median(forward), "backward_s": statistics.median(backward)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    rows = [measure(options, length) for length in options.lengths]
    print(json.dumps({"bench": "attention", "program": f"PyTorch {torch.__version__}", "threads": torch.get_num_threads(), "rows": rows}))


if __name__ == "__main__":
    main()
