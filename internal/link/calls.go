package link

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/hawser/hawser/internal/capture"
	"github.com/hawser/hawser/internal/catalog"
	"github.com/hawser/hawser/internal/filter"
	"github.com/hawser/hawser/internal/frame"
	"github.com/hawser/hawser/internal/link/role"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/schema"
)

// Methods of the calls between the two agents of a link, and the kinds of their
// streams. A payload is JSON; an unknown field is ignored, so that a newer agent
// may say more.
const (
	callValidate   = "validate"   // validateRequest -> problem.Findings
	callInspect    = "inspect"    // inspectRequest -> schema.Requirements, to a primary-to-be
	callDDLKey     = "ddl-key"    // the key that signs the primary's messages
	callMaker      = "maker"      // makerRequest -> schema.Maker, to the primary
	callCreate     = "create"     // createRequest -> createReply
	callStart      = "start"      // the link stands on both sides
	callDrop       = "drop"       // dropRequest
	callState      = "state"      // role.State -> role.State
	callStatus     = "status"     // Status
	callPause      = "pause"      // pauseRequest
	callFailover   = "failover"   // FailoverOptions -> FailoverResult
	callPrepare    = "prepare"    // prepareRequest, to the secondary: get ready to take over
	callUnprepare  = "unprepare"  // to the secondary: the failover was taken back
	callOutcome    = "outcome"    // the last FailoverResult or null -> the other side's
	callSequences  = "sequences"  // []frame.SequenceValue -> []unfitSequence, to the secondary
	callRefuse     = "refuse"     // refuseRequest -> role.State
	callVerify     = "verify"     // to the secondary: VerifyReport
	callResync     = "resync"     // resyncRequest, to the secondary
	callRenewSlot  = "renew-slot" // to the primary: slotReply
	callMaxWAL     = "max-wal"    // maxWALSetting -> the one in force
	callDropSlot   = "drop-slot"  // to the primary: the renewed slot is not wanted after all
	callIdentities = "identities" // to the primary: []capture.ChangedIdentity
	callTables     = "tables"     // to the primary: its tables, []catalog.SeedTable

	callHandoff = "handoff" // to the primary: outcomeRequest -> outcomeReply
	callWhere   = "where"   // whereRequest -> whereReply, to any instance
	callTakeUp  = "take-up" // takeUpRequest -> role.State, to a primary-to-be

	callCompareOpen = "compare-open" // to the primary: compareOpened
	callCompare     = "compare"      // compareRequest -> a part of verify.Side

	streamChanges = "changes" // frame.Start, then data one way and acks the other
	streamSeed    = "seed"    // frame.SeedRequest …
	streamRows    = "rows"    // seed.RowsRequest …
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
	RemoveReplica bool `json:"remove_replica"`
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

// Call answers the other agents. It is peer.Handler's.
func (m *Manager) Call(ctx context.Context, from, name, method string, payload []byte) ([]byte, error) {
	switch method {
	case callValidate:
		return answer(payload, func(r validateRequest) (problem.Findings, error) { return m.validateSide(ctx, name, from, r) })
	case callInspect:
		return answer(payload, func(r inspectRequest) ([]byte, error) { return m.inspect(ctx, r.Database) })
	case callWhere:
		return answer(payload, func(r whereRequest) (whereReply, error) { return m.where(ctx, r.ID) })
	case callTakeUp:
		return answer(payload, func(r takeUpRequest) (role.State, error) { return m.takeUp(ctx, name, from, r) })
	case callCreate:
		return answer(payload, func(r createRequest) (createReply, error) { return m.createSide(ctx, name, from, r) })
	}
	l, err := m.find(name)
	if err != nil {
		return nil, err
	}
	if l.peer() != from {
		return nil, problem.New("link-not-found", "link "+name, "it is not a link with instance "+from, "hawser link list")
	}
	switch method {
	case callStart:
		return answer(payload, func(struct{}) (struct{}, error) { return struct{}{}, l.startRunning(ctx) })
	case callDrop:
		return answer(payload, func(r dropRequest) (struct{}, error) { return struct{}{}, m.dropSide(ctx, l, r.RemoveReplica) })
	case callState:
		return answer(payload, func(theirs role.State) (role.State, error) { return l.meet(ctx, theirs) })
	case callStatus:
		return answer(payload, func(struct{}) (Status, error) { return l.status(), nil })
	case callPause:
		return answer(payload, func(r pauseRequest) (struct{}, error) { return struct{}{}, l.setPaused(ctx, r.Paused) })
	case callFailover:
		return answer(payload, func(o FailoverOptions) (FailoverResult, error) { return l.failover(ctx, o) })
	case callPrepare:
		return answer(payload, func(r prepareRequest) (prepareReply, error) { return l.prepareToLead(ctx, r) })
	case callUnprepare:
		return answer(payload, func(struct{}) (struct{}, error) { return struct{}{}, l.unprepareToLead(ctx) })
	case callOutcome:
		return answer(payload, func(theirs *FailoverResult) (json.RawMessage, error) { return l.tellOutcome(ctx, theirs) })
	case callSequences:
		return answer(payload, func(v []frame.SequenceValue) ([]unfitSequence, error) { return l.unfitSequences(ctx, v) })
	case callRefuse:
		return answer(payload, func(r refuseRequest) (role.State, error) { return l.refuse(ctx, r.Term) })
	case callHandoff:
		return answer(payload, func(r outcomeRequest) (outcomeReply, error) { return l.outcome(r), nil })
	case callDDLKey:
		return answer(payload, func(struct{}) ([]byte, error) { return l.ddlKey(ctx) })
	case callMaker:
		return answer(payload, func(q makerRequest) (schema.Maker, error) { return l.maker(ctx, q) })
	case callResync:
		return answer(payload, func(r resyncRequest) (struct{}, error) { return struct{}{}, l.resync(ctx, r.Tables) })
	case callRenewSlot:
		return answer(payload, func(struct{}) (slotReply, error) { return l.renewSlot(ctx) })
	case callMaxWAL:
		return answer(payload, func(r maxWALSetting) (maxWALSetting, error) { return l.takeMaxWAL(ctx, r) })
	case callDropSlot:
		return answer(payload, func(struct{}) (struct{}, error) { return struct{}{}, l.giveUpSlot(ctx) })
	case callIdentities:
		return answer(payload, func(struct{}) ([]capture.ChangedIdentity, error) { return l.identities(ctx) })
	case callTables:
		return answer(payload, func(struct{}) ([]catalog.SeedTable, error) { return l.tables(ctx) })
	case callVerify:
		return answer(payload, func(struct{}) (VerifyReport, error) { return l.verify(ctx) })
	case callCompareOpen:
		return answer(payload, func(struct{}) (compareOpened, error) { return l.openComparison(ctx) })
	case callCompare:
		return answer(payload, func(r compareRequest) (any, error) { return l.compare(ctx, r) })
	}
	return nil, problem.New("unknown-call", "call "+method, "this version of Hawser does not know it", "run the same version on both sides")
}

// answer decodes a request, has it carried out, and encodes the reply.
func answer[Q, R any](payload []byte, do func(Q) (R, error)) ([]byte, error) {
	var q Q
	if err := json.Unmarshal(payload, &q); err != nil {
		return nil, problem.New("bad-request", "", "the other agent sent a request that can't be read", "run the same version on both sides").Because(err)
	}
	r, err := do(q)
	if err != nil {
		return nil, err
	}
	return json.Marshal(r)
}
