#!/usr/bin/env python3
"""Writes the small random models of tests/model/goldens with transformers, and what transformers computes with them.

    build/oracles/bin/python tests/oracles/make_models.py [--check]

Each folder holds a Hugging Face directory (config.json, model.safetensors) and golden.safetensors:
    ids      [B,T] I32    random token ids
    targets  [B,T] I32    the next id; -1 at the end of each row, which counts in nothing
    logits   [B,T,V] F32
    loss     [1] F32      mean cross-entropy over the targets that count
    grad.X   F32          the loss's gradient of squint's tensor X, in squint's layout ([out,in]; q, k, v rows in one attn.qkv,
                          gate and up rows in one mlp.up)
The weights are random, so nothing here comes from anywhere else. The forward and backward passes run in float64 (rotary
angles in float32, as transformers makes them). Every value is a function of the model's name.
gpt2-f16, gpt2-bf16 and llama-sharded are gpt2-tied and llama-gqa stored in other ways, without goldens of their own.
"""
import argparse
import copy
import json
import pathlib
import shutil
import sys
import tempfile
import zlib

import numpy
import torch
import transformers
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

GOLDENS = pathlib.Path(__file__).resolve().parent.parent / "model" / "goldens"

GPT2 = dict(vocab_size=101, n_layer=2, bos_token_id=100, eos_token_id=100, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
LLAMA = dict(vocab_size=101, num_hidden_layers=2, bos_token_id=1, eos_token_id=2, max_position_embeddings=64)
CONFIGS = {
    "gpt2-tied": GPT2Config(n_embd=48, n_head=3, n_positions=29, n_inner=60, **GPT2),
    "gpt2-untied": GPT2Config(n_embd=30, n_head=3, n_positions=31, layer_norm_epsilon=3e-5, tie_word_embeddings=False,
                              activation_function="gelu_pytorch_tanh", **GPT2),
    "llama-gqa": LlamaConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, head_dim=8, intermediate_size=40,
                             rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, **LLAMA),
    "llama-tied": LlamaConfig(hidden_size=36, num_attention_heads=4, num_key_value_heads=2, head_dim=14,
                              intermediate_size=28, rms_norm_eps=1e-6, rope_theta=500.0, tie_word_embeddings=True,
                              attention_bias=True, mlp_bias=True,
                              rope_scaling=dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                original_max_position_embeddings=16), **LLAMA),
}
SHAPES = {"gpt2-tied": (2, 23), "gpt2-untied": (3, 7), "llama-gqa": (2, 17), "llama-tied": (1, 41)}


def random_model(name):
    """The model with every tensor random: norms around one, biases far from zero."""
    config = copy.deepcopy(CONFIGS[name])  # saving a model changes its config's dtype
    make = GPT2LMHeadModel if config.model_type == "gpt2" else LlamaForCausalLM
    model = make._from_config(config, attn_implementation="sdpa").eval()
    generator = numpy.random.default_rng(zlib.crc32(name.encode()))
    done = set()
    with torch.no_grad():
        for key, value in sorted(model.named_parameters()):
            if value.data_ptr() in done:
                continue
            done.add(value.data_ptr())
            noise = generator.standard_normal(tuple(value.shape))
            if value.dim() == 1:
                noise = 0.2 * noise + (1.0 if key.endswith("weight") else 0.0)
            elif "wte" in key or "embed_tokens" in key or "lm_head" in key:
                noise *= 0.3
            else:
                noise *= 1.2 / numpy.sqrt(value.shape[0] if config.model_type == "gpt2" else value.shape[1])
            value.copy_(torch.from_numpy(noise.astype(numpy.float32)))
    return model


