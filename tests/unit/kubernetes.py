#!/usr/bin/env python3
"""launch/kubernetes-mpijob.yaml, which no cluster is here to take: it fits mpijob.schema.yaml, what it names is there, its figures agree, its
scripts are run with stand-ins (a preempted launcher saves and ends with 75, a worker's hook waits for its ranks); and files that are
broken on purpose are refused, each for the reason that it was broken for.

    python3 tests/unit/kubernetes.py [ROOT]
"""
import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

try:
    import jsonschema
    import yaml
except ImportError as absent:
    print(f"skipped: {absent}; launch/setup --packages installs python3-yaml and python3-jsonschema")
    sys.exit(77)

root = sys.argv[1] if len(sys.argv) > 1 else os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
name = "launch/kubernetes-mpijob.yaml"
faults = []


class Loader(yaml.SafeLoader):
    """YAML 1.1 lets a later key hide an earlier one of the same name; here that is an error."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: the key {key!r} stands twice")
        return super().construct_mapping(node, deep=deep)


Loader.add_constructor("tag:yaml.org,2002:map", lambda loader, node: loader.construct_mapping(node, deep=True))


def read(path):
    with open(os.path.join(root, path)) as file:
        return file.read()


def fields(job):
    """Faults that the schema finds, the innermost of each."""
    found = []
    for error in jsonschema.Draft202012Validator(schema).iter_errors(job):
        while error.context:
            error = jsonschema.exceptions.best_match(error.context)
        found.append("/".join(str(part) for part in error.absolute_path) + ": " + error.message)
    return found


def sense(job):
    """Faults that a schema cannot say."""
    found = []
    spec = job["spec"]
    pods = {side: replica["template"]["spec"] for side, replica in spec["mpiReplicaSpecs"].items()}
    for side, pod in pods.items():
        volumes = [volume["name"] for volume in pod.get("volumes", [])]
        for container in pod["containers"]:
            mounts = [mount["name"] for mount in container.get("volumeMounts", [])]
            found += [f"{side}: no volume {mount} is described" for mount in mounts if mount not in volumes]
            found += [f"{side}: the volume {volume} is not mounted" for volume in volumes if volume not in mounts]
            if "data" not in mounts:
                found.append(f"{side}: expected the volume that all share")
            if container["command"][:2] != ["/bin/bash", "-c"]:
                found.append(f"{side}: expected a script of bash")
    worker = pods["Worker"]["containers"][0]
    gpus = worker["resources"]["limits"].get("nvidia.com/gpu")
    if gpus != spec.get("slotsPerWorker"):
        found.append(f"expected one rank a GPU, found {spec.get('slotsPerWorker')} slots and {gpus} GPUs")
    if not any(mount["mountPath"] == "/dev/shm" for mount in worker["volumeMounts"]):
        found.append("Worker: expected a /dev/shm larger than a container's own")
    for side, pod in pods.items():
        if pod.get("terminationGracePeriodSeconds", 30) < 60:
            found.append(f"{side}: expected a grace period in which a checkpoint can be written")
    if "preStop" not in worker.get("lifecycle", {}):
        found.append("Worker: expected a preStop hook that has the ranks save")
    if spec.get("runPolicy", {}).get("backoffLimit", 6) < 10:
        found.append("expected a backoffLimit that a job which is preempted now and then does not use up")
    return found


def broken(path, value):
    """A copy of the job in which the last of `path` is `value`; None takes it away."""
    job = copy.deepcopy(good)
    at = job
    for part in path[:-1]:
        at = at[part]
    if value is None:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return job


def mappings(value, path):
    """The places of all mappings in `value`."""
    if isinstance(value, dict):
        yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from mappings(child, path + [key])


def refusals():
    worker = ["spec", "mpiReplicaSpecs", "Worker"]
    launcher = ["spec", "mpiReplicaSpecs", "Launcher"]
    box = ["template", "spec", "containers", 0]
    rows = [
        (["apiVersion"], "kubeflow.org/v1", "apiVersion"),
        (["kind"], "Job", "kind"),
        (["metadata", "name"], "Squint_1", "metadata/name"),
        (["spec", "slotPerWorker"], 8, "slotPerWorker"),
        (["spec", "slotsPerWorker"], "8", "slotsPerWorker"),
        (["spec", "slotsPerWorker"], 4, "one rank a GPU"),
        (["spec", "mpiImplementation"], "OpenMpi", "mpiImplementation"),
        (["spec", "cleanPodPolicy"], "Running", "cleanPodPolicy"),
        (["spec", "launcherCreationPolicy"], "WaitForWorkers", "launcherCreationPolicy"),
        (["spec", "runPolicy", "cleanPodPolicy"], "Always", "cleanPodPolicy"),
        (["spec", "runPolicy", "backoffLimit"], -1, "backoffLimit"),
        (["spec", "runPolicy", "backoffLimit"], 1, "preempted now and then"),
        (["spec", "mpiReplicaSpecs", "Master"], good["spec"]["mpiReplicaSpecs"]["Worker"], "Master"),
        (launcher + ["replicas"], 2, "Launcher/replicas"),
        (launcher + ["restartPolicy"], "Always", "restartPolicy"),
        (worker, None, "Worker"),
        (worker + ["template", "containers"], [], "containers"),
        (worker + ["template", "spec", "containers"], [], "containers"),
        (worker + ["template", "spec", "terminationGracePeriod"], 180, "terminationGracePeriod"),
        (worker + ["template", "spec", "terminationGracePeriodSeconds"], 5, "grace period"),
        (worker + box + ["image"], None, "image"),
        (worker + box + ["resource"], {}, "resource"),
        (worker + box + ["resources", "limits", "memory"], "256 GB", "memory"),
        (worker + box + ["lifecycle", "preStop", "command"], ["true"], "command"),
        (worker + box + ["lifecycle"], None, "preStop hook"),
        (worker + box + ["readinessProbe", "tcpSocket", "port"], 0, "port"),
        (worker + box + ["volumeMounts", 1, "name"], "memory", "no volume memory"),
        (launcher + box + ["env", 0], {"name": "A", "value": 1}, "value"),
        (launcher + box + ["volumeMounts", 0, "path"], "/data", "path"),
    ]
    for path, value, reason in rows:
        job = broken(path, value)
        found = fields(job) or sense(job)
        if not any(reason in text for text in found):
            faults.append(f"{'/'.join(map(str, path))} = {value!r}: expected to be refused because of {reason}, found {found or 'no fault'}")
    for path in mappings(good, []):
        if path and path[-1] in ("limits", "requests"):  # of anything that a cluster counts
            continue
        rows.append(path)
        if not any("surplus" in text for text in fields(broken(path + ["surplus"], 1))):
            faults.append(f"{'/'.join(map(str, path))}: an unknown key in it: expected to be refused, found no fault")
    try:
        yaml.load("spec: {a: 1, a: 2}", Loader)
        faults.append("a key that stands twice: expected to be refused")
    except yaml.YAMLError:
        pass
    return len(rows) + 1


STANDIN = """#!/bin/bash
echo "$@" >> {folder}/said
case "$2" in
doctor) exit {doctor} ;;
train) trap 'echo saved >> {folder}/said; exit 75' USR1
  for _ in $(seq 200); do sleep 0.05; done; exit 9 ;;
