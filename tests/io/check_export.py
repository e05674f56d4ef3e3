"""Directories that `squint export` writes: transformers loads them and computes the same; exported again, they are the same bytes.
A student keeps its kinds for squint, and is a model with full attention for transformers.

    SQUINT=build/release/squint tests/support/oracle.sh tests/io/check_export.py
"""
import filecmp
import json
import pathlib
import shutil
import sys
import tempfile

import numpy
import torch
import transformers
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "oracles"))
from compare_logits import squint, squint_logprobs, transformers_logprobs  # noqa: E402

GOLDENS = ROOT / "tests" / "model" / "goldens"
LIMIT = 2e-5
problems = []


def check(right, message):
    if not right:
        problems.append(message)
        print(message)


def check_same_files(one, two):
    names = sorted(path.name for path in one.iterdir())
    check(names == sorted(path.name for path in two.iterdir()), f"{one} and {two} hold other files")
    for name in names:
        check(filecmp.cmp(one / name, two / name, shallow=False), f"{name} of {one} and {two} differ")


def check_model(name, folder):
    golden = load_file(GOLDENS / name / "golden.safetensors")
    expected = torch.log_softmax(torch.from_numpy(golden["logits"]).double(), dim=-1).numpy()
    squint("export", "--model", GOLDENS / name, "--out", folder / "once")
    squint("export", "--model", folder / "once", "--out", folder / "twice")
    check_same_files(folder / "once", folder / "twice")
    difference = abs(transformers_logprobs(folder / "once", golden["ids"]) - expected).max()
    check(difference <= LIMIT, f"{name}: expected transformers' own logits, off by {difference:.2e}")


def check_student(name, folder):
    """A student of masks in layer 1, made by hand."""
    ids = load_file(GOLDENS / name / "golden.safetensors")["ids"]
    config = json.loads((GOLDENS / name / "config.json").read_text())
    heads = config.get("n_head", config.get("num_attention_heads"))
    source = folder / "source"
    shutil.copytree(GOLDENS / name, source)
    (source / "tokenizer.json").write_text("{}")
    rule = {"first": 1, "last": -1, "kind": "masks", "options": {"candidates": ["window(3)", "sinks(2)"], "per": ["head"]}}
    (source / "squint.json").write_text(json.dumps({"format_version": 1, "attention": [rule]}))
    coefficients = numpy.random.default_rng(3).standard_normal((heads, 2)).astype(numpy.float32)
    save_file({"h.1.attn.masks.coefficients": coefficients}, source / "squint.safetensors")

    squint("export", "--model", source, "--out", folder / "once")
    squint("export", "--model", folder / "once", "--out", folder / "twice")
    check_same_files(folder / "once", folder / "twice")
    check((folder / "once" / "tokenizer.json").read_text() == "{}", f"{name}: the tokenizer did not come along")
    kept = load_file(folder / "once" / "squint.safetensors")
    check(list(kept) == ["h.1.attn.masks.coefficients"] and (kept["h.1.attn.masks.coefficients"] == coefficients).all(),
          f"{name}: squint.safetensors lost something")
    rules = json.loads((folder / "once" / "squint.json").read_text())
    check(rules["attention"] == [rule], f"{name}: squint.json says {rules}")
    sparse, again = squint_logprobs(source, ids), squint_logprobs(folder / "once", ids)
    check((sparse == again).all(), f"{name}: the exported student computes something else")
    full = transformers_logprobs(folder / "once", ids)
    # Not zero: transformers has two functions for GELU's tanh form, which differ in the last bits.
    check(abs(full - transformers_logprobs(GOLDENS / name, ids)).max() <= 1e-12, f"{name}: transformers sees other weights")
    check(abs(full - sparse).max() > 0.01, f"{name}: the student attends to everything")


def main():
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    names = ["gpt2-tied", "gpt2-untied", "llama-gqa", "llama-tied"]
    for name in names:
        for work in (check_model, check_student):
            with tempfile.TemporaryDirectory() as folder:
                work(name, pathlib.Path(folder))
    print(f"{len(names)} models and {len(names)} students exported, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
