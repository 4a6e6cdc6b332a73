"""Run pages, and the commands that they call, in forks of one process that has imported what takes seconds to import.

Started by pages.py as ``python run_pages.py SOCKET``. A connection to the socket brings JSON, ``arguments``, ``folder``
and ``environment``, and three file descriptors: the fork's standard input, output and error. It gets the id of the
fork, and its exit status when it ends. Where ``arguments`` are ``["page"]``, the fork reads the blocks of a page as
JSON and prints a line of JSON for each; where they are ``["script", PATH, ...]``, it runs a script with the others;
else they are those of ``st-dimreduce``.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import enum
import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import traceback

SAID = 1500  # characters of an error that are shown


def run_bash(code):
    """Return what a script printed, what it said on standard error, and its exit status."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    return done.stdout, done.stderr, done.returncode


def run_console(code):
    """Run each command after ``$``; returns pairs of what the page says it prints and what it printed, and failures."""
    pairs, failed = [], ""
    for part in re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]:
        command, rest = re.match(r"((?:[^\n]*\\\n)*[^\n]*)\n?(.*)", part, re.DOTALL).groups()
        printed, said, status = run_bash(command)
        pairs.append((rest, printed))
        if status:
            failed += f"{command}: exit status {status}: {said[-SAID:]}"
    return pairs, failed


def run_python(code, namespace, name):
    """Run statements in a namespace; returns pairs of a value that the page says and the value."""
    lines, values = code.splitlines(), []
    for node in ast.parse(code).body:
        comment = re.match(r"\s*#\s*(.+)$", lines[node.end_lineno - 1][node.end_col_offset :])
        if isinstance(node, ast.Expr):
            value = eval(compile(ast.Expression(node.value), name, "eval"), namespace)  # noqa: S307
            with contextlib.suppress(ValueError, SyntaxError):
                promised = ast.literal_eval(comment[1]) if comment else None
                if promised is not None:
                    values.append((repr(promised), repr(value.value if isinstance(value, enum.Enum) else value)))
        else:
            exec(compile(ast.Module([node], []), name, "exec"), namespace)  # noqa: S102
    return values


def run_block(number, block, namespace):
    result = {"failed": "", "printed": "", "values": []}
    if block["kind"] == "bash":
        printed, said, status = run_bash(block["code"])
        result["printed"] = printed + said if block["status"] else printed
        if status != block["status"]:
            result["failed"] = f"exit status {status}: {(printed + said)[-SAID:]}"
    elif block["kind"] == "console":
        result["values"], result["failed"] = run_console(block["code"])
    else:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                result["values"] = run_python(block["code"], namespace, f"block {number}")
        except Exception as error:  # whatever a page makes go wrong is reported
            trace = traceback.extract_tb(error.__traceback__)
            at = [each.lineno for each in trace if each.filename == f"block {number}"]
            said = "".join(traceback.format_exception_only(error)).strip()
            if block["status"]:
                print(said, file=printed)
            else:
                result["failed"] = f"line {at[-1] if at else '?'}: {said[-SAID:]}"
        result["printed"] = printed.getvalue()
    return result


def run_page():
    # What a library prints by itself, around sys.stdout, must not stand among the lines of JSON.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        namespace = {"__name__": "__main__"}
        for number, block in enumerate(json.load(sys.stdin), 1):
            print(json.dumps(run_block(number, block, namespace)), file=out, flush=True)


def run_command(arguments):
    from st_dimreduce.cli import app

    sys.argv = ["st-dimreduce", *arguments]
    app()


def fork(connection):
    """Run what a connection asks for in a child of this process."""
    text, files, *_ = socket.recv_fds(connection, 1 << 20, 3)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 20)
    asked = json.loads(text)
    child = os.fork()
    if child:
        for file in files:
            os.close(file)
        connection.sendall(f"{child}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
        return
    connection.close()
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    arguments = asked["arguments"]
    if arguments == ["page"]:
        run_page()
    elif arguments[0] == "script":
        sys.argv = arguments[1:]
        runpy.run_path(arguments[1], run_name="__main__")
    else:
        run_command(arguments)


def ended(function, *arguments):
    """Call a function and end this process as Python would, but for two seconds of taking down what was imported."""
    status = 0
    try:
        function(*arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main():
    del sys.path[0]  # the folder of this file, whose modules are none of a page's
    import pyarrow.parquet
    import sentence_transformers
    import torch
    import transformers

    import st_dimreduce

    known = [getattr(st_dimreduce, name) for name in st_dimreduce.__all__]
    assert all([*known, pyarrow.parquet, sentence_transformers, torch, transformers])
    server = socket.socket(socket.AF_UNIX)
    server.bind(sys.argv[1])
    server.listen()
    os.write(1, b"ready\n")
    while True:
        connection, _ = server.accept()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not os.fork():  # a process that waits for the child, while this one takes the next
            server.close()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            ended(fork, connection)
        connection.close()


if __name__ == "__main__":
    main()
