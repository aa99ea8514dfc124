#!/usr/bin/env python3
"""Hand the tools files and options that are broken, hostile or too large, and see that each run ends in one line.

    python .dev_scripts/hostile_inputs.py                  # all cases of .dev_scripts/hostile/, about 10 minutes
    python .dev_scripts/hostile_inputs.py --only coco
    python .dev_scripts/hostile_inputs.py --sample 12      # spread over all

Asked of each run: the exit status; no traceback on the terminal; a last line that begins with ``error:`` and names what it should; the log
it speaks of; no checkpoint, no half-written or temporary file left, no output of before changed, no code run from a file; memory and time
within limits. Each has a process of its own, forked from this one, which has imported all that is slow to import.
"""

import argparse
import contextlib
import gc
import hashlib
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / room) for room in ('tools', 'demo', '.dev_scripts')]
import mmdet.apis  # noqa: E402, F401  what the children would each have to import
import mmpretrain.apis  # noqa: E402, F401
import mmseg.apis  # noqa: E402, F401
import onnxruntime  # noqa: E402, F401
from common import UsageError, run  # noqa: E402
from hostile import checkpoints, configs, datasets, outputs  # noqa: E402
from hostile.kit import Case, Kit  # noqa: E402

SECONDS = 120  # of the processor, of one run
WAIT = 900  # seconds of the clock, where others are at work as well
MEMORY = 4 << 30  # bytes of one run, the imports included
TRACEBACK = 'Traceback (most recent call last)'
LAST_LINE = re.compile(r'(\S+: )?error: \S')


@dataclass
class Outcome:
    """How a run ended, and what is wrong with that."""

    case: Case
    status: int
    last: str
    seconds: float
    memory: int
    output: str
    faults: list[str]


def in_child(work: Callable[[], int | None], folder: Path, file_size: int | None = None) -> tuple[int, float, int]:
    """Exit status, seconds of the processor and peak memory in bytes of ``work`` in a forked process, its output in ``folder``."""
    began = time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setsid()
            for descriptor, name in ((1, 'stdout'), (2, 'stderr')):
                os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
            status = work() or 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        gc.collect()  # objects that complain when they go do so now
        try:
            sys.stdout.flush()
        finally:
            sys.stderr.flush()
            os._exit(status)
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() - began > WAIT:
            os.killpg(child, signal.SIGKILL)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it may have started
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def contents(folder: Path) -> dict[str, str]:
    """Digests of the files whose names begin with ``out``, and of the folders (nothing)."""
    found = [path for top in folder.glob('out*') for path in (top, *(top.rglob('*') if top.is_dir() else ()))]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else '' for path in found}


def try_case(case: Case, kit: Kit, folder: Path) -> Outcome:
    (folder / 'tmp').mkdir(parents=True)
    command = [str(word) for word in case.make(kit, folder)]
    before = contents(folder)

    def work() -> None:
        os.chdir(folder)
        os.environ['TMPDIR'] = tempfile.tempdir = str(folder / 'tmp')
        os.environ.pop('RANK', None)
        sys.argv = command
        runpy.run_path(str(ROOT / command[0]), run_name='__main__')

    status, seconds, memory = in_child(work, folder, case.file_size)
    output, error = ((folder / name).read_text(errors='replace') for name in ('stdout', 'stderr'))
    lines = [line for line in error.splitlines() if line.strip()]
    last = lines[-1] if lines else ''
    logs = re.findall(r'traceback in (\S+?\.log)\)', last)
    left = [path for path in folder.rglob('*') if path.name.endswith('.partial') or path.parent.name == 'tmp' and str(path) not in logs]
    if case.status:
        left += [path for path in folder.glob('run/**/*.pth') if path.stat().st_mtime > 1]  # those of before are of 1970
    missing = [word for word in case.words if word not in last]
    found = {
        f'status {status} for {case.status}': status != case.status,
        'traceback on the terminal': TRACEBACK in output + error,
        'no last line': case.status != 0 and not LAST_LINE.match(last),
        f'{missing} not in the last line': missing,
        'no traceback in the log': any(TRACEBACK not in Path(log).read_text() for log in logs),
        f'left {[str(path.relative_to(folder)) for path in left]}': left,
        'outputs changed': case.status != 0 and contents(folder) != before,
        'code was run': (folder / 'ran').exists(),
        f'{seconds:.0f} s': seconds > SECONDS,
        f'{memory >> 20} MiB': memory > MEMORY,
    }
    return Outcome(case, status, last, seconds, memory, output + error, [fault for fault, wrong in found.items() if wrong])


def chosen(only: list[str], sample: int | None) -> list[Case]:
    cases = [case for room in (configs, checkpoints, datasets, outputs) for case in room.cases()]
    cases = [case for case in cases if not only or any(word in case.name for word in only)]
    if sample is not None:
        cases = [cases[i * len(cases) // sample] for i in range(min(sample, len(cases)))]
    if not cases:
        raise UsageError(f'--only {" ".join(only)}: no case has this in its name.')
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', nargs='+', default=[], metavar='WORD', help='cases with one of these words in their names')
    parser.add_argument('--sample', type=int, help='so many cases, spread over all')
    parser.add_argument('--keep', type=Path, metavar='DIR', help='leave the files of all runs in this folder')
    parser.add_argument('--verbose', action='store_true', help='show the last line of each run')
    args = parser.parse_args()
    cases = chosen(args.only, args.sample)
    top = (args.keep or Path(tempfile.mkdtemp(prefix='hostile_inputs-'))).resolve()
    began, outcomes = time.monotonic(), []
    gc.freeze()  # the children need not go through all that was imported
    try:
        kit = Kit(top / 'kit', lambda work: in_child(work, top / 'kit'))
        for case in cases:
            outcome = try_case(case, kit, top / re.sub(r'\W+', '-', case.name))
            outcomes.append(outcome)
            if args.verbose or outcome.faults:
                print(f'{case.name}: {"; ".join(outcome.faults) or "as it should"} ({outcome.seconds:.1f} s)', flush=True)
                print(f'    [{outcome.status}] {outcome.last[:300]}', flush=True)
    finally:
        if args.keep is None:
            shutil.rmtree(top, ignore_errors=True)
    wrong = [outcome for outcome in outcomes if outcome.faults]
    shown = sum(TRACEBACK in outcome.output for outcome in outcomes)
    print(
        f'{len(outcomes)} cases in {time.monotonic() - began:.0f} s, of {max(o.seconds for o in outcomes):.0f} s and '
        f'{max(o.memory for o in outcomes) >> 20} MiB at most: {shown} with a traceback on the terminal, '
        f'{sum(o.status == 1 for o in outcomes)} with status 1, {len(wrong)} not as they should'
    )
    sys.exit(bool(wrong))


if __name__ == '__main__':
    run(main)
