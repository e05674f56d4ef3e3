"""Tokenizers that are not ours, as oracles.

    build/oracles/bin/python tests/oracles/tokenizer.py goldens   writes tests/unit/data/tokenizer_cases.json and
                                                                  prints the rows of tests/unit/test_tokenizer_data.c
    build/oracles/bin/python tests/oracles/tokenizer.py cases     the file alone
    build/oracles/bin/python tests/oracles/tokenizer.py check     compares the program ($SQUINT) with them now

The oracles' versions are in requirements.txt. GPT-2's vocabulary is read from $SQUINT_DATA/gpt2-tokenizer; tiktoken gets
it without a network: its ranks are the merges' order.
"""
import itertools
import json
import os
import subprocess
import sys
import tempfile

import numpy
import tiktoken
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
CASES = os.path.join(HERE, "..", "unit", "data", "tokenizer_cases.json")
DATA = os.environ.get("SQUINT_DATA", os.path.join(HERE, "..", "..", "..", "shared", "data"))
GPT2 = os.path.join(DATA, "gpt2-tokenizer")
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

TEXT = """The little house by the river had a red door and nine windows. Every morning the miller's daughter would open
them, one by one, and count: one, two, three, and so on to nine. "Why do you count?" asked the cat. "They'll not
run away." She laughed; she didn't know. In 1984 the river rose 12 feet, and in 2007 it rose 13.5 feet again.
Über den Fluß, über die Brücke; naïve café, crème brûlée. Über, über, naïve, café.
    indented  text   with    many     spaces
\tand tabs\tand  more\n\n\nthe end of the little house by the river, the little house by the river.
"""
TEXTS = ["", " ", "  ", "\n", " \n \n", "Hello world", " leading", "trailing  ", "tabs\tand\nnew\r\nlines", "a  b   c    d",
         "na\u00efve caf\u00e9 u\u0308ber", "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "emoji \U0001F600\U0001F44D\U0001F3FD x",
         "\u2581marker\u2581 \u2581\u2581x", "don't I'LL we've 'Tis 's it's 'ves", "12345 67 8.9 \u0664\u0665 \u2167\u00bd",
         "x\u00a0y\u3000z\u2003\u2003w\u0085v", "the little house by the river", "theriver", "a" * 70, "ab" * 100, "=" * 33,
         "<s>hi</s>", "<|endoftext|>the<|endoftext|>", "the <mask> house", "the   <mask>\n house<mask>", "<tool>the <tool> x<too",
         "<0x41>", "\u180e\u200b\u00ad\ufeff", "\U0010FFFF\uE000\uFFFD", "\u1C89\U00031350\U00010D40x", "I\u017f 'S'\u017f",
         "the\u0301 \u0e33\u0e48 \u0915\u094d\u0937", "in 1984 and 2007, 13.5", "\r\n\r\n  \t x", "<mask>", "<tool>", " <mask> ", "<s> <s>", "\u30c4x \u30c4"]


# --- the tokenizers of tokenizer_cases.json ---------------------------------------------------------------------------

def byte_model(**settings):
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.train_from_iterator([TEXT], trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"],
        show_progress=False))
    return model_of(trained, settings)


def llama_model(drop=(), texts=None, **settings):
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256) if byte not in drop]
    trained.train_from_iterator(texts or TEXT.split(" "), trainers.BpeTrainer(vocab_size=400, special_tokens=special,
                                                                     show_progress=False))
    return model_of(trained, settings)


def model_of(trained, settings):
    model = json.loads(trained.to_str())["model"]
    model.update(settings)
    return model


def token(identity, content, special=True, normalized=False, lstrip=False, rstrip=False):
    return {"id": identity, "content": content, "single_word": False, "lstrip": lstrip, "rstrip": rstrip,
            "normalized": normalized, "special": special}


