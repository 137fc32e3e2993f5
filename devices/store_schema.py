"""The store's tables, and how a store written by an older bevel becomes one of today.

`PRAGMA user_version` counts the scripts of `MIGRATIONS` a file has been through; each brings the file one version further. A
script that was released is never edited: a change of the schema is a new script at the end.
"""

from __future__ import annotations

from typing import Final

_FIRST = """
CREATE TABLE devices (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    arch TEXT NOT NULL,
    cpu TEXT NOT NULL,
    features TEXT NOT NULL CHECK (json_valid(features)),
    kernel TEXT NOT NULL,
    machine TEXT NOT NULL,
    emulated INTEGER NOT NULL CHECK (emulated IN (0, 1))
) STRICT;

CREATE TABLE sessions (
    id INTEGER PRIMARY KEY,
    uuid TEXT NOT NULL UNIQUE,
    device INTEGER NOT NULL REFERENCES devices (id),
    purpose TEXT NOT NULL CHECK (purpose IN ('bench', 'profile')),
    artifact TEXT NOT NULL,
    name TEXT NOT NULL,
    settings TEXT NOT NULL CHECK (json_valid(settings)),
    bevel TEXT NOT NULL,
    runtime TEXT NOT NULL,
    conditions TEXT NOT NULL CHECK (json_valid(conditions)),
    canary_ns REAL,
    started TEXT NOT NULL,
    finished TEXT,
    state TEXT NOT NULL CHECK (state IN ('open', 'finished', 'abandoned'))
) STRICT;
CREATE INDEX sessions_of_artifact ON sessions (device, artifact, started);

CREATE TABLE blocks (
    session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    process INTEGER NOT NULL,
    "index" INTEGER NOT NULL,
    calls INTEGER NOT NULL CHECK (calls > 0),
    wall_ns REAL NOT NULL CHECK (wall_ns > 0),
    cpu_ns REAL,
    min_ns REAL,
    canary_ns REAL,
    switches INTEGER,
    khz INTEGER,
    mc INTEGER,
    uj REAL,
    rejected TEXT,
    PRIMARY KEY (session, process, "index")
) STRICT, WITHOUT ROWID;

CREATE TABLE results (
    session INTEGER PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    median_ns REAL NOT NULL CHECK (median_ns > 0),
    p10_ns REAL NOT NULL,
    lo_ns REAL NOT NULL,
    hi_ns REAL NOT NULL,
    interval TEXT NOT NULL,
    spread REAL NOT NULL,
    cpu_ns REAL,
    processes INTEGER NOT NULL,
    blocks INTEGER NOT NULL,
    rejected TEXT NOT NULL CHECK (json_valid(rejected)),
    unstable TEXT,
    canary_spread REAL,
    rss_kib INTEGER,
    energy_uj REAL
) STRICT;

CREATE TABLE layers (
    session INTEGER NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    step INTEGER NOT NULL,
    name TEXT NOT NULL,
    op TEXT NOT NULL,
    kernel TEXT NOT NULL,
    bits TEXT NOT NULL,
    macs INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    ns REAL NOT NULL,
    predicted_ns REAL,
    PRIMARY KEY (session, step)
) STRICT, WITHOUT ROWID;

CREATE TABLE kernels (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    generator TEXT NOT NULL,
    problem TEXT NOT NULL,
    tile TEXT NOT NULL,
    target TEXT NOT NULL,
    macs INTEGER NOT NULL,
    bytes INTEGER NOT NULL
) STRICT;

CREATE TABLE kernel_times (
    kernel INTEGER NOT NULL REFERENCES kernels (id),
    device INTEGER NOT NULL REFERENCES devices (id),
    runtime TEXT NOT NULL,
    date TEXT NOT NULL,
    ns REAL NOT NULL CHECK (ns > 0),
    spread REAL NOT NULL,
    canary_noise REAL NOT NULL,
    PRIMARY KEY (kernel, device, runtime, date)
) STRICT, WITHOUT ROWID;
CREATE INDEX kernel_times_of_device ON kernel_times (device);

-- Emulated times mean nothing. Sessions on emulated devices keep a journal of blocks so that they can be resumed; nothing that
-- anybody takes for a measurement is ever stored of them, whoever writes.
CREATE TRIGGER no_emulated_results BEFORE INSERT ON results
WHEN (SELECT emulated FROM devices JOIN sessions ON sessions.device = devices.id WHERE sessions.id = NEW.session)
BEGIN SELECT RAISE(ABORT, 'times of an emulated device are not measurements'); END;
CREATE TRIGGER no_emulated_layers BEFORE INSERT ON layers
WHEN (SELECT emulated FROM devices JOIN sessions ON sessions.device = devices.id WHERE sessions.id = NEW.session)
BEGIN SELECT RAISE(ABORT, 'times of an emulated device are not measurements'); END;
CREATE TRIGGER no_emulated_kernel_times BEFORE INSERT ON kernel_times
WHEN (SELECT emulated FROM devices WHERE id = NEW.device)
BEGIN SELECT RAISE(ABORT, 'times of an emulated device are not measurements'); END;
CREATE TRIGGER no_emulated_finish BEFORE UPDATE OF state ON sessions
WHEN NEW.state = 'finished' AND (SELECT emulated FROM devices WHERE id = NEW.device)
BEGIN SELECT RAISE(ABORT, 'times of an emulated device are not measurements'); END;
"""

MIGRATIONS: Final[tuple[str, ...]] = (_FIRST,)
