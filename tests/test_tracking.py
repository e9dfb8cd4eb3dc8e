import importlib.util
import os
import socket
import struct
import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter, masked_crc32c

from gliomap import tracking
from gliomap.errors import UsageError
from gliomap.tracking import EVENTS, RETRY_AFTER_S, RUN_ID, Tracking

NAN = float("nan")


def opened(folder, after=0, mlflow=None, **changes):
    return Tracking(
        folder,
        name="recipe",
        mlflow=mlflow,
        after_patches=after,
        settings={"batch_size": 2, "loss": {"name": "d"}},
        **changes,
    )


def records(path):
    """The events of a file, whose checksums must be right."""
    content, place, found = path.read_bytes(), 0, []
    while place < len(content):
        header = content[place : place + 8]
        (length,), (check,) = struct.unpack("<Q", header), struct.unpack("<I", content[place + 8 : place + 12])
        body = content[place + 12 : place + 12 + length]
        (body_check,) = struct.unpack("<I", content[place + 12 + length : place + 16 + length])
        assert (check, body_check) == (masked_crc32c(header), masked_crc32c(body))
        found.append(Event.FromString(body))
        place += 16 + length
    return found


def shown(folder):
    """Steps and values by name as TensorBoard shows them: files in order, each start purging its step and those after."""
    found = {}
    for path in sorted((folder / EVENTS).iterdir()):
        events = records(path)
        assert events[0].file_version == "brain.Event:2"
        for event in events:
            if event.session_log.status == SessionLog.START:
                found = {name: [(s, v) for s, v in pairs if s < event.step] for name, pairs in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 4)))
    return found


class FakeMLflow:
    """MLflow's client on a dictionary, which can be away."""

    class MlflowException(Exception):  # noqa: N818 - its name
        def __init__(self, text, error_code="INTERNAL_ERROR"):
            super().__init__(text)
            self.error_code = error_code

    def __init__(self):
        self.runs, self.experiments, self.away, self.asked = {}, {}, False, 0
        self.entities = SimpleNamespace(
            Metric=lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, time=timestamp, step=step),
            Param=lambda key, value: (key, value),
        )

    def MlflowClient(self, tracking_uri):  # noqa: N802
        self.uri = tracking_uri
        return self

    def _answer(self):
        self.asked += 1
        if self.away:
            raise ConnectionError("nobody answers\nat all")

    def get_experiment_by_name(self, name):
        self._answer()
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = SimpleNamespace(experiment_id="7")
        return "7"

    def create_run(self, experiment, run_name):
        run = f"run{len(self.runs)}"
        self.runs[run] = SimpleNamespace(experiment=experiment, name=run_name, status="RUNNING", params={}, metrics=[])
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def get_run(self, run):
        self._answer()
        if run not in self.runs:
            raise self.MlflowException("unknown", "RESOURCE_DOES_NOT_EXIST")
        return SimpleNamespace(data=SimpleNamespace(metrics=dict.fromkeys(m.key for m in self.runs[run].metrics)))

    def get_metric_history(self, run, name):
        return [m for m in self.runs[run].metrics if m.key == name]

    def update_run(self, run, status):
        self.runs[run].status = status

    set_terminated = update_run

    def log_batch(self, run, metrics=(), params=()):
        self._answer()
        assert len(metrics) <= 1000
        self.runs[run].metrics += metrics
        self.runs[run].params |= dict(params)

    def steps(self, run, name="loss"):
        return [m.step for m in self.runs[run].metrics if m.key == name]


@pytest.fixture
def environment(monkeypatch):
    for variable in (*tracking._SILENT, *tracking._PROMPT):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)


@pytest.fixture
def server(environment, monkeypatch):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_scalars_are_in_tensorboards_files_as_soon_as_they_are_logged(tmp_path):
    with opened(tmp_path) as run:
        run.scalars(10, {"loss": 0.5, "epoch/dice_ET": 0.25})
        run.scalars(20, {"loss": 0.125, "epoch/dice_ET": NAN, "gone": None})
        assert shown(tmp_path) == {"loss": [(10, 0.5), (20, 0.125)], "epoch/dice_ET": [(10, 0.25)]}
    assert run.warnings == []


@pytest.mark.parametrize("after", [0, 20])
def test_what_was_logged_after_the_place_of_a_resumed_training_shows_once(tmp_path, after):
    for start in (0, after):
        run = opened(tmp_path, after=start)
        for patches in range(start + 10, 41, 10):
            run.scalars(patches, {"loss": patches / 8})
        run.close()
    assert shown(tmp_path) == {"loss": [(patches, patches / 8) for patches in (10, 20, 30, 40)]}
    assert len(list((tmp_path / EVENTS).iterdir())) == 2


