"""Revokes privileges of PUBLIC that only a superuser can revoke, so that a reader can neither write nor observe others.

It applies to a single database: `migrate` runs it if it runs as a superuser, and the embedded Postgres at its start.
The owner of the database and members of `pg_monitor` keep the statistics; docs/operations.md tells how a login gets
some of them back. PUBLIC loses:

- Writing large objects, and messages into the write-ahead log.
- Statistics about all accounts together: how many rows a table has, how big it is, how often it was written, who is
  connected, and which locks are held.
"""

STATEMENT = r"""
DO $harden$
DECLARE
    taken record;
BEGIN
    FOR taken IN
        SELECT CAST(oid AS regprocedure) AS function, proname ~ '^lo_|^pg_logical_' AS writes
          FROM pg_catalog.pg_proc
         WHERE pronamespace = CAST('pg_catalog' AS regnamespace)
           AND (proname IN ('lo_creat', 'lo_create', 'lo_from_bytea', 'pg_logical_emit_message', 'pg_lock_status',
                            'pg_database_size', 'pg_indexes_size', 'pg_relation_size', 'pg_table_size',
                            'pg_tablespace_size', 'pg_total_relation_size')
                OR proname LIKE 'pg\_stat\_get\_%')
           AND has_function_privilege('public', oid, 'EXECUTE')
    LOOP
        EXECUTE format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', taken.function);
        IF NOT taken.writes THEN
            EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO pg_database_owner, pg_monitor', taken.function);
        END IF;
    END LOOP;
    -- PUBLIC keeps all columns except the estimates of a table's size.
    IF has_table_privilege('public', 'pg_catalog.pg_class', 'SELECT') THEN
        REVOKE SELECT ON pg_catalog.pg_class FROM PUBLIC;
        GRANT SELECT ON pg_catalog.pg_class TO pg_database_owner, pg_monitor;
        EXECUTE (
            SELECT format('GRANT SELECT (%s) ON pg_catalog.pg_class TO PUBLIC', string_agg(quote_ident(attname), ', '))
              FROM pg_catalog.pg_attribute
             WHERE attrelid = CAST('pg_catalog.pg_class' AS regclass) AND attnum > 0
               AND attname NOT IN ('reltuples', 'relpages', 'relallvisible', 'relallfrozen')
        );
    END IF;
END
$harden$
"""
