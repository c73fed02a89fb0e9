package api

import (
	"context"
	"net/http"
	"reflect"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/hawser/hawser/internal/problem"
)

// handler answers requests by asking the service.
type handler struct {
	service Service
	life    context.Context // ends with the server
}

// Wire forms that are not a type of their own in Service.
type (
	linkList struct {
		Links []Link `json:"links" nullable:"false"`
	}
	databaseList struct {
		Databases []Database `json:"databases" nullable:"false"`
	}
	stepList struct {
		Steps []PeerTestStep `json:"steps" nullable:"false"`
	}
	findingList struct {
		Findings problem.Findings `json:"findings" nullable:"false"`
	}

	// validateSpec is a LinkSpec of which only the database must be known.
	validateSpec struct {
		Name     string `json:"name,omitempty" maxLength:"64" doc:"Checked when given"`
		Database string `json:"database" minLength:"1" maxLength:"63"`
		Peer     string `json:"peer,omitempty" maxLength:"64" doc:"Without it only this instance is checked"`
		Role     Role   `json:"role,omitempty" enum:"primary,secondary" default:"primary"`

		Tables        []string `json:"tables,omitempty" maxItems:"1000" nullable:"false" doc:"As of a new link; each has to match a table"`
		ExcludeTables []string `json:"exclude_tables,omitempty" maxItems:"1000" nullable:"false" doc:"As of a new link; each has to match a table"`

		MaxWALBytes *int64 `json:"max_wal_bytes,omitempty" minimum:"0" doc:"As of a new link"`
	}
	maxWALBody struct {
		Bytes *int64 `json:"bytes" minimum:"0" doc:"null: limits.wal_held of the primary's agent; 0: no bound"`
	}
	failoverBody struct {
		Force          bool    `json:"force,omitempty" doc:"Open the secondary without the primary"`
		Check          bool    `json:"check,omitempty" doc:"Change nothing: only refuse what this side would refuse"`
		TimeoutSeconds float64 `json:"timeout_seconds,omitempty" minimum:"0" maximum:"86400" doc:"Bounds a planned failover; 0 leaves it to the agent"`
	}
	followBody struct {
		Primary string `json:"primary" minLength:"1" maxLength:"64" doc:"The instance that leads the database now"`
	}
	resyncBody struct {
		Tables []string `json:"tables,omitempty" nullable:"false" doc:"Tables to copy, as schema.name; none means those that differ"`
	}
	verifyBody struct {
		TimeoutSeconds float64 `json:"timeout_seconds,omitempty" minimum:"0" maximum:"604800" doc:"Bounds the comparison; 0 means none"`
	}
)

type (
	none  struct{}
	named struct {
		Name string `path:"name" maxLength:"64"`
	}
	with[B any]      struct{ Body B }
	namedWith[B any] struct {
		Name string `path:"name" maxLength:"64"`
		Body B      `required:"false"`
	}
	dropInput struct {
		Name          string `path:"name" maxLength:"64"`
		RemoveReplica bool   `query:"remove_replica" doc:"Drop the secondary's database too, if Hawser created it"`
		Force         bool   `query:"force" doc:"Drop this side even when the other can't be reached, and open a replica whose copy is not complete"`
	}
)

// newHandler builds the API. Operations that change something end with ctx,
// not with their client.
func newHandler(ctx context.Context, config Config) http.Handler {
	mux := http.NewServeMux()
	c := huma.DefaultConfig("Hawser agent", config.Version)
	c.Info.Description = "What one agent does for its users. An error is application/problem+json with a stable code, its cause and its remedy."
	c.DocsPath = ""     // its page loads scripts from elsewhere
	c.SchemasPath = ""  // all schemas are in the description
	c.CreateHooks = nil // no $schema in answers: their fields are ours alone
	c.RejectUnknownQueryParameters = true
	c.Transformers = []huma.Transformer{ourErrors}
	api := humago.New(mux, c)
	h := &handler{service: naming{config.Service}, life: ctx}
	h.instance(api)
	h.peers(api)
	h.links(api)
	h.linkOperations(api)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, problem.New("endpoint-not-found", r.Method+" "+strconv.Quote(r.URL.Path), "The API has no such endpoint.", "").Advise("/openapi.json describes the API"))
	})
	return mux
}

