"""An Indexed Job of Kubernetes: one pod a shard, and a Job that merges them. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from .shards import ShardedRun, commented

KEY = "OPENAI_API_KEY"
# Exit codes after which the same command would do no better: samples that failed, wrong usage, a gate.
NO_RETRY = (1, 2, 4)
# Kubernetes waits so long after SIGTERM; a run needs some of it to stop what runs.
GRACE_S = 60

_SHARDS = """\
An Indexed Job of Kubernetes (1.29 or newer): each pod runs one of {shards} shards of a dataset. Save it as shards.yaml:

  kubectl apply -f shards.yaml
  kubectl wait --for=condition=complete --timeout=24h job/{name}

The claim must be one that all pods can write to at once (ReadWriteMany); each run directory is used by one pod at a
time. A pod that was lost or evicted is made again, and goes on with what its directory has. codex's sandbox needs user
namespaces in the pod; where these are not allowed, let the pod be the sandbox: --sandbox danger-full-access.

When it has ended, the same recipe with --merge prints the Job that merges the shards.
"""
_MERGE = """\
A Job of Kubernetes that merges {shards} shards, for when the Job {name} has ended. Save it as merge.yaml:

  kubectl apply -f merge.yaml
"""


@dataclass(frozen=True, slots=True)
class Pods:
    """Place of the pods. `claim` is mounted at `mount`; `secret` has the API key, None for pods that need none."""

    name: str
    image: str
    claim: str
    mount: str
    namespace: str | None = None
    secret: str | None = None
    parallelism: int | None = None
    cpus: str | None = None
    memory: str | None = None


def shards(run: ShardedRun, pods: Pods) -> str:
    """Return the Job that runs the shards."""
    login = [] if pods.secret is None else [f"printenv {KEY} | codex-pool login --api-key"]
    # The index counts from 0, shards from 1.
    script = "\n".join(["set -eu", *login, "index=$((JOB_COMPLETION_INDEX + 1))", f"exec {run.batch('$index')}"])
    spec = [
        "  completionMode: Indexed",
        f"  completions: {run.shards}",
        f"  parallelism: {min(pods.parallelism or run.shards, run.shards)}",
        "  backoffLimitPerIndex: 3",
        f"  maxFailedIndexes: {run.shards}",
        "  podFailurePolicy:",
        "    rules:",
        "    # Some samples have failed, wrong usage, a gate: the same command again would do no better.",
        "    - action: FailIndex",
        f"      onExitCodes: {{operator: In, values: {list(NO_RETRY)}}}",
        "    # Evicted, drained, preempted: that is no failure of the shard.",
        "    - action: Ignore",
        '      onPodConditions: [{type: DisruptionTarget, status: "True"}]',
    ]
    head = commented(_SHARDS.format(shards=run.shards, name=pods.name))
    return _job(head, pods.name, spec, script, pods, with_key=pods.secret is not None)


def merge(run: ShardedRun, pods: Pods) -> str:
    """Return the Job that merges the shards."""
    head = commented(_MERGE.format(shards=run.shards, name=pods.name))
    return _job(head, f"{pods.name}-merge", ["  backoffLimit: 1"], f"exec {run.merge()}", pods, with_key=False)


def _job(head: str, name: str, spec: list[str], script: str, pods: Pods, *, with_key: bool) -> str:
    # Kubernetes puts variables in the place of $(NAME), and $ in that of $$.
    script = script.replace("$", "$$")
    namespace = [] if pods.namespace is None else [f"  namespace: {_quoted(pods.namespace)}"]
    limits = {name: value for name, value in (("cpu", pods.cpus), ("memory", pods.memory)) if value is not None}
    key = [
        "        env:",
        f"        - name: {KEY}",
        f"          valueFrom: {{secretKeyRef: {{name: {_quoted(pods.secret or '')}, key: {KEY}}}}}",
    ]
    resources = [
        "        resources:",
        f"          requests: {json.dumps(limits)}",
        f"          limits: {json.dumps({name: value for name, value in limits.items() if name == 'memory'})}",
    ]
    lines = [
        head,
        "apiVersion: batch/v1",
        "kind: Job",
        "metadata:",
        f"  name: {_quoted(name)}",
        *namespace,
        "spec:",
        *spec,
        "  template:",
        "    spec:",
        "      restartPolicy: Never",
        f"      terminationGracePeriodSeconds: {GRACE_S}",
        "      containers:",
        "      - name: codex-pool",
        f"        image: {_quoted(pods.image)}",
        "        command:",
        "        - /bin/sh",
        "        - -c",
        "        # The shell gets $ for each $$.",
        *_script(script),
        *(key if with_key else []),
        *(resources if limits else []),
        "        volumeMounts:",
        f"        - {{name: runs, mountPath: {_quoted(pods.mount)}}}",
        "      volumes:",
        "      - name: runs",
        f"        persistentVolumeClaim: {{claimName: {_quoted(pods.claim)}}}",
    ]
    return "\n".join(lines) + "\n"


def _script(script: str) -> list[str]:
    """The lines of an element of a list: as a block, if all of it can be printed."""
    lines = script.split("\n")
    if not all(line.isprintable() for line in lines):
        return [f"        - {_quoted(script)}"]
    return ["        - |-", *(f"          {line}" if line else "" for line in lines)]


def _quoted(text: str) -> str:
    """A string as YAML, which reads JSON in ASCII."""
    return json.dumps(text)
