// Package capture is the primary's side of a link: the replication slot and the
// publication, the capture of DDL and of sequences, and the stream of frames that
// comes of them.
//
// Records are relayed as the server sent them, in batches; nothing is decoded
// here. This is the only package that confirms a position to the slot, and it
// confirms only what the secondary reported as durable (Ack.Durable): the server
// may then forget that WAL. It must never write to a user's table.
package capture

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"golang.org/x/sync/errgroup"

	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/postgres"
	"github.com/hawser/hawser/internal/problem"
)

const (
	// beatEvery bounds how long the secondary waits to hear of the primary. It is less
	// than a second, so that a sequence is on the secondary within one.
	beatEvery = 800 * time.Millisecond
	// statusEvery is how often the slot is told of progress; far below the
	// server's wal_sender_timeout, which ends a silent connection.
	statusEvery = 200 * time.Millisecond
	// quietBeats is how many beats pass between two statuses while the primary writes
	// nothing.
	quietBeats = 6
	// anywayBeats is how many beats pass until sequences are read though no session was
	// seen: one of a background worker is not counted.
	anywayBeats = 75
	// batchBytes is the size at which a batch is full. While the sink blocks, one
	// batch is being sent and one is being filled, so this bounds the memory too.
	batchBytes = 512 << 10
)

// Config says what to capture.
type Config struct {
	Link     string // its name, for words
	ID       string // names slot and publication
	Database string
	Server   *postgres.Server
	Watch    *Watch // of Server, shared by its links; nil: one of its own
}

// Capture streams one link's changes. Run may be called again after it returned;
// the other methods may be called at any time, from any goroutine.
type Capture struct {
	cfg Config
	lag lagMeter
}

// New returns a capture that has touched nothing yet.
func New(cfg Config) *Capture {
	if cfg.Watch == nil {
		cfg.Watch = NewWatch(cfg.Server)
	}
	return &Capture{cfg: cfg}
}

// Object is the name that slot, publication and origin of a link share.
func Object(id string) string { return "hawser_" + id }

// Lag is how far the secondary is behind, as the primary sees it.
func (c *Capture) Lag() Lag { return c.lag.read(time.Now()) }

// Run streams to sink from start.Position until ctx ends, the server closes the
// connection, or sink fails. acks are the secondary's acknowledgements.
func (c *Capture) Run(ctx context.Context, start frame.Start, acks <-chan frame.Ack, sink frame.Sink) error {
	conn, err := c.cfg.Server.ConnectReplication(ctx, postgres.Session{
		Database: c.cfg.Database, Purpose: c.cfg.Link + ":capture", Settings: postgres.ValueSettings()})
	if err != nil {
		return fmt.Errorf("open the replication connection: %w", err)
	}
	defer closeSoon(conn)
	if err := postgres.KeepBytes(ctx, conn); err != nil {
		return err
	}
	beats := session(c.cfg.Database, c.cfg.Link+":heartbeat")
	beats.Settings["lock_timeout"] = "100ms"
	sql, err := c.cfg.Server.Connect(ctx, beats)
	if err != nil {
		return fmt.Errorf("open the heartbeat's connection: %w", err)
	}
	defer sql.Close(context.WithoutCancel(ctx))

	confirmed, err := meetSlot(ctx, sql, c.cfg, start.Position)
	if err != nil {
		return err
	}
	// A slot does not go back: the secondary asks for its last transaction once more,
	// which the slot may have confirmed.
	floor := max(start.Position, confirmed)
	r := &run{Capture: c, conn: conn, sql: sql, sink: sink, confirmed: frame.Ack{Received: floor, Durable: floor, Visible: floor}, asked: make(chan struct{}, 1), asks: make(chan struct{}, 1)}
	r.batch.init()
	// The first heartbeat brings a snapshot: the secondary needs one to know the
	// epoch of the transaction ids that follow. Its End is where the slot stands.
	r.self = listener{c.cfg.Database, int32(sql.PgConn().PID())}
	first := lookAt(ctx, sql, r.self)
	if first.err != nil {
		return first.err
	}
	if err := r.beat(ctx, confirmed, first); err != nil {
		return err
	}
	defer c.cfg.Watch.join(r.self)()
	if err := r.start(ctx, start.Position); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.receive(ctx) })
	g.Go(func() error { return r.forward(ctx) })
	g.Go(func() error { return r.heartbeats(ctx) })
	g.Go(func() error { return r.confirm(ctx, acks) })
	g.Go(func() error { <-ctx.Done(); r.batch.close(); return ctx.Err() })
	return g.Wait()
}

// run is what one Run owns.
type run struct {
	*Capture
	conn *pgconn.PgConn
	sql  *pgx.Conn
	sink frame.Sink

	batch     batch
	sendMu    sync.Mutex    // one frame at a time
	confirmed frame.Ack     // owned by confirm
	asked     chan struct{} // the server wants a status now
	asks      chan struct{} // the server is to be asked how far it is
	self      listener
	sequences sequences
	seen      activity // when all sequences were read last
	quiet     int      // beats since they were
}

