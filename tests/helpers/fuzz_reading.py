"""Coverage-guided fuzzing of everything that reads a model's folder: one file of a good folder at a time is damaged.

Run as ``python -m tests.helpers.fuzz_reading FOLDER MODEL [option of libFuzzer...]``. FOLDER must not exist: it is
where the fuzzer works and leaves inputs that fail. MODEL is a model in the portable form. An input is the number of a
file, then its content. Every reader may return, or raise a ValueError or OSError of one line;
it runs and connects to nothing, and writes to its temporary folder alone.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import atheris
import torch  # noqa: F401, here, as to import it takes longer than an input may
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # noqa: F401, likewise

with atheris.instrument_imports(include=["st_dimreduce"]):
    from st_dimreduce import untrusted
    from st_dimreduce.base_head import PICKLE, WEIGHTS, read_dense
    from st_dimreduce.models.folder import read_layout
    from st_dimreduce.models.load import load_head
    from st_dimreduce.portable.check import check

from tests.helpers.hostile import NAMES, NUMBERS, all_places, put

FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect"}
FORBIDDEN |= {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate"}
TEMPORARY = {"open", "os.mkdir", "os.remove", "os.rmdir"}
KEYS = [
    "use_residual",
    "types",
    "auto_map",
    "module_input_name",
    "module_output_name",
    "extra_special_tokens",
    "pooling_mode",
    "rope_parameters",
    "truncate_dim",
]
OPTIONS = ["-timeout=20", "-rss_limit_mb=4096", "-max_len=100000", "-len_control=0", "-keep_seed=1"]
OPTIONS += ["-print_final_stats=1"]


class Readers:
    def __init__(self, folder, model):
        self.root, self.guarded = folder / "model", False
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        tempfile.tempdir = str(self.scratch)
        shutil.copytree(model, self.root)
        self.files = sorted(path for path in self.root.rglob("*") if path.is_file() and path.suffix != ".md")
        self.files.append(self.root / "2_Dense" / PICKLE)
        (folder / "corpus").mkdir()
        self.good = [bytes([number]) + path.read_bytes() for number, path in enumerate(self.files[:-1])]
        for number, content in enumerate(self.good):
            (folder / "corpus" / str(number)).write_bytes(content)
        sys.addaudithook(self.guard)

    def guard(self, event, arguments):
        writes = event in FORBIDDEN or (event == "open" and set(str(arguments[1])) & set("wax+"))
        if self.guarded and writes and not (event in TEMPORARY and self.is_temporary(arguments)):
            self.guarded = False
            raise AssertionError(f"{event} {arguments}")

    def is_temporary(self, arguments):
        """Whether a path, of a folder that the last argument may have open, is in the temporary folder."""
        path, last = Path(os.fsdecode(arguments[0])), arguments[-1]
        if not path.is_absolute() and isinstance(last, int) and last >= 0:
            path = Path(f"/proc/self/fd/{last}").readlink() / path
        return path.resolve().is_relative_to(self.scratch.resolve())

    def __call__(self, data):
        path, weights = self.files[(data or b"\0")[0] % len(self.files)], self.root / "2_Dense" / WEIGHTS
        whole = path.read_bytes() if path.exists() else None
        if whole is None:
            weights.rename(self.root / "aside")
        path.write_bytes(data[1:])
        try:
            self.guarded = True
            self.read(path)
        finally:
            self.guarded = False
            if whole is None:
                path.unlink()
                (self.root / "aside").rename(weights)
            else:
                path.write_bytes(whole)

    def mutate(self, data, most, seed):
        """Mutate values of what is JSON, bytes of what is not; of any good file now and then."""
        rng = random.Random(seed)  # noqa: S311, no secret
        data = rng.choice(self.good) if rng.random() < 0.3 else data
        try:
            content = json.loads(data[1:])
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, (dict, list)) or rng.random() < 0.3:
            return atheris.Mutate(data, most)
        value = copy.deepcopy(
            rng.choice([*NAMES, *NUMBERS, None, True, False, [], {}, [{}], {"a": [""]}, "cls", content])
        )
        at = rng.choice(list(all_places(content)))
        if rng.random() < 0.2 and isinstance(content, dict):
            at = (rng.choice(KEYS),)
        return (data[:1] + json.dumps(put(content, at, value)).encode())[:most]

    def read(self, path):
        calls = [(read_layout, self.root), (check, self.root), (load_head, self.root), (read_dense, path.parent)]
        if path.suffix == ".json":
            calls.append((untrusted.read_object, path))
        elif path.suffix == ".safetensors":
            calls.append((untrusted.read_shapes, path))
        for call, given in calls:
            refuses_in_one_line(call, given)


def refuses_in_one_line(call, given):
    try:
        call(given)
    except (ValueError, OSError) as error:
        said = str(error)
        assert said, f"{call.__name__} says nothing"
        assert len(said.splitlines()) == 1, said


def main(folder, model, *options):
    folder = Path(folder)
    folder.mkdir()
    read = Readers(folder, Path(model))
    read_layout(read.root)  # what is good is read, or nothing below says anything
    options = [*OPTIONS, f"-artifact_prefix={folder}/", *options, str(folder / "corpus")]
    atheris.Setup([sys.argv[0], *options], read, custom_mutator=read.mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
