package link

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/grant"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
)

// Methods of the calls between the two agents of a link, and the kinds of their
// streams. A payload is JSON; an unknown field is ignored, so that a newer agent
// may say more.
const (
	callValidate      = "validate"       // validateRequest -> problem.Findings
	callInspect       = "inspect"        // inspectRequest -> schema.Requirements, to a primary-to-be
	callDDLKey        = "ddl-key"        // the key that signs the primary's messages
	callMaker         = "maker"          // makerRequest -> schema.Maker, to the primary
	callCreate        = "create"         // createRequest -> createReply
	callStart         = "start"          // the link stands on both sides
	callDrop          = "drop"           // dropRequest -> dropReply
	callState         = "state"          // meeting -> meeting
	callStatus        = "status"         // Status
	callPause         = "pause"          // pauseRequest
	callFailover      = "failover"       // FailoverOptions -> FailoverResult
	callPrepare       = "prepare"        // prepareRequest, to the secondary: get ready to take over
	callUnprepare     = "unprepare"      // to the secondary: the failover was taken back
	callOutcome       = "outcome"        // the last FailoverResult or null -> the other side's
	callSequences     = "sequences"      // []frame.SequenceValue -> []unfitSequence, to the secondary
	callRefuse        = "refuse"         // refuseRequest -> role.State
	callVerify        = "verify"         // to the secondary: VerifyReport
	callSweep         = "sweep"          // to the primary: put into the stream what fired no event
	callResync        = "resync"         // resyncRequest, to the secondary
	callRenewSlot     = "renew-slot"     // slotRequest -> slotReply, to the primary
	callHolds         = "holds"          // to the primary: whether its slot has all since this side handed over, or was forced out
	callMaxWAL        = "max-wal"        // maxWALSetting -> the one in force
	callDropSlot      = "drop-slot"      // to the primary: the renewed slot is not wanted after all
	callLogins        = "logins"         // to the primary: the roles whose clients use the database, []string
	callLockedOut     = "locked-out"     // []string -> those that can't log in, to the secondary
	callIdentities    = "identities"     // to the primary: []capture.ChangedIdentity
	callAllIdentities = "all-identities" // to the primary: []capture.Identity
	callTables        = "tables"         // to the primary: its tables, []catalog.SeedTable
	callViews         = "views"          // to the primary: viewsRequest -> []laidView

	callHandoff = "handoff" // to the primary: outcomeRequest -> outcomeReply
	callWhere   = "where"   // whereRequest -> whereReply, to any instance
	callTakeUp  = "take-up" // takeUpRequest -> role.State, to a primary-to-be

	callCompareOpen = "compare-open" // to the primary: compareOpened
	callCompare     = "compare"      // compareRequest -> a part of verify.Side

	streamChanges = "changes" // frame.Start, then data one way and acks the other
	streamSeed    = "seed"    // frame.SeedRequest …
	streamRows    = "rows"    // seed.RowsRequest …
	streamHold    = "hold"    // a comparison's ID in a SeedChunk, then nothing for as long as it lasts
	streamSchema  = "schema"  // schemaReply as JSON in SeedChunks, then SeedEnd
)

// makerRequest asks of a table with rows in a transaction.
type makerRequest struct {
	OID uint32 `json:"oid"`
	XID uint32 `json:"xid"`
}

type validateRequest struct {
	Database string    `json:"database"`
	Role     role.Role `json:"role"` // of the side that is asked
	Source   []byte    `json:"source,omitempty"`
	filter.Filter
}

type inspectRequest struct {
	Database string `json:"database"`
}

type createRequest struct {
	ID       string    `json:"id"`
	Database string    `json:"database"`
	Role     role.Role `json:"role"` // of the side that is asked
	From     frame.LSN `json:"from"` // where the primary's slot begins, for a secondary
	Settings []byte    `json:"settings,omitempty"`
	MaxWAL   *int64    `json:"max_wal,omitempty"`
	filter.Filter
}

type createReply struct {
	From     frame.LSN `json:"from"`               // of a primary
	Settings []byte    `json:"settings,omitempty"` // of a primary's database
	// The filter is told back: an agent that does not know filters would carry all.
	filter.Filter
}

type dropRequest struct {
	RemoveReplica bool   `json:"remove_replica"`
	Force         bool   `json:"force,omitempty"` // also a replica that stays and is not complete
	ID            string `json:"id,omitempty"`    // of the link that is meant, where one of the name may be another
}