// sqlStreamSooner bounds what the server keeps of transactions in memory before it begins
// to stream them: the secondary has the sooner something to do.
const sqlStreamSooner = `SELECT pg_catalog.set_config(name, least(setting::bigint, 16384)::text, false)
FROM pg_catalog.pg_settings WHERE name = 'logical_decoding_work_mem'`

// start begins the stream. The server skips what was committed before position,
// and what the slot has confirmed already.
func (r *run) start(ctx context.Context, position frame.LSN) error {
	name := Object(r.cfg.ID)
	if _, err := r.conn.Exec(ctx, sqlStreamSooner).ReadAll(); err != nil {
		return fmt.Errorf("bound the memory of decoding: %w", err)
	}
	err := pglogrepl.StartReplication(ctx, r.conn, name, pglogrepl.LSN(position), pglogrepl.StartReplicationOptions{
		PluginArgs: []string{
			"proto_version '2'",
			"publication_names '" + name + "'",
			"messages 'true'",
			"streaming 'true'",
		},
	})
	if err == nil {
		return nil
	}
	return slotProblem(name, err)
}

func slotProblem(name string, err error) error {
	object := "replication slot " + name
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return fmt.Errorf("start replication from %s: %w", object, err)
	}
	switch pg.Code {
	case "55006": // object_in_use
		return problem.New("slot-in-use", object,
			"another connection still streams from it; it ends by itself within wal_sender_timeout",
			"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '"+name+"';").Advise("only if it stays so: an earlier connection ends by itself").At("the primary").Retry().Because(err)
	case "42704": // undefined_object
		return problem.New("slot-lost", object,
			"it does not exist any more, so changes may be missing from the stream",
			"hawser link resync NAME").Advise("it compares the tables and copies those that differ").Because(err)
	case "55000": // object_not_in_prerequisite_state: invalidated
		return problem.New("slot-invalidated", object,
			"PostgreSQL invalidated it, most likely since max_slot_wal_keep_size was exceeded, so changes are missing from the stream",
			"hawser link resync NAME").Advise("it compares the tables and copies those that differ").Because(err)
	}
	if postgres.TooLarge(err) {
		return problem.New("row-too-large", "a change of the database ("+pg.Where+")",
			"PostgreSQL can't send the row, whose text would be larger than 1 GB (that of a bytea has two characters a byte): "+pg.Message,
			"SELECT pg_drop_replication_slot('"+name+"');").Advise("before that make the row's values smaller; after it hawser link resync NAME, which compares the tables and copies those that differ").At("the primary").Because(err)
	}
	return fmt.Errorf("start replication from %s: %w", object, err)
}

// receive reads the replication connection and fills the batch. It blocks when
// the batch is full, and TCP's flow control then holds the server.
func (r *run) receive(ctx context.Context) error {
	// A context that pgx watches costs more than the message; so the end of ctx ends the
	// connection's reads.
	defer context.AfterFunc(ctx, func() { _ = r.conn.Conn().SetReadDeadline(time.Now()) })()
	pause, err := newRester()
	if err != nil {
		return err
	}
	defer pause.close()
	for {
		if r.conn.Frontend().ReadBufferLen() == 0 {
			if err := pause.rest(r.batch.rest()); err != nil { // at most a few paces
				return err
			}
		}
		msg, err := r.conn.ReceiveMessage(context.Background())
		if err != nil {
			return fmt.Errorf("read the replication stream: %w", err)
		}
		switch m := msg.(type) {
		case *pgproto3.CopyData:
			if err := r.copyData(m.Data); err != nil {
				return err
			}
		case *pgproto3.ErrorResponse:
			return slotProblem(Object(r.cfg.ID), pgconn.ErrorResponseToPgError(m))
		case *pgproto3.CopyDone:
			return problem.New("stream-ended", "replication slot "+Object(r.cfg.ID),
				"the server ended the stream, as it does at shutdown", "").Advise("the link connects again by itself").Retry()
		}
	}
}

func (r *run) copyData(data []byte) error {
	if len(data) == 0 {
		return errors.New("empty message in the replication stream")
	}
	switch data[0] {
	case pglogrepl.XLogDataByteID:
		x, err := pglogrepl.ParseXLogData(data[1:])
		if err != nil {
			return fmt.Errorf("read a WAL message: %w", err)
		}
		return r.batch.add(frame.LSN(x.WALStart), x.WALData)
	case pglogrepl.PrimaryKeepaliveMessageByteID:
		k, err := pglogrepl.ParsePrimaryKeepaliveMessage(data[1:])
		if err != nil {
			return fmt.Errorf("read a keepalive: %w", err)
		}
		if k.ReplyRequested {
			signal(r.asked)
		}
		return r.batch.keepalive(frame.LSN(k.ServerWALEnd))
	default:
		return fmt.Errorf("unknown message %q in the replication stream", data[0])
	}
}