def test_a_full_disk_ends_the_files_and_not_the_training(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(28, "No space left on device")

    run = opened(tmp_path)
    run.scalars(10, {"loss": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr(RecordWriter, "flush", refuse)
        run.scalars(20, {"loss": 0.4})
    run.scalars(30, {"loss": 0.3})
    run.close()
    assert run.warnings == [
        "TensorBoard's files are no longer written (No space left on device); log.csv has everything"
    ]
    assert shown(tmp_path)["loss"] == [(10, 0.5), (20, 0.4)]


def test_a_place_where_nothing_can_be_written_is_a_warning(tmp_path):
    (tmp_path / EVENTS).write_text("a file")
    warnings = ["an earlier one"]
    with opened(tmp_path, warnings=warnings) as run:
        run.scalars(10, {"loss": 0.5})
    assert len(warnings) == 2
    assert "TensorBoard" in warnings[1]


def test_mlflow_is_not_touched_where_it_is_not_asked_for(tmp_path, server):
    with opened(tmp_path) as run:
        run.scalars(10, {"loss": 0.5})
    assert not server.asked
    assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ
    assert not (tmp_path / RUN_ID).exists()


def test_a_missing_mlflow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UsageError, match=r"'mlflow'.*pip install 'gliomap\[track\]'"):
        opened(tmp_path, mlflow=str(tmp_path / "runs"))


def test_telemetry_is_off_and_a_server_that_is_away_is_left_soon(tmp_path, server, monkeypatch):
    monkeypatch.setenv("DO_NOT_TRACK", "false")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    opened(tmp_path, mlflow="http://127.0.0.1:1").close()
    assert os.environ["DO_NOT_TRACK"] == os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "60"  # as the user has set it


def test_mlflow_gets_a_run_with_settings_and_every_finite_number_once(tmp_path, server):
    with opened(tmp_path, mlflow=str(tmp_path / "my runs")) as run:
        run.scalars(10, {"loss": 0.5, "epoch/dice": NAN})
        run.scalars(20, {"loss": 0.25})
    (made,) = server.runs.values()
    assert server.uri == (tmp_path / "my runs").as_uri()
    assert (made.name, made.status, made.experiment) == ("recipe", "FINISHED", "7")
    assert made.params == {"batch_size": "2", "loss": "{'name': 'd'}"}
    assert [(m.key, m.value, m.step) for m in made.metrics] == [("loss", 0.5, 10), ("loss", 0.25, 20)]


def test_a_resumed_training_continues_its_run_and_no_step_shows_twice(tmp_path, server):
    with opened(tmp_path, mlflow="http://a") as run:
        for patches in (10, 20, 30):
            run.scalars(patches, {"loss": 1.0})
    with opened(tmp_path, after=20, mlflow="http://a") as run:
        run.scalars(30, {"loss": 1.0, "new": 2.0})
        assert server.runs["run0"].status == "RUNNING"
        run.scalars(40, {"loss": 1.0})
    assert list(server.runs) == ["run0"]
    assert server.steps("run0") == [10, 20, 30, 40]
    assert server.steps("run0", "new") == [30]
    assert server.uri == "http://a"


def test_a_training_that_begins_anew_and_one_whose_run_is_gone_get_new_runs(tmp_path, server):
    opened(tmp_path, mlflow="http://a").close()
    opened(tmp_path, mlflow="http://a").close()
    assert list(server.runs) == ["run0", "run1"]
    del server.runs["run1"]
    server.runs["other"] = server.runs["run0"]
    with opened(tmp_path, after=10, mlflow="http://a") as run:
        run.scalars(20, {"loss": 1.0})
    assert server.steps((tmp_path / RUN_ID).read_text()) == [20]
    assert not run.warnings


def test_a_server_that_goes_away_is_a_warning_and_gets_everything_when_it_is_back(tmp_path, server, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    values = {"loss": 1.0} | {f"loss_{i}": 1.0 for i in range(50)}
    with opened(tmp_path, mlflow="http://a") as run:
        run.scalars(10, values)
        server.away = True
        for patches in range(20, 50):
            run.scalars(patches, values)
        asked = server.asked
        run.scalars(50, values)
        assert server.asked == asked  # not at every line
        now[0] += RETRY_AFTER_S
        run.scalars(51, values)
        assert server.asked == asked + 1
        assert server.steps("run0") == [10]
        server.away = False
        now[0] += RETRY_AFTER_S
        run.scalars(52, values)
        assert server.steps("run0") == [10, *range(20, 53)]
    assert run.warnings == [
        "MLflow does not get the numbers of this training (nobody answers); they are tried again later"
    ]
    assert len(shown(tmp_path)["loss"]) == 34


def test_the_end_of_a_training_sends_what_waits_and_survives_a_server_that_is_away(tmp_path, server):
    run = opened(tmp_path, mlflow="http://a")
    server.away = True
    run.scalars(10, {"loss": 1.0})
    server.away = False
    run.close()
    assert server.steps("run0") == [10]
    assert server.runs["run0"].status == "FINISHED"
    server.away = True
    with opened(tmp_path, after=10, mlflow="http://a") as run:  # a resumed training starts without it, too
        run.scalars(20, {"loss": 1.0})
    assert len(run.warnings) == 1
    assert server.steps("run0") == [10]


def test_a_new_training_that_cannot_reach_mlflow_says_so_at_once(tmp_path, server):
    server.away = True
    with pytest.raises(UsageError, match=r"cannot track in MLflow at 'http://a': nobody answers\. Expected a folder"):
        opened(tmp_path, mlflow="http://a")


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_training_that_fails_is_marked(tmp_path, server, error, status):
    with pytest.raises(error), opened(tmp_path, mlflow="http://a"):
        raise error
    assert server.runs["run0"].status == status


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed (extra track)")
@pytest.mark.filterwarnings("ignore")
def test_the_real_mlflow_keeps_a_run_in_a_folder_and_calls_nobody(tmp_path, environment, monkeypatch):
    import mlflow  # noqa: PLC0415

    def refuse(_, address):
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    store = tmp_path / "my runs"
    with opened(tmp_path, mlflow=str(store)) as run:
        for patches in (10, 20, 30):
            run.scalars(patches, {"loss": 1 / patches})
    with opened(tmp_path, after=20, mlflow=str(store)) as run:
        for patches in (30, 40):
            run.scalars(patches, {"loss": 1 / patches})
    assert not run.warnings
    client = mlflow.MlflowClient(tracking_uri=store.as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("gliomap").experiment_id])
    assert found.info.run_id == (tmp_path / RUN_ID).read_text()
    assert (found.info.status, found.data.params["batch_size"]) == ("FINISHED", "2")
    assert [m.step for m in client.get_metric_history(found.info.run_id, "loss")] == [10, 20, 30, 40]
