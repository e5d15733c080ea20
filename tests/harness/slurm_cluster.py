"""A cluster of Slurm with one node, on loopback, in a directory of its own. Needs root, slurmctld, slurmd and munge."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from ports import free_port

START_LIMIT_S = 30.0
_CONFIGURATION = """\
ClusterName=shards
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """A running cluster; `environment` is for its commands."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}

    def run(self, *command: str, cwd: Path, limit_s: float, path: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of Slurm to its end; `path` goes before PATH."""
        environ = {**self.environment, "PATH": f"{path}:{os.environ['PATH']}" if path else os.environ["PATH"]}
        return subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=limit_s)

    def wait_for_end(self, job: str, limit_s: float) -> None:
        """Wait until all tasks of a job have completed; `sbatch --wait` looks only every few seconds."""
        deadline = time.monotonic() + limit_s
        command = ("squeue", "--noheader", "--states=all", "--jobs", job, "--format=%T")
        while True:
            states = set(self.run(*command, cwd=self.directory, limit_s=30.0).stdout.split())
            if states and states <= {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}:
                assert states == {"COMPLETED"}, f"job {job} has tasks that are {states}"
                return
            assert time.monotonic() < deadline, f"job {job} has tasks that are {states} after {limit_s} s"
            time.sleep(0.2)

    def wait_for_idle(self, limit_s: float = START_LIMIT_S) -> None:
        """Wait until the node takes jobs."""
        deadline = time.monotonic() + limit_s
        while True:
            found = self.run("sinfo", "--noheader", "--format", "%T", cwd=self.directory, limit_s=limit_s)
            if found.stdout.strip() == "idle":
                return
            assert time.monotonic() < deadline, f"the node is {found.stdout.strip()!r}: {found.stderr}"
            time.sleep(0.1)


@contextlib.contextmanager
def slurm_cluster(directory: Path) -> Iterator[SlurmCluster]:
    """Start munged, slurmctld and slurmd; all end with this."""
    # munged refuses a socket below a directory that others may write to, and one with a long path.
    for name in ("state", "spool"):
        (directory / name).mkdir(parents=True)
    key = directory / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    text = _CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0], ports=(free_port(), free_port()), directory=directory
    )
    (directory / "slurm.conf").write_text(text)
    cluster = SlurmCluster(directory)
    of_munge = {"socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log", "seed-file": "munge.seed"}
    files = [f"--{name}={directory / file}" for name, file in of_munge.items()]
    started: list[subprocess.Popen[bytes]] = []
    with (directory / "daemons.log").open("wb") as log:
        try:
            for command in (
                ["munged", "--foreground", "--force", f"--key-file={key}", *files],
                ["slurmctld", "-D"],
                ["slurmd", "-D"],
            ):
                started.append(subprocess.Popen(command, env=cluster.environment, stdout=log, stderr=log))
            cluster.wait_for_idle()
            yield cluster
        finally:
            for process in reversed(started):
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(15)
