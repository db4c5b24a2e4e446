"""The table has a row for every host, also for one of which nothing is known."""

from __future__ import annotations

from dataclasses import replace

from roots.doctor.text import text_lines
from tests.doctor.surveys import survey_of, with_answer, with_pairs, with_rates


def test_table_of_hosts_with_gpus() -> None:
    survey = with_pairs(survey_of("abc", 8), "c", rate=None)
    survey = with_answer(survey, "b", clock_ahead=-1.25)
    survey = replace(with_rates(survey, "b", disk=None), rounds=1, seconds=12.34)
    gpus = "8 x NVIDIA H100 80GB HBM3"
    assert text_lines(survey) == [
        f"host  devices{' ' * 20}disk    matmul       all-reduce  network  clock",
        f"a     {gpus}  2 GB/s  700 TFLOP/s  400 GB/s    40 GB/s  +0.00 s",
        f"b     {gpus}  -       700 TFLOP/s  400 GB/s    40 GB/s  -1.25 s",
        f"c     {gpus}  2 GB/s  700 TFLOP/s  400 GB/s    -        +0.00 s",
        "all-reduce over all hosts: 30 GB/s",
        "pairs: 1 of 3 rounds, for want of time",
        "measured 3 hosts in 12.3 s",
    ]


def test_table_of_one_host_and_of_a_silent_one() -> None:
    assert text_lines(survey_of(["this machine"]))[1:] == [
        "this machine  1 x EPYC  2 GB/s  100 GFLOP/s  -           -        +0.00 s",
        "measured 1 host in 0.0 s",
    ]
    silent = replace(with_answer(survey_of("ab"), "b", facts=None, silence="x"), reduce=None)
    assert text_lines(silent)[2] == "b     -         -       -            -           -        -"
