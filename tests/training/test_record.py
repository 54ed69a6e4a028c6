"""What may begin in a folder, what goes on, and from which checkpoint."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from replug_client.artefacts import plain, read_json, write_json
from replug_client.corpus.records import Example
from replug_client.errors import ArtefactError, OptionError, TrainingDivergedError
from replug_client.retriever.encoder import EncoderOptions
from replug_client.supervisor.canary import Identity
from replug_client.supervisor.client import ClientOptions
from replug_client.supervisor.open import SupervisorOptions
from replug_client.supervisor.protocol import Score
from replug_client.training import output, record
from replug_client.training.modes import ModeOptions
from replug_client.training.options import DataOptions, PlaceOptions, StepOptions, TrainOptions

HASHES = {"corpus": "abc", "documents.csv": "def"}


def options_in(folder: Path, *, resume: bool = False, overwrite: bool = False, seed: int = 0) -> TrainOptions:
    return TrainOptions(
        data=DataOptions((Path("corpus.csv"),), ("shards/*",), (Path("documents.csv"),)),
        encoder=EncoderOptions("some/encoder"),
        supervisor=SupervisorOptions("lm"),
        place=PlaceOptions(folder / "run", folder / "cache", resume, overwrite),
        steps=StepOptions(seed=seed),
    )


def begin(options: TrainOptions) -> Path | None:
    start = record.starting_point(options, HASHES)
    record.begin(options, HASHES)
    return start


def checkpoint(folder: Path, step: int, *, whole: bool = True) -> Path:
    path = folder / "run" / "checkpoints" / f"checkpoint-{step}"
    path.mkdir(parents=True)
    write_json(path / "trainer_state.json", {})
    if whole:
        (path / record.COMPLETE_NAME).touch()
    return path


def finished(folder: Path) -> Path:
    example = Example("d1", "q\u2028é", "c", (1,), (2,), 1)
    record.finish(folder / "run", {"status": "complete"}, [example])
    return folder / "run"


def test_a_new_run_begins_in_a_new_folder_and_ends_with_its_record(tmp_path: Path) -> None:
    assert begin(options_in(tmp_path)) is None
    assert (tmp_path / "run" / "unfinished.json").exists()
    folder = finished(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"run.json", "held_out.jsonl"}
    (line,) = (folder / "held_out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert json.loads(line) == {"document_id": "d1", "query": "q\u2028é", "continuation": "c"}


def test_looking_changes_nothing(tmp_path: Path) -> None:
    assert record.starting_point(options_in(tmp_path), HASHES) is None
    assert list(tmp_path.iterdir()) == []
    begin(options_in(tmp_path))
    finished(tmp_path)
    record.starting_point(options_in(tmp_path, overwrite=True), HASHES)
    assert (tmp_path / "run" / "run.json").exists()


def test_a_run_goes_on_from_its_newest_whole_checkpoint(tmp_path: Path) -> None:
    begin(options_in(tmp_path))
    resume = options_in(tmp_path, resume=True)
    assert record.starting_point(resume, HASHES) is None
    checkpoint(tmp_path, 20)
    newest = checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 120, whole=False)  # cut short by a kill
    assert begin(resume) == newest
    assert newest.exists()


def test_with_nothing_to_resume_a_run_begins(tmp_path: Path) -> None:
    assert begin(options_in(tmp_path, resume=True)) is None
    assert (tmp_path / "run" / "unfinished.json").exists()


def test_an_unfinished_run_with_a_checkpoint_is_not_lost_by_accident(tmp_path: Path) -> None:
    begin(options_in(tmp_path))
    checkpoint(tmp_path, 5)
    with pytest.raises(OptionError, match=r"--resume.*--overwrite"):
        record.starting_point(options_in(tmp_path), HASHES)
    begin(options_in(tmp_path, overwrite=True))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_unfinished_run_without_a_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    begin(options_in(tmp_path))
    (tmp_path / "run" / "candidates").mkdir()
    assert begin(options_in(tmp_path, seed=1)) is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["unfinished.json"]
    state = read_json(tmp_path / "run" / "unfinished.json", mend="")
    assert state["options"]["steps"]["seed"] == 1


def test_a_finished_run_is_kept_unless_it_may_be_overwritten(tmp_path: Path) -> None:
    begin(options_in(tmp_path))
    folder = finished(tmp_path)
    with pytest.raises(OptionError, match=r"finished run.*--overwrite"):
        record.starting_point(options_in(tmp_path), HASHES)
    begin(options_in(tmp_path, overwrite=True))
    assert not (folder / "run.json").exists()


def test_what_others_put_beside_a_run_outlives_it(tmp_path: Path) -> None:
    """Of a run that was cut short, and of a finished one."""
    begin(options_in(tmp_path))
    folder = tmp_path / "run"
    (folder / "thesis.tex").write_text("years of work")
    (folder / "emb").mkdir()
    (folder / "candidates").mkdir()
    begin(options_in(tmp_path))
    assert sorted(path.name for path in folder.iterdir()) == ["emb", "thesis.tex", "unfinished.json"]
    (folder / "unfinished.json").unlink()
    for name in ("modules.json", "model.safetensors", "notes.txt"):
        (folder / name).touch()
    made = ["modules.json", "model.safetensors", "../secret", "..", "", ".", None]
    (tmp_path / "secret").touch()
    write_json(folder / "run.json", {"files": made})
    begin(options_in(tmp_path, overwrite=True))
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["emb", "notes.txt", "thesis.tex", "unfinished.json"] and (tmp_path / "secret").exists()


def test_of_a_run_without_a_list_the_model_goes_too(tmp_path: Path) -> None:
    """As older versions left it: half of it would be loaded as if it were the new run's."""
    folder = tmp_path / "run"
    (folder / "query_0_Transformer").mkdir(parents=True)
    (folder / "query_0_Transformer" / "model.safetensors").touch()
    (folder / "notes.txt").touch()
    (folder / "modules.json").write_text(json.dumps([{"path": "query_0_Transformer"}, {"path": ""}]))
    write_json(folder / "run.json", {"status": "complete"})
    begin(options_in(tmp_path, overwrite=True))
    assert sorted(path.name for path in folder.iterdir()) == ["notes.txt", "unfinished.json"]