def byte_level(prefix=False, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(kind, *parts):
    return {"type": "Sequence", kind: list(parts)}


PREPEND = {"type": "Prepend", "prepend": "\u2581"}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
LLAMA_DECODER = sequence("decoders", {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                         {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0})


def metaspace(scheme, splits):
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": splits}


def specimens():
    """name, model, tokenizer without its model."""
    def shell(added, normalizer, pre, decoder):
        return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
                "pre_tokenizer": pre, "post_processor": None, "decoder": decoder}

    end = [token(0, "<|endoftext|>")]
    more = end + [token(360, "<mask>", lstrip=True), token(361, "<tool>", special=False, normalized=True, rstrip=True),
                  token(362, "mask", special=False)]
    llama = [token(0, "<unk>"), token(1, "<s>"), token(2, "</s>")]
    llama_more = llama + [token(400, "<tool>", special=False, normalized=True), token(401, "<mask>", rstrip=True),
                          token(402, "\u30c4")]
    level = byte_level()
    fallback = {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    llama_normal = sequence("normalizers", PREPEND, REPLACE)
    yield "gpt2", "byte", {}, shell(end, None, level, level)
    yield "gpt2 prefix", "byte", {}, shell(end, None, byte_level(True), level)
    yield "gpt2 added", "byte", {}, shell(more, None, level, level)
    yield "gpt2 without splitting", "byte", {}, shell(end, None, byte_level(False, False), level)
    yield "gpt2 ignore_merges", "byte", {"ignore_merges": True}, shell(end, None, level, level)
    yield "gpt2 split", "byte", {}, shell(end, None, sequence("pretokenizers", split(GPT2_PATTERN), byte_level(False, False)), level)
    yield "llama3 split", "byte", {"ignore_merges": True}, shell(
        more, None, sequence("pretokenizers", split(LLAMA3), byte_level(False, False)), level)
    yield "split removed inverted", "byte", {}, shell(
        end, None, sequence("pretokenizers", split(LLAMA3, "Removed", True), byte_level(False, False)), level)
    yield "digits", "byte", {}, shell(
        end, None, sequence("pretokenizers", {"type": "Digits", "individual_digits": True}, level), level)
    yield "digits together", "byte", {}, shell(
        end, None, sequence("pretokenizers", {"type": "Digits", "individual_digits": False}, level), level)
    for behavior in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        yield f"split {behavior}", "byte", {}, shell(
            end, None, sequence("pretokenizers", split(r"\s|[aeiou]", behavior), byte_level(False, False)), level)
    yield "split text", "byte", {}, shell(
        end, None, sequence("pretokenizers", split("e", "MergedWithPrevious", False, "String"), level), level)
    yield "llama", "llama", fallback, shell(llama, llama_normal, None, LLAMA_DECODER)
    yield "llama added", "llama", fallback, shell(llama_more, llama_normal, None, LLAMA_DECODER)
    yield "llama merges across spaces", "crossing", fallback, shell(llama, llama_normal, None, LLAMA_DECODER)
    yield "llama unknown", "llama", {**fallback, "byte_fallback": False}, shell(llama, llama_normal, None, LLAMA_DECODER)
    yield "llama unknown unfused", "llama", {**fallback, "byte_fallback": False, "fuse_unk": False}, shell(
        llama, llama_normal, None, LLAMA_DECODER)
    yield "llama bytes missing", "holes", fallback, shell(llama, llama_normal, None, LLAMA_DECODER)
    yield "llama nothing unknown", "llama", {}, shell(llama, llama_normal, None, LLAMA_DECODER)
    for scheme in ("always", "first", "never"):
        for splits in (True, False):
            space = metaspace(scheme, splits)
            yield f"metaspace {scheme} {splits}", "llama", fallback, shell(llama_more, None, space, space)
    yield "metaspace bytes", "llama", fallback, shell(llama_more, None, metaspace("always", True), sequence(
        "decoders", {"type": "ByteFallback"}, metaspace("always", True)))
    yield "gemma", "llama", fallback, shell(llama_more, REPLACE, split(" ", "MergedWithPrevious", False, "String"), sequence(
        "decoders", {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
        {"type": "Fuse"}))


def make_cases():
    made = {"byte": byte_model(), "llama": llama_model(), "holes": llama_model(drop=(0xF0, 0xE6)),
            "crossing": llama_model(texts=[TEXT])}
    out = {"made by": f"tests/oracles/tokenizer.py with tokenizers {tokenizers.__version__}", "models": made, "texts": TEXTS,
           "tokenizers": []}
    for name, model, changes, shell in specimens():
        settings = {**made[model], **changes}
        oracle = Tokenizer.from_str(json.dumps({**shell, "model": settings}))
        rows = []
        for text in TEXTS:
            oracle.encode_special_tokens = False
            special = oracle.encode(text, add_special_tokens=False).ids
            oracle.encode_special_tokens = True
            plain = oracle.encode(text, add_special_tokens=False).ids
            row = {"ids": plain, "text": oracle.decode(plain, skip_special_tokens=True)}
            if special != plain:
                row["special ids"] = special
                row["special text"] = oracle.decode(special, skip_special_tokens=False)
                row["special left out"] = oracle.decode(special, skip_special_tokens=True)
            rows.append(row)
        out["tokenizers"].append({"name": name, "model": model, "settings": changes, "shell": shell, "cases": rows})
    return out


# --- GPT-2 on a lot of text ------------------------------------------------------------------------------------------

def hugging_face():
    return Tokenizer.from_file(os.path.join(GPT2, "tokenizer.json"))


def tiktoken_gpt2():
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(moved)}
    with open(os.path.join(GPT2, "vocab.json"), encoding="utf-8") as file:
        vocabulary = json.load(file)
    special = {"<|endoftext|>": vocabulary.pop("<|endoftext|>")}
    ranks = {bytes(alphabet[c] for c in text): identity for text, identity in vocabulary.items()}
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)


def mix(values):
    """splitmix64, Steele et al. 2014."""
    values = values.astype(numpy.uint64)
    values = (values ^ (values >> numpy.uint64(30))) * numpy.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> numpy.uint64(27))) * numpy.uint64(0x94D049BB133111EB)
    return values ^ (values >> numpy.uint64(31))


