"""h5py alone reads a shard, and a whole checkpoint of two ranks through index.h5, from another working directory.

    tests/support/oracle.sh tests/io/check_h5py.py build/release/tests/test_shard build/release/tests/test_checkpoint
"""
import os
import pathlib
import subprocess
import sys
import tempfile

import h5py
import numpy as np

VOCABULARY, DOCUMENTS, LENGTH = 1009, 3, 7000  # as test_shard --write


def check_shard(path):
    with h5py.File(path, "r") as file:
        tokens, documents = file["tokens"], file["documents"]
        count = (DOCUMENTS - 1) * LENGTH + 1
        assert tokens.dtype == np.uint16 and tokens.chunks is None and tokens.shape == (count,), tokens
        assert tokens.id.get_offset() % (1 << 20) == 0, tokens.id.get_offset()
        assert np.array_equal(tokens[:], np.arange(count) * 31 % VOCABULARY)
        assert documents.dtype == np.uint64 and list(documents[:]) == [LENGTH * d for d in range(DOCUMENTS)]
        attributes = dict(file.attrs)
        assert attributes["vocabulary"] == VOCABULARY and attributes["tokens_count"] == count
        assert bytes(attributes["source"]).decode() == "stories, größer", attributes["source"]
        assert attributes["tokenizer_hash"] == 0xFEDCBA9876543210 and attributes["tokenizer_hash"].dtype == np.uint64


def expected(index, name, dtype, shape, step):
    """test_checkpoint's byte_at, over the whole tensor."""
    count = int(np.prod(shape)) * dtype.itemsize
    content = ((np.arange(count) * 7 + index * 3 + step) % 59).astype(np.uint8)
    return content.view(dtype).reshape(shape)


# as test_checkpoint.c has them; bf16 is stored as uint16
TENSORS = [
    ("student/embedding.weight", "<f4", (257, 48)),
    ("student/layers.0.norm", "<f4", (7,)),
    ("student/layers.0/deep/er", "<f4", (3, 5, 7)),
    ("moment1/layers.0.norm", "<f8", (7,)),
    ("moment2/x", "<u2", (2, 3, 1, 5)),
    ("half", "<f2", (129,)),
    ("one", "<i8", (1,)),
    ("bytes", "u1", (1000003,)),
    ("empty", "<f4", (0, 4)),
]


def check_checkpoint(directory, step, ranks):
    with h5py.File(pathlib.Path(directory) / "index.h5", "r") as file:
        found = []
        file["tensors"].visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
        assert sorted(found) == sorted(name for name, _, _ in TENSORS), found
        for index, (name, dtype, shape) in enumerate(TENSORS):
            dataset = file["tensors"][name]
            assert dataset.dtype == np.dtype(dtype) and dataset.shape == shape, (name, dataset.dtype, dataset.shape)
            whole = expected(index, name, np.dtype(dtype), shape, step)
            assert dataset[()].tobytes() == whole.tobytes(), name
        assert file["tensors/moment2/x"].attrs["dtype"] == b"bf16"
        attributes = file["attributes"].attrs
        assert attributes["sample"] == step * 64 and attributes["loss"] == 0.1
        assert len(attributes["config"]) == 200000 and bytes(attributes["state"]) == b"a\0b"
        assert file.attrs["ranks"] == ranks


def main():
    shard_program, checkpoint_program = (str(pathlib.Path(program).resolve()) for program in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([shard_program, "--write", f"{folder}/shard.h5"], check=True)
        check_shard(f"{folder}/shard.h5")
        for ranks, step in ((2, 7), (3, 8)):
            subprocess.run(["mpirun", "-np", str(ranks), "--oversubscribe", checkpoint_program, "--write", folder, str(step)],
                           check=True)
            # Moved, and with a decoy of the same file name where we stand.
            os.rename(f"{folder}/checkpoints/step-{step:08d}", f"{folder}/moved-{step}")
            os.makedirs(f"{folder}/elsewhere", exist_ok=True)
            os.chdir(f"{folder}/elsewhere")
            pathlib.Path(f"rank-00000-of-{ranks:05d}.h5").write_bytes(b"decoy")
            check_checkpoint(f"{folder}/moved-{step}", step, ranks)
            os.chdir("/")
    print("h5py reads the shard and both checkpoints")


if __name__ == "__main__":
    main()
