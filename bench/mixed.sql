-- What applications do at once: foreign keys, secondary indexes, deletes, large
-- values, a table without a primary key. Shaped after TPC-C, and not TPC-C.
CREATE TABLE warehouse (w integer PRIMARY KEY, ytd numeric(14,2) NOT NULL DEFAULT 0);
CREATE TABLE district (w integer REFERENCES warehouse, d integer, next_o bigint NOT NULL DEFAULT 1, ytd numeric(14,2) NOT NULL DEFAULT 0, PRIMARY KEY (w, d));
CREATE TABLE customer (
	w integer, d integer, c integer, name text NOT NULL, balance numeric(14,2) NOT NULL DEFAULT 0, payments integer NOT NULL DEFAULT 0, data text NOT NULL,
	PRIMARY KEY (w, d, c), FOREIGN KEY (w, d) REFERENCES district);
CREATE INDEX ON customer (w, d, name);
CREATE TABLE item (i integer PRIMARY KEY, name text NOT NULL, price numeric(8,2) NOT NULL);
CREATE TABLE stock (w integer REFERENCES warehouse, i integer REFERENCES item, quantity integer NOT NULL, ytd integer NOT NULL DEFAULT 0, data text NOT NULL, PRIMARY KEY (w, i));
CREATE TABLE orders (
	w integer, d integer, o bigint, c integer NOT NULL, at timestamptz NOT NULL DEFAULT now(), carrier integer, lines integer NOT NULL,
	PRIMARY KEY (w, d, o), FOREIGN KEY (w, d, c) REFERENCES customer);
CREATE INDEX ON orders (w, d, c, o);
CREATE TABLE order_line (
	w integer, d integer, o bigint, n integer, i integer NOT NULL REFERENCES item, quantity integer NOT NULL, amount numeric(8,2) NOT NULL, delivered timestamptz, info text NOT NULL,
	PRIMARY KEY (w, d, o, n), FOREIGN KEY (w, d, o) REFERENCES orders);
CREATE TABLE new_order (w integer, d integer, o bigint, PRIMARY KEY (w, d, o), FOREIGN KEY (w, d, o) REFERENCES orders);
CREATE TABLE payment (w integer, d integer, c integer, at timestamptz NOT NULL DEFAULT now(), amount numeric(8,2) NOT NULL);
CREATE TABLE document (id integer PRIMARY KEY, version integer NOT NULL DEFAULT 0, body text NOT NULL, meta jsonb NOT NULL);
CREATE INDEX ON document USING gin (meta);

CREATE FUNCTION mixed_text(seed integer, pieces integer) RETURNS text LANGUAGE sql AS
	$$SELECT string_agg(md5(seed::text || ':' || x), '') FROM generate_series(1, pieces) x$$;

CREATE FUNCTION mixed_fill(warehouses integer) RETURNS void LANGUAGE sql AS $$
	INSERT INTO warehouse SELECT generate_series(1, warehouses);
	INSERT INTO district (w, d) SELECT w, d FROM warehouse, generate_series(1, 10) d;
	INSERT INTO customer (w, d, c, name, data) SELECT w, d, c, 'name ' || c % 1000, mixed_text(c, 8) FROM district, generate_series(1, 1000) c;
	INSERT INTO item SELECT i, 'item ' || i, i % 100 + 0.99 FROM generate_series(1, 10000) i;
	INSERT INTO stock (w, i, quantity, data) SELECT w, i, 100, md5(i::text) FROM warehouse, item;
	INSERT INTO document SELECT i, 0, mixed_text(i, 250), jsonb_build_object('owner', i % 100, 'kind', 'k' || i % 7) FROM generate_series(1, 2000) i;
$$;

CREATE FUNCTION mixed_order(mw integer, md integer, mc integer, first integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE mo bigint;
BEGIN
	UPDATE district SET next_o = next_o + 1 WHERE w = mw AND d = md RETURNING next_o INTO mo;
	INSERT INTO orders (w, d, o, c, lines) VALUES (mw, md, mo, mc, 10);
	INSERT INTO new_order VALUES (mw, md, mo);
	FOR n IN 1..10 LOOP -- in the order of the key: no deadlocks
		UPDATE stock SET quantity = CASE WHEN quantity > 10 THEN quantity - 1 ELSE 100 END, ytd = ytd + 1 WHERE w = mw AND i = first + n * 7;
		INSERT INTO order_line VALUES (mw, md, mo, n, first + n * 7, 1, 9.99, NULL, md5(mo::text));
	END LOOP;
END $$;

CREATE FUNCTION mixed_payment(mw integer, md integer, mc integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	UPDATE district SET ytd = ytd + 10 WHERE w = mw AND d = md;
	UPDATE customer SET balance = balance - 10, payments = payments + 1 WHERE w = mw AND d = md AND c = mc;
	INSERT INTO payment VALUES (mw, md, mc, now(), 10);
END $$;

CREATE FUNCTION mixed_delivery(mw integer, md integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE mo bigint; mc integer;
BEGIN
	DELETE FROM new_order WHERE (w, d, o) IN (SELECT w, d, o FROM new_order WHERE w = mw AND d = md ORDER BY o LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING o INTO mo;
	IF mo IS NULL THEN RETURN; END IF;
	UPDATE orders SET carrier = 1 WHERE w = mw AND d = md AND o = mo RETURNING c INTO mc;
	UPDATE order_line SET delivered = now() WHERE w = mw AND d = md AND o = mo;
	UPDATE customer SET balance = balance + 100 WHERE w = mw AND d = md AND c = mc;
END $$;

CREATE FUNCTION mixed_document(mid integer, whole boolean) RETURNS void LANGUAGE sql AS $$
	UPDATE document SET version = version + 1, body = CASE WHEN whole THEN mixed_text(mid + version + 1, 250) ELSE body END WHERE id = mid;
$$;
