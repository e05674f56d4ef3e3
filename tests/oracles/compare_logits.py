#!/usr/bin/env python3
"""Log-probabilities of `squint logits` against transformers in float64, and against the golden.json of published models.

    build/oracles/bin/python tests/oracles/compare_logits.py [--limit 1e-4] [MODEL...]

MODEL: Hugging Face directories; without any, those of tests/model/goldens and of $SQUINT_DATA. $SQUINT: the program.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import h5py
import numpy
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def squint(*words):
    """Runs the program; its messages are shown only when it fails."""
    program = os.environ.get("SQUINT", str(ROOT / "build" / "release" / "squint"))
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(done.args)}: exit {done.returncode}: {done.stderr}")
    return done


def squint_logprobs(model, ids):
    """[N,T,V] of `squint logits`."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "ids.json").write_text(json.dumps({"ids": numpy.asarray(ids).tolist()}))
        squint("logits", "--model", model, "--ids", f"{folder}/ids.json", "--out", f"{folder}/out.h5")
        with h5py.File(f"{folder}/out.h5") as file:
            return file["logprobs"][...].astype(numpy.float64)


def transformers_logprobs(model, ids):
    """[N,T,V] of transformers in float64; every tensor of the directory must have its place in the model."""
    network, found = transformers.AutoModelForCausalLM.from_pretrained(model, torch_dtype=torch.float64, attn_implementation="eager",
                                                                       output_loading_info=True)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found[what]:
            raise RuntimeError(f"{model}: transformers says {what}: {found[what]}")
    with torch.no_grad():
        return torch.log_softmax(network(torch.tensor(numpy.asarray(ids))).logits.double(), dim=-1).numpy()


def random_ids(model):
    config = json.loads((pathlib.Path(model) / "config.json").read_text())
    length = min(config.get("n_positions", config.get("max_position_embeddings")), 40)
    return numpy.random.default_rng(7).integers(0, config["vocab_size"], (2, length))


def golden_difference(model, golden):
    """Largest difference from what others computed with the model."""
    if "logits" in golden:
        expected = torch.log_softmax(torch.tensor(golden["logits"], dtype=torch.float64), dim=-1).numpy()
        return abs(squint_logprobs(model, golden["ids"]) - expected).max()
    ids = golden["ids"]
    found = squint_logprobs(model, [ids])[0]
    rows = numpy.array(golden["first_rows_logprob"])
    following = numpy.array(golden["logprob_of_next"])
    at = numpy.arange(len(following))
    return max(abs(found[:len(rows)] - rows).max(), abs(found[at, numpy.array(ids)[at + 1]] - following).max())


def default_models():
    folders = [ROOT / "tests" / "model" / "goldens"]
    if os.environ.get("SQUINT_DATA"):
        folders.append(pathlib.Path(os.environ["SQUINT_DATA"]))
    return sorted(path.parent for folder in folders for path in folder.glob("*/config.json"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit", type=float, default=1e-4)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    wrong = 0
    for model in arguments.models or default_models():
        ids = random_ids(model)
        differences = {"transformers": abs(squint_logprobs(model, ids) - transformers_logprobs(model, ids)).max()}
        golden = pathlib.Path(model) / "golden.json"
        if golden.exists():
            differences["golden.json"] = golden_difference(model, json.loads(golden.read_text()))
        for other, difference in differences.items():
            right = difference <= arguments.limit
            wrong += not right
            print(f"{'ok ' if right else 'BAD'} {difference:.2e} (allowed {arguments.limit:g})  {model} against {other}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
