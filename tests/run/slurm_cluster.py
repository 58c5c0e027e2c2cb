"""A real Slurm on this machine for tests: munged, slurmctld and two slurmd, all below one temporary folder.

The Debian packages slurm-wlm and munge bring what is needed. Nothing outside of the folder is written, no cgroups are
used, and everything that was started is ended again.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel")
NODES = ("node1", "node2")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
PlugStackConfig={folder}/plugstack.conf
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdTimeout=5
KillWait=2
ReturnToService=2
MinJobAge=60
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node1} CPUs=2 RealMemory=1000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node2} CPUs=2 RealMemory=1000
PartitionName=main Nodes=node1,node2 Default=YES State=UP
PartitionName=short Nodes=node1 MaxTime=1 State=UP
"""


def missing() -> str:
    """Return why no Slurm can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"no Slurm here ({', '.join(absent)} not found; Debian: slurm-wlm and munge)"
    if os.geteuid() != 0:
        return "Slurm's daemons start jobs of other users and need root"
    return ""


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Cluster:
    """A controller and two nodes with two CPUs each; a context manager. `environment` is what clients need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Cluster:
        self.folder.chmod(0o755)  # munged insists that nobody else may write
        (self.folder / "state").mkdir()
        (self.folder / "plugstack.conf").touch()
        ports = _free_ports(3)
        text = CONFIG.format(
            folder=self.folder, host=socket.gethostname(), controller=ports[0], node1=ports[1], node2=ports[2]
        )
        (self.folder / "slurm.conf").write_text(text)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        try:
            self._start_all()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start_all(self) -> None:
        munge = [f"--socket={self.folder}/munge.socket", f"--key-file={self.folder}/munge.key"]
        munge += [f"--{name}-file={self.folder}/munged.{name}" for name in ("log", "pid", "seed")]
        self._start("munged", "--foreground", "--force", *munge)
        until((self.folder / "munge.socket").exists, "munged")
        self._start("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        until(lambda: all(self.state(node) == "idle" for node in NODES), "the nodes")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        (self.folder / f"spool-{node}").mkdir(exist_ok=True)
        self._start("slurmd", "-D", "-N", node, name=node)

    def state(self, node: str) -> str:
        """Return the state of a node in a word, such as idle, mixed, allocated, down."""
        done = self.call("sinfo", "--noheader", f"--nodes={node}", "--format=%T")
        return done.stdout.strip()

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands."""
        return subprocess.run(command, env={**os.environ, **self.environment}, capture_output=True, text=True)

    def jobs(self) -> list[list[str]]:
        """Return (id, state, node) of every job, ended ones as well."""
        done = self.call("squeue", "--states=all", "--noheader", "--array", "--Format=JobID:|,State:|,NodeList:|")
        return [line.strip().split("|")[:3] for line in done.stdout.splitlines()]

    def crash(self, node: str) -> None:
        """End a node as if its power were gone: the daemon and all that runs in jobs on it."""
        if node in self.daemons:
            self.stop_daemon(node)
        for process in psutil.process_iter():
            try:
                theirs = process.environ()
            except psutil.Error:
                continue
            here = node in (theirs.get("TEST_NODE"), theirs.get("SLURMD_NODENAME"))  # of Slurm's own processes, of jobs
            if here and theirs.get("SLURM_CONF") == self.environment["SLURM_CONF"]:
                process.kill()

    def stop_daemon(self, node: str) -> None:
        """End the daemon of a node; what runs in jobs goes on."""
        daemon = self.daemons.pop(node)
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()

    def _start(self, program: str, *words: str, name: str = "") -> None:
        path = _program(program)
        assert path is not None
        environment = {**os.environ, **self.environment, "TEST_NODE": name}
        with (self.folder / f"{name or program}.out").open("ab") as out:
            self.daemons[name or program] = subprocess.Popen(
                [path, *words], env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def __exit__(self, *error: object) -> None:
        self.call("scancel", "--user=root", "--signal=KILL", "--full")
        self.call("scancel", "--user=root")
        for node in NODES:
            self.crash(node)
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def until(true: object, what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come up")
        time.sleep(0.1)