esac
"""


def run_launcher(doctor, preempt):
    """The launcher's script with a stand-in for mpirun: its exit code, and what mpirun was told."""
    box = good["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0]
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/mpirun", "w") as file:
            file.write(STANDIN.format(folder=folder, doctor=doctor))
        os.chmod(f"{folder}/mpirun", 0o755)
        open(f"{folder}/said", "w").close()
        environment = dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}")
        environment.update({entry["name"]: entry["value"] for entry in box["env"]})
        process = subprocess.Popen(box["command"] + box["args"], env=environment)
        end = time.time() + 10
        while preempt and time.time() < end and "train" not in open(f"{folder}/said").read():
            time.sleep(0.05)
        if preempt:
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
        return process.wait(timeout=20), open(f"{folder}/said").read().splitlines()


def run_hook():
    """The workers' hook among processes of their own: it asks what is called squint, and waits until it has saved."""
    box = good["spec"]["mpiReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    hook = box["lifecycle"]["preStop"]["exec"]["command"]
    alone = ["unshare", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if subprocess.run(alone + ["true"], capture_output=True).returncode != 0:
        print("left out: the workers' hook, for this machine gives no process numbers of one's own")
        return
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy("/bin/bash", f"{folder}/squint")
        script = (f"for n in 0 1; do {folder}/squint -c 'trap \"sleep 1; touch {folder}/saved.'$n'; exit 75\" USR1; "
                  f"touch {folder}/up.'$n'; while :; do sleep 0.05; done' & done; sleep 300 & other=$!; "
                  f"while [ ! -e {folder}/up.0 ] || [ ! -e {folder}/up.1 ]; do sleep 0.05; done; "
                  f"\"$@\"; ls {folder}; kill -0 $other && echo others live; kill -KILL $other")
        done = subprocess.run(alone + ["bash", "-c", script, "hook"] + hook, capture_output=True, text=True, timeout=30)
        words = done.stdout.split()
        for word in ("saved.0", "saved.1", "others"):
            if word not in words:
                faults.append(f"the workers' hook: expected {word} when it is through, found {words} {done.stderr.strip()}")


def scripts():
    for side, replica in good["spec"]["mpiReplicaSpecs"].items():
        box = replica["template"]["spec"]["containers"][0]
        for script in box["args"] + box.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])[2:]:
            checked = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
            if checked.returncode != 0:
                faults.append(f"{side}: {checked.stderr.strip()}")
    words = "/data/recipe.yaml --run=/data/runs/mine"
    for doctor, preempt, expected in ((0, True, (75, [f"squint doctor {words}", f"squint train {words}", "saved"])),
                                      (1, False, (1, [f"squint doctor {words}"]))):
        found = run_launcher(doctor, preempt)
        if found != expected:
            faults.append(f"the launcher's script, doctor {doctor}, preempted {preempt}: expected {expected}, found {found}")
    run_hook()


schema = yaml.load(read("tests/unit/mpijob.schema.yaml"), Loader)
jsonschema.Draft202012Validator.check_schema(schema)
good = yaml.load(read(name), Loader)
faults += [f"{name}: {text}" for text in fields(good) or sense(good)]
if faults:
    sys.exit("\n".join(faults))
rows = refusals()
scripts()
for word in re.findall(r"launch/[\w/.-]+\w", read(name)):
    if not os.path.exists(os.path.join(root, word)):
        faults.append(f"{name}: {word} is not in the repository")
print("\n".join(faults) if faults else f"kubernetes: fits, {rows} broken ones are refused, the scripts do as they say")
sys.exit(1 if faults else 0)
