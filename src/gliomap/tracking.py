"""The numbers of a training for other programs to draw: TensorBoard's event files always, MLflow where asked.

Neither can end a training. What cannot be written is a warning, once; what MLflow has not got is sent again later.
"""

import math
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from gliomap.errors import UsageError, import_extra

EXPERIMENT = "gliomap"
EVENTS, RUN_ID = "tensorboard", "mlflow_run_id"
RETRY_AFTER_S = 300.0
_MOST_METRICS = 1000
_MOST_LETTERS = 500
_SILENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_PROMPT = {
    "MLFLOW_ALLOW_FILE_STORE": "true",  # a folder is refused without it
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",  # a thread's failure would reach nobody
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # by default a server that is away holds each request up for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Tracking:
    """Sends scalars to TensorBoard's files in ``folder`` and to an MLflow server, or folder, while it is open.

    ``after_patches``: the patches that a resumed training continues from. What an interrupted one logged later is superseded.
    ``warnings`` gets a text when something can no longer be written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        mlflow: str | None,
        settings: Mapping[str, Any],
        after_patches: int = 0,
        warnings: list[str] | None = None,
    ) -> None:
        """Open the files and find or make the run of MLflow.

        Raises:
            UsageError: MLflow is asked for and not installed; or a new training cannot reach it.
        """
        self.warnings = [] if warnings is None else warnings
        self._events: _Events | None = None
        self._mlflow = None if mlflow is None else _MLflow(mlflow, folder, name, settings)
        if self._mlflow is not None and after_patches == 0:
            self._mlflow.begin()
        try:
            self._events = _Events(folder / EVENTS, after_patches)
        except OSError as error:
            self._warn_of_events(error)

    def scalars(self, patches: int, values: Mapping[str, float]) -> None:
        """Log finite values by name after so many patches."""
        known = {name: float(value) for name, value in values.items() if value is not None and math.isfinite(value)}
        if self._events is not None:
            try:
                self._events.write(patches, known)
            except OSError as error:
                self._warn_of_events(error)
        if self._mlflow is not None:
            self._mlflow.add(patches, known)
            self._send()

    def close(self, status: str = "FINISHED") -> None:
        """Send what is left and close the files; ``status`` is what MLflow calls the end of a run."""
        if self._events is not None:
            with suppress(OSError):
                self._events.close()
            self._events = None
        if self._mlflow is not None:
            self._send(at_once=True)
            self._mlflow.end(status)
            self._mlflow = None

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")

    def _send(self, *, at_once: bool = False) -> None:
        if self._mlflow is None:
            return
        problem = self._mlflow.send(at_once=at_once)
        if problem and not any(text.startswith("MLflow") for text in self.warnings):
            self.warnings.append(
                f"MLflow does not get the numbers of this training ({problem}); they are tried again later"
            )

    def _warn_of_events(self, error: OSError) -> None:
        """TensorBoard's files are given up: half a record would hide all that came after it."""
        self.warnings.append(
            f"TensorBoard's files are no longer written ({error.strerror or error}); log.csv has everything"
        )
        if self._events is not None:
            with suppress(OSError):
                self._events.close()
        self._events = None


class _Events:
    """An event file of TensorBoard, written at once: tensorboardX's own writer waits for ever on a thread that has failed."""

    def __init__(self, folder: Path, after_patches: int) -> None:
        from tensorboardX.proto import event_pb2, summary_pb2  # noqa: PLC0415 - slow to import
        from tensorboardX.record_writer import RecordWriter  # noqa: PLC0415

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{now:020.9f}.gliomap"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(self._event(wall_time=now, file_version="brain.Event:2"))
        self._write(self._event(wall_time=now, step=after_patches + 1, session_log=start))
        self._records.flush()

    def write(self, patches: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(self._event(wall_time=time.time(), step=patches, summary=self._summary(value=scalars)))
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _write(self, event: Any) -> None:
        self._records.write(event.SerializeToString())


class _MLflow:
    """One run of MLflow, continued where the folder knows its id. What was not sent yet is kept."""

    def __init__(self, place: str, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        os.environ |= _SILENT | {variable: os.environ.get(variable, value) for variable, value in _PROMPT.items()}
        self._library = import_extra("mlflow", "track")
        self._place = place if "://" in place else Path(place).absolute().as_uri()
        self._id_file, self._name, self._settings = folder / RUN_ID, name, settings
        self._client: Any = None
        self._run = ""
        self._sent: set[tuple[str, int]] = set()
        self._waiting: list[tuple[str, float, int, int]] = []
        self._not_before = -math.inf

    def begin(self) -> None:
        """Make the run of a new training.

        Raises:
            UsageError: it cannot be made.
        """
        try:
            self._id_file.unlink(missing_ok=True)
            self._connect()
        except Exception as error:  # of any kind: of MLflow, of its many libraries, of the network
            raise UsageError(
                f"cannot track in MLflow at {self._place!r}: {_first_line(error)}. Expected a folder, or the address of a server "
                "that runs"
            ) from error

    def add(self, patches: int, values: Mapping[str, float]) -> None:
        now_ms = int(1000 * time.time())
        self._waiting += [(name, value, now_ms, patches) for name, value in values.items()]

    def send(self, *, at_once: bool) -> str:
        """Send what waits, if a failure is not too recent; returns what is wrong, if anything is."""
        if time.monotonic() < self._not_before and not at_once:
            return ""
        try:
            self._connect()
            metric = self._library.entities.Metric
            while self._waiting:
                part = self._waiting[:_MOST_METRICS]
                new = [metric(*one) for one in part if (one[0], one[3]) not in self._sent]
                if new:
                    self._client.log_batch(self._run, metrics=new)
                del self._waiting[: len(part)]
        except Exception as error:  # as in `begin`; a training is worth more than its curves
            self._not_before = time.monotonic() + RETRY_AFTER_S
            return _first_line(error)
        return ""

    def end(self, status: str) -> None:
        if self._run and not self._waiting:
            with suppress(Exception):
                self._client.set_terminated(self._run, status)

    def _connect(self) -> None:
        """Find the run that the folder knows, with what it has, or make one."""
        if self._run:
            return
        self._client = self._library.MlflowClient(tracking_uri=self._place)
        run = self._id_file.read_text().strip() if self._id_file.exists() else ""
        self._run = run if run and self._continued(run) else self._new()

    def _continued(self, run: str) -> bool:
        """Take up a run, unless this place does not know it."""
        try:
            names = self._client.get_run(run).data.metrics
        except self._library.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        self._sent = {(name, m.step) for name in names for m in self._client.get_metric_history(run, name)}
        self._client.update_run(run, status="RUNNING")
        return True

    def _new(self) -> str:
        found = self._client.get_experiment_by_name(EXPERIMENT)
        experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT)
        run = self._client.create_run(experiment, run_name=self._name).info.run_id
        self._id_file.parent.mkdir(parents=True, exist_ok=True)
        self._id_file.write_text(run)
        params = [self._library.entities.Param(k, str(v)[:_MOST_LETTERS]) for k, v in self._settings.items()]
        self._client.log_batch(run, params=params)
        return run


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).partition("\n")[0]