// forward sends what receive gathered: one frame while the line is slow, a small
// one at once while it is idle.
func (r *run) forward(ctx context.Context) error {
	for {
		r.batch.lags(time.Duration(r.lag.read(time.Now()).Seconds * float64(time.Second)))
		records, end, err := r.batch.take()
		if err != nil {
			return err
		}
		if len(records) > 0 {
			r.lag.sent(records[len(records)-1].LSN, time.Now())
			if err := r.send(ctx, frame.Data{Records: records}); err != nil {
				return err
			}
		}
		if end > 0 {
			r.lag.shipped(end)
			if err := r.send(ctx, frame.Heartbeat{End: end, At: time.Now()}); err != nil {
				return err
			}
		}
	}
}

func (r *run) send(ctx context.Context, f frame.Frame) error {
	r.sendMu.Lock()
	defer r.sendMu.Unlock()
	if err := r.sink.Send(ctx, f); err != nil {
		return fmt.Errorf("send to the secondary: %w", err)
	}
	return nil
}

func (r *run) heartbeats(ctx context.Context) error {
	for {
		l, err := r.cfg.Watch.wait(ctx)
		if err != nil && ctx.Err() == nil { // that it can't look is no reason to end what streams
			l = lookAt(ctx, r.sql, r.self)
			err = l.err
		}
		if err == nil {
			err = r.beat(ctx, 0, l)
		}
		if err != nil {
			return err
		}
		// Where nothing is written at all, the server need hear nothing for a while; all links
		// of a server then speak at once.
		if l.n%quietBeats == 0 || !r.lag.allReceived() {
			signal(r.asks)
		}
	}
}

// signal wakes up confirm, if it has not been already.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// beat sends the sequences that moved, the clock, a snapshot and the lag. The sequences
// come first: the secondary sets them when it reads the rest. Once the stream runs its
// End is 0: only the replication connection knows what was sent before it.
func (r *run) beat(ctx context.Context, end frame.LSN, l look) error {
	moved, err := r.movedSequences(ctx, l.activity[r.cfg.Database])
	if err != nil {
		return fmt.Errorf("ask the primary for its sequences: %w", err)
	}
	if len(moved) > 0 {
		if err := r.send(ctx, frame.Sequences{Values: moved}); err != nil {
			return err
		}
	}
	now := time.Now()
	r.lag.sample(l.flushed, now)
	lag := r.lag.read(now)
	return r.send(ctx, frame.Heartbeat{End: end, At: now, Snapshot: l.snapshot, LagBytes: lag.Bytes, LagSeconds: lag.Seconds})
}

// movedSequences asks for them where anybody was at work since the last time.
func (r *run) movedSequences(ctx context.Context, a activity) ([]frame.SequenceValue, error) {
	r.quiet++
	if a == r.seen && a.marks != "" && !a.busy && r.quiet < anywayBeats {
		return nil, nil
	}
	r.seen, r.quiet = activity{}, 0
	moved, whole, err := r.sequences.moved(ctx, r.sql)
	switch {
	case beingChanged(err):
		return nil, nil // the next beat asks again
	case whole:
		r.seen = a
	}
	return moved, err
}

// confirm tells the server what the secondary has. It runs beside receive on the
// same connection: one reads, one writes.
func (r *run) confirm(ctx context.Context, acks <-chan frame.Ack) error {
	// A status follows an acknowledgement within statusEvery. A reply to it moves End on
	// while nothing of this database is written.
	soon := time.NewTimer(statusEvery)
	defer soon.Stop()
	told, waits := r.confirmed, true
	for asks := false; ; asks = false {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case a, ok := <-acks:
			if !ok {
				return errors.New("the secondary closed the stream")
			}
			r.confirmed = a
			r.lag.acked(a, time.Now())
			if a != told && !waits {
				soon.Reset(statusEvery)
				waits = true
			}
			continue
		case <-soon.C:
			waits = false
		case <-r.asked:
		case <-r.asks:
			asks = true
		}
		if err := sendStatus(ctx, r.conn, r.confirmed, asks); err != nil {
			return fmt.Errorf("confirm a position to the slot: %w", err)
		}
		told = r.confirmed
	}
}

// sendStatus is the one place that confirms WAL to a slot. pglogrepl takes a
// flush position of 0 for "as written", which would confirm what is not durable.
func sendStatus(ctx context.Context, conn *pgconn.PgConn, a frame.Ack, ask bool) error {
	if a.Durable == 0 || a.Visible == 0 {
		return nil
	}
	return pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{
		WALWritePosition: pglogrepl.LSN(a.Received),
		WALFlushPosition: pglogrepl.LSN(a.Durable),
		WALApplyPosition: pglogrepl.LSN(a.Visible),
		ReplyRequested:   ask,
	})
}

func session(database, purpose string) postgres.Session {
	return postgres.Session{Database: database, Purpose: purpose, Settings: map[string]string{
		"session_replication_role":      "replica",
		postgres.AgentSetting:           "on",
		"default_transaction_read_only": "off",
		"statement_timeout":             "0",
	}}
}

// closeSoon ends a connection without waiting for a server that does not answer.
func closeSoon(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
