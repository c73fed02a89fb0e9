package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/apply"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/peer"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/verify"
)

// A comparison takes a snapshot on the primary, then brings the replica, for a
// moment, into exactly that state and takes one there. Nobody waits for longer
// than that moment; the rows are read under the two snapshots afterwards.

// comparison is the primary's part: a transaction that holds its snapshot.
type comparison struct {
	conn  *pgx.Conn
	local *verify.Local
	held  bool // by holdComparison
	timer *time.Timer
}

// comparisonIdle ends a comparison that is not held, as an older agent's, and whose other
// side does not ask any more.
const comparisonIdle = 10 * time.Minute

type compareOpened struct {
	ID       string         `json:"id"`
	Export   string         `json:"export"`
	Snapshot frame.Snapshot `json:"snapshot"`
	Until    frame.LSN      `json:"until"`
}

// compareRequest is a call on the primary's side of a comparison.
type compareRequest struct {
	ID   string          `json:"id"`
	What string          `json:"what"` // a method of verify.Side, or close
	Args json.RawMessage `json:"args,omitempty"`
}

// VerifyReport is a comparison and where it was made.
type VerifyReport struct {
	verify.Report
	Position frame.LSN `json:"position"` // of the primary
	At       time.Time `json:"at"`
}

// Verify proves whether both sides hold the same at one position, under running
// writes. It may be asked of either side; the secondary does it.
func (m *Manager) Verify(ctx context.Context, name string) (VerifyReport, error) {
	l, err := m.find(name)
	if err != nil {
		return VerifyReport{}, err
	}
	report, err := l.verify(ctx)
	return report, l.explained(ctx, err)
}

// Database names the database of a link; "" where there is no such link.
func (m *Manager) Database(name string) string {
	l, err := m.find(name)
	if err != nil {
		return ""
	}
	return l.rec.Database
}

// verify asks the secondary. Behind a change of roles neither side may know yet that it is.
func (l *link) verify(ctx context.Context) (report VerifyReport, err error) {
	l.whileOpening(ctx, func() bool {
		report, err = l.verifyOnce(ctx)
		p, ok := problem.As(err)
		return !ok || p.Code != codeNoSecondary
	})
	return report, err
}

func (l *link) verifyOnce(ctx context.Context) (VerifyReport, error) {
	if side, _ := l.now(); side.Role == role.Primary && !expelled(side) {
		var report VerifyReport
		err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callVerify, struct{}{}, &report)
		return report, err
	}
	return l.verifyHere(ctx)
}

// verifyHere is the secondary's part.
func (l *link) verifyHere(ctx context.Context) (VerifyReport, error) {
	l.whileOpening(ctx, func() bool { return l.following() != nil || !l.unopened() })
	if err := l.follower(); err != nil {
		return VerifyReport{}, err
	}
	if l.following() != nil { // else compareOnce says why not
		if err := l.sweepThere(ctx); err != nil {
			return VerifyReport{}, err
		}
	}
	report, err := l.compareFollowing(ctx, verify.RunOptions{})
	if err == nil && report.Equal {
		err = l.forgetHoles(ctx)
	}
	return report, err
}

// sweepThere has the primary put into the stream what fired no event. It fails where what
// captures DDL there is not whole.
func (l *link) sweepThere(ctx context.Context) error {
	err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callSweep, nothing{}, nil)
	if isUnknownCall(err) {
		return nil
	}
	return err
}

// follower refuses what only a secondary does. What was asked of one side goes to the other
// once at most: after a forced failover, until they agree, both are primaries.
func (l *link) follower() error {
	side, _ := l.now()
	switch {
	case side.Role == role.Secondary:
		return nil
	case expelled(side):
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.diverged()
	}
	return problem.New(codeNoSecondary, "link "+l.rec.Name, "neither side is the secondary at this moment", "hawser link show "+l.rec.Name).Advise("on both sides").Retry()
}

const codeNoSecondary = "no-secondary"

// whileOpening tries again, as long as this side has only just begun or changed its role
// and its stream may open any moment, until something is done. That it waits stands in the
// status.
func (l *link) whileOpening(ctx context.Context, done func() bool) {
	l.mu.Lock()
	ctx, cancel := context.WithDeadline(ctx, l.turned.Add(openWithin))
	l.mu.Unlock()
	defer cancel()
	for waits := false; !done() && ctx.Err() == nil; waits = true {
		if !waits {
			l.update(func() { l.verifying++ })
			defer l.update(func() { l.verifying-- })
		}
		select {
		case <-ctx.Done():
		case <-l.ctx.Done():
			return
		case <-time.After(openingEvery):
		}
	}
}

// openingEvery is how often a comparison looks whether the stream is open.
const openingEvery = 50 * time.Millisecond

// unopened tells that a stream is missing, and nothing but time stands against it.
func (l *link) unopened() bool {
	s := l.status()
	return s.State == FailingOver || s.State == Disconnected && s.Cause != nil && (s.Cause.Retryable || s.Cause.Severity == problem.Note)
}

