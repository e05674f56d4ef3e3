#!/usr/bin/env bash
# launch/slurm.sbatch under a real Slurm: munged, slurmctld and slurmd are started here, with a configuration of their own in a temporary
# directory, and stopped at the end. Jobs of two CPU ranks are told to stop by a signal, by their time limit and by a preemption; each is
# queued again, goes on, and comes to the same bits as a run that nobody disturbed. Wrong recipes and unfit machines end the job at once.
#   KEEP=1 keeps the directory and says where it is
set -uo pipefail
source=$(realpath "${SQUINT_SOURCE:-.}")
squint=$(realpath "${SQUINT:-build/release/squint}")
compare=$(realpath "${SQUINT_BUILD:-build/release}")/tests/compare_runs
[ "$(id -u)" = 0 ] || { echo "skipped: Slurm's services are started as root, this is $(id -un)"; exit 77; }
for program in mpirun munged slurmctld slurmd sbatch scontrol squeue scancel; do
    command -v $program >/dev/null || { echo "skipped: $program is not here; launch/setup --slurm installs Slurm"; exit 77; }
done
source "$source/tests/support/check.sh"

work=$(mktemp -d)
services=()
clean() {
    for name in slurmd slurmctld munged; do
        pid=$(cat "$work/$name.pid" 2>/dev/null) || continue
        if [ $name != munged ]; then scancel --user root 2>/dev/null && sleep 0.2; fi
        kill "$pid" 2>/dev/null
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -KILL "$pid" 2>/dev/null
    done
    for pid in "${services[@]}"; do kill -KILL "$pid" 2>/dev/null; done # had they not come to writing their pid
    if [ -n "${KEEP:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
}
trap clean EXIT
trap 'exit 1' INT TERM
cd "$work" || exit 1
export OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_WAIT_POLICY=passive TMPDIR=$work
export OMPI_MCA_rmaps_base_oversubscribe=1 SQUINT=$squint
unset DOCTOR "${!SLURM_@}"

# --- a corpus, a recipe, runs that nobody disturbs ------------------------------------------------------------------------------------------
cat >lm.yaml <<'Y'
run: straight
tokenizer: tok
from_scratch: {type: gpt2, layers: 2, heads: 2, width: 32}
data: {train: c-train-*.h5, valid: c-valid-*.h5}
stages:
  - {name: lm, objective: lm, train: all, length: 32, batch: 12, steps: 600, lr: 2.0e-2, warmup_steps: 5}
train: {micro_batch: 3, weight_decay: 0.1}
checkpoint: {every: 1000, keep: 3}
eval: {every: 1000, sequences: 8}
deterministic: true
Y
make_shards 40 300 0.1
straight() { mpirun --oversubscribe --quiet --bind-to none -np 2 "$squint" train lm.yaml; }
check "a run that nobody disturbs" straight

# --- Slurm --------------------------------------------------------------------------------------------------------------------------------
host=$(hostname -s)
read -r control_port daemon_port < <(python3 - <<'P'
import socket
sockets = [socket.socket() for _ in range(2)]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
P
)
mkdir state spool munge
chmod 711 . munge # munged wants its socket within everybody's reach
head -c 1024 /dev/urandom >munge/key
chmod 400 munge/key
cat >slurm.conf <<C
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$control_port
SlurmdPort=$daemon_port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# cred_expire is also how long a job waits that was queued again: the least that Slurm takes
AuthInfo=socket=$work/munge/socket,cred_expire=5
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
KillWait=20
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1,sched_interval=1
# More than there are: jobs share the cores, so that one does not wait for the other
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=low Nodes=$host Default=YES State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=$host State=UP PriorityTier=2
C
export SLURM_CONF=$work/slurm.conf
munged --foreground --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munged.pid" --log-file="$work/munge/log" \
    --seed-file="$work/munge/seed" >munged.txt 2>&1 &
services+=($!)
await() { # seconds, what for, command...
    local tries=$(($1 * 20)) what=$2
    shift 2
    for _ in $(seq "$tries"); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.05
    done
    echo "waited in vain for $what"
    return 1
}
await 10 munged test -S munge/socket || { cat munged.txt; exit 1; }
slurmctld -c -D >slurmctld.txt 2>&1 &
services+=($!)
slurmd -c -D -N "$host" >slurmd.txt 2>&1 &
services+=($!)
ready() { grep -qx idle <<<"$(sinfo --noheader --format=%T)"; }
await 20 "a node of Slurm" ready || { tail -n 5 slurmctld.log slurmd.log; exit 1; }

# --- jobs ---------------------------------------------------------------------------------------------------------------------------------
submit() { # words of sbatch --, words of the script: the job's number
    local words=(--parsable --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --gpus-per-node=0)
    while [ "$1" != -- ]; do words+=("$1"); shift; done
    shift
    sbatch "${words[@]}" "$source/launch/slurm.sbatch" "$@"
}
field() { scontrol show job "$1" | tr ' ' '\n' | sed -n "s/^$2=//p"; } # job, name
steps() { grep -c '"loss"' "$1/metrics.jsonl" 2>/dev/null || true; }
trains() { [ "$(steps "$1")" -ge "$2" ]; }
is_over() { case "$(field "$1" JobState)" in COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE_FAIL) true ;; *) false ;; esac; }
ended() { # job, seconds, state, exit code, starts
    await "$2" "the end of job $1" is_over "$1" || { scontrol show job "$1"; tail -n 20 "squint-$1.log"; return 1; }
    local found
    found="$(field "$1" JobState) $(field "$1" ExitCode) $(grep -c ': job .* start ' "squint-$1.log")"
    [ "$found" = "$3 $4 $5" ] && return 0
    grep slurm.sbatch "squint-$1.log"
    echo "job $1: expected $3 $4 $5 (state, exit code, starts), found $found"
    return 1
}
logged() { grep -q "$2" "squint-$1.log" || { echo "squint-$1.log: expected \"$2\", found:"; cat "squint-$1.log"; return 1; }; }

