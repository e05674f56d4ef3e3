#!/usr/bin/env python3
"""The peer of `squint bench attention`: PyTorch's scaled_dot_product_attention, causal, forward and backward; `flex`: its flex_attention
with a window of 512 tokens and 4 sinks, compiled, beside kind masks.

q, k, v and the output's gradient are drawn once for each length; some runs that are not timed (CPU 1, CUDA 5), then the medians of
`repeats`. One line of JSON with a row for each length and backend. On CUDA every time ends when the GPU is done, and a row has the
peak of allocated memory.

    build/oracles/bin/python tests/bench/attention_peer.py [--lengths 1024 4096 16384] [--batch 1] [--heads 12] [--width 64]
                                                           [--repeats 3] [--threads N]
                                                           [--device cuda --precision bf16 --attention cudnn flash]
"""
import argparse
import contextlib
import json
import statistics
import time

import torch
from torch.nn.functional import scaled_dot_product_attention


def flex(length):
    """softmax(q k^T) v over the last 512 tokens and the first 4, as one compiled function of q, k, v."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def visible(batch, head, i, j):
        return (j <= i) & ((i - j < 512) | (j < 4))

    mask = create_block_mask(visible, None, None, length, length, device="cuda")
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def attention_backend(options, name):
    if options.device == "cpu" or name in ("auto", "flex"):
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel({"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[name])


def measure(options, length, backend):
    on_gpu = options.device == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    kind = {"device": options.device, "dtype": torch.bfloat16 if options.precision == "bf16" else torch.float32}
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    shape = (options.batch, options.heads, length, options.width)
    q, k, v = (torch.randn(*shape, requires_grad=True, **kind) for _ in range(3))
    d_o = torch.randn(*shape, **kind)
    attend = flex(length) if backend == "flex" else lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True)
    warm = 5 if on_gpu else 1
    forward, backward = [], []
    for repeat in range(options.repeats + warm):
        q.grad = k.grad = v.grad = None
        wait()
        begin = time.perf_counter()
        with attention_backend(options, backend):
            o = attend(q, k, v)
        wait()
        middle = time.perf_counter()
        o.backward(d_o)
        wait()
        end = time.perf_counter()
        if repeat >= warm:
            forward.append(middle - begin)
            backward.append(end - middle)
    row = {"length": length, "attention": backend, "forward_s": statistics.median(forward), "backward_s": statistics.median(backward)}
    if on_gpu:
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    return row


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--attention", choices=["auto", "cudnn", "flash", "flex"], nargs="+", default=["auto"])
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows, failed = [], []
    for length in options.lengths:
        for backend in options.attention:
            try:
                rows.append(measure(options, length, backend))
            except Exception as error:  # a backend that this GPU, this version or this type has not
                failed.append({"length": length, "attention": backend, "failed": str(error)[:200]})
    print(json.dumps({"bench": "attention", "program": f"PyTorch {torch.__version__}", "threads": torch.get_num_threads(),
                      "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu", "rows": rows, "failed": failed}))


if __name__ == "__main__":
    main()
