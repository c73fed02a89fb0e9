package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hawser/hawser/internal/agent"
	"github.com/hawser/hawser/internal/agent/api"
	"github.com/hawser/hawser/internal/demo"
	"github.com/hawser/hawser/internal/problem"
	"github.com/hawser/hawser/internal/testpg"
)

var update = flag.Bool("update", false, "write the golden files and docs/cli.md")

const signalHelper = "HAWSER_TEST_SIGNALS"

func TestMain(m *testing.M) {
	if os.Getenv(signalHelper) != "" {
		ignoreOneSignal()
		return
	}
	os.Exit(m.Run())
}

// call runs the program against a fake agent and returns what it wrote.
type call struct {
	fake     *fake
	args     string
	stdin    string
	terminal bool
	environ  []string
	ctx      context.Context
}

func (c call) run(t *testing.T) (code int, out, err string) {
	t.Helper()
	if c.fake == nil {
		c.fake = &fake{}
	}
	a, outBuf, errBuf := c.app(t)
	a.environ = append(c.environ, "HAWSER_SOCKET="+serve(t, c.fake))
	ctx := c.ctx
	if ctx == nil {
		ctx = t.Context()
	}
	code = a.run(ctx, split(c.args))
	return code, outBuf.String(), errBuf.String()
}

func (c call) app(t *testing.T) (a *app, out, err *bytes.Buffer) {
	t.Helper()
	out, err = new(bytes.Buffer), new(bytes.Buffer)
	return &app{
		in: strings.NewReader(c.stdin), out: out, err: err, environ: c.environ,
		inTerminal: c.terminal, outTerminal: c.terminal, errTerminal: c.terminal,
		rows: func() int { return 24 }, now: start, poll: time.Millisecond,
		runAgent: func(context.Context, agent.Config, string) error { t.Error("the agent was started"); return nil },
		runDemo:  func(context.Context, demo.Options) error { t.Error("the demo was started"); return nil },
	}, out, err
}

// split is strings.Fields, with ~ for a space inside an argument.
func split(args string) []string {
	fields := strings.Fields(args)
	for i := range fields {
		fields[i] = strings.ReplaceAll(fields[i], "~", " ")
	}
	return fields
}

func serve(t *testing.T, s api.Service) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "a.sock")
	server, err := api.Listen(api.Config{Service: s, Version: "1.2.3", Socket: socket, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := testpg.Await(t, "the agent's server ends", done); err != nil {
			t.Error(err)
		}
	})
	return socket
}

