"""See tokenizer.sh. Every contestant gets the whole text in one call and line by line; its better time counts. The rounds
are interleaved, so that a busy machine is busy for all; the best of the rounds counts. Ids must be equal."""
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time

import tiktoken
import tokenizers

ROUNDS = 3
HERE = os.path.dirname(os.path.abspath(__file__))
spec = importlib.util.spec_from_file_location("oracle", os.path.join(HERE, "..", "oracles", "tokenizer.py"))
oracle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracle)


def timed(call):
    begun = time.perf_counter()
    result = call()
    return time.perf_counter() - begun, result


def main():
    packed = os.path.join(oracle.DATA, "wikitext-2", "wiki.train.tokens.zst")
    raw = subprocess.run(["zstd", "-dcq", packed], stdout=subprocess.PIPE, check=True).stdout
    text = raw.decode("utf-8")
    lines = text.splitlines(keepends=True)
    face, tik = oracle.hugging_face(), oracle.tiktoken_gpt2()
    ways = {
        ("tiktoken", "whole"): lambda: tik.encode_ordinary(text),
        ("tiktoken", "lines"): lambda: [tik.encode_ordinary(line) for line in lines],
        ("tokenizers", "whole"): lambda: face.encode(text, add_special_tokens=False).ids,
        ("tokenizers", "lines"): lambda: face.encode_batch_fast(lines, add_special_tokens=False),
    }
    best = {}
    with tempfile.NamedTemporaryFile() as file:
        file.write(raw)
        file.flush()
        command = [os.environ["SQUINT"], "tokenizer", "encode", "--tokenizer", oracle.GPT2, file.name]
        ids = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        for way in ("tiktoken", "whole"), ("tokenizers", "whole"):
            assert ways[way]() == ids, f"{way[0]} gives other ids"
        for _ in range(ROUNDS):
            for way, call in ways.items():
                best[way] = min(best.get(way, 1e9), timed(call)[0])
            took, done = timed(lambda: subprocess.run(command + ["--count"], stdout=subprocess.PIPE, check=True).stdout)
            figures = json.loads(done)
            best["squint", "whole"] = min(best.get(("squint", "whole"), 1e9), figures["seconds"])
            best["squint", "process"] = min(best.get(("squint", "process"), 1e9), took)
    seconds = {name: min(value for (who, _), value in best.items() if who == name) for name in ("squint", "tiktoken", "tokenizers")}
    report = {"bytes": len(raw), "ids": len(ids), "tiktoken": tiktoken.__version__, "tokenizers": tokenizers.__version__,
              "load": os.getloadavg()[0], "seconds": {f"{who} {how}": round(value, 4) for (who, how), value in best.items()},
              "ratio tiktoken": round(seconds["tiktoken"] / seconds["squint"], 1),
              "ratio tokenizers": round(seconds["tokenizers"] / seconds["squint"], 1)}
    if "--json" in sys.argv:
        print(json.dumps(report))
    else:
        for (who, how), value in best.items():
            print(f"{who + ' ' + how:18} {value * 1e3:9.1f} ms {len(raw) / 1e6 / value:8.1f} MB/s")
        print(f"squint is {report['ratio tiktoken']} times tiktoken, {report['ratio tokenizers']} times tokenizers; "
              f"{len(ids):,} ids, all equal; load {report['load']:.1f}")
    sys.exit(0 if report["ratio tiktoken"] >= 3 and report["ratio tokenizers"] >= 10 else 1)


main()
