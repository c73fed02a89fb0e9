package link

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// handoff is the message that ends a term. Any user of the primary may write a
// logical message, so what counts is signed with the key of the DDL messages.
type handoff struct {
	Link      string                `json:"link"`
	Term      frame.Term            `json:"term"` // the new one
	Sequences []frame.SequenceValue `json:"sequences"`
	// For the database's other links: the instance that takes over, and the ids of
	// those that it will take up.
	To    string   `json:"to,omitempty"`
	Heirs []string `json:"heirs,omitempty"`
}

func (h handoff) name() role.Handoff { return role.Handoff{Link: h.Link, Term: h.Term} }

// sign puts a message's HMAC-SHA256, in hexadecimal, in front of it.
func sign(body, key []byte) []byte {
	return append(hex.AppendEncode(nil, digestOf(body, key)), body...)
}

// unsign returns the body of a message that key signed.
func unsign(content, key []byte) (body []byte, ok bool) {
	n := hex.EncodedLen(sha256.Size)
	if len(content) < n || len(key) == 0 {
		return nil, false
	}
	sum, err := hex.DecodeString(string(content[:n]))
	return content[n:], err == nil && hmac.Equal(sum, digestOf(content[n:], key))
}

func digestOf(body, key []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(handoffPrefix))
	h.Write(body)
	return h.Sum(nil)
}

const handoffPrefix = "hawser.handoff"

// hand writes the handoff behind everything that was committed here. It may be
// written twice, after a crash; the second one meets a side that has taken over.
func (l *link) hand(ctx context.Context, term frame.Term) error {
	return l.retry(ctx, "hand over", func(ctx context.Context) error {
		return l.inSwap(ctx, func(conn *pgx.Conn) error { return l.writeHandoff(ctx, conn, term) })
	})
}

func (l *link) writeHandoff(ctx context.Context, conn *pgx.Conn, term frame.Term) error {
	if err := l.sweepRest(ctx, conn); err != nil {
		return err
	}
	values, err := capture.Sequences(ctx, conn)
	if err != nil {
		return err
	}
	l.mu.Lock()
	accepted := l.accepted
	l.mu.Unlock()
	content, err := json.Marshal(handoff{Link: l.rec.ID, Term: term, Sequences: values, To: l.rec.Peer, Heirs: accepted})
	if err != nil {
		return err
	}
	key, err := capture.DDLKey(ctx, conn)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, `SELECT pg_logical_emit_message(true, $1::text, $2::text)`, handoffPrefix, string(sign(content, key)))
	if err != nil {
		return fmt.Errorf("write the handoff: %w", err)
	}
	return nil
}

// accepts tells the applier whether a handoff counts: it is of this link, and of
// a term that is neither over nor refused; or of another link of the database.
func (l *link) accepts(content, key []byte, complete bool) bool {
	body, ok := unsign(content, key)
	if !ok {
		l.log.Warn("a handoff that the primary's agent did not write was passed over")
		return false
	}
	var h handoff
	if err := json.Unmarshal(body, &h); err != nil {
		return false
	}
	if h.Link != l.rec.ID {
		return l.stopsAt(h, complete)
	}
	side, _ := l.now()
	if side.Role != role.Secondary || h.Term <= side.Term || h.Term <= side.Floor {
		return false
	}
	if !complete {
		// DDL just before the failover left tables to be copied again. The primary
		// writes again as soon as it hears of it.
		l.log.Warn("a handoff is refused: tables are still to be copied")
		l.done.Go(func() {
			if _, err := l.refuse(l.ctx, h.Term); err == nil {
				l.meetPeer(l.ctx)
			}
		})
		return false
	}
	return true
}

// refuse promises that this side will not take over with term, unless it has.
func (l *link) refuse(ctx context.Context, term frame.Term) (role.State, error) {
	return l.ask(ctx, role.RefusalAsked{Term: term})
}

// askRefusal asks until the other side answers: until then it may have taken over.
func (l *link) askRefusal(ctx context.Context, term frame.Term) {
	defer l.obstruct(nil)
	for wait := NewBackoff(); ; {
		var theirs role.State
		err := l.m.call(ctx, l.rec.Peer, l.rec.Name, callRefuse, refuseRequest{term}, &theirs)
		if err == nil {
			l.answer(ctx, role.PeerSeen{Peer: theirs}, nil)
			return
		}
		l.log.Warn("this side stays fenced until the other one answers whether it took over", "error", err)
		l.obstruct(l.unanswered(err))
		if !wait.Sleep(ctx) {
			return
		}
	}
}

// unanswered is why a side that handed over stays closed, and what opens one of the two.
func (l *link) unanswered(err error) *problem.Problem {
	p := problem.New("outcome-unknown", "link "+l.rec.Name,
		"instance "+l.rec.Peer+" has not answered whether it took over, so this side takes no writes", "hawser link show "+l.rec.Name).Because(err)
	if err != nil {
		why := problem.Of(err, "")
		p.Cause, p.Remedy, p.Place, p.Advice = p.Cause+": "+why.Cause, cmp.Or(why.Remedy, p.Remedy), why.Place, why.Advice
	}
	return p.Advise(joined(p.Advice, "bring instance "+l.rec.Peer+" back, and this side opens or follows by itself; "+
		"if the two can't reach each other: hawser link failover "+l.rec.Name+" --force on instance "+l.rec.Peer+" opens that one, unless it is open; "+
		"if that is gone for good: hawser link drop "+l.rec.Name+" --force on instance "+l.m.cfg.Instance+", which opens its database as it is"))
}
