#!/usr/bin/env bash
# Two imitated hosts, a and b: network namespaces with host names of their own, a switch between them, a launch agent in ssh's place, and TCP.
# Two ranks train as on one machine, bit for bit. A rank on b that stops, a link that is lost in mid-step, near or far: everything on
# both hosts ends within the deadline and 5 s, the host is named, and the same command goes on to the same bits.
set -uo pipefail
squint=${SQUINT:-build/release/squint} tests=${SQUINT_BUILD:-build/release}/tests
leave() { echo "skipped: $*"; exit 77; }
for tool in mpirun orted ip unshare hostname; do command -v $tool >/dev/null || leave "$tool is not here (launch/setup --hosts)"; done
[ "$(id -u)" = 0 ] || leave "imitating hosts takes root"
source "$(dirname "${BASH_SOURCE[0]}")/../support/check.sh"

net=squint-$$
end_hosts() { # prefix of the namespaces
    local name
    for name in $1-a $1-b $1-switch; do
        [ -e "/run/netns/$name" ] || continue
        ip netns pids "$name" | xargs -r kill -KILL
        ip netns del "$name"
    done
}
# What a run that was killed has left.
for path in /run/netns/squint-*-a; do
    owner=${path#/run/netns/squint-} owner=${owner%-a}
    [ -e "$path" ] && [ ! -e "/proc/$owner" ] && end_hosts "squint-$owner"
done
make_hosts() {
    local host address=0
    ip netns add $net-switch && ip -n $net-switch link add name bridge type bridge && ip -n $net-switch link set bridge up || return 1
    for host in a b; do
        address=$((address + 1))
        ip netns add $net-$host && ip -n $net-$host link set lo up &&
            ip link add name wire netns $net-$host type veth peer name port-$host netns $net-switch &&
            ip -n $net-switch link set port-$host master bridge up && ip -n $net-$host link set wire up &&
            ip -n $net-$host addr add 10.87.65.$address/24 dev wire || return 1
    done
}
work=$(mktemp -d)
trap 'end_hosts $net; rm -rf "$work"' EXIT
make_hosts >"$work/net.txt" 2>&1 || leave "this machine gives no network namespaces: $(head -n 1 "$work/net.txt")"
unshare -u true 2>/dev/null || leave "this machine gives no host names"
cd "$work" || exit 1

# In ssh's place: nothing of the caller's environment comes along. agent HOST COMMAND...
cat >agent <<A
#!/usr/bin/env bash
exec env -i PATH="$PATH" LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}" TMPDIR="$work" "$work/on" "\$@"
A
cat >on <<A
#!/usr/bin/env bash
host=\$1
shift
cd "$work" && exec ip netns exec $net-\$host unshare -u bash -c "hostname \$host && exec \$*"
A
chmod +x agent on
deadline=6
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 TMPDIR=$work SQUINT_DEADLINE_S=$deadline
# A lost machine is noticed by keepalives, after about time + interval x probes: before the deadline (docs/operations.md).
keepalive="--mca oob_tcp_keepalive_time 1 --mca oob_tcp_keepalive_intvl 1 --mca oob_tcp_keepalive_probes 2"
launch="mpirun -np 2 --host a:1,b:1 --mca plm_rsh_agent $work/agent --mca btl tcp,self --mca btl_tcp_if_include 10.87.65.0/24
    --mca oob_tcp_if_include 10.87.65.0/24 $keepalive -x OMP_NUM_THREADS -x SQUINT_DEADLINE_S -x SQUINT_FAULT -x SQUINT_FAULT_MARK"
launch=$(tr -d '\n' <<<"$launch")
export SQUINT_FAULT= SQUINT_FAULT_MARK=$work/mark
two_hosts() { "$tests/wait_job" 5 - ./on a "$launch $1 train lm.yaml --run=$2"; }

cat >lm.yaml <<'Y'
tokenizer: tok
from_scratch: {type: gpt2, layers: 2, heads: 2, width: 32}
data: {train: c-train-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 32, batch: 8, steps: 12, lr: 1.0e-2}
train: {micro_batch: 2}
parallel: {bucket_mib: 0.02}
checkpoint: {every: 4, keep: 2}
deterministic: true
Y
make_shards 20 300 0

check "one host" mpirun -np 2 --oversubscribe "$squint" train lm.yaml --run=one
hosts() { [ "$("$tests/wait_job" 5 - ./on a "$launch hostname" | grep '^[ab]$' | sort | tr '\n' ' ')" = "a b " ]; }
check "two hosts with names of their own" hosts
check "two hosts" two_hosts "$squint" two
check "two hosts like one" "$tests/compare_runs" one two 0 12

said() { # what, pattern
    grep -qE "$2" output.txt && return 0
    echo "expected $1, found:"
    cat output.txt
    return 1
}
fault() { # run, what the rank on b does, harm done then
    local code=0 seconds
    rm -f mark mark.done
    (until [ -e mark ]; do sleep 0.01; done; $3; touch mark.done) &
    local harm=$!
    SQUINT_FAULT="$2" "$tests/wait_job" $((deadline + 5)) mark ./on a "$launch $tests/squint_rank_faults train lm.yaml --run=$1" \
        >gone.txt 2>output.txt || code=$?
    kill $harm 2>/dev/null
    wait $harm 2>/dev/null
    seconds=$(<gone.txt)
    [ -e mark ] || { echo "the fault did not happen"; tail -n 3 output.txt; return 1; }
    [ $code != 124 ] || { echo "left after $seconds s:"; grep "^wait_job" output.txt; return 1; }
    [ $code != 0 ] && [ $code != 75 ] || { echo "expected a failure, found exit code $code"; return 1; }
    echo "gone after $seconds s, exit code $code: $(grep -m 1 "^squint: rank" output.txt)"
}
stopped() {
    fault stopped "stop reduce 1 6" true || return 1
    said "the stopped rank and its host" "^squint: rank 0: all_[a-z]+ at step 6: waited $deadline s for rank 1 on host b" || return 1
    tail -n 1 out.txt
}
cut() { # run, command that cuts
    fault "$1" "wait reduce 1 6" "$2" || return 1
    said "the launcher's word on the host" "Remote daemon: .* on node b" || return 1
    said "the lost rank and its host" "^squint: rank 0: all_[a-z]+ at step 6: (waited $deadline s|told to end while it waits) for rank 1 on host b" || return 1
    tail -n 1 out.txt
}
goes_on() { # run
    check "$1: goes on" two_hosts "$squint" "$1"
    check "$1: from a checkpoint" grep -q "^resume   from step 4" "$1/log"
    check "$1: like one host" "$tests/compare_runs" one "$1" 0 12
}
check "a rank on the other host stops" stopped
goes_on stopped
check "the link is lost at the switch" cut far "ip -n $net-switch link set port-b down"
ip -n $net-switch link set port-b up
sleep 2 # until the link carries again
goes_on far
check "the link is lost at the own host" cut near "ip -n $net-a link set wire down"
ip -n $net-a link set wire up
sleep 2
goes_on near
[ $failures = 0 ] || { echo "$failures failures"; exit 1; }
