#!/usr/bin/env bash
# launch/bundle's folder, moved and run in a root that holds nothing but glibc, a shell and four small tools: the program says its version,
# makes a text, a tokenizer and shards, two ranks train under the bundle's own mpirun, a checkpoint is inspected; and the loader's own
# record says that no library was opened from elsewhere.
set -uo pipefail
source=${SQUINT_SOURCE:-$(cd "$(dirname "$0")/../.." && pwd)} build=${SQUINT_BUILD:-build/release}
leave() { echo "skipped: $*"; exit 77; }
[ -x "$build/squint" ] || { echo "$build/squint is not there"; exit 1; }
if [[ $(ldd "$build/squint") == *libasan* ]]; then leave "a sanitizer build is not bundled"; fi
for tool in ompi_info mpirun orted strip ldd getconf unshare chroot; do
    command -v $tool > /dev/null || leave "$tool is not here"
done
unshare -rm true 2> /dev/null || leave "this machine gives no namespace of one's own to mount in"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$source/launch/bundle" --build "$build" --out "$work/made/bundle" --limit 1000 > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp,lib64,lib/x86_64-linux-gnu,else/where}
mv "$work/made/bundle" "$root/else/where/bundle"
for tool in sh sed readlink dirname id; do
    cp -L "$(command -v $tool)" "$root/bin/"
    ldd "$(command -v $tool)" | sed -n 's/.* => \(\/[^ ]*\) .*/\1/p' | xargs -I{} cp -Lu {} "$root/lib/x86_64-linux-gnu/"
done
for part in c m dl pthread rt resolv util mvec; do
    library=$(ldconfig -p 2> /dev/null | sed -n "s/.*x86-64.* => \(.*\/lib$part\.so\.[0-9]\)$/\1/p" | sed -n 1p)
    [ -z "$library" ] || cp -Lu "$library" "$root/lib/x86_64-linux-gnu/"
done
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"

cat > "$root/recipe.yaml" <<'Y'
run: /tmp/run
tokenizer: /tmp/tok
from_scratch: {type: gpt2, layers: 2, heads: 2, width: 32}
data: {train: /tmp/c-train-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 32, batch: 4, steps: 4, lr: 1.0e-3}
checkpoint: {every: 4, keep: 1}
device: cpu
Y
cat > "$root/job" <<'S'
set -e
bundle=/else/where/bundle
squint=$bundle/bin/squint
$squint --version
$squint corpus --out /tmp/c.jsonl --documents 20
$squint tokenizer train --vocab 300 --out /tmp/tok /tmp/c.jsonl
$squint prep --tokenizer /tmp/tok --out /tmp/c /tmp/c.jsonl
$bundle/bin/mpirun -np 2 --oversubscribe $squint train /recipe.yaml
$squint inspect /tmp/run --verify
S
enter='mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc" && mount --rbind /sys "$1/sys" || exit 99
cd "$1" && exec env -i PATH=/bin HOME=/tmp TMPDIR=/tmp OMP_NUM_THREADS=1 LD_DEBUG=files LD_DEBUG_OUTPUT=/tmp/ld "$(command -v chroot)" "$1" /bin/sh /job'
unshare -rm sh -c "$enter" sh "$root" > "$work/log" 2>&1
code=$?
if [ $code = 99 ]; then tail -n 3 "$work/log"; leave "/dev, /proc and /sys cannot be mounted here"; fi
[ $code = 0 ] || { echo "FAILED: the job in the empty root, exit $code"; tail -n 30 "$work/log"; exit 1; }
steps=$(grep -c '"loss"' "$root/tmp/run/metrics.jsonl")
[ "$steps" = 4 ] || { echo "FAILED: expected 4 steps in the metrics, found $steps"; exit 1; }

# What the bundle's programs initialised that is neither the bundle's nor glibc's.
programs=$(grep -lE 'initialize program: .*/else/where/bundle/' "$root"/tmp/ld.*)
[ "$(echo "$programs" | wc -l)" -ge 8 ] || { echo "FAILED: the loader's record names too few of the bundle's programs: $programs"; exit 1; }
# shellcheck disable=SC2086
foreign=$(sed -nE 's/.*calling init: (.*)$/\1/p' $programs | sort -u | grep -v '^/else/where/bundle/' |
    grep -vE '/(ld-linux-x86-64|lib(c|m|dl|pthread|rt|resolv|util|mvec))\.so\.[0-9]+$')
[ -z "$foreign" ] || { echo "FAILED: libraries from outside the bundle: $foreign"; exit 1; }
# shellcheck disable=SC2086
plugins=$(sed -nE 's/.*calling init: (.*)$/\1/p' $programs | sort -u | grep -c '/openmpi3/mca_')
[ "$plugins" -ge 10 ] || { echo "FAILED: expected Open MPI's plugins from the bundle, found $plugins"; exit 1; }
echo "bundle: ran in an empty root; $plugins plugins and every library its own"
