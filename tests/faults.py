"""Inject faults into the file operations below a folder: system errors or kills."""

import builtins
import importlib
import io
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pytest
from models import TINY, adapted, fast_model, random_examples

import minilora
from minilora.cli import run
from minilora.kernels import threads

KILLED = 9


class Faults:
    """Count the operations below `root`, and call `act` instead of operation `at` (from 1)."""

    def __init__(self, root, at=None, act=None):
        self.root, self.at, self.act, self.seen = str(root), at, act, []

    def __call__(self, name, path):
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        path = os.path.abspath(os.fspath(path))
        if path == self.root or path.startswith(self.root + os.sep):
            self.seen.append((name, Path(path).name))
            if len(self.seen) == self.at:
                self.act(path)

    def __enter__(self):
        self.patch = pytest.MonkeyPatch()
        for name in ("replace", "rename", "mkdir", "unlink", "rmdir", "open", "fsync"):
            self.patch.setattr(os, name, self.before(name, getattr(os, name)))
        for module in (builtins, io):
            self.patch.setattr(module, "open", self.opening(io.open))
        return self

    def __exit__(self, *_):
        self.patch.undo()

    def before(self, name, real):
        def call(path, *args, **kwargs):
            self(name, path)
            return real(path, *args, **kwargs)

        return call

    def opening(self, real):
        def call(path, mode="r", *args, **kwargs):
            if mode in ("r", "rb") or isinstance(path, int):
                return real(path, mode, *args, **kwargs)
            self("open", path)
            return File(real(path, mode, *args, **kwargs), path, self)

        return call


class File:
    """A file that counts its writing operations."""

    def __init__(self, file, path, faults):
        self.file, self.path, self.faults = file, path, faults

    def __getattr__(self, name):
        real = getattr(self.file, name)
        if name not in ("write", "flush", "truncate"):
            return real

        def call(*args):
            self.faults(name, self.path)
            return real(*args)

        return call

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        try:
            self.faults("close", self.path)  # what is buffered is written now
        finally:
            self.file.close()


def figure(path, *_):
    """Write a file in place of a figure, which takes half the time of a short run."""
    path.write_text("a figure")


def _prepare():
    """Let this process start no threads and print little, and load once what each fork needs."""
    importlib.import_module("matplotlib.figure")
    threads.THREADS = 1
    run.curve = figure
    run.SAMPLE = 4
    sys.stdout = sys.stderr = io.StringIO()
    examples = random_examples(TINY, 1)
    one = minilora.TrainConfig(iters=1, batch_size=1)
    minilora.train(*adapted(fast_model()), examples, one, quiet=True)


@cache
def _process():
    """Start a process without threads: a fork of another can wait forever for what they hold."""
    return ProcessPoolExecutor(1, get_context("spawn"), _prepare)


def apart(function, *args):
    """Return function(*args), called in the process whose forks are killed."""
    return _process().submit(function, *args).result()


def kill(root, at, act, *args):
    """Call act(*args) in a process that is killed at this operation; return its exit status."""
    return apart(_fork, root, at, act, *args)


def _fork(root, at, act, *args):
    child = os.fork()
    if child == 0:
        try:
            with Faults(root, at, lambda path: os._exit(KILLED)):
                status = act(*args)
            os._exit(status or 0)
        finally:
            os._exit(1)  # after an error
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
