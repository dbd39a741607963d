"""What applications do with psycopg2, told line by line: the same through a proxy as without one.

session.py PORT NAME: NAME keeps this run's tables apart from those of others."""

import io
import sys
import threading
import time

import psycopg2
import psycopg2.extensions
import psycopg2.extras

port, name = sys.argv[1], sys.argv[2]


def connect(**more):
    return psycopg2.connect(
        host="127.0.0.1", port=port, user="app", password="secret", dbname="shop", sslmode="disable", **more
    )


def tell(what, value=""):
    print(f"{what}: {value}", flush=True)


def one(cursor, sql, values=None):
    cursor.execute(sql, values)
    return cursor.fetchone()[0]


connection = connect(application_name="driver", options="-c work_mem=3MB")
cursor = connection.cursor()
tell("startup", (one(cursor, "show work_mem"), one(cursor, "show application_name")))
cursor.execute(f"create table {name} (id int primary key, body text)")
connection.commit()

psycopg2.extras.execute_values(cursor, f"insert into {name} values %s", [(i, f"row {i}") for i in range(500)])
connection.rollback()
tell("rolled back", one(cursor, f"select count(*) from {name}"))
cursor.executemany(f"insert into {name} values (%s, %s)", [(i, "x" * i) for i in range(200)])
connection.commit()
tell("committed", one(cursor, f"select count(*), sum(length(body)) from {name}"))

for code, sql in [("22012", "select 1/0"), ("42601", "selec"), ("23505", f"insert into {name} values (1, '')")]:
    try:
        cursor.execute(sql)
        tell("no error", sql)
    except psycopg2.Error as error:
        tell("error", (error.pgcode == code, error.diag.severity, connection.info.transaction_status))
    connection.rollback()

cursor.execute("savepoint s")
try:
    cursor.execute(f"insert into {name} values (1, '')")
except psycopg2.errors.UniqueViolation:
    cursor.execute("rollback to savepoint s")
cursor.execute(f"insert into {name} values (1000, 'after')")
connection.commit()
tell("savepoint", one(cursor, f"select body from {name} where id = 1000"))
connection.commit()

with connection.cursor("rows") as rows:
    rows.itersize = 7
    rows.execute(f"select id from {name} order by id")
    tell("server-side cursor", sum(row[0] for row in rows))
connection.commit()

lines = "".join(f"{i}\tcopied {i}\n" for i in range(2000, 12000))
cursor.copy_expert(f"copy {name} from stdin", io.StringIO(lines))
connection.commit()
out = io.StringIO()
cursor.copy_expert(f"copy (select * from {name} where id >= 2000 order by id) to stdout", out)
tell("copy", out.getvalue() == lines)
try:
    cursor.copy_expert(f"copy {name} from stdin", io.StringIO("nonsense\n"))
except psycopg2.Error as error:
    tell("copy error", error.pgcode)
connection.rollback()
tell("large", len(one(cursor, "select repeat('y', 5000000)")))
tell("large in", one(cursor, "select length(%s)", ("z" * 3000000,)))
connection.commit()

connection.set_session(isolation_level="SERIALIZABLE", readonly=True)
tell("session", (one(cursor, "show transaction_isolation"), one(cursor, "show transaction_read_only")))
connection.rollback()
connection.set_session(isolation_level="READ COMMITTED", readonly=False)
tell("session", (one(cursor, "show transaction_isolation"), one(cursor, "show transaction_read_only")))
connection.commit()

cursor.execute("set search_path = pg_catalog, public")
cursor.execute("set timezone = 'Asia/Tokyo'")
connection.commit()
for _ in range(5):
    tell("settings", (one(cursor, "show search_path"), one(cursor, "select timestamptz '2020-01-01 00:00+00'").isoformat()))
    connection.commit()
connection.set_client_encoding("LATIN1")
tell("encoding", (one(cursor, "show client_encoding"), one(cursor, "select 'ä'"), connection.encoding))
connection.commit()
connection.reset()
tell("reset", (one(cursor, "show search_path"), one(cursor, "show client_encoding"), one(cursor, "show work_mem")))
connection.commit()

connection.autocommit = True
cursor.execute(f"vacuum {name}")
cursor.execute(f"insert into {name} values (-1, 'a'); select 5; update {name} set body = 'b' where id = -1")
tell("many at once", (cursor.statusmessage, one(cursor, f"select body from {name} where id = -1")))
cursor.execute("create temp table scratch (id int)")
cursor.execute("insert into scratch values (1)")
tell("temporary table", one(cursor, "select count(*) from scratch"))

listener = connect()
listener.autocommit = True
listener.cursor().execute(f"listen news_{name}")
cursor.execute(f"notify news_{name}, 'hello'")
until = time.monotonic() + 20
while not listener.notifies and time.monotonic() < until:
    listener.poll()
    time.sleep(0.01)
tell("notify", [note.payload for note in listener.notifies])
listener.close()

other = connect()
timer = threading.Timer(0.5, other.cancel)
timer.start()
try:
    other.cursor().execute("select pg_sleep(30)")
    tell("not cancelled")
except psycopg2.errors.QueryCanceled as error:
    tell("cancelled", error.pgcode)
timer.join()
other.rollback()
tell("after", one(other.cursor(), "select 1"))
other.close()

large = connect()
blob = large.lobject(0, "wb")
blob.write(b"binary\0data" * 1000)
blob.close()
large.commit()
blob = large.lobject(blob.oid, "rb")
tell("large object", len(blob.read()))
blob.unlink()
large.commit()
large.close()

try:
    psycopg2.connect(host="127.0.0.1", port=port, user="app", password="wrong", dbname="shop", sslmode="disable")
except psycopg2.OperationalError as error:
    tell("wrong password", "password authentication failed" in str(error))
try:
    psycopg2.connect(host="127.0.0.1", port=port, user="app", password="secret", dbname="none", sslmode="disable")
except psycopg2.OperationalError as error:
    tell("wrong database", 'database "none" does not exist' in str(error))

cursor.execute(f"drop table {name}")
connection.close()
tell("done")
