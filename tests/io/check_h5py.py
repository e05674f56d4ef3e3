"""Reads a shard, or a whole checkpoint through index.h5, with h5py alone; says what it found, one line a fact.

usage: check_h5py.py shard FILE            prints "tokens N hash-of-sum ..." facts that the test compares
       check_h5py.py checkpoint DIRECTORY  prints name, dtype, shape and the plain sum of every tensor
"""
import pathlib
import sys

import h5py
import numpy as np


def text(value):
    return value.decode() if isinstance(value, bytes) else str(value)


def shard(path):
    with h5py.File(path, "r") as file:
        tokens, documents = file["tokens"], file["documents"]
        assert tokens.chunks is None and tokens.ndim == 1, "tokens lie in one piece"
        print("tokens", tokens.shape[0], tokens.dtype, int(tokens[:].astype(np.int64).sum()))
        print("documents", documents.shape[0], documents.dtype, " ".join(str(d) for d in documents[:]))
        for name in sorted(file.attrs):
            print("attribute", name, text(file.attrs[name]))


def checkpoint(path):
    with h5py.File(pathlib.Path(path) / "index.h5", "r") as file:

        def show(name, item):
            if isinstance(item, h5py.Dataset):
                values = item[()].astype(np.float64)
                print("tensor", name, item.dtype, list(item.shape), float(values.sum()))

        file["tensors"].visititems(show)
        for name in sorted(file["attributes"].attrs):
            value = file["attributes"].attrs[name]
            print("attribute", name, list(value) if isinstance(value, np.ndarray) else text(value))


if __name__ == "__main__":
    {"shard": shard, "checkpoint": checkpoint}[sys.argv[1]](sys.argv[2])
