package schema

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/hawser/hawser/internal/problem"
)

// ddlMessageVersion is the newest form of the message that this package reads. The
// writer is ddl.sql of package capture.
const ddlMessageVersion = 1

// ddlMessage is one DDL command of the primary.
type ddlMessage struct {
	Version int    `json:"v"`
	Tag     string `json:"tag"`   // PostgreSQL's command tag; "" when only Identity is told
	Phase   string `json:"phase"` // "begin": rows of the command may follow; "": the command is done
	Error   string `json:"error"` // the primary could not describe the command
	Server  int    `json:"server"`

	// Source is the client's string, or the PL/pgSQL context when Nested. Without it,
	// the text is that of an earlier message of the transaction with the same Ref.
	Source    *string  `json:"source"`
	Ref       string   `json:"ref"`
	Nested    bool     `json:"nested"`
	Order     int      `json:"order"`     // commands that the source fired before this one
	At        string   `json:"at"`        // when and by whom the client's string was sent
	Functions []string `json:"functions"` // bodies of the SQL functions that the context may mean

	User       ddlUser           `json:"user"`
	SearchPath string            `json:"search_path"`
	Schema     string            `json:"schema"` // of that path, where an unqualified CREATE goes
	Settings   map[string]string `json:"settings"`

	Objects  []ddlObject   `json:"objects"` // made or changed
	Dropped  []ddlObject   `json:"dropped"` // what the command named, and tables and columns that fell with it
	Rewrites []ddlRewrite  `json:"rewrites"`
	Tables   []ddlTable    `json:"tables"`
	Identity []ddlIdentity `json:"identity"`
	Checks   []ddlCheck    `json:"checks"`
	Bounds   []ddlCheck    `json:"bounds"`   // of partitions; without a name
	Indexes  []string      `json:"indexes"`  // of REINDEX: definitions of what is valid now
	Tree     []ddlIndex    `json:"tree"`     // as they are now, each after its parent
	StandIn  string        `json:"stand_in"` // the command for a view that can't be defined again
	Names    []ddlIndex    `json:"names"`    // all of tables of which one has a number in its name
	Views    []string      `json:"views"`    // what makes those that REFRESH fills and no event told of
	Configs  []ddlConfig   `json:"configs"`
	Chosen   []ddlChosen   `json:"chosen"`

	Changes []ddlChange `json:"changes"` // without a command; then all else is empty

	Extensions []ddlExtension `json:"extensions"`
	Temporary  []string       `json:"temporary"` // names of the session's temporary relations
}

type ddlUser struct {
	Name      string   `json:"name"`
	Superuser bool     `json:"superuser"`
	Session   string   `json:"session"`
	MemberOf  []string `json:"member_of"`
}

type ddlObject struct {
	Class       string `json:"class"`
	OID         uint32 `json:"oid"`
	Type        string `json:"type"`
	Schema      string `json:"schema"`
	Name        string `json:"name"`
	Identity    string `json:"identity"`
	Root        bool   `json:"root"`       // of a dropped one: the command named it
	Untold      bool   `json:"untold"`     // of a dropped one: it had come without an event
	Unfinished  bool   `json:"unfinished"` // of an index: CREATE INDEX CONCURRENTLY failed
	Relation    uint32 `json:"relation"`   // that it is or belongs to
	TableSchema string `json:"table_schema"`
	Table       string `json:"table"`
}

type ddlRewrite struct {
	Relation uint32 `json:"relation"`
	Reason   int    `json:"reason"`
}

// The reasons of pg_event_trigger_table_rewrite_reason.
const (
	rewritePersistence = 1 << 0
	rewriteDefault     = 1 << 1
	rewriteColumn      = 1 << 2
)

type ddlTable struct {
	OID           uint32      `json:"oid"`
	Schema        string      `json:"schema"`
	Name          string      `json:"name"`
	Kind          string      `json:"kind"`
	Persistence   string      `json:"persistence"`
	Method        string      `json:"method"`
	Options       []string    `json:"options"`
	Tablespace    string      `json:"tablespace"`
	Server        string      `json:"server"`
	ServerOptions []string    `json:"server_options"`
	Rows          bool        `json:"rows"`        // it holds rows
	Constraints   []string    `json:"constraints"` // CHECK, keys and EXCLUDE, as CREATE TABLE takes them
	Indexes       []string    `json:"indexes"`     // beside those of the constraints
	Columns       []ddlColumn `json:"columns"`
}

type ddlColumn struct {
	Name      string   `json:"name"`
	Type      string   `json:"type"`
	Collation string   `json:"collation"`
	NotNull   bool     `json:"not_null"`
	Default   string   `json:"default"`
	Generated string   `json:"generated"`
	Identity  string   `json:"identity"` // as pg_attribute.attidentity has it
	Missing   *string  `json:"missing"`  // what the rows have that are older than the column
	Options   []string `json:"options"`
}

type ddlIdentity struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
	To     string `json:"to"`
	Was    string `json:"was"`
}

// ddlChosen is a table that came into those that a link carries, or went out.
type ddlChosen struct {
	Link   string `json:"link"`
	OID    uint32 `json:"oid"`
	Schema string `json:"schema"`
	Name   string `json:"name"`
	In     bool   `json:"in"`
	Copy   bool   `json:"copy"` // it has rows that no stream brought
}