def random_words(seed, count):
    return mix(numpy.uint64(seed) + numpy.arange(1, count + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15))


def digest(ids):
    """The same sum as in test_tokenizer_data.c: order matters, 64 bits."""
    ids = numpy.asarray(ids, dtype=numpy.uint64)
    places = numpy.arange(1, len(ids) + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15)
    return int(mix(places + ids).sum(dtype=numpy.uint64))


def random_bytes():
    return random_words(1, 1_250_000).tobytes().decode("utf-8", "replace")


INTERESTING = ["a", "Z", "s", "t", "re", "ll", "1", "9", " ", " ", "  ", "\n", "\t", "'", "'", "!", "-", "\u00a0", "\u3000", "\u00e9",
               "\u4e2d", "\u0301", "\u00bd", "\u0664", "\U0001F600", "\u2028", "\u0085", "\u180e", "\u1c89", "\U00031350", "\ufffd", "the"]


def random_text():
    return "".join(INTERESTING[choice] for choice in (random_words(2, 1_000_000) & numpy.uint64(31)).tolist())


def code_point_texts():
    for code in range(0x110000):
        if 0xD800 <= code < 0xE000:
            continue
        c = chr(code)
        yield "a" + c + "1"
        yield " " + c + c + " !"
        yield "\t" + c + "'s " + c + "\n"


def chunks(items, count):
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == count:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


SEPARATOR = 0xFFFFFFFF


def code_point_ids(encode_batch):
    ids = []
    for chunk in chunks(code_point_texts(), 30_000):
        for one in encode_batch(chunk):
            ids.extend(one)
            ids.append(SEPARATOR)
    return ids