// following is the applier of a secondary that has all of its tables and takes in what
// the primary writes; nil at any other time.
func (l *link) following() *apply.Applier {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.seeded {
		return nil
	}
	return l.applier
}

// compareFollowing compares while the replica follows.
func (l *link) compareFollowing(ctx context.Context, o verify.RunOptions) (VerifyReport, error) {
	for wait := NewBackoff(); ; {
		report, err := l.compareOnce(ctx, o)
		if !errors.Is(err, apply.ErrNotPrefix) || !wait.Sleep(ctx) {
			return report, err
		}
	}
}

func (l *link) compareOnce(ctx context.Context, o verify.RunOptions) (VerifyReport, error) {
	a := l.following()
	if a == nil {
		s := l.informed(ctx)
		return VerifyReport{}, notFollowing(s, fmt.Sprintf("the primary can't be read as it was at the position where the replica stands, which is %s", s.State),
			"verify when it is synchronized; of a link that stands, hawser link resync "+l.rec.Name+" compares both sides as they are")
	}
	var theirs remoteSide
	var export string
	conn, err := l.connect(ctx, "verify")
	if err != nil {
		return VerifyReport{}, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	left := func() {}
	defer func() { left() }()
	err = a.AtSnapshot(ctx, func(context.Context) (_ frame.Snapshot, _ frame.LSN, err error) {
		theirs, left, err = l.openRemote(ctx)
		return theirs.Snapshot, theirs.Until, err
	}, func(ctx context.Context) error {
		export, _, _, err = exportSnapshot(ctx, conn)
		return err
	})
	if err != nil {
		return VerifyReport{}, err
	}
	o.Listed, o.Behind = !l.filter().All(), func() (bool, error) { return l.behind(a) }
	report, err := verify.Run(ctx, theirs, l.localSide(export), o)
	return VerifyReport{Report: report, Position: theirs.Until, At: time.Now()}, err
}

// behind tells whether an applier has some while of the primary's changes before it. Its
// sequences are behind then, too.
func (l *link) behind(a *apply.Applier) (bool, error) {
	l.mu.Lock()
	same := l.applier == a
	l.mu.Unlock()
	if !same {
		return false, problem.New("comparison-ended", "link "+l.rec.Name, "the stream of changes was interrupted before the sequences were compared",
			"hawser link verify "+l.rec.Name).Retry()
	}
	s := l.status()
	return s.State != Synchronized || s.LagSeconds > stale.Seconds(), nil
}

func (l *link) localSide(export string) *verify.Local {
	var o verify.Options
	if side, _ := l.now(); side.Role == role.Primary {
		o.Publication = l.publication()
	}
	return verify.NewLocal(func(ctx context.Context) (*pgx.Conn, error) { return l.connect(ctx, "verify") }, export, o)
}

// exportSnapshot begins a transaction whose snapshot other sessions can take up. The
// position is read right behind the snapshot.
func exportSnapshot(ctx context.Context, conn *pgx.Conn) (export, current, lsn string, err error) {
	if _, err = conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`); err == nil {
		err = conn.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text, pg_export_snapshot(), pg_current_snapshot()::text`).Scan(&lsn, &export, &current)
	}
	if err != nil {
		return "", "", "", fmt.Errorf("take a snapshot to compare under: %w", err)
	}
	return export, current, lsn, nil
}

// sweepAsked is the primary's: what fires no event trigger, such as a setting of the
// database, would differ until the next sweep.
func (l *link) sweepAsked(ctx context.Context) error {
	if err := l.serves(); err != nil {
		return err
	}
	if side, _ := l.now(); side.Phase != role.Steady || l.left() {
		return nil // nothing comes behind a handoff
	}
	return l.sweepNow(ctx)
}

