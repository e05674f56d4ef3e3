#!/usr/bin/env python3
"""The peer of `squint bench step`: the same step of distillation, written plainly on PyTorch and transformers.

Teacher and student are GPT-2 124M with the same random weights; the student's attention projections train by KL from the
teacher's distribution with AdamW. One line of JSON: tokens/s from the median step, peak memory.

On the CPU: fp32, memory is the process's resident set. On CUDA: what a user of PyTorch would do for speed. --precision bf16 keeps
frozen weights in bf16 and trained ones in fp32 under autocast, as squint does; torch.compile over teacher, student and loss
together (--compile false: without); scaled_dot_product_attention by the backend that --attention names; fused AdamW. Memory is
torch.cuda.max_memory_allocated over the timed steps. One line for each backend.

    build/oracles/bin/python tests/bench/step_peer.py [--batch 2] [--length 512] [--steps 5] [--threads N]
                                                      [--device cuda --precision bf16 --attention cudnn flash]
"""
import argparse
import contextlib
import gc
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as functional
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def causal_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, **unused):
    """transformers' own "sdpa" makes a mask of T×T while torch.compile traces, which flash attention does not take."""
    o = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return o.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register("causal", causal_attention)


def make_models(options):
    """Teacher and student with the same values; in bf16 what is frozen is stored so."""
    torch.manual_seed(1)
    positions = max(1024, options.length)
    config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, n_positions=positions, attn_implementation="causal")
    teacher = GPT2LMHeadModel(config).eval().requires_grad_(False)
    student = GPT2LMHeadModel(config)
    student.load_state_dict(teacher.state_dict())
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(".attn." in name)
    if options.precision == "bf16":
        teacher.to(torch.bfloat16)
        for parameter in student.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    return config, teacher.to(options.device), student.to(options.device)


def attention_backend(options, name):
    """The context that makes scaled_dot_product_attention use one backend; PyTorch's own choice on the CPU."""
    if options.device == "cpu" or name == "auto":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel({"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}[name])


def make_loss(options, teacher, student):
    def loss_of(ids):
        with torch.no_grad():
            target = functional.log_softmax(teacher(ids, use_cache=False).logits.float(), dim=-1)
        logits = student(ids, use_cache=False).logits.float()
        loss = functional.kl_div(functional.log_softmax(logits, dim=-1), target, log_target=True, reduction="sum")
        return loss / (options.batch * options.length)

    return torch.compile(loss_of) if options.compile else loss_of


def measure(options, backend):
    on_gpu = options.device == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    config, teacher, student = make_models(options)
    trained = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0, **({"fused": True} if on_gpu else {}))
    loss_of = make_loss(options, teacher, student)
    bf16 = torch.autocast(options.device, torch.bfloat16) if options.precision == "bf16" else contextlib.nullcontext()
    warm = 5 if on_gpu else 1  # compilation, choice of algorithms, the clock
    seconds = []
    for step in range(options.steps + warm):
        if step == warm and on_gpu:
            torch.cuda.reset_peak_memory_stats()
        ids = torch.randint(config.vocab_size, (options.batch, options.length))
        wait()
        started = time.perf_counter()
        with attention_backend(options, backend), bf16:
            loss = loss_of(ids.to(options.device))
        optimizer.zero_grad(set_to_none=True)
        with attention_backend(options, backend):
            loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        wait()
        if step >= warm:
            seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "bench": "step", "program": f"PyTorch {torch.__version__}", "threads": torch.get_num_threads(), "seconds": median,
        "tokens_per_second": options.batch * options.length / median,
        "trained": sum(p.numel() for p in trained),
        "peak_mib": peak, "precision": options.precision, "attention": backend, "compiled": options.compile,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu", "kl": float(loss.detach()),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--attention", choices=["auto", "cudnn", "flash"], nargs="+", default=["auto"])
    parser.add_argument("--compile", choices=["true", "false"], help="default: true on cuda, false on cpu")
    options = parser.parse_args()
    options.compile = options.compile == "true" if options.compile else options.device == "cuda"
    if options.threads:
        torch.set_num_threads(options.threads)
    # As squint multiplies in fp32: without TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for backend in options.attention:
        try:
            print(json.dumps(measure(options, backend)), flush=True)
        except RuntimeError as error:  # a backend that this GPU or this version has not
            print(json.dumps({"bench": "step", "attention": backend, "failed": str(error)[:200]}), flush=True)
        torch._dynamo.reset()
        gc.collect()  # the models of this backend are no part of the next one's memory
        if options.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
