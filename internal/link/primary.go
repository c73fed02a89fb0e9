package link

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/peer"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
	"github.com/hawser/hawser/internal/seed"
)

// Stream serves the other agents' streams. It is peer.Handler's.
func (m *Manager) Stream(ctx context.Context, from, name, kind string, s peer.Stream) error {
	l, err := m.sharedWith(from, name)
	if err != nil {
		return err
	}
	if err := l.serves(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel(nil)
	defer context.AfterFunc(l.ctx, func() { cancel(agentStopped(m.cfg.Instance)) })()
	watch.Go(func() { l.endWhenNotServing(ctx, cancel) })
	switch kind {
	case streamChanges:
		return l.serveChanges(ctx, s)
	case streamSchema:
		return l.serveSchema(ctx, s)
	case streamHold:
		return l.holdComparison(ctx, s)
	case streamRows:
		return seed.ServeRows(ctx, func(ctx context.Context) (*pgx.Conn, error) { return l.connect(ctx, "rows") }, s)
	case streamSeed:
		return seed.Serve(ctx, func(ctx context.Context) (*pgx.Conn, error) { return l.connect(ctx, "seed") }, s, l.publication())
	}
	return problem.New("unknown-stream", "stream "+kind, "this version of Hawser does not know it", "").Advise("run the same version on both sides")
}

// endWhenNotServing ends a stream when this side may not stream any more.
func (l *link) endWhenNotServing(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		_, changed := l.now()
		if err := l.serves(); err != nil {
			cancel(err)
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// serves reports whether this side may stream, by the peer's grant as well. A primary
// that hands over does: what it still has is what the other side waits for.
func (l *link) serves() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.progress != catalog.Running {
		return problem.New("link-"+string(l.progress), "link "+l.rec.Name, "it is "+string(l.progress)+" on the primary", "").Advise("wait a moment").Retry()
	}
	if l.suspended != nil && l.side.Role == role.Primary {
		return l.suspended
	}
	if l.stands != nil {
		return l.stands
	}
	if l.side.Role != role.Primary || l.side.Phase == role.Promoting || expelled(l.side) {
		return problem.New("not-primary", "link "+l.rec.Name,
			fmt.Sprintf("instance %s is %s and %s, and does not stream", l.m.cfg.Instance, l.side.Role, l.side.Phase), "hawser link show "+l.rec.Name).Retry()
	}
	if p := l.mayFlow(); p != nil {
		return p
	}
	return nil
}

// expelled tells that the other side took over without this one.
func expelled(s role.State) bool { return s.Phase == role.Expelled || s.Phase == role.Diverged }

// sink sends capture's frames to the secondary.
type sink struct{ s peer.Stream }

func (k sink) Send(_ context.Context, f frame.Frame) error { return k.s.Send(f) }

// serveChanges streams the database's changes. The secondary's position is its
// own; its term has to be ours, else one of the two lives in the past.
func (l *link) serveChanges(ctx context.Context, s peer.Stream) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	start, ok := first.(frame.Start)
	if !ok {
		return fmt.Errorf("the stream of changes begins with %T", first)
	}
	side, _ := l.now()
	if start.Term != side.Term {
		return problem.New("term-differs", "link "+l.rec.Name,
			fmt.Sprintf("this side is in term %d, the other in term %d", side.Term, start.Term), "").Advise("the sides tell each other their terms by themselves").Retry()
	}
	end, err := l.beginServing()
	if err != nil {
		return err
	}
	defer end()
	if err := l.rowsTaken(ctx); err != nil {
		return err
	}
	if err := l.renew(ctx, side); err != nil {
		return err
	}
	if err := l.useSlot(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	acks := make(chan frame.Ack, 1)
	go receiveAcks(ctx, cancel, s, acks)

	l.update(func() { l.streaming, l.followed, l.cause = true, true, nil })
	defer l.glances.end()
	defer l.update(func() { l.streaming = false })
	l.log.Info("streaming", "to", l.rec.Peer, "from", start.Position, "term", start.Term)
	err = keptOut(l.capture.Run(ctx, start, acks, sink{s}))
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	l.log.Info("stream ended", "cause", err)
	return err
}

// renew brings what the agent's predecessor put into the database to this version. It does
// so once in a run, before the first stream: a planned failover needs a stream, so nothing
// is written behind the handoff.
func (l *link) renew(ctx context.Context, side role.State) error {
	l.renewing.Lock()
	defer l.renewing.Unlock()
	if l.renewed || side.Phase != role.Steady {
		return nil
	}
	conn, err := l.connect(ctx, "renew")
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if err := l.intact(ctx, conn); err != nil {
		return err
	}
	if err := l.recall(ctx, conn); err != nil {
		return err
	}
	if err := capture.InstallDDL(ctx, conn); err != nil {
		return err
	}
	l.renewed = true
	return nil
}

// receiveAcks passes the newest acknowledgement on. It ends when the stream does.
func receiveAcks(ctx context.Context, cancel context.CancelCauseFunc, s peer.Stream, acks chan<- frame.Ack) {
	for {
		f, err := s.Recv()
		if err != nil {
			cancel(fmt.Errorf("the secondary closed the stream: %w", err))
			return
		}
		a, ok := f.(frame.Ack)
		if !ok {
			cancel(fmt.Errorf("unexpected %T among the acknowledgements", f))
			return
		}
		select {
		case acks <- a:
		case <-ctx.Done():
			return
		}
	}
}

// schemaReply is what a secondary needs before the first row.
type schemaReply struct {
	Snapshot frame.Snapshot      `json:"snapshot"`
	Dump     *schema.Dump        `json:"dump"`
	Tables   []catalog.SeedTable `json:"tables"`
	Bare     []uint32            `json:"bare,omitempty"` // tables whose rows the link does not carry
}

// serveSchema dumps the schema and lists the tables, both under one snapshot.
func (l *link) serveSchema(ctx context.Context, s peer.Stream) error {
	reply, err := l.takeSchema(ctx)
	if err != nil {
		return err
	}
	data, err := json.Marshal(reply)
	if err != nil {
		return err
	}
	const piece = 256 << 10
	for len(data) > 0 {
		n := min(piece, len(data))
		if err := s.Send(frame.SeedChunk{Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return s.Send(frame.SeedEnd{Rows: int64(len(reply.Tables))})
}

func (l *link) takeSchema(ctx context.Context) (schemaReply, error) {
	conn, err := l.connect(ctx, "schema")
	if err != nil {
		return schemaReply{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return schemaReply{}, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	var export, current string
	if err := tx.QueryRow(ctx, `SELECT pg_export_snapshot(), pg_current_snapshot()::text`).Scan(&export, &current); err != nil {
		return schemaReply{}, fmt.Errorf("take the schema's snapshot: %w", err)
	}
	var reply schemaReply
	if reply.Snapshot, err = frame.ParseSnapshot(current); err != nil {
		return schemaReply{}, err
	}
	if reply.Tables, err = seed.Tables(ctx, tx, l.publication()); err != nil {
		return schemaReply{}, err
	}
	if reply.Bare, err = l.bareTables(ctx, tx); err != nil {
		return schemaReply{}, err
	}
	reply.Dump, err = schema.TakeDump(ctx, l.m.cfg.Server, l.rec.Database, schema.DumpOptions{Snapshot: export})
	return reply, err
}

// identities are the replica identities that Hawser changed here. The other side takes
// them back as well when the link is dropped.
func (l *link) identities(ctx context.Context) ([]capture.ChangedIdentity, error) {
	conn, err := l.connect(ctx, "identities")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return capture.ChangedIdentities(ctx, conn)
}

// allIdentities are the replica identities of the tables here that are not the default.
func (l *link) allIdentities(ctx context.Context) ([]capture.Identity, error) {
	conn, err := l.connect(ctx, "identities")
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return capture.Identities(ctx, conn)
}

// fetchSchema is the secondary's side of serveSchema.
func (l *link) fetchSchema(ctx context.Context) (schemaReply, error) {
	s, err := l.m.cfg.Peers.Open(ctx, l.rec.Peer, l.rec.Name, streamSchema)
	if err != nil {
		return schemaReply{}, err
	}
	defer s.Close()
	return readSchema(s, maxSchema)
}

// maxSchema bounds the memory that a schema takes of this side: that of hundreds of
// thousands of tables.
const maxSchema = 1 << 30

func readSchema(s peer.Stream, most int) (reply schemaReply, err error) {
	var data []byte
	for {
		f, err := s.Recv()
		if err != nil {
			return reply, fmt.Errorf("receive the schema: %w", err)
		}
		switch f := f.(type) {
		case frame.SeedChunk:
			if len(data)+len(f.Data) > most {
				return reply, problem.New("schema-too-large", "the database's definitions",
					fmt.Sprintf("the primary sends more than the %d bytes that this side takes", most), "").Advise("this is a limit of Hawser: report it, with the number of the database's tables")
			}
			data = append(data, f.Data...)
		case frame.SeedEnd:
			if err := json.Unmarshal(data, &reply); err != nil {
				return reply, fmt.Errorf("read the schema: %w", err)
			}
			return reply, nil
		default:
			return reply, fmt.Errorf("unexpected %T in the schema", f)
		}
	}
}
