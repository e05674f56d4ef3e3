#!/usr/bin/env bash
# Dependencies point one way, and foreign headers stay where they belong: greps the includes of the tree.
cd "$(dirname "$0")/../.." || exit 1
bad=0
complain() { echo "$1"; bad=1; }

# Rank of each folder; an include may only point to the same or a lower rank.
rank() {
  case "$1" in
    base/*) echo 0 ;; kernels/ops.h | comm/* | config/*) echo 1 ;; kernels/*) echo 1 ;; params/*) echo 2 ;;
    attention/* | io/*) echo 3 ;; model/*) echo 4 ;; train/* | eval/*) echo 5 ;; report/*) echo 6 ;; data-prep/*) echo 6 ;;
    commands/*) echo 7 ;; *) echo "" ;;
  esac
}
for file in $(git ls-files 'src/*.[ch]' 'kernels/*.[ch]' 'comm/*.[ch]' 'data-prep/*.[ch]'); do
  own=$(rank "${file#src/}")
  [ "$file" = src/main.c ] && own=8
  [ -n "$own" ] || complain "$file: lies in no known folder"
  while read -r include; do
    other=$(rank "$include")
    if [ -n "$other" ] && [ "$other" -gt "${own:-0}" ]; then complain "$file: includes $include, which stands above it"; fi
  done < <(sed -n 's/^#include "\(.*\)"/\1/p' "$file")
done

only() { # header pattern, allowed paths
  local hits
  hits=$(git grep -lE "#include [<\"]$1" -- src kernels comm data-prep | grep -vE "$2" || true)
  [ -z "$hits" ] || complain "$1 may be included only in $2, found in: $hits"
}
only 'cuda|cublas' '^kernels/cuda/|^comm/comm_nccl\.c$'
only 'nccl\.h' '^comm/comm_nccl\.c$'
only 'mpi\.h' '^comm/'
only 'hdf5\.h' '^src/io/h5'
only 'yaml\.h' '^src/config/'
only 'cblas\.h' '^kernels/cpu/'
[ $bad = 0 ] && echo "includes: all point the right way"
exit $bad