type dropReply struct {
	Left problem.Findings `json:"left,omitempty"` // what stays that a person has to know of
}

type pauseRequest struct {
	Paused bool `json:"paused"`
}

type resyncRequest struct {
	Tables []string `json:"tables"`
}

type prepareRequest struct {
	Patience time.Duration `json:"patience"` // how long the secondary may wait until it follows
	Term     frame.Term    `json:"term"`     // that the handoff will bring
	Siblings []sibling     `json:"siblings,omitempty"`
	Users    []string      `json:"users,omitempty"` // roles whose clients use the primary
}

// meeting is one side's state, and which link of the name it means.
type meeting struct {
	role.State
	ID string `json:"id,omitempty"` // older agents do not tell
}

type refuseRequest struct {
	Term frame.Term `json:"term"`
}

// call asks the peer of a link and reads its answer into reply, if not nil.
func (m *Manager) call(ctx context.Context, peer, link, method string, request, reply any) error {
	payload, err := json.Marshal(request)
	if err != nil {
		return err
	}
	answer, err := m.cfg.Peers.Call(ctx, peer, link, method, payload)
	if err != nil {
		return fmt.Errorf("ask peer %s to %s link %s: %w", peer, method, link, err)
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(answer, reply); err != nil {
		return fmt.Errorf("read the answer of peer %s to %s: %w", peer, method, err)
	}
	return nil
}

// databaseCalls are those that need no link here. What each asks for says itself whether
// the peer may have it.
var databaseCalls = map[string]databaseCall{
	callValidate: onDatabase((*Manager).validateSide),
	callInspect: onDatabase(func(m *Manager, ctx context.Context, _, _ string, r inspectRequest) ([]byte, error) {
		return m.inspect(ctx, r.Database)
	}),
	callWhere: onDatabase(func(m *Manager, ctx context.Context, _, from string, r whereRequest) (whereReply, error) {
		return m.where(ctx, from, r)
	}),
	callTakeUp: onDatabase((*Manager).takeUp),
	callCreate: onDatabase((*Manager).createSide),
}

type databaseCall func(m *Manager, ctx context.Context, name, from string, payload []byte) ([]byte, error)

// claim is a request of a peer that says what it claims.
type claim interface {
	// allowed returns why the peer may not have it, or nil.
	allowed(m *Manager, from string) *problem.Problem
}

func (r validateRequest) allowed(m *Manager, from string) *problem.Problem {
	return m.granted(from, r.Database, wayOf(r.Role))
}

func (r createRequest) allowed(m *Manager, from string) *problem.Problem {
	return m.granted(from, r.Database, wayOf(r.Role))
}

func (r inspectRequest) allowed(m *Manager, from string) *problem.Problem {
	return m.granted(from, r.Database, grant.ToPeer)
}

func (r takeUpRequest) allowed(m *Manager, from string) *problem.Problem {
	return m.granted(from, r.Database, grant.ToPeer)
}

// A peer may ask for its own link, and for those of a database that it may know.
func (r whereRequest) allowed(m *Manager, from string) *problem.Problem {
	l := m.holds("", r.ID)
	if l == nil || l.peer() == from {
		return nil
	}
	return m.granted(from, l.rec.Database, grant.None)
}

func onDatabase[Q claim, R any](do func(m *Manager, ctx context.Context, name, from string, r Q) (R, error)) databaseCall {
	return func(m *Manager, ctx context.Context, name, from string, payload []byte) ([]byte, error) {
		return answer(payload, func(r Q) (reply R, err error) {
			if p := r.allowed(m, from); p != nil {
				return reply, p
			}
			return do(m, ctx, name, from, r)
		})
	}
}

// linkCall is a call on a link that this side has with the peer.
type linkCall struct {
	need need
	do   func(ctx context.Context, l *link, payload []byte) ([]byte, error)
}

func onLink[Q, R any](n need, do func(l *link, ctx context.Context, r Q) (R, error)) linkCall {
	return linkCall{n, func(ctx context.Context, l *link, payload []byte) ([]byte, error) {
		return answer(payload, func(r Q) (R, error) { return do(l, ctx, r) })
	}}
}

type nothing = struct{}

// asked is a call that has nothing to say but its name.
func asked[R any](n need, do func(l *link, ctx context.Context) (R, error)) linkCall {
	return onLink(n, func(l *link, ctx context.Context, _ nothing) (R, error) { return do(l, ctx) })
}

// told is one that has nothing to answer.
func told(n need, do func(l *link, ctx context.Context) error) linkCall {
	return asked(n, func(l *link, ctx context.Context) (nothing, error) { return nothing{}, do(l, ctx) })
}

// linkCalls are all others.
var linkCalls = map[string]linkCall{
	callState:     onLink(settles, (*link).met),
	callRefuse:    onLink(settles, func(l *link, ctx context.Context, r refuseRequest) (role.State, error) { return l.refuse(ctx, r.Term) }),
	callUnprepare: told(settles, (*link).unprepareToLead),
	callOutcome:   onLink(settles, (*link).tellOutcome),
	callHandoff:   onLink(settles, func(l *link, _ context.Context, r outcomeRequest) (outcomeReply, error) { return l.outcome(r), nil }),
	callStatus:    asked(settles, (*link).told),
	callDrop:      onLink(settles, (*link).dropAsked),

	callStart: told(flows, (*link).startRunning),
	callPause: onLink(flows, func(l *link, ctx context.Context, r pauseRequest) (nothing, error) {
		return nothing{}, l.pause(ctx, r.Paused)
	}),
	callDDLKey: asked(flows, (*link).ddlKey),
	callResync: onLink(flows, func(l *link, ctx context.Context, r resyncRequest) (nothing, error) {
		return nothing{}, l.resyncHere(ctx, r.Tables)
	}),
	callRenewSlot:     onLink(flows, (*link).renewSlot),
	callDropSlot:      told(flows, (*link).giveUpSlot),
	callHolds:         asked(flows, (*link).holds),
	callLogins:        asked(flows, (*link).loginsHere),
	callLockedOut:     onLink(flows, (*link).lockedOutHere),
	callIdentities:    asked(flows, (*link).identities),
	callAllIdentities: asked(flows, (*link).allIdentities),
	callTables:        asked(flows, (*link).tables),
	callViews:         onLink(flows, (*link).views),
	callMaker:         onLink(flows, (*link).maker),
	callMaxWAL:        onLink(flows, (*link).takeMaxWAL),
	callVerify:        asked(flows, (*link).verifyHere),
	callSweep:         told(flows, (*link).sweepAsked),
	callCompareOpen:   asked(flows, (*link).openComparison),
	callCompare:       onLink(flows, (*link).compare),

	callFailover:  onLink(swaps, (*link).failover),
	callPrepare:   onLink(swaps, (*link).prepareToLead),
	callSequences: onLink(swaps, (*link).unfitSequences),
}

// codeUnknownCall is the answer of an agent that is older than the call.
const codeUnknownCall = "unknown-call"

func isUnknownCall(err error) bool {
	p, ok := problem.As(err)
	return ok && p.Code == codeUnknownCall
}

// Call answers the other agents. It is peer.Handler's.
func (m *Manager) Call(ctx context.Context, from, name, method string, payload []byte) ([]byte, error) {
	if call, ok := databaseCalls[method]; ok {
		return call(m, ctx, name, from, payload)
	}
	l, err := m.sharedWith(from, name)
	if err != nil {
		return nil, err
	}
	call, ok := linkCalls[method]
	if !ok {
		return nil, problem.New(codeUnknownCall, "call "+method, "this version of Hawser does not know it", "").Advise("run the same version on both sides")
	}
	if err := l.permits(call.need); err != nil {
		return nil, err
	}
	return call.do(ctx, l, payload)
}

// sharedWith returns the link of that name, if it is one with that peer.
func (m *Manager) sharedWith(from, name string) (*link, error) {
	l, err := m.find(name)
	if err != nil && m.claimed(name) {
		return nil, busy(name)
	}
	if err == nil && l.peer() != from {
		err = problem.New("link-not-found", "link "+name, "it is not a link with instance "+from, "hawser link list")
	}
	return l, err
}

// answer decodes a request, has it carried out, and encodes the reply.
func answer[Q, R any](payload []byte, do func(Q) (R, error)) ([]byte, error) {
	var q Q
	if err := json.Unmarshal(payload, &q); err != nil {
		return nil, problem.New("bad-request", "", "the other agent sent a request that can't be read", "").Advise("run the same version on both sides").Because(err)
	}
	r, err := do(q)
	if err != nil {
		return nil, err
	}
	return json.Marshal(r)
}
