"""The templates of jobs/, unmodified, on a real Slurm: throw-away, on this machine, with several virtual nodes.

``$SLIDEFIELD_SLURM_TOOLS`` (``../shared/tools``) has the scripts that start and end it; where they or sbatch are
missing, or not root asks, these tests are skipped and say so. Signals are sent by ``scancel``, for Slurm's own timing
is coarse. A job that was queued again starts two minutes later, unless it is told to start sooner; never at once: its
step has the same number again, and the end of the one before would take the new one's sockets away.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launching import LONGEST, ROOT, environment, launch, sha, shared_memory_of
from PIL import Image

from engine.models.card import read_card

TOOLS = Path(os.environ.get("SLIDEFIELD_SLURM_TOOLS", ROOT.parent / "shared" / "tools"))
NODES, CPUS, PORT = 8, 4, 6817
TEMPLATES = sorted((ROOT / "jobs").glob("*.slurm"))
SMALL = ("--gpus-per-node=1", "--cpus-per-task=1", "--time=10", "--ntasks-per-node=1")  # of a template's own resources
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED"}
JOB = "model: {model}\nlabel: 1\nsize: 256x384\nsteps: {steps}\nbatch_size: 1\nshard: 128\nchunk: 64\npreview: none\n"
long = pytest.mark.long


class Slurm:
    """A Slurm of virtual nodes on this machine, and the folder that jobs are submitted from."""

    def __init__(self, state: Path, folder: Path) -> None:
        self.state, self.folder = state, folder
        beside = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = environment(SLURM_CONF=str(state / "slurm.conf"), PATH=beside)

    def call(self, *words: object, **extra: str) -> str:
        line = [str(word) for word in words]
        run = subprocess.run(
            line, cwd=self.folder, env=self.environment | extra, capture_output=True, text=True, timeout=60
        )
        assert run.returncode == 0, f"{line}: {run.stdout}{run.stderr}"
        return run.stdout.strip()

    def submit(self, template: str, *arguments: object, options: tuple = SMALL, **extra: str) -> str:
        """The number of the new job."""
        return self.call("sbatch", "--parsable", *options, f"jobs/{template}", *arguments, **extra)

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        text = self.call("scontrol", "show", "job", "-o", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def reached(self, number: str, *states: str, restarts: int = 0) -> dict[str, str]:
        """Wait until a job is in one of these states, after so many restarts; it need not wait to start again."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            job = self.job(number)
            if job["JobState"] in states and int(job["Restarts"]) >= restarts:
                return job
            assert job["JobState"] not in ENDED, f"{job}\n{self.log(number)}"
            if job["JobState"] == "PENDING" and job["Reason"] == "BeginTime" and not steps(f"{job['JobId']}."):
                time.sleep(2)
                with contextlib.suppress(AssertionError):  # it may just have begun
                    self.call("scontrol", "update", f"JobId={number}", "StartTime=now")
            time.sleep(0.2)
        raise AssertionError(f"job {number} did not come to {states}: {job}\n{self.log(number)}")

    def ended(self, number: str) -> dict[str, str]:
        return self.reached(number, *ENDED)

    def until(self, number: str, reached: Callable[[], bool]) -> None:
        """Wait for a moment of a job that has not ended."""
        end = time.monotonic() + LONGEST
        while not reached():
            assert time.monotonic() < end, self.log(number)
            assert self.job(number)["JobState"] not in ENDED, self.log(number)
            time.sleep(0.05)

    def sampling(self, number: str, log: Path) -> None:
        """Wait until a job has written two levels more into its JSON log."""
        before = lines(log)
        self.until(number, lambda: lines(log) >= before + 2)

    def cancel_all(self) -> None:
        """Cancel what is queued or runs, and wait for its processes, which Slurm's own end would leave alone."""
        for number in self.call("squeue", "-h", "-o", "%A").split():
            self.call("scancel", number)
        end = time.monotonic() + 60
        while steps() and time.monotonic() < end:
            time.sleep(0.2)

    def log(self, number: str) -> str:
        return "".join(path.read_text() for path in self.folder.glob(f"*-{number}.out"))

    def ranks(self, node: str = "", module: str = "engine.sample") -> list[int]:
        """The ranks of all jobs, or of those on one node."""
        alive = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words, known = ((entry / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
                ours = f"SLURM_CONF={self.state}/slurm.conf".encode() in known and module.encode() in words
                if ours and b"python" in words[0] and (not node or f"SLURMD_NODENAME={node}".encode() in known):
                    alive.append(int(entry.name))
        return alive


def steps(number: str = "") -> list[str]:
    """What still runs of a job, or of all: its steps, each a process of Slurm's on every node."""
    words = [entry.read_bytes() for entry in Path("/proc").glob("[0-9]*/cmdline") if entry.exists()]
    return [word.decode() for word in words if word.startswith(f"slurmstepd: [{number}".encode())]


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def obstacle() -> str:
    """Why there can be no throw-away Slurm here."""
    for name in ("sbatch", "slurmctld", "slurmd", "munged"):
        if shutil.which(name) is None and not Path("/usr/sbin", name).exists():
            return f"{name} is not installed"
    if not (TOOLS / "slurm-up.sh").exists():
        return f"{TOOLS} has no slurm-up.sh; SLIDEFIELD_SLURM_TOOLS names another folder"
    if os.geteuid() != 0:
        return "it is started by root alone"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", PORT)) == 0:
            return f"another Slurm listens at port {PORT}"
    return ""


@pytest.fixture(scope="module")
def cluster(tiny_model):
    """A Slurm, up for the tests of this file."""
    if reason := obstacle():
        pytest.skip(f"no throw-away Slurm: {reason}")
    state = Path(tempfile.mkdtemp(prefix="slidefield-slurm-"))
    slurm, began = Slurm(state, state), time.time()
    try:
        up = [TOOLS / "slurm-up.sh", state, str(NODES), str(CPUS)]
        subprocess.run(up, env=slurm.environment, stdout=subprocess.DEVNULL, check=True, timeout=60)
        yield slurm
        slurm.cancel_all()
    finally:
        down = [TOOLS / "slurm-down.sh", state]
        subprocess.run(down, env=slurm.environment, stdout=subprocess.DEVNULL, check=False, timeout=60)
        remove_shared_memory(began)
        shutil.rmtree(state, ignore_errors=True)


def remove_shared_memory(began: float) -> None:
    """Remove what killed ranks left: MPI's files since a time that no process has mapped.

    The next throw-away Slurm counts its jobs from 1 again, and these files are named by job and step.
    """
    mapped = {file for entry in Path("/proc").glob("[0-9]*") for file in shared_memory_of(int(entry.name))}
    for file in set(Path("/dev/shm").glob("mpich_shm_*")) - mapped:
        with contextlib.suppress(OSError):
            if began < file.stat().st_mtime < time.time() - 5:
                file.unlink()


@pytest.fixture
def slurm(cluster, tiny_model, tmp_path):
    """The Slurm, and a folder of this test's own with jobs/ and a job."""
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    (tmp_path / "job.yaml").write_text(JOB.format(model=tiny_model, steps=40))
    (tmp_path / "slow.yaml").write_text(JOB.format(model=tiny_model, steps=1000))
    slurm = Slurm(cluster.state, tmp_path)
    yield slurm
    slurm.cancel_all()


@pytest.fixture(scope="module")
def undisturbed(tiny_model, tmp_path_factory):
    """The sha256 of the same job, run without Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "job.yaml").write_text(JOB.format(model=tiny_model, steps=40))
    assert launch(2, "--job", folder / "job.yaml", "--out", folder / "o.zarr", "--device", "cpu").returncode == 0
    return sha(folder / "o.zarr")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_every_template_is_said_whose_log_and_how_it_goes_on(template):
    text = template.read_text()
    assert subprocess.run(["bash", "-n", template], check=False).returncode == 0
    assert text.startswith("#!/usr/bin/env bash\n# ")
    if template.name == "pipeline.slurm":
        return  # it submits others
    assert re.search(r"^#SBATCH --output=%x-(%j|%A_%a)\.out$", text, re.MULTILINE)
    assert re.search(r"^#SBATCH --time=", text, re.MULTILINE)
    if template.name != "scaling.slurm":
        for option in (r"--signal=B:USR1@\d+", "--requeue", "--open-mode=append"):
            assert re.search(f"^#SBATCH {option}$", text, re.MULTILINE), option


@pytest.mark.runs
def test_a_job_that_is_told_to_stop_is_queued_again_and_ends_with_the_same_bytes(slurm, undisturbed):
    log = slurm.folder / "o.jsonl"
    number = slurm.submit(
        "sample.slurm", "job.yaml", "--out", "o.zarr", "--json-log", log, options=("--nodes=2", *SMALL)
    )
    slurm.sampling(number, log)
    slurm.call("scancel", "--signal=USR1", "--batch", number)
    job = slurm.reached(number, "COMPLETED", restarts=1)
    assert job["ExitCode"] == "0:0"
    assert sha(slurm.folder / "o.zarr") == undisturbed
    said = (slurm.folder / f"slidefield-{number}.out").read_text()
    assert f"job {number} is queued again" in said
    assert "2 ranks on cpu, from level" in said


@pytest.mark.runs
def test_a_wrong_option_fails_the_job_with_one_line_and_is_not_queued_again(slurm):
    number = slurm.submit("sample.slurm", "job.yaml", "--solver", "magic", options=("--nodes=2", *SMALL))
    job = slurm.ended(number)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "1:0", "0")
    assert slurm.log(number).count("error: --solver") == 1
    assert "Traceback" not in slurm.log(number)


@pytest.mark.runs
@long
def test_a_rank_that_is_killed_ends_the_job_at_once_and_the_same_command_goes_on(slurm, undisturbed):
    log = slurm.folder / "o.jsonl"
    given = ("sample-cpu.slurm", "job.yaml", "--steps", 400, "--out", "o.zarr", "--json-log", log)
    options = ("--nodes=2", "--ntasks=3", "--time=10")
    number = slurm.submit(*given, "--checkpoint-every", 0, options=options)
    slurm.sampling(number, log)
    slurm.until(number, (slurm.folder / "o.zarr" / "slidefield" / "checkpoint.json").exists)
    assert len(slurm.ranks()) == 3
    os.kill(slurm.ranks()[-1], signal.SIGKILL)
    began = time.monotonic()
    job = slurm.ended(number)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    assert job["ExitCode"] in ("137:0", "143:0", "9:0", "0:9")
    assert time.monotonic() - began < 30
    assert not slurm.ranks()
    number = slurm.submit(*given, "--checkpoint-every", 0, options=options)
    assert slurm.ended(number)["JobState"] == "COMPLETED"
    assert "from level" in slurm.log(number)


@pytest.mark.runs
@long
def test_the_end_of_its_time_queues_a_job_again(slurm, undisturbed):
    """Slurm sends the signal up to a minute early: a job of three minutes is told to stop after one or less."""
    log, out = slurm.folder / "o.jsonl", slurm.folder / "o.zarr"
    options = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=1", "--cpus-per-task=1", "--time=3")
    number = slurm.submit("sample.slurm", "slow.yaml", "--out", out, "--json-log", log, options=options)
    slurm.reached(number, "RUNNING")
    slurm.reached(number, "RUNNING", restarts=1)
    before = lines(log)
    assert before > 1
    slurm.sampling(number, log)
    assert "from level" in slurm.log(number)
    slurm.call("scancel", number)


@pytest.mark.runs
@long
def test_a_job_that_is_cancelled_stays_cancelled(slurm):
    log = slurm.folder / "o.jsonl"
    number = slurm.submit("sample.slurm", "slow.yaml", "--out", "o.zarr", "--json-log", log, options=("-N2", *SMALL))
    slurm.sampling(number, log)
    slurm.call("scancel", number)
    assert slurm.reached(number, "CANCELLED", "PENDING")["JobState"] == "CANCELLED"
    end = time.monotonic() + 60
    while slurm.ranks() and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(2)
    assert slurm.job(number)["JobState"] == "CANCELLED"


@pytest.mark.runs
@long
def test_a_node_that_fails_queues_the_job_again_elsewhere(slurm, undisturbed):
    log, out = slurm.folder / "o.jsonl", slurm.folder / "o.zarr"
    given = ("sample.slurm", "job.yaml", "--steps", 100, "--out", out, "--json-log", log, "--checkpoint-every", 0)
    number = slurm.submit(*given, options=("--nodes=2", *SMALL))
    slurm.sampling(number, log)
    node = slurm.call("scontrol", "show", "hostnames", slurm.job(number)["NodeList"]).split()[1]
    os.kill(int((slurm.state / "run" / f"{node}.pid").read_text()), signal.SIGKILL)
    for rank in slurm.ranks(node):  # they die with it
        os.kill(rank, signal.SIGKILL)
    try:
        slurm.call("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
        job = slurm.reached(number, "COMPLETED", restarts=1)
        assert node not in slurm.call("scontrol", "show", "hostnames", job["NodeList"]).split()
    finally:
        subprocess.run(["slurmd", "-N", node, "-f", slurm.state / "slurm.conf"], env=slurm.environment, check=True)
        slurm.call("scontrol", "update", f"NodeName={node}", "State=RESUME")
        end = time.monotonic() + 60
        while "idle" not in slurm.call("sinfo", "-h", "-n", node, "-p", "low", "-o", "%t") and time.monotonic() < end:
            time.sleep(0.2)
    assert "from level" in slurm.log(number)
    launch(2, "--job", slurm.folder / "job.yaml", "--steps", 100, "--out", slurm.folder / "same.zarr")
    assert sha(out) == sha(slurm.folder / "same.zarr")


@pytest.mark.runs
@long
def test_a_job_that_makes_way_for_another_is_queued_again(slurm):
    log, out = slurm.folder / "o.jsonl", slurm.folder / "o.zarr"
    given = ("sample.slurm", "job.yaml", "--steps", 100, "--out", out, "--json-log", log, "--checkpoint-every", 0)
    number = slurm.submit(*given, options=("--nodes=2", *SMALL))
    slurm.sampling(number, log)
    nodes = f"--nodelist={slurm.job(number)['NodeList']}"
    first = slurm.submit("set.slurm", "job.yaml", options=("-N2", "-n2", nodes, "-phigh", "--exclusive", "--array=3"))
    slurm.reached(number, "PENDING", "RUNNING", restarts=1)
    assert slurm.ended(f"{first}_3")["JobState"] == "COMPLETED"
    assert slurm.reached(number, "COMPLETED", restarts=1)["ExitCode"] == "0:0"
    assert "from level" in slurm.log(number)


@pytest.mark.runs
@long
def test_an_array_makes_one_output_a_value_and_goes_on_when_it_is_given_again(slurm):
    def once(**given):
        number = slurm.submit("set.slurm", "job.yaml", options=(*SMALL, "--array=0-2"), **given)
        jobs = [slurm.ended(f"{number}_{i}") for i in range(3)]
        assert [job["ExitCode"] for job in jobs] == ["0:0"] * 3
        return [(slurm.folder / f"slidefield-set-{number}_{i}.out").read_text() for i in range(3)]

    once(OVER="guidance", VALUES="1 1.5 4", OUT="over")
    again = once(OVER="guidance", VALUES="1 1.5 4", OUT="over")
    assert all("finished already" in said for said in again)
    assert len({sha(slurm.folder / "over" / f"guidance-{value}.zarr") for value in ("1", "1.5", "4")}) == 3
    number = slurm.submit("set.slurm", "job.yaml", options=(*SMALL, "--array=1,7"), VALUES="5 6")
    assert slurm.ended(f"{number}_1")["JobState"] == "COMPLETED"
    assert (slurm.folder / "set" / "seed-6.zarr").exists()
    assert slurm.ended(f"{number}_7")["ExitCode"] == "1:0"
    assert "VALUES has 2 values" in (slurm.folder / f"slidefield-set-{number}_7.out").read_text()


@pytest.mark.runs
@long
def test_a_training_that_is_told_to_stop_is_queued_again_and_goes_on(slurm):
    for part in ("images", "inst_masks"):
        (slurm.folder / "nuclei" / part).mkdir(parents=True)
    for i in range(8):
        picture = Image.effect_noise((32, 32), 90).convert("RGB")
        picture.save(slurm.folder / "nuclei" / "images" / f"{i}.png")
        instances = (np.asarray(picture)[..., 0] > 128).astype(np.uint8)
        Image.fromarray(instances).save(slurm.folder / "nuclei" / "inst_masks" / f"{i}.png")
    small = ("--window", 16, "--model-channels", 32, "--channel-mult", "1,2", "--blocks", 1, "--attention", 8)
    small = (*small, "--batch-size", 2, "--every", 1000, "--threads", 1, "--steps", 600, "--device", "cpu")
    given = ("nuclei", "--data", "nuclei", "--out", "model", *small)
    number = slurm.submit("train.slurm", *given, options=("--nodes=2", *SMALL))
    slurm.until(number, (slurm.folder / "model" / "unet" / "training.jsonl").exists)
    slurm.call("scancel", "--signal=USR1", "--batch", number)
    job = slurm.reached(number, "COMPLETED", restarts=1)
    assert job["ExitCode"] == "0:0"
    assert (slurm.folder / f"slidefield-train-{number}.out").exists()
    done = [int(step) for step in re.findall(r"^step (\d+)/600", slurm.log(number), re.MULTILINE)]
    assert done == sorted(done)
    assert done[-1] == 600
    assert read_card(str(slurm.folder / "model")).semantic_channels == 6


@pytest.mark.runs
@long
def test_scaling_measures_one_to_eight_nodes_and_draws_them(slurm, tiny_model):
    tiny = ("--real-windows", 16, "--real-windows-per-rank", 2, "--real-batch", 1, "--shard", 128, "--repeats", 1)
    number = slurm.submit("scaling.slurm", "--device", "cpu", "--model", tiny_model, *tiny, options=SMALL)
    assert slurm.ended(number)["ExitCode"] == "0:0", slurm.log(number)
    assert Image.open(slurm.folder / f"scaling-{number}.png").size[0] > 500
    text = (slurm.folder / f"scaling-{number}.json").read_text()
    assert re.findall(r'"ranks": (\d+)', text) == ["1", "2", "4", "8"] * 2


@pytest.mark.runs
@long
def test_the_pipeline_goes_from_labels_to_files_and_its_rest_is_cancelled_where_a_step_fails(slurm, tiny_model):
    def run(**extra):
        said = slurm.call("bash", "jobs/pipeline.slurm", "256x384", "--steps", 2, **(given | extra))
        return re.findall(r"\d+", said)

    given = {"LABELS": "--ntasks=2 --time=10", "IMAGE": " ".join(("--nodes=2", *SMALL)), "OUT": "slide"}
    numbers = run(MODEL=str(tiny_model))
    slurm.until(numbers[0], lambda: any(f"[{numbers[0]}.0]" in step for step in steps(f"{numbers[0]}.")))
    slurm.call("scancel", "--signal=USR1", "--batch", numbers[0])  # before Python can take it
    slurm.reached(numbers[0], "COMPLETED", restarts=1)
    assert [slurm.ended(number)["ExitCode"] for number in numbers] == ["0:0"] * 4, "".join(map(slurm.log, numbers))
    assert Image.open(slurm.folder / "slide" / "image" / "samples" / "000000.png").size == (384, 256)
    assert Image.open(slurm.folder / "slide" / "labels.png").size == (48, 32)
    numbers = run(LABEL_MODEL="nowhere", OUT="other")
    assert slurm.ended(numbers[0])["ExitCode"] == "1:0"
    assert [slurm.ended(number)["JobState"] for number in numbers[1:]] == ["CANCELLED"] * 3