def rms_norm(self, x):
    """LlamaRMSNorm without its cast to float32."""
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def gpt2_gradients(model):
    grad = {key.removeprefix("transformer."): value.grad for key, value in model.named_parameters()}
    names = {"ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attn.qkv", "attn.c_proj": "attn.out", "mlp.c_fc": "mlp.up",
             "mlp.c_proj": "mlp.down"}
    out = {"wte": grad["wte.weight"], "wpe": grad["wpe.weight"], "norm.weight": grad["ln_f.weight"],
           "norm.bias": grad["ln_f.bias"]}
    for layer in range(model.config.n_layer):
        for theirs, ours in names.items():
            for part in ("weight", "bias"):
                value = grad[f"h.{layer}.{theirs}.{part}"]
                out[f"h.{layer}.{ours}.{part}"] = value.T if value.dim() == 2 else value
    if not model.config.tie_word_embeddings:
        out["head.weight"] = grad["lm_head.weight"]
    return out


def llama_gradients(model):
    grad = {key.removeprefix("model."): value.grad for key, value in model.named_parameters()}
    out = {"wte": grad["embed_tokens.weight"], "norm.weight": grad["norm.weight"]}
    groups = {"norm1": ["input_layernorm"], "norm2": ["post_attention_layernorm"],
              "attn.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "attn.out": ["self_attn.o_proj"],
              "mlp.up": ["mlp.gate_proj", "mlp.up_proj"], "mlp.down": ["mlp.down_proj"]}
    for layer in range(model.config.num_hidden_layers):
        for ours, theirs in groups.items():
            for part in ("weight", "bias"):
                keys = [f"layers.{layer}.{key}.{part}" for key in theirs]
                if keys[0] in grad:
                    out[f"h.{layer}.{ours}.{part}"] = torch.cat([grad[key] for key in keys])
    if not model.config.tie_word_embeddings:
        out["head.weight"] = grad["lm_head.weight"]
    return out


def golden(name, model):
    batch, length = SHAPES[name]
    generator = numpy.random.default_rng(zlib.crc32(name.encode()) + 1)
    ids = generator.integers(0, model.config.vocab_size, (batch, length))
    model = model.double()
    logits = model(torch.from_numpy(ids)).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]),
                                             torch.from_numpy(ids[:, 1:]).reshape(-1))
    loss.backward()
    targets = numpy.concatenate([ids[:, 1:], numpy.full((batch, 1), -1)], axis=1)
    gradients = gpt2_gradients(model) if model.config.model_type == "gpt2" else llama_gradients(model)
    tensors = {"ids": ids.astype(numpy.int32), "targets": targets.astype(numpy.int32),
               "logits": logits.detach().numpy().astype(numpy.float32),
               "loss": numpy.array([loss.item()], numpy.float32)}
    for key, value in gradients.items():
        tensors["grad." + key] = numpy.ascontiguousarray(value.numpy().astype(numpy.float32))
    return tensors


def write(name, folder):
    model = random_model(name)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(golden(name, model), folder / "golden.safetensors")


def write_variants(root):
    """Other ways to store: half precisions, several files."""
    for name, dtype in (("gpt2-f16", torch.float16), ("gpt2-bf16", torch.bfloat16)):
        random_model("gpt2-tied").to(dtype).save_pretrained(root / name)
    random_model("llama-gqa").save_pretrained(root / "llama-sharded", max_shard_size="50KB")
    for name in ("gpt2-f16", "gpt2-bf16", "llama-sharded"):
        (root / name / "generation_config.json").unlink(missing_ok=True)


def same(a, b):
    """Equal texts, or equal tensors up to the last bits of another machine's mathematics."""
    if a.suffix != ".safetensors":
        return json.loads(a.read_text()) == json.loads(b.read_text())
    with safe_open(a, "pt") as left, safe_open(b, "pt") as right:
        if sorted(left.keys()) != sorted(right.keys()):
            return False
        return all(torch.allclose(left.get_tensor(k).double(), right.get_tensor(k).double(), rtol=1e-5, atol=1e-7)
                   for k in left.keys())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    modeling_llama.LlamaRMSNorm.forward = rms_norm
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        for name in CONFIGS:
            write(name, root / name)
        write_variants(root)
        wrong = 0
        for made in sorted(path for path in root.rglob("*") if path.is_file()):
            kept = GOLDENS / made.relative_to(root)
            if arguments.check:
                if not kept.exists() or not same(made, kept):
                    print(f"{kept}: differs from what {sys.argv[0]} makes")
                    wrong += 1
            else:
                kept.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made, kept)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