def test_cut_short_while_it_clears_a_folder_is_still_a_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(options_in(tmp_path))
    folder = finished(tmp_path)
    (folder / "modules.json").touch()
    removed: list[str] = []
    remove = output._remove

    def killed(path: Path) -> None:
        if len(removed) == 3:
            raise KeyboardInterrupt
        removed.append(path.name)
        remove(path)

    monkeypatch.setattr(output, "_remove", killed)
    with pytest.raises(KeyboardInterrupt):
        begin(options_in(tmp_path, overwrite=True))
    monkeypatch.undo()
    assert (folder / "run.json").exists() and (folder / "unfinished.json").exists()
    begin(options_in(tmp_path, overwrite=True))
    assert not (folder / "run.json").exists()


def test_the_cache_may_lie_in_the_folder(tmp_path: Path) -> None:
    options = options_in(tmp_path)
    inside = replace(options, place=replace(options.place, cache_dir=tmp_path / "run" / "own" / "cache"))
    (tmp_path / "run" / "own" / "cache").mkdir(parents=True)
    assert begin(inside) is None
    (tmp_path / "run" / "unfinished.json").unlink()
    with pytest.raises(OptionError, match=r"not of a run \(own\)"):
        record.starting_point(options, HASHES)


def test_without_locks_a_run_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(output.fcntl, "flock", none)
    with output.held(tmp_path / "run"):
        pass
    assert "this file system has no locks" in caplog.text


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_refused_before_anything_is_done(
    tmp_path: Path, overwrite: bool
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("train.log", "slurm.out", ".gitkeep"):
        (folder / name).touch()
    assert record.starting_point(options_in(tmp_path, overwrite=overwrite), HASHES) is None
    (folder / "README.md").write_text("my project")
    with pytest.raises(OptionError, match=r"files that are not of a run \(README\.md\).*Give a new folder"):
        record.starting_point(options_in(tmp_path, overwrite=overwrite), HASHES)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OptionError, match="run is a file; expected a folder"):
        record.starting_point(options_in(tmp_path), HASHES)


def test_two_runs_are_not_at_work_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with output.held(folder):
        record.begin(options_in(tmp_path), HASHES)
        with pytest.raises(ArtefactError, match="another run is at work there"):
            record.starting_point(options_in(tmp_path, resume=True), HASHES)
        with pytest.raises(ArtefactError, match="another run is at work there"), output.held(folder):
            pass
    assert record.starting_point(options_in(tmp_path, resume=True), HASHES) is None


