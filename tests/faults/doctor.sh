#!/usr/bin/env bash
# squint doctor on a good machine, and on machines with one fault each (doctor_faults.c, a changed environment, a broken directory): the level,
# the words, the rank that is named, the exit code; as one process and under mpirun; and that no file of it is left behind.
#   doctor.sh [PATTERN]     the rows whose name holds PATTERN
set -uo pipefail
squint=$(realpath "${SQUINT:-build/release/squint}")
faults=$(realpath "${SQUINT_BUILD:-build/release}")/tests/libdoctor_faults.so
only=${1:-}
if [[ $(ldd "$squint") == *libasan* ]]; then echo "skipped: a sanitizer build takes no library that makes calls fail"; exit 77; fi
[ -e "$faults" ] || { echo "$faults is not there: expected it in every other build"; exit 1; }
command -v mpirun >/dev/null || { echo "skipped: mpirun is not here"; exit 77; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 TMPDIR=$work OMPI_MCA_btl_vader_single_copy_mechanism=none
export OMPI_MCA_rmaps_base_oversubscribe=1
launch=(mpirun --quiet --bind-to none)
rows=0 bad=0

# row NAME EXIT 'PATTERN of a line' COMMAND...
row() {
    local name=$1 expected=$2 pattern=$3 code=0
    shift 3
    [[ $name == *"$only"* ]] || return 0
    rows=$((rows + 1))
    "$@" >out.txt 2>&1 || code=$?
    if [ "$code" != "$expected" ] || { [ -n "$pattern" ] && ! grep -qE -- "$pattern" out.txt; } || compgen -G '.squint-doctor*' >/dev/null; then
        bad=$((bad + 1))
        echo "$name: expected exit $expected, found $code, and a line \"$pattern\": $*"
        sed 's/^/    /' out.txt
        compgen -G '.squint-doctor*' | sed 's/^/    left behind: /'
    fi
    rm -f .squint-doctor*
}
one() { "$squint" doctor "$@"; }
ranks() { "${launch[@]}" -np "$1" "$squint" doctor "${@:2}"; }
# The second of two ranks is on a machine with a fault; or rank 0 is.
second() { "${launch[@]}" -np 1 "$squint" doctor "${@:2}" : -np 1 -x LD_PRELOAD="$faults" -x DOCTOR_FAULT="$1" "$squint" doctor "${@:2}"; }
first() { "${launch[@]}" -np 1 -x LD_PRELOAD="$faults" -x DOCTOR_FAULT="$1" "$squint" doctor : -np 1 "$squint" doctor; }
alone() { LD_PRELOAD=$faults DOCTOR_FAULT=$1 "$squint" doctor; }

# --- good machines ------------------------------------------------------------------------------------------------------------------------
row "one process" 0 '^1[0-9] ok, [0-9]+ to look at, 0 that would break a run$' one
row "two ranks" 0 '^ok +mpi +Open MPI .* of the same version; 2 ranks, 2 on this host' ranks 2
row "four ranks" 0 '^ok +locks +the trainer.s lock holds' ranks 4
row "no fault" 0 '^ok +clock ' second none
row "no GPU" 0 '^ok +(gpu|nccl) +(none|not needed)' one --device cpu
if ! compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
    row "a GPU wanted" 1 '^FAIL +gpu +ranks 0-1 on .*(CUDA|GPU)' ranks 2 --device cuda
fi
row "nothing without a recipe" 0 '^squint ' one
if [ -z "$only" ] && grep -q '^ok  *data' out.txt; then echo "data: a line without a recipe"; bad=$((bad + 1)); fi

json() { # expected level of "clock", command...
    local level=$1
    shift
    "$@" >json.txt || return 1
    python3 - "$level" <<'P'
import json, sys
root = json.load(open("json.txt"))
levels = {row["check"]: row["level"] for row in root["checks"]}
assert levels["clock"] == sys.argv[1], levels
assert root["ranks"] == 2 and root["hosts"] == 1 and root["fail"] == 0, root
assert root["ok"] + root["warn"] + root["fail"] == len(root["checks"]), root
clock = next(row for row in root["checks"] if row["check"] == "clock")["findings"]
assert clock[0]["ranks"] == ([1] if sys.argv[1] == "warn" else [0, 1]), clock
print("as expected")
P
}
row "JSON" 0 'as expected' json ok ranks 2 --json
row "JSON, a warning" 0 'as expected' json warn second clock --json

# --- one fault each -----------------------------------------------------------------------------------------------------------------------
row "clock ahead" 0 '^warn +clock +rank 1 on .*clock is 7\.0 s ahead of rank 0' second clock
row "clock behind" 0 '^warn +clock +rank 1 on .*clock is 7\.0 s behind' first clock
row "no locks" 1 '^FAIL +locks +rank 0 on .*: cannot lock it: No locks available' first locks
row "no locks: advice" 1 '-> the trainer locks .*local_lock=flock' alone locks
row "locks that others do not see" 0 '^warn +locks +rank 1 on .*this rank gets it too' second "local locks"
row "no fsync" 1 '^FAIL +disk +rank 1 on .*Input/output error' second fsync
row "no rename" 1 '^FAIL +disk +rank 1 on .*Operation not permitted' second rename
row "full disk" 1 '^FAIL +disk +rank 1 on .*: 1.0 MiB free' second full
row "small /dev/shm" 0 '^warn +shared memory +rank 1 on .*1.0 MiB free, expected' second shm
row "small /dev/shm, one rank" 0 '^ok +shared memory +/dev/shm: 1.0 MiB free' alone shm
row "few open files" 0 '^warn +open files +rank 1 on .*at most 100, expected 264' second "open files"
row "small stack" 0 '^warn +stack +rank 1 on .*256 KiB' second stack
row "memory of others" 0 '^warn +transport +rank 1 on .*Operation not permitted' second "memory of others"

# --- launchers and environments -----------------------------------------------------------------------------------------------------------
other_mpi() { PMI_SIZE=4 OMPI_COMM_WORLD_SIZE='' "$squint" doctor; }
row "another MPI's launcher" 1 '^FAIL +mpi +\$PMI_SIZE says 4 ranks, and MPI sees this one alone' other_mpi
srun_without_pmi() { SLURM_STEP_NUM_TASKS=8 "$squint" doctor; }
row "srun without PMI" 1 '^FAIL +mpi +\$SLURM_STEP_NUM_TASKS says 8 ranks' srun_without_pmi
threads() { OMP_NUM_THREADS=9999 ranks 2; }
row "too many threads" 0 '^warn +threads +.*2 ranks of 9999 threads on' threads
# A launcher of another version: a copy of the shell that is called mpirun and says so.
mkdir bin
cp "$(command -v bash)" bin/orterun
printf '#!/bin/sh\necho "mpirun (Open MPI) 3.0.9"\n' >bin/mpirun
chmod +x bin/mpirun
other_version() { "${launch[@]}" -np 2 "$work/bin/orterun" -c "'$squint' doctor; exit \$?"; }
row "another version's launcher" 1 '^FAIL +mpi +.*orterun is of version 3\.0\.9, squint.s library is Open MPI' other_version
locking() { HDF5_USE_FILE_LOCKING=TRUE alone locks; }
row "HDF5 locks where there are none" 1 '^FAIL +hdf5 ' locking
row "HDF5 locks: advice" 1 '-> unset HDF5_USE_FILE_LOCKING' locking
locking_works() { HDF5_USE_FILE_LOCKING=TRUE one; }
row "HDF5 locks where there are some" 0 '^ok +hdf5 .*HDF5_USE_FILE_LOCKING is TRUE' locking_works

# --- two hosts: mpirun reaches the second by a stand-in for ssh, which gives it a name of its own -------------------------------------------
cat >agent <<'S'
#!/bin/bash
while [[ $1 == -* ]]; do shift; done
exec unshare --uts bash -c 'hostname "$0"; exec bash -c "$1"' "$1" "${*:2}"
S
chmod +x agent
hosts() { "${launch[@]}" --mca plm_rsh_agent "$work/agent" --host "$(hostname):2,nodeb:2" -np 1 "$squint" doctor : "$@"; }
if unshare --uts true 2>/dev/null; then
    row "two hosts" 0 '^squint .*: 2 ranks on 2 hosts$' hosts --host nodeb -np 1 "$squint" doctor
    row "two hosts, the launcher" 0 '^ok +mpi +Open MPI .* of the same version; 2 ranks, 1 on this host' hosts --host nodeb -np 1 "$squint" doctor
    row "two hosts, a clock" 0 "^warn +clock +rank 1 on nodeb: .*7\.0 s ahead of rank 0's on $(hostname)" \
        hosts --host nodeb -np 1 -x LD_PRELOAD="$faults" -x DOCTOR_FAULT=clock "$squint" doctor
    row "two hosts, one crowded" 0 '^warn +mpi +ranks 1-2 on nodeb: 2 ranks on nodeb, 1.5 on a host' hosts --host nodeb -np 2 "$squint" doctor
else
    echo "left out: two hosts, for this machine gives no host name of one's own"
fi

# --- directories --------------------------------------------------------------------------------------------------------------------------
echo text >file
row "the run's directory is a file" 1 '^FAIL +disk +.*file: is not a directory' one --run file
row "not there yet" 0 "^ok +disk +$work \(the run's directory will be made below it\)" one --run a/b/c
row "nothing is made" 0 '' test ! -e a
row "not writable" 1 '^FAIL +disk +.*/proc/' one --run /proc/run
mkdir used && touch used/lock
in_use() { flock used/lock "${launch[@]}" -np 2 "$squint" doctor --run used; }
row "another job trains there" 1 '^FAIL +locks +rank 0 on .*used/lock: another job trains in this directory' in_use
row "nobody trains there" 0 '^ok +locks ' one --run used
mkdir elsewhere
elsewhere() { "${launch[@]}" -np 1 "$squint" doctor : -np 1 --wdir "$work/elsewhere" "$squint" doctor; }
row "ranks in different directories" 1 '^FAIL +shared files +rank 1 on .*elsewhere: a file that rank 0 on .* is not seen' elsewhere
row "the run's directory is on one machine only" 1 '^FAIL +disk +rank 1 on .*: is not there' \
    "${launch[@]}" -np 1 "$squint" doctor --run used : -np 1 --wdir "$work/elsewhere" "$squint" doctor --run used

# --- recipes ------------------------------------------------------------------------------------------------------------------------------
cat >lm.yaml <<'Y'
run: lm
tokenizer: used
from_scratch: {type: gpt2, layers: 2, heads: 2, width: 16}
data: {train: c-train-*.h5, valid: c-valid-*.h5}
stages: [{name: lm, objective: lm, train: all, length: 16, batch: 4, steps: 2, lr: 2.0e-2}]
Y
row "no data" 1 '^FAIL +data +.*c-train-\*\.h5' one lm.yaml
echo shard >c-train-0.h5
echo shard >c-valid-0.h5
row "data" 0 '^ok +data +2 shards' ranks 2 lm.yaml
row "the words of train" 0 '^ok +data ' one lm.yaml --stages.lm.steps=3 --run=used --resume never --dry-run
row "no tokenizer" 1 '^FAIL +data +tokenizer: tok is not here' one lm.yaml --tokenizer=tok
cp lm.yaml c-train-0.h5 elsewhere
row "data on one machine only" 1 '^FAIL +data +rank 1 on .*c-valid' \
    "${launch[@]}" -np 1 "$squint" doctor lm.yaml : -np 1 --wdir "$work/elsewhere" "$squint" doctor lm.yaml

# --- wrong usage --------------------------------------------------------------------------------------------------------------------------
row "unknown option" 2 'squint: doctor: unknown option --rnu; did you mean --run\?' one --rnu x
row "unknown option, two ranks" 2 'did you mean --run' ranks 2 --rnu x
[ -n "$only" ] || [ "$(grep -c 'did you mean' out.txt)" = 1 ] || { echo "two ranks: expected the message once"; bad=$((bad + 1)); }
row "two recipes" 2 'expected one recipe at most, found 2' one lm.yaml lm.yaml
row "unknown key" 2 'clop' one lm.yaml --train.clop=1
row "a key without a recipe" 2 'changes a recipe, and none is given' one --train.clip=1
row "unknown device" 2 'expected auto, cpu or cuda, found "tpu"' one --device tpu
row "no recipe there" 1 'absent.yaml' one absent.yaml
help() { "$squint" doctor --help; }
row "help" 0 '^example: ' help

echo "$((rows - bad)) of $rows rows as expected"
[ "$bad" = 0 ]