// openComparison is the primary's part of openRemote.
func (l *link) openComparison(ctx context.Context) (compareOpened, error) {
	if err := l.serves(); err != nil {
		return compareOpened{}, err
	}
	conn, err := l.connect(ctx, "verify")
	if err != nil {
		return compareOpened{}, err
	}
	export, current, lsn, err := exportSnapshot(ctx, conn)
	out := compareOpened{ID: newID(), Export: export}
	if err == nil {
		out.Snapshot, err = frame.ParseSnapshot(current)
	}
	if err == nil {
		out.Until, err = frame.ParseLSN(lsn)
	}
	if err != nil {
		_ = conn.Close(context.WithoutCancel(ctx))
		return compareOpened{}, err
	}
	c := &comparison{conn: conn, local: l.localSide(export)}
	c.timer = time.AfterFunc(comparisonIdle, func() { l.closeComparison(out.ID) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.comparisons == nil {
		l.comparisons = map[string]*comparison{}
	}
	l.comparisons[out.ID] = c
	return out, nil
}

// holdComparison keeps a comparison as long as the secondary's stream lasts. Its own part may
// take hours, and when its agent dies the snapshot has to end, which holds up VACUUM and
// CREATE INDEX CONCURRENTLY here.
func (l *link) holdComparison(ctx context.Context, s peer.Stream) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	id, ok := first.(frame.SeedChunk)
	if !ok {
		return fmt.Errorf("the stream of a comparison begins with %T", first)
	}
	defer l.closeComparison(string(id.Data))
	l.mu.Lock()
	if c := l.comparisons[string(id.Data)]; c != nil {
		c.held = true
		c.timer.Stop()
	}
	l.mu.Unlock()
	ended := make(chan error, 1)
	go func() { // ends with the stream, which ends when this returns
		_, err := s.Recv()
		ended <- err
	}()
	select {
	case err = <-ended:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (l *link) closeComparison(id string) {
	l.mu.Lock()
	c := l.comparisons[id]
	delete(l.comparisons, id)
	l.mu.Unlock()
	if c != nil {
		c.timer.Stop()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.conn.Close(ctx)
	}
}

// compare answers the secondary's questions about the primary's side.
func (l *link) compare(ctx context.Context, r compareRequest) (any, error) {
	l.mu.Lock()
	c := l.comparisons[r.ID]
	if c != nil && !c.held {
		c.timer.Reset(comparisonIdle)
	}
	l.mu.Unlock()
	if c == nil {
		return nil, problem.New("comparison-ended", "link "+l.rec.Name, "the primary ended the comparison, as its agent does when it restarts", "hawser link verify "+l.rec.Name).Retry()
	}
	switch r.What {
	case "close":
		l.closeComparison(r.ID)
		return nothing{}, nil
	case "inventory":
		return c.local.Inventory(ctx)
	case "sequences":
		return c.local.Sequences(ctx)
	case "digest":
		return ask(ctx, r.Args, c.local.Digest)
	case "buckets":
		return ask(ctx, r.Args, c.local.Buckets)
	case "rows":
		return ask(ctx, r.Args, c.local.Rows)
	}
	return nil, problem.New(codeUnknownCall, "comparison "+r.What, "this version of Hawser does not know it", "").Advise("run the same version on both sides")
}

func ask[Q, R any](ctx context.Context, args json.RawMessage, do func(context.Context, Q) (R, error)) (any, error) {
	var q Q
	if err := json.Unmarshal(args, &q); err != nil {
		return nil, err
	}
	return do(ctx, q)
}

// remoteSide is the primary's side, reached through the peer.
type remoteSide struct {
	l *link
	compareOpened
}

// endWithin bounds how long the end of a comparison waits for the primary to hear of it.
const endWithin = time.Second

// openRemote has the primary take a snapshot and hold it until left is called, or this
// agent dies.
func (l *link) openRemote(ctx context.Context) (theirs remoteSide, left func(), err error) {
	theirs.l = l
	if err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callCompareOpen, nothing{}, &theirs.compareOpened); err != nil {
		return theirs, func() {}, err
	}
	end := func() { // the stream's end tells it, too
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWithin)
		defer cancel()
		_ = theirs.ask(ctx, "close", nil, nil)
	}
	hold, err := l.m.cfg.Peers.Open(ctx, l.rec.Peer, l.rec.Name, streamHold)
	if err == nil {
		err = hold.Send(frame.SeedChunk{Data: []byte(theirs.ID)})
	}
	if err != nil {
		end()
		return theirs, func() {}, err
	}
	return theirs, func() {
		end()
		_ = hold.Close()
	}, nil
}

func (s remoteSide) ask(ctx context.Context, what string, args, reply any) error {
	data, err := json.Marshal(args)
	if err != nil {
		return err
	}
	return s.l.m.call(ctx, s.l.rec.Peer, s.l.rec.Name, callCompare, compareRequest{s.ID, what, data}, reply)
}

func askFor[R any](ctx context.Context, s remoteSide, what string, args any) (R, error) {
	var reply R
	err := s.ask(ctx, what, args, &reply)
	return reply, err
}

func (s remoteSide) Inventory(ctx context.Context) (verify.Inventory, error) {
	return askFor[verify.Inventory](ctx, s, "inventory", nil)
}

func (s remoteSide) Sequences(ctx context.Context) ([]verify.Sequence, error) {
	return askFor[[]verify.Sequence](ctx, s, "sequences", nil)
}

func (s remoteSide) Digest(ctx context.Context, r verify.DigestRequest) ([]verify.TableDigest, error) {
	return askFor[[]verify.TableDigest](ctx, s, "digest", r)
}

func (s remoteSide) Buckets(ctx context.Context, r verify.BucketsRequest) ([]verify.Bucket, error) {
	return askFor[[]verify.Bucket](ctx, s, "buckets", r)
}

func (s remoteSide) Rows(ctx context.Context, r verify.RowsRequest) ([]verify.Row, error) {
	return askFor[[]verify.Row](ctx, s, "rows", r)
}