def test_a_model_is_saved_beside_and_then_moved(tmp_path: Path) -> None:
    class Model(torch.nn.Linear):
        def save_pretrained(self, folder: str) -> None:
            (Path(folder) / "0_Transformer").mkdir(parents=True)
            (Path(folder) / "modules.json").write_text("new")
            if failing:
                raise OSError("no space left")

    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "0_Transformer" / "old").touch()
    (tmp_path / "modules.json").write_text("old")
    failing = True
    with pytest.raises(OSError, match="no space left"):
        output.save(cast(Any, Model(1, 1)), tmp_path)
    assert (tmp_path / "modules.json").read_text() == "old" and (tmp_path / "0_Transformer" / "old").exists()
    failing = False
    assert output.save(cast(Any, Model(1, 1)), tmp_path) == ["0_Transformer", "modules.json"]
    assert (tmp_path / "modules.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0_Transformer", "modules.json"]
    assert list((tmp_path / "0_Transformer").iterdir()) == []
    model = Model(1, 1)
    model.bias.data.fill_(math.nan)
    with pytest.raises(TrainingDivergedError, match="1 of the encoder's tensors hold NaN"):
        output.save(cast(Any, model), tmp_path)
    assert (tmp_path / "modules.json").read_text() == "new"


def test_what_is_not_a_run_is_never_thrown_away(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    for action in (record.starting_point, record.begin):
        with pytest.raises(OptionError, match="not of a run"):
            action(options_in(tmp_path, overwrite=True), HASHES)
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_the_base_encoders_own_folder_is_refused(tmp_path: Path) -> None:
    options = options_in(tmp_path, overwrite=True)
    own = replace(options, encoder=EncoderOptions(str(tmp_path / "cache" / ".." / "run")))
    with pytest.raises(OptionError, match="base encoder"):
        record.starting_point(own, HASHES)


def test_a_resumed_run_must_be_asked_for_the_same_and_what_differs_is_named(tmp_path: Path) -> None:
    begin(options_in(tmp_path))
    with pytest.raises(ArtefactError) as error:
        record.starting_point(options_in(tmp_path, resume=True, seed=7), HASHES | {"corpus": "new"})
    message = str(error.value)
    assert "options.steps.seed was 0, now 7" in message
    assert "hashes.corpus was 'abc', now 'new'" in message
    assert "learning_rate" not in message and "documents.csv" not in message


def test_options_that_an_earlier_version_did_not_have_were_as_their_defaults_are(tmp_path: Path) -> None:
    begin(options_in(tmp_path))
    path = tmp_path / "run" / "unfinished.json"
    state = json.loads(path.read_text())
    for name in ("lexical", "lexical_learning_rate"):
        del state["options"]["modes"][name]
    path.write_text(json.dumps(state))
    resume = options_in(tmp_path, resume=True)
    record.starting_point(resume, HASHES)
    with pytest.raises(ArtefactError, match=r"modes\.lexical was False, now True"):
        record.starting_point(replace(resume, modes=ModeOptions(lexical=True)), HASHES)


def test_where_and_how_fast_may_change(tmp_path: Path) -> None:
    begin(options_in(tmp_path))
    resume = options_in(tmp_path, resume=True)
    supervisor = SupervisorOptions(
        "lm",
        base_url="http://other:1/v1",
        cache_dir=tmp_path,
        timeout=1.0,
        client=ClientOptions(concurrency=3),
        apart=True,
    )
    place = replace(resume.place, cache_dir=tmp_path / "elsewhere")
    record.starting_point(replace(resume, supervisor=supervisor, place=place), HASHES)
    with pytest.raises(ArtefactError, match=r"supervisor\.model"):
        record.starting_point(replace(resume, supervisor=SupervisorOptions("other")), HASHES)


def test_a_damaged_state_says_how_to_go_on(tmp_path: Path) -> None:
    begin(options_in(tmp_path))
    (tmp_path / "run" / "unfinished.json").write_text("{")
    with pytest.raises(ArtefactError, match="--overwrite"):
        record.starting_point(options_in(tmp_path, resume=True), HASHES)


def test_everything_becomes_plain_json(tmp_path: Path) -> None:
    value = plain({"options": options_in(tmp_path), 3: (math.nan, -math.inf, 1.5), "path": Path("a/b")})
    assert value["3"] == [None, None, 1.5]
    assert value["path"] == "a/b"
    assert value["options"]["target"]["kl"] == "p-q"
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json", mend="") == value


def canary_of(log_probs: list[float]) -> Identity:
    return Identity({"kind": "server", "model": "m"}, Score(np.array(log_probs, dtype=np.float32)))


def test_a_run_goes_on_with_the_supervisor_that_it_began_with_within_noise(tmp_path: Path) -> None:
    record.keep_supervisor(tmp_path, canary_of([-1.0, -2.0, -3.0]))
    record.check_supervisor(tmp_path, canary_of([-1.01, -2.0, -2.98]))


def test_a_run_does_not_go_on_with_another_model_of_the_same_name(tmp_path: Path) -> None:
    record.keep_supervisor(tmp_path, canary_of([-1.0, -2.0, -3.0]))
    with pytest.raises(ArtefactError, match=r"another supervisor.*--overwrite"):
        record.check_supervisor(tmp_path, canary_of([-1.1, -2.1, -3.0]))
