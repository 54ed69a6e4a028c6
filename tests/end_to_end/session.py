"""The session of the README as a person types it: its words, the files it reads, and how it is run."""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.pipeline import minilm
from demo.stdlib_corpus import CorpusOptions, build
from tests.end_to_end.conftest import DEMO_LM, ROOT
from tests.forked import run_forked

EMBED = """\
python generate_passage_embeddings.py --model_name_or_path "sentence-transformers/all-MiniLM-L6-v2" \\
    --passages github_corpus.csv --output_dir code_embeddings --projection_size 384 --shard_id 0 --num_shards 1
"""
TRAIN = """\
python run_replug_lsr.py --model "TinyLlama/TinyLlama-1.1B-Chat-v1.0" \\
    --passages github_corpus.csv --passages_embeddings "code_embeddings/passages_00" --data training_queries.csv \\
    --output_dir output_finetuned_retriever --re_model_name_or_path "sentence-transformers/all-MiniLM-L6-v2" \\
    --projection_size 384 --learning_rate 2e-5 --per_gpu_batch_size 4 --context_len 128 --pred_len 128 \\
    --retrieved_max_length 128 --n_docs 10 --save_or_load_index
"""
COMPARE = "python test_retriever.py\n"

# Short files, there in every Python from 3.11 on. The document of the first is held out by `train`, that of the
# second (the eighth in path order) by the corpus; the others give 20 and some examples, which is 5 steps of 4.
LIBRARY = (
    "copyreg.py",
    "sched.py",
    "stat.py",
    "bisect.py",
    "fnmatch.py",
    "getopt.py",
    "json/scanner.py",
    "netrc.py",
    "queue.py",
)
# What a passage could do to a terminal: colours, a title, a bell, a turned direction, and rich's own markup.
HOSTILE_ID = "hostile.py#0"
HOSTILE_WORDS = "colour the warning red before it is printed"
HOSTILE_TEXT = (
    f"# {HOSTILE_WORDS}\n\x1b[31mred\x1b]0;title\x07 \x9b2J \u202etxt.exe\u202c [bold]x[/bold]\x00\n"
)


def write_files(folder: Path) -> None:
    """`github_corpus.csv` and `training_queries.csv`: both halves of some real files, and one hostile passage."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for name in LIBRARY:
        (folder / "library" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(library / name, folder / "library" / name)
    report = build(folder / "data", CorpusOptions(), root=folder / "library")
    shutil.copyfile(report.train, folder / "training_queries.csv")
    shutil.copyfile(report.passages, folder / "github_corpus.csv")
    with (folder / "github_corpus.csv").open("a", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerow([HOSTILE_ID, HOSTILE_TEXT, "hostile.py", 1])


def words(command: str) -> list[str]:
    """What a shell makes of a command, with local folders in place of hub names and programs by their path."""
    local = {
        "python": sys.executable,
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0": str(DEMO_LM),
        "sentence-transformers/all-MiniLM-L6-v2": str(minilm().resolve()),
    }
    found = [local.get(word, word) for word in shlex.split(command.replace("\\\n", " "))]
    return [found[0], str(ROOT / found[1]), *found[2:]]


@dataclass(frozen=True)
class Terminal:
    """A working directory and an environment to type commands in; nothing else says where the server is."""

    folder: Path
    base_url: str

    def type(
        self,
        command: str,
        *more: object,
        swap: Mapping[str, str] | None = None,
        anew: bool = False,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``command`` with more arguments behind it; whatever its exit status.

        Args:
            command: As in the README.
            more: Further arguments.
            swap: Words to put in place of others.
            anew: By the interpreter itself, as it is typed; otherwise forked where all is imported already.
            environment: Variables to set.
        """
        typed = [(swap or {}).get(word, word) for word in words(command)]
        own = {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",  # the server has a core to itself; threads that wait for one another starve
            "OPENAI_BASE_URL": self.base_url,
            "REPLUG_CACHE": str(self.folder / "cache"),
        }
        typed, env = [*typed, *map(str, more)], os.environ | own | environment
        if not anew:
            return run_forked(typed[1:], cwd=self.folder, env=env, timeout=600)
        return subprocess.run(
            typed,
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=600,
            check=False,
        )