// ourErrors gives huma's own errors the form of all others.
func ourErrors(_ huma.Context, _ string, v any) (any, error) {
	if m, ok := v.(*huma.ErrorModel); ok {
		return shapeError(m), nil
	}
	return v, nil
}

// outlive returns a context for an operation that must not end halfway because
// its client has gone.
func (h *handler) outlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(h.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// reads registers an operation that changes nothing, or that may stop halfway.
func reads[I, O any](api huma.API, op huma.Operation, do func(context.Context, *I) (O, error)) {
	op.Responses = map[string]*huma.Response{"default": errorResponse(api)}
	huma.Register(api, op, func(ctx context.Context, in *I) (*with[O], error) {
		out, err := do(ctx, in)
		if err != nil {
			return nil, encodeError(err)
		}
		return &with[O]{out}, nil
	})
}

// changes registers an operation that goes on when its client has gone.
func changes[I, O any](h *handler, api huma.API, op huma.Operation, do func(context.Context, *I) (O, error)) {
	reads(api, op, func(ctx context.Context, in *I) (O, error) {
		ctx, cancel := h.outlive(ctx)
		defer cancel()
		return do(ctx, in)
	})
}

// changesOnly is changes for an operation that has nothing to answer.
func changesOnly[I any](h *handler, api huma.API, op huma.Operation, do func(context.Context, *I) error) {
	endsWithClient(h, api, op, func(ctx context.Context, in *I) error {
		ctx, cancel := h.outlive(ctx)
		defer cancel()
		return do(ctx, in)
	})
}

// endsWithClient registers an operation that ends when its client has gone, as long as it
// has changed nothing. It has nothing to answer.
func endsWithClient[I any](h *handler, api huma.API, op huma.Operation, do func(context.Context, *I) error) {
	op.DefaultStatus = http.StatusNoContent
	op.Responses = map[string]*huma.Response{"default": errorResponse(api)}
	huma.Register(api, op, func(ctx context.Context, in *I) (*none, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(h.life, cancel)()
		if err := do(ctx, in); err != nil {
			return nil, encodeError(err)
		}
		return nil, nil
	})
}

func errorResponse(api huma.API) *huma.Response {
	schema := huma.SchemaFromType(api.OpenAPI().Components.Schemas, reflect.TypeFor[errorBody]())
	return &huma.Response{Description: "A problem", Content: map[string]*huma.MediaType{"application/problem+json": {Schema: schema}}}
}

func (h *handler) instance(api huma.API) {
	reads(api, huma.Operation{OperationID: "get-instance", Method: http.MethodGet, Path: "/v1/instance", Summary: "This instance"},
		func(ctx context.Context, _ *none) (Instance, error) { return h.service.Instance(ctx) })
	reads(api, huma.Operation{OperationID: "get-certificate", Method: http.MethodGet, Path: "/v1/certificate", Summary: "This instance's certificate, for its peers"},
		func(ctx context.Context, _ *none) (Certificate, error) { return h.service.Certificate(ctx) })
	changes(h, api, huma.Operation{OperationID: "rotate-certificate", Method: http.MethodPost, Path: "/v1/certificate/rotate", Summary: "Renew this instance's certificate",
		Description: "All peers have to be connected. They are given the new certificate before it is used; links go on."},
		func(ctx context.Context, _ *none) (Rotation, error) {
			r, err := h.service.RotateCertificate(ctx)
			r.Peers = orEmpty(r.Peers)
			return r, err
		})
	reads(api, huma.Operation{OperationID: "list-databases", Method: http.MethodGet, Path: "/v1/databases", Summary: "The databases of this instance"},
		func(ctx context.Context, _ *none) (databaseList, error) {
			d, err := h.service.Databases(ctx)
			return databaseList{orEmpty(d)}, err
		})
}

func (h *handler) peers(api huma.API) {
	reads(api, huma.Operation{OperationID: "list-peers", Method: http.MethodGet, Path: "/v1/peers", Summary: "Trusted and refused instances"},
		func(ctx context.Context, _ *none) (PeerList, error) {
			l, err := h.service.Peers(ctx)
			for i := range l.Peers {
				l.Peers[i].Databases = orEmpty(l.Peers[i].Databases)
			}
			return PeerList{Peers: orEmpty(l.Peers), Refused: orEmpty(l.Refused)}, err
		})
	changes(h, api, huma.Operation{OperationID: "add-peer", Method: http.MethodPost, Path: "/v1/peers", DefaultStatus: http.StatusCreated,
		Summary: "Trust an instance", Description: "With the name of a peer that is trusted already, it takes the new certificate. What is said of address and grant is changed, and the rest kept."},
		func(ctx context.Context, in *with[AddPeer]) (Peer, error) {
			own, err := h.service.Certificate(ctx)
			if err != nil {
				return Peer{}, err
			}
			peer, err := readPeer(in.Body, own, time.Now())
			if err != nil {
				return Peer{}, err
			}
			added, err := h.service.AddPeer(ctx, peer)
			added.Databases = orEmpty(added.Databases)
			return added, err
		})
	changes(h, api, huma.Operation{OperationID: "set-peer", Method: http.MethodPatch, Path: "/v1/peers/{name}",
		Summary: "Change an instance's address and grant", Description: "What is not said stays as it is, and so does the certificate."},
		func(ctx context.Context, in *namedWith[SetPeer]) (Peer, error) {
			var err error
			if in.Body.Address, err = completeAddress(in.Body.Address); err != nil {
				return Peer{}, err
			}
			set, err := h.service.SetPeer(ctx, in.Name, in.Body)
			set.Databases = orEmpty(set.Databases)
			return set, err
		})
	changesOnly(h, api, huma.Operation{OperationID: "remove-peer", Method: http.MethodDelete, Path: "/v1/peers/{name}", Summary: "Trust an instance no more"},
		func(ctx context.Context, in *named) error { return h.service.RemovePeer(ctx, in.Name) })
	reads(api, huma.Operation{OperationID: "test-peer", Method: http.MethodPost, Path: "/v1/peers/{name}/test", Summary: "Walk the real way to a peer, step by step"},
		func(ctx context.Context, in *named) (stepList, error) {
			steps, err := h.service.TestPeer(ctx, in.Name)
			return stepList{orEmpty(steps)}, err
		})
}

func (h *handler) links(api huma.API) {
	reads(api, huma.Operation{OperationID: "list-links", Method: http.MethodGet, Path: "/v1/links", Summary: "The links of this instance"},
		func(ctx context.Context, _ *none) (linkList, error) {
			links, err := h.service.Links(ctx)
			return linkList{orEmpty(links)}, err
		})
	reads(api, huma.Operation{OperationID: "get-link", Method: http.MethodGet, Path: "/v1/links/{name}", Summary: "One link, with the progress of each table"},
		func(ctx context.Context, in *named) (Link, error) { return h.service.Link(ctx, in.Name) })
	reads(api, huma.Operation{OperationID: "validate-link", Method: http.MethodPost, Path: "/v1/validate", Summary: "Check what a link would need, changing nothing"},
		func(ctx context.Context, in *with[validateSpec]) (findingList, error) {
			spec := LinkSpec(in.Body)
			if err := checkNames(spec); err != nil {
				return findingList{}, err
			}
			f, err := h.service.ValidateLink(ctx, spec)
			return findingList{orEmpty(f)}, err
		})
	changes(h, api, huma.Operation{OperationID: "create-link", Method: http.MethodPost, Path: "/v1/links", DefaultStatus: http.StatusCreated,
		Summary: "Validate and create a link", Description: "Answers when the link stands and its seeding runs."},
		func(ctx context.Context, in *with[LinkSpec]) (Link, error) {
			if err := checkNames(in.Body); err != nil {
				return Link{}, err
			}
			return h.service.CreateLink(ctx, in.Body)
		})
	changes(h, api, huma.Operation{OperationID: "drop-link", Method: http.MethodDelete, Path: "/v1/links/{name}",
		Summary: "Drop a link", Description: "The replica stays, as an ordinary read-write database, unless remove_replica is set and Hawser had created it."},
		func(ctx context.Context, in *dropInput) (DropResult, error) {
			return h.service.DropLink(ctx, in.Name, DropOptions{RemoveReplica: in.RemoveReplica, Force: in.Force})
		})
}

func (h *handler) linkOperations(api huma.API) {
	changesOnly(h, api, huma.Operation{OperationID: "pause-link", Method: http.MethodPost, Path: "/v1/links/{name}/pause", Summary: "Stop applying changes; the primary keeps WAL"},
		func(ctx context.Context, in *named) error { return h.service.PauseLink(ctx, in.Name) })
	changesOnly(h, api, huma.Operation{OperationID: "resume-link", Method: http.MethodPost, Path: "/v1/links/{name}/resume", Summary: "Go on after a pause or a suspension"},
		func(ctx context.Context, in *named) error { return h.service.ResumeLink(ctx, in.Name) })
	changes(h, api, huma.Operation{OperationID: "failover-link", Method: http.MethodPost, Path: "/v1/links/{name}/failover", Summary: "Swap the roles",
		Description: "Answers when the new primary is open. Meanwhile the link's failover field tells how far it is."},
		func(ctx context.Context, in *namedWith[failoverBody]) (FailoverResult, error) {
			r, err := h.service.FailoverLink(ctx, in.Name, FailoverOptions{Force: in.Body.Force, Check: in.Body.Check, Timeout: seconds(in.Body.TimeoutSeconds)})
			r.Phases = orEmpty(r.Phases)
			return r, err
		})
	changesOnly(h, api, huma.Operation{OperationID: "set-link-max-wal", Method: http.MethodPut, Path: "/v1/links/{name}/max-wal", Summary: "Bound the WAL that the link may hold back on its primary"},
		func(ctx context.Context, in *namedWith[maxWALBody]) error {
			return h.service.SetLinkMaxWAL(ctx, in.Name, in.Body.Bytes)
		})
	endsWithClient(h, api, huma.Operation{OperationID: "rejoin-link", Method: http.MethodPost, Path: "/v1/links/{name}/rejoin", Summary: "Follow the side that took over by force",
		Description: "Asked of the side that was forced out. Answers when it has begun to follow; the rows that differ are repaired meanwhile. Until it takes rows away it ends when its client goes, and may be asked for again."},
		func(ctx context.Context, in *named) error { return h.service.RejoinLink(ctx, in.Name) })
	changesOnly(h, api, huma.Operation{OperationID: "follow-link", Method: http.MethodPost, Path: "/v1/links/{name}/follow", Summary: "Follow the instance that leads the database now",
		Description: "Asked of a secondary that another link of the database left behind. All tables are compared, and those that differ are copied. Answers when the copy has been put down."},
		func(ctx context.Context, in *namedWith[followBody]) error {
			if err := CheckName("peer", in.Body.Primary); err != nil {
				return err
			}
			return h.service.FollowLink(ctx, in.Name, in.Body.Primary)
		})
	changesOnly(h, api, huma.Operation{OperationID: "resync-link", Method: http.MethodPost, Path: "/v1/links/{name}/resync", Summary: "Copy tables again while the link runs",
		Description: "Without tables, all are compared and those that differ are copied. Answers when the copy has been put down."},
		func(ctx context.Context, in *namedWith[resyncBody]) error {
			return h.service.ResyncLink(ctx, in.Name, in.Body.Tables)
		})
	reads(api, huma.Operation{OperationID: "verify-link", Method: http.MethodPost, Path: "/v1/links/{name}/verify", Summary: "Compare both sides at one position"},
		func(ctx context.Context, in *namedWith[verifyBody]) (VerifyReport, error) {
			r, err := h.service.VerifyLink(ctx, in.Name, VerifyOptions{Timeout: seconds(in.Body.TimeoutSeconds)})
			r.Tables, r.Schema, r.Sequences, r.Findings = orEmpty(r.Tables), orEmpty(r.Schema), orEmpty(r.Sequences), orEmpty(r.Findings)
			r.LeftOut = orEmpty(r.LeftOut)
			return r, err
		})
}

// checkNames refuses names that no link or instance can have.
func checkNames(spec LinkSpec) error {
	if spec.Name != "" {
		if err := CheckName("link", spec.Name); err != nil {
			return err
		}
	}
	if spec.Peer != "" {
		return CheckName("peer", spec.Peer)
	}
	return nil
}

// orEmpty makes a list that is never null on the wire.
func orEmpty[S ~[]E, E any](s S) S {
	if s == nil {
		return S{}
	}
	return s
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
