"""Reads what the real client wrote: the transaction log of an offline run.

A head of 7 bytes, then LevelDB's log format: blocks of 32 KiB, records with CRC-32, a length and a type.
"""

import json
import struct
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEAD, RECORD_HEAD = 32768, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    rows: list[dict] = field(default_factory=list)  # without the client's own keys
    definitions: dict[str, str] = field(default_factory=dict)  # name or glob -> step metric ("" for an axis)
    order: list[str] = field(default_factory=list)  # "define NAME" and "log FIRST_KEY", as they came
    summary: dict[str, float] = field(default_factory=dict)  # but for what the rows put there
    set_step: bool = False  # somebody passed `step=`
    exit_code: int | None = None

    def points(self, name: str) -> list[tuple[float, float]]:
        """(x, y) of a metric on its step metric, as the chart would draw them."""
        axis = next(step for glob, step in self.definitions.items() if step and glob.endswith("*")
                    and name.startswith(glob[:-1]))  # fmt: skip
        return [(row[axis], row[name]) for row in self.rows if name in row and axis in row]


def read(run_folder: Path) -> OfflineRun:
    """Of the one offline run under RUN_FOLDER/wandb, once the client has closed it."""
    (file,) = run_folder.glob("wandb/offline-run-*/run-*.wandb")
    for _ in range(50):
        run = parse(file.read_bytes())
        if run.exit_code is not None:
            return run
        time.sleep(0.1)
    raise AssertionError(f"{file} has no exit record")


def parse(content: bytes) -> OfflineRun:
    run = OfflineRun()
    for payload in _payloads(content):
        record = Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "history":
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            row = {key: value for key, value in row.items() if not key.startswith("_")}
            run.rows.append(row)
            run.order.append(f"log {min(row, default='')}")
        elif kind == "metric":
            name = record.metric.name or record.metric.glob_name
            run.definitions[name] = record.metric.step_metric
            run.order.append(f"define {name}")
        elif kind == "summary":
            items = record.summary.update
            run.summary |= {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
        elif kind == "telemetry":
            run.set_step |= record.telemetry.feature.set_step_log
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _payloads(content: bytes):
    position, parts = HEAD, b""
    while position + RECORD_HEAD <= len(content):
        room = BLOCK - position % BLOCK
        if room < RECORD_HEAD:
            position += room
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, position)
        body = content[position + RECORD_HEAD : position + RECORD_HEAD + length]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(body) < length:
            return  # a torn tail
        assert checksum == zlib.crc32(bytes([kind]) + body)
        parts = body if kind in (FULL, FIRST) else parts + body
        if kind in (FULL, LAST):
            yield parts
        position += RECORD_HEAD + length
