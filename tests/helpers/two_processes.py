"""One of `drivers`, or another program, on two gloo processes, without torchrun between them."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
from contextlib import suppress

from epistill.studies.runner import jobs_of
from tests.helpers.python import Program


def start_two(*arguments, **options):
    """The two processes of a world: they find each other by what torchrun tells its own."""
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    ranks = [{**told, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    return [Program(*arguments, env={**os.environ, **rank}, **options) for rank in ranks]


def _free_port():
    """Below those that the system gives out by itself: nobody gets it until it is used."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def run_two(*arguments, **options):
    """What both processes of a world ended with and said."""
    both = start_two(*arguments, **options)
    try:
        return [
            subprocess.CompletedProcess(program.args, program.wait(), *program.said())
            for program in both
        ]
    finally:
        for program in both:
            program.kill()


RUN = """
import sys
from epistill.interrupts import ended_before_finalization
from epistill.studies.executors import run_job
from epistill.world import joined
with ended_before_finalization(), joined():
    run_job(*sys.argv[1:])
"""


def run_by_two(spec, out):
    """Carry out the runs of a study, each by two processes that nobody disturbs."""
    for job in jobs_of(spec, out):
        for done in run_two("-c", RUN, json.dumps(job.payload), job.folder):
            assert done.returncode == 0, done.stderr


def on_two(driver, *arguments):
    """Run one of `drivers` by two processes."""
    for done in run_two("-m", f"tests.helpers.drivers.{driver}", *arguments):
        assert done.returncode == 0, done.stderr[-3000:]