def figures():
    face, tik = hugging_face(), tiktoken_gpt2()
    encoders = {
        f"tokenizers {tokenizers.__version__}": lambda texts: [e.ids for e in face.encode_batch(texts, add_special_tokens=False)],
        f"tiktoken {tiktoken.__version__}": lambda texts: tik.encode_ordinary_batch(texts, num_threads=2),
    }
    found = {}
    for name, encode in encoders.items():
        rows = []
        for what, ids in (("code points", code_point_ids(encode)), ("random bytes", encode([random_bytes()])[0]),
                          ("random text", encode([random_text()])[0])):
            rows.append((what, len(ids), digest(ids)))
        found[name] = rows
        for what, count, value in rows:
            print(f'    {{"{what}", {count}, 0x{value:016x}}}, /* {name} */', flush=True)
    assert len({tuple(rows) for rows in found.values()}) == 1, "the oracles differ"


# --- the program, now ------------------------------------------------------------------------------------------------

def program(action, directory, data, *options):
    done = subprocess.run([os.environ["SQUINT"], "tokenizer", action, "--tokenizer", directory, *options], input=data,
                          stdout=subprocess.PIPE, check=True)
    return done.stdout


def encode(directory, text, *options):
    return json.loads(program("encode", directory, text.encode(), *options))


def check_training(folder):
    text = TEXT * 3 + random_text()[:200_000]
    source, out = os.path.join(folder, "text.txt"), os.path.join(folder, "bpe")
    with open(source, "w", encoding="utf-8", newline="") as file:
        file.write(text)
    subprocess.run([os.environ["SQUINT"], "tokenizer", "train", "--vocab", "700", "--out", out, source], check=True,
                   stderr=subprocess.DEVNULL)
    theirs = Tokenizer(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=700, min_frequency=2, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=["<|endoftext|>"]))
    expected = json.loads(theirs.to_str())["model"]
    with open(os.path.join(out, "tokenizer.json"), encoding="utf-8") as file:
        found = json.load(file)["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in expected["merges"]]
    assert found["vocab"] == expected["vocab"] and found["merges"] == merges, "training differs from tokenizers' trainer"
    loaded = Tokenizer.from_file(os.path.join(out, "tokenizer.json"))
    pair = Tokenizer(models.BPE.from_file(os.path.join(out, "vocab.json"), os.path.join(out, "merges.txt")))
    pair.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for sample in TEXTS + [TEXT, random_bytes()[:100_000]]:
        ours = encode(out, sample)
        loaded.encode_special_tokens = True
        assert ours == loaded.encode(sample).ids == pair.encode(sample).ids, f"a trained tokenizer encodes {sample[:60]!r} differently"
        loaded.encode_special_tokens = False
        assert encode(out, sample, "--special") == loaded.encode(sample).ids, f"special tokens in {sample[:60]!r}"
        assert program("decode", out, json.dumps(ours).encode()) == sample.encode(), f"{sample[:60]!r} does not come back"
    print("training: like tokenizers' own trainer; what it writes encodes alike there and here")


def check_gpt2():
    face, tik = hugging_face(), tiktoken_gpt2()
    for name, text in (("random bytes", random_bytes()[:500_000]), ("random text", random_text()[:500_000]),
                       ("code points", "".join(itertools.islice(code_point_texts(), 0, None, 61)))):
        ours = encode(GPT2, text)
        assert ours == tik.encode_ordinary(text), f"{name}: differs from tiktoken"
        assert ours == face.encode(text, add_special_tokens=False).ids, f"{name}: differs from tokenizers"
        print(f"GPT-2, {name}: {len(ours)} ids like tiktoken's and tokenizers'")


def main():
    action = sys.argv[1] if len(sys.argv) > 1 else ""
    if action in ("goldens", "cases"):
        os.makedirs(os.path.dirname(CASES), exist_ok=True)
        with open(CASES, "w", encoding="utf-8") as file:
            json.dump(make_cases(), file, ensure_ascii=True, separators=(",", ":"))
            file.write("\n")
        if action == "goldens":
            figures()
    elif action == "check":
        with tempfile.TemporaryDirectory() as folder:
            check_training(folder)
        if not os.path.isdir(GPT2):
            print(f"GPT-2 left out: {GPT2} is not there")
            return
        check_gpt2()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
