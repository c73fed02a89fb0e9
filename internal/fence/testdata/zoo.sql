-- One of everything through which rows of a table can be changed.
CREATE TABLE plain (id integer PRIMARY KEY, v text);
INSERT INTO plain SELECT i, 'v' || i FROM generate_series(1, 100) i;
CREATE TABLE child (id integer PRIMARY KEY, plain integer REFERENCES plain ON DELETE CASCADE ON UPDATE CASCADE);
INSERT INTO child SELECT i, i FROM generate_series(1, 10) i;

CREATE TABLE part (id integer, at date) PARTITION BY RANGE (at);
CREATE TABLE part_2025 PARTITION OF part FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE part_2026 PARTITION OF part FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY HASH (id);
CREATE TABLE part_2026_0 PARTITION OF part_2026 FOR VALUES WITH (MODULUS 1, REMAINDER 0);

CREATE TABLE parent (id integer);
CREATE TABLE heir (extra text) INHERITS (parent);
INSERT INTO heir VALUES (1, 'x');

CREATE SCHEMA "Odd ""schema""";
CREATE TABLE "Odd ""schema"""."Tábla 'x'" ("Key" integer);
CREATE UNLOGGED TABLE scratch (id integer);

CREATE VIEW simple AS SELECT * FROM plain;
CREATE VIEW joined AS SELECT p.id, c.id AS child FROM plain p JOIN child c ON c.plain = p.id;
CREATE FUNCTION joined_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO plain VALUES (NEW.id, 'through'); RETURN NEW; END $$;
CREATE TRIGGER joined_insert INSTEAD OF INSERT ON joined FOR EACH ROW EXECUTE FUNCTION joined_insert();
CREATE VIEW ruled AS SELECT id FROM plain WHERE id < 0;
CREATE RULE ruled_insert AS ON INSERT TO ruled DO INSTEAD INSERT INTO child VALUES (NEW.id, 1);

CREATE FUNCTION definer() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN UPDATE plain SET v = 'definer'; END $$;
CREATE FUNCTION swallow() RETURNS text LANGUAGE plpgsql AS $$
BEGIN DELETE FROM plain; RETURN 'deleted'; EXCEPTION WHEN OTHERS THEN RETURN SQLSTATE; END $$;
-- Operators that say that nothing equals anything, for a hostile search_path.
CREATE SCHEMA evil;
CREATE FUNCTION evil.never(oid, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION evil.never(oid, integer) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION evil.never(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE FUNCTION evil.never(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT false';
CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = bigint, FUNCTION = evil.never);
CREATE OPERATOR evil.= (LEFTARG = oid, RIGHTARG = integer, FUNCTION = evil.never);
CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = name, FUNCTION = evil.never);
CREATE OPERATOR evil.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = evil.never);

CREATE MATERIALIZED VIEW mat AS SELECT count(*) FROM plain;
CREATE SEQUENCE seq;
CREATE TYPE mood AS ENUM ('sad', 'ok');

CREATE EXTENSION file_fdw;
CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE remote (line text) SERVER files OPTIONS (filename '/dev/null');