// TestGolden holds what each command writes, and its exit code, against
// testdata; -update writes them.
func TestGolden(t *testing.T) {
	t.Parallel()
	equal := api.VerifyReport{Link: "orders", Equal: true, Complete: true, Position: 0x16B3748, At: start(), Seconds: 2.5, Tables: []api.VerifyTable{
		{Schema: "public", Name: "customer", Compared: true, Equal: true, RowsPrimary: 1200, RowsSecondary: 1200, HashPrimary: "ab", HashSecondary: "ab"},
		{Schema: "public", Name: "My Table", Compared: true, Equal: true, RowsPrimary: 1_000_000, RowsSecondary: 1_000_000, HashPrimary: "cd", HashSecondary: "cd"}}}
	differs := api.VerifyReport{Link: "orders", Position: 0x16B3748, At: start(), Seconds: 2.5, Tables: []api.VerifyTable{
		{Schema: "public", Name: "customer", Compared: true, RowsPrimary: 1200, RowsSecondary: 1199, HashPrimary: "ab", HashSecondary: "ac",
			Problem: problem.New("rows-differ", "", "1 row is missing on the secondary.", "hawser link show orders")},
		{Schema: "public", Name: "log", RowsPrimary: 0, Problem: problem.New("not-comparable", "", "Its type xml has no order.", "Compare it by hand.")}}}
	equal.LeftOut = []api.VerifyLeftOut{{Schema: "public", Name: "totals", Why: "materialized view"}, {Schema: "public", Name: "cache", Why: "unlogged table"}, {Schema: "public", Name: "Session", Why: "unlogged table"}}
	objects := api.VerifyReport{Link: "orders", Complete: true, Position: 0x16B3748, At: start(), Seconds: 2.5, Tables: equal.Tables,
		Schema: []api.VerifyObject{
			{Kind: "index", Name: "public.customer_name", Primary: "CREATE INDEX customer_name ON public.customer USING btree (name)", Remedy: "on the secondary, as superuser: SET …; and the DDL that makes it equal"},
			{Kind: "view", Name: "public.\x1b[2Jv", Primary: "SELECT 1", Secondary: "SELECT 1 AS one", Uncertain: true}},
		Sequences: []api.VerifySequence{
			{Schema: "public", Name: "Order_id_seq", Primary: &api.SequenceState{Last: 41, Called: true}, Secondary: &api.SequenceState{Last: 1}, Remedy: "on the secondary, as superuser: SET …; SELECT setval('public.\"Order_id_seq\"', 41, true);"},
			{Schema: "public", Name: "gone", Primary: &api.SequenceState{Last: 7, Called: true}}}}
	worded := objects // by another version
	worded.Equal, worded.Schema, worded.Sequences = true, objects.Schema[1:], nil
	unread := objects
	unread.Complete, unread.Schema, unread.Sequences = false, nil, nil
	noted := synchronized()
	noted.Findings = problem.Findings{someFindings()[0], problem.Warn("role-created", `role "My Role"`, "It was created without login.", `ALTER ROLE "My Role" LOGIN PASSWORD '…';`)}
	unread.Findings = problem.Findings{problem.New("not-comparable", "schema", "The primary's catalogs can't be read.", "GRANT pg_read_all_data TO hawser;")}
	partly := api.VerifyReport{Link: "orders", Position: 0x16B3748, At: start(), Seconds: 2.5, Tables: differs.Tables[1:]}
	wrongWay := []api.PeerTestStep{{Name: "name resolution", OK: true, Detail: "west.example.com is 192.0.2.7", DurationSeconds: 0.0011},
		{Name: "TLS", Detail: "no answer", DurationSeconds: 5, Problem: problem.New("tls-blocked", "address 192.0.2.7:5022", "TCP connects, but TLS does not pass: a firewall looks into the connection.", "Let port 5022 pass without inspection.")}}
	rightWay := []api.PeerTestStep{{Name: "TLS", OK: true, Detail: "TLS 1.3", DurationSeconds: 0.004}, {Name: "rate", OK: true, Detail: "1.2 GiB/s", DurationSeconds: 1}}
	forcedOut, tookOver := synchronized(), synchronized()
	forcedOut.State, forcedOut.Cause = api.StateDiverged, problem.New("diverged", "link orders", "instance mi-west took over by force and is the primary now; the database on instance on-prem, the old primary, is read-only", "hawser link rejoin orders")
	tookOver.State, tookOver.Cause, tookOver.Peer = api.StateDiverged, forcedOut.Cause.On("on-prem"), "on-prem"
	grown := suspended()
	grown.Cause = problem.New("disk-full", "database shop", "The disk of the replica is full.\nSecond line with \x1b[31mcolours\x1b[0m.", "Free some space.")

	tests := map[string]struct {
		call
		code int
	}{
		"status":                    {call{args: "status"}, 0},
		"status-terminal":           {call{args: "status", terminal: true}, 0},
		"status-json":               {call{args: "status -o json"}, 0},
		"cert-show":                 {call{args: "cert show"}, 0},
		"cert-show-json":            {call{args: "cert show --output=json"}, 0},
		"cert-rotate":               {call{args: "cert rotate"}, 0},
		"cert-rotate-json":          {call{args: "cert rotate -o json"}, 0},
		"database-list":             {call{args: "database list"}, 0},
		"database-list-json":        {call{args: "database list -o json"}, 0},
		"peer-list":                 {call{args: "peer list"}, 0},
		"peer-list-json":            {call{args: "peer list -o json"}, 0},
		"peer-list-empty":           {call{args: "peer list", fake: &fake{peers: &api.PeerList{}}}, 0},
		"peer-remove":               {call{args: "peer remove mi-west"}, 0},
		"peer-remove-json":          {call{args: "peer remove mi-west -o json"}, 0},
		"peer-remove-unknown":       {call{args: "peer remove x", fake: &fake{err: api.PeerNotFound("x", "mi-west")}}, 3},
		"peer-test":                 {call{args: "peer test mi-west", fake: &fake{steps: rightWay}}, 0},
		"peer-test-failed":          {call{args: "peer test mi-west", fake: &fake{steps: wrongWay}}, 7},
		"peer-test-json":            {call{args: "peer test mi-west -o json", fake: &fake{steps: wrongWay}}, 7},
		"peer-add-bad-direction":    {call{args: "peer add - --direction sideways", stdin: testPEM}, 2},
		"peer-add-no-certificate":   {call{args: "peer add -", stdin: "hello"}, 2},
		"validate":                  {call{args: "validate --database shop"}, 0},
		"validate-blocked":          {call{args: "validate orders --database shop --peer mi-west", fake: &fake{findings: someFindings()}}, 5},
		"validate-terminal":         {call{args: "link validate --database shop", fake: &fake{findings: someFindings()}, terminal: true}, 5},
		"validate-no-color":         {call{args: "validate --database shop", fake: &fake{findings: someFindings()}, terminal: true, environ: []string{"NO_COLOR=1"}}, 5},
		"validate-json":             {call{args: "validate --database shop -o json", fake: &fake{findings: someFindings()}}, 5},
		"link-list":                 {call{args: "link list"}, 0},
		"link-list-json":            {call{args: "link list -o json"}, 0},
		"link-list-diverged":        {call{args: "link list", fake: &fake{links: []api.Link{forcedOut}}}, 0},
		"link-list-took-over":       {call{args: "link list", fake: &fake{links: []api.Link{tookOver}}}, 0},
		"link-show":                 {call{args: "link show orders"}, 0},
		"link-show-seeding":         {call{args: "link show billing"}, 0},
		"link-show-suspended":       {call{args: "link show orders", fake: &fake{links: []api.Link{grown}}}, 0},
		"link-show-json":            {call{args: "link show billing -o json"}, 0},
		"link-show-unknown":         {call{args: "link show nothing"}, 3},
		"link-show-unknown-json":    {call{args: "link show nothing -o json"}, 3},
		"link-create":               {call{args: "link create orders --database shop --peer mi-west", fake: &fake{findings: someFindings()[:1], links: []api.Link{seeding(false), seeding(false), catchingUp(), noted}}}, 0},
		"link-create-terminal":      {call{args: "link create orders --database shop --peer mi-west", terminal: true, fake: &fake{links: []api.Link{seeding(false), catchingUp(), synchronized()}}}, 0},
		"link-create-json":          {call{args: "link create orders --database shop --peer mi-west -o json", fake: &fake{links: []api.Link{seeding(false), synchronized()}}}, 0},
		"link-create-no-wait":       {call{args: "link create orders --database shop --peer mi-west --no-wait"}, 0},
		"link-create-blocked":       {call{args: "link create orders --database shop --peer mi-west", fake: &fake{findings: someFindings()}}, 5},
		"link-create-blocked-json":  {call{args: "link create orders --database shop --peer mi-west -o json", fake: &fake{findings: someFindings()}}, 5},
		"link-create-suspended":     {call{args: "link create orders --database shop --peer mi-west", fake: &fake{links: []api.Link{suspended()}}}, 1},
		"link-create-bad-name":      {call{args: "link create a/b --database shop --peer mi-west"}, 2},
		"link-create-no-database":   {call{args: "link create orders --peer mi-west"}, 2},
		"link-create-no-peer":       {call{args: "link create orders --database shop"}, 2},
		"link-create-bad-role":      {call{args: "link create orders --database shop --peer w --role king"}, 2},
		"link-create-taken":         {call{args: "link create orders --database shop --peer w", fake: &fake{err: problem.New("link-exists", `link "orders"`, "There is one already.", "hawser link show orders")}}, 1},
		"link-watch":                {call{args: "link watch -n 2"}, 0},
		"link-watch-terminal":       {call{args: "link watch orders -n 2", terminal: true, fake: &fake{links: []api.Link{seeding(false), suspended(), synchronized()}}}, 0},
		"link-watch-json":           {call{args: "link watch orders -n 1 -o json"}, 0},
		"link-watch-unknown":        {call{args: "link watch nothing"}, 3},
		"link-pause":                {call{args: "link pause orders"}, 0},
		"link-resume-json":          {call{args: "link resume orders -o json"}, 0},
		"link-failover":             {call{args: "link failover orders"}, 0},
		"link-failover-json":        {call{args: "link failover orders -o json"}, 0},
		"link-failover-unconfirmed": {call{args: "link failover orders --force"}, 2},
		"link-failover-hopeless":    {call{args: "link failover orders --force", fake: &fake{err: problem.New("not-secondary", "link orders", "this side is the primary", "hawser link failover orders --force")}}, 1},
		"link-failover-declined":    {call{args: "link failover orders --force", terminal: true, stdin: "n\n"}, 1},
		"link-failover-timeout":     {call{args: "link failover orders", fake: &fake{err: problem.New("failover-timeout", `link "orders"`, "The secondary did not catch up in 30 s; the primary is open again.", "hawser link watch orders")}}, 8},
		"link-verify":               {call{args: "link verify orders", fake: &fake{verify: equal}}, 0},
		"link-verify-differs":       {call{args: "link verify orders", fake: &fake{verify: differs}}, 6},
		"link-verify-partly":        {call{args: "link verify orders", fake: &fake{verify: partly}}, 1},
		"link-verify-json":          {call{args: "link verify orders -o json", fake: &fake{verify: differs}}, 6},
		"link-verify-objects":       {call{args: "link verify orders", fake: &fake{verify: objects}}, 6},
		"link-verify-objects-json":  {call{args: "link verify orders -o json", fake: &fake{verify: objects}}, 6},
		"link-verify-worded":        {call{args: "link verify orders", fake: &fake{verify: worded}}, 0},
		"link-verify-unread":        {call{args: "link verify orders", fake: &fake{verify: unread}}, 1},
		"link-drop":                 {call{args: "link drop orders"}, 0},
		"link-drop-json":            {call{args: "link drop orders --remove-replica --yes -o json", fake: &fake{removed: ptr(true)}}, 0},
		"link-drop-kept":            {call{args: "link drop orders --remove-replica --yes", fake: &fake{removed: ptr(false)}}, 0},
		"link-drop-unknown":         {call{args: "link drop orders --remove-replica --yes", fake: &fake{}}, 0},
		"link-drop-hopeless":        {call{args: "link drop ordres --remove-replica"}, 3},
		"link-drop-diverged":        {call{args: "link drop orders", terminal: true, stdin: "n\n", fake: &fake{links: []api.Link{forcedOut}}}, 1},
		"link-drop-unconfirmed":     {call{args: "link drop orders --remove-replica"}, 2},
		"internal-error":            {call{args: "link list", fake: &fake{err: errors.New("boom")}}, 1},
		"usage-command":             {call{args: "lnk list"}, 2},
		"usage-group-left-out":      {call{args: "failover orders"}, 2},
		"usage-group-flag":          {call{args: "failover orders --force"}, 2},
		"usage-groups-left-out":     {call{args: "show mi~west"}, 2},
		"usage-other-word":          {call{args: "switchover orders"}, 2},
		"usage-other-group":         {call{args: "link add west.pem"}, 2},
		"usage-subcommand":          {call{args: "link crate orders"}, 2},
		"usage-subcommand-flag":     {call{args: "link crate orders --database shop"}, 2},
		"usage-timeout":             {call{args: "link failover orders --timeout 0s"}, 2},
		"validate-blocked-once":     {call{args: "validate --database shop", fake: &fake{findings: someFindings()[:2]}}, 5},
		"peer-add-wrong-file":       {call{args: "peer add main.go"}, 2},
		"usage-flag":                {call{args: "link drop orders --remove-replicas"}, 2},
		"usage-flag-json":           {call{args: "-o json link drop orders --remove-replicas"}, 2},
		"usage-flag-before-json":    {call{args: "link drop orders --remove-replicas --output=json"}, 2},
		"usage-output":              {call{args: "status -o xml"}, 2},
		"usage-arguments":           {call{args: "link show"}, 2},
		"usage-no-arguments":        {call{args: "status now"}, 2},
		"group-help":                {call{args: "link"}, 0},
		"help":                      {call{args: "help"}, 0},
		"help-exit-codes":           {call{args: "help exit-codes"}, 0},
		"complete-link":             {call{args: "__complete link show o"}, 0},
		"complete-peer":             {call{args: "__complete peer test m"}, 0},
		"complete-direction":        {call{args: "__complete peer add x.pem --direction ~"}, 0},
		"complete-grant":            {call{args: "__complete peer add x.pem --databases s"}, 0},
		"complete-database":         {call{args: "__complete link create orders --database s"}, 0},
		"agent-bad-config":          {call{args: "agent --name a~b --log-format xml"}, 2},
		"agent-bad-config-json":     {call{args: "agent --name a~b -o json --log-format xml"}, 2},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, out, errOut := test.run(t)
			if code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			golden(t, name, fmt.Sprintf("$ hawser %s\n%s--- standard error, exit code %d\n%s", strings.ReplaceAll(test.args, "~", " "), out, code, errOut))
			if strings.Contains(test.args, "json") && code == 0 && !json.Valid([]byte(out)) {
				t.Errorf("standard output is not JSON: %s", out)
			}
			if strings.Contains(test.args, "json") && errOut != "" && !json.Valid([]byte(errOut)) {
				t.Errorf("standard error is not JSON: %s", errOut)
			}
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestPeerAddReadsTheCertificate(t *testing.T) {
	t.Parallel()
	cert := selfSigned(t, "mi-west")
	file := filepath.Join(t.TempDir(), "west.pem")
	if err := os.WriteFile(file, []byte("# instance mi-west\n"+cert), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []call{
		{args: "peer add " + file + " --address west.example.com", fake: &fake{}},
		{args: "peer add - --address west.example.com:5022", stdin: cert, fake: &fake{}},
	} {
		code, out, errOut := c.run(t)
		want := []any{api.AddPeer{Name: "mi-west", Certificate: cert, Address: "west.example.com:5022"}}
		if code != 0 || !reflect.DeepEqual(c.fake.asked, want) || !strings.Contains(out, "mi-west is trusted") {
			t.Errorf("code %d, %s%s, asked %v", code, out, errOut, c.fake.asked)
		}
	}
	code, _, errOut := call{args: "peer add /nonexistent.pem"}.run(t)
	if code != exitUsage || !strings.Contains(errOut, "no such file") {
		t.Errorf("code %d: %s", code, errOut)
	}
}

func TestPeerAddChangesTheGrant(t *testing.T) {
	t.Parallel()
	cert := selfSigned(t, "mi-west")
	c := call{args: "peer add - --databases shop --databases sales_* --direction to-peer", stdin: cert, fake: &fake{changed: []string{"databases: * -> shop, sales_*", "direction: both -> to-peer"}}}
	code, out, errOut := c.run(t)
	want := []any{api.AddPeer{Name: "mi-west", Certificate: cert, Databases: []string{"shop", "sales_*"}, Direction: api.DirectionToPeer}}
	if code != 0 || !reflect.DeepEqual(c.fake.asked, want) || !strings.Contains(out, "Changed: databases: * -> shop, sales_*; direction: both -> to-peer.") {
		t.Errorf("code %d, %s%s, asked %v", code, out, errOut, c.fake.asked)
	}
}

// TestPeerSet: what is not said is not sent, and an empty address forgets it.
func TestPeerSet(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]api.SetPeer{
		"peer set mi-west --address west:5023":            {Address: "west:5023"},
		"peer set mi-west --address=":                     {NoAddress: true},
		"peer set mi-west --databases * --direction both": {Databases: []string{"*"}, Direction: api.DirectionBoth},
	} {
		c := call{args: args, fake: &fake{changed: []string{"direction: to-peer -> both"}}}
		code, out, errOut := c.run(t)
		if code != 0 || !reflect.DeepEqual(c.fake.asked, []any{want}) || !strings.Contains(out, "mi-west is set") || !strings.Contains(out, "Changed: direction") {
			t.Errorf("%s: code %d, %s%s, asked %v", args, code, out, errOut, c.fake.asked)
		}
	}
	if code, _, errOut := (call{args: "peer set mi-west"}).run(t); code != exitUsage {
		t.Errorf("without a change: code %d, %s", code, errOut)
	}
}

// TestHints: what was most likely meant is told, and what was set is shown.
func TestHints(t *testing.T) {
	t.Parallel()
	heldUp := synchronized()
	heldUp.Findings = problem.Findings{problem.Warn("wal-held", "link orders", "it holds back 9.0 GiB of at most 16 GiB", "hawser link show orders")}
	stands := synchronized()
	stands.State, stands.Cause = api.StateSuspended, problem.New("slot-lost", "on instance on-prem: replication slot hawser_1", "it does not exist any more", "hawser link resync orders")
	for _, c := range []struct {
		call
		code int
		want string
	}{
		{call{args: "link verify orders --timeout 5", fake: &fake{}}, exitUsage, "did you mean 5s?"},
		{call{args: "link create link odd --database shop --peer w"}, exitUsage, "did you mean hawser link create odd?"},
		{call{args: "link show show odd"}, exitUsage, "did you mean hawser link show odd?"},
		{call{args: "link show one two"}, exitUsage, "was given 2 arguments\n"},
		{call{args: "link list", fake: &fake{links: []api.Link{heldUp}}}, exitOK, "orders: link orders: it holds back 9.0 GiB of at most 16 GiB"},
		{call{args: "link drop orders --force --remove-replica -y", fake: &fake{untold: true}}, exitOK, "The replica is still there: its instance could not be told."},
		{call{args: "link list --socket 127.0.0.1:17524", fake: &fake{}}, exitUsage, "--socket http://127.0.0.1:17524"},
		{call{args: "link set orders --max-wal 2GiB", fake: &fake{links: []api.Link{synchronized()}}}, exitOK, "may hold back 2.0 GiB of WAL"},
		{call{args: "link set orders --max-wal 0", fake: &fake{links: []api.Link{synchronized()}}}, exitOK, "may hold back any amount of WAL"},
		{call{args: "link watch orders -n 1", fake: &fake{links: []api.Link{stands}}}, exitOK, "because: on instance on-prem: replication slot hawser_1: it does not exist any more [slot-lost]"},
	} {
		code, out, errOut := c.run(t)
		if code != c.code || !strings.Contains(out+errOut, c.want) {
			t.Errorf("%s: code %d, %s%s; want %d and %q", c.args, code, out, errOut, c.code, c.want)
		}
	}
}

// TestDropOfADivergedLink: what ends the way back has to be confirmed.
func TestDropOfADivergedLink(t *testing.T) {
	t.Parallel()
	diverged := synchronized()
	diverged.State, diverged.Cause = api.StateDiverged, problem.New("diverged", "link orders", "instance mi-west took over by force", "hawser link rejoin orders")
	for _, c := range []struct {
		call
		code    int
		dropped bool
	}{
		{call{args: "link drop orders"}, exitUsage, false},
		{call{args: "link drop orders --force"}, exitUsage, false},
		{call{args: "link drop orders", terminal: true, stdin: "n\n"}, exitFailed, false},
		{call{args: "link drop orders", terminal: true, stdin: "y\n"}, exitOK, true},
		{call{args: "link drop orders --yes"}, exitOK, true},
	} {
		c.fake = &fake{links: []api.Link{diverged}}
		code, out, errOut := c.run(t)
		if code != c.code || (len(c.fake.asked) > 0) != c.dropped || c.terminal && !strings.Contains(errOut, "rejoin") {
			t.Errorf("%s %q: code %d, asked %v: %s%s", c.args, c.stdin, code, c.fake.asked, out, errOut)
		}
	}
}

// TestDropOfAStandingLink: a replica that opens as something else than what the primary has is
// confirmed, unless the drop is what the link's cause asks for.
func TestDropOfAStandingLink(t *testing.T) {
	t.Parallel()
	state := func(s api.State, code, remedy string) api.Link {
		l := synchronized()
		l.State, l.Cause = s, problem.New(code, "link orders", "it stands", remedy)
		return l
	}
	differs, paused := state(api.StateSuspended, "row-missing", "hawser link resync orders"), state(api.StatePaused, "paused", "")
	for _, c := range []struct {
		link     api.Link
		args     string
		terminal bool
		stdin    string
		code     int
		dropped  bool
	}{
		{differs, "", false, "", exitUsage, false},
		{differs, "", true, "n\n", exitFailed, false},
		{differs, "", true, "y\n", exitOK, true},
		{differs, " --yes", false, "", exitOK, true},
		{paused, "", false, "", exitUsage, false},
		{paused, " --yes", false, "", exitOK, true},
		{state(api.StateSuspended, "link-gone", "hawser link drop orders"), "", false, "", exitOK, true},
		{state(api.StateDisconnected, "disconnected", "hawser peer test mi-west"), "", false, "", exitOK, true},
	} {
		f := &fake{links: []api.Link{c.link}}
		code, out, errOut := call{args: "link drop orders" + c.args, terminal: c.terminal, stdin: c.stdin, fake: f}.run(t)
		if code != c.code || (len(f.asked) > 0) != c.dropped || c.terminal && !strings.Contains(errOut, "(row-missing)") {
			t.Errorf("%s, %s%s %q: code %d, asked %v: %s%s", c.link.State, c.link.Cause.Code, c.args, c.stdin, code, f.asked, out, errOut)
		}
	}
}

// TestResyncBeginsItsStreamAnew: that the two sides are not connected for a moment is not told.
func TestResyncBeginsItsStreamAnew(t *testing.T) {
	t.Parallel()
	between := synchronized()
	between.State, between.Cause = api.StateDisconnected, problem.New("disconnected", "link orders", "the two sides are not connected", "hawser peer test mi-west").Retry()
	code, out, errOut := call{args: "link resync orders", fake: &fake{links: []api.Link{between, synchronized()}}}.run(t)
	if code != exitOK || strings.Contains(out+errOut, "disconnected") {
		t.Errorf("code %d: %s%s", code, out, errOut)
	}
}

func TestOptionsReachTheAgent(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]any{
		"link failover orders":                                            api.FailoverOptions{Timeout: 30 * time.Second},
		"link failover orders --force --yes --timeout 2m":                 api.FailoverOptions{Force: true, Timeout: 2 * time.Minute},
		"link verify orders --timeout 90s":                                api.VerifyOptions{Timeout: 90 * time.Second},
		"link drop orders --force":                                        api.DropOptions{Force: true},
		"link drop orders --remove-replica -y":                            api.DropOptions{RemoveReplica: true},
		"validate --database shop":                                        api.LinkSpec{Database: "shop", Role: api.RolePrimary},
		"link create o --database ~x --peer w --role secondary --no-wait": api.LinkSpec{Name: "o", Database: " x", Peer: "w", Role: api.RoleSecondary},
	} {
		f := &fake{verify: api.VerifyReport{Equal: true}}
		if code, _, errOut := (call{args: args, fake: f}).run(t); code != 0 || !reflect.DeepEqual(f.asked, []any{want}) {
			t.Errorf("%s: code %d, asked %#v %s", args, code, f.asked, errOut)
		}
	}
}

// TestCtrlCLeavesTheLink: the command ends, says that the link goes on, and
// asks nothing of the agent.
func TestCtrlCLeavesTheLink(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	f := &fake{links: []api.Link{seeding(false)}, onLook: func(look int) {
		if look == 3 {
			cancel(signalled{syscall.SIGINT})
		}
	}}
	code, _, errOut := call{args: "link create orders --database shop --peer w", fake: f, ctx: ctx}.run(t)
	if code != 130 || errOut != "Left. The link goes on; see it with: hawser link watch orders\n" || len(f.asked) != 1 {
		t.Errorf("code %d, asked %v: %s", code, f.asked, errOut)
	}
}

// TestWaitsForAnAgentThatIsAway: a restart of the agent does not end a watch.
func TestWaitsForAnAgentThatIsAway(t *testing.T) {
	t.Parallel()
	f := &fake{links: []api.Link{synchronized()}}
	f.onLook = func(look int) {
		f.err = nil
		if look == 2 {
			f.err = problem.New("starting", "", "The agent starts.", "").Retry()
		}
	}
	code, out, errOut := call{args: "link watch orders -n 3", fake: f}.run(t)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 3 || !strings.Contains(lines[1], "waiting for the agent: The agent starts.") {
		t.Errorf("code %d: %s%s", code, out, errOut)
	}
}

// TestStepThatDoesNotGoOn: a command after which the link stands all the same is not done; a
// pause of such a link is.
func TestStepThatDoesNotGoOn(t *testing.T) {
	t.Parallel()
	stands := synchronized()
	stands.State, stands.Cause = api.StateSuspended, problem.New("ddl-capture-broken", "event trigger x", "it was dropped", "hawser link resync orders")
	for verb, want := range map[string]int{"resume": exitFailed, "resync --no-wait": exitFailed, "rejoin --no-wait": exitFailed, "follow --no-wait --primary mi-west": exitFailed, "pause": exitOK} {
		code, out, errOut := call{args: "link " + verb + " orders", fake: &fake{links: []api.Link{stands}}}.run(t)
		if code != want || want == exitFailed && !strings.Contains(out+errOut, "hawser link resync orders") {
			t.Errorf("%s: code %d: %s%s", verb, code, out, errOut)
		}
	}
}

// TestResumeShowsWhatBecomesOfIt: not that the stream is not open yet.
func TestResumeShowsWhatBecomesOfIt(t *testing.T) {
	t.Parallel()
	opening := synchronized()
	opening.State = api.StateDisconnected
	for _, verb := range []string{"resume", "resync --no-wait", "rejoin --no-wait", "follow --no-wait --primary mi-west"} {
		f := &fake{links: []api.Link{opening, opening, catchingUp()}}
		code, out, errOut := call{args: "link " + verb + " orders", fake: f}.run(t)
		if code != 0 || !strings.Contains(out, "orders catching-up") {
			t.Errorf("%s: code %d: %s%s", verb, code, out, errOut)
		}
	}
	for _, verb := range []string{"resync", "rejoin", "follow --primary mi-west"} {
		f := &fake{links: []api.Link{opening, catchingUp(), synchronized()}}
		code, out, errOut := call{args: "link " + verb + " orders", fake: f}.run(t)
		if code != 0 || !strings.Contains(out, "orders catching-up") || !strings.Contains(out, "orders synchronized") {
			t.Errorf("%s: code %d: %s%s", verb, code, out, errOut)
		}
	}
}

// TestComparisonIsShown: a resync that compares both sides takes its time.
func TestComparisonIsShown(t *testing.T) {
	t.Parallel()
	compared := synchronized()
	compared.Findings = problem.Findings{problem.Noted("comparing", "link orders", "it is compared with the primary: 3 of 8 tables, 1 GB of 4 GB")}
	looked := make(chan struct{})
	f := &fake{links: []api.Link{compared, synchronized()}, copying: func() { <-looked }}
	f.onLook = func(look int) {
		if look == 1 {
			close(looked)
		}
	}
	code, out, errOut := call{args: "link resync orders", fake: f}.run(t)
	if code != 0 || !strings.Contains(out, "compared with the primary: 3 of 8 tables") || !strings.Contains(out, "orders synchronized") {
		t.Errorf("code %d: %s%s", code, out, errOut)
	}
}

func TestNoAgent(t *testing.T) {
	t.Parallel()
	for _, args := range []string{"status", "link list", "link watch", "peer list"} {
		a, _, errOut := call{}.app(t)
		code := a.run(t.Context(), split(args+" --socket "+filepath.Join(t.TempDir(), "none")))
		if code != exitUnreachable || !strings.Contains(errOut.String(), "No agent is running there.") {
			t.Errorf("%s: code %d: %s", args, code, errOut)
		}
	}
	a, out, _ := call{}.app(t)
	if code := a.run(t.Context(), split("__complete link show --socket /nonexistent/s x")); code != 0 || strings.Contains(out.String(), "error") {
		t.Errorf("completion: code %d: %s", code, out)
	}
}

func TestFlagsWinOverTheEnvironment(t *testing.T) {
	t.Parallel()
	a, out, errOut := call{environ: []string{"HAWSER_SOCKET=/nonexistent/s"}}.app(t)
	if code := a.run(t.Context(), split("status --socket "+serve(t, &fake{}))); code != 0 {
		t.Errorf("code %d: %s%s", code, out, errOut)
	}
}

func TestAgentCommand(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "hawser.yaml")
	if err := os.WriteFile(file, []byte("name: file\nstate_dir: /s\npostgres: {managed: {}}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	failed := problem.New("port-in-use", "endpoint", "The port is taken.", "Set another.")
	stop, cancel := context.WithCancelCause(t.Context())
	cancel(signalled{syscall.SIGTERM})
	tests := map[string]struct {
		ctx  context.Context
		args string
		err  error
		code int
		want func(agent.Config) bool
	}{
		"file":        {t.Context(), "--config " + file, nil, 0, func(c agent.Config) bool { return c.Name == "file" && c.Log.Format == agent.LogText }},
		"flags":       {t.Context(), "--name flag --config " + file + " --socket /x/s", nil, 0, func(c agent.Config) bool { return c.Name == "flag" && c.Socket == "/x/s" }},
		"json":        {t.Context(), "-o json --config " + file, nil, 0, func(c agent.Config) bool { return c.Log.Format == agent.LogJSON }},
		"json to no":  {t.Context(), "-o json --log-format text --config " + file, nil, 0, func(c agent.Config) bool { return c.Log.Format == agent.LogText }},
		"failed":      {t.Context(), "--config " + file, failed, 1, nil},
		"ended":       {stop, "--config " + file, context.Canceled, 0, nil},
		"signalled":   {stop, "--config " + file, fmt.Errorf("dial: %w", context.Cause(stop)), 0, nil},
		"ended badly": {stop, "--config " + file, failed, 1, nil},
	}
	for name, test := range tests {
		a, _, errOut := call{}.app(t)
		var got agent.Config
		a.runAgent = func(_ context.Context, c agent.Config, _ string) error { got = c; return test.err }
		if code := a.run(test.ctx, split("agent "+test.args)); code != test.code || test.want != nil && !test.want(got) {
			t.Errorf("%s: code %d, config %v: %s", name, code, got, errOut)
		}
		if told := strings.Count(errOut.String(), "The port is taken."); (test.err == failed) != (told == 1) {
			t.Errorf("%s: it is told %d times why the agent ended: %s", name, told, errOut)
		}
	}
	for mode, want := range map[string]string{"": "level=ERROR msg=\"agent ended\"", "terminal": "error: endpoint: The port is taken.", "-o json": `"code": "port-in-use"`} {
		a, _, errOut := call{terminal: mode == "terminal", environ: []string{"NO_COLOR=1"}}.app(t)
		a.runAgent = func(context.Context, agent.Config, string) error { return failed }
		args := split("agent --config " + file)
		if mode == "-o json" {
			args = append(args, "-o", "json")
		}
		if code := a.run(t.Context(), args); code != exitFailed || !strings.Contains(errOut.String(), want) {
			t.Errorf("%s: code %d: %s", mode, code, errOut)
		}
	}
	a, _, errOut := call{environ: []string{"HAWSER_CONFIG=/nonexistent.yaml"}}.app(t)
	if code := a.run(t.Context(), []string{"agent"}); code != exitUsage || !strings.Contains(errOut.String(), "/nonexistent.yaml") {
		t.Errorf("code %d: %s", code, errOut)
	}
}

func TestDemoCommand(t *testing.T) {
	t.Parallel()
	a, out, _ := call{}.app(t)
	var got demo.Options
	a.runDemo = func(_ context.Context, o demo.Options) error { got = o; return errors.New("the proof fails") }
	if code := a.run(t.Context(), split("demo --keep --duration 5s -o json")); code != exitFailed {
		t.Errorf("code %d", code)
	}
	if !got.Keep || got.Duration != 5*time.Second || got.Out != out {
		t.Errorf("got %+v", got)
	}
}

// TestDemoInterrupted: Ctrl-C is no failure of the proof.
func TestDemoInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancelCause(t.Context())
	a, _, errOut := call{}.app(t)
	a.runDemo = func(ctx context.Context, _ demo.Options) error {
		cancel(signalled{syscall.SIGINT})
		return fmt.Errorf("seed: %w", ctx.Err())
	}
	if code := a.run(ctx, []string{"demo"}); code != 130 || errOut.Len() > 0 {
		t.Errorf("code %d: %s", code, errOut)
	}
}

// TestAwayForGood: a wait for a new link ends when the agent stays away.
func TestAwayForGood(t *testing.T) {
	t.Parallel()
	f := &fake{links: []api.Link{seeding(false)}}
	f.onLook = func(int) { f.err = problem.New(api.CodeUnreachable, "", "It is gone.", "").Retry() }
	a, out, errOut := call{}.app(t)
	now := start()
	a.now = func() time.Time { now = now.Add(time.Minute); return now }
	if code := a.run(t.Context(), split("link create o --database d --peer p --socket "+serve(t, f))); code != exitUnreachable {
		t.Errorf("code %d: %s%s", code, out, errOut)
	}
}

// TestFailoverShowsItsPhases: on a terminal, while it runs; what it waits for, everywhere.
func TestFailoverShowsItsPhases(t *testing.T) {
	t.Parallel()
	for _, terminal := range []bool{true, false} {
		running := failover()
		running.FinishedAt, running.Phases = nil, running.Phases[:1]
		l := synchronized()
		l.State, l.Failover = api.StateFailingOver, &running
		l.Findings = problem.Findings{problem.Warn("failover-waits", "backend 7", "the failover waits for its transaction", "SELECT pg_terminate_backend(7);")}
		looked := make(chan struct{})
		f := &slowFailover{fake: &fake{links: []api.Link{l}}, looked: looked}
		f.onLook = func(look int) {
			if look == 3 {
				close(looked)
			}
		}
		a, out, errOut := call{terminal: terminal, environ: []string{"NO_COLOR=1"}}.app(t)
		code := a.run(t.Context(), split("link failover orders --socket "+serve(t, f)))
		if code != 0 || strings.Contains(out.String(), "planned failover under way: mi-west to on-prem") != terminal || !strings.Contains(out.String(), "on-prem is the primary") {
			t.Errorf("code %d: %s%s", code, out, errOut)
		}
		const waits = "the failover waits for its transaction"
		if terminal && !strings.Contains(out.String(), waits) || !terminal && strings.Count(errOut.String(), waits) != 1 {
			t.Errorf("it does not say what it waits for: %s%s", out, errOut)
		}
	}
}

// TestVerifySaysWhatItWaitsFor: once, while it waits.
func TestVerifySaysWhatItWaitsFor(t *testing.T) {
	t.Parallel()
	l := synchronized()
	const waits = "a comparison waits until the stream is open"
	l.Findings = problem.Findings{problem.Noted("verify-waits", "link orders", waits)}
	looked := make(chan struct{})
	f := &slowVerify{fake: &fake{links: []api.Link{l}, verify: api.VerifyReport{Equal: true, Complete: true}}, looked: looked}
	f.onLook = func(look int) {
		if look == 3 {
			close(looked)
		}
	}
	a, out, errOut := call{}.app(t)
	if code := a.run(t.Context(), split("link verify orders --socket "+serve(t, f))); code != 0 || strings.Count(errOut.String(), waits) != 1 {
		t.Errorf("code %d: %s%s", code, out, errOut)
	}
}

func TestForcedFailoverIsConfirmed(t *testing.T) {
	t.Parallel()
	f := &fake{}
	code, out, _ := call{args: "link failover orders --force", terminal: true, stdin: "Y\n", fake: f}.run(t)
	if code != 0 || !reflect.DeepEqual(f.asked, []any{api.FailoverOptions{Force: true, Timeout: 30 * time.Second}}) {
		t.Errorf("code %d, asked %v: %s", code, f.asked, out)
	}
}

// TestForcedFailoverTellsWhatIsLost: which transaction was the last that is not.
func TestForcedFailoverTellsWhatIsLost(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 27, 1, 2, 3, 456e6, time.UTC)
	for want, last := range map[string]api.LastApplied{
		"transaction 813 of mi-west, committed 2026-11-27 01:02:03.456 UTC at 0/1E2C258; what it committed later is not here": {Transaction: 813, Position: 0x1E2C258, Time: &at},
		"transaction 813 of mi-west, at 0/1E2C258; what it committed later is not here":                                       {Transaction: 813, Position: 0x1E2C258},
		"no transaction of mi-west since position 0/1E2C258":                                                                  {Position: 0x1E2C258},
	} {
		l, forced := catchingUp(), failover()
		forced.Forced, forced.LastApplied = true, &last
		l.Failover = &forced
		if _, out, _ := (call{args: "link show orders", fake: &fake{links: []api.Link{l}}}).run(t); !strings.Contains(out, want) {
			t.Errorf("it does not say %q: %s", want, out)
		}
	}
}

