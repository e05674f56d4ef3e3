#!/usr/bin/env python3
"""launch/container/Containerfile, which no registry is here to build: its instructions are known and in order, what it copies and runs is in the
repository, options and presets that it names exist, packages come from launch/setup alone; and what docs/operations.md says of it fits.

    python3 tests/unit/container.py [ROOT]
"""
import json
import os
import re
import shlex
import sys

root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
name = "launch/container/Containerfile"
KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "CMD", "ENTRYPOINT", "LABEL", "USER", "EXPOSE", "VOLUME", "SHELL"}
faults = []


def read(path):
    with open(os.path.join(root, path)) as file:
        return file.read()


def fault(line, text):
    faults.append(f"{name}: \"{line}\": {text}")


def instructions(text):
    """Lines without comments, joined where they end in a backslash."""
    lines = [line for line in text.split("\n") if not line.lstrip().startswith("#")]
    return [line.strip() for line in "\n".join(lines).replace("\\\n", " ").split("\n") if line.strip()]


def check_script(line, words):
    """A command of the repository: there, to be run, and each option in its own text."""
    path = os.path.join(root, words[0])
    if not os.access(path, os.X_OK):
        return fault(line, f"{words[0]} is not in the repository, or cannot be run")
    for word in words[1:]:
        if word.startswith("--") and not re.search(rf"(?<!\S){word}(?![\w-])", read(words[0])):
            fault(line, f"{words[0]} knows no {word}")


def check_run(line, rest):
    presets = [preset["name"] for preset in json.loads(read("CMakePresets.json"))["buildPresets"]]
    for command in re.split(r"&&|;", rest):
        words = shlex.split(command)
        if "apt-get" in words or "apt" in words or "dpkg" in words:
            fault(line, "packages are named in launch/setup alone")
        elif "/" in words[0]:
            check_script(line, words)
        elif words[0] == "cmake" and "--preset" in words and words[words.index("--preset") + 1] not in presets:
            fault(line, f"CMakePresets.json has no build preset {words[words.index('--preset') + 1]}")
        elif words[0] not in ("cmake", "touch"):
            fault(line, f"{words[0]}: expected a script of the repository, cmake or touch")


def check_copy(line, rest, stages, made):
    words = rest.split()
    if words[0].startswith("--from="):
        stage = words.pop(0)[len("--from="):]
        if stage not in stages[:-1]:
            fault(line, f"no stage {stage} before this one")
        if words[0] not in made:
            fault(line, f"no instruction makes {words[0]}")
        return
    for source in words[:-1]:
        if not os.path.exists(os.path.join(root, source)):
            fault(line, f"{source} is not in the repository")


def main():
    stages, arguments, made, flavours = [], set(), set(), []
    for line in instructions(read(name)):
        word, _, rest = line.partition(" ")
        if word not in KNOWN:
            fault(line, f"{word} is no instruction")
        elif not stages and word not in ("ARG", "FROM"):
            fault(line, "stands before the first FROM")
        if word == "ARG":
            arguments.add(rest.split("=")[0])
        if word == "FROM":
            found = re.fullmatch(r"(\S+)(?: AS (\w+))?", rest)
            if not found:
                fault(line, "expected FROM IMAGE AS STAGE")
                continue
            for variable in re.findall(r"\$\{(\w+)\}", found[1]):
                if variable not in arguments:
                    fault(line, f"no ARG {variable} before it")
            if found[1] not in stages:
                flavours.append(re.search(r"-(base|runtime|devel)-", found[1]))
            stages.append(found[2])
        if word == "RUN":
            check_run(line, rest)
            made |= set(re.findall(r"(?:--out|touch) (/\S+)", rest))
        if word == "COPY":
            check_copy(line, rest, stages, made)
    if [flavour and flavour[1] for flavour in flavours] != ["devel", "runtime"]:
        faults.append(f"{name}: expected an image to build in (devel) and one with cuBLAS to run in (runtime)")
    if name not in read("docs/operations.md"):
        faults.append(f"docs/operations.md: expected how {name} is built")
    for path in re.findall(r"(?:launch|tests|docs)/[\w./-]+\w", read("docs/operations.md")):
        if not os.path.exists(os.path.join(root, path)) and not path.startswith("docs/"):
            faults.append(f"docs/operations.md: {path} is not in the repository")
    print("\n".join(faults) if faults else f"container: {len(stages)} stages, all that they name is there")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
