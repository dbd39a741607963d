import java.io.StringReader;
import java.io.StringWriter;
import java.sql.*;
import java.util.Properties;
import org.postgresql.PGConnection;
import org.postgresql.copy.CopyManager;
import org.postgresql.largeobject.LargeObject;
import org.postgresql.largeobject.LargeObjectManager;

/** What applications do with JDBC, told line by line: the same through a proxy as without one. Session.java PORT NAME. */
public class Session {
    static String name;
    static String port;

    static Connection connect(String... more) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", "app");
        properties.setProperty("password", "secret");
        properties.setProperty("sslmode", "disable");
        for (int i = 0; i < more.length; i += 2) properties.setProperty(more[i], more[i + 1]);
        return DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + port + "/shop", properties);
    }

    static void tell(String what, Object value) {
        System.out.println(what + ": " + value);
    }

    static String one(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement(); ResultSet rows = statement.executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    static void run(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute(sql);
        }
    }

    static void fails(Connection connection, String sql) {
        try {
            run(connection, sql);
            tell("no error", sql);
        } catch (SQLException error) {
            tell("error", error.getSQLState());
        }
    }

    /** One statement many times: from the fifth on it is prepared on the server. */
    static void prepared(Connection connection) throws SQLException {
        long sum = 0;
        try (PreparedStatement add = connection.prepareStatement("select ?::int + 1, ?::text");
                PreparedStatement other = connection.prepareStatement("select count(*) from " + name + " where id < ?")) {
            for (int i = 0; i < 40; i++) {
                add.setInt(1, i);
                add.setString(2, "v" + i);
                try (ResultSet rows = add.executeQuery()) {
                    rows.next();
                    sum += rows.getInt(1) + rows.getString(2).length();
                }
                other.setInt(1, i);
                try (ResultSet rows = other.executeQuery()) {
                    rows.next();
                    sum += rows.getLong(1);
                }
            }
        }
        tell("prepared", sum);
    }

    static void transactions(Connection connection) throws Exception {
        connection.setAutoCommit(false);
        try (PreparedStatement insert = connection.prepareStatement("insert into " + name + " values (?, ?)")) {
            for (int i = 0; i < 300; i++) {
                insert.setInt(1, i);
                insert.setString(2, "row " + i);
                insert.addBatch();
            }
            int rows = 0;
            for (int count : insert.executeBatch()) rows += count == Statement.SUCCESS_NO_INFO ? 1 : count;
            tell("batch", rows);
        }
        connection.rollback();
        tell("rolled back", one(connection, "select count(*) from " + name));
        run(connection, "insert into " + name + " select g, 'row ' || g from generate_series(0, 299) g");
        Savepoint savepoint = connection.setSavepoint("here");
        fails(connection, "insert into " + name + " values (1, 'twice')");
        fails(connection, "select 1");
        connection.rollback(savepoint);
        connection.commit();
        tell("savepoint", one(connection, "select count(*) from " + name));
        try (Statement statement = connection.createStatement()) {
            statement.setFetchSize(13);
            long sum = 0;
            try (ResultSet rows = statement.executeQuery("select id from " + name + " order by id")) {
                while (rows.next()) sum += rows.getInt(1);
            }
            tell("fetched in parts", sum);
        }
        connection.commit();
        connection.setReadOnly(true);
        connection.setTransactionIsolation(Connection.TRANSACTION_SERIALIZABLE);
        tell("serializable", one(connection, "show transaction_isolation") + one(connection, "show transaction_read_only"));
        fails(connection, "delete from " + name);
        connection.rollback();
        connection.setReadOnly(false);
        connection.setTransactionIsolation(Connection.TRANSACTION_READ_COMMITTED);
        LargeObjectManager objects = connection.unwrap(PGConnection.class).getLargeObjectAPI();
        long number = objects.createLO(LargeObjectManager.READWRITE);
        try (LargeObject object = objects.open(number, LargeObjectManager.READWRITE)) {
            object.write(new byte[100000]);
            object.seek(0);
            tell("large object", object.read(200000).length);
        }
        objects.delete(number);
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void copies(Connection connection) throws Exception {
        CopyManager copy = connection.unwrap(PGConnection.class).getCopyAPI();
        StringBuilder lines = new StringBuilder();
        for (int i = 1000; i < 20000; i++) lines.append(i).append("\tcopied\n");
        tell("copy in", copy.copyIn("copy " + name + " from stdin", new StringReader(lines.toString())));
        StringWriter out = new StringWriter();
        copy.copyOut("copy (select * from " + name + " where id >= 1000 order by id) to stdout", out);
        tell("copy out", out.toString().contentEquals(lines));
    }

    public static void main(String[] arguments) throws Exception {
        port = arguments[0];
        name = arguments[1];
        Connection connection = connect("ApplicationName", "driver", "options", "-c work_mem=3MB");
        tell("startup", one(connection, "show work_mem") + one(connection, "show application_name"));
        run(connection, "create table " + name + " (id int primary key, body text)");
        transactions(connection);
        prepared(connection);
        copies(connection);
        connection.setSchema("pg_catalog");
        tell("schema", connection.getSchema() + one(connection, "show search_path"));
        connection.setSchema("public");
        connection.setClientInfo("ApplicationName", "renamed");
        for (int i = 0; i < 3; i++) tell("settings", one(connection, "show application_name"));
        try (ResultSet columns = connection.getMetaData().getColumns(null, "public", name, null)) {
            while (columns.next()) tell("column", columns.getString("COLUMN_NAME") + columns.getString("TYPE_NAME"));
        }
        tell("valid", connection.isValid(5));
        fails(connection, "select 1/0");
        try (Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            statement.execute("select pg_sleep(30)");
            tell("not cancelled", "");
        } catch (SQLException error) {
            tell("cancelled", error.getSQLState());
        }
        tell("after", one(connection, "select 1"));
        try (Statement statement = connection.createStatement()) {
            boolean more = statement.execute("select 1; insert into " + name + " values (-1, 'x'); select 2");
            int results = 0;
            while (more || statement.getUpdateCount() != -1) {
                results++;
                more = statement.getMoreResults();
            }
            tell("many at once", results);
        }
        run(connection, "create temp table scratch (id int)");
        tell("temporary table", one(connection, "select count(*) from scratch"));
        connection.close();
        // Every statement by the simple protocol; batches written together; savepoints of the driver's own.
        Connection simple = connect("preferQueryMode", "simple");
        prepared(simple);
        simple.close();
        Connection careful = connect("autosave", "always", "reWriteBatchedInserts", "true", "prepareThreshold", "1");
        prepared(careful);
        careful.setAutoCommit(false);
        for (int i = 0; i < 6; i++) {
            fails(careful, "select 1/0");
            tell("goes on", one(careful, "select count(*) from " + name));
        }
        careful.commit();
        run(careful, "drop table " + name);
        careful.commit();
        careful.close();
        tell("done", "");
    }
}