// slowFailover ends its failover after it was looked at.
type slowFailover struct {
	*fake
	looked chan struct{}
}

func (f *slowFailover) FailoverLink(ctx context.Context, name string, o api.FailoverOptions) (api.FailoverResult, error) {
	<-f.looked
	return f.fake.FailoverLink(ctx, name, o)
}

// slowVerify ends its comparison after it was looked at.
type slowVerify struct {
	*fake
	looked chan struct{}
}

func (f *slowVerify) VerifyLink(ctx context.Context, name string, o api.VerifyOptions) (api.VerifyReport, error) {
	<-f.looked
	return f.fake.VerifyLink(ctx, name, o)
}

func TestVersion(t *testing.T) {
	t.Parallel()
	_, out, _ := call{args: "version -o json"}.run(t)
	var v versionReport
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Version != version || v.Go == "" {
		t.Errorf("%s: %v", out, err)
	}
	for _, args := range []string{"version", "--version"} {
		if code, out, _ := (call{args: args}).run(t); code != 0 || !strings.HasPrefix(out, "hawser "+version) {
			t.Errorf("%s: code %d: %s", args, code, out)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	t.Parallel()
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, out, _ := (call{args: "completion " + shell}).run(t); code != 0 || !strings.Contains(out, "hawser") {
			t.Errorf("%s: code %d", shell, code)
		}
	}
}

// ignoreOneSignal is the process of TestSecondSignal: it does not end when asked to.
func ignoreOneSignal() {
	ctx, _ := untilSignal(context.Background())
	fmt.Println("ready")
	<-ctx.Done()
	fmt.Println(context.Cause(ctx))
	_ = syscall.Kill(os.Getpid(), syscall.SIGTERM) // of the same asking
	time.Sleep(sameAsking)
	fmt.Println("still here")
	select {}
}

func TestSecondSignal(t *testing.T) {
	t.Parallel()
	cmd := testpg.Command(t, os.Args[0])
	cmd.Env = append(os.Environ(), signalHelper+"=1")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(stdout)
	for _, want := range []string{"ready\n", "ended by terminated\n", "still here\n"} {
		if line, err := lines.ReadString('\n'); line != want {
			t.Fatalf("got %q, %v", line, err)
		}
		if strings.HasPrefix(want, "ended") {
			continue
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = io.Copy(io.Discard, lines)
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 143 {
		t.Errorf("exit code %d after the second signal, want 143", code)
	}
}

func TestUnits(t *testing.T) {
	t.Parallel()
	for got, want := range map[string]string{
		bytesText(int64(0)): "0 B", bytesText(uint64(1023)): "1023 B", bytesText(int64(1024)): "1.0 KiB", bytesText(int64(1<<20 - 1)): "1.0 MiB", bytesText(uint64(5 << 50)): "5120.0 TiB",
		count(-999): "-999", count(-1000): "-1,000", count(12): "12", count(1234567): "1,234,567",
		span(0): "0 s", span(0.0000421): "0.04 ms", span(0.25): "250 ms", span(9.94): "9.9 s", span(59): "59 s", span(61): "1m 01s", span(7260): "2h 01m", span(200000): "2d 07h",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestCleanAndColumns(t *testing.T) {
	t.Parallel()
	if got := clean("a\x1b[2Jb\n\u202eé 表"); got != `a\x1b[2Jb\n\u202eé 表` {
		t.Errorf("got %q", got)
	}
	for s, want := range map[string]int{"abc": 3, "é": 1, "e\u0301": 1, "表": 2} {
		if got := columns(s); got != want {
			t.Errorf("%q has %d columns, want %d", s, got, want)
		}
	}
}

func TestQualified(t *testing.T) {
	t.Parallel()
	for want, in := range map[string][2]string{
		`public.orders_2`: {"public", "orders_2"}, `public."My ""Table"""`: {"public", `My "Table"`}, `"Ö"."2x"`: {"Ö", "2x"}, `a.""`: {"a", ""},
	} {
		if got := qualified(in[0], in[1]); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func selfSigned(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
