"""Running lmms-eval: its environment, its command, and the files that it leaves."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from eval.general.lmms_results import FAILED, LMMS_EVAL, GeneralRun, find_results, read_output
from eval.general.scores import score_output
from pipeline.jobs import Job, run_jobs
from robustmerge.stage.address import REPOSITORY
from robustmerge.stage.files import expand, write_atomically
from robustmerge.stage.records import write_score
from robustmerge.stage.settings import UserError

CHILD = Path(__file__).resolve().parent / "child.py"
LOCK = Path(__file__).resolve().parent / "lmms_eval.lock"
ENVIRONMENT = REPOSITORY / ".venv-lmms-eval"
SIZE = "about 3.5 GB to download and 7 GB on disk, with CUDA's libraries"
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
NO_TOKEN = "the Hub asks for a token, though these data are public: log in with 'hf auth login', or set HF_TOKEN"
KEPT = {"results": "results.json", "samples": "samples.jsonl", "log": "log.txt"}  # what a finished task leaves


def find_environment(named: str | None, say: Callable[[str], None] = print) -> Path:
    """Find the Python that has lmms-eval: of a named environment, or of our own, which is updated if need be.

    Raises UserError if there is none, or it holds another version.
    """
    folder = ENVIRONMENT if named is None else expand(named).absolute()
    if named is None:
        _install(folder, say)
    python = folder / "bin" / "python"
    if not python.exists():
        raise UserError(f"{folder} is no virtual environment: it has no bin/python (environment)")
    ask = "import importlib.metadata as m; print(m.version('lmms_eval'))"
    done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True)
    version = done.stdout.strip()
    if done.returncode:
        raise UserError(f"{folder} has no lmms-eval; install it with: {python} -m pip install -r {LOCK}")
    if version != LMMS_EVAL:
        raise UserError(
            f"{folder} has lmms-eval {version}, and tasks, prompts and scorers are those of {LMMS_EVAL} here; install "
            f"it with: {python} -m pip install -r {LOCK}"
        )
    return python


def _install(folder: Path, say: Callable[[str], None]) -> None:
    """Install the environment of the lock file, once; an interrupted installation continues."""
    stamp = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    done = folder / ".installed"
    if done.exists() and done.read_text().strip() == stamp:
        return
    say(f"installing lmms-eval {LMMS_EVAL} into {folder.name} (once; some minutes; {SIZE})")
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([sys.executable, "-m", "venv", str(folder)], [*pip, "-r", str(LOCK)]):
        if subprocess.run(command).returncode:
            raise UserError(f"installing lmms-eval failed (see above); the same command goes on. It was: {command}")
    write_atomically(done, stamp + "\n")


def lmms_arguments(
    run: GeneralRun, checkpoint: Path, out: Path, include: Path | None, device: str, processes: int
) -> list[str]:
    """The arguments of `python -m lmms_eval`. Raises UserError for a path that its arguments cannot hold."""
    if set(",=") & set(str(checkpoint)):
        raise UserError(f"lmms-eval takes no model in a folder with , or = in its path: {checkpoint} (paths.runs)")
    model = [f"pretrained={checkpoint}", f"dtype={DTYPES[run.precision]}", f"device={device}"]
    if processes == 1:  # with several, each takes the GPU of its rank; without it, transformers refuses the empty name
        model.append(f"device_map={device}")
    return [
        *("--model", "llava_hf", "--model_args", ",".join(model)),
        *("--tasks", run.task, "--batch_size", "1"),  # llava_hf takes one at a time
        *("--output_path", str(out), "--log_samples"),
        *(("--include_path", str(include)) if include else ()),
        *(("--limit", str(run.limit)) if run.limit is not None else ()),
    ]


def launch_lmms(python: Path, device: str, processes: int) -> Callable[[Path, Path, int], tuple[list[str], dict]]:
    """Launch command of a job: plain Python, or accelerate with one process per GPU."""
    several = ["-m", "accelerate.commands.launch", "--num_processes", str(processes)] if processes > 1 else []

    def launch(script: Path, job: Path, slot: int) -> tuple[list[str], dict[str, str]]:
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if device == "cpu" else {}
        return [str(python), *several, str(CHILD), str(job)], {"WANDB_MODE": "disabled", **threads}

    return launch


def run_task(
    folder: Path,
    run: GeneralRun,
    checkpoint: Path,
    python: Path,
    include: Path | None = None,
    device: str = "cpu",
    processes: int = 1,
) -> dict[str, float | int | None]:
    """Run one task, leaving its results, answers, log and score.json in `folder`; returns the manifest's record.

    Raises UserError with the end of the log where lmms-eval left no results, whatever its exit status was.
    """
    work = folder / "unfinished"
    shutil.rmtree(work, ignore_errors=True)  # lmms-eval writes at its end only: there is nothing to go on from
    out = work / "out"
    item = {"name": run.task, "arguments": lmms_arguments(run, checkpoint, out, include, device, processes)}
    job = Job(run.task, [item], launch=launch_lmms(python, device, processes))
    run_jobs(f"lmms-eval {run.task}", [job], 1, work)
    log = work / f"{run.task}.log"
    text = log.read_text(errors="replace")
    try:
        results, samples = find_results(out, run.task)
    except UserError as error:
        raise UserError(f"{run.task}: {error}\n{_end_of(text)}\n  (log: {log})") from error
    score = score_output(read_output(results, samples, run), run, n_failed=text.count(FAILED))
    for name, path in (("results", results), ("samples", samples), ("log", log)):
        shutil.move(path, folder / KEPT[name])
    write_score(folder / "score.json", score)
    shutil.rmtree(work)
    return {"value": score.value, "questions": score.n_expected}


def _end_of(log: str) -> str:
    """The error in lmms-eval's log, else its last lines, without terminal colours."""
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in re.split(r"[\r\n]+", log)]
    errors = [line.partition("Error during evaluation: ")[2] for line in lines if "Error during evaluation: " in line]
    if any("LocalTokenNotFoundError" in line for line in errors):
        errors.append(NO_TOKEN)
    return "\n".join(dict.fromkeys(errors) or [line for line in lines if line][-5:])
