#!/usr/bin/env bash
# The shell scripts of the tree can be parsed; and none asks `... | grep -q` where the pipe's own status counts (pipefail): grep leaves at its
# first hit, the writer before it dies of SIGPIPE when it has more to say, and the answer is then "no" although the words are there.
cd "$(dirname "$0")/../.." || exit 1
bad=0
while read -r script; do
  bash -n "$script" || bad=1
  grep -qE '^set .*pipefail' "$script" || continue
  hits=$(grep -nE '^[^#]*\| *grep +(-[a-zA-Z]*q|.* -[a-zA-Z]*q)' "$script")
  if [ -n "$hits" ]; then echo "$script: \`| grep -q\` under pipefail, line $hits"; bad=1; fi
done < <(git grep -l '^#!.*sh$')
[ $bad = 0 ] && echo "scripts: all can be parsed, none asks grep -q at the end of a pipe that counts"
exit $bad