# 1. A signal to the script, as its --signal sends it.
signal=$(submit -- lm.yaml --run=signal)
# 2. The time limit: Slurm looks every 30 s whose end is nearer than --signal says. The job trains until then; in this partition nobody
#    preempts it.
limit=$(submit --partition=high --time=1 --signal=B:USR1@60 -- lm.yaml --run=limit --stages.lm.steps=1000000)
# 3. A wrong recipe, and a run directory in which another job trains: nothing to come back for.
wrong=$(submit -- lm.yaml --run=wrong --train.clop=1)
exec 9>lock && flock 9 && mkdir unfit && ln lock unfit/lock
unfit=$(submit -- lm.yaml --run=unfit)

check "signal: training" await 60 "steps" trains signal 40
check "signal: USR1 to the script" scancel --signal=USR1 --batch "$signal"
check "signal: queued again and done" ended "$signal" 90 COMPLETED 0:0 2
check "signal: the log says why" logged "$signal" "told to stop by SIGUSR1: saving"
check "signal: the same bits as undisturbed" "$compare" straight signal 0 600
check "wrong recipe: ends with its exit code" ended "$wrong" 60 FAILED 2:0 1
check "wrong recipe: nothing written" test ! -e wrong
check "unfit: the doctor stops it" ended "$unfit" 60 FAILED 1:0 1
check "unfit: and says what is wrong" logged "$unfit" "FAIL .*another job"
check "unfit: nothing trained" test ! -e unfit/metrics.jsonl
exec 9>&-

# 4. Another job needs the node: the signal comes as the grace time begins.
preempted=$(submit -- lm.yaml --run=preempted)
check "preemption: training" await 60 "steps" trains preempted 40
urgent=$(sbatch --parsable --partition=high --nodes=1 --ntasks=6 --output=urgent.log --wrap "sleep 1")
check "preemption: the other job runs" await 60 "the other job" is_over "$urgent"
check "preemption: queued again and done" ended "$preempted" 90 COMPLETED 0:0 2
check "preemption: the same bits as undisturbed" "$compare" straight preempted 0 600

check "time limit: a signal of its own" await 70 "the log" logged "$limit" "told to stop by SIGUSR1: saving"
check "time limit: saved" await 20 "the end of the save" logged "$limit" "saved, and queued again"
check "time limit: longer from now on" scontrol update "jobid=$limit" timelimit=30
check "time limit: queued again" await 60 "the second start" logged "$limit" "start 2: 2 ranks"
again() { trains limit $(($1 + 5)); }
check "time limit: goes on" await 60 "further steps" again "$(steps limit)"
check "time limit: cancelled by its owner" scancel "$limit"
check "time limit: cancelled is not queued again" ended "$limit" 30 CANCELLED 75:0 2
check "time limit: saved all the same" logged "$limit" "not queued again from here"

[ $failures = 0 ] || { echo "$failures failures"; exit 1; }
