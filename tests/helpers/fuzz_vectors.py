"""Fuzzing of everything that reads stored vectors: a good file of each format, damaged at random.

Run as ``python -m tests.helpers.fuzz_vectors FOLDER FORMAT FIRST LAST``: it reads the mutants of these numbers, which
depend on nothing else, and prints the number of each before it reads it. So whoever started it knows which one ended
the process. Every mutant may be read, or refused by a ValueError or OSError of one line.
"""

from __future__ import annotations

import faulthandler
import random
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from st_dimreduce import Head
from st_dimreduce.codes.origin import Origin
from st_dimreduce.enums import OnBadRow, Precision
from st_dimreduce.vectors.reduce import encoded_batches
from st_dimreduce.vectors.sources import open_source
from st_dimreduce.vectors.tables import code_schema, code_table

ROWS, WIDTH = 40, 8
FORMATS = ("npy", "ipc file", "ipc stream", "compressed ipc", "parquet")
HEAD = Head(np.eye(4, WIDTH))
_AT_A_TIME = 500  # mutants of a process
_SUFFIXES = {"npy": ".npy", "parquet": ".parquet"}
_NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**31, 2**62, -(2**63), 2**63 - 1, 7, 64, 1 << 20)


def write_good(path, kind):
    """Write a good file: vectors, and columns of every layout that Arrow has buffers for."""
    vectors = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, vectors)
        return
    texts = [f"text {row}" if row % 7 else None for row in range(ROWS)]
    table = pa.table(
        {
            "text": texts,
            "kind": pa.array([f"kind {row % 3}" for row in range(ROWS)]).dictionary_encode(),
            "v": pa.array(vectors.tolist(), pa.list_(pa.float32())),
            "long": pa.array(texts, pa.large_string()),
            "view": pa.array(texts, pa.string_view()) if kind != "parquet" else texts,
            "tags": [[f"tag {row}"] * (row % 4) for row in range(ROWS)],
            "both": [{"x": row, "y": row % 2 == 0} for row in range(ROWS)],
            "id": range(ROWS),
        }
    )
    if kind != "parquet":
        numbers, places = pa.array(range(ROWS)), pa.array(np.arange(ROWS) % 2, pa.int8())
        table = table.append_column("one of", pa.UnionArray.from_sparse(places, [numbers, pa.array(texts)]))
        table = table.append_column("runs", pc.run_end_encode(pa.array([f"run {row // 9}" for row in range(ROWS)])))
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=25)
        return
    options = pa.ipc.IpcWriteOptions(compression="lz4" if kind == "compressed ipc" else None)
    new = pa.ipc.new_stream if kind == "ipc stream" else pa.ipc.new_file
    with new(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=25)


def mutant(good, kind, number):
    """Return a good file's bytes, of which a few were changed, most of them where its structure is described."""
    rng = random.Random(number)  # noqa: S311, no secret
    content = bytearray(good)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 12))):
        if kind == "npy":
            at = rng.randrange(128)
        else:
            at = rng.randrange(len(content)) if rng.random() < 0.5 else rng.choice(_described(good, rng))
        way = rng.randrange(5)
        if way == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif way == 1:
            content[at] = rng.choice(b"\0\1\x7f\x80\xff\n'(){},:x" + bytes([rng.randrange(256)]))
        elif way == 2:
            size = rng.choice((1, 2, 4, 8))
            place = at - at % size
            value = rng.choice((*_NUMBERS, rng.randrange(300), len(good) + rng.randrange(-64, 64)))
            content[place : place + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")
        elif way == 3 and kind == "npy":
            del content[at : at + rng.randrange(1, 12)]
        elif way == 3:
            other = rng.randrange(len(content))
            content[at : at + 8] = content[other : other + 8]
        elif rng.random() < 0.2:
            del content[rng.randrange(len(content)) :]
            break
    return bytes(content)


def _described(good, rng):
    """Return places of the metadata: near the names of columns, at both ends."""
    names = [b"text", b"long", b"tags", b"both", b"ARROW1", b"\xff\xff\xff\xff", b"PAR1", b"LIST"]
    at = [place for name in names for place in _places(good, name)] or [0]
    near = rng.choice(at) + rng.randrange(-200, 700)
    return [min(max(near, 0), len(good) - 1), len(good) - 1 - rng.randrange(min(len(good), 400))]


def _places(good, name):
    place = good.find(name)
    while place >= 0:
        yield place
        place = good.find(name, place + 1)


def read_all(path, kind):
    """Read a file as ``transform_file`` does, up to what it would write."""
    source = open_source(path, None if kind == "npy" else "v")
    for codes, others, _ in encoded_batches(source, HEAD, Precision.INT8, OnBadRow.RAISE):
        if others is not None:
            schema = code_schema(source.schema, "v", Origin(Precision.INT8, HEAD.out_features, HEAD.fingerprint))
            code_table(schema, "v", codes, others)


def read_mutants(folder, kind, first, last):
    """Read mutants; print each one's number, and what it raised if that was no refusal of one line."""
    good, path = Path(folder, "good").read_bytes(), Path(folder, f"x{_SUFFIXES.get(kind, '.arrow')}")
    for number in range(first, last):
        print(number, flush=True)  # noqa: T201, this is how the parent follows
        path.write_bytes(mutant(good, kind, number))
        try:
            read_all(path, kind)
        except (ValueError, OSError) as error:
            said, last_frame = str(error), traceback.extract_tb(error.__traceback__)[-1]
            if len(said.splitlines()) != 1 or "st_dimreduce" not in last_frame.filename:
                print(f"! {type(error).__name__} of {last_frame.filename}: {said!r:.300}", flush=True)  # noqa: T201
        except Exception as error:
            print(f"! {type(error).__name__}: {str(error)!r:.300}", flush=True)  # noqa: T201


def failures(folder, kind, runs, begin=0):
    """Read so many mutants in child processes; return what went wrong, by the number of the mutant."""
    write_good(folder / "good", kind)
    wrong, number = {}, begin
    while number < begin + runs:
        last = min(number + _AT_A_TIME, begin + runs)
        command = [sys.executable, "-m", "tests.helpers.fuzz_vectors", str(folder), kind, str(number), str(last)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        lines = done.stdout.splitlines()
        assert lines, done.stderr
        reached = number
        for line in lines:
            if line.startswith("!"):
                wrong[reached] = line[2:]
            else:
                reached = int(line)
        if done.returncode:
            wrong[reached] = f"the process ended with {done.returncode}: {done.stderr[-1500:]}"
        number = reached + 1
    return wrong


if __name__ == "__main__":
    faulthandler.enable()
    read_mutants(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
