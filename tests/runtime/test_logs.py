"""The form of the runtime's logs."""

import logging
import re
import subprocess
import sys

import pytest

from flashgen_runtime.logs import KeyValueFormatter, fields


def line_of(message, *args, extra=None, exc_info=None, level=logging.INFO):
    record = logging.getLogger("test").makeRecord("test", level, __file__, 1, message, args, exc_info, extra=extra)
    return KeyValueFormatter("api").format(record)


def test_a_line_has_time_level_process_logger_and_message():
    """The same pairs in the same order in every line."""
    line = line_of("hello %s", "world")

    pattern = r'time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info process=api logger=test message="hello world"'
    assert re.fullmatch(pattern, line)


def test_fields_follow_the_message():
    """Pairs of their own can be searched for."""
    line = line_of("loaded", extra=fields(model="mistral 7b", seconds=1.5))

    assert line.endswith('message=loaded model="mistral 7b" seconds=1.5')


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("plain-1.0/x", "plain-1.0/x"),
        ("", '""'),
        ('say "x"', r'"say \"x\""'),
        ("two\nlines", r'"two\nlines"'),
        ("level=error", '"level=error"'),
        ("é", '"é"'),
        ("\u2028\x1b[31m", r'"\u2028\u001b[31m"'),
    ],
)
def test_values_stay_in_their_line(value, quoted):
    """Nothing that is logged can end its line, begin another pair, or reach the terminal as a control character."""
    assert line_of(value).partition("message=")[2] == quoted


def test_an_exception_is_one_line():
    """A trace is a pair like any other, its newlines escaped."""
    try:
        raise ZeroDivisionError("oh no")
    except ZeroDivisionError:
        line = line_of("failed", exc_info=sys.exc_info(), level=logging.ERROR)

    assert "\n" not in line
    assert r"ZeroDivisionError: oh no" in line


def test_logs_go_to_stderr():
    """Standard output stays free for data."""
    code = "import logging; from flashgen_runtime.logs import setup_logs; setup_logs('p'); logging.info('hi')"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == ""
    assert done.stderr.endswith("process=p logger=root message=hi\n")
