"""What data-prep/fetch cannot do in the shell.

list PATTERN...        the server's file list (JSON, standard input) -> lines "path, size, sha256|git, hash"
text OUT PARQUET...    WikiText's parquet files -> the text that they were made from
"""
import fnmatch
import json
import os
import sys


def list_files(patterns):
    found = {pattern: 0 for pattern in patterns}
    for entry in json.load(sys.stdin):
        for pattern in patterns:
            if entry["type"] != "file" or not fnmatch.fnmatchcase(entry["path"], pattern):
                continue
            found[pattern] += 1
            large = entry.get("lfs")  # large files carry SHA-256, small ones git's own hash
            kind, digest = ("sha256", large["oid"].removeprefix("sha256:")) if large else ("git", entry["oid"])
            if not all(c in "0123456789abcdef" for c in digest) or any(c in "\t\n" for c in entry["path"]):
                sys.exit(f"fetch: unexpected entry in the file list: {entry}")
            print(entry["path"], large["size"] if large else entry["size"], kind, digest, sep="\t")
    for pattern, count in found.items():
        if count == 0:
            sys.exit(f"fetch: the server does not list {pattern}")


def write_text(out, parts):
    import pyarrow.parquet

    temporary = out + ".tmp"
    with open(temporary, "w", encoding="utf-8", newline="") as text:
        for part in parts:
            for batch in pyarrow.parquet.ParquetFile(part).iter_batches(columns=["text"], batch_size=8192):
                for row in batch.column(0).to_pylist():
                    text.write(row or " \n")  # the published text has a space on its blank lines, the rows have nothing
        text.flush()
        os.fsync(text.fileno())
    os.replace(temporary, out)


if __name__ == "__main__":
    if len(sys.argv) >= 3 and sys.argv[1] == "list":
        list_files(sys.argv[2:])
    elif len(sys.argv) >= 4 and sys.argv[1] == "text":
        write_text(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(__doc__)
