"""TensorBoard's own reader on our event files: the same scalars at the same steps as metrics.jsonl, and nothing of the steps
that a resumed run wrote again.

    tests/support/oracle.sh tests/io/check_tensorboard.py build/release/tests/test_metrics
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
from tensorboard.backend.event_processing import event_file_loader
from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
from tensorboard.util import tensor_util


def figures(line):
    """The scalars of one line: (tag, value)."""
    def walk(name, value):
        if isinstance(value, dict):
            for key, member in value.items():
                yield from walk(f"{name}/{key}" if name else key, member)
        elif isinstance(value, list):
            for index, member in enumerate(value):
                yield from walk(f"{name}/{index}", member)
        elif not isinstance(value, str):
            yield name, float("nan") if value is None else float(value)
    return [(name, value) for name, value in walk("", line) if name != "step"]


def main():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.argv[1], "--write", folder], check=True)
        expected = {}
        for text in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines():
            line = json.loads(text)
            for tag, value in figures(line):
                expected.setdefault(tag, []).append((line["step"], float(numpy.float32(value))))
        accumulator = EventAccumulator(folder, size_guidance={SCALARS: 0})
        accumulator.Reload()
        found = {tag: [(event.step, float(event.value)) for event in accumulator.Scalars(tag)]
                 for tag in accumulator.Tags()["scalars"]}
        if found != expected:
            for tag in sorted(set(found) | set(expected)):
                if found.get(tag) != expected.get(tag):
                    print(f"{tag}: expected {expected.get(tag)}, found {found.get(tag)}")
            return 1
        # The loader checks every record's CRCs; the first life's steps 4 to 7 are still in its file.
        files = sorted(pathlib.Path(folder).glob("events.out.tfevents.*"))
        steps = [[event.step for event in event_file_loader.EventFileLoader(str(path)).Load() if event.summary.value]
                 for path in files]
        if steps != [list(range(8)), [4, 5]]:
            print(f"steps of the files: expected 0 to 7, then 4 and 5; found {steps}")
            return 1
        for path in files:
            for event in event_file_loader.EventFileLoader(str(path)).Load():
                for value in event.summary.value:
                    assert numpy.isfinite(tensor_util.make_ndarray(value.tensor)), value.tag
    print(f"{sum(map(len, expected.values()))} scalars of {len(expected)} tags are what metrics.jsonl says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