type ddlCheck struct {
	Schema string `json:"schema"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Def    string `json:"def"`
}

type ddlConfig struct {
	Type     string   `json:"type"`
	Identity string   `json:"identity"`
	Config   []string `json:"config"`
}

type ddlExtension struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Schema  string `json:"schema"`
}

// ddlSigned splits a message's content and reports whether key signed it.
func ddlSigned(content, key []byte) (body []byte, ok bool) {
	const size = 2 * sha256.Size
	if len(content) < size {
		return nil, false
	}
	sum := make([]byte, sha256.Size)
	if _, err := hex.Decode(sum, content[:size]); err != nil {
		return nil, false
	}
	mac := hmac.New(sha256.New, key)
	mac.Write(content[size:])
	return content[size:], hmac.Equal(sum, mac.Sum(nil))
}

// Author tells which transaction of the primary, top-level or not, wrote a message; 0 for one
// that does not tell, as those of an older agent, or that is not signed.
func (r *Replayer) Author(ctx context.Context, content []byte) (xid uint32, err error) {
	if len(content) == 0 {
		return 0, nil
	}
	body, ok, err := r.signed(ctx, content)
	if err != nil || !ok {
		return 0, err
	}
	var m struct {
		By uint32 `json:"by"`
	}
	if err := json.Unmarshal(body, &m); err != nil {
		return 0, fmt.Errorf("read who wrote a DDL message: %w", err)
	}
	return m.By, nil
}

func decodeDDL(body []byte) (*ddlMessage, error) {
	var m ddlMessage
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, fmt.Errorf("read a DDL message: %w", err)
	}
	if !utf8.Valid(body) {
		return nil, problem.New("ddl-not-utf8", m.object(),
			"its text holds bytes that are not UTF-8, which a database in encoding SQL_ASCII takes: rows are carried with them, definitions are not",
			"hawser link drop NAME --remove-replica").Advise("before that undo the command on the primary, or rename what it made; after it create the link again")
	}
	if m.Version > ddlMessageVersion {
		return nil, problem.New("ddl-version", m.object(),
			fmt.Sprintf("the primary's agent writes DDL messages of version %d, this one reads up to %d", m.Version, ddlMessageVersion),
			"").Advise("upgrade Hawser on this instance; the link goes on by itself").Retry()
	}
	return &m, nil
}

// Texts tells captured commands in words, without carrying them out. It holds the
// texts that a transaction's messages refer to; each transaction needs its own.
type Texts map[string]string

// Told is what a captured message tells in words.
type Told struct {
	Tag, Text string // the command, and the text in which it stood
	// State: it tells what something is since, such as an owner or a setting of the
	// database, which no command in the stream made so.
	State bool
	// Rewrites: it changed no definition and no row of a table. View is the materialized
	// view that it filled or emptied, if it did.
	Rewrites bool
	View     View
}

// View names a materialized view.
type View struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
}

// Read returns what a message tells that key signed: anybody may write one. It is
// nothing for one that tells of no command that is done.
func (t Texts) Read(content, key []byte) []Told {
	body, ok := ddlSigned(content, key)
	if !ok {
		return nil
	}
	m, err := decodeDDL(body)
	if err != nil {
		return nil
	}
	var out []Told
	for _, c := range m.Changes {
		if c.own() || c.onlyNamed() { // what an agent made, or nothing of its own
			continue
		}
		out = append(out, Told{Tag: c.Kind, Text: c.words(), State: true})
	}
	if m.Source != nil {
		t[m.Ref] = *m.Source
	}
	if m.Phase == "" && m.Tag != "" {
		told := Told{Tag: m.Tag, Text: t[m.Ref]}
		told.Rewrites, told.View = m.rewrites()
		out = append(out, told)
	}
	return out
}

// rewrites tells of a command that leaves all definitions, and the rows of all tables, as
// they were. CLUSTER, VACUUM and ANALYZE fire no event.
func (m *ddlMessage) rewrites() (bool, View) {
	switch m.Tag {
	case "REINDEX":
		return true, View{}
	case "REFRESH MATERIALIZED VIEW":
		if i := m.viewAt(); i >= 0 {
			return true, View{m.Objects[i].TableSchema, m.Objects[i].Table}
		}
	}
	return false, View{}
}

func (m *ddlMessage) viewAt() int {
	return slices.IndexFunc(m.Objects, func(o ddlObject) bool { return o.Type == "materialized view" })
}

// object names what the message is about, for problems.
func (m *ddlMessage) object() string {
	for _, list := range [][]ddlObject{m.Objects, m.Dropped} {
		for _, o := range list {
			if o.Identity != "" {
				return m.Tag + " (" + o.Type + " " + o.Identity + ")"
			}
		}
	}
	return m.Tag
}

// view is the materialized view that the command made or filled.
func (m *ddlMessage) view() string {
	if i := m.viewAt(); i >= 0 {
		return m.Objects[i].Identity
	}
	return ""
}

// relations are the OIDs on the primary of every relation that the command touched.
func (m *ddlMessage) relations() []uint32 {
	var oids []uint32
	add := func(oid uint32) {
		if oid != 0 && !slices.Contains(oids, oid) {
			oids = append(oids, oid)
		}
	}
	for _, o := range m.Objects {
		add(o.Relation)
	}
	for _, o := range m.Dropped {
		add(o.Relation)
	}
	for _, w := range m.Rewrites {
		add(w.Relation)
	}
	for _, t := range m.Tables {
		add(t.OID)
	}
	return oids
}

// reason is why the relation was rewritten, 0 if it was not.
func (m *ddlMessage) reason(relation uint32) (reason int) {
	for _, w := range m.Rewrites {
		if w.Relation == relation {
			reason |= w.Reason
		}
	}
	return reason
}
