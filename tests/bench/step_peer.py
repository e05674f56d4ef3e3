#!/usr/bin/env python3
"""The peer of `squint bench step`: the same step of distillation, written plainly on PyTorch and transformers.

Teacher and student are GPT-2 124M with the same random weights; the student's attention projections train by KL from the
teacher's distribution with AdamW, fp32. One line of JSON: tokens/s from the median step, peak resident memory.

    build/oracles/bin/python tests/bench/step_peer.py [--batch 2] [--length 512] [--steps 5] [--threads N]
"""
import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as functional
from transformers import GPT2Config, GPT2LMHeadModel


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    teacher = GPT2LMHeadModel(config).eval()
    student = GPT2LMHeadModel(config)
    student.load_state_dict(teacher.state_dict())
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(".attn." in name)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
    seconds = []
    for step in range(options.steps + 1):
        ids = torch.randint(config.vocab_size, (options.batch, options.length))
        started = time.perf_counter()
        with torch.no_grad():
            target = functional.log_softmax(teacher(ids, use_cache=False).logits, dim=-1)
        logits = student(ids, use_cache=False).logits
        loss = functional.kl_div(functional.log_softmax(logits, dim=-1), target, log_target=True, reduction="sum")
        loss = loss / (options.batch * options.length)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step:
            seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    print(json.dumps({
        "bench": "step", "program": f"PyTorch {torch.__version__}", "threads": torch.get_num_threads(), "seconds": median,
        "tokens_per_second": options.batch * options.length / median,
        "trained": sum(p.numel() for p in trained),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }))


if __name__ == "__main__":
    main()
