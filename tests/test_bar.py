"""The progress bar on a terminal: one line that is drawn again, with lines above it that stay."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest
from launching import ROOT, environment

JOB = ("--size", "300x420", "--shard", 128, "--chunk", 64, "--labels", "example", "--preview", "none")


def on_terminal(*arguments, stdout=None, columns=100):
    """What a terminal of so many columns is sent by a Python whose standard error it is."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    words = [sys.executable, *map(str, arguments)]
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdin=theirs, stdout=stdout or theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while True:
        try:
            more = os.read(ours, 4096)
        except OSError:  # nobody writes any more
            break
        if not more:
            break
        said += more
    os.close(ours)
    assert process.wait() == 0, said
    return said.decode()


@pytest.mark.runs
def test_a_terminal_has_one_bar_and_the_lines_that_stay(tiny_model, tmp_path):
    said = on_terminal("-m", "engine.sample", "--model", tiny_model, *JOB, "--steps", 20, "--out", tmp_path / "o.zarr")
    drawn = re.split("[\r\n]+", said)
    bars = [part for part in drawn if " %|" in part]
    assert len(bars) >= 2, "it is drawn again and again"
    assert all(len(bar) <= 100 for bar in bars), "it never takes two lines"
    sampling = next(bar for bar in bars if re.search(r"level \d+/20", bar) and "GiB" in bar)
    for part in (r"\d+ %\|", r"\| \d:\d\d gone, \d+:\d\d to go", r"[\d.]+ evaluations/s", r"GiB a rank"):
        assert re.search(part, sampling), sampling
    stay = [line.split("\r")[-1] for line in said.replace("\r\n", "\n").split("\n")]
    assert any("about " in line for line in stay)
    assert any(line.startswith("finished ") for line in stay)
    assert not any("to go" in line for line in stay), "no scroll of lines"


def test_lines_go_to_the_file_and_the_bar_to_the_terminal(tmp_path):
    code = """from engine.pipeline.watch import State, view_of_command
view = view_of_command()
view.show(State("level 3/25", 0.12, 40, 260, {"evaluations/s": 31.4}, 2**30))
view.say("a line with `live`")
view.end(State("level 4/25", 0.2, 41, 250))"""
    with (tmp_path / "log").open("wb") as log:
        said = on_terminal("-c", code, stdout=log)
    assert "level 3/25  12 %|" in said
    assert "| 0:40 gone, 4:20 to go  31.4 evaluations/s, 1.00 GiB a rank" in said
    assert (tmp_path / "log").read_text() == "a line with --live\n"
